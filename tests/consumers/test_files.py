"""Files: every kind gives the same records, and what their fields are is seen from them."""

from __future__ import annotations

import datetime
import json
import logging
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from consumers.decoding import JsonDecoder
from consumers.errors import LibraryMissing, SourceError
from consumers.records import Field, FieldKind
from consumers.sources.files import FileSource, infer_schema

ROWS: list[dict[str, Any]] = [
    {"size": 1, "load": 0.5, "route": "/", "ok": True, "at": "2024-01-01T00:00:00"},
    {"size": 2, "load": None, "route": "/pay", "ok": False, "at": "2024-01-01T00:00:01"},
    {"size": 3, "load": 1.5, "route": "/", "ok": True, "at": "2024-01-01T00:00:02"},
]


def write(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    if path.suffix == ".csv":
        pl.DataFrame(rows).write_csv(path)
    elif path.suffix == ".parquet":
        pl.DataFrame(rows).write_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    source = FileSource(path)
    return [json.loads(record.value or b"") for record in source.poll(0.0)]


@pytest.mark.parametrize("suffix", [".ndjson", ".jsonl", ".csv", ".parquet"])
def test_every_kind_of_file_gives_the_same_records_and_schema(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"records{suffix}")
    assert read(path) == ROWS
    schema = infer_schema(path)
    assert schema.fields == (
        Field("size"),
        Field("load", is_required=False),
        Field("route", FieldKind.CATEGORICAL),
        Field("ok", FieldKind.BOOLEAN),
        Field("at", FieldKind.TIMESTAMP),
    )
    assert schema.time_field == "at"
    assert not JsonDecoder(schema).decode(FileSource(path).poll(0.0)).bad


def test_a_table_s_own_types_become_json(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    moment = datetime.datetime(2024, 1, 1, 12, 30)
    frame = pl.DataFrame(
        {"price": [Decimal("1.50")], "took": [datetime.timedelta(seconds=90)], "at": [moment], "gap": [float("nan")]}
    )
    frame.write_parquet(path)
    assert read(path) == [{"price": 1.5, "took": 90.0, "at": "2024-01-01T12:30:00", "gap": None}]


def test_text_far_down_in_a_column_of_numbers_stays_text_and_leaves_the_numbers_numbers(tmp_path: Path) -> None:
    path = tmp_path / "late.csv"
    path.write_text("x\n" + "1\n" * 30_000 + "broken\nn/a\n")
    records = FileSource(path, max_batch=50_000).poll(0.0)
    assert [json.loads(record.value or b"")["x"] for record in records[-3:]] == [1, "broken", None]
    assert {record.value for record in records[:-2]} == {b'{"x":1}'}


def test_a_column_of_texts_keeps_what_looks_like_a_number(tmp_path: Path) -> None:
    path = tmp_path / "codes.csv"
    path.write_text("code\n1\nA7\nNA\n")
    assert read(path) == [{"code": "1"}, {"code": "A7"}, {"code": "NA"}]


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (b"\xef\xbb\xbfa,b\n1,x\n", [{"a": 1, "b": "x"}]),
        (b'a;"b, c"\n1,5;"x, y"\n2;z\n', [{"a": 1.5, "b, c": "x, y"}, {"a": 2.0, "b, c": "z"}]),
        (b"a\tb\n1\tx\n", [{"a": 1, "b": "x"}]),
        (b"a|b\n1|x\n", [{"a": 1, "b": "x"}]),
        (b"a, b\n1, 2\n 3, 4\n", [{"a": 1, "b": 2}, {"a": 3, "b": 4}]),
        ("größe,ort\n1,Zürich\n".encode("utf-16"), [{"größe": 1, "ort": "Zürich"}]),
        ("a,ort\n1,Zürich\n".encode("cp1252"), [{"a": 1, "ort": "Zürich"}]),
        (b"a,b\n1,\nnan,x\nNA,y\n-,z\n2.5,z\n", [
            {"a": 1.0, "b": None}, {"a": None, "b": "x"}, {"a": None, "b": "y"}, {"a": None, "b": "z"},
            {"a": 2.5, "b": "z"},
        ]),
        (b"a\n123456789012345678901234567890\n", [{"a": 1.2345678901234568e29}]),
        (b"a,a\n1,2\n", [{"a": 1, "a_duplicated_0": 2}]),
        (b"a\n1\n\n3\n", [{"a": 1}, {"a": None}, {"a": 3}]),
        (b"a,b\n", []),
    ],
)  # fmt: skip
def test_a_csv_is_read_as_people_have_it(tmp_path: Path, content: bytes, rows: list[dict[str, Any]]) -> None:
    path = tmp_path / "ugly.csv"
    path.write_bytes(content)
    assert read(path) == rows


