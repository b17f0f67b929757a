"""What the commands that need a broker share: records of 16 numbers, models of them, and a service on a real Kafka."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from numpy.typing import NDArray

from chaos.bench import Bench, ask, create_topics, wait_until
from chaos.node import KafkaNode
from chaos.processes import read_trace
from consumers.clients import ClientName
from consumers.records import Field, RecordSchema
from models.presets import PRESETS
from models.training import TrainingConfig, train
from srr_stream.broker import free_port

if TYPE_CHECKING:
    from models.detector import Model

FIELDS = tuple(f"x{i:02}" for i in range(16))
SCHEMA = RecordSchema(tuple(map(Field, FIELDS)))
N_PARTITIONS = 4
GOAD_32 = TrainingConfig(
    representation="goad",
    representation_options={"n_transforms": 32},
    classifier="gde",
    scaling="standard",
    removal="soft",
)
"""The preset ``goad`` with M = 32."""
MODELS: dict[str, TrainingConfig] = {
    "GOAD, M = 32": GOAD_32,
    "closed form (identity + GDE)": PRESETS["goad"].closed_form(),
}
_MAX_UNSENT = 20_000


def columns(n: int, seed: int) -> dict[str, NDArray[np.float64]]:
    """Return correlated numbers, field → ``(n,)``, rounded as sensors round."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(n, 4)) @ np.random.default_rng(0).normal(size=(4, len(FIELDS)))
    rows = (common + rng.normal(size=(n, len(FIELDS)))).round(4)
    return {name: rows[:, i] for i, name in enumerate(FIELDS)}


def values(n: int, seed: int, *, anomalies: float = 0.0) -> list[bytes]:
    """Return records as JSON, of which a share has a field that is far off: about 215 bytes each."""
    made = columns(n, seed)
    far_off = np.random.default_rng(seed + 1).random(n) < anomalies
    made["x03"] = np.where(far_off, 60.0, made["x03"])
    rows = np.column_stack(list(made.values())).tolist()
    return [orjson.dumps(dict(zip(FIELDS, row, strict=True))) for row in rows]


def matrix(n: int, seed: int) -> NDArray[np.float64]:
    """Return the same numbers as a matrix ``(n, 16)``."""
    return np.column_stack(list(columns(n, seed).values()))


def model(config: TrainingConfig) -> Model:
    """Return a model of a window of the stream, as large as that of a service; a share of it is anomalous."""
    window = columns(20_000, 99)
    window["x03"][:40] = 60.0
    return train(window, config, seed=0, device="cpu").model


def kafka_home(cli: argparse.ArgumentParser) -> Path:
    """Return where an Apache Kafka lies, or end with what to do."""
    home = os.environ.get("KAFKA_HOME")
    if home is None:
        cli.error("needs a real Kafka: KAFKA_HOME=/path/to/an/unpacked/Apache/Kafka (docs/kafka.md)")
    return Path(home)


@contextmanager
def kafka(home: Path) -> Iterator[tuple[KafkaNode, Path]]:
    """Give a fresh node, and a folder for whatever else is written."""
    with tempfile.TemporaryDirectory(prefix="srr-speed-") as folder:
        node = KafkaNode(home, Path(folder))
        try:
            yield node, Path(folder)
        finally:
            node.close()


def filled(node: KafkaNode, name: str, records: Sequence[bytes], n: int) -> str:
    """Make a topic of `n` records, the given ones again and again, in turn over the partitions; return its name."""
    from confluent_kafka import Producer

    create_topics(node.bootstrap_servers, {name: N_PARTITIONS})
    producer = Producer({"bootstrap.servers": node.bootstrap_servers, "acks": "all", "linger.ms": 20})
    for i in range(n):
        producer.produce(name, records[i % len(records)], partition=i % N_PARTITIONS)
        if i % _MAX_UNSENT == 0 and producer.flush(60):
            raise TimeoutError(f"{name}: the broker does not take {n:,} records")
    if producer.flush(60):
        raise TimeoutError(f"{name}: the broker does not take {n:,} records")
    return name


def bench(node: KafkaNode, folder: Path, topic: str | None = None, **overrides: Mapping[str, Any]) -> Bench:
    """Return a service's surroundings: all defaults but for the fields, and verdicts of flagged records only.

    `topic` is one that exists; None: one of its own.
    """
    made: dict[str, Any] = {
        "record": {"fields": [{"name": name} for name in FIELDS]},
        "output": {"scores_topic": None, "flush_timeout": "30s"},
        "input": {"max_batch": None, "session_timeout": "10s"},
        "registry": {"poll_every": "200ms"},
        "window": {"min_size": 10**8, "max_size": 10**8},
        "http": {"host": "127.0.0.1", "scorer_port": free_port(), "trainer_port": 0},
    }
    if topic is not None:
        made["input"]["topics"] = [topic]
    for section, given in overrides.items():
        made[section] = {**made.get(section, {}), **given}
    surroundings = Bench(node, folder, "at_least_once", n_partitions=N_PARTITIONS, **made)
    if topic is not None:
        surroundings.topic = topic
    return surroundings


def by(node: KafkaNode, client: ClientName) -> dict[str, Any]:
    """Return the settings below ``kafka`` with which a client reaches a node."""
    return {"bootstrap_servers": node.bootstrap_servers, "client": client.value}


def drained(surroundings: Bench, scored: Model, n_records: int) -> float:
    """Let a scorer judge a topic of so many records; return how many a second, from its first commit to its last.

    It is up, and a member of its group, before it is given its model.
    """
    trace = surroundings.folder / f"{uuid.uuid4().hex}.trace"
    process = surroundings.start(trace=trace)
    try:
        port = surroundings.settings.http.scorer_port
        wait_until(lambda: "holding" in ask(port, "/readyz"), what="a scorer that holds")
        surroundings.publish(scored)
        wait_until(lambda: read_trace(trace)[:, 0].sum() >= n_records, what="an end of the topic", timeout_s=300)
    finally:
        process.terminate()
    done = read_trace(trace)
    return float(done[1:, 0].sum() / (done[-1, 2] - done[0, 2]))


def timed(read: Callable[[], int], n_records: int) -> float:
    """Call `read`, which returns how many records it took, until there were `n_records`; from the first on, a second.

    The first records come with the connection, and are not counted.
    """
    n_first = 0
    while not n_first:
        n_first = read()
    n, started = n_first, time.perf_counter()
    while n < n_records:
        n += read()
    return (n - n_first) / (time.perf_counter() - started)
