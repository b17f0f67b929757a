"""The service: a scorer in this process, a trainer in a process beside it, and what keeps them going.

A lost broker is backed off from in one place, here: the connections are made anew and reading goes on from what was
committed. Scoring and training know nothing of it.
"""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry

from consumers.errors import (
    BrokerUnavailable,
    ConsumersError,
    MembershipLost,
    NotAuthorized,
    SinkError,
    TopicMissing,
)
from consumers.records import Position
from srr_stream import assembly
from srr_stream.api import HttpEndpoint
from srr_stream.api_process import ApiProcess
from srr_stream.errors import RegistryError
from srr_stream.health import Health
from srr_stream.live_model import Live
from srr_stream.logs import get_logger
from srr_stream.metrics import ScorerMetrics, package_version
from srr_stream.reload import Reloader, Reloads
from srr_stream.scorer import Observer, Scorer
from srr_stream.settings import Settings
from srr_stream.shadow import Shadow
from srr_stream.statusz import ScorerBoard, scorer_statusz
from srr_stream.threads import limit_threads
from srr_stream.tracing import NoSpans, Tracing
from srr_stream.trainer_process import TrainerProcess

if TYPE_CHECKING:
    from consumers.sinks.kafka import KafkaSink
    from consumers.sources.kafka import KafkaSource
    from srr_stream.swap_watch import SwapWatch
    from srr_stream.trainer import Status

log = get_logger(__name__)

_FIRST_RETRY_S = 0.5
_MAX_RETRY_S = 15.0
_STEADY_S = 30.0
"""A connection that lasted so long was good: the next retry is quick again."""
SWITCH_S = 0.001
"""For so long a thread that loads a model or answers a scrape may hold up the scoring one; Python's default is 5 ms."""
_COLLECT_AFTER = 100_000
"""Objects that were made and are not gone yet: a batch or two of a fast client. Python's default is 700."""
_CAUSES: dict[type[ConsumersError], str] = {
    BrokerUnavailable: "broker",
    SinkError: "sink",
    MembershipLost: "membership",
    TopicMissing: "topic",
    NotAuthorized: "rights",
}
"""Why a connection is made anew, as a metric label."""


@dataclass
class _Connected:
    """What is made anew with every connection; the sink also when the outputs change."""

    source: KafkaSource
    sink: KafkaSink
    scorer: Scorer


