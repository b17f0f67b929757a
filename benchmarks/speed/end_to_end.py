"""A topic to committed verdicts on a real Apache Kafka, beside bare clients, River and scikit-learn on the same topic.

Every contestant reads the same records from the same broker on the same machine, in turn, by both client libraries.
Ours is the scorer as it runs in production, a process with all defaults: exact p-values, reasons of flagged records,
metrics, commits. The others only read and score; they publish and commit nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

import numpy as np
import orjson

from benchmarks.runner import whole
from benchmarks.speed import stream
from benchmarks.speed.pairs import Run, interleaved, medians, parser, rates_table, ratio
from chaos.node import KafkaNode
from consumers.clients import ClientName

Read = Callable[[int], list[bytes]]
"""Gives at most so many records, maybe none."""

BARE = {client: f"{client}, bare" for client in ClientName}
_RIVER_RECORDS = 60_000
_BATCH = 5000
_ANOMALIES = 0.002
_TARGETS = {ClientName.KAFKA_PYTHON: 0.6, ClientName.CONFLUENT: 0.3}
"""Of the bare client's rate."""


def main(arguments: Sequence[str]) -> int:
    cli = parser("end-to-end", __doc__, n_rounds=5)
    cli.add_argument("--records", type=whole, default=1_500_000, help="In the topic (default 1500000).")
    options = cli.parse_args(arguments)
    home = stream.kafka_home(cli)
    run = Run("end-to-end", arguments, out=options.out)
    records = stream.values(50_000, 1, anomalies=_ANOMALIES)
    models = {name: stream.model(config) for name, config in stream.MODELS.items()}
    with stream.kafka(home) as (node, folder):
        topic = stream.filled(node, "speed", records, options.records)
        n = options.records

        def ours(name: str, client: ClientName) -> float:
            with closing(stream.bench(node, folder, topic, kafka=stream.by(node, client))) as surroundings:
                return stream.drained(surroundings, models[name], n)

        contestants: dict[str, Callable[[], float]] = {}
        for client in ClientName:
            contestants |= {
                BARE[client]: partial(bare, node, topic, n, client),
                f"River HalfSpaceTrees, {client}": partial(river, node, topic, min(n, _RIVER_RECORDS), client),
                f"scikit-learn IsolationForest, {client}": forest(node, topic, n, client),
                **{f"srr-stream, {name}, {client}": partial(ours, name, client) for name in models},
            }
        figures = interleaved(contestants, n_rounds=options.rounds, n_warm_up=1)

    claims = []
    for client in ClientName:
        goad, closed = (figures[f"srr-stream, {name}, {client}"] for name in models)
        trees, isolation = (f"{name}, {client}" for name in ("River HalfSpaceTrees", "scikit-learn IsolationForest"))
        claims += [
            ratio(f"end to end, {client}, GOAD M = 32", goad, figures[BARE[client]], BARE[client], _TARGETS[client]),
            ratio(f"end to end, {client}, closed form", closed, figures[BARE[client]], BARE[client], _TARGETS[client]),
            ratio(f"end to end, {client}, GOAD M = 32", goad, figures[trees], trees, 10.0),
            ratio(f"end to end, {client}, closed form", closed, figures[isolation], isolation, 2.0),
        ]
    size = float(np.mean([len(value) for value in records]))
    bars = medians(figures)
    return run.finish(
        "End to end",
        claims,
        [rates_table("Records a second", figures, "records/s")],
        bars={"records/s": bars},
        notes=[
            f"{options.records:,} records of {size:.0f} bytes, 16 numbers, {stream.N_PARTITIONS} partitions, "
            f"{_ANOMALIES:.1%} anomalous; the broker runs on the same cores",
        ],
    )


@contextmanager
def reading(node: KafkaNode, topic: str, client: ClientName, *, values: bool = True) -> Iterator[Read]:
    """Give what reads a whole topic, from its beginning, without a group; without `values` only how many there are."""
    if client == ClientName.KAFKA_PYTHON:
        from kafka import KafkaConsumer
        from kafka import TopicPartition as Partition

        consumer = KafkaConsumer(
            bootstrap_servers=node.bootstrap_servers, enable_auto_commit=False, max_poll_records=_BATCH
        )
        partitions = [Partition(topic, partition) for partition in range(stream.N_PARTITIONS)]
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)

        def read(max_records: int) -> list[bytes]:
            polled = consumer.poll(timeout_ms=200, max_records=max_records).values()
            return [record.value if values else b"" for records in polled for record in records]
    else:
        from confluent_kafka import Consumer, TopicPartition

        connection = {"bootstrap.servers": node.bootstrap_servers, "group.id": "none", "enable.auto.commit": False}
        consumer = Consumer(connection | {"fetch.queue.backoff.ms": 5, "queued.max.messages.kbytes": 16 * 1024})
        consumer.assign([TopicPartition(topic, partition, 0) for partition in range(stream.N_PARTITIONS)])

        def read(max_records: int) -> list[bytes]:
            messages = consumer.consume(1, 0.2) + consumer.consume(max_records - 1, 0)
            return [message.value() or b"" for message in messages] if values else [b""] * len(messages)

    with closing(consumer):
        yield read


def bare(node: KafkaNode, topic: str, n: int, client: ClientName) -> float:
    """Return how many records a second a client reads, and nothing is done with them."""
    with reading(node, topic, client, values=False) as read:
        return stream.timed(lambda: len(read(_BATCH)), n)


def river(node: KafkaNode, topic: str, n: int, client: ClientName) -> float:
    """Return how many records a second River scores and learns, one after the other as it does."""
    from river.anomaly import HalfSpaceTrees

    trees: Any = HalfSpaceTrees(n_trees=25, height=8, seed=0, limits=dict.fromkeys(stream.FIELDS, (-20.0, 20.0)))

    def turn() -> int:
        values = read(500)
        for value in values:
            x = orjson.loads(value)
            trees.score_one(x)
            trees.learn_one(x)
        return len(values)

    with reading(node, topic, client) as read:
        return stream.timed(turn, n)


def forest(node: KafkaNode, topic: str, n: int, client: ClientName) -> Callable[[], float]:
    """Return what reads the topic and scores it by scikit-learn in batches, as a home-made consumer does."""
    from sklearn.ensemble import IsolationForest

    trees = IsolationForest(random_state=0).fit(stream.matrix(4000, 99))

    def turn(read: Read) -> int:
        values = read(_BATCH)
        if values:
            rows = [orjson.loads(value) for value in values]
            X = np.array([[row[name] for name in stream.FIELDS] for row in rows])
            np.count_nonzero(trees.score_samples(X) < -0.6)
        return len(values)

    def contest() -> float:
        with reading(node, topic, client) as read:
            return stream.timed(partial(turn, read), n)

    return contest
