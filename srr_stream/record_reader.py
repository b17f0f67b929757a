"""Single records, read from the log again by their place: for people who look at one, never for scoring."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection

from consumers.errors import ConsumersError
from consumers.logs import Log, OffsetRange
from consumers.records import Position, RawRecord
from srr_stream.errors import NoRecord


class RecordReader:
    """Reads the records of some topics, one at a time, whoever asks.

    Parameters
    ----------
    open_log
        Called for the log when the first question comes, and again after it failed.
    topics
        Of nothing else is a record ever read.
    """

    def __init__(self, open_log: Callable[[], Log], *, topics: Collection[str]) -> None:
        self.topics = frozenset(topics)
        self._open_log = open_log
        self._log: Log | None = None
        self._ends: dict[Position, int] = {}
        self._lock = threading.Lock()

    def read(self, topic: str, partition: int, offset: int) -> RawRecord:
        """Return a record.

        Raises
        ------
        NoRecord
            If the topic is not read here, or the log does not hold the record, or no longer.
        ConsumersError
            If the log cannot be read; the next question opens it anew.
        """
        if topic not in self.topics:
            raise NoRecord(f"topic {topic!r} is not read here; there are {', '.join(sorted(self.topics))}")
        with self._lock:
            try:
                return self._read(topic, partition, offset)
            except ConsumersError:
                self._let_go()
                raise

    def close(self, timeout_s: float = -1.0) -> None:
        """Let the log go; twice is fine. Waits for a question in progress, for `timeout_s` at most if that is given."""
        if self._lock.acquire(timeout=timeout_s):
            try:
                self._let_go()
            finally:
                self._lock.release()

    def _read(self, topic: str, partition: int, offset: int) -> RawRecord:
        if self._log is None:
            self._log = self._open_log()
        if offset >= self._ends.get((topic, partition), 0):  # ends only grow: mostly, one need not ask
            self._ends = dict(self._log.ends())
        end = self._ends.get((topic, partition))
        if end is None:
            raise NoRecord(f"topic {topic} has no partition {partition}")
        if offset >= end:
            raise NoRecord(f"{topic}-{partition} ends at offset {end}; {offset} is not there")
        for record in self._log.read(OffsetRange(topic, partition, offset, offset + 1)):
            return record
        raise NoRecord(f"{topic}-{partition} has no record at offset {offset} any more; see the topic's retention")

    def _let_go(self) -> None:
        self._ends = {}
        if self._log is not None:
            self._log.close()
            self._log = None
