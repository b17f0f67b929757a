"""The two promises, against a real Apache Kafka: what is visible, what is committed, and who may still write."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient, MemberToRemove, NewPartitions

from consumers.clients import ClientName, MovedOn
from consumers.delivery import AtLeastOnce, ExactlyOnce
from consumers.errors import BrokerUnavailable, MembershipLost, OffsetLost, SinkError
from consumers.records import BadRecord, Batch, Position, RawRecord, StoredRecord, Verdicts
from consumers.sinks.kafka import KafkaSink
from consumers.sources.kafka import KafkaSource
from tests.consumers.conftest import SESSION_TIMEOUT_S, member_id

pytestmark = pytest.mark.kafka


def nothing() -> None:
    """Do nothing while waiting."""


class Topics:
    """One test's input and outputs on a broker, with sources and sinks that are closed at its end."""

    def __init__(self, broker: Any, topic: str, stack: ExitStack, client: ClientName) -> None:
        self.client = client
        self.servers = broker.bootstrap_servers
        self.topic = topic
        self.group = f"{topic}-group"
        self._stack = stack
        broker.create_topics({topic: 2, f"{topic}-scores": 2, f"{topic}-alerts": 2, f"{topic}-dead": 2})

    def source(self, **options: Any) -> KafkaSource:
        defaults: dict[str, Any] = {"start": "earliest", "session_timeout_s": 6.0, "client": self.client}
        source = KafkaSource(
            [self.topic],
            group_id=self.group,
            connection={"bootstrap_servers": [self.servers], "metadata_max_age_ms": 1000},
            **(defaults | options),
        )
        self._stack.callback(source.close)
        return source

    def sink(self, **options: Any) -> KafkaSink:
        defaults: dict[str, Any] = {
            "scores_topic": f"{self.topic}-scores",
            "alerts_topic": f"{self.topic}-alerts",
            "dead_letter_topic": f"{self.topic}-dead",
            "flush_timeout_s": 10.0,
            "client": self.client,
        }
        sink = KafkaSink({"bootstrap_servers": [self.servers]}, **(defaults | options))
        self._stack.callback(sink.close)
        return sink

    def transactional(self, name: str = "one") -> KafkaSink:
        return self.sink(transactional_id=f"{self.group}-{name}")

    def produce(self, n: int, *, partition: int = 0, **options: Any) -> None:
        producer = KafkaProducer(bootstrap_servers=self.servers, acks="all", **options)
        try:
            for i in range(n):
                producer.send(self.topic, b'{"x": %d}' % i, partition=partition)
            producer.flush(30)
        finally:
            producer.close(5)

    def visible(self, kind: str = "scores") -> list[Any]:
        """What a reader of committed records gets, in order within a partition."""
        topic = f"{self.topic}-{kind}"
        consumer = KafkaConsumer(
            bootstrap_servers=self.servers, isolation_level="read_committed", enable_auto_commit=False
        )
        try:
            partitions = [TopicPartition(topic, p) for p in sorted(consumer.partitions_for_topic(topic))]
            consumer.assign(partitions)
            consumer.seek_to_beginning(*partitions)
            ends = consumer.end_offsets(partitions)
            found: list[Any] = []
            until = time.monotonic() + 20
            while any(consumer.position(tp) < ends[tp] for tp in partitions):
                assert time.monotonic() < until
                found += [record for records in consumer.poll(200).values() for record in records]
            return found
        finally:
            consumer.close(autocommit=False)

    def committed(self) -> dict[int, int]:
        """Partition → what the group has committed."""
        consumer = KafkaConsumer(bootstrap_servers=self.servers, group_id=self.group, enable_auto_commit=False)
        try:
            found = {p: consumer.committed(TopicPartition(self.topic, p)) for p in range(2)}
            return {p: offset for p, offset in found.items() if offset is not None}
        finally:
            consumer.close(autocommit=False)


@pytest.fixture
def topics(apache_kafka: Any, topic_name: str, client: ClientName) -> Iterator[Topics]:
    with ExitStack() as stack:
        yield Topics(apache_kafka, topic_name, stack, client)


