"""The index of flagged records: verdicts of the alerts topic in a small database, to be listed, filtered and paged.

It is a copy: the topic has it all, so a file that is damaged or of another version is put aside and filled anew.
"""

from __future__ import annotations

import base64
import binascii
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from consumers.records import RawRecord
from srr_stream.errors import SrrStreamError
from srr_stream.web.problems import DeskError
from srr_stream.web.views import Facets, Flagged, FlaggedPage, FlaggedQuery, Reason
from srr_stream.wording import all_in_words

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
MAX_LIMIT = 500
"""Records of a page."""
_FILE = "flagged.sqlite"
_DAMAGED = "flagged-damaged.sqlite"
_FEW = 2000
"""Rows that are put in order here; of more, an index has a page of them near its end."""
_BUSY_S = 5.0
_IS_FLAGGED = b'"flagged":true'
"""Stands in every flagged verdict as this program writes it; of a scores topic, most need not be parsed."""
_BETWEEN = "\x1f"
_SCHEMA = """
CREATE TABLE flagged (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    topic TEXT NOT NULL,
    time_ms INTEGER NOT NULL,
    severity REAL NOT NULL,
    version INTEGER NOT NULL,
    label TEXT,
    fields TEXT NOT NULL,
    words TEXT NOT NULL
);
CREATE INDEX flagged_by_time ON flagged (time_ms, number);
CREATE INDEX flagged_by_severity ON flagged (severity, number);
CREATE INDEX flagged_by_label ON flagged (label) WHERE label IS NOT NULL;
CREATE INDEX flagged_by_version ON flagged (version, topic);
CREATE TABLE verdict (number INTEGER PRIMARY KEY REFERENCES flagged ON DELETE CASCADE, body BLOB NOT NULL);
CREATE TABLE field (name TEXT PRIMARY KEY);
"""
_ORDER = {"time": "time_ms", "severity": "severity"}


class IndexUnusable(SrrStreamError):
    """The index cannot be read or written; says what to do."""


