"""Whether these credentials may do what is going to be done: asked at the start, since Kafka says nothing later.

kafka-python's consumer without the right to read gives no records and no error.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from consumers.errors import NotAuthorized, TopicMissing
from consumers.kafka_client import connect, translated
from consumers.oauth import claims
from consumers.trust import who

if TYPE_CHECKING:
    from kafka.net.compat import KafkaNetClient
    from kafka.net.manager import KafkaConnectionManager

log = logging.getLogger(__name__)

_ANSWER_TIMEOUT_MS = 5000
_COORDINATOR_TIMEOUT_S = 3.0
"""The first group of a new cluster waits for its coordinator."""
_RETRY_S = 0.1
_GROUP, _TRANSACTION = 0, 1
"""Kinds of a coordinator."""
_READ, _WRITE, _DESCRIBE = 3, 4, 8
"""Kafka's numbers of operations."""
_ALL = frozenset({_READ, _WRITE, _DESCRIBE})
_TELLS_RIGHTS_OF_TOPICS, _TELLS_RIGHTS_OF_GROUPS = 8, 3
"""Versions of the requests from which on a broker tells them (Kafka 2.3)."""
_TELLS_OF_UNKNOWN_GROUPS = 5
"""The last version in which a group that does not exist yet is no error, but has rights."""
_SEVERAL_KEYS = 4
_Run = Callable[..., Any]


class Right(NamedTuple):
    """To do something with a resource, in the words of ``kafka-acls.sh``."""

    operation: str
    kind: str
    name: str


def check_access(
    connection: Mapping[str, Any],
    *,
    reads: Collection[str] = (),
    writes: Collection[str] = (),
    group_id: str | None = None,
    transactional_id: str | None = None,
    where: str,
) -> None:
    """Return if all that is listed may be done, as far as the brokers tell; nothing is written, no group is joined.

    Brokers that check nothing, or cannot tell, let everything pass. The right to write with a transactional id is not
    told before the first transaction; only whether the id may be seen.

    Parameters
    ----------
    connection
        kafka-python's settings of a connection.
    where
        The brokers, for messages.

    Raises
    ------
    NotAuthorized
        Naming who lacks which rights, all of them at once, and the commands that grant them.
    TopicMissing
        If topics do not exist.
    BrokerUnavailable
        If no broker answers.
    """
    topics = sorted({*reads, *writes})
    with translated(where, transactional_id=transactional_id), asking(connection) as (manager, run):
        found = run(_topics, manager, topics) if topics else {}
        lacking = [Right("Read", "topic", topic) for topic in reads if _READ not in found.get(topic, _ALL)]
        lacking += [Right("Write", "topic", topic) for topic in writes if _WRITE not in found.get(topic, _ALL)]
        if group_id is not None and _READ not in _rights(run, _group, manager, group_id):
            lacking.append(Right("Read", "group", group_id))
        if transactional_id is not None and not _rights(run, _transactional_id, manager, transactional_id):
            lacking.append(Right("Write", "transactional-id", transactional_id))  # includes seeing it
    if lacking:
        hidden = [topic for topic, operations in found.items() if not operations]
        raise NotAuthorized(_message(connection, lacking, hidden, where=where))
    missing = [topic for topic in topics if topic not in found]
    if missing:
        raise TopicMissing(missing, where=where)


@contextmanager
def asking(connection: Mapping[str, Any]) -> Iterator[tuple[KafkaConnectionManager, _Run]]:
    """Give a connection manager that belongs to no consumer or producer, and what runs a question on it."""

    def open_net(
        *, kafka_client: Callable[..., KafkaNetClient], bootstrap_timeout_ms: int, **config: Any
    ) -> KafkaNetClient:
        net = kafka_client(**config)
        net._manager.bootstrap(bootstrap_timeout_ms)
        return net

    net = connect(open_net, connection, request_timeout_ms=_ANSWER_TIMEOUT_MS)
    try:
        yield net._manager, net._net.run
    finally:
        net.close()


async def _topics(manager: KafkaConnectionManager, topics: Collection[str]) -> dict[str, Collection[int]]:
    """Return what may be done with each topic: nothing where it may not be seen; one that does not exist is absent."""
    from kafka import errors
    from kafka.protocol.metadata import MetadataRequest

    tells = manager.broker_version_data.api_version(MetadataRequest) >= _TELLS_RIGHTS_OF_TOPICS
    request = MetadataRequest(
        topics=[MetadataRequest.MetadataRequestTopic(name=topic) for topic in topics],
        allow_auto_topic_creation=False,
        include_topic_authorized_operations=tells,
    )
    found: dict[str, Collection[int]] = {}
    for topic in (await manager.send(request)).topics:
        error = errors.for_code(topic.error_code)
        if error is errors.TopicAuthorizationFailedError:
            found[topic.name] = ()
        elif error not in (errors.UnknownTopicOrPartitionError, errors.InvalidTopicError):
            found[topic.name] = _told(topic.authorized_operations if tells else None)
    return found


