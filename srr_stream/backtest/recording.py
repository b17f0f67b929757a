"""A past stream: the records of a file or of topics in the order in which they came, and going through it again.

:class:`Recording` is the whole of it. :class:`GrowingLog` is the log as it was when the first n records had come, and
:class:`GrowingSource` gives them to a scorer: neither ever shows a record of the time after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from consumers.chunks import in_chunks
from consumers.decoding import Decoder
from consumers.logs import Log, OffsetRange
from consumers.records import Position, RawRecord, RecordSchema, StoredRecord
from consumers.windows import latest
from srr_stream.errors import NotEnoughRecords

SUPPOSED_RATE = 100.0
"""Records a second where the records have no time, and nobody says more."""
_CHUNK = 2000
_CHUNK_BYTES = 32 << 20


@dataclass(frozen=True)
class Recording:
    """Records in the order in which they came, with the time of each."""

    name: str
    records: Sequence[StoredRecord]
    time_ms: NDArray[np.int64]
    """``(n,)``, since the epoch: the record's own (``record.time_field``), else the log's, else as supposed."""
    supposed_rate: float | None = None
    """Records a second, where nobody knows their time; None: their times are real."""

    def __len__(self) -> int:
        return len(self.records)

    def between(self, since_ms: int | None, until_ms: int | None) -> Recording:
        """Return the part at or after `since_ms` and before `until_ms`."""
        is_in = np.ones(len(self), dtype=np.bool_)
        if since_ms is not None:
            is_in &= self.time_ms >= since_ms
        if until_ms is not None:
            is_in &= self.time_ms < until_ms
        rows = np.flatnonzero(is_in)
        records = [self.records[row] for row in rows.tolist()]
        return Recording(self.name, records, self.time_ms[rows], self.supposed_rate)

    def first(self, n: int) -> Recording:
        """Return the first `n` records."""
        return Recording(self.name, self.records[:n], self.time_ms[:n], self.supposed_rate)

    def newest(self, n: int) -> Recording:
        """Return the last `n` records."""
        start = max(0, len(self) - n)
        return Recording(self.name, self.records[start:], self.time_ms[start:], self.supposed_rate)


def record_file(path: Path, decoder: Decoder, schema: RecordSchema, *, rate: float | None = None) -> Recording:
    """Return the records of a file.

    Parameters
    ----------
    rate
        Records a second to suppose; None: their own times, or :data:`SUPPOSED_RATE` where they have none: of a file
        there is no other time than ``record.time_field``.

    Raises
    ------
    SourceError
        If the file cannot be read.
    """
    from consumers.sources.files import FileSource

    source = FileSource(path, max_batch=_CHUNK)
    records: list[StoredRecord] = []
    try:
        while polled := source.poll(0.0):
            records += polled
    finally:
        source.close()
    if rate is None and schema.time_field is not None:
        return Recording(path.name, records, own_times(records, decoder))
    rate = rate or SUPPOSED_RATE
    start = records[0].timestamp if records else 0
    times = start + np.round(np.arange(len(records)) * (1000 / rate)).astype(np.int64)
    return Recording(path.name, records, times, rate)


def record_topics(
    log: Log,
    decoder: Decoder,
    schema: RecordSchema,
    *,
    name: str,
    since_ms: int | None = None,
    until_ms: int | None = None,
    last: int | None = None,
    on_read: Callable[[int, int], None] = lambda n, n_all: None,
) -> Recording:
    """Return what topics hold now, or a part of it, partitions merged by the log's time.

    Parameters
    ----------
    since_ms, until_ms
        By the log's timestamps.
    last
        The newest so many of that, as many from every partition.
    on_read
        Told how many records are read, and of how many.

    Raises
    ------
    ConsumersError
        What the log raises.
    """
    ends = dict(log.ends())
    begins = {position: min(begin, ends.get(position, begin)) for position, begin in log.beginnings().items()}
    begins = {position: begins[position] for position in ends}
    if since_ms is not None:
        begins = {**begins, **{p: min(max(begins[p], at), ends[p]) for p, at in log.offset_at(since_ms).items()}}
    if until_ms is not None:
        ends = {**ends, **{p: max(min(ends[p], at), begins[p]) for p, at in log.offset_at(until_ms).items()}}
    n_all = sum(ends.values()) - sum(begins.values())
    ranges = latest(begins, ends, n_all if last is None else last)
    n_all = sum(each.size for each in ranges)
    records: list[StoredRecord] = []
    for offsets in ranges:
        for record in log.read(offsets):
            records.append(stored(record))
            if len(records) % _CHUNK == 0:
                on_read(len(records), n_all)
    on_read(len(records), n_all)
    records = [records[row] for row in _merged(records).tolist()]
    if schema.time_field is not None:
        return Recording(name, records, own_times(records, decoder))
    return Recording(name, records, np.array([record.timestamp for record in records], dtype=np.int64))


def stored(record: RawRecord) -> StoredRecord:
    """Return a record of Kafka's client as one of ours, which holds nothing else."""
    return StoredRecord(
        record.topic,
        record.partition,
        record.offset,
        record.timestamp,
        record.key,
        record.value,
        tuple(record.headers),
    )


