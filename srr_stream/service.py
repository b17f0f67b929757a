"""The service: a scorer in this process, a trainer in a process beside it, and what keeps them going.

A lost broker is backed off from in one place, here: the connections are made anew and reading goes on from what was
committed. Scoring and training know nothing of it.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

from prometheus_client import CollectorRegistry
from threadpoolctl import threadpool_limits

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
from srr_stream.errors import RegistryError
from srr_stream.health import Health
from srr_stream.live_model import Live
from srr_stream.metrics import ScorerMetrics
from srr_stream.scorer import Observer, Scorer
from srr_stream.settings import Settings
from srr_stream.shadow import Shadow
from srr_stream.trainer_process import TrainerProcess

log = logging.getLogger(__name__)

_FIRST_RETRY_S = 0.5
_MAX_RETRY_S = 15.0
_STEADY_S = 30.0
"""A connection that lasted so long was good: the next retry is quick again."""
_SWITCH_S = 0.001
"""For so long a thread that loads a model or answers a scrape may hold up the scoring one; Python's default is 5 ms."""
_CAUSES: dict[type[ConsumersError], str] = {
    BrokerUnavailable: "broker",
    SinkError: "sink",
    MembershipLost: "membership",
    TopicMissing: "topic",
    NotAuthorized: "rights",
}
"""Why a connection is made anew, as a metric label."""


class Service:
    """Score the input topics and, unless `has_trainer` is false, keep a trainer process going beside.

    Parameters
    ----------
    on_swap
        Called with every model that becomes live, from the thread that loaded it.
    """

    def __init__(
        self, settings: Settings, *, has_trainer: bool = True, on_swap: Callable[[Live], None] = lambda live: None
    ) -> None:
        self._settings = settings
        self._on_swap = on_swap
        self.metrics_registry = CollectorRegistry()
        self.metrics = ScorerMetrics(self.metrics_registry)
        self.health = Health(live_timeout_s=settings.http.live_timeout.total_seconds())
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
        watch = assembly.make_swap_watch(settings, self.live_model, self.metrics)
        if watch is not None:
            self._observers.append(watch)
        self.trainer = TrainerProcess(settings) if has_trainer else None
        self._pace = assembly.make_pace(settings)
        self._transactional_id = assembly.transactional_id(settings)
        self._was_connected = False
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
            If the records are pictures and Pillow is not installed.
        OSError
            If the port of the endpoint is taken.
        """
        http = self._settings.http
        heat_maps = assembly.make_heat_maps(self._settings, self.registry, self.live_model)
        endpoint = HttpEndpoint(
            http.host, http.scorer_port, registry=self.metrics_registry, health=self.health, heat_maps=heat_maps
        )
        self.port = endpoint.port
        self.listens.set()
        log.info("metrics and health: http://%s:%d/metrics, /livez, /readyz", http.host, endpoint.port)
        # A second thread of linear algebra waits busily on batches this small, and takes a processor from the trainer.
        threadpool_limits(1)
        sys.setswitchinterval(_SWITCH_S)
        try:
            self.live_model.start()
            if self.trainer is not None:
                self.trainer.start()
            self._score(should_stop)
        finally:
            if self.trainer is not None:
                self.trainer.stop()
            self.live_model.stop()
            endpoint.close()
            heat_maps.close()

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
                log.warning("%s; next try in %g s", error, retry_s)
                self._wait(retry_s, str(error), should_stop)
                retry_s = min(2 * retry_s, _MAX_RETRY_S)

    def _score_while_connected(self, should_stop: Callable[[], bool]) -> None:
        settings = self._settings
        self.health.not_ready(f"connecting to {settings.kafka.bootstrap_servers}")
        with ExitStack() as stack:
            # The sink first: it settles what a transaction left open, and only then the committed offsets are final.
            sink = assembly.make_sink(settings, transactional_id=self._transactional_id)
            stack.callback(sink.close)
            source = assembly.make_source(
                settings, on_rebalance=self.metrics.rebalances.inc, on_skipped=self._note_skipped
            )
            stack.callback(source.close)
            stack.callback(sink.close)  # before the source leaves the group: what is open is taken back first
            self._was_connected = True
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
            )
            scorer.run(should_stop)

    def _wait(self, seconds: float, why: str, should_stop: Callable[[], bool]) -> None:
        """Stay alive, but not ready, for a while."""
        until = time.monotonic() + seconds
        pause = threading.Event()
        while time.monotonic() < until and not should_stop():
            self.health.beat()
            self.health.not_ready(why)
            pause.wait(0.1)

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

    def _note_swap(self, live: Live) -> None:
        metrics = self.metrics
        metrics.model_swaps.labels("swapped").inc()
        metrics.model_info.clear()
        metrics.model_info.labels(str(live.version)).set(1)
        metrics.model_loaded.set_to_current_time()
        metrics.model_window.set(live.manifest.window["n_records"])
        self._on_swap(live)
