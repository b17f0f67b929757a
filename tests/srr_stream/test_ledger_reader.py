"""What the reader of the ledger makes of batches, and of a broker that falls silent."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import pytest
from kafka import KafkaProducer
from kafka.record import MemoryRecords
from kafka.record.memory_records import MemoryRecordsBuilder

from consumers.errors import BrokerUnavailable
from srr_stream.broker import EmbeddedBroker
from srr_stream.ledger import Fate
from srr_stream.ledger.reader import Batches, LogReader

_ATTRIBUTES = struct.calcsize(">qiibI")
_CONTROL = 0x20
_ABORT, _COMMIT = 0, 1


def batch(
    offset: int, n: int = 1, *, producer: int | None = None, key: bytes | None = None, skip: int = 0
) -> bytearray:
    """Return a batch as it lies in a log: in a transaction of a producer, or in none; `skip` offsets are left out."""
    whose = {} if producer is None else {"transactional": True, "producer_id": producer, "producer_epoch": 0}
    builder = MemoryRecordsBuilder(2, 0, 1 << 20, base_sequence=-1 if producer is None else 0, **whose)
    builder.append(0, key, b"x", [])
    builder.skip(skip)
    for _ in range(n - 1):
        builder.append(0, key, b"x", [])
    builder.close()
    content = bytearray(builder.buffer())
    content[:8] = struct.pack(">q", offset)
    return content


def marker(offset: int, producer: int, what: int) -> bytearray:
    content = batch(offset, producer=producer, key=struct.pack(">hh", 0, what))
    (attributes,) = struct.unpack_from(">h", content, _ATTRIBUTES)
    struct.pack_into(">h", content, _ATTRIBUTES, attributes | _CONTROL)
    return content


def noted(*batches: bytearray, begin: int = 0) -> Batches:
    found = Batches(begin)
    found.note(b"".join(map(bytes, batches)))
    return found


def fates(found: Batches, offsets: Sequence[int], stable: int | None = None) -> list[int]:
    return found.fates(np.array(offsets, dtype=np.int64), stable).tolist()


def test_the_batches_of_these_tests_are_what_a_broker_sends() -> None:
    first, second = MemoryRecords(bytes(batch(3, 2, producer=7)) + bytes(marker(5, 7, _ABORT)))
    assert (first.base_offset, first.last_offset, first.is_transactional, first.producer_id) == (3, 4, True, 7)
    assert (second.is_control_batch, [record.abort for record in second]) == (True, [True])


def test_a_marker_decides_the_open_batches_of_its_producer_alone() -> None:
    found = noted(
        batch(0, 2, producer=1),
        batch(2, 1, producer=2),
        marker(3, 1, _ABORT),
        batch(4, 1, producer=1),
        marker(5, 2, _COMMIT),
        batch(6),
    )
    assert fates(found, [0, 1, 2, 4, 6]) == [Fate.ABORTED, Fate.ABORTED, Fate.COMMITTED, Fate.OPEN, Fate.COMMITTED]
    assert found.markers.tolist() == [3, 5]


def test_what_lies_behind_the_stable_end_is_open_unless_it_is_aborted() -> None:
    found = noted(batch(0, producer=1), batch(1, producer=2), marker(2, 1, _ABORT), batch(3))
    assert fates(found, [0, 1, 3], stable=0) == [Fate.ABORTED, Fate.OPEN, Fate.OPEN]


def test_a_transaction_before_the_stable_end_whose_marker_is_gone_was_committed() -> None:
    assert fates(noted(batch(0, producer=1), batch(2)), [0, 2], stable=3) == [Fate.COMMITTED, Fate.COMMITTED]


def test_a_batch_that_is_fetched_twice_is_noted_once() -> None:
    found = noted(batch(0, producer=1), marker(1, 1, _COMMIT), batch(0, producer=1))
    assert fates(found, [0]) == [Fate.COMMITTED]
    assert not found.has_gaps


@pytest.mark.parametrize(
    ("batches", "has_gaps"),
    [
        ([batch(0, 3), batch(3)], False),
        ([batch(0, 3), batch(4)], True),
        ([batch(0, 2, skip=1)], True),
        ([batch(2)], True),
    ],
    ids=["none", "between batches", "within a batch", "at the beginning"],
)
def test_what_compaction_took_shows_as_gaps(batches: list[bytearray], has_gaps: bool) -> None:
    assert noted(*batches).has_gaps is has_gaps


def test_a_beginning_within_a_batch_is_no_gap() -> None:
    assert not noted(batch(0, 5), begin=3).has_gaps


def test_a_broker_that_never_gives_what_it_promised_is_told_with_the_place(
    embedded_broker: EmbeddedBroker, topic_name: str
) -> None:
    embedded_broker.create_topics({topic_name: 1})
    producer = KafkaProducer(bootstrap_servers=embedded_broker.bootstrap_servers)
    producer.send(topic_name, b"x").get(30)
    producer.close(5)
    with LogReader({"bootstrap_servers": [embedded_broker.bootstrap_servers]}, timeout_s=1.0) as reader:
        (partition,) = reader.partitions([topic_name])
        reading = reader.read(partition)
        next(reading)
        reader.end += 1
        with pytest.raises(BrokerUnavailable, match=f"{topic_name}-0 gives nothing at offset 1 .* check the brokers"):
            list(reading)
