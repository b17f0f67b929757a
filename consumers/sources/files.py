"""Records out of a file: NDJSON, CSV or Parquet, each row as the JSON object it would be in Kafka.

Also the schema of a file that nobody has described: :func:`infer_schema`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import orjson

from consumers.errors import SourceError
from consumers.records import Field, FieldKind, Position, RecordSchema, StoredRecord

if TYPE_CHECKING:
    import polars as pl

log = logging.getLogger(__name__)

_SLICE = 10_000
"""Rows of a table that are turned into JSON together."""
_MAX_CATEGORIES = 1000
"""A text field with more values than this is taken for free text."""
_MIN_CATEGORIES = 20
"""A text field with at most so many values is never taken for an id, however few rows there are."""
_TIME_NAME = re.compile(r"(time|timestamp|date|(^|[^a-z])ts)$", re.IGNORECASE)
"""Numbers are a time only where the name says so: a field of large counts looks the same."""
_EPOCH_S, _EPOCH_MS = (1e9, 4e9), (1e12, 4e12)
"""Years 2001 to 2096."""


class FileSource:
    """Read a file from its beginning to its end; after that every poll is empty.

    Parameters
    ----------
    path
        Ends in ``.ndjson``, ``.jsonl``, ``.csv`` or ``.parquet``; the last two need polars. NDJSON is read as it is
        asked for, the others are loaded whole. A record's topic is the file's name, its offset the row, counted from
        0 without blank lines, its timestamp the file's.
    max_batch
        At most so many records a poll.
    committed
        What a former source of this file had in `committed`: reading goes on there. A file has no group that could
        keep it.

    Raises
    ------
    SourceError
        If the file cannot be read, or is of another kind.
    """

    def __init__(self, path: Path, *, max_batch: int = 1000, committed: Mapping[Position, int] | None = None) -> None:
        self._position = (path.name, 0)
        self._max_batch = max_batch
        self.committed = dict(committed or {})
        """Partition → next offset to read, as committed."""
        self._next = self.committed.get(self._position, 0)
        self._timestamp = int(_checked(path).stat().st_mtime * 1000)
        self._values = islice(_READERS[path.suffix](path), self._next, None)
        self._is_paused = False
        self._is_closed = False

    def poll(self, timeout_s: float) -> Sequence[StoredRecord]:
        """Return the next records at once, none at the end of the file.

        Raises
        ------
        SourceError
            If the file cannot be read any further.
        """
        if self._is_paused or self._is_closed:
            return []
        values = list(islice(self._values, self._max_batch))
        start, self._next = self._next, self._next + len(values)
        return [
            StoredRecord(*self._position, offset, self._timestamp, None, value)
            for offset, value in enumerate(values, start)
        ]

    def commit(self, positions: Mapping[Position, int]) -> None:
        """Remember the positions in `committed`, for as long as this object lives."""
        self.committed.update(positions)

    def pause(self) -> None:
        """Give nothing from now on."""
        self._is_paused = True

    def resume(self) -> None:
        """Give records again."""
        self._is_paused = False

    def close(self) -> None:
        """Let the file go; twice is fine."""
        self._is_closed = True
        self._values = islice((), 0)  # drops the generator, and with it the open file

    @property
    def assignment(self) -> frozenset[Position]:
        """The file, until closed."""
        return frozenset() if self._is_closed else frozenset({self._position})

    def lag(self) -> Mapping[Position, int]:
        """Return nothing: how long a file is shows at its end."""
        return {}


def infer_schema(path: Path, *, n: int = 10_000) -> RecordSchema:
    """Return the fields of a file, as its first `n` records show them.

    Numbers are numeric, true and false boolean, ISO 8601 texts timestamps, other texts categorical. Objects are looked
    into; their fields are named by their path with dots. A field that is null or absent anywhere is not required. The
    first timestamp is the record's time. Left out, and logged: lists, fields without a value, and text with too many
    different values (ids, free text).

    Raises
    ------
    SourceError
        If the file cannot be read, or has no field that a model could learn from.
    """
    records = []
    for value in islice(_READERS[_checked(path).suffix](path), n):
        try:
            parsed = orjson.loads(value)
        except orjson.JSONDecodeError:
            continue  # a bad line says nothing about the fields; it becomes a dead letter when it is read
        if isinstance(parsed, dict):
            records.append(dict(_leaves(parsed)))
    fields = []
    for field_path in dict.fromkeys(field_path for record in records for field_path in record):
        values = [found for record in records if (found := record.get(field_path)) is not None]
        name = ".".join(field_path)
        kind, why_not = _kind(name, values)
        if kind is None:
            log.info("%s: field %s is left out: %s", path.name, name, why_not)
        else:
            fields.append(Field(name, kind, field_path, len(values) == len(records)))
    times = [field.name for field in fields if field.kind is FieldKind.TIMESTAMP]
    try:
        return RecordSchema(tuple(fields), times[0] if times else None)
    except ValueError as error:
        raise SourceError(f"{path}: no records with usable fields among the first {n}: {error}") from error


def _checked(path: Path) -> Path:
    if path.suffix not in _READERS:
        raise SourceError(f"{path}: files of kind {path.suffix!r} are not read; allowed: {', '.join(_READERS)}")
    if not path.is_file():
        raise SourceError(f"{path}: there is no such file; check the path")
    return path


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            for line in file:
                if stripped := line.strip():
                    yield stripped
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror}; check the file and its rights") from error


def _csv(path: Path) -> Iterator[bytes]:
    # All rows decide a column's type: with fewer, a text far down in a column of numbers ends the reading.
    return _rows(path, lambda polars: polars.read_csv(path, infer_schema_length=None))


def _parquet(path: Path) -> Iterator[bytes]:
    return _rows(path, lambda polars: polars.read_parquet(path))


def _rows(path: Path, read: Callable[[ModuleType], pl.DataFrame]) -> Iterator[bytes]:
    try:
        import polars
    except ImportError as error:
        raise SourceError(f"{path}: reading {path.suffix} needs polars; pip install 'srr-stream[parquet]'") from error
    try:
        table = read(polars)
    except (OSError, polars.exceptions.PolarsError) as error:
        first_line = str(error).partition("\n")[0]
        raise SourceError(f"{path}: is no readable {path.suffix} file: {first_line}") from error
    for part in table.iter_slices(_SLICE):
        for row in part.iter_rows(named=True):
            yield orjson.dumps(row, default=_plain)


def _plain(value: Any) -> Any:
    """Return what JSON has for a value of a table that is none of JSON's."""
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, timedelta):
        return value.total_seconds()
    return str(value)


