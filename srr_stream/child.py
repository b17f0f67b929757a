"""Processes beside the scorer: started, listened to, and started again when they die or fall silent.

Two halves, joined by a pipe. The parent's is :class:`ChildProcess`, a thread that waits longer before each restart. The
child's begins with :func:`begin_child`. Each half notices the other's death by the pipe: nobody is left behind.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from srr_stream.logs import get_logger

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

log = get_logger(__name__)

_MAX_RESTART_S = 60.0
_STEADY_S = 60.0
"""A child that lived so long was well: the next restart is quick again."""
_TICK_S = 0.2
_START_S = 60.0
"""A child that has not spoken yet may be silent for so long at least: importing takes long on a busy machine."""
_GRACE_S = 3.0
"""For a child that is asked to stop. One that has not spoken yet is still importing and has nothing to finish."""
_STOP = "stop"


# --- the child's half


def begin_child(pipe: Connection, *, on_message: Callable[[Any], None] = lambda message: None) -> threading.Event:
    """Return what is set when this process shall stop: by its parent's word, or by SIGTERM.

    Parameters
    ----------
    on_message
        Called with whatever else the parent sends, from a thread of its own.
    """
    stop = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to parent and child; the parent decides
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the same: what it asks for reaches a child by the pipe
    threading.Thread(target=_listen, args=(pipe, stop, on_message), daemon=True).start()
    return stop


def _listen(pipe: Connection, stop: threading.Event, on_message: Callable[[Any], None]) -> None:
    """Wait for the parent's words; an end of the pipe before the last one means that the parent is dead."""
    try:
        while (message := pipe.recv()) != _STOP:
            on_message(message)
        stop.set()
    except (EOFError, OSError):
        os._exit(1)


# --- the parent's half


class ChildProcess:
    """A process that is always there: started, watched, restarted with back-off.

    Parameters
    ----------
    target
        Run in the child with the settings, its end of the pipe and the log level. Spawned: it must be a function of a
        module, and what it is given must be picklable.
    settings
        Handed to it.
    name
        Of the child, in the log.
    hang_timeout_s
        A child that is silent for so long is killed, not within its first minute; None: it may be silent.
    hang_setting
        The setting that says so, for the log.
    goes_on
        What goes on without it, for the log.
    first_restart_s
        Wait before the first restart; doubles with each further one, up to a minute.
    on_message
        Called from the watching thread with whatever the child sends.
    on_death
        Called from it when the child is gone, with why in words and the seconds until its restart.
    on_restart
        Called from it whenever the child is started anew.
    """

    def __init__(
        self,
        target: Callable[[Any, Connection, int], None],
        settings: Any,
        *,
        name: str,
        hang_timeout_s: float | None = None,
        hang_setting: str = "",
        goes_on: str = "scoring goes on",
        first_restart_s: float = 1.0,
        on_message: Callable[[Any], None] = lambda message: None,
        on_death: Callable[[str, float], None] = lambda why, restart_s: None,
        on_restart: Callable[[], None] = lambda: None,
    ) -> None:
        self.n_restarts = 0
        self.pid: int | None = None
        """Process id of the child; None while there is none."""
        self._target = target
        self._settings = settings
        self._name = name
        self._hang_timeout_s = hang_timeout_s
        self._hang_setting = hang_setting
        self._goes_on = goes_on
        self._first_restart_s = first_restart_s
        self._on_message = on_message
        self._on_death = on_death
        self._on_restart = on_restart
        self._has_spoken = False
        self._pipe: Connection | None = None
        self._pipe_lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._supervise, name=f"{name}-supervisor", daemon=True)

    def start(self) -> None:
        """Start the child and watch it."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the child to stop, wait 3 s at most, then kill it; twice is fine."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def send(self, message: object) -> bool:
        """Say something to the child and return whether there was one; from any thread."""
        with self._pipe_lock:
            if self._pipe is None:
                return False
            try:
                self._pipe.send(message)
            except OSError:
                return False
            return True

    def hand_over(self, settings: Any) -> None:
        """Send these settings to the child, and give them to those that are started later; from any thread."""
        with self._pipe_lock:
            self._settings = settings
        self.send(settings)

    def _supervise(self) -> None:
        context = multiprocessing.get_context("spawn")
        restart_s = self._first_restart_s
        while not self._stop.is_set():
            started = time.monotonic()
            ours, theirs = context.Pipe()
            level = logging.getLogger().getEffectiveLevel()
            with self._pipe_lock:  # settings that are handed over go to this child either with it or behind it
                child = context.Process(target=self._target, args=(self._settings, theirs, level), daemon=True)
                child.start()
                self.pid, self._pipe = child.pid, ours
            theirs.close()
            try:
                why = self._watch(child, ours)
            finally:
                self.pid = None
                with self._pipe_lock:
                    self._pipe = None
                _end(child, ours, _GRACE_S if self._has_spoken else 0.0)
            if self._stop.is_set():
                return
            if time.monotonic() - started > _STEADY_S:
                restart_s = self._first_restart_s
            self._on_death(why, restart_s)
            log.warning("%s %s; restart in %g s; %s", self._name, why, restart_s, self._goes_on)
            self._stop.wait(restart_s)
            restart_s = min(2 * restart_s, _MAX_RESTART_S)
            self.n_restarts += 1
            self._on_restart()

    def _watch(self, child: BaseProcess, pipe: Connection) -> str:
        """Listen until the child dies, falls silent or shall stop; return which, in words."""
        last_heard = time.monotonic()
        self._has_spoken = False
        while not self._stop.is_set():
            if pipe in wait([pipe, child.sentinel], timeout=_TICK_S):
                try:
                    message = pipe.recv()
                except (EOFError, OSError):
                    child.join()
                    return _cause(child.exitcode)
                last_heard, self._has_spoken = time.monotonic(), True
                self._on_message(message)
            elif not child.is_alive():
                return _cause(child.exitcode)
            elif time.monotonic() - last_heard > self._patience_s:
                child.kill()
                return f"has been silent for {self._patience_s:g} s ({self._hang_setting}) and was killed"
        return "was stopped"

    @property
    def _patience_s(self) -> float:
        if self._hang_timeout_s is None:
            return math.inf
        return self._hang_timeout_s if self._has_spoken else max(self._hang_timeout_s, _START_S)


def _end(child: BaseProcess, pipe: Connection, grace_s: float) -> None:
    """Stop a child by asking, then by force; a dead one is only buried."""
    try:
        pipe.send(_STOP)
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
