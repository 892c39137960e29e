"""A worker's own certificate: read when it was written anew, and no reason to refuse other weights."""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path

import pytest
import trustme
from msgspec.structs import replace

from proxy.link import BackendSpec, Match, SloSpec, Table
from proxy.relay.worker import Worker

TABLE = Table(1, (BackendSpec("a", "http://a"),), (), (SloSpec("s", Match(), ((0, 1),), 1),))


def issue(folder: Path, name: str = "here") -> Table:
    """A certificate in place, and the table that names it."""
    issued = trustme.CA().issue_cert("127.0.0.1")
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    issued.private_key_pem.write_to_path(key)
    cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    return replace(TABLE, tls_cert_file=str(cert), tls_key_file=str(key))


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The certificates that were read."""
    read: list[str] = []
    load = ssl.SSLContext.load_cert_chain

    def watched(self: ssl.SSLContext, cert: str, key: str) -> None:
        read.append(Path(cert).name)
        load(self, cert, key)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", watched)
    return read


async def worker(folder: Path, table: Table) -> Worker:
    made = Worker(0, str(folder / "nobody"))
    made.apply(table)
    return made


def test_other_weights_do_not_read_it_and_one_that_was_written_anew_is_read(
    tmp_path: Path, loaded: list[str]
) -> None:
    async def run() -> None:
        at = await worker(tmp_path, issue(tmp_path))
        assert loaded
        loaded.clear()
        at.apply(replace(at.table, version=2))
        assert (at.table.version, loaded) == (2, [])
        issue(tmp_path)
        at.apply(replace(at.table, version=3))
        assert (at.table.version, set(loaded)) == (3, {"here.pem"})
        loaded.clear()
        at.apply(replace(issue(tmp_path, "there"), version=4))
        assert (at.table.version, set(loaded)) == (4, {"there.pem"})

    asyncio.run(run())


@pytest.mark.parametrize("how", ["half replaced", "gone", "no certificate"])
def test_one_that_cannot_be_read_any_more_stays_in_force_and_the_table_is_taken(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        at = await worker(tmp_path, issue(tmp_path))
        if how == "half replaced":
            key = (tmp_path / "here.key").read_bytes()
            issue(tmp_path)
            (tmp_path / "here.key").write_bytes(key)
        elif how == "gone":
            (tmp_path / "here.key").unlink()
        else:
            (tmp_path / "here.pem").write_text("nonsense")
        with caplog.at_level(logging.ERROR):
            at.apply(replace(at.table, version=2))
            at.apply(replace(at.table, version=3))
        assert at.table.version == 3
        assert caplog.text.count("the certificate of before stays") == 2
        caplog.clear()
        issue(tmp_path)
        at.apply(replace(at.table, version=4))
        assert (at.table.version, caplog.text) == (4, "")

    asyncio.run(run())


def test_a_table_that_names_another_one_that_cannot_be_read_is_not_taken(tmp_path: Path) -> None:
    async def run() -> None:
        at = await worker(tmp_path, issue(tmp_path))
        at.apply(replace(at.table, version=2, tls_key_file=str(tmp_path / "nowhere")))
        assert at.table.version == 1

    asyncio.run(run())
