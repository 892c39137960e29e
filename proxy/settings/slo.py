"""The settings of an SLO: which requests it is for, and what they are promised."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import Discriminator, Field, PrivateAttr, Tag

from proxy.settings.base import Match, Settings
from proxy.settings.problems import suggest
from proxy.settings.types import Duration, Name, PerToken, Points, PositiveDuration, Ratio, Tokens, Unit

if TYPE_CHECKING:
    from proxy.curves import FrozenCurves

_MS = 1_000_000


class PromptRange(Settings):
    """How long prompts are, in tokens as estimated when the request starts; both ends belong to it."""

    min: Tokens = Field(default=None, description="The shortest prompt, in estimated tokens.")
    max: Tokens = Field(
        default=None,
        description="The longest prompt. What cannot be estimated (images, audio) counts as no tokens.",
    )

    def holds(self, other: PromptRange) -> bool:
        """Every prompt of the other range is in this one."""
        below = (self.min or 0) <= (other.min or 0)
        return below and (self.max is None or (other.max is not None and other.max <= self.max))


class SloMatch(Match):
    """As a route's, and by the prompt's length."""

    prompt_tokens: PromptRange = Field(
        default=PromptRange(), description="Prompts of `min` to `max` tokens; without it, of any length."
    )

    @property
    def everything(self) -> bool:
        """No request can fail to match."""
        return self.everything_else and self.prompt_tokens.holds(PromptRange())


#: Instead of a file: the curves of this moment.
LIVE = "live"


class QuadraticTtft(Settings):
    """A prompt of P tokens: base + per_token * P + per_token_squared * P * P + slack."""

    base: PositiveDuration = Field(description="What a prompt of no tokens takes.")
    per_token: PerToken = Field(default=0, description="What each prompt token adds.")
    per_token_squared: PerToken = Field(
        default=0,
        description="What the square of the prompt's tokens adds (attention), for example `0.35ns`.",
    )
    slack: Duration = Field(default=0, description="Allowed beside that, for scheduling.")


class LearnedTtft(Settings):
    """What the proxy learned of each backend and model, and slack for scheduling."""

    learned: str = Field(
        description="The file that `legato freeze` wrote: a curve per backend and model. `live` instead: the "
        "curves of this moment are shown and compared, `fallback` is what is promised, and nobody is paged."
    )
    slack: Duration = Field(description="Allowed beside the curve, for scheduling.")
    fallback: Points = Field(description="Where no curve is for a request's backend and model.")
    _frozen: FrozenCurves | None = PrivateAttr(default=None)

    @property
    def live(self) -> bool:
        """No file: what is learned now."""
        return self.learned == LIVE

    @property
    def frozen(self) -> FrozenCurves | None:
        """What the file holds (read with the configuration); ``None`` for ``live``."""
        return self._frozen

    def freeze(self, curves: FrozenCurves) -> None:
        """Take what the file holds: for the reader of the configuration only."""
        self._frozen = curves


def _ttft_kind(value: Any) -> str:
    """Which way of writing a ``ttft`` is meant, misspelt or not."""
    if isinstance(value, LearnedTtft | QuadraticTtft):
        return _LEARNED if isinstance(value, LearnedTtft) else _QUADRATIC
    if not isinstance(value, dict):
        return _POINTS
    known = [*LearnedTtft.model_fields, *QuadraticTtft.model_fields]
    words = {str(name) if name in _SYMBOLS else suggest(str(name), known) for name in value}
    if words & {"learned", "fallback"}:
        return _LEARNED
    return _QUADRATIC if words & {*QuadraticTtft.model_fields, *_SYMBOLS} else _POINTS


_SYMBOLS = ("c0", "c1", "c2")  # of the paper, for base, per_token, per_token_squared
_POINTS, _QUADRATIC, _LEARNED = "(points)", "(quadratic)", "(learned)"
Ttft = Annotated[
    Annotated[Points, Tag(_POINTS)]
    | Annotated[QuadraticTtft, Tag(_QUADRATIC)]
    | Annotated[LearnedTtft, Tag(_LEARNED)],
    Discriminator(_ttft_kind),
    Unit("ttft", hint="duration, table, quadratic or learned"),
]


class Way(NamedTuple):
    """One way of writing a ``ttft``: its settings, and an example."""

    names: tuple[str, ...]
    example: str


#: By the step that validation puts into the place of what is wrong with it.
TTFT_WAYS = {
    _POINTS: Way((), "{0: 500ms, 8000: 2s}"),
    _QUADRATIC: Way(
        tuple(QuadraticTtft.model_fields),
        "{base: 120ms, per_token: 80us, per_token_squared: 3ns, slack: 200ms}",
    ),
    _LEARNED: Way(tuple(LearnedTtft.model_fields), "{learned: curves.yaml, slack: 300ms, fallback: 2s}"),
}


class Slo(Settings):
    """What a class of requests is promised; the first match wins."""

    name: Name = Field(default="", description="The name, a label of the metrics. Needed, and unique.")
    match: SloMatch = Field(default=SloMatch(), description="Which requests; without it, every one.")
    ttft: Ttft = Field(
        default=((0, 500 * _MS),),
        description="Deadline of the first token: one duration, a table by prompt tokens "
        "(`{0: 500ms, 8000: 2s}`, linear in between), a quadratic of the prompt's tokens "
        "(`{base: 120ms, per_token: 80us, per_token_squared: 3ns, slack: 200ms}`), or what was learned "
        "(`{learned: curves.yaml, slack: 300ms, fallback: 2s}`).",
    )
    tbt: PositiveDuration = Field(
        default=50 * _MS, description="Deadline of each further token, after the one before it was due."
    )
    fluidity: Ratio = Field(
        default=0.9,
        description="A streamed request is good from this share of deadlines met. A rule with `e2e` and "
        "none of `ttft`, `tbt`, `fluidity` promises the duration only (0%).",
    )
    objective: Ratio = Field(
        default=0.99, description="The share of requests that should be good; below 100%."
    )
    e2e: PositiveDuration | None = Field(
        default=None,
        description="Longest duration of a good request; the only measure of those that are not streamed.",
    )

    @property
    def pages(self) -> bool:
        """An alert may wake somebody for it: not while its deadlines are still being learned."""
        return not (isinstance(self.ttft, LearnedTtft) and self.ttft.live)

    @property
    def duration_only(self) -> bool:
        """It promises how long an answer takes, and nothing about its tokens: their defaults are nobody's."""
        return self.e2e is not None and not self.fluidity and not {"ttft", "tbt"} & self.model_fields_set
