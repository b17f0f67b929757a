"""Verdicts into lists, for tests and for use as a library."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from consumers.records import BadRecord, Verdicts
from consumers.sinks import just_wait


class MemorySink:
    """Keep everything; what is flushed is in `flushed` and `flushed_bad`."""

    def __init__(self) -> None:
        self.flushed: list[Verdicts] = []
        self.flushed_bad: list[BadRecord] = []
        self._verdicts: list[Verdicts] = []
        self._bad: list[BadRecord] = []

    def write(self, verdicts: Verdicts) -> None:
        """Take the verdicts of a batch."""
        self._verdicts.append(verdicts)

    def write_bad(self, bad: Sequence[BadRecord]) -> None:
        """Take records that could not be read."""
        self._bad.extend(bad)

    def flush(self, while_waiting: Callable[[], None] = just_wait) -> None:
        """Move what was taken to what is flushed."""
        self.flushed += self._verdicts
        self.flushed_bad += self._bad
        self._verdicts, self._bad = [], []

    def close(self) -> None:
        """Forget what was not flushed."""
        self._verdicts, self._bad = [], []
