"""Configuration that is wrong: every problem at once, each with its place and the mend; anything at all."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy import link
from proxy.config import Boot, Config, ConfigErrors, load
from proxy.tables import build_table

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


def problems(
    file: str | None = None, env: dict[str, str] | None = None, **flags: Any
) -> list[tuple[str, str, str]]:
    """(place without the folder, key, mend) of everything that is wrong; fails if nothing is."""
    with pytest.raises(ConfigErrors) as caught:
        read(file, env, **flags)
    return [(Path(found.place).name, found.key, found.mend) for found in caught.value.problems]


def test_everything_wrong_is_reported_at_once_in_the_order_of_the_file(write: Any) -> None:
    file = write(
        """\
        listne: 127.0.0.1:1
        backends:
          vllm: {url: vllm:8000}
          b: {url: http://b, max_connections: lots}
        routes:
          - backend: vlm
        slos:
          - name: chat
            tbt: 50
            match: {path: /a}
          - name: chat
            objective: 100%
        timeouts: {connect: 5s, connect: 6s}
        alerts: {rules: [spikes]}
        tls:
          cert_file: a.pem
        """
    )
    env = {"LEGATO_TIMEOUTS__DRAIN": "5", "LEGATO_LISTN": "x"}

    found = problems(file, env, workers="0")

    assert [(place, key) for place, key, _ in found] == [
        ("legato.yaml:1", "listne"),
        ("legato.yaml:3", "backends.vllm.url"),
        ("legato.yaml:4", "backends.b.max_connections"),
        ("legato.yaml:6", "routes[0].backend"),
        ("legato.yaml:9", "slos[0].tbt"),
        ("legato.yaml:11", "slos[1].name"),
        ("legato.yaml:12", "slos[1].objective"),
        ("legato.yaml:13", "timeouts.connect"),
        ("legato.yaml:14", "alerts.rules[0]"),
        ("legato.yaml:16", "tls.cert_file"),
        ("LEGATO_LISTN", ""),
        ("LEGATO_TIMEOUTS__DRAIN", "timeouts.drain"),
        ("--workers", "workers"),
    ]


MISTAKES = [
    ("listne: 1:1", "did you mean listen?"),
    ("listen: 8080", "127.0.0.1:8080"),
    ("listen: http://0.0.0.0:80", "without a scheme, for example 0.0.0.0:80"),
    ("listen: unix:legato.sock", "unix:/run/legato.sock"),
    ("listen: ['127.0.0.1:1', '0.0.0.0:1']", "'0.0.0.0:1' and '127.0.0.1:1' are one address"),
    ("admin: {listen: 127.0.0.1:8080}", "choose another port"),
    ("admin: 127.0.0.1:1", "a mapping of settings is needed (listen, token_file"),
    ("admin: {token: hunter2}", "name that with token_file"),
    ("admin: 'token: hunter2'", "what is written: a mapping of settings is needed"),
    ("admin: {token_file: nowhere}", "cannot be read: No such file or directory"),
    ("workers: two", "a whole number is needed"),
    ("workers: 0", "greater than or equal to 1"),
    ("timeouts: {connect: 5}", "a unit is needed, for example 5ms or 5s"),
    ("timeouts: {connect: }", "nothing: a duration, for example 500ms, is needed"),
    ("timeouts: 5s", "a mapping of settings is needed"),
    ("timeouts: {drain: off}", "is not a duration"),
    ("body: {limit: 64}", "a unit is needed, for example 64MiB"),
    ("measure: maybe", "write on or off"),
    ("access_log: on", "- (standard output) or the path of a file"),
    ("trace_log: '-'", "write a path, or off"),
    ("exclude: health", "write for example /health"),
    ("exclude: [/a, b]", "write for example /b"),
    ("trusted_proxies: [10.0.0.0/33]", "10.0.0.0/8"),
    ("record_headers: {key: Authorization}", "carries a secret"),
    ("record_headers: {a b: x}", "a name has letters"),
    ("record_headers: {a: x y}", "is not a header's name"),
    ("request_id: {header: 'x:y'}", "is not a header's name"),
    ("backends: {a: {url: 'http://h:99999'}}", "the port is a number"),
    ("backends: {a: {url: 'http://u:hunter2@h'}}", "credentials in a URL are not sent"),
    ("backends: {a: {url: 'http://u:p/hunter2@h'}}", "the port is a number"),
    ("backends: {a: {url: 'http://h?x=1'}}", "write http://h"),
    ("backends: {a: {url: 'http://'}}", "host and port are needed"),
    ("backends: {a: {}}", "url: http://host:port, or uds"),
    ("backends: {a: {url: http://localhost:8080}}", "requests would go round for ever"),
    ("backends: {a: {url: http://a, transport: curl}}", "write 'native' or 'httpx'"),
    ("backends: {a: {url: http://a, resolve: 0s}}", "must be longer than 0"),
    ("backends: {a: {url: http://a, tls: {verify: off}}}", "is not https"),
    ("backends: {a: {url: https://a, tls: {cert_file: x}}}", "cert_file without key_file"),
    ("backends: {a: {url: https://a, tls: {verify: off, ca_file: /dev/null}}}", "leave one of them out"),
    ("timeouts: {connect: [5s]}", "a list: a duration, for example 500ms, is needed"),
    ("backends: [http://a]", "a mapping is needed, name: value"),
    ("backends: {}", "no server to forward to"),
    ("backends:", "no server to forward to"),
    ("routes: [{}]", "either backend: NAME or split"),
    ("routes: [{backend: vlm}]", "did you mean 'vllm'?"),
    ("routes: [{split: {vllm: 60, zzz: 40}}]", "'zzz' is no backend: known are vllm"),
    ("routes: [{backend: vllm}, {backend: vllm, match: {path: /a}}]", "is never reached: route 0"),
    ("routes: {backend: vllm}", "a list is needed"),
    ("slos: [chat]", "a mapping of settings is needed"),
    ("slos: [{tbt: 5ms}]", "a name is needed"),
    ("slos: [{name: a, match: {model: x}}, {name: a}]", "the name of another SLO too"),
    ("slos: [{name: a}, {name: b, match: {path: /x}}]", "is never reached: SLO 'a'"),
    ("slos: [{tbt: 5ms}, {name: b}]", "is never reached: slos[0] before it"),
    ("slos: [{name: a, objective: 100%}]", "write 99.9%"),
    ("slos: [{name: a, objective: 99}]", "write 99% if percent is meant"),
    ("slos: [{name: a, tbt: 0s}]", "must be longer than 0"),
    ("slos: [{name: a, ttft: {}}]", "the table is empty"),
    ("slos: [{name: a, ttft: {0: 5}}]", "a unit is needed"),
    ("slos: [{name: a, ttft: {0: 5ms, 00: 6ms}}]", "stand twice"),
    ("slos: [{name: a, ttft: {8k: 5ms}}]", "prompt tokens are a whole number"),
    ("slos: [{name: a, ttft: {0: {}}}]", "a duration is needed"),
    ("slos: [{name: a, ttft: [5s]}]", "a list: write a duration or a table"),
    ("slos: [{name: a, ttft: {0: 5ms, 1234567890123: 6ms}}]", "no prompt has so many tokens"),
    ("slos: [{name: default, match: {path: /a}}]", "take its match away"),
    ("slos: [{name: a, match: {pth: /a}}]", "did you mean path?"),
    ("experiment: {nam: x}", "did you mean name?"),
    ("alerts: {rules: [spikes]}", "write 'burn_rate', 'spike'"),
    ("workers: 1\nworkers: 2", "stands twice"),
    ("workers: !env N", "tags mean nothing here"),
    ("exclude: &x [*x]", "an alias that holds itself"),
    ("? [a]\n: b", "a key is plain text"),
    ("workers: [1", "is no YAML"),
    ("- a", "settings are needed"),
]


@pytest.mark.parametrize(("text", "mend"), MISTAKES, ids=[text for text, _ in MISTAKES])
def test_each_mistake_has_its_mend(write: Any, text: str, mend: str) -> None:
    file = write(("" if "backends:" in text or text.startswith("-") else ONE) + text)
    found = problems(file)
    assert [told for _, _, told in found if mend in told], found
    assert all(place.startswith("legato.yaml") or not place for place, _, _ in found)
    assert "hunter2" not in str(found)


def test_a_name_and_what_it_stands_for_can_both_be_wrong(write: Any) -> None:
    told = [mend for _, _, mend in problems(write(ONE + "record_headers: {a b: x y}"))]
    assert ["a name has letters" in mend or "is not a header's name" in mend for mend in told] == [True, True]


@pytest.mark.parametrize(
    ("name", "value", "mend"),
    [
        ("LEGATO_LISTN", "x", "did you mean LEGATO_LISTEN?"),
        ("LEGATO_TIMEOUTS_CONNECT", "5s", "did you mean LEGATO_TIMEOUTS__CONNECT?"),
        ("LEGATO_TIMEOUTS__CONECT", "5s", "did you mean LEGATO_TIMEOUTS__CONNECT?"),
        ("LEGATO_QQQQQ", "1", "is no setting: unset it"),
        ("LEGATO_SLOS__0__TBT", "5ms", "LEGATO_SLOS='[...]'"),
        ("LEGATO_WORKERS__X", "5", "a whole number is needed"),
        ("LEGATO_BACKENDS", "http://a", "a mapping is needed"),
        ("LEGATO_BACKENDS", "{broken", "'{broken': is no JSON (Expecting property name enclosed in double"),
        ("LEGATO_SLOS", '[{"name": "x"', "is no JSON (Expecting ',' delimiter at character 14)"),
        ("LEGATO_ALERTS__NOTIFY", '[{"slack": "http://h/hunter2"', "what is written: is no JSON"),
        ("LEGATO_ALERTS__NOTIFY", "http://:hunter2@h", "a list is needed"),
        ("LEGATO_ADMIN", '{"token": "hunter2"', "what is written: is no JSON"),
        ("LEGATO_UPSTREAM", "http://u:hunter2@h", "credentials"),
        ("LEGATO_TBT", "5", "a unit is needed"),
    ],
)
def test_mistakes_in_variables_are_named_by_the_variable(name: str, value: str, mend: str) -> None:
    flags = {} if name == "LEGATO_UPSTREAM" or name == "LEGATO_BACKENDS" else {"upstream": "http://a:1"}
    with pytest.raises(ConfigErrors) as caught:
        read(None, {name: value}, **flags)
    told = [found for found in caught.value.problems if mend in found.mend]
    assert [found.place for found in told] == [name]
    assert "hunter2" not in str(caught.value) + repr(caught.value.problems)


def test_a_flag_for_a_rule_that_is_not_there_is_an_error(write: Any) -> None:
    found = problems(write(ONE + "slos: [{name: chat}]"), ttft="5s")
    assert found == [
        (
            "--ttft",
            "",
            "'5s' sets the SLO 'default', but 'chat' matches everything: leave it out, or rename 'chat'",
        )
    ]


def test_an_upstream_flag_stands_for_all_backends_of_the_file(write: Any) -> None:
    assert list(read(write(ONE), upstream="http://a:1").backends) == ["default"]
    ((place, _, mend),) = problems(write(ONE + "routes: [{backend: vllm}]"), upstream="http://a:1")
    assert place == "legato.yaml:2"
    assert mend == "'vllm' is no backend: known are default (--upstream stands for all of them)"


def test_nothing_to_forward_to() -> None:
    ((_, key, mend),) = problems()
    assert key == "backends"
    assert "--upstream http://127.0.0.1:8000" in mend


@pytest.mark.parametrize("others", ["", "a: {url: http://a}, "])
def test_a_backend_with_nothing_under_it_is_the_only_problem(write: Any, others: str) -> None:
    """A split would send its share of the requests to a backend that is not there."""
    split = "routes: [{split: {a: 1, b: 1}}]" if others else ""
    found = problems(write(f"backends: {{{others}b: }}\n{split}"))
    mend = "nothing stands under it: write {url: http://host:port}, or take it out"
    assert found == [("legato.yaml:1", "backends.b", mend)]


def test_settings_with_nothing_under_them_are_as_if_not_given(write: Any) -> None:
    assert read(write(ONE + "timeouts:\ntls:\nexperiment:\nroutes:\nslos:\n")) == read(write(ONE))


def test_a_file_that_is_not_there_is_the_only_problem(tmp_path: Path) -> None:
    found = problems(str(tmp_path / "none.yaml"))
    assert [(place, "No such file" in mend) for place, _, mend in found] == [("none.yaml", True)]


def test_a_bad_value_does_not_make_others_wrong(write: Any) -> None:
    """A backend whose URL is bad is still one that routes may name; a bad match hides no other rule."""
    file = write(
        """
        backends: {vllm: {url: nonsense}}
        routes:
          - {backend: vllm, match: {path: nonsense}}
          - {backend: vllm}
        """
    )
    assert [key for _, key, _ in problems(file)] == ["backends.vllm.url", "routes[0].match.path"]


def test_certificates_and_keys_must_belong_together(write: Any, tmp_path: Path) -> None:
    authority = trustme.CA()
    one, other = authority.issue_cert("localhost"), authority.issue_cert("localhost")
    one.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    other.private_key_pem.write_to_path(tmp_path / "key.pem")
    file = write(ONE + "tls: {cert_file: cert.pem, key_file: key.pem}")
    ((_, key, mend),) = problems(file)
    assert key == "tls.key_file"
    assert "is not the key of the certificate" in mend

    (tmp_path / "key.pem").write_text("nonsense")
    assert problems(file)[0][1:] == (
        "tls.key_file",
        f"no private key in '{tmp_path}/key.pem': give the PEM file that holds it",
    )

    (tmp_path / "key.pem").write_text("-----BEGIN PRIVATE KEY-----\nnonsense\n-----END PRIVATE KEY-----\n")
    assert "is no PEM pair" in problems(file)[0][2]
    assert "None" not in problems(file)[0][2]

    one.private_key_pem.write_to_path(tmp_path / "cert.pem")
    assert problems(file)[0][1:] == (
        "tls.cert_file",
        f"no certificate in '{tmp_path}/cert.pem': give the PEM file that holds it",
    )
    one.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")

    one.private_key_pem.write_to_path(tmp_path / "key.pem")
    assert read(file).tls.key_file == str(tmp_path / "key.pem")


# ---------------------------------------------------------------- anything at all

_WORDS = """base per_token prompt_tokens min max live slack fallback
listen admin backends url routes slos name match path ttft tbt tls timeouts connect 5s off http://a:1
/v1/* split backend a 100 redis cert_file exclude token header workers << learned default e2e 90%
url_file redis://h otel endpoint traces ratio headers_file attributes protocol grpc metrics
sticky field user force failover seed b 10"""
_words = st.sampled_from(_WORDS.split())
_anything = st.recursive(
    _words | st.none() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_words, inner, max_size=4),
    max_leaves=12,
)


@given(data=st.dictionaries(_words, _anything, max_size=5))
@settings(max_examples=120, deadline=None)
def test_any_yaml_is_read_or_refused_with_reasons(
    tmp_path_factory: pytest.TempPathFactory, data: Any
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_text(yaml.safe_dump(data))
    config: Config | None
    refused: list[str] = []
    try:
        config = read(str(file))
    except ConfigErrors as errors:
        refused = [problem.mend for problem in errors.problems]
        config = None
    if config is None:
        assert refused
        assert all(refused)
    else:
        table = build_table(config, 1)
        assert table.backends
        assert link.decode_down(link.frame(table)[4:]) == table


@given(st.binary(max_size=60) | st.text("{}[]:,-&*!|>'\"#%@` \n\tab", max_size=40).map(str.encode))
@settings(max_examples=120, deadline=None)
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "bytes.yaml"
    file.write_bytes(data)
    with pytest.raises(ConfigErrors):
        read(str(file))
