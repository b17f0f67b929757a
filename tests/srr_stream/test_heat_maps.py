"""Heat maps on request: over HTTP, by the command, by reference in the alert; and what is said where there is none."""

from __future__ import annotations

import io
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import PIL.Image
import pytest
from click.testing import CliRunner
from prometheus_client import CollectorRegistry

from consumers.decoding import DECODERS
from consumers.delivery import AtLeastOnce
from consumers.errors import BrokerUnavailable
from consumers.logs import MemoryLog, OffsetRange
from consumers.records import Field, Position, RecordSchema, Verdicts
from consumers.sinks.memory import MemorySink
from consumers.sinks.serialization import verdict_bodies
from consumers.sources.memory import MemorySource
from models.detector import Model
from models.persistence import model_to_parts
from models.training import TrainingConfig, train
from srr_stream import cli
from srr_stream.api import HttpEndpoint
from srr_stream.data import Dataset, load
from srr_stream.errors import NoHeatMap
from srr_stream.health import Health
from srr_stream.heat_maps import HeatMaps, path_of
from srr_stream.live_model import LiveModel, make_canary
from srr_stream.loading import check_settings
from srr_stream.metrics import ScorerMetrics
from srr_stream.model_shelf import ModelShelf
from srr_stream.overlays import overlay
from srr_stream.pace import Pace
from srr_stream.record_reader import RecordReader
from srr_stream.registry import Manifest, Registry
from srr_stream.scorer import Scorer
from srr_stream.service import Service

Stream = Any
N = 200
FIELDS = RecordSchema((Field("x"), Field("y")))


@pytest.fixture(scope="module")
def boards() -> Dataset:
    return load("boards")


@pytest.fixture(scope="module")
def values(boards: Dataset) -> list[bytes]:
    return [value for _, value in zip(range(N), boards.values(), strict=False)]


@pytest.fixture(scope="module")
def columns(boards: Dataset, values: list[bytes]) -> Mapping[str, Any]:
    log = MemoryLog()
    for value in values:
        log.append("t", value)
    return DECODERS["image"](boards.schema).decode(log.slice(("t", 0), 0, N)).batch.features


@pytest.fixture(scope="module")
def models(columns: Mapping[str, Any]) -> list[Model]:
    """Two models of pictures, that differ."""
    config = TrainingConfig(representation="pixels", classifier="gde", false_alarm_rate=0.05)
    return [train({"picture": columns["picture"][part]}, config, seed=0).model for part in (slice(100), slice(N))]


@pytest.fixture(scope="module")
def model_of_fields() -> Model:
    x = np.random.default_rng(0).normal(size=100)
    return train({"x": x, "y": 2 * x}, TrainingConfig(), seed=0).model


class LogThatCounts(MemoryLog):
    """Counts what is asked of it, and can lose its broker."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.is_lost = False

    def ends(self) -> Mapping[Position, int]:
        self._ask("ends")
        return super().ends()

    def read(self, offsets: OffsetRange) -> Iterator[Any]:
        self._ask(f"read {offsets.topic}")
        return super().read(offsets)

    def close(self) -> None:
        self.asked.append("close")

    def _ask(self, what: str) -> None:
        self.asked.append(what)
        if self.is_lost:
            raise BrokerUnavailable("no answer from broker:9092")


@dataclass
class Answer:
    """What the endpoint said."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


