"""Records read all at once are what they are one by one, or are not read at once."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.decoding import JsonDecoder
from consumers.json_columns import LEAST_RECORDS, ColumnReader
from consumers.records import Decoded, Field, FieldKind, ImageSpec, RecordSchema, StoredRecord

SCHEMA = RecordSchema(
    (
        Field("x"),
        Field("deep", path=("a", "b:c")),
        Field("beside", path=("a", "d")),
        Field("up", FieldKind.BOOLEAN),
        Field("host", FieldKind.CATEGORICAL),
        Field("at", FieldKind.TIMESTAMP),
    ),
    "at",
)
NUMBERS = RecordSchema((Field("x"), Field("y", is_required=False), Field("up", FieldKind.BOOLEAN)))


def record(**changes: Any) -> dict[str, Any]:
    """Return a record that holds just what is declared."""
    return {
        "x": 1.5,
        "a": {"b:c": -2, "d": 1e-7},
        "up": True,
        "host": "web:80",
        "at": "2023-11-14T22:13:20Z",
        **changes,
    }


def tiled(values: Sequence[bytes]) -> list[bytes]:
    """Return the same records so often that reading them at once is tried."""
    return list(values) * -(-LEAST_RECORDS // len(values))


def one_by_one(schema: RecordSchema, values: Sequence[bytes | None]) -> Decoded:
    """Return what the slow way makes of them."""
    decoder = JsonDecoder(schema)
    decoder._reader = None
    return decoder.decode([StoredRecord("t", 0, i, 5, None, value) for i, value in enumerate(values)])


def at_once(schema: RecordSchema, values: Sequence[bytes | None]) -> dict[str, Any] | None:
    """Return what the quick way makes of them."""
    reader = ColumnReader.of(schema)
    assert reader is not None
    return reader.read(values, max_record_size=1 << 20)


def check(schema: RecordSchema, values: Sequence[bytes]) -> bool:
    """Compare both ways; return whether the quick one was sure."""
    many = tiled(values)
    quick, slow = at_once(schema, many), one_by_one(schema, many)
    if quick is None:
        return False
    assert slow.bad == ()
    assert list(quick) == list(slow.batch.columns)
    for name, column in slow.batch.columns.items():
        assert quick[name].dtype == column.dtype
        assert quick[name].tobytes() == column.tobytes() if column.dtype != object else (quick[name] == column).all()
    return True


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
odd_records = st.builds(
    lambda changes, extra, lost: {
        name: value for name, value in {**record(**changes), **extra}.items() if name not in lost
    },
    st.dictionaries(st.sampled_from(sorted(record())), json_values, max_size=2),
    st.dictionaries(st.text(max_size=3), json_values, max_size=1),
    st.sets(st.sampled_from(sorted(record())), max_size=1),
)
plain_numbers = st.integers(-(2**80), 2**80) | st.floats(allow_nan=False, allow_infinity=False)


@settings(deadline=None)
@given(st.lists(st.tuples(plain_numbers, plain_numbers, st.booleans()), min_size=1, max_size=6))
def test_numbers_are_the_same_in_every_bit(rows: list[tuple[float, float, bool]]) -> None:
    assert check(NUMBERS, [json.dumps({"x": x, "y": y, "up": up}).encode() for x, y, up in rows])


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            plain_numbers,
            st.text(st.characters(exclude_characters='\\"', exclude_categories=("Cc", "Cs"))).filter(
                lambda text: not text.startswith(tuple("0123456789-{[")) and text not in ("true", "false")
            ),
            st.datetimes().map(lambda moment: moment.isoformat()),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_texts_and_times_are_the_same(rows: list[tuple[float, str, str]]) -> None:
    values = [json.dumps(record(x=x, host=host, at=at), ensure_ascii=False).encode() for x, host, at in rows]
    assert check(SCHEMA, values)


@settings(deadline=None)
@given(st.lists(st.integers(-(10**14), 10**14) | st.floats(-1e13, 1e13), min_size=1, max_size=5))
def test_times_that_are_numbers_are_the_same(times: list[float]) -> None:
    check(SCHEMA, [json.dumps(record(at=at)).encode() for at in times])


def test_milliseconds_and_seconds_are_read_at_once() -> None:
    assert check(SCHEMA, [json.dumps(record(at=at)).encode() for at in (1_700_000_000, 1_700_000_000_123, 1.5e9)])


@settings(max_examples=400, deadline=None)
@given(st.lists(odd_records, min_size=1, max_size=3))
def test_whatever_is_in_a_record_both_ways_agree(records: list[dict[str, Any]]) -> None:
    check(SCHEMA, [json.dumps(each).encode() for each in records])


@settings(max_examples=400, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 4))
def test_whatever_becomes_of_its_bytes_both_ways_agree(rng: random.Random, n_changes: int) -> None:
    whole = json.dumps(record()).encode()
    broken = bytearray(whole)
    for _ in range(n_changes):
        at = rng.randrange(len(broken))
        broken[at : at + rng.randint(0, 2)] = rng.choice(
            [b"", b"0", b'"', b"\\", b"\xff", b":", b",", b"{", b"}", b"\n", b" ", b"e", b"-", b"null", b"\xed\xa0\x80"]
        )
    check(SCHEMA, [whole, bytes(broken)])


@pytest.mark.parametrize(
    "odd",
    [
        b'{"x": 1, "x": 2, "y": 1, "up": true}',
        b'{"x": 1, "y": 2, "up": true, "z": 3}',
        b'{"x": 1, "up": true}',
        b'{"x": 1, "y": null, "up": true}',
        b'{"x": "1", "y": 2, "up": true}',
        b'{"x": true, "y": 2, "up": true}',
        b'{"x": 1, "y": 2, "up": 1}',
        b'{"x": 1,\n "y": 2, "up": true}',
        b'{"\\u0078": 1, "y": 2, "up": true}',
        b'{"x": 1e400, "y": 2, "up": true}',
        b'{"x": NaN, "y": 2, "up": true}',
        b"   ",
        b"[]",
        b'{"x": 1, "y": 2, "up": true} {"x": 1, "y": 2, "up": true}',
    ],
)
def test_what_is_not_just_the_declared_fields_is_left_to_the_slow_way(odd: bytes) -> None:
    assert not check(NUMBERS, [b'{"x": 1, "y": 2, "up": false}', odd])


@pytest.mark.parametrize("odd", [1, 1.0, True, {"a": 1}, [1], "200", "true", "tab\there"])
def test_text_that_may_have_been_something_else_is_left_to_the_slow_way(odd: Any) -> None:
    assert not check(SCHEMA, [json.dumps(record()).encode(), json.dumps(record(host=odd)).encode()])


def test_a_missing_or_large_value_is_left_to_the_slow_way() -> None:
    reader = ColumnReader.of(NUMBERS)
    assert reader is not None
    good = b'{"x": 1, "y": 2, "up": true}'
    assert reader.read([*[good] * LEAST_RECORDS, None], max_record_size=100) is None
    assert ColumnReader.of(NUMBERS).read([good] * LEAST_RECORDS, max_record_size=10) is None  # type: ignore[union-attr]


def test_few_records_are_not_worth_it() -> None:
    assert at_once(NUMBERS, [b'{"x": 1, "y": 2, "up": true}'] * (LEAST_RECORDS - 1)) is None


def test_a_stream_that_never_fits_is_hardly_ever_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = ColumnReader.of(NUMBERS)
    assert reader is not None
    tried: list[int] = []
    columns = ColumnReader._columns
    monkeypatch.setattr(ColumnReader, "_columns", lambda self, *given: tried.append(1) or columns(self, *given))
    odd = [b'{"x": 1, "y": 2, "up": true, "z": 1}'] * LEAST_RECORDS
    for _ in range(200):
        assert reader.read(odd, max_record_size=100) is None
    assert 5 < len(tried) < 12
    good = [b'{"x": 1, "y": 2, "up": true}'] * LEAST_RECORDS
    found = [reader.read(good, max_record_size=100) is not None for _ in range(70)]
    assert found[-1]
    assert sum(found) == len(found) - found.index(True)


@pytest.mark.parametrize(
    "fields",
    [
        (Field("x", path=("a",)), Field("y", path=("a", "b"))),
        (Field("x", path=("a", "b")), Field("y", path=("a",))),
        (Field("x", path=("a",)), Field("y", path=("a",))),
        (Field("photo", FieldKind.IMAGE, image=ImageSpec(8, 8)),),
    ],
)
def test_of_some_schemas_there_is_no_quick_way(fields: tuple[Field, ...]) -> None:
    assert ColumnReader.of(RecordSchema(fields)) is None


def test_the_decoder_goes_the_quick_way_and_keeps_times() -> None:
    decoder = JsonDecoder(SCHEMA)
    assert decoder._reader is not None
    raw = [StoredRecord("t", 0, i, 5, None, json.dumps(record(x=i)).encode()) for i in range(LEAST_RECORDS)]
    decoded = decoder.decode(raw)
    assert decoded.batch.time_ms.tolist() == [1_700_000_000_000] * LEAST_RECORDS
    assert decoded.batch.columns["x"].tolist() == list(range(LEAST_RECORDS))
    assert decoder._reader._rest == 0
    np.testing.assert_array_equal(decoded.batch.time_ms, one_by_one(SCHEMA, [r.value for r in raw]).batch.time_ms)
