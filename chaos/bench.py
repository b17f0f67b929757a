"""What a scenario stands on: topics of its own, a registry with models in it, a feeder, and the ledger at the end."""

from __future__ import annotations

import itertools
import random
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from chaos.node import KafkaNode
from chaos.processes import Death, Process, start_scorer, start_service, start_trainer
from consumers.records import RecordSchema
from models.detector import Model
from models.persistence import model_to_parts
from models.presets import PRESETS
from models.training import train
from srr_stream import assembly
from srr_stream.ledger import Kind, Ledger
from srr_stream.ledger.reader import read_books
from srr_stream.live_model import make_canary
from srr_stream.loading import check_settings
from srr_stream.registry import Manifest, Registry
from srr_stream.settings import Settings

FIELDS = [{"name": "duration_ms"}, {"name": "bytes_sent"}, {"name": "load", "required": False}]
POISON = [b"", b"{torn", b"[]", b'{"duration_ms": "1", "bytes_sent": 1}', b'{"bytes_sent": 1}']
N_PARTITIONS = 4
_ANSWER_S = 60.0


class Failed(AssertionError):
    """A promise was broken, or something did not happen in time."""


@dataclass
class Result:
    """What came of a scenario."""

    name: str
    mode: str
    seed: int
    figures: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    failure: str | None = None


def make_columns(n: int, seed: int) -> dict[str, Any]:
    """Return requests whose size follows their duration."""
    rng = np.random.default_rng(seed)
    duration = rng.lognormal(3.0, 0.4, n)
    return {"duration_ms": duration, "bytes_sent": duration * 20 * rng.lognormal(0.0, 0.1, n), "load": rng.random(n)}


def make_values(n: int, seed: int, *, poison: float = 0.0, anomalies: float = 0.03) -> list[bytes]:
    """Return records as JSON: normal ones, anomalies, and some that cannot be read."""
    rng = random.Random(seed)
    columns = {name: values.tolist() for name, values in make_columns(n, seed).items()}
    values = []
    for i in range(n):
        if rng.random() < poison:
            values.append(rng.choice(POISON))
            continue
        record = {name: column[i] for name, column in columns.items()}
        if rng.random() < anomalies:
            record["bytes_sent"] = rng.uniform(0, 20)
        values.append(orjson.dumps(record))
    return values


def make_models(n: int) -> list[Model]:
    """Return models of different windows of the same stream, of the kind that a service begins with."""
    config = PRESETS["goad"].closed_form()
    return [train(make_columns(600, 1000 + i), config, seed=i).model for i in range(n)]


def publish(registry: Registry, model: Model, schema: RecordSchema) -> int:
    """Put a model of records of a schema into a registry; return its version."""
    description, weights = model_to_parts(model)
    manifest = Manifest(
        version=0,
        created_at="",
        reason="chaos",
        schema=schema.to_dict(),
        schema_digest=schema.digest,
        window={"ranges": [], "n_records": 600, "n_bad": 0},
        training={},
        gate={},
        model=description,
        canary=make_canary(model),
    )
    return registry.publish(manifest, weights).version


