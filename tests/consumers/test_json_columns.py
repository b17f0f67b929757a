"""What the quick reader takes is what orjson makes of it, record by record; what it leaves is judged as before."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from consumers.decoding import JsonDecoder
from consumers.json_columns import CHUNK_ROWS, ColumnReader
from consumers.records import Decoded, Field, FieldKind, ImageSpec, RecordSchema, StoredRecord

SCHEMA = RecordSchema(
    (
        Field("x"),
        Field("deep", path=("a", "b:c")),
        Field("up", FieldKind.BOOLEAN),
        Field("beside", path=("a", "d'é")),
        Field("host", FieldKind.CATEGORICAL),
        Field("at", FieldKind.TIMESTAMP),
        Field("maybe", is_required=False),
        Field("rack", FieldKind.CATEGORICAL, ("where", "rack"), is_required=False),
        Field("seen", FieldKind.TIMESTAMP, ("where", "seen"), is_required=False),
        Field("left", FieldKind.BOOLEAN, is_required=False),
    ),
    "at",
)
NUMBERS = RecordSchema((Field("x"), Field("y", is_required=False), Field("up", FieldKind.BOOLEAN)))
GOOD = b'{"x": 1, "y": 2, "up": true}'


def record(**changes: Any) -> dict[str, Any]:
    """Return a record that holds just what is required."""
    return {
        "x": 1.5,
        "a": {"b:c": -2, "d'é": 1e-7},
        "up": True,
        "host": "web:80",
        "at": "2023-11-14T22:13:20Z",
        **changes,
    }


def decoded(schema: RecordSchema, values: Sequence[bytes | None], *, is_quick: bool) -> Decoded:
    """Return what the decoder makes of values, with its reader or without."""
    decoder = JsonDecoder(schema)
    assert decoder._reader is not None
    if not is_quick:
        decoder._reader = None
    return decoder.decode([StoredRecord("t", 0, i, 5, None, value) for i, value in enumerate(values)])


def left(schema: RecordSchema, values: Sequence[bytes | None], *, max_record_size: int = 1 << 20) -> list[int]:
    """Return what the quick reader leaves."""
    reader = ColumnReader.of(schema, max_record_size=max_record_size)
    assert reader is not None
    return reader.read(values)[1]


def check(schema: RecordSchema, values: Sequence[bytes | None]) -> None:
    """Compare both ways, in every bit."""
    quick, slow = (decoded(schema, values, is_quick=is_quick) for is_quick in (True, False))
    assert [(bad.raw.offset, bad.reason, bad.detail) for bad in quick.bad] == [
        (bad.raw.offset, bad.reason, bad.detail) for bad in slow.bad
    ]
    assert [raw.offset for raw in quick.batch.raw] == [raw.offset for raw in slow.batch.raw]
    assert quick.batch.time_ms.tolist() == slow.batch.time_ms.tolist()
    assert list(quick.batch.columns) == list(slow.batch.columns)
    for name, column in slow.batch.columns.items():
        found = quick.batch.columns[name]
        assert found.dtype == column.dtype
        if column.dtype == object:
            assert [(type(v), v) for v in found] == [(type(v), v) for v in column]
        else:
            assert found.tobytes() == column.tobytes()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
numbers_as_written = st.from_regex(r"-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,3})?", fullmatch=True)
plain_numbers = st.integers(-(2**80), 2**80) | st.floats(allow_nan=False, allow_infinity=False)
times = st.datetimes().map(lambda moment: moment.isoformat()) | st.integers(-(10**17), 10**17) | st.floats(-1e15, 1e15)
declared = st.fixed_dictionaries(
    {
        "x": plain_numbers,
        "a": st.fixed_dictionaries({"b:c": plain_numbers, "d'é": plain_numbers}),
        "up": st.booleans() | st.sampled_from([0, 1, 0.0, 1.0, -0.0, 2]),
        "host": st.text() | plain_numbers | st.booleans(),
        "at": times,
    },
    optional={
        "maybe": st.none() | plain_numbers,
        "where": st.none()
        | st.fixed_dictionaries(
            {}, optional={"rack": st.none() | st.text() | st.integers(), "seen": st.none() | times | st.just("soon")}
        ),
        "left": st.none() | st.booleans(),
        "more": json_values,
    },
)
odd_records = st.builds(
    lambda changes, extra, lost: {
        name: value for name, value in {**record(**changes), **extra}.items() if name not in lost
    },
    st.dictionaries(st.sampled_from([*record(), "maybe", "where", "left"]), json_values, max_size=2),
    st.dictionaries(st.text(max_size=3), json_values, max_size=1),
    st.sets(st.sampled_from(sorted(record())), max_size=1),
)
junk = [b"", b"\xff", b"null", b"\xed\xa0\x80", *(bytes([byte]) for byte in b'0"\\:,{}[\n e-')]
"""Bytes that turn a record into something else."""


@settings(deadline=None)
@given(st.lists(numbers_as_written, min_size=1, max_size=6))
@example(["-0", "-0.0", "9007199254740993", "18446744073709551616", "1e-400", "2.4703282292062328e-324", "1" * 308])
@example(["1e400", "-1e400", "1" * 400, "1.7976931348623159e308"])
def test_numbers_are_the_same_in_every_bit_however_they_are_written(written: list[str]) -> None:
    values = [f'{{"x": {text}, "y": {text}, "up": 1}}'.encode() for text in written]
    check(NUMBERS, values)
    check(RecordSchema((Field("x"), Field("y", FieldKind.CATEGORICAL))), values)
    check(RecordSchema((Field("x"), Field("y", FieldKind.TIMESTAMP))), values)


@settings(deadline=None)
@given(st.lists(st.tuples(plain_numbers, plain_numbers, st.booleans()), min_size=1, max_size=6))
def test_plain_numbers_are_all_taken(rows: list[tuple[float, float, bool]]) -> None:
    values = [json.dumps({"x": x, "y": y, "up": up}).encode() for x, y, up in rows]
    assert left(NUMBERS, values) == []
    check(NUMBERS, values)


@settings(deadline=None)
@given(st.lists(declared, min_size=1, max_size=6), st.booleans())
def test_whatever_is_declared_is_the_same(records: list[dict[str, Any]], is_ascii: bool) -> None:
    check(SCHEMA, [json.dumps(each, ensure_ascii=is_ascii).encode(errors="surrogatepass") for each in records])


@settings(max_examples=400, deadline=None)
@given(st.lists(odd_records, min_size=1, max_size=4))
def test_whatever_is_in_a_record_both_ways_agree(records: list[dict[str, Any]]) -> None:
    check(SCHEMA, [json.dumps(each).encode() for each in records])


@settings(max_examples=400, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 4), st.booleans())
def test_whatever_becomes_of_its_bytes_both_ways_agree(rng: random.Random, n_changes: int, has_texts: bool) -> None:
    schema = SCHEMA if has_texts else NUMBERS
    whole = json.dumps(record(more={"é": [1, "ü"]}), ensure_ascii=False).encode() if has_texts else GOOD
    broken = bytearray(whole)
    for _ in range(n_changes):
        at = rng.randrange(len(broken))
        broken[at : at + rng.randint(0, 2)] = rng.choice(junk)
    check(schema, [whole, bytes(broken), whole])


pieces = st.sampled_from([GOOD, b'{"x": 1', b'"y": 2, "up": true}', GOOD + b"," + GOOD, GOOD + b"}{", b"", b" ", None])


@settings(deadline=None)
@given(st.lists(pieces))
def test_records_that_are_whole_only_together_are_bad(values: list[bytes | None]) -> None:
    assert len(decoded(NUMBERS, values, is_quick=True).batch) == values.count(GOOD)
    check(NUMBERS, values)


@pytest.mark.parametrize(
    "value",
    [
        b'{"x": 1, "x": 2, "y": 1, "up": true}',
        b'{"x": 1, "y": 2, "up": true, "z": {"x": "7", "deep": [[1, {}], null]}}',
        b'{"x": 1, "up": true}',
        b'{"x": 1, "y": null, "up": true}',
        b'{"x": 1, "y": 2, "up": 1}',
        b'{"x": 1,\n "y": 2, "up": true}\t\r\n',
        b'{"\\u0078": 1, "y": 2, "up": true}',
        '{"x": 1, "y": 2, "up": true, "z": "ü"}'.encode(),
    ],
)
@pytest.mark.parametrize("n", [1, 2])
def test_what_holds_the_declared_fields_is_taken(value: bytes, n: int) -> None:
    assert left(NUMBERS, [value] * n) == []
    check(NUMBERS, [GOOD, *[value] * n])


@pytest.mark.parametrize(
    "value",
    [
        b'{"x": "1", "y": 2, "up": true}',
        b'{"x": true, "y": 2, "up": true}',
        b'{"x": 1, "y": 2, "up": 2}',
        b'{"x": 1, "y": 2}',
        b'{"x": "1", "x": 2, "y": 2, "up": true}',
        b'{"x": 1e400, "y": 2, "up": true}',
        b'{"x": NaN, "y": 2, "up": true}',
        b'{"x": 1, "y": 2, "up": true, "z": "\xff"}',
        b'{"x": 1, "y": 2, "up": true, "\xed\xa0\x80": 1}',
        b'{"x": 1, "y": 2, "up": true, "\\ud800": 1}',
        b'{"x": 1, "y": 2, "up": true} ' + GOOD,
        b"\xef\xbb\xbf" + GOOD,
        b"   ",
        b"[]",
        b"",
        None,
    ],
)
def test_what_may_be_bad_is_left_and_its_neighbours_are_not(value: bytes | None) -> None:
    assert left(NUMBERS, [GOOD, value, GOOD, value]) == [1, 3]
    check(NUMBERS, [GOOD, value, GOOD, value])


def test_a_large_record_is_left() -> None:
    assert left(NUMBERS, [GOOD, GOOD + b" " * 100], max_record_size=100) == [1]
    assert left(NUMBERS, [GOOD, GOOD[:-1] + ', "z": "ü"}'.encode() + b" " * 100], max_record_size=100) == [1]


@pytest.mark.parametrize("number", [b"1e400", b"-1e999", b"1" * 400])
def test_a_number_beyond_float64_counts_only_where_it_is_declared(number: bytes) -> None:
    value = GOOD[:-1] + b', "z": ' + number + b"}"
    assert decoded(NUMBERS, [value, GOOD], is_quick=True).bad == ()
    assert [bad.reason for bad in decoded(NUMBERS, [GOOD.replace(b"2", number)], is_quick=True).bad] == ["not_finite"]


@pytest.mark.parametrize("depth", [900, 1200])
def test_a_record_that_is_nested_deeply_takes_no_one_with_it(depth: int) -> None:
    deep = GOOD[:-1] + b', "z": ' + b"[" * depth + b"]" * depth + b"}"
    assert 0 in [record.offset for record in decoded(NUMBERS, [GOOD, deep], is_quick=True).batch.raw]


@pytest.mark.parametrize("n_rows", [0, 1, CHUNK_ROWS - 1, CHUNK_ROWS, CHUNK_ROWS + 1, 3 * CHUNK_ROWS + 5])
@pytest.mark.parametrize("schema", [NUMBERS, SCHEMA])
def test_records_stay_in_their_order_across_chunks(n_rows: int, schema: RecordSchema) -> None:
    rng = random.Random(n_rows)
    whole = [json.dumps(record(x=i, y=i)).encode() for i in range(n_rows)]
    odd = [json.dumps(record(x=i, host=2**70, y=None)).encode() for i in range(n_rows)]
    values = [rng.choice([b"{", None, *pair]) for pair in zip(whole, odd, strict=True)]
    check(schema, values)


@pytest.mark.parametrize(
    "fields",
    [
        (Field("x", path=("a",)), Field("y", path=("a", "b"))),
        (Field("x", path=("a", "b")), Field("y", path=("a",))),
        (Field("x", path=("a",)), Field("y", path=("a",))),
        (Field("x", path=("a", 'say "b"')),),
        (Field("x\n"),),
        (Field("\ud800"),),
        (Field("photo", FieldKind.IMAGE, image=ImageSpec(8, 8)),),
    ],
)
def test_of_some_schemas_there_is_no_quick_way(fields: tuple[Field, ...]) -> None:
    assert ColumnReader.of(RecordSchema(fields), max_record_size=1000) is None


def test_columns_are_in_memory_one_after_the_other() -> None:
    columns = decoded(NUMBERS, [GOOD] * 10, is_quick=True).batch.columns
    assert all(isinstance(column, np.ndarray) and column.flags.c_contiguous for column in columns.values())
