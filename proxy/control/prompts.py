"""How many tokens a prompt has, learned per model from requests whose server told it.

A prompt's deadline is fixed when it starts, from the bytes of its text.  Two numbers are learned for each
model: the bytes that a token takes, and the tokens that a chat template adds to every prompt.

**Why two.**  A ratio alone, the median of bytes / tokens, is right only for prompts as long as the usual one:
the template's tokens are half of a short prompt and nothing of a long one.  On synthetic prompts (20 to 200
tokens of template, 2 to 6 bytes a token, spread by 12% from prompt to prompt, lengths log-uniform from 64
bytes to 32 KiB, 5% outliers, 101 samples) the ratio's mean relative error over the lengths is 37%, that of a
Theil-Sen line through (bytes, tokens) 1.3%, and 1.2% through (1 / bytes, tokens / bytes), where errors weigh
as they do for deadlines, relative to the length.

**Why not always two.**  Where all prompts are about as long, noise alone tells the line's height from its
slope: without any template and with prompts of 8 to 32 KiB it is out by 76% on average over lengths that it
never saw.  So the line has to earn its second number: unless it brings the error on the samples themselves
down by a tenth, the ratio stays (1.4% there, as for a ratio alone).

Everything is bounded: the models, the samples of each, what a token and a template may weigh.  The numbers
above are those of ``tests/control/test_prompts.py``.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from proxy.link import Facts, PromptModel, PromptModels

Floats = npt.NDArray[np.float64]

#: Models that are kept, by their last sample; what a client calls a model is its own text.
MODELS: Final = 256
#: Samples of each.
SAMPLES: Final = 101
#: From so many on the ratio is used, and from so many the line may be.
ENOUGH: Final = 5
ENOUGH_FOR_TWO: Final = 20
#: Shorter prompts tell nothing but the template.
TEXT_MIN: Final = 64
TOKENS_MIN: Final = 16
#: What a token may weigh, in bytes, and what a template may.
BYTES_PER_TOKEN: Final = (0.5, 16.0)
FIXED_MAX: Final = 4096.0
#: Fits at most so many models at a time (a fifth of a millisecond each).
FITS: Final = 8

#: By how much the line must be better: by this share, and by this much at least.
_GAIN: Final = 0.1
_GAIN_LEAST: Final = 0.005
_KEPT: Final = 0.9  # of the samples, when errors are compared: the rest may be outliers
_MOVED: Final = 0.02
#: Where two estimates are compared, in bytes of text.
_PLACES: Final = (256, 4096, 65536)


class Prompts:
    """The samples and estimates of all models.  ``told`` are those that workers go by."""

    def __init__(self) -> None:
        self.told: dict[str, PromptModel] = {}
        self._samples: OrderedDict[str, deque[tuple[int, int]]] = OrderedDict()
        self._stale: dict[
            str, None
        ] = {}  # models with samples since their last fit, the longest waiting first

    def settled(self, facts: Facts) -> None:
        """A request ended: learn from it if its prompt was all text and its server said how long it was."""
        if facts.prompt_text_bytes and facts.stream is not None and facts.stream.usage.prompt:
            self.add(facts.model or "", facts.prompt_text_bytes, facts.stream.usage.prompt)

    def add(self, model: str, text_bytes: int, tokens: int) -> None:
        """One prompt of so many bytes of text, and nothing else, had so many tokens."""
        if text_bytes < TEXT_MIN or tokens < TOKENS_MIN:
            return
        samples = self._samples.get(model)
        if samples is None:
            samples = self._samples[model] = deque(maxlen=SAMPLES)
            if len(self._samples) > MODELS:
                gone, _ = self._samples.popitem(last=False)
                self._stale.pop(gone, None)
                self.told.pop(gone, None)
        self._samples.move_to_end(model)
        samples.append((text_bytes, tokens))
        self._stale[model] = None

    def moved(self) -> PromptModels | None:
        """Fit what has new samples; the models whose estimate is no longer what was told, or ``None``."""
        news: dict[str, PromptModel] = {}
        for model in list(self._stale)[:FITS]:
            del self._stale[model]
            found = fit(np.array(self._samples[model], dtype=np.float64))
            if found is not None and _differs(self.told.get(model), found):
                news[model] = self.told[model] = found
        return PromptModels(news) if news else None

    def all(self) -> PromptModels | None:
        """Everything that workers should know, or ``None``."""
        return PromptModels(dict(self.told)) if self.told else None


def fit(samples: Floats) -> PromptModel | None:
    """Rows of (text bytes, tokens), each above 0 -> the estimate; ``None`` for fewer than ``ENOUGH`` rows."""
    if len(samples) < ENOUGH:
        return None
    text_bytes, tokens = samples[:, 0], samples[:, 1]
    ratio = PromptModel(float(np.median(np.clip(text_bytes / tokens, *BYTES_PER_TOKEN))))
    if len(samples) < ENOUGH_FOR_TWO:
        return ratio
    line = _line(text_bytes, tokens)
    off = _error(ratio, text_bytes, tokens)
    if line is None or _error(line, text_bytes, tokens) > off - max(_GAIN * off, _GAIN_LEAST):
        return ratio
    return line


def _line(text_bytes: Floats, tokens: Floats) -> PromptModel | None:
    """Theil-Sen: the median slope over all pairs, of tokens per byte against one over bytes."""
    x, y = 1.0 / text_bytes, tokens / text_bytes
    first, second = _pairs(len(x))
    apart = x[second] - x[first]
    told = apart != 0.0
    if int(told.sum()) < len(x):
        return None  # all as long as each other
    slope = float(np.median((y[second] - y[first])[told] / apart[told]))
    # A template is no longer than the shortest prompts that hold it.
    fixed = min(max(slope, 0.0), float(np.quantile(tokens, 0.1)), FIXED_MAX)
    least, most = BYTES_PER_TOKEN
    per_byte = float(np.clip(np.median(y - fixed * x), 1.0 / most, 1.0 / least))
    return PromptModel(1.0 / per_byte, fixed)


@lru_cache(maxsize=SAMPLES)
def _pairs(count: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Every pair of so many, once."""
    return np.triu_indices(count, 1)


def _error(model: PromptModel, text_bytes: Floats, tokens: Floats) -> float:
    """The mean error of the better samples, as the logarithm of estimated / true."""
    off = np.abs(np.log((model.fixed_tokens + text_bytes / model.bytes_per_token) / tokens))
    return float(np.sort(off)[: max(1, int(len(off) * _KEPT))].mean())


def _differs(told: PromptModel | None, found: PromptModel) -> bool:
    return told is None or any(
        abs(found.tokens(place) - told.tokens(place)) > _MOVED * told.tokens(place) for place in _PLACES
    )
