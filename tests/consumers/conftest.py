"""What the tests of events in and out share: writing to Kafka, and reading a source until it has given enough."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from kafka import KafkaProducer

from consumers.clients import ClientName
from consumers.records import Batch, Contribution, Field, RawRecord, RecordSchema, StoredRecord, Verdicts
from consumers.sources import Source
from consumers.sources.kafka import KafkaSource

SESSION_TIMEOUT_S = 6.0


@pytest.fixture(
    params=[
        pytest.param("embedded_broker", id="embedded"),
        pytest.param("apache_kafka", id="apache", marks=pytest.mark.kafka),
    ]
)
def broker(request: pytest.FixtureRequest) -> Any:
    """Every broker in turn: what holds on one must hold on the other."""
    return request.getfixturevalue(request.param)


@pytest.fixture(
    params=[ClientName.KAFKA_PYTHON, pytest.param(ClientName.CONFLUENT, marks=pytest.mark.kafka)],
)
def client(request: pytest.FixtureRequest) -> ClientName:
    """Every client library in turn: what one promises the other must keep.

    The default suite has librdkafka in the tests of all sources; here it runs by ``make test-kafka``, for want of time.
    """
    name: ClientName = request.param
    return name


@pytest.fixture
def produce() -> Iterator[Callable[..., None]]:
    """Append values to a topic, in turn over its first partitions, and wait until the broker has them."""
    producers: dict[str, KafkaProducer] = {}

    def append(broker: Any, topic: str, values: Sequence[bytes], *, n_partitions: int = 1, **fields: Any) -> None:
        servers = broker.bootstrap_servers
        if servers not in producers:
            producers[servers] = KafkaProducer(bootstrap_servers=servers, acks="all")
        futures = [
            producers[servers].send(topic, value, partition=i % n_partitions, **fields)
            for i, value in enumerate(values)
        ]
        producers[servers].flush(30)
        for future in futures:
            future.get(30)

    yield append
    for producer in producers.values():
        producer.close(5)


def member_id(source: KafkaSource) -> str:
    """Return the name that the broker gave a member."""
    consumer: Any = source._member._consumer
    name: str = consumer.memberid() if hasattr(consumer, "memberid") else consumer.group_metadata().member_id
    return name


@pytest.fixture
def read_until() -> Callable[..., list[RawRecord]]:
    """Poll until there are `n` records, or fail."""

    def read(source: Source, n: int, *, timeout_s: float = 30.0) -> list[RawRecord]:
        found: list[RawRecord] = []
        until = time.monotonic() + timeout_s
        while len(found) < n:
            assert time.monotonic() < until, f"{len(found)} of {n} records after {timeout_s:g} s"
            found.extend(source.poll(0.2))
        return found

    return read


@pytest.fixture
def verdicts() -> Verdicts:
    """Three verdicts; the middle one is flagged and has a reason."""
    raw = [
        StoredRecord("in", 1, 41, 1_700_000_000_000, b"key-0", b'{"x": 1}'),
        StoredRecord("in", 1, 42, 1_700_000_000_001, None, b'{"x":\n 99}'),
        StoredRecord("in", 0, 7, 1_700_000_000_002, b"\xff\x00", b'{"x": 2}'),
    ]
    batch = Batch(
        RecordSchema((Field("x"),)),
        {"x": np.array([1.0, 99.0, 2.0])},
        raw,
        np.array([record.timestamp for record in raw]),
    )
    return Verdicts(
        batch,
        version=3,
        score=np.array([0.1, 9.0, 0.2]),
        p_value=np.array([0.5, 1e-4, 0.25]),
        severity=np.array([0.1, 2.0, 0.3]),
        flagged=np.array([False, True, False]),
        contributions={1: (Contribution("x", 8.5, 99.0, 1.5),)},
    )
