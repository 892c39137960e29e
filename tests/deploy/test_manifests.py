"""The container image and the Kubernetes manifest agree with the configuration and with each other."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxy.config import Config, load
from proxy.exporters.catalog import BY_NAME
from tests.helpers.tools import need

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "deploy/docker/Dockerfile").read_text(encoding="utf-8")
MANIFEST = ROOT / "deploy/kubernetes/legato.yaml"
README = (ROOT / "deploy/README.md").read_text(encoding="utf-8")
#: After drain_delay + drain: until Legato has cut what is left, reported it and written its logs.
AFTERWARDS_S = 15
S = 1_000_000_000
MIB = 1024 * 1024


def documents() -> dict[str, Any]:
    text = MANIFEST.read_text(encoding="utf-8")
    found = {document["kind"]: document for document in yaml.safe_load_all(text)}
    assert set(found) == {"ConfigMap", "Deployment", "Service"}
    return found


def pod() -> Any:
    return documents()["Deployment"]["spec"]["template"]["spec"]


def container() -> Any:
    (only,) = pod()["containers"]
    return only


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """What the ConfigMap says, through the product's own check."""
    file = tmp_path / "legato.yaml"
    file.write_text(documents()["ConfigMap"]["data"]["legato.yaml"], encoding="utf-8")
    return load({"file": str(file), "flags": {}}, environ={})


def port(address: str) -> int:
    return int(address.rpartition(":")[2])


# ---------------------------------------------------------------- Kubernetes


def test_the_grace_period_covers_the_whole_drain(config: Config) -> None:
    drain_ns = config.timeouts.drain_delay + config.timeouts.drain
    assert config.timeouts.drain_delay == 15 * S
    assert pod()["terminationGracePeriodSeconds"] * S >= drain_ns + AFTERWARDS_S * S
    assert "lifecycle" not in container()  # drain_delay is what a preStop hook would be for


