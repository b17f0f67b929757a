"""A backtest: the production path over a past stream, to see what would have been flagged.

Nothing is imitated: decoder, scorer, trainer with its window, gate, calibration, rollback and registry are those of the
service. Only three things are others: the log, which grows as the recording is gone through; the sink, which keeps
what was said; and the clock, which goes by the records.

Of one step of the stream the records are scored first, by the model that is live; then the trainer looks whether a
training is due. So no model ever scores a record that it could have been trained on, save for those that waited for the
first one, as in production: there they wait in the log.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from consumers.delivery import AtLeastOnce
from consumers.records import BadRecord, Contribution, Verdicts, event_id
from consumers.sinks import Sink, just_wait
from srr_stream import assembly
from srr_stream.backtest.recording import GrowingLog, GrowingSource, Recording
from srr_stream.errors import NotEnoughRecords
from srr_stream.health import Health
from srr_stream.pace import Pace

if TYPE_CHECKING:
    from srr_stream.live_model import Live
    from srr_stream.settings import Settings
    from srr_stream.trainer import Outcome, Status

log = logging.getLogger(__name__)

STEP = 500
"""Records between two looks whether a training is due. Of pictures fewer, as of everything about them."""
STEP_OF_PICTURES = 128
_NEVER_SILENT_S = 1e9
_LONGEST_REST_S = 600.0
_FIRST = 100
"""Records whose times say when the clock begins."""


@dataclass(frozen=True)
class Lag:
    """How long a training takes, in the stream's time: the old model goes on scoring meanwhile."""

    seconds: float = 0.0
    n_records: int = 0

    @property
    def is_none(self) -> bool:
        """Whether a model is there as soon as its training is due."""
        return self.seconds == 0 and self.n_records == 0


@dataclass(frozen=True)
class Took:
    """A model that became live."""

    at: int
    """The first record that it could score."""
    time_ms: int
    version: int
    representation: str
    reason: str
    n_window: int
    excluded_ratio: float


@dataclass(frozen=True)
class Trained:
    """A training that came to an end."""

    at: int
    """So many records had come when it was due."""
    time_ms: int
    version: int
    representation: str
    reason: str
    decision: str
    """promoted, waiting or rejected."""
    gate: str
    n_window: int
    excluded_ratio: float


@dataclass(frozen=True)
class Note:
    """Something that went otherwise than planned."""

    at: int
    text: str


@dataclass
class Findings:
    """What was said of every record, in the order of the stream."""

    score: NDArray[np.float64]
    """``(n,)``, NaN where there is no verdict."""
    p_value: NDArray[np.float64]
    severity: NDArray[np.float64]
    flagged: NDArray[np.bool_]
    version: NDArray[np.int32]
    """0 where there is no verdict."""
    reasons: dict[int, Sequence[Contribution]] = field(default_factory=dict)
    """Of flagged records."""
    bad: dict[int, tuple[str, str]] = field(default_factory=dict)
    """Of records that could not be read: reason and detail."""

    @classmethod
    def empty(cls, n: int) -> Findings:
        """Return findings that say nothing of `n` records."""
        nothing = np.full(n, np.nan)
        return cls(nothing, nothing.copy(), nothing.copy(), np.zeros(n, np.bool_), np.zeros(n, np.int32))

    @property
    def is_scored(self) -> NDArray[np.bool_]:
        """Whether a record has a verdict, ``(n,)``."""
        return self.version > 0


@dataclass(frozen=True)
class Result:
    """What came of a backtest."""

    recording: Recording
    n_done: int
    """Records gone through: all, unless somebody stopped it."""
    findings: Findings
    took: tuple[Took, ...]
    trained: tuple[Trained, ...]
    notes: tuple[Note, ...]
    n_waited: int
    """Records that waited for the first model."""
    false_alarm_rate: float
    seconds: float
    seconds_training: float

    @property
    def flagged_rows(self) -> list[int]:
        """Rows of the flagged records, in the order of the stream."""
        rows: list[int] = np.flatnonzero(self.findings.flagged).tolist()
        return rows

    def id_of(self, row: int) -> str:
        """Return the event id of a record."""
        return event_id(self.recording.records[row])


