"""The frozen metric names of the scorer and of the trainer, each on a registry that is passed in.

No label is ever a key, an id or an exception's text. What is made here describes itself: docs/metrics.md is written
from the descriptions (``python -m docs.generate metrics``).
"""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

from consumers.reasons import REASONS
from srr_stream.labels import LABELS
from srr_stream.memory import memory_use


class Buckets(NamedTuple):
    """Upper bounds of a classic histogram, and why these."""

    bounds: tuple[float, ...]
    why: str


# A line beside each counter that no rule or dashboard reads.
disable_created_metrics()  # type: ignore[no-untyped-call]

_SEVERITY = Buckets(
    (0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0),
    "1.0 is the boundary, so a bucket ends there; 2 is as rare as α², 3 as α³. Finest where a threshold might be moved "
    "to, 0.8 to 1.5.",
)
_STAGE = Buckets(
    (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0),
    "From a batch of a few records to one of 20,000. A batch has as many records as are judged within "
    "`input.max_delay`, so beyond 1 s something is slow.",
)
_LATENCY = Buckets(
    (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0),
    "All is well within a poll and a batch, below 2.5 s; beyond 5 minutes `srr_partition_lag_records` tells more.",
)
_TRAINING = Buckets(
    (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0),
    "Closed form takes a second, self-supervision seconds to minutes; 900 is `training.every` by default.",
)

EXEMPLAR_LABEL = "event_id"
_MAX_EXEMPLAR = 128
"""Characters that OpenMetrics allows in the names and values of an exemplar's labels together."""
_OPEN: tuple[str, ...] = ()
"""Values of a label that are as many as the stream has: topics, partitions, versions."""
_REFUSALS = ("hash", "format", "schema", "canary")
GATE_CHECKS = (
    "non_finite_scores",
    "excluded_ratio",
    "flagged_ratio",
    "synthetic_auc",
    "flagged_factor",
    "synthetic_auc_margin",
    "rank_agreement",
    "forgotten_ratio",
    "reference_flagged_ratio",
    "refined_drift",
    "excluded_rise",
    "contamination_rise",
)


@dataclass(frozen=True)
class Description:
    """What is documented of a metric."""

    name: str
    """As Prometheus stores it: a counter's ends in ``_total``."""
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: Mapping[str, tuple[str, ...]]
    """Label → all its values; none: they depend on the stream."""
    buckets: Buckets | None = None


PROCESS = (
    Description("process_cpu_seconds_total", "counter", "Total user and system CPU time spent in seconds.", {}),
    Description("process_max_fds", "gauge", "Maximum number of open file descriptors.", {}),
    Description("process_open_fds", "gauge", "Number of open file descriptors.", {}),
    Description("process_resident_memory_bytes", "gauge", "Resident memory size in bytes.", {}),
    Description("process_start_time_seconds", "gauge", "Start time of the process since unix epoch in seconds.", {}),
    Description("process_virtual_memory_bytes", "gauge", "Virtual memory size in bytes.", {}),
)
"""What prometheus-client tells of every process on Linux."""


def package_version() -> str:
    """Return the version of this distribution, ``unknown`` when it is not installed."""
    try:
        return version("srr-stream")
    except PackageNotFoundError:
        return "unknown"


