"""The data sets that ship with the project, as streams of JSON records with labels that no detector sees."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from consumers.records import Field, FieldKind, RecordSchema

DATASETS = ("kdd", "thyroid", "arrhythmia")


@dataclass(frozen=True)
class Dataset:
    """A finite stream of records.

    Examples
    --------
    >>> thyroid = load("thyroid")
    >>> len(thyroid), int(thyroid.is_anomaly.sum()), len(thyroid.schema.fields)
    (3772, 93, 6)
    """

    name: str
    schema: RecordSchema
    n_records: int
    open_values: Callable[[], Iterator[bytes]]
    """Begins the stream anew; :meth:`values` reads better."""
    is_anomaly: NDArray[np.bool_] | None = None
    """``(n_records,)``; None where nobody knows."""
    kinds: tuple[str, ...] | None = None
    """What each record is: ``normal``, or the name of the attack; None where nobody knows."""

    @classmethod
    def from_values(cls, name: str, schema: RecordSchema, values: Sequence[bytes]) -> Dataset:
        """Return a data set without labels from records that are at hand."""
        return cls(name, schema, len(values), lambda: iter(values))

    def __len__(self) -> int:
        return self.n_records

    def values(self) -> Iterator[bytes]:
        """Yield the records, a JSON object each, in the order of the stream; made as they are asked for."""
        return self.open_values()


def load(name: str) -> Dataset:
    """Return the shipped data set `name`: see the README beside this file for what they are and where they come from.

    Raises
    ------
    ValueError
        If there is none of this name.
    """
    if name not in DATASETS:
        raise ValueError(f"data set {name!r} is not shipped; allowed: {', '.join(DATASETS)}")
    text = gzip.decompress(files(__name__).joinpath(f"{name}.columns.gz").read_bytes()).decode("ascii")
    *lines, (_, _, *labels) = [line.split(",") for line in text.splitlines()]
    fields = [Field(field_name, FieldKind(kind)) for field_name, kind, *_ in lines]
    columns = [_shared(values) for _, _, *values in lines]
    template = "{" + ",".join(f'"{field.name}":%s' for field in fields) + "}"
    kinds = tuple(_shared(labels))
    return Dataset(
        name,
        RecordSchema(tuple(fields)),
        len(kinds),
        lambda: ((template % row).encode() for row in zip(*columns, strict=True)),
        np.array([kind != "normal" for kind in kinds], dtype=np.bool_),
        kinds,
    )


def _shared(values: list[str]) -> list[str]:
    """Return equal texts as one object: a column has few different values, and millions of copies take space."""
    seen: dict[str, str] = {}
    return [seen.setdefault(value, value) for value in values]
