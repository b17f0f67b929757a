"""A record's own time, as seconds since the epoch."""

from __future__ import annotations

from datetime import UTC, datetime

MS_FROM = 1e11
"""Numbers from here on are milliseconds since the epoch: in seconds they would lie beyond the year 5000."""
YEAR_1, YEAR_10000 = -62135596800, 253402300800
"""Seconds since the epoch: what a date can express."""


def seconds(value: str | float) -> float:
    """Return seconds since the epoch; a text without a time zone is UTC.

    Raises
    ------
    ValueError, OverflowError
        If a text is not ISO 8601, or the time is before the year 1 or after 9999.

    Examples
    --------
    >>> seconds("2023-11-14T22:13:20Z"), seconds(1_700_000_000_000), seconds(1_700_000_000)
    (1700000000.0, 1700000000.0, 1700000000.0)
    """
    if isinstance(value, str):
        moment = datetime.fromisoformat(value)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    found = value / 1000 if abs(value) >= MS_FROM else float(value)
    if not YEAR_1 <= found < YEAR_10000:
        raise ValueError(found)
    return found
