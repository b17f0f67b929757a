"""What a counted share proves of the share that was counted."""

from __future__ import annotations

import math


def share(n_hits: int, n: int) -> float:
    """Return ``n_hits / n``, 0.0 of nothing."""
    return n_hits / n if n else 0.0


def least_share(n_hits: int, n: int, *, z: float) -> float:
    """Return the smallest share that goes with `n_hits` of `n`: the lower end of Wilson's interval (1927).

    Parameters
    ----------
    z
        Deviations that chance may take; the greater, the lower the answer.

    Examples
    --------
    >>> [round(least_share(n // 10, n, z=2.0), 3) for n in (10, 100, 10_000)]
    [0.017, 0.055, 0.094]
    """
    return _wilson(n_hits, n, -z) if n else 0.0


def greatest_share(n_hits: int, n: int, *, z: float) -> float:
    """Return the greatest share that goes with `n_hits` of `n`: the upper end of the same interval, 1.0 of nothing."""
    return _wilson(n_hits, n, z) if n else 1.0


def _wilson(n_hits: int, n: int, z: float) -> float:
    p, extra = n_hits / n, z * z / n
    end = (p + extra / 2 + z * math.sqrt(p * (1 - p) / n + extra / (4 * n))) / (1 + extra)
    return min(max(end, 0.0), 1.0)
