"""Burn rate: how many times faster than allowed the bad requests use up what the objective leaves.

An objective of 99% leaves a budget of 1%; a burn rate of 1 uses it up exactly by the end of its period.  A
rule looks at a long window (is it enough to matter?) and a short one (is it still going on?) and fires where
both burn faster than ``burn`` (Google SRE workbook, table 5-8).  Pure: counts are arguments.

``detection_s`` is why it is not alone: of a service that was healthy, a total outage takes 8.7 minutes to
show at 14.4 over an hour.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from scoring.alarm_rule import Evaluation, Hold

HOUR_S: Final = 3_600
DAY_S: Final = 86_400
#: What ``scoring.window`` keeps.
KEPT_S: Final = DAY_S


class Counts(NamedTuple):
    """Requests of a window that count in the objective (good and bad), and the bad ones among them.

    ``covered_s``: how much of the window has been watched, ``None``: all of it.
    """

    requests: int
    bad: int
    covered_s: float | None = None


@dataclass(frozen=True, slots=True)
class BurnRate:
    """Fires while long and short window both burn faster than ``burn``.

    ``objective``: the share of requests that are to be good; ``long_s``, ``short_s``: the windows in seconds;
    ``kept_s``: how long counts are kept; ``bad``: fewer bad requests than this in the long window are no
    reason; ``calm``: it clears where the short window burns less than this share of ``burn``.
    ``ValueError``, with what to change, for a rule that could never fire.
    """

    objective: float
    burn: float = 14.4
    long_s: float = HOUR_S
    short_s: float = 300
    severity: str = "page"
    kept_s: float = KEPT_S
    bad: int = 5
    calm: float = 0.8
    hold: Hold = field(default=Hold(fire_s=0, clear_s=60))

    def __post_init__(self) -> None:
        if not 0 < self.objective < 1:
            raise ValueError(f"objective {self.objective:.6g}: give a share above 0% and below 100%")
        if not self.burn > 0:
            raise ValueError(f"burn {self.burn:.6g}: give a number above 0, such as 14.4")
        most = 1 / (1 - self.objective)
        if self.burn >= most * (1 - 1e-9):
            raise ValueError(
                f"burn {self.burn:.6g}: with an objective of {self.objective:.6g} no outage burns faster "
                f"than {most:.6g}, so it can never fire: give less than that, or a higher objective"
            )
        if not 0 < self.short_s < self.long_s:
            raise ValueError(
                f"short_s {self.short_s:.6g}: give more than 0 s and less than long_s, {self.long_s:.6g} s"
            )
        if self.long_s > self.kept_s:
            raise ValueError(
                f"long_s {self.long_s:.6g}: only {self.kept_s:.6g} s are kept, so it can never be seen: "
                "shorten it, or alert on that window in Prometheus"
            )

    @property
    def limit(self) -> float:
        """The share of bad requests above which a window burns too fast."""
        return self.burn * (1 - self.objective)

    def evaluate(self, long: Counts, short: Counts) -> Evaluation:
        """Judge both windows.  ``value`` is the smaller burn rate of the two.

        What was not watched of a window counts as good at the same rate of requests: a minute of trouble
        right after a start is not an hour of it.
        """
        figures: dict[str, float] = {
            "long_requests": long.requests,
            "long_bad": long.bad,
            "short_requests": short.requests,
            "short_bad": short.bad,
            "objective": self.objective,
        }
        if not long.requests or not short.requests:
            return Evaluation(False, False, None, self.burn, figures, "no requests in the window")
        slow, fast = self._burn(long, self.long_s), self._burn(short, self.short_s)
        figures |= {"long_burn": slow, "short_burn": fast}
        fires = min(slow, fast) > self.burn and long.bad >= self.bad
        reason = (
            f"bad requests burn {slow:.1f} times the budget over {_length(self.long_s)} and {fast:.1f} "
            f"times over {_length(self.short_s)} (limit {self.burn:g}, objective {self.objective:.6g})"
        )
        return Evaluation(fires, fast < self.calm * self.burn, min(slow, fast), self.burn, figures, reason)

    def _burn(self, counts: Counts, window_s: float) -> float:
        seen = 1.0 if counts.covered_s is None else min(max(counts.covered_s, 0.0) / window_s, 1.0)
        return counts.bad * seen / counts.requests / (1 - self.objective)

    def detection_s(self, share: float = 1.0, before: float = 0.0) -> float | None:
        """How long after the start of an incident it fires; ``None``: never.

        ``share``: of the requests are bad during it, ``before``: were bad until then.  At constant traffic
        the share of a window of W seconds after t is ``before + (share - before) * t / W``; it is above
        ``limit`` after ``W * (limit - before) / (share - before)``, and the slower window decides.
        """
        if before > self.limit:
            return 0.0
        if share <= self.limit:
            return None
        return self.long_s * (self.limit - before) / (share - before)

    def resolution_s(self, share: float = 1.0, before: float = 0.0) -> float:
        """How long after the end of an incident that filled the short window it is resolved: the short
        window is below ``calm * limit`` after ``W * (share - calm * limit) / (share - before)``."""
        calm = self.calm * self.limit
        if share <= calm:
            return self.hold.clear_s
        return self.short_s * min((share - calm) / (share - before), 1.0) + self.hold.clear_s


class Window(NamedTuple):
    """One line of the workbook's table."""

    burn: float
    long_s: float
    short_s: float
    severity: str


STANDARD: Final = (
    Window(14.4, HOUR_S, 300, "page"),
    Window(6, 6 * HOUR_S, 1_800, "page"),
    Window(1, 3 * DAY_S, 6 * HOUR_S, "ticket"),
)


def standard(objective: float, kept_s: float = KEPT_S) -> tuple[tuple[BurnRate, ...], tuple[str, ...]]:
    """The workbook's rules that can fire at this objective, and why the others are left out.

    For defaults that nobody wrote; what somebody did write is built one by one, and its error shown.
    """
    rules, left_out = [], []
    for window in STANDARD:
        try:
            rules.append(BurnRate(objective, *window, kept_s=kept_s))
        except ValueError as error:
            left_out.append(str(error))
    return tuple(rules), tuple(left_out)


def detection_table(
    objectives: Iterable[float] = (0.95, 0.99, 0.999), shares: Iterable[float] = (1.0, 0.5, 0.1, 0.05)
) -> str:
    """Minutes until a page or ticket at a bad share of a service that was healthy, as a Markdown table."""
    shares = tuple(shares)
    head = ["objective", "rule", *(f"{share:.0%} bad" for share in shares)]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for objective in objectives:
        for rule in standard(objective, kept_s=3 * DAY_S)[0]:
            name = f"{rule.severity} {_length(rule.long_s)}/{_length(rule.short_s)} at {rule.burn:g}"
            times = (rule.detection_s(share) for share in shares)
            cells = ("never" if time is None else f"{time / 60:.1f} min" for time in times)
            lines.append(" | ".join((f"{objective:.6g}", name, *cells)))
    return "\n".join(f"| {line} |" for line in lines)


def _length(length_s: float) -> str:
    for unit, size_s in (("d", DAY_S), ("h", HOUR_S), ("m", 60)):
        if length_s >= size_s and length_s % size_s == 0:
            return f"{length_s / size_s:g}{unit}"
    return f"{length_s:g}s"
