"""What every Kafka client here shares: making one, finding its topics, and its errors in our words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from consumers.errors import BrokerUnavailable, NotAuthorized, TopicMissing
from consumers.trust import Attempts, hide_logins, tls_context

if TYPE_CHECKING:
    from kafka import KafkaConsumer

T = TypeVar("T")

_CONNECT_TIMEOUT_MS = 9_000


def servers(connection: Mapping[str, Any]) -> str:
    """Return the brokers of a connection as a text."""
    named = connection["bootstrap_servers"]
    return named if isinstance(named, str) else ",".join(named)


@contextmanager
def translated(where: str, *, transactional_id: str | None = None) -> Iterator[None]:
    """Turn kafka-python's errors into ours, save those that a programmer must mend.

    `where` names the servers, and `transactional_id` what kafka-python's error does not name.
    """
    from kafka import errors

    try:
        yield
    except (errors.KafkaConfigurationError, errors.IllegalStateError):
        raise
    except errors.AuthorizationError as error:
        raise NotAuthorized(f"{where}: {_right(error, transactional_id)}") from error
    except (errors.SaslAuthenticationFailedError, errors.UnsupportedSaslMechanismError) as error:
        raise NotAuthorized(f"{where}: {error}; check the credentials and their rights") from error
    except errors.KafkaError as error:
        raise BrokerUnavailable(f"no answer from {where}: {error}; check kafka.bootstrap_servers") from error


def _right(error: Exception, transactional_id: str | None) -> str:
    """Name the right that an error of kafka-python says is missing, as far as it says it."""
    from kafka import errors

    named = error.args[0] if error.args else ""
    names = sorted(map(str, named)) if isinstance(named, set | frozenset | list | tuple) else [str(named)]
    if isinstance(error, errors.TopicAuthorizationFailedError):
        missing = f"READ or WRITE on topic {', '.join(map(repr, names))}"
    elif isinstance(error, errors.GroupAuthorizationFailedError):
        missing = f"READ on group {', '.join(map(repr, names))}"
    elif isinstance(error, errors.TransactionalIdAuthorizationFailedError):
        missing = f"WRITE on transactional id {(transactional_id or names[0])!r}"
    else:
        missing = str(error)
    return f"the brokers miss a right of these credentials: {missing}; check the credentials and their rights"


def connect(client: Callable[..., T], connection: Mapping[str, Any], **options: Any) -> T:
    """Return a consumer or producer of kafka-python that has reached a broker; it creates no topics.

    Differs from calling it: it ends at the first answer that no further attempt can change, and says that; when no
    broker is reached, nothing is left behind (kafka-python leaves a thread for every try); logins stay out of its
    debug log.

    Raises
    ------
    NotAuthorized
        If the broker refuses the login or the certificate, or is not who it should be, or a file of ``ssl_…`` is wrong.
    BrokerUnavailable
        If a certificate has run out, no token is to be had, or the broker hangs up again and again.
    """
    from kafka.errors import KafkaConnectionError, KafkaError, KafkaTimeoutError
    from kafka.net.compat import KafkaNetClient
    from kafka.net.selector import NetworkSelector

    hide_logins()
    attempts = Attempts(connection, where=servers(connection))
    opened: list[KafkaNetClient] = []

    def open_net(**config: Any) -> KafkaNetClient:
        net = NetworkSelector(**config)
        opened.append(KafkaNetClient(net=net, manager=_watched_manager()(net, attempts, **config)))
        return opened[-1]

    settings = {"bootstrap_timeout_ms": _CONNECT_TIMEOUT_MS, **connection, **options}
    if settings.get("security_protocol", "").endswith("SSL") and settings.get("ssl_context") is None:
        settings["ssl_context"] = tls_context(settings)
    try:
        made = client(**settings, allow_auto_create_topics=False, metrics_enabled=False, kafka_client=open_net)
    except BaseException as error:
        for net in opened:
            net.close()
        why = attempts.last
        if not isinstance(error, KafkaTimeoutError) or why is None:
            raise
        if attempts.outcome is not None:
            raise attempts.outcome from why
        raise (why if isinstance(why, KafkaError) else KafkaConnectionError(str(why))) from error
    for net in opened:
        net._manager.attempts = None
    return made


@cache
def _watched_manager() -> Any:
    """Return kafka-python's manager of connections, watched: it tries again for ever, and says why to nobody.

    Made here so that importing this module needs no Kafka client.
    """
    from kafka.net.manager import KafkaConnectionManager

    def watch(connection: Any, attempts: Attempts) -> None:
        def note_end(error: Exception) -> None:
            if connection.init_future.succeeded():  # else it is noted already
                attempts.note(error)

        connection.init_future.add_errback(attempts.note)
        connection.close_future.add_errback(note_end)

    class WatchedManager(KafkaConnectionManager):  # type: ignore[misc]  # kafka-python has no types
        def __init__(self, net: Any, attempts: Attempts, **config: Any) -> None:
            self.attempts: Attempts | None = attempts
            super().__init__(net, **config)

        def get_connection(self, node_id: Any, *arguments: Any, **options: Any) -> Any:
            attempts = self.attempts
            if attempts is not None and attempts.refusal is not None:
                raise attempts.refusal
            is_new = node_id not in self._conns
            connection = super().get_connection(node_id, *arguments, **options)
            if attempts is not None and is_new:
                watch(connection, attempts)
            return connection

        async def _build_transport(self, *arguments: Any, **options: Any) -> Any:
            transport = await super()._build_transport(*arguments, **options)
            receive = transport._sock_recv

            def receive_all() -> tuple[bytes, Exception | None]:
                # kafka-python drops an answer when the broker hangs up right behind it, such as "wrong password".
                data, error = receive()
                return data, None if data else error

            transport._sock_recv = receive_all
            return transport

    return WatchedManager


def make_consumer(connection: Mapping[str, Any], **options: Any) -> KafkaConsumer:
    """Return a consumer that has reached a broker and does not commit by itself."""
    from kafka import KafkaConsumer

    return connect(KafkaConsumer, connection, enable_auto_commit=False, **options)


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
