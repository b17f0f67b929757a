"""What ``doctor`` knows: findings, what its checks ask the world outside, what they found out for each other."""

from __future__ import annotations

import os
import shutil
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consumers.access import check_access
from consumers.cluster import ClusterState, TopicState, look_at_cluster
from consumers.records import Position, RawRecord
from srr_stream import assembly

if TYPE_CHECKING:
    from consumers.logs import Log
    from srr_stream.registry import Registry
    from srr_stream.settings import Settings

_CONNECT_MS = 6000
"""Less than a check may take, so that it says why there is no connection."""
_LOG_TIMEOUT_S = 5.0
_HTTP_TIMEOUT_S = 3.0


class Status(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    check: str
    status: Status
    text: str
    remedy: str = ""


@dataclass(frozen=True)
class Devices:
    """What models can be trained on here."""

    torch: str
    cuda: tuple[str, ...]
    """Names of the devices that PyTorch can use."""
    n_processors: int
    """That this process may use."""


@dataclass(frozen=True)
class World:
    """What the checks ask about the world outside; each part can be replaced by one that answers something else."""

    look_at_cluster: Callable[..., ClusterState] = look_at_cluster
    check_access: Callable[..., None] = check_access
    open_log: Callable[[Settings, Sequence[str]], Log] = field(default_factory=lambda: _open_log)
    ask: Callable[[str], tuple[int, str] | None] = field(default_factory=lambda: _ask)
    """Status and text of an address, None if nobody listens there."""
    can_listen: Callable[[str, int], bool] = field(default_factory=lambda: _can_listen)
    disk_free: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free
    memory: Callable[[], tuple[int, int] | None] = field(default_factory=lambda: _memory)
    """Bytes in all and bytes free; None where it is not known."""
    devices: Callable[[], Devices] = field(default_factory=lambda: _devices)
    now: Callable[[], float] = time.time


@dataclass
class Facts:
    """What the checks found out for those behind them."""

    settings: Settings
    world: World
    registry: Registry
    cluster: ClusterState | None = None
    begins: Mapping[Position, int] = field(default_factory=dict)
    ends: Mapping[Position, int] = field(default_factory=dict)
    newest: Mapping[str, Sequence[RawRecord]] = field(default_factory=dict)
    """Input topic → its newest records."""

    @property
    def connection(self) -> dict[str, Any]:
        """How to connect, with less patience than a service has."""
        connection = assembly.kafka_connection(self.settings.kafka)
        return {**connection, "bootstrap_timeout_ms": min(_CONNECT_MS, connection["bootstrap_timeout_ms"])}

    @property
    def outputs(self) -> dict[str, str]:
        """Setting → topic that verdicts or labels go to."""
        output, labels = self.settings.output, self.settings.labels
        named = {
            "output.alerts_topic": output.alerts_topic,
            "output.scores_topic": output.scores_topic,
            "output.dead_letter_topic": output.dead_letter_topic,
            "labels.topic": labels.topic,
        }
        return {setting: topic for setting, topic in named.items() if topic}

    @property
    def topics(self) -> Mapping[str, TopicState]:
        """The topics that exist."""
        return self.cluster.topics if self.cluster is not None else {}

    def setting(self, topic: str, name: str) -> str | None:
        """Return a setting of a topic; None if it is not told."""
        return self.topics[topic].settings.get(name) if topic in self.topics else None


Findings = Iterator[tuple[Status, str, str]]
"""Status, text, and the remedy if there is one."""
OK, WARNING, FAILURE, SKIPPED = Status


@dataclass(frozen=True)
class Check:
    """One thing to look at."""

    name: str
    look: Callable[[Facts], Findings]
    needs: tuple[str, ...] = ()
    """Checks without whose success this one has nothing to look at."""


# The world


def _open_log(settings: Settings, topics: Sequence[str]) -> Log:
    from consumers.logs import KafkaLog

    return KafkaLog(topics, connection=assembly.kafka_connection(settings.kafka), timeout_s=_LOG_TIMEOUT_S)


def _ask(url: str) -> tuple[int, str] | None:
    try:
        with urllib.request.urlopen(url, timeout=_HTTP_TIMEOUT_S) as answer:
            return answer.status, answer.read(1 << 20).decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(1 << 20).decode("utf-8", "replace")
    except (OSError, ValueError):
        return None


def _can_listen(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _memory() -> tuple[int, int] | None:
    """Return what Linux has, or what the control group may use if that is less."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        total, free = (int(lines[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        return None
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):  # no such group, or no limit ("max")
        return total, free
    return min(total, limit), min(free, max(0, limit - used))


def _devices() -> Devices:
    import torch

    names = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Devices(torch.__version__, tuple(names), n)
