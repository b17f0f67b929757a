"""The trainer: when one is due, read a window, train, judge, publish.

One turn of its loop is :meth:`Trainer.turn`; what a training consists of is :meth:`Trainer.train`, which reads from top
to bottom. The trainer shares nothing with the scorer but the registry.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import version as library_version
from typing import Any, Literal

import numpy as np
from structlog.contextvars import bound_contextvars

from consumers.errors import ConsumersError
from consumers.records import RecordSchema
from consumers.windows import Window, WindowReader
from models.detector import Model
from models.persistence import model_to_parts
from models.refinement import Known
from models.training import Progress, Trained, TrainingConfig, train
from srr_stream.errors import ModelRefused, NotEnoughRecords, RegistryError, SrrStreamError
from srr_stream.gate import Columns, GateBounds, GateReport, judge
from srr_stream.health import Health
from srr_stream.labels import LabelBook
from srr_stream.live_model import make_canary
from srr_stream.logs import get_logger
from srr_stream.metrics import TrainerMetrics
from srr_stream.poisoning import (
    N_NEWEST,
    Comparison,
    Profile,
    Reference,
    compare,
    load_reference,
    reference_checks,
    to_manifest,
)
from srr_stream.registry import Manifest, Registry
from srr_stream.tracing import NoSpans, Tracing
from srr_stream.training_record import RADIUS, make_neighbours, make_refinement, match, to_files
from srr_stream.triggers import ClockTrigger, CountTrigger

log = get_logger(__name__)

NEWEST_SHARE = 0.2
"""Share of the window, its newest part, that the gate judges by."""
TOLD = {"promoted": "is promoted", "waiting": "waits for a person", "rejected": "was rejected"}
"""Decision of the gate → in words."""
_MAX_REST_S = 600.0
_RECONNECT_S = 1.0


@dataclass(frozen=True)
class Plan:
    """A training that is due: why, and how."""

    reason: str
    config: TrainingConfig
    succeeds: int | None = None
    """The stand-in whose successor is trained, which is done once only."""
    run: str = field(default_factory=lambda: uuid.uuid4().hex[:8], compare=False)
    """Names the training in the log, in its trace and in the manifest."""


@dataclass(frozen=True)
class Judgement:
    """What the gate says, and what the next trainings must know of it."""

    report: GateReport
    profile: Profile
    comparison: Comparison | None
    """None if there was no reference."""


@dataclass(frozen=True)
class Outcome:
    """What became of a training."""

    manifest: Manifest
    decision: Literal["promoted", "waiting", "rejected"]
    """waiting: for a person, who promotes it."""
    report: GateReport

    @property
    def promoted(self) -> bool:
        """Whether the new version is the champion."""
        return self.decision == "promoted"


@dataclass(frozen=True)
class Status:
    """What the trainer is about, for people: sent to whoever watches, never acted upon."""

    phase: str = "starting"
    """starting, waiting, reading, training, judging, publishing, resting."""
    detail: str = ""
    n_records: int = 0
    """Records in the log, up to `n_wanted`."""
    n_wanted: int = 0
    step: int = 0
    n_steps: int = 0
    excluded_ratio: float | None = None
    port: int = 0
    """Where the trainer's metrics are; 0 before it listens."""