def _merged(records: Sequence[StoredRecord]) -> NDArray[np.intp]:
    """Return the order of the log's time over all partitions; within a partition that of the offsets stays."""
    places = {position: i for i, position in enumerate(sorted({(r.topic, r.partition) for r in records}))}
    place = np.array([places[r.topic, r.partition] for r in records], dtype=np.int64)
    time = np.array([r.timestamp for r in records], dtype=np.int64)
    for i in places.values():
        mine = place == i
        time[mine] = np.maximum.accumulate(time[mine])  # senders may set times, and offsets come first
    return np.lexsort((np.arange(len(records)), place, time))


def own_times(records: Sequence[StoredRecord], decoder: Decoder) -> NDArray[np.int64]:
    """Return the records' own times in ms; the log's for a record that has none, or that is bad."""
    times = []
    for chunk in in_chunks(iter(records), n_records=_CHUNK, n_bytes=_CHUNK_BYTES):
        batch = decoder.decode(chunk).batch
        known = {id(raw): time for raw, time in zip(batch.raw, batch.time_ms.tolist(), strict=True)}
        times += [known.get(id(record), record.timestamp) for record in chunk]
    return np.array(times, dtype=np.int64)


class GrowingLog:
    """The log of a recording as it was when its first :attr:`n` records had come."""

    def __init__(self, recording: Recording) -> None:
        if not len(recording):
            raise NotEnoughRecords(f"{recording.name}: there is no record; there must be one")
        self.n = 0
        self._recording = recording
        rows: dict[Position, list[int]] = {}
        for row, record in enumerate(recording.records):
            rows.setdefault((record.topic, record.partition), []).append(row)
        self._rows = {position: np.array(mine, dtype=np.int64) for position, mine in rows.items()}
        self._offsets = {
            position: np.array([recording.records[row].offset for row in mine], dtype=np.int64)
            for position, mine in rows.items()
        }
        self._times = {p: np.maximum.accumulate(recording.time_ms[mine]) for p, mine in self._rows.items()}

    def grow(self, n: int) -> None:
        """Let the first `n` records have come; never fewer than before."""
        self.n = max(self.n, min(n, len(self._recording)))

    def beginnings(self) -> Mapping[Position, int]:
        """Return the first offset of every partition."""
        return {position: int(offsets[0]) for position, offsets in self._offsets.items()}

    def ends(self) -> Mapping[Position, int]:
        """Return the offset after the last record that has come, of every partition."""
        return {position: self._end(position) for position in self._offsets}

    def offset_at(self, time_ms: int) -> Mapping[Position, int]:
        """Return, for every partition, the first offset whose record is not older; its end if there is none."""
        found = {}
        for position, offsets in self._offsets.items():
            n_here = self._n_here(position)
            at = int(np.searchsorted(self._times[position][:n_here], time_ms, side="left"))
            found[position] = int(offsets[at]) if at < n_here else self._end(position)
        return found

    def read(self, offsets: OffsetRange) -> Iterator[StoredRecord]:
        """Yield the records of a range in their order, as far as they have come."""
        position = (offsets.topic, offsets.partition)
        there = self._offsets[position][: self._n_here(position)]
        start, stop = np.searchsorted(there, [offsets.start, offsets.stop], side="left").tolist()
        for row in self._rows[position][start:stop].tolist():
            yield self._recording.records[row]

    def close(self) -> None:
        """Do nothing: memory needs no letting go."""

    def _n_here(self, position: Position) -> int:
        return int(np.searchsorted(self._rows[position], self.n, side="left"))

    def _end(self, position: Position) -> int:
        offsets, n_here = self._offsets[position], self._n_here(position)
        return int(offsets[n_here - 1]) + 1 if n_here else int(offsets[0])


class GrowingSource:
    """Gives a scorer the records of a growing log, in the order in which they came."""

    def __init__(self, recording: Recording, log: GrowingLog) -> None:
        self.at = 0
        """How many records were given."""
        self._recording = recording
        self._log = log
        self._is_paused = False
        self._is_closed = False

    def poll(self, timeout_s: float, max_records: int | None = None) -> Sequence[RawRecord]:
        """Return the next records at once, none if no more have come."""
        if self._is_paused or self._is_closed:
            return []
        start = self.at
        self.at = self._log.n if max_records is None else min(self._log.n, start + max_records)
        return self._recording.records[start : self.at]

    def stay(self) -> None:
        """Do nothing: there is no group."""

    def commit(self, positions: Mapping[Position, int]) -> None:
        """Do nothing: a recording is gone through once."""

    def pause(self) -> None:
        """Give nothing from now on."""
        self._is_paused = True

    def resume(self) -> None:
        """Give records again."""
        self._is_paused = False

    def close(self) -> None:
        """Give nothing any more; twice is fine."""
        self._is_closed = True

    @property
    def assignment(self) -> frozenset[Position]:
        """All partitions, until closed."""
        return frozenset() if self._is_closed else frozenset(self._log.beginnings())

    def lag(self) -> Mapping[Position, int]:
        """Return nothing: whoever lets the log grow knows."""
        return {}
