"""Settings of Redis and OpenTelemetry: right, wrong, as shown, and from the standard variables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trustme
from typer.testing import CliRunner

from proxy import cli, link
from proxy.config import (
    Boot,
    Config,
    Otel,
    Redis,
    cares,
    destinations,
    load,
    parse_redis_url,
    read_headers,
    redacted,
    restart_needed,
    watched_files,
)
from proxy.settings.telemetry import OtelTraces, RedisTls
from proxy.tables import build_table
from tests.helpers.settings import bare, read, writer


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Write a file ``legato.yaml``; gives its path."""
    return writer(tmp_path)


def url(config: Config) -> str | None:
    return None if config.redis.url is None else config.redis.url.get_secret_value()


# ---------------------------------------------------------------- what is right


def test_without_settings_nothing_is_configured() -> None:
    config = bare({})
    assert (config.redis, config.otel, config.notes) == (Redis(), Otel(), ())
    assert (config.otel.traces_url, config.otel.metrics_url) == (None, None)
    assert build_table(config, 1).tracing is None
    assert destinations(config) == []


def test_every_setting_can_be_given_in_the_file(write: Any, tmp_path: Path) -> None:
    """No setting keeps its default here, in one file or the other (some exclude each other)."""
    authority = trustme.CA()
    pair = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    pair.private_key_pem.write_to_path(tmp_path / "key.pem")
    pair.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    (tmp_path / "redis.url").write_text("rediss://legato:hunter2@redis:6380/1\nmore\n")
    (tmp_path / "headers").write_text("# a key\nX-Api-Key: hunter3\n\nx-tenant:acme\n")
    first = read(
        write(
            """
            redis: {url_file: redis.url, prefix: blue, every: 2s, timeout: 1s, memory: 1MiB,
                    tls: {ca_file: ca.pem, cert_file: cert.pem, key_file: key.pem}}
            otel:
              {endpoint: https://collector/base/, headers_file: headers, ca_file: ca.pem, timeout: 3s,
               metrics: off, every: 15s, service_name: gate, attributes: {team: serving}, exemplars: off,
               traces: {ratio: 5%, bad_per_second: 1.5, propagate: off, timeout: 1s}}
            """
        )
    )
    second = read(
        write(
            """
            redis: {url: rediss://redis, tls: {verify: off}}
            otel:
              {protocol: grpc, metrics_endpoint: https://m:4318,
               metrics_protocol: http/protobuf, metrics_timeout: 5s, metrics_ca_file: ca.pem,
               traces: {export: off, endpoint: https://t:4317, protocol: grpc, ca_file: ca.pem}}
            """
        )
    )

    assert url(first) == "rediss://legato:hunter2@redis:6380/1"
    assert first.otel.traces_url == "https://collector/base/v1/traces"
    assert first.otel.headers_file == str(tmp_path / "headers"), "found beside the configuration"
    assert read_headers(first.otel.headers_file) == {"x-api-key": "hunter3", "x-tenant": "acme"}
    assert second.otel.metrics_ca_file == second.otel.traces.ca_file == str(tmp_path / "ca.pem")
    assert build_table(first, 1).tracing == link.Tracing(0.05, False)
    for one, other, default in (
        (first.redis, second.redis, Redis()),
        (first.otel, second.otel, Otel()),
        (first.redis.tls, second.redis.tls, RedisTls()),
        (first.otel.traces, second.otel.traces, OtelTraces()),
    ):
        for name in type(default).model_fields:
            values = [getattr(each, name) for each in (one, other, default)]
            assert values[0] != values[2] or values[1] != values[2], f"{name} is set in neither"


@pytest.mark.parametrize(
    ("otel", "traces", "metrics"),
    [
        ("{endpoint: http://c:4318}", "http://c:4318/v1/traces", "http://c:4318/v1/metrics"),
        ("{endpoint: http://c:4318/base/}", "http://c:4318/base/v1/traces", "http://c:4318/base/v1/metrics"),
        ("{endpoint: http://c:4317, protocol: grpc}", "http://c:4317", "http://c:4317"),
        (
            "{endpoint: http://c:4317, protocol: grpc, traces: {protocol: http/protobuf}}",
            "http://c:4317/v1/traces",
            "http://c:4317",
        ),
        ("{endpoint: http://c, metrics: off}", "http://c/v1/traces", None),
        ("{endpoint: http://c, traces: {export: off}}", None, "http://c/v1/metrics"),
        ("{endpoint: http://c, traces: {endpoint: http://t/x}}", "http://t/x", "http://c/v1/metrics"),
        ("{metrics_endpoint: http://m/y}", None, "http://m/y"),
        ("{traces: {ratio: 50%}}", None, None),
        ("{}", None, None),
    ],
)
def test_where_spans_and_metrics_go(write: Any, otel: str, traces: str | None, metrics: str | None) -> None:
    config = read(write(f"otel: {otel}"))
    assert (config.otel.traces_url, config.otel.metrics_url) == (traces, metrics)
    assert (build_table(config, 1).tracing is None) == (traces is None), "no header is touched without spans"


