"""A desk over real parts in memory: network connections (KDD Cup 1999) scored by three real models over six hours."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from consumers.decoding import Decoder, JsonDecoder
from consumers.logs import MemoryLog
from consumers.records import Batch, Contribution, RawRecord, RecordSchema, StoredRecord, Verdicts
from consumers.sinks.serialization import verdict_bodies
from models.persistence import model_to_parts
from models.refinement import Known
from models.training import Trained, TrainingConfig, train
from srr_stream.data import load
from srr_stream.flagged import FlaggedIndex
from srr_stream.gate import GateBounds, judge
from srr_stream.heat_maps import HeatMaps
from srr_stream.history import History
from srr_stream.labels import Label, LabelBook, label_to_json
from srr_stream.live_model import Live, LiveModel, make_canary
from srr_stream.model_shelf import ModelShelf
from srr_stream.record_reader import RecordReader
from srr_stream.registry import Manifest, Registry
from srr_stream.training_record import make_neighbours, make_refinement, to_files
from srr_stream.web.desk import Desk
from srr_stream.web.details import Details
from srr_stream.web.states import Answer, Answers
from srr_stream.web.views import FlaggedQuery

TOPIC = "connections"
NOW = datetime(2025, 11, 26, 14, 3, 20, tzinfo=UTC).timestamp()
SPAN_S = 5.5 * 3600
SCORER, TRAINER = "http://127.0.0.1:9108", "http://127.0.0.1:9109"
BOUNDS = GateBounds(
    max_excluded_ratio=0.5,
    max_flagged_ratio=0.5,
    max_flagged_factor=5.0,
    min_synthetic_auc_margin=-0.05,
    max_forgotten_ratio=None,
)
CONFIG = TrainingConfig(representation="identity", classifier="gde")


class MemoryLabels:
    """A labels topic in memory: what is written is heard at once."""

    def __init__(self) -> None:
        self.desk: Desk | None = None
        self._offset = 0
        self._lock = threading.Lock()

    def write(self, labels: Sequence[Label]) -> None:
        self._hear([(label.id, label_to_json(label)) for label in labels])

    def remove(self, ids: Sequence[str]) -> None:
        self._hear([(id, None) for id in ids])

    def _hear(self, pairs: Sequence[tuple[str, bytes | None]]) -> None:
        assert self.desk is not None
        with self._lock:
            records: list[RawRecord] = []
            for id, value in pairs:
                records.append(StoredRecord("labels", 0, self._offset, 0, id.encode(), value))
                self._offset += 1
        self.desk.hear_labels(records)


@dataclass
class Stage:
    """A desk and what it stands on; for the fixtures of `conftest`, like its `Bench`."""

    desk: Desk
    index: FlaggedIndex
    schema: RecordSchema
    closers: Sequence[Callable[[], None]]
    apps: dict[Any, Any] = field(default_factory=dict)

    def close(self) -> None:
        for close in self.closers:
            close()


def make(folder: Path, *, n_records: int = 9_000, swaps_at: Sequence[int] = (2_000, 4_500, 7_000)) -> Stage:
    """Make the desk: a model is trained on all before each of `swaps_at`, and scores what comes then."""
    data = load("kdd")
    values = [value for value, _ in zip(data.values(), range(n_records), strict=False)]
    decoder: Decoder = JsonDecoder(data.schema)
    log, records = MemoryLog(), list[StoredRecord]()
    began = NOW - SPAN_S
    times = began + SPAN_S * np.arange(n_records) / n_records
    for i, value in enumerate(values):
        key, ms = f"sensor-{i % 7:02d}".encode(), int(1000 * times[i])
        offset = log.append(TOPIC, value, partition=i % 2, key=key, timestamp=ms)
        records.append(StoredRecord(TOPIC, i % 2, offset, ms, key, value))
    batch = decoder.decode(records).batch
    now = [NOW - SPAN_S]
    registry = Registry(str(folder / "registry"), clock=lambda: now[0])
    live = LiveModel(registry, schema_digest=data.schema.digest, false_alarm_rate=0.005)
    index = FlaggedIndex(folder / "state")
    history = History()
    champion = None
    for number, stop in enumerate(swaps_at):
        first = max(0, stop - 2_500)
        columns = {name: column[first:stop] for name, column in batch.features.items()}
        window = decoder.decode(records[first:stop]).batch
        trained = train(columns, CONFIG, seed=number, device="cpu")
        newest = {name: column[-500:] for name, column in columns.items()}
        report = judge(trained.model, champion, newest, BOUNDS, excluded_ratio=trained.report.excluded_ratio, seed=0)
        manifest = publish(registry, trained, data.schema, report.to_dict(), times[stop - 1], number, window)
        now[0] = float(times[stop - 1])
        registry.promote(manifest.version, reason="the gate let it in")
        live.refresh()
        assert live.current is not None
        champion = live.current.model
        end = swaps_at[number + 1] if number + 1 < len(swaps_at) else n_records
        for at in range(stop, end, 50):
            raw = records[at : min(at + 50, end)]
            verdicts = verdicts_of(live.current, decoder.decode(raw).batch)
            bodies = list(verdict_bodies(verdicts))
            index.add([StoredRecord("alerts", 0, 0, 0, None, body) for body in bodies])
            history.add(
                float(times[at]),
                n=len(raw),
                n_flagged=int(verdicts.flagged.sum()),
                max_severity=float(verdicts.severity.max()),
                version=manifest.version,
            )
    rejected = replace(registry.manifest(len(swaps_at)), created_at=_iso(NOW - 600), reason="drift of the flagged rate")
    gate = dict(rejected.gate)
    failed = {"name": "flagged_ratio", "value": 0.612, "bound": "≤ 0.5", "passed": False, "advice": ""}
    gate["checks"] = [failed if check["name"] == "flagged_ratio" else check for check in gate["checks"]]
    gate |= {"passed": False, "reason": "flagged_ratio is 0.612, allowed: ≤ 0.5"}
    _, weights = model_to_parts(live.current.model)
    registry.publish(replace(rejected, gate=gate), weights)

    shelf = ModelShelf(live, registry)
    reader = RecordReader(lambda: log, topics=[TOPIC])
    details = Details(reader, decoder, shelf, registry, HeatMaps(reader, decoder, shelf))
    n_scored = n_records - swaps_at[0]
    scorer = {
        "role": "scorer",
        "version": "0.1.0",
        "live": True,
        "ready": True,
        "reason": f"scoring 2 partitions with version {len(swaps_at)}",
        "trouble": None,
        "model_version": len(swaps_at),
        "loaded_at": float(times[swaps_at[-1]]),
        "assigned": 2,
        "lag": [{"topic": TOPIC, "partition": 0, "records": 3}],
        "n_scored": n_scored,
        "n_flagged": index.n_records,
        "n_dead_lettered": 0,
        "last_scored_at": NOW,
        "records_per_s": 812.4,
    }
    trainer = {
        "role": "trainer",
        "live": True,
        "ready": True,
        "reason": "waiting",
        "phase": "resting",
        "detail": "",
        "n_records": 0,
        "n_wanted": 0,
        "step": 0,
        "n_steps": 0,
        "excluded_ratio": None,
    }

    def ask(with_history: bool) -> Answers:
        said = dict(scorer)
        if with_history:
            said["history"] = [asdict(bucket) for bucket in history.buckets()]
            said["swaps"] = [{"at": at, "version": version} for at, version in history.swaps()]
        return Answers((Answer(SCORER, said),), Answer(TRAINER, trainer))

    labels = MemoryLabels()
    desk = Desk(
        index=index,
        registry=registry,
        live_model=live,
        details=details,
        ask=ask,
        book=LabelBook(),
        writer=labels,
        clock=lambda: NOW,
    )
    labels.desk = desk
    return Stage(desk, index, data.schema, [details.close, index.close])


def verdicts_of(live: Live, batch: Batch) -> Verdicts:
    """Return what a model says of a batch, as the scorer does."""
    scores = live.model.score(batch.features)
    rows = np.flatnonzero(scores.flagged)
    flagged = {name: column[rows] for name, column in batch.features.items()}
    reasons = live.model.explain(flagged, n_top=5) if len(rows) else []
    contributions = {
        int(row): tuple(Contribution(*part) for part in parts) for row, parts in zip(rows, reasons, strict=True)
    }
    return Verdicts(batch, live.version, scores.score, scores.p_value, scores.severity, scores.flagged, contributions)


def publish(
    registry: Registry,
    trained: Trained,
    schema: Any,
    gate: Mapping[str, Any],
    at: float,
    number: int,
    window: Batch,
) -> Manifest:
    """Publish a model as the trainer does."""
    description, weights = model_to_parts(trained.model)
    n = len(window)
    offsets = {p: [raw.offset for raw in window.raw if raw.partition == p] for p in (0, 1)}
    ranges = [{"topic": TOPIC, "partition": p, "start": min(o), "stop": max(o) + 1} for p, o in offsets.items()]
    nobody = np.zeros(n, dtype=bool)
    beside = to_files(make_refinement(trained, window, Known(nobody, nobody)), make_neighbours(trained, window, 0))
    return registry.publish(
        Manifest(
            version=0,
            created_at=_iso(at),
            reason="cold start" if number == 0 else f"{n:,} records since the last training",
            schema=schema.to_dict(),
            schema_digest=schema.digest,
            window={"ranges": ranges, "n_records": n, "n_bad": 0},
            training={"seed": number, **trained.report.to_dict()},
            gate={"mode": "auto", **gate},
            model=description,
            canary=make_canary(trained.model),
        ),
        weights,
        beside,
    )


def review(desk: Desk) -> None:
    """Label some of what is flagged, as an analyst would."""
    severe = [item.id for item in desk.flagged(FlaggedQuery(sort="severity", limit=60)).items]
    desk.label(severe[:1], "anomaly", "shell opened over telnet", "Ann")
    desk.label(severe[3:6], "anomaly", "", "Ann")
    desk.label(severe[8:9], "normal", "nightly backup", "Ann")
    desk.label(severe[20:40], "anomaly", "", "Ann")
    desk.label(severe[41:52], "normal", "", "Ann")
    desk.label(severe[53:54], "unsure", "", "Ann")


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
