"""Scorers and trainers in processes of their own, quick to start and planted with a way to die.

They are forked from a server that has imported everything already: a second instead of five for each of hundreds.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consumers.delivery import Delivery
from consumers.records import BadRecord, Position, Verdicts
from srr_stream import assembly
from srr_stream.logs import set_up_logging
from srr_stream.settings import Settings

POINTS = ("before publish", "within publish", "between publish and commit", "within commit", "after commit")
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["chaos.preload"])


@dataclass(frozen=True)
class Death:
    """When a scorer kills itself with SIGKILL: in the nth batch, at a point, `delay_s` after it was reached."""

    point: str
    batch: int
    delay_s: float = 0.0

    @classmethod
    def draw(cls, rng: random.Random) -> Death:
        """Return a random death within the first batches."""
        point = rng.choice(POINTS)
        # Publishing a batch takes some ten milliseconds, committing some.
        delay_s = rng.uniform(0, 0.03) if point.startswith("within") else 0.0
        return cls(point, rng.randint(1, 12), delay_s)


class Process:
    """A running scorer (or trainer).

    Parameters
    ----------
    log_path
        Where its standard error goes.
    """

    def __init__(self, target: Callable[..., None], arguments: tuple[Any, ...], log_path: Path) -> None:
        self._stop, theirs = _context.Pipe()
        self._process = _context.Process(target=_child, args=(target, arguments, str(log_path), theirs), daemon=True)
        self._process.start()
        theirs.close()
        self.log_path = log_path
        self.pid: int = self._process.pid or 0

    @property
    def is_alive(self) -> bool:
        """Whether it runs, or is frozen."""
        return self._process.is_alive()

    @property
    def exitcode(self) -> int | None:
        """Its exit code, minus the signal if one killed it; None while it runs."""
        return self._process.exitcode

    def kill(self) -> None:
        """SIGKILL."""
        self._signal(signal.SIGKILL)
        self._process.join()

    def freeze(self) -> None:
        """SIGSTOP."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def terminate(self, timeout_s: float = 30.0) -> float:
        """SIGTERM; return how many seconds it took to end."""
        started = time.monotonic()
        self._signal(signal.SIGTERM)
        self._process.join(timeout_s)
        if self._process.is_alive():
            self.kill()
            raise AssertionError(f"did not end within {timeout_s:g} s of SIGTERM: {self.log_path}")
        return time.monotonic() - started

    def wait(self, timeout_s: float) -> bool:
        """Return whether it ended by itself within a time."""
        self._process.join(timeout_s)
        return not self._process.is_alive()

    def close(self) -> None:
        """End it, whatever it does; twice is fine."""
        if self._process.is_alive():
            self.thaw()
            self.kill()
        self._stop.close()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)


def _child(target: Callable[..., None], arguments: tuple[Any, ...], log_path: str, pipe: Any) -> None:
    with Path(log_path).open("ab", buffering=0) as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
        os.dup2(file.fileno(), sys.stdout.fileno())
    os.setsid()
    set_up_logging(20, role="srr-stream")
    stop = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    threading.Thread(target=_leave_with_parent, args=(pipe,), daemon=True).start()
    target(*arguments, stop.is_set)


def _leave_with_parent(pipe: Any) -> None:
    """Die when the other end is closed: nobody is left behind."""
    with suppress(EOFError, OSError):
        pipe.recv()
    os._exit(1)


def start_scorer(
    settings: Settings,
    log_path: Path,
    *,
    death: Death | None = None,
    trace: Path | None = None,
    clock_seed: int | None = None,
) -> Process:
    """Start a scorer without a trainer.

    It writes into the file `trace` when it did each batch, by which version; with `clock_seed` its clock jumps.
    """
    return Process(score, (settings, death, trace, clock_seed), log_path)


TRAINER_POINTS = (
    "reading",
    "training",
    "judging",
    "publishing",
    "within publish",
    "between publish and promote",
    "after promote",
)


def start_trainer(settings: Settings, log_path: Path, *, death: Death | None = None) -> Process:
    """Start a trainer without a scorer."""
    return Process(train, (settings, death), log_path)


