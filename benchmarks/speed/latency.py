"""From produced to published: event latency at a steady rate, alone and beside a training, and throughput beside one.

A service as it runs in production, with its trainer, on a real Apache Kafka, by both client libraries. One process
produces, another reads the alerts; latency is from a record's own timestamp, which its producer gives it, to the
moment at which a reader has its alert. Beside a training means that one training follows the other,
each with GOAD on a window of 20,000 records. The limit of that is what a process leaves that only counts, and is given
a processor only while nobody else wants it: what then is slower, the processor itself is.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from numpy.typing import NDArray

from benchmarks.report import Table
from benchmarks.runner import whole
from benchmarks.speed import stream
from benchmarks.speed.pairs import Claim, Run, interleaved, medians, parser, quartiles, ratio, shown
from chaos.bench import ask, figure, produce, wait_until
from consumers.clients import ClientName
from srr_stream.broker import free_port

if TYPE_CHECKING:
    from chaos.bench import Bench
    from chaos.node import KafkaNode
    from models.detector import Model

ALONE, BESIDE, BUSY = "alone", "beside a training", "beside a busy processor"
CASES = [(client, beside) for client in ClientName for beside in (ALONE, BESIDE)]
_ANOMALIES = 0.01
"""Only flagged records are published, and so measured."""
_WARM_UP_S = 5.0
_STICKY_MS = 10
_WINDOW = 20_000
_FULL_LOAD_S = 15.0
_context = multiprocessing.get_context("spawn")


def main(arguments: Sequence[str]) -> int:
    cli = parser("latency", __doc__, n_rounds=3)
    cli.add_argument("--rate", type=whole, default=5000, help="Records a second (default 5000).")
    cli.add_argument("--seconds", type=whole, default=30, help="That are measured in a turn (default 30).")
    cli.add_argument("--records", type=whole, default=6_000_000, help="Of the topic for throughput (default 6000000).")
    options = cli.parse_args(arguments)
    home = stream.kafka_home(cli)
    run = Run("latency", arguments, out=options.out)
    model = stream.model(stream.GOAD_32)
    latencies: dict[str, list[NDArray[np.float64]]] = {named(*case): [] for case in CASES}
    with stream.kafka(home) as (node, folder):

        def slow(client: ClientName, beside: str) -> float:
            found = at_a_rate(node, folder, model, client, beside == BESIDE, options.rate, options.seconds)
            latencies[named(client, beside)].append(found)
            return float(np.quantile(found, 0.99))

        def full(client: ClientName, beside: str) -> float:
            return full_load(node, folder, topic, options.records, model, client, beside)

        # A broker that has just started compiles itself for a minute, on the processors that are measured.
        at_a_rate(node, folder, model, ClientName.CONFLUENT, False, options.rate, options.seconds)
        turns = {"n_rounds": options.rounds, "n_warm_up": 0}
        p99 = interleaved({named(*case): partial(slow, *case) for case in CASES}, **turns)
        topic = stream.filled(node, "full", stream.values(50_000, 5), options.records)
        loads = [*CASES, *((client, BUSY) for client in ClientName)]
        rates = interleaved({named(*case): partial(full, *case) for case in loads}, **turns)
    p50 = {name: np.array([np.quantile(each, 0.5) for each in found]) for name, found in latencies.items()}
    at = f"at {options.rate:,} records/s"
    claims = []
    for client in ClientName:
        alone, beside = named(client, ALONE), named(client, BESIDE)
        claims += [
            Claim(f"latency {at}, {client}, p50", quartiles(p50[alone])[1], "ms", "asked", 15.0, at_least=False),
            Claim(f"latency {at}, {client}, p99", quartiles(p99[alone])[1], "ms", "asked", 60.0, at_least=False),
            ratio(f"p99 beside a training, {client}", p99[beside], p99[alone], "alone", 1.5, at_least=False),
            ratio(f"throughput beside a training, {client}", rates[beside], rates[alone], "alone", 0.9),
            ratio(f"throughput beside a training, {client}", rates[beside], rates[named(client, BUSY)], BUSY, 0.9),
        ]
    levels = (0.5, 0.9, 0.99, 0.999, 1.0)
    rows = [
        [
            name,
            *(shown(float(np.quantile(np.concatenate(found), level))) for level in levels),
            f"{sum(map(len, found)):,}",
        ]
        for name, found in latencies.items()
    ]
    table = Table(f"Latency {at}, ms", ["", "p50", "p90", "p99", "p99.9", "greatest", "alerts"], rows)
    at_full = Table(
        "At full load", ["", "records/s, median"], [[name, shown(quartiles(each)[1])] for name, each in rates.items()]
    )
    bars = {
        "latency, ms": {f"{q}, {name}": quartiles(v[name])[1] for q, v in (("p50", p50), ("p99", p99)) for name in v},
        "records/s at full load": medians(rates),
    }
    return run.finish("Latency", claims, [table, at_full], bars=bars)


def named(client: ClientName, beside: str) -> str:
    """Name a case."""
    return f"{client}, {beside}"


def service(node: KafkaNode, folder: Path, client: ClientName, topic: str | None = None) -> Bench:
    """Return surroundings in which trainings are made when asked for, one after the other."""
    return stream.bench(
        node,
        folder,
        topic,
        kafka=stream.by(node, client),
        window={"min_size": _WINDOW, "max_size": _WINDOW},
        training={"representation": "goad", "every": None, "on_drift": False, "min_interval": "1s"},
        http={"host": "127.0.0.1", "scorer_port": free_port(), "trainer_port": free_port()},
    )


@contextmanager
def trainings(surroundings: Bench) -> Iterator[None]:
    """Ask for trainings without end; under way when this begins."""
    stop = threading.Event()
    port = surroundings.settings.http.trainer_port

    def ask_for_more() -> None:
        while not stop.wait(0.5):
            surroundings.registry.request_training("benchmark")

    asking = threading.Thread(target=ask_for_more, daemon=True)
    asking.start()
    try:
        wait_until(lambda: '"phase":"training"' in ask(port, "/statusz").replace(" ", ""), what="a training")
        yield
    finally:
        stop.set()
        asking.join()


def at_a_rate(
    node: KafkaNode, folder: Path, model: Model, client: ClientName, is_training: bool, rate: int, seconds: int
) -> NDArray[np.float64]:
    """Return the latencies of the alerts of a stream of steady rate, ms."""
    with closing(service(node, folder, client)) as surroundings:
        produce(node.bootstrap_servers, surroundings.topic, stream.values(_WINDOW, 7), n_partitions=stream.N_PARTITIONS)
        surroundings.publish(model)
        surroundings.serve()
        with surroundings.looking() as look:
            look.wait_for_no_lag()
        queue: Any = _context.Queue()
        alerts = surroundings.settings.output.alerts_topic
        reader = _context.Process(
            target=read_alerts, args=(node.bootstrap_servers, alerts, _WARM_UP_S + seconds + 2.0, queue), daemon=True
        )
        writer = _context.Process(
            target=write, args=(node.bootstrap_servers, surroundings.topic, rate, _WARM_UP_S + seconds), daemon=True
        )
        reader.start()
        queue.get()  # it reads
        with trainings(surroundings) if is_training else nullcontext():
            return _measured(writer, reader, queue)


def _measured(writer: Any, reader: Any, queue: Any) -> NDArray[np.float64]:
    writer.start()
    found = np.array(queue.get())
    writer.join()
    reader.join()
    produced, latency = found[:, 0], found[:, 1]
    kept: NDArray[np.float64] = latency[produced > produced.min() + 1000 * _WARM_UP_S]
    return kept


def write(servers: str, topic: str, rate: int, seconds: float) -> None:
    """Produce at a steady rate; a request waits up to 2 ms for more records, which counts as latency.

    As producers do with records that have no key, a partition is kept for some milliseconds, so that there is a
    request every few of them and not one for each partition. By librdkafka: kafka-python's producer takes most of a
    processor for 5,000 records a second, and its own delay would be what is measured.
    """
    from confluent_kafka import Producer

    contents = stream.values(20_000, 11, anomalies=_ANOMALIES)
    producer = Producer({"bootstrap.servers": servers, "acks": 1, "linger.ms": 2})
    started, n = time.perf_counter(), 0
    while (passed := time.perf_counter() - started) < seconds:
        due = int(passed * rate)
        partition = int(passed * 1000 / _STICKY_MS) % stream.N_PARTITIONS
        while n < due:
            producer.produce(topic, contents[n % len(contents)], partition=partition)
            n += 1
        producer.poll(0)
        time.sleep(0.001)
    producer.flush(30)


def read_alerts(servers: str, topic: str, seconds: float, queue: Any) -> None:
    """Read alerts for a while; put a sign of life, then (produced, latency) in ms of each into the queue."""
    from kafka import KafkaConsumer, TopicPartition

    reader = KafkaConsumer(bootstrap_servers=servers, enable_auto_commit=False)
    partitions = [TopicPartition(topic, partition) for partition in sorted(reader.partitions_for_topic(topic))]
    reader.assign(partitions)
    reader.seek_to_end(*partitions)
    for partition in partitions:
        reader.position(partition)
    queue.put(None)
    arrived: list[tuple[float, bytes]] = []
    until = None
    while until is None or time.monotonic() < until:
        for records in reader.poll(timeout_ms=100).values():
            now = 1000 * time.time()
            until = until or time.monotonic() + seconds
            arrived += [(now, record.value) for record in records]
    found = []
    for at, value in arrived:
        produced = 1000 * datetime.fromisoformat(orjson.loads(value)["time"]).timestamp()
        found.append((produced, at - produced))
    queue.put(found)


@contextmanager
def busy() -> Iterator[None]:
    """Have a process count that runs only while a processor has nothing else to do (Linux)."""
    process = _context.Process(target=_count, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def _count() -> None:
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    n = 0
    while True:
        n += 1


def full_load(
    node: KafkaNode, folder: Path, topic: str, n_records: int, model: Model, client: ClientName, beside: str
) -> float:
    """Return how many records a second a service judges that has more to do than it can."""
    with closing(service(node, folder, client, topic)) as surroundings:
        port = surroundings.settings.http.scorer_port
        surroundings.publish(model)
        surroundings.serve()
        wait_until(lambda: figure(port, "srr_records_scored_total") > 0, what="a first verdict")
        neighbours: dict[str, AbstractContextManager[None]] = {
            ALONE: nullcontext(),
            BESIDE: trainings(surroundings),
            BUSY: busy(),
        }
        with neighbours[beside]:
            return _rate(port, n_records)


def _rate(port: int, n_records: int) -> float:
    """Return records a second, of a while or until the topic is at its end."""
    before = n = figure(port, "srr_records_scored_total")
    started, passed = time.perf_counter(), 0.0
    while passed < _FULL_LOAD_S and n < n_records:
        time.sleep(0.2)  # nothing announces what happens in another process
        n, passed = figure(port, "srr_records_scored_total"), time.perf_counter() - started
    return (n - before) / passed
