"""A desk with everything behind it but Kafka and HTTP: a real registry, real models, a real index, a log in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pytest

from consumers.decoding import DECODERS
from consumers.errors import BrokerUnavailable
from consumers.logs import MemoryLog, OffsetRange
from consumers.records import Batch, Field, FieldKind, ImageSpec, Position, RawRecord, RecordSchema, StoredRecord
from consumers.sinks.serialization import timestamp
from models.persistence import model_to_parts
from models.refinement import Known
from models.training import Trained, TrainingConfig, train
from srr_stream.flagged import FlaggedIndex
from srr_stream.heat_maps import HeatMaps
from srr_stream.labels import Label, LabelBook, label_to_json
from srr_stream.labels.known_normals import KnownNormals
from srr_stream.live_model import LiveModel, make_canary
from srr_stream.model_shelf import ModelShelf
from srr_stream.record_reader import RecordReader
from srr_stream.registry import Manifest, Registry
from srr_stream.training_record import make_neighbours, make_refinement, to_files
from srr_stream.web.app import make_app
from srr_stream.web.desk import Desk
from srr_stream.web.details import Details
from srr_stream.web.states import Answer, Answers

TOPIC = "payments"
SCHEMA = RecordSchema(
    (Field("amount"), Field("duration_ms"), Field("load", is_required=False), Field("route", FieldKind.CATEGORICAL))
)
PICTURES = RecordSchema((Field("photo", FieldKind.IMAGE, image=ImageSpec(16, 16)),))
NOW = 1_760_000_000.0
"""Seconds since 1970: when it is, in all of this."""
N_NORMAL = 400


def normal_records(n: int = N_NORMAL, *, seed: int = 0) -> list[bytes]:
    """Payments whose amount follows their duration."""
    rng = np.random.default_rng(seed)
    duration = rng.lognormal(3.0, 0.4, n)
    amount = duration * 2 * rng.lognormal(0.0, 0.1, n)
    routes = rng.choice(["/", "/cart", "/pay"], n, p=[0.7, 0.2, 0.1])
    return [
        orjson.dumps(
            {
                "amount": float(amount[i]),
                "duration_ms": float(duration[i]),
                "load": float(rng.random()),
                "route": str(routes[i]),
            }
        )
        for i in range(n)
    ]


def odd_record(i: int) -> bytes:
    """A payment whose amount has nothing to do with its duration."""
    return orjson.dumps({"amount": 9140.0 + i, "duration_ms": 17.0 + i % 7, "load": 0.5, "route": "/pay"})


def batch_of(schema: RecordSchema, values: Sequence[bytes], *, format: str = "json") -> Batch:
    """Return records as the first ones of the input topic."""
    raw = [StoredRecord(TOPIC, 0, i, 0, None, value) for i, value in enumerate(values)]
    return DECODERS[format](schema).decode(raw).batch


@dataclass(frozen=True)
class Made:
    """A training, and what it leaves beside its model."""

    trained: Trained
    beside: Mapping[str, bytes]

    @classmethod
    def of(cls, batch: Batch, config: TrainingConfig) -> Made:
        trained = train(batch.features, config, seed=0)
        neighbours = make_neighbours(trained, batch, 0)
        return cls(trained, to_files(make_refinement(trained, batch, Known.nothing(len(batch))), neighbours))


@pytest.fixture(scope="session")
def trained() -> Made:
    """A model of payments."""
    return Made.of(batch_of(SCHEMA, normal_records()), TrainingConfig(representation="identity"))


@pytest.fixture(scope="session")
def photos() -> list[bytes]:
    """Pictures of 16 × 16 with a gradient; the last one has a blot."""
    import io

    import PIL.Image

    rng = np.random.default_rng(0)
    ramp = np.linspace(40, 200, 16, dtype=np.float64)
    files = []
    for i in range(80):
        pixels = (ramp[:, None, None] + rng.normal(0, 6, (16, 16, 3))).clip(0, 255).astype(np.uint8)
        if i == 79:
            pixels[4:9, 4:9] = (255, 0, 0)
        file = io.BytesIO()
        PIL.Image.fromarray(pixels).save(file, "PNG")
        files.append(file.getvalue())
    return files


@pytest.fixture(scope="session")
def trained_on_photos(photos: list[bytes]) -> Made:
    config = TrainingConfig(representation="pixels", classifier="gde")
    return Made.of(batch_of(PICTURES, photos[:79], format="image"), config)


class LogThatCanGo(MemoryLog):
    """A log whose broker can be lost, and whose records can be gone."""

    def __init__(self) -> None:
        super().__init__()
        self.is_lost = False
        self.gone_before = 0

    def ends(self) -> Mapping[Position, int]:
        self._reach()
        return super().ends()

    def read(self, offsets: OffsetRange) -> Iterator[StoredRecord]:
        self._reach()
        return super().read(replace(offsets, start=max(offsets.start, self.gone_before)))

    def _reach(self) -> None:
        if self.is_lost:
            raise BrokerUnavailable("no answer from broker:9092; check kafka.bootstrap_servers")


class LabelLog:
    """A topic of labels in memory: what is written is heard at once."""

    def __init__(self) -> None:
        self.hear: Callable[[Sequence[RawRecord]], None] = lambda records: None
        self.records: list[StoredRecord] = []
        self.problem: Exception | None = None
        """Raised by the next writes."""

    def write(self, labels: Sequence[Label]) -> None:
        self._append([(label.id, label_to_json(label)) for label in labels])

    def remove(self, ids: Sequence[str]) -> None:
        self._append([(id, None) for id in ids])

    def close(self) -> None: ...

    def _append(self, entries: Sequence[tuple[str, bytes | None]]) -> None:
        if self.problem is not None:
            raise self.problem
        new = [
            StoredRecord("labels", 0, len(self.records) + i, 0, id.encode(), value)
            for i, (id, value) in enumerate(entries)
        ]
        self.records += new
        self.hear(new)


class Bench:
    """A desk, and everything behind it to be turned by hand."""

    def __init__(self, folder: Path, schema: RecordSchema, *, format: str, has_labels: bool, keep: int) -> None:
        self.folder = folder
        self.schema = schema
        self.now = NOW
        self.log = LogThatCanGo()
        self.registry = Registry(str(folder / "registry"))
        self.live_model = LiveModel(self.registry, schema_digest=schema.digest, false_alarm_rate=0.005)
        self.shelf = ModelShelf(self.live_model, self.registry)
        self.reader = RecordReader(lambda: self.log, topics=[TOPIC])
        self.book = LabelBook() if has_labels else None
        self.label_log = LabelLog() if has_labels else None
        self.index = FlaggedIndex(folder / "state", keep=keep, label_of=self._label_of)
        self.problems: list[str] = []
        self.apps: dict[Any, Any] = {}
        self.scorer: dict[str, Any] | None = self.scorer_says()
        """What the scorer's /statusz has; None: it is not reached."""
        self.trainer: dict[str, Any] | None = self.trainer_says()
        self.history: dict[str, Any] = {"bucket_s": 10.0, "history": [], "swaps": []}
        heat_maps = HeatMaps(RecordReader(lambda: self.log, topics=[TOPIC]), DECODERS[format](schema), self.shelf)
        known = KnownNormals(self.book, DECODERS[format](schema)) if self.book is not None else None
        self.desk = Desk(
            index=self.index,
            registry=self.registry,
            live_model=self.live_model,
            details=Details(
                self.reader, DECODERS[format](schema), self.shelf, self.registry, heat_maps, known_normals=known
            ),
            ask=self._ask,
            book=self.book,
            writer=self.label_log,
            problems=lambda: self.problems,
            clock=lambda: self.now,
        )
        if self.label_log is not None:
            self.label_log.hear = self.desk.hear_labels

    def close(self) -> None:
        self.index.close()

    def publish(
        self,
        made: Made,
        *,
        is_champion: bool = True,
        passed: bool = True,
        reason: str = "clock",
        tells: bool = True,
    ) -> int:
        """Publish a model, promote it unless it is no champion, and have it loaded; return its version.

        With `tells` false nothing lies beside it, as of older programs.
        """
        trained, model = made.trained, made.trained.model
        description, weights = model_to_parts(model)
        check = {"name": "flagged_ratio", "value": 0.004 if passed else 0.7, "bound": "≤ 0.3", "passed": passed}
        manifest = self.registry.publish(
            Manifest(
                version=0,
                created_at=datetime.fromtimestamp(self.now - 600, UTC).isoformat(timespec="milliseconds"),
                reason=reason,
                schema=self.schema.to_dict(),
                schema_digest=self.schema.digest,
                window={
                    "ranges": [{"topic": TOPIC, "partition": 0, "start": 0, "stop": N_NORMAL}],
                    "n_records": N_NORMAL,
                    "n_bad": 0,
                },
                training={"seed": 1, **trained.report.to_dict()},
                gate={
                    "mode": "automatic",
                    "passed": passed,
                    "reason": "all checks passed" if passed else "flagged_ratio is 0.7, allowed: ≤ 0.3",
                    "checks": [{**check, "advice": ""}],
                },
                model=description,
                canary=make_canary(model),
            ),
            weights,
            made.beside if tells else None,
        )
        if is_champion:
            self.registry.promote(manifest.version, reason="gate.mode automatic: all checks passed")
            self.live_model.refresh()
        return manifest.version

    def produce(self, value: bytes, *, age_s: float = 0.0, key: str | None = None) -> RawRecord:
        """Append a record to the input log."""
        time_ms = int((self.now - age_s) * 1000)
        offset = self.log.append(TOPIC, value, timestamp=time_ms, key=key.encode() if key else None)
        return self.log.slice((TOPIC, 0), offset, offset + 1)[0]

    def verdict(self, raw: RawRecord, *, severity: float = 1.5, version: int = 1, **changes: Any) -> dict[str, Any]:
        """Return a flagged verdict as the alerts topic has it."""
        return {
            "id": f"{raw.topic}-{raw.partition}-{raw.offset}",
            "topic": raw.topic,
            "partition": raw.partition,
            "offset": raw.offset,
            "key": raw.key.decode() if raw.key is not None else None,
            "time": timestamp(raw.timestamp),
            "score": 20.0 * severity,
            "p_value": float(0.005**severity),
            "severity": severity,
            "flagged": True,
            "version": version,
            "reasons": [
                {"field": "amount", "contribution": 40.5, "observed": 9140.0, "expected": 35.0},
                {"field": "route", "contribution": 2.0, "observed": "/pay", "expected": "/"},
            ],
        } | changes

    def flag(self, *verdicts: Mapping[str, Any]) -> None:
        """Put verdicts into the index, as if they had come from the alerts topic."""
        self.index.add([StoredRecord("alerts", 0, 0, 0, None, orjson.dumps(dict(verdict))) for verdict in verdicts])

    def scorer_says(self, **changes: Any) -> dict[str, Any]:
        return {
            "role": "scorer",
            "version": "1.0",
            "live": True,
            "ready": True,
            "reason": "scoring 2 partitions with version 1",
            "trouble": None,
            "model_version": 1,
            "loaded_at": NOW - 500,
            "assigned": 2,
            "lag": [{"topic": TOPIC, "partition": 0, "records": 12}],
            "n_scored": 10_000,
            "n_flagged": 50,
            "n_dead_lettered": 3,
            "last_scored_at": NOW - 1,
            "records_per_s": 100.0,
        } | changes

    def trainer_says(self, **changes: Any) -> dict[str, Any]:
        return {
            "role": "trainer",
            "version": "1.0",
            "live": True,
            "ready": True,
            "reason": "version 1 is in use; waiting until a training is due",
            "phase": "waiting",
            "detail": "",
            "n_records": 2000,
            "n_wanted": 2000,
            "step": 0,
            "n_steps": 0,
            "excluded_ratio": 0.04,
        } | changes

    def say(self, state: str) -> None:
        """Have scorer and trainer say what makes a state of the desk."""
        holding = {"ready": False, "model_version": None, "loaded_at": None, "n_scored": 0, "n_flagged": 0}
        scorers: dict[str, dict[str, Any] | None] = {
            "scoring": self.scorer_says(),
            "empty": self.scorer_says(**holding, reason="holding, records stay in the log until the first model"),
            "warming_up": self.scorer_says(**holding, reason="holding, records stay in the log until the first model"),
            "holding": self.scorer_says(**holding, reason="holding: version 1 refused (hash): it is torn"),
            "lagging": self.scorer_says(lag=[{"topic": TOPIC, "partition": 0, "records": 120_000}]),
            "broker_away": self.scorer_says(ready=False, trouble="broker", reason="no answer from broker:9092"),
            "unreachable": None,
        }
        trainers: dict[str, dict[str, Any]] = {
            "empty": self.trainer_says(n_records=0),
            "warming_up": self.trainer_says(n_records=812),
        }
        self.scorer = scorers[state]
        self.trainer = trainers.get(state, self.trainer_says())

    def _ask(self, with_history: bool) -> Answers:
        scorer = self.scorer | (self.history if with_history else {}) if self.scorer is not None else None
        problem = None if scorer is not None else "Connection refused"
        return Answers(
            (Answer("http://127.0.0.1:9108", scorer, problem),),
            Answer("http://127.0.0.1:9109", self.trainer, None if self.trainer is not None else "Connection refused"),
        )

    def _label_of(self, id: str) -> str | None:
        label = self.book.get(id) if self.book is not None else None
        return label.label if label is not None else None


