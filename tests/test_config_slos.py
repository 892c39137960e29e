"""SLOs in the configuration: which prompts they are for and what they promise; every mistake in them."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxy import link
from proxy.config import Boot, Config, ConfigErrors, load, redacted
from proxy.tables import build_table

MS = 1_000_000
S = 1_000_000_000
ONE = "backends: {vllm: {url: http://vllm:8000}}\n"


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Write a file ``legato.yaml``; gives its path."""

    def put(text: str) -> str:
        path = tmp_path / "legato.yaml"
        path.write_text(textwrap.dedent(text))
        return str(path)

    return put


def read(file: str) -> Config:
    return load(Boot(file=file, flags={}), {})


def problems(file: str) -> list[tuple[str, str, str]]:
    """(place without the folder, key, mend) of everything that is wrong; fails if nothing is."""
    with pytest.raises(ConfigErrors) as caught:
        read(file)
    return [(Path(found.place).name, found.key, found.mend) for found in caught.value.problems]


# ---------------------------------------------------------------- what a first token is promised


def only_slo(write: Any, settings: str) -> link.SloSpec:
    slos = build_table(read(write(ONE + f"slos: [{{name: a, {settings}}}]")), 1).slos
    return slos[0]


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("{min: 64, max: 4000}", (64, 4000)),
        ("{min: 4001}", (4001, None)),
        ("{max: 63}", (0, 63)),
        ("{min: 7, max: 7}", (7, 7)),
        ("{max: 0}", (0, 0)),
        ("{}", None),
        ("", None),
    ],
)
def test_an_slo_is_for_prompts_of_a_length(write: Any, text: str, length: Any) -> None:
    assert only_slo(write, f"match: {{prompt_tokens: {text}}}").match.prompt_tokens == length


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            "{base: 120ms, per_token: 80us, per_token_squared: 3ns}",
            (120 * MS, 80_000_000_000, 3_000_000),
        ),
        (
            "{base: 120ms, per_token: 0.35us, per_token_squared: 0.000001ns, slack: 30ms}",
            (150 * MS, 350_000_000, 1),
        ),
        ("{base: 1m30s, per_token_squared: '0'}", (90 * S, 0, 0)),
        ("{base: 1s, per_token: 3600 s}", (1 * S, 3_600 * 10**15, 0)),
        ("{base: 9223372036s, slack: 9223372036s}", (2**63 - 1, 0, 0)),
    ],
)
def test_a_quadratic(write: Any, text: str, parts: tuple[int, int, int]) -> None:
    spec = only_slo(write, f"ttft: {text}")
    assert (spec.quadratic, spec.ttft_points) == (parts, ((0, parts[0]),))
    assert (spec.curves, spec.slack_ns, spec.live, spec.pages) == ((), 0, False, True)


def test_learned_live_is_the_fallback_and_pages_nobody(write: Any) -> None:
    spec = only_slo(write, "ttft: {learned: live, slack: 300ms, fallback: {0: 1s, 4000: 3s}}")
    assert spec.ttft_points == ((0, 1 * S), (4000, 3 * S))
    assert (spec.curves, spec.slack_ns, spec.live, spec.pages) == ((), 300 * MS, True, False)


def test_ranges_that_leave_nothing_out_need_no_default(write: Any) -> None:
    for text in ("{}", "{min: 0}", "{min: 000}"):
        config = read(write(ONE + f"slos: [{{name: a, match: {{prompt_tokens: {text}}}}}]"))
        assert [slo.name for slo in config.slos] == ["a"]
    for text in ("{max: 4000}", "{min: 1}", "{min: 0, max: 99999999}"):
        config = read(write(ONE + f"slos: [{{name: a, match: {{prompt_tokens: {text}}}}}]"))
        assert [slo.name for slo in config.slos] == ["a", "default"]


@pytest.mark.parametrize(
    "ttft",
    [
        {"base": "120ms", "per_token": "80us", "per_token_squared": "0.35ns", "slack": "0s"},
        {"base": "1.5s", "per_token": "0s", "per_token_squared": "0.000001ns", "slack": "1m30s"},
        {"learned": "live", "slack": "300ms", "fallback": "2s"},
        {"learned": "live", "slack": "0s", "fallback": {0: "1s", 4000: "3s"}},
    ],
    ids=str,
)
def test_every_way_of_a_ttft_is_shown_as_it_is_written(write: Any, tmp_path: Path, ttft: Any) -> None:
    slos = [{"name": "a", "match": {"prompt_tokens": {"min": 64, "max": 4000}}, "ttft": ttft}]
    config = read(write(ONE + yaml.safe_dump({"slos": slos})))
    shown = redacted(config)
    assert shown["slos"][0]["ttft"] == ttft
    assert shown["slos"][0]["match"]["prompt_tokens"] == {"min": 64, "max": 4000}
    json.dumps(shown)
    del shown["admin"]["token"], shown["admin"]["write_token"]
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(shown))
    assert read(str(tmp_path / "again.yaml")) == config


