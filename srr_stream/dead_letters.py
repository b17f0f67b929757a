"""Dead letters: what is in their topic, and sending them again.

Sending again is one Kafka transaction for the record in its input topic and a note in the dead-letter topic that it was
sent. A command that is killed, or run twice, finds the notes and sends nothing a second time; what it left half done is
taken back by the next one, before that reads the notes. A reader of committed records sees each record once.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from consumers.chunks import in_chunks
from consumers.errors import ConsumersError, NotAuthorized, SinkError
from consumers.kafka_client import connect, servers, translated
from srr_stream.errors import NoDeadLetter
from srr_stream.ledger import Fate
from srr_stream.ledger.reader import REQUEUED, LogReader

if TYPE_CHECKING:
    from kafka import KafkaProducer

Headers = tuple[tuple[str, bytes | None], ...]

REQUEUED_FROM = "srr-requeued-from"
"""Header of a record that was sent again: the id of the record that it repeats."""
REQUEUED_TO = "srr-requeued-to"
_AT_ONCE = 100
_AT_ONCE_BYTES = 8 << 20
_MAX_REQUEST_BYTES = 1 << 30
"""The brokers decide what is too large: they took the record once."""


@dataclass(frozen=True)
class DeadLetter:
    """A record that was refused, with the reason.

    ``topic``, ``partition`` and ``offset`` are those of the input record; ``lies_at`` is the place of this letter in
    its own topic. ``omitted`` names what did not fit into it: value, key or headers.
    """

    topic: str
    partition: int
    offset: int
    reason: str
    detail: str
    stage: str
    time_ms: int
    lies_at: tuple[int, int]
    key: bytes | None
    value: bytes | None
    headers: Headers
    """The record's own."""
    omitted: Mapping[str, int] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """``topic-partition-offset`` of the input record, as in its verdict."""
        return f"{self.topic}-{self.partition}-{self.offset}"


def parse(record: Any) -> DeadLetter | None:
    """Return the dead letter that a record of the topic is; None if it is a note, or none of ours."""
    own, about = _parted(record.headers)
    try:
        return DeadLetter(
            topic=about["srr-topic"],
            partition=int(about["srr-partition"]),
            offset=int(about["srr-offset"]),
            reason=about["srr-reason"],
            detail=about.get("srr-detail", ""),
            stage=about.get("srr-stage", ""),
            time_ms=record.timestamp,
            lies_at=(record.partition, record.offset),
            key=record.key,
            value=record.value,
            headers=own,
            omitted={
                what: int(about[f"srr-{what}-omitted"])
                for what in ("value", "key", "headers")
                if f"srr-{what}-omitted" in about
            },
        )
    except (KeyError, ValueError):
        return None


def _parted(headers: Sequence[tuple[str, bytes | None]]) -> tuple[Headers, dict[str, str]]:
    """Return the record's own headers, and what was put behind them.

    Ours begin at the last ``srr-reason``: a record that was copied out of a dead-letter topic has such headers itself.
    """
    at = max((i for i, (name, _) in enumerate(headers) if name == "srr-reason"), default=len(headers))
    about = {name: (content or b"").decode("utf-8", "replace") for name, content in headers[at:]}
    return tuple(headers[:at]), about


def _note_of(record: Any) -> str | None:
    """Return the id that a note says was sent again; None if the record is no note."""
    _, about = _parted(record.headers)
    headers = dict(record.headers)
    return None if about or REQUEUED not in headers else (headers[REQUEUED] or b"").decode("utf-8", "replace")


@dataclass(frozen=True)
class Listing:
    """What is in a dead-letter topic. Doubles of a letter count once."""

    n_by_reason: Mapping[tuple[str, str], int]
    """(reason, input topic) → how many."""
    n_requeued: int
    newest: tuple[DeadLetter, ...]
    """Newest first."""
    requeued: frozenset[str]
    """Ids of those that were sent again."""


@dataclass
class Requeued:
    """What became of a request to send dead letters again."""

    sent: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    """Id → why it cannot be sent."""
    n_before: int = 0
    """How many had been sent before."""


