"""The only reader of files and of the environment: file + variables + flags -> one frozen ``Config``.

Precedence: flags over variables over the file over OpenTelemetry's standard variables over defaults.
Everything that is wrong is reported at once (``ConfigErrors``), each problem with its place, its value and
the mend.  All times are integer nanoseconds, sizes bytes, ratios floats.  Paths of files to read
(certificates, tokens) count from the configuration file's folder, where it names them; everything else from
the working directory.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypedDict, cast

from pydantic import BaseModel, SecretStr, ValidationError

from proxy.settings.base import Match
from proxy.settings.checks import cares, findings, take_out_misplaced
from proxy.settings.layers import FLAGS, add_flags, add_variables, complete_slos, names_at, no_json, variable
from proxy.settings.models import Admin, Backend, Config, Timeouts
from proxy.settings.notify_checks import hide_urls, notify_files, read_notifiers
from proxy.settings.outside import destinations, read_headers, read_url, settle_url, url_of
from proxy.settings.problems import ConfigErrors, ConfigProblem, mask, suggest
from proxy.settings.redis_url import RedisUrl, parse_redis_url
from proxy.settings.route import Route
from proxy.settings.slo import TTFT_WAYS, LearnedTtft, QuadraticTtft, Slo
from proxy.settings.standard import add_off, add_standard
from proxy.settings.telemetry import DEFAULT_TRACE_RATIO, Otel, Redis, Signal
from proxy.settings.tree import Loc, Tree, is_secret, read_file
from proxy.settings.types import Unit, shown, write

if TYPE_CHECKING:
    from proxy.curves import FrozenCurves

__all__ = [
    "DEFAULT_TRACE_RATIO",
    "FLAGS",
    "Admin",
    "Backend",
    "Boot",
    "Config",
    "ConfigErrors",
    "ConfigProblem",
    "LearnedTtft",
    "Match",
    "Otel",
    "QuadraticTtft",
    "Redis",
    "RedisUrl",
    "Route",
    "Signal",
    "Slo",
    "Timeouts",
    "cares",
    "default_file",
    "destinations",
    "in_force",
    "load",
    "parse_redis_url",
    "read_headers",
    "redacted",
    "restart_needed",
    "watched_files",
]


#: What is dropped can show that something else is missing: so often the rest is looked at again.
_LOOKS = 4
_HOLDERS = ("model_type", "dict_type", "tuple_type")


class Boot(TypedDict):
    """What ``load`` needs to build the same configuration again, in any process: it travels as JSON.

    ``flags``: dotted key (see ``FLAGS``) -> text, or a list of texts.
    """

    file: str | None
    flags: dict[str, Any]


def default_file() -> str | None:
    """The file that the variable ``LEGATO_CONFIG`` names, for when no flag does."""
    return os.environ.get("LEGATO_CONFIG") or None


def load(boot: Boot | Mapping[str, Any], environ: Mapping[str, str] | None = None) -> Config:
    """Read, merge and check everything.  Raises ``ConfigErrors`` with all problems at once."""
    tree = Tree()
    path = boot.get("file")
    if path is not None:
        read_file(tree, str(path))
    variables = os.environ if environ is None else environ
    add_variables(tree, variables)
    add_flags(tree, cast("Mapping[str, Any]", boot.get("flags") or {}))
    take_out_misplaced(tree)
    add_off(tree)
    settle_url(tree)
    add_standard(tree, variables)
    complete_slos(tree)
    config = _validated(tree)
    if tree.problems:
        raise ConfigErrors(_in_order(tree.problems))
    config = _with_secrets(config)
    config.note(tuple(tree.notes))
    return config


def _validated(tree: Tree) -> Config:
    """The configuration of all that is right in the tree; what is wrong becomes problems, as if not given."""
    config = None
    for look in range(_LOOKS):
        try:
            config = Config.model_validate(tree.data)
            break
        except ValidationError as error:
            found = cast("list[dict[str, Any]]", error.errors(include_url=False))
            _take_out_wrong(tree, found, again=look > 0)
    if config is None:
        return Config()
    _read_curves(tree, config)
    config = _promises(config)
    for loc, mend in findings(config, tree):
        if not any(loc[: len(bad)] == bad or bad[: len(loc)] == loc for bad in tree.bad):
            if tree.place(loc).startswith("OTEL_"):  # a standard variable stops nothing
                tree.notes.append(f"{tree.place(loc)}: {mask(mend)}")
            else:
                tree.problem(loc, mask(mend))
    return config


def _read_curves(tree: Tree, config: Config) -> None:
    """Give every SLO the learned curves of its file; what is wrong with one is told once."""
    read: dict[str, FrozenCurves] = {}
    for index, slo in enumerate(config.slos):
        if not isinstance(slo.ttft, LearnedTtft) or slo.ttft.live:
            continue
        path = slo.ttft.learned
        try:
            if path not in read:
                from proxy.curves import read_curves  # with what learned them: only where it is needed

                read[path] = read_curves(path)
            slo.ttft.freeze(read[path])
        except OSError as error:
            mend = f"{path!r} cannot be read: {error.strerror}; `legato freeze` writes it, until then: live"
            tree.problem(("slos", index, "ttft", "learned"), mend)
        except ConfigErrors as errors:
            tree.problems += errors.problems


def _take_out_wrong(tree: Tree, errors: list[dict[str, Any]], *, again: bool) -> None:
    if not tree.names and isinstance(tree.data.get("backends"), dict):
        tree.names = list(tree.data["backends"])
    drop: list[Loc] = []
    for found in errors:
        loc, mend = _problem(tree, found)
        drop.append(loc)
        told = (*loc, found["loc"][-1]) if found["type"] == "missing" else loc
        if again and any(bad[: len(told)] == told for bad in tree.bad):
            continue  # it lacks only what was wrong and is told already
        if found["input"] is None and found["type"] in _HOLDERS and isinstance(loc[-1], str):
            if loc[:-1] != ("backends",):
                continue  # "timeouts:" with nothing under it (all of it commented out) is not given
            mend = "nothing stands under it: write {url: http://host:port}, or take it out"
        # What stands under an unknown key may be anything, a secret too: only the key is shown.
        tree.problem(loc, mend, value=loc[-1] if found["type"] == "extra_forbidden" else None)
        tree.bad.append(loc)
    for loc in drop:
        tree.drop(loc)


def _problem(tree: Tree, found: dict[str, Any]) -> tuple[Loc, str]:
    way = next((TTFT_WAYS[step] for step in found["loc"] if step in TTFT_WAYS), None)
    loc = tuple(step for step in found["loc"] if step != "[key]" and step not in TTFT_WAYS)
    kind, value = found["type"], found["input"]
    if kind == "missing" and way is not None:
        return loc[:-1], f"{loc[-1]} is needed, write for example {way.example}"
    if kind == "value_error":
        return loc, mask(str(found["ctx"]["error"]))
    text = mask(shown(value))
    if isinstance(value, str) and is_secret(loc):
        text = "what is written"
    if kind == "extra_forbidden":
        known = names_at(loc[:-1]) if way is None else list(way.names)
        meant = suggest(str(loc[-1]), known)
        if meant and tree.place(loc).startswith("LEGATO_"):
            meant = variable((*loc[:-1], meant))
        mend = f": did you mean {meant}?" if meant else f": known are {', '.join(known)}"
        return loc, f"{str(loc[-1])!r} is no setting" + mend
    if kind in _HOLDERS and (why := no_json(value)) is not None:
        return loc, f"{text}: is no JSON ({why})"
    words = {
        "model_type": f"{text}: a mapping of settings is needed ({', '.join(names_at(loc))})",
        "dict_type": f"{text}: a mapping is needed, name: value",
        "tuple_type": f"{text}: a list is needed",
        "string_type": f"{text}: a text is needed",
        "literal_error": f"{text}: write {found.get('ctx', {}).get('expected', '')}",
        "int_parsing": f"{text}: a whole number is needed",
        "int_type": f"{text}: a whole number is needed",
    }
    default = found["msg"].replace("Input should be", f"{text}: should be")
    return loc, words.get(kind, default)


def _promises(config: Config) -> Config:
    """A rule that sets ``e2e`` and nothing about tokens promises the duration only."""
    told = {"ttft", "tbt", "fluidity"}
    slos = tuple(
        slo.model_copy(update={"fluidity": 0.0})
        if slo.e2e is not None and not told & slo.model_fields_set
        else slo
        for slo in config.slos
    )
    return config.model_copy(update={"slos": slos})


def _with_secrets(config: Config) -> Config:
    redis = config.redis
    if redis.url is None and redis.url_file is not None:
        update = {"url": read_url(redis.url_file)}
        config = config.model_copy(update={"redis": redis.model_copy(update=update)})
    config = config.model_copy(update={"alerts": read_notifiers(config.alerts)})
    return _with_tokens(config)


def _with_tokens(config: Config) -> Config:
    admin = config.admin
    read = {}
    for name in ("token", "write_token"):
        path = getattr(admin, f"{name}_file")
        if getattr(admin, name) is None and path is not None:
            with open(path, encoding="utf-8") as file:
                read[name] = SecretStr(file.read().strip())
    return config.model_copy(update={"admin": admin.model_copy(update=read)}) if read else config


def _in_order(problems: list[ConfigProblem]) -> list[ConfigProblem]:
    """By file and line, then variables, then flags; the same sentence about one place once."""

    def order(problem: ConfigProblem) -> tuple[int, str, int]:
        name, _, line = problem.place.rpartition(":")
        kind = 2 if problem.place.startswith("-") else 1 if problem.place.startswith("LEGATO_") else 0
        return (kind, name, int(line)) if line.isdigit() else (kind, problem.place, 0)

    return sorted(dict.fromkeys(problems), key=order)


def _unit(metadata: list[Any], annotation: Any) -> Unit | None:
    for item in [*metadata, *getattr(annotation, "__metadata__", ())]:
        if isinstance(item, Unit):
            return item
    for option in getattr(annotation, "__args__", ()):
        if (unit := _unit([], option)) is not None:
            return unit
    return None


def unit_of(model: type[BaseModel], name: str) -> Unit | None:
    """How a field's value is written, ``None`` where it is plain."""
    field = model.model_fields[name]
    return _unit(list(field.metadata), field.annotation)


