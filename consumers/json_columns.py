"""JSON records into columns all at once, by polars: no Python object is made of any number.

Only records that hold exactly the declared fields are read here, and only where the outcome is beyond doubt the one of
:class:`consumers.decoding.JsonDecoder` taking them one by one; of all others :meth:`ColumnReader.read` returns None.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Union

import numpy as np
from numpy.typing import NDArray

from consumers.records import Field, FieldKind, RecordSchema
from consumers.times import MS_FROM, YEAR_1, YEAR_10000, seconds

if TYPE_CHECKING:
    import polars as pl

LEAST_RECORDS = 64
"""With fewer, what a call costs is more than it saves."""
_MAX_REST = 64
"""Batches that are not tried after one that could not be read: a stream that never fits costs next to nothing."""
_KINDS = frozenset({FieldKind.NUMERIC, FieldKind.BOOLEAN, FieldKind.CATEGORICAL, FieldKind.TIMESTAMP})
_COLON = ord(":")
_MAYBE_NO_TEXT = tuple("0123456789-{[")
"""Polars writes numbers, objects and arrays as text where text is declared: what begins so may have been one."""
_EXACT = 2.0**53
"""Up to here a whole number is the same in float64."""

Tree = dict[str, Union["Tree", FieldKind]]
"""Keys of a record, and below them what each holds: a field of a kind, or an object with keys of its own."""


class ColumnReader:
    """Read many JSON records of a schema at once, or say that it cannot be done.

    Examples
    --------
    >>> reader = ColumnReader.of(RecordSchema((Field("x"), Field("y"))))
    >>> columns = reader.read([b'{"x": 1, "y": 2.5}'] * 64, max_record_size=100)
    >>> columns["y"][:2].tolist()
    [2.5, 2.5]
    >>> reader.read([b'{"x": 1, "y": "2.5"}'] * 64, max_record_size=100) is None
    True
    """

    def __init__(self, fields: Sequence[Field], tree: Tree) -> None:
        self._fields = fields
        self._tree = tree
        self._n_colons = _count_colons(tree)
        self._has_texts = any(field.kind in (FieldKind.CATEGORICAL, FieldKind.TIMESTAMP) for field in fields)
        self._times_are_text = False
        self._rest = 0
        self._next_rest = 1

    @classmethod
    def of(cls, schema: RecordSchema) -> ColumnReader | None:
        """Return a reader; None if a kind of field is not for it, or this polars takes what is no number."""
        tree = _tree(schema.fields)
        if tree is None or not {field.kind for field in schema.fields} <= _KINDS or not _is_strict():
            return None
        return cls(schema.fields, tree)

    def read(self, values: Sequence[bytes | None], *, max_record_size: int) -> dict[str, NDArray[Any]] | None:
        """Return field → ``(n,)`` as the decoder would, or None if that is not sure.

        Parameters
        ----------
        max_record_size
            Bytes; with a larger record it is None.
        """
        if len(values) < LEAST_RECORDS:
            return None
        if self._rest:
            self._rest -= 1
            return None
        columns = self._columns(values, max_record_size)
        if columns is None:
            self._rest, self._next_rest = self._next_rest, min(2 * self._next_rest, _MAX_REST)
        else:
            self._next_rest = 1
        return columns

    def _columns(self, values: Sequence[bytes | None], max_record_size: int) -> dict[str, NDArray[Any]] | None:
        n = len(values)
        try:
            lines = b"\n".join(values)  # type: ignore[arg-type]  # None is a TypeError
            if max(map(len, values)) > max_record_size:  # type: ignore[arg-type]
                return None
        except TypeError:
            return None
        # A line break within a record would make two of it; an escape could hide a colon, or what is no Unicode.
        if b"\\" in lines or lines.count(b"\n") != n - 1:
            return None
        # Behind every key stands a colon: so many, and no declared field missing, means that no record has another key,
        # or one twice. Texts may hold colons too, and then nobody knows.
        n_colons = _count(lines, _COLON)
        if n_colons != n * self._n_colons and not self._has_texts:
            return None
        for times_are_text in self._guesses():
            frame = _parsed(lines, _schema(self._tree, times_are_text))
            if frame is None or len(frame) != n:
                continue
            columns = self._taken(frame, n_colons)
            if columns is not None:
                self._times_are_text = times_are_text
                return columns
        return None

    def _guesses(self) -> tuple[bool, ...]:
        """Return whether times are text: what was right the last time, then the other."""
        if not any(field.kind is FieldKind.TIMESTAMP for field in self._fields):
            return (False,)
        return self._times_are_text, not self._times_are_text

    def _taken(self, frame: pl.DataFrame, n_colons: int) -> dict[str, NDArray[Any]] | None:
        columns = {}
        for field in self._fields:
            series = _series(frame, field.path)
            if series.null_count():
                return None
            if _is_text(series):
                n_colons -= int(series.str.count_matches(":", literal=True).sum())
            column = _TAKE[field.kind](series)
            if column is None:
                return None
            columns[field.name] = column
        return columns if n_colons == len(frame) * self._n_colons else None


def _tree(fields: Sequence[Field]) -> Tree | None:
    """Return what a record holds that has the fields and nothing else; None if one is below another."""
    tree: Tree = {}
    for field in fields:
        *above, last = field.path
        node = tree
        for key in above:
            below = node.setdefault(key, {})
            if isinstance(below, FieldKind):
                return None
            node = below
        if last in node:
            return None
        node[last] = field.kind
    return tree


def _count_colons(tree: Tree) -> int:
    return sum(
        1 + key.count(":") + (0 if isinstance(below, FieldKind) else _count_colons(below))
        for key, below in tree.items()
    )


def _count(text: bytes, byte: int) -> int:
    return int(np.count_nonzero(np.frombuffer(text, dtype=np.uint8) == byte))


def _schema(tree: Tree, times_are_text: bool) -> dict[str, Any]:
    """Return the types by which polars is to read."""
    import polars as pl

    def type_of(below: Tree | FieldKind) -> Any:
        if not isinstance(below, FieldKind):
            return pl.Struct({key: type_of(each) for key, each in below.items()})
        if below is FieldKind.BOOLEAN:
            return pl.Boolean
        is_text = below is FieldKind.CATEGORICAL or (below is FieldKind.TIMESTAMP and times_are_text)
        return pl.String if is_text else pl.Float64

    return {key: type_of(below) for key, below in tree.items()}


def _parsed(lines: bytes, schema: dict[str, Any]) -> pl.DataFrame | None:
    import polars as pl

    try:
        return pl.read_ndjson(lines, schema=schema)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        return None


def _is_text(series: pl.Series) -> bool:
    import polars as pl

    return series.dtype == pl.String


def _series(frame: pl.DataFrame, path: Sequence[str]) -> pl.Series:
    first, *rest = path
    series = frame.get_column(first)
    for key in rest:
        series = series.struct.field(key)
    return series


def _numbers(series: pl.Series) -> NDArray[np.float64]:
    numbers: NDArray[np.float64] = series.to_numpy().astype(np.float64, copy=False)
    return numbers


def _texts(series: pl.Series) -> NDArray[np.object_] | None:
    """Return texts; None if one may have been written for what is no text."""
    texts = series.to_list()
    if any(text.startswith(_MAYBE_NO_TEXT) or text in ("true", "false") for text in set(texts)):
        return None
    column = np.empty(len(texts), dtype=object)
    column[:] = texts
    return column


def _times(series: pl.Series) -> NDArray[np.float64] | None:
    """Return seconds since the epoch; None if one is no time, or may have been a number where texts are read."""
    if _is_text(series):
        texts = series.to_list()
        if any(len(text) < 10 or text[4] != "-" or text[7] != "-" for text in texts):
            return None
        try:
            return np.array([seconds(text) for text in texts])
        except (ValueError, OverflowError):
            return None
    numbers = _numbers(series)
    times = np.where(np.abs(numbers) >= MS_FROM, numbers / 1000, numbers)
    is_time = (np.abs(numbers) < _EXACT) & (times >= YEAR_1) & (times < YEAR_10000)
    return times if is_time.all() else None


_TAKE: dict[FieldKind, Any] = {
    FieldKind.NUMERIC: _numbers,
    FieldKind.BOOLEAN: _numbers,
    FieldKind.CATEGORICAL: _texts,
    FieldKind.TIMESTAMP: _times,
}


@cache
def _is_strict() -> bool:
    """Return whether polars refuses what is no number: some versions read text and booleans as one."""
    import polars as pl

    for wrong in ('"1"', "true", "[1]", "{}"):
        try:
            pl.read_ndjson(f'{{"x": 1.5}}\n{{"x": {wrong}}}'.encode(), schema={"x": pl.Float64})
        except pl.exceptions.PolarsError:
            continue
        return False
    return True