@pytest.mark.parametrize("word", ["off", "no", "False", "'off'"])
def test_off_is_nothing_configured_whatever_the_standard_variables_say(write: Any, word: str) -> None:
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}
    assert read(write("redis: {}\notel: {}"), env).otel.traces_url == "http://c:4318/v1/traces"
    config = read(write(f"redis: {word}\notel: {word}"), env)
    assert config.redis == Redis()
    assert (config.otel.traces_url, config.otel.metrics_url) == (None, None)
    assert cares(config) == []


def test_a_variable_switches_off_and_on_what_the_file_says(write: Any) -> None:
    file = write("redis: {url: redis://h}\notel: {endpoint: http://c}")
    off = read(file, {"LEGATO_REDIS": "off", "LEGATO_OTEL": "off"})
    assert (off.redis.url, off.otel.traces_url) == (None, None)
    on = read(write("redis: off\notel: off"), {"LEGATO_REDIS__URL": "redis://h"})
    assert url(on) == "redis://h"


def test_a_variable_goes_before_the_files_url(write: Any, tmp_path: Path) -> None:
    (tmp_path / "redis.url").write_text("redis://file")
    (tmp_path / "other.url").write_text("redis://other")
    by_file, plain = write("redis: {url_file: redis.url}"), {"LEGATO_REDIS__URL": "redis://:hunter2@variable"}
    assert url(read(by_file)) == "redis://file"
    assert url(read(by_file, plain)) == "redis://:hunter2@variable"
    named = {"LEGATO_REDIS__URL_FILE": str(tmp_path / "other.url")}
    assert url(read(write("redis: {url: redis://plain}"), named)) == "redis://other"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://h", "redis://h:6379"),
        ("REDIS://h/", "redis://h:6379"),
        ("redis://u:p%40w%2F@h:1/3", "redis://u:***@h:1/3"),
        ("redis://u@h", "redis://u@h:6379"),
        ("rediss://:pw@[::1]:6380", "rediss://:***@[::1]:6380"),
        ("unix:///run/r.sock", "unix:///run/r.sock"),
        ("unix://u:pw@/run/r.sock?db=2", "unix://u:***@/run/r.sock?db=2"),
        ("redis+sentinel://:pw@a,b:1/main", "redis+sentinel://:***@a:26379,b:1/main"),
        ("rediss+sentinel://a/main/4", "rediss+sentinel://a:26379/main/4"),
        ("redis+cluster://u:pw@a:1,b", "redis+cluster://u:***@a:1,b:6379"),
        ("rediss+cluster://a/0", "rediss+cluster://a:6379"),
    ],
)
def test_every_form_of_the_url(text: str, shown: str) -> None:
    found = parse_redis_url(text)
    assert found.shown() == shown
    assert parse_redis_url(shown).hosts == found.hosts
    assert (found.user, found.password) in {
        ("u", "p@w/"),
        ("u", None),
        (None, "pw"),
        ("u", "pw"),
        (None, None),
    }


# ---------------------------------------------------------------- what is shown, reload, advice


def test_no_secret_is_shown_and_user_and_host_are(write: Any, tmp_path: Path) -> None:
    (tmp_path / "redis.url").write_text("redis+sentinel://legato:hunter2@a:1,b:2/main\n")
    (tmp_path / "headers").write_text("x-api-key: hunter3\n")
    config = read(
        write("redis: {url_file: redis.url}\notel: {endpoint: http://c:4318, headers_file: headers}")
    )
    shown = redacted(config)
    assert shown["redis"]["url"] == "redis+sentinel://legato:***@a:1,b:2/main"
    told = [repr(config), json.dumps(shown), *cares(config), *(text for _, text in destinations(config))]
    assert "hunter" not in " ".join(told)
    assert destinations(config) == [
        ("redis", "redis+sentinel://legato:***@a:1,b:2/main every 5s, keys legato:..."),
        ("otel", "spans of 1% and 20 bad ones a second to http://c:4318/v1/traces"),
        ("otel", "metrics every 1m to http://c:4318/v1/metrics"),
    ]


