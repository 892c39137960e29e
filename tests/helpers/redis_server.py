"""Real Redis servers for tests: alone, with an ACL user, with TLS, behind a Sentinel, as a Cluster.

with redis_server() as redis:
    ... redis.url is what a user would configure; redis.pause(), redis.kill(), redis.start() ...

Nothing is persisted: a server that is started again is empty.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import redis
import trustme
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.helpers.procs import eventually, free_port
from tests.helpers.redis_shim import Shim
from tests.helpers.tools import need

HOST = "127.0.0.1"
START_S = 10.0
ADMIN_PASSWORD = "tests-only-admin"
USER, USER_PASSWORD = "legato", "tests-only-user"
SERVICE = "mymaster"
#: What the user of ``redis_acl`` may do: the least with which everything works.
USER_RULES = (
    "~legato:* resetchannels -@all +time +get +set +hset +hsetnx +hdel +hgetall +expire +expireat "
    "+zadd +zremrangebyscore +zrevrangebyscore +xadd +xrevrange +ping +client|setname"
)
_PLAIN = ("--save", "", "--appendonly", "no", "--bind", HOST, "--protected-mode", "no")


def once() -> Retry:
    """The client's own retries, off: a test wants to see the first failure."""
    return Retry(NoBackoff(), 0)


