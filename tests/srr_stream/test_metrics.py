"""Metrics: frozen names, and a histogram that counts a batch as Prometheus' own counts its values one by one."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from srr_stream.gate import CHECKS
from srr_stream.metrics import (
    GATE_CHECKS,
    ROLES,
    ApiMetrics,
    BatchHistogram,
    RoleMetrics,
    ScorerMetrics,
    TrainerMetrics,
)

COMMON: dict[str, set[str]] = {
    "srr_build_info": {"version", "python"},
    "srr_memory_limit_bytes": set(),
    "srr_memory_used_bytes": set(),
    "process_cpu_seconds_total": set(),
    "process_max_fds": set(),
    "process_open_fds": set(),
    "process_resident_memory_bytes": set(),
    "process_start_time_seconds": set(),
    "process_virtual_memory_bytes": set(),
}

SETTINGS: dict[str, set[str]] = {
    "srr_config_last_reload_successful": set(),
    "srr_config_last_reload_success_timestamp_seconds": set(),
}

SCORER = {
    "srr_records_consumed_total": {"topic"},
    "srr_records_scored_total": {"topic", "verdict"},
    "srr_records_dead_lettered_total": {"topic", "reason"},
    "srr_severity": set(),
    "srr_stage_duration_seconds": {"stage"},
    "srr_event_latency_seconds": set(),
    "srr_loop_silent_seconds": set(),
    "srr_last_scored_timestamp_seconds": set(),
    "srr_partition_lag_records": {"topic", "partition"},
    "srr_partition_last_read_timestamp_seconds": {"topic", "partition"},
    "srr_partitions_assigned": set(),
    "srr_partitions_paused": set(),
    "srr_rebalances_total": set(),
    "srr_model_swaps_total": {"outcome"},
    "srr_model_info": {"version"},
    "srr_model_loaded_timestamp_seconds": set(),
    "srr_model_window_records": set(),
    "srr_false_alarm_rate": set(),
    "srr_trainer_restarts_total": set(),
    "srr_api_restarts_total": set(),
    "srr_known_normal_total": {"topic"},
    "srr_labels": {"label"},
    "srr_labelled_precision_ratio": set(),
    "srr_suggested_false_alarm_rate": set(),
    "srr_drift_statistic": {"detector"},
    "srr_records_skipped_total": {"topic", "partition"},
    "srr_reconnects_total": {"cause"},
    "srr_rollbacks_total": {"cause"},
    "srr_shadow_records_total": {"verdict"},
    "srr_shadow_flagged_ratio": {"model"},
    "srr_probation_flagged_ratio": {"model"},
}

TRAINER = {
    "srr_training_runs_total": {"outcome"},
    "srr_training_duration_seconds": {"stage"},
    "srr_training_last_success_timestamp_seconds": set(),
    "srr_training_every_seconds": set(),
    "srr_gate_rejections_in_a_row": set(),
    "srr_training_excluded_ratio": set(),
    "srr_training_contamination_ratio": set(),
    "srr_ensemble_agreement_ratio": set(),
    "srr_gate_decisions_total": {"decision"},
    "srr_gate_check": {"check"},
    "srr_training_forgotten_ratio": set(),
}
"""Name → labels: dashboards and alerting rules of users stand on these."""


def exposed(registry: CollectorRegistry) -> dict[str, Metric]:
    """Return name, as Prometheus stores it → family of everything a registry shows."""
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {
        f"{f.name}_total" if f.type == "counter" else f.name: f for f in families if not f.name.endswith("_created")
    }


def touch_every_label(metrics: RoleMetrics) -> None:
    """Give every labelled metric one series: without one it shows no sample, and so no label."""
    for metric in vars(metrics).values():
        names = getattr(metric, "_labelnames", ())
        if names:
            metric.labels(*["x"] * len(names))


API = {"srr_api_requests_total": {"status"}}


@pytest.mark.parametrize(
    ("kind", "frozen"),
    [
        (ScorerMetrics, SCORER | SETTINGS | COMMON),
        (TrainerMetrics, TRAINER | SETTINGS | COMMON),
        (ApiMetrics, API | COMMON),
    ],
)
def test_names_and_labels_are_the_frozen_ones(kind: type[RoleMetrics], frozen: dict[str, set[str]]) -> None:
    registry = CollectorRegistry()
    touch_every_label(kind(registry))
    shown = {
        name: {label for sample in family.samples for label in sample.labels} - {"le"}
        for name, family in exposed(registry).items()
    }
    assert shown == frozen


@pytest.mark.parametrize("kind", ROLES.values(), ids=ROLES.keys())
def test_every_metric_says_what_it_is(kind: type[RoleMetrics]) -> None:
    registry = CollectorRegistry()
    kind(registry)
    assert all(family.documentation.endswith(".") for family in exposed(registry).values())


@pytest.mark.parametrize("kind", ROLES.values(), ids=ROLES.keys())
def test_descriptions_are_what_prometheus_is_shown(kind: type[RoleMetrics]) -> None:
    registry = CollectorRegistry()
    metrics = kind(registry)
    touch_every_label(metrics)
    shown = {
        name: (family.type, family.documentation, {label for s in family.samples for label in s.labels} - {"le"})
        for name, family in exposed(registry).items()
    }
    assert {each.name: (each.kind, each.help, set(each.labels)) for each in metrics.descriptions} == shown


@pytest.mark.parametrize("kind", ROLES.values(), ids=ROLES.keys())
def test_buckets_are_described_as_they_are(kind: type[RoleMetrics]) -> None:
    registry = CollectorRegistry()
    metrics = kind(registry)
    touch_every_label(metrics)
    for each in metrics.descriptions:
        bounds = {s.labels["le"] for s in exposed(registry)[each.name].samples if "le" in s.labels} - {"+Inf"}
        assert {float(bound) for bound in bounds} == set(each.buckets.bounds if each.buckets else ())


def test_counters_whose_labels_are_known_are_there_before_they_count() -> None:
    registry = CollectorRegistry()
    metrics = ScorerMetrics(registry)
    assert registry.get_sample_value("srr_model_swaps_total", {"outcome": "refused_canary"}) == 0
    assert registry.get_sample_value("srr_records_scored_total", {"topic": "t", "verdict": "flagged"}) is None
    metrics.start_at_zero(topic=["t"])
    assert registry.get_sample_value("srr_records_scored_total", {"topic": "t", "verdict": "flagged"}) == 0
    assert registry.get_sample_value("srr_records_dead_lettered_total", {"topic": "t", "reason": "not_json"}) == 0


def test_every_check_of_the_gate_is_a_documented_value() -> None:
    assert set(GATE_CHECKS) == set(CHECKS)


def test_build_info_is_one_and_names_the_versions() -> None:
    registry = CollectorRegistry()
    ScorerMetrics(registry)
    (sample,) = exposed(registry)["srr_build_info"].samples
    assert sample.value == 1
    assert all(sample.labels.values())


def test_two_scorers_in_one_process_each_have_their_own_numbers() -> None:
    first, second = CollectorRegistry(), CollectorRegistry()
    mine, _ = ScorerMetrics(first), ScorerMetrics(second)
    mine.records_consumed.labels("t").inc(3)
    assert first.get_sample_value("srr_records_consumed_total", {"topic": "t"}) == 3
    assert second.get_sample_value("srr_records_consumed_total", {"topic": "t"}) is None


def test_severity_has_a_bucket_that_ends_at_the_boundary() -> None:
    registry = CollectorRegistry()
    ScorerMetrics(registry).severity.observe(np.array([0.5, 1.0, 1.0 + 1e-9]))
    assert registry.get_sample_value("srr_severity_bucket", {"le": "1.0"}) == 2


finite = st.floats(-1e6, 1e6)
ascending = st.lists(st.floats(0, 1e6), min_size=1, max_size=12, unique=True).map(sorted)
"""From 0 on: Prometheus shows neither sum nor count where a bound is below."""


@given(bounds=ascending, batches=st.lists(st.lists(finite, max_size=40), max_size=5), data=st.data())
def test_a_batch_is_counted_as_prometheus_counts_its_values_one_by_one(
    bounds: list[float], batches: list[list[float]], data: st.DataObject
) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    batch_histogram = BatchHistogram("x", "X.", buckets=bounds, registry=ours)
    histogram = Histogram("x", "X.", buckets=bounds, registry=theirs)
    for batch in batches:
        on_bounds = data.draw(st.lists(st.sampled_from(bounds), max_size=3))
        batch_histogram.observe(np.array(batch + on_bounds, dtype=np.float64))
        for value in batch + on_bounds:
            histogram.observe(value)
    assert series(ours) == pytest.approx(series(theirs), rel=1e-9, abs=1e-4)


def series(registry: CollectorRegistry) -> dict[str, float]:
    return {
        f"{sample.name}{sorted(sample.labels.items())}": sample.value
        for family in registry.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


@given(values=st.lists(finite, max_size=100))
def test_the_sum_of_a_histogram_is_the_sum_of_its_values(values: list[float]) -> None:
    registry = CollectorRegistry()
    histogram = BatchHistogram("x", "X.", buckets=[1.0], registry=registry)
    half = len(values) // 2
    for part in (values[:half], values[half:]):
        histogram.observe(np.array(part, dtype=np.float64))
    assert registry.get_sample_value("x_sum") == pytest.approx(math.fsum(values), abs=1e-4)


def test_an_empty_histogram_shows_all_its_buckets_as_zero() -> None:
    registry = CollectorRegistry()
    BatchHistogram("x", "X.", buckets=[0.5, 1.0], registry=registry)
    assert [registry.get_sample_value("x_bucket", {"le": le}) for le in ("0.5", "1.0", "+Inf")] == [0, 0, 0]
    assert registry.get_sample_value("x_count") == 0


def test_a_histogram_loses_nothing_when_threads_observe_at_once() -> None:
    registry = CollectorRegistry()
    histogram = BatchHistogram("x", "X.", buckets=[0.5], registry=registry)
    values = np.full(10, 0.25)

    def observe() -> None:
        for _ in range(200):
            histogram.observe(values)

    threads = [threading.Thread(target=observe) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert registry.get_sample_value("x_count") == 8000
    assert registry.get_sample_value("x_sum") == 2000.0


# --- exemplars


OPENMETRICS = "application/openmetrics-text; version=1.0.0"
Exemplars = dict[str, tuple[str, float, float]]


def exemplars_of(registry: CollectorRegistry, name: str) -> Exemplars:
    """Return bound → event id, value and time, as whoever asks for OpenMetrics reads them."""
    encode, content_type = choose_encoder(OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text")
    (family,) = [f for f in parse_openmetrics(encode(registry).decode()) if f.name == name]
    return {
        sample.labels["le"]: (
            sample.exemplar.labels["event_id"],
            sample.exemplar.value,
            float(sample.exemplar.timestamp),
        )
        for sample in family.samples
        if sample.exemplar is not None
    }


def name_of(prefix: str) -> Callable[[int], str]:
    return lambda row: f"{prefix}-{row}"


def test_the_newest_record_of_a_bucket_is_its_exemplar() -> None:
    registry = CollectorRegistry()
    histogram = BatchHistogram("x", "X.", buckets=[1.0, 2.0], registry=registry)
    histogram.observe(np.array([0.5, 1.5, 1.7, 0.6, 9.0]), name_of("first"), at=100.0)
    histogram.observe(np.array([1.2, 0.1]), name_of("second"), at=101.5)
    assert exemplars_of(registry, "x") == {
        "1.0": ("second-1", 0.1, 101.5),
        "2.0": ("second-0", 1.2, 101.5),
        "+Inf": ("first-4", 9.0, 100.0),
    }


def test_only_severities_beyond_the_boundary_have_exemplars() -> None:
    registry = CollectorRegistry()
    ScorerMetrics(registry).severity.observe(np.array([0.2, 1.1, 0.99, 1.0]), name_of("t-0"), at=1.0)
    assert exemplars_of(registry, "srr_severity") == {"1.25": ("t-0-1", 1.1, 1.0)}


def test_exemplars_are_in_openmetrics_only() -> None:
    registry = CollectorRegistry()
    ScorerMetrics(registry).event_latency.observe(np.array([0.2]), name_of("t-0"), at=1.0)
    plain, _ = choose_encoder("text/plain")
    assert "t-0-0" not in plain(registry).decode()
    assert exemplars_of(registry, "srr_event_latency_seconds") == {"0.25": ("t-0-0", 0.2, 1.0)}


@pytest.mark.parametrize(("n_characters", "is_kept"), [(120, True), (121, False)])
def test_an_id_that_is_too_long_for_openmetrics_is_left_out(n_characters: int, is_kept: bool) -> None:
    registry = CollectorRegistry()
    histogram = BatchHistogram("x", "X.", buckets=[1.0], registry=registry)
    histogram.observe(np.array([0.5]), lambda row: "a" * n_characters, at=1.0)
    assert bool(exemplars_of(registry, "x")) is is_kept
    assert registry.get_sample_value("x_count") == 1


@given(values=st.lists(st.floats(0, 12), max_size=60))
def test_ids_are_asked_for_once_a_bucket_at_most_and_lie_in_their_bucket(values: list[float]) -> None:
    registry = CollectorRegistry()
    histogram = BatchHistogram("x", "X.", buckets=[1.0, 5.0], registry=registry)
    asked: list[int] = []

    def event_id(row: int) -> str:
        asked.append(row)
        return str(row)

    histogram.observe(np.array(values, dtype=np.float64), event_id)
    bounds = {"1.0": (-1.0, 1.0), "5.0": (1.0, 5.0), "+Inf": (5.0, math.inf)}
    found = exemplars_of(registry, "x")
    assert len(asked) == len(found) <= 3
    for bound, (name, value, _) in found.items():
        low, high = bounds[bound]
        assert low < value <= high
        assert values[int(name)] == value
        assert not any(low < later <= high for later in values[int(name) + 1 :])
