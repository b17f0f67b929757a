"""Every question of the dashboards, put to a real Prometheus that scrapes a service at work: none comes back empty."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from deploy.grafana import dashboards
from models.persistence import model_to_parts
from srr_stream.labels import Label, LabelTopic
from tests.operate.conftest import Prometheus, RunningService, fetch
from tests.srr_stream.conftest import make_flood, make_values, wait_until

pytestmark = [pytest.mark.operate, pytest.mark.timeout(300)]

VARIABLES = {"$topic": ".*", "$instance": ".*", "$__rate_interval": "20s", "$__range": "300s"}
MAY_BE_UNKNOWN = ("srr_labelled_precision_ratio", "srr_suggested_false_alarm_rate")
"""NaN is an answer: too few labels."""


@pytest.fixture(scope="module")
def running_service(start_service: Callable[..., RunningService], embedded_broker: Any) -> Iterator[RunningService]:
    """A service in the middle of everything: swapped, on probation, with a challenger, labels, and bad records."""
    embedded_broker.create_topics({"labels-of-the-dashboards": 1})
    service = start_service(
        labels={"topic": "labels-of-the-dashboards"},
        training={"every": "1h", "memory_limit": "16GiB"},
    )
    registry, stream = service.service.registry, service.stream
    model, manifest = registry.load(1)
    for role in (registry.promote, registry.propose):
        made = registry.publish(replace(manifest, version=0), model_to_parts(model)[1])
        role(made.version, reason="for the dashboards") if role == registry.promote else role(made.version)
    wait_until(lambda: service.service.live_model.challenger, what="a challenger beside the swapped model")
    stream.produce(make_flood(20))
    label_a_flagged_record(service, "labels-of-the-dashboards")
    stop = threading.Event()

    def go_on() -> None:
        seed = 100
        while not stop.wait(1.0):
            stream.produce([*make_values(200, seed=seed), *make_flood(5), b"{torn", b"[]"])
            seed += 1

    thread = threading.Thread(target=go_on)
    thread.start()
    yield service
    stop.set()
    thread.join()


@pytest.fixture(scope="module", autouse=True)
def _a_training(running_service: RunningService, prometheus: Prometheus) -> None:
    """Have Prometheus see a training, after it saw the challenger that a new champion puts aside."""
    for metric in ("srr_shadow_flagged_ratio", "srr_probation_flagged_ratio"):
        wait_until(lambda: prometheus.query(metric), what=metric)  # noqa: B023
    running_service.service.registry.request_training("for the dashboards")
    n_runs = "sum(srr_training_runs_total)"
    wait_until(lambda: float(prometheus.query(n_runs)[0]["value"][1]) >= 2, timeout_s=60, what="a second training")


def label_a_flagged_record(service: RunningService, topic: str) -> None:
    """Say of a flagged record that it is normal."""
    verdict = wait_until(
        lambda: next((each for each in service.stream.verdicts() if each["flagged"]), None), what="a flagged record"
    )
    place = {key: verdict[key] for key in ("topic", "partition", "offset", "version", "p_value", "severity")}
    labels = LabelTopic({"bootstrap_servers": [service.stream.bootstrap_servers]}, topic)
    try:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        labels.write([Label(verdict["id"], "normal", "", "a test", now, **place, record=None)])
    finally:
        labels.close()


def built(name: str) -> Any:
    return dashboards.DASHBOARDS[name]().build()


def filled_in(expression: str) -> str:
    """Return an expression as Grafana would send it."""
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    assert "$" not in expression
    return expression


TARGETS = [
    pytest.param(target.expr, bool(target.instant), id=f"{name}-{panel.title}-{target.ref_id}")
    for name in dashboards.DASHBOARDS
    for panel in built(name).panels
    for target in getattr(panel, "targets", None) or ()
]
ANNOTATIONS = [
    pytest.param(annotation.expr, id=f"{name}-{annotation.name}")
    for name in dashboards.DASHBOARDS
    for annotation in built(name).annotations.list_val
]


def is_known(series: dict[str, Any]) -> bool:
    values = [series["value"]] if "value" in series else series["values"]
    return any(math.isfinite(float(value)) for _, value in values)


@pytest.mark.parametrize(("expression", "is_instant"), TARGETS)
def test_a_panel_is_never_empty(expression: str, is_instant: bool, prometheus: Prometheus) -> None:
    asked = filled_in(expression)
    answered = wait_until(
        lambda: prometheus.query(asked) if is_instant else prometheus.query_range(asked), what=f"an answer to {asked}"
    )
    if not any(name in asked for name in MAY_BE_UNKNOWN):
        wait_until(
            lambda: any(map(is_known, prometheus.query(asked) if is_instant else prometheus.query_range(asked))),
            what=f"a number in {answered}",
        )


@pytest.mark.parametrize("expression", ANNOTATIONS)
def test_an_annotation_is_a_time_of_late(expression: str, prometheus: Prometheus) -> None:
    answered = wait_until(lambda: prometheus.query(filled_in(expression)), what="annotations")
    for series in answered:
        at = datetime.fromtimestamp(float(series["value"][1]) / 1000, UTC)
        assert timedelta(0) <= datetime.now(UTC) - at < timedelta(minutes=10)


def test_a_swap_is_annotated_with_its_version(prometheus: Prometheus, running_service: RunningService) -> None:
    (swap,) = wait_until(lambda: prometheus.query(filled_in(dashboards.SWAPS.build().expr or "")), what="a swap")
    assert int(swap["metric"]["version"]) in running_service.service.registry.versions()


@pytest.mark.parametrize("name", dashboards.DASHBOARDS)
def test_every_variable_has_a_choice(name: str, prometheus: Prometheus) -> None:
    queries = [variable.query for variable in built(name).templating.list_val if variable.type_val.value == "query"]
    assert len(queries) == 2
    for query in queries:
        metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", str(query)).groups()  # type: ignore[union-attr]
        assert wait_until(lambda: prometheus.query(f"count by ({label}) ({metric})"), what=label)  # noqa: B023


def test_the_link_from_a_spike_opens_the_page_with_the_records_of_its_time(running_service: RunningService) -> None:
    topic = running_service.stream.topic
    now = datetime.now(UTC)

    def link(since: datetime, until: datetime) -> str:
        url = str(dashboards.flagged_records("${__field.labels.topic}").build().url)
        parts = {
            "${page:raw}": f"http://127.0.0.1:{running_service.api_port}",
            "${__field.labels.topic}": topic,
            "${__from:date:iso}": since.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "${__to:date:iso}": until.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        }
        for variable, value in parts.items():
            url = url.replace(variable, value)
        assert "$" not in url
        return url

    hour = timedelta(hours=1)
    record = f"/flagged/{topic}-"
    wait_until(lambda: record in fetch(link(now - hour, now + hour)), what="a flagged record on the page")
    assert record not in fetch(link(now - 3 * hour, now - 2 * hour))
