"""JSON records into columns, by msgspec: declared fields are read straight into their types, all others are skipped.

Each record by itself. What cannot be read is left to :class:`consumers.decoding.JsonDecoder`, which says why it is bad,
or takes it after all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, repeat
from typing import Any, Union

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray

from consumers.records import Field, FieldKind, RecordSchema
from consumers.times import seconds

CHUNK_ROWS = 256
"""Records that are objects at the same time: so few stay in the processor's cache until they are columns."""
TYPES: dict[FieldKind, tuple[type, ...]] = {
    FieldKind.NUMERIC: (int, float),
    FieldKind.BOOLEAN: (bool, int, float),
    FieldKind.CATEGORICAL: (str, bool, int, float),
    FieldKind.TIMESTAMP: (str, int, float),
}
"""What a value in JSON may be in a field of a kind."""
_READ_AS: dict[FieldKind, tuple[type, ...]] = {
    **TYPES,
    FieldKind.NUMERIC: (float,),
    FieldKind.BOOLEAN: (bool, float),
    FieldKind.TIMESTAMP: (str, float),
}
"""The same as msgspec reads it: whole numbers, however long, as what they are in float64, but for texts."""
_PLAIN = (FieldKind.NUMERIC, FieldKind.BOOLEAN)
_UNREADABLE = (msgspec.MsgspecError, ValueError, TypeError, RecursionError)

Values = Sequence[Any] | NDArray[Any]
Tree = dict[str, Union["Tree", Field]]
"""Keys of a record, and below them a field, or an object with keys of its own."""


class ColumnReader:
    """Read JSON records of a schema, or leave them.

    Parameters
    ----------
    fields, tree
        See :meth:`of`.
    max_record_size
        Bytes; a larger record is left.

    Examples
    --------
    >>> reader = ColumnReader.of(RecordSchema((Field("x"), Field("y"))), max_record_size=100)
    >>> columns, left = reader.read([b'{"x": 1, "y": 2.5}', b'{"x": 1, "y": "2.5"}', b'{"y": 1, "x": 0, "z": 7}'])
    >>> columns["y"].tolist(), left
    ([2.5, 1.0], [1])
    """

    def __init__(self, fields: Sequence[Field], tree: Tree, *, max_record_size: int) -> None:
        self._fields = fields
        self._tree = tree
        self._has_plain_numbers = all(len(f.path) == 1 and f.kind in _PLAIN for f in fields)
        self._max_record_size = max_record_size
        self._decode = msgspec.json.Decoder(_struct(tree)).decode

    @classmethod
    def of(cls, schema: RecordSchema, *, max_record_size: int) -> ColumnReader | None:
        """Return a reader; None if a field is a picture, or below another one, or msgspec has no such key."""
        tree = _tree(schema.fields)
        try:
            return None if tree is None else cls(schema.fields, tree, max_record_size=max_record_size)
        except ValueError:  # quotes, backslashes and control characters
            return None

    def read(self, values: Sequence[bytes | None]) -> tuple[dict[str, NDArray[Any]], list[int]]:
        """Return field → ``(r,)`` of the r records that could be read, in their order, and the places of the others.

        Parameters
        ----------
        values
            ``(n,)``; with every value that is left a call takes longer, by a microsecond or two.
        """
        parts, left = [], []
        for start in range(0, max(1, len(values)), CHUNK_ROWS):
            columns, left_here = self._read_chunk(values[start : start + CHUNK_ROWS])
            parts.append(columns)
            left += [start + row for row in left_here]
        return {f.name: np.concatenate([part[f.name] for part in parts]) for f in self._fields}, left

    def _read_chunk(self, values: Sequence[bytes | None]) -> tuple[dict[str, NDArray[Any]], list[int]]:
        left: list[int] = []
        found = self._plain_numbers(values) if self._has_plain_numbers else None
        if found is None:
            records, left = self._records(values)
            found = _picked(records, self._tree)
        columns, alien = {}, set[int]()
        for field, column in found:
            columns[field.name], alien_here = TO_COLUMN[field.kind](column)
            alien.update(alien_here)
        if alien:
            rows = np.delete(np.arange(len(values)), left)
            left = sorted([*left, *rows[list(alien)].tolist()])
            columns = {name: np.delete(column, list(alien)) for name, column in columns.items()}
        return columns, left

    def _plain_numbers(self, values: Sequence[bytes | None]) -> Iterable[tuple[Field, Values]] | None:
        """Return every field with its values; None if a record is left, or null is in one.

        Each record is gone before the next one is made, so that their memory stays in the processor's cache.
        """
        try:
            if max(map(len, values), default=0) > self._max_record_size or not all(map(bytes.isascii, values)):  # type: ignore[arg-type]
                return None
            rows = map(msgspec.structs.astuple, map(self._decode, values))  # type: ignore[arg-type]  # None is a TypeError
            matrix = np.fromiter(chain.from_iterable(rows), np.float64, len(values) * len(self._fields))
        except _UNREADABLE:
            return None
        return zip(self._fields, np.ascontiguousarray(matrix.reshape(-1, len(self._fields)).T), strict=True)

    def _records(self, values: Sequence[bytes | None]) -> tuple[list[msgspec.Struct], list[int]]:
        """Return what could be read as objects, and the places of the others."""
        records, left = [], []
        for row, value in enumerate(values):
            try:
                if value is None or len(value) > self._max_record_size:
                    raise ValueError
                if not value.isascii():
                    value.decode()  # msgspec does not look at text that it skips
                records.append(self._decode(value))
            except _UNREADABLE:
                left.append(row)
        return records, left


