"""The tail of topics: everything once in order, on through outages and new partitions, and why it stands still."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from consumers import tail as module
from consumers.errors import BrokerUnavailable, TopicMissing
from consumers.logs import MemoryLog
from consumers.records import Position, RawRecord
from consumers.tail import TopicTail


class MemoryFeed:
    """A feed of a log in memory that fails when it is told to."""

    def __init__(self, log: MemoryLog, positions: Mapping[Position, int], failures: list[Exception]) -> None:
        if failures:
            raise failures.pop(0)
        self.ends = dict(log.ends())
        self.is_closed = False
        self._log, self._next, self._failures = log, dict(positions), failures

    def poll(self, timeout_s: float) -> Sequence[RawRecord]:
        if self._failures:
            raise self._failures.pop(0)
        found: list[RawRecord] = []
        for position, end in self._log.ends().items():
            found += self._log.slice(position, self._next.get(position, 0), end)
            self._next[position] = end
        if not found:
            threading.Event().wait(0.005)  # as a poll that nothing comes to
        return found

    def positions(self) -> Mapping[Position, int]:
        return self._next

    def close(self) -> None:
        self.is_closed = True


class Taker:
    """Takes records and says when it has enough."""

    def __init__(self, n: int) -> None:
        self.values: list[bytes | None] = []
        self.has_enough = threading.Event()
        self._n = n

    def __call__(self, records: Sequence[RawRecord]) -> None:
        assert records
        self.values += [record.value for record in records]
        if len(self.values) >= self._n:
            self.has_enough.set()


@pytest.fixture
def tails() -> Any:
    """Give what starts a tail that is stopped at the end."""
    made: list[TopicTail] = []

    def start(*arguments: Any, **options: Any) -> TopicTail:
        made.append(TopicTail(*arguments, **options))
        made[-1].start()
        return made[-1]

    yield start
    for tail in made:
        tail.stop()
        tail.stop()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("test-tail")]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again at once."""
    monkeypatch.setattr(module, "_FIRST_REST_S", 0.01)
    monkeypatch.setattr(module, "_LOOK_EVERY_S", 0.2)
    monkeypatch.setattr(module, "_MAX_METADATA_AGE_MS", 500)


def memory_tail(start: Any, log: MemoryLog, on_records: Callable[..., None], failures: list[Exception]) -> TopicTail:
    return start(
        ["t"],
        connection={},
        on_records=on_records,
        name="test-tail",
        open_feed=lambda positions: MemoryFeed(log, positions, failures),
    )


def test_what_fails_on_the_way_is_tried_again_and_nothing_comes_twice(tails: Any) -> None:
    log, taker = MemoryLog(), Taker(3)
    log.append("t", b"a")
    failures: list[Exception] = [
        TopicMissing(["t"], where="here"),
        BrokerUnavailable("gone"),
        BrokerUnavailable("gone"),
    ]
    tail = memory_tail(tails, log, taker, failures)
    assert tail.caught_up.wait(10)
    log.append("t", b"b")
    failures.append(BrokerUnavailable("gone again"))
    log.append("t", b"c")
    assert taker.has_enough.wait(10)
    assert taker.values == [b"a", b"b", b"c"]


def test_records_that_could_not_be_taken_come_again_and_the_reason_is_told(tails: Any) -> None:
    log, taken, told = MemoryLog(), Taker(2), []
    log.append("t", b"a")
    log.append("t", b"b")

    is_made = threading.Event()

    def take(records: Sequence[RawRecord]) -> None:
        assert is_made.wait(10)
        told.append(tail.problem)
        if len(told) < 3:
            raise OSError("no space left")
        taken(records)

    tail = memory_tail(tails, log, take, [])
    is_made.set()
    assert taken.has_enough.wait(10)
    assert taken.values == [b"a", b"b"]
    assert told == [None, "OSError: no space left", "OSError: no space left"]
    assert tail.caught_up.wait(10)
    wait_for(lambda: tail.problem is None)


def test_it_has_caught_up_with_the_end_that_was_there_although_more_comes(tails: Any) -> None:
    log, taker = MemoryLog(), Taker(2)
    log.append("t", b"a")

    def take(records: Sequence[RawRecord]) -> None:
        if len(taker.values) < 200:
            log.append("t", b"more")
        taker(records)

    assert memory_tail(tails, log, take, []).caught_up.wait(10)


