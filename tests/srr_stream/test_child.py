"""Settings reach a child whenever they are handed over: while it starts, while it runs, after it died."""

from __future__ import annotations

import os
import queue
import signal
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import pytest

from srr_stream.child import ChildProcess, begin_child


def echo(settings: Any, pipe: Connection, log_level: int) -> None:
    """Say what it was started with, and then whatever it hears."""
    stop = begin_child(pipe, on_message=lambda message: pipe.send(("heard", message)))
    pipe.send(("began", settings))
    stop.wait()


class Bench:
    def __init__(self) -> None:
        self.said: queue.Queue[tuple[str, Any]] = queue.Queue()
        self.child = ChildProcess(echo, "first", name="child", first_restart_s=0.1, on_message=self.said.put)

    def next(self) -> tuple[str, Any]:
        return self.said.get(timeout=60)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.child.stop()


def test_a_child_that_runs_hears_of_new_settings_and_its_successor_begins_with_them(bench: Bench) -> None:
    bench.child.start()
    assert bench.next() == ("began", "first")
    bench.child.hand_over("second")
    assert bench.next() == ("heard", "second")
    pid = bench.child.pid
    assert pid is not None
    os.kill(pid, signal.SIGHUP)  # a terminal sends it to all; the parent alone acts on it
    bench.child.hand_over("third")
    assert bench.next() == ("heard", "third")
    os.kill(pid, signal.SIGKILL)
    assert bench.next() == ("began", "third")
    assert bench.child.n_restarts == 1


def test_what_is_handed_over_before_or_while_a_child_starts_reaches_it(bench: Bench) -> None:
    bench.child.hand_over("second")
    bench.child.start()
    bench.child.hand_over("third")
    said = [bench.next()]
    if said[0][1] != "third":
        said.append(bench.next())
    assert said[-1] in [("began", "third"), ("heard", "third")]