class Bench:
    """An endpoint with heat maps over a log in memory."""

    def __init__(self, folder: Path, schema: RecordSchema, *, record_format: str = "image") -> None:
        self.schema = schema
        self.log = LogThatCounts()
        self.n_opened = 0
        self.registry = Registry(str(folder))
        self.live_model = LiveModel(self.registry, schema_digest=schema.digest, false_alarm_rate=0.05)
        self.decoder = DECODERS[record_format](schema)
        reader = RecordReader(self._open, topics=["events"])
        self.heat_maps = HeatMaps(reader, self.decoder, ModelShelf(self.live_model, self.registry), patience_s=0.2)
        self.metrics = CollectorRegistry()
        self.endpoint = HttpEndpoint(
            "127.0.0.1", 0, registry=self.metrics, health=Health(live_timeout_s=60), heat_maps=self.heat_maps
        )

    def _open(self) -> LogThatCounts:
        self.n_opened += 1
        return self.log

    def publish(self, model: Model, *, schema: RecordSchema | None = None) -> int:
        """Publish, promote and refresh."""
        description, weights = model_to_parts(model)
        version = self.registry.publish(
            Manifest(
                version=0,
                created_at="",
                reason="a test",
                schema={},
                schema_digest=(schema or self.schema).digest,
                window={"n_records": N},
                training={},
                gate={},
                model=description,
                canary=make_canary(model),
            ),
            weights,
        ).version
        self.registry.promote(version)
        self.live_model.refresh()
        return version

    def get(self, path: str, *, method: str = "GET") -> Answer:
        request = urllib.request.Request(f"http://127.0.0.1:{self.endpoint.port}{path}", method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return Answer(answer.status, answer.headers, answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.headers, error.read())

    def close(self) -> None:
        self.endpoint.close()
        self.heat_maps.close()


@pytest.fixture
def bench(tmp_path: Path, boards: Dataset, values: list[bytes]) -> Iterator[Bench]:
    made = Bench(tmp_path / "registry", boards.schema)
    for value in values:
        made.log.append("events", value)
        made.log.append("secrets", value)
    yield made
    made.close()


@pytest.fixture
def with_models(bench: Bench, models: list[Model]) -> Bench:
    for model in models:
        bench.publish(model)
    return bench


# What is given


def test_the_picture_of_a_record_comes_with_its_severity_and_the_version(
    with_models: Bench, models: list[Model], columns: Mapping[str, Any]
) -> None:
    answer = with_models.get("/v1/heat-maps/events/0/7.png")
    row = {"picture": columns["picture"][[7]]}
    assert (answer.status, answer.headers["Content-Type"]) == (200, "image/png")
    assert answer.headers["X-Srr-Version"] == "2"
    severity = models[1].score(row).severity[0]
    assert float(answer.headers["X-Srr-Severity"]) == pytest.approx(severity, rel=1e-5)
    shown = np.asarray(PIL.Image.open(io.BytesIO(answer.body)))
    assert shown.shape == (256, 256, 3)
    assert np.array_equal(shown[::4, ::4], overlay(row["picture"][0], models[1].heat_maps(row)[0]))


def test_an_older_version_draws_its_own_map(
    with_models: Bench, models: list[Model], columns: Mapping[str, Any]
) -> None:
    answer = with_models.get("/v1/heat-maps/events/0/7.png?version=1")
    row = {"picture": columns["picture"][[7]]}
    assert answer.headers["X-Srr-Version"] == "1"
    shown = np.asarray(PIL.Image.open(io.BytesIO(answer.body)))
    assert np.array_equal(shown[::4, ::4], overlay(row["picture"][0], models[0].heat_maps(row)[0]))
    assert answer.body != with_models.get("/v1/heat-maps/events/0/7.png").body


def test_the_log_is_opened_when_the_first_question_comes_and_kept(with_models: Bench) -> None:
    assert with_models.n_opened == 0
    for offset in (3, 2, 150):
        assert with_models.get(f"/v1/heat-maps/events/0/{offset}.png").status == 200
    assert with_models.n_opened == 1
    assert with_models.log.asked == ["ends", "read events", "read events", "read events"]


def test_a_record_that_came_since_the_last_question_is_found(with_models: Bench, values: list[bytes]) -> None:
    assert with_models.get("/v1/heat-maps/events/0/0.png").status == 200
    offset = with_models.log.append("events", values[0])
    assert with_models.get(f"/v1/heat-maps/events/0/{offset}.png").status == 200


def test_few_models_stay_in_memory_and_a_version_is_loaded_once_while_it_does(
    with_models: Bench, models: list[Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(4):
        with_models.publish(models[0])
    loaded: list[int] = []
    really = with_models.live_model.load

    def counting(version: int) -> Any:
        loaded.append(version)
        return really(version)

    monkeypatch.setattr(with_models.live_model, "load", counting)
    for version in (1, 1, 6, 2, 3, 1, 4, 2):
        assert with_models.get(f"/v1/heat-maps/events/0/0.png?version={version}").status == 200
    assert loaded == [1, 2, 3, 4, 2]  # 6 is live; 2 had to make room for 4


def test_metrics_and_probes_are_still_there_and_know_nothing_of_who_asked_for_what(with_models: Bench) -> None:
    before = with_models.get("/metrics").body
    with_models.get("/v1/heat-maps/events/0/7.png")
    with_models.get("/v1/heat-maps/nobody/0/7.png")
    assert with_models.get("/metrics").body == before
    assert with_models.get("/livez").status == 200
    assert "/v1/heat-maps/" in with_models.get("/elsewhere").text


# What is refused


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/v1/heat-maps/secrets/0/7.png", 404, "topic 'secrets' is not read here"),
        ("/v1/heat-maps/events/0/200.png", 404, "events-0 ends at offset 200"),
        ("/v1/heat-maps/events/9/7.png", 404, "topic events has no partition 9"),
        ("/v1/heat-maps/events/0/999999999999999999.png", 404, "ends at offset 200"),
        ("/v1/heat-maps/events/0/9999999999999999999.png", 404, "allowed: /v1/heat-maps/{topic}"),
        ("/v1/heat-maps/events/0/-1.png", 404, "allowed:"),
        ("/v1/heat-maps/events/0/7", 404, "allowed:"),
        ("/v1/heat-maps/events/0/7.png/", 404, "allowed:"),
        ("/v1/heat-maps/events/0/%D9%A3.png", 404, "allowed:"),
        ("/v1/heat-maps/../secrets/0/7.png", 404, "allowed:"),
        ("/v1/heat-maps/events%2F..%2Fsecrets/0/7.png", 404, "allowed:"),
        ("/v1/heat-maps/", 404, "allowed:"),
        ("/v1/heat-maps/events/0/7.png?version=3", 404, "version 3 is not in the registry; there are (1, 2)"),
        ("/v1/heat-maps/events/0/7.png?version=0", 404, "version 0 is not in the registry"),
        ("/v1/heat-maps/events/0/7.png?version=-1", 400, "allowed: nothing or ?version=N"),
        ("/v1/heat-maps/events/0/7.png?version=1&version=2", 400, "allowed:"),
        ("/v1/heat-maps/events/0/7.png?version=", 400, "allowed:"),
        ("/v1/heat-maps/events/0/7.png?verison=1", 400, "allowed:"),
    ],
)
def test_what_is_not_there_or_not_allowed_is_said(with_models: Bench, path: str, status: int, words: str) -> None:
    answer = with_models.get(path)
    assert (answer.status, answer.headers["Content-Type"]) == (status, "text/plain; charset=utf-8")
    assert words in answer.text
    assert "read secrets" not in with_models.log.asked


@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT"])
def test_heat_maps_can_only_be_asked_for(with_models: Bench, method: str) -> None:
    assert with_models.get("/v1/heat-maps/events/0/7.png", method=method).status == 405


def test_a_dead_letter_has_no_heat_map_and_the_reason_is_told(with_models: Bench, values: list[bytes]) -> None:
    offset = with_models.log.append("events", values[0][:200])
    answer = with_models.get(f"/v1/heat-maps/events/0/{offset}.png")
    assert answer.status == 404
    assert f"events-0-{offset} is a dead letter: truncated_image" in answer.text


def test_a_record_that_is_gone_is_said_to_be_gone(with_models: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(with_models.log, "read", lambda offsets: iter(()))
    answer = with_models.get("/v1/heat-maps/events/0/7.png")
    assert answer.status == 404
    assert "no record at offset 7 any more" in answer.text


def test_without_a_model_there_is_nothing_to_say_yet(bench: Bench) -> None:
    answer = bench.get("/v1/heat-maps/events/0/7.png")
    assert answer.status == 503
    assert "there is no model yet" in answer.text
    assert bench.n_opened == 0


def test_a_model_of_fields_has_no_heat_maps(tmp_path: Path, model_of_fields: Model) -> None:
    bench = Bench(tmp_path / "registry", FIELDS, record_format="json")
    try:
        bench.publish(model_of_fields)
        bench.log.append("events", b'{"x": 1, "y": 2}')
        answer = bench.get("/v1/heat-maps/events/0/0.png")
        assert answer.status == 409
        assert "version 1 scores fields, not pictures" in answer.text
        assert bench.n_opened == 0
    finally:
        bench.close()


def test_a_version_that_was_trained_on_other_records_is_refused(with_models: Bench, models: list[Model]) -> None:
    with_models.publish(models[0], schema=FIELDS)
    answer = with_models.get("/v1/heat-maps/events/0/7.png?version=3")
    assert answer.status == 409
    assert "refused (schema)" in answer.text
    assert with_models.get("/v1/heat-maps/events/0/7.png").headers["X-Srr-Version"] == "2"


def test_a_broker_that_is_away_is_said_and_asked_anew_by_the_next_question(with_models: Bench) -> None:
    with_models.log.is_lost = True
    answer = with_models.get("/v1/heat-maps/events/0/7.png")
    assert answer.status == 503
    assert "no answer from broker:9092" in answer.text
    assert with_models.log.asked[-1] == "close"
    with_models.log.is_lost = False
    assert with_models.get("/v1/heat-maps/events/0/7.png").status == 200
    assert with_models.n_opened == 2


def test_one_question_is_worked_on_at_a_time_and_the_others_do_not_wait_for_ever(
    with_models: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_reading, go_on = threading.Event(), threading.Event()
    really = with_models.log.read

    def slow(offsets: OffsetRange) -> Iterator[Any]:
        is_reading.set()
        assert go_on.wait(10)
        return really(offsets)

    monkeypatch.setattr(with_models.log, "read", slow)
    answers: list[Answer] = []
    first = threading.Thread(target=lambda: answers.append(with_models.get("/v1/heat-maps/events/0/7.png")))
    first.start()
    assert is_reading.wait(10)
    second = with_models.get("/v1/heat-maps/events/0/8.png")
    assert second.status == 503
    assert "try again" in second.text
    assert with_models.get("/livez").status == 200
    go_on.set()
    first.join(10)
    assert answers[0].status == 200


def test_closing_lets_the_log_go_once(with_models: Bench) -> None:
    with_models.get("/v1/heat-maps/events/0/7.png")
    with_models.heat_maps.close()
    with_models.heat_maps.close()
    assert with_models.log.asked.count("close") == 1


def test_a_reason_is_one_that_the_endpoint_knows() -> None:
    with pytest.raises(NoHeatMap) as refused:
        raise NoHeatMap("there is none", reason="not_found")
    assert (str(refused.value), refused.value.reason) == ("there is none", "not_found")


# By reference in the alert


def scored(bench: Bench, **options: Any) -> list[Verdicts]:
    """Return the verdicts of a scorer over the bench's log."""
    log, sink = MemoryLog(), MemorySink()
    for record in bench.log.slice(("events", 0), 0, bench.log.ends()["events", 0]):
        log.append("events", record.value)
    source = MemorySource(log, max_batch=64)
    scorer = Scorer(
        source,
        bench.decoder,
        bench.live_model,
        AtLeastOnce(source, sink),
        pace=Pace(64),
        metrics=ScorerMetrics(CollectorRegistry()),
        health=Health(live_timeout_s=60),
        **options,
    )
    while scorer.turn():
        pass
    return sink.flushed


@pytest.mark.parametrize("n_reasons", [0, 5])
def test_a_flagged_picture_and_no_other_names_where_its_heat_map_is(with_models: Bench, n_reasons: int) -> None:
    bodies = [
        orjson.loads(body)
        for verdicts in scored(with_models, heat_map_url=path_of, n_reasons=n_reasons)
        for body in verdict_bodies(verdicts)
    ]
    assert len(bodies) == N
    flagged = [body for body in bodies if body["flagged"]]
    assert flagged
    for body in flagged:
        assert body["heat_map"] == f"/v1/heat-maps/events/0/{body['offset']}.png?version=2"
        assert float(with_models.get(body["heat_map"]).headers["X-Srr-Severity"]) == pytest.approx(
            body["severity"], rel=1e-4
        )
    assert not any("heat_map" in body for body in bodies if not body["flagged"])


def test_verdicts_on_fields_name_no_heat_map(tmp_path: Path, model_of_fields: Model) -> None:
    bench = Bench(tmp_path / "registry", FIELDS, record_format="json")
    try:
        bench.publish(model_of_fields)
        for value in (b'{"x": 1, "y": 2}', b'{"x": 1, "y": -90}'):
            bench.log.append("events", value)
        (verdicts,) = scored(bench, heat_map_url=path_of)
    finally:
        bench.close()
    assert verdicts.flagged.any()
    assert all(b"heat_map" not in body for body in verdict_bodies(verdicts))


def test_bad_pictures_only_are_answered_too(with_models: Bench) -> None:
    for _ in range(80):  # more than a batch
        with_models.log.append("events", b"GIF89a")
    assert sum(len(verdicts) for verdicts in scored(with_models, heat_map_url=path_of)) == N


# With a broker


def settings_of(stream: Stream, **overrides: Mapping[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = stream.content(
        **{
            "record": {
                "format": "image",
                "fields": [{"name": "picture", "kind": "image", "size": [64, 64], "mode": "grey"}],
            },
            "training": {
                "representation": "cutpaste",
                "representation_options": {"n_epochs": 1, "width": 8, "head_width": 8},
            },
            "threshold": {"false_alarm_rate": 0.05},
            "gate": {"mode": "off"},
            **overrides,
        }
    )
    return content


def fetched(port: int, path: str) -> tuple[Mapping[str, str], bytes]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
        return answer.headers, answer.read()


def test_the_heat_map_of_an_alert_is_had_from_where_the_alert_says_and_by_the_command(
    stream: Stream, boards: Dataset, wait_until: Callable[..., Any], tmp_path: Path
) -> None:
    content = settings_of(stream, http={"public_url": "http://srr.example.com/scorer/"})
    values = [value for _, value in zip(range(400), boards.values(), strict=False)]
    service = Service(check_settings(content))
    stop = threading.Event()
    thread = threading.Thread(target=service.run, args=(stop.is_set,))
    thread.start()
    try:
        stream.produce([*values[:350], b"GIF89a"])
        wait_until(lambda: stream.count() == 350, what="verdicts of the first model")
        wait_until(lambda: (live := service.live_model.current) and live.version == 2, what="a trained model")
        for part in (values[350:375], values[375:]):  # a batch that a poll waits for already is the old model's
            n_before = stream.count()
            stream.produce(part)
            wait_until(lambda n=n_before: stream.count() == n + 25, what="verdicts beside the trained model")
        alert = orjson.loads(stream.read(stream.alerts_topic)[0].value)
        assert alert["version"] == 1  # no longer the live one
        public = alert["heat_map"]
        assert public.startswith("http://srr.example.com/scorer/v1/heat-maps/")
        headers, body = fetched(service.port, public.removeprefix("http://srr.example.com/scorer"))
        assert int(headers["X-Srr-Version"]) == 1
        assert float(headers["X-Srr-Severity"]) == pytest.approx(alert["severity"], rel=1e-3)
        assert PIL.Image.open(io.BytesIO(body)).size == (256, 256)
        last = next(verdict for verdict in stream.verdicts() if verdict["version"] == 2)
        headers, _ = fetched(service.port, f"/v1/heat-maps/{last['topic']}/{last['partition']}/{last['offset']}.png")
        assert int(headers["X-Srr-Version"]) == 2
        assert float(headers["X-Srr-Severity"]) == pytest.approx(last["severity"], rel=1e-3, abs=1e-3)
    finally:
        stop.set()
        thread.join(30)
    assert len(stream.read(stream.dead_letter_topic)) == 1
    path, output = stream.write_settings(**settings_of(stream)), tmp_path / "one.png"
    position = [alert["topic"], str(alert["partition"]), str(alert["offset"])]
    arguments = ["heat-map", "-c", str(path), *position, "--version", "1", "-o", str(output)]
    done = CliRunner().invoke(cli.main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "by version 1" in done.output
    assert output.read_bytes() == body
    document = json.loads(CliRunner().invoke(cli.main, [*arguments, "--json"], catch_exceptions=False).stdout)
    assert (document["output"], document["version"]) == (str(output), 1)
    refused = CliRunner().invoke(cli.main, ["heat-map", "-c", str(path), "other", "0", "0"], catch_exceptions=False)
    assert refused.exit_code == 3
    assert "topic 'other' is not read here" in refused.output
