"""Members and writers by confluent-kafka, which is librdkafka.

librdkafka reconnects by itself and says little. What :class:`KafkaPythonMember` finds in its library's attributes comes
here from librdkafka's statistics, once a second, and from its events, all told from inside a poll.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from itertools import groupby
from typing import Any, overload

import numpy as np
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from numpy.typing import NDArray

from consumers.clients import Events, Failure, Membership, MovedOn, NothingCommitted, OutOfRange, WriteFailed
from consumers.errors import BrokerUnavailable, ConsumersError, MembershipLost, NotAuthorized, TopicMissing
from consumers.kafka_client import servers
from consumers.polled import Polled, Run
from consumers.records import Position, RawRecord

log = logging.getLogger(__name__)

_ANSWER_TIMEOUT_S = 5.0
"""For a question to a broker between two polls."""
_REQUEST_TIMEOUT_MS = 10_000
_STATISTICS_MS = 1000
_LINGER_MS = 5
_BATCH_BYTES = 128 * 1024
_QUEUE_KIB = 16 * 1024
"""What is read ahead of the scorer."""
_FULL_WAIT_MS = 5
"""How soon a queue that was full is filled again; librdkafka's second would starve a fast reader."""
_TICK_S = 1.0
_RETRY_S = 0.05
_TOKEN_LIFE_S = 60.0
"""Of a token that does not say how long it is good."""
_MOVED_ON = (
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError._ASSIGNMENT_LOST,
)
_NO_RIGHT = (
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError._AUTHENTICATION,
)
_TAKEN_OVER = (
    KafkaError.PRODUCER_FENCED,
    KafkaError._FENCED,
    KafkaError.INVALID_PRODUCER_EPOCH,
    KafkaError.FENCED_INSTANCE_ID,
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.UNKNOWN_MEMBER_ID,
)


