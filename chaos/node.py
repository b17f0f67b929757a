"""One node of Apache Kafka (KRaft) on free ports, that can be killed, frozen and started again on its data."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

from srr_stream.broker import create_topics, die_with_parent, free_port

_START_S = 60.0


class KafkaDidNotStart(Exception):
    """The node did not come up; the end of its log is the message."""


class Node:
    """A broker with its data in `folder`, up when the constructor returns.

    Parameters
    ----------
    home
        An unpacked release of Apache Kafka.
    settings
        Of the server, over those here; ``listeners`` must be among them.
    formatting
        Further arguments for the formatting of its storage.
    """

    bootstrap_servers: str

    def __init__(self, home: Path, folder: Path, settings: Mapping[str, str], *formatting: str) -> None:
        self._home = home
        self._log_path = folder / "server.log"
        self._config = folder / "server.properties"
        controller = free_port()
        whole = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "controller.listener.names": "CONTROLLER",
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
            "advertised.listeners": settings["listeners"],
            **settings,
            "listeners": f"{settings['listeners']},CONTROLLER://127.0.0.1:{controller}",
        }
        self._config.write_text("".join(f"{name}={value}\n" for name, value in whole.items()))
        # Made here: to ask Kafka for one takes seconds. A first byte of zeros keeps it from beginning like an option.
        cluster_id = base64.urlsafe_b64encode(b"\0" + uuid.uuid4().bytes[1:]).decode().rstrip("=")
        self._storage("format", "-t", cluster_id, "-c", str(self._config), *formatting)
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

    def freeze(self) -> None:
        """Stop it without its connections noticing."""
        os.killpg(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        os.killpg(self._process.pid, signal.SIGCONT)

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
        raise KafkaDidNotStart(self._log_path.read_text()[-2000:])


class KafkaNode(Node):
    """A node with a second listener, for a proxy in front of it, that gives up silent members and writers soon."""

    def __init__(self, home: Path, folder: Path) -> None:
        self.bootstrap_servers = f"127.0.0.1:{free_port()}"
        self.proxied_port = free_port()
        """Where clients of the listener ``PROXIED`` are told to come: for a proxy that is put there."""
        self._proxied_inner = free_port()
        own = f"PLAINTEXT://{self.bootstrap_servers}"
        settings = {
            "listeners": f"{own},PROXIED://127.0.0.1:{self._proxied_inner}",
            "advertised.listeners": f"{own},PROXIED://127.0.0.1:{self.proxied_port}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "group.min.session.timeout.ms": "1000",
            # What a killed writer left open is taken back soon after its timeout, not up to ten seconds later.
            "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
        }
        super().__init__(home, folder, settings)

    @property
    def proxied_target(self) -> tuple[str, int]:
        """Where a proxy on `proxied_port` passes on to."""
        return "127.0.0.1", self._proxied_inner
