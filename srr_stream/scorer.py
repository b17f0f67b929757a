"""The scorer: read a batch, score it with the live model, publish the verdicts, commit.

One turn of the loop is :meth:`Scorer.turn`. Verdicts and dead letters are with the brokers before the offsets behind
them are committed; :mod:`consumers.delivery` says what becomes of a crash in between. Nothing is in the works between
two turns, and partitions come and go in a poll only: one that is taken away has been flushed and committed.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from consumers.decoding import Decoder
from consumers.delivery import Delivery
from consumers.polled import runs, timestamps
from consumers.records import BadRecord, Decoded, Position, RawRecord, Verdicts, event_id
from consumers.sources import Source
from srr_stream.health import Health
from srr_stream.judging import reasons_of, spare
from srr_stream.labels.known_normals import KnownNormals
from srr_stream.live_model import Live, LiveModel
from srr_stream.logs import get_logger
from srr_stream.metrics import ScorerMetrics
from srr_stream.pace import Pace
from srr_stream.statusz import ScorerBoard
from srr_stream.tracing import NoSpans, Tracing
from srr_stream.triggers import DriftTrigger

if TYPE_CHECKING:
    from models.detector import Scores

log = get_logger(__name__)


class Observer(Protocol):
    """Looks at what was judged, after it is published; never disturbs it."""

    def observe(self, live: Live, features: Mapping[str, NDArray[Any]], flagged: NDArray[np.bool_]) -> None:
        """Take a batch: field → ``(n, …)``, and ``(n,)`` whether each record was flagged by `live`."""


class Scorer:
    """Give every record a verdict, in order, until told to stop.

    Parameters
    ----------
    pace
        Says how many records make a batch. The slower they are to judge, the fewer: a turn takes about a second, then
        the group and the probes hear of this member again.
    n_reasons
        How many fields a flagged record's reason names.
    drift
        Watches the verdicts; when it is due, `on_drift` is called with its reason. None: nobody watches.
    observers
        Shown every batch after it is published.
    why_no_model
        Asked, while there is no model, what is waited for.
    heat_map_url
        Asked where the heat map of a flagged picture by a version is to be had. None: nowhere.
    known_normals
        Says which flagged records lie near one that a person marked normal; they are not flagged. Watches over the
        model see them flagged all the same. None: nobody says so.
    board
        Told what was done, for ``/statusz``.
    tracing
        Says which trace headers an alert has. None: those of its record.
    """

    def __init__(
        self,
        source: Source,
        decoder: Decoder,
        live_model: LiveModel,
        delivery: Delivery,
        *,
        pace: Pace,
        metrics: ScorerMetrics,
        health: Health,
        poll_timeout_s: float = 0.2,
        n_reasons: int = 5,
        drift: DriftTrigger | None = None,
        on_drift: Callable[[str], None] | None = None,
        observers: Sequence[Observer] = (),
        why_no_model: Callable[[], str] = lambda: "no model in the registry yet",
        heat_map_url: Callable[[RawRecord, int], str] | None = None,
        known_normals: KnownNormals | None = None,
        board: ScorerBoard | None = None,
        tracing: Tracing | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._source = source
        self._decoder = decoder
        self._live_model = live_model
        self._delivery = delivery
        self._pace = pace
        self._metrics = metrics
        self._health = health
        self._poll_timeout_s = poll_timeout_s
        self._n_reasons = n_reasons
        self.drift = drift
        self._on_drift = on_drift
        self._observers = observers
        self._why_no_model = why_no_model
        self._heat_map_url = heat_map_url
        self._known_normals = known_normals
        self._board = board or ScorerBoard()
        self._tracing = tracing or NoSpans()
        self._clock = clock
        self._is_holding = False
        self._judged_by: tuple[int, float] | None = None
        """Version and α."""
        self._lagging: set[Position] = set()

    def run(self, should_stop: Callable[[], bool], between_turns: Callable[[], None] = lambda: None) -> None:
        """Go round until `should_stop`; `between_turns` is called when nothing is in the works."""
        try:
            while not should_stop():
                between_turns()
                self.turn()
        finally:
            self._health.not_ready("stopping")

    def turn(self) -> int:
        """Do one batch and return how many records it had; without a model, hold."""
        self._health.beat()
        live = self._live_model.current
        if live is None:
            self._hold()
            return 0
        if self._is_holding:
            self._source.resume()
            self._is_holding = False
        self._notice(live)
        raw = self._source.poll(self._poll_timeout_s, self._pace.n_records)
        if raw:
            self._do(raw, live)
        self._report_positions()
        return len(raw)

    def adopt(self, *, n_reasons: int, drift: DriftTrigger | None) -> None:
        """Go by these from the next turn on."""
        self._n_reasons = n_reasons
        self.drift = drift
        if drift is None:
            self._metrics.drift.clear()

    def deliver_by(self, delivery: Delivery) -> None:
        """Publish by this from the next turn on; nothing is open between two turns."""
        self._delivery = delivery

    def _hold(self) -> None:
        """Keep the partitions without reading: what is not read is not lost, and the first model scores it."""
        self._source.pause()
        self._is_holding = True
        self._source.poll(self._poll_timeout_s)
        self._health.not_ready(f"holding, records stay in the log until the first model: {self._why_no_model()}")
        self._report_positions()

    def _do(self, raw: Sequence[RawRecord], live: Live) -> None:
        started = time.perf_counter()
        with self._timed("decode"):
            decoded = self._decoder.decode(raw)
        self._health.beat()
        verdicts = self._judge(decoded, live)
        self._pace.update(len(raw), time.perf_counter() - started)
        self._still_here()
        with self._timed("publish"):
            self._delivery.publish(verdicts, decoded.bad, self._wait)
        self._still_here()
        with self._timed("commit"):
            self._delivery.commit(positions_after(raw), self._wait)
        self._count(raw, verdicts, decoded.bad)
        self._watch_drift(verdicts)
        for observer in self._observers:
            observer.observe(live, decoded.batch.features, verdicts.flagged_by_model)

    def _still_here(self) -> None:
        """Tell the probes and the group that the loop is going round."""
        self._health.beat()
        self._source.stay()

    def _wait(self) -> None:
        """Note that the brokers take their time: nothing more is read until they have what there is.

        No beat: what waits for ever is not alive. The delivery gives up before.
        """
        self._source.stay()
        self._metrics.partitions_paused.set(len(self._source.assignment))
        self._health.not_ready("waiting: the brokers are slow to take the verdicts; nothing more is read meanwhile")

    def _judge(self, decoded: Decoded, live: Live) -> Verdicts:
        batch, began_ns = decoded.batch, time.time_ns()
        features = batch.features
        with self._timed("score"):
            scores, known_normals = spare(live.model.score(features), features, live, self._known_normals)
        with self._timed("explain"):
            contributions = reasons_of(features, scores.flagged, live, self._n_reasons)
        return Verdicts(
            batch,
            live.version,
            scores.score,
            scores.p_value,
            scores.severity,
            scores.flagged,
            contributions,
            self._heat_maps(batch.raw, scores.flagged, live),
            self._trace_headers(batch.raw, scores, live, began_ns),
            known_normals,
        )

    def _heat_maps(self, raw: Sequence[RawRecord], flagged: NDArray[np.bool_], live: Live) -> dict[int, str]:
        """Return where the heat maps of the flagged rows are to be had."""
        if self._heat_map_url is None or not live.model.takes_pictures:
            return {}
        rows: list[int] = np.flatnonzero(flagged).tolist()
        return {row: self._heat_map_url(raw[row], live.version) for row in rows}

    def _trace_headers(
        self, raw: Sequence[RawRecord], scores: Scores, live: Live, began_ns: int
    ) -> dict[int, Sequence[tuple[str, bytes | None]]]:
        rows: list[int] = np.flatnonzero(scores.flagged).tolist()
        return {
            row: self._tracing.flagged(
                raw[row], version=live.version, severity=float(scores.severity[row]), began_ns=began_ns
            )
            for row in rows
        }

    def _count(self, raw: Sequence[RawRecord], verdicts: Verdicts, bad: Sequence[BadRecord]) -> None:
        metrics, now = self._metrics, self._clock()
        for run in runs(raw):
            metrics.records_consumed.labels(run.topic).inc(run.n)
            if (run.topic, run.partition) in self._lagging:
                metrics.partition_last_read.labels(run.topic, str(run.partition)).set(now)
        good, stop = verdicts.batch.raw, 0
        for run in runs(good):
            start, stop = stop, stop + run.n
            n_flagged = int(verdicts.flagged[start:stop].sum())
            metrics.records_scored.labels(run.topic, "flagged").inc(n_flagged)
            metrics.records_scored.labels(run.topic, "normal").inc(run.n - n_flagged)
        for topic, n in Counter(good[row].topic for row in verdicts.known_normals).items():
            metrics.known_normal.labels(topic).inc(n)
        for (topic, reason), n in Counter((record.raw.topic, record.reason) for record in bad).items():
            metrics.records_dead_lettered.labels(topic, reason).inc(n)
        if good:
            metrics.severity.observe(verdicts.severity, lambda row: event_id(good[row]), at=now)
            produced_at = timestamps(good) / 1000
            metrics.event_latency.observe(np.maximum(now - produced_at, 0.0), lambda row: event_id(good[row]), at=now)
            metrics.last_scored.set(now)
        self._board.count(verdicts, len(bad))

    def _watch_drift(self, verdicts: Verdicts) -> None:
        if self.drift is None:
            return
        self.drift.update(verdicts.flagged_by_model, verdicts.severity)
        for name, value in self.drift.statistics.items():
            self._metrics.drift.labels(name).set(value)
        if self.drift.reason is not None and self._on_drift is not None:
            log.info("drift: %s", self.drift.reason, version=verdicts.version)
            self._on_drift(self.drift.reason)
            self.drift.reset()

    def _notice(self, live: Live) -> None:
        """Take note of a swap: a new model, or another α, has rates of its own; the watch over them begins anew."""
        judged_by = live.version, live.model.false_alarm_rate
        if judged_by == self._judged_by:
            return
        self._judged_by = judged_by
        if self.drift is not None:
            self.drift.reset()

    def _report_positions(self) -> None:
        assigned = self._source.assignment
        self._metrics.partitions_assigned.set(len(assigned))
        self._metrics.partitions_paused.set(len(assigned) if self._is_holding else 0)
        lag = self._source.lag()
        for topic, partition in self._lagging - set(lag):
            self._metrics.partition_lag.remove(topic, str(partition))
            self._metrics.partition_last_read.remove(topic, str(partition))
        for topic, partition in set(lag) - self._lagging:
            self._metrics.partition_last_read.labels(topic, str(partition)).set(self._clock())
        for (topic, partition), n in lag.items():
            self._metrics.partition_lag.labels(topic, str(partition)).set(n)
        self._lagging = set(lag)
        self._board.note_positions(len(assigned), lag)
        if not self._is_holding:
            if assigned:
                version = self._judged_by[0] if self._judged_by is not None else None
                self._health.ready(f"scoring {len(assigned)} partitions with version {version}")
            else:
                self._health.not_ready("waiting for partitions: the group has not assigned any to this member")

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        with self._metrics.stage_duration.labels(stage).time():
            yield


def positions_after(raw: Sequence[RawRecord]) -> Mapping[Position, int]:
    """Return the next offset to read of every partition in `raw`, whose records are in order within a partition."""
    return {(run.topic, run.partition): run.next_offset for run in runs(raw)}