# ---------------------------------------------------------------- mistakes

LEARNED_EXAMPLE = "write for example {learned: curves.yaml, slack: 300ms, fallback: 2s}"
QUADRATIC_EXAMPLE = "write for example {base: 120ms, per_token: 80us, per_token_squared: 3ns, slack: 200ms}"
QUADRATIC_KNOWN = "base, per_token, per_token_squared, slack"
#: What stands in an SLO -> every (setting, value, mend), the whole of them.
PROMISES = [
    ("match: {prompt_tokens: {min: 9, max: 8}}", [
        ("match.prompt_tokens", "", "min 9 is more than max 8: no prompt is that long, turn them round"),
    ]),
    ("match: {prompt_tokens: {min: 8k}}", [
        ("match.prompt_tokens.min", "8k",
         "'8k': prompt tokens are a whole number, write for example {min: 0, max: 4000}"),
    ]),
    ("match: {prompt_tokens: {max: -1}}", [
        ("match.prompt_tokens.max", "-1",
         "'-1': prompt tokens are a whole number, write for example {min: 0, max: 4000}"),
    ]),
    ("match: {prompt_tokens: {max: 1234567890123}}", [
        ("match.prompt_tokens.max", "1234567890123",
         "'1234567890123': no prompt has so many tokens, write for example {min: 0, max: 4000}"),
    ]),
    ("match: {prompt_tokens: {max: [5]}}", [
        ("match.prompt_tokens.max", "", "a list: a whole number is needed"),
    ]),
    ("match: {prompt_tokens: 64-4000}", [
        ("match.prompt_tokens", "64-4000", "'64-4000': a mapping of settings is needed (min, max)"),
    ]),
    ("match: {prompt_tokens: {from: 5}}", [
        ("match.prompt_tokens.from", "from", "'from' is no setting: known are min, max"),
    ]),
    ("ttft: {base: 120}", [
        ("ttft.base", "120", "'120': a unit is needed, for example 120ms or 120s"),
    ]),
    ("ttft: {base: 0s}", [("ttft.base", "0s", "'0s': must be longer than 0, for example 50ms")]),
    ("ttft: {per_token: 80us}", [("ttft", "", f"base is needed, {QUADRATIC_EXAMPLE}")]),
    ("ttft: {c0: 120ms, c1: 80us}", [
        ("ttft", "", f"base is needed, {QUADRATIC_EXAMPLE}"),
        ("ttft.c0", "c0", f"'c0' is no setting: known are {QUADRATIC_KNOWN}"),
        ("ttft.c1", "c1", f"'c1' is no setting: known are {QUADRATIC_KNOWN}"),
    ]),
    ("ttft: {base: 1s, per_tokn: 80us}", [
        ("ttft.per_tokn", "per_tokn", "'per_tokn' is no setting: did you mean per_token?"),
    ]),
    ("ttft: {base: 1s, per_token: 80}", [
        ("ttft.per_token", "80", "'80': a unit is needed, for example 80ms or 80s"),
    ]),
    ("ttft: {base: 1s, per_token: 1m}", [
        ("ttft.per_token", "1m", "'1m': one number with one of ns, us, ms, s, for example 80us"),
    ]),
    ("ttft: {base: 1s, per_token: -1us}", [
        ("ttft.per_token", "-1us", "'-1us' is not a duration: write for example 500ms, 2s or 1m30s"),
    ]),
    ("ttft: {base: 1s, per_token_squared: 3601s}", [
        ("ttft.per_token_squared", "3601s", "'3601s' is too long for one token: at most 3600s"),
    ]),
    ("ttft: {base: 1s, per_token_squared: 0.0000001ns}", [
        ("ttft.per_token_squared", "0.0000001ns",
         "'0.0000001ns' is finer than a femtosecond: leave digits out, as in 0.35ns"),
    ]),
    ("ttft: {base: 1s, per_token: [80us]}", [
        ("ttft.per_token", "", "a list: a duration, for example 80us, is needed"),
    ]),
    ("ttft: {base: 1s, slack: off}", [
        ("ttft.slack", "off", "'off' is not a duration: write for example 500ms, 2s or 1m30s"),
    ]),
    ("ttft: {learned: live}", [
        ("ttft", "", f"slack is needed, {LEARNED_EXAMPLE}"),
        ("ttft", "", f"fallback is needed, {LEARNED_EXAMPLE}"),
    ]),
    ("ttft: {lerned: live, slack: 1s, fallback: 2s}", [
        ("ttft", "", f"learned is needed, {LEARNED_EXAMPLE}"),
        ("ttft.lerned", "lerned", "'lerned' is no setting: did you mean learned?"),
    ]),
    ("ttft: {learned: live, slack: 1s, fallback: 2}", [
        ("ttft.fallback", "2", "'2': a unit is needed, for example 2ms or 2s"),
    ]),
    ("ttft: {learned: live, slack: 1s, fallback: }", [
        ("ttft", "", f"fallback is needed, {LEARNED_EXAMPLE}"),
    ]),
    ("ttft: {learned: live, slack: 1s, fallback: {learned: live, slack: 1s, fallback: 1s}}", [
        ("ttft.fallback", "",
         "'learned': prompt tokens are a whole number, write for example {0: 500ms, 8000: 2s}"),
    ]),
    ("ttft: {learned: [live], slack: 1s, fallback: 2s}", [
        ("ttft.learned", "", "a list: a text is needed"),
    ]),
    ("ttft: {learned: nowhere.yaml, slack: 1s, fallback: 2s}", [
        ("ttft.learned", "FOLDER/nowhere.yaml",
         "'FOLDER/nowhere.yaml' cannot be read: No such file or directory; "
         "`legato freeze` writes it, until then: live"),
    ]),
    ('ttft: {learned: "a\\0b", slack: 1s, fallback: 2s}', [
        ("ttft.learned", "FOLDER/a\0b",
         "'FOLDER/a\\x00b' cannot be read: Invalid argument; `legato freeze` writes it, until then: live"),
    ]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "wanted"), PROMISES, ids=[text for text, _ in PROMISES])
