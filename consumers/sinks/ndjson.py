"""Verdicts into a file, a JSON object a line; bad records into another one beside it."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import orjson

from consumers.errors import SinkError
from consumers.records import BadRecord, Verdicts
from consumers.sinks import just_wait
from consumers.sinks.serialization import dead_letter_headers, readable, verdict_bodies


class NdjsonSink:
    """Append verdicts to `path` and bad records to ``path.bad``.

    Raises
    ------
    SinkError
        If a file cannot be opened or written.
    """

    def __init__(self, path: Path, *, include_record: bool = False) -> None:
        self._include_record = include_record
        try:
            self._file = path.open("ab")
            self._bad_file = path.with_name(f"{path.name}.bad").open("ab")
        except OSError as error:
            raise SinkError(f"{path}: cannot be written: {error.strerror}; check the folder and its rights") from error
        self._path = path

    def write(self, verdicts: Verdicts) -> None:
        """Take the verdicts of a batch."""
        with self._translated():
            for body in verdict_bodies(verdicts, include_record=self._include_record):
                self._file.write(body + b"\n")

    def write_bad(self, bad: Sequence[BadRecord]) -> None:
        """Take bad records: their bytes as base64, their key and headers as text."""
        for record in bad:
            line = {name: readable(value) for name, value in dead_letter_headers(record)}
            value = record.raw.value
            content = {
                "headers": line,
                "key": readable(record.raw.key),
                "value": None if value is None else base64.b64encode(value).decode(),
            }
            with self._translated():
                self._bad_file.write(orjson.dumps(content, option=orjson.OPT_SORT_KEYS) + b"\n")

    def flush(self, while_waiting: Callable[[], None] = just_wait) -> None:
        """Return when the lines are on the disk."""
        with self._translated():
            for file in (self._file, self._bad_file):
                file.flush()
                os.fsync(file.fileno())

    def close(self) -> None:
        """Close both files; twice is fine."""
        for file in (self._file, self._bad_file):
            with suppress(OSError):  # what cannot be written now was not flushed
                file.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SinkError(f"{self._path}: cannot be written: {error.strerror}; check the space") from error