class Trainer:
    """Train when due, until told to stop.

    Parameters
    ----------
    config
        How the configured model is trained. The first model of an empty registry is in closed form, on the fields
        themselves, and ready in seconds; the configured one follows at once.
    gate
        What a new model must show.
    mode
        Of the gate. ``automatic``: who passes is promoted; ``manual``: proposed; ``off``: whoever it is, promoted.
    reference_version
        The version that slow poisoning is looked for against; None: the one that was pinned last.
    every, count
        The clock and the count of new records, either may be None. Requests come through the registry.
    min_size
        No training on fewer usable records.
    min_interval_s
        Rest after a training before a request is taken, and after the first failure (doubling with each further one).
    read_labels
        Asked, when a training begins, what people say of records. If that fails the training goes on without, and its
        manifest says so. None: nobody says anything.
    on_status
        Told what the trainer is about, often; raising from it ends a training.
    tracing
        Times a training and its stages. None: nothing does.
    """

    def __init__(
        self,
        reader: WindowReader,
        registry: Registry,
        schema: RecordSchema,
        config: TrainingConfig,
        *,
        gate: GateBounds,
        metrics: TrainerMetrics,
        health: Health,
        min_size: int,
        min_interval_s: float,
        mode: Literal["automatic", "manual", "off"] = "automatic",
        reference_version: int | None = None,
        every: ClockTrigger | None = None,
        count: CountTrigger | None = None,
        seed: int = 0,
        device: str = "auto",
        read_labels: Callable[[], LabelBook] | None = None,
        on_status: Callable[[Status], None] = lambda status: None,
        tracing: Tracing | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reader = reader
        self._registry = registry
        self._schema = schema
        self._config = config
        self._gate = gate
        self._mode = mode
        self._reference_version = reference_version
        self._metrics = metrics
        self._health = health
        self._min_size = min_size
        self._min_interval_s = min_interval_s
        self._every = every
        self._count = count
        self._seed = seed
        self._device = device
        self._read_labels = read_labels
        self._on_status = on_status
        self._tracing = tracing or NoSpans()
        self._clock = clock
        self._status = Status()
        self._n_failures = 0
        self._n_rejections = 0
        self._n_outages = 0
        self._not_before = -np.inf
        self._last_training = -np.inf
        self._succeeded: int | None = None
        self._has_published = False
        self._last_decision = (0, "")
        self._manifest = lru_cache(maxsize=4)(registry.manifest)

    def turn(self) -> Outcome | None:
        """Train if one is due and say what became of it; None if none was due or it failed.

        A failure is counted, logged, told in the readiness reason and followed by a rest; the old model stays in use.
        """
        self._health.beat()
        if self._clock() < self._not_before:
            return None
        try:
            plan = self._due()
        except (ConsumersError, RegistryError) as error:
            self._rest(str(error), _RECONNECT_S * 2**self._n_outages)
            self._n_outages += 1
            return None
        self._n_outages = 0
        if plan is None:
            return None
        with bound_contextvars(run=plan.run):
            log.info("training: %s", plan.reason)
            try:
                return self.train(plan)
            except InterruptedError:
                raise
            except (NotEnoughRecords, ConsumersError, RegistryError) as error:
                self._fail(str(error))
            except Exception as error:  # top of the trainer: whatever a training dies of, scoring and it go on
                log.exception("training failed")
                self._fail(f"{type(error).__name__}: {error}")
        return None

    def adopt(
        self,
        *,
        config: TrainingConfig,
        gate: GateBounds,
        mode: Literal["automatic", "manual", "off"],
        reference_version: int | None,
        min_interval_s: float,
        every: ClockTrigger | None,
        count: CountTrigger | None,
    ) -> None:
        """Go by other rules from the next turn on; see the class for what they are.

        New triggers count from where those in their place did: a clock that is set to 5 minutes is due at once when the
        last training was 10 minutes ago.
        """
        if every is not None and self._every is not None:
            every.follow(self._every)
        if count is not None and self._count is not None:
            count.follow(self._count)
        self._every, self._count = every, count
        self._config, self._gate, self._mode = config, gate, mode
        self._reference_version, self._min_interval_s = reference_version, min_interval_s
        self._registry.pinned = frozenset(() if reference_version is None else (reference_version,))

    def close(self) -> None:
        """Let the log go; twice is fine."""
        self._reader.close()

    # --- is one due? ------------------------------------------------------------------------------------------------

    def _due(self) -> Plan | None:
        pointer = self._registry.pointer()
        champion = self._fitting(pointer.champion)
        if champion is not None and not self._has_published:
            self._note_before(champion)
        waiting = self._fitting(pointer.challenger)
        n_records = self._reader.available()
        if self._count is not None:
            self._count.update(self._reader.end())
        configured = self._config.representation
        self._tell("waiting", n_records=min(n_records, self._min_size), n_wanted=self._min_size)
        if champion is None and waiting is not None and self._mode == "manual":
            text = f"version {waiting.version} is the first: srr-stream models promote {waiting.version} puts it to use"
            self._health.not_ready(text)
            self._tell("waiting", text)
            return self._when_asked(self._config.closed_form())
        if champion is None:
            if n_records < self._min_size:
                text = f"waiting for records: {n_records:,} of {self._min_size:,} (window.min_size) are in the log"
                self._health.not_ready(text)
                self._tell("waiting", text)
                return None
            return Plan("cold start", self._config.closed_form())
        version, told = self._last_decision
        newer = f", {told}" if version > champion.version else ""
        self._health.ready(f"version {champion.version} is in use{newer}; waiting until a training is due")
        if champion.model["representation"] != configured and champion.version != self._succeeded:
            reason = f"first model with the configured representation, {configured}"
            return Plan(reason, self._config, succeeds=champion.version)
        return self._when_asked(self._config)

    def _when_asked(self, config: TrainingConfig) -> Plan | None:
        reason = self._asked_for() or self._triggered()
        return Plan(reason, config) if reason is not None else None

    def _asked_for(self) -> str | None:
        if self._clock() - self._last_training < self._min_interval_s:
            return None
        return self._registry.take_request()

    def _triggered(self) -> str | None:
        for trigger in (self._every, self._count):
            if trigger is not None and trigger.reason is not None:
                return trigger.reason
        return None

    def _fitting(self, version: int | None) -> Manifest | None:
        """Return the manifest of a version in use, None if there is none that fits the records."""
        if version is None:
            return None
        try:
            manifest = self._manifest(version)
        except ModelRefused as error:
            log.warning("%s; training anew", error, version=version)
            return None
        return manifest if manifest.schema_digest == self._schema.digest else None

    # --- one training -----------------------------------------------------------------------------------------------

    def train(self, plan: Plan) -> Outcome:
        """Read the window, train, judge, publish, and promote or propose if the gate lets it.

        Raises
        ------
        NotEnoughRecords
            If fewer than `min_size` records of the window are usable.
        RegistryError, ConsumersError
            If the registry or the log cannot be reached.
        """
        with (
            bound_contextvars(run=plan.run),
            self._tracing.span("srr_stream.training", run=plan.run, reason=plan.reason),
        ):
            return self._train(plan)

    def _train(self, plan: Plan) -> Outcome:
        self._registry.check_writable()
        with self._timed("read"):
            self._tell("reading", plan.reason)
            window = self._reader.read()
            known, no_labels = self._known(window)
        self._check_size(window)
        in_use = self._fitting(self._registry.pointer().champion)
        champion = self._load(in_use)
        reference = self._reference(in_use, plan)
        seed = self._seed + max(self._registry.versions(), default=0) + 1
        columns = window.batch.features
        with self._timed("train"):
            self._tell("training", plan.reason, n_records=len(window.batch), n_wanted=len(window.batch))
            trained = train(
                columns,
                plan.config,
                seed=seed,
                warm_start=champion,
                known=known,
                on_progress=self._on_progress,
                device=self._device,
            )
        with self._timed("judge"):
            self._tell("judging")
            judgement = self._judge(trained, champion, reference, columns, seed)
        with self._timed("publish"):
            self._tell("publishing")
            outcome = self._publish(plan, window, trained, judgement, seed, known, no_labels)
        self._note(plan, outcome, trained, judgement)
        if champion is None and outcome.decision == "rejected":
            # Still nothing to score with: try again, but not at once on the same records.
            self._rest(f"the first model was rejected by the gate: {outcome.report.reason}", self._min_interval_s)
        return outcome

    def _check_size(self, window: Window) -> None:
        n_good = len(window.batch)
        if n_good >= self._min_size:
            return
        bad = ", ".join(f"{reason} {n:,}" for reason, n in sorted(window.bad_reasons.items(), key=lambda kv: -kv[1]))
        why = f"; bad ones: {bad}: compare record.fields with the dead letters" if bad else ""
        raise NotEnoughRecords(
            f"only {n_good:,} of {n_good + window.n_bad:,} records of the window are usable, "
            f"window.min_size is {self._min_size:,}{why}"
        )

    def _known(self, window: Window) -> tuple[Known | None, str | None]:
        """Return what labels say of the window's records; and why there are none, if they could not be read."""
        if self._read_labels is None:
            return None, None
        try:
            labels = self._read_labels().all()
        except (ConsumersError, SrrStreamError) as error:  # a training without labels is worth more than none
            log.warning("training without labels: %s", error)
            return None, str(error)
        return match(window.batch.raw, {label.place: label.label for label in labels}), None

    def _load(self, manifest: Manifest | None) -> Model | None:
        if manifest is None:
            return None
        try:
            return self._registry.load(manifest.version)[0]
        except ModelRefused as error:
            log.warning("%s; training without it", error, version=manifest.version)
            return None

    def _reference(self, champion: Manifest | None, plan: Plan) -> Reference | None:
        """Return what slow poisoning is looked for against. A stand-in is no reference: it sees too little."""
        if self._gate.max_forgotten_ratio is None or champion is None:
            return None
        if champion.model["representation"] != plan.config.representation:
            return None
        return load_reference(self._registry, champion, self._reference_version)

    def _judge(
        self, trained: Trained, champion: Model | None, reference: Reference | None, columns: Columns, seed: int
    ) -> Judgement:
        n_rows = len(trained.kept)
        report = judge(
            trained.model,
            champion,
            _newest(columns, n_rows, round(NEWEST_SHARE * n_rows)),
            self._gate,
            excluded_ratio=trained.report.excluded_ratio,
            seed=seed,
        )
        newest = _newest(columns, n_rows, N_NEWEST)
        mine = trained.model.score(newest)
        profile = Profile.of(mine)
        if reference is None or self._gate.max_forgotten_ratio is None:
            return Judgement(report, profile, None)
        theirs = reference.model.score(newest)
        comparison = compare(reference, theirs, mine, trained.kept[-len(mine.score) :], trained.report)
        checks = reference_checks(comparison, self._gate.max_forgotten_ratio)
        return Judgement(GateReport(report.checks + checks), profile, comparison)

    def _publish(
        self,
        plan: Plan,
        window: Window,
        trained: Trained,
        judgement: Judgement,
        seed: int,
        known: Known | None,
        no_labels: str | None,
    ) -> Outcome:
        description, weights = model_to_parts(trained.model)
        neighbours = make_neighbours(trained, window.batch, seed)
        manifest = self._registry.publish(
            Manifest(
                version=0,  # the registry gives the number
                created_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
                reason=plan.reason,
                schema=self._schema.to_dict(),
                schema_digest=self._schema.digest,
                window={
                    "ranges": [asdict(r) for r in window.ranges],
                    "n_records": len(window.batch),
                    "n_bad": window.n_bad,
                },
                training={
                    "run": plan.run,
                    "seed": seed,
                    **trained.report.to_dict(),
                    RADIUS: neighbours.radius,
                    **({"labels_not_read": no_labels} if no_labels is not None else {}),
                },
                gate={
                    "mode": self._mode,
                    **judgement.report.to_dict(),
                    **to_manifest(judgement.profile, judgement.comparison, self._gate.max_forgotten_ratio),
                },
                model=description,
                canary=make_canary(trained.model),
                libraries={name: library_version(name) for name in ("numpy", "torch", "safetensors")},
            ),
            weights,
            to_files(make_refinement(trained, window.batch, known), neighbours),
        )
        decision = self._decide(manifest, judgement.report)
        self._registry.prune()
        return Outcome(manifest, decision, judgement.report)

    def _decide(self, manifest: Manifest, report: GateReport) -> Literal["promoted", "waiting", "rejected"]:
        if not report.passed and self._mode != "off":
            return "rejected"
        if self._mode == "manual":
            self._registry.propose(manifest.version)
            return "waiting"
        pointer = self._registry.promote(manifest.version, reason=f"gate.mode {self._mode}: {report.reason}")
        if pointer.challenger is not None:  # of the time when the mode was manual: nobody waits for it any more
            self._registry.withdraw()
        return "promoted"

    def _note_before(self, champion: Manifest) -> None:
        """Tell of the champion what a trainer before this one told: a restart is no news."""
        self._has_published = True
        metrics, report = self._metrics, champion.training
        metrics.last_success.set(_seconds(champion.created_at))
        metrics.excluded.set(report.get("excluded_ratio", 0.0))
        metrics.contamination.set(report.get("contamination_ratio", 0.0))
        metrics.agreement.set(report.get("agreement", 0.0))

    def _note(self, plan: Plan, outcome: Outcome, trained: Trained, judgement: Judgement) -> None:
        metrics, report, version = self._metrics, trained.report, outcome.manifest.version
        told = f"version {version} {TOLD[outcome.decision]}: {outcome.report.reason}"
        level = logging.WARNING if outcome.decision == "rejected" else logging.INFO
        log.log(level, "%s", told, version=version, decision=outcome.decision)
        self._last_decision = (version, told)
        metrics.runs.labels("rejected" if outcome.decision == "rejected" else "published").inc()
        metrics.gate_decisions.labels(outcome.decision).inc()
        self._n_rejections = self._n_rejections + 1 if outcome.decision == "rejected" else 0
        metrics.rejections_in_a_row.set(self._n_rejections)
        metrics.gate_check.clear()
        for check in outcome.report.checks:
            metrics.gate_check.labels(check.name).set(check.value)
        if judgement.comparison is not None:
            metrics.forgotten.set(judgement.comparison.forgotten_ratio)
        metrics.last_success.set_to_current_time()
        self._has_published = True
        metrics.excluded.set(report.excluded_ratio)
        metrics.contamination.set(report.contamination_ratio)
        metrics.agreement.set(report.agreement)
        self._succeeded = plan.succeeds if plan.succeeds is not None else self._succeeded
        self._n_failures = 0
        self._last_training = self._clock()
        for trigger in (self._every, self._count):
            if trigger is not None:
                trigger.reset()

    # --- telling ----------------------------------------------------------------------------------------------------

    def _fail(self, why: str) -> None:
        self._metrics.runs.labels("failed").inc()
        self._rest(why, self._min_interval_s * 2**self._n_failures)
        self._n_failures += 1

    def _rest(self, why: str, rest_s: float) -> None:
        """Say why nothing is done for a while."""
        rest_s = min(rest_s, _MAX_REST_S)
        self._not_before = self._clock() + rest_s
        text = f"{why}; next try in {rest_s:.0f} s"
        log.warning("no training: %s", text)
        self._health.not_ready(text)
        self._tell("resting", text)

    def _on_progress(self, progress: Progress) -> None:
        self._health.beat()
        changes: dict[str, Any] = {"step": progress.step, "n_steps": progress.n_steps}
        if progress.excluded_ratio is not None:
            changes["excluded_ratio"] = progress.excluded_ratio
        self._tell("training", **changes)

    def _tell(self, phase: str, detail: str | None = None, **changes: Any) -> None:
        if detail is not None:
            changes["detail"] = detail
        self._status = replace(self._status, phase=phase, **changes)
        self._on_status(self._status)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        with self._metrics.duration.labels(stage).time(), self._tracing.span(f"srr_stream.training.{stage}"):
            yield


def _seconds(at: str) -> float:
    """Return seconds since the epoch, 0 where a manifest has no time."""
    try:
        return datetime.fromisoformat(at).timestamp()
    except ValueError:
        return 0.0


def _newest(columns: Columns, n_rows: int, n_newest: int) -> Mapping[str, Any]:
    """Return the newest part of a window, at least a row of it; the rows are in the order of time."""
    start = max(0, n_rows - max(1, n_newest))
    return {name: column[start:] for name, column in columns.items()}
