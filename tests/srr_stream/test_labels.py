"""Labels: the latest by id counts, rubbish costs nothing, what they tell is counted; writing fails with a remedy."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.errors import BrokerUnavailable, SinkError
from consumers.logs import MemoryLog
from consumers.records import StoredRecord
from srr_stream.errors import NoLabelTopic
from srr_stream.labels import (
    MAX_SIZE,
    Label,
    LabelBook,
    LabelTopic,
    book_of,
    label_from_json,
    label_to_json,
    place_of,
    read_labels,
    summarize,
)

LABEL = Label("t-0-7", "normal", "ours", "ann", "2026-01-01T00:00:00.000Z", 3, 0.001, 1.3, "t", 0, 7, b'{"x": 1}')


def make_label(offset: int = 7, name: Any = "normal", **values: Any) -> Label:
    return replace(LABEL, id=f"t-0-{offset}", offset=offset, label=name, **values)


def entry(label: Label | str, offset: int = 0, *, partition: int = 0, timestamp: int = 0) -> StoredRecord:
    """A record of the labels topic; a text is an id that is removed."""
    key, value = (label, None) if isinstance(label, str) else (label.id, label_to_json(label))
    return StoredRecord("labels", partition, offset, timestamp, key.encode(), value)


def test_a_label_comes_back_as_it_was() -> None:
    odd = make_label(8, "unsure", record=bytes(range(256)), version=None, p_value=None, severity=None, note="ä\n")
    assert [label_from_json(label_to_json(label)) for label in (LABEL, odd)] == [LABEL, odd]
    assert json.loads(label_to_json(LABEL))["record"] == base64.b64encode(b'{"x": 1}').decode()


def test_a_record_that_is_too_large_is_left_out_of_its_label() -> None:
    large = make_label(record=bytes(MAX_SIZE))
    raw = label_to_json(large)
    assert len(raw) < 1000
    assert label_from_json(raw) == replace(large, record=None)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"label": "bad"}, "allowed: anomaly, normal, unsure"),
        ({"id": "t-0-8"}, "does not name t-0-7"),
        ({"note": "x" * 2001}, "2001 characters"),
        ({"p_value": 1.5}, "p_value is 1.5"),
    ],
)
def test_what_is_no_label_is_refused(change: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        replace(LABEL, **change)


@pytest.mark.parametrize("event_id", ["", "t", "t-0", "t-0-x", "-0-1", "t-0--1", "t-0-1\n", "a b-0-1"])
def test_what_is_no_id_is_refused(event_id: str) -> None:
    with pytest.raises(ValueError, match="topic-partition-offset"):
        place_of(event_id)


def test_the_latest_label_counts_and_a_tombstone_removes_it() -> None:
    book = LabelBook()
    book.update([entry(LABEL, 0), entry(make_label(name="anomaly"), 1), entry(make_label(8, "unsure"), 2)])
    assert (book.get("t-0-7"), book.version) == (make_label(name="anomaly"), 1)
    assert book.counts() == {"anomaly": 1, "normal": 0, "unsure": 1}
    book.update([entry("t-0-7", 3)])
    assert [label.id for label in book.all()] == ["t-0-8"]
    assert book.version == 2


def test_doubles_and_what_is_older_change_nothing() -> None:
    book = LabelBook()
    records = [entry(LABEL, 0), entry(make_label(name="anomaly"), 1), entry("t-0-7", 2)]
    book.update(records)
    version = book.version
    book.update(records)
    book.update(records[:1])
    assert book.all() == ()
    assert book.version == version


def test_of_two_partitions_the_later_time_counts() -> None:
    book = LabelBook()
    book.update([entry(make_label(name="anomaly"), 5, timestamp=10), entry(LABEL, 0, partition=1, timestamp=20)])
    book.update([entry(make_label(name="unsure"), 6, timestamp=15)])
    assert book.get("t-0-7") == LABEL


actions = st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["anomaly", "normal", "unsure", None])), max_size=20)


@given(actions, st.data())
def test_however_records_come_the_book_is_that_of_the_last_of_each_id(
    done: list[tuple[int, Any]], data: st.DataObject
) -> None:
    records = [
        entry(f"t-0-{at}" if name is None else make_label(at, name), offset) for offset, (at, name) in enumerate(done)
    ]
    book = LabelBook()
    for record in data.draw(st.permutations(records + records[:5])):
        book.update([record])
    last = {f"t-0-{at}": name for at, name in done}
    assert {label.id: label.label for label in book.all()} == {key: name for key, name in last.items() if name}


RUBBISH = [
    b"",
    b"\xff",
    b"[]",
    b"[" * 100_000,
    b"{}",
    json.dumps({**json.loads(label_to_json(LABEL)), "label": "good"}).encode(),
    json.dumps({**json.loads(label_to_json(LABEL)), "offset": True}).encode(),
    json.dumps({**json.loads(label_to_json(LABEL)), "p_value": float("nan")}).encode(),
    json.dumps({**json.loads(label_to_json(LABEL)), "record": "*"}).encode(),
    label_to_json(make_label(8)),
]


def test_rubbish_is_counted_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    book = LabelBook()
    keys = [None, b"\xff", b"no id"]
    with caplog.at_level(logging.WARNING):
        book.update([StoredRecord("labels", 0, i, 0, b"t-0-7", value) for i, value in enumerate(RUBBISH)])
        book.update([StoredRecord("labels", 0, 50, 0, key, None) for key in keys])
    book.update([entry(LABEL, 60)])
    assert book.n_rejected == len(RUBBISH) + len(keys)
    assert book.all() == (LABEL,)
    assert [record.getMessage()[:20] for record in caplog.records] == ["labels-0-0 is no lab"]


def test_keys_of_a_later_program_are_no_harm() -> None:
    content = {**json.loads(label_to_json(LABEL)), "mood": "fine"}
    assert label_from_json(json.dumps(content).encode()) == LABEL


# --- what they tell ---------------------------------------------------------------------------------------------------


def judged(*parts: tuple[int, str, float]) -> list[Label]:
    """Labels of so many records each, at p-values from one on; α is 0.01."""
    found: list[Label] = []
    for n, name, p_value in parts:
        for _ in range(n):
            p = p_value * (1 + 1e-6 * len(found))
            found.append(make_label(len(found), name, p_value=p, severity=1.5 if p <= 0.01 else 0.5))
    return found


def test_precision_is_of_labelled_flagged_records() -> None:
    labels = judged((3, "anomaly", 1e-4), (1, "normal", 1e-3), (2, "unsure", 1e-3), (4, "normal", 0.5))
    summary = summarize([*labels, make_label(99, "anomaly", severity=None)], 0.01)
    assert (summary.n_anomaly, summary.n_normal, summary.n_unsure) == (4, 5, 2)
    assert summary.precision == 0.75


def test_without_labels_nothing_is_known() -> None:
    summary = LabelBook().summary(0.01)
    assert (summary.precision, summary.suggested_rate) == (None, None)
    assert summary.why == "0 records with a p-value are labelled anomaly or normal; 20 are needed to suggest"


def test_a_lower_rate_is_suggested_where_it_parts_the_labels() -> None:
    summary = summarize(judged((10, "anomaly", 1e-5), (12, "normal", 1e-3)), 0.01)
    assert summary.suggested_rate == pytest.approx(1e-4)
    assert summary.why == (
        "at 0.0001 the labels have F1 1.00, at 0.01 0.62: 12 labelled false alarms fewer, "
        "and 0 labelled anomalies missed"
    )


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (judged((19, "anomaly", 1e-5)), "19 records with a p-value"),
        (judged((4, "anomaly", 1e-5), (30, "normal", 1e-3)), "5 of each are needed"),
        (judged((30, "normal", 1e-3)), "0 anomalies and 30 normal"),
        (judged((15, "normal", 1e-5), (15, "anomaly", 1e-3)), "no lower rate suits the labels clearly better"),
        (judged((40, "anomaly", 1e-4), (5, "normal", 0.5)), "0.01 would show more"),
        (judged((18, "anomaly", 1e-4), (5, "normal", 5e-3), (18, "anomaly", 6e-3)), "no lower rate suits"),
    ],
)
def test_no_lower_rate_is_suggested_without_reason(labels: list[Label], text: str) -> None:
    summary = summarize(labels, 0.005 if "0.01 would" in text else 0.01)
    assert text in summary.why
    assert summary.suggested_rate in (None, 0.01)


def test_a_higher_rate_is_suggested_where_nearly_all_are_anomalies_and_never_above_the_bound() -> None:
    good = judged((19, "anomaly", 1e-4), (1, "normal", 1e-3))
    assert summarize(good, 0.01).suggested_rate == 0.02
    assert summarize(good, 0.04).suggested_rate == 0.05
    high = summarize(good, 0.05)
    assert (high.suggested_rate, high.why) == (
        None,
        "95% of what is flagged and labelled are anomalies; 0.05 is high already",
    )
    assert summarize(good[:-1], 0.01).suggested_rate is None


@given(
    st.lists(st.tuples(st.sampled_from(["anomaly", "normal", "unsure"]), st.floats(1e-12, 1.0)), max_size=60),
    st.floats(1e-4, 0.5),
)
def test_a_suggestion_is_a_rate_and_its_f1_is_the_best_there_is(rows: list[tuple[str, float]], rate: float) -> None:
    labels = [make_label(i, name, p_value=p, severity=2.0 if p <= rate else 0.5) for i, (name, p) in enumerate(rows)]
    summary = summarize(labels, rate)
    assert summary.why
    if summary.suggested_rate is None:
        return
    assert 0.0 < summary.suggested_rate <= 0.05 or summary.suggested_rate < rate
    if summary.suggested_rate < rate:
        decided = [(p, name == "anomaly") for name, p in rows if name != "unsure"]

        def f1(cut: float) -> float:
            hits = sum(is_anomaly for p, is_anomaly in decided if p <= cut)
            wrong = sum(not is_anomaly for p, is_anomaly in decided if p <= cut)
            missed = sum(is_anomaly for p, is_anomaly in decided if p > cut)
            return 2 * hits / (2 * hits + wrong + missed)

        best = max(f1(p) for p, _ in decided)
        assert f1(summary.suggested_rate) == pytest.approx(best)
        assert best >= f1(rate) + 0.05 - 1e-9


# --- the topic --------------------------------------------------------------------------------------------------------


@pytest.fixture
def topic(embedded_broker: Any, topic_name: str) -> Any:
    """Give the writer of a labels topic, its connection and its name."""
    embedded_broker.create_topics({topic_name: 2})
    connection = {"bootstrap_servers": embedded_broker.bootstrap_servers}
    writer = LabelTopic(connection, topic_name)
    yield writer, connection, topic_name
    writer.close()
    writer.close()


def test_what_is_written_is_there_at_once(topic: Any) -> None:
    writer, connection, name = topic
    writer.write([LABEL, make_label(8, "anomaly"), make_label(name="unsure")])
    writer.write([])
    assert {label.id: label.label for label in read_labels(connection, name).all()} == {
        "t-0-7": "unsure",
        "t-0-8": "anomaly",
    }
    writer.remove(["t-0-7", "t-0-99"])
    assert [label.id for label in read_labels(connection, name).all()] == ["t-0-8"]


def test_a_missing_topic_is_told_with_the_command_that_makes_it(embedded_broker: Any, topic_name: str) -> None:
    connection = {"bootstrap_servers": embedded_broker.bootstrap_servers}
    calls: Sequence[Callable[[], Any]] = [
        lambda: LabelTopic(connection, topic_name).write([LABEL]),
        lambda: read_labels(connection, topic_name),
    ]
    for call in calls:
        with pytest.raises(NoLabelTopic) as error:
            call()
        assert "\n" not in str(error.value)
        assert f"kafka-topics.sh --create --topic {topic_name} " in str(error.value)
        assert "--config cleanup.policy=compact" in str(error.value)


def test_a_broker_that_is_gone_before_or_during_a_write_is_told(topic_name: str) -> None:
    from srr_stream.broker import EmbeddedBroker

    with EmbeddedBroker() as broker:
        broker.create_topics({topic_name: 1})
        connection = {"bootstrap_servers": broker.bootstrap_servers, "bootstrap_timeout_ms": 500}
        writer = LabelTopic(connection, topic_name, timeout_s=1.0)
        writer.write([LABEL])
    with pytest.raises(SinkError, match=r"labels are not durable at .*; write them again"):
        writer.write([LABEL])
    with pytest.raises(BrokerUnavailable, match="no answer from"):
        writer.write([LABEL])
    writer.close()


@pytest.mark.kafka
def test_missing_rights_are_told_with_the_command_that_grants_them(secure_kafka: Any, topic_name: str) -> None:
    from consumers.errors import NotAuthorized
    from srr_stream.broker import create_topics

    create_topics(secure_kafka.bootstrap_servers, {topic_name: 1})
    with pytest.raises(NotAuthorized, match=r"lacks WRITE on topic .*kafka-acls.sh --add .* --operation Write"):
        LabelTopic(secure_kafka.connection("guest"), topic_name).write([LABEL])
    with pytest.raises(NotAuthorized, match="lacks READ on topic"):
        read_labels(secure_kafka.connection("guest"), topic_name)


def test_the_book_of_a_log_takes_all_its_partitions() -> None:
    log = MemoryLog()
    for label, partition in ((LABEL, 0), (make_label(8), 1), (make_label(name="anomaly"), 0)):
        log.append("labels", label_to_json(label), key=label.id.encode(), partition=partition)
    assert book_of(log).counts() == {"anomaly": 1, "normal": 1, "unsure": 0}
