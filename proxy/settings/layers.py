"""What goes over the file: ``LEGATO_`` variables and flags, and the short forms that both share."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from proxy.settings.models import Config
from proxy.settings.problems import suggest
from proxy.settings.tree import Loc, Tree, is_secret

PREFIX = "LEGATO_"
#: Variables that are no settings: the file's path (the CLI reads it) and the command that benches start.
OTHER_VARIABLES = {"LEGATO_CONFIG": "the configuration file, where no --config is given", "LEGATO_CMD": ""}
#: Short forms, as variables (in capitals) and as flags: what they set.
SHORT = {
    "upstream": "the one backend, named `default`, instead of all others",
    "ttft": "`ttft` of the SLO `default`",
    "tbt": "`tbt` of the SLO `default`",
    "admin": "`admin.listen`",
}
#: Flags by the dotted key that the boot object carries.
FLAGS = {
    "upstream": "--upstream",
    "ttft": "--ttft",
    "tbt": "--tbt",
    "listen": "--listen",
    "admin": "--admin",
    "workers": "--workers",
    "access_log": "--access-log",
    "trace_log": "--trace-log",
    "tls.cert_file": "--tls-cert",
    "tls.key_file": "--tls-key",
}
# Kubernetes tells every pod of its services by variables: one named "legato" gives LEGATO_PORT and the like.
_SERVICE_LINK = re.compile(
    r"LEGATO_([A-Z0-9_]+_)?"
    r"(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)


def child(annotation: Any, step: str | int) -> Any:
    """The type of one part of a setting, ``None`` where there is none."""
    for option in (
        annotation,
        *(get_args(annotation) if get_origin(annotation) not in (dict, tuple) else ()),
    ):
        if isinstance(option, type) and issubclass(option, BaseModel):
            field = option.model_fields.get(str(step))
            return field.annotation if field else None
        if get_origin(option) is dict:
            return get_args(option)[1]
        if get_origin(option) is tuple:
            return get_args(option)[0]
    return None


def names_at(loc: Loc) -> list[str]:
    """The keys that the settings have at ``loc``."""
    annotation = _type_at(loc)
    options = (annotation, *(get_args(annotation) if get_origin(annotation) not in (dict, tuple) else ()))
    models = [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]
    return list(models[0].model_fields) if len(models) == 1 else []  # several: no list fits all of them


def variable(loc: Loc) -> str:
    """``("timeouts", "connect")`` -> ``LEGATO_TIMEOUTS__CONNECT``."""
    return PREFIX + "__".join(str(step).upper() for step in loc)


def known_variables() -> list[str]:
    """Every variable whose name does not hold a name of the user's."""
    out = [variable((name,)) for name in SHORT]
    for name, field in Config.model_fields.items():
        out += [variable(loc) for loc in _named((name,), field.annotation)]
    return [*dict.fromkeys(out), *OTHER_VARIABLES]


def _named(loc: Loc, annotation: Any) -> list[Loc]:
    """This setting and all below it whose names are ours."""
    out = [loc]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, field in annotation.model_fields.items():
            out += _named((*loc, name), field.annotation)
    return out


def add_variables(tree: Tree, environ: Mapping[str, str]) -> None:
    """Add every ``LEGATO_`` variable; a double underscore goes one level down; lists and mappings as JSON."""
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name in OTHER_VARIABLES or _SERVICE_LINK.fullmatch(name):
            continue
        text = environ[name]
        steps = name[len(PREFIX) :].lower().split("__")
        if steps[0] not in Config.model_fields and steps[0] not in SHORT:
            meant = suggest(
                name[len(PREFIX) :], [known[len(PREFIX) :].lower() for known in known_variables()]
            )
            mend = f"{name} is no setting" + (
                f": did you mean {PREFIX}{meant.upper()}?" if meant else ": unset it"
            )
            tree.problem((), mend, value=name, place=name)
        elif steps in (["upstream"], ["ttft"], ["tbt"], ["admin"]) and not text.lstrip().startswith("{"):
            add_short(tree, steps[0], text, name)
        else:
            _add_variable(tree, _spelt(tree, steps), text, name)


def _spelt(tree: Tree, steps: list[str]) -> Loc:
    """Names of the user's as the file spells them: variables have capitals only."""
    loc: Loc = ()
    for step in steps:
        there = tree.get(loc)
        names = there if isinstance(there, dict) else {}
        loc = (*loc, next((name for name in names if name.lower().replace("-", "_") == step), step))
    return loc


