"""CSV as people have it: whatever separates its columns, in whatever encoding, with whatever stands for no value."""

from __future__ import annotations

import logging
from collections import Counter
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl

log = logging.getLogger(__name__)

_SEPARATORS = ",;\t|"
_HEAD_BYTES = 1 << 20
_MISSING = ("", "na", "n/a", "#n/a", "nan", "null", "none", "nil", "-", "?")
"""What stands for no number, in small letters. In a column of texts they are texts like others."""
_MAX_ODD = 0.01
"""A column of numbers may hold so large a share of other things: they stay text, and their records are bad."""


def read_csv(path: Path, polars: ModuleType) -> tuple[pl.DataFrame, dict[str, list[Any]]]:
    """Return the table, and the columns that have numbers beside texts, which a table cannot hold.

    The separator is the one of ``, ; tab |`` that the header has most of; with another than the comma, numbers may have
    a decimal comma. UTF-8 and UTF-16 are read by their marks; what is no UTF-8 is read as Windows-1252. A column whose
    values are numbers, but for what stands for no value (empty, NA, n/a, NaN, null, none, -, ?), is one of numbers.

    Raises
    ------
    polars.exceptions.PolarsError, OSError
        As polars does.
    """
    content: Path | BytesIO = path
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    encoding = _encoding(head)
    if encoding is not None:
        content = _as_utf_8(path, encoding)
        head = content.getvalue()[:_HEAD_BYTES]
    separator = find_separator(head)
    try:
        table = _table(polars, content, separator)
    except polars.exceptions.ComputeError as error:
        if "utf-8" not in str(error):
            raise
        log.info("%s: is no UTF-8; read as Windows-1252", path)
        table = _table(polars, _as_utf_8(path, "cp1252"), separator)
    return _with_numbers(polars, table, has_decimal_comma=separator != ",")


def find_separator(head: bytes) -> str:
    """Return what separates the columns, by the first line.

    Examples
    --------
    >>> find_separator(b'amount;"city, country";at\\n1,5;"Bern, CH";now\\n')
    ';'
    """
    line = next((line for line in head.decode("utf-8", "replace").splitlines() if line.strip()), "")
    unquoted = "".join(line.split('"')[::2])
    counts = Counter(character for character in unquoted if character in _SEPARATORS)
    return max(_SEPARATORS, key=lambda separator: counts[separator])


def _encoding(head: bytes) -> str | None:
    return "utf-16" if head.startswith((b"\xff\xfe", b"\xfe\xff")) else None


def _as_utf_8(path: Path, encoding: str) -> BytesIO:
    return BytesIO(path.read_bytes().decode(encoding, "replace").encode())


def _table(polars: ModuleType, content: Path | BytesIO, separator: str) -> pl.DataFrame:
    # All rows decide a column's type: with fewer, a text far down in a column of numbers ends the reading.
    table: pl.DataFrame = polars.read_csv(content, separator=separator, infer_schema_length=None)
    names = [name.strip().removeprefix("\ufeff") for name in table.columns]
    return table.rename(dict(zip(table.columns, names, strict=True))) if len(set(names)) == len(names) else table


def _with_numbers(
    polars: ModuleType, table: pl.DataFrame, *, has_decimal_comma: bool
) -> tuple[pl.DataFrame, dict[str, list[Any]]]:
    """Turn columns of texts that are numbers into numbers."""
    numbers, mixed = {}, {}
    for name, column in zip(table.columns, table.get_columns(), strict=True):
        if column.dtype == polars.Int128:  # JSON has no such integers
            numbers[name] = column.cast(polars.Float64)
        if column.dtype != polars.String:
            continue
        text = column.str.strip_chars()
        if has_decimal_comma:
            text = text.str.replace(",", ".", literal=True)
        is_missing = text.is_null() | text.str.to_lowercase().is_in(_MISSING)
        text = text.set(is_missing, None)
        found = text.cast(polars.Float64, strict=False)
        n_numbers, n_odd = found.count(), text.count() - found.count()
        if n_numbers == 0 or n_odd > _MAX_ODD * (n_numbers + n_odd):
            continue
        whole = text.cast(polars.Int64, strict=False)
        if whole.count() == n_numbers:
            found = whole
        numbers[name] = found
        if n_odd:
            values = zip(found.to_list(), text.to_list(), column.to_list(), strict=True)
            mixed[name] = [given if number is None and kept is not None else number for number, kept, given in values]
    return table.with_columns(**numbers) if numbers else table, mixed
