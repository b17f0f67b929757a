"""Decoding: what is good, what is bad and why, and that rows never touch each other."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.decoding import DECODERS, REASONS, JsonDecoder
from consumers.records import Decoded, Field, FieldKind, RecordSchema, StoredRecord

SCHEMA = RecordSchema(
    (
        Field("size"),
        Field("load", is_required=False),
        Field("route", FieldKind.CATEGORICAL),
        Field("host", FieldKind.CATEGORICAL, ("meta", "host"), is_required=False),
        Field("cached", FieldKind.BOOLEAN, is_required=False),
        Field("at", FieldKind.TIMESTAMP, is_required=False),
    ),
    time_field="at",
)
GOOD = {"size": 3, "load": 0.5, "route": "/", "meta": {"host": "a"}, "cached": True, "at": 1_700_000_000}


def records(values: Sequence[bytes | None]) -> list[StoredRecord]:
    return [StoredRecord("t", 0, i, 1000 + i, None, value) for i, value in enumerate(values)]


def decode(*objects: Any, schema: RecordSchema = SCHEMA) -> Decoded:
    return JsonDecoder(schema).decode(records([json.dumps(o).encode() for o in objects]))


def one(kind: FieldKind, value: Any) -> Any:
    """Return what a value becomes in a field of a kind, or the reason why it is bad."""
    schema = RecordSchema((Field("other"), Field("x", kind)))
    decoded = decode({"other": 0, "x": value}, schema=schema)
    return decoded.bad[0].reason if decoded.bad else decoded.batch.columns["x"][0]


def test_a_good_record_fills_every_column_with_its_type() -> None:
    batch = decode(GOOD).batch
    assert {name: column.dtype.kind for name, column in batch.columns.items()} == {
        "size": "f",
        "load": "f",
        "route": "O",
        "host": "O",
        "cached": "f",
        "at": "f",
    }
    assert [batch.columns[name][0] for name in batch.columns] == [3.0, 0.5, "/", "a", 1.0, 1_700_000_000.0]


def test_a_field_that_is_not_required_may_be_null_or_absent() -> None:
    batch = decode(GOOD, {"size": 1, "route": "/", "load": None, "meta": None}).batch
    assert np.isnan(batch.columns["load"]).tolist() == [False, True]
    assert np.isnan(batch.columns["cached"]).tolist() == [False, True]
    assert batch.columns["host"].tolist() == ["a", None]


@pytest.mark.parametrize(
    ("value", "reason", "detail"),
    [
        (b"", "empty", "no value"),
        (None, "empty", "no value"),
        (b"{", "not_json", "no JSON"),
        (b'{"size": "\xff"}', "not_json", "no JSON"),
        (b"[1, 2]", "not_an_object", "array"),
        (b"null", "not_an_object", "null"),
        (b'{"route": "/"}', "missing_field", "size"),
        (b'{"size": null, "route": "/"}', "missing_field", "size"),
        (b'{"size": 1}', "missing_field", "route"),
        (b'{"size": "1", "route": "/"}', "wrong_type", 'size is "1"; expected: a number'),
        (b'{"size": true, "route": "/"}', "wrong_type", "size is true"),
        (b'{"size": 1, "route": ["/"]}', "wrong_type", 'route is ["/"]'),
        (b'{"size": 1, "route": "/", "meta": 7}', "wrong_type", "host is not below an object"),
        (b'{"size": 1, "route": "/", "cached": 2}', "wrong_type", "cached is 2"),
        (b'{"size": 1, "route": "/", "at": "soon"}', "wrong_type", 'at is "soon"'),
        (b'{"size": 1, "route": "/", "at": 1e300}', "wrong_type", "at is 1e+300"),
        (b'{"size": NaN, "route": "/"}', "not_finite", "NaN"),
        (b'{"size": -Infinity, "route": "/"}', "not_finite", "-Infinity"),
        (b'{"size": 1e999, "route": "/"}', "not_finite", "1e999"),
        (b'{"size": NaN, "route"', "not_json", "no JSON"),
        (b'{"size": 1, "route": "' + b"x" * 2000 + b'"}', "too_large", "2024 bytes; allowed: 1000"),
        (b"[" * 900, "not_json", "no JSON"),
    ],
)
def test_a_bad_record_has_a_reason_and_a_detail(value: bytes | None, reason: str, detail: str) -> None:
    decoded = JsonDecoder(SCHEMA, max_record_size=1000).decode(records([value]))
    (bad,) = decoded.bad
    assert (bad.reason, len(decoded.batch)) == (reason, 0)
    assert detail in bad.detail
    assert bad.raw.value == value
    assert bad.reason in REASONS


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (FieldKind.NUMERIC, 2**53 + 2, float(2**53 + 2)),
        (FieldKind.NUMERIC, 10**25, 1e25),
        (FieldKind.NUMERIC, -0.0, 0.0),
        (FieldKind.BOOLEAN, False, 0.0),
        (FieldKind.BOOLEAN, 1, 1.0),
        (FieldKind.BOOLEAN, 0.0, 0.0),
        (FieldKind.BOOLEAN, "true", "wrong_type"),
        (FieldKind.CATEGORICAL, "", ""),
        (FieldKind.CATEGORICAL, 7, "7"),
        (FieldKind.CATEGORICAL, 7.5, "7.5"),
        (FieldKind.CATEGORICAL, True, "true"),
        (FieldKind.TIMESTAMP, 1_700_000_000, 1_700_000_000.0),
        (FieldKind.TIMESTAMP, 1_700_000_000_500, 1_700_000_000.5),
        (FieldKind.TIMESTAMP, "2023-11-14T22:13:20.5Z", 1_700_000_000.5),
        (FieldKind.TIMESTAMP, "2023-11-15T00:13:20+02:00", 1_700_000_000.0),
        (FieldKind.TIMESTAMP, "2023-11-14 22:13:20", 1_700_000_000.0),
        (FieldKind.TIMESTAMP, True, "wrong_type"),
        (FieldKind.TIMESTAMP, -(10**16), "wrong_type"),
    ],
)
def test_a_value_becomes_what_its_kind_says(kind: FieldKind, value: Any, expected: Any) -> None:
    assert one(kind, value) == expected


def test_the_first_wrong_field_of_the_schema_names_the_reason() -> None:
    (bad,) = decode({"size": None, "route": ["/"]}).bad
    assert bad.reason == "missing_field"


def test_the_records_own_time_goes_before_the_logs_and_the_logs_stands_in() -> None:
    batch = decode(GOOD, {"size": 1, "route": "/"}).batch
    assert batch.time_ms.tolist() == [1_700_000_000_000, 1001]


def test_no_records_give_an_empty_batch() -> None:
    decoded = JsonDecoder(SCHEMA).decode([])
    assert len(decoded.batch) == 0
    assert decoded.batch.columns["route"].dtype == object
    assert decoded.batch.time_ms.dtype == np.int64


def test_long_values_are_cut_in_the_detail() -> None:
    (bad,) = decode({"size": "x" * 5000, "route": "/"}).bad
    assert len(bad.detail) < 200


def test_the_decoder_is_in_the_table() -> None:
    assert DECODERS["json"] is JsonDecoder


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.text(max_size=5)
    | st.sampled_from(["2024-01-01T00:00:00Z", "2024-13-01", 1_700_000_000_000]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
objects = st.fixed_dictionaries(
    {},
    optional={
        "size": st.integers() | st.floats(allow_nan=False, allow_infinity=False) | anything,
        "load": anything,
        "route": st.text(max_size=5) | anything,
        "meta": st.fixed_dictionaries({}, optional={"host": anything}) | anything,
        "cached": st.booleans() | anything,
        "at": st.integers(0, 2 * 10**12) | anything,
    },
)
payloads = st.one_of(
    objects.map(lambda o: json.dumps(o).encode()),
    st.just(json.dumps(GOOD).encode()),
    st.binary(max_size=10),
    st.none(),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(payloads, max_size=12))
def test_a_record_decodes_alone_as_it_does_among_others(values: list[bytes | None]) -> None:
    decoder = JsonDecoder(SCHEMA)
    raw = records(values)
    together = decoder.decode(raw)
    alone = [decoder.decode([record]) for record in raw]

    assert [(bad.raw.offset, bad.reason, bad.detail) for bad in together.bad] == [
        (bad.raw.offset, bad.reason, bad.detail) for decoded in alone for bad in decoded.bad
    ]
    assert [record.offset for record in together.batch.raw] == [r.offset for d in alone for r in d.batch.raw]
    assert together.batch.time_ms.tolist() == [int(t) for decoded in alone for t in decoded.batch.time_ms]
    for name, column in together.batch.columns.items():
        expected = [value for decoded in alone for value in decoded.batch.columns[name].tolist()]
        assert column.dtype == alone[0].batch.columns[name].dtype if alone else True
        assert all(_same(a, b) for a, b in zip(column.tolist(), expected, strict=True))


@settings(max_examples=200, deadline=None)
@given(st.lists(payloads, max_size=12))
def test_every_record_is_either_a_row_or_bad_for_a_known_reason(values: list[bytes | None]) -> None:
    decoded = JsonDecoder(SCHEMA).decode(records(values))
    offsets = [r.offset for r in decoded.batch.raw] + [bad.raw.offset for bad in decoded.bad]
    assert sorted(offsets) == list(range(len(values)))
    assert {bad.reason for bad in decoded.bad} <= set(REASONS)
    assert not np.isinf(decoded.batch.columns["size"]).any()
    assert not np.isnan(decoded.batch.columns["size"]).any()


def _same(a: Any, b: Any) -> bool:
    return a == b or (isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b))
