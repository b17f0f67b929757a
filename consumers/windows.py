"""Which slices of the log make a window, and reading them.

The arithmetic is pure: offsets in, :class:`OffsetRange` out. A :class:`consumers.logs.Log` gives the offsets and the
records; the same ranges give the same window for as long as the log is retained.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from consumers.chunks import in_chunks
from consumers.decoding import Decoder
from consumers.logs import Log, OffsetRange
from consumers.records import Batch, Position, StoredRecord

Mode = Literal["latest", "span", "sample"]

_CHUNK = 2000
"""Records decoded together, at most."""
_CHUNK_BYTES = 32 << 20
"""Bytes of records decoded together, about."""
_BLOCK = 100
"""Records in a row of a sample: single records would cost a seek each, long runs would not spread."""


@dataclass(frozen=True)
class Window:
    """The records of a training, rows in the order of their time."""

    batch: Batch
    """Of pictures without the files: ``batch.raw`` has their places, and None for their bytes."""
    n_bad: int
    bad_reasons: Mapping[str, int]
    """Reason → how many."""
    ranges: tuple[OffsetRange, ...]


def latest(begins: Mapping[Position, int], ends: Mapping[Position, int], n: int) -> tuple[OffsetRange, ...]:
    """Return the newest `n` records: as many from every partition, and what a short one lacks from the longer ones.

    Examples
    --------
    >>> latest({("t", 0): 0, ("t", 1): 0}, {("t", 0): 10, ("t", 1): 100}, 50)
    (OffsetRange(topic='t', partition=0, start=0, stop=10), OffsetRange(topic='t', partition=1, start=60, stop=100))
    """
    shares = _share_out({position: ends[position] - begins[position] for position in ends}, n)
    return tuple(
        OffsetRange(*position, ends[position] - shares[position], ends[position])
        for position in sorted(ends)
        if shares[position] > 0
    )


def sample(
    begins: Mapping[Position, int], ends: Mapping[Position, int], n: int, rng: np.random.Generator
) -> tuple[OffsetRange, ...]:
    """Return about `n` records, at most, in blocks spread evenly: one at random in each stretch of equal length."""
    sizes = {position: ends[position] - begins[position] for position in ends}
    total = sum(sizes.values())
    if total <= n:
        return latest(begins, ends, n)
    ranges = []
    for position in sorted(sizes):
        n_here = n * sizes[position] // total
        n_blocks = max(1, n_here // _BLOCK)
        block = n_here // n_blocks
        edges = [begins[position] + i * sizes[position] // n_blocks for i in range(n_blocks + 1)]
        for low, high in pairwise(edges):
            if block > 0:
                start = int(rng.integers(low, high - block + 1))
                ranges.append(OffsetRange(*position, start, start + block))
    return tuple(ranges)


def _share_out(sizes: Mapping[Position, int], n: int) -> dict[Position, int]:
    """Give every partition the same share of `n`, no partition more than it has, none of `n` wasted.

    The smallest take what they have, what they leave goes to the others; the last records go to the first partitions.
    """
    shares: dict[Position, int] = {}
    left = n
    by_size = sorted(sizes, key=lambda position: (sizes[position], position))
    for i, position in enumerate(by_size):
        fair = -(-left // (len(by_size) - i)) if i < len(by_size) - 1 else left
        shares[position] = min(sizes[position], fair)
        left -= shares[position]
    return shares


class WindowReader:
    """Read windows from a log.

    Parameters
    ----------
    mode
        latest: the newest `max_size` records. span: the newest `max_size` records of the last `span_s` seconds.
        sample: at most `max_size` records spread over the last `span_s` seconds.
    seed
        Which blocks a sample takes; the same log and seed give the same ranges.
    clock
        Seconds since the epoch.
    """

    def __init__(
        self,
        log: Log,
        decoder: Decoder,
        *,
        mode: Mode = "latest",
        max_size: int,
        span_s: float | None = None,
        seed: int = 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if mode != "latest" and span_s is None:
            raise ValueError(f"window: mode {mode!r} needs span_s; allowed: seconds above 0")
        self._log = log
        self._decoder = decoder
        self._mode = mode
        self._max_size = max_size
        self._span_s = span_s
        self._seed = seed
        self._clock = clock

    def available(self) -> int:
        """Return how many records the log holds at most."""
        begins, ends = self._extent()
        return sum(ends.values()) - sum(begins.values())

    def end(self) -> int:
        """Return the sum of the partitions' ends: it grows by one with every record."""
        return sum(self._log.ends().values())

    def ranges(self) -> tuple[OffsetRange, ...]:
        """Return the slices that make the window now."""
        begins, ends = self._extent()
        if self._span_s is not None:
            starts = self._log.offset_at(int((self._clock() - self._span_s) * 1000))
            begins = {position: min(starts[position], end) for position, end in ends.items()}
        if self._mode == "sample":
            return sample(begins, ends, self._max_size, np.random.default_rng(self._seed))
        return latest(begins, ends, self._max_size)

    def read(self) -> Window:
        """Read the window as it is now; raises what the log raises."""
        return self.read_ranges(self.ranges())

    def read_ranges(self, ranges: Sequence[OffsetRange]) -> Window:
        """Read the window that these slices make."""
        batches: list[Batch] = []
        bad_reasons: Counter[str] = Counter()
        records = (record for offsets in ranges for record in self._log.read(offsets))
        for chunk in in_chunks(records, n_records=_CHUNK, n_bytes=_CHUNK_BYTES):
            decoded = self._decoder.decode(chunk)
            batches.append(_without_files(decoded.batch))
            bad_reasons.update(bad.reason for bad in decoded.bad)
        if not batches:
            batches = [self._decoder.decode([]).batch]
        return Window(_in_order(batches), bad_reasons.total(), bad_reasons, tuple(ranges))

    def close(self) -> None:
        """Let the log go; twice is fine."""
        self._log.close()

    def _extent(self) -> tuple[dict[Position, int], dict[Position, int]]:
        """Return where the partitions begin and end: no end without a beginning, and none before it."""
        ends = self._log.ends()
        begins = self._log.beginnings()  # asked for last: partitions are added, never taken away
        extent = {position: (begins[position], max(end, begins[position])) for position, end in ends.items()}
        return {position: begin for position, (begin, _) in extent.items()}, {p: end for p, (_, end) in extent.items()}