def test_a_change_needs_a_restart_and_its_files_are_not_watched(write: Any, tmp_path: Path) -> None:
    (tmp_path / "redis.url").write_text("redis://:old@h")
    (tmp_path / "headers").write_text("a: b\n")
    boot = Boot(file=write("redis: {url_file: redis.url}\notel: {headers_file: headers}"), flags={})
    old = load(boot, {})
    assert watched_files(boot, old) == (boot["file"],)
    assert restart_needed(old, load(boot, {})) == []
    (tmp_path / "redis.url").write_text("redis://:new@h")
    assert restart_needed(old, load(boot, {})) == ["redis"]
    assert restart_needed(old, load(boot, {"OTEL_TRACES_SAMPLER_ARG": "0.5"})) == ["redis", "otel"]


@pytest.mark.parametrize(
    ("text", "care"),
    [
        ("redis: {url: redis://h}", "redis://h:6379: no password"),
        ("redis: {url: redis://127.0.0.1}", None),
        ("redis: {url: 'unix:///run/r.sock'}", None),
        ("redis: {url_file: clear.url}", "in clear text: rediss is TLS"),
        ("redis: {url_file: tls.url}", None),
        ("redis: {url_file: tls.url, tls: {verify: off}}", "redis: certificates are not checked"),
        ("redis: {url_file: cluster.url}", "one host only"),
        ("redis: {prefix: blue}", "redis has settings but no url"),
        ("redis: {url: redis://localhost, every: 1s}", "longer than redis.every"),
        ("otel: {endpoint: http://c:4318}", None),
        ("otel: {endpoint: http://c:4318, traces: {ratio: 10%}}", None),
        ("otel: {endpoint: http://c:4318, traces: {ratio: 11%}}", "otel.traces.ratio is 11%"),
        ("otel: {endpoint: http://c:4317}", "c:4317: http/protobuf has port 4318"),
        ("otel: {endpoint: http://c:4318, protocol: grpc}", "grpc has port 4317"),
        ("otel: {endpoint: http://c:4318, metrics_protocol: grpc}", "c:4318: grpc has port 4317"),
        ("otel: {endpoint: http://c:4318, headers_file: headers}", "goes to c:4318 in clear text"),
        ("otel: {endpoint: http://localhost:4318, headers_file: headers}", None),
        ("otel: {endpoint: https://c, headers_file: headers}", None),
        ("otel: {service_name: gate}", "otel has settings but no endpoint"),
    ],
)
def test_what_deserves_a_look(write: Any, tmp_path: Path, text: str, care: str | None) -> None:
    (tmp_path / "clear.url").write_text("redis://:hunter2@h")
    (tmp_path / "tls.url").write_text("rediss://:hunter2@h")
    (tmp_path / "cluster.url").write_text("rediss+cluster://:hunter2@h")
    (tmp_path / "headers").write_text("x-api-key: hunter3\n")
    told = cares(read(write(text)))
    assert len(told) == (0 if care is None else 1), told
    assert care is None or care in told[0]


def test_the_command_line_says_what_is_configured_and_what_was_passed_over(
    write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda path, arguments: started.append(arguments))
    env = {"OTEL_TRACES_SAMPLER": "xray", "COLUMNS": "200"}
    file = write("redis: {url: redis://127.0.0.1}")

    checked = CliRunner().invoke(cli.app, ["check", file], env=env)
    assert "redis    redis://127.0.0.1:6379 every 5s" in checked.output
    assert "care     OTEL_TRACES_SAMPLER: 'xray' is not known here" in checked.output

    served = CliRunner().invoke(cli.app, ["serve", "--config", file], env=env)
    assert served.exit_code == 0
    assert served.output.startswith("legato: OTEL_TRACES_SAMPLER: 'xray' is not known here")
    assert len(started) == 1


def test_reading_settings_loads_neither_library() -> None:
    """Not even where gRPC is asked for: a check must not cost what an exporter costs."""
    code = (
        "import sys; from proxy.config import load\n"
        "load({'file': None, 'flags': {'upstream': 'http://a:1'}}, {'LEGATO_OTEL__PROTOCOL': 'grpc',\n"
        "  'LEGATO_OTEL__ENDPOINT': 'http://c:4317', 'LEGATO_REDIS__URL': 'redis://h'})\n"
        "heavy = [m for m in sys.modules if m.split('.')[0] in ('redis', 'grpc')]\n"
        "heavy += [m for m in sys.modules if m.startswith(('opentelemetry.sdk', 'opentelemetry.proto.'))]\n"
        "print(heavy)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[]\n"
