"""Records out of a file, each row as it would be in Kafka: a JSON object, or the file of a picture.

Also what a file holds that nobody has described: :func:`record_format` and :func:`infer_schema`. Folders of pictures
and ``.npz`` are :mod:`consumers.sources.image_files`'s.
"""

from __future__ import annotations

import base64
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import islice
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any, Literal

import orjson

from consumers.errors import LibraryMissing, SourceError
from consumers.images import from_base64
from consumers.reasons import Bad
from consumers.records import Field, FieldKind, ImageSpec, Position, RecordSchema, StoredRecord
from consumers.sources.csv_files import read_csv
from consumers.sources.image_files import common_spec, list_files, read_file, read_npz

if TYPE_CHECKING:
    import polars as pl

log = logging.getLogger(__name__)

RecordFormat = Literal["json", "image"]

_POLL_BYTES = 64 << 20
"""A poll ends when it has read so much, however few records that are."""
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
IMAGE_BASE64 = ("/9j/", "iVBORw0KGgo", "UklGR", "data:image/")
"""How JPEG, PNG and WebP begin as text."""
_IMAGE_NAME = "image"
"""The field of a file that has nothing but pictures, and so no name for them."""


class FileSource:
    """Read a file from its beginning to its end; after that every poll is empty.

    Parameters
    ----------
    path
        A folder of pictures, or a file that ends in ``.ndjson``, ``.jsonl``, ``.csv``, ``.parquet`` or ``.npz``; CSV
        and Parquet need polars. A folder and NDJSON are read as they are asked for, the others are loaded whole. A
        record's topic is the file's name, its offset the row, counted from 0 without blank lines, its timestamp the
        file's. In a folder every file is a record, in the order of the paths (see
        :func:`consumers.sources.image_files.list_files`), and its path there is the key. For ``.npz`` see
        :func:`consumers.sources.image_files.read_npz`, for what a CSV may look like
        :func:`consumers.sources.csv_files.read_csv`.
    max_batch
        At most so many records a poll; 64 MiB of them end it earlier.
    committed
        What a former source of this file had in `committed`: reading goes on there. A file has no group that could
        keep it.

    Raises
    ------
    SourceError
        If the file cannot be read, or is of another kind.
    LibraryMissing
        If polars is needed and not installed.
    """

    def __init__(self, path: Path, *, max_batch: int = 1000, committed: Mapping[Position, int] | None = None) -> None:
        self._position = (_checked(path).resolve().name, 0)
        self._max_batch = max_batch
        self.committed = dict(committed or {})
        """Partition → next offset to read, as committed."""
        self._records = _records(path, self._position, self.committed.get(self._position, 0))
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
        polled, n_bytes = [], 0
        for record in islice(self._records, self._max_batch):
            polled.append(record)
            n_bytes += len(record.value or b"")
            if n_bytes >= _POLL_BYTES:
                break
        return polled

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
        self._records = iter(())  # drops the generator, and with it the open file

    @property
    def assignment(self) -> frozenset[Position]:
        """The file, until closed."""
        return frozenset() if self._is_closed else frozenset({self._position})

    def lag(self) -> Mapping[Position, int]:
        """Return nothing: how long a file is shows at its end."""
        return {}


def record_format(path: Path) -> RecordFormat:
    """Return how the records of a file are written: ``image`` if each is a picture and nothing else, else ``json``.

    A folder and an ``.npz`` have pictures, and so has a Parquet file whose only column is binary. With other columns
    beside it a record is a JSON object, the picture in base64.

    Raises
    ------
    SourceError
        If the file cannot be read, or is of another kind.
    LibraryMissing
        If polars is needed and not installed.
    """
    if _checked(path).is_dir() or path.suffix == ".npz":
        return "image"
    if path.suffix == ".parquet":
        with _table_errors(path) as polars:
            if list(polars.read_parquet_schema(path).values()) == [polars.Binary]:
                return "image"
    return "json"


