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

MAX_BODY_SIZE = 900_000
"""Bytes of a verdict that fit, with its key, into a message of the size that Kafka takes by default."""
_MAX_TEXT = 1000
"""Characters of a text that a verdict repeats."""


def verdict_bodies(
    verdicts: Verdicts,
    rows: Sequence[int] | None = None,
    *,
    include_record: bool = False,
    max_size: int = MAX_BODY_SIZE,
    review_url: str | None = None,
) -> Iterator[bytes]:
    """Yield a JSON object for every row, keys in the order of the alphabet.

    Parameters
    ----------
    rows
        Of these only; None: of all.
    include_record
        Put the record itself, as it was sent, under ``record``. A record that is a picture is base64 there.
    max_size
        Bytes. A record with which the verdict would be larger is left out, and ``record_omitted`` tells its bytes.
        Texts of a record are cut, so that every verdict is small without it.
    review_url
        Where people look at flagged records; the verdict of one has its own address there under ``review``.

    What a record has beside its picture is under ``metadata``; where its heat map is to be had under ``heat_map``; the
    id of the record marked normal that keeps it from being flagged under ``known_normal``.
    """
    columns = [verdicts.score, verdicts.p_value, verdicts.severity, verdicts.flagged, verdicts.batch.time_ms]
    has_metadata = bool(verdicts.batch.schema.metadata_names)
    if rows is None:
        rows, records = range(len(verdicts)), verdicts.batch.raw
    else:
        columns = [column[list(rows)] for column in columns]
        records = [verdicts.batch.raw[row] for row in rows]
    for row, raw, score, p_value, severity, flagged, time_ms in zip(
        rows, records, *(column.tolist() for column in columns), strict=True
    ):
        body: dict[str, Any] = {
            "id": event_id(raw),
            "topic": raw.topic,
            "partition": raw.partition,
            "offset": raw.offset,
            "key": _cut(readable(raw.key)),
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
        if review_url is not None and flagged:
            body["review"] = f"{review_url}/flagged/{body['id']}"
        if row in verdicts.known_normals:
            body["known_normal"] = verdicts.known_normals[row]
        if has_metadata:
            body["metadata"] = {name: _cut(value) for name, value in verdicts.batch.metadata(row).items()}
        yield _dumped(body, raw.value if include_record else None, max_size)


def _dumped(body: dict[str, Any], record: bytes | None, max_size: int) -> bytes:
    """Return a verdict as JSON, with the record in it if there is room."""
    if record is None:
        return orjson.dumps(body, option=orjson.OPT_SORT_KEYS)
    if len(record) < max_size:
        whole = orjson.dumps(body | {"record": _record(record)}, option=orjson.OPT_SORT_KEYS)
        if len(whole) <= max_size:
            return whole
    return orjson.dumps(body | {"record_omitted": len(record)}, option=orjson.OPT_SORT_KEYS)


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


def dead_letter_headers(bad: BadRecord, *, with_own: bool = True) -> list[Header]:
    """Return the record's own headers, untouched, and behind them where it comes from and what is wrong."""
    about = {
        "srr-reason": bad.reason,
        "srr-detail": bad.detail[:_MAX_TEXT],
        "srr-stage": bad.stage,
        "srr-topic": bad.raw.topic,
        "srr-partition": str(bad.raw.partition),
        "srr-offset": str(bad.raw.offset),
    }
    own = bad.raw.headers if with_own else ()
    return [*own, *((name, value.encode()) for name, value in about.items())]


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


def _record(value: bytes) -> orjson.Fragment | str:
    """Return a record as JSON."""
    if not value.lstrip().startswith(b"{"):  # no JSON object, and yet it was decoded: a picture
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
        "observed": _cut(part.observed),
        "expected": _cut(part.expected),
    }
