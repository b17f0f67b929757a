"""How many records make a batch: so many as are judged in a given time."""

from __future__ import annotations

_FIRST = 64
_GROWTH = 2


class Pace:
    """The size of the next batch, from how long the last ones took.

    It grows slowly, by a factor for each full batch, and shrinks at once: the costliest pictures take a thousand times
    as long as the cheapest records, and nobody knows which come next.

    Parameters
    ----------
    most
        Records; never more.
    max_delay_s
        What judging a batch may take; a single record may take longer.

    Examples
    --------
    >>> pace = Pace(5000, 1.0)
    >>> pace.update(64, 0.001)
    >>> pace.n_records
    128
    >>> pace.update(128, 64.0)
    >>> pace.n_records
    2
    """

    def __init__(self, most: int, max_delay_s: float = 1.0) -> None:
        self._most = most
        self._max_delay_s = max_delay_s
        self.n_records = min(_FIRST, most)

    def update(self, n_records: int, seconds: float) -> None:
        """Take note that `n_records`, at least one, were judged in so many seconds."""
        is_cheap = self._most * seconds <= n_records * self._max_delay_s
        affordable = self._most if is_cheap else int(n_records * self._max_delay_s / seconds)
        at_most = self.n_records * (_GROWTH if n_records >= self.n_records else 1)
        self.n_records = max(1, min(affordable, at_most, self._most))
