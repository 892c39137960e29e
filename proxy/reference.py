"""The configuration reference, made from the models.

``python -m proxy.reference`` writes ``proxy/CONFIG.md``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel

from proxy.config import unit_of
from proxy.settings.layers import FLAGS, OTHER_VARIABLES, SHORT, variable
from proxy.settings.models import Config
from proxy.settings.slo import PromptRange, SloMatch
from proxy.settings.standard import BY_THE_LIBRARY, NOT_READ, STANDARD
from proxy.settings.types import write

TARGET = Path(__file__).with_name("CONFIG.md")
COMMAND = "python -m proxy.reference"

_HEAD = f"""# Configuration reference

Made by `{COMMAND}` from the settings themselves: do not edit.

Flags win over variables, those over the file, and that over OpenTelemetry's standard variables; what none of
them sets has its default. `legato check FILE`
reports everything that is wrong at once, each problem with its place and the mend. SIGHUP (or `watch: on`)
reloads; a bad file then changes nothing. *At start only*: a change needs a restart.

**Units are required**: durations `50us`, `500ms`, `2s`, `1m30s`, `2h`; sizes `4096B`, `64KiB`, `64MiB`,
`1GiB` (kB, MB and GB are powers of 1000); ratios `99%` or `0.99`. `off`, `no` and `false` mean the same, as
do `on`, `yes` and `true`. Globs know `*` (also across `/`), `?` and `[...]`.

**Variables**: `LEGATO_` and the setting's name in capitals, a double underscore for each level:
`LEGATO_TIMEOUTS__CONNECT=5s`, `LEGATO_BACKENDS__VLLM__URL=http://vllm:8000`. Lists of texts are separated by
commas; other lists and mappings are JSON. An unknown `LEGATO_` variable is an error; those that Kubernetes
makes of a service named `legato` (`LEGATO_PORT`, `LEGATO_SERVICE_HOST` and so on) are passed over.

**Files** to read (`*_file`, `learned`) that the configuration names are looked for beside it; all other paths
count from the working directory. Secrets are in files or variables, never in the configuration or in flags.
"""

#: What a mapping's names and values are, where they are not a header and a glob.
_MAPPINGS = {"split": "name: weight", "record_headers": "name: header", "attributes": "name: text"}
_STANDARD = """They fill in what the file, `LEGATO_` variables and flags leave out; an empty one counts as
unset. A bad value of one is passed over: `legato check` says so, and `legato serve` at its start."""
_TABLE = "| setting | what one writes | default | meaning |\n|---|---|---|---|"


def render() -> str:
    """The whole document."""
    out = [_HEAD, "## Short forms\n", "| flag | variable | sets |", "|---|---|---|"]
    for dotted, flag in FLAGS.items():
        sets = SHORT.get(dotted, f"`{dotted}`")
        out.append(f"| `{flag}` | `{variable(tuple(dotted.split('.')))}` | {sets} |")
    named = [f"`{name}`: {what}" for name, what in OTHER_VARIABLES.items() if what]
    out.append(f"| `--config`, `-c` | {'; '.join(named)} | |")
    out += ["", "## Top level", "", _TABLE]
    sections: list[str] = []
    for name, field in Config.model_fields.items():
        model = _inner(field.annotation)
        if model is None:
            out.append(_row(Config, name))
        else:
            head = _path(name, field.annotation)
            sections += _section(head, model, field.description or "")
    sections += _standard()
    return "\n".join([*out, "", *sections]).rstrip() + "\n"


def _standard() -> list[str]:
    """OpenTelemetry's own variables."""
    out = ["## OpenTelemetry's standard variables", "", _STANDARD, ""]
    out += ["| variable | fills in | understood |", "|---|---|---|"]
    for standard in STANDARD:
        fills = ".".join(str(step) for step in standard.loc or ())
        if not fills:
            fills = "otel.traces.ratio" if "SAMPLER" in standard.name else ""
        out.append(
            f"| `{standard.name}` | {f'`{fills}`' if fills else 'all of it'} | {standard.understood} |"
        )
    library = ", ".join(f"`{name}`" for name in BY_THE_LIBRARY)
    out += [
        "",
        f"OpenTelemetry's own library reads {library}: a setting goes before them where there is one.",
    ]
    not_read = ", ".join(f"`{name}`" for name in NOT_READ)
    return [*out, f"Not read, and said so: {not_read}.", ""]


def _section(head: str, model: type[BaseModel], description: str) -> list[str]:
    out = [f"## `{head}`", "", description, "", _TABLE]
    nested: list[str] = []
    for name, field in model.model_fields.items():
        inner = _inner(field.annotation)
        if inner is None:
            out.append(_row(model, name))
            for way in _ways(field.annotation):
                first = next(iter(way.model_fields))
                nested += _section(f"{head}.{name}: {{{first}: ...}}", way, f"{way.__doc__}")
        elif inner is SloMatch:  # what it has in common with a route's was described there
            kind = "as in `routes[].match`, and `prompt_tokens`"
            out.append(f"| `{name}` | {kind} | everything | {field.description} |")
            prompts = SloMatch.model_fields["prompt_tokens"]
            nested += _section(f"{head}.{name}.prompt_tokens", PromptRange, prompts.description or "")
        else:
            nested += _section(f"{head}.{_path(name, field.annotation)}", inner, field.description or "")
    return [*out, "", *nested]


def _path(name: str, annotation: Any) -> str:
    origin = get_origin(annotation)
    return f"{name}.<name>" if origin is dict else f"{name}[]" if origin is tuple else name


def _ways(annotation: Any) -> list[type[BaseModel]]:
    """The models among several ways to write one setting."""
    options = [get_args(option)[0] for option in get_args(annotation) if get_origin(option) is Annotated]
    return [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]


def _inner(annotation: Any) -> type[BaseModel] | None:
    """The model that a setting holds, directly, in a list or by name."""
    for option in (annotation, *get_args(annotation)):
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option
    return None


def _row(model: type[BaseModel], name: str) -> str:
    field = model.model_fields[name]
    return f"| `{name}` | {_kind(model, name)} | {_default(model, name)} | {field.description} |"


def _kind(model: type[BaseModel], name: str) -> str:
    unit = unit_of(model, name)
    annotation = model.model_fields[name].annotation
    options = [annotation, *get_args(annotation)]
    for option in options:
        if get_origin(option) is Literal:
            return " or ".join(f"`{word}`" for word in get_args(option))
        if get_origin(option) is dict:
            return _MAPPINGS.get(name, "header: glob")
    if unit is not None and unit.hint:
        return unit.hint
    if name == "model":
        return "glob"
    if name.endswith("_file") or name in ("uds", "learned"):
        return "path, or `live`" if name == "learned" else "path"
    return {int: "whole number", float: "number"}.get(
        annotation if isinstance(annotation, type) else str, "text"
    )


def _default(model: type[BaseModel], name: str) -> str:
    if model.model_fields[name].is_required():
        return "needed"
    value = write(model.model_fields[name].default, unit_of(model, name))
    if value is None or value in ((), {}, ""):
        return "none"
    if isinstance(value, tuple):
        value = ", ".join(value)
    if isinstance(value, dict):
        value = "{" + ", ".join(f"{key}: {text}" for key, text in value.items()) + "}"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def main() -> int:
    """Write the document."""
    TARGET.write_text(render(), encoding="utf-8")
    print(f"wrote {TARGET.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
