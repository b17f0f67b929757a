"""What a role says of itself at ``/statusz``, as JSON for programs: the API puts the answers of all together."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from consumers.records import Position, Verdicts
from srr_stream.history import BUCKET_S, History

if TYPE_CHECKING:
    from srr_stream.health import Health
    from srr_stream.live_model import LiveModel
    from srr_stream.trainer import Status

Statusz = Callable[[bool], Mapping[str, Any]]
"""Given whether the history is wanted, returns what there is to say."""


class ScorerBoard:
    """What a scorer has done so far; it writes, the endpoint's threads read."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.history = History()
        self.trouble: str | None = None
        """Why the connection is being made anew, one of a small closed set; None while there is one."""
        self._clock = clock
        self._n_scored = self._n_flagged = self._n_dead_lettered = 0
        self._last_scored_at: float | None = None
        self._n_assigned = 0
        self._lag: dict[Position, int] = {}
        self._lock = threading.Lock()

    def count(self, verdicts: Verdicts, n_bad: int) -> None:
        """Count a batch that was published."""
        now, n, n_flagged = self._clock(), len(verdicts), int(verdicts.flagged.sum())
        with self._lock:
            self._n_dead_lettered += n_bad
            if not n:
                return
            self._n_scored += n
            self._n_flagged += n_flagged
            self._last_scored_at = now
        self.history.add(
            now, n=n, n_flagged=n_flagged, max_severity=float(verdicts.severity.max()), version=verdicts.version
        )

    def note_positions(self, n_assigned: int, lag: Mapping[Position, int]) -> None:
        """Take note of how many partitions there are, and how many records of each are not read yet."""
        with self._lock:
            self._n_assigned, self._lag = n_assigned, dict(lag)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON."""
        with self._lock:
            return {
                "assigned": self._n_assigned,
                "lag": [{"topic": t, "partition": p, "records": n} for (t, p), n in sorted(self._lag.items())],
                "n_scored": self._n_scored,
                "n_flagged": self._n_flagged,
                "n_dead_lettered": self._n_dead_lettered,
                "last_scored_at": self._last_scored_at,
                "records_per_s": self.history.records_per_s(self._clock()),
                "trouble": self.trouble,
            }

    def history_to_dict(self) -> dict[str, Any]:
        """Return the history as JSON."""
        return {
            "bucket_s": BUCKET_S,
            "history": [asdict(bucket) for bucket in self.history.buckets()],
            "swaps": [{"at": at, "version": version} for at, version in self.history.swaps()],
        }


def scorer_statusz(
    board: ScorerBoard,
    health: Health,
    live_model: LiveModel,
    *,
    package: str,
    loaded_at: float | None,
    with_history: bool,
) -> dict[str, Any]:
    """Return what a scorer says of itself."""
    live = live_model.current
    said = {
        "role": "scorer",
        "version": package,
        "live": health.is_live,
        "ready": health.is_ready,
        "reason": health.reason,
        "model_version": live.version if live is not None else None,
        "loaded_at": loaded_at,
        **board.to_dict(),
    }
    return said | board.history_to_dict() if with_history else said


def trainer_statusz(status: Status, health: Health, *, package: str) -> dict[str, Any]:
    """Return what a trainer says of itself."""
    return {
        "role": "trainer",
        "version": package,
        "live": health.is_live,
        "ready": health.is_ready,
        "reason": health.reason,
        "phase": status.phase,
        "detail": status.detail,
        "n_records": status.n_records,
        "n_wanted": status.n_wanted,
        "step": status.step,
        "n_steps": status.n_steps,
        "excluded_ratio": status.excluded_ratio,
    }