def as_written(model: BaseModel) -> dict[str, Any]:
    """The settings the way people write them (``500ms``, ``64MiB``, ``off``); secrets as ``***``."""

    def inner(value: Any) -> Any:
        if isinstance(value, BaseModel):
            return as_written(value)
        if isinstance(value, SecretStr):
            return "***"
        if isinstance(value, dict):
            return {name: inner(part) for name, part in value.items()}
        return [inner(part) for part in value] if isinstance(value, tuple) else value

    return {
        name: inner(write(getattr(model, name), unit_of(type(model), name)))
        for name in type(model).model_fields
    }


def redacted(config: Config) -> dict[str, Any]:
    """The whole configuration in force, for people to read: no secret, no credentials in a URL."""
    out = as_written(config)
    for backend in out["backends"].values():
        backend["url"] = mask(backend["url"])
    if (url := url_of(config.redis)) is not None:
        out["redis"]["url"] = url.shown()
    hide_urls(config.alerts, out["alerts"]["notify"])
    return out


#: Read at start only, beside ``admin.listen`` and whether ``listen`` speaks TLS.
_AT_START = ("listen", "workers", "redis", "otel")


def restart_needed(old: Config, new: Config) -> list[str]:
    """The settings whose change a reload cannot carry out: their names, empty if there are none."""
    out = [name for name in _AT_START if getattr(old, name) != getattr(new, name)]
    if old.admin.listen != new.admin.listen:
        out.append("admin.listen")
    if (old.tls.cert_file is None) != (new.tls.cert_file is None):
        out.append("tls (on or off)")
    return out


def in_force(old: Config, new: Config) -> Config:
    """``new`` as far as it holds without a restart; what is read at start only stays as in ``old``."""
    admin = new.admin.model_copy(update={"listen": old.admin.listen})
    return new.model_copy(update={name: getattr(old, name) for name in _AT_START} | {"admin": admin})


def watched_files(boot: Boot | Mapping[str, Any], config: Config) -> tuple[str, ...]:
    """Every file to look at: the configuration, certificates, tokens; with ``watch`` learned curves and
    the files of notifiers too.

    (Certificates are read again whenever they change, everything else by a reload only.  What ``redis`` and
    ``otel`` name is not among them: it is read at start only.)
    """
    files = [boot.get("file"), config.tls.cert_file, config.tls.key_file]
    files += [config.admin.token_file, config.admin.write_token_file]
    for backend in config.backends.values():
        files += [backend.tls.ca_file, backend.tls.cert_file, backend.tls.key_file]
    if config.watch:
        ttfts = [slo.ttft for slo in config.slos]
        files += [ttft.learned for ttft in ttfts if isinstance(ttft, LearnedTtft) and not ttft.live]
        files += notify_files(config.alerts)
    return tuple(dict.fromkeys(str(file) for file in files if file))