@pytest.fixture
def judge(verdicts: Verdicts) -> Callable[[Sequence[RawRecord]], Verdicts]:
    """Verdicts of any records; the first is flagged."""

    def made(raw: Sequence[RawRecord]) -> Verdicts:
        n = len(raw)
        batch = Batch(
            verdicts.batch.schema,
            {"x": verdicts.batch.features["x"][:1].repeat(n)},
            raw,
            verdicts.batch.time_ms[:1].repeat(n),
        )
        flagged = verdicts.flagged[:1].repeat(n)
        flagged[0] = True
        columns = {name: getattr(verdicts, name)[:1].repeat(n) for name in ("score", "p_value", "severity")}
        return Verdicts(batch, 3, flagged=flagged, contributions={}, **columns)

    return made


def after(raw: Sequence[RawRecord]) -> dict[Position, int]:
    return {(record.topic, record.partition): record.offset + 1 for record in raw}


def test_verdicts_and_offsets_become_visible_together(topics: Topics, read_until: Any, judge: Any) -> None:
    topics.produce(5)
    source, sink = topics.source(), topics.transactional()
    raw = read_until(source, 5)
    delivery = ExactlyOnce(source, sink)
    bad = [BadRecord(replaced(raw[0], value=b"{"), "not_json", "torn")]
    delivery.publish(judge(raw), bad, nothing)
    assert (topics.visible(), topics.visible("dead")) == ([], [])
    assert topics.committed() == {0: 0, 1: 0}
    delivery.commit(after(raw), nothing)
    assert len(topics.visible()) == 5
    assert len(topics.visible("alerts")) == len(topics.visible("dead")) == 1
    assert topics.committed() == {0: 5, 1: 0}


def replaced(raw: RawRecord, **changes: Any) -> StoredRecord:
    record = StoredRecord(raw.topic, raw.partition, raw.offset, raw.timestamp, raw.key, raw.value)
    return record._replace(**changes)


def test_a_new_writer_of_the_same_name_takes_back_what_was_open_and_the_old_one_can_write_no_more(
    topics: Topics, read_until: Any, judge: Any
) -> None:
    topics.produce(5)
    source, old = topics.source(), topics.transactional()
    raw = read_until(source, 5)
    ExactlyOnce(source, old).publish(judge(raw), [], nothing)
    new = topics.transactional()
    with pytest.raises(MembershipLost, match=r"another has taken over: .*nothing of the batch counts"):
        ExactlyOnce(source, old).commit(after(raw), nothing)
    assert topics.visible() == []
    delivery = ExactlyOnce(source, new)
    delivery.publish(judge(raw), [], nothing)
    delivery.commit(after(raw), nothing)
    assert [record.offset for record in topics.visible()] != []
    assert len(topics.visible()) == 5
    assert topics.committed()[0] == 5


def test_a_member_that_the_group_threw_out_commits_no_transaction(topics: Topics, read_until: Any, judge: Any) -> None:
    topics.produce(5)
    source, sink = topics.source(), topics.transactional()
    raw = read_until(source, 5)
    delivery = ExactlyOnce(source, sink)
    delivery.publish(judge(raw), [], nothing)
    admin = KafkaAdminClient(bootstrap_servers=topics.servers)
    try:
        admin.remove_group_members(topics.group, [MemberToRemove(member_id(source))])
    finally:
        admin.close()
    with pytest.raises(MembershipLost, match="another has taken over"):
        delivery.commit(after(raw), nothing)
    sink.close()
    assert topics.visible() == []
    assert topics.committed()[0] == 0


def test_at_least_once_publishes_before_it_commits(topics: Topics, read_until: Any, judge: Any) -> None:
    topics.produce(5)
    source = topics.source()
    raw = read_until(source, 5)
    delivery = AtLeastOnce(source, topics.sink())
    delivery.publish(judge(raw), [], nothing)
    assert len(topics.visible()) == 5
    assert topics.committed()[0] == 0
    delivery.commit(after(raw), nothing)
    source.settle()
    assert topics.committed()[0] == 5


