"""Is every partition read as it fills: pure state over positions, told by the reader, with a clock passed in."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from consumers.records import Position


class ProgressWatchdog:
    """Find partitions that give nothing although records wait in them.

    Standing still is only half of it: an idle partition does so too. Where one has stood still for half of the
    patience, :attr:`doubts` names it; the reader then asks for its end, and :meth:`judge` says whether it is stalled.

    Examples
    --------
    >>> now = 0.0
    >>> watchdog = ProgressWatchdog(60.0, clock=lambda: now)
    >>> watchdog.update({("t", 0): 5, ("t", 1): 7})
    >>> now = 61.0
    >>> watchdog.update({("t", 0): 5, ("t", 1): 8})
    >>> watchdog.doubts
    [('t', 0)]
    >>> watchdog.judge({("t", 0): 5}) is None
    True
    """

    def __init__(self, patience_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience_s = patience_s
        self._clock = clock
        self._moved_at: dict[Position, tuple[int | None, float]] = {}
        self._asked_at = clock()

    def update(self, positions: Mapping[Position, int | None]) -> None:
        """Take note of the next offset to read of every partition that is owned; None: not known yet."""
        now = self._clock()
        before = self._moved_at
        self._moved_at = {
            key: before[key] if key in before and before[key][0] == offset else (offset, now)
            for key, offset in positions.items()
        }

    def reset(self) -> None:
        """Forget: nothing is read on purpose."""
        self._moved_at = {}

    @property
    def doubts(self) -> list[Position]:
        """Partitions whose ends should be asked for now: those that stand still, not more often than is useful."""
        now = self._clock()
        if now - self._asked_at < self._patience_s / 4:
            return []
        return [key for key, (_, since) in self._moved_at.items() if now - since > self._patience_s / 2]

    def judge(self, ends: Mapping[Position, int]) -> str | None:
        """Say which partition is stalled, in words; None if none is.

        One that stands at its end is idle: its patience begins anew, as a record that comes now has not waited yet.
        """
        now = self._asked_at = self._clock()
        for (topic, partition), end in ends.items():
            offset, since = self._moved_at[topic, partition]
            if offset is not None and offset >= end:
                self._moved_at[topic, partition] = (offset, now)
            elif now - since > self._patience_s:
                where = "no place" if offset is None else f"offset {offset}"
                return (
                    f"{topic}-{partition} has given nothing from {where} on for {now - since:.0f} s, "
                    f"although its end is {end}"
                )
        return None