def _add_variable(tree: Tree, loc: Loc, text: str, name: str) -> None:
    for size in range(1, len(loc)):
        if get_origin(_type_at(loc[:size])) is tuple or isinstance(tree.get(loc[:size]), list):
            whole = variable(loc[:size])
            mend = f"a list is set as a whole: {whole}='[...]' as JSON, or in the file"
            tree.problem((), mend, value="***" if is_secret(loc) else text, place=name)
            return
    tree.set(loc, _json(text), name)


def _type_at(loc: Loc) -> Any:
    annotation: Any = Config
    for step in loc:
        annotation = child(annotation, step)
    return annotation


def _json(text: str) -> Any:
    """A JSON object or array as texts; anything else as it is (``[::1]:80`` too)."""
    if not text.lstrip().startswith(("{", "[")):
        return text
    try:
        return _as_texts(json.loads(text, parse_int=str, parse_float=str))
    except ValueError:
        return text


def no_json(value: Any) -> str | None:
    """Why a text that begins as JSON is none; ``None`` where it does not, or is."""
    if not (isinstance(value, str) and value.lstrip().startswith(("{", "["))):
        return None
    try:
        json.loads(value)
    except json.JSONDecodeError as error:
        return f"{error.msg} at character {error.pos + 1}"
    except (ValueError, RecursionError):
        return "it is too deep or too long"
    return None


def _as_texts(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _as_texts(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_as_texts(inner) for inner in value]
    return str(value).lower() if isinstance(value, bool) else value


def add_short(tree: Tree, short: str, text: Any, place: str) -> None:
    """Add a short form: ``upstream``, ``admin``, ``ttft`` or ``tbt``."""
    if short == "upstream":
        tree.set(("backends",), {"default": {"url": text}}, place)
        tree.places[("backends", "default", "url")] = place
    elif short == "admin":
        tree.set(("admin", "listen"), text, place)
    else:
        tree.set(("(default)", short), text, place)  # taken up by complete_slos


def add_flags(tree: Tree, flags: Mapping[str, Any]) -> None:
    """Add the flags of the command line, by their dotted keys; lists and numbers as they come."""
    for dotted, value in flags.items():
        place = FLAGS.get(dotted, dotted)
        text = [str(item) for item in value] if isinstance(value, list | tuple) else str(value)
        if dotted in SHORT:
            add_short(tree, dotted, text, place)
        else:
            tree.set(tuple(dotted.split(".")), text, place)


def complete_slos(tree: Tree) -> None:
    """Put the SLO ``default`` at the end where no rule matches everything, and give it the short forms."""
    short = tree.data.pop("(default)", {})
    slos = tree.data.get("slos")
    if slos is None:
        slos = tree.data["slos"] = []
    if not isinstance(slos, list):
        return
    rules = [slo if isinstance(slo, dict) else {} for slo in slos]
    named = next((index for index, rule in enumerate(rules) if rule.get("name") == "default"), None)
    if not any(_matches_everything(rule) for rule in rules):
        if named is not None:
            mend = "'default' is the rule for everything else: take its match away, or give it another name"
            tree.problem(("slos", named, "name"), mend)
            return
        slos.append({"name": "default"})
        named = len(slos) - 1
    for setting, text in short.items():
        place = tree.places.pop(("(default)", setting))
        if named is None:
            last = next(rule.get("name") for rule in rules if _matches_everything(rule))
            mend = (
                f"sets the SLO 'default', but '{last}' matches everything: leave it out, or rename '{last}'"
            )
            tree.problem((), f"{text!r} {mend}", value=text, place=place)
        else:
            slos[named][setting] = text
            tree.places[("slos", named, setting)] = place


def _matches_everything(rule: Mapping[str, Any]) -> bool:
    match = rule.get("match") or {}
    return isinstance(match, dict) and all(
        not value
        or (name == "path" and value in ("*", "/*"))
        or (name == "prompt_tokens" and isinstance(value, dict) and _any_length(value))
        for name, value in match.items()
    )


def _any_length(prompts: Mapping[str, Any]) -> bool:
    """``{}`` and ``{min: 0}``: no prompt is left out."""
    return prompts.get("max") is None and not str(prompts.get("min") or "").strip("0")