def test_an_output_partition_has_the_order_of_the_input_s_whatever_the_keys(topics: Topics, judge: Any) -> None:
    raw = [StoredRecord(topics.topic, i % 4, i, 0, b"key-%d" % (i % 7), b"{}") for i in range(400)]
    sink = topics.sink()
    sink.write(judge(raw))
    sink.flush()
    found = topics.visible()
    assert len(found) == 400
    for partition in range(2):
        bodies = [record.value for record in found if record.partition == partition]
        numbers = [int(value.split(b'"offset":')[1].split(b",")[0]) for value in bodies]
        assert numbers == sorted(numbers)
        assert {n % 4 % 2 for n in numbers} == {partition}


def test_a_key_that_no_message_can_hold_is_left_out_and_told(topics: Topics, judge: Any) -> None:
    raw = [StoredRecord(topics.topic, 0, 1, 0, b"k" * 1_100_000, b'{"x": 1}')]
    sink = topics.sink()
    sink.write(judge(raw))
    sink.write_bad([BadRecord(raw[0], "not_json", "torn")])
    sink.flush()
    (verdict,) = topics.visible()
    assert (verdict.key, dict(verdict.headers)["srr-key-omitted"]) == (None, b"1100000")
    (letter,) = topics.visible("dead")
    assert letter.key is None
    assert letter.value == b'{"x": 1}'


def test_headers_that_no_message_can_hold_are_left_out_of_a_dead_letter(topics: Topics) -> None:
    raw = StoredRecord(topics.topic, 0, 1, 0, None, b"{torn", (("trace", b"t" * 1_100_000),))
    sink = topics.sink()
    sink.write_bad([BadRecord(raw, "not_json", "torn")])
    sink.flush()
    (letter,) = topics.visible("dead")
    assert letter.value == b"{torn"
    assert "trace" not in dict(letter.headers)
    assert int(dict(letter.headers)["srr-headers-omitted"]) > 1_100_000


def test_a_topic_that_takes_only_smaller_messages_is_an_error_that_says_what_to_do(topics: Topics, judge: Any) -> None:
    admin = KafkaAdminClient(bootstrap_servers=topics.servers)
    try:
        from kafka.admin import ConfigResource, ConfigResourceType

        admin.alter_configs(
            [ConfigResource(ConfigResourceType.TOPIC, f"{topics.topic}-dead", {"max.message.bytes": "2000"})]
        )
    finally:
        admin.close()
    sink = topics.sink()
    sink.write_bad([BadRecord(StoredRecord(topics.topic, 0, 1, 0, None, b"x" * 5000), "not_json", "torn")])
    with pytest.raises(SinkError, match=r"raise max\.message\.bytes .* or lower output\.max_message_size"):
        sink.flush()


