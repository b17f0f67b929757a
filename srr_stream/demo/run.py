"""The demo from beginning to end: broker, topics, replay, service, live view, summary.

Everything is real: a broker in a process of its own, records in Kafka, the service as ``srr-stream run`` runs it. What
is done with which data set, so that it ends in minutes, is :mod:`srr_stream.demo.plan`'s.
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
from srr_stream.assembly import make_decoder
from srr_stream.broker import EmbeddedBroker
from srr_stream.data import Dataset, load
from srr_stream.data.fashion_mnist import load_fashion_mnist
from srr_stream.demo.live import Snapshot, make_view
from srr_stream.demo.plan import ALERTS, DEAD, EVENTS, SCORES, demo_settings, plan_of
from srr_stream.demo.replay import Replay
from srr_stream.demo.sheet import choose, draw_sheet, make_tiles
from srr_stream.demo.summary import Summary, Verdict, Version, plot, summarise, to_text
from srr_stream.live_model import Live
from srr_stream.registry import Registry
from srr_stream.service import Service
from srr_stream.settings import Settings

_N_PARTITIONS = 4
_HOLD_PATIENCE_S = 900.0
"""How long the replay is held back at most for the first trained model."""
_PATIENCE_S = 90.0
"""How long after the last record the demo waits for verdicts and for the training under way."""
_LISTENS_WITHIN_S = 10.0
_VIEW_EVERY_S = 0.25


@dataclass(frozen=True)
class DemoOptions:
    """What the demo is asked for; `rate` in records a second, None: as suits the data set."""

    dataset: str
    file: Path | None
    rate: int | None
    plot: Path
    sheet: Path = Path("srr-stream-demo-sheet.png")
    """Where flagged pictures go."""
    normal: str = "sneaker"
    """Of Fashion-MNIST: the class that is normal."""
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
        If the input file cannot be read, or a data set cannot be fetched.
    """
    console = Console(stderr=True)
    dataset = _dataset(options, console)
    n_records = len(dataset)
    plan = plan_of(dataset, rate=options.rate, is_spoilt=options.file is None)  # nobody's own records are spoilt
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="srr-stream-demo-")))
        at_once = f"{plan.n_at_once:,} at once, then " if plan.n_at_once else ""
        pace = f"{n_records:,} records, {at_once}{plan.rate:,} a second"
        console.print(f"{dataset.name}: {pace}; starting the embedded broker …")
        broker = stack.enter_context(EmbeddedBroker())
        broker.create_topics({EVENTS: _N_PARTITIONS, SCORES: 1, ALERTS: 1, DEAD: 1})
        settings = demo_settings(
            dataset,
            plan,
            bootstrap_servers=broker.bootstrap_servers,
            folder=folder,
            scorer_port=options.scorer_port,
            trainer_port=options.trainer_port,
        )
        progress = Progress(time.monotonic())
        service = Service(settings, on_swap=progress.note_swap)
        replay = Replay(
            dataset.values(),
            broker.bootstrap_servers,
            EVENTS,
            rate=plan.rate,
            n_at_once=plan.n_at_once,
            hold_at=plan.hold_at,
            every=plan.malformed_every,
            schema=dataset.schema,
            format=dataset.format,
        )
        with _in_thread(service):
            service.listens.wait(_LISTENS_WITHIN_S)
            console.print(f"scorer: http://127.0.0.1:{service.port}/metrics; trainer: a process beside it")
            replay.start()
            try:
                _watch(service, replay, progress, n_records, settings, console, should_stop)
            finally:
                replay.stop()
        seconds = time.monotonic() - progress.started
        verdicts = _read(broker.bootstrap_servers, SCORES)
        dead = _read(broker.bootstrap_servers, DEAD)
        more = _rejected(service.registry)
        if dataset.has_pictures:
            more.append(_sheet(dataset, replay, verdicts, service.registry, settings, options.sheet))
    result = _result(dataset, replay, verdicts, dead, progress, seconds, options.plot, was_stopped=should_stop())
    return replace(result, text="\n".join([result.text, *more]))


def _dataset(options: DemoOptions, console: Console) -> Dataset:
    if options.file is None and options.dataset == "fashion-mnist":
        return load_fashion_mnist(options.normal, on_fetch=lambda url: console.print(f"fetching {url} …"))
    if options.file is None:
        return load(options.dataset)
    from consumers.sources.files import FileSource, infer_schema, record_format

    schema = infer_schema(options.file)
    source = FileSource(options.file)
    values: list[bytes] = []
    try:
        while records := source.poll(0.0):
            values.extend(record.value or b"" for record in records)
    finally:
        source.close()
    return Dataset.from_values(options.file.name, schema, values, format=record_format(options.file))


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
            if replay.is_held and (len(service.registry.versions()) > 1 or snapshot.elapsed_s > _HOLD_PATIENCE_S):
                replay.release()
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
        trainer_status=_trainer_status(service, replay),
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


def _trainer_status(service: Service, replay: Replay) -> str:
    if service.trainer is None:
        return ""
    status = service.trainer.status
    waits = "; the rest of the stream waits for it" if replay.is_held else ""
    return f"{status.phase}: {status.detail}{waits}"


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


def _sheet(
    dataset: Dataset, replay: Replay, records: list[Any], registry: Registry, settings: Settings, path: Path
) -> str:
    """Draw the contact sheet of what was flagged, and return a line about it."""
    verdicts = [_verdict(record) for record in records]
    chosen = choose(verdicts)
    index = {verdict.id: replay.index_by_id[verdict.id] for verdict in chosen}
    wanted = set(index.values())
    value = {i: content for i, content in enumerate(dataset.values()) if i in wanted}
    kinds = {id_: dataset.kinds[i] for id_, i in index.items()} if dataset.kinds is not None else {}
    tiles = make_tiles(
        chosen,
        {id_: value[i] for id_, i in index.items()},
        kinds,
        make_decoder(settings),
        lambda version: registry.load(version)[0],
    )
    n_flagged = len({verdict.id for verdict in verdicts if verdict.flagged})
    n_shown = sum(tile.verdict.flagged for tile in tiles)
    which = f", the {n_shown} with the highest severity" if n_shown < n_flagged else ""
    draw_sheet(path, tiles, title=f"{dataset.name}: {n_flagged:,} of {len(verdicts):,} pictures flagged{which}")
    return f"contact sheet: {path}, {n_shown:,} of the {n_flagged:,} flagged pictures with their heat maps"


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