def infer_schema(path: Path, *, n: int = 10_000) -> RecordSchema:
    """Return the fields of a file, as its first `n` records show them.

    Numbers are numeric, true and false boolean, ISO 8601 texts timestamps, other texts categorical. Objects are looked
    into; their fields are named by their path with dots. A field that is null or absent anywhere is not required. The
    first timestamp is the record's time. Left out, and logged: lists, fields without a value, and text with too many
    different values (ids, free text).

    Pictures, files or base64, are scaled to the size of the first readable one, at most 256 pixels a side; they are
    grey if the first 100 are. The first field that has them is the picture.

    Raises
    ------
    SourceError
        If the file cannot be read, or has no field that a model could learn from.
    LibraryMissing
        If polars is needed and not installed.
    """
    if record_format(path) == "image":
        files = (record.value for record in islice(_records(path, ("", 0), 0), n))
        return RecordSchema((Field(_IMAGE_NAME, FieldKind.IMAGE, image=_spec(path, files)),))
    records = []
    for record in islice(_records(path, ("", 0), 0), n):
        try:
            parsed = orjson.loads(record.value or b"")
        except orjson.JSONDecodeError:
            continue  # a bad line says nothing about the fields; it becomes a dead letter when it is read
        if isinstance(parsed, dict):
            records.append(dict(_leaves(parsed)))
    fields: list[Field] = []
    for field_path in dict.fromkeys(field_path for record in records for field_path in record):
        values = [found for record in records if (found := record.get(field_path)) is not None]
        name = ".".join(field_path)
        kind, why_not = _kind(name, values)
        if kind is FieldKind.IMAGE and any(field.kind is FieldKind.IMAGE for field in fields):
            kind, why_not = None, "another field is the picture"
        if kind is None:
            log.info("%s: field %s is left out: %s", path.name, name, why_not)
        elif kind is FieldKind.IMAGE:
            fields.append(Field(name, kind, field_path, image=_spec(path, map(_file, values))))
        else:
            fields.append(Field(name, kind, field_path, len(values) == len(records)))
    times = [field.name for field in fields if field.kind is FieldKind.TIMESTAMP]
    try:
        return RecordSchema(tuple(fields), times[0] if times else None)
    except ValueError as error:
        raise SourceError(f"{path}: no records with usable fields among the first {n}: {error}") from error


def _spec(path: Path, files: Iterable[bytes | None]) -> ImageSpec:
    spec = common_spec(files)
    if spec is None:
        raise SourceError(f"{path}: none of its first pictures can be read; allowed: JPEG, PNG, WebP")
    return spec


def _file(text: str) -> bytes | None:
    try:
        return from_base64(text)
    except Bad:
        return None


def _records(path: Path, position: Position, start: int) -> Iterator[StoredRecord]:
    """Yield the records from offset `start` on."""
    if path.is_dir():
        for offset, name in enumerate(list_files(path)[start:], start):
            file = path / name
            yield StoredRecord(*position, offset, _changed_ms(file), os.fsencode(name), read_file(file))
        return
    timestamp = _changed_ms(path)
    for offset, value in enumerate(islice(_READERS[path.suffix](path), start, None), start):
        yield StoredRecord(*position, offset, timestamp, None, value)


def _changed_ms(path: Path) -> int:
    try:
        return int(path.stat().st_mtime * 1000)
    except OSError:  # gone meanwhile; that it cannot be read is told where it is read
        return 0


def _checked(path: Path) -> Path:
    if path.is_dir():
        return path
    if path.suffix not in _READERS:
        raise SourceError(
            f"{path}: files of kind {path.suffix!r} are not read; allowed: {', '.join(_READERS)}, a folder"
        )
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
    with _table_errors(path) as polars:
        table, mixed = read_csv(path, polars)
    return _rows(table, mixed)


def _parquet(path: Path) -> Iterator[bytes | None]:
    with _table_errors(path) as polars:
        table = polars.read_parquet(path)
    if table.dtypes == [polars.Binary]:
        return iter(table.to_series())
    return _rows(table)


@contextmanager
def _table_errors(path: Path) -> Iterator[ModuleType]:
    """Give polars, and turn its errors into ours."""
    try:
        import polars
    except ImportError as error:
        raise LibraryMissing(
            f"{path}: reading {path.suffix} needs polars; pip install 'srr-stream[parquet]'"
        ) from error
    try:
        yield polars
    except (OSError, polars.exceptions.PolarsError) as error:
        first_line = str(error).partition("\n")[0]
        raise SourceError(f"{path}: is no readable {path.suffix} file: {first_line}") from error


def _rows(table: pl.DataFrame, mixed: Mapping[str, Sequence[Any]] = MappingProxyType({})) -> Iterator[bytes]:
    """Yield the rows; of `mixed` columns the values given there."""
    i = 0
    for part in table.iter_slices(_SLICE):
        for row in part.iter_rows(named=True):
            for name, values in mixed.items():
                row[name] = values[i]
            i += 1
            yield orjson.dumps(row, default=_plain)


def _plain(value: Any) -> Any:
    """Return what JSON has for a value of a table that is none of JSON's."""
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return str(value)


_READERS: Mapping[str, Callable[[Path], Iterator[bytes | None]]] = {
    ".ndjson": _lines,
    ".jsonl": _lines,
    ".csv": _csv,
    ".parquet": _parquet,
    ".npz": read_npz,
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
    if kinds == {str} and all(value.startswith(IMAGE_BASE64) for value in values):
        return FieldKind.IMAGE, ""
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