class ConfluentMember:
    """A :class:`consumers.clients.Member`."""

    def __init__(
        self, connection: Mapping[str, Any], topics: Sequence[str], membership: Membership, events: Events
    ) -> None:
        self._where = servers(connection)
        self._topics = tuple(topics)
        self._events = events
        self._errors = _Errors(self._where)
        self._next: dict[Position, int] = {}
        self._paused: set[Position] = set()
        self._gone: set[Position] = set()
        """Partitions that went away in this poll: what it had of them already is not given."""
        self._nothing_committed: list[Position] = []
        self._out_of_range: dict[Position, int] = {}
        self._coordinator = self._join_state = ""
        self._session_timeout_s = membership.session_timeout_s
        self._sent: Future[None] | None = None
        """The last commit."""
        self._committing = ThreadPoolExecutor(1, thread_name_prefix="commit")
        with self._errors.translated():
            self._consumer = Consumer(
                {
                    **settings(connection),
                    "group.id": membership.group_id,
                    **({"group.instance.id": membership.instance_id} if membership.instance_id else {}),
                    "partition.assignment.strategy": "cooperative-sticky",
                    "auto.offset.reset": "error",  # what is lost is counted, and decided on
                    "enable.auto.commit": False,
                    "enable.auto.offset.store": False,
                    "enable.partition.eof": True,  # tells how far markers of transactions were read over
                    "allow.auto.create.topics": False,
                    "isolation.level": membership.isolation_level,
                    "session.timeout.ms": int(membership.session_timeout_s * 1000),
                    "heartbeat.interval.ms": int(membership.session_timeout_s * 1000 / 10),
                    "max.poll.interval.ms": int(membership.max_poll_interval_s * 1000),
                    "check.crcs": True,
                    "queued.max.messages.kbytes": _QUEUE_KIB,
                    "fetch.queue.backoff.ms": _FULL_WAIT_MS,
                    "statistics.interval.ms": _STATISTICS_MS,
                    "stats_cb": self._note_statistics,
                    "error_cb": self._errors.note,
                },
                logger=log,
            )
            self._consumer.subscribe(
                list(topics), on_assign=self._note_assigned, on_revoke=self._note_revoked, on_lost=self._note_gone
            )

    def poll(self, timeout_s: float, max_records: int) -> Polled:
        """Return the next records."""
        self._gone.clear()
        if self._nothing_committed:
            partitions, self._nothing_committed = self._nothing_committed, []
            raise NothingCommitted(partitions)
        if self._out_of_range:
            offsets, self._out_of_range = self._out_of_range, {}
            raise OutOfRange(offsets)
        with self._errors.translated():
            # It would wait until there are so many; one is waited for, and what else has come is taken.
            messages = self._consumer.consume(1, timeout_s)
            if messages and max_records > 1:
                messages += self._consumer.consume(max_records - 1, 0.0)
        self._errors.check()
        good = [message for message in messages if message.error() is None]
        if len(good) < len(messages):
            for message in messages:
                error = message.error()
                if error is not None:
                    self._note_event(error, message)
        if self._gone:
            good = [message for message in good if (message.topic(), message.partition()) not in self._gone]
        return self._polled(good)

    def stay(self) -> None:
        """Count as a poll: for none at all no event is served."""
        with self._errors.translated():
            self._consumer.consume(0, 0.0)

    def partitions(self, topics: Sequence[str]) -> frozenset[Position]:
        """Return all partitions of topics."""
        with self._errors.translated():
            found = {topic: self._consumer.list_topics(topic, _ANSWER_TIMEOUT_S).topics[topic] for topic in topics}
        missing = [topic for topic, told in found.items() if told.error is not None or not told.partitions]
        if missing:
            raise TopicMissing(missing, where=self._where)
        return frozenset((topic, partition) for topic, told in found.items() for partition in told.partitions)

    def begins(self, partitions: Collection[Position]) -> dict[Position, int]:
        """Ask for the first offset of each partition."""
        return {partition: self._range(partition)[0] for partition in partitions}

    def ends(self, partitions: Collection[Position]) -> dict[Position, int]:
        """Ask for the end of each partition."""
        return {partition: self._range(partition)[1] for partition in partitions}

    def seek(self, partition: Position, offset: int) -> None:
        """Go on at this offset; one that gives nothing for want of an offset cannot be sought, only assigned anew."""
        with self._errors.translated():
            self._consumer.incremental_unassign([TopicPartition(*partition)])
            self._consumer.incremental_assign([TopicPartition(*partition, offset)])
        self._next[partition] = offset
        if partition in self._paused:
            self.pause([partition])

    def send_commit(self, offsets: Mapping[Position, int]) -> _SentCommit:
        """Begin to commit these, in a thread: librdkafka would tell what came of it among the records only."""
        self._sent = self._committing.submit(self._commit, offsets)
        return _SentCommit(self._sent)

    def _commit(self, offsets: Mapping[Position, int]) -> None:
        if not offsets:
            return
        named = [TopicPartition(*partition, offset) for partition, offset in offsets.items()]
        with self._errors.translated():
            try:
                committed = self._consumer.commit(offsets=named, asynchronous=False)
                for partition in committed:
                    if partition.error is not None:
                        raise KafkaException(partition.error)
            except KafkaException as error:
                if error.args[0].code() in _MOVED_ON:
                    raise MovedOn(error.args[0].str()) from error
                raise

    def pause(self, partitions: Collection[Position]) -> None:
        """Give nothing of these."""
        self._paused |= set(partitions)
        with self._errors.translated():
            self._consumer.pause([TopicPartition(*partition) for partition in partitions])

    def resume(self, partitions: Collection[Position]) -> None:
        """Give records of these again."""
        self._paused -= set(partitions)
        with self._errors.translated():
            self._consumer.resume([TopicPartition(*partition) for partition in partitions])

    def next_offset(self, partition: Position) -> int | None:
        """Return what is read next of a partition."""
        return self._next.get(partition)

    def known_end(self, partition: Position) -> int | None:
        """Return the end of a partition as of the last answer."""
        with self._errors.translated():
            _, end = self._consumer.get_watermark_offsets(TopicPartition(*partition), cached=True)
        return end if end >= 0 else None

    def close(self) -> None:
        """Leave the group."""
        self._committing.shutdown()  # a thread within the consumer must not see it go
        self._consumer.close()

    @property
    def assignment(self) -> frozenset[Position]:
        """The partitions that this member owns."""
        try:
            return frozenset((tp.topic, tp.partition) for tp in self._consumer.assignment())
        except RuntimeError:  # it is closed
            return frozenset()

    @property
    def is_rebalancing(self) -> bool:
        """Whether the group is, as of the last statistics."""
        return self._join_state != "steady"

    @property
    def reaches_coordinator(self) -> bool:
        """Whether the group's coordinator was connected as of the last statistics."""
        return self._coordinator == "up"

    @property
    def metadata(self) -> Any:
        """The member's generation and name, for a transaction of librdkafka; None if it hears that it is out.

        It loses its name then, and a transaction would take offsets of nobody unchecked.
        """
        name = self._consumer.memberid()
        known = self._consumer.consumer_group_metadata()
        return known if name and name == self._consumer.memberid() else None

    def _range(self, partition: Position) -> tuple[int, int]:
        with self._errors.translated():
            begin, end = self._consumer.get_watermark_offsets(TopicPartition(*partition), timeout=_ANSWER_TIMEOUT_S)
        return begin, end

    def _polled(self, messages: Sequence[Message]) -> Polled:
        runs = []
        start = 0
        for (topic, partition), of in groupby(messages, _place):
            n = sum(1 for _ in of)
            start += n
            next_offset = _offset(messages[start - 1]) + 1
            self._next[topic, partition] = next_offset
            runs.append(Run(topic, partition, n, next_offset))
        return _Messages(messages, runs)

    # --- what librdkafka tells, from inside a poll ---------------------------------------------------------------

    def _note_event(self, error: KafkaError, message: Message) -> None:
        """Take note of what is told in the place of a message; raise if it ends the connection."""
        code, offset = error.code(), _offset(message)
        if code == KafkaError._PARTITION_EOF:
            place = _place(message)
            self._next[place] = max(offset, self._next.get(place, 0))
        elif code == KafkaError._AUTO_OFFSET_RESET and offset < 0:
            self._nothing_committed.append(_place(message))
        elif code == KafkaError._AUTO_OFFSET_RESET:
            self._out_of_range[_place(message)] = offset
        elif code in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC):
            raise TopicMissing([message.topic() or ", ".join(self._topics)], where=self._where)
        elif code == KafkaError._MAX_POLL_EXCEEDED:
            log.warning("%s: %s; joining the group again", self._where, error.str())
        else:
            raise self._errors.said(error)

    def _note_assigned(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        self._consumer.incremental_assign(partitions)
        self._events.assigned(frozenset((tp.topic, tp.partition) for tp in partitions))

    def _note_revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if self._sent is not None:
            wait([self._sent], self._session_timeout_s)  # whoever has them next begins where it was committed
        self._note_gone(consumer, partitions)

    def _note_gone(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        gone = frozenset((tp.topic, tp.partition) for tp in partitions)
        self._gone |= gone
        self._paused -= gone
        self._nothing_committed = [place for place in self._nothing_committed if place not in gone]
        for place in gone:
            self._next.pop(place, None)
            self._out_of_range.pop(place, None)
        self._events.gone(gone)

    def _note_statistics(self, told: str) -> None:
        group = json.loads(told).get("cgrp", {})
        self._coordinator, self._join_state = group.get("state", ""), group.get("join_state", "")


class _SentCommit:
    """A :class:`consumers.clients.PendingCommit`."""

    def __init__(self, future: Future[None]) -> None:
        self._future = future

    def wait(self, timeout_s: float) -> bool:
        return not wait([self._future], timeout_s).not_done

    def result(self, timeout: float | None = None) -> None:
        self._future.result(timeout)


class _Messages(Polled):
    """Messages that become records when they are looked at, which most never are."""

    def __init__(self, messages: Sequence[Message], runs: Sequence[Run]) -> None:
        super().__init__(messages, runs)
        self._timestamps: NDArray[np.int64] | None = None

    @overload
    def __getitem__(self, index: int) -> RawRecord: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[RawRecord]: ...
    def __getitem__(self, index: int | slice) -> RawRecord | Sequence[RawRecord]:
        if isinstance(index, slice):
            return list(map(_Record, self._records[index]))
        return _Record(self._records[index])

    def __iter__(self) -> Iterator[RawRecord]:
        return map(_Record, self._records)

    def values(self) -> list[bytes | None]:
        return [message.value() for message in self._records]

    def timestamps(self) -> NDArray[np.int64]:
        if self._timestamps is None:
            times = (message.timestamp()[1] for message in self._records)
            self._timestamps = np.fromiter(times, dtype=np.int64, count=len(self._records))
        return self._timestamps


class _Record:
    """A message as a :class:`consumers.records.RawRecord`."""

    __slots__ = ("_message",)

    def __init__(self, message: Message) -> None:
        self._message = message

    @property
    def topic(self) -> str:
        topic = self._message.topic()
        assert topic is not None
        return topic

    @property
    def partition(self) -> int:
        partition = self._message.partition()
        assert partition is not None
        return partition

    @property
    def offset(self) -> int:
        return _offset(self._message)

    @property
    def timestamp(self) -> int:
        return self._message.timestamp()[1]

    @property
    def key(self) -> bytes | None:
        return self._message.key()

    @property
    def value(self) -> bytes | None:
        return self._message.value()

    @property
    def headers(self) -> Sequence[tuple[str, bytes | None]]:
        return self._message.headers() or ()  # type: ignore[return-value]  # they are bytes, as they were read


class ConfluentWriter:
    """A :class:`consumers.clients.Writer`."""

    def __init__(
        self, connection: Mapping[str, Any], *, max_message_size: int, timeout_s: float, transactional_id: str | None
    ) -> None:
        self._where = servers(connection)
        self._timeout_s = timeout_s
        self._errors = _Errors(self._where)
        self._failed: KafkaError | None = None
        self._is_open = False
        """Whether a transaction is."""
        timeout_ms = int(timeout_s * 1000)
        transaction = {"transactional.id": transactional_id, "transaction.timeout.ms": timeout_ms}
        with self._errors.translated():
            self._producer = Producer(
                {
                    **settings(connection),
                    **(transaction if transactional_id is not None else {}),
                    "acks": "all",
                    "enable.idempotence": True,
                    "linger.ms": _LINGER_MS,
                    "batch.size": _BATCH_BYTES,
                    "message.max.bytes": max_message_size,
                    "request.timeout.ms": min(timeout_ms, _REQUEST_TIMEOUT_MS),
                    "socket.timeout.ms": min(timeout_ms, _REQUEST_TIMEOUT_MS),
                    # Beyond what a flush waits for: were one message given up and a later one written, order would be
                    # lost. A transaction is taken back as a whole.
                    "message.timeout.ms": timeout_ms if transactional_id is not None else 4 * timeout_ms + 10_000,
                    "delivery.report.only.error": True,
                    "on_delivery": self._note_failed,
                    "error_cb": self._errors.note,
                },
                logger=log,
            )
        if transactional_id is not None:
            self._put_out_others()

    def send(self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: Sequence[Any]) -> None:
        """Take a message; waits for room."""
        until = time.monotonic() + self._timeout_s
        while True:
            try:
                self._producer.produce(topic, value, key, partition, headers=list(headers))
                return
            except BufferError as error:
                self._producer.poll(0.1)
                self._check()
                if time.monotonic() > until:
                    raise WriteFailed(f"no room for a message within {self._timeout_s:g} s") from error
            except KafkaException as error:
                raise _write_failed(error.args[0]) from error

    def flush(self, timeout_s: float) -> bool:
        """Return whether every message is confirmed."""
        n_left = self._producer.flush(timeout_s)
        self._check()
        return n_left == 0

    def begin(self) -> None:
        """Open a transaction."""
        with _failing():
            self._producer.begin_transaction()
        self._is_open = True

    def send_offsets(self, offsets: Mapping[Position, int], metadata: Any, timeout_s: float) -> bool:
        """Add offsets to the open transaction."""
        named = [TopicPartition(*partition, offset) for partition, offset in offsets.items()]
        return _is_done(lambda: self._producer.send_offsets_to_transaction(named, metadata, timeout_s), timeout_s)

    def commit(self, timeout_s: float) -> bool:
        """Commit the open transaction."""
        is_done = _is_done(lambda: self._producer.commit_transaction(timeout_s), timeout_s)
        self._is_open = not is_done
        return is_done

    def close(self, let_go_s: float) -> None:
        """Drop what is not confirmed."""
        with suppress(KafkaException):
            if self._is_open:
                self._producer.abort_transaction(let_go_s)
        with suppress(KafkaException):
            self._producer.purge()
            self._producer.flush(0.0)
        del self._producer

    def _put_out_others(self) -> None:
        until = time.monotonic() + self._timeout_s
        while not _is_done(lambda: self._producer.init_transactions(_TICK_S), _TICK_S):
            if time.monotonic() > until:
                raise BrokerUnavailable(
                    f"no answer from {self._where} within {self._timeout_s:g} s: {self._errors.last}; check the brokers"
                )

    def _note_failed(self, error: KafkaError | None, _: Message) -> None:
        self._failed = self._failed or error

    def _check(self) -> None:
        if self._failed is not None:
            raise _write_failed(self._failed)


def settings(connection: Mapping[str, Any]) -> dict[str, Any]:
    """Return librdkafka's settings of a connection from kafka-python's."""
    protocol = connection.get("security_protocol", "PLAINTEXT")
    made: dict[str, Any] = {
        "bootstrap.servers": servers(connection),
        "client.id": connection.get("client_id", "srr-stream"),
        "security.protocol": protocol,
        "socket.timeout.ms": _REQUEST_TIMEOUT_MS,
        "socket.keepalive.enable": True,
        "socket.connection.setup.timeout.ms": max(1000, connection.get("bootstrap_timeout_ms", _REQUEST_TIMEOUT_MS)),
        "reconnect.backoff.max.ms": 1000,
        "topic.metadata.refresh.interval.ms": connection.get("metadata_max_age_ms", 300_000),
        "log.connection.close": False,
    }
    if protocol.startswith("SASL"):
        made["sasl.mechanism"] = connection["sasl_mechanism"]
        if connection["sasl_mechanism"] == "OAUTHBEARER":
            made["oauth_cb"] = lambda _: _token(connection["sasl_oauth_token_provider"])
        else:
            made["sasl.username"] = connection["sasl_plain_username"]
            made["sasl.password"] = _shown(connection["sasl_plain_password"])
    if protocol.endswith("SSL"):
        certificate, key = connection.get("ssl_certfile"), connection.get("ssl_keyfile")
        made["ssl.ca.location"] = connection.get("ssl_cafile") or "probe"
        if certificate:
            made["ssl.certificate.location"] = certificate
            made["ssl.key.location"] = key or certificate
        if connection.get("ssl_password"):
            made["ssl.key.password"] = _shown(connection["ssl_password"])
        made["ssl.endpoint.identification.algorithm"] = (
            "https" if connection.get("ssl_check_hostname", True) else "none"
        )
    return made


def _shown(secret: str) -> str:
    """Return a :class:`consumers.trust.Secret` as a plain text: librdkafka's settings go through ``str``."""
    return secret.encode().decode()


def _token(provider: Any) -> tuple[str, float]:
    """Return a token and when, in seconds since the epoch, it ends."""
    text = provider.token()
    return text, time.time() + (getattr(provider, "life_s", 0.0) or _TOKEN_LIFE_S)


class _Errors:
    """What librdkafka tells beside the calls, and all of its errors in our words."""

    def __init__(self, where: str) -> None:
        self._where = where
        self.last: KafkaError | None = None

    def note(self, error: KafkaError) -> None:
        """Take note: of what ends a connection to be raised, of all else to be named as a reason."""
        if self.last is None or not _is_final(self.last):
            self.last = error

    def check(self) -> None:
        """Raise if something was told that no patience heals."""
        if self.last is not None and _is_final(self.last):
            raise self.said(self.last)

    def said(self, error: KafkaError) -> ConsumersError:
        """Return an error in our words."""
        code, text = error.code(), error.str()
        # A fatal error tells its code in words only.
        if code == KafkaError.FENCED_INSTANCE_ID or KafkaError(KafkaError.FENCED_INSTANCE_ID).str() in text:
            return MembershipLost(text)
        if code in _NO_RIGHT:
            return NotAuthorized(f"{self._where}: {text}; check the credentials and their rights")
        known = f" ({self.last.str()})" if self.last is not None and self.last.str() != text else ""
        return BrokerUnavailable(f"no answer from {self._where}: {text}{known}; check kafka.bootstrap_servers")

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Raise errors in our words, save those that a programmer must mend."""
        try:
            yield
        except KafkaException as error:
            if error.args[0].code() == KafkaError._INVALID_ARG:
                raise
            raise self.said(error.args[0]) from error


def _is_final(error: KafkaError) -> bool:
    return bool(error.fatal()) or error.code() in _NO_RIGHT


def _place(message: Message) -> Position:
    topic, partition = message.topic(), message.partition()
    assert topic is not None
    assert partition is not None
    return topic, partition


def _offset(message: Message) -> int:
    """Return the offset; negative if there is none."""
    offset = message.offset()
    return -1 if offset is None else offset


@contextmanager
def _failing() -> Iterator[None]:
    try:
        yield
    except KafkaException as error:
        raise _write_failed(error.args[0]) from error


def _is_done(do: Callable[[], None], timeout_s: float) -> bool:
    """Do it, which takes no longer than `timeout_s`; return False if librdkafka asks to do it again."""
    until = time.monotonic() + timeout_s
    try:
        do()
    except KafkaException as error:
        if not error.args[0].retriable():
            raise _write_failed(error.args[0]) from error
        time.sleep(max(0.0, min(_RETRY_S, until - time.monotonic())))
        return False
    return True


def _write_failed(error: KafkaError) -> WriteFailed:
    code = error.code()
    if code in _NO_RIGHT:
        failure = Failure.RIGHTS
    elif code in _TAKEN_OVER:
        failure = Failure.TAKEN_OVER
    elif code == KafkaError.MSG_SIZE_TOO_LARGE:
        failure = Failure.TOO_LARGE
    else:
        failure = Failure.OTHER
    return WriteFailed(error.str(), failure)