class _Making:
    """Makes metrics on a registry, keeps their descriptions, and shows counters before they count."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.descriptions: list[Description] = []
        self.registry = registry
        self._counters: list[tuple[Counter, Mapping[str, tuple[str, ...]]]] = []

    def counter(self, name: str, help: str, **labels: tuple[str, ...]) -> Counter:
        counter = Counter(name, help, list(labels), registry=self.registry)
        self.descriptions.append(Description(f"{name}_total", "counter", help, labels))
        self._counters.append((counter, labels))
        return counter

    def gauge(self, name: str, help: str, **labels: tuple[str, ...]) -> Gauge:
        self.descriptions.append(Description(name, "gauge", help, labels))
        return Gauge(name, help, list(labels), registry=self.registry)

    def histogram(self, name: str, help: str, *, buckets: Buckets, **labels: tuple[str, ...]) -> Histogram:
        self.descriptions.append(Description(name, "histogram", help, labels, buckets))
        return Histogram(name, help, list(labels), buckets=buckets.bounds, registry=self.registry)

    def batch_histogram(
        self, name: str, help: str, *, buckets: Buckets, exemplars_above: float = -np.inf
    ) -> BatchHistogram:
        self.descriptions.append(Description(name, "histogram", help, {}, buckets))
        return BatchHistogram(
            name, help, buckets=buckets.bounds, exemplars_above=exemplars_above, registry=self.registry
        )

    def about_the_process(self) -> None:
        """Make what every role tells of itself."""
        info = self.gauge("srr_build_info", "Version of srr-stream and Python; always 1.", version=_OPEN, python=_OPEN)
        info.labels(package_version(), platform.python_version()).set(1)
        self.descriptions += _MemoryCollector(self.registry).descriptions
        ProcessCollector(registry=self.registry)
        self.descriptions += PROCESS

    def about_the_settings(self) -> tuple[Gauge, Gauge]:
        """Make what a role tells that reads its settings anew: whether they were good, and when they were read."""
        is_good = self.gauge(
            "srr_config_last_reload_successful",
            "1: the settings were good when they were read last; 0: they were not, and those before are in use.",
        )
        is_good.set(1)  # what is wrong at the start ends the process
        read_at = self.gauge("srr_config_last_reload_success_timestamp_seconds", "When the settings in use were read.")
        read_at.set_to_current_time()
        return is_good, read_at

    def start_at_zero(self, **known: Sequence[str]) -> None:
        """Show the counters whose labels' values are all known: a rate does not see what makes a series appear."""
        for counter, labels in self._counters:
            values = [known.get(name, allowed) for name, allowed in labels.items()]
            if values and all(values):
                for each in product(*values):
                    counter.labels(*each)


class _MemoryCollector(Collector):
    """How much of its memory a process has used up, looked up at every scrape; nothing where there is no limit."""

    descriptions = (
        Description(
            "srr_memory_limit_bytes",
            "gauge",
            "Memory that this process, or its control group as a whole, may have; absent without a limit.",
            {},
        ),
        Description("srr_memory_used_bytes", "gauge", "What counts against srr_memory_limit_bytes at the moment.", {}),
    )

    def __init__(self, registry: CollectorRegistry) -> None:
        registry.register(self)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        use = memory_use()
        for description, value in zip(self.descriptions, (use.limit, use.used) if use else (None, None), strict=True):
            yield GaugeMetricFamily(description.name, description.help, value=value)


