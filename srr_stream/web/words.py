"""Numbers, times and values as the page's templates show them; pure functions. What reports say too is in `wording`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from markupsafe import Markup, escape

from srr_stream.web.views import Flagged, Reason
from srr_stream.wording import in_words, number_text, percent, value_text

_HEATS = (2.0, 4.0)
"""Severities from which a record is drawn in the second and in the third colour."""
_FULL_SCALE = 8.0
"""Severity of a full bar."""
_N_ALSO = 2
_LEAST_ALSO = 0.05
"""Part of the first field's contribution below which another field is not worth a word."""
_MAX_JSON = 200
"""Characters of a nested value in a table."""


def count(n: float) -> str:
    """Return a whole number, thousands separated.

    Examples
    --------
    >>> count(61850)
    '61,850'
    """
    return f"{n:,.0f}"


def rate(x: float) -> str:
    """Return a small share as it is written in the settings.

    Examples
    --------
    >>> rate(0.005), rate(0.00012345), rate(3.2e-9)
    ('0.005', '0.000123', '3.2e-09')
    """
    return f"{x:.3g}"


def severity(x: float) -> str:
    """Return a severity: one digit behind the point.

    Examples
    --------
    >>> severity(2.345), severity(float("inf"))
    ('2.3', 'inf')
    """
    return f"{x:.1f}" if math.isfinite(x) else number_text(x)


def heat(x: float) -> int:
    """Return the colour of a severity, 1 to 3."""
    return 1 + sum(x >= least for least in _HEATS)


def share_of_scale(x: float) -> float:
    """Return the length of a severity's bar, 0 to 100."""
    if math.isnan(x):
        return 0.0
    return round(100 * min(1.0, max(0.0, x / _FULL_SCALE)), 1)


def value(x: Any) -> str:
    """Return a value of a record, of whatever kind JSON has.

    Examples
    --------
    >>> value(9140.0), value("tcp"), value(None), value(True), value([1, 2])
    ('9,140', 'tcp', 'missing', 'true', '[1, 2]')
    """
    if x is None:
        return "missing"
    if isinstance(x, bool):
        return "true" if x else "false"
    if isinstance(x, int) and abs(x) > 2**53:
        return shortened(f"{x:,}", _MAX_JSON)
    if isinstance(x, int | float | str):
        return value_text(x)
    return shortened(json.dumps(x, ensure_ascii=False, default=str), _MAX_JSON)


def shortened(text: str, most: int) -> str:
    """Return a text, its middle left out where it is longer than `most` characters.

    Examples
    --------
    >>> shortened("0123456789", 7)
    '0123…89'
    """
    if len(text) <= most:
        return text
    tail = most // 3
    return f"{text[: most - 1 - tail]}…{text[-tail:]}"


def size(n_bytes: float) -> str:
    """Return a size.

    Examples
    --------
    >>> size(812), size(48_300), size(3_200_000)
    ('812 B', '48 kB', '3.2 MB')
    """
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= factor:
            return f"{n_bytes / factor:.1f} {unit}"
    return f"{n_bytes / 1e3:.0f} kB" if n_bytes >= 1e3 else f"{n_bytes:.0f} B"


def moment(time: datetime) -> str:
    """Return a moment in UTC, to the second."""
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def moment_short(time: datetime) -> str:
    """Return a moment in UTC without its year.

    Examples
    --------
    >>> moment_short(datetime(2025, 11, 6, 14, 3, 12, tzinfo=UTC))
    '6 Nov 14:03:12'
    """
    utc = time.astimezone(UTC)
    return f"{utc.day} {utc:%b %H:%M:%S}"


def moment_of(text: str) -> str:
    """Return a moment that is written in ISO 8601; what is none as it is.

    Examples
    --------
    >>> moment_of("2025-11-26T14:03:12.5+00:00"), moment_of("yesterday")
    ('2025-11-26 14:03:12', 'yesterday')
    """
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return text
    return moment(time if time.tzinfo else time.replace(tzinfo=UTC))


def in_path(text: str) -> str:
    """Return a text as one part of an address."""
    return quote(text, safe="")


def spaced(name: str) -> str:
    """Return a name of the code as words."""
    return name.replace("_", " ")


def sentence(text: str) -> str:
    """Return some words with a capital at their beginning and a full stop at their end.

    Examples
    --------
    >>> sentence("no label yet"), sentence("")
    ('No label yet.', '')
    """
    return text[:1].upper() + text[1:].rstrip(".") + "." if text else ""


def also(item: Flagged) -> str:
    """Return what else is unusual in a record, beside its headline; empty if there is nothing to speak of."""
    if item.is_picture or len(item.reasons) < 2:
        return ""
    least = _LEAST_ALSO * item.reasons[0].contribution
    others = [reason for reason in item.reasons[1 : 1 + _N_ALSO] if reason.contribution > max(least, 0.0)]
    return "; ".join(map(in_words, others))


def emphasised(headline: str, reasons: Sequence[Reason]) -> Markup:
    """Return a headline with its field, and what was seen in it, made to stand out.

    Examples
    --------
    >>> emphasised("amount 9,140 where 35 was expected", [Reason("amount", 3.0, 9140.0, 35.0)])
    Markup('<b>amount</b> <b>9,140</b> where 35 was expected')
    """
    field = reasons[0].field if reasons else None
    if field is None or not headline.startswith(field + " "):
        return escape(headline)
    seen, where, expected = headline[len(field) + 1 :].partition(" where ")
    return Markup("<b>{}</b> <b>{}</b>{}").format(field, seen, where + expected)


FILTERS = {
    "number": number_text,
    "count": count,
    "percent": percent,
    "rate": rate,
    "severity": severity,
    "heat": heat,
    "share_of_scale": share_of_scale,
    "value": value,
    "shortened": shortened,
    "bytes": size,
    "moment": moment,
    "moment_short": moment_short,
    "moment_of": moment_of,
    "path": in_path,
    "spaced": spaced,
    "sentence": sentence,
    "also": also,
    "emphasised": emphasised,
}
"""Of the templates."""
