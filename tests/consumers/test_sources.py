"""What every source promises, over all of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from consumers.clients import ClientName
from consumers.logs import MemoryLog
from consumers.polled import runs, timestamps, values
from consumers.records import Position, RawRecord
from consumers.sources import Source
from consumers.sources.files import FileSource
from consumers.sources.kafka import KafkaSource
from consumers.sources.memory import MemorySource

N = 25
VALUES = [json.dumps({"x": i}).encode() for i in range(N)]

MakeSource = Callable[[], Source]
ReadUntil = Callable[..., list[RawRecord]]


def memory(request: pytest.FixtureRequest) -> MakeSource:
    log = MemoryLog()
    for i, value in enumerate(VALUES):
        log.append("t", value, partition=i % 2)
    return lambda: MemorySource(log, max_batch=10)


def file(request: pytest.FixtureRequest) -> MakeSource:
    path: Path = request.getfixturevalue("tmp_path") / "records.ndjson"
    path.write_bytes(b"\n".join(VALUES))
    sources: list[FileSource] = []

    def make() -> Source:
        committed = sources[-1].committed if sources else None
        sources.append(FileSource(path, max_batch=10, committed=committed))
        return sources[-1]

    return make


def kafka(
    request: pytest.FixtureRequest, broker_fixture: str, session_timeout_s: float, client: ClientName
) -> MakeSource:
    broker = request.getfixturevalue(broker_fixture)
    topic = request.getfixturevalue("topic_name")
    broker.create_topics({topic: 2})
    request.getfixturevalue("produce")(broker, topic, VALUES, n_partitions=2)
    return lambda: KafkaSource(
        [topic],
        group_id=f"{topic}-group",
        connection={"bootstrap_servers": broker.bootstrap_servers},
        start="earliest",
        max_batch=10,
        session_timeout_s=session_timeout_s,
        client=client,
    )


@pytest.fixture(
    params=[
        pytest.param(memory, id="memory"),
        pytest.param(file, id="file"),
        *(
            # Joining takes half a session timeout on the embedded broker; 6 s is the least that Apache Kafka allows.
            pytest.param(
                partial(kafka, broker_fixture=f"{name}", session_timeout_s=timeout_s, client=client),
                id=f"{client}-{name}",
                marks=marks,
            )
            for client in ClientName
            for name, timeout_s, marks in (("embedded_broker", 2.0, ()), ("apache_kafka", 6.0, pytest.mark.kafka))
        ),
    ]
)
def make_source(request: pytest.FixtureRequest) -> Iterator[MakeSource]:
    """Give sources of the same records and group, one after another; all are closed at the end."""
    make: MakeSource = request.param(request)
    with ExitStack() as stack:

        def made() -> Source:
            source = make()
            stack.callback(source.close)
            return source

        yield made


def numbers(records: list[RawRecord]) -> list[int]:
    return sorted(json.loads(record.value or b"")["x"] for record in records)


def after(records: list[RawRecord]) -> dict[Position, int]:
    return {(record.topic, record.partition): record.offset + 1 for record in records}


def test_every_record_comes_once_and_in_order_within_its_partition(
    make_source: MakeSource, read_until: ReadUntil
) -> None:
    source = make_source()
    records = read_until(source, N)
    assert numbers(records) == list(range(N))
    for position in {(r.topic, r.partition) for r in records}:
        offsets = [r.offset for r in records if (r.topic, r.partition) == position]
        assert offsets == sorted(offsets)
    assert source.poll(0.1) == []


def test_a_poll_gives_no_more_than_its_limit_and_does_not_block_longer_than_asked(
    make_source: MakeSource, read_until: ReadUntil
) -> None:
    source = make_source()
    first = read_until(source, 1)
    assert len(first) <= 10
    read_until(source, N - len(first))
    started = time.monotonic()
    assert source.poll(0.3) == []
    assert time.monotonic() - started < 1.0


def test_a_poll_tells_of_which_partitions_it_is(make_source: MakeSource, read_until: ReadUntil) -> None:
    source = make_source()
    n, until = 0, time.monotonic() + 30
    while n < N and time.monotonic() < until:
        polled = source.poll(0.1)
        n += len(polled)
        listed = list(polled)
        assert values(polled) == [record.value for record in listed]
        assert timestamps(polled).tolist() == [record.timestamp for record in listed]
        assert runs(polled) == tuple(runs(listed))
    assert n == N


def test_what_was_committed_is_not_read_again_and_what_was_not_is(
    make_source: MakeSource, read_until: ReadUntil
) -> None:
    source = make_source()
    first = read_until(source, 10)
    source.commit(after(first))
    read_until(source, N - len(first))
    source.close()
    again = read_until(make_source(), N - len(first))
    assert numbers(first + again) == list(range(N))


def test_a_paused_source_gives_nothing_until_resumed_and_loses_nothing(
    make_source: MakeSource, read_until: ReadUntil
) -> None:
    source = make_source()
    first = read_until(source, 1)
    source.pause()
    assert [source.poll(0.05) for _ in range(4)] == [[]] * 4
    source.resume()
    assert numbers(first + read_until(source, N - len(first))) == list(range(N))


def test_a_source_that_is_paused_before_its_first_poll_gives_nothing(
    make_source: MakeSource, read_until: ReadUntil
) -> None:
    source = make_source()
    source.pause()
    until = time.monotonic() + 30
    while not source.assignment:
        assert time.monotonic() < until, "no partition was assigned"
        assert source.poll(0.2) == []
    assert [source.poll(0.1) for _ in range(4)] == [[]] * 4
    source.resume()
    assert numbers(read_until(source, N)) == list(range(N))


def test_lag_falls_to_nothing_as_the_records_are_read(make_source: MakeSource, read_until: ReadUntil) -> None:
    source = make_source()
    read_until(source, N)
    source.poll(0.1)
    assert sum(source.lag().values()) == 0
    assert set(source.lag()) <= set(source.assignment)


def test_closing_twice_is_fine_and_gives_the_partitions_up(make_source: MakeSource, read_until: ReadUntil) -> None:
    source = make_source()
    read_until(source, 1)
    assert source.assignment
    source.close()
    source.close()
    assert source.assignment == frozenset()


def test_records_have_all_that_a_raw_record_has(make_source: MakeSource, read_until: ReadUntil) -> None:
    record: Any = read_until(make_source(), N)[0]
    assert isinstance(record.topic, str)
    assert (type(record.partition), type(record.offset), type(record.timestamp)) == (int, int, int)
    assert isinstance(record.value, bytes)
    assert record.key is None
    assert list(record.headers) == []
