"""The demo from beginning to end: broker, topics, replay, service, live view, summary.

Everything is real: a broker in a process of its own, records in Kafka, the service as ``srr-stream run`` runs it. Only
the window is smaller and the trainings are counted in records, so that it ends in minutes.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console

from consumers.logs import KafkaLog, OffsetRange
from consumers.records import FieldKind, RecordSchema
from srr_stream.broker import EmbeddedBroker
from srr_stream.data import Dataset, load
from srr_stream.demo.live import Snapshot, make_view
from srr_stream.demo.replay import MALFORMED_EVERY, Replay
from srr_stream.demo.summary import Summary, Verdict, Version, plot, summarise, to_text
from srr_stream.live_model import Live
from srr_stream.loading import check_settings
from srr_stream.registry import Registry
from srr_stream.service import Service
from srr_stream.settings import Settings

EVENTS, SCORES, ALERTS, DEAD = "demo.events", "demo.scores", "demo.alerts", "demo.dead-letters"
_N_PARTITIONS = 4
_REPLAY_S = 75.0
"""How long the replay shall take if no rate is given: long enough to see trainings and swaps under way."""
_MAX_RATE = 2000
_PATIENCE_S = 90.0
"""How long after the last record the demo waits for verdicts and for the training under way."""
_VIEW_EVERY_S = 0.25


@dataclass(frozen=True)
class DemoOptions:
    """What the demo is asked for; `rate` in records a second, None: so that it takes 75 s."""

    dataset: str
    file: Path | None
    rate: int | None
    plot: Path
    scorer_port: int = 0
    trainer_port: int = 0


@dataclass(frozen=True)
class DemoResult:
    """How it went."""

    summary: Summary
    text: str
    failure: str | None
    """Why the demo did not show what it must; None if it did."""


@dataclass
class Progress:
    """What has happened so far, gathered for the view."""

    started: float
    swaps: list[tuple[float, Live]] = field(default_factory=list)
    counts: deque[tuple[float, int, int]] = field(default_factory=lambda: deque(maxlen=int(5 / _VIEW_EVERY_S)))

    def note_swap(self, live: Live) -> None:
        """Note when a model became live."""
        self.swaps.append((time.monotonic() - self.started, live))


def run_demo(options: DemoOptions, *, should_stop: Callable[[], bool]) -> DemoResult:
    """Run the demo; it ends when every record has a verdict or a dead letter and no training is under way.

    Raises
    ------
    SourceError
        If the input file cannot be read.
    """
    dataset = _dataset(options)
    n_records = len(dataset)
    rate = options.rate or max(20, min(_MAX_RATE, round(n_records / _REPLAY_S)))
    console = Console(stderr=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="srr-stream-demo-")))
        console.print(f"{dataset.name}: {n_records:,} records, {rate:,} a second; starting the embedded broker …")
        broker = stack.enter_context(EmbeddedBroker())
        broker.create_topics({EVENTS: _N_PARTITIONS, SCORES: 1, ALERTS: 1, DEAD: 1})
        settings = demo_settings(dataset.schema, n_records, broker.bootstrap_servers, folder, options)
        progress = Progress(time.monotonic())
        service = Service(settings, on_swap=progress.note_swap)
        replay = Replay(
            dataset.values(),
            broker.bootstrap_servers,
            EVENTS,
            rate=rate,
            every=MALFORMED_EVERY if options.file is None else n_records + 1,  # nobody's own records are spoilt
            schema=dataset.schema,
        )
        with _in_thread(service):
            console.print(f"scorer: http://127.0.0.1:{service.port}/metrics; trainer: a process beside it")
            replay.start()
            try:
                _watch(service, replay, progress, n_records, settings, console, should_stop)
            finally:
                replay.stop()
        seconds = time.monotonic() - progress.started
        verdicts = _read(broker.bootstrap_servers, SCORES)
        dead = _read(broker.bootstrap_servers, DEAD)
        rejected = _rejected(service.registry)
    result = _result(dataset, replay, verdicts, dead, progress, seconds, options.plot, was_stopped=should_stop())
    return replace(result, text="\n".join([result.text, *rejected]))


def demo_settings(
    schema: RecordSchema, n_records: int, bootstrap_servers: str, folder: Path, options: DemoOptions
) -> Settings:
    """Return the settings of a demo over `n_records` records: a first model early, then a training each eighth."""
    min_size = max(50, min(2000, n_records // 6))
    return check_settings(
        {
            "kafka": {"bootstrap_servers": bootstrap_servers},
            "input": {"topics": [EVENTS], "start": "earliest", "session_timeout": "6s", "max_batch": 1000},
            "record": {"fields": _fields(schema), "time_field": schema.time_field},
            "output": {"scores_topic": SCORES, "alerts_topic": ALERTS, "dead_letter_topic": DEAD},
            "window": {"min_size": min_size, "max_size": max(min_size, min(20_000, n_records))},
            "training": {
                "every": None,
                "every_records": max(50, n_records // 8),
                "min_interval": "10s",
                "check_every": "200ms",
                "nice": 5,
            },
            "registry": {"url": str(folder / "registry"), "keep": 50, "poll_every": "200ms"},
            "http": {
                "host": "127.0.0.1",
                "scorer_port": options.scorer_port,
                "trainer_port": options.trainer_port,
            },
        },
        use_environment=False,
    )


def _fields(schema: RecordSchema) -> list[dict[str, Any]]:
    return [
        {"name": f.name, "kind": FieldKind(f.kind).value, "path": ".".join(f.path), "required": f.is_required}
        for f in schema.fields
    ]


def _dataset(options: DemoOptions) -> Dataset:
    if options.file is None:
        return load(options.dataset)
    from consumers.sources.files import FileSource, infer_schema

    schema = infer_schema(options.file)
    source = FileSource(options.file)
    values: list[bytes] = []
    try:
        while records := source.poll(0.0):
            values.extend(record.value or b"" for record in records)
    finally:
        source.close()
    return Dataset.from_values(options.file.name, schema, values)


@contextmanager
def _in_thread(service: Service) -> Iterator[None]:
    """Run a service until the block is left; what it died of is raised here."""
    stop = threading.Event()
    died: list[BaseException] = []

    def run() -> None:
        try:
            service.run(stop.is_set)
        except BaseException as error:
            died.append(error)

    thread = threading.Thread(target=run, name="service")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if died:
        raise died[0]


def _watch(
    service: Service,
    replay: Replay,
    progress: Progress,
    n_records: int,
    settings: Settings,
    console: Console,
    should_stop: Callable[[], bool],
) -> None:
    """Show what happens until all is done, somebody stops it, or patience is at an end."""
    pause = threading.Event()
    deadline = float("inf")
    with make_view(console) as view:
        while not should_stop():
            snapshot = _snapshot(service, replay, progress, n_records, settings)
            view.update(snapshot)
            if replay.is_done and deadline == float("inf"):
                deadline = time.monotonic() + _PATIENCE_S
            n_answered = snapshot.scored + snapshot.dead_lettered
            is_idle = service.trainer is None or service.trainer.status.phase in ("waiting", "resting")
            has_configured = snapshot.representation == settings.training.representation
            if replay.is_done and n_answered >= replay.n_produced and is_idle and has_configured:
                return
            if time.monotonic() > deadline:
                return
            pause.wait(_VIEW_EVERY_S)


def _snapshot(service: Service, replay: Replay, progress: Progress, n_records: int, settings: Settings) -> Snapshot:
    now = time.monotonic()
    registry = service.metrics_registry
    normal = registry.get_sample_value("srr_records_scored_total", {"topic": EVENTS, "verdict": "normal"}) or 0.0
    flagged = registry.get_sample_value("srr_records_scored_total", {"topic": EVENTS, "verdict": "flagged"}) or 0.0
    dead = sum(
        sample.value
        for metric in service.metrics.records_dead_lettered.collect()
        for sample in metric.samples
        if sample.name.endswith("_total")
    )
    scored = int(normal + flagged)
    progress.counts.append((now, scored, int(flagged)))
    then, scored_then, flagged_then = progress.counts[0]
    n_recent = scored - scored_then
    status = service.trainer.status if service.trainer is not None else None
    live = service.live_model.current
    return Snapshot(
        elapsed_s=now - progress.started,
        produced=replay.n_produced,
        total=n_records,
        scored=scored,
        dead_lettered=int(dead),
        records_per_s=n_recent / (now - then) if now > then else 0.0,
        flagged_ratio=(int(flagged) - flagged_then) / n_recent if n_recent else None,
        lag=max(0, replay.n_produced - scored - int(dead)),
        window_size=status.n_records if status is not None else 0,
        window_target=settings.window.min_size,
        trainer_status=f"{status.phase}: {status.detail}" if status is not None else "",
        training_step=status.step if status is not None else 0,
        training_n_steps=status.n_steps if status is not None else 0,
        excluded_ratio=status.excluded_ratio if status is not None else None,
        version=live.version if live is not None else None,
        representation=live.model.representation_name if live is not None else None,
        swaps=tuple(
            (at_s, swapped.version, swapped.model.representation_name, swapped.manifest.reason)
            for at_s, swapped in progress.swaps
        ),
    )


def _read(bootstrap_servers: str, topic: str) -> list[Any]:
    """Return all records of a topic."""
    log = KafkaLog([topic], connection={"bootstrap_servers": [bootstrap_servers]})
    try:
        begins = log.beginnings()
        ranges = [OffsetRange(*position, begins[position], end) for position, end in sorted(log.ends().items())]
        return [record for each in ranges for record in log.read(each)]
    finally:
        log.close()


def _result(
    dataset: Dataset,
    replay: Replay,
    verdicts: list[Any],
    dead: list[Any],
    progress: Progress,
    seconds: float,
    picture: Path,
    *,
    was_stopped: bool,
) -> DemoResult:
    rows = [_verdict(record) for record in verdicts]
    dead_ids = [_origin(dict(record.headers)) for record in dead]
    versions = [
        Version(
            live.version,
            live.model.representation_name,
            live.manifest.reason,
            at_s,
            live.manifest.training["excluded_ratio"],
            live.manifest.window["n_records"],
        )
        for at_s, live in progress.swaps
    ]
    summary = summarise(replay.index_by_id, replay.malformed, rows, dead_ids, dataset.is_anomaly, versions, seconds)
    plot(picture, rows, versions, title=f"{dataset.name}: {len(rows):,} records")
    failure = failure_of(summary, n_malformed=len(replay.malformed), error=replay.error, was_stopped=was_stopped)
    return DemoResult(summary, to_text(summary, picture), failure)


def _rejected(registry: Registry) -> list[str]:
    """Return a line for every model that the gate did not let in."""
    manifests = [registry.manifest(version) for version in registry.versions()]
    return [f"rejected by the gate: version {m.version}: {m.gate['reason']}" for m in manifests if not m.gate["passed"]]


def _verdict(record: Any) -> Verdict:
    body: Mapping[str, Any] = orjson.loads(record.value)
    return Verdict(body["id"], body["severity"], body["flagged"], body["version"], record.timestamp / 1000)


def _origin(headers: Mapping[str, bytes]) -> str:
    return "-".join(headers[f"srr-{part}"].decode() for part in ("topic", "partition", "offset"))


def failure_of(summary: Summary, *, n_malformed: int, error: Exception | None, was_stopped: bool) -> str | None:
    """Return why a demo did not show what it must; None if it did, or if somebody stopped it."""
    if error is not None:
        return f"the replay failed: {error}"
    if was_stopped:
        return None
    if summary.missing or summary.doubled:
        return f"{summary.missing} records have no verdict and {summary.doubled} have more than one"
    if summary.dead_lettered < n_malformed:
        return f"{summary.dead_lettered} dead letters for {n_malformed} malformed records"
    return None
