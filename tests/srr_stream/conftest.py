"""What the application's tests stand on: a small contaminated stream, settings for it, and ways to look into Kafka."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FIELDS = [
    {"name": "duration_ms"},
    {"name": "bytes_sent"},
    {"name": "load", "required": False},
    {"name": "route", "kind": "categorical"},
]


def make_values(n: int, *, seed: int = 0, contamination: float = 0.03) -> list[bytes]:
    """Requests whose size follows their duration; the anomalies break that."""
    rng = np.random.default_rng(seed)
    duration = rng.lognormal(3.0, 0.4, n)
    is_anomaly = rng.random(n) < contamination
    size = duration * 20 * rng.lognormal(0.0, 0.1, n)
    size[is_anomaly] = rng.uniform(0.0, 20.0, int(is_anomaly.sum()))
    routes = rng.choice(["/", "/cart", "/pay"], n, p=[0.7, 0.2, 0.1])
    return [
        json.dumps(
            {"duration_ms": duration[i], "bytes_sent": size[i], "load": float(rng.random()), "route": str(routes[i])}
        ).encode()
        for i in range(n)
    ]


def make_flood(n: int) -> list[bytes]:
    """Return records unlike any that :func:`make_values` makes, each another."""
    return [
        json.dumps({"duration_ms": 1e5 + 37.0 * i, "bytes_sent": 1.0 + i % 7, "load": 0.5, "route": "/"}).encode()
        for i in range(n)
    ]


@dataclass
class Stream:
    """One test's own topics on a broker, with settings that read them."""

    bootstrap_servers: str
    topic: str
    folder: Path

    @property
    def scores_topic(self) -> str:
        return f"{self.topic}-scores"

    @property
    def dead_letter_topic(self) -> str:
        return f"{self.topic}-dead"

    @property
    def alerts_topic(self) -> str:
        return f"{self.topic}-alerts"

    def content(self, **overrides: Mapping[str, Any]) -> dict[str, Any]:
        """Return settings as a mapping; `overrides` are merged section by section."""
        content: dict[str, dict[str, Any]] = {
            "kafka": {"bootstrap_servers": self.bootstrap_servers, "connect_timeout": "5s"},
            "input": {
                "topics": [self.topic],
                "group_id": f"{self.topic}-group",
                "start": "earliest",
                "session_timeout": "2s",
                "max_batch": 500,
            },
            "record": {"fields": FIELDS},
            "output": {
                "scores_topic": self.scores_topic,
                "alerts_topic": self.alerts_topic,
                "dead_letter_topic": self.dead_letter_topic,
                "flush_timeout": "10s",
            },
            "window": {"min_size": 300, "max_size": 2000},
            "training": {
                "representation": "identity",
                "every": None,
                "check_every": "100ms",
                "min_interval": "1s",
                "nice": 0,
            },
            "registry": {"url": str(self.folder / "registry"), "poll_every": "100ms"},
            "http": {"host": "127.0.0.1", "scorer_port": 0, "trainer_port": 0},
            "api": {"enabled": False, "port": 0, "state_dir": str(self.folder / "state")},
        }
        for section, values in overrides.items():
            content[section] = content.get(section, {}) | dict(values)
        return content

    def write_settings(self, **overrides: Mapping[str, Any]) -> Path:
        """Write the settings as a file (YAML is a superset of JSON)."""
        path = self.folder / "settings.yaml"
        path.write_text(json.dumps(self.content(**overrides)))
        return path

    def produce(self, values: Sequence[bytes]) -> None:
        """Append records and wait until the broker has them."""
        from kafka import KafkaProducer

        producer = KafkaProducer(bootstrap_servers=self.bootstrap_servers, acks="all")
        try:
            futures = [producer.send(self.topic, value, key=str(i).encode()) for i, value in enumerate(values)]
            producer.flush(30)
            for future in futures:
                future.get(30)
        finally:
            producer.close(5)

    def read(self, topic: str) -> list[Any]:
        """Return every record of a topic as it stands now."""
        from consumers.logs import KafkaLog, OffsetRange

        log = KafkaLog([topic], connection={"bootstrap_servers": [self.bootstrap_servers]})
        try:
            begins, ends = log.beginnings(), log.ends()
            return [
                record
                for (name, partition), end in sorted(ends.items())
                for record in log.read(OffsetRange(name, partition, begins[name, partition], end))
            ]
        finally:
            log.close()

    def count(self) -> int:
        """Return how many verdicts there are so far."""
        from consumers.logs import KafkaLog

        log = KafkaLog([self.scores_topic], connection={"bootstrap_servers": [self.bootstrap_servers]})
        try:
            return sum(log.ends().values())
        finally:
            log.close()

    def verdicts(self) -> list[dict[str, Any]]:
        """Return every verdict so far."""
        return [json.loads(record.value) for record in self.read(self.scores_topic)]


@pytest.fixture
def make_stream(topic_name: str, tmp_path: Path) -> Callable[[Any], Stream]:
    """Give what makes a stream, with its topics, on a broker."""

    def make(broker: Any) -> Stream:
        made = Stream(broker.bootstrap_servers, topic_name, tmp_path)
        broker.create_topics({made.topic: 2, made.scores_topic: 1, made.alerts_topic: 1, made.dead_letter_topic: 1})
        return made

    return make


@pytest.fixture
def stream(embedded_broker: Any, make_stream: Callable[[Any], Stream]) -> Stream:
    """A stream with its topics made, on the embedded broker."""
    return make_stream(embedded_broker)


def wait_until(is_so: Callable[[], Any], *, timeout_s: float = 40.0, what: str = "it") -> Any:
    """Look again and again at what has no event to wait for, such as another process; return what was found."""
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        found = is_so()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"{what} did not come within {timeout_s:g} s")


def ask(port: int, path: str) -> tuple[int, str]:
    """Return status and text of an endpoint; status 0 if nobody listens."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError:
        return 0, ""


@pytest.fixture(name="wait_until")
def _wait_until() -> Callable[..., Any]:
    return wait_until


@pytest.fixture(name="ask")
def _ask() -> Callable[[int, str], tuple[int, str]]:
    return ask


@pytest.fixture(name="make_values")
def _make_values() -> Callable[..., list[bytes]]:
    return make_values


@pytest.fixture
def free_port() -> int:
    """A port that is free at the moment."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return int(port)


@contextmanager
def running(service: Any) -> Iterator[Any]:
    """Run a service in a thread and stop it at the end."""
    stop = threading.Event()
    errors: list[BaseException] = []

    def run() -> None:
        try:
            service.run(stop.is_set)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield service
    finally:
        stop.set()
        thread.join(40)
        assert not thread.is_alive(), "the service did not stop within 40 s"
        assert not errors, errors


@pytest.fixture(name="running")
def _running() -> Callable[[Any], Any]:
    return running
