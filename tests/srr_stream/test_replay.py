"""Replays: steady, honest about where each record went; the demo's is bad where it means to be."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from kafka.errors import KafkaError

from consumers.decoding import ImageDecoder, JsonDecoder
from consumers.errors import SinkError
from consumers.logs import KafkaLog, OffsetRange
from consumers.records import Field, FieldKind, RecordSchema, StoredRecord
from srr_stream.broker import EmbeddedBroker
from srr_stream.data import load
from srr_stream.demo.replay import Replay, make_stream
from srr_stream.replay import Sender, as_it_came, at_rate, paced, replay

SCHEMA = RecordSchema((Field("service", FieldKind.CATEGORICAL), Field("size", path=("body", "size"))))
VALUE = b'{"service":"http","body":{"size":12}}'


@pytest.mark.parametrize("schema", [None, SCHEMA])
def test_every_nth_record_is_bad_in_rotating_ways_and_no_other(schema: RecordSchema | None) -> None:
    events = list(make_stream([VALUE] * 60, every=5, schema=schema))
    assert [event.index for event in events] == list(range(60))
    assert [event.index for event in events if event.is_malformed] == list(range(4, 60, 5))
    assert all(event.value == VALUE for event in events if not event.is_malformed)
    raw = [StoredRecord("t", 0, event.index, 0, None, event.value) for event in events]
    bad = JsonDecoder(SCHEMA).decode(raw).bad
    assert [record.raw.offset for record in bad] == list(range(4, 60, 5))
    assert {record.reason for record in bad} >= {"not_json", "not_an_object"}
    assert ({"wrong_type", "missing_field"} <= {record.reason for record in bad}) == (schema is not None)


@pytest.mark.parametrize("value", [b"{}", b'{"a":null}', b"[1,2]", b"17", b'{"service":"x","body":3}', b"no json", b""])
def test_a_record_that_was_odd_before_is_bad_after_spoiling_too(value: bytes) -> None:
    events = list(make_stream([value] * 6, every=1, schema=SCHEMA))
    raw = [StoredRecord("t", 0, event.index, 0, None, event.value) for event in events]
    assert len(JsonDecoder(SCHEMA).decode(raw).bad) == 6


def test_what_is_spoilt_without_a_schema_is_bad_under_any_schema() -> None:
    free = RecordSchema((Field("other", is_required=False),))
    raw = [
        StoredRecord("t", 0, event.index, 0, None, event.value) for event in make_stream([b'{"other":1}'] * 8, every=1)
    ]
    assert len(JsonDecoder(free).decode(raw).bad) == 8


def test_spoilt_pictures_are_all_dead_letters_for_reasons_of_their_own() -> None:
    boards = load("boards")
    values = [value for _, value in zip(range(60), boards.values(), strict=False)]
    events = list(make_stream(values, every=5, schema=boards.schema, format="image"))
    assert all(event.value == values[event.index] for event in events if not event.is_malformed)
    raw = [StoredRecord("t", 0, event.index, 0, None, event.value) for event in events]
    decoded = ImageDecoder(boards.schema).decode(raw)
    assert [bad.raw.offset for bad in decoded.bad] == list(range(4, 60, 5))
    assert [bad.reason for bad in decoded.bad[:6]] == [
        "truncated_image",
        "not_an_image",
        "animated",
        "empty",
        "trailing_data",
        "not_an_image",
    ]


@pytest.mark.parametrize("value", [b"", b"GIF89a", b"\x89PNG", b"no picture, but long enough to have had a header"])
def test_a_picture_that_was_none_before_is_bad_after_spoiling_too(value: bytes) -> None:
    raw = [
        StoredRecord("t", 0, event.index, 0, None, event.value)
        for event in make_stream([value] * 6, every=1, format="image")
    ]
    assert len(ImageDecoder(load("boards").schema).decode(raw).bad) == 6


def test_a_replay_can_begin_with_much_at_once_and_hold_the_rest_back(embedded_broker: Any, topic_name: str) -> None:
    embedded_broker.create_topics({topic_name: 1})
    replay = Replay(
        [b"{}"] * 60, embedded_broker.bootstrap_servers, topic_name, rate=20, n_at_once=40, hold_at=44, every=10**6
    )
    started = time.monotonic()
    replay.start()
    while not replay.is_held:  # 40 at once and 4 in a fifth of a second; by the rate alone it would take two seconds
        assert time.monotonic() - started < 20
        time.sleep(0.01)
    assert not replay.wait(0.3)
    assert replay.n_produced == 44
    released = time.monotonic()
    replay.release()
    assert replay.wait(30)
    assert not replay.is_held
    assert replay.n_produced == 60
    assert time.monotonic() - released > 0.7  # what was held back is not made up for


def test_a_replay_that_is_held_back_can_be_stopped(embedded_broker: Any, topic_name: str) -> None:
    embedded_broker.create_topics({topic_name: 1})
    replay = Replay([b"{}"] * 9, embedded_broker.bootstrap_servers, topic_name, rate=1000, hold_at=3, every=10**6)
    replay.start()
    while not replay.is_held:
        time.sleep(0.01)
    replay.stop()
    assert replay.is_done
    assert replay.n_produced == 3


def test_a_replay_knows_where_each_record_went(embedded_broker: Any, topic_name: str) -> None:
    embedded_broker.create_topics({topic_name: 3})
    values = [b'{"x":%d}' % i for i in range(250)]
    replay = Replay(values, embedded_broker.bootstrap_servers, topic_name, rate=5000, every=100)
    replay.start()
    assert replay.wait(30)
    replay.stop()
    assert replay.error is None
    assert replay.n_produced == 250
    assert replay.malformed == {99, 199}
    log = KafkaLog([topic_name], connection={"bootstrap_servers": [embedded_broker.bootstrap_servers]})
    try:
        records = [r for (t, p), end in log.ends().items() for r in log.read(OffsetRange(t, p, 0, end))]
    finally:
        log.close()
    assert {r.partition for r in records} == {0, 1, 2}
    for record in records:
        index = replay.index_by_id[f"{record.topic}-{record.partition}-{record.offset}"]
        assert record.key == str(index).encode()
        if index not in replay.malformed:
            assert record.value == values[index]
    assert len(records) == 250


def test_a_replay_keeps_to_its_rate(embedded_broker: Any, topic_name: str) -> None:
    embedded_broker.create_topics({topic_name: 1})
    asked: list[float] = []

    def values() -> Iterator[bytes]:
        for _ in range(101):
            asked.append(time.monotonic())
            yield b"{}"

    replay = Replay(values(), embedded_broker.bootstrap_servers, topic_name, rate=200)
    replay.start()
    assert replay.wait(30)
    # The last value is asked for when the one before it was sent, at 99/200 s.
    assert 0.49 <= asked[-1] - asked[0] < 5


def test_a_replay_that_is_stopped_settles_what_it_sent(embedded_broker: Any, topic_name: str) -> None:
    embedded_broker.create_topics({topic_name: 1})
    under_way = threading.Event()

    def endless() -> Iterator[bytes]:
        for i in range(10**9):
            if i == 50:
                under_way.set()
            yield b'{"x":1}'

    replay = Replay(endless(), embedded_broker.bootstrap_servers, topic_name, rate=500)
    replay.start()
    assert under_way.wait(30)
    replay.stop()
    replay.stop()
    assert replay.is_done
    assert replay.error is None
    assert sorted(replay.index_by_id.values()) == list(range(replay.n_produced))
    assert replay.n_produced >= 50


def test_what_ends_a_replay_early_is_kept_for_its_owner(embedded_broker: Any, topic_name: str) -> None:
    embedded_broker.create_topics({topic_name: 1})

    def broken() -> Iterator[bytes]:
        yield b"{}"
        raise ValueError("line 2 is no record")

    replay = Replay(broken(), embedded_broker.bootstrap_servers, topic_name, rate=1000)
    replay.start()
    assert replay.wait(30)
    assert str(replay.error) == "line 2 is no record"


def test_a_record_that_the_broker_does_not_take_ends_the_replay(embedded_broker: Any, topic_name: str) -> None:
    embedded_broker.create_topics({topic_name: 1})
    too_large = b"x" * 5_000_000
    replay = Replay(
        iter([b"{}", too_large, b"{}"]), embedded_broker.bootstrap_servers, topic_name, rate=1000, every=10**6
    )
    replay.start()
    assert replay.wait(30)
    assert "5000" in str(replay.error)
    assert replay.n_produced <= 1


def test_a_replay_ends_with_an_error_when_its_broker_goes_away() -> None:
    sent = threading.Event()

    def endless() -> Iterator[bytes]:
        while True:
            if replay.n_produced >= 10:
                sent.set()
            yield b'{"x":1}'

    with EmbeddedBroker() as broker:
        broker.create_topics({"t": 1})
        replay = Replay(endless(), broker.bootstrap_servers, "t", rate=500, send_timeout_s=1.0)
        replay.start()
        assert sent.wait(30)
    assert replay.wait(30)
    assert isinstance(replay.error, KafkaError)
    assert replay.n_produced >= 10


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="allowed: records a second above 0"):
        Replay([], "localhost:1", "t", rate=rate)


def test_a_replay_that_never_began_can_be_stopped() -> None:
    Replay([], "localhost:1", "t", rate=1).stop()


# --- srr-stream replay


def test_items_are_given_when_they_are_due_and_a_delay_is_made_up_for() -> None:
    now, given = [0.0], []

    def wait(seconds: float) -> bool:
        now[0] += seconds
        return False

    for item in paced("abcd", lambda index: index / 10, wait, clock=lambda: now[0]):
        given.append(now[0])
        if item == "b":
            now[0] += 0.15  # late: the next one is due already
    assert given == pytest.approx([0.0, 0.1, 0.25, 0.3], abs=0.015)  # a tick later at most


def test_whoever_waits_can_stop_a_replay() -> None:
    assert list(paced("abc", lambda index: float(index), lambda seconds: True)) == ["a"]


def test_a_tempo_is_kept_at_another_speed_and_never_runs_backwards() -> None:
    due_s = as_it_came(np.array([5000, 7000, 6000, 9000]), 0.5)
    assert [due_s(i) for i in range(4)] == [0.0, 4.0, 4.0, 8.0]
    assert at_rate(4.0)(8) == 2.0


def test_brokers_that_go_away_end_a_replay_with_what_they_have(topic_name: str) -> None:
    records = [StoredRecord("file", 0, i, 0, None, b"{}") for i in range(20)]
    with EmbeddedBroker() as broker:
        broker.create_topics({topic_name: 1})
        sender = Sender({"bootstrap_servers": [broker.bootstrap_servers]}, topic_name, timeout_s=2.0)
        for record in records[:5]:
            sender.send(record)
        sender.flush()
    with pytest.raises(SinkError, match=rf"{topic_name} did not take .*; 5 records before it are there"):
        replay(records[5:], sender)


def test_a_record_of_nothing_and_a_header_of_nothing_are_sent_as_empty(embedded_broker: Any, topic_name: str) -> None:
    embedded_broker.create_topics({topic_name: 1})
    records = [
        StoredRecord("t", 0, 0, 0, None, None, [("h", None)]),
        StoredRecord("t", 0, 1, 0, b"k", None),
    ]
    sender = Sender({"bootstrap_servers": [embedded_broker.bootstrap_servers]}, topic_name)
    assert replay(records, sender).n_sent == 2
    log = KafkaLog([topic_name], connection={"bootstrap_servers": [embedded_broker.bootstrap_servers]})
    try:
        sent = list(log.read(OffsetRange(topic_name, 0, 0, 2)))
    finally:
        log.close()
    assert [(record.key, record.value, list(record.headers)) for record in sent] == [
        (None, b"", [("h", b"")]),
        (b"k", None, []),
    ]