def test_an_empty_topic_is_caught_up_with_at_once(tails: Any) -> None:
    log = MemoryLog()
    tail = memory_tail(tails, log, Taker(1), [])
    assert tail.caught_up.wait(10)
    wait_for(lambda: tail.problem is None)


def test_after_stop_nothing_is_handed_on(tails: Any) -> None:
    log, taker = MemoryLog(), Taker(1)
    tail = memory_tail(tails, log, taker, [])
    assert tail.caught_up.wait(10)
    tail.stop()
    log.append("t", b"late")
    tail.stop()
    assert taker.values == []
    TopicTail(["t"], connection={}, on_records=taker).stop()


def wait_for(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < until
        threading.Event().wait(0.02)


def test_a_topic_that_is_missing_is_a_problem_until_it_is_made(
    tails: Any, embedded_broker: Any, topic_name: str, produce: Callable[..., None]
) -> None:
    connection, taker = {"bootstrap_servers": embedded_broker.bootstrap_servers}, Taker(4)
    tail = tails([topic_name], connection=connection, on_records=taker, name="test-tail")
    wait_for(lambda: tail.problem is not None)
    assert tail.problem is not None
    assert f"there is no topic {topic_name}" in tail.problem
    assert "create it" in tail.problem
    assert not tail.caught_up.is_set()
    embedded_broker.create_topics({topic_name: 2})
    assert tail.caught_up.wait(20)
    produce(embedded_broker, topic_name, [b"a", b"b", b"c", b"d"], n_partitions=2)
    assert taker.has_enough.wait(20)
    assert sorted(taker.values) == [b"a", b"b", b"c", b"d"]
    wait_for(lambda: tail.problem is None)


def test_it_begins_at_the_last_records_of_each_partition(
    tails: Any, broker: Any, topic_name: str, produce: Callable[..., None]
) -> None:
    broker.create_topics({topic_name: 2})
    produce(broker, topic_name, [str(i).encode() for i in range(10)], n_partitions=2)
    taker, whole = Taker(4), Taker(10)
    connection = {"bootstrap_servers": broker.bootstrap_servers}
    tail = tails([topic_name], connection=connection, on_records=taker, last=2, name="test-tail")
    assert tail.caught_up.wait(20)
    assert sorted(taker.values) == [b"6", b"7", b"8", b"9"]
    assert tails([topic_name], connection=connection, on_records=whole, name="test-tail").caught_up.wait(20)
    assert len(whole.values) == 10


def test_partitions_that_are_added_are_read_from_their_beginning(
    tails: Any, embedded_broker: Any, topic_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection, taker = {"bootstrap_servers": embedded_broker.bootstrap_servers}, Taker(3)
    embedded_broker.create_topics({topic_name: 2})
    existing = module.existing_partitions
    hidden = [True]

    def seen(*arguments: Any, **options: Any) -> list[Any]:
        found = existing(*arguments, **options)
        return found[:1] if hidden[0] else found

    monkeypatch.setattr(module, "existing_partitions", seen)  # this broker adds none
    monkeypatch.setattr("consumers.logs.existing_partitions", seen)
    tail = tails([topic_name], connection=connection, on_records=taker, last=1, name="test-tail")
    assert tail.caught_up.wait(20)
    from kafka import KafkaProducer

    producer = KafkaProducer(**connection)
    for value in (b"a", b"b", b"c"):
        producer.send(topic_name, value, partition=1).get(10)
    producer.close(5)
    hidden[0] = False
    assert taker.has_enough.wait(20)
    assert taker.values == [b"a", b"b", b"c"]


def test_a_broker_that_is_gone_is_a_problem(tails: Any, topic_name: str) -> None:
    from srr_stream.broker import EmbeddedBroker

    with EmbeddedBroker() as broker:
        broker.create_topics({topic_name: 1})
        connection = {"bootstrap_servers": broker.bootstrap_servers, "bootstrap_timeout_ms": 500}
        tail = tails([topic_name], connection=connection, on_records=Taker(1), name="test-tail")
        assert tail.caught_up.wait(20)
    wait_for(lambda: tail.problem is not None)
    assert "no answer from" in str(tail.problem)
