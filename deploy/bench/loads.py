"""The loads: what is asked of each target, and which figures it gives."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Load:
    """One load.  ``arguments`` go to the load client; ``{events}`` and ``{upstream}`` are filled in."""

    name: str
    about: str
    mode: str  # "stream" | "requests"
    arguments: str
    scraped: bool = False  # /metrics is read once a second meanwhile: targets with an admin listener only
    summaries: bool = False  # /api/summary of several windows is read meanwhile, 200 groups booked before
    tls: str | None = None  # "off" | "on": by the Python client, targets that speak TLS only
    asked: bool = False  # only where it is named

    @property
    def unit(self) -> str:
        """What is counted."""
        return "request" if self.mode == "requests" else "chunk"


SATURATED = (
    "--connections 64 --events {events} --delay-us 0 --spread-ms 0 --seconds 30 --lockstep {upstream} --busy"
)
PACED = "--connections 50 --events 200 --interval-us 20000 --spread-ms 1020 --seconds 20"

LOADS = (
    Load("requests", "small requests on 32 connections", "requests", "--connections 32 --seconds 2.5"),
    Load("paced", "50 streams, a 250-byte event each 20 ms", "stream", PACED),
    Load(
        "paced minute",
        "as paced, for a minute",
        "stream",
        "--connections 50 --events 3000 --interval-us 20000 --spread-ms 1020 --seconds 80",
        asked=True,
    ),
    Load(
        "wide",
        "300 streams, an event each 50 ms",
        "stream",
        "--connections 300 --events 100 --interval-us 50000 --spread-ms 1051 --seconds 20",
    ),
    Load("saturated", "64 streams in lockstep: one event per read, no gathering", "stream", SATURATED),
    Load(
        "memory",
        "1,000 streams, an event each second",
        "stream",
        "--connections 1000 --events 8 --interval-us 1000000 --spread-ms 2000 --seconds 40",
    ),
    Load("paced scraped", "as paced, /metrics read each second", "stream", PACED, scraped=True),
    Load(
        "paced summaries",
        "as paced, 200 groups booked, a summary a second over windows from 1 min to 1 d",
        "stream",
        PACED,
        summaries=True,
        asked=True,
    ),
    Load("saturated scraped", "as saturated, /metrics read each second", "stream", SATURATED, scraped=True),
    Load(
        "bodies 100 KB",
        "requests with 100 KB of body on 8 connections",
        "requests",
        "--connections 8 --seconds 2 --body-bytes 100000",
    ),
    Load(
        "bodies 10 MB",
        "requests with 10 MB of body on 2 connections",
        "requests",
        "--connections 2 --seconds 2 --body-bytes 10000000",
    ),
    Load("tls off", "as saturated, 16 streams, by the Python client", "stream", "{events}", tls="off"),
    Load("tls on", "the same over TLS on the listener", "stream", "{events}", tls="on"),
)

#: Not a load on a server: the cost of the tap alone (``dialects.py``), by the same switch.
DIALECTS = "dialects"
QUICK = ("requests", "paced", "saturated")


def chosen(only: str | None, quick: bool) -> list[Load]:
    """Loads by name; ``ValueError`` names the unknown ones and lists what there is."""
    names = [load.name for load in LOADS]
    if only is None:
        return [load for load in LOADS if (load.name in QUICK if quick else not load.asked)]
    wanted = _split(only)
    unknown = [name for name in wanted if name not in [*names, DIALECTS]]
    if unknown:
        known = ", ".join([*names, DIALECTS])
        raise ValueError(f"unknown load {', '.join(map(repr, unknown))}; there are: {known}")
    return [load for load in LOADS if load.name in wanted]


def wants_dialects(only: str | None) -> bool:
    """Whether the cost by dialect is asked for, too."""
    return only is None or DIALECTS in _split(only)


def _split(only: str) -> list[str]:
    return [name.strip() for name in only.split(",") if name.strip()]
