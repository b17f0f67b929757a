"""The words of a stream in data: a raw record, its schema, a columnar batch, a bad record, a verdict.

Everything here is immutable data. Reading bytes is :mod:`consumers.decoding`'s, writing verdicts is
:mod:`consumers.sinks`'s.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

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
        If true, a record without the field, or with null in it, is bad. If false it is a missing value.
    """

    name: str
    kind: FieldKind = FieldKind.NUMERIC
    path: tuple[str, ...] = ()
    is_required: bool = True

    def __post_init__(self) -> None:
        if not self.path:
            object.__setattr__(self, "path", (self.name,))


@dataclass(frozen=True)
class RecordSchema:
    """The fields that a record must have, in the order of a model's columns.

    Raises
    ------
    ValueError
        If there is no field, no field that a model can learn from, a name twice, or `time_field` names none of the
        timestamp fields.

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
            raise ValueError("schema: needs at least one numeric, categorical or boolean field to learn from")
        timestamps = [f.name for f in self.fields if f.kind is FieldKind.TIMESTAMP]
        if self.time_field is not None and self.time_field not in timestamps:
            raise ValueError(f"schema: time_field {self.time_field!r} is not among the timestamp fields {timestamps}")

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the columns that a model sees: all but the timestamps."""
        return tuple(f.name for f in self.fields if f.kind is not FieldKind.TIMESTAMP)

    @property
    def categorical_names(self) -> tuple[str, ...]:
        """Names of the categorical columns."""
        return tuple(f.name for f in self.fields if f.kind is FieldKind.CATEGORICAL)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the schema's canonical JSON; a model fits the records that have the same digest."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form; :meth:`from_dict` reads it back."""
        return {
            "fields": [
                {"name": f.name, "kind": f.kind.value, "path": list(f.path), "is_required": f.is_required}
                for f in self.fields
            ],
            "time_field": self.time_field,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RecordSchema:
        """Read what :meth:`to_dict` wrote."""
        fields = tuple(
            Field(f["name"], FieldKind(f["kind"]), tuple(f["path"]), bool(f["is_required"])) for f in data["fields"]
        )
        return cls(fields, data.get("time_field"))


@dataclass(frozen=True)
class Batch:
    """Decoded records in columns, with the place of every row in the log.

    All arrays have the same length n, in the order in which the records were polled.
    """

    schema: RecordSchema
    columns: Mapping[str, NDArray[Any]]
    """Field name → ``(n,)``, dtype by :class:`FieldKind`."""
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
    """severity ≥ 1, ``(n,)``."""
    contributions: Mapping[int, Sequence[Contribution]] = field(default_factory=dict)
    """Row → its top fields, greatest first. Only flagged rows have them."""

    def __len__(self) -> int:
        return len(self.batch)


def event_id(raw: RawRecord) -> str:
    """Return ``topic-partition-offset``: the same for every delivery of the same record."""
    return f"{raw.topic}-{raw.partition}-{raw.offset}"
