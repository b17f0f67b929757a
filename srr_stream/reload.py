"""The settings read again while the service runs: what changed is applied as a whole, or refused as a whole.

Thresholds, triggers, the gate, outputs and the log can change without a restart (:data:`RELOADABLE`); whoever uses them
applies them between two batches. A file that is wrong, or that changes anything else, leaves all as it was.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from consumers.errors import ConsumersError
from srr_stream.errors import SettingsError
from srr_stream.logs import get_logger

if TYPE_CHECKING:
    from prometheus_client import Gauge

    from srr_stream.settings import Settings

log = get_logger(__name__)

RELOADABLE = (
    "threshold.false_alarm_rate",
    "training.every",
    "training.every_records",
    "training.on_drift",
    "training.min_interval",
    "gate.mode",
    "gate.max_excluded_ratio",
    "gate.max_flagged_ratio",
    "gate.max_flagged_factor",
    "gate.min_synthetic_auc_margin",
    "gate.max_forgotten_ratio",
    "gate.reference_version",
    "gate.auto_rollback",
    "gate.probation",
    "output.alerts_topic",
    "output.scores_topic",
    "output.dead_letter_topic",
    "output.include_record",
    "output.n_reasons",
    "output.flush_timeout",
    "output.max_message_size",
    "log.format",
    "log.repeat_limit",
    "log.repeat_window",
)
"""The keys that a running service takes over; every other one needs a restart."""

_LOOK_EVERY_S = 1.0

Apply = Callable[["Settings", frozenset[str]], None]
"""Takes checked settings, and the keys that differ from those in use; raises `ConsumersError` or `OSError`, before
anything is changed, if an output cannot be written to."""


class Reloads:
    """Knows when the settings file is to be read again: somebody asked, or, if it is watched, its content changed.

    Parameters
    ----------
    path
        The settings file.
    is_watched
        Look at the file every second. A change counts once the file has stayed the same for a further look, so that one
        that is half written is not read; a file that was touched and says the same is no change.
    clock
        Seconds that only grow.
    """

    def __init__(self, path: Path, *, is_watched: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self._is_watched = is_watched
        self._clock = clock
        self._n_asked = self._n_answered = 0
        self._looked_at = clock()
        self._seen = self._stat() if is_watched else None
        self._read = self._digest() if is_watched else None
        self._is_settling = False

    def ask(self, *_: object) -> None:
        """Ask for it; a handler of a signal may."""
        self._n_asked += 1

    def is_due(self) -> bool:
        """Return whether to read the file now, once for all who asked."""
        has_changed = self._is_watched and self._has_changed()
        if self._n_asked == self._n_answered and not has_changed:
            return False
        self._n_answered = self._n_asked
        return True

    def _has_changed(self) -> bool:
        now = self._clock()
        if now - self._looked_at < _LOOK_EVERY_S:
            return False
        self._looked_at = now
        seen = self._stat()
        if seen != self._seen:
            self._seen, self._is_settling = seen, True
            return False
        if not self._is_settling:
            return False
        self._is_settling = False
        before, self._read = self._read, self._digest()
        return self._read != before

    def _stat(self) -> tuple[int, ...] | None:
        try:
            found = self.path.stat()  # of what a link leads to: a ConfigMap of Kubernetes is one that is replaced
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

    def _digest(self) -> bytes | None:
        try:
            return hashlib.sha256(self.path.read_bytes()).digest()
        except OSError:
            return None


class Reloader:
    """Read, check, compare, apply; tell in the log and in two gauges how it ended.

    Parameters
    ----------
    reloads
        Says when.
    settings
        Those in use at the start.
    apply
        Puts new ones to use.
    is_good, read_at
        ``srr_config_last_reload_successful`` and ``srr_config_last_reload_success_timestamp_seconds``.
    """

    def __init__(
        self,
        reloads: Reloads,
        settings: Settings,
        *,
        apply: Apply,
        is_good: Gauge,
        read_at: Gauge,
    ) -> None:
        self._reloads = reloads
        self._settings = settings
        self._apply = apply
        self._is_good = is_good
        self._read_at = read_at

    def look(self) -> None:
        """Reload if it is time to; whatever is wrong with the file, the settings in use stay."""
        if not self._reloads.is_due():
            return
        path = self._reloads.path
        try:
            settings = read_again(path, self._settings)
            changed = frozenset(differing_keys(self._settings, settings))
            self._apply(settings, changed)
        except (SettingsError, ConsumersError, OSError) as error:
            problems = error.problems if isinstance(error, SettingsError) else [str(error)]
            self._is_good.set(0)
            log.error(
                "settings not reloaded, those in use stay: %s", "; ".join(problems), path=str(path), problems=problems
            )
            return
        self._settings = settings
        self._is_good.set(1)
        self._read_at.set_to_current_time()
        told = f"changed: {', '.join(sorted(changed))}" if changed else "nothing changed"
        log.info("settings reloaded; %s", told, path=str(path), changed=sorted(changed))


def read_again(path: Path, in_use: Settings) -> Settings:
    """Return the settings of a file, if a service with those in use can take them over.

    Raises
    ------
    SettingsError
        With everything that is wrong with them, or with every key that differs and needs a restart.
    """
    from srr_stream.loading import load_settings

    settings = load_settings(path)
    fixed = [key for key in differing_keys(in_use, settings) if key not in RELOADABLE]
    if fixed:
        raise SettingsError(
            [f"{key}: differs from what is in use, and needs a restart; put it back, or restart" for key in fixed]
        )
    return settings


def differing_keys(one: Settings, other: Settings) -> list[str]:
    """Return the keys, ``section.key``, whose values differ; never the values, which may be secrets."""
    return [
        f"{section}.{key}"
        for section in type(one).model_fields
        for key in type(getattr(one, section)).model_fields
        if _value(one, section, key) != _value(other, section, key)
    ]


def _value(settings: Settings, section: str, key: str) -> Any:
    value: BaseModel = getattr(settings, section)
    return getattr(value, key)