def backtest(
    settings: Settings,
    recording: Recording,
    *,
    is_retrained: bool = True,
    lag: Lag = Lag(),
    sink: Sink | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[int, str], None] = lambda n, doing: None,
) -> Result:
    """Go through a recording as the service would have.

    Parameters
    ----------
    settings
        As of the service; models go to ``registry.url``, which must be empty. Not followed, since there is nobody to
        promote and no topic to read: ``gate.mode: manual`` (what passes is promoted), ``gate.reference_version``,
        ``labels.topic``.
    is_retrained
        Whether later trainings take place. The first model, and the first one with the configured representation, come
        in any case.
    lag
        How long a training takes in the stream's time.
    sink
        Given every verdict and every bad record too.
    on_progress
        Told how many records are done, and what is being done.

    Raises
    ------
    NotEnoughRecords
        If no model came of it: too few records, or none that passed the gate.
    RegistryError, SinkError
        If they cannot be written.
    """
    run = _Run(_as_backtested(settings, is_retrained=is_retrained), recording, lag, sink, should_stop, on_progress)
    with closing(run):
        return run.go()


def _as_backtested(settings: Settings, *, is_retrained: bool) -> Settings:
    changes: dict[str, object] = {
        "labels": settings.labels.model_copy(update={"topic": None}),
        "gate": settings.gate.model_copy(
            update={
                "mode": "automatic" if settings.gate.mode == "manual" else settings.gate.mode,
                "reference_version": None,
            }
        ),
    }
    if not is_retrained:
        never = {"every": None, "every_records": None, "on_drift": False}
        changes["training"] = settings.training.model_copy(update=never)
    return settings.model_copy(update=changes)


class _Clock:
    """Seconds since the epoch, by the records: the median of some, so that one with a wrong time moves nothing."""

    def __init__(self, time_ms: NDArray[np.int64]) -> None:
        self.of_records_s = float(np.median(time_ms)) / 1000
        self._skipped_s = 0.0

    def __call__(self) -> float:
        return self.of_records_s + self._skipped_s

    def advance(self, time_ms: NDArray[np.int64]) -> None:
        """Take the times of the records that came; the clock never goes back."""
        if len(time_ms):
            self.of_records_s = max(self.of_records_s, float(np.median(time_ms)) / 1000)

    def skip(self, seconds: float) -> None:
        """Let time pass in which no record comes."""
        self._skipped_s += seconds


class _SteadyPace(Pace):
    """Batches of one size: what is looked at in every tenth record must not depend on how busy the machine is."""

    def __init__(self, n_records: int) -> None:
        super().__init__(n_records)
        self.n_records = n_records

    def update(self, n_records: int, seconds: float) -> None:
        """Change nothing."""


