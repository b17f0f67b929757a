"""Brokers that tests share: the embedded one, and a real Apache Kafka where KAFKA_HOME names one."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from srr_stream.broker import EmbeddedBroker, create_topics, die_with_parent, free_port

_START_S = 60.0


@pytest.fixture(scope="session")
def embedded_broker() -> Iterator[EmbeddedBroker]:
    """One embedded broker for the whole run; every test has topics of its own."""
    with EmbeddedBroker() as broker:
        yield broker


class ApacheKafka:
    """One node of Apache Kafka (KRaft) with its data in `folder`: it can be killed, and started again."""

    def __init__(self, home: Path, folder: Path) -> None:
        self._home = home
        self._log_path = folder / "server.log"
        self._config = folder / "server.properties"
        controller = free_port()
        self.bootstrap_servers = f"127.0.0.1:{free_port()}"
        self.sasl_servers = f"127.0.0.1:{free_port()}"
        """The same broker, for who names itself: SASL_PLAINTEXT, PLAIN, user ``reader``, password ``secret``."""
        listeners = f"PLAINTEXT://{self.bootstrap_servers},SASL://{self.sasl_servers}"
        settings = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "listeners": f"{listeners},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": listeners,
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,SASL:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT",
            "controller.listener.names": "CONTROLLER",
            "sasl.enabled.mechanisms": "PLAIN",
            "listener.name.sasl.plain.sasl.jaas.config": (
                'org.apache.kafka.common.security.plain.PlainLoginModule required user_reader="secret";'
            ),
            "log.dirs": str(folder / "data"),
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "4",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
            "auto.create.topics.enable": "false",
            # After a hard kill the node may register again at once instead of waiting out its old session.
            "broker.session.timeout.ms": "2000",
            "broker.heartbeat.interval.ms": "500",
        }
        self._config.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        cluster_id = self._storage("random-uuid").stdout.split()[-1]
        self._storage("format", "-t", cluster_id, "-c", str(self._config))
        self.start()

    def start(self) -> None:
        """Start the node and wait until it answers."""
        with self._log_path.open("ab") as server_log:
            self._process = subprocess.Popen(
                [self._home / "bin" / "kafka-server-start.sh", self._config],
                stdin=subprocess.DEVNULL,
                stdout=server_log,
                stderr=server_log,
                start_new_session=True,  # the script and its Java are ended together
                preexec_fn=die_with_parent,
            )
        self._wait()

    def create_topics(self, topics: Mapping[str, int]) -> None:
        """Make topics, name → number of partitions."""
        create_topics(self.bootstrap_servers, topics)

    def kill(self) -> None:
        """Kill it the hard way; its data stays."""
        self._end(signal.SIGKILL)

    def close(self) -> None:
        """Stop it; twice is fine."""
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, how)
        self._process.wait(30)

    def _storage(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(self._home / "bin" / "kafka-storage.sh"), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)

    def _wait(self) -> None:
        from kafka.admin import KafkaAdminClient
        from kafka.errors import KafkaError

        until = time.monotonic() + _START_S
        while time.monotonic() < until and self._process.poll() is None:
            try:
                KafkaAdminClient(bootstrap_servers=self.bootstrap_servers, bootstrap_timeout_ms=2000).close()
                return
            except KafkaError:
                time.sleep(0.1)  # nothing announces that a server in another process is up
        self.close()
        pytest.fail(f"Apache Kafka did not start: {self._log_path.read_text()[-2000:]}")


@pytest.fixture(scope="session")
def apache_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApacheKafka]:
    """One node of Apache Kafka for the whole run, of the release that KAFKA_HOME names."""
    home = os.environ.get("KAFKA_HOME")
    if not home:
        pytest.skip("KAFKA_HOME is not set: unpack an Apache Kafka release (Java 17) and name its folder")
    kafka = ApacheKafka(Path(home), tmp_path_factory.mktemp("apache-kafka"))
    yield kafka
    kafka.close()


@pytest.fixture
def topic_name() -> str:
    """A name that no other test uses."""
    return f"test-{uuid.uuid4().hex[:12]}"