class BatchHistogram(Collector):
    """A classic histogram that takes a whole batch at once: a call a record would cost more than scoring it.

    Parameters
    ----------
    buckets
        Upper bounds, ascending, without infinity.
    exemplars_above
        Only buckets that begin there or higher keep an example.
    """

    def __init__(
        self,
        name: str,
        documentation: str,
        *,
        buckets: Sequence[float],
        registry: CollectorRegistry,
        exemplars_above: float = -np.inf,
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._bounds = np.asarray(buckets, dtype=np.float64)
        self._labels = [floatToGoString(bound) for bound in (*buckets, np.inf)]  # type: ignore[no-untyped-call]
        self._counts = np.zeros(len(self._labels), dtype=np.int64)
        self._sum = 0.0
        begins = np.array([-np.inf, *buckets])
        self._first_with_exemplar = int(np.searchsorted(begins, exemplars_above, side="left"))
        self._exemplars: list[Exemplar | None] = [None] * len(self._labels)
        self._lock = threading.Lock()
        registry.register(self)

    def observe(
        self, values: NDArray[np.float64], event_id: Callable[[int], str] | None = None, *, at: float | None = None
    ) -> None:
        """Count `values`, ``(n,)``, finite: a value falls into the first bucket whose bound it does not exceed.

        Parameters
        ----------
        event_id
            Row → id of its event. The newest row of each bucket becomes its exemplar, so it is asked at most once a
            bucket. An id that is too long for OpenMetrics (120 characters) is left out. None: no exemplars.
        at
            Seconds since the epoch at which the exemplars were seen; None: now.
        """
        buckets = np.searchsorted(self._bounds, values, side="left")
        counts = np.bincount(buckets, minlength=len(self._labels))
        exemplars = self._examples(values, buckets, event_id, at) if event_id is not None else {}
        with self._lock:
            self._counts += counts
            self._sum += float(values.sum())
            for bucket, exemplar in exemplars.items():
                self._exemplars[bucket] = exemplar

    def _examples(
        self,
        values: NDArray[np.float64],
        buckets: NDArray[np.intp],
        event_id: Callable[[int], str],
        at: float | None,
    ) -> Mapping[int, Exemplar]:
        """Return bucket → its newest row as an exemplar."""
        newest = np.full(len(self._labels), -1)
        newest[buckets] = np.arange(len(buckets))  # of equal indices, the last one stays
        at = time.time() if at is None else at
        examples = {}
        for bucket in range(self._first_with_exemplar, len(newest)):
            row = int(newest[bucket])
            if row < 0:
                continue
            name = event_id(row)
            if len(EXEMPLAR_LABEL) + len(name) <= _MAX_EXEMPLAR:
                examples[bucket] = Exemplar({EXEMPLAR_LABEL: name}, float(values[row]), at)
        return examples

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Give prometheus-client the cumulative counts; exemplars reach who asks for OpenMetrics."""
        with self._lock:
            cumulative, total, exemplars = self._counts.cumsum().tolist(), self._sum, list(self._exemplars)
        family = HistogramMetricFamily(self._name, self._documentation)
        buckets = [
            (label, n) if exemplar is None else (label, n, exemplar)
            for label, n, exemplar in zip(self._labels, cumulative, exemplars, strict=True)
        ]
        family.add_metric([], buckets, total)
        yield family


class ScorerMetrics:
    """What a scorer tells Prometheus."""

    def __init__(self, registry: CollectorRegistry) -> None:
        make = _Making(registry)
        self.descriptions = make.descriptions
        self.start_at_zero = make.start_at_zero
        self.records_consumed = make.counter("srr_records_consumed", "Records read from the log.", topic=_OPEN)
        self.records_scored = make.counter(
            "srr_records_scored", "Records given a verdict.", topic=_OPEN, verdict=("normal", "flagged")
        )
        self.records_dead_lettered = make.counter(
            "srr_records_dead_lettered", "Records that could not be read.", topic=_OPEN, reason=REASONS
        )
        self.records_skipped = make.counter(
            "srr_records_skipped",
            "Offsets that the log no longer held when they were to be read (input.lost_offset); normally 0.",
            topic=_OPEN,
            partition=_OPEN,
        )
        self.severity = make.batch_histogram(
            "srr_severity",
            "Severity of scored records; 1.0 is the boundary for every model.",
            buckets=_SEVERITY,
            exemplars_above=1.0,
        )
        self.stage_duration = make.histogram(
            "srr_stage_duration_seconds",
            "Time of one batch in a stage.",
            buckets=_STAGE,
            stage=("decode", "score", "explain", "publish", "commit"),
        )
        self.event_latency = make.batch_histogram(
            "srr_event_latency_seconds",
            "From the log's timestamp of a record to its published verdict.",
            buckets=_LATENCY,
        )
        self.loop_silent = make.gauge(
            "srr_loop_silent_seconds", "Time since the loop last went round; /livez fails beyond http.live_timeout."
        )
        self.last_scored = make.gauge("srr_last_scored_timestamp_seconds", "When the last verdict was published.")
        self.partition_lag = make.gauge(
            "srr_partition_lag_records", "Records not yet read.", topic=_OPEN, partition=_OPEN
        )
        self.partition_last_read = make.gauge(
            "srr_partition_last_read_timestamp_seconds",
            "When the partition was assigned or last gave a record.",
            topic=_OPEN,
            partition=_OPEN,
        )
        self.partitions_assigned = make.gauge("srr_partitions_assigned", "Partitions this scorer owns.")
        self.partitions_paused = make.gauge(
            "srr_partitions_paused",
            "Partitions held back: there is no model yet, or the brokers are slow to take verdicts.",
        )
        self.rebalances = make.counter("srr_rebalances", "Changes of the assignment.")
        self.reconnects = make.counter(
            "srr_reconnects",
            "Connections made anew, by why.",
            cause=("broker", "sink", "membership", "topic", "rights"),
        )
        self.model_swaps = make.counter(
            "srr_model_swaps",
            "Models swapped in or refused.",
            outcome=("swapped", *(f"refused_{why}" for why in _REFUSALS)),
        )
        self.model_info = make.gauge("srr_model_info", "The live model; always 1.", version=_OPEN)
        self.model_loaded = make.gauge(
            "srr_model_loaded_timestamp_seconds", "When the live model was swapped in; 0: there is none yet."
        )
        self.model_window = make.gauge("srr_model_window_records", "Records that the live model was trained on.")
        self.false_alarm_rate = make.gauge(
            "srr_false_alarm_rate",
            "α in use (threshold.false_alarm_rate), the share of normal records that may be flagged.",
        )
        self.known_normal = make.counter(
            "srr_known_normal",
            "Records not flagged because they lie near one that a person marked normal.",
            topic=_OPEN,
        )
        self.labels = make.gauge("srr_labels", "Records that people have labelled.", label=LABELS)
        self.labelled_precision = make.gauge(
            "srr_labelled_precision_ratio",
            "Of the flagged records labelled anomaly or normal, the share that are anomalies; NaN without any.",
        )
        self.suggested_rate = make.gauge(
            "srr_suggested_false_alarm_rate",
            "α that suits the labels better than the one in use; NaN if there is none. It is never applied by itself.",
        )
        self.labelled_precision.set(np.nan)
        self.suggested_rate.set(np.nan)
        self.rollbacks = make.counter(
            "srr_rollbacks", "Models taken out of use by themselves, within their probation.", cause=("flagged_rate",)
        )
        self.shadow_records = make.counter(
            "srr_shadow_records",
            "Live records that the waiting challenger scored too.",
            verdict=("normal", "flagged"),
        )
        self.shadow_flagged = make.gauge(
            "srr_shadow_flagged_ratio",
            "Share of these that each flags; absent while none waits.",
            model=("challenger", "live"),
        )
        self.probation_flagged = make.gauge(
            "srr_probation_flagged_ratio",
            "Share of live records that a new model flags, and the one it replaced; absent outside a probation.",
            model=("live", "previous"),
        )
        self.drift = make.gauge(
            "srr_drift_statistic",
            "Mean that a drift detector holds at the moment.",
            detector=("flagged_rate", "mean_severity"),
        )
        self.trainer_restarts = make.counter(
            "srr_trainer_restarts", "Trainer processes started anew because one died or fell silent."
        )
        self.api_restarts = make.counter("srr_api_restarts", "API processes started anew because one died.")
        self.config_is_good, self.config_read_at = make.about_the_settings()
        make.about_the_process()
        make.start_at_zero()


class TrainerMetrics:
    """What a trainer tells Prometheus."""

    def __init__(self, registry: CollectorRegistry) -> None:
        make = _Making(registry)
        self.descriptions = make.descriptions
        self.runs = make.counter("srr_training_runs", "Trainings.", outcome=("published", "rejected", "failed"))
        self.duration = make.histogram(
            "srr_training_duration_seconds",
            "Time of a training in a stage.",
            buckets=_TRAINING,
            stage=("read", "train", "judge", "publish"),
        )
        self.last_success = make.gauge(
            "srr_training_last_success_timestamp_seconds",
            "When a model was last published, rejected ones too; of the champion after a restart; 0: never.",
        )
        self.every = make.gauge(
            "srr_training_every_seconds", "Time between trainings by the clock (training.every); 0: not by the clock."
        )
        self.excluded = make.gauge(
            "srr_training_excluded_ratio",
            "Share of the window that refinement dropped; of the champion after a restart.",
        )
        self.contamination = make.gauge(
            "srr_training_contamination_ratio",
            "Estimated share of anomalies in the window; of the champion after a restart.",
        )
        self.agreement = make.gauge("srr_ensemble_agreement_ratio", "How far the ensemble agrees on what it rejects.")
        self.gate_decisions = make.counter(
            "srr_gate_decisions",
            "What the gate decided of new models; waiting: for a person.",
            decision=("promoted", "waiting", "rejected"),
        )
        self.rejections_in_a_row = make.gauge(
            "srr_gate_rejections_in_a_row", "New models that the gate rejected since it last let one pass."
        )
        self.gate_check = make.gauge("srr_gate_check", "What the gate last saw of a new model.", check=GATE_CHECKS)
        self.forgotten = make.gauge(
            "srr_training_forgotten_ratio",
            "Share of the newest records that the reference flags and the new model does not: "
            "slow poisoning, or drift.",
        )
        self.config_is_good, self.config_read_at = make.about_the_settings()
        make.about_the_process()
        make.start_at_zero()


class ApiMetrics:
    """What the API tells Prometheus."""

    def __init__(self, registry: CollectorRegistry) -> None:
        make = _Making(registry)
        self.descriptions = make.descriptions
        self.requests = make.counter(
            "srr_api_requests",
            "Requests answered by the API and the page, by class of status.",
            status=("2xx", "3xx", "4xx", "5xx"),
        )
        make.about_the_process()
        make.start_at_zero()


RoleMetrics = ScorerMetrics | TrainerMetrics | ApiMetrics
ROLES: Mapping[str, type[RoleMetrics]] = {"Scorer": ScorerMetrics, "Trainer": TrainerMetrics, "API": ApiMetrics}
"""Who has an endpoint → what it shows."""
