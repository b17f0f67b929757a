"""What can go wrong in the application, grouped by who must act.

    SrrStreamError
    ├── SettingsError      operator: the settings file or the environment is wrong (exit 2)
    ├── RegistryError      operator: the model registry cannot be read or written (exit 3)
    │   └── ModelRefused   programmer or attacker: a model that must not be used; the old one stays
    ├── NotEnoughRecords   operator or sender: too few usable records to learn from (exit 3)
    ├── NoHeatMap          whoever asked: there is none of this record, or not now (exit 3)
    ├── NoDeadLetter       whoever asked: there is none of this id, or it cannot be sent again (exit 3)
    ├── NoLabelTopic       operator: there is no topic for labels (exit 3)
    ├── NoRecord           whoever asked: the log does not hold this record, or no longer (exit 3)
    └── NoModel            whoever asked: there is no such version, it is refused, or there is none yet (exit 3)

Errors of the log (`BrokerUnavailable`, `TopicMissing`, …) are in :mod:`consumers.errors` and exit with 3 as well.
"""

from __future__ import annotations


class SrrStreamError(Exception):
    """Anything this application raises on purpose."""


class SettingsError(SrrStreamError):
    """The settings are not usable; ``problems`` has every one of them, a line each."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class RegistryError(SrrStreamError):
    """The model registry cannot be read or written."""


class ModelRefused(RegistryError):
    """A published model failed a check; ``reason`` is a metric label: hash, format, schema or canary."""

    def __init__(self, message: str, *, reason: str) -> None:
        self.reason = reason
        super().__init__(message)


class NotEnoughRecords(SrrStreamError):
    """The window has fewer usable records than a training needs."""


class NoHeatMap(SrrStreamError):
    """A record's heat map cannot be had; ``reason`` is why: not_found, no_picture or not_ready."""

    def __init__(self, message: str, *, reason: str) -> None:
        self.reason = reason
        super().__init__(message)


class NoDeadLetter(SrrStreamError):
    """There is no dead letter of an id, or it cannot be sent again."""


class NoLabelTopic(SrrStreamError):
    """There is no topic for labels, or these credentials may not see it."""


class NoRecord(SrrStreamError):
    """The log does not hold a record, or no longer."""


class NoModel(SrrStreamError):
    """A version cannot be had; ``reason`` is why: not_found, refused or not_ready."""

    def __init__(self, message: str, *, reason: str) -> None:
        self.reason = reason
        super().__init__(message)
