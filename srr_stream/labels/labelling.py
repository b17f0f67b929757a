"""Making labels: from an id, or a file of them, to labels that hold the record and what the live model says of it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from consumers.chunks import in_chunks
from consumers.records import RawRecord, event_id
from srr_stream.errors import NoRecord, SrrStreamError
from srr_stream.labels import LABELS, MAX_NOTE, Label, LabelName, fitting, place_of

if TYPE_CHECKING:
    from consumers.decoding import Decoder
    from srr_stream.live_model import Live
    from srr_stream.record_reader import RecordReader

_COLUMNS = ("id", "label", "note")
_AT_ONCE, _AT_ONCE_BYTES = 500, 32 << 20


class WrongLabels(SrrStreamError):
    """Labels that are asked for cannot be made; ``problems`` has every reason, a line each."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(problems))


@dataclass(frozen=True)
class Asked:
    """A label that somebody asks for."""

    id: str
    label: str
    note: str = ""
    where: str = ""
    """File and line, for messages; empty: on the command line."""

    def problem(self, what: object) -> str:
        """Say what is wrong with it, and where."""
        return f"{self.where}: {what}" if self.where else str(what)


def read_file(path: Path) -> list[Asked]:
    """Read labels from CSV with a header, or from NDJSON: ``id``, ``label`` and, if there is one, ``note``.

    Raises
    ------
    WrongLabels
        If a line is none, or the file cannot be read as text.
    OSError
        If there is no such file.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise WrongLabels([f"{path}: is no UTF-8 text: {error}"]) from error
    problems: list[str] = []
    read = _from_ndjson if text.lstrip().startswith("{") else _from_csv
    found = list(read(text, str(path), problems)) if text.strip() else []
    if problems:
        raise WrongLabels(problems)
    if not found:
        raise WrongLabels([f"{path}: has no labels; needed: a CSV with the columns {', '.join(_COLUMNS)}, or NDJSON"])
    return found


def _from_ndjson(text: str, name: str, problems: list[str]) -> Iterator[Asked]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        try:
            content = json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.append(f"{where}: is no JSON: {error}")
            continue
        if not isinstance(content, dict):
            problems.append(f"{where}: is no JSON object")
            continue
        wrong = [key for key in ("id", "label") if not isinstance(content.get(key), str)]
        note = content.get("note") or ""
        unknown = sorted(set(content) - set(_COLUMNS))
        if wrong or not isinstance(note, str) or unknown:
            told = f"{', '.join(unknown)} is not known" if unknown else f"{', '.join(wrong or ['note'])} is no text"
            problems.append(f"{where}: {told}; allowed: {', '.join(_COLUMNS)}, all texts")
            continue
        yield Asked(content["id"], content["label"], note, where)


def _from_csv(text: str, name: str, problems: list[str]) -> Iterator[Asked]:
    reader = csv.DictReader(io.StringIO(text, newline=""), restkey="", strict=True)
    try:
        header = reader.fieldnames or ()
        if not {"id", "label"} <= set(header) <= set(_COLUMNS):
            problems.append(f"{name}:1: columns are {', '.join(header)}; allowed: id, label and, if you like, note")
            return
        for row in reader:
            where = f"{name}:{reader.line_num}"
            if "" in row or row["label"] is None:
                problems.append(f"{where}: has not as many values as there are columns")
                continue
            yield Asked(row["id"].strip(), row["label"].strip(), row.get("note") or "", where)
    except csv.Error as error:
        problems.append(f"{name}:{reader.reader.line_num}: {error}")


def make_labels(
    asked: Sequence[Asked],
    *,
    author: str,
    at: str,
    topics: Collection[str],
    reader: RecordReader,
    decoder: Decoder,
    live: Live | None,
    on_read: Callable[[int], None] = lambda n: None,
) -> list[Label]:
    """Return the labels that are asked for, each with its record if that fits; all of them, or none.

    Parameters
    ----------
    at
        ISO 8601.
    topics
        Whose records may be labelled.
    live
        Its version, p-value and severity stand in the labels; None: there is no model yet.
    on_read
        Told how many records have been read.

    Raises
    ------
    WrongLabels
        With every label that is wrong: no id or label, one id twice, a note too long, a record that is not in the log.
    ConsumersError
        If the log cannot be read.
    """
    problems = _check(asked, topics)
    if problems:
        raise WrongLabels(problems)
    records: list[RawRecord] = []
    for one in asked:
        try:
            records.append(reader.read(*place_of(one.id)))
        except NoRecord as error:
            problems.append(one.problem(f"{one.id}: {error}"))
        on_read(len(records))
    if problems:
        raise WrongLabels(problems)
    labels = {
        one.id: fitting(
            Label(
                one.id,
                cast(LabelName, one.label),
                one.note,
                author,
                at,
                None,
                None,
                None,
                *place_of(one.id),
                record.value,
            )
        )
        for one, record in zip(asked, records, strict=True)
    }
    if live is not None:
        for chunk in in_chunks(records, n_records=_AT_ONCE, n_bytes=_AT_ONCE_BYTES):
            labels |= _judged(chunk, labels, decoder, live)
    return list(labels.values())


def _check(asked: Sequence[Asked], topics: Collection[str]) -> list[str]:
    problems, seen = [], set()
    for one in asked:
        topic = None
        try:
            topic, _, _ = place_of(one.id)
        except ValueError as error:
            problems.append(one.problem(error))
        if topic is not None and topic not in topics:
            problems.append(one.problem(f"{one.id}: {topic} is not among input.topics: {', '.join(topics)}"))
        if one.label not in LABELS:
            problems.append(one.problem(f"label is {one.label!r}; allowed: {', '.join(LABELS)}"))
        if len(one.note) > MAX_NOTE:
            problems.append(one.problem(f"note has {len(one.note)} characters; allowed: {MAX_NOTE}"))
        if one.id in seen:
            problems.append(one.problem(f"{one.id} is there twice"))
        seen.add(one.id)
    return problems


def _judged(chunk: Sequence[RawRecord], labels: dict[str, Label], decoder: Decoder, live: Live) -> dict[str, Label]:
    """Return the labels of some records with what the model says; those of records that it cannot read as they are."""
    batch = decoder.decode(chunk).batch
    found: dict[str, Label] = {}
    if not len(batch):
        return found
    scores = live.model.score(batch.features)
    for raw, p_value, severity in zip(batch.raw, scores.p_value.tolist(), scores.severity.tolist(), strict=True):
        id = event_id(raw)
        found[id] = replace(labels[id], version=live.version, p_value=p_value, severity=severity)
    return found


def to_plain(label: Label) -> dict[str, Any]:
    """Return a label as people and programs read it: without the record, of which it says whether it has one."""
    names = ("id", "label", "note", "author", "at", "version", "p_value", "severity")
    return {**{name: getattr(label, name) for name in names}, "has_record": label.record is not None}
