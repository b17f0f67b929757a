"""What was scored in the last hours, in buckets of ten seconds: a ring in the scorer's memory, for the page's plot."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, replace

BUCKET_S = 10.0
N_BUCKETS = 2160
"""Six hours."""
_RATE_S = 60.0


@dataclass(frozen=True)
class Bucket:
    """Records that were scored within :data:`BUCKET_S`."""

    at: float
    """Beginning, seconds since 1970, a multiple of the bucket's length."""
    n: int
    n_flagged: int
    max_severity: float
    version: int
    """Of the last record."""


class History:
    """Buckets of what was scored, the newest :data:`N_BUCKETS`; and when which model began. Any thread may ask.

    Examples
    --------
    >>> history = History()
    >>> history.add(1003.0, n=50, n_flagged=1, max_severity=1.4, version=3)
    >>> history.add(1009.0, n=50, n_flagged=0, max_severity=0.2, version=3)
    >>> history.buckets()
    (Bucket(at=1000.0, n=100, n_flagged=1, max_severity=1.4, version=3),)
    >>> history.swaps()
    ((1003.0, 3),)
    """

    def __init__(self) -> None:
        self._buckets: deque[Bucket] = deque(maxlen=N_BUCKETS)
        self._swaps: deque[tuple[float, int]] = deque(maxlen=N_BUCKETS)
        self._lock = threading.Lock()

    def add(self, now: float, *, n: int, n_flagged: int, max_severity: float, version: int) -> None:
        """Count a batch of n ≥ 1 records that was scored at `now`."""
        at = now // BUCKET_S * BUCKET_S
        with self._lock:
            if not self._swaps or self._swaps[-1][1] != version:
                self._swaps.append((now, version))
            last = self._buckets[-1] if self._buckets else None
            if last is None or at > last.at:
                self._buckets.append(Bucket(at, n, n_flagged, max_severity, version))
            else:  # a clock that was set back goes on in the bucket that there is
                self._buckets[-1] = replace(
                    last,
                    n=last.n + n,
                    n_flagged=last.n_flagged + n_flagged,
                    max_severity=max(last.max_severity, max_severity),
                    version=version,
                )

    def buckets(self) -> tuple[Bucket, ...]:
        """Return the buckets in which anything was scored, oldest first."""
        with self._lock:
            return tuple(self._buckets)

    def swaps(self) -> tuple[tuple[float, int], ...]:
        """Return when each model scored its first batch, oldest first."""
        with self._lock:
            return tuple(self._swaps)

    def records_per_s(self, now: float) -> float:
        """Return the mean of about the last minute."""
        since = now // BUCKET_S * BUCKET_S - _RATE_S
        with self._lock:
            n = sum(bucket.n for bucket in self._buckets if bucket.at >= since)
        return n / (now - since)