def test_mistakes_in_promises(
    write: Any, tmp_path: Path, text: str, wanted: list[tuple[str, str, str]]
) -> None:
    """All that is told: the place is the line of the part itself, its value, and the mend."""
    setting, _, rest = text.partition(":")
    lines = f"  - name: a\n    {setting}:{rest}\n"
    with pytest.raises(ConfigErrors) as caught:
        read(write(ONE + "slos:\n" + lines))
    told = [
        (found.key.removeprefix("slos[0]."), found.value, found.mend.replace(str(tmp_path), "FOLDER"))
        for found in caught.value.problems
    ]
    told = [(key, value.replace(str(tmp_path), "FOLDER"), mend) for key, value, mend in told]
    assert told == wanted
    assert {Path(found.place).name for found in caught.value.problems} == {"legato.yaml:4"}


def test_the_line_is_that_of_the_part_itself(write: Any) -> None:
    file = write(
        ONE
        + """slos:
  - name: a
    ttft:
      base: 1s
      per_token: 5
  - name: b
    match:
      prompt_tokens:
        min: x
    ttft:
      learned: live
      slack: 5
      fallback: 2s
"""
    )
    assert [(place, key) for place, key, _ in problems(file)] == [
        ("legato.yaml:6", "slos[0].ttft.per_token"),
        ("legato.yaml:10", "slos[1].match.prompt_tokens.min"),
        ("legato.yaml:13", "slos[1].ttft.slack"),
    ]


def test_only_slos_are_chosen_by_the_prompts_length(write: Any) -> None:
    file = write(ONE + "routes:\n- backend: vllm\n  match:\n    prompt_tokens: {max: 9}\n")
    mend = "only SLOs are chosen by the prompt's length: leave it out, and write it into an SLO's match"
    assert problems(file) == [("legato.yaml:5", "routes[0].match.prompt_tokens", mend)]


@pytest.mark.parametrize(
    ("before", "after", "reached"),
    [
        ("{prompt_tokens: {max: 4000}}", "{prompt_tokens: {max: 100}}", False),
        ("{prompt_tokens: {max: 4000}}", "{prompt_tokens: {min: 5, max: 4000}, model: m}", False),
        ("{prompt_tokens: {min: 5}}", "{prompt_tokens: {min: 5}}", False),
        ("{path: /a, prompt_tokens: {max: 9}}", "{path: /a, prompt_tokens: {max: 8}}", False),
        ("{path: /a}", "{path: /a, prompt_tokens: {max: 8}}", False),
        ("{}", "{prompt_tokens: {max: 8}}", False),
        ("{prompt_tokens: {max: 4000}}", "{prompt_tokens: {max: 4001}}", True),
        ("{prompt_tokens: {max: 4000}}", "{prompt_tokens: {min: 4000}}", True),
        ("{prompt_tokens: {min: 5}}", "{prompt_tokens: {min: 4}}", True),
        ("{prompt_tokens: {max: 9}}", "{path: /a}", True),
        ("{path: /a, prompt_tokens: {max: 9}}", "{path: /b, prompt_tokens: {max: 8}}", True),
        ("{path: /a, prompt_tokens: {max: 9}}", "{prompt_tokens: {max: 8}}", True),
    ],
)
def test_an_slo_whose_prompts_are_all_taken_is_never_reached(
    write: Any, before: str, after: str, reached: bool
) -> None:
    file = write(ONE + f"slos:\n- {{name: a, match: {before}}}\n- {{name: b, match: {after}}}\n")
    if reached:
        assert [slo.name for slo in read(file).slos][:2] == ["a", "b"]
        return
    assert problems(file) == [
        (
            "legato.yaml:4",
            "slos[1].match",
            "is never reached: SLO 'a' before it matches all of it; put this one first",
        )
    ]
