"""The user that the documentation tells an operator to make may do all that is needed, and no more."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from proxy.control.fleet.shared import RedisShared
from proxy.control.fleet.store import StoreError
from tests.control.fleet.host import KEYS, Host, run
from tests.helpers.redis_server import USER, USER_PASSWORD, RedisServer, redis_acl, redis_cluster

README = Path(__file__).parents[3] / "deploy" / "README.md"


def documented() -> list[str]:
    """The rules, for the tests' prefix; with what a Cluster needs besides."""
    text = README.read_text()
    rules = re.search(r"ACL SETUSER legato on >PASSWORD (.*)", text)
    more = re.search(r"In a Cluster also `(.*?)`", text)
    assert rules is not None
    assert more is not None
    return [rules[1].replace("~legato:*", "~test:*"), more[1]]


async def everything(url: str) -> None:
    """All that is ever asked of Redis."""
    host = Host(url)
    host.writer.losses.hello("w0", 3)
    host.settle()
    await host.round()
    assert host.status() == ("ok", None)
    await host.store.add_records([b"one"], [b"two"])
    assert await host.store.records(KEYS.recent, 5) == [b"one"]
    assert await host.store.hosts(0) == [host.name]
    assert await host.store.values([KEYS.host(host.name)]) != [None]
    host.writer.outbox.again()
    keys = [KEYS.slot(each.grain, each.number) for each in host.writer.outbox.waiting()]
    assert [list(each) for each in await host.store.hashes(keys)] == [[host.name]] * 3
    shared = RedisShared(host.store, host.name, lambda: 0)
    await shared.put("one", {"a": b"1"}, 60)
    assert await shared.put_new("one", "b", b"2", 60) == b"2"
    await shared.drop("one", "a")
    assert await shared.fetch("one") == {"b": b"2"}
    assert [await shared.lease("one", 5) for _ in range(2)] == [host.name] * 2
    await host.store.close(1)


def test_alone() -> None:
    rules, _ = documented()
    with redis_acl(rules) as server:
        run(everything(server.url))


def test_in_a_cluster() -> None:
    with redis_cluster() as cluster:
        for node in cluster.nodes:
            node.ask("ACL", "SETUSER", USER, "on", f">{USER_PASSWORD}", *" ".join(documented()).split())
        run(everything(cluster.url.replace("://", f"://{USER}:{USER_PASSWORD}@")))


@pytest.mark.parametrize(
    ("missing", "reason"), [("+hset", "forbidden"), ("+time", "forbidden"), (">", "auth")]
)
def test_a_right_that_is_missing_is_named_as_that(missing: str, reason: str) -> None:
    rules, _ = documented()

    async def script(server: RedisServer) -> None:
        url = server.url.replace(USER_PASSWORD, "wrong") if missing == ">" else server.url
        host = Host(url)
        host.settle()
        await host.round()
        assert host.status() == ("degraded", reason)
        if missing == ">":
            with pytest.raises(StoreError, match="auth"):
                await host.store.hosts(0)
        await host.store.close(1)

    with redis_acl(rules.replace(missing + " ", "")) as server:
        run(script(server))