class DeadLetters:
    """A dead-letter topic.

    Parameters
    ----------
    connection
        kafka-python's settings of a connection: ``bootstrap_servers``, ``security_protocol``, …
    topics
        The input topics; records of others are not sent.
    requeue_id
        The transactional id of sending again: of two that send at a time, the older one is stopped.
    timeout_s
        A broker that gives or confirms nothing for so long is taken for lost.

    Raises
    ------
    BrokerUnavailable, TopicMissing, NotAuthorized
        From every method.
    """

    def __init__(
        self,
        topic: str,
        *,
        connection: Mapping[str, Any],
        topics: Sequence[str],
        requeue_id: str,
        timeout_s: float = 30.0,
    ) -> None:
        self._topic = topic
        self._connection = dict(connection)
        self._topics = tuple(topics)
        self._requeue_id = requeue_id
        self._timeout_s = timeout_s

    def listing(self, *, limit: int, reason: str | None = None) -> Listing:
        """Return how many there are, and the newest `limit`; only those of a reason, if one is given."""
        counts: Counter[tuple[str, str]] = Counter()
        newest: list[tuple[int, tuple[int, int], DeadLetter]] = []
        seen: set[str] = set()
        requeued = self._notes()
        with self._reading() as reader:
            for record in self._records(reader):
                letter = parse(record)
                if letter is None or letter.id in seen or (reason is not None and letter.reason != reason):
                    continue
                seen.add(letter.id)
                counts[letter.reason, letter.topic] += 1
                heapq.heappush(newest, (letter.time_ms, letter.lies_at, letter))
                if len(newest) > limit:
                    heapq.heappop(newest)
        listed = tuple(letter for _, _, letter in sorted(newest, key=lambda item: item[:2], reverse=True))
        return Listing(dict(counts), len(seen & requeued), listed, requeued)

    def find(self, letter_id: str) -> DeadLetter:
        """Return the dead letter of an id, whole: what was omitted is fetched from the input, if it is still there.

        Raises
        ------
        NoDeadLetter
            If there is none.
        """
        with self._reading() as reader:
            letters = (parse(record) for record in self._records(reader))
            found = next((letter for letter in letters if letter is not None and letter.id == letter_id), None)
        if found is None:
            raise NoDeadLetter(
                f"{self._topic}: there is no dead letter {letter_id!r}; ids are topic-partition-offset, as srr-stream "
                "dlq list tells them"
            )
        with self._reading() as reader:
            return self._original(reader, found) or found

    def requeue(self, *, ids: Sequence[str] = (), reason: str | None = None, is_dry: bool = False) -> Requeued:
        """Send dead letters to where they came from, each at most once, however often this is called.

        Parameters
        ----------
        ids, reason
            Only these, and only those of this reason.
        is_dry
            Send nothing, and say what would be sent.

        Raises
        ------
        NoDeadLetter
            If there is none of an id; then nothing is sent.
        SinkError
            If the brokers do not take them. What was sent until then counts; call it again for the rest.
        """
        with ExitStack() as stack:
            # First: this takes back what a killed one left open. Notes are final only then.
            sender = None if is_dry else stack.enter_context(self._sending())
            reader, inputs = stack.enter_context(self._reading()), stack.enter_context(self._reading())
            result, notes = Requeued(), self._notes(ids)
            letters = self._wanted(reader, frozenset(ids), reason, notes, result)
            for chunk in in_chunks(self._sendable(letters, inputs, result), n_records=_AT_ONCE, n_bytes=_AT_ONCE_BYTES):
                if sender is None:
                    result.sent += [letter.id for letter in chunk]
                else:
                    sender.send(chunk, result)
        return result

    def _notes(self, ids: Sequence[str] = ()) -> frozenset[str]:
        """Return the ids that were sent before; raise `NoDeadLetter` if one of `ids` is not there.

        Read with everything that is in the topic, and judged by the broker's markers: a reader of committed records
        gets nothing behind the first transaction that is open, which may be a scorer's.
        """
        notes: set[str] = set()
        missing = set(ids)
        with LogReader(self._connection, timeout_s=self._timeout_s) as reader:
            for tp in reader.partitions([self._topic]):
                found: dict[int, str] = {}
                for records in reader.read(tp):
                    for record in records:
                        if (note := _note_of(record)) is not None:
                            found[record.offset] = note
                        elif missing and (letter := parse(record)) is not None:
                            missing.discard(letter.id)
                fates = reader.batches.fates(np.fromiter(found, dtype=np.int64, count=len(found)), None)
                notes.update(note for note, fate in zip(found.values(), fates, strict=True) if fate == Fate.COMMITTED)
        if missing:
            raise NoDeadLetter(
                f"{self._topic}: there is no dead letter {', '.join(sorted(missing))}; nothing was sent; "
                "srr-stream dlq list tells the ids that there are"
            )
        return frozenset(notes)

    def _wanted(
        self, reader: LogReader, ids: frozenset[str], reason: str | None, notes: frozenset[str], result: Requeued
    ) -> Iterator[DeadLetter]:
        """Yield the letters that were asked for and not sent before, each once."""
        seen: set[str] = set()
        for record in self._records(reader):
            letter = parse(record)
            if (
                letter is None
                or letter.id in seen
                or (ids and letter.id not in ids)
                or reason not in (None, letter.reason)
            ):
                continue
            seen.add(letter.id)
            if letter.id in notes:
                result.n_before += 1
            else:
                yield letter

    def _sendable(self, letters: Iterator[DeadLetter], inputs: LogReader, result: Requeued) -> Iterator[DeadLetter]:
        """Yield the letters that can be sent, whole; note why the others cannot."""
        n_partitions: dict[str, int] = {}
        for letter in letters:
            if letter.topic not in self._topics:
                result.refused[letter.id] = f"{letter.topic} is not among input.topics of these settings"
                continue
            if letter.topic not in n_partitions:
                n_partitions[letter.topic] = len(inputs.partitions([letter.topic]))
            if letter.partition >= n_partitions[letter.topic]:
                result.refused[letter.id] = f"{letter.topic} has no partition {letter.partition} any more"
                continue
            whole = self._original(inputs, letter) if letter.omitted else letter
            if whole is None:
                result.refused[letter.id] = (
                    f"its {' and '.join(letter.omitted)} did not fit into the dead letter, and "
                    f"{letter.topic} no longer holds the record"
                )
            else:
                yield whole

    def _original(self, inputs: LogReader, letter: DeadLetter) -> DeadLetter | None:
        """Return a letter with all that its record holds in the input, if something was omitted; None if it is gone."""
        from kafka import TopicPartition

        if not letter.omitted:
            return letter
        if TopicPartition(letter.topic, letter.partition) not in inputs.partitions([letter.topic]):
            return None
        for records in inputs.read(TopicPartition(letter.topic, letter.partition), start=letter.offset, at_once=1):
            for record in records:
                if record.offset != letter.offset:
                    return None
                return replace(letter, key=record.key, value=record.value, headers=tuple(record.headers))
        return None

    def _records(self, reader: LogReader) -> Iterator[Any]:
        for tp in reader.partitions([self._topic]):
            for records in reader.read(tp):
                yield from records

    def _reading(self) -> LogReader:
        return LogReader(self._connection, "read_committed", self._timeout_s)

    def _sending(self) -> _Sender:
        return _Sender(self._connection, self._topic, requeue_id=self._requeue_id, timeout_s=self._timeout_s)


