"""From a flood of anomalies in the topic to an alert at a webhook, through a real Prometheus and Alertmanager."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.operate.conftest import Alertmanager, Prometheus, RunningService, Webhook, fetch
from tests.srr_stream.conftest import make_flood, wait_until

pytestmark = [pytest.mark.operate, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def flood_alert(running_service: RunningService, prometheus: Prometheus, webhook: Webhook) -> dict[str, Any]:
    """What arrives at the webhook when anomalies flood the stream."""
    n_before = running_service.stream.count()
    flood = make_flood(3000)
    running_service.stream.produce(flood)
    wait_until(lambda: running_service.stream.count() >= n_before + len(flood), timeout_s=60, what="all verdicts")
    return webhook.wait_for("SrrFlaggedRateHigh", timeout_s=90, topic=running_service.stream.topic)


def test_a_flood_of_anomalies_arrives_at_the_webhook_as_a_page(
    flood_alert: dict[str, Any], running_service: RunningService
) -> None:
    topic = running_service.stream.topic
    assert flood_alert["path"] == "/page"
    assert flood_alert["status"] == "firing"
    assert flood_alert["labels"] == {
        "alertname": "SrrFlaggedRateHigh",
        "cause": "bound",
        "job": "srr-stream-scorer",
        "severity": "page",
        "topic": topic,
    }
    assert flood_alert["annotations"]["summary"].startswith(f"{topic}: ")
    assert flood_alert["annotations"]["runbook_url"] == "docs/runbook.md#srrflaggedratehigh"


def test_the_link_in_the_alert_opens_the_page_with_the_flagged_records_of_the_topic(
    flood_alert: dict[str, Any], running_service: RunningService
) -> None:
    topic = running_service.stream.topic
    page = flood_alert["annotations"]["page"]
    assert page.startswith(f"http://127.0.0.1:{running_service.api_port}/?topic={topic}")
    wait_until(lambda: f"/flagged/{topic}-" in fetch(page), what="a flagged record on the page")


def test_nothing_else_fires_while_all_is_well_but_for_the_flood(
    flood_alert: dict[str, Any], prometheus: Prometheus
) -> None:
    firing = {each["metric"]["alertname"] for each in prometheus.query('ALERTS{alertstate="firing"}')}
    assert firing == {"SrrFlaggedRateHigh"}


def test_the_flagged_ratio_of_the_rules_is_that_of_the_verdicts(
    flood_alert: dict[str, Any], prometheus: Prometheus, running_service: RunningService
) -> None:
    topic = running_service.stream.topic
    verdicts = running_service.stream.verdicts()
    n_flagged = sum(verdict["flagged"] for verdict in verdicts)

    def total(selector: str) -> float:
        return float(prometheus.query(f"sum(srr_records_scored_total{{{selector}}})")[0]["value"][1])

    assert total(f'topic="{topic}"') == len(verdicts)
    assert total(f'topic="{topic}",verdict="flagged"') == n_flagged
    assert n_flagged > 2000


def test_prometheus_keeps_event_ids_of_flagged_records_as_exemplars(
    flood_alert: dict[str, Any], prometheus: Prometheus, running_service: RunningService
) -> None:
    flagged = {
        verdict["id"]: verdict["severity"] for verdict in running_service.stream.verdicts() if verdict["flagged"]
    }
    series = wait_until(lambda: prometheus.exemplars("srr_severity_bucket"), what="exemplars")
    examples = [example for each in series for example in each["exemplars"]]
    assert examples
    for example in examples:
        assert float(example["value"]) == pytest.approx(flagged[example["labels"]["event_id"]])


def test_what_cannot_be_reached_hides_what_it_would_have_told(alertmanager: Alertmanager) -> None:
    where = {"job": "j", "instance": "i"}
    alertmanager.post(
        {"alertname": "SrrTargetDown", "severity": "page", "cause": "down", **where},
        {"alertname": "SrrScoringStalled", "severity": "page", "cause": "waiting", **where},
        {"alertname": "SrrScoringStalled", "severity": "page", "cause": "waiting", "job": "j", "instance": "other"},
    )
    states = {
        (each["labels"]["alertname"], each["labels"]["instance"]): each["status"]["state"]
        for each in wait_until(lambda: settled(alertmanager, "j", 3), what="the states")
    }
    assert states == {
        ("SrrTargetDown", "i"): "active",
        ("SrrScoringStalled", "i"): "suppressed",
        ("SrrScoringStalled", "other"): "active",
    }


def test_without_a_model_what_follows_from_it_is_hidden(alertmanager: Alertmanager) -> None:
    job = {"job": "k"}
    alertmanager.post(
        {"alertname": "SrrNoModel", "severity": "page", "instance": "i", **job},
        {"alertname": "SrrFlaggedRateZero", "severity": "ticket", "topic": "t", **job},
        {"alertname": "SrrTrainingFailing", "severity": "ticket", **job},
    )
    states = {
        each["labels"]["alertname"]: each["status"]["state"]
        for each in wait_until(lambda: settled(alertmanager, "k", 3), what="the states")
    }
    assert states == {"SrrNoModel": "active", "SrrFlaggedRateZero": "suppressed", "SrrTrainingFailing": "active"}


def settled(alertmanager: Alertmanager, job: str, n: int) -> list[dict[str, Any]]:
    """Return the alerts of a job once all are there and dealt with."""
    alerts = [each for each in alertmanager.alerts() if each["labels"]["job"] == job]
    is_settled = len(alerts) == n and all(each["status"]["state"] != "unprocessed" for each in alerts)
    return alerts if is_settled else []


def test_what_the_endpoints_show_is_what_is_documented(running_service: RunningService) -> None:
    from prometheus_client import CollectorRegistry
    from prometheus_client.parser import text_string_to_metric_families

    from srr_stream.metrics import ROLES

    ports = {"Scorer": running_service.scorer_port, "Trainer": running_service.trainer_port}
    for role, port in ports.items():
        described = {each.name: each for each in ROLES[role](CollectorRegistry()).descriptions}
        shown = {
            f"{f.name}_total" if f.type == "counter" else f.name: f
            for f in text_string_to_metric_families(fetch(f"http://127.0.0.1:{port}/metrics"))
            if not f.name.endswith("_created")
        }
        assert shown.keys() == described.keys()
        for name, family in shown.items():
            assert (family.type, family.documentation) == (described[name].kind, described[name].help)
            for sample in family.samples:
                for label, value in sample.labels.items():
                    if label != "le":
                        assert value in (described[name].labels[label] or [value]), json.dumps([name, label, value])
