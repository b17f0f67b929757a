"""The container fits the program that it is for."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from prometheus_client import CollectorRegistry

from srr_stream.api import HttpEndpoint
from srr_stream.cli import main
from srr_stream.health import Health
from srr_stream.settings import ApiSettings, HttpSettings

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def instructions(name: str) -> list[str]:
    """Return the arguments of every instruction `name` of the Dockerfile, continued lines joined."""
    lines = DOCKERFILE.replace("\\\n", " ").splitlines()
    return [line.removeprefix(name).strip() for line in lines if line.startswith(f"{name} ")]


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
    assert {package.removesuffix("*") for package in packages["find"]["include"]} <= copied


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
    assert instructions("EXPOSE") == [" ".join(map(str, [*ports, ApiSettings().port]))]
    assert f"HEALTH_PORT={ports[0]}" in DOCKERFILE
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    targets = [
        target for job in config["scrape_configs"] for each in job["static_configs"] for target in each["targets"]
    ]
    assert targets == [f"localhost:{port}" for port in ports]
