"""One scripted upstream and one Legato in front of it per module; each test gives the script it needs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.procs import Legato, eventually, open_files, serve
from tests.helpers.rawclient import RawClient, get
from tests.helpers.upstream import Upstream, json_response, respond, scripted

OK = respond(json_response({"ok": True}))


@pytest.fixture(scope="module")
def behind() -> Iterator[Upstream]:
    """The module's upstream; tests take ``upstream``."""
    with scripted(OK) as server:
        yield server


@pytest.fixture(scope="module")
def legato(behind: Upstream) -> Iterator[Legato]:
    """A real ``legato serve``; after the module's tests the same workers live, with no connection left."""
    with serve(behind.url) as process:
        with RawClient(process.data) as client:
            client.send(get())
            assert client.response().status == 200
        workers = process.workers()
        files = sum(map(open_files, workers))
        yield process
        assert process.workers() == workers, "a worker died"
        behind.use(OK)
        eventually(lambda: sum(map(open_files, workers)) <= files + 2, 10, "the end of every connection")


@pytest.fixture
def upstream(behind: Upstream, legato: Legato) -> Upstream:
    """The module's upstream, with no connection of earlier tests; set its script by ``use``."""
    behind.use(OK)
    return behind
