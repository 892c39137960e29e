"""What an experiment is, fixed before its first request, and whether a table can hold it."""

from __future__ import annotations

from hashlib import blake2b
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from proxy.control.experiments.arms import splits_in
from proxy.link import SplitSpec, Table
from proxy.settings.experiment import Experiment, MetricName
from proxy.settings.problems import suggest
from scoring.compare import Plan

_Word = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]
_EXAMPLE: Final = "split: {stable: 90, canary: 10}"


class ExperimentError(Exception):
    """What is wrong with an experiment that cannot be, and how to ``mend`` it."""

    def __init__(self, what: str, mend: str) -> None:
        super().__init__(f"{what}: {mend}")
        self.what = what
        self.mend = mend


class ExperimentSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """Which of two backends of a split serves users better."""

    name: Annotated[_Word, Meta(description="What it is called.  A name is used once.")]
    control: Annotated[_Word, Meta(description="The backend that is known.")]
    candidate: Annotated[_Word, Meta(description="The one that it is compared with.")]
    split: Annotated[
        Annotated[str, Meta(min_length=1, max_length=1000)] | None,
        Meta(description="The split's name; needed where both backends are in several."),
    ] = None
    metric: Annotated[MetricName, Meta(description="What decides; the others are shown beside it.")] = "good"
    margin: Annotated[
        Annotated[float, Meta(ge=0, le=1)] | None,
        Meta(description="A difference that nobody minds: of shares in points, of times in parts."),
    ] = None
    requests: Annotated[
        int, Meta(ge=50, le=100_000_000, description="How many requests of each arm it is planned for.")
    ] = 1000
    alpha: Annotated[
        float, Meta(gt=0, lt=0.5, description="The chance of ever calling a difference that is none.")
    ] = 0.05
    abort: Annotated[
        bool,
        Meta(
            description="Send everything back to the control where the candidate is surely worse on good "
            "requests or errors, by more than the margin of each (0.5 points where `margin` is another's)."
        ),
    ] = False

    @property
    def plan(self) -> Plan:
        """For the comparison."""
        margins: dict[str, float] = {} if self.margin is None else {self.metric: self.margin}
        return Plan(self.requests, self.alpha, margins)

    @property
    def digest(self) -> str:
        """Tells terms apart: hosts merge what they counted only where it is the same."""
        return blake2b(msgspec.msgpack.encode(self), digest_size=8).hexdigest()


def spec_of(settings: Experiment) -> ExperimentSpec | None:
    """The file's experiment; ``None``: it has none."""
    if settings.name is None or settings.control is None or settings.candidate is None:
        return None
    return ExperimentSpec(
        name=settings.name,
        control=settings.control,
        candidate=settings.candidate,
        split=settings.split,
        metric=settings.metric,
        margin=settings.margin,
        requests=settings.requests,
        alpha=settings.alpha,
        abort=settings.abort,
    )


def place(spec: ExperimentSpec, table: Table) -> SplitSpec:
    """The split that the experiment runs in.  Raises ``ExperimentError``."""
    if spec.control == spec.candidate:
        raise ExperimentError(
            f"control and candidate are both {spec.control}", "name two different backends of one split"
        )
    both = {spec.control, spec.candidate}
    splits = splits_in(table)
    having = {name: specs for name, specs in splits.items() if both <= {arm for arm, _ in specs[0].arms}}
    wanted = spec.split
    if wanted is None:
        if not having:
            raise ExperimentError(
                f"no route is split over {spec.control} and {spec.candidate}",
                f"write one that is, for example {_EXAMPLE}",
            )
        if len(having) > 1:
            raise ExperimentError(
                f"{spec.control} and {spec.candidate} are in several splits", f"name one: {_either(having)}"
            )
        (wanted,) = having
    elif wanted not in splits:
        meant = suggest(wanted, splits)
        known = f"there are {', '.join(sorted(splits)) or 'none'}"
        raise ExperimentError(f"{wanted} is no split", f"did you mean {meant}?" if meant else known)
    elif wanted not in having:
        arms = ", ".join(name for name, _ in splits[wanted][0].arms)
        raise ExperimentError(f"split {wanted} is over {arms}", "name two of these as control and candidate")
    specs = splits[wanted]
    if any((each.sticky is None) != (specs[0].sticky is None) for each in specs):
        raise ExperimentError(
            f"some routes of split {wanted} are sticky and some are not",
            "give these routes names of their own",
        )
    # Where one of its routes fails over, requests of either arm may be in flight at any backend.
    return replace(specs[0], failover=any(each.failover for each in specs))


def _either(names: dict[str, list[SplitSpec]]) -> str:
    return " or ".join(f"split: {name}" for name in sorted(names))
