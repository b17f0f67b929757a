"""What a cluster is like: brokers, topics with their copies and settings, a group. Only asked; nothing is changed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from consumers.access import asking
from consumers.kafka_client import servers, translated

if TYPE_CHECKING:
    from kafka.net.manager import KafkaConnectionManager

_TOPIC = 2
"""Kafka's number of the kind of thing whose settings are asked for."""


@dataclass(frozen=True)
class TopicState:
    """A topic as the brokers tell it."""

    name: str
    n_partitions: int
    n_replicas: int
    """Of the partition that has fewest."""
    n_in_sync: int
    """Copies that are up to date, of the partition that has fewest."""
    n_leaderless: int = 0
    """Partitions that nobody leads, so that they can be neither read nor written."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Name → value, as ``kafka-configs.sh --describe --all`` has them; empty where the broker does not tell them."""


@dataclass(frozen=True)
class ClusterState:
    """A cluster as its brokers tell it."""

    protocol: str
    """The newest release of Kafka whose protocol it speaks, such as ``3.9``."""
    brokers: tuple[str, ...]
    """``host:port`` of each."""
    topics: Mapping[str, TopicState]
    """Those asked for that exist and may be seen."""
    n_members: int | None = None
    """Of the group; None where the brokers do not tell."""


def look_at_cluster(connection: Mapping[str, Any], *, topics: Collection[str], group_id: str) -> ClusterState:
    """Return what the brokers tell of themselves, of some topics and of a group.

    What these credentials may not know is left out: settings of a topic need DescribeConfigs on it, a group Describe.

    Raises
    ------
    BrokerUnavailable, NotAuthorized
        If no broker answers, or they refuse the login.
    """
    with translated(servers(connection)), asking(connection) as (manager, run):
        brokers, found = run(_topics, manager, sorted(topics))
        told = run(_settings, manager, sorted(found)) if found else {}
        members: int | None = run(_members, manager, group_id)
        version = ".".join(map(str, manager.broker_version_data.broker_version))
    states = {
        name: TopicState(
            name,
            len(partitions),
            min(len(partition.replica_nodes) for partition in partitions),
            min(len(partition.isr_nodes) for partition in partitions),
            sum(partition.leader_id < 0 for partition in partitions),
            told.get(name, {}),
        )
        for name, partitions in found.items()
    }
    return ClusterState(version, tuple(brokers), states, members)


async def _topics(manager: KafkaConnectionManager, topics: Collection[str]) -> tuple[list[str], dict[str, Any]]:
    """Return the brokers, and the partitions of every topic that exists."""
    from kafka.protocol.metadata import MetadataRequest

    request = MetadataRequest(
        topics=[MetadataRequest.MetadataRequestTopic(name=topic) for topic in topics], allow_auto_topic_creation=False
    )
    response = await manager.send(request)
    brokers = [f"{broker.host}:{broker.port}" for broker in response.brokers]
    return brokers, {topic.name: topic.partitions for topic in response.topics if topic.partitions}


async def _settings(manager: KafkaConnectionManager, topics: Collection[str]) -> dict[str, dict[str, str]]:
    """Return the settings of every topic, nothing for those whose settings these credentials may not know."""
    from kafka import errors
    from kafka.protocol.admin import DescribeConfigsRequest

    request = DescribeConfigsRequest(resources=[(_TOPIC, topic, None) for topic in topics])
    try:
        response = await manager.send(request)
    except (errors.BrokerResponseError, errors.IncompatibleBrokerVersion):
        return {}
    return {
        result.resource_name: {entry.name: entry.value for entry in result.configs if entry.value is not None}
        for result in response.results
        if result.error_code == 0
    }


async def _members(manager: KafkaConnectionManager, group_id: str) -> int | None:
    """Return how many members a group has, 0 if there is none of that name; None where it is not told."""
    from kafka import errors
    from kafka.protocol.admin import DescribeGroupsRequest
    from kafka.protocol.metadata import FindCoordinatorRequest

    try:
        found = await manager.send(FindCoordinatorRequest(key_type=0, key=group_id, max_version=3))
        if errors.for_code(found.error_code) is not errors.NoError:
            return None
        node = manager.cluster.add_coordinator(found, 0, group_id, synthesize_node_id=False)
        request = DescribeGroupsRequest(groups=[group_id], include_authorized_operations=False, max_version=5)
        group = (await manager.send(request, node_id=node)).groups[0]
    except (errors.BrokerResponseError, errors.IncompatibleBrokerVersion):
        return None
    return len(group.members) if errors.for_code(group.error_code) is errors.NoError else None
