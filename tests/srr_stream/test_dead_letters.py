"""Dead letters listed, shown and sent again: at most once, whatever happens meanwhile."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from kafka import KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient
from kafka.errors import TopicAuthorizationFailedError

from consumers.errors import NotAuthorized, SinkError
from consumers.records import BadRecord, StoredRecord
from consumers.sinks.kafka import KafkaSink
from srr_stream.broker import EmbeddedBroker
from srr_stream.cli import main
from srr_stream.dead_letters import DeadLetter, DeadLetters, Requeued, explained, parse

Stream = Any
MakeStream = Callable[[Any], Stream]
SRR_STREAM = [sys.executable, "-c", "from srr_stream.cli import main; main()"]


@pytest.fixture(params=["embedded_broker", pytest.param("apache_kafka", marks=pytest.mark.kafka)])
def stream(request: pytest.FixtureRequest, make_stream: MakeStream) -> Stream:
    """A stream on every broker in turn."""
    return make_stream(request.getfixturevalue(request.param))


@pytest.fixture
def apache_stream(apache_kafka: Any, make_stream: MakeStream) -> Stream:
    return make_stream(apache_kafka)


def call(stream: Stream, *arguments: object, path: Path | None = None) -> Result:
    name, *others = arguments
    command = ["--log-level", "error", "dlq", name, "-c", path or stream.write_settings(), *others]
    return CliRunner().invoke(main, [str(a) for a in command], catch_exceptions=False)


def dead_letters(stream: Stream) -> DeadLetters:
    return DeadLetters(
        stream.dead_letter_topic,
        connection={"bootstrap_servers": [stream.bootstrap_servers]},
        topics=[stream.topic],
        requeue_id=f"{stream.topic}-group-requeue",
        timeout_s=10.0,
    )


def bad(stream: Stream, offset: int, value: bytes | None = b"x", reason: str = "not_json", **changes: Any) -> BadRecord:
    record = StoredRecord(stream.topic, 1, offset, 0, b"k", value, [("own", b"1")])
    return BadRecord(record._replace(**changes), reason, f"detail of {offset}")


def bury(stream: Stream, letters: Sequence[BadRecord]) -> None:
    """Write dead letters as the service does."""
    sink = KafkaSink(
        {"bootstrap_servers": [stream.bootstrap_servers]},
        scores_topic=None,
        alerts_topic=None,
        dead_letter_topic=stream.dead_letter_topic,
    )
    try:
        sink.write_bad(letters)
        sink.flush()
    finally:
        sink.close()


@contextmanager
def transactions(stream: Stream, name: str) -> Iterator[KafkaProducer]:
    producer = KafkaProducer(bootstrap_servers=stream.bootstrap_servers, transactional_id=name)
    try:
        producer.init_transactions()
        yield producer
    finally:
        producer.close(5)


def committed(stream: Stream, topic: str) -> list[Any]:
    """Return what a reader of committed records gets."""
    from srr_stream.ledger.reader import LogReader

    with LogReader({"bootstrap_servers": [stream.bootstrap_servers]}, "read_committed") as reader:
        return [r for tp in reader.partitions([topic]) for records in reader.read(tp) for r in records]


def origins(records: Sequence[Any]) -> Counter[str]:
    """Count the ids from which records were sent again."""
    return Counter(dict(record.headers)["srr-requeued-from"].decode() for record in records)


def test_letters_are_counted_by_reason_and_the_newest_named(stream: Stream) -> None:
    bury(stream, [bad(stream, 0), bad(stream, 1), bad(stream, 1), bad(stream, 2, reason="empty")])
    document = json.loads(call(stream, "list", "--json", "--limit", 1).stdout)
    assert document["counts"] == [
        {"reason": "empty", "topic": stream.topic, "n": 1},
        {"reason": "not_json", "topic": stream.topic, "n": 2},  # a double counts once
    ]
    (newest,) = document["newest"]
    assert (newest["id"], newest["reason"], newest["detail"]) == (f"{stream.topic}-1-2", "empty", "detail of 2")
    assert not newest["is_requeued"]


def test_a_listing_can_be_of_one_reason(stream: Stream) -> None:
    bury(stream, [bad(stream, 0), bad(stream, 2, reason="empty")])
    text = call(stream, "list", "--reason", "empty").stdout
    assert f"{stream.topic}-1-2" in text
    assert f"{stream.topic}-1-0" not in text


def test_a_letter_is_shown_with_its_own_headers_and_its_value(stream: Stream, tmp_path: Path) -> None:
    bury(stream, [bad(stream, 4, '{"naïve": '.encode()), bad(stream, 5, b"\x1b[2J\xff")])
    shown = call(stream, "show", f"{stream.topic}-1-4", "-o", tmp_path / "value")
    assert shown.exit_code == 0
    assert 'header     own: 1\nvalue      11 bytes\n{"naïve": ' in shown.stdout
    assert (tmp_path / "value").read_bytes() == '{"naïve": '.encode()
    document = json.loads(call(stream, "show", f"{stream.topic}-1-4", "--json").stdout)
    assert base64.b64decode(document["value"]) == '{"naïve": '.encode()
    assert document["headers"] == [["own", base64.b64encode(b"1").decode()]]
    hexadecimal = call(stream, "show", f"{stream.topic}-1-5").stdout
    assert "1b5b324a ff" in hexadecimal
    assert "\x1b" not in hexadecimal


def test_an_unknown_id_exits_3(stream: Stream) -> None:
    bury(stream, [bad(stream, 0)])
    for command in ("show", "requeue"):
        result = call(stream, command, "nothing-0-1")
        assert result.exit_code == 3
        assert "there is no dead letter" in result.stderr


def test_a_record_that_is_sent_again_is_the_original_and_says_where_it_comes_from(stream: Stream) -> None:
    bury(stream, [bad(stream, 7, b"\x00bytes", headers=[("own", b"1"), ("own", b"2"), ("srr-reason", b"copied")])])
    result = call(stream, "requeue")
    assert (result.exit_code, result.stdout) == (0, "sent 1; sent before: 0\n")
    (record,) = committed(stream, stream.topic)
    assert (record.partition, record.key, record.value) == (1, b"k", b"\x00bytes")
    assert record.headers == [
        ("own", b"1"),
        ("own", b"2"),
        ("srr-reason", b"copied"),
        ("srr-requeued-from", f"{stream.topic}-1-7".encode()),
    ]


def test_a_letter_is_sent_once_however_often_it_is_asked_for(stream: Stream) -> None:
    bury(stream, [bad(stream, 0), bad(stream, 1), bad(stream, 1)])
    assert call(stream, "requeue", f"{stream.topic}-1-1").stdout == "sent 1; sent before: 0\n"
    assert call(stream, "requeue").stdout == "sent 1; sent before: 1\n"
    assert call(stream, "requeue").stdout == "sent 0; sent before: 2\n"
    ids = {f"{stream.topic}-1-0": 1, f"{stream.topic}-1-1": 1}
    assert origins(committed(stream, stream.topic)) == ids
    listed = json.loads(call(stream, "list", "--json").stdout)
    assert listed["n_requeued"] == 2
    assert all(letter["is_requeued"] for letter in listed["newest"])


def test_only_letters_of_the_reason_are_sent(stream: Stream) -> None:
    bury(stream, [bad(stream, 0), bad(stream, 1, reason="empty")])
    assert call(stream, "requeue", "--reason", "empty").stdout == "sent 1; sent before: 0\n"
    assert set(origins(committed(stream, stream.topic))) == {f"{stream.topic}-1-1"}


def test_a_dry_run_sends_nothing(stream: Stream) -> None:
    bury(stream, [bad(stream, 0)])
    assert call(stream, "requeue", "--dry-run").stdout == "would send 1; sent before: 0\n"
    document = json.loads(call(stream, "requeue", "--dry-run", "--json").stdout)
    assert document == {"is_dry_run": True, "sent": [f"{stream.topic}-1-0"], "n_before": 0, "refused": {}}
    assert committed(stream, stream.topic) == []


def test_a_value_that_was_omitted_is_taken_from_the_input(stream: Stream) -> None:
    large = b"\xff" * 1_000_000
    with transactions(stream, f"{stream.topic}-sender") as producer:
        producer.begin_transaction()
        offset = producer.send(stream.topic, large, b"k", [("own", b"1")], partition=1).get(30).offset
        producer.commit_transaction()
    bury(stream, [bad(stream, offset, large, "too_large"), bad(stream, 99, large, "too_large")])
    shown = call(stream, "show", f"{stream.topic}-1-{offset}").stdout
    assert "1,000,000 bytes, from the input" in shown
    gone = call(stream, "show", f"{stream.topic}-1-99").stdout
    assert "1,000,000 bytes, which did not fit; the input no longer holds them" in gone
    result = call(stream, "requeue")
    assert result.exit_code == 3
    assert result.stdout == "sent 1; sent before: 0\n"
    assert f"{stream.topic}-1-99 cannot be sent: its value did not fit into the dead letter" in result.stderr
    assert committed(stream, stream.topic)[-1].value == large


def test_letters_of_other_topics_and_of_partitions_that_are_gone_are_refused(stream: Stream) -> None:
    bury(stream, [bad(stream, 0, topic="others"), bad(stream, 0, partition=64), bad(stream, 1)])
    result = call(stream, "requeue")
    assert result.exit_code == 3
    assert "others is not among input.topics" in result.stderr
    assert "has no partition 64 any more" in result.stderr
    assert set(origins(committed(stream, stream.topic))) == {f"{stream.topic}-1-1"}


def test_what_is_no_dead_letter_is_passed_over(stream: Stream) -> None:
    with transactions(stream, f"{stream.topic}-stranger") as producer:
        producer.begin_transaction()
        producer.send(stream.dead_letter_topic, b"hello")
        producer.send(stream.dead_letter_topic, b"x", headers=[("srr-reason", b"r"), ("srr-partition", b"one")])
        producer.commit_transaction()
    assert json.loads(call(stream, "list", "--json").stdout)["counts"] == []


@pytest.mark.kafka
def test_what_an_ended_requeue_left_open_is_taken_back_and_sent_once(apache_stream: Stream) -> None:
    bury(apache_stream, [bad(apache_stream, offset) for offset in range(3)])
    letters = dead_letters(apache_stream)
    with transactions(apache_stream, f"{apache_stream.topic}-group-requeue") as killed:
        killed.begin_transaction()
        for offset in range(2):
            name = f"{apache_stream.topic}-1-{offset}".encode()
            killed.send(apache_stream.topic, b"x", b"k", [("srr-requeued-from", name)], partition=1)
            killed.send(apache_stream.dead_letter_topic, b"", name, [("srr-requeued", name)], partition=0)
        killed.flush()
        assert len(letters.requeue().sent) == 3
    assert set(origins(committed(apache_stream, apache_stream.topic)).values()) == {1}
    assert len(committed(apache_stream, apache_stream.topic)) == 3


@pytest.mark.kafka
def test_a_note_behind_somebody_elses_open_transaction_counts(apache_stream: Stream) -> None:
    bury(apache_stream, [bad(apache_stream, 0)])
    letters = dead_letters(apache_stream)
    with transactions(apache_stream, f"{apache_stream.topic}-scorer") as scorer:
        scorer.begin_transaction()
        scorer.send(apache_stream.dead_letter_topic, b"", partition=0)
        scorer.flush()
        assert len(letters.requeue().sent) == 1
        again = letters.requeue()
        scorer.abort_transaction()
    assert (again.sent, again.n_before) == ([], 1)


@pytest.mark.kafka
def test_a_requeue_killed_with_9_and_called_again_sends_each_letter_once(
    apache_stream: Stream, wait_until: Callable[..., Any]
) -> None:
    n = 4000
    bury(apache_stream, [bad(apache_stream, offset) for offset in range(n)])
    command = [*SRR_STREAM, "--log-level", "error", "dlq", "requeue", "-c", str(apache_stream.write_settings())]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_until(lambda: committed(apache_stream, apache_stream.topic), what="the first records")
    first.kill()
    first.communicate(timeout=10)
    n_first = len(committed(apache_stream, apache_stream.topic))
    assert n_first < n, "everything was sent: the kill came too late to prove anything"
    assert len(dead_letters(apache_stream).requeue().sent) > 0
    sent = origins(committed(apache_stream, apache_stream.topic))
    assert sent == {f"{apache_stream.topic}-1-{offset}": 1 for offset in range(n)}


@pytest.mark.kafka
def test_of_two_requeues_at_a_time_the_older_one_is_stopped(apache_stream: Stream) -> None:
    bury(apache_stream, [bad(apache_stream, 0)])
    letters = dead_letters(apache_stream)
    with letters._sending() as older:
        assert len(letters.requeue().sent) == 1
        letter = letters.find(f"{apache_stream.topic}-1-0")
        with pytest.raises(SinkError, match="another requeue has taken over"):
            older.send([letter], letters.requeue())
    assert len(committed(apache_stream, apache_stream.topic)) == 1


@pytest.mark.kafka
def test_a_record_that_its_topic_no_longer_takes_is_refused_and_its_neighbours_are_sent(apache_stream: Stream) -> None:
    from kafka.admin import ConfigResource, ConfigResourceType

    bury(apache_stream, [bad(apache_stream, 0), bad(apache_stream, 1, b"y" * 50_000), bad(apache_stream, 2)])
    admin = KafkaAdminClient(bootstrap_servers=apache_stream.bootstrap_servers)
    try:
        limit = {"max.message.bytes": "20000"}
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, apache_stream.topic, limit)])
    finally:
        admin.close()
    result = dead_letters(apache_stream).requeue()
    assert [letter.rsplit("-", 1)[1] for letter in result.sent] == ["0", "2"]
    assert "does not take a record as large" in result.refused[f"{apache_stream.topic}-1-1"]
    assert len(committed(apache_stream, apache_stream.topic)) == 2


@pytest.mark.kafka
def test_a_value_that_retention_took_cannot_be_sent(apache_stream: Stream) -> None:
    large = b"\xff" * 1_000_000
    with transactions(apache_stream, f"{apache_stream.topic}-sender") as producer:
        producer.begin_transaction()
        for value in (large, b"{}"):
            producer.send(apache_stream.topic, value, partition=1)
        producer.commit_transaction()
    admin = KafkaAdminClient(bootstrap_servers=apache_stream.bootstrap_servers)
    try:
        admin.delete_records({TopicPartition(apache_stream.topic, 1): 1}, timeout_ms=20_000)
    finally:
        admin.close()
    bury(apache_stream, [bad(apache_stream, 0, large, "too_large")])
    assert "no longer holds the record" in next(iter(dead_letters(apache_stream).requeue().refused.values()))


def test_a_broker_that_goes_away_meanwhile_is_said_and_nothing_counts_as_sent(topic_name: str, tmp_path: Path) -> None:
    with EmbeddedBroker() as broker:
        broker.create_topics({topic_name: 1, f"{topic_name}-dead": 1})
        letters = DeadLetters(
            f"{topic_name}-dead",
            connection={"bootstrap_servers": [broker.bootstrap_servers]},
            topics=[topic_name],
            requeue_id=f"{topic_name}-requeue",
            timeout_s=2.0,
        )
        letter = DeadLetter(topic_name, 0, 0, "r", "d", "s", 0, (0, 0), b"k", b"x", ())
        result = Requeued()
        with letters._sending() as sender:
            broker.close()
            with pytest.raises(SinkError, match="call it again, nothing is sent twice"):
                sender.send([letter], result)
    assert result.sent == []


def test_missing_rights_are_the_operators_matter() -> None:
    assert isinstance(explained(TopicAuthorizationFailedError("events"), "kafka:9092"), NotAuthorized)


def test_headers_that_name_no_offset_make_no_letter() -> None:
    record = StoredRecord("dead", 0, 0, 0, None, b"", [("srr-reason", b"r"), ("srr-topic", b"t"), ("srr-offset", b"x")])
    assert parse(record) is None