class _Keeper:
    """A sink that keeps what was said, by the record's place in the stream."""

    def __init__(self, recording: Recording, also: Sink | None) -> None:
        self.findings = Findings.empty(len(recording))
        self._recording = recording
        self._also = also
        self._at = 0
        self._verdicts: Verdicts | None = None
        self._bad: Sequence[BadRecord] = ()

    def write(self, verdicts: Verdicts) -> None:
        self._verdicts = verdicts
        if self._also is not None:
            self._also.write(verdicts)

    def write_bad(self, bad: Sequence[BadRecord]) -> None:
        self._bad = bad
        if self._also is not None:
            self._also.write_bad(bad)

    def flush(self, while_waiting: Callable[[], None] = just_wait) -> None:
        verdicts, bad = self._verdicts, self._bad
        assert verdicts is not None
        start, stop = self._at, self._at + len(verdicts) + len(bad)
        rows = np.arange(start, stop)
        if bad:
            why = {id(each.raw): (each.reason, each.detail) for each in bad}
            batch = self._recording.records[start:stop]
            self.findings.bad |= {start + i: why[id(raw)] for i, raw in enumerate(batch) if id(raw) in why}
            rows = np.array([row for row in rows.tolist() if row not in self.findings.bad], dtype=np.intp)
        findings = self.findings
        findings.score[rows], findings.p_value[rows] = verdicts.score, verdicts.p_value
        findings.severity[rows], findings.flagged[rows] = verdicts.severity, verdicts.flagged
        findings.version[rows] = verdicts.version
        findings.reasons |= {int(rows[i]): parts for i, parts in verdicts.contributions.items()}
        self._at, self._verdicts, self._bad = stop, None, ()
        if self._also is not None:
            self._also.flush(while_waiting)

    def close(self) -> None:
        """Nothing to let go: whoever gave the other sink closes it."""


