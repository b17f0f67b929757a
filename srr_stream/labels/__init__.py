"""Labels: what people say of records. They live in a compacted topic, keyed by event id; the latest one counts.

A label changes no model and starts no training. The next training reads them (:mod:`srr_stream.trainer`), and records
near one that is marked normal are not flagged again (:mod:`srr_stream.labels.known_normals`).
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import math
import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, get_args

from consumers.access import check_access
from consumers.errors import ConsumersError, NotAuthorized, SinkError, TopicMissing
from consumers.kafka_client import connect, servers, translated
from consumers.logs import KafkaLog, Log, OffsetRange
from consumers.records import RawRecord
from srr_stream.errors import NoLabelTopic

if TYPE_CHECKING:
    from kafka import KafkaProducer
    from kafka.producer.future import FutureRecordMetadata

log = logging.getLogger(__name__)

LabelName = Literal["anomaly", "normal", "unsure"]
LABELS: tuple[LabelName, ...] = get_args(LabelName)
MAX_NOTE = 2000
"""Characters of a note."""
MAX_SIZE = 900_000
"""Bytes of a label that fit into a message of the size that Kafka takes by default."""
LEAST_LABELS, LEAST_OF_EACH = 20, 5
"""Labels without which no α is suggested, and those of anomalies and of normal records each to suggest a lower one."""
LEAST_GAIN = 0.05
"""F1 by which a lower α must be better: less is chance."""
GOOD_PRECISION = 0.9
MAX_RATE = 0.05
"""No higher α is ever suggested."""
_ID = re.compile(r"(?P<topic>[A-Za-z0-9._-]{1,249})-(?P<partition>[0-9]{1,9})-(?P<offset>[0-9]{1,18})")


@dataclass(frozen=True)
class Label:
    """What a person says of one record.

    ``version``, ``p_value`` and ``severity`` are those of the verdict that the person saw; of the live model, if the
    record was not flagged or the label came from a command; None if nobody knows. ``at`` is ISO 8601 in UTC.

    Raises
    ------
    ValueError
        If the label is none of anomaly, normal, unsure; the id does not name the record; the note is too long; or time
        or p-value are none.
    """

    id: str
    label: LabelName
    note: str
    author: str
    at: str
    version: int | None
    p_value: float | None
    severity: float | None
    topic: str
    partition: int
    offset: int
    record: bytes | None
    """The record itself, as it was sent; None if nobody had it, or it was too large."""

    def __post_init__(self) -> None:
        if self.label not in LABELS:
            raise ValueError(f"label is {self.label!r}; allowed: {', '.join(LABELS)}")
        if self.id != f"{self.topic}-{self.partition}-{self.offset}":
            raise ValueError(f"id {self.id!r} does not name {self.topic}-{self.partition}-{self.offset}")
        if len(self.note) > MAX_NOTE:
            raise ValueError(f"note has {len(self.note)} characters; allowed: {MAX_NOTE}")
        datetime.fromisoformat(self.at)
        if self.p_value is not None and not 0.0 <= self.p_value <= 1.0:
            raise ValueError(f"p_value is {self.p_value}; allowed: 0 to 1")

    @property
    def place(self) -> tuple[str, int, int]:
        """Where the record lies: topic, partition, offset."""
        return self.topic, self.partition, self.offset


def place_of(event_id: str) -> tuple[str, int, int]:
    """Return topic, partition and offset that an event id names.

    Raises
    ------
    ValueError
        If it is none.

    Examples
    --------
    >>> place_of("eu-requests-3-1042")
    ('eu-requests', 3, 1042)
    """
    match = _ID.fullmatch(event_id)
    if match is None:
        raise ValueError(f"{event_id!r} is no event id; ids are topic-partition-offset, as in verdicts and alerts")
    return match["topic"], int(match["partition"]), int(match["offset"])


def fitting(label: Label) -> Label:
    """Return a label as it fits into a message: without its record, if that is too large."""
    is_large = label.record is not None and len(_to_json(label)) > MAX_SIZE
    return replace(label, record=None) if is_large else label


def label_to_json(label: Label) -> bytes:
    """Return a label as its topic has it; a record with which it would be too large is left out."""
    return _to_json(fitting(label))


def _to_json(label: Label) -> bytes:
    content: dict[str, Any] = asdict(label)
    if label.record is not None:
        content["record"] = base64.b64encode(label.record).decode()
    return json.dumps(content, sort_keys=True).encode()


def label_from_json(raw: bytes) -> Label:
    """Return the label that a record of the topic is; keys that are not known here are left to who wrote them.

    Raises
    ------
    ValueError
        If it is none.
    """
    content = json.loads(raw)
    if not isinstance(content, dict):
        raise ValueError("is no JSON object")
    allowed: dict[str, tuple[type, ...]] = {
        **dict.fromkeys(("id", "label", "note", "author", "at", "topic"), (str,)),
        **dict.fromkeys(("partition", "offset"), (int,)),
        "version": (int, type(None)),
        **dict.fromkeys(("p_value", "severity"), (int, float, type(None))),
        "record": (str, type(None)),
    }
    for name, types in allowed.items():
        value = content.get(name)
        if not isinstance(value, types) or isinstance(value, bool):
            raise ValueError(f"{name} is {str(value)[:80]!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} is {value}")
    values: dict[str, Any] = {name: content.get(name) for name in allowed}
    if values["record"] is not None:
        try:
            values["record"] = base64.b64decode(content["record"], validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError(f"record is no base64: {error}") from error
    return Label(**values)


@dataclass(frozen=True)
class LabelSummary:
    """What labels tell of the detector."""

    n_anomaly: int
    n_normal: int
    n_unsure: int
    precision: float | None
    """Of the flagged records labelled anomaly or normal, the share that are anomalies; None without any."""
    suggested_rate: float | None
    """An α that suits the labels better than the one in use; None if there is none. Nobody applies it but a person."""
    why: str
    """Why this rate, or none, in words."""


class LabelBook:
    """The latest label of every record; any thread may ask, one or more may update.

    Examples
    --------
    >>> from consumers.records import StoredRecord
    >>> label = Label("t-0-7", "normal", "", "ann", "2026-01-01T00:00:00.000Z", 1, 0.001, 1.3, "t", 0, 7, b"{}")
    >>> book = LabelBook()
    >>> book.update([StoredRecord("labels", 0, 0, 0, b"t-0-7", label_to_json(label))])
    >>> book.get("t-0-7").label, book.version
    ('normal', 1)
    >>> book.update([StoredRecord("labels", 0, 1, 0, b"t-0-7", None)])
    >>> book.get("t-0-7"), book.version
    (None, 2)
    """

    def __init__(self) -> None:
        self.version = 0
        """Grows with every change."""
        self.n_rejected = 0
        """Records of the topic that are no labels."""
        self._labels: dict[str, Label] = {}
        self._seen: dict[str, tuple[int, int, int]] = {}
        """Id → partition, offset and time of the record of the topic that counts, be it a tombstone."""
        self._lock = threading.Lock()

    def update(self, raw_records: Sequence[RawRecord]) -> None:
        """Take records of the topic, in any order, doubles included; what is no label is counted and left out."""
        with self._lock:
            n_changes = sum(self._take(record) for record in raw_records)
            self.version += n_changes > 0

    def get(self, event_id: str) -> Label | None:
        """Return the label of a record, None if it has none."""
        with self._lock:
            return self._labels.get(event_id)

    def all(self) -> tuple[Label, ...]:
        """Return all labels, the newest last."""
        return self.snapshot()[1]

    def snapshot(self) -> tuple[int, tuple[Label, ...]]:
        """Return :attr:`version` and all labels as they were then."""
        with self._lock:
            return self.version, tuple(sorted(self._labels.values(), key=lambda label: (label.at, label.id)))

    def counts(self) -> dict[LabelName, int]:
        """Return how many there are of each label, 0 included."""
        with self._lock:
            counted = Counter(label.label for label in self._labels.values())
        return {name: counted[name] for name in LABELS}

    def summary(self, false_alarm_rate: float) -> LabelSummary:
        """Return what the labels tell of a detector that flags p-values up to `false_alarm_rate`."""
        return summarize(self.all(), false_alarm_rate)

    def _take(self, record: RawRecord) -> bool:
        """Take a record, and return whether that changed anything."""
        try:
            event_id = (record.key or b"").decode()
            label = None if record.value is None else label_from_json(record.value)
            if label is not None and label.id != event_id:
                raise ValueError(f"its key is {event_id[:80]!r} and its id {label.id!r}")
            place_of(event_id)
        except (ValueError, RecursionError) as error:
            self.n_rejected += 1
            if self.n_rejected == 1:
                where = f"{record.topic}-{record.partition}-{record.offset}"
                log.warning("%s is no label: %s; it, and what else is none, is left out", where, error)
            return False
        seen = self._seen.get(event_id)
        if seen is not None and not _is_later(record, seen):
            return False
        self._seen[event_id] = record.partition, record.offset, record.timestamp
        if label is None:
            return self._labels.pop(event_id, None) is not None
        self._labels[event_id] = label
        return True


def _is_later(record: RawRecord, seen: tuple[int, int, int]) -> bool:
    """Return whether a record came after another of its key; of two partitions, since some were added, time decides."""
    partition, offset, time_ms = seen
    return record.offset > offset if record.partition == partition else record.timestamp >= time_ms


def summarize(labels: Sequence[Label], false_alarm_rate: float) -> LabelSummary:
    """Return counts, precision, and an α to suggest.

    The suggestion is the cut through the p-values of the labelled records that has the best F1 of the labels; of
    equally good ones the highest. It is taken if that is lower than the α in use, by at least 0.05 of F1, with at least
    20 labels, 5 of them anomalies and 5 normal. People label what was flagged, so labels say little of what lies above
    the α in use: a higher one is suggested only, and then twice as high, up to 0.05, where at least 0.9 of 20 labelled
    flagged records are anomalies.

    Parameters
    ----------
    false_alarm_rate
        α in use, 0 to 1.
    """
    counts = Counter(label.label for label in labels)
    decided = [label for label in labels if label.label != "unsure"]
    flagged = [label for label in decided if label.severity is not None and label.severity >= 1.0]
    n_hits = sum(label.label == "anomaly" for label in flagged)
    precision = n_hits / len(flagged) if flagged else None
    rate, why = _suggested(decided, len(flagged), precision, false_alarm_rate)
    return LabelSummary(counts["anomaly"], counts["normal"], counts["unsure"], precision, rate, why)


def _suggested(
    decided: Sequence[Label], n_flagged: int, precision: float | None, rate: float
) -> tuple[float | None, str]:
    judged = [(label.p_value, label.label == "anomaly") for label in decided if label.p_value is not None]
    if len(judged) < LEAST_LABELS:
        return None, (
            f"{len(judged)} records with a p-value are labelled anomaly or normal; {LEAST_LABELS} are needed to suggest"
        )
    if precision is not None and precision >= GOOD_PRECISION and n_flagged >= LEAST_LABELS:
        if rate >= MAX_RATE:
            return None, f"{precision:.0%} of what is flagged and labelled are anomalies; {rate:g} is high already"
        higher = min(2 * rate, MAX_RATE)
        return higher, (
            f"{precision:.0%} of what is flagged and labelled are anomalies: {higher:g} would show more, for at most "
            f"{higher - rate:g} of the normal records as false alarms"
        )
    n_anomalies = sum(is_anomaly for _, is_anomaly in judged)
    if min(n_anomalies, len(judged) - n_anomalies) < LEAST_OF_EACH:
        return None, (
            f"{n_anomalies} anomalies and {len(judged) - n_anomalies} normal records are labelled; "
            f"{LEAST_OF_EACH} of each are needed to suggest a lower rate"
        )
    cut, best = _best_cut(judged)
    now = _f1(judged, rate)
    if cut >= rate or best < now + LEAST_GAIN:
        return None, f"no lower rate suits the labels clearly better than {rate:g} (F1 {now:.2f}, at best {best:.2f})"
    n_false = sum(not is_anomaly for p, is_anomaly in judged if cut < p <= rate)
    n_missed = sum(is_anomaly for p, is_anomaly in judged if cut < p <= rate)
    return cut, (
        f"at {cut:g} the labels have F1 {best:.2f}, at {rate:g} {now:.2f}: {n_false} labelled false alarms fewer, and "
        f"{n_missed} labelled anomalies missed"
    )


def _best_cut(judged: Sequence[tuple[float, bool]]) -> tuple[float, float]:
    """Return the rate of the best F1, halfway (of logarithms) to the next higher p-value, and that F1.

    Examples
    --------
    >>> _best_cut([(1e-5, True), (1e-4, True), (1e-2, False)])
    (0.001, 1.0)
    """
    at = sorted({p for p, _ in judged})
    scores = [_f1(judged, p) for p in at]
    best = max(range(len(at)), key=lambda i: (scores[i], i))
    above = at[best + 1] if best + 1 < len(at) else 1.0
    short = float(f"{math.sqrt(at[best] * above):.2g}")
    return short if at[best] <= short < above else at[best], scores[best]


def _f1(judged: Sequence[tuple[float, bool]], rate: float) -> float:
    """Return F1 = 2 TP / (2 TP + FP + FN) of flagging p-values up to `rate`."""
    n_flagged = sum(p <= rate for p, _ in judged)
    n_hits = sum(is_anomaly for p, is_anomaly in judged if p <= rate)
    return 2 * n_hits / (n_flagged + sum(is_anomaly for _, is_anomaly in judged))


class LabelTopic:
    """Writes labels; the connection is made by the first write, and anew after an error.

    Parameters
    ----------
    connection
        kafka-python's settings of a connection: ``bootstrap_servers``, ``security_protocol``, …
    timeout_s
        A broker that confirms nothing for so long is taken for lost.

    Raises
    ------
    NoLabelTopic
        From every method, if the topic does not exist.
    BrokerUnavailable, NotAuthorized, SinkError
        If no broker answers, the brokers refuse, or a label is not known to be durable: write it again.
    """

    def __init__(self, connection: Mapping[str, Any], topic: str, *, timeout_s: float = 30.0) -> None:
        self._connection = dict(connection)
        self._topic = topic
        self._timeout_s = timeout_s
        self._where = servers(connection)
        self._open: KafkaProducer | None = None
        self._lock = threading.Lock()

    def write(self, labels: Sequence[Label]) -> None:
        """Return when every in-sync replica has the labels."""
        self._write([(label.id, label_to_json(label)) for label in labels])

    def remove(self, ids: Sequence[str]) -> None:
        """Return when every in-sync replica has it that these records have no label; one that had none is fine."""
        self._write([(event_id, None) for event_id in ids])

    def close(self) -> None:
        """Let go; twice is fine."""
        with self._lock:
            self._close()

    def _write(self, entries: Sequence[tuple[str, bytes | None]]) -> None:
        from kafka.errors import KafkaTimeoutError

        if not entries:
            return
        with self._lock, self._translated():
            producer = self._reach()
            futures: list[FutureRecordMetadata] = [
                producer.send(self._topic, value=value, key=event_id.encode()) for event_id, value in entries
            ]
            producer.flush(self._timeout_s)
            for future in futures:
                if not future.is_done:
                    raise KafkaTimeoutError(f"nothing confirmed within {self._timeout_s:g} s")
                if future.failed():
                    raise future.exception

    def _reach(self) -> KafkaProducer:
        from kafka import KafkaProducer

        if self._open is None:
            timeout_ms = int(self._timeout_s * 1000)
            with translated(self._where):
                check_access(self._connection, writes=[self._topic], where=self._where)
                self._open = connect(
                    KafkaProducer,
                    self._connection,
                    acks="all",
                    enable_idempotence=True,
                    max_block_ms=timeout_ms,
                    request_timeout_ms=min(timeout_ms, 10_000),
                    delivery_timeout_ms=timeout_ms + 10_000,
                )
        return self._open

    @contextmanager
    def _translated(self) -> Iterator[None]:
        from kafka import errors

        try:
            with told_how_to_create(self._topic):
                yield
        except (ConsumersError, NoLabelTopic):
            self._close()
            raise
        except errors.AuthorizationError as error:
            self._close()
            raise NotAuthorized(
                f"{self._where}: cannot write to {self._topic}: {error}; check the credentials and their rights"
            ) from error
        except errors.KafkaError as error:
            self._close()
            raise SinkError(f"labels are not durable at {self._where}: {error}; write them again") from error

    def _close(self) -> None:
        from kafka.errors import KafkaError

        producer, self._open = self._open, None
        if producer is None:
            return
        try:
            producer.close(timeout=0)
        except KafkaError:  # it insists on flushing; without a broker it would try for ever in its thread
            producer._sender.force_close()


@contextmanager
def told_how_to_create(topic: str) -> Iterator[None]:
    """Turn a missing topic of labels into an error that says how to make it."""
    try:
        yield
    except TopicMissing as error:
        raise NoLabelTopic(f"{str(error).split(';')[0]}; create it: {creation_of(topic)}") from error


def creation_of(topic: str) -> str:
    """Return the command that makes a topic for labels."""
    return (
        f"kafka-topics.sh --create --topic {topic} --partitions 1 --config cleanup.policy=compact "
        "--bootstrap-server HOST:PORT"
    )


def read_labels(connection: Mapping[str, Any], topic: str, *, timeout_s: float = 30.0) -> LabelBook:
    """Return all labels that a topic has by now.

    Raises
    ------
    NoLabelTopic
        If the topic does not exist.
    BrokerUnavailable, NotAuthorized
        If no broker answers, or the brokers refuse.
    """
    with (
        told_how_to_create(topic),
        closing(KafkaLog([topic], connection=connection, timeout_s=timeout_s)) as topic_log,
    ):
        return book_of(topic_log)


def book_of(topic_log: Log) -> LabelBook:
    """Return all labels of a log."""
    book = LabelBook()
    begins = topic_log.beginnings()
    for (topic, partition), end in sorted(topic_log.ends().items()):
        book.update(list(topic_log.read(OffsetRange(topic, partition, begins[topic, partition], end))))
    return book
