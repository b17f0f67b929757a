"""The topics of a broker, read for the checker of :mod:`srr_stream.ledger`: offsets, fates and digests, no more.

It belongs to no group and writes nothing. Which records were taken back is told twice, by two ways that share nothing:
from the markers that the broker puts into the log, read with everything that is in it, and from what a second reader,
of committed records alone, is given.
"""

from __future__ import annotations

import hashlib
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import orjson
from numpy.typing import NDArray

from consumers.errors import BrokerUnavailable
from consumers.kafka_client import existing_partitions, make_consumer, servers, translated
from srr_stream.ledger import NO_VERSION, Fate, InputPartition, Ledger, Mode, Output, OutputRows, Place, check

_AT_ONCE = 2000
_POLL_MS = 100
_MAX_WAIT_MS = 20
"""Of a fetch at the end of a partition: each partition is asked for on its own."""
_MOST = 2**63
_MOST_PARTITIONS = 2**31
REQUEUED = "srr-requeued"
"""Header of a record in the dead-letter topic that says that a dead letter was sent again."""


@dataclass(frozen=True)
class Books:
    """What was read of all topics, at one time."""

    inputs: Mapping[Place, InputPartition]
    scores: Output | None
    alerts: Output | None
    dead_letters: Output
    committed: Mapping[Place, int]
    judgements: Judgements | None = None
    """What the verdicts of `scores` say, if that was asked for."""

    def check(self, mode: Mode, *, starts_late: bool) -> Ledger:
        """Check them."""
        return check(
            self.inputs,
            scores=self.scores,
            alerts=self.alerts,
            dead_letters=self.dead_letters,
            committed=self.committed,
            mode=mode,
            starts_late=starts_late,
        )


class Judgements(NamedTuple):
    """The numbers of verdicts, ``(n,)`` float64, in the order of their topic's entries."""

    score: NDArray[np.float64]
    p_value: NDArray[np.float64]
    severity: NDArray[np.float64]


def read_books(
    connection: Mapping[str, Any],
    *,
    topics: Sequence[str],
    group_id: str,
    scores_topic: str | None,
    alerts_topic: str | None,
    dead_letter_topic: str,
    mode: Mode,
    isolation_level: str = "read_committed",
    last: int | None = None,
    with_judgements: bool = False,
    timeout_s: float = 30.0,
) -> Books:
    """Read everything that a check needs.

    Parameters
    ----------
    connection
        kafka-python's settings of a connection: ``bootstrap_servers``, ``security_protocol``, …
    isolation_level
        What the input is read with; ``read_uncommitted``: what senders took back are records too.
    last
        Check only the newest so many offsets of each input partition; the outputs are read whole. None: all.
    timeout_s
        A broker that gives nothing for so long is taken for lost.

    Raises
    ------
    BrokerUnavailable, TopicMissing, NotAuthorized
        If no broker answers, a topic does not exist, or the brokers refuse.
    """
    # In this order: what the group has passed is published by then, and what is published answers what is there then.
    committed = read_committed_offsets(connection, topics, group_id, timeout_s=timeout_s)
    numbers = _Numbers() if with_judgements and scores_topic is not None else None
    with (
        LogReader(connection, timeout_s=timeout_s) as reader,
        LogReader(connection, "read_committed", timeout_s) as strict,
    ):

        def output(topic: str, add: _Add) -> Output:
            return _read_output(reader, strict if mode == "exactly_once" else None, topic, add)

        scores = output(scores_topic, _verdict_adder(numbers)) if scores_topic is not None else None
        alerts = output(alerts_topic, _verdict_adder(None)) if alerts_topic is not None else None
        dead_letters = output(dead_letter_topic, _add_dead_letter)
        takes_all = isolation_level == "read_uncommitted"
        inputs = {
            (tp.topic, tp.partition): _read_input(reader, tp, last, takes_all=takes_all)
            for tp in reader.partitions(topics)
        }
    return Books(inputs, scores, alerts, dead_letters, committed, numbers.build() if numbers is not None else None)


