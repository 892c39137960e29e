"""What a tap notes beside the arrivals: the server's own counts, and the first moments of each kind."""

from __future__ import annotations

from collections.abc import Sequence

from proxy.link import Usage
from proxy.relay.dialects.base import REASONING, TOOL


class Reported:
    """Token counts as the server reported them: of the request, or of each choice for itself."""

    __slots__ = ("_of_choices", "_usage")

    def __init__(self) -> None:
        self._usage = Usage()
        self._of_choices: dict[int, Usage] = {}

    def take(self, usage: Usage) -> None:
        """The request's counts."""
        self._usage = _merged(self._usage, usage)

    def take_choice(self, choice: int, usage: Usage) -> None:
        """One choice's own."""
        known = self._of_choices.get(choice)
        self._of_choices[choice] = usage if known is None else _merged(known, usage)

    def at_least(self, tokens: int) -> None:
        """The one choice's running count went on to ``tokens`` in events whose usage was not kept."""
        for choice, usage in self._of_choices.items():
            if (usage.output or 0) < tokens:
                self._of_choices[choice] = _merged(usage, Usage(output=tokens))
        if self._usage.output is not None and self._usage.output < tokens:
            self._usage = _merged(self._usage, Usage(output=tokens))

    @property
    def usage(self) -> Usage:
        """What was said of the request, or the sum of what was said of its choices."""
        if self._usage.output is not None or not self._of_choices:
            return self._usage
        each = list(self._of_choices.values())
        told = _merged(self._usage, each[0])
        return _merged(told, Usage(output=sum(usage.output or 0 for usage in each)))

    def each(self, choices: Sequence[int]) -> tuple[int, ...]:
        """The output count of each choice, -1 where nothing was said; empty: nothing was of any."""
        if not self._of_choices:
            return ()
        told = [self._of_choices.get(choice, Usage()).output for choice in choices]
        return tuple(-1 if output is None else output for output in told)


class Firsts:
    """Stamps of the first event and of the first token of each kind; ``None``: there was none."""

    __slots__ = ("answer_ns", "event_ns", "reasoning_ns", "tool_ns")

    def __init__(self) -> None:
        self.event_ns: int | None = None
        self.reasoning_ns: int | None = None
        self.answer_ns: int | None = None
        self.tool_ns: int | None = None

    def stamp(self, kind: int, at_ns: int) -> None:
        """Output of ``kind`` came."""
        if kind & REASONING and self.reasoning_ns is None:
            self.reasoning_ns = at_ns
        if kind & TOOL and self.tool_ns is None:
            self.tool_ns = at_ns
        if kind & ~(REASONING | TOOL) and self.answer_ns is None:  # a refusal is an answer
            self.answer_ns = at_ns


def _merged(old: Usage, new: Usage) -> Usage:
    """The newer number wherever there is one."""
    return Usage(
        prompt=old.prompt if new.prompt is None else new.prompt,
        output=old.output if new.output is None else new.output,
        cached=old.cached if new.cached is None else new.cached,
        reasoning=old.reasoning if new.reasoning is None else new.reasoning,
    )
