"""What every Kafka client here shares: making one, finding its topics, and its errors in our words."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from consumers.errors import BrokerUnavailable, NotAuthorized, TopicMissing

if TYPE_CHECKING:
    from kafka import KafkaConsumer
    from kafka.net.compat import KafkaNetClient

T = TypeVar("T")

_CONNECT_TIMEOUT_MS = 10_000
_KNOCK_TIMEOUT_MS = 2_000
_KNOCKS = 6


def servers(connection: Mapping[str, Any]) -> str:
    """Return the brokers of a connection as a text."""
    named = connection["bootstrap_servers"]
    return named if isinstance(named, str) else ",".join(named)


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Turn kafka-python's errors into ours, save those that a programmer must mend; `where` names the servers."""
    from kafka import errors

    try:
        yield
    except (errors.KafkaConfigurationError, errors.IllegalStateError):
        raise
    except (
        errors.AuthorizationError,
        errors.SaslAuthenticationFailedError,
        errors.UnsupportedSaslMechanismError,
    ) as error:
        raise NotAuthorized(f"{where}: {error}; check the credentials and their rights") from error
    except errors.KafkaError as error:
        raise BrokerUnavailable(f"no answer from {where}: {error}; check kafka.bootstrap_servers") from error


def connect(client: Callable[..., T], connection: Mapping[str, Any], **options: Any) -> T:
    """Return a consumer or producer of kafka-python that has reached a broker; it creates no topics.

    Differs from calling it: when no broker is reached, nothing is left behind (kafka-python leaves a thread for every
    try), and the error says why.
    """
    from kafka.errors import KafkaTimeoutError
    from kafka.net.compat import KafkaNetClient

    opened: list[KafkaNetClient] = []

    def open_net(**config: Any) -> KafkaNetClient:
        opened.append(KafkaNetClient(**config))
        return opened[-1]

    settings = {"bootstrap_timeout_ms": _CONNECT_TIMEOUT_MS, **connection, **options}
    try:
        return client(**settings, allow_auto_create_topics=False, metrics_enabled=False, kafka_client=open_net)
    except BaseException as error:
        try:
            if isinstance(error, KafkaTimeoutError):
                _knock(opened[-1])
        finally:
            for net in opened:
                net.close()
        raise


def make_consumer(connection: Mapping[str, Any], **options: Any) -> KafkaConsumer:
    """Return a consumer that has reached a broker and does not commit by itself."""
    from kafka import KafkaConsumer

    return connect(KafkaConsumer, connection, enable_auto_commit=False, **options)


def _knock(net: KafkaNetClient) -> None:
    """Connect a few times more and raise what comes of it: a wrong password, a certificate, nobody there.

    More than once, because a broker that refuses a password hangs up so quickly that its answer may be lost.
    """
    from kafka.errors import KafkaConnectionError, KafkaError

    manager = net._manager
    broker = manager.cluster.bootstrap_brokers()[0]

    async def once() -> None:
        manager.reset_backoff(broker.node_id)
        await manager.get_connection(broker.node_id, timeout_ms=_KNOCK_TIMEOUT_MS, refresh_metadata_on_err=False)

    why: KafkaError | None = None
    until = time.monotonic() + _KNOCK_TIMEOUT_MS / 1000
    for _ in range(_KNOCKS):
        try:
            manager._net.run(once)
        except KafkaConnectionError as error:
            why = error
        if time.monotonic() > until:
            break
    if why is not None:
        raise why


def existing_partitions(consumer: KafkaConsumer, topics: Sequence[str], *, where: str) -> list[Any]:
    """Return all partitions of the topics.

    Raises
    ------
    TopicMissing
        Naming every topic that does not exist, or that these credentials may not see: brokers keep that apart from
        nobody.
    """
    from kafka import TopicPartition

    found = {topic: consumer.partitions_for_topic(topic) for topic in topics}
    missing = [topic for topic, partitions in found.items() if not partitions]
    if missing:
        raise TopicMissing(missing, where=where)
    return [TopicPartition(topic, p) for topic, partitions in found.items() for p in sorted(partitions)]
