"""What every sink promises, over all of them; then the bytes, and what is special about each."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consumers.errors import SinkError, TopicMissing
from consumers.logs import KafkaLog, OffsetRange
from consumers.records import (
    BadRecord,
    Batch,
    Field,
    FieldKind,
    ImageSpec,
    RawRecord,
    RecordSchema,
    StoredRecord,
    Verdicts,
)
from consumers.sinks import Sink
from consumers.sinks.kafka import KafkaSink
from consumers.sinks.memory import MemorySink
from consumers.sinks.ndjson import NdjsonSink
from consumers.sinks.serialization import MAX_BODY_SIZE, alert_headers, verdict_bodies

BAD = BadRecord(
    StoredRecord("in", 1, 43, 1_700_000_000_003, b"k", b"\xff{", (("trace", b"\x00\x01"), ("trace", None))),
    "not_json",
    "the record is no JSON: ü",
)


@dataclass
class Opened:
    """A sink, and how what is durable in it is read."""

    sink: Sink
    ids: Callable[[], list[str]]
    bad_offsets: Callable[[], list[int]]


def memory(request: pytest.FixtureRequest) -> Opened:
    sink = MemorySink()
    return Opened(
        sink,
        lambda: [f"{r.topic}-{r.partition}-{r.offset}" for v in sink.flushed for r in v.batch.raw],
        lambda: [bad.raw.offset for bad in sink.flushed_bad],
    )


def ndjson(request: pytest.FixtureRequest) -> Opened:
    path: Path = request.getfixturevalue("tmp_path") / "verdicts.ndjson"

    def lines(name: str) -> list[Any]:
        return [json.loads(line) for line in path.with_name(name).read_text().splitlines()]

    return Opened(
        NdjsonSink(path),
        lambda: [line["id"] for line in lines("verdicts.ndjson")],
        lambda: [int(line["headers"]["srr-offset"]) for line in lines("verdicts.ndjson.bad")],
    )


def kafka(request: pytest.FixtureRequest, broker_fixture: str) -> Opened:
    outputs = Outputs(request.getfixturevalue(broker_fixture), request.getfixturevalue("topic_name"))
    return Opened(
        outputs.sink(),
        lambda: [json.loads(r.value or b"")["id"] for r in outputs.read("scores")],
        lambda: [int(dict(r.headers)["srr-offset"] or b"") for r in outputs.read("dead")],
    )


class Outputs:
    """Three output topics of one test."""

    def __init__(self, broker: Any, topic: str) -> None:
        self._connection = {"bootstrap_servers": [broker.bootstrap_servers]}
        self._topic = topic
        broker.create_topics({f"{topic}-{kind}": 1 for kind in ("scores", "alerts", "dead")})

    def sink(self, **options: Any) -> KafkaSink:
        topics: dict[str, Any] = {
            "scores_topic": f"{self._topic}-scores",
            "alerts_topic": f"{self._topic}-alerts",
            "dead_letter_topic": f"{self._topic}-dead",
        }
        return KafkaSink(self._connection, **(topics | options))

    def read(self, kind: str) -> list[RawRecord]:
        log = KafkaLog([f"{self._topic}-{kind}"], connection=self._connection)
        try:
            return [r for (t, p), end in log.ends().items() for r in log.read(OffsetRange(t, p, 0, end))]
        finally:
            log.close()


@pytest.fixture(
    params=[
        pytest.param(memory, id="memory"),
        pytest.param(ndjson, id="ndjson"),
        pytest.param(lambda request: kafka(request, "embedded_broker"), id="kafka-embedded"),
        pytest.param(lambda request: kafka(request, "apache_kafka"), id="kafka-apache", marks=pytest.mark.kafka),
    ]
)
def opened(request: pytest.FixtureRequest) -> Iterator[Opened]:
    made: Opened = request.param(request)
    yield made
    made.sink.close()


@pytest.fixture
def outputs(embedded_broker: Any, topic_name: str) -> Outputs:
    return Outputs(embedded_broker, topic_name)


def test_after_a_flush_everything_written_is_there_in_its_order(opened: Opened, verdicts: Verdicts) -> None:
    opened.sink.write(verdicts)
    opened.sink.write_bad([BAD])
    opened.sink.write(verdicts)
    opened.sink.flush()
    assert opened.ids() == ["in-1-41", "in-1-42", "in-0-7"] * 2
    assert opened.bad_offsets() == [43]


def test_flushing_nothing_is_fine_and_so_is_closing_twice(opened: Opened) -> None:
    opened.sink.write_bad([])
    opened.sink.flush()
    opened.sink.close()
    opened.sink.close()


def test_of_some_rows_the_verdicts_are_those_of_all(verdicts: Verdicts) -> None:
    every = list(verdict_bodies(verdicts))
    assert list(verdict_bodies(verdicts, [2, 0])) == [every[2], every[0]]
    assert list(verdict_bodies(verdicts, [])) == []


def test_alerts_alone_are_the_same_as_beside_all_verdicts(outputs: Outputs, verdicts: Verdicts) -> None:
    for options in ({}, {"scores_topic": None}):
        with closing(outputs.sink(**options)) as sink:
            sink.write(verdicts)
            sink.flush()
    first, second = np.array_split([record.value for record in outputs.read("alerts")], 2)
    assert len(first) > 0
    assert first.tolist() == second.tolist()
    assert len(outputs.read("scores")) == len(verdicts)


def test_a_verdict_has_these_bytes(verdicts: Verdicts) -> None:
    assert list(verdict_bodies(verdicts))[:2] == [
        b'{"flagged":false,"id":"in-1-41","key":"key-0","offset":41,"p_value":0.5,"partition":1,"reasons":[],'
        b'"score":0.1,"severity":0.1,"time":"2023-11-14T22:13:20.000Z","topic":"in","version":3}',
        b'{"flagged":true,"id":"in-1-42","key":null,"offset":42,"p_value":0.0001,"partition":1,'
        b'"reasons":[{"contribution":8.5,"expected":1.5,"field":"x","observed":99.0}],'
        b'"score":9.0,"severity":2.0,"time":"2023-11-14T22:13:20.001Z","topic":"in","version":3}',
    ]


def test_a_key_that_is_no_text_is_base64(verdicts: Verdicts) -> None:
    assert json.loads(list(verdict_bodies(verdicts))[2])["key"] == "base64:" + base64.b64encode(b"\xff\x00").decode()


def test_the_record_goes_along_if_asked_for_and_stays_on_one_line(verdicts: Verdicts) -> None:
    bodies = list(verdict_bodies(verdicts, include_record=True))
    assert [json.loads(body)["record"] for body in bodies] == [{"x": 1}, {"x": 99}, {"x": 2}]
    assert not any(b"\n" in body for body in bodies)


def test_the_verdict_of_a_flagged_record_names_its_page_if_there_is_one(verdicts: Verdicts) -> None:
    def told(**options: Any) -> list[Any]:
        return [json.loads(body) for body in verdict_bodies(verdicts, **options)]

    bodies = told(review_url="https://srr.example.com/x")
    assert any(body["flagged"] for body in bodies)
    for body, plain in zip(bodies, told(), strict=True):
        page = {"review": f"https://srr.example.com/x/flagged/{body['id']}"} if body["flagged"] else {}
        assert body == plain | page


def test_a_record_too_large_for_a_message_is_left_out_of_its_verdict(verdicts: Verdicts) -> None:
    first, *others = verdicts.batch.raw
    large = first._replace(value=b'{"x": "' + b"x" * MAX_BODY_SIZE + b'"}')  # type: ignore[attr-defined]
    bodies = list(
        verdict_bodies(replace(verdicts, batch=replace(verdicts.batch, raw=[large, *others])), include_record=True)
    )
    assert ["record" in json.loads(body) for body in bodies] == [False, True, True]


def of_pictures(values: list[bytes], columns: dict[str, Any], *fields: Field) -> Verdicts:
    """Return verdicts on pictures with what is beside them."""
    schema = RecordSchema((Field("photo", FieldKind.IMAGE, image=ImageSpec(2, 2)), *fields))
    raw = [StoredRecord("in", 0, i, 0, None, value) for i, value in enumerate(values)]
    n, nothing = len(raw), np.zeros(len(raw))
    photos = np.zeros((n, 2, 2, 3), dtype=np.uint8)
    batch = Batch(schema, {"photo": photos, **columns}, raw, np.zeros(n, dtype=np.int64))
    return Verdicts(batch, 1, nothing, nothing, nothing, nothing.astype(np.bool_))


def test_what_is_beside_a_picture_is_the_verdict_s_metadata() -> None:
    columns = {
        "camera": np.array(["gate-2", None], dtype=object),
        "exposure": np.array([0.5, np.nan]),
        "flash": np.array([1.0, np.nan]),
    }
    fields = (Field("camera", FieldKind.CATEGORICAL), Field("exposure"), Field("flash", FieldKind.BOOLEAN))
    bodies = [json.loads(body) for body in verdict_bodies(of_pictures([b"{}", b"{}"], columns, *fields))]
    assert [body["metadata"] for body in bodies] == [
        {"camera": "gate-2", "exposure": 0.5, "flash": True},
        {"camera": None, "exposure": None, "flash": None},
    ]
    assert "photo" not in bodies[0]


def test_a_long_text_beside_a_picture_is_cut() -> None:
    columns = {"note": np.array(["x" * 2_000_000], dtype=object)}
    (body,) = verdict_bodies(of_pictures([b"{}"], columns, Field("note", FieldKind.CATEGORICAL)))
    assert json.loads(body)["metadata"]["note"] == "x" * 999 + "…"


def test_without_a_picture_or_anything_beside_it_there_is_no_metadata(verdicts: Verdicts) -> None:
    bodies = [*verdict_bodies(verdicts), *verdict_bodies(of_pictures([b"\xff\xd8\xff"], {}))]
    assert all("metadata" not in json.loads(body) for body in bodies)


def test_a_record_that_is_a_picture_goes_along_as_base64_if_it_fits() -> None:
    values = [
        b"\xff\xd8\xff\n\x00",
        b"\x89PNG" + bytes((MAX_BODY_SIZE - 1000) * 3 // 4),
        b"\x89PNG" + bytes(MAX_BODY_SIZE),
    ]
    bodies = list(verdict_bodies(of_pictures(values, {}), include_record=True))
    assert base64.b64decode(json.loads(bodies[0])["record"]) == values[0]
    assert MAX_BODY_SIZE - 1000 < len(bodies[1]) <= MAX_BODY_SIZE
    assert "record" not in json.loads(bodies[2])
    assert json.loads(bodies[2])["record_omitted"] == len(values[2])


@pytest.mark.parametrize("time_ms", [-1, 0, 10**18, -(10**18)])
def test_any_time_can_be_written(verdicts: Verdicts, time_ms: int) -> None:
    batch = replace(verdicts.batch, time_ms=np.full(3, time_ms))
    assert all(json.loads(body)["time"] for body in verdict_bodies(replace(verdicts, batch=batch)))
    assert dict(alert_headers(batch.raw[0], time_ms))["ce_time"]


def test_only_flagged_verdicts_are_alerts_and_they_are_cloud_events(outputs: Outputs, verdicts: Verdicts) -> None:
    sink = outputs.sink()
    sink.write(verdicts)
    sink.flush()
    sink.close()
    (alert,) = outputs.read("alerts")
    assert dict(alert.headers) == {
        "ce_specversion": b"1.0",
        "ce_id": b"in-1-42",
        "ce_source": b"/srr-stream/in",
        "ce_type": b"io.srr-stream.anomaly.v1",
        "ce_time": b"2023-11-14T22:13:20.001Z",
        "content-type": b"application/json",
    }
    scores = outputs.read("scores")
    assert alert.value == scores[1].value
    assert [r.key for r in scores] == [b"key-0", None, b"\xff\x00"]
    assert [r.value for r in scores] == list(verdict_bodies(verdicts))


def test_a_dead_letter_is_the_record_untouched_with_what_is_wrong_behind_its_headers(outputs: Outputs) -> None:
    sink = outputs.sink()
    sink.write_bad([BAD, replace(BAD, raw=BAD.raw._replace(key=None, value=None))])  # type: ignore[attr-defined]
    sink.flush()
    sink.close()
    letter, empty = outputs.read("dead")
    assert (letter.key, letter.value) == (b"k", b"\xff{")
    assert (empty.key, empty.value) == (None, b"")
    assert list(letter.headers) == [
        ("trace", b"\x00\x01"),
        ("trace", b""),
        ("srr-reason", b"not_json"),
        ("srr-detail", "the record is no JSON: ü".encode()),
        ("srr-stage", b"decode"),
        ("srr-topic", b"in"),
        ("srr-partition", b"1"),
        ("srr-offset", b"43"),
    ]


def test_a_record_too_large_for_a_message_is_a_dead_letter_without_its_value(outputs: Outputs) -> None:
    sink = outputs.sink()
    large = BAD.raw._replace(value=b"x" * 3_000_000)  # type: ignore[attr-defined]
    fits = BAD.raw._replace(value=b"x" * MAX_BODY_SIZE)  # type: ignore[attr-defined]
    sink.write_bad([replace(BAD, raw=raw) for raw in (large, large._replace(key=None), fits)])
    sink.flush()
    sink.close()
    without, keyless, whole = outputs.read("dead")
    assert (without.value, dict(without.headers)["srr-value-omitted"]) == (None, b"3000000")
    assert (keyless.value, dict(keyless.headers)["srr-value-omitted"]) == (b"", b"3000000")
    assert len(whole.value or b"") == MAX_BODY_SIZE
    assert "srr-value-omitted" not in dict(whole.headers)


def test_topics_may_be_left_out(outputs: Outputs, verdicts: Verdicts) -> None:
    sink = outputs.sink(scores_topic=None, alerts_topic=None)
    sink.write(verdicts)
    sink.flush()
    sink.close()
    assert outputs.read("scores") == outputs.read("alerts") == []


def test_a_missing_output_topic_is_named_and_not_created(outputs: Outputs) -> None:
    for _ in range(2):
        with pytest.raises(TopicMissing, match=r"no topic nowhere that .*; create it"):
            outputs.sink(dead_letter_topic="nowhere")


def test_ndjson_bad_lines_keep_the_bytes(tmp_path: Path) -> None:
    sink = NdjsonSink(tmp_path / "out.ndjson")
    sink.write_bad([BAD])
    sink.flush()
    sink.close()
    (line,) = (tmp_path / "out.ndjson.bad").read_text().splitlines()
    content = json.loads(line)
    assert base64.b64decode(content["value"]) == BAD.raw.value
    assert content["key"] == "k"
    assert content["headers"]["srr-reason"] == "not_json"


def test_ndjson_goes_on_in_a_file_that_is_there(tmp_path: Path, verdicts: Verdicts) -> None:
    for _ in range(2):
        sink = NdjsonSink(tmp_path / "out.ndjson")
        sink.write(verdicts)
        sink.flush()
        sink.close()
    assert len((tmp_path / "out.ndjson").read_text().splitlines()) == 6


def test_ndjson_on_a_full_disk_says_so_and_can_be_closed(tmp_path: Path, verdicts: Verdicts) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full, a device that is always full")
    (tmp_path / "out.ndjson").symlink_to("/dev/full")
    sink = NdjsonSink(tmp_path / "out.ndjson")
    sink.write(verdicts)
    with pytest.raises(SinkError, match="cannot be written: No space left on device"):
        sink.flush()
    sink.close()
    sink.close()


def test_ndjson_in_a_folder_that_is_missing_says_so(tmp_path: Path) -> None:
    with pytest.raises(SinkError, match=r"missing/out\.ndjson: cannot be written"):
        NdjsonSink(tmp_path / "missing" / "out.ndjson")
