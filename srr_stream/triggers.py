"""When a training is due: a clock, a count of new records, drift of what the scorer sees.

Each trigger is told something with ``update`` and says in ``reason``, in words, why a training is due; None: it is not.
A person asks for one through the registry (:meth:`srr_stream.registry.Registry.request_training`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

_BLOCKS_PER_LOOK = 4
"""ADWIN compares halves of its window only so often: every 1,024 records with the default block."""


class Trigger(Protocol):
    """Asks for a training."""

    @property
    def reason(self) -> str | None:
        """Why a training is due; None if it is not."""

    def reset(self) -> None:
        """Start anew, after a training."""


class ClockTrigger:
    """Due when `every_s` seconds have passed since the last reset.

    Examples
    --------
    >>> now = 0.0
    >>> trigger = ClockTrigger(60, clock=lambda: now)
    >>> trigger.reason is None
    True
    >>> now = 61.0
    >>> trigger.reason
    '60 s since the last training'
    """

    def __init__(self, every_s: float, *, clock: Callable[[], float]) -> None:
        self._every_s = every_s
        self._clock = clock
        self._since = clock()

    def follow(self, former: ClockTrigger) -> None:
        """Count from where another one did, in whose place this one is put."""
        self._since = former._since

    @property
    def reason(self) -> str | None:
        """Why a training is due."""
        is_due = self._clock() - self._since >= self._every_s
        return f"{self._every_s:g} s since the last training" if is_due else None

    def reset(self) -> None:
        """Count from now."""
        self._since = self._clock()


class CountTrigger:
    """Due when the log has grown by `every_records` since the last reset."""

    def __init__(self, every_records: int) -> None:
        self._every_records = every_records
        self._from: int | None = None
        self._now: int | None = None

    def follow(self, former: CountTrigger) -> None:
        """Count from where another one did, in whose place this one is put."""
        self._from, self._now = former._from, former._now

    def update(self, end: int) -> None:
        """Note where the log ends: the sum of the partitions' end offsets."""
        self._now = end
        if self._from is None:
            self._from = end

    @property
    def reason(self) -> str | None:
        """Why a training is due."""
        if self._now is None or self._from is None:
            return None
        n_new = self._now - self._from
        return f"{n_new} records since the last training" if n_new >= self._every_records else None

    def reset(self) -> None:
        """Count from the end that was noted last."""
        self._from = self._now


class DriftTrigger:
    """Due when the flagged rate or the mean severity has drifted, by ADWIN (Bifet and Gavaldà 2007).

    Records are taken in blocks of `block_size`, in their order, so that the batches in which they arrive do not matter;
    a severity counts as at most `max_severity`, so that one wild record is no drift.

    ADWIN is given the mean of a block times √block_size, which spreads as single records do. Its bound has a term for
    values that fill 0 to 1; bare means do not, and a flagged rate that rose from 0.005 to 0.05 was never seen.

    Parameters
    ----------
    block_size
        Larger: cheaper, and calmer where anomalies come in bursts; a drift is seen later.
    delta
        ADWIN's confidence: the smaller, the fewer false alarms and the later a drift is seen.
    """

    def __init__(self, *, block_size: int = 256, delta: float = 0.002, max_severity: float = 3.0) -> None:
        self._block_size = block_size
        self._scale = math.sqrt(block_size)
        self._delta = delta
        self._max_severity = max_severity
        self.reset()

    def reset(self) -> None:
        """Forget everything: the next model has its own rates."""
        from river.drift import ADWIN  # river takes a second to import, and only a running scorer needs it

        self._detectors = {
            name: ADWIN(delta=self._delta, clock=_BLOCKS_PER_LOOK)  # type: ignore[no-untyped-call]  # river: no types
            for name in ("flagged_rate", "mean_severity")
        }
        self._pending = np.empty((0, 2))
        self._reason: str | None = None

    def update(self, flagged: NDArray[np.bool_], severity: NDArray[np.float64]) -> None:
        """Take the verdicts of a batch: `flagged` ``(n,)`` bool and `severity` ``(n,)``."""
        rows = np.column_stack([flagged.astype(np.float64), np.minimum(severity, self._max_severity)])
        rows = np.concatenate([self._pending, rows])
        n_blocks = len(rows) // self._block_size
        self._pending = rows[n_blocks * self._block_size :]
        blocks = rows[: n_blocks * self._block_size].reshape(n_blocks, self._block_size, 2).mean(axis=1)
        for block in blocks:
            before = self.statistics
            for (name, detector), mean in zip(self._detectors.items(), block, strict=True):
                detector.update(float(mean) * self._scale)  # type: ignore[no-untyped-call]
                if detector.drift_detected and self._reason is None:
                    now = self.statistics[name]
                    self._reason = f"{name.replace('_', ' ')} drifted from {before[name]:.3g} to {now:.3g}"

    @property
    def reason(self) -> str | None:
        """Why a training is due."""
        return self._reason

    @property
    def statistics(self) -> dict[str, float]:
        """The mean that each detector holds at the moment."""
        return {name: float(detector.estimation) / self._scale for name, detector in self._detectors.items()}
