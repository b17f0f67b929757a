"""The words of a stream in data: a raw record, its schema, a columnar batch, a bad record, a verdict.

Everything here is immutable data. Reading bytes is :mod:`consumers.decoding`'s, writing verdicts is
:mod:`consumers.sinks`'s.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Literal, NamedTuple, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

Position = tuple[str, int]
"""A partition of a topic: ``(topic, partition)``."""


class RawRecord(Protocol):
    """One event as it lies in the log, undecoded.

    kafka-python's ``ConsumerRecord`` has these attributes, so a record from Kafka is passed on as it is.
    """

    @property
    def topic(self) -> str: ...  # noqa: D102
    @property
    def partition(self) -> int: ...  # noqa: D102
    @property
    def offset(self) -> int: ...  # noqa: D102
    @property
    def timestamp(self) -> int: ...  # noqa: D102
    @property
    def key(self) -> bytes | None: ...  # noqa: D102
    @property
    def value(self) -> bytes | None: ...  # noqa: D102
    @property
    def headers(self) -> Sequence[tuple[str, bytes | None]]: ...  # noqa: D102


class StoredRecord(NamedTuple):
    """A :class:`RawRecord` of our own making, for files, memory and tests. ``timestamp`` is in ms since the epoch."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]] = ()


class FieldKind(StrEnum):
    """What the values of a field are, and so how they are read and what they mean to a model."""

    NUMERIC = "numeric"
    """A finite number. Column: float64, NaN where missing."""
    CATEGORICAL = "categorical"
    """A string (numbers and booleans are read as their JSON text). Column: object, ``None`` where missing."""
    BOOLEAN = "boolean"
    """``true``/``false``, 0/1. Column: float64 with 0.0, 1.0, NaN where missing."""
    TIMESTAMP = "timestamp"
    """ISO 8601 text, or seconds or milliseconds since the epoch. Column: float64 seconds. Never a feature."""
    IMAGE = "image"
    """A JPEG, PNG or WebP. Column: uint8 ``(n, height, width, channels)``. The only feature where there is one."""


ImageMode = Literal["grey", "rgb"]
ResizeRule = Literal["exact", "stretch", "crop", "pad"]
MAX_IMAGE_SIDE = 4096


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """What every picture of a field is turned into.

    Parameters
    ----------
    width, height
        Pixels, 1 to 4096.
    mode
        ``grey``: one channel; ``rgb``: three.
    resize
        What becomes of a picture of another size. ``exact``: it is a bad record. ``stretch``: it is scaled to the size,
        whatever its proportions. ``crop``: it is scaled to cover the size, and the middle is taken. ``pad``: it is
        scaled to fit into the size, never enlarged, and put into the middle of black.

    Raises
    ------
    ValueError
        If a value is not allowed.
    """

    width: int
    height: int
    mode: ImageMode = "rgb"
    resize: ResizeRule = "stretch"

    def __post_init__(self) -> None:
        if not (1 <= self.width <= MAX_IMAGE_SIDE and 1 <= self.height <= MAX_IMAGE_SIDE):
            raise ValueError(f"size is {self.width} × {self.height} pixels; allowed: 1 to {MAX_IMAGE_SIDE} a side")
        for name, value, allowed in (("mode", self.mode, ImageMode), ("resize", self.resize, ResizeRule)):
            if value not in get_args(allowed):
                raise ValueError(f"{name} is {value!r}; allowed: {', '.join(get_args(allowed))}")

    @property
    def n_channels(self) -> int:
        """1 or 3."""
        return 1 if self.mode == "grey" else 3

    @property
    def n_bytes(self) -> int:
        """What one picture takes in a column."""
        return self.width * self.height * self.n_channels


