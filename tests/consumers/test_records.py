"""Schemas and ids: what is refused, what is the same again."""

from __future__ import annotations

import pytest

from consumers.records import Field, FieldKind, RecordSchema, StoredRecord, event_id

AT = Field("at", FieldKind.TIMESTAMP)


@pytest.mark.parametrize(
    ("fields", "time_field", "message"),
    [
        ((), None, "at least one numeric, categorical or boolean field"),
        ((AT,), "at", "at least one numeric, categorical or boolean field"),
        ((Field("x"), Field("y"), Field("x", FieldKind.BOOLEAN)), None, "unique, these are there twice: x"),
        ((Field("x"), AT), "x", r"time_field 'x' is not among the timestamp fields \['at'\]"),
    ],
)
def test_a_schema_that_contradicts_itself_is_refused(
    fields: tuple[Field, ...], time_field: str | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        RecordSchema(fields, time_field)


def test_a_schema_comes_back_from_its_dict_with_the_same_digest() -> None:
    schema = RecordSchema((Field("x", is_required=False), Field("c", FieldKind.CATEGORICAL, ("a", "b")), AT), "at")
    again = RecordSchema.from_dict(schema.to_dict())
    assert again == schema
    assert again.digest == schema.digest


def test_any_difference_makes_another_digest() -> None:
    schemas = [
        RecordSchema((Field("x"),)),
        RecordSchema((Field("y"),)),
        RecordSchema((Field("x", FieldKind.BOOLEAN),)),
        RecordSchema((Field("x", path=("a", "x")),)),
        RecordSchema((Field("x", is_required=False),)),
        RecordSchema((Field("x"), AT)),
        RecordSchema((Field("x"), AT), "at"),
        RecordSchema((AT, Field("x")), "at"),
    ]
    assert len({schema.digest for schema in schemas}) == len(schemas)


def test_a_model_sees_all_but_the_timestamps() -> None:
    schema = RecordSchema((Field("x"), AT, Field("c", FieldKind.CATEGORICAL)))
    assert schema.feature_names == ("x", "c")
    assert schema.categorical_names == ("c",)


def test_an_id_is_the_place_in_the_log() -> None:
    assert event_id(StoredRecord("a-b", 3, 42, 0, None, b"")) == "a-b-3-42"