async def _group(manager: KafkaConnectionManager, group_id: str) -> Collection[int]:
    """Return what may be done with a group, one that does not exist yet included."""
    from kafka import errors
    from kafka.protocol.admin import DescribeGroupsRequest

    if manager.broker_version_data.api_version(DescribeGroupsRequest) < _TELLS_RIGHTS_OF_GROUPS:
        return _ALL
    until = time.monotonic() + _COORDINATOR_TIMEOUT_S
    while True:
        request = DescribeGroupsRequest(
            groups=[group_id], include_authorized_operations=True, max_version=_TELLS_OF_UNKNOWN_GROUPS
        )
        try:
            coordinator = await _coordinator(manager, _GROUP, group_id)
            group = (await manager.send(request, node_id=coordinator)).groups[0]
        except errors.GroupAuthorizationFailedError:
            return ()
        error = errors.for_code(group.error_code)
        if error is errors.GroupAuthorizationFailedError:
            return ()
        if not error.retriable or time.monotonic() > until:
            return _told(group.authorized_operations)
        await manager._net.sleep(_RETRY_S)


async def _transactional_id(manager: KafkaConnectionManager, transactional_id: str) -> Collection[int]:
    """Return whether a transactional id may be seen, as if it were all: brokers do not tell more."""
    from kafka import errors

    try:
        await _coordinator(manager, _TRANSACTION, transactional_id)
    except errors.TransactionalIdAuthorizationFailedError:
        return ()
    return _ALL


async def _coordinator(manager: KafkaConnectionManager, kind: int, key: str) -> Any:
    """Return the node that keeps a group or a transactional id; raise the broker's error if there is none."""
    from kafka import errors
    from kafka.protocol.metadata import FindCoordinatorRequest

    has_several = manager.broker_version_data.api_version(FindCoordinatorRequest) >= _SEVERAL_KEYS
    until = time.monotonic() + _COORDINATOR_TIMEOUT_S
    while True:
        if has_several:
            request = FindCoordinatorRequest(key_type=kind, coordinator_keys=[key], min_version=_SEVERAL_KEYS)
        else:
            request = FindCoordinatorRequest(key_type=kind, key=key, max_version=_SEVERAL_KEYS - 1)
        response = await manager.send(request)
        told = response.coordinators[0] if has_several else response
        try:
            return manager.cluster.add_coordinator(told, kind, key, synthesize_node_id=False)
        except errors.BrokerResponseError as error:
            if not error.retriable or time.monotonic() > until:
                raise
        await manager._net.sleep(_RETRY_S)


def _rights(run: _Run, question: Callable[..., Any], manager: KafkaConnectionManager, name: str) -> Collection[int]:
    """Return the answer; where the broker has none, as without a coordinator or for an unknown request, everything."""
    from kafka import errors

    try:
        told: Collection[int] = run(question, manager, name)
    except errors.BrokerResponseError as error:
        log.debug("whether %s may be used is not known: %s", name, error)
        return _ALL
    return told


def _told(operations: Collection[int] | None) -> Collection[int]:
    """Return operations that a broker tells; one that tells nothing, or not even what was just done, does not know."""
    return operations if operations and _DESCRIBE in operations else _ALL


def _message(connection: Mapping[str, Any], lacking: Collection[Right], hidden: Collection[str], *, where: str) -> str:
    """Say who lacks what, and what grants it.

    Examples
    --------
    >>> rights = [Right("Read", "group", "scorers"), Right("Write", "topic", "alerts")]
    >>> named = {"security_protocol": "SASL_SSL", "sasl_mechanism": "PLAIN", "sasl_plain_username": "scorer"}
    >>> for part in _message(named, rights, [], where="kafka:9092").split("; "):
    ...     print(part)
    kafka:9092: user 'scorer' lacks READ on group 'scorers' and WRITE on topic 'alerts'
    grant what is missing: kafka-acls.sh --add --allow-principal User:scorer --operation Read --group scorers
    kafka-acls.sh --add --allow-principal User:scorer --operation Write --topic alerts
    """
    texts = [f"{right.operation.upper()} on {right.kind.replace('-', ' ')} {right.name!r}" for right in lacking]
    commands = [
        f"kafka-acls.sh --add --allow-principal {_principal(connection)} --operation {right.operation} "
        f"--{right.kind} {right.name}"
        for right in lacking
    ]
    doubt = f" (whether there is a topic {', '.join(sorted(hidden))} is not told either)" if hidden else ""
    return (
        f"{where}: {who(connection)} lacks {' and '.join(texts)}{doubt}; grant what is missing: {'; '.join(commands)}"
    )


def _principal(connection: Mapping[str, Any]) -> str:
    """Return what Kafka calls whom a connection logs in as, as far as that is known here."""
    protocol = connection.get("security_protocol", "PLAINTEXT")
    if protocol.startswith("SASL"):
        if connection.get("sasl_mechanism") == "OAUTHBEARER":
            return f"User:{claims(connection['sasl_oauth_token_provider'].token()).get('sub', 'PRINCIPAL')}"
        return f"User:{connection.get('sasl_plain_username')}"
    return "'User:NAME-IN-THE-CERTIFICATE'" if connection.get("ssl_certfile") else "User:ANONYMOUS"