class FlaggedIndex:
    """Flagged records by id, the newest of them by their own time. Any thread may add, any may ask.

    Parameters
    ----------
    folder
        Made if it is not there; the file is ``flagged.sqlite`` in it.
    keep
        At most so many records.
    label_of
        Asked for the label of a record that is new here.
    on_rebuilt
        Called when the file had to be put aside while it was in use: whoever fills this must begin again.

    Raises
    ------
    IndexUnusable
        If the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int = 100_000,
        label_of: Callable[[str], str | None] = lambda id: None,
        on_rebuilt: Callable[[], None] = lambda: None,
    ) -> None:
        self.keep = keep
        self.problem: str | None = None
        """Why it is not up to date, in words."""
        self._folder = folder
        self._path = folder / _FILE
        self._label_of = label_of
        self._on_rebuilt = on_rebuilt
        self._lock = threading.Lock()
        self._readers: queue.LifoQueue[sqlite3.Connection] = queue.LifoQueue()
        self._generation = 0
        self._n_records = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = self._open()
        except (OSError, sqlite3.Error) as error:
            raise IndexUnusable(
                f"{self._path} cannot be written: {error}; check api.state_dir, rights and space"
            ) from error

    @property
    def n_records(self) -> int:
        """How many there are."""
        return self._n_records

    # --- filling ----------------------------------------------------------------------------------------------------

    def add(self, records: Sequence[RawRecord]) -> None:
        """Take verdicts as the alerts or the scores topic has them, doubles too; what is none, or not flagged, is left.

        Raises
        ------
        IndexUnusable
            If they cannot be written, for want of space for instance: give them again.
        """
        rows = [row for record in records if (row := _row(record.value)) is not None]
        if not rows:
            return
        with self._writing() as writer:
            for row in rows:
                self._put(writer, row)
            self._n_records = _count(writer)
            if self._n_records > self.keep:
                self._drop(writer, self._n_records - self.keep)
                self._n_records = self.keep

    def set_labels(self, labels: Mapping[str, str | None]) -> None:
        """Take the labels of some records, None: it has none any more; of records that are not here nothing is kept.

        Raises
        ------
        IndexUnusable
            If they cannot be written.
        """
        with self._writing() as writer:
            rows = [(label, id) for id, label in labels.items()]
            writer.executemany("UPDATE flagged SET label = ? WHERE id = ?", rows)

    def close(self) -> None:
        """Close the file; twice is fine."""
        with self._lock:
            self._close()

    def _put(self, writer: sqlite3.Connection, row: Mapping[str, Any]) -> None:
        (number,) = writer.execute(
            "INSERT INTO flagged (id, topic, time_ms, severity, version, label, fields, words)"
            " VALUES (:id, :topic, :time_ms, :severity, :version, :label, :fields, :words)"
            " ON CONFLICT (id) DO UPDATE SET time_ms = excluded.time_ms, severity = excluded.severity,"
            " version = excluded.version, fields = excluded.fields, words = excluded.words RETURNING number",
            {**row, "label": self._label_of(row["id"])},
        ).fetchone()
        writer.execute("INSERT OR REPLACE INTO verdict VALUES (?, ?)", (number, row["body"]))
        writer.executemany("INSERT OR IGNORE INTO field VALUES (?)", [(name,) for name in row["names"]])

    @staticmethod
    def _drop(writer: sqlite3.Connection, n: int) -> None:
        oldest = "SELECT number FROM flagged ORDER BY time_ms, number LIMIT ?"
        writer.execute(f"DELETE FROM verdict WHERE number IN ({oldest})", (n,))
        writer.execute(f"DELETE FROM flagged WHERE number IN ({oldest})", (n,))

    # --- asking -----------------------------------------------------------------------------------------------------

    def get(self, id: str) -> Flagged | None:
        """Return a record, None if it is not here."""
        with self._reading() as reader:
            row = reader.execute("SELECT label, body FROM flagged JOIN verdict USING (number) WHERE id = ?", (id,))
            found = row.fetchone()
        return _flagged(*found) if found is not None else None

    def find(self, query: FlaggedQuery) -> FlaggedPage:
        """Return a page of what fits the query.

        Raises
        ------
        DeskError
            invalid: the limit, or a cursor that is none or of another order.
        IndexUnusable
            If it cannot be read.
        """
        if not 1 <= query.limit <= MAX_LIMIT:
            raise DeskError("invalid", detail=f"limit is {query.limit}; allowed: 1 to {MAX_LIMIT}")
        conditions, values, reads_rows = _conditions(query)
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        by = _ORDER[query.sort]
        last = _from_cursor(query.cursor, query.sort) if query.cursor is not None else None
        with self._reading() as reader:
            n_total, numbers = self._n_records, None
            if conditions:
                # every row in the order of the file is read sooner than many rows in the order of an index
                rows = "flagged NOT INDEXED" if reads_rows else "flagged"
                few = reader.execute(f"SELECT number, {by} FROM {rows}{where} LIMIT {_FEW + 1}", values).fetchall()
                if len(few) <= _FEW:
                    n_total = len(few)
                    few.sort(key=lambda row: (row[1], row[0]), reverse=True)
                    numbers = [row for row in few if last is None or (row[1], row[0]) < last][: query.limit + 1]
                else:
                    (n_total,) = reader.execute(f"SELECT count(*) FROM {rows}{where}", values).fetchone()
            if numbers is None:
                after = ""
                if last is not None:
                    after = f"{' AND' if conditions else ' WHERE'} ({by}, number) < (?, ?)"
                numbers = reader.execute(
                    f"SELECT number, {by} FROM flagged{where}{after} ORDER BY {by} DESC, number DESC LIMIT ?",
                    (*values, *(last or ()), query.limit + 1),
                ).fetchall()
            page = numbers[: query.limit]
            marks = ",".join("?" * len(page))
            found = {
                number: _flagged(label, body)
                for number, label, body in reader.execute(
                    f"SELECT number, label, body FROM flagged JOIN verdict USING (number) WHERE number IN ({marks})",
                    [number for number, _ in page],
                )
            }
        items = tuple(found[number] for number, _ in page if number in found)
        next_cursor = _cursor(query.sort, page[-1][1], page[-1][0]) if len(numbers) > query.limit else None
        return FlaggedPage(items, next_cursor, n_total)

    def facets(self) -> Facets:
        """Return what there is to filter by."""
        with self._reading() as reader:
            pairs = reader.execute("SELECT DISTINCT version, topic FROM flagged").fetchall()
            fields = reader.execute("SELECT name FROM field ORDER BY name").fetchall()
        versions = sorted({version for version, _ in pairs}, reverse=True)
        return Facets(tuple(sorted({topic for _, topic in pairs})), tuple(name for (name,) in fields), tuple(versions))

    # --- the file ---------------------------------------------------------------------------------------------------

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Give the writing connection in a transaction."""
        with self._lock:
            try:
                with self._writer:
                    yield self._writer
                self.problem = None
            except sqlite3.OperationalError as error:
                self.problem = f"flagged records cannot be written to {self._path}: {error}; check api.state_dir"
                raise IndexUnusable(self.problem) from error
            except sqlite3.DatabaseError as error:
                self._start_anew(error)
                raise IndexUnusable(f"{self._path} was damaged ({error}) and is being filled anew") from error

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """Give a connection that nobody else uses meanwhile, which sees one state of the file."""
        generation = self._generation
        try:
            reader = self._readers.get_nowait()
        except queue.Empty:
            reader = self._connect()
        try:
            reader.execute("BEGIN")
            yield reader
            reader.execute("COMMIT")
        except sqlite3.OperationalError as error:
            reader.close()
            raise IndexUnusable(f"{self._path} cannot be read: {error}; check api.state_dir") from error
        except sqlite3.DatabaseError as error:
            reader.close()
            with self._lock:
                if generation == self._generation:
                    self._start_anew(error)
            raise IndexUnusable(f"{self._path} was damaged ({error}) and is being filled anew; ask again") from error
        except BaseException:
            reader.close()
            raise
        if generation == self._generation:
            self._readers.put(reader)
        else:
            reader.close()

    def _start_anew(self, error: sqlite3.Error) -> None:
        """Put a file aside that turned out to be damaged while it was in use."""
        self._close()
        self._put_aside(str(error))
        self._writer = self._open()
        self._on_rebuilt()

    def _open(self) -> sqlite3.Connection:
        """Return a connection to a good file, an empty one if there was none."""
        try:
            writer = self._connect()
            try:
                self._check(writer)
            except BaseException:
                writer.close()
                raise
        except _Outdated:
            for path in self._files():
                path.unlink(missing_ok=True)
            writer = self._connect()
            self._check(writer)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            self._put_aside(str(error))
            writer = self._connect()
            self._check(writer)
        self._n_records = _count(writer)
        return writer

    def _check(self, writer: sqlite3.Connection) -> None:
        """Make the tables of a new file; raise unless an old one is good."""
        (version,) = writer.execute("PRAGMA user_version").fetchone()
        if version not in (0, SCHEMA_VERSION):
            raise _Outdated
        if version == 0:
            writer.execute("PRAGMA journal_mode = WAL")
            writer.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        (told,) = writer.execute("PRAGMA quick_check(1)").fetchone()
        if told != "ok":
            raise sqlite3.DatabaseError(told)
        with writer:  # labels may have changed meanwhile; their topic tells all of them again
            writer.execute("UPDATE flagged SET label = NULL WHERE label IS NOT NULL")

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=_BUSY_S, check_same_thread=False, isolation_level="IMMEDIATE")
        connection.execute("PRAGMA synchronous = NORMAL")  # a copy: what a power cut takes is read again
        return connection

    def _put_aside(self, why: str) -> None:
        kept = self._folder / _DAMAGED
        log.warning("%s is damaged (%s): it is kept as %s, and filled anew from the topic", self._path, why, kept.name)
        for path in self._files()[1:]:
            path.unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            self._path.replace(kept)

    def _files(self) -> list[Path]:
        return [self._path, *(self._folder / f"{_FILE}{end}" for end in ("-wal", "-shm"))]

    def _close(self) -> None:
        self._generation += 1
        self._writer.close()
        while True:
            try:
                self._readers.get_nowait().close()
            except queue.Empty:
                return


