"""The trainer in a process of its own, so that its crash, hang or hunger for memory never stops scoring.

Two halves. The child runs :class:`srr_stream.trainer.Trainer` and sends its status over a pipe. The parent, a thread
beside the scorer, starts it, listens, and starts it again when it dies or falls silent, waiting longer each time.
Each half notices the other's death by the pipe: nobody is left behind.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING

from srr_stream.errors import SrrStreamError
from srr_stream.health import Health
from srr_stream.logs import set_up_logging
from srr_stream.metrics import TrainerMetrics
from srr_stream.settings import Settings

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from srr_stream.trainer import Outcome, Status, Trainer

log = logging.getLogger(__name__)

_MAX_RESTART_S = 60.0
_STEADY_S = 60.0
"""A child that lived so long was well: the next restart is quick again."""
_TICK_S = 0.2
_GRACE_S = 3.0
"""For a child that is asked to stop. One that has not spoken yet is still importing and has nothing to finish."""


# --- the child's half


def run_trainer(settings: Settings, *, should_stop: Callable[[], bool], on_status: Callable[[Status], None]) -> None:
    """Train whenever one is due, with metrics and health on an endpoint, until `should_stop`."""
    from prometheus_client import CollectorRegistry

    from srr_stream.api import HttpEndpoint

    metrics_registry = CollectorRegistry()
    health = Health(live_timeout_s=settings.http.live_timeout.total_seconds())
    endpoint = HttpEndpoint(settings.http.host, settings.http.trainer_port, registry=metrics_registry, health=health)

    log.info("metrics and health: http://%s:%d/metrics, /livez, /readyz", settings.http.host, endpoint.port)

    def report(status: Status) -> None:
        if should_stop():
            raise InterruptedError("told to stop")
        on_status(replace(status, port=endpoint.port))

    try:
        trainer = make_trainer(settings, metrics=TrainerMetrics(metrics_registry), health=health, on_status=report)
        pause = threading.Event()
        with closing(trainer):
            while not should_stop():
                trainer.turn()
                pause.wait(settings.training.check_every.total_seconds())
    except InterruptedError:
        log.info("stopped")
    finally:
        endpoint.close()


def train_once(settings: Settings, *, on_status: Callable[[Status], None]) -> Outcome:
    """Train the configured model once, now, in this process; raises what :meth:`Trainer.train` raises."""
    from prometheus_client import CollectorRegistry

    from srr_stream import assembly
    from srr_stream.trainer import Plan

    trainer = make_trainer(
        settings,
        metrics=TrainerMetrics(CollectorRegistry()),
        health=Health(live_timeout_s=settings.http.live_timeout.total_seconds()),
        on_status=on_status,
    )
    with closing(trainer):
        return trainer.train(Plan("by hand: train --once", assembly.make_training_config(settings)))


def make_trainer(
    settings: Settings, *, metrics: TrainerMetrics, health: Health, on_status: Callable[[Status], None]
) -> Trainer:
    """Put a trainer together; nothing is read or written before its first turn."""
    from srr_stream import assembly
    from srr_stream.trainer import Trainer

    every, count = assembly.make_triggers(settings, clock=time.monotonic)
    limit_threads(settings.training.n_threads)
    return Trainer(
        assembly.make_window_reader(settings),
        assembly.make_registry(settings),
        assembly.record_schema(settings.record),
        assembly.make_training_config(settings),
        gate=assembly.make_gate_bounds(settings),
        mode=settings.gate.mode,
        reference_version=settings.gate.reference_version,
        metrics=metrics,
        health=health,
        min_size=settings.window.min_size,
        min_interval_s=settings.training.min_interval.total_seconds(),
        every=every,
        count=count,
        seed=settings.training.seed,
        device=settings.training.device,
        on_status=on_status,
    )


def limit_threads(n_threads: int) -> None:
    """Leave the other processors to the scorer."""
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(n_threads)
    threadpool_limits(n_threads)


def _child(settings: Settings, pipe: Connection, log_level: int) -> None:
    set_up_logging(log_level, role="trainer")
    stop = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to parent and child; the parent decides
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    threading.Thread(target=_leave_with_parent, args=(pipe, stop), daemon=True).start()
    import srr_stream.trainer  # noqa: F401  # before the limit: torch hangs when memory ends within its import

    os.nice(settings.training.nice)
    if settings.training.memory_limit is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (int(settings.training.memory_limit),) * 2)
    try:
        run_trainer(settings, should_stop=stop.is_set, on_status=pipe.send)
    except (SrrStreamError, OSError) as error:
        log.error("%s", error)
        raise SystemExit(3) from error


def _leave_with_parent(pipe: Connection, stop: threading.Event) -> None:
    """Wait for the parent's word; an end of the pipe without one means that the parent is dead."""
    try:
        pipe.recv()
        stop.set()
    except (EOFError, OSError):
        os._exit(1)


