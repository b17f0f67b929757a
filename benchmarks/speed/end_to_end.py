"""A topic to committed verdicts on a real Apache Kafka, beside bare clients, River and scikit-learn on the same topic.

Every contestant reads the same records from the same broker on the same machine, in turn. Ours is the scorer as it
runs in production, a process with all defaults: exact p-values, reasons of flagged records, metrics, commits. The
others only read and score; they publish and commit nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
import orjson

from benchmarks.runner import whole
from benchmarks.speed import stream
from benchmarks.speed.pairs import Run, interleaved, medians, parser, rates_table, ratio
from chaos.node import KafkaNode

BARE = "kafka-python, bare"
RIVER, FOREST = "River HalfSpaceTrees", "scikit-learn IsolationForest, batches"
_RIVER_RECORDS = 30_000
_BATCH = 5000
_ANOMALIES = 0.002


def main(arguments: Sequence[str]) -> int:
    cli = parser("end-to-end", __doc__, n_rounds=5)
    cli.add_argument("--records", type=whole, default=600_000, help="In the topic (default 600000).")
    options = cli.parse_args(arguments)
    home = stream.kafka_home(cli)
    run = Run("end-to-end", arguments, out=options.out)
    records = stream.values(50_000, 1, anomalies=_ANOMALIES)
    models = {name: stream.model(config) for name, config in stream.MODELS.items()}
    with stream.kafka(home) as (node, folder):
        topic = stream.filled(node, "speed", records, options.records)
        n = options.records

        def ours(name: str) -> float:
            with closing(stream.bench(node, folder, topic)) as surroundings:
                return stream.drained(surroundings, models[name], n)

        contestants = {
            BARE: lambda: bare(node, topic, n),
            RIVER: lambda: river(node, topic, min(n, _RIVER_RECORDS)),
            FOREST: forest(node, topic, n),
            **{f"srr-stream, {name}": partial(ours, name) for name in models},
        }
        figures = interleaved(contestants, n_rounds=options.rounds, n_warm_up=1)

    goad, closed = (f"srr-stream, {name}" for name in models)
    claims = [
        ratio("end to end, GOAD M = 32", figures[goad], figures[BARE], "bare kafka-python", 0.6),
        ratio("end to end, closed form", figures[closed], figures[BARE], "bare kafka-python", 0.6),
        ratio("end to end, GOAD M = 32", figures[goad], figures[RIVER], "River HalfSpaceTrees, same consumer", 10.0),
        ratio("end to end, closed form", figures[closed], figures[FOREST], "scikit-learn IsolationForest", 2.0),
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


def consumer(node: KafkaNode, topic: str) -> Any:
    """Return a kafka-python consumer of the whole topic, from its beginning, without a group."""
    from kafka import KafkaConsumer, TopicPartition

    made = KafkaConsumer(bootstrap_servers=node.bootstrap_servers, enable_auto_commit=False, max_poll_records=_BATCH)
    partitions = [TopicPartition(topic, partition) for partition in range(stream.N_PARTITIONS)]
    made.assign(partitions)
    made.seek_to_beginning(*partitions)
    return made


def bare(node: KafkaNode, topic: str, n: int) -> float:
    """Return how many records a second kafka-python reads, and nothing is done with them."""
    with closing(consumer(node, topic)) as reader:
        return stream.timed(lambda: sum(map(len, reader.poll(timeout_ms=200).values())), n)


def river(node: KafkaNode, topic: str, n: int) -> float:
    """Return how many records a second River scores and learns, one after the other as it does."""
    from river.anomaly import HalfSpaceTrees

    trees = HalfSpaceTrees(n_trees=25, height=8, seed=0, limits=dict.fromkeys(stream.FIELDS, (-20.0, 20.0)))

    def read() -> int:
        n_read = 0
        for records in reader.poll(timeout_ms=200, max_records=500).values():
            for record in records:
                x = orjson.loads(record.value)
                trees.score_one(x)
                trees.learn_one(x)
            n_read += len(records)
        return n_read

    with closing(consumer(node, topic)) as reader:
        return stream.timed(read, n)


def forest(node: KafkaNode, topic: str, n: int) -> Callable[[], float]:
    """Return what reads the topic and scores it by scikit-learn in batches, as a home-made consumer does."""
    from sklearn.ensemble import IsolationForest

    trees = IsolationForest(random_state=0).fit(stream.matrix(4000, 99))

    def turn() -> float:
        def read() -> int:
            polled = [record for records in reader.poll(timeout_ms=200).values() for record in records]
            if polled:
                rows = [orjson.loads(record.value) for record in polled]
                X = np.array([[row[name] for name in stream.FIELDS] for row in rows])
                np.count_nonzero(trees.score_samples(X) < -0.6)
            return len(polled)

        with closing(consumer(node, topic)) as reader:
            return stream.timed(read, n)

    return turn
