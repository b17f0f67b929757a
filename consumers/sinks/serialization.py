"""Verdicts and bad records as bytes. The same record and version give the same bytes, so doubles can be told."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import orjson

from consumers.records import BadRecord, Contribution, RawRecord, Verdicts, event_id

Header = tuple[str, bytes | None]

EVENT_TYPE = "io.srr-stream.anomaly.v1"

MAX_VALUE_SIZE = 900_000
"""Bytes of a record that fit, with what is said about it, into a message of the size that Kafka takes by default."""
_MAX_TEXT = 1000
"""Characters of a text beside a picture that a verdict repeats."""


def verdict_bodies(verdicts: Verdicts, *, include_record: bool = False) -> Iterator[bytes]:
    """Yield a JSON object for every row, keys in the order of the alphabet.

    Parameters
    ----------
    include_record
        Put the record itself, as it was sent, under ``record``; not if it is larger than `MAX_VALUE_SIZE`. A record
        that is a picture is base64 there.

    What a record has beside its picture is under ``metadata``; where its heat map is to be had under ``heat_map``.
    """
    columns = (verdicts.score, verdicts.p_value, verdicts.severity, verdicts.flagged, verdicts.batch.time_ms)
    has_metadata = bool(verdicts.batch.schema.metadata_names)
    rows = zip(verdicts.batch.raw, *(column.tolist() for column in columns), strict=True)
    for row, (raw, score, p_value, severity, flagged, time_ms) in enumerate(rows):
        body: dict[str, Any] = {
            "id": event_id(raw),
            "topic": raw.topic,
            "partition": raw.partition,
            "offset": raw.offset,
            "key": readable(raw.key),
            "time": timestamp(time_ms),
            "score": score,
            "p_value": p_value,
            "severity": severity,
            "flagged": flagged,
            "version": verdicts.version,
            "reasons": [_reason(part) for part in verdicts.contributions.get(row, ())],
        }
        if row in verdicts.heat_maps:
            body["heat_map"] = verdicts.heat_maps[row]
        if has_metadata:
            body["metadata"] = {name: _cut(value) for name, value in verdicts.batch.metadata(row).items()}
        if include_record and raw.value is not None and (record := _record(raw.value)) is not None:
            body["record"] = record
        yield orjson.dumps(body, option=orjson.OPT_SORT_KEYS)


def alert_headers(raw: RawRecord, time_ms: int) -> list[Header]:
    """Return the headers that make a verdict a CloudEvent 1.0 in Kafka's binary mode."""
    headers = {
        "ce_specversion": "1.0",
        "ce_id": event_id(raw),
        "ce_source": f"/srr-stream/{raw.topic}",
        "ce_type": EVENT_TYPE,
        "ce_time": timestamp(time_ms),
        "content-type": "application/json",
    }
    return [(name, value.encode()) for name, value in headers.items()]


def dead_letter_headers(bad: BadRecord) -> list[Header]:
    """Return the record's own headers, untouched, and behind them where it comes from and what is wrong."""
    about = {
        "srr-reason": bad.reason,
        "srr-detail": bad.detail,
        "srr-stage": bad.stage,
        "srr-topic": bad.raw.topic,
        "srr-partition": str(bad.raw.partition),
        "srr-offset": str(bad.raw.offset),
    }
    return [*bad.raw.headers, *((name, value.encode()) for name, value in about.items())]


def timestamp(time_ms: int) -> str:
    """Return ISO 8601 in UTC with milliseconds.

    Examples
    --------
    >>> timestamp(1_700_000_000_123)
    '2023-11-14T22:13:20.123Z'
    """
    try:
        moment = datetime.fromtimestamp(time_ms // 1000, UTC)
    except (ValueError, OverflowError, OSError):  # beyond the year 9999
        return str(time_ms)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{time_ms % 1000:03d}Z"


def readable(key: bytes | None) -> str | None:
    """Return a key as text, as base64 where it is none."""
    if key is None:
        return None
    try:
        return key.decode()
    except UnicodeDecodeError:
        return "base64:" + base64.b64encode(key).decode()


def flagged_rows(verdicts: Verdicts) -> Sequence[int]:
    """Return the rows that are flagged."""
    rows: list[int] = np.flatnonzero(verdicts.flagged).tolist()
    return rows


def _record(value: bytes) -> orjson.Fragment | str | None:
    """Return a record as JSON; None if it is too large for a message."""
    is_picture = not value.lstrip().startswith(b"{")  # no JSON object, and yet it was decoded
    if len(value) > (MAX_VALUE_SIZE * 3 // 4 if is_picture else MAX_VALUE_SIZE):
        return None
    if is_picture:
        return base64.b64encode(value).decode()
    # Inside JSON's strings there are no line breaks, between its tokens they may be spaces: one line a verdict.
    return orjson.Fragment(value.replace(b"\n", b" ").replace(b"\r", b" "))


def _cut(value: float | bool | str | None) -> float | bool | str | None:
    """Return a value so short that its verdict fits into a message."""
    if isinstance(value, str) and len(value) > _MAX_TEXT:
        return value[: _MAX_TEXT - 1] + "…"
    return value


def _reason(part: Contribution) -> dict[str, Any]:
    return {
        "field": part.field,
        "contribution": part.contribution,
        "observed": part.observed,
        "expected": part.expected,
    }