# --- the parent's half


class TrainerProcess:
    """A trainer that is always there: started, watched, restarted with back-off.

    Parameters
    ----------
    settings
        Handed to the child; `training.hang_timeout` is how long it may be silent before it is killed.
    first_restart_s
        Wait before the first restart; doubles with each further one, up to a minute.
    on_status
        Called from the watching thread with every status of the child.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        first_restart_s: float = 1.0,
        on_status: Callable[[Status], None] = lambda status: None,
    ) -> None:
        from srr_stream.trainer import Status

        self.status = Status()
        """What the child said last."""
        self.n_restarts = 0
        self.pid: int | None = None
        """Process id of the child; None while there is none."""
        self._settings = settings
        self._hang_timeout_s = settings.training.hang_timeout.total_seconds()
        self._first_restart_s = first_restart_s
        self._on_status = on_status
        self._has_spoken = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._supervise, name="trainer-supervisor", daemon=True)

    def start(self) -> None:
        """Start the child and watch it."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the child to stop, wait 3 s at most, then kill it; twice is fine."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _supervise(self) -> None:
        context = multiprocessing.get_context("spawn")
        restart_s = self._first_restart_s
        while not self._stop.is_set():
            started = time.monotonic()
            ours, theirs = context.Pipe()
            child = context.Process(
                target=_child, args=(self._settings, theirs, logging.getLogger().getEffectiveLevel()), daemon=True
            )
            child.start()
            theirs.close()
            self.pid = child.pid
            try:
                why = self._watch(child, ours)
            finally:
                self.pid = None
                _end(child, ours, _GRACE_S if self._has_spoken else 0.0)
            if self._stop.is_set():
                return
            if time.monotonic() - started > _STEADY_S:
                restart_s = self._first_restart_s
            self._receive(replace(self.status, phase="resting", detail=f"{why}; restart in {restart_s:g} s"))
            log.warning("trainer %s; restart in %g s; scoring goes on", why, restart_s)
            self._stop.wait(restart_s)
            restart_s = min(2 * restart_s, _MAX_RESTART_S)
            self.n_restarts += 1

    def _watch(self, child: BaseProcess, pipe: Connection) -> str:
        """Listen until the child dies, falls silent or shall stop; return which, in words."""
        last_heard = time.monotonic()
        self._has_spoken = False
        while not self._stop.is_set():
            if pipe in wait([pipe, child.sentinel], timeout=_TICK_S):
                try:
                    self._receive(pipe.recv())
                except (EOFError, OSError):
                    child.join()
                    return _cause(child.exitcode)
                last_heard, self._has_spoken = time.monotonic(), True
            elif not child.is_alive():
                return _cause(child.exitcode)
            elif time.monotonic() - last_heard > self._hang_timeout_s:
                child.kill()
                return f"has been silent for {self._hang_timeout_s:g} s (training.hang_timeout) and was killed"
        return "was stopped"

    def _receive(self, status: Status) -> None:
        self.status = status
        self._on_status(status)


def _end(child: BaseProcess, pipe: Connection, grace_s: float) -> None:
    """Stop a child by asking, then by force; a dead one is only buried."""
    try:
        pipe.send("stop")
    except OSError:
        child.kill()
    child.join(timeout=grace_s)
    if child.is_alive():
        child.kill()
    child.join()
    pipe.close()
    child.close()


def _cause(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return f"was killed by {signal.Signals(-exitcode).name}"
    return f"ended with exit code {exitcode}"
