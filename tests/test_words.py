"""Promises in words."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.settings.slo import Slo
from proxy.words import promise

ALL = "tbt 50ms, fluidity 90% for 99% of everything"
REST = "tbt 50ms, fluidity 90% for 99% of"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, f"a: ttft 500ms, {ALL}"),
        (
            {"ttft": {"0": "1s", "9": "2s"}},
            f"a: ttft 1s at 0 prompt tokens, 2s at 9 prompt tokens, {ALL}",
        ),
        (
            {"ttft": {"base": "120ms", "per_token": "80us", "per_token_squared": "0.35ns", "slack": "1s"}},
            f"a: ttft 120ms + 80us a prompt token + 0.35ns a prompt token squared + 1s slack, {ALL}",
        ),
        (
            {"ttft": {"base": "120ms", "per_token": "80us"}},
            f"a: ttft 120ms + 80us a prompt token, {ALL}",
        ),
        (
            {"ttft": {"learned": "live", "slack": "1s", "fallback": {"0": "1s", "9": "2s"}}},
            f"a: ttft 1s at 0 prompt tokens, 2s at 9 prompt tokens (learned live beside it), {ALL}; "
            "nobody is paged",
        ),
        (
            {"match": {"prompt_tokens": {"min": "64", "max": "4000"}}},
            f"a: ttft 500ms, {REST} prompts of 64 to 4000 tokens",
        ),
        ({"match": {"prompt_tokens": {"max": "63"}}}, f"a: ttft 500ms, {REST} prompts of 0 to 63 tokens"),
        (
            {"match": {"path": "/v1/*", "model": "m", "header": {"h": "v"}, "prompt_tokens": {"min": "64"}}},
            f"a: ttft 500ms, {REST} path /v1/*, model m, header h: v, prompts from 64 tokens",
        ),
        ({"e2e": "2m", "fluidity": "0"}, "a: e2e 2m for 99% of everything"),
    ],
)
def test_a_promise_in_words(settings: dict[str, Any], said: str) -> None:
    assert promise(Slo.model_validate({"name": "a", **settings})) == said
