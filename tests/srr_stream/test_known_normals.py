"""False alarms that were marked normal are not flagged again, nor what is as near; all else is, and undo undoes it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from consumers.decoding import ImageDecoder, JsonDecoder
from consumers.delivery import AtLeastOnce
from consumers.logs import MemoryLog
from consumers.records import Batch, Field, FieldKind, ImageSpec, RecordSchema, StoredRecord, Verdicts, event_id
from consumers.sinks.memory import MemorySink
from consumers.sinks.serialization import flagged_rows, verdict_bodies
from consumers.sources.memory import MemorySource
from models.persistence import model_to_parts
from models.training import TrainingConfig, train
from srr_stream.health import Health
from srr_stream.labels import Label, LabelBook, label_to_json
from srr_stream.labels.known_normals import KnownNormals
from srr_stream.live_model import LiveModel, make_canary
from srr_stream.metrics import ScorerMetrics
from srr_stream.pace import Pace
from srr_stream.registry import Manifest, Registry
from srr_stream.scorer import Scorer
from srr_stream.training_record import make_neighbours
from srr_stream.triggers import DriftTrigger

PLANE = RecordSchema((Field("x"), Field("y")))


class Plane:
    """A model that compares records as they are."""

    def __init__(self) -> None:
        self.n_placed = 0

    def coordinates(self, columns: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        self.n_placed += len(columns["x"])
        return np.stack([columns["x"], columns["y"]], axis=1).astype(np.float32)


def live(radius: float | None = None, *, version: int = 1, model: Any = None) -> Any:
    training = {} if radius is None else {"neighbour_radius": radius}
    return SimpleNamespace(version=version, model=model or Plane(), manifest=SimpleNamespace(training=training))


class Said:
    """A book of labels that is written to."""

    def __init__(self) -> None:
        self.book = LabelBook()
        self._n = 0

    def say(self, offset: int, name: Any, record: bytes | None) -> str:
        label = Label(
            f"t-0-{offset}", name, "", "", f"2026-01-01T00:00:{self._n:02d}Z", 1, 0.001, 1.5, "t", 0, offset, record
        )
        return self._write(label.id, label_to_json(label))

    def take_back(self, id: str) -> None:
        self._write(id, None)

    def _write(self, id: str, value: bytes | None) -> str:
        self.book.update([StoredRecord("labels", 0, self._n, 0, id.encode(), value)])
        self._n += 1
        return id


@pytest.fixture
def said() -> Said:
    return Said()


def at(x: float, y: float) -> bytes:
    return json.dumps({"x": x, "y": y}).encode()


def covered(known: KnownNormals, of: Any, points: Sequence[tuple[float, float]], flagged: Any = True) -> dict[int, str]:
    x, y = np.array(points, dtype=np.float64).T
    return known.covering(of, {"x": x, "y": y}, np.broadcast_to(flagged, len(points)))


def test_what_is_as_near_is_covered_and_what_is_farther_is_not(said: Said) -> None:
    known = KnownNormals(said.book, JsonDecoder(PLANE))
    id = said.say(1, "normal", at(10.0, 0.0))
    points = [(10.0, 0.0), (10.0, 0.5), (10.0, 0.5001), (10.3, 0.39), (0.0, 0.0)]
    assert covered(known, live(0.5), points) == {0: id, 1: id, 3: id}
    assert covered(known, live(0.5), points, flagged=np.array([False, True, True, False, True])) == {1: id}
    assert covered(known, live(0.5), points, flagged=False) == {}


@pytest.mark.parametrize("radius", [None, 0.0])
def test_without_a_radius_only_equal_records_are_covered(said: Said, radius: float | None) -> None:
    known = KnownNormals(said.book, JsonDecoder(PLANE))
    id = said.say(1, "normal", at(0.0, 3.0))
    assert covered(known, live(radius), [(0.0, 3.0), (-0.0, 3.0), (1e-6, 3.0)]) == {0: id, 1: id}


def test_the_nearest_is_named_and_an_anomaly_that_is_nearer_stays_one(said: Said) -> None:
    known = KnownNormals(said.book, JsonDecoder(PLANE))
    first, second = said.say(1, "normal", at(0.0, 0.0)), said.say(2, "normal", at(1.0, 0.0))
    said.say(3, "anomaly", at(0.0, 1.0))
    said.say(4, "anomaly", at(5.0, 5.0))
    said.say(5, "normal", at(5.0, 5.0))
    said.say(6, "unsure", at(9.0, 9.0))
    points = [(0.2, 0.0), (0.8, 0.0), (0.0, 0.4), (0.0, 0.6), (5.0, 5.0), (9.0, 9.0)]
    assert covered(known, live(1.0), points) == {0: first, 1: second, 2: first}


def test_a_label_counts_as_soon_as_it_comes_and_no_longer_than_it_is_there(said: Said) -> None:
    known, model = KnownNormals(said.book, JsonDecoder(PLANE)), live(0.1)
    assert covered(known, model, [(1.0, 1.0)]) == {}
    id = said.say(1, "normal", at(1.0, 1.0))
    assert covered(known, model, [(1.0, 1.0)]) == {0: id}
    said.say(1, "anomaly", at(1.0, 1.0))
    assert covered(known, model, [(1.0, 1.0)]) == {}
    said.say(1, "normal", at(1.0, 1.0))
    assert covered(known, model, [(1.0, 1.0)]) == {0: id}
    said.take_back(id)
    assert covered(known, model, [(1.0, 1.0)]) == {}


def test_only_what_is_new_is_worked_out_and_all_of_it_for_another_model(said: Said) -> None:
    known, model = KnownNormals(said.book, JsonDecoder(PLANE)), Plane()
    for offset in range(5):
        said.say(offset, "normal", at(offset, 0.0))
    for n in (5 + 1, 1):  # five labels and the record in question; then that alone
        model.n_placed = 0
        assert len(covered(known, live(0.1, model=model), [(2.0, 0.0)])) == 1
        assert model.n_placed == n
    said.say(5, "normal", at(5.0, 0.0))
    model.n_placed = 0
    covered(known, live(0.1, model=model), [(2.0, 0.0)])
    assert model.n_placed == 2
    model.n_placed = 0
    covered(known, live(0.1, version=2, model=model), [(2.0, 0.0)])
    assert model.n_placed == 7


def test_a_label_whose_record_is_not_there_or_refused_covers_nothing(
    said: Said, caplog: pytest.LogCaptureFixture
) -> None:
    known, model = KnownNormals(said.book, JsonDecoder(PLANE)), live(100.0)
    said.say(1, "normal", None)
    said.say(2, "normal", b'{"x": 1}')
    for _ in range(3):
        assert covered(known, model, [(1.0, 1.0)]) == {}
    assert caplog.text.count("the record of label t-0-1 (normal) is compared with none: it holds none") == 1
    assert caplog.text.count("the record of label t-0-2 (normal) is compared with none: these settings refuse it") == 1
    id = said.say(3, "normal", at(1.0, 1.0))
    assert covered(known, model, [(1.0, 1.0)]) == {0: id}


def test_no_more_than_the_newest_labels_are_compared_with(said: Said) -> None:
    known = KnownNormals(said.book, JsonDecoder(PLANE), max_compared=2)
    ids = [said.say(offset, "normal", at(10.0 * offset, 0.0)) for offset in range(3)]
    assert covered(known, live(0.1), [(0.0, 0.0), (10.0, 0.0), (20.0, 0.0)]) == {1: ids[1], 2: ids[2]}


whole = st.tuples(st.integers(-4, 4), st.integers(-4, 4))


@given(st.lists(whole, min_size=1, max_size=6), st.lists(whole, max_size=4), st.lists(whole, max_size=8), st.data())
@settings(deadline=None, max_examples=60)
def test_it_is_what_a_slow_comparison_says(
    normals: list[Any], anomalies: list[Any], points: list[Any], data: st.DataObject
) -> None:
    """Halves as radius, so that no distance is the radius but for a rounding."""
    radius = data.draw(st.integers(0, 6)) + 0.5
    said = Said()
    for offset, (name, place) in enumerate([("normal", p) for p in normals] + [("anomaly", p) for p in anomalies]):
        said.say(offset, name, at(*place))
    known = KnownNormals(said.book, JsonDecoder(PLANE))
    expected, is_tied = set(), set()
    for i, point in enumerate(points):
        to_normal = min(float(np.hypot(p[0] - point[0], p[1] - point[1])) for p in normals)
        to_anomaly = min((float(np.hypot(p[0] - point[0], p[1] - point[1])) for p in anomalies), default=np.inf)
        if to_normal <= radius and to_normal < to_anomaly:
            expected.add(i)
        if to_normal == to_anomaly > 0.0:  # either is right
            is_tied.add(i)
    found = covered(known, live(radius), points) if points else {}
    assert set(found) - is_tied == expected


# --- what a verdict says ----------------------------------------------------------------------------------------------


def test_a_verdict_names_what_covers_it_and_is_no_alert() -> None:
    raw = [StoredRecord("in", 0, i, 0, None, b"{}") for i in range(3)]
    batch = Batch(PLANE, {"x": np.zeros(3), "y": np.zeros(3)}, raw, np.zeros(3, dtype=np.int64))
    verdicts = Verdicts(
        batch,
        1,
        np.ones(3),
        np.array([0.5, 1e-3, 1e-3]),
        np.array([0.1, 1.3, 1.3]),
        np.array([False, True, False]),
        known_normals={2: "in-0-99"},
    )
    bodies = [json.loads(body) for body in verdict_bodies(verdicts)]
    assert [body.get("known_normal") for body in bodies] == [None, None, "in-0-99"]
    assert [body["flagged"] for body in bodies] == [False, True, False]
    assert (bodies[2]["severity"], bodies[2]["p_value"]) == (1.3, 1e-3)
    assert flagged_rows(verdicts) == [1]
    assert verdicts.flagged_by_model.tolist() == [False, True, True]
    assert verdicts.flagged.tolist() == [False, True, False]
    plain = replace(verdicts, known_normals={})
    assert "known_normal" not in json.loads(list(verdict_bodies(plain))[2])
    assert plain.flagged_by_model is plain.flagged


# --- the scorer -------------------------------------------------------------------------------------------------------

REQUESTS = RecordSchema((Field("duration_ms"), Field("bytes_sent")))


def window(n: int = 600) -> Batch:
    rng = np.random.default_rng(0)
    duration = rng.lognormal(3.0, 0.4, n)
    columns = {"duration_ms": duration, "bytes_sent": duration * 20 * rng.lognormal(0.0, 0.1, n)}
    raw = [StoredRecord("past", 0, i, 0, None, b"") for i in range(n)]
    return Batch(REQUESTS, columns, raw, np.zeros(n, dtype=np.int64))


class Watching:
    """Looks at what watches over models are shown."""

    def __init__(self) -> None:
        self.flagged: list[bool] = []

    def observe(self, live: Any, features: Any, flagged: NDArray[np.bool_]) -> None:
        self.flagged += flagged.tolist()


class Bench:
    """A scorer with a trained model, and labels."""

    def __init__(self, folder: Path) -> None:
        past = window()
        trained = train(past.features, TrainingConfig(), seed=0)
        description, weights = model_to_parts(trained.model)
        registry = Registry(str(folder))
        manifest = Manifest(
            0, "", "test", REQUESTS.to_dict(), REQUESTS.digest, {"n_records": 600}, {}, {}, description, {}
        )
        self.radius = make_neighbours(trained, past, 0).radius
        manifest = replace(manifest, canary=make_canary(trained.model), training={"neighbour_radius": self.radius})
        registry.promote(registry.publish(manifest, weights).version)
        self.live_model = LiveModel(registry, schema_digest=REQUESTS.digest, false_alarm_rate=0.005)
        self.live_model.refresh()
        self.log, self.sink, self.said = MemoryLog(), MemorySink(), Said()
        self.metrics_registry, self.watching, self.drift = CollectorRegistry(), Watching(), DriftTrigger()
        source = MemorySource(self.log, max_batch=50)
        self.scorer = Scorer(
            source,
            JsonDecoder(REQUESTS),
            self.live_model,
            AtLeastOnce(source, self.sink),
            pace=Pace(50),
            metrics=ScorerMetrics(self.metrics_registry),
            health=Health(live_timeout_s=60),
            observers=[self.watching],
            known_normals=KnownNormals(self.said.book, JsonDecoder(REQUESTS)),
        )

    def score(self, *values: bytes) -> list[dict[str, Any]]:
        """Return the verdicts of records, by bytes as a topic has them."""
        for value in values:
            self.log.append("in", value)
        n_before = len(self.sink.flushed)
        while self.scorer.turn():
            pass
        return [json.loads(body) for verdicts in self.sink.flushed[n_before:] for body in verdict_bodies(verdicts)]

    def figure(self, name: str, **labels: str) -> float:
        return self.metrics_registry.get_sample_value(name, labels) or 0.0


def request_of(duration: float, size: float) -> bytes:
    return json.dumps({"duration_ms": duration, "bytes_sent": size}).encode()


def test_a_false_alarm_marked_normal_is_not_flagged_again_nor_near_copies_and_others_are(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    assert bench.radius > 0.0
    false_alarm, anomaly = request_of(20.0, 4000.0), request_of(20.0, 2.0)
    first, other = bench.score(false_alarm, anomaly)
    assert first["flagged"]
    assert first["reasons"]
    assert other["flagged"]
    bench.said.say(0, "normal", false_alarm)
    copies = [request_of(20.0 * (1 + e), 4000.0 * (1 - e)) for e in (0.0, 1e-4, -1e-3)]
    verdicts = bench.score(*copies, anomaly, request_of(20.0, 40_000.0), request_of(200.0, 1.0))
    assert [verdict["flagged"] for verdict in verdicts] == [False, False, False, True, True, True]
    assert [verdict.get("known_normal") for verdict in verdicts] == ["t-0-0"] * 3 + [None] * 3
    for verdict in verdicts[:3]:
        assert verdict["severity"] == pytest.approx(first["severity"], rel=0.2)
        assert verdict["severity"] >= 1.0
        assert verdict["reasons"] == []
    assert (verdicts[0]["score"], verdicts[0]["p_value"]) == (first["score"], first["p_value"])
    assert bench.figure("srr_known_normal_total", topic="in") == 3
    assert bench.figure("srr_records_scored_total", topic="in", verdict="normal") == 3
    assert bench.figure("srr_records_scored_total", topic="in", verdict="flagged") == 5
    assert bench.watching.flagged == [True] * 8, "watches over models see what the model flags"
    bench.said.take_back("t-0-0")
    assert [verdict["flagged"] for verdict in bench.score(*copies)] == [True, True, True]


def test_drift_is_looked_for_in_what_the_model_flags(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    seen: list[bool] = []
    watch = DriftTrigger()
    update = watch.update

    def note(flagged: NDArray[np.bool_], severity: NDArray[np.float64]) -> None:
        seen.extend(flagged.tolist())
        update(flagged, severity)

    watch.update = note  # type: ignore[method-assign]
    bench.scorer.adopt(n_reasons=1, drift=watch)
    bench.said.say(0, "normal", request_of(20.0, 4000.0))
    assert [verdict["flagged"] for verdict in bench.score(request_of(20.0, 4000.0))] == [False]
    assert seen == [True]


@given(st.lists(st.tuples(st.floats(1.0, 500.0), st.floats(1.0, 1e5)), min_size=1, max_size=40))
@settings(deadline=None, max_examples=15)
def test_a_label_covers_nothing_beyond_the_radius_and_changes_no_number(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[float, float]]
) -> None:
    """Whoever marks records normal to blind the detector blinds it no farther than normal records lie apart."""
    if not _SHARED:
        _SHARED.append(Bench(tmp_path_factory.mktemp("registry")))
    bench = _SHARED[0]
    values = [request_of(*row) for row in rows]
    before = bench.score(*values)
    bench.said.say(0, "normal", request_of(20.0, 4000.0))
    after = bench.score(*values)
    bench.said.take_back("t-0-0")
    current = bench.live_model.current
    assert current is not None
    durations, sizes = np.array(rows).T
    columns = {"duration_ms": durations, "bytes_sent": sizes}
    marked = current.model.coordinates({"duration_ms": np.array([20.0]), "bytes_sent": np.array([4000.0])})
    distance = np.linalg.norm(current.model.coordinates(columns).astype(np.float64) - marked, axis=1)
    for one, two, far in zip(before, after, distance, strict=True):
        assert (one["score"], one["p_value"], one["severity"]) == (two["score"], two["p_value"], two["severity"])
        if two["flagged"] != one["flagged"]:
            assert one["flagged"]
            assert far <= bench.radius * (1 + 1e-9)
        elif one["flagged"]:
            assert far > bench.radius * (1 - 1e-9)


_SHARED: list[Bench] = []


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_of_pictures_those_with_near_embeddings_are_covered() -> None:
    schema = RecordSchema((Field("photo", FieldKind.IMAGE, image=ImageSpec(8, 8, "grey")),))
    rng = np.random.default_rng(0)
    pictures = rng.integers(100, 140, (80, 8, 8, 1), dtype=np.uint8)
    config = TrainingConfig(representation="pixels", classifier="gde", scaling="standard", removal="soft")
    trained = train({"photo": pictures}, config, seed=0)
    raw = [StoredRecord("past", 0, i, 0, None, b"") for i in range(80)]
    past = Batch(schema, {"photo": pictures}, raw, np.zeros(80, dtype=np.int64))
    radius = make_neighbours(trained, past, 0).radius
    odd = np.full((8, 8, 1), 250, dtype=np.uint8)
    like = odd.copy()
    like[0, 0] = 249
    file = BytesIO()
    PIL.Image.fromarray(odd[..., 0]).save(file, "PNG")
    said = Said()
    id = said.say(1, "normal", file.getvalue())
    known = KnownNormals(said.book, ImageDecoder(schema))
    others = np.stack([odd, like, 255 - odd, pictures[0]])
    found = known.covering(live(radius, model=trained.model), {"photo": others}, np.ones(4, dtype=bool))
    assert found == {0: id, 1: id}


# --- the whole service ------------------------------------------------------------------------------------------------


def test_through_the_service_a_false_alarm_is_marked_and_undone_by_command_and_the_audit_finds_no_fault(
    stream: Any,
    embedded_broker: Any,
    make_values: Callable[..., list[bytes]],
    running: Any,
    wait_until: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from click.testing import CliRunner

    from srr_stream.cli import main
    from srr_stream.loading import load_settings
    from srr_stream.service import Service
    from srr_stream.trainer_process import train_once

    monkeypatch.setenv("USER", "ann")
    labels_topic = f"{stream.topic}-labels"
    embedded_broker.create_topics({labels_topic: 1})
    path = stream.write_settings(labels={"topic": labels_topic})
    ours = load_settings(path)
    stream.produce(make_values(500))
    train_once(ours, on_status=lambda status: None)
    service = Service(ours, has_trainer=False)
    n_scored = 500

    def score(*values: bytes) -> list[dict[str, Any]]:
        nonlocal n_scored
        stream.produce(list(values))
        n_scored += len(values)
        wait_until(lambda: stream.count() >= n_scored, what="the verdicts")
        order = {record.value: record for record in stream.read(stream.topic)}
        by_id = {verdict["id"]: verdict for verdict in stream.verdicts()}
        return [by_id[event_id(order[value])] for value in values]

    def call(*arguments: str) -> str:
        result = CliRunner().invoke(main, ["labels", arguments[0], "-c", str(path), *arguments[1:]])
        assert result.exit_code == 0, result.output
        return result.stdout

    def odd(size: float) -> bytes:
        return json.dumps({"duration_ms": 20.0, "bytes_sent": size, "load": 0.5, "route": "/"}).encode()

    def version_of_labels() -> int:
        assert service._labels is not None
        return service._labels.book.version

    with running(service):
        wait_until(lambda: stream.count() >= n_scored, what="the first verdicts")
        false_alarm, anomaly = score(odd(40_000.0), odd(9e6))
        assert false_alarm["flagged"]
        assert anomaly["flagged"]
        made = json.loads(call("set", false_alarm["id"], "normal", "--note", "a backup", "--json"))[0]
        assert (made["author"], made["version"], made["has_record"]) == ("ann", 1, True)
        assert made["severity"] == false_alarm["severity"]
        wait_until(lambda: version_of_labels() == 1, what="the label")
        verdicts = score(odd(40_000.0001), odd(40_000.01), odd(9.1e6))
        assert [verdict["flagged"] for verdict in verdicts] == [False, False, True]
        assert [verdict.get("known_normal") for verdict in verdicts] == [false_alarm["id"]] * 2 + [None]
        value = service.metrics_registry.get_sample_value
        assert value("srr_labels", {"label": "normal"}) == 1.0
        assert value("srr_labelled_precision_ratio") == 0.0
        assert np.isnan(value("srr_suggested_false_alarm_rate"))
        call("remove", false_alarm["id"])
        wait_until(lambda: version_of_labels() == 2, what="the undo")
        assert score(odd(40_000.0002))[0]["flagged"]
        assert value("srr_labels", {"label": "normal"}) == 0.0
    alerts = {json.loads(record.value)["id"] for record in stream.read(stream.alerts_topic)}
    assert not alerts & {verdict["id"] for verdict in verdicts[:2]}
    assert verdicts[2]["id"] in alerts
    result = CliRunner().invoke(main, ["audit", "-c", str(path), "--scores"])
    assert result.exit_code == 0, result.output
    assert f"scored again: {n_scored} verdicts equal in every bit, 0 not" in result.stdout


def test_a_service_that_starts_knows_the_labels_before_it_scores_and_begins_without_a_topic_that_is_missing(
    stream: Any,
    embedded_broker: Any,
    make_values: Callable[..., list[bytes]],
    running: Any,
    wait_until: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from srr_stream.labels import LabelTopic, watch
    from srr_stream.loading import load_settings
    from srr_stream.service import Service
    from srr_stream.trainer_process import train_once

    start = watch.LabelWatch.start
    monkeypatch.setattr(watch.LabelWatch, "start", lambda self, should_stop: start(self, should_stop, patience_s=0.5))
    labels_topic = f"{stream.topic}-labels"
    ours = load_settings(stream.write_settings(labels={"topic": labels_topic}))
    stream.produce(make_values(400))
    outcome = train_once(ours, on_status=lambda status: None)
    assert f"there is no topic {labels_topic}" in outcome.manifest.training["labels_not_read"]
    with running(Service(ours, has_trainer=False)):
        wait_until(lambda: stream.count() >= 400, what="the verdicts")
    assert f"scoring begins without all labels of topic {labels_topic}" in caplog.text
    assert "cleanup.policy=compact" in caplog.text

    odd = json.dumps({"duration_ms": 20.0, "bytes_sent": 40_000.0, "load": 0.5, "route": "/"}).encode()
    embedded_broker.create_topics({labels_topic: 1})
    label = Label(f"{stream.topic}-0-0", "normal", "", "", "2026-01-01", None, None, None, stream.topic, 0, 0, odd)
    writer = LabelTopic({"bootstrap_servers": stream.bootstrap_servers}, labels_topic)
    writer.write([label])
    writer.close()
    stream.produce([odd])
    with running(Service(ours, has_trainer=False)):
        wait_until(lambda: stream.count() >= 401, what="the verdict")
    assert [verdict["known_normal"] for verdict in stream.verdicts() if "known_normal" in verdict] == [label.id]