def train(settings: Settings, death: Death | None, should_stop: Callable[[], bool]) -> None:
    """Be a trainer; die as planned."""
    from srr_stream.registry import Registry
    from srr_stream.trainer import Status
    from srr_stream.trainer_process import run_trainer

    def note(status: Status) -> None:
        if death is not None and death.point == status.phase:
            os.kill(os.getpid(), signal.SIGKILL)

    if death is not None:
        publish, promote = Registry.publish, Registry.promote

        def publish_and_die(*arguments: Any, **options: Any) -> Any:
            if death.point == "within publish":
                threading.Timer(death.delay_s, os.kill, (os.getpid(), signal.SIGKILL)).start()
            return publish(*arguments, **options)

        def promote_and_die(*arguments: Any, **options: Any) -> Any:
            if death.point == "between publish and promote":
                os.kill(os.getpid(), signal.SIGKILL)
            promote(*arguments, **options)
            os.kill(os.getpid(), signal.SIGKILL)

        Registry.publish, Registry.promote = publish_and_die, promote_and_die  # type: ignore[method-assign]
    run_trainer(settings, should_stop=should_stop, on_status=note)


def start_service(settings: Settings, log_path: Path) -> Process:
    """Start a scorer with a trainer beside it."""
    return Process(serve, (settings,), log_path)


def score(
    settings: Settings,
    death: Death | None,
    trace: Path | None,
    clock_seed: int | None,
    should_stop: Callable[[], bool],
) -> None:
    """Be a scorer; die as planned."""
    from srr_stream.service import Service

    if clock_seed is not None:
        time.time = _jumping_clock(random.Random(clock_seed))  # what everything in this process asks
    make = assembly.make_delivery
    if death is not None:
        assembly.make_delivery = lambda *parts: _Dying(make(*parts), death)  # type: ignore[assignment]
    if trace is not None:
        assembly.make_delivery = lambda *parts: _Traced(make(*parts), trace)  # type: ignore[assignment]
    Service(settings, has_trainer=False).run(should_stop)


def serve(settings: Settings, should_stop: Callable[[], bool]) -> None:
    """Be a scorer with a trainer beside it."""
    from srr_stream.service import Service

    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]  # may have a child
    Service(settings, has_api=settings.api.enabled).run(should_stop)


def _jumping_clock(rng: random.Random) -> Callable[[], float]:
    """Return a clock that is set anew about twice a second, by up to a day, forwards or back."""
    now, offset, until = time.time, 0.0, 0.0

    def read() -> float:
        nonlocal offset, until
        if time.monotonic() > until:
            offset, until = rng.uniform(-86_400, 86_400), time.monotonic() + rng.uniform(0.1, 1.0)
        return now() + offset

    return read


class _Dying:
    """A delivery that kills its process at a point of a batch."""

    def __init__(self, inner: Delivery, death: Death) -> None:
        self._inner = inner
        self._death = death
        self._n = 0

    def publish(self, verdicts: Verdicts, bad: list[BadRecord], while_waiting: Callable[[], None]) -> None:
        self._n += 1
        self._reach("before publish")
        self._reach("within publish")
        self._inner.publish(verdicts, bad, while_waiting)
        self._reach("between publish and commit")

    def commit(self, positions: Mapping[Position, int], while_waiting: Callable[[], None]) -> None:
        self._reach("within commit")
        self._inner.commit(positions, while_waiting)
        self._reach("after commit")

    def _reach(self, point: str) -> None:
        if self._n != self._death.batch or point != self._death.point:
            return
        if not self._death.delay_s:
            os.kill(os.getpid(), signal.SIGKILL)
        timer = threading.Timer(self._death.delay_s, os.kill, (os.getpid(), signal.SIGKILL))
        timer.daemon = True
        timer.start()


class _Traced:
    """A delivery that writes down, a line a batch: records, version, seconds at which its commit returned."""

    def __init__(self, inner: Delivery, path: Path) -> None:
        self._inner = inner
        self._file = path.open("a", buffering=1)  # a line at a time
        self._batch = (0, 0)

    def publish(self, verdicts: Verdicts, bad: list[BadRecord], while_waiting: Callable[[], None]) -> None:
        self._batch = (len(verdicts.batch) + len(bad), verdicts.version)
        self._inner.publish(verdicts, bad, while_waiting)

    def commit(self, positions: Mapping[Position, int], while_waiting: Callable[[], None]) -> None:
        self._inner.commit(positions, while_waiting)
        self._file.write(f"{self._batch[0]} {self._batch[1]} {time.perf_counter():.6f}\n")


def read_trace(trace: Path) -> NDArray[np.float64]:
    """Return the batches of a trace, ``(n, 3)``: records, version, seconds; without a line that is being written."""
    text = trace.read_text() if trace.exists() else ""
    rows = [list(map(float, line.split())) for line in text[: text.rfind("\n") + 1].splitlines()]
    return np.array(rows).reshape(-1, 3)
