"""The stack of deploy/compose agrees with itself, with the files it mounts and with what its commands accept.

What a daemon would do (pull images, start containers) is not tried here; everything that those read is.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.demo import server, steady
from proxy.config import Config, cares, destinations, load
from tests.helpers.procs import eventually, free_port, patience_s
from tests.helpers.tools import need

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy/compose"
PROMETHEUS = FOLDER / "prometheus.yaml"
COLLECTOR = ROOT / "deploy/otel-collector/config.yaml"
KEYS = "/run/keys"
OURS = ("legato-a", "legato-b", "engine-chunked", "engine-prefill-first", "load")
S = 1_000_000_000
MIB = 2**20


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))
    return loaded


def services() -> dict[str, Any]:
    found: dict[str, Any] = compose()["services"]
    return found


def mounts(service: dict[str, Any]) -> dict[str, str]:
    """Path in the container -> path on the host, or the volume's name."""
    parts = [text.split(":") for text in service.get("volumes", [])]
    return {part[1]: part[0] for part in parts}


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """What the service ``keys`` draws, by its own script."""
    subprocess.run(["sh", str(FOLDER / "keys.sh"), str(tmp_path)], check=True, timeout=30)
    return tmp_path


@pytest.fixture
def config(keys: Path, tmp_path: Path) -> Config:
    """What both Legatos read, with the keys where they are here."""
    text = (FOLDER / "legato.yaml").read_text(encoding="utf-8")
    assert text.count(f"{KEYS}/") == 2
    file = tmp_path / "legato.yaml"
    file.write_text(text.replace(KEYS, str(keys)), encoding="utf-8")
    image = {"LEGATO_LISTEN": "0.0.0.0:8080", "LEGATO_ADMIN": "0.0.0.0:9464"}
    return load({"file": str(file), "flags": {}}, environ=image)


# ---------------------------------------------------------------- the file itself


def test_every_service_is_bounded_pinned_and_has_what_it_needs() -> None:
    for name, service in services().items():
        assert re.fullmatch(r"[0-9]+m", service["mem_limit"]), name
        if name in OURS:
            assert service["build"] == {"context": "../..", "dockerfile": "deploy/docker/Dockerfile"}
            assert "image" not in service  # five names for one tag would be built five times at once
        else:
            assert re.fullmatch(r"[a-z/-]+:v?[0-9]+\.[0-9]+\.[0-9]+(-alpine)?", service["image"]), name
        if name != "keys":
            assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
            assert service["restart"] == "unless-stopped"


def test_what_is_mounted_exists_and_what_is_a_volume_is_declared() -> None:
    volumes = set(compose()["volumes"])
    used = set()
    for name, service in services().items():
        for source in mounts(service).values():
            if source.startswith("."):
                assert (FOLDER / source).exists(), f"{name}: {source}"
            else:
                used.add(source)
    assert used == volumes


def test_whatever_waits_waits_for_something_that_can_happen() -> None:
    checked = {name for name, service in services().items() if "test" in service.get("healthcheck", {})}
    checked |= {"legato-a", "legato-b"}  # the image's own
    for name, service in services().items():
        for needed, how in service.get("depends_on", {}).items():
            assert needed in services(), f"{name} waits for {needed}"
            if how["condition"] == "service_healthy":
                assert needed in checked, f"{name} waits for {needed}, which has no check"
            elif how["condition"] == "service_completed_successfully":
                assert "restart" not in services()[needed]
    assert services()["legato-a"]["depends_on"]["collector"]["condition"] == "service_started"


def test_ports_are_published_to_this_machine_only_and_do_not_clash() -> None:
    published = [text for service in services().values() for text in service.get("ports", [])]
    hosts = [text.split(":")[0] for text in published]
    ports = [text.split(":")[1] for text in published]
    assert set(hosts) == {"127.0.0.1"}
    assert len(ports) == len(set(ports))
    guide = (FOLDER / "compose.yaml").read_text(encoding="utf-8") + (ROOT / "deploy/README.md").read_text()
    for port in re.findall(r"127\.0\.0\.1:([0-9]+)", (FOLDER / "compose.yaml").read_text().split("name:")[0]):
        assert port in ports
        assert f"127.0.0.1:{port}" in guide


def test_no_password_stands_in_a_file(keys: Path) -> None:
    drawn = {path.name: path.read_text() for path in keys.iterdir()}
    assert set(drawn) == {"redis.password", "redis.url", "admin.token", "grafana.password"}
    assert len(set(drawn.values())) == 4
    assert re.fullmatch(r"[0-9a-f]{48}", drawn["redis.password"])
    assert drawn["redis.url"] == f"redis://:{drawn['redis.password']}@redis:6379/0\n"
    assert {oct(path.stat().st_mode & 0o777) for path in keys.iterdir()} == {"0o444"}
    for service in services().values():
        for name in service.get("environment", {}):
            assert not re.search(r"(PASSWORD|TOKEN|SECRET|KEY)$", name), name


