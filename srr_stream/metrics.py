"""The frozen metric names of the scorer and of the trainer, each on a registry that is passed in.

No label is ever a key, an id or an exception's text.
"""

from __future__ import annotations

import platform
import threading
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

_SEVERITY_BUCKETS = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
_STAGE_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_TRAINING_BUCKETS = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0)


def package_version() -> str:
    """Return the version of this distribution, ``unknown`` when it is not installed."""
    try:
        return version("srr-stream")
    except PackageNotFoundError:
        return "unknown"


def _about_the_process(registry: CollectorRegistry) -> None:
    info = Gauge(
        "srr_build_info", "Version of srr-stream and Python; always 1.", ["version", "python"], registry=registry
    )
    info.labels(package_version(), platform.python_version()).set(1)
    # Settings are read once, at the start, and what is wrong with them ends the process: where it runs, they were good.
    Gauge("srr_config_last_reload_successful", "Whether the settings in use were read well.", registry=registry).set(1)


class BatchHistogram(Collector):
    """A classic histogram that takes a whole batch at once: a call a record would cost more than scoring it.

    Parameters
    ----------
    buckets
        Upper bounds, ascending, without infinity.
    """

    def __init__(self, name: str, documentation: str, *, buckets: Sequence[float], registry: CollectorRegistry) -> None:
        self._name = name
        self._documentation = documentation
        self._bounds = np.asarray(buckets, dtype=np.float64)
        self._labels = [floatToGoString(bound) for bound in (*buckets, np.inf)]  # type: ignore[no-untyped-call]
        self._counts = np.zeros(len(self._labels), dtype=np.int64)
        self._sum = 0.0
        self._lock = threading.Lock()
        registry.register(self)

    def observe(self, values: NDArray[np.float64]) -> None:
        """Count `values`, ``(n,)``, finite: a value falls into the first bucket whose bound it does not exceed."""
        buckets = np.searchsorted(self._bounds, values, side="left")
        counts = np.bincount(buckets, minlength=len(self._labels))
        with self._lock:
            self._counts += counts
            self._sum += float(values.sum())

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Give prometheus-client the cumulative counts."""
        with self._lock:
            cumulative, total = self._counts.cumsum().tolist(), self._sum
        family = HistogramMetricFamily(self._name, self._documentation)
        family.add_metric([], list(zip(self._labels, cumulative, strict=True)), total)
        yield family


class ScorerMetrics:
    """What a scorer tells Prometheus."""

    def __init__(self, registry: CollectorRegistry) -> None:
        _about_the_process(registry)
        self.records_consumed = Counter(
            "srr_records_consumed", "Records read from the log.", ["topic"], registry=registry
        )
        self.records_scored = Counter(
            "srr_records_scored", "Records given a verdict.", ["topic", "verdict"], registry=registry
        )
        self.records_dead_lettered = Counter(
            "srr_records_dead_lettered", "Records that could not be read.", ["topic", "reason"], registry=registry
        )
        self.records_skipped = Counter(
            "srr_records_skipped",
            "Offsets that the log no longer held when they were to be read.",
            ["topic", "partition"],
            registry=registry,
        )
        self.severity = BatchHistogram(
            "srr_severity",
            "Severity of scored records; 1.0 is the boundary for every model.",
            buckets=_SEVERITY_BUCKETS,
            registry=registry,
        )
        self.stage_duration = Histogram(
            "srr_stage_duration_seconds",
            "Time of one batch in a stage: decode, score, explain, publish, commit.",
            ["stage"],
            buckets=_STAGE_BUCKETS,
            registry=registry,
        )
        self.event_latency = BatchHistogram(
            "srr_event_latency_seconds",
            "From the log's timestamp of a record to its published verdict.",
            buckets=_LATENCY_BUCKETS,
            registry=registry,
        )
        self.last_scored = Gauge(
            "srr_last_scored_timestamp_seconds", "When the last verdict was published.", registry=registry
        )
        self.partition_lag = Gauge(
            "srr_partition_lag_records", "Records not yet read.", ["topic", "partition"], registry=registry
        )
        self.partitions_assigned = Gauge("srr_partitions_assigned", "Partitions this scorer owns.", registry=registry)
        self.partitions_paused = Gauge("srr_partitions_paused", "Partitions held back.", registry=registry)
        self.rebalances = Counter("srr_rebalances", "Changes of the assignment.", registry=registry)
        self.reconnects = Counter("srr_reconnects", "Connections made anew, by why.", ["cause"], registry=registry)
        self.model_swaps = Counter("srr_model_swaps", "Models swapped in or refused.", ["outcome"], registry=registry)
        self.model_info = Gauge("srr_model_info", "The live model; always 1.", ["version"], registry=registry)
        self.model_loaded = Gauge(
            "srr_model_loaded_timestamp_seconds", "When the live model was swapped in.", registry=registry
        )
        self.model_window = Gauge(
            "srr_model_window_records", "Records that the live model was trained on.", registry=registry
        )
        self.rollbacks = Counter(
            "srr_rollbacks", "Models taken out of use by themselves.", ["cause"], registry=registry
        )
        self.shadow_records = Counter(
            "srr_shadow_records", "Live records that the waiting challenger scored too.", ["verdict"], registry=registry
        )
        self.shadow_flagged = Gauge(
            "srr_shadow_flagged_ratio",
            "Share of these that are flagged: challenger, live.",
            ["model"],
            registry=registry,
        )
        self.probation_flagged = Gauge(
            "srr_probation_flagged_ratio",
            "Share of live records that are flagged while a new model is on probation: live, previous.",
            ["model"],
            registry=registry,
        )
        self.drift = Gauge(
            "srr_drift_statistic", "Mean that a drift detector holds at the moment.", ["detector"], registry=registry
        )


class TrainerMetrics:
    """What a trainer tells Prometheus."""

    def __init__(self, registry: CollectorRegistry) -> None:
        _about_the_process(registry)
        self.runs = Counter(
            "srr_training_runs", "Trainings: published, rejected by the gate, failed.", ["outcome"], registry=registry
        )
        self.duration = Histogram(
            "srr_training_duration_seconds",
            "Time of a training in a stage.",
            ["stage"],
            buckets=_TRAINING_BUCKETS,
            registry=registry,
        )
        self.last_success = Gauge(
            "srr_training_last_success_timestamp_seconds", "When a model was last published.", registry=registry
        )
        self.excluded = Gauge(
            "srr_training_excluded_ratio", "Share of the window that refinement dropped.", registry=registry
        )
        self.contamination = Gauge(
            "srr_training_contamination_ratio", "Estimated share of anomalies in the window.", registry=registry
        )
        self.agreement = Gauge(
            "srr_ensemble_agreement_ratio", "How far the ensemble agrees on what it rejects.", registry=registry
        )
        self.gate_decisions = Counter(
            "srr_gate_decisions", "What the gate decided of new models.", ["decision"], registry=registry
        )
        self.gate_check = Gauge(
            "srr_gate_check", "What the gate last saw of a new model.", ["check"], registry=registry
        )
        self.forgotten = Gauge(
            "srr_training_forgotten_ratio",
            "Share of the newest records that the reference flags and the new model does not.",
            registry=registry,
        )
