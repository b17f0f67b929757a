"""What a poll gave, as a whole: values, times and places of all its records at once.

A source that knows them without looking at each record says so; of any other sequence they are read one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple, Protocol, runtime_checkable

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


@runtime_checkable
class Columnar(Protocol):
    """A sequence of records that has them in columns already."""

    def values(self) -> list[bytes | None]:
        """Return the value of every record."""

    def timestamps(self) -> NDArray[np.int64]:
        """Return the time of every record, ``(n,)``, ms since the epoch."""

    def runs(self) -> Sequence[Run]:
        """Return the runs that the records are, in their order."""


class Polled(list[RawRecord]):
    """Records with the runs that they are.

    Examples
    --------
    >>> from consumers.records import StoredRecord
    >>> records = [StoredRecord("t", 0, offset, 0, None, b"") for offset in (3, 4)]
    >>> runs(records)
    (Run(topic='t', partition=0, n=2, next_offset=5),)
    >>> Polled(records, runs(records)).runs() == runs(records)
    True
    """

    def __init__(self, records: Iterable[RawRecord] = (), runs: Sequence[Run] = ()) -> None:
        super().__init__(records)
        self._runs = tuple(runs)

    def values(self) -> list[bytes | None]:
        """Return the value of every record."""
        return [record.value for record in self]

    def timestamps(self) -> NDArray[np.int64]:
        """Return the time of every record, ``(n,)``, ms since the epoch."""
        return np.fromiter((record.timestamp for record in self), dtype=np.int64, count=len(self))

    def runs(self) -> tuple[Run, ...]:
        """Return the runs that the records are, in their order."""
        return self._runs


def values(raw: Sequence[RawRecord]) -> list[bytes | None]:
    """Return the value of every record."""
    return raw.values() if isinstance(raw, Columnar) else [record.value for record in raw]


def timestamps(raw: Sequence[RawRecord]) -> NDArray[np.int64]:
    """Return the time of every record, ``(n,)``, ms since the epoch."""
    if isinstance(raw, Columnar):
        return raw.timestamps()
    return np.fromiter((record.timestamp for record in raw), dtype=np.int64, count=len(raw))


def runs(raw: Sequence[RawRecord]) -> Sequence[Run]:
    """Return the runs that the records are, in their order."""
    if isinstance(raw, Columnar):
        return raw.runs()
    found = []
    for (topic, partition), records in groupby(raw, key=attrgetter("topic", "partition")):
        listed = list(records)
        found.append(Run(topic, partition, len(listed), listed[-1].offset + 1))
    return tuple(found)