class Feeder:
    """A thread that produces records at a rate until told to stop."""

    def __init__(self, servers: str, topic: str, *, rate: float, seed: int, poison: float, n_partitions: int) -> None:
        from kafka import KafkaProducer

        self._producer = KafkaProducer(bootstrap_servers=servers, acks="all", linger_ms=10, delivery_timeout_ms=120_000)
        self._topic = topic
        self._rate = rate
        self._values = make_values(5000, seed, poison=poison)
        self._n_partitions = n_partitions
        self._stop = threading.Event()
        self.n_sent = 0
        self._thread = threading.Thread(target=self._run, name="feeder", daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """Stop, and return how many records were produced when the broker has them all."""
        if not self._stop.is_set():
            self._stop.set()
            self._thread.join()
            self._producer.flush(120)
            self._producer.close(5)
        return self.n_sent

    def _run(self) -> None:
        started = time.monotonic()
        for value in itertools.cycle(self._values):
            if self._stop.is_set():
                return
            self._producer.send(self._topic, value, key=b"%d" % self.n_sent, partition=self.n_sent % self._n_partitions)
            self.n_sent += 1
            ahead = self.n_sent / self._rate - (time.monotonic() - started)
            if ahead > 0.01:
                self._stop.wait(ahead)


class Bench:
    """One scenario's own topics and settings on a node."""

    def __init__(
        self,
        node: KafkaNode,
        folder: Path,
        mode: str,
        *,
        servers: str | None = None,
        client: str = "kafka-python",
        n_partitions: int = N_PARTITIONS,
        n_output_partitions: int = 2,
        topic_config: Mapping[str, str] | None = None,
        output_config: Mapping[str, str] | None = None,
        **overrides: Mapping[str, Any],
    ) -> None:
        self.node = node
        self.mode = mode
        self.folder = folder
        self.topic = f"chaos-{uuid.uuid4().hex[:8]}"
        self.group = f"{self.topic}-group"
        self.n_partitions = n_partitions
        self._servers = servers or node.bootstrap_servers
        outputs = [f"{self.topic}-{name}" for name in ("scores", "alerts", "dead")]
        create_topics(node.bootstrap_servers, {self.topic: n_partitions}, topic_config)
        create_topics(node.bootstrap_servers, dict.fromkeys(outputs, n_output_partitions), output_config)
        content: dict[str, dict[str, Any]] = {
            "kafka": {"bootstrap_servers": self._servers, "client": client, "connect_timeout": "3s"},
            "input": {"topics": [self.topic], "group_id": self.group, "start": "earliest", "session_timeout": "3s"},
            "record": {"fields": FIELDS},
            "output": {
                "scores_topic": outputs[0],
                "alerts_topic": outputs[1],
                "dead_letter_topic": outputs[2],
                "flush_timeout": "5s",
            },
            "delivery": {"mode": mode},
            "window": {"min_size": 300, "max_size": 2000},
            "training": {"representation": "identity", "every": None, "on_drift": False, "check_every": "100ms"},
            "gate": {"mode": "off"},
            "registry": {"url": str(folder / f"{self.topic}-registry"), "poll_every": "100ms"},
            "http": {"host": "127.0.0.1", "scorer_port": 0, "trainer_port": 0},
            "api": {"enabled": False},
        }
        self._content = content
        self._content = self._with(overrides)
        self.settings = check_settings(self._content)
        self.registry: Registry = assembly.make_registry(self.settings)
        self._stack = ExitStack()
        self._n_processes = 0
        self.processes: list[Process] = []

    # --- parts ------------------------------------------------------------------------------------------------------

    def with_settings(self, **overrides: Mapping[str, Any]) -> Settings:
        """Return the settings with some of them changed."""
        return check_settings(self._with(overrides))

    def write_settings(self) -> Path:
        """Write the settings as a file for the command line (YAML is a superset of JSON)."""
        path = self.folder / f"{self.topic}.yaml"
        path.write_bytes(orjson.dumps(self._content))
        return path

    def _with(self, overrides: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        content = {section: dict(values) for section, values in self._content.items()}
        for section, values in overrides.items():
            content[section] = content.get(section, {}) | dict(values)
        return content

    def publish(self, model: Model, *, promote: bool = True) -> int:
        """Put a model into the registry and, as a rule, in use; return its version."""
        version = publish(self.registry, model, assembly.record_schema(self.settings.record))
        if promote:
            self.registry.promote(version)
        return version

    def feed(self, *, rate: float, seed: int, poison: float = 0.02, n_partitions: int = N_PARTITIONS) -> Feeder:
        """Start to produce records."""
        feeder = Feeder(
            self.node.bootstrap_servers, self.topic, rate=rate, seed=seed, poison=poison, n_partitions=n_partitions
        )
        self._stack.callback(feeder.stop)
        return feeder

    def start(self, settings: Settings | None = None, **plan: Any) -> Process:
        """Start a scorer; `plan` is what :func:`chaos.processes.start_scorer` takes."""
        return self._note(start_scorer(settings or self.settings, self._log_path(), **plan))

    def train(self, settings: Settings | None = None, *, death: Death | None = None) -> Process:
        """Start a trainer."""
        return self._note(start_trainer(settings or self.settings, self._log_path(), death=death))

    def serve(self, settings: Settings | None = None) -> Process:
        """Start a scorer with a trainer beside it."""
        return self._note(start_service(settings or self.settings, self._log_path()))

    def close(self) -> None:
        """End every process and thread."""
        for process in self.processes:
            process.close()
        self._stack.close()

    def _note(self, process: Process) -> Process:
        self.processes.append(process)
        return process

    def _log_path(self) -> Path:
        self._n_processes += 1
        return self.folder / f"{self.topic}-{self._n_processes}.log"

    # --- looking ----------------------------------------------------------------------------------------------------

    @contextmanager
    def looking(self) -> Iterator[Look]:
        """Give a way to look at the group's progress."""
        look = Look(self.node.bootstrap_servers, self.topic, self.group, self.n_partitions)
        try:
            yield look
        finally:
            look.close()

    def ledger(self, *, starts_late: bool = False) -> Ledger:
        """Read everything and check it."""
        output = self.settings.output
        books = read_books(
            {"bootstrap_servers": [self.node.bootstrap_servers]},
            topics=[self.topic],
            group_id=self.group,
            scores_topic=output.scores_topic,
            alerts_topic=output.alerts_topic,
            dead_letter_topic=output.dead_letter_topic,
            mode=self.mode,  # type: ignore[arg-type]
        )
        return books.check(self.mode, starts_late=starts_late)  # type: ignore[arg-type]

    def settle(self, result: Result, *, n_expected: int | None = None) -> None:
        """Let a last scorer answer what is left, then check the ledger and write its figures down."""
        scorer = self.start()
        with self.looking() as look:
            look.wait_for_no_lag()
        scorer.terminate()
        self.settle_ledger(result, n_expected=n_expected)

    def settle_ledger(self, result: Result, *, n_expected: int | None = None) -> None:
        """Check the ledger and write its figures down."""
        ledger = self.ledger()
        n_records = sum(line.n_records for line in ledger.lines)
        n_waiting = sum(line.n_waiting or 0 for line in ledger.lines)
        result.figures |= {
            "records": n_records,
            "lost": ledger.finding(Kind.LOST).n + ledger.finding(Kind.COMMITTED_AHEAD).n,
            "doubled": ledger.finding(Kind.DOUBLED).n,
            "repeated": ledger.finding(Kind.REPEATED).n,
            "differing": ledger.finding(Kind.DIFFERING).n,
            "out_of_order": ledger.finding(Kind.OUT_OF_ORDER).n,
        }
        for fault in ledger.faults:
            examples = "; ".join(map(str, fault.examples[:3]))
            raise Failed(f"{fault.kind.value}: {fault.n} ({examples})")
        if n_waiting:
            raise Failed(f"{n_waiting} records were never answered")
        if n_expected is not None and n_records != n_expected:
            raise Failed(f"the input holds {n_records} records, {n_expected} were produced")
        if not ledger.is_complete:
            raise Failed("the ledger could not be checked whole")


class Look:
    """How far the group is, seen from outside of it. What the brokers do not answer is asked again."""

    def __init__(self, servers: str, topic: str, group: str, n_partitions: int) -> None:
        from kafka import KafkaConsumer, TopicPartition

        self._consumer = KafkaConsumer(bootstrap_servers=servers, group_id=group, enable_auto_commit=False)
        self._partitions = [TopicPartition(topic, partition) for partition in range(n_partitions)]

    def committed(self) -> list[int]:
        """Return the committed offset of each partition, 0 where there is none."""
        from kafka.errors import KafkaError

        until = time.monotonic() + _ANSWER_S
        while True:
            try:
                return [self._consumer.committed(tp, timeout_ms=5_000) or 0 for tp in self._partitions]
            except KafkaError as error:
                if time.monotonic() > until:
                    raise Failed(f"the broker does not answer: {str(error)[:200]}") from error

    def lag(self) -> int:
        """Return how many records are behind no committed offset."""
        from kafka.errors import KafkaError

        until = time.monotonic() + _ANSWER_S
        while True:
            try:
                ends = self._consumer.end_offsets(self._partitions, timeout_ms=5_000)
                behind: int = sum(ends.values()) - sum(self.committed())
                return behind
            except KafkaError as error:
                if time.monotonic() > until:
                    raise Failed(f"the broker does not answer: {str(error)[:200]}") from error

    def wait_for_progress(self, n: int = 1, *, timeout_s: float = 60.0) -> float:
        """Return, with the seconds that it took, when `n` more records are committed than now."""
        goal = sum(self.committed()) + n
        return wait_until(lambda: sum(self.committed()) >= goal, what=f"progress by {n} records", timeout_s=timeout_s)

    def wait_for_no_lag(self, *, timeout_s: float = 300.0) -> float:
        """Return when everything that is there is committed."""
        return wait_until(lambda: self.lag() == 0, what="an end of the lag", timeout_s=timeout_s)

    def close(self) -> None:
        """Let go."""
        self._consumer.close(autocommit=False)


def wait_until(is_so: Callable[[], Any], *, what: str, timeout_s: float = 60.0) -> float:
    """Return the seconds that it took until something is so."""
    started = time.monotonic()
    while not is_so():
        if time.monotonic() - started > timeout_s:
            raise Failed(f"{what} did not come within {timeout_s:g} s")
        time.sleep(0.05)  # nothing announces what happens in another process
    return time.monotonic() - started


def create_topics(servers: str, topics: Mapping[str, int], config: Mapping[str, str] | None = None) -> None:
    """Make topics, name → number of partitions, with a configuration."""
    from kafka.admin import KafkaAdminClient, NewTopic

    admin = KafkaAdminClient(bootstrap_servers=servers)
    try:
        admin.create_topics(
            [NewTopic(name, n, 1, topic_configs=dict(config or {})) for name, n in topics.items()], timeout_ms=20_000
        )
        admin.wait_for_topics(list(topics), timeout_ms=20_000)
    finally:
        admin.close()


def produce(servers: str, topic: str, values: Sequence[bytes], *, n_partitions: int, **options: Any) -> None:
    """Append records, in turn over the partitions, and wait until the broker has them."""
    from kafka import KafkaProducer

    producer = KafkaProducer(bootstrap_servers=servers, acks="all", **options)
    try:
        for i, value in enumerate(values):
            producer.send(topic, value, key=b"%d" % i, partition=i % n_partitions)
        producer.flush(60)
    finally:
        producer.close(5)


def ask(port: int, path: str) -> str:
    """Return what an endpoint of a role answers, empty if it does not."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        with error:
            return error.read().decode()
    except OSError:
        return ""


def figure(port: int, name: str) -> float:
    """Return the sum of a metric over its labels, 0 if there is none."""
    lines = [line for line in ask(port, "/metrics").splitlines() if line.startswith((f"{name} ", f"{name}{{"))]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def slope(x: list[float], y: list[float]) -> float:
    """Return the slope of the line of least squares."""
    n, mean_x, mean_y = len(x), sum(x) / len(x), sum(y) / len(y)
    spread = sum((value - mean_x) ** 2 for value in x)
    return sum((x[i] - mean_x) * (y[i] - mean_y) for i in range(n)) / spread if spread else 0.0
