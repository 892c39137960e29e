"""Settings of Redis and OpenTelemetry that are wrong: place, mend, and no secret."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from proxy.config import ConfigErrors
from proxy.settings import standard
from tests.helpers.settings import bare, read, writer


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Write a file ``legato.yaml``; gives its path."""
    return writer(tmp_path)


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
    ("otel: {metrics_ca_file: nowhere}", "otel.metrics_ca_file", "cannot be read"),
    ("otel: {traces: {ca_file: nowhere}}", "otel.traces.ca_file", "cannot be read"),
    (
        "otel: {endpoint: 'http://c:4317/base', traces: {protocol: grpc}}",
        "otel.endpoint",
        "gRPC has no path",
    ),
    (
        "otel: {metrics_endpoint: 'http://c:4317/x', metrics_protocol: grpc}",
        "otel.metrics_endpoint",
        "gRPC has no path",
    ),
    ("otel: {endpoint: http://c, ca_file: wrong.url}", "otel.ca_file", "write https:// or leave it out"),
    ("otel: {timeout: 1ms}", "otel.timeout", "from 10ms to 10m"),
    ("otel: {every: 100ms}", "otel.every", "from 1s to 1h"),
    ("otel: {service_name: ''}", "otel.service_name", "at least 1 character"),
    ("otel: {attributes: {service.name: x}}", "otel.attributes.service.name", "is otel.service_name"),
    ("otel: {attributes: [x]}", "otel.attributes", "a mapping is needed"),
    ("otel: {traces: {ratio: 2}}", "otel.traces.ratio", "write 2% if percent is meant"),
    ("otel: {traces: {ratio: some}}", "otel.traces.ratio", "ratio"),
    ("otel: {traces: {bad_per_second: -1}}", "otel.traces.bad_per_second", "greater than or equal to 0"),
    ("otel: {traces: {sample: 1%}}", "otel.traces.sample", "known are export, endpoint, protocol"),
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