class _Outdated(Exception):
    """The file is of another version of this program."""


def _count(connection: sqlite3.Connection) -> int:
    (n,) = connection.execute("SELECT count(*) FROM flagged").fetchone()
    return int(n)


# --- queries


def _conditions(query: FlaggedQuery) -> tuple[list[str], list[Any], bool]:
    """Return what must hold, its values, and whether that needs more of a record than an index has."""
    indexed: list[tuple[str, Any]] = []
    of_rows: list[tuple[str, Any]] = []
    if query.since is not None:
        indexed.append(("time_ms >= ?", _ms(query.since)))
    if query.until is not None:
        indexed.append(("time_ms < ?", _ms(query.until)))
    if query.min_severity is not None:
        indexed.append(("severity >= ?", query.min_severity))
    if query.label == "none":
        of_rows.append(("label IS ?", None))
    elif query.label is not None:
        indexed.append(("label = ?", query.label))
    if query.topic is not None:
        of_rows.append(("+topic = ?", query.topic))  # +: not by the index of versions, which most rows share
    if query.version is not None:
        of_rows.append(("+version = ?", query.version))
    if query.field is not None:
        of_rows.append(("instr(fields, ?) > 0", f"{_BETWEEN}{query.field}{_BETWEEN}"))
    if query.text is not None:
        of_rows.append(("instr(words, ?) > 0", query.text.casefold()))
    given = indexed + of_rows
    return [condition for condition, _ in given], [value for _, value in given], bool(of_rows)


