"""What docs/deploy.md shows can be used as it stands: the unit, the objects of Kubernetes, the proxy."""

from __future__ import annotations

import configparser
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from srr_stream.cli import main
from srr_stream.cli.common import EXIT_SETTINGS
from srr_stream.errors import SettingsError
from srr_stream.loading import check_settings
from srr_stream.settings import ENV_PREFIX, ApiSettings, HttpSettings
from srr_stream.web.access import Access, is_loopback
from srr_stream.web.problems import DeskError

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
(UNIT,) = re.findall(r"```ini\n(.*?)```", PAGE, flags=re.S)
SETTINGS = yaml.safe_load((ROOT / "configs" / "reference.yaml").read_text(encoding="utf-8"))
SETTINGS["labels"]["topic"] = "requests-labels"
TOKEN = "a-token-that-is-long-enough"


def objects(kind: str) -> dict[str, dict[str, Any]]:
    """Return the objects of Kubernetes of a kind by their names."""
    (block,) = (each for each in re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.S) if "apiVersion" in each)
    found = [each for each in yaml.safe_load_all(block) if each["kind"] == kind]
    return {each["metadata"]["name"]: each for each in found}


def containers() -> dict[str, dict[str, Any]]:
    pods = [
        each["spec"]["template"]["spec"] for kind in ("StatefulSet", "Deployment") for each in objects(kind).values()
    ]
    return {container["name"]: container for pod in pods for container in pod["containers"]}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="NOT RUN: needs systemd-analyze")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    program = tmp_path / "srr-stream"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / "srr-stream.service"
    unit.write_text(UNIT.replace("/opt/srr-stream/bin/srr-stream", str(program)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=60
    )
    assert unit.name not in done.stderr
    assert done.returncode == 0, done.stderr


def test_the_unit_does_not_start_again_what_has_wrong_settings() -> None:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(UNIT)
    service = parser["Service"]
    assert int(service["RestartPreventExitStatus"]) == EXIT_SETTINGS
    assert service["WorkingDirectory"] == f"/var/lib/{service['StateDirectory']}"
    assert service["KillMode"] == "mixed"
    assert "KillSignal" not in service  # SIGTERM


def test_a_container_of_kubernetes_starts_a_command_that_there_is() -> None:
    assert set(containers()) == {"scorer", "trainer", "api"}
    for container in containers().values():
        outcome = CliRunner().invoke(main, container["args"])
        assert "/etc/srr-stream/config.yaml" in outcome.output, container["args"]
        assert "No such" not in outcome.output.replace("No such file", "")


def test_ports_probes_and_services_fit_the_defaults() -> None:
    ports = {"scorer": HttpSettings().scorer_port, "trainer": HttpSettings().trainer_port, "api": ApiSettings().port}
    for name, container in containers().items():
        assert [port["containerPort"] for port in container["ports"]] == [ports[name]]
        assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
        assert container.get("readinessProbe", {"httpGet": {"path": "/readyz"}})["httpGet"]["path"] == "/readyz"
    served = {name: each["spec"]["ports"][0]["port"] for name, each in objects("Service").items()}
    assert served == {"srr-scorer": ports["scorer"], "srr-trainer": ports["trainer"]}


def test_the_api_asks_every_scorer_of_the_stateful_set() -> None:
    (scorers,) = objects("StatefulSet").values()
    variables = {each["name"]: each.get("value") for each in containers()["api"]["env"]}
    port = HttpSettings().scorer_port
    name, service = scorers["metadata"]["name"], scorers["spec"]["serviceName"]
    assert json.loads(variables["SRR__API__SCORER_URLS"]) == [
        f"http://{name}-{i}.{service}:{port}" for i in range(scorers["spec"]["replicas"])
    ]


@pytest.mark.parametrize("name", ["scorer", "trainer", "api"])
def test_the_variables_of_a_container_are_good_settings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in containers()[name].get("env", ()):
        assert variable["name"].startswith(ENV_PREFIX)
        monkeypatch.setenv(variable["name"], variable.get("value", f"srr-{name}-0"))
    if "SRR__API__TOKEN_FILE" in [variable["name"] for variable in containers()[name]["env"]]:
        with pytest.raises(SettingsError) as refused:  # nothing else is wrong with them
            check_settings(SETTINGS)
        assert refused.value.problems == ["api.token_file: there is no file '/run/secrets/srr-stream/token'"]
    else:
        check_settings(SETTINGS)


def test_settings_shown_for_the_page_do_not_leave_it_open_to_whoever_reaches_the_proxy() -> None:
    (block,) = (
        each
        for each in re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.S)
        if "token_file" in each and "host:" in each and "apiVersion" not in each
    )
    host = yaml.safe_load(block)["api"]["host"]
    assert not is_loopback(host)
    assert f"proxy_pass http://{host}:{ApiSettings().port};" in PAGE
    through_proxy = {"host": "srr.example.com"}
    with pytest.raises(DeskError, match="reading here needs"):
        Access(TOKEN, is_open=False, hosts={"srr.example.com"}).check("GET", "/", through_proxy)
    Access(TOKEN, is_open=True, hosts={"srr.example.com"}).check("GET", "/", through_proxy)  # what the page warns of


def test_a_proxy_must_hand_on_the_host_for_changes_to_be_taken() -> None:
    access = Access(TOKEN, is_open=False)
    sent = {"origin": "https://srr.example.com", "authorization": f"Bearer {TOKEN}"}
    access.check("POST", "/v1/rollback", {**sent, "host": "srr.example.com"})
    with pytest.raises(DeskError, match="other sites"):
        access.check("POST", "/v1/rollback", {**sent, "host": "10.0.0.5:9110"})
