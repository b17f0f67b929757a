"""Past records into a topic again: at a rate, in the tempo in which they came, or as fast as the brokers take them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from consumers.access import check_access
from consumers.errors import ConsumersError, NotAuthorized, SinkError
from consumers.kafka_client import connect, existing_partitions, make_consumer, servers, translated
from consumers.records import RawRecord, event_id

if TYPE_CHECKING:
    from kafka import KafkaProducer

T = TypeVar("T")

TICK_S = 0.01
"""How often it is looked what is due: bursts of a hundredth of a second's records."""
_LINGER_MS = 5


@dataclass(frozen=True)
class Replayed:
    """What became of a replay."""

    n_sent: int
    """Records that the brokers have confirmed."""
    seconds: float
    is_whole: bool
    """Whether it came to its end; False: somebody stopped it."""


def at_rate(n_a_second: float) -> Callable[[int], float]:
    """Return after how many seconds the i-th record is due, at a steady rate.

    Examples
    --------
    >>> at_rate(100.0)(50)
    0.5
    """
    return lambda index: index / n_a_second


def as_it_came(time_ms: NDArray[np.int64], speed: float) -> Callable[[int], float]:
    """Return after how many seconds the i-th record is due, in the tempo in which the records came.

    Parameters
    ----------
    time_ms
        ``(n,)``; a record that is older than one before it is due with that.
    speed
        2.0: twice as fast.

    Examples
    --------
    >>> due_s = as_it_came(np.array([1000, 3000, 2000]), 2.0)
    >>> [due_s(i) for i in range(3)]
    [0.0, 1.0, 1.0]
    """
    after_s = (np.maximum.accumulate(time_ms) - time_ms[:1]) / (1000.0 * speed)
    return lambda index: float(after_s[index])


def at_once(index: int) -> float:
    """Say that every record is due now."""
    return 0.0


def paced(
    items: Iterable[T],
    due_s: Callable[[int], float],
    wait: Callable[[float], bool],
    *,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[T]:
    """Yield every item when it is due: the clock counts, a delay is made up for.

    Parameters
    ----------
    due_s
        Index of an item → seconds after the start.
    wait
        Wait for at most so many seconds, and return whether to stop.
    """
    started = clock()
    for index, item in enumerate(items):
        while clock() - started < due_s(index):
            if wait(TICK_S):
                return
        yield item


def open_producer(connection: Mapping[str, Any], *, timeout_s: float) -> KafkaProducer:
    """Return an idempotent producer that waits for all in-sync replicas and makes no topics.

    Parameters
    ----------
    timeout_s
        How long the brokers may take to accept or to confirm a record.

    Raises
    ------
    kafka.errors.KafkaError, ConsumersError
        If it reaches no broker, or is refused.
    """
    from kafka import KafkaProducer

    timeout_ms = int(timeout_s * 1000)
    return connect(
        KafkaProducer,
        connection,
        acks="all",
        enable_idempotence=True,
        linger_ms=_LINGER_MS,
        max_block_ms=timeout_ms,
        request_timeout_ms=timeout_ms // 2,
        delivery_timeout_ms=timeout_ms,
    )


class Sender:
    """Sends records into a topic and counts those that the brokers have confirmed.

    Parameters
    ----------
    connection
        kafka-python's settings of a connection: ``bootstrap_servers``, ``security_protocol``, …
    timeout_s
        How long the brokers may take to accept or to confirm a record.

    Raises
    ------
    BrokerUnavailable, TopicMissing, NotAuthorized
        If no broker answers, the topic does not exist (none is created), or the brokers refuse.
    """

    def __init__(self, connection: Mapping[str, Any], topic: str, *, timeout_s: float = 30.0) -> None:
        self.n_confirmed = 0
        self._topic = topic
        self._timeout_s = timeout_s
        self._where = servers(connection)
        self._error: Exception | None = None
        with translated(self._where):
            check_access(connection, writes=[topic], where=self._where)
            probe = make_consumer(connection)
            try:
                existing_partitions(probe, [topic], where=self._where)
            finally:
                probe.close(autocommit=False, timeout_ms=1000)
            self._producer = open_producer(connection, timeout_s=timeout_s)

    def send(self, record: RawRecord) -> None:
        """Hand a record to the producer, with its key and headers; raises what :meth:`flush` raises."""
        from kafka.errors import KafkaError

        # kafka-python takes neither a header that is null nor a record of nothing.
        value = b"" if record.key is None and record.value is None else record.value
        headers = [(name, content or b"") for name, content in record.headers]
        try:
            future = self._producer.send(self._topic, value, key=record.key, headers=headers)
        except KafkaError as error:
            with suppress(KafkaError):  # what was handed over before is settled first, so that it can be counted
                self._producer.flush(self._timeout_s)
            raise self._failure(event_id(record), error) from error
        future.add_callback(self._confirm)
        future.add_errback(self._note)
        self._check()

    def flush(self) -> None:
        """Return when all that was sent is confirmed.

        Raises
        ------
        SinkError
            If something is not, or not in time; says how many are.
        NotAuthorized
            If the brokers refuse.
        """
        from kafka.errors import KafkaError

        try:
            self._producer.flush(self._timeout_s)
        except KafkaError as error:
            raise self._failure("the last records", error) from error
        self._check()

    def close(self) -> None:
        """Let the producer go; what was not flushed may be lost. Twice is fine."""
        from kafka.errors import KafkaError

        try:
            self._producer.close(timeout=0)
        except KafkaError:  # it insists on flushing; without a broker it would try for ever in its thread
            self._producer._sender.force_close()
            self._producer._closed = True  # else it would flush once more when it is collected

    def _confirm(self, _metadata: object) -> None:
        self.n_confirmed += 1

    def _note(self, error: Exception) -> None:
        self._error = self._error or error

    def _check(self) -> None:
        if self._error is not None:
            raise self._failure("a record", self._error) from self._error

    def _failure(self, what: str, error: Exception) -> ConsumersError:
        from kafka import errors

        if isinstance(error, errors.AuthorizationError):
            return NotAuthorized(
                f"{self._where}: may not write to {self._topic}: {error}; check the credentials and their rights"
            )
        advice = "check the brokers"
        if isinstance(error, errors.MessageSizeTooLargeError):
            advice = f"raise max.message.bytes of {self._topic}, or leave the record out"
        return SinkError(
            f"{self._where}: {self._topic} did not take {what}: {error}; {self.n_confirmed:,} records before it are "
            f"there; {advice}"
        )


def replay(
    records: Sequence[RawRecord],
    sender: Sender,
    due_s: Callable[[int], float] = at_once,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    on_sent: Callable[[int], None] = lambda n: None,
) -> Replayed:
    """Send records in their order, and return when all that was sent is confirmed.

    Parameters
    ----------
    due_s
        Index of a record → seconds after the start: :func:`at_rate`, :func:`as_it_came`, :func:`at_once`.
    on_sent
        Told how many are confirmed, often.

    Raises
    ------
    SinkError, NotAuthorized
        If a record is not taken; says how many are.
    """
    started, pause, n = time.perf_counter(), threading.Event(), 0

    def wait(seconds: float) -> bool:
        pause.wait(seconds)
        return should_stop()

    with closing(sender):
        for record in paced(records, due_s, wait):
            if should_stop():
                break
            sender.send(record)
            n += 1
            on_sent(sender.n_confirmed)
        sender.flush()
    return Replayed(sender.n_confirmed, time.perf_counter() - started, n == len(records))