class _Sender:
    """Sends dead letters, some in a transaction, each with a note that it was sent."""

    def __init__(self, connection: Mapping[str, Any], topic: str, *, requeue_id: str, timeout_s: float) -> None:
        self._connection = connection
        self._topic = topic
        self._requeue_id = requeue_id
        self._timeout_s = timeout_s
        self._where = servers(connection)
        self._producer = self._open()

    def __enter__(self) -> _Sender:
        return self

    def __exit__(self, *_: object) -> None:
        _close(self._producer)

    def send(self, letters: Sequence[DeadLetter], result: Requeued) -> None:
        """Send them all, or those that the brokers do not find too large."""
        from kafka.errors import KafkaError, MessageSizeTooLargeError

        try:
            self._producer.begin_transaction()
            places = self._write([self._record(letter) for letter in letters])
            self._write([self._note(letter, to) for letter, to in zip(letters, places, strict=True)])
            self._await(self._producer._transaction_manager.begin_commit())
        except MessageSizeTooLargeError as error:
            # kafka-python counts on from a record that was refused, and the brokers would refuse what follows: a new
            # producer of the same id takes the transaction back and counts anew.
            _close(self._producer)
            self._producer = self._open()
            if len(letters) == 1:
                result.refused[letters[0].id] = f"{letters[0].topic} does not take a record as large as it: {error}"
            else:
                for letter in letters:
                    self.send([letter], result)
        except KafkaError as error:
            # Once it failed, a transaction answers everything with a general error; the reason is kept beside.
            raise explained(self._producer._transaction_manager.last_error or error, self._where) from error
        else:
            result.sent += [letter.id for letter in letters]

    def _open(self) -> KafkaProducer:
        from kafka import KafkaProducer

        timeout_ms = int(self._timeout_s * 1000)
        with translated(self._where):
            producer = connect(
                KafkaProducer,
                self._connection,
                transactional_id=self._requeue_id,
                transaction_timeout_ms=timeout_ms,
                max_block_ms=timeout_ms,
                request_timeout_ms=min(timeout_ms, 10_000),
                delivery_timeout_ms=timeout_ms + 10_000,
                max_request_size=_MAX_REQUEST_BYTES,
            )
            try:
                producer.init_transactions()
            except BaseException:
                _close(producer)
                raise
        return producer

    def _record(self, letter: DeadLetter) -> dict[str, Any]:
        # kafka-python takes neither a header that is null nor a record of nothing.
        headers = [(name, content or b"") for name, content in letter.headers]
        value = b"" if letter.key is None and letter.value is None else letter.value
        return {
            "topic": letter.topic,
            "partition": letter.partition,
            "key": letter.key,
            "value": value,
            "headers": [*headers, (REQUEUED_FROM, letter.id.encode())],
        }

    def _note(self, letter: DeadLetter, to: int) -> dict[str, Any]:
        sent_to = f"{letter.topic}-{letter.partition}-{to}"
        return {
            "topic": self._topic,
            "partition": letter.lies_at[0],
            "key": letter.id.encode(),
            "value": b"",
            "headers": [(REQUEUED, letter.id.encode()), (REQUEUED_TO, sent_to.encode())],
        }

    def _write(self, records: Sequence[Mapping[str, Any]]) -> list[int]:
        """Return the offsets of the records, once the brokers have them."""
        futures = [self._producer.send(**record) for record in records]
        self._producer.flush(self._timeout_s)
        return [future.get(self._timeout_s).offset for future in futures]

    def _await(self, result: Any) -> None:
        """Wait for the end of a transaction; the producer's own methods would wait for ever."""
        from kafka.errors import KafkaTimeoutError

        self._producer._sender.wakeup()
        if not result.wait(timeout_ms=self._timeout_s * 1000):
            raise KafkaTimeoutError(f"no answer within {self._timeout_s:g} s")


def explained(error: Exception, where: str) -> ConsumersError:
    """Return why dead letters were not sent, by who must act."""
    from kafka import errors

    if isinstance(error, errors.AuthorizationError):
        return NotAuthorized(f"{where}: cannot send dead letters: {error}; check the credentials and their rights")
    if isinstance(error, errors.ProducerFencedError | errors.InvalidProducerEpochError):
        return SinkError(f"{where}: another requeue has taken over; what it does not send, the next one will")
    return SinkError(f"{where}: dead letters were not sent: {error}; call it again, nothing is sent twice")


def _close(producer: KafkaProducer) -> None:
    from kafka.errors import KafkaError

    try:
        producer.close(timeout=0)
    except KafkaError:  # it insists on flushing; without a broker it would try for ever in its thread
        producer._sender.force_close()