def read_committed_offsets(
    connection: Mapping[str, Any], topics: Sequence[str], group_id: str, *, timeout_s: float = 30.0
) -> dict[Place, int]:
    """Return where a group goes on in each partition of the topics; without those of which it has committed nothing."""
    where = servers(connection)
    with translated(where):
        consumer = make_consumer(connection, group_id=group_id)  # never subscribes, so it never joins
        try:
            found = {}
            for tp in existing_partitions(consumer, topics, where=where):
                offset = consumer.committed(tp, timeout_ms=int(timeout_s * 1000))
                if offset is not None and offset >= 0:
                    found[tp.topic, tp.partition] = offset
            return found
        finally:
            consumer.close(autocommit=False, timeout_ms=1000)


class Batches:
    """What is known of the batches of one partition: where they lie, and what became of them.

    A transaction's batches are undecided until its producer's next marker.
    """

    def __init__(self, begin: int) -> None:
        self.has_gaps = False
        self._next = begin
        self._base, self._last, self._fate = array("q"), array("q"), array("b")
        self._undecided: dict[int, list[int]] = {}
        self._markers = array("q")

    def note(self, content: bytes) -> None:
        """Take note of what a fetch brought, in kafka-python's parse of it."""
        from kafka.record import MemoryRecords

        for batch in MemoryRecords(content):
            if batch.magic < 2:  # before Kafka 0.11: no transactions
                continue
            if batch.last_offset < self._next:  # fetched twice
                continue
            n_offsets = batch.last_offset - batch.base_offset + 1
            self.has_gaps |= batch.base_offset > self._next or batch.records_count < n_offsets
            self._next = batch.last_offset + 1
            if batch.is_control_batch:
                self._markers.append(batch.base_offset)
                for record in batch:
                    if record.abort or record.commit:
                        fate = Fate.ABORTED if record.abort else Fate.COMMITTED
                        for index in self._undecided.pop(batch.producer_id, ()):
                            self._fate[index] = fate
                continue
            if batch.is_transactional:
                self._undecided.setdefault(batch.producer_id, []).append(len(self._base))
            self._base.append(batch.base_offset)
            self._last.append(batch.last_offset)
            self._fate.append(Fate.OPEN if batch.is_transactional else Fate.COMMITTED)

    def fates(self, offsets: NDArray[np.int64], stable: int | None) -> NDArray[np.int8]:
        """Return what became of the records at these offsets.

        Parameters
        ----------
        stable
            What lies before it was decided when it was asked for, as the broker says; what does not was not. None: not
            asked for.
        """
        fate = np.frombuffer(self._fate, dtype=np.int8).copy() if self._fate else np.empty(0, dtype=np.int8)
        if stable is not None:
            # Decided, and its marker is gone: it was compacted away, and so were the records of what was aborted.
            fate[(fate == Fate.OPEN) & (np.array(self._last, dtype=np.int64) < stable)] = Fate.COMMITTED
        at = np.searchsorted(np.array(self._base, dtype=np.int64), offsets, side="right") - 1
        found = np.full(len(offsets), Fate.COMMITTED, dtype=np.int8)
        found[at >= 0] = fate[at[at >= 0]]
        if stable is not None:
            found[(offsets >= stable) & (found == Fate.COMMITTED)] = Fate.OPEN
        return found

    @property
    def markers(self) -> NDArray[np.int64]:
        """Where the broker's markers lie."""
        return np.array(self._markers, dtype=np.int64)


