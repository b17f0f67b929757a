"""What a poll gave, as a whole: values, times and places of all its records at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from consumers.records import RawRecord


class Run(NamedTuple):
    """Neighbouring records of one partition."""

    topic: str
    partition: int
    n: int
    """How many, at least one."""
    next_offset: int
    """The offset behind the last of them."""


class Polled(Sequence[RawRecord]):
    """Records of a source that knows, without looking at each, which runs they are.

    A source whose records are objects of its own only when one is looked at overrides all but `runs` and the length.

    Examples
    --------
    >>> from consumers.records import StoredRecord
    >>> records = [StoredRecord("t", 0, offset, 0, None, b"") for offset in (3, 4)]
    >>> runs(records)
    (Run(topic='t', partition=0, n=2, next_offset=5),)
    >>> runs(Polled(records, runs(records))) == runs(records)
    True
    """

    def __init__(self, records: Sequence[Any], runs: Iterable[Run]) -> None:
        self._records = records
        self.runs = tuple(runs)
        """In the order of the records."""

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, index: int) -> RawRecord: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[RawRecord]: ...
    def __getitem__(self, index: int | slice) -> RawRecord | Sequence[RawRecord]:
        found: RawRecord | Sequence[RawRecord] = self._records[index]
        return found

    def __iter__(self) -> Iterator[RawRecord]:
        return iter(self._records)

    def values(self) -> list[bytes | None]:
        """Return the value of every record."""
        return [record.value for record in self._records]

    def timestamps(self) -> NDArray[np.int64]:
        """Return the time of every record, ``(n,)``, ms since the epoch."""
        return np.fromiter((record.timestamp for record in self._records), dtype=np.int64, count=len(self._records))


def values(raw: Sequence[RawRecord]) -> list[bytes | None]:
    """Return the value of every record."""
    return _whole(raw).values()


def timestamps(raw: Sequence[RawRecord]) -> NDArray[np.int64]:
    """Return the time of every record, ``(n,)``, ms since the epoch."""
    return _whole(raw).timestamps()


def runs(raw: Sequence[RawRecord]) -> tuple[Run, ...]:
    """Return the runs that the records are, in their order."""
    if isinstance(raw, Polled):
        return raw.runs
    found = []
    for (topic, partition), records in groupby(raw, key=attrgetter("topic", "partition")):
        listed = list(records)
        found.append(Run(topic, partition, len(listed), listed[-1].offset + 1))
    return tuple(found)


def _whole(raw: Sequence[RawRecord]) -> Polled:
    return raw if isinstance(raw, Polled) else Polled(raw, ())