@dataclass(frozen=True, slots=True)
class Field:
    """One declared field of a record.

    Parameters
    ----------
    name
        The column's name, unique in a schema.
    kind
        See :class:`FieldKind`.
    path
        Keys from the record's root to the value; ``(name,)`` if left empty.
    is_required
        If true, a record without the field, or with null in it, is bad. If false it is a missing value. A picture is
        always required.
    image
        With the kind image, and only with it: what the pictures are turned into.

    Raises
    ------
    ValueError
        If `image` does not go with the kind, or a picture is not required.
    """

    name: str
    kind: FieldKind = FieldKind.NUMERIC
    path: tuple[str, ...] = ()
    is_required: bool = True
    image: ImageSpec | None = None

    def __post_init__(self) -> None:
        if not self.path:
            object.__setattr__(self, "path", (self.name,))
        if (self.kind is FieldKind.IMAGE) != (self.image is not None):
            needed = "needs the size of its pictures" if self.image is None else "has no pictures, but their size"
            raise ValueError(f"field {self.name}: kind {self.kind.value} {needed}")
        if self.image is not None and not self.is_required:
            raise ValueError(f"field {self.name}: is not required; a picture always is, there is nothing in its place")


@dataclass(frozen=True)
class RecordSchema:
    """The fields that a record must have, in the order of a model's columns.

    A model learns from all of them but the timestamps; where one is a picture, from the picture alone, and the others
    are metadata: checked, and handed on with the verdict.

    Raises
    ------
    ValueError
        If there is no field, no field that a model can learn from, a name twice, more than one picture, or `time_field`
        names none of the timestamp fields.

    Examples
    --------
    >>> schema = RecordSchema((Field("bytes"), Field("service", FieldKind.CATEGORICAL)))
    >>> schema.feature_names
    ('bytes', 'service')
    >>> RecordSchema.from_dict(schema.to_dict()) == schema
    True
    """

    fields: tuple[Field, ...]
    time_field: str | None = None
    """The timestamp field that is the record's own time; the log's timestamp if None."""

    def __post_init__(self) -> None:
        names = [f.name for f in self.fields]
        doubled = sorted({n for n in names if names.count(n) > 1})
        if doubled:
            raise ValueError(f"schema: field names must be unique, these are there twice: {', '.join(doubled)}")
        if not self.feature_names:
            raise ValueError("schema: needs at least one numeric, categorical, boolean or image field to learn from")
        images = [f.name for f in self.fields if f.kind is FieldKind.IMAGE]
        if len(images) > 1:
            raise ValueError(f"schema: at most one image field is allowed, these are there: {', '.join(images)}")
        timestamps = [f.name for f in self.fields if f.kind is FieldKind.TIMESTAMP]
        if self.time_field is not None and self.time_field not in timestamps:
            raise ValueError(f"schema: time_field {self.time_field!r} is not among the timestamp fields {timestamps}")

    @property
    def image_field(self) -> Field | None:
        """The field that is a picture, if one is."""
        return next((f for f in self.fields if f.kind is FieldKind.IMAGE), None)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the columns that a model sees: all but the timestamps, or the picture alone."""
        if self.image_field is not None:
            return (self.image_field.name,)
        return tuple(f.name for f in self.fields if f.kind is not FieldKind.TIMESTAMP)

    @property
    def metadata_fields(self) -> tuple[Field, ...]:
        """The fields beside a picture, timestamps aside; none where there is no picture."""
        if self.image_field is None:
            return ()
        return tuple(f for f in self.fields if f.kind not in (FieldKind.IMAGE, FieldKind.TIMESTAMP))

    @property
    def metadata_names(self) -> tuple[str, ...]:
        """Names of the columns beside a picture, timestamps aside; none where there is no picture."""
        return tuple(f.name for f in self.metadata_fields)

    @property
    def categorical_names(self) -> tuple[str, ...]:
        """Names of the categorical columns that a model sees."""
        return tuple(f.name for f in self.fields if f.kind is FieldKind.CATEGORICAL and f.name in self.feature_names)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the schema's canonical JSON; a model fits the records that have the same digest."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form; :meth:`from_dict` reads it back."""
        return {"fields": [_field_to_dict(f) for f in self.fields], "time_field": self.time_field}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RecordSchema:
        """Read what :meth:`to_dict` wrote."""
        return cls(tuple(_field_from_dict(f) for f in data["fields"]), data.get("time_field"))


def _field_to_dict(field: Field) -> dict[str, Any]:
    parts = {"name": field.name, "kind": field.kind.value, "path": list(field.path), "is_required": field.is_required}
    return parts if field.image is None else {**parts, "image": asdict(field.image)}