class LogReader:
    """One partition after the other, from its beginning to where it ended when it was asked for."""

    def __init__(
        self, connection: Mapping[str, Any], isolation_level: str = "read_uncommitted", timeout_s: float = 30.0
    ) -> None:
        self._where = servers(connection)
        self._timeout_s = timeout_s
        self.batches = Batches(0)
        """Of the partition that is read, or was read last."""
        self.end = 0
        """Where that ended: behind its last record; for a reader of committed ones, before the first undecided one."""
        self._is_answered = False
        self._is_strict = isolation_level == "read_committed"
        with translated(self._where):
            self._consumer = make_consumer(
                connection,
                isolation_level=isolation_level,
                auto_offset_reset="earliest",  # retention may take the beginning meanwhile
                fetch_max_wait_ms=_MAX_WAIT_MS,
            )
        self._watch()

    def partitions(self, topics: Sequence[str]) -> list[Any]:
        """Return all partitions of topics."""
        with translated(self._where):
            return existing_partitions(self._consumer, topics, where=self._where)

    def beginning(self, tp: Any) -> int:
        """Return the first offset of a partition's log."""
        with translated(self._where):
            found: int = self._consumer.beginning_offsets([tp], timeout_ms=int(self._timeout_s * 1000))[tp]
            return found

    def read(self, tp: Any, *, start: int = 0, at_once: int = _AT_ONCE) -> Iterator[Sequence[Any]]:
        """Yield the records of a partition, some at a time; :attr:`batches` and :attr:`end` come to hold what they say.

        Parameters
        ----------
        start
            Offset to begin at; the log's beginning if that is later.

        The end is what the list of offsets tells, or the first fetch, whichever is greater: the list of the embedded
        broker holds back its last batch.
        """
        position = max(start, self.beginning(tp))
        self.batches, self._is_answered = Batches(position), False
        with translated(self._where):
            self.end = self._consumer.end_offsets([tp], timeout_ms=int(self._timeout_s * 1000))[tp]
            self._consumer.assign([])  # forgets what was fetched of it before
            self._consumer.assign([tp])
            self._consumer.seek(tp, position)
            heard = time.monotonic()
            while not self._is_answered or position < self.end:
                records = self._consumer.poll(timeout_ms=_POLL_MS, max_records=at_once).get(tp, ())
                if records:
                    yield [record for record in records if record.offset < self.end]
                reached = self._consumer.position(tp, timeout_ms=int(self._timeout_s * 1000))
                if reached is not None and reached > position:
                    position, heard = reached, time.monotonic()
                elif time.monotonic() - heard > self._timeout_s:
                    raise BrokerUnavailable(
                        f"{self._where}: {tp.topic}-{tp.partition} gives nothing at offset {position} "
                        f"for {self._timeout_s:g} s; check the brokers"
                    )

    def __enter__(self) -> LogReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close(autocommit=False, timeout_ms=1000)

    def _watch(self) -> None:
        """Look at every answer to a fetch on its way: kafka-python's consumer keeps batches and markers to itself."""
        parse: Callable[[Any], Any] = self._consumer._fetcher._parse_fetched_data

        def watched(fetch: Any) -> Any:
            parsed = parse(fetch)
            if parsed is not None:
                data = fetch.partition_data
                self.batches.note(data.records or b"")
                if not self._is_answered:
                    self._is_answered = True
                    mark = data.last_stable_offset if self._is_strict else data.high_watermark
                    self.end = max(self.end, mark)
            return parsed

        self._consumer._fetcher._parse_fetched_data = watched


class _Numbers:
    """What verdicts say, growing with the entries of their topic."""

    def __init__(self) -> None:
        self._columns = array("d"), array("d"), array("d")

    def add(self, body: Mapping[str, Any]) -> None:
        for column, name in zip(self._columns, Judgements._fields, strict=True):
            value = body.get(name)
            column.append(float(value) if isinstance(value, int | float) else float("nan"))

    def build(self) -> Judgements:
        return Judgements(*(np.array(column, dtype=np.float64) for column in self._columns))


_Add = Callable[[OutputRows, Any], str | None]
"""Adds a record of an output topic; returns what is wrong with it, if it names no input record."""


def _read_output(reader: LogReader, strict: LogReader | None, topic: str, add: _Add) -> Output:
    rows = OutputRows(topic)
    fates, visible = [np.empty(0, dtype=np.int8)], [np.empty(0, dtype=np.bool_)]
    begins, has_gaps = {}, False
    for tp in reader.partitions([topic]):
        stable, shown = None, None
        if strict is not None:
            # First: what is decided by now has its marker before the end that is asked for afterwards.
            offsets = array("q")
            for records in strict.read(tp):
                offsets.extend(record.offset for record in records)
            stable, shown = strict.end, np.array(offsets, dtype=np.int64)
        start, malformed = len(rows), []
        for records in reader.read(tp):
            for record in records:
                wrong = add(rows, record)
                if wrong is not None:
                    malformed.append((record.offset, wrong))
        lies_at = rows.to_offsets(start)
        fate = reader.batches.fates(lies_at, stable)
        fates.append(fate)
        visible.append(fate == Fate.COMMITTED if shown is None else np.isin(lies_at, shown))
        of_malformed = reader.batches.fates(np.array([offset for offset, _ in malformed], dtype=np.int64), stable)
        for (offset, wrong), its_fate in zip(malformed, of_malformed.tolist(), strict=True):
            if its_fate == Fate.COMMITTED:
                rows.add_malformed(tp.partition, offset, wrong)
        begins[tp.partition] = reader.beginning(tp)  # asked for now: it may have moved on
        has_gaps |= reader.batches.has_gaps
    return rows.build(np.concatenate(fates), np.concatenate(visible), begins=begins, has_gaps=has_gaps)


