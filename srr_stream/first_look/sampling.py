"""The newest records of a file or a topic, to look at: read once, by nobody's group, and nothing is committed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from consumers.logs import Log
from consumers.records import RawRecord
from consumers.sources.files import FileSource
from consumers.windows import latest
from srr_stream.errors import NotEnoughRecords

N_SAMPLED = 2000
_MAX_BYTES = 128 << 20
"""Of a sample: records may be pictures."""


@dataclass(frozen=True)
class Sample:
    """Records to look at."""

    name: str
    """Of the file or the topic."""
    records: Sequence[RawRecord]
    """The newest, in the order of the log, partition by partition."""
    n_total: int
    """How many there are in all."""
    n_partitions: int = 1


def sample_file(path: Path, n: int = N_SAMPLED, *, max_bytes: int = _MAX_BYTES) -> Sample:
    """Return the last `n` records of a file, or fewer if they have more than `max_bytes` together.

    Raises
    ------
    SourceError
        If the file cannot be read.
    NotEnoughRecords
        If it has no records.
    """
    source = FileSource(path)
    newest = _Newest(n, max_bytes)
    try:
        while polled := source.poll(0.0):
            newest.add(polled)
    finally:
        source.close()
    if not newest.n_seen:
        raise NotEnoughRecords(f"{path}: holds no records; give a file that has some")
    return Sample(path.resolve().name, newest.records, newest.n_seen)


def sample_topic(log: Log, topic: str, n: int = N_SAMPLED) -> Sample:
    """Return the newest `n` records of a topic, as many from every partition, or fewer if they are large.

    Raises
    ------
    BrokerUnavailable, TopicMissing, NotAuthorized
        As the log does.
    NotEnoughRecords
        If it has no records.
    """
    ends, begins = log.ends(), log.beginnings()
    total = sum(max(0, end - begins[position]) for position, end in ends.items())
    ranges = latest(begins, {position: max(end, begins[position]) for position, end in ends.items()}, n)
    newest = [_Newest(n, _MAX_BYTES // max(1, len(ranges))) for _ in ranges]
    for here, offsets in zip(newest, ranges, strict=True):
        here.add(log.read(offsets))
    records = [record for here in newest for record in here.records]
    if not records:
        raise NotEnoughRecords(
            f"topic {topic} holds no records; send some first, or give a file of examples instead of the topic"
        )
    return Sample(topic, records, total, len(ends))


class _Newest:
    """The newest records within a number of them and of bytes."""

    def __init__(self, n: int, n_bytes: int) -> None:
        self.n_seen = 0
        self._records: deque[RawRecord] = deque()
        self._most, self._most_bytes = n, n_bytes
        self._n_bytes = 0

    @property
    def records(self) -> list[RawRecord]:
        return list(self._records)

    def add(self, records: Iterable[RawRecord]) -> None:
        for record in records:
            self.n_seen += 1
            self._records.append(record)
            self._n_bytes += len(record.value or b"")
            while len(self._records) > self._most or (self._n_bytes > self._most_bytes and len(self._records) > 1):
                self._n_bytes -= len(self._records.popleft().value or b"")
