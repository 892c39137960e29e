"""The commands that Redis is sent, and what its failures are called.

Pipelines without transactions, each command on one key: the same on a Cluster.  A command that is sent twice
(its answer was lost) leaves what it left the first time; records alone stand twice then, and readers see it.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from redis import exceptions as errors

from proxy.control.fleet.connect import Connected
from proxy.control.fleet.layout import HOST_S, NOW_S, RECENT_MOST, RECORD_FIELD, WORST_MOST, Keys
from proxy.control.fleet.store import StoreError

T = TypeVar("T")
Command = tuple[str | bytes | int, ...]

#: What a failure is called, by the first word of the server's message; the message itself goes nowhere.
_WORDS: Final = {
    "OOM": "full",
    "READONLY": "read_only",
    "LOADING": "loading",
    "BUSY": "loading",
    "MASTERDOWN": "away",
    "NOREPLICAS": "no_replicas",
    "MISCONF": "misconfigured",
    "NOAUTH": "auth",
    "WRONGPASS": "auth",
    "NOPERM": "forbidden",
    "WRONGTYPE": "wrong_type",
    "CLUSTERDOWN": "cluster_down",
    "TRYAGAIN": "cluster_down",
    "MOVED": "cluster_down",
    "ASK": "cluster_down",
}
#: The same by the client's own classes, special ones first.
_CLASSES: Final[tuple[tuple[type[Exception], str], ...]] = (
    (errors.AuthenticationError, "auth"),
    (errors.AuthorizationError, "auth"),
    (errors.NoPermissionError, "forbidden"),
    (errors.BusyLoadingError, "loading"),
    (errors.OutOfMemoryError, "full"),
    (errors.ReadOnlyError, "read_only"),
    (errors.MasterDownError, "away"),
    (errors.ClusterError, "cluster_down"),
    (errors.SlotNotCoveredError, "cluster_down"),
    (errors.AskError, "cluster_down"),
    (errors.TryAgainError, "cluster_down"),
    (errors.TimeoutError, "slow"),
    (TimeoutError, "slow"),
    (ssl.SSLError, "tls"),
    (errors.InvalidResponse, "nonsense"),
    (errors.ConnectionError, "away"),
    (errors.RedisClusterException, "away"),  # no node of the cluster could be asked
    (OSError, "away"),
)
#: Every word that ``StoreError.reason`` may be.
REASONS: Final = frozenset(
    {*_WORDS.values(), *(word for _, word in _CLASSES), "slow", "tls", "nonsense", "refused"}
)
#: A whole pipeline may take so many times what one answer may: a connection and its greeting come before.
_PATIENCE: Final = 3
#: Keys asked for at a time.
_KEYS_AT_ONCE: Final = 64


class SlotWrite(NamedTuple):
    """One slot of this instance, to be written whole."""

    key: str
    field: str
    data: bytes
    expires_s: int  # unix seconds


class RedisStore:
    """One fleet's keys in one Redis.  Every method raises ``StoreError`` and nothing else."""

    def __init__(self, connected: Connected, keys: Keys, timeout_s: float) -> None:
        self._connected = connected
        self._client: Any = connected.client
        self.keys = keys
        self._limit_s = _PATIENCE * timeout_s

    # ------------------------------------------------------------ reading

    async def hashes(self, keys: Sequence[str]) -> list[dict[str, bytes]]:
        """The fields of each hash; empty where there is none, or something else stands there."""
        found = await self.many([("HGETALL", key) for key in keys])
        return [
            {field.decode(errors="replace"): data for field, data in each.items()}
            if isinstance(each, dict)
            else {}
            for each in found
        ]

    async def values(self, keys: Sequence[str]) -> list[bytes | None]:
        """The string at each key; ``None`` where there is none, or something else stands there."""
        found = await self.many([("GET", key) for key in keys])
        return [each if isinstance(each, bytes) else None for each in found]

    async def hosts(self, since_s: int) -> list[str]:
        """Incarnations that wrote since then, by Redis's clock, the latest first."""
        (found,) = await self.many([("ZREVRANGEBYSCORE", self.keys.hosts, "+inf", since_s)])
        return [each.decode(errors="replace") for each in found] if isinstance(found, list) else []

    async def records(self, key: str, count: int) -> list[bytes]:
        """The latest entries of a stream of records, the newest first, as they were added."""
        (found,) = await self.many([("XREVRANGE", key, "+", "-", "COUNT", count)])
        if not isinstance(found, list):
            return []
        fields = [entry[1] for entry in found if entry and entry[1]]
        return [each[RECORD_FIELD] for each in fields if RECORD_FIELD in each]

    async def time_ns(self) -> int:
        """Redis's clock, unix nanoseconds; of a Cluster always the same server's, as long as it is there."""
        if self._connected.cluster:
            answer = await self._one(self._cluster_time)
        else:
            answer = await self._one(lambda: self._client.execute_command("TIME"))
        try:
            seconds, micros = answer
            return (int(seconds) * 1_000_000 + int(micros)) * 1_000
        except (TypeError, ValueError) as error:
            raise StoreError("nonsense") from error

    async def _cluster_time(self) -> Any:
        await self._client.initialize()
        node = self._client.get_node_from_key(self.keys.hosts)
        if node is None:
            raise StoreError("cluster_down")
        return await node.execute_command("TIME")

    async def seen(self, workers: Sequence[str]) -> list[int | None]:
        """How far each worker incarnation's requests are in the slots; ``None``: nothing is known."""
        found = await self.values([self.keys.seen(worker) for worker in workers])
        return [int(each) if each and each.isdigit() and len(each) < 20 else None for each in found]

    # ------------------------------------------------------------ writing

    async def write_slots(self, slots: Sequence[SlotWrite]) -> list[bool | StoreError]:
        """Write each.  Per slot: whether Redis had none of it, or why it refused."""
        commands: list[Command] = []
        for slot in slots:
            commands.append(("HSET", slot.key, slot.field, slot.data))
            commands.append(("EXPIREAT", slot.key, slot.expires_s))
        found = await self._pipeline(commands)
        return [
            StoreError(_reason(failed)) if (failed := _failed(each, expiry)) else each == 1
            for each, expiry in zip(found[::2], found[1::2], strict=True)
        ]

    async def announce(self, incarnation: str, host: bytes, at_s: int) -> bytes | None:
        """Tell who this incarnation is and that it wrote just now; what stood there before."""
        key, hosts = self.keys.host(incarnation), self.keys.hosts
        found = await self.many(
            [
                ("GET", key),
                ("SET", key, host, "EX", HOST_S),
                ("ZADD", hosts, at_s, incarnation),
                ("ZREMRANGEBYSCORE", hosts, "-inf", at_s - 86_400),
                ("EXPIRE", hosts, HOST_S),
            ]
        )
        for each in found[1:]:
            if isinstance(each, Exception):  # a wrong type, even
                raise StoreError(_reason(each))
        return found[0] if isinstance(found[0], bytes) else None

    async def write_seen(self, seen: Mapping[str, int]) -> None:
        """Note how far each worker incarnation's requests are in the slots."""
        await self.strict(
            [("SET", self.keys.seen(worker), number, "EX", HOST_S) for worker, number in seen.items()]
        )

    async def write_now(self, incarnation: str, data: bytes) -> None:
        """Replace what is in flight here."""
        await self.strict([("SET", self.keys.now(incarnation), data, "EX", NOW_S)])

    async def add_records(self, recent: Sequence[bytes], worst: Sequence[bytes]) -> None:
        """Append to both capped streams, the oldest first."""
        commands: list[Command] = []
        for key, most, data in (
            (self.keys.recent, RECENT_MOST, recent),
            (self.keys.worst, WORST_MOST, worst),
        ):
            commands += [("XADD", key, "MAXLEN", "~", most, "*", RECORD_FIELD, each) for each in data]
            if data:
                commands.append(("EXPIRE", key, HOST_S))
        await self.strict(commands)

    # ------------------------------------------------------------ connections

    async def reset(self) -> None:
        """Let go of every connection: the next command finds its way anew (another master, another map)."""
        try:
            async with asyncio.timeout(self._limit_s):
                if self._connected.cluster:
                    await self._client.aclose()
                else:
                    await self._client.connection_pool.disconnect(inuse_connections=False)
        except Exception:  # a connection that cannot even be closed is collected
            return

    async def close(self, limit_s: float) -> None:
        """End all connections for good, within about this long."""
        try:
            async with asyncio.timeout(limit_s):
                await self._connected.close()
        except Exception:  # nothing is left to do about it
            return

    # ------------------------------------------------------------ asking

    async def strict(self, commands: Sequence[Command]) -> None:
        """Every command must succeed."""
        for each in await self._pipeline(commands):
            if isinstance(each, Exception):
                raise StoreError(_reason(each))

    async def many(self, commands: Sequence[Command]) -> list[Any]:
        """The answers; where something of a wrong type stands, the exception in its place."""
        found: list[Any] = []
        for start in range(0, len(commands), _KEYS_AT_ONCE):
            found += await self._pipeline(commands[start : start + _KEYS_AT_ONCE])
        for each in found:
            if isinstance(each, Exception) and (reason := _reason(each)) != "wrong_type":
                raise StoreError(reason)
        return found

    async def _pipeline(self, commands: Sequence[Command]) -> list[Any]:
        """The answers in order, refusals as exceptions among them."""
        if not commands:
            return []
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        found = await self._one(lambda: pipeline.execute(raise_on_error=False))
        if not isinstance(found, list) or len(found) != len(commands):
            raise StoreError("nonsense")
        return found

    async def _one(self, ask: Callable[[], Awaitable[T]]) -> T:
        try:
            async with asyncio.timeout(self._limit_s):
                return await ask()
        except StoreError:
            raise
        except Exception as error:  # whatever a server that speaks nonsense makes the client raise
            raise StoreError(_reason(error)) from None  # its text may hold what was sent


def _failed(*answers: Any) -> Exception | None:
    return next((each for each in answers if isinstance(each, Exception)), None)


def _reason(error: BaseException) -> str:
    """One word for a failure."""
    if isinstance(error, StoreError):
        return error.reason
    cause: BaseException | None = error
    while cause is not None:  # the client wraps what TLS said into a lost connection
        if isinstance(cause, ssl.SSLError):
            return "tls"
        cause = cause.__cause__ or cause.__context__
    if type(error) is errors.ResponseError:
        return _WORDS.get(str(error).partition(" ")[0].rstrip(":"), "refused")
    for kind, word in _CLASSES:
        if isinstance(error, kind):
            return word
    return "refused" if isinstance(error, errors.ResponseError) else "nonsense"