def _read_input(reader: LogReader, tp: Any, last: int | None, *, takes_all: bool) -> InputPartition:
    offsets = array("q")
    for records in reader.read(tp):
        offsets.extend(record.offset for record in records)
    everything = np.array(offsets, dtype=np.int64)
    is_record = reader.batches.fates(everything, None) == Fate.COMMITTED
    if takes_all:
        is_record[:] = True
    never = np.union1d(everything[~is_record], reader.batches.markers)
    begin = reader.beginning(tp)
    records = everything[is_record & (everything >= begin)]
    since = None if last is None else max(begin, reader.end - last)
    return InputPartition(begin, reader.end, records, never, since)


def _verdict_adder(numbers: _Numbers | None) -> _Add:
    def add(rows: OutputRows, record: Any) -> str | None:
        value = record.value or b""
        try:
            body = orjson.loads(value)
        except orjson.JSONDecodeError as error:
            return f"is not JSON: {error}"
        if not isinstance(body, dict):
            return "is no JSON object"
        topic, partition, offset = (body.get(name) for name in ("topic", "partition", "offset"))
        if not isinstance(topic, str) or not _is_number(partition, _MOST_PARTITIONS) or not _is_number(offset, _MOST):
            return f"names no record: topic {topic!r}, partition {partition!r}, offset {offset!r}"
        if body.get("id") != f"{topic}-{partition}-{offset}":
            return f"its id is {body.get('id')!r}, and it names {topic}-{partition}-{offset}"
        if not isinstance(body.get("flagged"), bool):
            return f"flagged is {body.get('flagged')!r}; allowed: true and false"
        known_normal = body.get("known_normal")
        if known_normal is not None and (not isinstance(known_normal, str) or body["flagged"]):
            return f"known_normal is {known_normal!r}, flagged {body['flagged']}; allowed: an id, and not flagged then"
        version = body.get("version")
        rows.add(
            (topic, partition),
            offset,
            record.partition,
            record.offset,
            _digest(value),
            version if _is_number(version, _MOST) else NO_VERSION,
            body["flagged"],
            0 if known_normal is None else _digest(known_normal.encode()) >> 1 | 1,
        )
        if numbers is not None:
            numbers.add(body)
        return None

    return add


def _add_dead_letter(rows: OutputRows, record: Any) -> str | None:
    headers = dict(record.headers)  # of several by one name the last, which ours are
    if REQUEUED in headers and "srr-reason" not in headers:
        return None
    try:
        topic = (headers["srr-topic"] or b"").decode()
        partition, offset = int(headers["srr-partition"] or b""), int(headers["srr-offset"] or b"")
    except (KeyError, ValueError) as error:
        return f"its headers name no record: {error!r}"
    if not topic or not _is_number(partition, _MOST_PARTITIONS) or not _is_number(offset, _MOST):
        return f"its headers name no record: topic {topic!r}, partition {partition}, offset {offset}"
    parts = [record.key, record.value]
    for name, content in record.headers:
        parts += [name.encode(), content]
    # Lengths before contents, -1 for nothing: no two dead letters that differ give the same bytes.
    flat = b"".join(b"%d:%b" % (-1 if part is None else len(part), part or b"") for part in parts)
    rows.add((topic, partition), offset, record.partition, record.offset, _digest(flat), NO_VERSION, False)
    return None


def _is_number(value: object, limit: int) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < limit


def _digest(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")


@contextmanager
def open_inputs(
    connection: Mapping[str, Any], *, timeout_s: float = 30.0
) -> Iterator[Callable[[Place], Iterator[Sequence[Any]]]]:
    """Give what yields all records of a partition, some at a time."""
    from kafka import TopicPartition

    with LogReader(connection, timeout_s=timeout_s) as reader:
        yield lambda place: reader.read(TopicPartition(*place))