def _benches(folder: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Bench]]:
    """Give what makes a :class:`Bench`.

    Parameters: `n_flagged` records are flagged, record i of them i minutes old and of severity 1 + (i mod 40) / 10;
    `n_models` versions are there, the last one the champion, none with 0; `has_labels`; `pictures`: the records are
    photos, and one is flagged, ``payments-0-79``; `keep`: of the index.
    """
    made: list[Bench] = []

    def make(
        n_flagged: int = 0, *, n_models: int = 2, has_labels: bool = True, pictures: bool = False, keep: int = 100_000
    ) -> Bench:
        schema, format = (PICTURES, "image") if pictures else (SCHEMA, "json")
        bench = Bench(folder / f"desk-{len(made)}", schema, format=format, has_labels=has_labels, keep=keep)
        made.append(bench)
        if n_models:
            trained = request.getfixturevalue("trained_on_photos" if pictures else "trained")
            for _ in range(n_models):
                bench.publish(trained)
            bench.scorer = bench.scorer_says(
                model_version=n_models, reason=f"scoring 2 partitions with version {n_models}"
            )
        else:
            bench.say("empty")
        if pictures:
            for photo in request.getfixturevalue("photos"):
                raw = bench.produce(photo, age_s=60)
            photo_reason = {"field": "photo", "contribution": 12.0, "observed": None, "expected": None}
            path = f"/v1/heat-maps/{TOPIC}/0/79.png?version=1"
            bench.flag(bench.verdict(raw, severity=2.0, reasons=[photo_reason], heat_map=path))
            return bench
        for value in normal_records():
            bench.produce(value, age_s=7200)
        verdicts = []
        for i in range(n_flagged):
            raw = bench.produce(odd_record(i), age_s=60.0 * i, key=f"customer-{i % 10}")
            verdicts.append(bench.verdict(raw, severity=1 + (i % 40) / 10, version=1 + i % max(n_models, 1)))
        bench.flag(*verdicts)
        at = [NOW - 10 * i for i in range(60, 0, -1)]
        bench.history = {
            "bucket_s": 10.0,
            "history": [
                {"at": t, "n": 1000, "n_flagged": 5, "max_severity": 1.5, "version": 1 + (i >= 30)}
                for i, t in enumerate(at)
            ],
            "swaps": [{"at": at[0], "version": 1}, {"at": at[30], "version": 2}],
        }
        return bench

    yield make
    for bench in made:
        bench.close()


