"""Labels to hold a backtest against: out of a field of the records that no model learns from, or out of a file."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from consumers.errors import SourceError
from consumers.records import RecordSchema, StoredRecord, event_id
from consumers.sinks.serialization import readable

ANOMALY, NORMAL, UNKNOWN = 1, 0, -1
_ANOMALOUS = frozenset({"1", "true", "yes", "anomaly", "anomalous", "outlier", "attack"})
_NORMAL = frozenset({"0", "false", "no", "normal", "inlier", "benign"})
_UNKNOWN = frozenset({"", "null", "none", "nan", "unsure", "unknown"})
_N_NAMED = 8


@dataclass(frozen=True)
class Meaning:
    """What the values of a label mean, where they are no usual words: those of one kind are named, all others are not.

    Raises
    ------
    ValueError
        If both are named.
    """

    anomalous: tuple[str, ...] = ()
    normal: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.anomalous and self.normal:
            raise ValueError("anomalies are named, and so is what is normal; allowed: one of them, all others are not")


def labels_of_field(
    records: Sequence[StoredRecord], name: str, schema: RecordSchema, meaning: Meaning = Meaning()
) -> NDArray[np.int8]:
    """Return the label of every record, ``(n,)``: 1 an anomaly, 0 normal, -1 nobody knows.

    Parameters
    ----------
    name
        Dotted path to a value of the record, which is JSON. 1, true, yes, anomaly, anomalous, outlier and attack are
        anomalies; 0, false, no, normal, inlier and benign are normal, in whatever case.
    meaning
        Other words for it.

    Raises
    ------
    ValueError
        If a model learns from the field, no record has it, or a value is none of these; says what to do.
    """
    path = tuple(name.split("."))
    learned = [field.name for field in schema.fields if field.path == path and field.name in schema.feature_names]
    if learned:
        raise ValueError(
            f"{name}: the models learn from this field (record.fields: {learned[0]}), they would see the answers; "
            "take it out of record.fields"
        )
    found = [_at(record.value, path) for record in records]
    if all(value is None for value in found):
        raise ValueError(f"{name}: no record has this field; there are {', '.join(_keys(records)) or 'none'}")
    return _as_labels(name, found, meaning)


def labels_of_file(path: Path, records: Sequence[StoredRecord], meaning: Meaning = Meaning()) -> NDArray[np.int8]:
    """Return the label of every record as a file has it, ``(n,)``; see :func:`labels_of_field`.

    Parameters
    ----------
    path
        CSV with a header, or NDJSON. ``id`` is an event id, ``topic-partition-offset``, or the record's key, which of a
        picture out of a folder is its path there. ``label`` is as in a field. What the file does not name nobody knows.

    Raises
    ------
    SourceError
        If the file cannot be read.
    ValueError
        If it has no ``id`` and ``label``, an unknown label, or names none of the records.
    """
    said = dict(_rows(path))
    if not said:
        raise ValueError(f"{path}: has no labels; expected: id and label, CSV with a header or NDJSON")
    labels = _as_labels(str(path), list(said.values()), meaning)
    label_of = dict(zip(said, labels.tolist(), strict=True))
    found = np.full(len(records), UNKNOWN, dtype=np.int8)
    n_found = 0
    for row, record in enumerate(records):
        label = label_of.get(event_id(record))
        if label is None and record.key is not None:
            label = label_of.get(readable(record.key) or "")
        if label is not None:
            found[row], n_found = label, n_found + 1
    if not n_found:
        example = f", such as {event_id(records[0])}" if records else ""
        raise ValueError(f"{path}: none of its {len(said):,} ids is one of these records{example}")
    return found


def _rows(path: Path) -> Iterable[tuple[str, Any]]:
    try:
        if path.suffix in (".ndjson", ".jsonl"):
            rows: list[Any] = [orjson.loads(line) for line in path.read_bytes().splitlines() if line.strip()]
        else:
            with path.open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error, orjson.JSONDecodeError) as error:
        raise SourceError(f"{path}: no labels can be read: {error}; expected: CSV with a header, or NDJSON") from error
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping) or row.get("id") is None or "label" not in row:
            raise ValueError(f"{path}: entry {number} has no id or no label; expected in each: id, label")
        yield str(row["id"]), row["label"]


def _as_labels(where: str, values: Sequence[Any], meaning: Meaning) -> NDArray[np.int8]:
    texts = [_text(value) for value in values]
    known = dict.fromkeys(_ANOMALOUS, ANOMALY) | dict.fromkeys(_NORMAL, NORMAL)
    for named, label, other in ((meaning.anomalous, ANOMALY, NORMAL), (meaning.normal, NORMAL, ANOMALY)):
        wanted = {_text(value) for value in named}
        if wanted:
            if not wanted & set(texts):
                there = _named(text for text in texts if text not in _UNKNOWN)
                raise ValueError(f"{where}: no value is {_named(wanted)}; there are {there}")
            known = {text: label if text in wanted else other for text in texts}
    known |= dict.fromkeys(_UNKNOWN, UNKNOWN)
    strange = {text for text in texts if text not in known}
    if strange:
        raise ValueError(
            f"{where}: {_named(strange)} {'is no label' if len(strange) == 1 else 'are no labels'}; allowed: 0, 1, "
            "false, true, normal, anomaly; or say with --anomaly or --normal which values are"
        )
    return np.array([known[text] for text in texts], dtype=np.int8)


def _text(value: Any) -> str:
    if isinstance(value, float) and value == int(value):
        value = int(value)
    return str(value).strip().lower()


def _named(texts: Iterable[str]) -> str:
    names = sorted(set(texts))
    return ", ".join(repr(name) for name in names[:_N_NAMED]) + (" …" if len(names) > _N_NAMED else "")


def _at(value: bytes | None, path: tuple[str, ...]) -> Any:
    node = _parsed(value)
    for key in path:
        if not isinstance(node, dict):
            return None
        node = node.get(key)
    return node


def _parsed(value: bytes | None) -> Any:
    try:
        return orjson.loads(value or b"")
    except orjson.JSONDecodeError:
        return None


def _keys(records: Sequence[StoredRecord]) -> list[str]:
    first = next((parsed for record in records if isinstance(parsed := _parsed(record.value), dict)), {})
    return list(first)
