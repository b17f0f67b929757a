"""Schemas and ids: what is refused, what is the same again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from consumers.records import Field, FieldKind, ImageSpec, RecordSchema, StoredRecord, event_id

AT = Field("at", FieldKind.TIMESTAMP)
PHOTO = Field("photo", FieldKind.IMAGE, image=ImageSpec(32, 24, "grey", "pad"))


@pytest.mark.parametrize(
    ("fields", "time_field", "message"),
    [
        ((), None, "at least one numeric, categorical, boolean or image field"),
        ((AT,), "at", "at least one numeric, categorical, boolean or image field"),
        ((Field("x"), Field("y"), Field("x", FieldKind.BOOLEAN)), None, "unique, these are there twice: x"),
        ((Field("x"), AT), "x", r"time_field 'x' is not among the timestamp fields \['at'\]"),
        (
            (PHOTO, replace(PHOTO, name="back")),
            None,
            "at most one image field is allowed, these are there: photo, back",
        ),
    ],
)
def test_a_schema_that_contradicts_itself_is_refused(
    fields: tuple[Field, ...], time_field: str | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        RecordSchema(fields, time_field)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": FieldKind.IMAGE}, "field x: kind image needs the size of its pictures"),
        ({"image": ImageSpec(8, 8)}, "field x: kind numeric has no pictures, but their size"),
        ({"kind": FieldKind.IMAGE, "image": ImageSpec(8, 8), "is_required": False}, "field x: is not required"),
    ],
)
def test_a_field_has_a_size_of_pictures_if_it_is_one(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Field("x", **options)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0, 8), "size is 0 × 8 pixels; allowed: 1 to 4096 a side"),
        ((8, 4097), "size is 8 × 4097 pixels"),
        ((8, 8, "cmyk"), "mode is 'cmyk'; allowed: grey, rgb"),
        ((8, 8, "rgb", "zoom"), "resize is 'zoom'; allowed: exact, stretch, crop, pad"),
    ],
)
def test_a_picture_out_of_bounds_is_refused(values: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageSpec(*values)


@pytest.mark.parametrize("fields", [(Field("x", is_required=False),), (PHOTO, Field("x"))])
def test_a_schema_comes_back_from_its_dict_with_the_same_digest(fields: tuple[Field, ...]) -> None:
    schema = RecordSchema((*fields, Field("c", FieldKind.CATEGORICAL, ("a", "b")), AT), "at")
    again = RecordSchema.from_dict(schema.to_dict())
    assert again == schema
    assert again.digest == schema.digest


def test_the_digest_of_a_schema_stays_what_models_were_published_with() -> None:
    schema = RecordSchema((Field("x", is_required=False), Field("c", FieldKind.CATEGORICAL, ("a", "b")), AT), "at")
    assert schema.digest == "c9844eed0e9c6f5a46204c2f6f6b353e4f58973ccd63ed8a3dae4de1d1aca34a"


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
        RecordSchema((PHOTO,)),
        RecordSchema((replace(PHOTO, image=ImageSpec(24, 32, "grey", "pad")),)),
        RecordSchema((replace(PHOTO, image=ImageSpec(32, 24, "rgb", "pad")),)),
        RecordSchema((replace(PHOTO, image=ImageSpec(32, 24, "grey", "crop")),)),
    ]
    assert len({schema.digest for schema in schemas}) == len(schemas)


def test_a_model_sees_all_but_the_timestamps() -> None:
    schema = RecordSchema((Field("x"), AT, Field("c", FieldKind.CATEGORICAL)))
    assert schema.feature_names == ("x", "c")
    assert schema.categorical_names == ("c",)


def test_a_model_of_pictures_sees_nothing_else() -> None:
    schema = RecordSchema((Field("x"), PHOTO, AT, Field("c", FieldKind.CATEGORICAL)))
    assert schema.feature_names == ("photo",)
    assert schema.metadata_names == ("x", "c")
    assert schema.categorical_names == ()
    assert schema.image_field == PHOTO


def test_without_a_picture_nothing_is_metadata() -> None:
    assert RecordSchema((Field("x"),)).metadata_names == ()


def test_an_id_is_the_place_in_the_log() -> None:
    assert event_id(StoredRecord("a-b", 3, 42, 0, None, b"")) == "a-b-3-42"
