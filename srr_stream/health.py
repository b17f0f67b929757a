"""Is a role alive, and is it ready: told by its loop, asked by probes."""

from __future__ import annotations

import time
from collections.abc import Callable

from srr_stream.logs import get_logger

log = get_logger(__name__)


class Health:
    """Liveness is the loop's heartbeat and nothing else; readiness has a reason that people can read.

    Parameters
    ----------
    live_timeout_s
        Not alive when the loop has been silent for so long.

    Examples
    --------
    >>> health = Health(live_timeout_s=60)
    >>> health.is_ready, health.reason
    (False, 'starting')
    """

    def __init__(self, *, live_timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.reason = "starting"
        self.is_ready = False
        self._live_timeout_s = live_timeout_s
        self._clock = clock
        self._last_beat = clock()

    def beat(self) -> None:
        """Note that the loop is going round."""
        self._last_beat = self._clock()

    def ready(self, reason: str) -> None:
        """Be ready, saying what for."""
        if not self.is_ready:
            log.info("ready: %s", reason)
        self.is_ready, self.reason = True, reason

    def not_ready(self, reason: str) -> None:
        """Be not ready, saying what is waited for."""
        if self.is_ready:
            log.info("not ready: %s", reason)
        self.is_ready, self.reason = False, reason

    @property
    def silent_for_s(self) -> float:
        """Seconds since the last beat."""
        return self._clock() - self._last_beat

    @property
    def is_live(self) -> bool:
        """Whether the loop went round lately."""
        return self.silent_for_s < self._live_timeout_s
