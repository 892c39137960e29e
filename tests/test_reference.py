"""The configuration reference cannot drift from the settings, nor the examples from what is accepted."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import BaseModel

from proxy.config import Boot, cares, destinations, load
from proxy.reference import COMMAND, TARGET, render
from proxy.settings.base import Settings
from proxy.settings.layers import FLAGS
from proxy.settings.models import Config
from tests.helpers.curves import learned

EXAMPLE = Path(__file__).parent.parent / "deploy" / "legato.example.yaml"


def models() -> Sequence[type[BaseModel]]:
    found = list(Settings.__subclasses__())
    for model in found:
        found += model.__subclasses__()
    return found


def test_the_file_is_what_the_settings_say() -> None:
    assert TARGET.read_text(encoding="utf-8") == render(), f"{TARGET.name} is out of date: run {COMMAND}"


@pytest.mark.parametrize("model", models(), ids=lambda model: model.__name__)
def test_every_setting_is_described_and_in_the_reference(model: type[BaseModel]) -> None:
    text = render()
    for name, field in model.model_fields.items():
        assert field.description, f"{model.__name__}.{name} has no description"
        assert field.description.endswith((".", ")")), f"{model.__name__}.{name}: a sentence"
        ends = (f"`{name}`", f".{name}`", f"`{name}[]`", f".{name}[]`", f"`{name}.<name>`")
        assert any(shown in text for shown in ends), "a row, or a section's head"


def test_defaults_carry_their_units() -> None:
    rows = [line for line in render().splitlines() if line.startswith("| `")]
    defaults = {row.split(" | ")[0][3:-1]: row.split(" | ")[2] for row in rows}
    wanted = {
        "connect": "5s",
        "first_byte": "off",
        "drain": "10m",
        "limit": "64MiB",
        "tbt": "50ms",
        "objective": "99%",
    }
    wanted |= {"head_limit": "64KiB", "measure": "on", "watch": "off", "ttft": "500ms", "fluidity": "90%"}
    assert {name: defaults[name].strip("`") for name in wanted} == wanted


def test_every_flag_of_serve_is_in_the_reference() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "proxy.cli", "serve", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={"COLUMNS": "200", "TERM": "dumb"},
    ).stdout
    for flag in FLAGS.values():
        assert flag in said
        assert f"`{flag}`" in render()


def test_the_example_is_accepted_and_sets_most_of_what_there_is() -> None:
    config = load(Boot(file=str(EXAMPLE), flags={}), {})
    assert config.model_fields_set >= {"listen", "admin", "backends", "routes", "slos", "timeouts", "body"}
    assert cares(config) == ["admin listens on 0.0.0.0:9464 without a token: only loopback is served the API"]


def test_what_the_example_shows_as_comments_is_accepted_too(tmp_path: Path) -> None:
    text = EXAMPLE.read_text()
    for entry in ("name: learned", "match: {path: /v1/*}"):
        assert f"  # - {entry}" in text
        text = text.replace(f"  # - {entry}", f"  - {entry}")
    text = text.replace("\n  #   ", "\n    ")
    learned(tmp_path / "curves.yaml", ("vllm", "llama-70b", 200_000_000))
    commented = ("next: {url", "by_socket: {uds", "elsewhere: {url", "redis: {url_file", "otel: {endpoint")
    for line in (*commented, "mirror: {", "experiment: {", "ejection: {", "url: https://legato"):
        assert f"# {line}" in text
        text = text.replace(f"# {line}", line)
    (tmp_path / "redis.url").write_text("rediss://legato:hunter2@redis\n")
    file = tmp_path / "legato.yaml"
    file.write_text(text.replace(", tls: {ca_file: ca.pem}", ""))
    config = load(Boot(file=str(file), flags={}), {})
    assert set(config.backends) == {"vllm", "small", "next", "by_socket", "elsewhere"}
    assert (config.experiment.name, config.ejection.enabled) == ("next", True)
    assert config.routes[-1].mirror.backend == "next"
    assert [slo.name for slo in config.slos] == ["batch", "documents", "learned", "chat", "default"]
    assert [kind for kind, _ in destinations(config)] == ["redis", "otel", "otel", "notify"]


def test_config_is_the_root() -> None:
    assert Config in models()
