"""Bytes to columns: many records at once, each bad one with its reason, its neighbours untouched.

A column is converted at once. Where it holds a surprise, its values are looked at one by one first, and what does not
belong is taken out with its record.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from consumers.images import MAX_PIXELS, ImagePool, from_base64
from consumers.json_columns import TO_COLUMN, TYPES, ColumnReader
from consumers.polled import timestamps, values
from consumers.reasons import REASONS, Bad
from consumers.records import BadRecord, Batch, Decoded, Field, FieldKind, RawRecord, RecordSchema

__all__ = ["DECODERS", "REASONS", "Decoder", "ImageDecoder", "JsonDecoder"]


class Decoder(Protocol):
    """Reads records of one schema."""

    def decode(self, raw: Sequence[RawRecord]) -> Decoded:
        """Return the good rows in columns, in their order, and the bad ones with their reasons."""


class JsonDecoder:
    """Read records that are one JSON object each, a picture in it as base64.

    Keys that the schema does not declare are ignored, numbers in them of any size too; of a key that is there twice the
    last one counts. Nothing is converted by guess: text in a numeric field is bad, and so is a boolean.

    Records are read by :mod:`consumers.json_columns`; what that leaves, by orjson, which is slower and knows why.

    Parameters
    ----------
    max_record_size
        Bytes; a larger record is bad.
    max_pixels
        A picture with more is bad; memory for decoding grows with it, see :func:`consumers.images.decode_image`.

    Raises
    ------
    LibraryMissing
        If a field is a picture and Pillow is not installed.

    Examples
    --------
    >>> from consumers.records import StoredRecord
    >>> decoder = JsonDecoder(RecordSchema((Field("x"),)))
    >>> decoded = decoder.decode([StoredRecord("t", 0, i, 0, None, v) for i, v in enumerate([b'{"x": 1}', b"{"])])
    >>> decoded.batch.columns["x"].tolist(), [bad.reason for bad in decoded.bad]
    ([1.0], ['not_json'])
    """

    def __init__(self, schema: RecordSchema, *, max_record_size: int = 1 << 20, max_pixels: int = MAX_PIXELS) -> None:
        self._schema = schema
        self._max_record_size = max_record_size
        self._reader = ColumnReader.of(schema, max_record_size=max_record_size)
        if schema.image_field is not None and schema.image_field.image is not None:
            self._pool = ImagePool(schema.image_field.image, max_pixels=max_pixels)

    def decode(self, raw: Sequence[RawRecord]) -> Decoded:
        """Return the good rows in columns, in their order, and the bad ones with their reasons."""
        columns, bad = self._columns(values(raw))
        kept = [record for row, record in enumerate(raw) if row not in bad] if bad else raw
        batch = Batch(self._schema, columns, kept, self._times(columns, kept))
        return Decoded(batch, tuple(BadRecord(raw[row], bad[row].reason, bad[row].detail) for row in sorted(bad)))

    def _columns(self, contents: Sequence[bytes | None]) -> tuple[dict[str, NDArray[Any]], _Odd]:
        """Return the good rows in columns, in their order, and which rows are bad and why."""
        if self._reader is None:
            return self._one_by_one(contents)
        columns, left = self._reader.read(contents)
        if not left:
            return columns, {}
        others, bad = self._one_by_one([contents[row] for row in left])
        taken = [row for i, row in enumerate(left) if i not in bad]
        order = np.argsort(np.concatenate([np.delete(np.arange(len(contents)), left), np.array(taken, dtype=np.intp)]))
        columns = {name: np.concatenate([column, others[name]])[order] for name, column in columns.items()}
        return columns, {left[i]: why for i, why in bad.items()}

    def _one_by_one(self, contents: Sequence[bytes | None]) -> tuple[dict[str, NDArray[Any]], _Odd]:
        """Return the same, without the reader."""
        objects: list[dict[str, Any]] = []
        rows: list[int] = []
        bad: dict[int, Bad] = {}
        for row, content in enumerate(contents):
            try:
                objects.append(self._parse(content))
                rows.append(row)
            except Bad as why:
                bad[row] = why.bare()
        columns, odd = {}, _Odd()
        for field in self._schema.fields:
            convert = self._images if field.kind is FieldKind.IMAGE else _to_column
            columns[field.name], odd_here = convert(_pick(objects, field.path), field)
            odd = odd_here | odd  # the first field that is wrong names the reason
        if odd:
            columns = {name: np.delete(column, list(odd), axis=0) for name, column in columns.items()}
        return columns, bad | {rows[i]: why for i, why in odd.items()}

    def _parse(self, value: bytes | None) -> dict[str, Any]:
        checked = _checked(value, self._max_record_size, "a JSON object")
        try:
            parsed = orjson.loads(checked)
        except orjson.JSONDecodeError as error:
            raise _why_not_json(checked, error) from error
        if not isinstance(parsed, dict):
            raise Bad("not_an_object", f"the record is a JSON {_json_kind(parsed)}; an object is expected")
        return parsed

    def _images(self, values: list[Any], field: Field) -> tuple[NDArray[np.uint8], _Odd]:
        sifted, odd = _sift(values, field, {str}, "a JPEG, PNG or WebP as base64 text")
        files: list[bytes | None] = []
        for row, text in enumerate(sifted):
            try:
                files.append(None if text is None else from_base64(text))
            except Bad as why:
                files.append(None)
                odd[row] = why.bare()
        images, bad = self._pool.decode(files)
        return images, odd | {row: Bad(why.reason, f"field {field.name}: {why.detail}") for row, why in bad.items()}

    def _times(self, columns: dict[str, NDArray[Any]], raw: Sequence[RawRecord]) -> NDArray[np.int64]:
        """Return the record's own time; the log's where it has none."""
        times = timestamps(raw)
        if self._schema.time_field is not None:
            own = columns[self._schema.time_field]
            has_own = np.isfinite(own)
            times[has_own] = np.round(own[has_own] * 1000).astype(np.int64)
        return times


class ImageDecoder:
    """Read records that are one picture each: the value is the file of a JPEG, PNG or WebP.

    Parameters
    ----------
    schema
        Its only field is the picture.
    max_record_size
        Bytes; a larger record is bad.
    max_pixels
        A picture with more is bad; memory for decoding grows with it, see :func:`consumers.images.decode_image`.

    Raises
    ------
    ValueError
        If the schema has no picture, or anything beside it.
    LibraryMissing
        If Pillow is not installed.

    Examples
    --------
    >>> from consumers.records import ImageSpec, StoredRecord
    >>> decoder = ImageDecoder(RecordSchema((Field("photo", FieldKind.IMAGE, image=ImageSpec(32, 32)),)))
    >>> decoded = decoder.decode([StoredRecord("t", 0, 0, 0, None, b"<html>")])
    >>> decoded.batch.columns["photo"].shape, decoded.bad[0].reason
    ((0, 32, 32, 3), 'not_an_image')
    """

    def __init__(self, schema: RecordSchema, *, max_record_size: int = 1 << 20, max_pixels: int = MAX_PIXELS) -> None:
        field = schema.image_field
        if field is None or field.image is None or len(schema.fields) > 1:
            names = ", ".join(f.name for f in schema.fields)
            raise ValueError(
                f"schema: records that are pictures have one field, of kind image; these are there: {names}"
            )
        self._schema = schema
        self._name = field.name
        self._max_record_size = max_record_size
        self._pool = ImagePool(field.image, max_pixels=max_pixels)

    def decode(self, raw: Sequence[RawRecord]) -> Decoded:
        """Return the good pictures, in their order, and the bad records with their reasons."""
        files: list[bytes | None] = []
        bad: dict[int, Bad] = {}
        for row, content in enumerate(values(raw)):
            try:
                files.append(_checked(content, self._max_record_size, "a JPEG, PNG or WebP"))
            except Bad as why:
                files.append(None)
                bad[row] = why.bare()
        images, undecodable = self._pool.decode(files)
        bad |= undecodable
        kept: Sequence[RawRecord] = raw
        if bad:
            rows = [row for row in range(len(raw)) if row not in bad]
            images, kept = images[rows], [raw[row] for row in rows]
        batch = Batch(self._schema, {self._name: images}, kept, timestamps(kept))
        return Decoded(batch, tuple(BadRecord(raw[row], bad[row].reason, bad[row].detail) for row in sorted(bad)))


_Odd = dict[int, Bad]
_MISSING = object()


def _checked(value: bytes | None, max_size: int, expected: str) -> bytes:
    if not value:
        raise Bad("empty", f"the record has no value; {expected} is expected")
    if len(value) > max_size:
        raise Bad("too_large", f"the record has {len(value)} bytes; allowed: {max_size}")
    return value


def _pick(objects: Sequence[dict[str, Any]], path: tuple[str, ...]) -> list[Any]:
    """Return the value at `path` of every object; `None` where it is null or absent."""
    first, *rest = path
    values = [parsed.get(first) for parsed in objects]
    for key in rest:
        values = [value.get(key) if type(value) is dict else (None if value is None else _MISSING) for value in values]
    return values


def _sift(values: list[Any], field: Field, allowed: set[type], expected: str) -> tuple[list[Any], _Odd]:
    """Replace what is of no allowed type by `None`, and say what is wrong with it."""
    kinds = set(map(type, values))
    if kinds <= allowed or (not field.is_required and kinds <= {*allowed, type(None)}):
        return values, {}
    odd: _Odd = {}
    for row, value in enumerate(values):
        if value is None and field.is_required:
            where = f"field {field.name} (path {'.'.join(field.path)})"
            odd[row] = Bad("missing_field", f"{where} is missing; it is required")
        elif value is not None and type(value) not in allowed:
            odd[row] = _wrong(field, value, expected)
    return [None if row in odd else value for row, value in enumerate(values)], odd


def _wrong(field: Field, value: Any, expected: str) -> Bad:
    return Bad("wrong_type", f"field {field.name} is {_shown(value)}; expected: {expected}")


def _to_column(values: list[Any], field: Field) -> tuple[NDArray[Any], _Odd]:
    expected = _EXPECTED[field.kind]
    sifted, odd = _sift(values, field, set(TYPES[field.kind]), expected)
    column, alien = TO_COLUMN[field.kind](sifted)
    return column, odd | {row: _wrong(field, sifted[row], expected) for row in alien}


def _why_not_json(value: bytes, error: orjson.JSONDecodeError) -> Bad:
    """Tell numbers that JSON does not have, but Python's json and others write, from what is no JSON at all."""
    found: list[str] = []

    def note(text: str) -> None:
        if not math.isfinite(float(text)):
            found.append(text[:20])

    try:
        json.loads(value.decode(), parse_constant=note, parse_float=note, parse_int=note)
    except (ValueError, RecursionError):
        found.clear()
    if found:
        return Bad(
            "not_finite", f"the record holds {found[0]}, which is no JSON; write null for a value that is missing"
        )
    return Bad("not_json", f"the record is no JSON: {error}")


def _shown(value: Any) -> str:
    """Return a value as its sender wrote it, cut where it is long."""
    if value is _MISSING:
        return "not below an object"
    text = orjson.dumps(value).decode()
    return text if len(text) <= 80 else f"{text[:77]}..."


def _json_kind(value: Any) -> str:
    names = {list: "array", str: "string", bool: "boolean", int: "number", float: "number", type(None): "null"}
    return names[type(value)]


_EXPECTED = {
    FieldKind.NUMERIC: "a number",
    FieldKind.CATEGORICAL: "text, number or boolean",
    FieldKind.BOOLEAN: "true, false, 0 or 1",
    FieldKind.TIMESTAMP: "ISO 8601 text, or seconds or ms since the epoch, between the years 1 and 9999",
}

DECODERS: dict[str, type[JsonDecoder | ImageDecoder]] = {"json": JsonDecoder, "image": ImageDecoder}
"""How records may be written, by the name that the settings use."""
