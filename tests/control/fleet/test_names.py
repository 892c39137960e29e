"""What stands in Redis is written down in one place: every key has its row in the README, with its expiry."""

from __future__ import annotations

import re
from pathlib import Path

from proxy.control import shared_names
from proxy.control.fleet.layout import LAYOUT, Grain, Keys

CONTROL = Path(shared_names.__file__).parent
_ROW = re.compile(r"^\| (`P:1:[^|]+) \|")
_NAMES = {"N": r"\d+", "I": "[0-9a-f]{16}", "W": "[^:]+", "NAME": "[^:]+"}
#: What the table says of so many seconds.
WORDS = {20: "20 s", 600: "10 min", 3_600: "1 h", 3_900: "65 min", 22_200: "6 h 10 min", 172_800: "2 days"}


def rows() -> dict[str, str]:
    """The keys of the README's table, as they are written there, and their rows."""
    text = (CONTROL / "fleet" / "README.md").read_text()
    found = {}
    for line in text.splitlines():
        if match := _ROW.match(line):
            for key in match[1].split(", "):
                found[key.strip("`")] = line
    return found


def documented(prefix: str = "legato") -> list[re.Pattern[str]]:
    """A pattern for each documented key."""
    patterns = []
    for key in rows():
        parts = key.split(":")[2:]
        kept = [_NAMES.get(part, re.escape(part)) for part in parts]
        patterns.append(re.compile(":".join([prefix, str(LAYOUT), *kept])))
    return patterns


def test_every_shared_name_has_its_row_with_its_expiry() -> None:
    told = rows()
    for kind, names in (("shared", shared_names.HASHES), ("lease", shared_names.LEASES)):
        for name, kept_s in names.items():
            word = WORDS.get(kept_s) or f"{kept_s // 86_400} days"
            assert told.pop(f"P:1:{kind}:{name}").split(" | ")[3] == word, name
    assert not [key for key in told if ":shared:" in key or ":lease:" in key]


def test_names_are_those_of_the_table() -> None:
    keys = Keys("legato")
    for name in (
        shared_names.alert_slot(1),
        shared_names.alert_minute(2),
        shared_names.experiment_counts("try"),
        shared_names.ALERTS_SAID,
    ):
        assert [row.pattern for row in documented() if row.fullmatch(keys.shared(name))], name
    for grain in Grain:
        assert any(row.fullmatch(keys.slot(grain, 3)) for row in documented())
    assert not any(row.fullmatch(keys.shared("of somebody else")) for row in documented())


def test_nobody_has_a_name_of_its_own() -> None:
    """Whoever shares takes the name from ``shared_names``: no text stands where one is needed."""
    literal = re.compile(r"shared\.(put|put_new|fetch|fetch_many|drop|lease)\(\s*\[?f?[\"']")
    sources = [path for path in CONTROL.rglob("*.py") if literal.search(path.read_text())]
    assert sources == []
