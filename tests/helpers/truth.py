"""A trace log's lines, judged by the slow oracle: the rule token by token, marks by what they promise.

    for line in trace_lines(folder / "trace.jsonl", 12):
        true = judged(line)      # true.missed, true.suspect, ...

Nothing of the code under test is used.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.helpers.procs import eventually
from tests.scoring.oracle import Sequence_, Tally, tally

Line = dict[str, Any]


def trace_lines(path: Path, count: int, within_s: float = 10.0) -> list[Line]:
    """The whole lines of a trace log, as soon as there are ``count``."""

    def look() -> list[Line] | None:
        text = path.read_text()
        lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        return lines if len(lines) >= count else None

    found = eventually(look, within_s, f"{count} trace lines", every_s=0.05)
    assert found is not None
    return found


def sequences_of(line: Line) -> list[Sequence_]:
    """A line's choices as the oracle takes them."""
    lanes = line["choices"] if "choices" in line else [line["events"]]
    finished = line.get("finished", [False] * len(lanes))
    return [
        Sequence_([(at, tokens) for at, tokens in lane], done)
        for lane, done in zip(lanes, finished, strict=True)
    ]


def raw_of(line: Line) -> Tally:
    """The score with nothing taken out."""
    end_ns = line["end_ns"] if line["censored"] else None
    return tally(sequences_of(line), line["ttft_deadline_ns"], line["tbt_deadline_ns"], end_ns)


def judged(line: Line) -> Tally:
    """The score with its marked stalls taken out.

    A mark is ``[at_ns, reason, missed, choice, covered_ns]``; the last two may be absent or null: any choice,
    any lateness.
    """
    true = raw_of(line)
    marks = [[*mark, None, None, None][:5] for mark in line["marks"]]
    stalls, true.stalls = true.stalls, []
    for at_ns, late_ns, missed, choice, _ in stalls:
        reasons = {
            mark[1]
            for mark in marks
            if mark[0] == at_ns and mark[3] in (None, choice) and (mark[4] is None or late_ns <= mark[4])
        }
        reason = "client_blocked" if "client_blocked" in reasons else next(iter(reasons), None)
        true.stalls.append((at_ns, late_ns, missed, choice, reason))
        if reason is None:
            continue
        true.missed -= missed
        true.late_ns -= late_ns
        if reason == "suspect":
            true.suspect += missed
        else:
            true.client_blocked += missed
    return true


def missed_by(line: Line, at_ns: int) -> int:
    """Deadlines that had passed unmet by ``at_ns`` (since t = 0), in flight or not, whoever was to blame."""
    if at_ns < 0:
        return 0
    so_far = [
        Sequence_([event for event in choice.events if event[0] <= at_ns]) for choice in sequences_of(line)
    ]
    cut_ns = min(at_ns, line["end_ns"])
    return tally(so_far, line["ttft_deadline_ns"], line["tbt_deadline_ns"], cut_ns).missed