@pytest.fixture
def desk_with(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Bench]]:
    """Give what makes a :class:`Bench`; see :func:`_benches`."""
    yield from _benches(tmp_path, request)


@pytest.fixture(scope="module")
def module_desk_with(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Bench]]:
    """The same, for benches that the tests of a module share."""
    yield from _benches(tmp_path_factory.mktemp("desks"), request)


TOKEN = "a-token-that-nobody-guesses"


class Client:
    """Asks an ASGI application in this process, as a browser or a program on this machine would."""

    def __init__(self, app: Any, *, token: str | None = None, base_url: str = "http://127.0.0.1:9110") -> None:
        self.app = app
        self._base_url = base_url
        self._headers = {"Authorization": f"Bearer {token}"} if token is not None else {}

    def __call__(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=True)
            async with httpx.AsyncClient(transport=transport, base_url=self._base_url) as client:
                headers = self._headers | options.pop("headers", {})
                return await client.request(method, path, headers=headers, **options)

        return asyncio.run(ask())

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self("GET", path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self("POST", path, **options)

    def delete(self, path: str, **options: Any) -> httpx.Response:
        return self("DELETE", path, **options)


def app_of(bench: Bench, *, is_open: bool = True, **options: Any) -> Any:
    """Return the API of a bench, which is made once."""
    format = "image" if bench.schema is PICTURES else "json"
    key = (is_open, repr(options))
    if key not in bench.apps:
        bench.apps[key] = make_app(bench.desk, token=TOKEN, is_open=is_open, record_format=format, **options)
    return bench.apps[key]


@pytest.fixture(scope="session")
def make_app_of() -> Callable[..., Any]:
    return app_of


@pytest.fixture
def client_of() -> Callable[..., Client]:
    """Give what makes a client of a bench's API; with `with_token` as a program that knows the token."""

    def make(
        bench: Bench, *, is_open: bool = True, with_token: bool = False, token: str | None = None, **options: Any
    ) -> Client:
        base = "http://127.0.0.1:9110" if is_open else "http://srr.example.com"
        return Client(app_of(bench, is_open=is_open, **options), token=TOKEN if with_token else token, base_url=base)

    return make


@pytest.fixture(name="now")
def _now() -> float:
    return NOW
