"""Settings of Redis and OpenTelemetry: right, wrong, as shown, and from the standard variables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import trustme
from typer.testing import CliRunner

from proxy import cli, link
from proxy.config import (
    Boot,
    Config,
    ConfigErrors,
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
from proxy.settings import standard
from proxy.settings.telemetry import OtelTraces, RedisTls
from proxy.tables import build_table

MS = 1_000_000
S = 1_000_000_000
ONE = "backends: {vllm: {url: http://vllm:8000}}\n"


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Write a file ``legato.yaml``; gives its path."""

    def put(text: str) -> str:
        path = tmp_path / "legato.yaml"
        path.write_text(ONE + textwrap.dedent(text))
        return str(path)

    return put


def read(file: str | None = None, env: dict[str, str] | None = None, **flags: Any) -> Config:
    return load(Boot(file=file, flags=flags), env or {})


def bare(env: dict[str, str]) -> Config:
    return read(None, env, upstream="http://vllm:8000")


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
               metrics: off, every: 15s, service_name: gate, attributes: {team: serving},
               traces: {ratio: 5%, bad_per_second: 1.5, propagate: off}}
            """
        )
    )
    second = read(
        write(
            """
            redis: {url: rediss://redis, tls: {verify: off}}
            otel:
              {protocol: grpc, metrics_endpoint: http://m:4317,
               traces: {export: off, endpoint: http://t:4317}}
            """
        )
    )

    assert url(first) == "rediss://legato:hunter2@redis:6380/1"
    assert first.otel.traces_url == "https://collector/base/v1/traces"
    assert first.otel.headers_file == str(tmp_path / "headers"), "found beside the configuration"
    assert read_headers(first.otel.headers_file) == {"x-api-key": "hunter3", "x-tenant": "acme"}
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


# ---------------------------------------------------------------- what is wrong

MISTAKES = [
    # (settings, key, mend)
    ("redis: redis://:hunter2@h", "redis", "a mapping of settings is needed (url, url_file"),
    ("redis: 'redis://:hun ter2@h'", "redis", "a mapping of settings is needed"),
    ("redis: hunter2", "redis", "a mapping of settings is needed"),
    ("redis: on", "redis", "a mapping of settings is needed"),
    ("redis: {uri: x}", "redis.uri", "did you mean url?"),
    ("redis: {url: redis://u:hunter2@h}", "redis.url", "url_file, or set the variable LEGATO_REDIS__URL"),
    ("redis: {url: redis://h, url_file: x}", "redis.url_file", "keep one of them"),
    ("redis: {url: http://u:hunter2@h}", "redis.url", "begins with one of redis://, rediss://, unix://"),
    ("redis: {url: 'hunter2'}", "redis.url", "begins with one of redis://"),
    ("redis: {url: ''}", "redis.url", "for example redis://redis:6379"),
    ("redis: {url: [redis://h]}", "redis.url", "a text is needed"),
    ("redis: {url: 'redis://h:99999'}", "redis.url", "a port is a number from 1 to 65535"),
    ("redis: {url: 'redis://h:0'}", "redis.url", "a port is a number from 1 to 65535"),
    ("redis: {url: 'redis://:hunter2/x@h'}", "redis.url", "are written %2F %3F"),
    ("redis: {url: 'redis://u:6379/hunter2@h'}", "redis.url", "no '@' stands behind the hosts"),
    ("redis: {url: 'redis://:hun ter2@h'}", "redis.url", "a URL has no spaces"),
    ("redis: {url: 'redis://:hunter2#@h'}", "redis.url", "no '?' or '#'"),
    ("redis: {url: 'redis://h?password=hunter2'}", "redis.url", "no '?' or '#'"),
    ("redis: {url: 'redis://h:hunter2'}", "redis.url", "hosts are written host:port"),
    ("redis: {url: 'redis://@h'}", "redis.url", "user:password@"),
    ("redis: {url: 'redis://'}", "redis.url", "hosts are written host:port"),
    ("redis: {url: 'redis://h/mydb'}", "redis.url", "the database's number at most"),
    ("redis: {url: 'redis://a,b'}", "redis.url", "redis+sentinel://host,host/SERVICE"),
    ("redis: {url: 'redis+sentinel://a'}", "redis.url", "redis+sentinel://host,host/mymaster"),
    ("redis: {url: 'redis+sentinel://a/m/x'}", "redis.url", "the database's number at most"),
    ("redis: {url: 'redis+cluster://a/2'}", "redis.url", "database 0 only"),
    ("redis: {url: 'unix://run/r.sock'}", "redis.url", "unix:///run/redis/redis.sock"),
    ("redis: {url: 'unix:///r.sock?x=1'}", "redis.url", "?db=NUMBER"),
    ("redis: {url_file: nowhere}", "redis.url_file", "cannot be read: No such file"),
    ("redis: {url_file: empty}", "redis.url_file", "is empty"),
    ("redis: {url_file: blank}", "redis.url_file", "its first line is empty"),
    ("redis: {url_file: wrong.url}", "redis.url_file", "hosts are written host:port"),
    ("redis: {prefix: 'a b'}", "redis.prefix", "a name has letters"),
    ("redis: {every: 500ms}", "redis.every", "500ms: write something from 1s to 1m"),
    ("redis: {every: 61s}", "redis.every", "from 1s to 1m"),
    ("redis: {every: 5}", "redis.every", "a unit is needed"),
    ("redis: {timeout: 1ms}", "redis.timeout", "from 10ms to 1m"),
    ("redis: {memory: 512KiB}", "redis.memory", "512KiB: write something from 1MiB"),
    ("redis: {url: redis://h, tls: {verify: off}}", "redis.tls", "write rediss, or leave tls out"),
    ("redis: {url: rediss://h, tls: {ca_file: nowhere}}", "redis.tls.ca_file", "cannot be read"),
    ("redis: {url: rediss://h, tls: {ca_file: wrong.url}}", "redis.tls.ca_file", "no PEM certificates"),
    (
        "redis: {url: rediss://h, tls: {ca_file: /dev/null, verify: off}}",
        "redis.tls.ca_file",
        "leave one of them out",
    ),
    ("redis: {url: rediss://h, tls: {cert_file: x}}", "redis.tls.cert_file", "cert_file without key_file"),
    ("otel: http://c", "otel", "a mapping of settings is needed (endpoint"),
    ("otel: {headers: {x-api-key: hunter2}}", "otel.headers", "did you mean headers_file?"),
    ("otel: {endpoint: c:4318}", "otel.endpoint", "write for example http://c:4318"),
    ("otel: {endpoint: 'http://'}", "otel.endpoint", "for example http://127.0.0.1:4318"),
    ("otel: {endpoint: http://c/v1/traces}", "otel.endpoint", "leave it out, write http://c"),
    ("otel: {endpoint: http://u:hunter2@c}", "otel.endpoint", "give it as a header, in headers_file"),
    ("otel: {endpoint: 'http://c?key=1'}", "otel.endpoint", "write http://c"),
    ("otel: {metrics_endpoint: m}", "otel.metrics_endpoint", "http://m"),
    ("otel: {traces: {endpoint: t}}", "otel.traces.endpoint", "http://t"),
    ("otel: {protocol: http/json}", "otel.protocol", "write 'http/protobuf' or 'grpc'"),
    ("otel: {protocol: grpc, endpoint: http://c/x}", "otel.endpoint", "gRPC has no path"),
    ("otel: {headers_file: nowhere}", "otel.headers_file", "cannot be read"),
    ("otel: {headers_file: empty}", "otel.headers_file", "is empty"),
    ("otel: {headers_file: wrong.headers}", "otel.headers_file", "line 2 is no header: write name: value"),
    ("otel: {headers_file: odd.headers}", "otel.headers_file", "line 1: a header's value is plain ASCII"),
    ("otel: {ca_file: nowhere}", "otel.ca_file", "cannot be read"),
    ("otel: {endpoint: http://c, ca_file: wrong.url}", "otel.ca_file", "write https:// or leave it out"),
    ("otel: {timeout: 1ms}", "otel.timeout", "from 10ms to 10m"),
    ("otel: {every: 100ms}", "otel.every", "from 1s to 1h"),
    ("otel: {service_name: ''}", "otel.service_name", "at least 1 character"),
    ("otel: {attributes: {service.name: x}}", "otel.attributes.service.name", "is otel.service_name"),
    ("otel: {attributes: [x]}", "otel.attributes", "a mapping is needed"),
    ("otel: {traces: {ratio: 2}}", "otel.traces.ratio", "write 2% if percent is meant"),
    ("otel: {traces: {ratio: some}}", "otel.traces.ratio", "ratio"),
    ("otel: {traces: {bad_per_second: -1}}", "otel.traces.bad_per_second", "greater than or equal to 0"),
    ("otel: {traces: {sample: 1%}}", "otel.traces.sample", "known are export, endpoint, ratio"),
    ("otel: {traces: on}", "otel.traces", "a mapping of settings is needed"),
]


@pytest.mark.parametrize(("text", "key", "mend"), MISTAKES, ids=[text for text, _, _ in MISTAKES])
def test_each_mistake_has_its_place_and_its_mend(
    write: Any, tmp_path: Path, text: str, key: str, mend: str
) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "blank").write_text("\nredis://:hunter2@h\n")
    (tmp_path / "wrong.url").write_text("redis://:hunter2@h:hunter2\n")
    (tmp_path / "wrong.headers").write_text("x-tenant: acme\nhunter2\n")
    (tmp_path / "odd.headers").write_text("x-api-key: hunter2\x07\n")
    with pytest.raises(ConfigErrors) as caught:
        read(write(text))
    told = [(Path(found.place).name, found.key) for found in caught.value.problems if mend in found.mend]
    assert told == [("legato.yaml:2", key)], caught.value
    assert "hunter" not in str(caught.value) + repr(caught.value.problems)
    assert "hun ter" not in str(caught.value) + repr(caught.value.problems)


@pytest.mark.parametrize(
    ("env", "place", "mend"),
    [
        ({"LEGATO_REDIS_URL": "redis://:hunter2@h"}, "LEGATO_REDIS_URL", "did you mean LEGATO_REDIS__URL?"),
        ({"LEGATO_OTEL_TRACES_RATIO": "1%"}, "LEGATO_OTEL_TRACES_RATIO", "LEGATO_OTEL__TRACES__RATIO?"),
        ({"LEGATO_REDIS": "redis://:hunter2@h"}, "LEGATO_REDIS", "a mapping of settings is needed"),
        ({"LEGATO_REDIS__URL": "redis://:hunter2@h:x"}, "LEGATO_REDIS__URL", "hosts are written host:port"),
        ({"LEGATO_REDIS__URL": "hunter2"}, "LEGATO_REDIS__URL", "begins with one of"),
        ({"LEGATO_REDIS__URL__X": "hunter2"}, "LEGATO_REDIS__URL__X", "a text is needed"),
        ({"LEGATO_REDIS__EVRY": "5s"}, "LEGATO_REDIS__EVRY", "did you mean LEGATO_REDIS__EVERY?"),
        ({"LEGATO_OTEL__ENDPOINT": "c"}, "LEGATO_OTEL__ENDPOINT", "http://c"),
        ({"LEGATO_OTEL__TRACES__RATIO": "5"}, "LEGATO_OTEL__TRACES__RATIO", "5%"),
        (
            {"LEGATO_REDIS__URL": "redis://h", "LEGATO_REDIS__URL_FILE": "x"},
            "LEGATO_REDIS__URL_FILE",
            "keep one of them",
        ),
    ],
)
def test_mistakes_in_variables(env: dict[str, str], place: str, mend: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        bare(env)
    assert [found.place for found in caught.value.problems if mend in found.mend] == [place]
    assert "hunter" not in str(caught.value) + repr(caught.value.problems)


def test_grpc_without_its_package_says_what_to_install(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write("otel: {endpoint: http://c:4317, protocol: grpc}")
    assert read(file).otel.protocol == "grpc"
    monkeypatch.setattr(standard, "GRPC_PACKAGE", "opentelemetry.exporter.otlp.proto.not_installed")
    with pytest.raises(ConfigErrors, match=r"otel\.protocol: .*pip install 'legato\[grpc\]'"):
        read(file)
    monkeypatch.setattr(standard, "GRPC_PACKAGE", "not_installed.at.all")
    config = bare({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c"})
    assert config.otel.protocol is None
    assert ["legato[grpc]" in note for note in config.notes] == [True]


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


# ---------------------------------------------------------------- the standard variables

BASE = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}
FILLED: list[tuple[dict[str, str], str, Any]] = [
    ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://d:4318/"}, "endpoint", "http://d:4318"),
    (
        {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://t:4318/v1/traces"},
        "traces_url",
        "http://t:4318/v1/traces",
    ),
    (
        {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://m:4318/v1/metrics"},
        "metrics_url",
        "http://m:4318/v1/metrics",
    ),
    ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "protocol", "grpc"),
    ({"OTEL_EXPORTER_OTLP_TIMEOUT": "2500"}, "timeout", 2_500 * MS),
    ({"OTEL_EXPORTER_OTLP_CERTIFICATE": __file__}, "ca_file", __file__),
    ({"OTEL_SERVICE_NAME": "gate"}, "service_name", "gate"),
    ({"OTEL_RESOURCE_ATTRIBUTES": "a=b,service.name=in%20list"}, "service_name", "in list"),
    ({"OTEL_RESOURCE_ATTRIBUTES": "a=b", "OTEL_SERVICE_NAME": ""}, "service_name", "legato"),
    ({"OTEL_SERVICE_NAME": "gate", "OTEL_RESOURCE_ATTRIBUTES": "service.name=x"}, "service_name", "gate"),
    ({"OTEL_TRACES_SAMPLER_ARG": "0.25"}, "traces.ratio", 0.25),
    ({"OTEL_TRACES_SAMPLER": "parentbased_traceidratio"}, "traces.ratio", 1.0),
    (
        {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "1e-3"},
        "traces.ratio",
        0.001,
    ),
    ({"OTEL_TRACES_SAMPLER": "parentbased_always_on"}, "traces.ratio", 1.0),
    ({"OTEL_TRACES_SAMPLER": "parentbased_always_off"}, "traces.ratio", 0.0),
    ({"OTEL_TRACES_EXPORTER": "otlp"}, "traces.export", True),
    ({"OTEL_TRACES_EXPORTER": "none"}, "traces.export", False),
    ({"OTEL_METRICS_EXPORTER": "none"}, "metrics", False),
    ({"OTEL_METRIC_EXPORT_INTERVAL": "30000"}, "every", 30 * S),
    ({"OTEL_PROPAGATORS": "none"}, "traces.propagate", False),
    ({"OTEL_PROPAGATORS": "tracecontext, baggage"}, "traces.propagate", True),
    ({"OTEL_SDK_DISABLED": "false"}, "traces_url", "http://c:4318/v1/traces"),
    ({"OTEL_SDK_DISABLED": "True"}, "traces_url", None),
    ({"OTEL_SDK_DISABLED": "true"}, "metrics_url", None),
]


def at(otel: Otel, dotted: str) -> Any:
    value: Any = otel
    for step in dotted.split("."):
        value = getattr(value, step)
    return value


@pytest.mark.parametrize(
    ("env", "dotted", "value"), FILLED, ids=[f"{env}-{dotted}" for env, dotted, _ in FILLED]
)
def test_standard_variables_fill_in_what_the_file_leaves_out(
    env: dict[str, str], dotted: str, value: Any
) -> None:
    config = bare(BASE | env)
    assert at(config.otel, dotted) == value
    disabled = env.get("OTEL_SDK_DISABLED", "").lower() == "true"
    unusable = "OTEL_EXPORTER_OTLP_CERTIFICATE" in env  # a CA that is none, and for http: noted, no failure
    assert len(config.notes) == (1 if disabled else 2 if unusable else 0), config.notes


def test_every_standard_variable_is_tried_here() -> None:
    tried = {name for env, _, _ in FILLED for name in env}
    assert tried == {known.name for known in standard.STANDARD}


def test_the_file_variables_of_ours_and_off_go_before_the_standard_ones(write: Any) -> None:
    env = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://env:4318",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "1000",
        "OTEL_SERVICE_NAME": "env",
        "OTEL_TRACES_SAMPLER": "always_on",
        "OTEL_TRACES_EXPORTER": "none",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_METRIC_EXPORT_INTERVAL": "1000",
        "OTEL_PROPAGATORS": "none",
    }
    ours = {"LEGATO_OTEL__TIMEOUT": "7s"}
    config = read(
        write(
            """
            otel: {endpoint: http://file:4318, protocol: http/protobuf, service_name: file, metrics: on,
                   every: 9s, traces: {ratio: 3%, export: on, propagate: on}}
            """
        ),
        env | ours,
    )
    otel = config.otel
    assert (otel.endpoint, otel.protocol, otel.timeout) == ("http://file:4318", "http/protobuf", 7 * S)
    assert (otel.service_name, otel.every, otel.traces.ratio) == ("file", 9 * S, 0.03)
    assert (otel.traces.export, otel.traces.propagate, otel.metrics) == (True, True, True)
    assert config.notes == ()


@pytest.mark.parametrize(
    ("name", "value", "note"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "c:4318", "a URL begins with http://"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c/v1/traces", "leave it out"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://u:hunter2@c", "in headers_file"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "c", "a URL begins with http://"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", "only http/protobuf and grpc"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s", "milliseconds from 10 on"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "-1", "milliseconds from 10 on"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "9" * 30, "milliseconds from 10 on"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere.pem", "cannot be read"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "5", "milliseconds from 1000 on"),
        ("OTEL_TRACES_SAMPLER", "xray", "is not known here"),
        ("OTEL_TRACES_SAMPLER", "traceidratio", "sampling flag is honoured all the same"),
        ("OTEL_TRACES_SAMPLER_ARG", "5%", "a number from 0 to 1 is needed"),
        ("OTEL_TRACES_SAMPLER_ARG", "nan", "a number from 0 to 1 is needed"),
        ("OTEL_TRACES_EXPORTER", "otlp,console", "'console' is not known here"),
        ("OTEL_METRICS_EXPORTER", "prometheus", "'prometheus' is not known here"),
        ("OTEL_PROPAGATORS", "b3", "only tracecontext is spoken"),
        ("OTEL_SDK_DISABLED", "yes", "write true or false"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "5", "is not read"),
        ("OTEL_CONFIG_FILE", "otel.yaml", "is not read"),
    ],
)
def test_a_bad_standard_variable_is_passed_over_and_said(name: str, value: str, note: str) -> None:
    config = bare({name: value})
    told = [sentence for sentence in cares(config) if note in sentence]
    assert len(told) == 1, cares(config)
    assert told[0].startswith(name)
    assert list(config.notes) == told
    assert "hunter" not in told[0]
    kept = {"OTEL_TRACES_SAMPLER": Otel(traces=OtelTraces(ratio=1.0))} if value == "traceidratio" else {}
    assert config.otel == kept.get(name, Otel())


def test_a_standard_variable_cannot_hide_a_mistake_of_the_file(write: Any) -> None:
    with pytest.raises(ConfigErrors, match=r"otel\.traces: .*a mapping of settings"):
        read(write("otel: {traces: on}"), {"OTEL_TRACES_SAMPLER_ARG": "0.5", "OTEL_SDK_DISABLED": "true"})
    with pytest.raises(ConfigErrors, match=r"otel: .*a mapping of settings"):
        read(write("otel: [x]"), {"OTEL_TRACES_SAMPLER_ARG": "0.5", "OTEL_SDK_DISABLED": "true"})


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
