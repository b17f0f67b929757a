"""The trainer in a process of its own, so that its crash, hang or hunger for memory never stops scoring.

The child runs :class:`srr_stream.trainer.Trainer` and sends its status over a pipe; how it is watched and started again
is in :mod:`srr_stream.child`.
"""

from __future__ import annotations

import os
import resource
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from srr_stream.child import ChildProcess, begin_child
from srr_stream.errors import SrrStreamError
from srr_stream.health import Health
from srr_stream.logs import get_logger, set_up_logging
from srr_stream.metrics import TrainerMetrics
from srr_stream.reload import Reloader, Reloads
from srr_stream.settings import Settings
from srr_stream.threads import limit_threads

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from consumers.windows import WindowReader
    from srr_stream.tracing import Tracing
    from srr_stream.trainer import Outcome, Status, Trainer

log = get_logger(__name__)


# --- the child's half


def run_trainer(
    settings: Settings,
    *,
    should_stop: Callable[[], bool],
    on_status: Callable[[Status], None],
    news: Callable[[], Settings | None] = lambda: None,
    reloads: Reloads | None = None,
) -> None:
    """Train whenever one is due, with metrics and health on an endpoint, until `should_stop`.

    Parameters
    ----------
    news
        Asked between two turns for settings that somebody else has checked, to go by from then on.
    reloads
        Says when to read the settings file again. None: never.
    """
    from prometheus_client import CollectorRegistry

    from srr_stream import assembly
    from srr_stream.api import HttpEndpoint
    from srr_stream.metrics import package_version
    from srr_stream.statusz import trainer_statusz
    from srr_stream.trainer import Status

    metrics_registry = CollectorRegistry()
    health = Health(live_timeout_s=settings.http.live_timeout.total_seconds())
    said: list[Status] = []
    endpoint = HttpEndpoint(
        settings.http.host,
        settings.http.trainer_port,
        registry=metrics_registry,
        health=health,
        statusz=lambda _: trainer_statusz(said[-1] if said else Status(), health, package=package_version()),
    )
    log.info("metrics and health: http://%s:%d/metrics, /livez, /readyz", settings.http.host, endpoint.port)

    def report(status: Status) -> None:
        if should_stop():
            raise InterruptedError("told to stop")
        said[:] = [status]
        on_status(replace(status, port=endpoint.port))

    try:
        tracing = assembly.make_tracing(settings, "trainer")
        metrics = TrainerMetrics(metrics_registry)
        trainer = make_trainer(settings, metrics=metrics, health=health, on_status=report, tracing=tracing)

        def apply(new: Settings, changed: frozenset[str]) -> None:
            _adopt(trainer, new, metrics)

        gauges = {"is_good": metrics.config_is_good, "read_at": metrics.config_read_at}
        reloader = Reloader(reloads, settings, apply=apply, **gauges) if reloads is not None else None
        pause = threading.Event()
        with closing(tracing), closing(trainer):
            while not should_stop():
                new = news()
                if new is not None:
                    _adopt(trainer, new, metrics)
                    metrics.config_read_at.set_to_current_time()
                if reloader is not None:
                    reloader.look()
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

    tracing = assembly.make_tracing(settings, "trainer")
    trainer = make_trainer(
        settings,
        metrics=TrainerMetrics(CollectorRegistry()),
        health=Health(live_timeout_s=settings.http.live_timeout.total_seconds()),
        on_status=on_status,
        tracing=tracing,
    )
    with closing(tracing), closing(trainer):
        return trainer.train(Plan("by hand: train --once", assembly.make_training_config(settings)))


def make_trainer(
    settings: Settings,
    *,
    metrics: TrainerMetrics,
    health: Health,
    on_status: Callable[[Status], None],
    reader: WindowReader | None = None,
    tracing: Tracing | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Trainer:
    """Put a trainer together; nothing is read or written before its first turn.

    A backtest gives a `reader` of its own, and a `clock` that goes by the records.
    """
    from srr_stream import assembly
    from srr_stream.trainer import Trainer

    every, count = assembly.make_triggers(settings, clock=clock)
    metrics.every.set(settings.training.every.total_seconds() if settings.training.every is not None else 0.0)
    limit_threads(settings.training.n_threads)
    return Trainer(
        reader if reader is not None else assembly.make_window_reader(settings),
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
        read_labels=assembly.labels_reader(settings) if reader is None else None,
        on_status=on_status,
        tracing=tracing,
        clock=clock,
    )


def _adopt(trainer: Trainer, settings: Settings, metrics: TrainerMetrics) -> None:
    """Have a trainer go by changed settings, as far as they may change without a restart."""
    from srr_stream import assembly

    every, count = assembly.make_triggers(settings, clock=time.monotonic)
    trainer.adopt(
        config=assembly.make_training_config(settings),
        gate=assembly.make_gate_bounds(settings),
        mode=settings.gate.mode,
        reference_version=settings.gate.reference_version,
        min_interval_s=settings.training.min_interval.total_seconds(),
        every=every,
        count=count,
    )
    metrics.every.set(settings.training.every.total_seconds() if settings.training.every is not None else 0.0)
    assembly.log_as_set(settings)


def _child(settings: Settings, pipe: Connection, log_level: int) -> None:
    from srr_stream import assembly

    set_up_logging(log_level, role="trainer")
    assembly.log_as_set(settings)
    news: deque[Settings] = deque(maxlen=1)
    stop = begin_child(pipe, on_message=news.append)
    # Before the limit of memory, which is a training's to meet: PyTorch hangs when memory ends within its import.
    import srr_stream.trainer  # noqa: F401

    if assembly.make_training_config(settings).has_steps:
        import torch  # noqa: F401

    os.nice(settings.training.nice)
    if settings.training.memory_limit is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (int(settings.training.memory_limit),) * 2)
    try:
        run_trainer(
            settings,
            should_stop=stop.is_set,
            on_status=pipe.send,
            news=lambda: news.pop() if news else None,
        )
    except (SrrStreamError, OSError) as error:
        log.error("%s", error)
        raise SystemExit(3) from error


# --- the parent's half


class TrainerProcess(ChildProcess):
    """A trainer that is always there: started, watched, restarted with back-off.

    Parameters
    ----------
    settings
        Handed to the child; `training.hang_timeout` is how long it may be silent before it is killed.
    first_restart_s
        Wait before the first restart; doubles with each further one, up to a minute.
    on_status
        Called from the watching thread with every status of the child.
    on_restart
        Called from the watching thread whenever the child is started anew.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        first_restart_s: float = 1.0,
        on_status: Callable[[Status], None] = lambda status: None,
        on_restart: Callable[[], None] = lambda: None,
    ) -> None:
        from srr_stream.trainer import Status

        self.status = Status()
        """What the child said last."""
        self._on_status = on_status
        super().__init__(
            _child,
            settings,
            name="trainer",
            hang_timeout_s=settings.training.hang_timeout.total_seconds(),
            hang_setting="training.hang_timeout",
            first_restart_s=first_restart_s,
            on_message=self._receive,
            on_death=self._note_death,
            on_restart=on_restart,
        )

    def _receive(self, status: Status) -> None:
        self.status = status
        self._on_status(status)

    def _note_death(self, why: str, restart_s: float) -> None:
        self._receive(replace(self.status, phase="resting", detail=f"{why}; restart in {restart_s:g} s"))
