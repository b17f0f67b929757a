"""Records out of a :class:`consumers.logs.MemoryLog`: for tests, and for the library without a broker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from consumers.logs import MemoryLog
from consumers.records import Position, StoredRecord


class MemorySource:
    """Read a memory log as a group of one.

    Parameters
    ----------
    group
        A source with the group of a former one goes on where that one committed.
    """

    def __init__(self, log: MemoryLog, *, group: str = "group", max_batch: int = 500) -> None:
        self._log = log
        self._group = group
        self._max_batch = max_batch
        self._positions = dict(log.committed[group])
        self._is_paused = False
        self._is_closed = False

    def poll(self, timeout_s: float, max_records: int | None = None) -> Sequence[StoredRecord]:
        """Return the next records at once: nothing in memory is worth waiting for."""
        at_most = self._max_batch if max_records is None else min(max_records, self._max_batch)
        if self._is_paused or self._is_closed:
            return []
        polled: list[StoredRecord] = []
        for position, end in sorted(self._log.ends().items()):
            start = self._positions.get(position, 0)
            stop = min(end, start + at_most - len(polled))
            polled.extend(self._log.slice(position, start, stop))
            self._positions[position] = stop
        return polled

    def stay(self) -> None:
        """Do nothing: a group of one waits for its member."""

    def commit(self, positions: Mapping[Position, int]) -> None:
        """Remember the positions in the log, for the group."""
        self._log.committed[self._group].update(positions)

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
        return frozenset() if self._is_closed else frozenset(self._log.ends())

    def lag(self) -> Mapping[Position, int]:
        """Return how many records of each partition are not read yet."""
        return {position: end - self._positions.get(position, 0) for position, end in self._log.ends().items()}