def _ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def _cursor(sort: str, value: float, number: int) -> str:
    return base64.urlsafe_b64encode(orjson.dumps([sort, value, number])).decode().rstrip("=")


def _from_cursor(cursor: str, sort: str) -> tuple[float, int]:
    try:
        its_sort, value, number = orjson.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (binascii.Error, ValueError, TypeError) as error:
        raise DeskError("invalid", detail="cursor is none; give next_cursor of the page before, or leave it out") from (
            error
        )
    if its_sort != sort:
        raise DeskError("invalid", detail=f"cursor is of the order by {its_sort}; allowed: one of the order by {sort}")
    if type(value) not in (int, float) or type(number) is not int or not abs(number) < 1 << 63:
        raise DeskError("invalid", detail="cursor is none; give next_cursor of the page before, or leave it out")
    return value, number


# --- verdicts


def _row(value: bytes | None) -> dict[str, Any] | None:
    """Return the columns of a flagged verdict, None if it is none."""
    if value is None or _IS_FLAGGED not in value:
        return None
    try:
        body = orjson.loads(value)
        if body["flagged"] is not True:
            return None
        body.pop("record", None)  # read from the log if somebody wants it
        flagged = _from_body(body, None)
        time_ms = _ms(flagged.time)
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, OverflowError):
        return None
    names = [reason.field for reason in flagged.reasons]
    words = [flagged.id, flagged.key or "", flagged.headline, *map(str, flagged.metadata.values())]
    return {
        "id": flagged.id,
        "topic": flagged.topic,
        "time_ms": time_ms,
        "severity": flagged.severity,
        "version": flagged.version,
        "fields": _BETWEEN + "".join(name + _BETWEEN for name in names),
        "words": "\n".join(words).casefold(),
        "names": names,
        "body": orjson.dumps(body),
    }


def _flagged(label: str | None, body: bytes) -> Flagged:
    return _from_body(orjson.loads(body), label)


def _from_body(body: Mapping[str, Any], label: str | None) -> Flagged:
    """Return a flagged record from its verdict; raises KeyError, TypeError or ValueError if that is none."""
    reasons = tuple(
        Reason(part["field"], float(part["contribution"]), part["observed"], part["expected"])
        for part in body["reasons"]
    )
    return Flagged(
        id=str(body["id"]),
        topic=str(body["topic"]),
        partition=int(body["partition"]),
        offset=int(body["offset"]),
        key=body["key"],
        time=_time(body["time"]),
        score=float(body["score"]),
        p_value=float(body["p_value"]),
        severity=float(body["severity"]),
        version=int(body["version"]),
        headline=all_in_words(reasons, most=1),
        reasons=reasons,
        is_picture="heat_map" in body,
        metadata=body.get("metadata", {}),
        label=label,
    )


def _time(text: str) -> datetime:
    """Return the time of a verdict; beyond the year 9999 it is told in ms."""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return datetime.max.replace(tzinfo=UTC) if int(text) > 0 else datetime.min.replace(tzinfo=UTC)
