"""Dashboards and compose file: as the code makes them, complete, and fitting each other."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.grafana import dashboards
from srr_stream.loading import load_settings
from srr_stream.settings import ApiSettings, HttpSettings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")


def committed(name: str) -> dict[str, Any]:
    return dict(json.loads((dashboards.FOLDER / f"{name}.json").read_text(encoding="utf-8")))


def panels(name: str) -> list[dict[str, Any]]:
    return [panel for panel in committed(name)["panels"] if panel["type"] != "row"]


# --- dashboards


@pytest.mark.parametrize("name", dashboards.DASHBOARDS)
def test_the_committed_dashboard_is_what_the_code_makes(name: str) -> None:
    text = (dashboards.FOLDER / f"{name}.json").read_text(encoding="utf-8")
    assert text == dashboards.text_of(name), "run python -m deploy.grafana.dashboards"


def test_no_dashboard_is_left_over() -> None:
    assert {path.stem for path in dashboards.FOLDER.iterdir()} == set(dashboards.DASHBOARDS)


def test_check_names_what_differs_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dashboards, "FOLDER", tmp_path)
    assert dashboards.main(["--check"]) == 1
    assert capsys.readouterr().out.count("differs from the code") == 2
    assert not list(tmp_path.iterdir())
    assert dashboards.main([]) == 0
    assert dashboards.main(["--check"]) == 0


@pytest.mark.parametrize("name", dashboards.DASHBOARDS)
def test_every_panel_has_a_title_a_description_a_unit_and_asks_the_chosen_datasource(name: str) -> None:
    made = committed(name)
    variables = {each["name"] for each in made["templating"]["list"]}
    assert {"datasource", "topic", "instance", "page", "docs"} == variables
    for panel in panels(name):
        assert panel["title"]
        assert panel["description"].endswith(".") or panel["description"][-1].isalpha()
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${datasource}"
        letters = [target["refId"] for target in panel["targets"]]
        assert len(set(letters)) == len(letters) > 0
        used = set(re.findall(r"\$\{?([a-z]\w*)", json.dumps(panel))) - {"__value"}
        assert {name for name in used if not name.startswith("__")} <= variables
    titles = Counter(panel["title"] for panel in panels(name))
    assert max(titles.values()) == 1


@pytest.mark.parametrize("name", dashboards.DASHBOARDS)
def test_panels_do_not_overlap_and_fill_their_lines(name: str) -> None:
    cells = Counter(
        (x, y)
        for panel in committed(name)["panels"]
        for at in [panel["gridPos"]]
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    )
    assert set(cells.values()) == {1}
    assert Counter(y for _, y in cells) == dict.fromkeys({y for _, y in cells}, 24)


@pytest.mark.parametrize("name", dashboards.DASHBOARDS)
def test_links_to_the_runbook_lead_to_a_section(name: str) -> None:
    anchors = {heading.lower() for heading in re.findall(r"^## (\w+)$", RUNBOOK, flags=re.M)}
    linked = re.findall(r"runbook\.md#(\w+)", json.dumps(committed(name)))
    assert set(linked) <= anchors
    assert len(linked) >= 5


def test_a_spike_leads_to_the_flagged_records_of_its_time() -> None:
    (share,) = [panel for panel in panels("detection") if panel["title"] == "Flagged share"]
    (link,) = share["fieldConfig"]["defaults"]["links"]
    assert link["url"].startswith("${page:raw}/?topic=${__field.labels.topic}&since=${__from:date:iso}&until=")


def test_swaps_are_annotations_at_the_time_that_is_their_value() -> None:
    for name in dashboards.DASHBOARDS:
        (swaps,) = [each for each in committed(name)["annotations"]["list"] if each["name"] == "Model swaps"]
        assert swaps["useValueForTime"] is True
        assert "srr_model_loaded_timestamp_seconds" in swaps["expr"]


def test_the_dashboards_lead_to_each_other() -> None:
    uids = {committed(name)["uid"] for name in dashboards.DASHBOARDS}
    for name in dashboards.DASHBOARDS:
        (other,) = [
            link["url"].removeprefix("/d/") for link in committed(name)["links"] if link["url"].startswith("/d/")
        ]
        assert other in uids - {committed(name)["uid"]}


# --- compose


def mounts(name: str) -> list[tuple[str, str]]:
    return [(source, target) for source, target, *_ in (each.split(":") for each in SERVICES[name]["volumes"])]


def test_everything_of_the_chain_is_there_with_a_version_that_is_pinned() -> None:
    assert set(SERVICES) == {"kafka", "topics", "srr-stream", "prometheus", "alertmanager", "grafana"}
    for name, service in SERVICES.items():
        if "build" not in service:
            assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", service["image"]), name
    assert (DEPLOY / SERVICES["srr-stream"]["build"]["context"] / "Dockerfile").exists()


def test_what_is_mounted_exists_and_named_volumes_are_declared() -> None:
    volumes = set()
    for name in SERVICES.keys() - {"topics"}:
        for source, target in mounts(name):
            assert target.startswith("/")
            if source.startswith("."):
                assert (DEPLOY / source).exists(), source
            else:
                volumes.add(source)
    assert volumes == set(COMPOSE["volumes"])


def test_every_port_is_bound_to_this_machine_and_taken_once() -> None:
    ports = [port.split(":") for service in SERVICES.values() for port in service.get("ports", ())]
    assert {host for host, *_ in ports} == {"127.0.0.1"}
    assert max(Counter(outside for _, outside, _ in ports).values()) == 1
    ours = [int(inside) for _, _, inside in (port.split(":") for port in SERVICES["srr-stream"]["ports"])]
    assert ours == [HttpSettings().scorer_port, HttpSettings().trainer_port, ApiSettings().port]


def test_what_goes_on_has_a_health_check_and_waits_for_what_it_needs() -> None:
    for name, service in SERVICES.items():
        needed = service.get("depends_on", {})
        assert needed.keys() <= SERVICES.keys()
        if name not in ("topics", "srr-stream"):  # the one ends, the other has the check of its image
            assert service["healthcheck"]["test"]
            assert service["restart"] == "unless-stopped"
    assert SERVICES["topics"]["depends_on"]["kafka"] == {"condition": "service_healthy"}
    assert SERVICES["srr-stream"]["depends_on"]["topics"] == {"condition": "service_completed_successfully"}


def test_the_settings_are_good_and_name_what_compose_makes() -> None:
    settings = load_settings(DEPLOY / "srr-stream.yaml")
    (made,) = SERVICES["topics"]["command"]
    topics = dict(re.findall(r"--topic (\S+) --partitions (\d+)", made))
    output = settings.output
    named = {*settings.input.topics, output.alerts_topic, output.scores_topic, output.dead_letter_topic}
    assert named | {settings.labels.topic} == set(topics)
    assert topics[output.scores_topic] == topics[settings.input.topics[0]]
    assert f"--topic {settings.labels.topic} --partitions 1 --config cleanup.policy=compact" in made
    assert settings.kafka.bootstrap_servers in SERVICES["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    assert ("./srr-stream.yaml", "/etc/srr-stream/config.yaml") in mounts("srr-stream")


def test_prometheus_in_compose_is_the_example_with_other_addresses() -> None:
    alone = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
    together = (DEPLOY / "prometheus" / "prometheus-compose.yml").read_text()
    for port, name in ((9093, "alertmanager"), (9108, "srr-stream"), (9109, "srr-stream")):
        alone = alone.replace(f"localhost:{port}", f"{name}:{port}")
    assert yaml.safe_load(together) == yaml.safe_load(alone)
    targets = re.findall(r"targets: \[(.+):(\d+)\]", together)
    assert {name for name, _ in targets} <= SERVICES.keys()


def test_grafana_finds_datasources_and_dashboards_where_they_are_mounted() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    sources = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    for source in sources:
        name, port = re.fullmatch(r"http://(\w+):(\d+)", source["url"]).groups()  # type: ignore[union-attr]
        assert any(each.endswith(f":{port}") for each in SERVICES[name]["ports"])
    (exemplars,) = sources[0]["jsonData"]["exemplarTraceIdDestinations"]
    assert exemplars["name"] == "event_id"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "srr-stream.yaml").read_text())["providers"]
    folder = provider["options"]["path"]
    assert ("./grafana/dashboards", folder) in mounts("grafana")
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (dashboards.FOLDER / home.removeprefix(f"{folder}/")).exists()
