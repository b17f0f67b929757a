"""What only a broker can show: groups, outages, gaps in a log, missing topics."""

from __future__ import annotations

import gc
import json
import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from kafka import KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient, MemberToRemove

from consumers.clients import ClientName
from consumers.errors import BrokerUnavailable, LibraryMissing, MembershipLost, NotAuthorized, SinkError, TopicMissing
from consumers.logs import KafkaLog, OffsetRange
from consumers.records import BadRecord, Position, RawRecord, StoredRecord
from consumers.sinks.kafka import KafkaSink
from consumers.sources.kafka import KafkaSource
from srr_stream.broker import EmbeddedBroker, free_port
from tests.consumers.conftest import member_id

Produce = Callable[..., None]
MakeSource = Callable[..., KafkaSource]


def session_timeout_s(broker: Any) -> float:
    """Return the least that Apache Kafka allows; the embedded broker makes a member wait for half of it."""
    return 2.0 if isinstance(broker, EmbeddedBroker) else 6.0


def connection(broker: Any) -> dict[str, Any]:
    return {"bootstrap_servers": [broker.bootstrap_servers], "bootstrap_timeout_ms": 2000}


def values(n: int, *, start: int = 0) -> list[bytes]:
    return [json.dumps({"x": i}).encode() for i in range(start, start + n)]


def numbers(records: Sequence[RawRecord]) -> list[int]:
    return sorted(json.loads(record.value or b"")["x"] for record in records)


def after(records: Sequence[RawRecord]) -> dict[Position, int]:
    return {(record.topic, record.partition): record.offset + 1 for record in records}


@pytest.fixture
def make_source(topic_name: str, client: ClientName) -> Iterator[MakeSource]:
    """Give members of one group that read the test's topic; all are closed at the end."""
    with ExitStack() as stack:

        def make(broker: Any, **options: Any) -> KafkaSource:
            defaults = {"start": "earliest", "session_timeout_s": session_timeout_s(broker), "client": client}
            source = KafkaSource(
                [topic_name], group_id=f"{topic_name}-group", connection=connection(broker), **(defaults | options)
            )
            stack.callback(source.close)
            return source

        yield make


@pytest.fixture
def make_log() -> Iterator[Callable[..., KafkaLog]]:
    with ExitStack() as stack:

        def make(broker: Any, *topics: str, timeout_s: float = 10.0) -> KafkaLog:
            log = KafkaLog(topics, connection=connection(broker), timeout_s=timeout_s)
            stack.callback(log.close)
            return log

        yield make


@pytest.fixture
def collected() -> Iterator[None]:
    """Clear away the sockets of kafka-python that never connected: it closes none of them."""
    yield
    gc.collect()


def loses_connections(test: Any) -> Any:
    """Mark a test in which connections fail: kafka-python leaves their sockets to the garbage collector."""
    marked = pytest.mark.usefixtures("collected")(test)
    return pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")(marked)


def poll_until(sources: Sequence[KafkaSource], is_so: Callable[[], bool], *, what: str) -> list[RawRecord]:
    """Poll all sources in turn, as their own processes would, commit what they give, and return it."""
    found: list[RawRecord] = []
    until = time.monotonic() + 40
    while not is_so():
        assert time.monotonic() < until, f"{what} did not come"
        for source in sources:
            records = source.poll(0.1)
            found.extend(records)
            if records:
                source.commit(after(records))
    return found


def test_members_share_the_partitions_and_a_paused_newcomer_stays_paused(
    broker: Any, topic_name: str, make_source: MakeSource, produce: Produce
) -> None:
    broker.create_topics({topic_name: 4})
    rebalances: Counter[str] = Counter()
    first = make_source(broker, on_rebalance=lambda: rebalances.update(["first"]))
    poll_until([first], lambda: len(first.assignment) == 4, what="the first assignment")
    assert rebalances["first"] == 1

    second = make_source(broker)
    second.pause()
    produce(broker, topic_name, values(40), n_partitions=4)
    both = [first, second]
    # The members join one after another, so each must go on polling while the other waits for it.
    stop = threading.Event()
    seen: list[RawRecord] = []

    def work() -> None:
        while not stop.is_set():
            records = first.poll(0.1)
            seen.extend(records)
            first.commit(after(records))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert poll_until([second], lambda: len(second.assignment) == 2, what="the second's share") == []
        assert [second.poll(0.1) for _ in range(5)] == [[]] * 5
        second.resume()
        taken = poll_until([second], lambda: sum(second.lag().values()) == 0 and bool(second.lag()), what="the rest")
    finally:
        stop.set()
        thread.join()
    assert rebalances["first"] > 1
    assert len(first.assignment) == 2
    seen += poll_until(both, lambda: sum(first.lag().values()) == 0, what="the end")
    assert set(numbers(seen + taken)) == set(range(40))

    second.close()
    produce(broker, topic_name, values(40, start=40), n_partitions=4)
    rest: list[RawRecord] = []
    until = time.monotonic() + 30
    while len(set(numbers(rest))) < 40:
        assert time.monotonic() < until
        rest.extend(first.poll(0.2))
    assert set(numbers(rest)) == set(range(40, 80))
    assert len(first.assignment) == 4