def test_a_slow_broker_is_waited_for_aloud(topics: Topics, judge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = topics.sink(flush_timeout_s=30.0)
    flush, is_slow = sink._writer.flush, iter([True, True, False])

    def not_yet(timeout_s: float) -> bool:
        return not next(is_slow) and flush(timeout_s)

    monkeypatch.setattr(sink._writer, "flush", not_yet)
    waited: list[int] = []
    sink.write(judge([StoredRecord(topics.topic, 0, 2, 0, None, b"{}")]))
    sink.flush(lambda: waited.append(1))
    assert len(waited) == 2
    assert len(topics.visible()) == 1


def test_a_member_that_stays_keeps_its_partitions_through_a_long_batch(topics: Topics, read_until: Any) -> None:
    topics.produce(5)
    changes: list[str] = []
    source = topics.source(max_poll_interval_s=6.0, on_rebalance=lambda: changes.append("partitions came or went"))
    raw = read_until(source, 5)
    changes.clear()
    until = time.monotonic() + 8.0
    while time.monotonic() < until:
        source.stay()
        time.sleep(0.2)  # the batch
    source.commit(after(raw))
    source.settle()
    assert topics.committed()[0] == 5
    source.poll(0.5)
    assert changes == []


def test_a_group_that_starts_at_the_end_remembers_where_that_was(topics: Topics, read_until: Any) -> None:
    topics.produce(5)
    source = topics.source(start="latest")
    source.pause()  # as a scorer without a model does
    until = time.monotonic() + 30
    while topics.committed().get(0) != 5:
        assert time.monotonic() < until
        source.poll(0.1)
    source.close()
    topics.produce(3)
    assert [record.offset for record in read_until(topics.source(start="latest"), 3)] == [5, 6, 7]


def test_partitions_that_are_added_are_read_from_their_beginning(topics: Topics) -> None:
    source = topics.source(start="latest")
    until = time.monotonic() + 40
    while len(topics.committed()) < 2:
        assert time.monotonic() < until
        source.poll(0.1)
    admin = KafkaAdminClient(bootstrap_servers=topics.servers)
    try:
        admin.create_partitions({topics.topic: NewPartitions(3)})
    finally:
        admin.close()
    topics.produce(4, partition=2)
    found: list[RawRecord] = []
    while len(found) < 4:
        assert time.monotonic() < until
        found += source.poll(0.2)
    assert [(record.partition, record.offset) for record in found] == [(2, 0), (2, 1), (2, 2), (2, 3)]


def lose(topics: Topics, read_until: Any) -> None:
    """Commit 2, and let retention remove what lies before 6 of 8."""
    topics.produce(8)
    source = topics.source()
    read_until(source, 8)
    source.commit({(topics.topic, 0): 2})
    source.close()
    admin = KafkaAdminClient(bootstrap_servers=topics.servers)
    try:
        admin.delete_records({TopicPartition(topics.topic, 0): 6})
    finally:
        admin.close()


@pytest.mark.parametrize(("policy", "skipped", "first"), [("earliest", 4, 6), ("latest", 6, 8)])
def test_what_retention_removed_is_counted_and_reading_goes_on(
    topics: Topics, read_until: Any, policy: str, skipped: int, first: int, caplog: pytest.LogCaptureFixture
) -> None:
    lose(topics, read_until)
    told: list[tuple[Position, int]] = []
    source = topics.source(lost_offset=policy, on_skipped=lambda position, n: told.append((position, n)))
    until = time.monotonic() + 30
    while not told:
        assert time.monotonic() < until
        source.poll(0.1)
    topics.produce(1)
    assert read_until(source, 1)[0].offset == first
    assert told == [((topics.topic, 0), skipped)]
    assert "the log holds offsets 6 to before 8, offset 2 is next" in caplog.text


def test_what_retention_removed_is_an_error_if_that_is_the_policy(topics: Topics, read_until: Any) -> None:
    lose(topics, read_until)
    source = topics.source(lost_offset="error")
    with pytest.raises(OffsetLost, match=r"offset 2 is next; reset the group's offset, or allow input\.lost_offset"):
        read_until(source, 1)


def test_a_partition_that_gives_nothing_although_records_wait_is_an_error(topics: Topics, read_until: Any) -> None:
    topics.produce(1)
    source = topics.source(stall_timeout_s=1.0)
    read_until(source, 1)
    source._member.pause([(topics.topic, 0)])  # behind its back, as a client that forgot it would
    topics.produce(3)
    with pytest.raises(
        BrokerUnavailable, match=r"-0 has given nothing from offset 1 on for \d+ s, although its end is 4"
    ):
        read_until(source, 3)


def test_an_idle_partition_and_one_that_ends_in_a_marker_are_not_stalled(topics: Topics, read_until: Any) -> None:
    producer = KafkaProducer(bootstrap_servers=topics.servers, transactional_id=f"{topics.topic}-sender")
    try:
        producer.init_transactions()
        for take_back in (False, True):
            producer.begin_transaction()
            producer.send(topics.topic, b'{"x": 1}', partition=0)
            (producer.abort_transaction if take_back else producer.commit_transaction)()
    finally:
        producer.close(5)
    source = topics.source(
        stall_timeout_s=2.0
    )  # an empty answer, which tells librdkafka of markers, takes half a second
    assert len(read_until(source, 1)) == 1
    until = time.monotonic() + 5.0
    while time.monotonic() < until:
        assert source.poll(0.1) == []


def test_a_member_with_a_name_comes_back_to_its_partitions_without_a_rebalance(topics: Topics, read_until: Any) -> None:
    topics.produce(2)
    changes: list[str] = []
    witness = topics.source(instance_id="scorer-1", on_rebalance=lambda: changes.append("partitions came or went"))
    first = topics.source(instance_id="scorer-0", session_timeout_s=20.0)
    until = time.monotonic() + 40
    while not (len(first.assignment) == len(witness.assignment) == 1):
        assert time.monotonic() < until
        first.poll(0.1)
        witness.poll(0.1)
    owned = first.assignment
    first.close()
    changes.clear()
    again = topics.source(instance_id="scorer-0", session_timeout_s=20.0)
    while not again.assignment:
        assert time.monotonic() < until
        again.poll(0.1)
        witness.poll(0.1)
    assert (again.assignment, changes) == (owned, [])


def test_of_two_members_of_one_name_the_older_one_is_told(topics: Topics, read_until: Any) -> None:
    topics.produce(2)
    older = topics.source(instance_id="scorer-0")
    read_until(older, 2)
    newer = topics.source(instance_id="scorer-0")
    read_until(newer, 2)
    with pytest.raises(MembershipLost, match=r"give each scorer its own input\.instance_id"):
        read_until(older, 1)


def test_what_a_rebalance_kept_from_being_committed_is_committed_later(
    topics: Topics, read_until: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    topics.produce(5)
    source = topics.source()
    raw = read_until(source, 5)

    def refuse(_: Any) -> Future[None]:
        refused: Future[None] = Future()
        refused.set_exception(MovedOn("as a broker says while a group rebalances"))
        return refused

    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        patched.setattr(source._member, "send_commit", refuse)
        source.commit(after(raw))
        source.settle()
    assert "not committed, the group has moved on" in caplog.text
    assert topics.committed()[0] == 0
    until = time.monotonic() + 10
    while topics.committed()[0] != 5:
        assert time.monotonic() < until
        source.poll(0.1)


class Held:
    """A commit whose answer is held back until it is let go."""

    def __init__(self, pending: Any, answer: threading.Event) -> None:
        self._pending, self._answer = pending, answer

    def wait(self, timeout_s: float) -> bool:
        return self._answer.wait(timeout_s) and bool(self._pending.wait(timeout_s))

    def result(self, timeout: float | None = None) -> None:
        if not self._answer.is_set():
            raise TimeoutError
        self._pending.result(timeout)


def begun(topics: Topics, monkeypatch: pytest.MonkeyPatch, answer: threading.Event) -> KafkaSource:
    """Return a source that has begun a partition, and waits to hear that where is remembered."""
    topics.produce(2)
    source = topics.source()
    send = source._member.send_commit
    monkeypatch.setattr(source._member, "send_commit", lambda offsets: Held(send(offsets), answer))
    until = time.monotonic() + 30
    while source._begun_at is None:
        assert time.monotonic() < until
        assert source.poll(0.1) == []
    return source


def test_where_a_group_begins_is_remembered_before_a_record_is_given_and_nobody_is_held_up(
    topics: Topics, read_until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = threading.Event()
    source = begun(topics, monkeypatch, answer)
    for _ in range(10):
        began = time.monotonic()
        assert source.poll(0.05) == []
        assert time.monotonic() - began < 1.0
    answer.set()
    assert len(read_until(source, 2)) == 2


def test_a_group_that_does_not_answer_where_it_begins_is_given_up_after_the_session(
    topics: Topics, read_until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = begun(topics, monkeypatch, threading.Event())
    with pytest.raises(BrokerUnavailable, match=rf"to a commit for {SESSION_TIMEOUT_S:g} s"):
        read_until(source, 1)


def test_a_commit_is_not_waited_for_but_by_the_next_one_and_by_the_end(topics: Topics, read_until: Any) -> None:
    topics.produce(5)
    source = topics.source()
    read_until(source, 5)
    source.commit({(topics.topic, 0): 2})
    source.commit({(topics.topic, 0): 4})
    assert topics.committed()[0] in (2, 4)
    source.close()
    assert topics.committed()[0] == 4