def test_keys_are_drawn_once(keys: Path) -> None:
    before = {path.name: path.read_text() for path in keys.iterdir()}
    subprocess.run(["sh", str(FOLDER / "keys.sh"), str(keys)], check=True, timeout=30)
    assert {path.name: path.read_text() for path in keys.iterdir()} == before


# ---------------------------------------------------------------- Legato


def test_legato_accepts_its_file(config: Config) -> None:
    assert config.workers == 2
    assert cares(config) == [
        "redis://:***@redis:6379: the password goes over the network in clear text: rediss is TLS",
        *(["2 workers on 1 CPUs: more than there are CPUs gains nothing"] if os.cpu_count() == 1 else []),
    ]
    assert destinations(config) == [
        ("redis", "redis://:***@redis:6379 every 5s, keys legato:..."),
        ("otel", "spans of 10% and 5 bad ones a second to http://collector:4318/v1/traces"),
        ("otel", "metrics every 15s to http://collector:4318/v1/metrics"),
    ]


def test_legato_reaches_services_that_are_there(config: Config) -> None:
    ports = {"redis": {"6379"}, "collector": {"4318"}, "engine-chunked": {"8000"}}
    ports["engine-prefill-first"] = ports["engine-chunked"]
    urls = [backend.url for backend in config.backends.values()]
    urls += [str(config.otel.endpoint), "redis://redis:6379"]
    for url in urls:
        host, _, port = url.split("://")[1].partition(":")
        assert host in services()
        assert port in ports[host]
    for name in ("legato-a", "legato-b"):
        service = services()[name]
        assert service["hostname"] == name  # the instance's name in records, Redis and OpenTelemetry
        assert mounts(service)["/etc/legato/legato.yaml"] == "./legato.yaml"
        assert [text.split(":")[-1] for text in service["ports"]] == ["8080", "9464"]
        grace_s = int(service["stop_grace_period"].removesuffix("s"))
        assert grace_s * S >= config.timeouts.drain_delay + config.timeouts.drain + 15 * S


def test_the_memory_limits_hold_what_may_be_buffered(config: Config) -> None:
    held = config.workers * (config.body.budget + config.stream.budget) + config.redis.memory
    limit = int(services()["legato-a"]["mem_limit"].removesuffix("m")) * MIB
    assert held + 384 * MIB <= limit


def test_the_commands_of_the_containers_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "proxy.cli", services()["legato-a"]["command"][0], "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "--config" in done.stdout
    served: list[Any] = []
    monkeypatch.setattr("uvicorn.Server.run", lambda self: served.append(self.config))
    for name in ("engine-chunked", "engine-prefill-first"):
        assert services()[name]["entrypoint"] == ["python", "-P", "-m", server.__name__]
        server.main(services()[name]["command"])
    assert [(each.host, each.port) for each in served] == [("0.0.0.0", 8000)] * 2
    assert services()["load"]["entrypoint"] == ["python", "-P", "-m", steady.__name__]
    assert steady.build(services()["load"]["command"]).urls == (
        "http://legato-a:8080",
        "http://legato-b:8080",
    )


def test_the_load_asks_for_models_that_are_routed(config: Config) -> None:
    models = set(steady.build(services()["load"]["command"]).models)
    engines = {service["command"][3] for name, service in services().items() if name.startswith("engine")}
    assert models == engines
    assert {route.match.model for route in config.routes} - {None} <= models


# ---------------------------------------------------------------- the others