class Service:
    """Score the input topics and, unless `has_trainer` is false, keep a trainer process going beside.

    Parameters
    ----------
    has_api
        Keep a process for the API and the page going, too.
    on_swap
        Called with every model that becomes live, from the thread that loaded it.
    reloads
        Says when to read the settings file again; looked at between two batches. None: never.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        has_trainer: bool = True,
        has_api: bool = False,
        on_swap: Callable[[Live], None] = lambda live: None,
        reloads: Reloads | None = None,
    ) -> None:
        self._settings = settings
        self._on_swap = on_swap
        self.metrics_registry = CollectorRegistry()
        self.metrics = ScorerMetrics(self.metrics_registry)
        self.metrics.start_at_zero(topic=settings.input.topics)
        self.metrics.false_alarm_rate.set(settings.threshold.false_alarm_rate)
        self.health = Health(live_timeout_s=settings.http.live_timeout.total_seconds())
        self.metrics.loop_silent.set_function(lambda: self.health.silent_for_s)
        self.registry = assembly.make_registry(settings)
        self.live_model = assembly.make_live_model(
            settings,
            self.registry,
            on_swap=self._note_swap,
            on_refusal=lambda version, reason: self.metrics.model_swaps.labels(f"refused_{reason}").inc(),
            on_rollback=lambda version, reason: self.metrics.rollbacks.labels("flagged_rate").inc(),
        )
        # Not one a connection: what they have counted outlives an outage.
        self._observers: list[Observer] = [Shadow(self.live_model, metrics=self.metrics)]
        self._swap_watch: SwapWatch | None = None
        self._watch_swaps(settings)
        self.api = ApiProcess(settings, on_restart=self.metrics.api_restarts.inc) if has_api else None
        on_restart = self.metrics.trainer_restarts.inc
        self.trainer = (
            TrainerProcess(settings, on_status=self._note_trainer, on_restart=on_restart) if has_trainer else None
        )
        self._labels = assembly.make_label_watch(settings, self.live_model, self.metrics)
        self._known_normals = assembly.make_known_normals(settings, self._labels)
        self._pace = assembly.make_pace(settings)
        self._transactional_id = assembly.transactional_id(settings)
        self._was_connected = False
        self._connected: _Connected | None = None
        self._tracing: Tracing = NoSpans()
        gauges = {"is_good": self.metrics.config_is_good, "read_at": self.metrics.config_read_at}
        self._reloader = Reloader(reloads, settings, apply=self._adopt, **gauges) if reloads is not None else None
        self._board = ScorerBoard()
        self._loaded_at: float | None = None
        self.port = 0
        """Where the scorer's metrics are, once it runs."""
        self.listens = threading.Event()
        """Set as soon as `port` is known."""

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Work until `should_stop`; then finish the batch, commit, leave the group and stop the trainer.

        Raises
        ------
        TopicMissing, NotAuthorized
            At the start, if an operator must act before anything can work.
        LibraryMissing
            If the records are pictures and Pillow is not installed, or spans are wanted and OpenTelemetry is not.
        OSError
            If the port of the endpoint is taken.
        """
        http = self._settings.http
        self._tracing = assembly.make_tracing(self._settings, "scorer")
        heat_maps = assembly.make_heat_maps(self._settings, self.registry, self.live_model)
        endpoint = HttpEndpoint(
            http.host,
            http.scorer_port,
            registry=self.metrics_registry,
            health=self.health,
            heat_maps=heat_maps,
            statusz=self._statusz,
        )
        self.port = endpoint.port
        self.listens.set()
        log.info("metrics and health: http://%s:%d/metrics, /livez, /readyz", http.host, endpoint.port)
        # A second thread of linear algebra waits busily on batches this small, and takes a processor from the trainer.
        limit_threads(1)
        sys.setswitchinterval(SWITCH_S)
        # Every record that is read is an object that the collector would walk, and all of the program with it.
        gc.freeze()
        gc.set_threshold(_COLLECT_AFTER)
        try:
            self.live_model.start()
            if self.trainer is not None:
                self.trainer.start()
            if self.api is not None:
                self.api.tell(scorer_port=endpoint.port)
                self.api.start()
            if self._labels is not None:
                self.health.not_ready("reading what people say of records (labels.topic)")
                self._labels.start(should_stop)
            self._score(should_stop)
        finally:
            if self._labels is not None:
                self._labels.stop()
            if self.trainer is not None:
                self.trainer.stop()
            if self.api is not None:
                self.api.stop()
            self.live_model.stop()
            endpoint.close()
            heat_maps.close()
            self._tracing.close()

    def _score(self, should_stop: Callable[[], bool]) -> None:
        retry_s = _FIRST_RETRY_S
        while not should_stop():
            started = time.monotonic()
            try:
                self._score_while_connected(should_stop)
            except tuple(_CAUSES) as error:
                if isinstance(error, (TopicMissing, NotAuthorized)) and not self._was_connected:
                    raise  # never right: whoever starts it must know
                if time.monotonic() - started > _STEADY_S:
                    retry_s = _FIRST_RETRY_S
                self.metrics.reconnects.labels(_CAUSES[type(error)]).inc()
                self._board.trouble = _CAUSES[type(error)]
                log.warning("%s; next try in %g s", error, retry_s, cause=_CAUSES[type(error)])
                self._wait(retry_s, str(error), should_stop)
                retry_s = min(2 * retry_s, _MAX_RETRY_S)

    def _score_while_connected(self, should_stop: Callable[[], bool]) -> None:
        settings = self._settings
        self.health.not_ready(f"connecting to {settings.kafka.bootstrap_servers}")
        with ExitStack() as stack:
            # The sink first: it settles what a transaction left open, and only then the committed offsets are final.
            sink = assembly.make_sink(settings, transactional_id=self._transactional_id)
            stack.callback(self._let_go, sink)
            source = assembly.make_source(
                settings, on_rebalance=self.metrics.rebalances.inc, on_skipped=self._note_skipped
            )
            stack.callback(source.close)
            stack.callback(self._let_go, sink)  # before the source leaves the group: what is open is taken back first
            self._was_connected = True
            self._board.trouble = None
            scorer = Scorer(
                source,
                assembly.make_decoder(settings),
                self.live_model,
                assembly.make_delivery(settings, source, sink),
                pace=self._pace,
                metrics=self.metrics,
                health=self.health,
                poll_timeout_s=settings.input.poll_timeout.total_seconds(),
                n_reasons=settings.output.n_reasons,
                drift=assembly.make_drift_trigger(settings),
                on_drift=self._ask_for_training,
                observers=self._observers,
                why_no_model=self._why_no_model,
                heat_map_url=assembly.heat_map_url(settings),
                known_normals=self._known_normals,
                board=self._board,
                tracing=self._tracing,
            )
            self._connected = _Connected(source, sink, scorer)
            scorer.run(should_stop, between_turns=self._look_for_settings)

    def _let_go(self, sink: KafkaSink) -> None:
        """Close the sink, or the one that has taken its place."""
        connected, self._connected = self._connected, None
        if connected is not None:
            connected.sink.close()
        sink.close()

    def _wait(self, seconds: float, why: str, should_stop: Callable[[], bool]) -> None:
        """Stay alive, but not ready, for a while."""
        until = time.monotonic() + seconds
        pause = threading.Event()
        while time.monotonic() < until and not should_stop():
            self.health.beat()
            self.health.not_ready(why)
            self._look_for_settings()
            pause.wait(0.1)

    # --- changed settings -------------------------------------------------------------------------------------------

    def _look_for_settings(self) -> None:
        if self._reloader is not None:
            self._reloader.look()

    def _adopt(self, settings: Settings, changed: frozenset[str]) -> None:
        """Go by checked settings from the next batch on. What can fail comes first: then nothing has changed."""
        if any(key.startswith("output.") for key in changed - {"output.n_reasons"}):
            self._replace_sink(settings)
        self._settings = settings
        rate = settings.threshold.false_alarm_rate
        self.live_model.set_false_alarm_rate(rate)
        self.metrics.false_alarm_rate.set(rate)
        if self._labels is not None:
            self._labels.note()
        self._watch_swaps(settings)
        if self._connected is not None:
            scorer = self._connected.scorer
            has_other = "training.on_drift" in changed
            drift = assembly.make_drift_trigger(settings) if has_other else scorer.drift
            scorer.adopt(n_reasons=settings.output.n_reasons, drift=drift)
        if self.trainer is not None and changed:
            self.trainer.hand_over(settings)
        if self.api is not None and changed:
            self.api.hand_over(settings)
        assembly.log_as_set(settings)

    def _replace_sink(self, settings: Settings) -> None:
        """Write somewhere else from the next batch on; raises if that cannot be, and all stays as it is.

        Between two batches nothing is in the works, so nothing is lost or doubled. In transactions the new sink puts
        out the old one, which has the same id; should it fail after that, the connection is made anew, by the old
        settings.
        """
        sink = assembly.make_sink(settings, transactional_id=self._transactional_id)
        if self._connected is None:  # it was only tried: the next connection has one of its own
            sink.close()
            return
        former, self._connected.sink = self._connected.sink, sink
        delivery = assembly.make_delivery(settings, self._connected.source, sink)
        self._connected.scorer.deliver_by(delivery)
        former.close()

    def _watch_swaps(self, settings: Settings) -> None:
        """Watch over freshly swapped models by these bounds, or not any more."""
        gate, watch = settings.gate, self._swap_watch
        self.live_model.keeps_previous = gate.auto_rollback
        if watch is not None and gate.auto_rollback:
            watch.set_bounds(
                max_flagged_ratio=gate.max_flagged_ratio,
                max_flagged_factor=gate.max_flagged_factor,
                probation=gate.probation,
            )
        elif watch is not None:
            self._observers.remove(watch)
            self._swap_watch = None
            watch.end()
        else:
            self._swap_watch = assembly.make_swap_watch(settings, self.live_model, self.metrics)
            self._observers += [self._swap_watch] if self._swap_watch is not None else []

    def _why_no_model(self) -> str:
        """Say what the first model waits for, as far as is known here."""
        if self.live_model.problem is not None:
            return self.live_model.problem
        challenger = self.live_model.challenger
        if challenger is not None:
            n = challenger.version
            return f"version {n} waits for a person to promote it (gate.mode manual): srr-stream models promote {n}"
        detail = self.trainer.status.detail if self.trainer is not None else ""
        return detail or "no model in the registry yet"

    def _note_skipped(self, position: Position, n_offsets: int) -> None:
        topic, partition = position
        self.metrics.records_skipped.labels(topic, str(partition)).inc(n_offsets)

    def _ask_for_training(self, reason: str) -> None:
        try:
            self.registry.request_training(f"drift: {reason}")
        except RegistryError as error:  # a request is worth less than the scoring that it came from
            log.warning("no training asked for: %s", error)

    def _note_trainer(self, status: Status) -> None:
        if self.api is not None:
            self.api.tell(trainer_port=status.port)

    def _statusz(self, with_history: bool) -> Mapping[str, Any]:
        return scorer_statusz(
            self._board,
            self.health,
            self.live_model,
            package=package_version(),
            loaded_at=self._loaded_at,
            with_history=with_history,
        )

    def _note_swap(self, live: Live) -> None:
        self._loaded_at = time.time()
        metrics = self.metrics
        metrics.model_swaps.labels("swapped").inc()
        metrics.model_info.clear()
        metrics.model_info.labels(str(live.version)).set(1)
        metrics.model_loaded.set_to_current_time()
        metrics.model_window.set(live.manifest.window["n_records"])
        self._on_swap(live)
