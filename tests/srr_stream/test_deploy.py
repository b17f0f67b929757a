"""The container and the Prometheus rules fit the program that they are for."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from prometheus_client import CollectorRegistry

from srr_stream.api import HttpEndpoint
from srr_stream.cli import main
from srr_stream.health import Health
from srr_stream.metrics import ScorerMetrics, TrainerMetrics
from srr_stream.settings import HttpSettings

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="NOT RUN: needs promtool (Debian package prometheus)"
)


def instructions(name: str) -> list[str]:
    """Return the arguments of every instruction `name` of the Dockerfile, continued lines joined."""
    lines = DOCKERFILE.replace("\\\n", " ").splitlines()
    return [line.removeprefix(name).strip() for line in lines if line.startswith(f"{name} ")]


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def run(*command: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=60)


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    beside = Path(sys.executable).with_name("hadolint")
    done = run(beside if beside.exists() else "hadolint", "Dockerfile")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_container_starts_a_command_that_there_is() -> None:
    (entry,), (arguments,) = instructions("ENTRYPOINT"), instructions("CMD")
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert json.loads(entry) == ["srr-stream"]
    assert scripts["srr-stream"] == "srr_stream.cli:main"
    outcome = CliRunner().invoke(main, json.loads(arguments))
    assert "/etc/srr-stream/config.yaml" in outcome.output  # it got as far as looking for the settings
    assert "No such option" not in outcome.output


def test_the_container_runs_as_somebody_without_rights_who_may_write_to_one_folder() -> None:
    (user,) = instructions("USER")
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", user)
    assert instructions("VOLUME") == ["/var/lib/srr-stream"]
    assert instructions("WORKDIR")[-1] == "/var/lib/srr-stream"
    assert f"-o {user.split(':')[0]} -g {user.split(':')[1]} /var/lib/srr-stream" in DOCKERFILE


def test_torch_comes_from_the_cpu_index_unless_asked_otherwise_and_versions_are_pinned() -> None:
    assert "TORCH_INDEX=https://download.pytorch.org/whl/cpu" in instructions("ARG")
    installs = [command for command in instructions("RUN") if "pip install" in command]
    assert len(installs) == 2
    assert all("--constraint constraints.txt" in command for command in installs)
    assert '--index-url "$TORCH_INDEX"' in installs[0]
    assert re.search(r"^torch==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)


def test_everything_that_the_build_copies_exists_and_passes_the_dockerignore() -> None:
    copied = {source for line in instructions("COPY") if "--from" not in line for source in line.split()[:-1]}
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == copied
    assert all((ROOT / source).exists() for source in copied)
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert {package.split(".")[0] for package in packages} <= copied


@pytest.fixture
def now() -> list[float]:
    """A clock that a test turns on by hand: `now[0]`."""
    return [0.0]


@pytest.fixture
def endpoint(now: list[float]) -> Iterator[HttpEndpoint]:
    health = Health(live_timeout_s=60, clock=lambda: now[0])
    served = HttpEndpoint("127.0.0.1", 0, registry=CollectorRegistry(), health=health)
    yield served
    served.close()


def health_check(port: int) -> int:
    """Run the Dockerfile's health check against a port and return its exit code."""
    (check,) = instructions("HEALTHCHECK")
    _, *arguments = json.loads(check[check.index("[") :])
    environment = {"HEALTH_PORT": str(port)}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, timeout=30).returncode


def test_the_health_check_passes_while_the_loop_goes_round_and_fails_when_it_hangs(
    endpoint: HttpEndpoint, now: list[float]
) -> None:
    assert health_check(endpoint.port) == 0
    now[0] = 61.0
    assert health_check(endpoint.port) != 0


def test_the_health_check_fails_when_nobody_listens(free_port: int) -> None:
    assert health_check(free_port) != 0


def test_container_and_prometheus_use_the_ports_that_are_the_defaults() -> None:
    ports = [HttpSettings().scorer_port, HttpSettings().trainer_port]
    assert instructions("EXPOSE") == [" ".join(map(str, ports))]
    assert f"HEALTH_PORT={ports[0]}" in DOCKERFILE
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    targets = [
        target for job in config["scrape_configs"] for each in job["static_configs"] for target in each["targets"]
    ]
    assert targets == [f"localhost:{port}" for port in ports]


@needs_promtool
def test_promtool_accepts_the_rules_and_the_example() -> None:
    for command in (["check", "rules", "rules.yml"], ["check", "config", "prometheus.yml"]):
        done = run("promtool", *command, cwd=PROMETHEUS)
        assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_the_rules_do_what_their_own_tests_say() -> None:
    done = run("promtool", "test", "rules", "rules_test.yml", cwd=PROMETHEUS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_rule_has_a_test_of_its_own() -> None:
    tests = yaml.safe_load((PROMETHEUS / "rules_test.yml").read_text())["tests"]
    firing = {each["alertname"] for test in tests for each in test.get("alert_rule_test", ()) if each["exp_alerts"]}
    queried = {each["expr"] for test in tests for each in test.get("promql_expr_test", ())}
    assert {rule["alert"] for rule in rules() if "alert" in rule} == firing
    assert {rule["record"] for rule in rules() if "record" in rule} == queried


def test_the_rules_ask_only_for_metrics_and_labels_that_are_there() -> None:
    labels: dict[str, set[str]] = {}
    for metrics in (ScorerMetrics, TrainerMetrics):
        registry = CollectorRegistry()
        for metric in vars(metrics(registry)).values():
            for family in metric.describe() if hasattr(metric, "describe") else ():
                name = f"{family.name}_total" if family.type == "counter" else family.name
                labels[name] = set(metric._labelnames)
    used = {
        (name, label)
        for rule in rules()
        for name, selector in re.findall(r"\b(srr_\w+)(?:\{([^}]*)\})?", rule["expr"])
        for label in [None, *re.findall(r"(\w+)=", selector)]
    }
    assert {name for name, _ in used} <= labels.keys()
    assert all(label is None or label in labels[name] for name, label in used)
    assert len({name for name, _ in used}) >= 8
