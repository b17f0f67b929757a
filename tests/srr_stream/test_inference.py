"""What records are made of: each kind of field seen for what it is, and a reason for each that is left out."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import PIL.Image
import pytest

from consumers.records import FieldKind, StoredRecord
from srr_stream.errors import NotEnoughRecords
from srr_stream.first_look.inference import FoundField, Inferred, infer

N = 200


def records(rows: Sequence[Any], *, partition: int = 0) -> list[StoredRecord]:
    values = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    return [StoredRecord("t", partition, i, 0, None, value) for i, value in enumerate(values)]


def column(values: Sequence[Any], *, name: str = "c") -> FoundField:
    """What is found of one column beside a number that is always good."""
    found = infer(records([{"x": i % 7, name: value} for i, value in enumerate(values)]))
    return next(one for one in (*found.fields, *found.left_out) if one.name == name)


def kinds(found: Inferred) -> dict[str, tuple[str, bool]]:
    return {one.name: (one.kind.value if one.kind else "", one.is_required) for one in found.fields}


def reasons(found: Inferred) -> dict[str, str]:
    return {one.name: one.why_not or "" for one in found.left_out}


def test_numbers_say_their_range_and_their_median() -> None:
    found = column([9140, *range(1, N)])
    assert (found.kind, found.is_required, found.why_not) == (FieldKind.NUMERIC, True, None)
    assert found.seen == "200 of 200, 1 … 9,140, median 100.5"


def test_texts_with_few_values_are_categories_and_the_most_frequent_are_named() -> None:
    found = column([["http", "ftp", "http", "smtp", "dns", "ssh", "ntp"][i % 7] for i in range(N)])
    assert found.kind is FieldKind.CATEGORICAL
    assert found.seen == "200 of 200, 6 values: http, ftp, smtp, dns, ssh, …"


def test_what_is_absent_or_null_anywhere_is_not_required() -> None:
    rows = [{"x": 1, "sometimes": 2.5}, {"x": 2}, {"x": 3, "sometimes": None}] * 40
    assert kinds(infer(records(rows))) == {"x": ("numeric", True), "sometimes": ("numeric", False)}


def test_truth_is_boolean_also_where_some_write_it_as_a_number() -> None:
    assert column([True, False] * 100).kind is FieldKind.BOOLEAN
    mixed = column([True, 0, 1, False] * 50)
    assert (mixed.kind, mixed.seen) == (FieldKind.BOOLEAN, "200 of 200, true in 50.0 %")
    assert column([0, 1] * 100).kind is FieldKind.NUMERIC


def test_objects_are_looked_into_and_fields_named_by_their_path() -> None:
    found = infer(records([{"a": {"b": {"c": i % 5}, "d": "x y"[:: i % 2 * 2 - 1]}} for i in range(N)]))
    assert [(one.name, one.path, one.kind) for one in found.fields] == [
        ("a.b.c", ("a", "b", "c"), FieldKind.NUMERIC),
        ("a.d", ("a", "d"), FieldKind.CATEGORICAL),
    ]


def test_a_key_with_a_dot_is_a_name_at_the_root_and_left_out_below() -> None:
    found = infer(records([{"a.b": i % 3, "a": {"b": i % 4}, "o": {"p.q": 1}, "": 5} for i in range(N)]))
    assert kinds(found) == {"a.b": ("numeric", True)}
    assert set(reasons(found)) == {"a.b", "o.p.q", ""}
    assert "which the dotted path of the settings cannot say" in reasons(found)["o.p.q"]
    assert reasons(found)["a.b"] == "another field has the same name with dots"


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ([None] * N, "it never has a value"),
        ([[1, 2]] * N, "lists are no features"),
        ([f"text {i}" for i in range(N)], "200 different texts in 200 records: ids or free text"),
        ([f"text {i % 90}" for i in range(N)], None),
        (["prod"] * N, "always the same text"),
        (list(range(1000, 1000 + N)), "grows from record to record, as ids and counters do"),
        ([1_700_000_000_123_456_000 + (i * 37) % N for i in range(N)], None),
        ([f"{i}.5" for i in range(N)], "numbers sent as text; send JSON numbers"),
        ([f"{i % 28 + 1}/03/2024 1{i % 10}:{i % 60}" for i in range(N)], "a date in a form that is not read"),
        ([{"k": 1} if i % 2 else 5 for i in range(N)], "1 of 200 records|it is an object in some records"),
    ],
)
def test_what_a_model_cannot_learn_from_is_left_out_with_the_reason(values: list[Any], why: str | None) -> None:
    found = column(values)
    if why is None:
        assert found.why_not is None
    else:
        assert any(part in (found.why_not or "") for part in why.split("|")), found


def test_too_many_categories_are_left_out_and_the_limit_is_a_parameter() -> None:
    rows = records([{"x": 1, "c": f"text {i % 50}"} for i in range(N)])
    assert "c" in kinds(infer(rows))
    assert reasons(infer(rows, max_categories=40)) == {"c": "50 different texts; up to 40 are taken as categories"}


def test_a_number_that_names_something_is_a_category_or_left_out() -> None:
    few = column([i % 12 for i in range(N)], name="device_id")
    assert (few.kind, few.note) == (FieldKind.CATEGORICAL, "numbers that name something, read as categories")
    rng = np.random.default_rng(0)
    many = column([int(i) for i in rng.permutation(N)], name="userId")
    assert many.why_not == "an id by its name: 200 different numbers"
    assert column([7] * N, name="tenant_id").why_not == "an id that is always the same"
    assert column([i % 12 for i in range(N)], name="paid").kind is FieldKind.NUMERIC


def test_a_constant_number_stays_because_a_change_would_be_a_surprise() -> None:
    assert column([0] * N).seen == "200 of 200, always 0"


@pytest.mark.parametrize("name", ["label", "Class", "is_fraud", "anomaly", "isFraud", "target", "attack_cat", "y"])
def test_what_looks_like_a_label_is_left_out(name: str) -> None:
    found = column([i % 2 for i in range(N)], name=name)
    assert found.is_label
    assert found.why_not is not None
    assert "must not learn" in found.why_not


def test_what_is_named_like_a_label_but_has_many_values_is_a_field() -> None:
    assert not column([i % 3 for i in range(N)], name="y").is_label
    assert not column([f"u{i}" for i in range(N)], name="target").is_label


def test_the_time_that_runs_with_the_log_is_the_record_s_own() -> None:
    rows = [
        {
            "x": i % 7,
            "born": f"19{50 + (i * 37) % 50}-01-02",
            "seen_at": f"2024-05-01T12:{i // 60:02}:{i % 60:02}Z",
            "sent_ms": 1_700_000_000_000 + 1000 * i,
        }
        for i in range(N)
    ]
    found = infer(records(rows))
    assert found.time_field == "seen_at"
    assert kinds(found) == {"x": ("numeric", True), "seen_at": ("timestamp", True)}
    assert "does not run with the log" in reasons(found)["born"]
    assert "another time beside seen_at" in reasons(found)["sent_ms"]


def test_growth_is_looked_for_within_partitions() -> None:
    halves = [records([{"x": 1, "at": 1_700_000_000 + i} for i in range(50)], partition=p) for p in (0, 1)]
    assert infer([*halves[0], *halves[1]]).time_field == "at"


@pytest.mark.parametrize(
    ("name", "values", "kind"),
    [
        ("bytes", [1_700_000_000 + (i * 7919) % 1000 for i in range(N)], FieldKind.NUMERIC),
        ("epoch", [1_700_000_000 + i for i in range(N)], FieldKind.TIMESTAMP),
        ("epoch", [1_700_000_000.5 + i for i in range(N)], FieldKind.TIMESTAMP),
        ("ms", [1_700_000_000_000 + i for i in range(N)], FieldKind.TIMESTAMP),
        ("code", ["20240101", "20240102"] * 100, FieldKind.CATEGORICAL),
    ],
)
def test_numbers_are_a_time_if_they_run_or_are_named_so(name: str, values: list[Any], kind: FieldKind) -> None:
    assert column(values, name=name).kind is kind


def test_a_time_in_microseconds_is_left_out_because_no_decoder_reads_it() -> None:
    found = column([1_700_000_000_000_000 + i for i in range(N)], name="timestamp")
    assert found.why_not == "a time in µs or ns since the epoch; only seconds and milliseconds are read"


def test_a_few_records_that_do_not_fit_cost_no_field_and_many_cost_the_worst_one() -> None:
    few = [{"x": 1.5 if i else "broken", "z": 2} for i in range(N)]
    assert kinds(infer(records(few))) == {"x": ("numeric", True), "z": ("numeric", True)}
    # Each of these fields is bad in less than 1 % of the records, together they are not.
    many = [{f"f{k}": "broken" if i in (2 * k, 2 * k + 1) else i % 9 for k in range(5)} | {"z": 1} for i in range(300)]
    found = infer(records(many))
    assert "z" in kinds(found)
    assert 0 < len(found.left_out) < 5
    assert "2 of 300 records hold something else there" in next(iter(reasons(found).values()))


def test_numbers_among_many_texts_make_a_category() -> None:
    assert column([7 if i % 2 else "7b" for i in range(N)]).kind is FieldKind.CATEGORICAL


def test_keys_of_a_map_are_no_fields_and_are_counted() -> None:
    found = infer(records([{"x": 1, "by_user": {f"u{i}": 1}} for i in range(N)]))
    assert kinds(found) == {"x": ("numeric", True)}
    assert found.n_more_left_out == N


def test_records_that_are_no_objects_are_counted_and_say_nothing() -> None:
    found = infer(records([*([{"x": 1}] * 50), b"{", b"[1]", b""]))
    assert (found.n_unreadable, kinds(found)) == (3, {"x": ("numeric", True)})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "there are no records to look at"),
        ([b"\0\0\0\0\7rest"] * 9, "begin with a zero byte, as Avro"),
        ([b"a;b;c"] * 9, "are no JSON"),
        ([b"text"] * 9, "are text, but no JSON"),
        ([b"[1, 2]"] * 9, "are JSON, but no objects"),
        ([b""] * 9, "have no value"),
        ([{}] * 9, "no field is left"),
        ([{"label": 1, "tags": []}] * 9, "no field is left that a model could learn from: label: looks like a label"),
        ([{"at": "2024-01-01"}] * 9, "no field is left"),
    ],
)
def test_records_that_nothing_can_be_learned_from_say_what_they_are(rows: list[Any], message: str) -> None:
    with pytest.raises(NotEnoughRecords, match=message.replace("(", r"\(")):
        infer(records(rows))


def test_an_object_nested_beyond_reason_is_no_trouble() -> None:
    deep = b'{"x": 1, "d": ' + b'{"d": ' * 900 + b"1" + b"}" * 900 + b"}"
    found = infer(records([deep] * 20))
    assert "x" in kinds(found)


def test_topics_of_pictures_have_one_field(encode: Callable[..., bytes]) -> None:
    files = [encode(PIL.Image.new("RGB", (40, 20), (i, 0, 0)), "PNG") for i in range(5)]
    found = infer(records([*files, b"{}"]))
    (field,) = found.fields
    assert (found.format, found.n_unreadable, field.kind) == ("image", 1, FieldKind.IMAGE)
    assert field.image is not None
    assert (field.image.width, field.image.height, field.image.mode) == (40, 20, "rgb")
    with pytest.raises(NotEnoughRecords, match="none of 3 pictures can be read"):
        infer(records([b"\x89PNG\r\n\x1a\nnothing"] * 3))


def test_a_picture_in_a_record_is_the_picture_if_every_record_has_it(encode: Callable[..., bytes]) -> None:
    text = base64.b64encode(encode(PIL.Image.new("L", (8, 8)), "PNG")).decode()
    found = infer(records([{"camera": f"c{i % 3}", "front": text, "back": text} for i in range(30)]))
    assert kinds(found) == {"camera": ("categorical", True), "front": ("image", True)}
    assert reasons(found) == {"back": "another field is the picture"}
    some = infer(records([{"x": i % 3, "photo": text if i % 2 else None} for i in range(30)]))
    assert reasons(some) == {"photo": "a picture is required, and some records have none"}
    broken = infer(records([{"x": i % 3, "photo": text[:40]} for i in range(30)]))
    assert reasons(broken) == {"photo": "its pictures cannot be read"}


def test_what_is_seen_cannot_break_a_line() -> None:
    found = column(["a\nb: [", "x\x1b[2J"] * 100)
    assert found.seen.isprintable()
