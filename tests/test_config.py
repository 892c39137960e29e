"""Configuration that is right: defaults, precedence, what workers get of it, what is shown of it."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trustme
import yaml

from proxy import link
from proxy.config import Boot, Config, cares, load, redacted, restart_needed, watched_files
from proxy.tables import build_table
from tests.helpers.curves import learned

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


def read(file: str | None = None, env: dict[str, str] | None = None, **flags: Any) -> Config:
    return load(Boot(file=file, flags=flags), env or {})


# ---------------------------------------------------------------- what is right


def test_one_flag_is_enough_and_the_rest_is_the_promised_defaults() -> None:
    config = read(upstream="http://127.0.0.1:8000")

    assert config.listen == ("127.0.0.1:8080",)
    assert config.admin.listen == "127.0.0.1:9464"
    assert config.workers == 1
    assert {name: backend.url for name, backend in config.backends.items()} == {
        "default": "http://127.0.0.1:8000"
    }
    (slo,) = config.slos
    assert (slo.name, slo.ttft, slo.tbt, slo.fluidity, slo.objective) == (
        "default",
        ((0, 500 * MS),),
        50 * MS,
        0.9,
        0.99,
    )
    assert build_table(config, 1).timeouts == link.Timeouts()
    assert (config.body.limit, config.body.budget) == (64 << 20, 1 << 30)


def test_the_larger_case(write: Any) -> None:
    config = read(
        write(
            """
            listen: 0.0.0.0:8080
            admin: {listen: 0.0.0.0:9464}
            workers: 2
            trusted_proxies: [10.0.0.0/8]
            record_headers: {request_id: x-request-id, tenant: X-Tenant-Id}
            exclude: [/health, /metrics, /v1/models]
            backends:
              stable: {url: http://vllm-stable-headless:8000/, resolve: 10s}
              canary: {url: http://vllm-canary-headless:8000}
            routes:
              - match: {path: /v1/*}
                split: {stable: 100}
              - backend: canary
            slos:
              - name: batch
                match: {header: {X-Workload: batch}}
                e2e: 120s
                objective: 95%
              - name: chat
                match: {model: "llama-*"}
                ttft: {8000: 2s, 0: 500ms, 32000: 6s}
                tbt: 40ms
                fluidity: 0.8
            timeouts: {first_byte: off, idle: 30s, drain_delay: 15s}
            """
        )
    )
    table = build_table(config, 7)

    assert table.version == 7
    assert table.backends[0] == link.BackendSpec(
        name="stable", url="http://vllm-stable-headless:8000", resolve_ns=10 * S
    )
    assert table.routes == (
        link.RouteSpec(link.Match(path="/v1/*"), "stable"),
        link.RouteSpec(link.Match(), "canary"),
    )
    assert table.slos == (
        link.SloSpec(
            name="batch",
            match=link.Match(header={"x-workload": "batch"}),
            ttft_points=((0, 500 * MS),),
            tbt_ns=50 * MS,
            target=0.0,  # e2e and nothing about tokens: only the duration is promised
            objective=0.95,
            e2e_ns=120 * S,
            duration_only=True,
        ),
        link.SloSpec(
            name="chat",
            match=link.Match(model="llama-*"),
            ttft_points=((0, 500 * MS), (8000, 2 * S), (32000, 6 * S)),
            tbt_ns=40 * MS,
            target=0.8,
        ),
        link.SloSpec(name="default", match=link.Match(), ttft_points=((0, 500 * MS),), tbt_ns=50 * MS),
    )
    assert table.record_headers == {"request_id": "x-request-id", "tenant": "x-tenant-id"}
    assert (table.timeouts.idle_ns, table.timeouts.first_byte_ns) == (30 * S, 0)
    assert table.timeouts.drain_delay_ns == 15 * S


def test_every_field_of_the_table_can_be_set(write: Any, tmp_path: Path) -> None:
    """What the workers know is what configuration can say: no field keeps its default here."""
    authority = trustme.CA()
    pair = authority.issue_cert("localhost")
    pair.private_key_pem.write_to_path(tmp_path / "key.pem")
    pair.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    learned(tmp_path / "curves.yaml", ("a", "m", 100 * MS))
    config = read(
        write(
            """
            tls: {cert_file: cert.pem, key_file: key.pem}
            backends:
              a:
                {url: https://a, uds: /a, resolve: 1s, max_connections: 5, max_age: 1m, transport: httpx,
                 host: preserve,
                 tls: {ca_file: ca.pem, cert_file: cert.pem, key_file: key.pem, server_name: b}}
              b: {url: https://b, tls: {verify: off}}
              c: {url: https://c}
              d: {url: https://d}
            routes:
              - {match: {path: /a}, backend: a, dialect: generic}
              - {mirror: {backend: d, share: 5%, most: 3, body_limit: 5KiB, timeout: 4s, credentials: drop},
                 split: {b: 1, c: 3}, sticky: {cookie: sid}, force: {header: X-To}, failover: on, seed: s,
                 name: ab}
            slos:
              - {name: x, match: {path: /a, model: m, header: {h: v}, prompt_tokens: {min: 64, max: 4000}},
                 ttft: 1s, tbt: 1s, fluidity: 1, objective: 50%, e2e: 1s}
              - {name: e, match: {path: /e}, e2e: 1s}
              - {name: q, match: {path: /q}, ttft: {base: 1s, per_token: 1ns}}
              - {name: l, match: {path: /l}, ttft: {learned: live, slack: 1s, fallback: 2s}}
              - {name: f, match: {path: /f}, ttft: {learned: curves.yaml, slack: 1s, fallback: 2s}}
            timeouts:
              {connect: 1s, first_byte: 2s, idle: 3s, upstream_keepalive: 5s, client_keepalive: 6s,
               client_head: 7s, drain_delay: 8s, drain: 9s}
            exclude: [/health]
            record_headers: {tenant: x-tenant}
            trusted_proxies: [10.1.2.3]
            forwarded_headers: on
            request_id: {header: X-Request-Id}
            body: {limit: 1MiB, budget: 2MiB}
            stream: {buffer: 3MiB, budget: 4MiB}
            head_limit: 5KiB
            bytes_per_token: 3.5
            measure: off
            arrivals_cap: 100
            otel: {endpoint: http://collector:4318, traces: {ratio: 50%, propagate: off}}
            """
        )
    )
    table = build_table(config, 1)

    def unset(struct: msgspec.Struct) -> set[str]:
        fields = msgspec.structs.fields(struct)
        return {field.name for field in fields if getattr(struct, field.name) in (field.default, None)}

    first, second, *_ = table.backends
    assert unset(table) == set()
    assert unset(table.timeouts) == set()
    assert table.tracing == link.Tracing(0.5, False)
    assert set.intersection(*(unset(slo) for slo in table.slos)) == set(), "each of them is set in one"
    assert unset(table.slos[0].match) == set()
    assert unset(table.routes[0]) & unset(table.routes[1]) == set(), "likewise"
    assert table.routes[1].split is not None
    assert unset(table.routes[1].split) == {"epoch"}, "an experiment names it"
    assert table.routes[1].mirror is not None
    assert unset(table.routes[1].mirror) == set()
    assert unset(first) & unset(second) == set(), "each of them is set in one or the other"
    assert table.tls_cert_file == str(tmp_path / "cert.pem"), "found beside the configuration"
    assert table.request_id_header == "x-request-id"


def test_flags_win_over_variables_and_those_over_the_file(write: Any) -> None:
    file = write(
        ONE
        + """
workers: 2
listen: 127.0.0.1:1
timeouts: {connect: 1s, idle: 1s}
admin: {listen: 127.0.0.1:2, token_file: /dev/null}
"""
    )
    token = Path(file).with_name("token")
    token.write_text("hunter2\n")
    env = {
        "LEGATO_WORKERS": "3",
        "LEGATO_LISTEN": "[::1]:3,unix:/run/legato.sock",
        "LEGATO_TIMEOUTS__CONNECT": "3s",
        "LEGATO_ADMIN": "127.0.0.1:3",
        "LEGATO_ADMIN__TOKEN_FILE": str(token),
    }
    config = read(file, env, workers="4")

    assert config.workers == 4
    assert config.listen == ("[::1]:3", "unix:/run/legato.sock")
    assert (config.timeouts.connect, config.timeouts.idle) == (3 * S, 1 * S)
    assert config.admin.listen == "127.0.0.1:3"
    assert config.admin.token_file == str(token)


def test_variables_reach_named_things_as_the_file_spells_them(write: Any) -> None:
    env = {
        "LEGATO_BACKENDS__MY_VLLM__MAX_CONNECTIONS": "7",
        "LEGATO_BACKENDS__MORE": '{"url": "http://more:1", "max_connections": 8, "tls": {}}',
        "LEGATO_EXCLUDE": "/health, /metrics",
        "LEGATO_SLOS": '[{"name": "x", "tbt": "20ms", "fluidity": 0.5}]',
        "LEGATO_FORWARDED_HEADERS": "yes",
    }
    config = read(write("backends: {My-vLLM: {url: http://a:1}}"), env)

    assert config.backends["My-vLLM"].max_connections == 7
    assert config.backends["more"].max_connections == 8
    assert config.exclude == ("/health", "/metrics")
    assert [(slo.name, slo.tbt, slo.fluidity) for slo in config.slos] == [("x", 20 * MS, 0.5)]
    assert config.forwarded_headers is True


def test_what_kubernetes_says_about_a_service_named_legato_is_no_setting() -> None:
    links = {
        "LEGATO_SERVICE_HOST": "10.0.0.1",
        "LEGATO_SERVICE_PORT": "8080",
        "LEGATO_SERVICE_PORT_HTTP": "8080",
        "LEGATO_PORT": "tcp://10.0.0.1:8080",
        "LEGATO_PORT_8080_TCP": "tcp://10.0.0.1:8080",
        "LEGATO_PORT_8080_TCP_PROTO": "tcp",
        "LEGATO_ADMIN_PORT_9464_TCP_ADDR": "10.0.0.1",
        "LEGATO_ADMIN_SERVICE_HOST": "10.0.0.2",
    }
    assert read(None, links, upstream="http://a:1") == read(None, {}, upstream="http://a:1")


@pytest.mark.parametrize(
    ("slos", "flags", "names", "last"),
    [
        ("", {"ttft": "1s"}, ["default"], (1 * S, 50 * MS)),
        ("slos: [{name: a, match: {model: x}}]", {"tbt": "20ms"}, ["a", "default"], (500 * MS, 20 * MS)),
        ("slos: [{name: a}]", {}, ["a"], (500 * MS, 50 * MS)),
        ("slos: [{name: a, match: {path: /*}}]", {}, ["a"], (500 * MS, 50 * MS)),
        ("slos: [{name: default, ttft: 2s, tbt: 2s}]", {"ttft": "1s"}, ["default"], (1 * S, 2 * S)),
        ("slos: []", {}, ["default"], (500 * MS, 50 * MS)),
    ],
)
def test_there_is_always_a_rule_for_everything(
    write: Any, slos: str, flags: dict[str, str], names: list[str], last: tuple[int, int]
) -> None:
    config = read(write(ONE + slos), None, **flags)
    assert [slo.name for slo in config.slos] == names
    assert (config.slos[-1].ttft, config.slos[-1].tbt) == (((0, last[0]),), last[1])


def test_merge_keys_and_aliases(write: Any) -> None:
    file = write(
        """
        backends:
          a: &base {url: http://a:1, max_connections: 5, max_age: 1m}
          b: {<<: *base, url: http://b:1}
          c: *base
        """
    )
    b = read(file).backends["b"]
    assert (b.url, b.max_connections, b.max_age) == ("http://b:1", 5, 60 * S)
    assert read(file).backends["c"] == read(file).backends["a"]


def test_a_heading_with_nothing_under_it_is_not_given(write: Any) -> None:
    file = write(ONE + "timeouts:\n  # connect: 1s\nslos:\nroutes:\ntls:\nrecord_headers:\nexclude:")
    assert read(file) == read(write(ONE))


def test_off_in_all_its_spellings(write: Any) -> None:
    for word in ("off", "Off", "false", "no", "'off'"):
        config = read(write(ONE + f"measure: {word}\ntimeouts: {{connect: {word}}}\naccess_log: {word}"))
        assert (config.measure, config.timeouts.connect, config.access_log) == (False, 0, None)


# ---------------------------------------------------------------- secrets, reload, advice


def test_tokens_come_from_files_or_variables_and_are_shown_nowhere(write: Any, tmp_path: Path) -> None:
    (tmp_path / "read.token").write_text("hunter2\n")
    file = write(ONE + "admin: {token_file: read.token}")
    config = read(file, {"LEGATO_ADMIN__WRITE_TOKEN": "hunter3"})

    assert config.admin.token is not None
    assert config.admin.token.get_secret_value() == "hunter2"
    assert config.admin.write_token is not None
    assert config.admin.write_token.get_secret_value() == "hunter3"
    assert "hunter" not in repr(config) + json.dumps(redacted(config))
    assert watched_files(Boot(file=file, flags={}), config) == (file, str(tmp_path / "read.token"))


def test_redacted_reads_like_a_configuration(write: Any, tmp_path: Path) -> None:
    config = read(
        write(ONE + "timeouts: {connect: 1500ms, idle: off}\nslos: [{name: a, ttft: {0: 1s, 9: 2s}}]")
    )
    shown = redacted(config)

    assert shown["timeouts"]["connect"] == "1.5s"
    assert shown["timeouts"]["idle"] == "off"
    assert shown["slos"][0]["ttft"] == {0: "1s", 9: "2s"}
    del shown["admin"]["token"], shown["admin"]["write_token"]
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(shown))
    assert read(str(again)) == config


def test_what_a_reload_cannot_change(write: Any) -> None:
    old = read(write(ONE))
    assert restart_needed(old, read(write(ONE + "timeouts: {connect: 1s}"))) == []
    new = read(write(ONE + "listen: 127.0.0.1:1\nworkers: 2\nadmin: {listen: 127.0.0.1:2}"))
    assert restart_needed(old, new) == ["listen", "workers", "admin.listen"]


def test_what_deserves_a_look(write: Any) -> None:
    assert cares(read(write(ONE))) == []
    file = write(
        """
        admin: {listen: 0.0.0.0:9464}
        backends: {a: {url: https://a, tls: {verify: off}}, b: {url: http://b}}
        timeouts: {upstream_keepalive: 60s}
        measure: off
        """
    )
    told = "\n".join(cares(read(file)))
    for word in (
        "without a token",
        "not checked",
        "upstream_keepalive",
        "backend b is used by no route",
        "measure",
    ):
        assert word in told


SPLIT = "backends: {a: {url: http://a}, b: {url: http://b}}\nroutes: [{split: {a: 1, b: 1}}]\n"
COMPARED = SPLIT + "experiment: {name: e, control: a, candidate: b, margin: %s, metric: %s}"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            COMPARED % ("0.5", "good"),
            "experiment.margin: 50 points worse counts as equivalent: write 0.5% if",
        ),
        (COMPARED % ("0.5", "ttft"), "experiment.margin: 50% more of a time counts as equivalent"),
        (COMPARED % ("0.5%", "good"), None),
        (COMPARED % ("10%", "ttft"), None),
        (ONE + "access_log: nowhere/d/a.log", "access_log: there is no folder nowhere/d: lines wait"),
        (ONE + "trace_log: nowhere/t.jsonl", "trace_log: there is no folder nowhere: lines wait"),
        (ONE + "access_log: a.log\ntrace_log: off", None),
    ],
)
def test_what_most_likely_is_not_meant_is_a_care(write: Any, text: str, told: str | None) -> None:
    found = cares(read(write(text)))
    assert [each.startswith(told) for each in found] == [True] if told else found == []