def _field_from_dict(data: Mapping[str, Any]) -> Field:
    image = ImageSpec(**data["image"]) if "image" in data else None
    return Field(data["name"], FieldKind(data["kind"]), tuple(data["path"]), bool(data["is_required"]), image)


@dataclass(frozen=True)
class Batch:
    """Decoded records in columns, with the place of every row in the log.

    All arrays have the same length n, in the order in which the records were polled.
    """

    schema: RecordSchema
    columns: Mapping[str, NDArray[Any]]
    """Field name → ``(n,)``, of a picture ``(n, height, width, channels)``; dtype by :class:`FieldKind`."""
    raw: Sequence[RawRecord]
    """The records themselves, ``(n,)``: topic, partition, offset, key, headers and bytes of every row."""
    time_ms: NDArray[np.int64]
    """The record's own time in ms since the epoch (``schema.time_field``, else the log's timestamp), ``(n,)``."""

    def __len__(self) -> int:
        return len(self.raw)

    @property
    def features(self) -> dict[str, NDArray[Any]]:
        """The columns that a model sees, in the schema's order."""
        return {name: self.columns[name] for name in self.schema.feature_names}

    def metadata(self, row: int) -> dict[str, float | bool | str | None]:
        """Return what the record has beside its picture, as JSON has it; None for a missing value."""
        return {f.name: _plain(self.columns[f.name][row], f.kind) for f in self.schema.metadata_fields}


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that could not be decoded or scored, with the reason."""

    raw: RawRecord
    reason: str
    """One of a small closed set, fit for a metric label: see ``decoding.REASONS``."""
    detail: str
    """What is wrong, for people: field, value, what is allowed."""
    stage: str = "decode"


@dataclass(frozen=True)
class Decoded:
    """What a decoder made of a poll: the good rows as a batch, the bad ones with their reasons."""

    batch: Batch
    bad: tuple[BadRecord, ...] = ()


@dataclass(frozen=True, slots=True)
class Contribution:
    """How much one field adds to a record's score, with what was seen and what was expected given the other fields."""

    field: str
    contribution: float
    observed: float | str | None
    expected: float | str | None


@dataclass(frozen=True)
class Verdicts:
    """What one model version says of a batch. Row i belongs to ``batch.raw[i]``."""

    batch: Batch
    version: int
    score: NDArray[np.float64]
    """Raw score, ``(n,)``, higher = more anomalous."""
    p_value: NDArray[np.float64]
    """Share of normal records scoring at least as high, ``(n,)``, in (0, 1]."""
    severity: NDArray[np.float64]
    """log p / log α, ``(n,)``; 1.0 is the boundary for every model."""
    flagged: NDArray[np.bool_]
    """severity ≥ 1, ``(n,)``, but for rows of `known_normals`."""
    contributions: Mapping[int, Sequence[Contribution]] = field(default_factory=dict)
    """Row → its top fields, greatest first. Only flagged rows have them."""
    heat_maps: Mapping[int, str] = field(default_factory=dict)
    """Row → where a picture of what caused its score is to be had. Only flagged rows of pictures have one."""
    trace_headers: Mapping[int, Sequence[tuple[str, bytes | None]]] = field(default_factory=dict)
    """Row → headers that its alert is given beside its own, such as ``traceparent``. Only flagged rows have them."""

    known_normals: Mapping[int, str] = field(default_factory=dict)
    """Row → the event id of a record near it that a person marked normal: so it is not flagged, though severity ≥ 1."""

    def __len__(self) -> int:
        return len(self.batch)

    @property
    def flagged_by_model(self) -> NDArray[np.bool_]:
        """severity ≥ 1, ``(n,)``, whatever people say: what a watch over the model must see."""
        if not self.known_normals:
            return self.flagged
        flagged = self.flagged.copy()
        flagged[list(self.known_normals)] = True
        return flagged


def _plain(value: Any, kind: FieldKind) -> float | bool | str | None:
    """Return the value of a column as JSON has it."""
    if kind is FieldKind.CATEGORICAL:
        return None if value is None else str(value)
    if np.isnan(value):
        return None
    return bool(value) if kind is FieldKind.BOOLEAN else float(value)


def event_id(raw: RawRecord) -> str:
    """Return ``topic-partition-offset``: the same for every delivery of the same record."""
    return f"{raw.topic}-{raw.partition}-{raw.offset}"