def test_blank_lines_are_no_records(tmp_path: Path) -> None:
    path = tmp_path / "gaps.ndjson"
    path.write_bytes(b'{"x": 1}\n\n  \n{"x": 2}')
    records = FileSource(path).poll(0.0)
    assert [(r.offset, r.value) for r in records] == [(0, b'{"x": 1}'), (1, b'{"x": 2}')]
    assert {r.topic for r in records} == {"gaps.ndjson"}


def schema_of(tmp_path: Path, rows: list[dict[str, Any]]) -> dict[str, tuple[str, bool]]:
    schema = infer_schema(write(tmp_path / "some.ndjson", rows))
    return {field.name: (field.kind.value, field.is_required) for field in schema.fields}


def test_objects_are_looked_into_and_lists_left_out(tmp_path: Path) -> None:
    rows = [{"x": 1, "meta": {"host": "a", "n": 2}, "tags": [1]}, {"x": 2, "meta": {"host": "b"}, "tags": []}]
    path = write(tmp_path / "nested.ndjson", rows)
    assert infer_schema(path).fields == (
        Field("x"),
        Field("meta.host", FieldKind.CATEGORICAL, ("meta", "host")),
        Field("meta.n", FieldKind.NUMERIC, ("meta", "n"), is_required=False),
    )


def test_ids_and_free_text_are_left_out_and_the_log_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"x": i, "id": f"id-{i}", "route": f"/{i % 30}", "none": None} for i in range(100)]
    with caplog.at_level(logging.INFO):
        found = schema_of(tmp_path, rows)
    assert list(found) == ["x", "route"]
    assert "field id is left out: 100 different values in 100 records" in caplog.text
    assert "field none is left out: it never has a value" in caplog.text


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("timestamp", 1_700_000_000, "timestamp"),
        ("event_time", 1_700_000_000_000, "timestamp"),
        ("bytes", 1_700_000_000, "numeric"),
        ("time", 12.5, "numeric"),
        ("code", "20240101", "categorical"),
        ("day", "2024-01-01", "timestamp"),
        ("eventTime", 1_700_000_000, "timestamp"),
        ("counts", 1_700_000_000, "numeric"),
    ],
)
def test_a_field_s_kind_is_seen_from_its_values(tmp_path: Path, name: str, value: Any, kind: str) -> None:
    assert schema_of(tmp_path, [{"x": 1, name: value}])[name] == (kind, True)


def test_numbers_among_texts_make_a_categorical_field(tmp_path: Path) -> None:
    assert schema_of(tmp_path, [{"x": 1, "code": 7}, {"x": 2, "code": "7b"}])["code"] == ("categorical", True)


def test_bad_lines_say_nothing_about_the_fields(tmp_path: Path) -> None:
    path = tmp_path / "bad.ndjson"
    path.write_bytes(b'{"x": 1}\n{"x":\n[1]\n{"x": 2}\n')
    assert infer_schema(path).fields == (Field("x"),)


def test_only_the_first_records_are_looked_at(tmp_path: Path) -> None:
    rows = [{"x": 1}, {"x": 2}, {"x": "late"}]
    assert infer_schema(write(tmp_path / "late.ndjson", rows), n=2).fields == (Field("x"),)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.ndjson", None, "there is no such file"),
        ("picture.png", b"", "files of kind '.png' are not read; allowed: .ndjson, .jsonl, .csv, .parquet"),
        ("broken.parquet", b"nope", "is no readable .parquet file"),
        ("empty.csv", b"", "is no readable .csv file"),
    ],
)
def test_an_unreadable_file_says_what_is_wrong(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=message) as raised:
        FileSource(tmp_path / name).poll(0.0)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"[1]\n", b'{"id": [1]}\n'])
def test_a_file_without_usable_fields_has_no_schema(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "useless.ndjson"
    path.write_bytes(content)
    with pytest.raises(SourceError, match="no records with usable fields"):
        infer_schema(path)


@pytest.mark.parametrize("name", ["records.csv", "records.parquet"])
def test_without_polars_the_message_says_what_to_install(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / name)
    monkeypatch.setitem(sys.modules, "polars", None)
    for read in (infer_schema, lambda path: FileSource(path).poll(0.0)):
        with pytest.raises(LibraryMissing, match=rf"{path.suffix} needs polars; pip install 'srr-stream\[parquet\]'"):
            read(path)
