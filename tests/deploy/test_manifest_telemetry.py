"""What the Kubernetes manifest says of Redis and OpenTelemetry, as comments and as mounts, works together."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import yaml

from proxy.config import destinations, load
from tests.deploy.test_manifests import DOCKERFILE, README, ROOT, container, documents, instructions, pod
from tests.helpers.redis_server import USER_RULES

FOLDER = "/run/secrets/legato"


def mounts() -> dict[str, Any]:
    return {mount["name"]: mount for mount in container()["volumeMounts"]}


def test_without_the_secret_the_pod_starts_and_with_it_the_file_is_found() -> None:
    (volume,) = [volume for volume in pod()["volumes"] if volume["name"] == "secrets"]
    assert volume["secret"]["optional"] is True
    assert mounts()["secrets"] == {"name": "secrets", "mountPath": FOLDER, "readOnly": True}
    assert volume["secret"]["defaultMode"] == 0o440  # for the group of the pod's user
    assert pod()["securityContext"]["fsGroup"] == pod()["securityContext"]["runAsGroup"]


def test_what_stands_there_as_comments_is_accepted(tmp_path: Path) -> None:
    text = documents()["ConfigMap"]["data"]["legato.yaml"]
    given = yaml.safe_load(text)
    assert "redis" not in given
    for line in ("redis: {url_file", "otel: {endpoint"):
        assert f"# {line}" in text
        text = text.replace(f"# {line}", line)
    assert f"url_file: {FOLDER}/redis.url" in text
    (tmp_path / "redis.url").write_text("rediss://legato:hunter2@redis:6380\n")
    file = tmp_path / "legato.yaml"
    file.write_text(text.replace(FOLDER, str(tmp_path)))
    assert [kind for kind, _ in destinations(load({"file": str(file), "flags": {}}, environ={}))] == [
        "redis",
        "otel",
        "otel",
    ]


def test_the_resource_names_the_pod() -> None:
    names = {item["name"]: item for item in container()["env"]}
    value = names["OTEL_RESOURCE_ATTRIBUTES"]["value"]
    assert value == "k8s.pod.name=$(POD_NAME),k8s.namespace.name=$(POD_NAMESPACE)"
    # Kubernetes fills in what was named before only.
    assert list(names) == ["POD_NAME", "POD_NAMESPACE", "OTEL_RESOURCE_ATTRIBUTES"]


def test_the_extra_that_the_image_takes_is_one_of_ours() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "grpc" in project["project"]["optional-dependencies"]
    assert "ARG EXTRAS=\n" in DOCKERFILE
    assert "--build-arg EXTRAS=[grpc]" in DOCKERFILE
    assert instructions("RUN")[1].endswith('pip install --no-cache-dir ".$EXTRAS"')


def test_the_rights_that_the_guide_gives_are_those_that_are_tested() -> None:
    assert f"ACL SETUSER legato on >PASSWORD {USER_RULES}\n" in README
