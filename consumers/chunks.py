"""A stream of records in lists that are worth working on at once, and small enough to be held."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar


class _HasValue(Protocol):
    @property
    def value(self) -> bytes | None: ...


R = TypeVar("R", bound=_HasValue)


def in_chunks(records: Iterable[R], *, n_records: int, n_bytes: int) -> Iterator[list[R]]:
    """Yield the records in lists that end with the record that makes them so long, or their values so large.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> records = [SimpleNamespace(value=value) for value in (b"aa", None, b"a" * 9, b"a")]
    >>> [len(chunk) for chunk in in_chunks(records, n_records=5, n_bytes=10)]
    [3, 1]
    """
    chunk: list[R] = []
    size = 0
    for record in records:
        chunk.append(record)
        size += len(record.value or b"")
        if len(chunk) == n_records or size >= n_bytes:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
