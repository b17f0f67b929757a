"""Logs: records at offsets, readable again and again, by a reader that is a member of no group."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from consumers.access import check_access
from consumers.errors import BrokerUnavailable, ConsumersError
from consumers.kafka_client import existing_partitions, make_consumer, servers, translated
from consumers.records import Position, RawRecord, StoredRecord

if TYPE_CHECKING:
    from kafka import KafkaConsumer

_AT_ONCE = 1000
"""Records unpacked together."""


@dataclass(frozen=True, order=True, slots=True)
class OffsetRange:
    """The offsets `start` ≤ offset < `stop` of a partition."""

    topic: str
    partition: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        """How many offsets; the records can be fewer where the log is compacted."""
        return self.stop - self.start


class Log(Protocol):
    """Records at offsets, readable again and again."""

    def beginnings(self) -> Mapping[Position, int]:
        """Return the first offset of every partition."""

    def ends(self) -> Mapping[Position, int]:
        """Return the offset after the last record of every partition."""

    def offset_at(self, time_ms: int) -> Mapping[Position, int]:
        """Return, for every partition, the first offset whose record is not older; its end if there is none."""

    def read(self, offsets: OffsetRange) -> Iterator[RawRecord]:
        """Yield the records of a range in their order."""

    def close(self) -> None:
        """Let go; twice is fine."""


class MemoryLog:
    """A log in memory, for tests and for use as a library.

    Examples
    --------
    >>> log = MemoryLog()
    >>> log.append("t", b"{}")
    0
    >>> log.ends()
    {('t', 0): 1}
    """

    def __init__(self) -> None:
        self._records: dict[Position, list[StoredRecord]] = defaultdict(list)
        self.committed: dict[str, dict[Position, int]] = defaultdict(dict)
        """Group → what it has committed."""

    def append(
        self,
        topic: str,
        value: bytes | None,
        *,
        partition: int = 0,
        key: bytes | None = None,
        timestamp: int = 0,
        headers: Sequence[tuple[str, bytes | None]] = (),
    ) -> int:
        """Add a record at the end of a partition and return its offset."""
        records = self._records[topic, partition]
        records.append(StoredRecord(topic, partition, len(records), timestamp, key, value, headers))
        return len(records) - 1

    def beginnings(self) -> Mapping[Position, int]:
        """Return 0 for every partition."""
        return dict.fromkeys(self._records, 0)

    def ends(self) -> Mapping[Position, int]:
        """Return the number of records of every partition."""
        return {position: len(records) for position, records in self._records.items()}

    def offset_at(self, time_ms: int) -> Mapping[Position, int]:
        """Return, for every partition, the first offset whose record is not older; its end if there is none."""
        return {
            position: next((r.offset for r in records if r.timestamp >= time_ms), len(records))
            for position, records in self._records.items()
        }

    def read(self, offsets: OffsetRange) -> Iterator[StoredRecord]:
        """Yield the records of a range in their order."""
        yield from self.slice((offsets.topic, offsets.partition), offsets.start, offsets.stop)

    def slice(self, position: Position, start: int, stop: int) -> list[StoredRecord]:
        """Return the records of a partition from `start` to before `stop`."""
        return self._records[position][start:stop]

    def close(self) -> None:
        """Do nothing: memory needs no letting go."""


class KafkaLog:
    """Topics of Kafka as a log.

    Parameters
    ----------
    connection
        kafka-python's settings of a connection: ``bootstrap_servers``, ``security_protocol``, …
    timeout_s
        A broker that gives nothing for so long is taken for lost.

    Raises
    ------
    BrokerUnavailable, TopicMissing, NotAuthorized
        From every method. The connection is made by the first one that needs it, and anew after an error.
    """

    def __init__(self, topics: Sequence[str], *, connection: Mapping[str, Any], timeout_s: float = 30.0) -> None:
        self._topics = tuple(topics)
        self._connection = dict(connection)
        self._timeout_s = timeout_s
        self._open: KafkaConsumer | None = None

    def beginnings(self) -> Mapping[Position, int]:
        """Return the first offset of every partition."""
        with self._reaching() as consumer:
            found = consumer.beginning_offsets(self._partitions(consumer), timeout_ms=self._timeout_ms)
        return {(tp.topic, tp.partition): offset for tp, offset in found.items()}

    def ends(self) -> Mapping[Position, int]:
        """Return the offset after the last record of every partition.

        Asked for twice: the list of offsets, and the high watermark that comes with the last record. Tansu's list tells
        the beginning of the last batch, which holds back up to a batch of records.
        """
        with self._reaching() as consumer:
            partitions = self._partitions(consumer)
            found = consumer.end_offsets(partitions, timeout_ms=self._timeout_ms)
            begins = consumer.beginning_offsets(partitions, timeout_ms=self._timeout_ms)
            filled = [tp for tp in partitions if found[tp] > begins[tp]]
            consumer.assign([])  # forgets the marks of the last time
            consumer.assign(filled)
            for tp in filled:
                consumer.seek(tp, found[tp] - 1)
            until = time.monotonic() + self._timeout_s
            while filled and time.monotonic() < until:
                consumer.poll(timeout_ms=100, max_records=len(filled))
                marks = {tp: consumer.highwater(tp) for tp in filled}
                filled = [tp for tp, mark in marks.items() if mark is None]
                found |= {tp: max(found[tp], mark) for tp, mark in marks.items() if mark is not None}
            if filled:
                raise BrokerUnavailable(
                    f"no answer from {self._where}: {filled} give nothing for {self._timeout_s:g} s; check the brokers"
                )
        return {(tp.topic, tp.partition): offset for tp, offset in found.items()}

    def offset_at(self, time_ms: int) -> Mapping[Position, int]:
        """Return, for every partition, the first offset whose record is not older; its end if there is none.

        Found by bisection on the records themselves: not every broker answers the question rightly, and a log is in
        the order of its timestamps where the broker sets them.
        """
        begins, ends = self.beginnings(), self.ends()
        return {position: self._bisect(position, begins[position], ends[position], time_ms) for position in ends}

    def read(self, offsets: OffsetRange) -> Iterator[RawRecord]:
        """Yield the records of a range in their order.

        Its end is recognised by position, not by counting: compaction and transactions leave offsets without records.
        """
        return self._read(offsets, at_once=_AT_ONCE)

    def close(self) -> None:
        """Let go; twice is fine."""
        if self._open is not None:
            self._open.close(autocommit=False, timeout_ms=1000)
            self._open = None

    def _read(self, offsets: OffsetRange, *, at_once: int) -> Iterator[RawRecord]:
        from kafka import TopicPartition

        partition = TopicPartition(offsets.topic, offsets.partition)
        with self._reaching() as consumer:
            consumer.assign([partition])
            consumer.seek(partition, offsets.start)
            position, heard = offsets.start, time.monotonic()
            while position < offsets.stop:
                n = min(at_once, offsets.stop - position)  # unpacking records costs more than fetching them
                polled = consumer.poll(timeout_ms=500, max_records=n).get(partition, [])
                for record in polled:
                    if record.offset < offsets.stop:
                        yield record
                reached = consumer.position(partition, timeout_ms=self._timeout_ms)
                if reached is not None and reached > position:
                    position, heard = reached, time.monotonic()
                elif time.monotonic() - heard > self._timeout_s:
                    raise BrokerUnavailable(
                        f"{self._where}: {offsets.topic}-{offsets.partition} gives nothing at offset {position} "
                        f"for {self._timeout_s:g} s; check the brokers"
                    )

    @property
    def _where(self) -> str:
        return servers(self._connection)

    @property
    def _timeout_ms(self) -> int:
        return int(self._timeout_s * 1000)

    @contextmanager
    def _reaching(self) -> Iterator[KafkaConsumer]:
        """Give the consumer; after an error the next call makes a new one."""
        try:
            with translated(self._where):
                if self._open is None:
                    check_access(self._connection, reads=self._topics, where=self._where)
                    self._open = make_consumer(
                        self._connection,
                        # What retention took meanwhile is left out; the default would leave out all that is there.
                        auto_offset_reset="earliest",
                        # A fetch at the end of a partition holds up every question behind it for so long.
                        fetch_max_wait_ms=20,
                    )
                yield self._open
        except ConsumersError:
            self.close()
            raise

    def _partitions(self, consumer: KafkaConsumer) -> list[Any]:
        return existing_partitions(consumer, self._topics, where=self._where)

    def _bisect(self, position: Position, low: int, high: int, time_ms: int) -> int:
        end = high
        while low < high:
            middle = (low + high) // 2
            record = next(self._read(OffsetRange(*position, middle, end), at_once=1), None)
            if record is None:  # nothing but gaps from here to the end
                high = middle
            elif record.timestamp < time_ms:
                low = record.offset + 1
            else:
                high = middle
        return low