_READERS: dict[str, Callable[[Path], Iterator[bytes]]] = {
    ".ndjson": _lines,
    ".jsonl": _lines,
    ".csv": _csv,
    ".parquet": _parquet,
}


def _leaves(parsed: dict[str, Any], at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in parsed.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*at, key))
        else:
            yield (*at, key), value


def _kind(name: str, values: Sequence[Any]) -> tuple[FieldKind | None, str]:
    """Return what a field is by its values, none of them null; or None and why it is nothing."""
    kinds = set(map(type, values))
    if not kinds:
        return None, "it never has a value"
    if list in kinds:
        return None, "lists are no features"
    if kinds == {bool}:
        return FieldKind.BOOLEAN, ""
    if kinds <= {int, float}:
        is_time = _TIME_NAME.search(name) is not None and _is_epoch(values)
        return (FieldKind.TIMESTAMP if is_time else FieldKind.NUMERIC), ""
    if kinds == {str} and all(map(_is_iso_8601, values)):
        return FieldKind.TIMESTAMP, ""
    n_distinct = len(set(values))
    if n_distinct > _MAX_CATEGORIES or n_distinct > max(_MIN_CATEGORIES, len(values) // 2):
        return None, f"{n_distinct} different values in {len(values)} records look like ids or free text"
    return FieldKind.CATEGORICAL, ""


def _is_epoch(values: Sequence[float]) -> bool:
    low, high = min(values), max(values)
    return any(least <= low and high <= most for least, most in (_EPOCH_S, _EPOCH_MS))


def _is_iso_8601(value: str) -> bool:
    if value[4:5] != "-":  # eight digits are a date too for `fromisoformat`, but more often a number
        return False
    try:
        datetime.fromisoformat(value)
    except ValueError:
        return False
    return True