@pytest.fixture
def redis_port(keys: Path) -> Iterator[int]:
    """Redis as the service ``redis`` starts it, with a port of its own and the keys where they are here."""
    need("redis-server")
    shell, flag, script = services()["redis"]["command"]
    port = free_port()
    script = script.replace("$$", "$").replace(KEYS, str(keys))
    script = script.replace("redis-server", f"redis-server --port {port} --bind 127.0.0.1 --dir {keys}")
    process = subprocess.Popen([shell, flag, script], stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        yield port
    finally:
        process.send_signal(signal.SIGTERM)  # `exec`: Redis itself gets it, and ends
        assert process.wait(patience_s(10)) == 0


def test_redis_starts_with_the_password_and_its_check_notices(redis_port: int, keys: Path) -> None:
    need("redis-cli")
    kind, check = services()["redis"]["healthcheck"]["test"]
    assert kind == "CMD-SHELL"
    check = (
        check.replace("$$", "$").replace(KEYS, str(keys)).replace("redis-cli", f"redis-cli -p {redis_port}")
    )

    def healthy() -> bool:
        return subprocess.run(["sh", "-c", check], check=False, timeout=30).returncode == 0

    eventually(healthy)
    plain = subprocess.run(
        ["redis-cli", "-p", str(redis_port), "ping"], capture_output=True, text=True, timeout=30, check=False
    )
    assert "NOAUTH" in plain.stdout
    listed = subprocess.run(["ps", "axww"], capture_output=True, text=True, timeout=30, check=True).stdout
    assert (keys / "redis.password").read_text() not in listed
    (keys / "redis.password").chmod(0o644)
    (keys / "redis.password").write_text("another")
    assert not healthy()


def test_prometheus_accepts_its_file_and_scrapes_what_is_there(config: Config) -> None:
    checked = subprocess.run(
        [need("promtool"), "check", "config", "--syntax-only", str(PROMETHEUS)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
    file = read(PROMETHEUS)
    jobs = {job["job_name"]: job["static_configs"][0]["targets"] for job in file["scrape_configs"]}
    collector = read(COLLECTOR)
    reader = collector["service"]["telemetry"]["metrics"]["readers"][0]["pull"]["exporter"]["prometheus"]
    assert jobs == {
        "legato": ["legato-a:9464", "legato-b:9464"],
        "otlp": [f"collector:{collector['exporters']['prometheus']['endpoint'].split(':')[1]}"],
        "collector": [f"collector:{reader['port']}"],
        "prometheus": ["127.0.0.1:9090"],
    }
    assert config.admin.listen.endswith(":9464")
    service = services()["prometheus"]
    assert (
        f"--config.file={next(path for path in mounts(service) if path.endswith('prometheus.yaml'))}"
        in (service["command"])
    )
    (rules,) = file["rule_files"]
    assert mounts(service)[str(Path(rules).parent)] == "../prometheus/rules"
    assert len(list((ROOT / "deploy/prometheus/rules").glob(Path(rules).name))) == 2


def test_the_programs_know_their_flags() -> None:
    told = subprocess.run(
        [need("prometheus"), "--help"], capture_output=True, text=True, timeout=30, check=False
    )
    for flag in services()["prometheus"]["command"]:
        assert flag.split("=")[0] in told.stdout + told.stderr, flag


def test_the_collector_uses_what_it_defines() -> None:
    file = read(COLLECTOR)
    pipelines = file["service"]["pipelines"]
    assert set(pipelines) == {"traces", "metrics"}
    for kind in ("receivers", "processors", "exporters"):
        used = {name for pipeline in pipelines.values() for name in pipeline[kind]}
        assert used == set(file[kind]), kind
    assert set(file["service"]["extensions"]) == set(file["extensions"])
    for pipeline in pipelines.values():
        assert pipeline["processors"][0] == "memory_limiter"  # whatever stands before it is not limited
        assert pipeline["processors"][-1] == "batch"
    limit = int(services()["collector"]["mem_limit"].removesuffix("m"))
    assert file["processors"]["memory_limiter"]["limit_mib"] + 64 <= limit
    (check,) = services()["collector"]["ports"]
    assert check.endswith(file["extensions"]["health_check"]["endpoint"].split(":")[1])
    (word,) = services()["collector"]["command"]
    assert mounts(services()["collector"]) == {
        word.removeprefix("--config="): "../otel-collector/config.yaml"
    }


def test_grafana_finds_prometheus_and_its_dashboards() -> None:
    service = services()["grafana"]
    provisioning = FOLDER / mounts(service)["/etc/grafana/provisioning"]
    (source,) = read(provisioning / "datasources/prometheus.yaml")["datasources"]
    host, port = source["url"].removeprefix("http://").split(":")
    assert host in services()
    assert services()[host]["ports"] == [f"127.0.0.1:{port}:{port}"]
    (provider,) = read(provisioning / "dashboards/legato.yaml")["providers"]
    dashboards = FOLDER / mounts(service)[provider["options"]["path"]]
    home = Path(service["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert str(home.parent) == provider["options"]["path"]
    assert json.loads((dashboards / home.name).read_text(encoding="utf-8"))["title"]
    secrets = [value for name, value in service["environment"].items() if name.endswith("__FILE")]
    assert secrets == [f"{KEYS}/grafana.password"]


def test_checks_are_commands_that_the_images_have() -> None:
    for name, service in services().items():
        test = service.get("healthcheck", {}).get("test")
        if test is None:
            continue
        if test[0] == "CMD-SHELL":
            shlex.split(test[1])
        elif test[1] == "python":
            compile(test[3], name, "exec")
        else:
            assert test[:3] == ["CMD", "wget", "-qO-"]  # busybox's, in the images of Prometheus and Grafana
            port = service["ports"][0].rsplit(":", 1)[1]
            assert f":{port}/" in test[3]
