"""Numbers and reasons as people read them, the same in every command, report and page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

_MAX_TEXT = 60
"""Characters of a value in a sentence."""
_ROUNDING = 1e-9
"""What is expected is 0, if it is smaller than this part of what was observed."""


class Reason(Protocol):
    """A field's part in a score: :class:`consumers.records.Contribution`, and whatever else has these."""

    @property
    def field(self) -> str: ...  # noqa: D102
    @property
    def observed(self) -> float | str | None: ...  # noqa: D102
    @property
    def expected(self) -> float | str | None: ...  # noqa: D102


def in_words(reason: Reason) -> str:
    """Return a reason as a sentence has it.

    Examples
    --------
    >>> from consumers.records import Contribution
    >>> in_words(Contribution("amount", 7.2, 9140.0, 35.1))
    'amount 9,140 where 35.1 was expected'
    >>> in_words(Contribution("load", 1.0, None, 0.25))
    'load is missing where 0.25 was expected'
    >>> in_words(Contribution("photo", 1.0, None, None))
    'photo looks unusual'
    """
    if reason.observed is None and reason.expected is None:
        return f"{reason.field} looks unusual"
    seen = "is missing" if reason.observed is None else value_text(reason.observed)
    if reason.expected is None:
        return f"{reason.field} {seen}"
    return f"{reason.field} {seen} where {expected_text(reason)} was expected"


def expected_text(reason: Reason) -> str:
    """Return what was expected: 0 where it differs from that only by the rounding of the arithmetic.

    Examples
    --------
    >>> from consumers.records import Contribution
    >>> [expected_text(Contribution("errors", 7.2, observed, 5.6e-17)) for observed in (0.5, 0.0)]
    ['0', '5.6e-17']
    """
    observed, expected = reason.observed, reason.expected
    is_rounding = (
        isinstance(observed, float) and isinstance(expected, float) and abs(expected) < _ROUNDING * abs(observed)
    )
    return "0" if is_rounding else value_text(expected)


def all_in_words(reasons: Sequence[Reason], *, most: int | None = None) -> str:
    """Return the first `most` reasons, greatest first, in one line; what is said where there is none."""
    return "; ".join(map(in_words, reasons[:most])) or "no reason was asked for (output.n_reasons: 0)"


def value_text(value: float | str | None) -> str:
    """Return a value of a record as a person reads it, on one line and not too long.

    Examples
    --------
    >>> [value_text(value) for value in (9140.0, 0.0213456, 1234567.8, 3e-9, "/cart", "", None)]
    ['9,140', '0.02135', '1,234,568', '3e-09', '/cart', "''", 'none']
    """
    if value is None:
        return "none"
    if isinstance(value, str):
        text = "".join(character if character.isprintable() else "\ufffd" for character in value)
        shown = text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT - 1]}…"
        return shown or "''"
    return number_text(float(value))


def number_text(value: float) -> str:
    """Return a number with four digits that count, thousands apart.

    Examples
    --------
    >>> [number_text(value) for value in (0.0, 12.0, 35.125, -1500.25, 1e15, float("inf"))]
    ['0', '12', '35.12', '-1,500', '1e+15', 'inf']
    """
    size = abs(value)
    if not math.isfinite(value) or (size != 0 and not 1e-4 <= size < 1e12):
        return f"{value:.4g}"
    if value == int(value) or size >= 1000:
        return f"{round(value):,}"
    return f"{value:.4g}"


def percent(ratio: float | None) -> str:
    """Return a share of 1 as people write it, small ones to the second place; a dash for None.

    Examples
    --------
    >>> [percent(ratio) for ratio in (0.117, 0.0042, 0.0, None)]
    ['11.7 %', '0.42 %', '0 %', '-']
    """
    if ratio is None:
        return "-"
    if ratio == 0:
        return "0 %"
    return f"{100 * ratio:.1f} %" if ratio >= 0.01 else f"{100 * ratio:.2f} %"