class _Run:
    """One backtest."""

    def __init__(
        self,
        settings: Settings,
        recording: Recording,
        lag: Lag,
        sink: Sink | None,
        should_stop: Callable[[], bool],
        on_progress: Callable[[int, str], None],
    ) -> None:
        from prometheus_client import CollectorRegistry

        from srr_stream.metrics import ScorerMetrics, TrainerMetrics
        from srr_stream.scorer import Observer, Scorer
        from srr_stream.trainer_process import make_trainer

        self._settings = settings
        self._recording = recording
        self._lag = lag
        self._should_stop = should_stop
        self._on_progress = on_progress
        self._log = GrowingLog(recording)
        self._source = GrowingSource(recording, self._log)
        self._clock = _Clock(recording.time_ms[:_FIRST])
        self._keeper = _Keeper(recording, sink)
        self._took: list[Took] = []
        self._trained: list[Trained] = []
        self._notes: list[Note] = []
        self._n_waited = 0
        self._seconds_training = 0.0
        self._ready_at: tuple[float, int] | None = None
        """When the training under way ends: seconds, and records."""
        registry = assembly.make_registry(settings)
        metrics = ScorerMetrics(CollectorRegistry())
        self._live_model = assembly.make_live_model(
            settings, registry, on_swap=self._note_swap, on_rollback=lambda version, reason: self._note(reason)
        )
        has_pictures = assembly.record_schema(settings.record).image_field is not None
        self._step = STEP_OF_PICTURES if has_pictures else STEP
        watch = assembly.make_swap_watch(settings, self._live_model, metrics)
        observers: list[Observer] = [watch] if watch is not None else []
        self._scorer = Scorer(
            self._source,
            assembly.make_decoder(settings),
            self._live_model,
            AtLeastOnce(self._source, self._keeper),
            pace=_SteadyPace(self._step),
            metrics=metrics,
            health=Health(live_timeout_s=_NEVER_SILENT_S),
            poll_timeout_s=0.0,
            n_reasons=settings.output.n_reasons,
            drift=assembly.make_drift_trigger(settings),
            on_drift=lambda reason: registry.request_training(f"drift: {reason}"),
            observers=observers,
        )
        self._trainer_health = Health(live_timeout_s=_NEVER_SILENT_S)
        self._trainer = make_trainer(
            settings,
            metrics=TrainerMetrics(CollectorRegistry()),
            health=self._trainer_health,
            on_status=self._hear,
            reader=assembly.make_window_reader(settings, log=self._log, clock=lambda: self._clock.of_records_s),
            clock=self._clock,
        )

    def go(self) -> Result:
        from threadpoolctl import threadpool_limits

        started = time.perf_counter()
        with threadpool_limits(1):  # as the service: how many threads share a sum may change its last bit
            try:
                for n in self._cuts():
                    if self._should_stop():
                        break
                    self._come(n)
            except InterruptedError:  # told to stop in the middle of a training
                log.info("stopped while training")
        findings = self._keeper.findings
        if not findings.is_scored.any() and not self._should_stop():
            raise NotEnoughRecords(
                f"{self._recording.name}: no model came of {len(self._recording):,} records: "
                f"{self._trainer_health.reason}"
            )
        return Result(
            recording=self._recording,
            n_done=self._source.at,
            findings=findings,
            took=tuple(self._took),
            trained=tuple(self._trained),
            notes=tuple(self._notes),
            n_waited=self._n_waited,
            false_alarm_rate=self._settings.threshold.false_alarm_rate,
            seconds=time.perf_counter() - started,
            seconds_training=self._seconds_training,
        )

    def close(self) -> None:
        self._trainer.close()

    def _cuts(self) -> Iterator[int]:
        """Yield how many records have come at every step; a step ends where a training may be due."""
        every, n_all, first = (
            self._settings.training.every_records,
            len(self._recording),
            self._settings.window.min_size,
        )
        n = 0
        while n < n_all:
            due = [n + self._step, n_all, first]
            if every is not None and self._trained:
                due.append(self._trained[-1].at + every)
            n = min(stop for stop in due if stop > n)
            yield n

    def _come(self, n: int) -> None:
        """Let records come, have them scored, and trained on if it is due."""
        self._clock.advance(self._recording.time_ms[self._log.n : n])
        self._log.grow(n)
        self._score()
        is_last = n == len(self._recording)
        if not self._took and (is_last or self._recording.supposed_rate is not None):
            # The trainer rests after it failed. Where the times are not real, or no more records come, it has rested.
            self._clock.skip(_LONGEST_REST_S)
        while self._train():
            self._score()

    def _score(self) -> None:
        while self._scorer.turn():
            self._on_progress(self._source.at, "")

    def _train(self) -> bool:
        """Do what is due now; return whether another model is live, so that it is worth looking again."""
        if self._ready_at is not None:
            seconds, n_records = self._ready_at
            if self._clock() < seconds or self._log.n < n_records:
                return False
            self._ready_at = None
            return self._live_model.refresh()
        self._live_model.refresh()  # a rollback may have been asked for
        started = time.perf_counter()
        outcome = self._trainer.turn()
        if outcome is None:
            return False
        self._seconds_training += time.perf_counter() - started
        self._trained.append(self._told(outcome))
        if self._lag.is_none:
            return self._live_model.refresh()
        self._ready_at = self._clock() + self._lag.seconds, self._log.n + self._lag.n_records
        return False

    def _told(self, outcome: Outcome) -> Trained:
        manifest = outcome.manifest
        return Trained(
            self._log.n,
            round(self._clock() * 1000),
            manifest.version,
            str(manifest.model["representation"]),
            manifest.reason,
            outcome.decision,
            outcome.report.reason,
            int(manifest.window["n_records"]),
            float(manifest.training["excluded_ratio"]),
        )

    def _note_swap(self, live: Live) -> None:
        if not self._took:
            self._n_waited = self._log.n
        manifest = live.manifest
        self._took.append(
            Took(
                self._source.at,
                int(self._recording.time_ms[min(self._source.at, len(self._recording) - 1)]),
                live.version,
                live.model.representation_name,
                manifest.reason,
                int(manifest.window["n_records"]),
                float(manifest.training["excluded_ratio"]),
            )
        )

    def _note(self, text: str) -> None:
        self._notes.append(Note(self._log.n, text))

    def _hear(self, status: Status) -> None:
        if self._should_stop():
            raise InterruptedError("told to stop")
        if status.phase == "resting":
            self._note(f"no training: {status.detail}")
        elif status.phase in ("reading", "training", "judging"):
            steps = f", step {status.step:,} of {status.n_steps:,}" if status.n_steps else ""
            self._on_progress(self._source.at, f"training: {status.detail}{steps}")