def test_ports_are_those_that_legato_listens_on(config: Config) -> None:
    defaults = load({"file": None, "flags": {"upstream": "http://127.0.0.1:8000"}}, environ={})
    ports = {item["name"]: item["containerPort"] for item in container()["ports"]}
    assert ports == {"proxy": port(config.listen[0]), "admin": port(config.admin.listen)}
    assert ports == {"proxy": port(defaults.listen[0]), "admin": port(defaults.admin.listen)}
    assert [config.listen[0], config.admin.listen] == ["0.0.0.0:8080", "0.0.0.0:9464"]
    annotations = documents()["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(ports["admin"])


def test_probes_ask_the_admin_listener() -> None:
    probes = {
        name: container()[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")
    }
    assert {probe["port"] for probe in probes.values()} == {"admin"}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startupProbe": "/healthz",
        "livenessProbe": "/healthz",
        "readinessProbe": "/readyz",
    }


def test_the_service_finds_the_pods() -> None:
    found = documents()
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert found["Service"]["spec"]["selector"].items() <= labels.items()
    assert found["Deployment"]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    (service_port,) = found["Service"]["spec"]["ports"]
    assert service_port["targetPort"] == "proxy"  # and so not the admin listener


def test_the_pod_reads_the_config_map(config: Config) -> None:
    file = Path(container()["args"][container()["args"].index("--config") + 1])
    mounts = {mount["name"]: mount["mountPath"] for mount in container()["volumeMounts"]}
    assert mounts["config"] == str(file.parent)
    assert file.name in documents()["ConfigMap"]["data"]
    volumes = {volume["name"]: volume for volume in pod()["volumes"]}
    assert volumes["config"]["configMap"]["name"] == documents()["ConfigMap"]["metadata"]["name"]
    assert config.watch  # nobody sends a HUP into a pod


def test_the_memory_limit_holds_what_may_be_buffered(config: Config) -> None:
    limit = container()["resources"]["limits"]["memory"]
    assert limit == "1Gi"
    held = config.workers * (config.body.budget + config.stream.budget)
    assert held + 512 * MIB <= 1024 * MIB  # the rest: three processes and a thousand streams
    assert "cpu" not in container()["resources"]["limits"]


def test_the_pod_is_as_unprivileged_as_can_be() -> None:
    assert pod()["securityContext"]["runAsNonRoot"] is True
    context = container()["securityContext"]
    assert context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert pod()["automountServiceAccountToken"] is False
    assert {"name": "tmp", "mountPath": "/tmp"} in container()["volumeMounts"]  # the link's socket


# ---------------------------------------------------------------- the bypass


def test_the_bypass_patch_sends_the_service_to_the_engine() -> None:
    text = MANIFEST.read_text(encoding="utf-8")
    quoted = re.search(r"--patch \\\n#\s+'(.+)'", text)
    assert quoted is not None
    spec = json.loads(quoted[1])["spec"]
    service = documents()["Service"]["spec"]
    # A patch merges selectors by key and ports by their number: both must replace what stands there.
    assert spec["selector"].keys() == service["selector"].keys()
    assert spec["selector"] != service["selector"]
    assert [p["port"] for p in spec["ports"]] == [p["port"] for p in service["ports"]]
    assert quoted[1] in README


# ---------------------------------------------------------------- the image


def instructions(name: str) -> list[str]:
    joined = DOCKERFILE.replace("\\\n", " ")
    return [line.split(None, 1)[1].strip() for line in joined.splitlines() if line.startswith(f"{name} ")]


def environment() -> dict[str, str]:
    pairs = [word for text in instructions("ENV") for word in shlex.split(text)]
    return dict(word.split("=", 1) for word in pairs)


def copied() -> list[str]:
    """What the build stage takes from the repository."""
    return [
        source
        for text in instructions("COPY")
        if not text.startswith("--from")
        for source in text.split()[:-1]
    ]


def test_everything_that_is_copied_exists_and_reaches_the_builder() -> None:
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert copied()
    for source in copied():
        assert (ROOT / source).exists(), source
        sent = True
        for rule in (rule for rule in rules if rule and not rule.startswith("#")):
            if fnmatch.fnmatch(source, rule.removeprefix("!")):
                sent = rule.startswith("!")
        assert sent, f"{source} is kept from the builder by .dockerignore"


def test_the_build_has_all_that_the_wheel_is_made_of() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
    wanted = {*wheel, project["project"]["readme"], *project["project"]["license-files"], "pyproject.toml"}
    assert wanted <= set(copied())


def test_the_python_of_the_image_is_supported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    versions = {
        text.split()[0].removeprefix("python:").removesuffix("-slim") for text in instructions("FROM")
    }
    (version,) = versions  # both stages have the same one, or the virtual environment could not be moved
    assert f"Programming Language :: Python :: {version}" in project["project"]["classifiers"]


def test_the_image_listens_on_the_ports_that_it_exposes_and_probes() -> None:
    variables = {name: value for name, value in environment().items() if name.startswith("LEGATO_")}
    config = load({"file": None, "flags": {"upstream": "http://127.0.0.1:8000"}}, environ=variables)
    assert config.listen == ("0.0.0.0:8080",)
    assert config.admin.listen == "0.0.0.0:9464"
    (exposed,) = instructions("EXPOSE")
    assert exposed.split() == [str(port(config.listen[0])), str(port(config.admin.listen))]
    (check,) = instructions("HEALTHCHECK")
    assert f"http://127.0.0.1:{port(config.admin.listen)}/healthz" in check


def test_the_image_runs_as_the_user_of_the_manifest_and_drains_on_term() -> None:
    (user,) = instructions("USER")
    context = pod()["securityContext"]
    assert user == f"{context['runAsUser']}:{context['runAsGroup']}"
    assert user != "0:0"
    assert instructions("STOPSIGNAL") == ["SIGTERM"]
    assert instructions("ENTRYPOINT") == ['["legato"]']


def test_the_health_check_is_python_that_compiles() -> None:
    (check,) = instructions("HEALTHCHECK")
    command = json.loads(check[check.index("[") :])
    assert command[:2] == ["python", "-c"]
    compile(command[2], "HEALTHCHECK", "exec")


# ---------------------------------------------------------------- the operator's guide


def unit() -> str:
    found = re.search(r"```ini\n(.*?)```", README, re.DOTALL)
    assert found is not None
    return found[1]


def test_systemd_waits_for_the_default_drain() -> None:
    timeouts = load({"file": None, "flags": {"upstream": "http://127.0.0.1:8000"}}, environ={}).timeouts
    stop = re.search(r"^TimeoutStopSec=(\d+)$", unit(), re.MULTILINE)
    assert stop is not None
    assert int(stop[1]) * S >= timeouts.drain_delay + timeouts.drain + AFTERWARDS_S * S
    assert "KillMode=mixed" in unit()  # TERM goes to the supervisor alone: it drains its processes in order


def test_every_file_that_the_guide_names_exists() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        if not link.startswith("http"):
            assert (ROOT / "deploy" / link).exists(), link


@pytest.mark.parametrize("example", sorted((ROOT / "deploy").glob("*.yaml"), key=str), ids=lambda p: p.name)
def test_example_configurations_pass_the_check(example: Path) -> None:
    load({"file": str(example), "flags": {}}, environ={})


def queries() -> list[str]:
    return re.findall(r"```promql\n(.*?)```", README, re.DOTALL)


def test_prometheus_accepts_every_query_of_the_guide(tmp_path: Path) -> None:
    rules = [{"record": f"query:{i}", "expr": query} for i, query in enumerate(queries())]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "guide", "rules": rules}]}), encoding="utf-8")
    checked = subprocess.run(
        [need("promtool"), "check", "rules", str(file)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
    assert f"{len(rules)} rules found" in checked.stdout


def test_the_queries_name_what_is_exported() -> None:
    assert queries()
    for query in queries():
        for name in re.findall(r"legato_[a-z_]+", query):
            metric = BY_NAME[name.removesuffix("_bucket") if name.endswith("_bucket") else name]
            by = [label for group in re.findall(r"by \(([^)]*)\)", query) for label in group.split(", ")]
            assert set(by) <= {*metric.labels, "le"}, query
        for label, values in re.findall(r'(\w+)=~?"([^"]*)"', query):
            listed = BY_NAME[re.findall(r"legato_[a-z_]+", query)[0]].closed[label]
            assert set(values.split("|")) <= set(listed), query