def test_a_commit_after_the_group_moved_on_is_logged_and_the_records_come_again(
    broker: Any,
    topic_name: str,
    make_source: MakeSource,
    produce: Produce,
    read_until: Callable[..., list[RawRecord]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker.create_topics({topic_name: 1})
    produce(broker, topic_name, values(5))
    thrown_out = make_source(broker)
    records = read_until(thrown_out, 5)
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    try:
        admin.remove_group_members(f"{topic_name}-group", [MemberToRemove(member_id(thrown_out))])
        with caplog.at_level(logging.WARNING, logger="consumers.sources.kafka"):
            thrown_out.commit(after(records))
            thrown_out.settle()
    finally:
        admin.close()
    assert "not committed, the group has moved on" in caplog.text
    thrown_out.close()
    assert numbers(read_until(make_source(broker), 5)) == list(range(5))


def test_a_member_that_was_put_out_has_no_membership_that_a_transaction_would_take(
    broker: Any, topic_name: str, make_source: MakeSource, produce: Produce, read_until: Callable[..., list[RawRecord]]
) -> None:
    broker.create_topics({topic_name: 1})
    produce(broker, topic_name, values(5))
    thrown_out = make_source(broker)
    read_until(thrown_out, 5)
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    try:
        admin.remove_group_members(f"{topic_name}-group", [MemberToRemove(member_id(thrown_out))])
    finally:
        admin.close()

    def stay_in() -> None:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            thrown_out.stay()
            _ = thrown_out.membership
            time.sleep(0.05)

    with pytest.raises(MembershipLost, match="put this member out"):
        stay_in()  # until its next heartbeat is answered


def test_a_group_without_commits_starts_where_it_is_told(
    broker: Any,
    client: ClientName,
    topic_name: str,
    make_source: MakeSource,
    produce: Produce,
    read_until: Callable[..., list[RawRecord]],
) -> None:
    if isinstance(broker, EmbeddedBroker) and client == ClientName.CONFLUENT:
        pytest.skip("the embedded broker tells librdkafka that a topic ends one behind the beginning of its last batch")
    broker.create_topics({topic_name: 1})
    produce(broker, topic_name, values(5))
    source = make_source(broker, start="latest")
    poll_until([source], lambda: bool(source.assignment) and source.lag() != {}, what="the first fetch")
    produce(broker, topic_name, values(5, start=5))
    assert numbers(read_until(source, 5)) == list(range(5, 10))


def test_lag_counts_what_is_not_read_yet(
    broker: Any, topic_name: str, make_source: MakeSource, produce: Produce, read_until: Callable[..., list[RawRecord]]
) -> None:
    broker.create_topics({topic_name: 1})
    produce(broker, topic_name, values(25))
    source = make_source(broker, max_batch=10)
    read_until(source, 10)
    assert source.lag() == {(topic_name, 0): 15}


def test_a_missing_topic_is_named_by_source_and_log(
    broker: Any, topic_name: str, make_log: Any, make_source: MakeSource
) -> None:
    with pytest.raises(TopicMissing, match=f"no topic {topic_name} that .* create it") as raised:
        make_source(broker)
    assert raised.value.topics == (topic_name,)
    with pytest.raises(TopicMissing, match=topic_name):
        make_log(broker, topic_name).ends()


@loses_connections
@pytest.mark.parametrize(
    "connect",
    [
        *(
            pytest.param(
                lambda c, client=client: KafkaSource(["t"], group_id="g", connection=c, start="latest", client=client),
                id=f"source-{client}",
            )
            for client in ClientName
        ),
        pytest.param(lambda c: KafkaLog(["t"], connection=c).ends(), id="log"),
        *(
            pytest.param(
                lambda c, client=client: KafkaSink(
                    c, scores_topic="t", alerts_topic=None, dead_letter_topic="d", client=client
                ),
                id=f"sink-{client}",
            )
            for client in ClientName
        ),
    ],
)
def test_without_a_broker_the_error_says_where_it_was_looked_for(connect: Callable[[dict[str, Any]], Any]) -> None:
    server = f"127.0.0.1:{free_port()}"
    started, threads = time.monotonic(), threading.active_count()
    with pytest.raises(BrokerUnavailable, match=rf"no answer from {server}: .*REFUSED; check kafka\.bootstrap_servers"):
        connect({"bootstrap_servers": [server], "bootstrap_timeout_ms": 500})
    assert time.monotonic() - started < 5
    assert threading.active_count() == threads, "a thread is left behind"


@loses_connections
def test_a_source_is_silent_in_a_short_outage_and_raises_in_a_long_one(
    topic_name: str, make_source: MakeSource, produce: Produce, read_until: Callable[..., list[RawRecord]]
) -> None:
    with EmbeddedBroker() as broker:
        broker.create_topics({topic_name: 1})
        produce(broker, topic_name, values(5))
        source = make_source(broker, session_timeout_s=2.0)
        records = read_until(source, 5)
    lost_at = time.monotonic()
    assert source.poll(0.1) == []
    with pytest.raises(BrokerUnavailable, match=r"no answer from the group's coordinator at .* for 2 s"):
        poll_until([source], lambda: False, what="an error")
    assert time.monotonic() - lost_at > 2.0
    source.commit(after(records))
    with pytest.raises(BrokerUnavailable):
        source.settle()
    started = time.monotonic()
    source.close()
    assert time.monotonic() - started < 5


@loses_connections
def test_a_sink_that_lost_its_broker_raises_on_flush_and_leaves_no_thread(topic_name: str, client: ClientName) -> None:
    bad = [BadRecord(StoredRecord("t", 0, i, 0, None, b"x"), "not_json", "x") for i in range(10)]
    with EmbeddedBroker() as broker:
        broker.create_topics({topic_name: 1})
        sink = KafkaSink(
            connection(broker),
            scores_topic=None,
            alerts_topic=None,
            dead_letter_topic=topic_name,
            flush_timeout_s=1.0,
            client=client,
        )
        sink.write_bad(bad)
        sink.flush()
        senders = [thread for thread in threading.enumerate() if "producer" in thread.name and thread.is_alive()]
    sink.write_bad(bad)
    with pytest.raises(SinkError, match=r"verdicts are not durable at .*; nothing was committed"):
        sink.flush()
    sink.close()
    sink.close()
    for thread in senders:
        thread.join(10)
    assert not any(thread.is_alive() for thread in senders)


@loses_connections
def test_a_log_that_lost_its_broker_raises_each_time_it_is_asked(topic_name: str, make_log: Any) -> None:
    with EmbeddedBroker() as broker:
        broker.create_topics({topic_name: 1})
        log = make_log(broker, topic_name, timeout_s=1.0)
        assert log.ends() == {(topic_name, 0): 0}
    for _ in range(2):
        with pytest.raises(BrokerUnavailable):
            log.ends()
    with pytest.raises(BrokerUnavailable):
        list(log.read(OffsetRange(topic_name, 0, 0, 1)))


def test_a_log_reads_any_range_again_and_again(broker: Any, topic_name: str, make_log: Any, produce: Produce) -> None:
    broker.create_topics({topic_name: 3})
    log = make_log(broker, topic_name)
    assert sum(log.ends().values()) == 0
    produce(broker, topic_name, values(1500), n_partitions=2)
    assert log.beginnings() == {(topic_name, p): 0 for p in range(3)}
    assert log.ends() == {(topic_name, 0): 750, (topic_name, 1): 750, (topic_name, 2): 0}
    for start, stop, partition in [(0, 750, 0), (3, 4, 1), (700, 750, 1), (0, 0, 2), (1, 700, 0), (0, 5, 0)]:
        read = list(log.read(OffsetRange(topic_name, partition, start, stop)))
        assert [r.offset for r in read] == list(range(start, stop))
        assert [json.loads(r.value)["x"] for r in read] == [2 * r.offset + partition for r in read]
    produce(broker, topic_name, values(1), n_partitions=1)
    assert log.ends()[topic_name, 0] == 751


def test_a_log_finds_offsets_by_time(broker: Any, topic_name: str, make_log: Any, produce: Produce) -> None:
    broker.create_topics({topic_name: 2})
    base = 1_700_000_000_000
    for i in range(20):
        produce(broker, topic_name, values(1), timestamp_ms=base + 10 * i)
    log = make_log(broker, topic_name)
    for time_ms, offset in [(0, 0), (base, 0), (base + 1, 1), (base + 95, 10), (base + 190, 19), (base + 191, 20)]:
        assert log.offset_at(time_ms) == {(topic_name, 0): offset, (topic_name, 1): 0}


def test_a_range_beyond_the_end_is_an_error_and_no_endless_wait(
    broker: Any, topic_name: str, make_log: Any, produce: Produce
) -> None:
    broker.create_topics({topic_name: 1})
    produce(broker, topic_name, values(3))
    log = make_log(broker, topic_name, timeout_s=1.0)
    with pytest.raises(BrokerUnavailable, match=f"{topic_name}-0 gives nothing at offset 3 for 1 s"):
        list(log.read(OffsetRange(topic_name, 0, 0, 10)))
    assert len(list(log.read(OffsetRange(topic_name, 0, 0, 3)))) == 3


@pytest.mark.kafka
def test_gaps_of_transactions_and_retention_end_no_reading_and_block_none(
    apache_kafka: Any, topic_name: str, make_log: Any, produce: Produce
) -> None:
    apache_kafka.create_topics({topic_name: 1})
    produce(apache_kafka, topic_name, values(10))
    producer = KafkaProducer(bootstrap_servers=apache_kafka.bootstrap_servers, transactional_id=topic_name)
    try:
        producer.init_transactions()
        producer.begin_transaction()
        producer.send(topic_name, b'{"x": 10}', partition=0)
        producer.commit_transaction()
    finally:
        producer.close(5)
    log = make_log(apache_kafka, topic_name)
    # Offsets 0 to 9 are records, 10 is the transaction's, 11 its marker.
    assert log.ends() == {(topic_name, 0): 12}
    assert numbers(list(log.read(OffsetRange(topic_name, 0, 0, 12)))) == list(range(11))
    admin = KafkaAdminClient(bootstrap_servers=apache_kafka.bootstrap_servers)
    try:
        admin.delete_records({TopicPartition(topic_name, 0): 4})
    finally:
        admin.close()
    assert log.beginnings() == {(topic_name, 0): 4}
    assert numbers(list(log.read(OffsetRange(topic_name, 0, 0, 12)))) == list(range(4, 11))
    assert list(log.read(OffsetRange(topic_name, 0, 0, 3))) == []


@pytest.mark.kafka
@loses_connections
@pytest.mark.parametrize("password", ["secret", "wrong"])
def test_a_wrong_password_is_told_from_a_broker_that_is_not_there(
    apache_kafka: Any, topic_name: str, password: str
) -> None:
    apache_kafka.create_topics({topic_name: 1})
    named = {
        "bootstrap_servers": [apache_kafka.sasl_servers],
        "bootstrap_timeout_ms": 1500,
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "PLAIN",
        "sasl_plain_username": "reader",
        "sasl_plain_password": password,
    }
    log = KafkaLog([topic_name], connection=named)
    if password == "secret":
        assert log.ends() == {(topic_name, 0): 0}
        log.close()
    else:
        with pytest.raises(NotAuthorized, match=r"Authentication failed.*; check the credentials and their rights"):
            log.ends()


@pytest.mark.kafka
@loses_connections
def test_source_and_log_outlive_the_restart_of_a_killed_broker(
    apache_kafka: Any,
    topic_name: str,
    make_source: MakeSource,
    make_log: Any,
    read_until: Callable[..., list[RawRecord]],
) -> None:
    apache_kafka.create_topics({topic_name: 1})
    log = make_log(apache_kafka, topic_name, timeout_s=1.0)

    def append(numbers: list[bytes]) -> None:
        producer = KafkaProducer(bootstrap_servers=apache_kafka.bootstrap_servers, acks="all")
        try:
            for value in numbers:
                producer.send(topic_name, value).get(30)
        finally:
            producer.close(5)

    append(values(5))
    source = make_source(apache_kafka, session_timeout_s=30.0)
    first = read_until(source, 5)
    source.commit(after(first))
    assert log.ends() == {(topic_name, 0): 5}
    apache_kafka.kill()
    with suppress(BrokerUnavailable):  # noticed sooner or later
        assert source.poll(0.5) == []
    with pytest.raises(BrokerUnavailable):
        log.ends()
    apache_kafka.start()
    append(values(5, start=5))
    assert log.ends() == {(topic_name, 0): 10}
    again = read_until(source, 5, timeout_s=60)
    assert numbers(again) == list(range(5, 10))
    source.commit(after(again))


def test_a_client_that_is_not_installed_is_an_error_that_names_the_extra(
    broker: Any, topic_name: str, make_source: MakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.create_topics({topic_name: 1})
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    pattern = r"kafka\.client: is confluent, .* pip install 'srr-stream\[confluent\]', or set kafka-python"
    with pytest.raises(LibraryMissing, match=pattern):
        make_source(broker, client=ClientName.CONFLUENT)
    with pytest.raises(LibraryMissing, match=pattern):
        KafkaSink(
            connection(broker),
            scores_topic=None,
            alerts_topic=None,
            dead_letter_topic=topic_name,
            client=ClientName.CONFLUENT,
        )