@dataclass
class RedisServer:
    """One ``redis-server``.  ``url`` is for a client, ``admin`` may do everything."""

    port: int
    folder: Path
    arguments: Sequence[str]
    url: str
    options: Mapping[str, Any] = field(default_factory=dict)  # of ``redis.Redis``, for ``admin``
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        return HOST, self.port

    @property
    def pid(self) -> int:
        """Its process."""
        assert self.process is not None
        return self.process.pid

    def admin(self) -> redis.Redis:
        """A client of the tests' own; close it, or use it as a context manager."""
        return redis.Redis(host=HOST, port=self.port, socket_timeout=30, retry=once(), **self.options)

    def ask(self, *words: object) -> Any:
        """One command over a connection of its own, and its answer."""
        with self.admin() as client:
            return client.execute_command(*words)

    def start(self) -> None:
        """Start it (again, on the same port, empty) and wait until it answers."""
        with open(self.folder / f"log-{self.port}", "ab") as log:
            self.process = subprocess.Popen(
                [need("redis-server"), *self.arguments],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        eventually(self._answers, START_S, f"an answer of Redis on {self.port}", every_s=0.02)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it and wait; nothing where it has ended."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGCONT)
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(5)

    def kill(self) -> None:
        """As a crash: its connections are reset, what it held is gone."""
        self.stop(signal.SIGKILL)

    def pause(self) -> None:
        """It keeps its connections and answers nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """It answers again, what came meanwhile included."""
        os.kill(self.pid, signal.SIGCONT)

    def restart(self) -> None:
        """Crash, and back at once, empty."""
        self.kill()
        self.start()

    def _answers(self) -> bool:
        assert self.process is not None
        status = self.process.poll()
        if status is not None:
            log = (self.folder / f"log-{self.port}").read_text(errors="replace")
            raise RuntimeError(f"redis-server ended with {status}:\n{log[-1500:]}")
        return bool(self.ask("PING"))


@contextmanager
def _started(
    arguments: Callable[[int], Sequence[str]],
    url: Callable[[int], str],
    options: Mapping[str, Any] | None = None,
    folder: Path | None = None,
) -> Iterator[RedisServer]:
    need("redis-server")
    with contextlib.ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="legato-redis-")))
        port = free_port()
        server = RedisServer(port, folder, arguments(port), url(port), options or {})
        try:
            server.start()
            yield server
        finally:
            server.kill()


@contextmanager
def redis_server(*extra: str) -> Iterator[RedisServer]:
    """One server without password; ``extra``: arguments such as ``"--maxmemory", "2mb"``."""
    with _started(
        lambda port: (*_PLAIN, "--port", str(port), *extra), lambda port: f"redis://{HOST}:{port}"
    ) as server:
        yield server


@contextmanager
def redis_acl(rules: str = USER_RULES) -> Iterator[RedisServer]:
    """One server whose ``url`` names a user with these rules; nobody gets in without a password."""
    with tempfile.TemporaryDirectory(prefix="legato-redis-") as name:
        acl = Path(name) / "users.acl"
        acl.write_text(
            f"user default on >{ADMIN_PASSWORD} ~* &* +@all\nuser {USER} on >{USER_PASSWORD} {rules}\n"
        )
        with _started(
            lambda port: (*_PLAIN, "--port", str(port), "--aclfile", str(acl)),
            lambda port: f"redis://{USER}:{USER_PASSWORD}@{HOST}:{port}",
            {"password": ADMIN_PASSWORD},
            Path(name),
        ) as server:
            yield server


@dataclass(frozen=True)
class Certificates:
    """Paths of PEM files: the CA, and a client's certificate with its key."""

    ca: str
    cert: str
    key: str


@contextmanager
def redis_tls(*, mutual: bool = False) -> Iterator[tuple[RedisServer, Certificates]]:
    """One server that speaks TLS only; ``mutual``: and asks for a client's certificate."""
    with tempfile.TemporaryDirectory(prefix="legato-redis-") as name:
        folder = Path(name)
        ca = _authority()
        ca.cert_pem.write_to_path(str(folder / "ca.pem"))
        for who, issued in (
            ("server", ca.issue_cert(HOST, "localhost")),
            ("client", ca.issue_cert("legato.test")),
        ):
            issued.private_key_pem.write_to_path(str(folder / f"{who}.key"))
            for place, part in enumerate(issued.cert_chain_pems):
                part.write_to_path(str(folder / f"{who}.pem"), append=place > 0)
        found = Certificates(*(str(folder / each) for each in ("ca.pem", "client.pem", "client.key")))
        arguments = [*_PLAIN, "--port", "0", "--tls-ca-cert-file", found.ca]
        arguments += ["--tls-cert-file", str(folder / "server.pem")]
        arguments += ["--tls-key-file", str(folder / "server.key")]
        arguments += ["--tls-auth-clients", "yes" if mutual else "no"]
        options = {
            "ssl": True,
            "ssl_ca_certs": found.ca,
            "ssl_certfile": found.cert,
            "ssl_keyfile": found.key,
        }
        with _started(
            lambda port: (*arguments, "--tls-port", str(port)),
            lambda port: f"rediss://{HOST}:{port}",
            options,
            folder,
        ) as server:
            yield server, found


@cache
def _authority() -> trustme.CA:
    return trustme.CA()


# ---------------------------------------------------------------- Sentinel


@dataclass
class Sentinel:
    """A master, its replica and the Sentinel that watches both; quorum 1, so a failover takes ~2 s."""

    master: RedisServer
    replica: RedisServer
    sentinel: RedisServer

    @property
    def url(self) -> str:
        """What a user would configure."""
        return f"redis+sentinel://{HOST}:{self.sentinel.port}/{SERVICE}"

    def current(self) -> RedisServer:
        """Whom the Sentinel names as master."""
        _, port = self.sentinel.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        return self.master if int(port) == self.master.port else self.replica

    def patience(self, seconds: float) -> None:
        """After how much silence the master counts as down."""
        self.sentinel.ask("SENTINEL", "SET", SERVICE, "down-after-milliseconds", int(seconds * 1e3))

    def replicated(self) -> None:
        """Wait until the replica has all that the master has."""
        with self.master.admin() as client:
            client.set("replicated", "")
            assert client.wait(1, 30_000) == 1

    def failover(self) -> None:
        """Crash the master and wait until the replica is one, by the Sentinel and by itself."""
        self.master.kill()
        eventually(lambda: self.current() is self.replica, 20, "the failover", every_s=0.05)
        eventually(lambda: self.replica.ask("ROLE")[0] == b"master", 10, "the new master", every_s=0.02)


@contextmanager
def redis_sentinel() -> Iterator[Sentinel]:
    """Three processes."""
    fast = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")
    with (
        redis_server(*fast) as master,
        redis_server(*fast, "--replicaof", f"{HOST} {master.port}") as replica,
    ):
        eventually(lambda: replica.ask("ROLE")[3] == b"connected", 15, "replication", every_s=0.02)
        # Redis writes the Sentinel's state into its own configuration file.
        with tempfile.TemporaryDirectory(prefix="legato-redis-") as name:
            config = Path(name) / "sentinel.conf"
            config.write_text(
                f"bind {HOST}\nprotected-mode no\nsentinel monitor {SERVICE} {HOST} {master.port} 1\n"
                f"sentinel down-after-milliseconds {SERVICE} 300\nsentinel failover-timeout {SERVICE} 3000\n"
            )
            with _started(
                lambda port: (str(config), "--sentinel", "--port", str(port)),
                lambda port: f"redis+sentinel://{HOST}:{port}/{SERVICE}",
                folder=Path(name),
            ) as sentinel:
                found = Sentinel(master, replica, sentinel)
                eventually(
                    lambda: len(sentinel.ask("SENTINEL", "REPLICAS", SERVICE)) == 1, 15, "the replica known"
                )
                yield found


# ---------------------------------------------------------------- Cluster

_SLOTS = 16_384


@dataclass
class Cluster:
    """Masters that share the slots; a node that is started again is empty and has its slots again.

    ``shims``: the hops that lead clients to the nodes, where ``redis_cluster`` was asked for them.
    """

    nodes: list[RedisServer]
    shims: list[Shim] = field(default_factory=list)

    @property
    def url(self) -> str:
        """What a user would configure."""
        ports = [each.port for each in self.shims or self.nodes]
        return "redis+cluster://" + ",".join(f"{HOST}:{port}" for port in ports)

    def node_of(self, key: str) -> RedisServer:
        """The node that has the slot of a key."""
        slot, many = int(self.nodes[0].ask("CLUSTER", "KEYSLOT", key)), len(self.nodes)
        return self.nodes[max(index for index in range(many) if _SLOTS * index // many <= slot)]

    def announce(self, stack: contextlib.ExitStack) -> None:
        """Lead every client through a shim to each node."""
        self.shims = [stack.enter_context(Shim(node.address)) for node in self.nodes]
        for node, shim in zip(self.nodes, self.shims, strict=True):
            node.ask("CONFIG", "SET", "cluster-announce-port", shim.port)
        eventually(lambda: all(map(self._announced, self.nodes)), 20, "the shims' ports", every_s=0.02)

    def _announced(self, node: RedisServer) -> bool:
        text = node.ask("CLUSTER", "NODES").decode()
        return all(f":{shim.port}@" in text for shim in self.shims)

    def wait_ok(self) -> None:
        """Every node knows every other and serves its slots."""
        eventually(lambda: all(map(self._ok, self.nodes)), 20, "cluster_state:ok everywhere", every_s=0.02)

    def _ok(self, node: RedisServer) -> bool:
        told = node.ask("CLUSTER", "INFO").split()
        return {b"cluster_state:ok", b"cluster_known_nodes:%d" % len(self.nodes)} <= set(told)


@contextmanager
def redis_cluster(masters: int = 3, *, shims: bool = False) -> Iterator[Cluster]:
    """So many masters without replicas."""
    with contextlib.ExitStack() as stack:
        nodes = []
        for index in range(masters):
            extra = ["--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf"]
            extra += ["--cluster-node-timeout", "2000", "--cluster-port", str(free_port())]
            node = stack.enter_context(redis_server(*extra))
            first, last = _SLOTS * index // masters, _SLOTS * (index + 1) // masters - 1
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
            node.ask("CLUSTER", "ADDSLOTSRANGE", first, last)
            nodes.append(node)
        for other in nodes[1:]:
            bus = other.arguments[list(other.arguments).index("--cluster-port") + 1]
            nodes[0].ask("CLUSTER", "MEET", HOST, other.port, bus)
        cluster = Cluster(nodes)
        cluster.wait_ok()
        if shims:
            cluster.announce(stack)
        yield cluster
