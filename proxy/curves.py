"""Learned curves in a file: what ``legato freeze`` writes and ``ttft: {learned: FILE}`` reads.

    version: 1
    frozen_at: '2026-11-20T03:14:07Z'
    curves:
    - backend: vllm
      model: llama-70b            # '' for requests that name none
      curve: {...}                # scoring.prefill.Curve
      tbt_s: {p50: 0.021, p99: 0.024}

Keys that this version does not know are passed over; everything that is wrong is told at once, each with the
line of this file.
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import yaml

from proxy.link import LearnedCurve
from proxy.settings.problems import ConfigErrors, ConfigProblem
from proxy.settings.tree import Loc, key
from proxy.settings.types import shown
from scoring.deadlines import LONGEST_NS
from scoring.prefill import MAX_PROMPT_TOKENS, Curve

VERSION: Final = 1
_AGAIN: Final = "write the file anew with `legato freeze`"
#: Points per octave of a quadratic: straight lines between them are within 0.2% of it, and never below.
_STEPS: Final = 8


@dataclass(frozen=True)
class FrozenCurve:
    """What was learned of one backend and model (``""``: requests that name none), TBT in seconds."""

    backend: str
    model: str
    curve: Curve
    tbt_p50_s: float | None = None
    tbt_p99_s: float | None = None


@dataclass(frozen=True)
class FrozenCurves:
    """The content of one file; ``frozen_at`` as it was written, for people."""

    frozen_at: str
    curves: tuple[FrozenCurve, ...]

    def table(self) -> tuple[LearnedCurve, ...]:
        """As workers are told them."""
        return tuple(told(each.backend, each.model, each.curve) for each in self.curves)


def told(backend: str, model: str, curve: Curve) -> LearnedCurve:
    """A curve as workers are told it: points in whole nanoseconds, straight lines between.

    A curve of straight pieces is told by its own points; a quadratic by some more, so that a worker's
    deadline is at most 0.2% (and a nanosecond) above the curve.  Both go on beyond what was observed as the
    curve does.  Where reported cache hits were taken off, this is the prefill of a prompt without any.
    """
    low, high = curve.observed
    prompts = {*(prompt for prompt, _ in curve.points), high, MAX_PROMPT_TOKENS}
    if curve.quadratic:
        steps = range(_STEPS * MAX_PROMPT_TOKENS.bit_length())
        prompts |= {prompt for step in steps if low < (prompt := round(2 ** (step / _STEPS))) < high}
    points = tuple((prompt, min(curve.at(prompt), LONGEST_NS)) for prompt in sorted(prompts))
    return LearnedCurve(backend, model, points)


def write_curves(path: str, frozen: FrozenCurves) -> None:
    """Replace the file at once: readers see the old one or the new one, whole.  ``OSError`` if it cannot."""
    plain = {
        "version": VERSION,
        "frozen_at": frozen.frozen_at,
        "curves": [
            {
                "backend": each.backend,
                "model": each.model,
                "curve": each.curve.to_plain(),
                "tbt_s": {"p50": each.tbt_p50_s, "p99": each.tbt_p99_s},
            }
            for each in frozen.curves
        ],
    }
    text = "# Written by `legato freeze`: prefill curves and token times as they were learned from traffic.\n"
    text += yaml.safe_dump(plain, sort_keys=False, default_flow_style=None, width=110)
    beside = f"{path}.{os.getpid()}.new"
    try:
        with open(beside, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError:
        with suppress(OSError):
            os.unlink(beside)
        raise


def read_curves(path: str) -> FrozenCurves:
    """Read the file.  ``OSError`` where it cannot be opened, ``ConfigErrors`` with all that is wrong."""
    if "\0" in path:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
    with open(path, "rb") as file:
        data = file.read()
    reader = _Reader(path)
    root = reader.parse(data)
    frozen = None if reader.problems else reader.curves(root)
    if frozen is None or reader.problems:
        raise ConfigErrors(reader.problems)
    return frozen


class _Reader:
    """Checks one file's values; notes the line of everything."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lines: dict[Loc, int] = {}
        self.problems: list[ConfigProblem] = []

    def wrong(self, loc: Loc, mend: str, value: object = "", line: int | None = None) -> None:
        """Note what is wrong at ``loc`` (or the nearest part around it that has a line)."""
        if line is None:
            line = next(
                (self._lines[loc[:size]] for size in range(len(loc), -1, -1) if loc[:size] in self._lines), 1
            )
        text = "" if isinstance(value, dict | list) or value is None else str(value)
        self.problems.append(ConfigProblem(f"{self._path}:{line}", key(loc), text[:100], mend))

    def parse(self, data: bytes) -> Any:
        """The plain values of the file, ``None`` with a problem if it is no YAML."""
        try:
            loader = yaml.SafeLoader(data.decode())
            node = loader.get_single_node()
            if node is not None:
                self._note(node, ())
                return loader.construct_document(node)
        except UnicodeDecodeError:
            self.wrong((), f"is no UTF-8 text: {_AGAIN}")
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            mark = getattr(error, "problem_mark", None)
            what = getattr(error, "problem", None) or type(error).__name__
            self.wrong((), f"is no YAML ({what}): {_AGAIN}", line=mark.line + 1 if mark else 1)
        return None

    def _note(self, node: yaml.Node, loc: Loc) -> None:
        self._lines.setdefault(loc, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            parts = [(name.value, name, value) for name, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            parts = [(index, value, value) for index, value in enumerate(node.value)]
        else:
            return
        for step, name, value in parts:
            if isinstance(step, str | int) and len(loc) < 4:  # deeper than curves[0].tbt_s.p50 nobody asks
                self._lines[(*loc, step)] = name.start_mark.line + 1
                self._note(value, (*loc, step))

    def curves(self, root: Any) -> FrozenCurves | None:
        """The whole file; what is ``None`` has left a problem."""
        if not isinstance(root, dict):
            self.wrong((), f"{shown(root)}: version, frozen_at and curves are needed: {_AGAIN}", root)
            return None
        version = root.get("version")
        if version != VERSION or isinstance(version, bool):
            self.wrong(
                ("version",), f"{shown(version)}: this Legato reads version {VERSION}: {_AGAIN}", version
            )
            return None
        listed = root.get("curves")
        if not isinstance(listed, list) or not listed:
            mend = f"no curve is in it: let requests go through Legato first, then {_AGAIN}"
            self.wrong(("curves",), mend, listed)
            return None
        found = [self._curve(("curves", index), each) for index, each in enumerate(listed)]
        self._twice(listed)
        return FrozenCurves(_text(root.get("frozen_at")), tuple(each for each in found if each is not None))

    def _twice(self, listed: list[Any]) -> None:
        seen: dict[tuple[str, str], int] = {}
        for index, each in enumerate(listed):
            if isinstance(each, dict):
                name = (_text(each.get("backend")), _text(each.get("model")))
                if (first := seen.setdefault(name, index)) != index:
                    mend = f"{name[0]!r} and {name[1]!r} stand in curves[{first}] already: keep one of them"
                    self.wrong(("curves", index), mend)

    def _curve(self, loc: Loc, plain: Any) -> FrozenCurve | None:
        if not isinstance(plain, dict):
            self.wrong(loc, f"{shown(plain)}: backend, model and curve are needed: {_AGAIN}", plain)
            return None
        before = len(self.problems)
        backend, model = plain.get("backend"), plain.get("model")
        if not isinstance(backend, str) or not backend:
            self.wrong(
                (*loc, "backend"),
                f"{shown(backend)}: a backend's name is needed, quoted if it is a number",
                backend,
            )
        if not isinstance(model, str | None):
            self.wrong(
                (*loc, "model"), f"{shown(model)}: a model's name is needed, quoted if it is a number", model
            )
        times = list(self._times((*loc, "tbt_s"), plain.get("tbt_s")))
        curve = self._prefill((*loc, "curve"), plain.get("curve"))
        if curve is None or len(self.problems) > before:
            return None
        return FrozenCurve(str(backend), model or "", curve, *times)

    def _prefill(self, loc: Loc, plain: Any) -> Curve | None:
        try:
            if not isinstance(plain, dict):
                raise ValueError(f"{shown(plain)}: a mapping is needed")
            curve = Curve.from_plain(plain)
            told("", "", curve)
        except (ValueError, TypeError, KeyError, ArithmeticError, RecursionError) as error:
            said = f"{error} is missing" if isinstance(error, KeyError) else f"{error}"
            self.wrong(loc, f"is no curve ({said}): {_AGAIN}")
            return None
        return curve

    def _times(self, loc: Loc, plain: Any) -> Iterator[float | None]:
        """p50 and p99, ``None`` where there were no tokens to tell."""
        held: Mapping[str, Any] = plain if isinstance(plain, dict) else {}
        if plain is not None and not isinstance(plain, dict):
            self.wrong(loc, f"{shown(plain)}: write {{p50: SECONDS, p99: SECONDS}}, or leave it out", plain)
        for name in ("p50", "p99"):
            value = held.get(name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not (number and math.isfinite(value) and value >= 0):
                self.wrong(
                    (*loc, name), f"{shown(value)}: seconds from 0 up are needed, or leave it out", value
                )
                value = None
            yield None if value is None else float(value)


def _text(value: Any) -> str:
    """A text; a moment, which YAML reads out of digits, as it was meant."""
    if value is None:
        return ""
    moment: Callable[[], str] | None = getattr(value, "isoformat", None)
    return moment() if moment is not None else str(value)
