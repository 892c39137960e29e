"""What is wrong with a configuration: every problem with its place, its value and the mend."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from proxy.errors import ConfigError

# Up to the last @: a password that is not percent-encoded may hold a slash or an @ of its own.
_USERINFO = re.compile(r"(?<=://)[^\s'\"]*@")


@dataclass(frozen=True, slots=True)
class ConfigProblem:
    """One problem.

    ``place`` is ``file:line``, a variable's name or a flag's; ``key`` the setting (``slos[0].tbt``);
    ``value`` what was written there; ``mend`` one sentence: what is wrong and what to write instead.
    """

    place: str
    key: str
    value: str
    mend: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.place, self.key, self.mend) if part)


class ConfigErrors(ConfigError):
    """Everything that is wrong, at once; ``problems`` is never empty."""

    def __init__(self, problems: Iterable[ConfigProblem]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        head = f"{count} problem{'s' if count != 1 else ''} in the configuration:"
        super().__init__("\n".join([head, *(f"  {problem}" for problem in self.problems)]))


def suggest(word: str, known: Iterable[str]) -> str | None:
    """The known word that was probably meant, or ``None``."""
    found = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.6)
    return found[0] if found else None


def mask(text: str) -> str:
    """The text without what stands before the ``@`` of a URL."""
    return _USERINFO.sub("***@", text)
