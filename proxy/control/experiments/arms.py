"""Words about the weights of a split: overrides, what readers see, epochs, and what may be asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import Struct

from proxy.link import SplitSpec, Table
from proxy.settings.problems import suggest

#: One weight at most: as in the configuration.
WEIGHT_MAX: Final = 1_000_000
#: Characters of an author's name and of a reason.
AUTHOR_MAX: Final = 100
REASON_MAX: Final = 300

#: (backend, weight) by name.
Arms = tuple[tuple[str, int], ...]


class WeightsError(Exception):
    """Weights that cannot be taken: ``what`` is wrong with them, and how to ``mend`` it."""

    def __init__(self, what: str, mend: str) -> None:
        super().__init__(f"{what}: {mend}")
        self.what = what
        self.mend = mend


class Override(Struct, frozen=True):
    """Somebody's weights instead of the file's."""

    arms: dict[str, int]
    author: str
    reason: str
    at_unix_ns: int


class Named(Struct, frozen=True):
    """The experiment that a split's assignments are counted for, and its two backends."""

    experiment: str
    control: str
    candidate: str


class SplitView(Struct, frozen=True):
    """One split as it stands.

    ``arms``: the weights in force; ``file_arms``: those of the file; ``override``: what stands in their
    place; ``ejected``: by backend the factor its weight is lowered by now (0: it gets nothing);
    ``elsewhere``: other hosts have these weights, and this one has not, since its file says something else.
    ``epoch``: as its requests are counted, ``""`` without an experiment.
    """

    name: str
    arms: dict[str, int]
    file_arms: dict[str, int]
    override: Override | None = None
    ejected: dict[str, float] = {}
    experiment: str | None = None
    epoch: str = ""
    elsewhere: Override | None = None


def epoch_of(experiment: str, arms: Mapping[str, int]) -> str:
    """The name of these weights within an experiment: ``canary-2|a=90,b=10``."""
    return f"{experiment}|" + ",".join(f"{name}={weight}" for name, weight in sorted(arms.items()))


def arms_of(epoch: str) -> tuple[str, dict[str, int]]:
    """The experiment and the weights that an epoch names; ``ValueError`` for what is none."""
    experiment, bar, rest = epoch.partition("|")
    if not (experiment and bar and rest):
        raise ValueError(f"{epoch!r} names no epoch")
    arms: dict[str, int] = {}
    for pair in rest.split(","):
        name, _, weight = pair.partition("=")
        if not (name and weight.isascii() and weight.isdigit()):
            raise ValueError(f"{epoch!r} names no epoch")
        arms[name] = int(weight)
    return experiment, arms


def splits_in(table: Table) -> dict[str, list[SplitSpec]]:
    """The splits of a table by name: routes without names of their own over the same backends share one."""
    found: dict[str, list[SplitSpec]] = {}
    for route in table.routes:
        if route.split is not None:
            found.setdefault(route.split.name, []).append(route.split)
    return found


def checked_arms(split: str, given: Mapping[str, int], known: Mapping[str, int]) -> Arms:
    """The weights as a table has them; ``known``: the split's own.  Raises ``WeightsError``."""
    example = f"give each of them a weight, for example {_example(known)}"
    for name in given:
        if name not in known:
            meant = suggest(name, known)
            mend = f"did you mean {meant!r}?" if meant else f"its backends are {', '.join(sorted(known))}"
            raise WeightsError(f"split {split}: {shown(name)} is none of its backends", mend)
    if missing := sorted(set(known) - set(given)):
        raise WeightsError(f"split {split}: no weight for {', '.join(missing)}", example)
    for name, weight in given.items():
        if isinstance(weight, bool) or not isinstance(weight, int) or not 0 <= weight <= WEIGHT_MAX:
            mend = f"a weight is a whole number from 0 to {WEIGHT_MAX}: its share of their sum counts"
            raise WeightsError(f"split {split}: {name} has the weight {shown(weight)}", mend)
    if not sum(given.values()):
        raise WeightsError(f"split {split}: no backend has a weight above 0", example)
    return tuple(sorted(given.items()))


def checked_text(what: str, text: str, most: int) -> str:
    """An author's name or a reason, without space around it.  Raises ``WeightsError``."""
    told = text.strip() if isinstance(text, str) else ""
    if not told:
        raise WeightsError(f"the {what} is missing", f"say who changes the weights and why: give the {what}")
    if len(told) > most:
        raise WeightsError(f"the {what} has {len(told)} characters", f"write at most {most}")
    if not told.isprintable():
        raise WeightsError(f"the {what} holds characters that cannot be shown", "write one plain line")
    return told


def checked_word(author: str, reason: str) -> tuple[str, str]:
    """Who and why.  Raises ``WeightsError``."""
    return checked_text("author", author, AUTHOR_MAX), checked_text("reason", reason, REASON_MAX)


def split_named(name: str, known: Mapping[str, object]) -> None:
    """Raises ``WeightsError`` where there is no such split."""
    if name in known:
        return
    meant = suggest(str(name)[:200], known)
    if meant is not None:
        mend = f"did you mean {meant!r}?"
    elif known:
        mend = f"there are {', '.join(sorted(known))}"
    else:
        mend = "no route of the file has a split over several backends: write one, and reload"
    raise WeightsError(f"{shown(name)} is no split", mend)


def shown(value: object) -> str:
    """What somebody gave, cut to a bound."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def in_words(arms: Mapping[str, int]) -> str:
    """``a 90, b 10``."""
    return ", ".join(f"{name} {weight}" for name, weight in sorted(arms.items()))


def with_arms(spec: SplitSpec, arms: Arms, epoch: str) -> SplitSpec:
    """The same split by other weights; itself where they are its own."""
    if arms == spec.arms and epoch == spec.epoch:
        return spec
    return msgspec.structs.replace(spec, arms=arms, epoch=epoch)


def _example(known: Mapping[str, int]) -> str:
    return "{" + ", ".join(f"{name}: {weight or 1}" for name, weight in sorted(known.items())[:8]) + "}"