def numbers(values: Values) -> tuple[NDArray[np.float64], list[int]]:
    """Return numbers and None as a column, ``(n,)``, NaN for None; and no rows that do not belong."""
    return np.asarray(values, dtype=np.float64), []


def booleans(values: Values) -> tuple[NDArray[np.float64], list[int]]:
    """Return booleans and numbers as a column of 0, 1 and, for None, NaN; and the rows with other numbers."""
    column, _ = numbers(values)
    return column, np.flatnonzero((column != 0.0) & (column != 1.0) & ~np.isnan(column)).tolist()


def texts(values: Values) -> tuple[NDArray[np.object_], list[int]]:
    """Return texts, and of other values their JSON, as a column of str or None; and the rows whose value has none.

    That is a whole number of more than 64 bits, which orjson does not write.
    """
    column = np.empty(len(values), dtype=object)
    column[:] = values
    alien = []
    if not set(map(type, values)) <= {str, type(None)}:
        for row, value in enumerate(values):
            if value is not None and type(value) is not str:
                try:
                    column[row] = orjson.dumps(value).decode()
                except orjson.JSONEncodeError:
                    alien.append(row)
    return column, alien


def times(values: Values) -> tuple[NDArray[np.float64], list[int]]:
    """Return times as a column of seconds since the epoch, NaN for None; and the rows that are no time."""
    column = np.full(len(values), np.nan)
    alien = []
    for row, value in enumerate(values):
        if value is not None:
            try:
                column[row] = seconds(value)
            except (ValueError, OverflowError):
                alien.append(row)
    return column, alien


TO_COLUMN: dict[FieldKind, Callable[[Values], tuple[NDArray[Any], list[int]]]] = {
    FieldKind.NUMERIC: numbers,
    FieldKind.BOOLEAN: booleans,
    FieldKind.CATEGORICAL: texts,
    FieldKind.TIMESTAMP: times,
}
"""How values of :data:`TYPES`, and None, become a column of a kind."""


def _tree(fields: Sequence[Field]) -> Tree | None:
    """Return where the fields are in a record; None if one is below another, or a picture."""
    tree: Tree = {}
    for field in fields:
        *above, last = field.path
        node = tree
        for key in above:
            below = node.setdefault(key, {})
            if isinstance(below, Field):
                return None
            node = below
        if last in node or field.kind not in TYPES:
            return None
        node[last] = field
    return tree


def _struct(tree: Tree) -> type[msgspec.Struct]:
    """Return the type of an object that holds what is declared; its fields are in the order of the tree."""
    fields: list[tuple[str, Any, Any]] = []
    for index, (key, below) in enumerate(tree.items()):
        kind: Any
        if isinstance(below, Field):
            kind = Union[_READ_AS[below.kind] if below.is_required else (*_READ_AS[below.kind], None)]  # noqa: UP007
            default = {} if below.is_required else {"default": math.nan if below.kind in _PLAIN else None}
        else:
            kind = _struct(below)
            default = {} if _is_needed(below) else {"default_factory": kind}
        fields.append((f"f{index}", kind, msgspec.field(name=key, **default)))  # keys may be no names in Python
    return msgspec.defstruct("Record", fields, kw_only=True, gc=False)


def _is_needed(tree: Tree) -> bool:
    return any(below.is_required if isinstance(below, Field) else _is_needed(below) for below in tree.values())


def _picked(records: Sequence[msgspec.Struct], tree: Tree) -> Iterator[tuple[Field, Values]]:
    """Yield every field with its values, ``(n,)``."""
    columns: Any = zip(*map(msgspec.structs.astuple, records), strict=True) if records else repeat(())
    for below, column in zip(tree.values(), columns, strict=False):
        if isinstance(below, Field):
            yield below, column
        else:
            yield from _picked(column, below)
