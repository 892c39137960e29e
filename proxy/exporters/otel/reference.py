"""Writes ``SPANS.md``, the reference of spans, from the table: ``python -m proxy.exporters.otel.reference``.

A test holds the file against ``markdown()``, so that it cannot fall behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from proxy.exporters.otel import names
from proxy.exporters.otel.calls import DIALECTS

FILE: Final = Path(__file__).with_name("SPANS.md")
TYPES: Final = {str: "string", int: "int", float: "double", bool: "boolean", list: "string[]"}

_HEAD: Final = """\
<!-- Written by `python -m proxy.exporters.otel.reference` from names.py and calls.py. -->

# Spans

What each request that is kept becomes (which are kept, and why: [README.md](README.md)).

- **SERVER**, `{method} {http.route}`: the request as its client saw it, from its arrival to its end. Child of
  the client's span, if it sent one.
- **CLIENT**, `{gen_ai.operation.name} {gen_ai.request.model}`, below it: the call of the backend, from
  connecting (or taking a kept connection) to the end. Absent where the backend was not called. Where no model
  was called (`/v1/models`) it is a CLIENT span of HTTP, named by its method.

An attribute without a value is absent. *Stable* says whether its convention promises to keep the name.
"""


def markdown() -> str:
    """The whole reference."""
    parts = [
        _HEAD,
        *_table("Of the SERVER span", names.SERVER),
        *_table("Of the CLIENT span", names.CLIENT),
        *_table("Of both", names.VERDICT),
        *_tags(),
        *_table("Of the CLIENT span, or of the SERVER span where there is no other", names.DETAIL),
        *_events(),
        *_dialects(),
    ]
    return "\n".join(parts).rstrip() + "\n"


def _table(title: str, rows: tuple[names.Attribute, ...]) -> Iterator[str]:
    yield f"## {title}\n"
    yield "| attribute | type | unit | convention | required | stable | what it says |"
    yield "|---|---|---|---|---|---|---|"
    for row in rows:
        when = f" Only with `{row.when}`." if row.when and not row.when.startswith("not ") else ""
        if row.when.startswith("not "):
            when = f" Absent with `{row.when.removeprefix('not ')}`."
        cells = (
            *(f"`{row.name}`", TYPES[row.type], row.unit, row.source, row.level),
            *("yes" if row.stable else "no", row.meaning + when),
        )
        yield f"| {' | '.join(cells)} |"
    yield ""


def _tags() -> Iterator[str]:
    yield f"The SERVER span also has `{names.TAG_PREFIX}NAME` (string) for each tag in `record_headers`.\n"


def _events() -> Iterator[str]:
    yield "## Events of the CLIENT span\n"
    yield f"- `{names.FIRST_TOKEN}`: the first token of any kind came."
    yield f"- `{names.STALL}`: a token was late, or was due when the stream was cut. Its time is the gap's"
    yield "  start. Of more than 32 those of the most lateness; `dropped_events_count` counts the others."
    yield ""
    yield f"| attribute of `{names.STALL}` | type | unit | what it says |"
    yield "|---|---|---|---|"
    for each in names.STALL_ATTRIBUTES:
        yield f"| `{each.name}` | {TYPES[each.type]} | {each.unit} | {each.meaning} |"
    yield ""


def _dialects() -> Iterator[str]:
    yield "## Operation and provider, by the format of the API\n"
    yield "The paths of embeddings are `embeddings` of `openai`, `ollama` or `gcp.gemini`.\n"
    yield "| dialect | `gen_ai.operation.name` | `gen_ai.provider.name` |"
    yield "|---|---|---|"
    for dialect, call in DIALECTS.items():
        yield f"| `{dialect}` | `{call.operation}` | `{call.provider}` |"
    yield ""


if __name__ == "__main__":
    FILE.write_text(markdown(), encoding="utf-8")
    print(f"wrote {FILE}")