def _without_files(batch: Batch) -> Batch:
    """Return the batch; of pictures without the files, which would be in memory beside the pixels for nothing."""
    if batch.schema.image_field is None:
        return batch
    return replace(
        batch, raw=[StoredRecord(r.topic, r.partition, r.offset, r.timestamp, r.key, None) for r in batch.raw]
    )


def _in_order(batches: Sequence[Batch]) -> Batch:
    """Join batches, rows by time, then topic, partition and offset."""
    raw = [record for batch in batches for record in batch.raw]
    times = np.concatenate([batch.time_ms for batch in batches])
    keys = [(int(t), r.topic, r.partition, r.offset) for t, r in zip(times, raw, strict=True)]
    order = sorted(range(len(raw)), key=keys.__getitem__)
    columns = {name: _joined([batch.columns[name] for batch in batches], order) for name in batches[0].columns}
    return Batch(batches[0].schema, columns, [raw[i] for i in order], times[order])


def _joined(parts: Sequence[NDArray[Any]], order: Sequence[int]) -> NDArray[Any]:
    """Return the rows of all parts in an order, written once: a column of pictures can be gigabytes."""
    places = np.empty(len(order), dtype=np.intp)
    places[order] = np.arange(len(order))
    joined = np.empty((len(order), *parts[0].shape[1:]), dtype=parts[0].dtype)
    start = 0
    for part in parts:
        joined[places[start : start + len(part)]] = part
        start += len(part)
    return joined
