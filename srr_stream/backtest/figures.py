"""What a backtest came to, in numbers: of every version, against labels, and at other false alarm rates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consumers.sinks.serialization import readable, timestamp
from models.evaluation import average_precision, precision_at, precision_recall_f1, roc_auc
from srr_stream.backtest import Note, Result, Trained
from srr_stream.backtest.labels import ANOMALY, UNKNOWN
from srr_stream.wording import all_in_words

RATES = (0.001, 0.005, 0.01, 0.02)
"""False alarm rates that people ask about, beside the one in use."""
_KS = (10, 100)
_N_TOLD = 3
"""Reasons in a sentence; all of them are beside it."""
_MS_A_DAY = 86_400_000


@dataclass(frozen=True)
class Quality:
    """Severities and flags against the labels of the scored records."""

    n_labelled: int
    n_anomalies: int
    auc: float | None
    """None, as `ap`, unless there are records of both kinds."""
    ap: float | None
    precision: float
    recall: float
    precision_at: dict[int, float]
    """k → share of anomalies among the k most severe; the number of flagged ones is among the k."""


@dataclass(frozen=True)
class VersionFigures:
    """A model that was live, and what it said."""

    version: int
    representation: str
    reason: str
    """Why it was trained."""
    since: int
    """The first record that it could score."""
    time: str
    window: int
    excluded_ratio: float
    scored: int
    flagged: int
    quality: Quality | None

    @property
    def flagged_ratio(self) -> float | None:
        """None if it scored nothing."""
        return self.flagged / self.scored if self.scored else None


@dataclass(frozen=True)
class AtRate:
    """How much the same models would flag with another α."""

    false_alarm_rate: float
    flagged: int
    flagged_ratio: float
    per_day: float | None
    """None where the records have no time."""
    precision: float | None
    """None, as `recall`, without labels."""
    recall: float | None


@dataclass(frozen=True)
class FlaggedRecord:
    """A record that would have been flagged."""

    id: str
    row: int
    key: str | None
    time: str
    severity: float
    p_value: float
    version: int
    why: str
    """In words, the greatest part first."""
    reasons: tuple[dict[str, Any], ...]
    label: str | None
    """anomaly, normal; None: nobody knows."""


@dataclass(frozen=True)
class FieldCount:
    """How often a field is what caused a flag."""

    field: str
    first: int
    """Flagged records of which it is the greatest part."""
    named: int
    """Flagged records of which it is named at all."""


@dataclass(frozen=True)
class Figures:
    """All of it."""

    name: str
    records: int
    scored: int
    dead_lettered: dict[str, int]
    """Reason → how many."""
    flagged: int
    waited: int
    false_alarm_rate: float
    supposed_rate: float | None
    """Records a second that were supposed, as they have no time."""
    stopped_after: int | None
    """Records, if somebody stopped it."""
    seconds: float
    seconds_training: float
    versions: tuple[VersionFigures, ...]
    trainings: tuple[Trained, ...]
    notes: tuple[Note, ...]
    at_rates: tuple[AtRate, ...]
    fields: tuple[FieldCount, ...]
    quality: Quality | None
    """None without labels."""

    @property
    def flagged_ratio(self) -> float | None:
        """None if nothing was scored."""
        return self.flagged / self.scored if self.scored else None

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form, in which the same backtest gives the same values but for the seconds."""
        versions = [{**asdict(each), "flagged_ratio": each.flagged_ratio} for each in self.versions]
        return {**asdict(self), "flagged_ratio": self.flagged_ratio, "versions": versions}


def figures_of(result: Result, labels: NDArray[np.int8] | None = None, *, rates: Sequence[float] = RATES) -> Figures:
    """Sum up a backtest.

    Parameters
    ----------
    labels
        ``(n,)``, of every record of the recording: 1 an anomaly, 0 normal, -1 nobody knows. None: there are none.
    rates
        False alarm rates to count flags at, beside the one in use.
    """
    findings, n_done = result.findings, result.n_done
    dead = Counter(reason for reason, _ in findings.bad.values())
    everything = findings.is_scored
    return Figures(
        name=result.recording.name,
        records=n_done,
        scored=int(everything.sum()),
        dead_lettered=dict(sorted(dead.items())),
        flagged=int(findings.flagged.sum()),
        waited=result.n_waited,
        false_alarm_rate=result.false_alarm_rate,
        supposed_rate=result.recording.supposed_rate,
        stopped_after=n_done if n_done < len(result.recording) else None,
        seconds=result.seconds,
        seconds_training=result.seconds_training,
        versions=tuple(_versions(result, labels)),
        trainings=result.trained,
        notes=result.notes,
        at_rates=tuple(_at_rate(result, labels, rate) for rate in sorted({*rates, result.false_alarm_rate})),
        fields=_fields(result),
        quality=_quality(result, labels, everything),
    )


def flagged_records(
    result: Result, labels: NDArray[np.int8] | None = None, *, most: int | None = None, by_severity: bool = False
) -> list[FlaggedRecord]:
    """Return what would have been flagged: the first `most` of the stream, or the most severe ones."""
    rows, findings = result.flagged_rows, result.findings
    if by_severity:
        rows.sort(key=lambda row: -float(findings.severity[row]))
    return [_flagged(result, row, labels) for row in rows[:most]]


def _flagged(result: Result, row: int, labels: NDArray[np.int8] | None) -> FlaggedRecord:
    findings, reasons = result.findings, result.findings.reasons.get(row, ())
    label = None if labels is None or labels[row] == UNKNOWN else ("normal", "anomaly")[int(labels[row])]
    return FlaggedRecord(
        id=result.id_of(row),
        row=row,
        key=readable(result.recording.records[row].key),
        time=timestamp(int(result.recording.time_ms[row])),
        severity=float(findings.severity[row]),
        p_value=float(findings.p_value[row]),
        version=int(findings.version[row]),
        why=all_in_words(reasons, most=_N_TOLD),
        reasons=tuple(asdict(part) for part in reasons),
        label=label,
    )


def _versions(result: Result, labels: NDArray[np.int8] | None) -> list[VersionFigures]:
    findings = result.findings
    made: dict[int, VersionFigures] = {}
    for took in result.took:  # one that came back after a rollback is told once, as of its first time
        mine = findings.version == took.version
        made.setdefault(
            took.version,
            VersionFigures(
                took.version,
                took.representation,
                took.reason,
                took.at,
                timestamp(took.time_ms),
                took.n_window,
                took.excluded_ratio,
                int(mine.sum()),
                int(findings.flagged[mine].sum()),
                _quality(result, labels, mine),
            ),
        )
    return list(made.values())


def _quality(result: Result, labels: NDArray[np.int8] | None, rows: NDArray[np.bool_]) -> Quality | None:
    if labels is None:
        return None
    rows = rows & (labels != UNKNOWN)
    is_anomaly, flagged = labels[rows] == ANOMALY, result.findings.flagged[rows]
    severity = result.findings.severity[rows]
    n, n_anomalies = len(is_anomaly), int(is_anomaly.sum())
    precision, recall, _ = precision_recall_f1(is_anomaly, flagged)
    has_both = 0 < n_anomalies < n
    ks = sorted({k for k in (*_KS, int(flagged.sum())) if 0 < k <= n})
    return Quality(
        n,
        n_anomalies,
        roc_auc(is_anomaly, severity) if has_both else None,
        average_precision(is_anomaly, severity) if has_both else None,
        precision,
        recall,
        {k: precision_at(is_anomaly, severity, k) for k in ks},
    )


def _at_rate(result: Result, labels: NDArray[np.int8] | None, rate: float) -> AtRate:
    findings = result.findings
    scored = findings.is_scored
    # What is in use is counted by the flags themselves: p ≤ α was decided on logarithms.
    is_in_use = rate == result.false_alarm_rate
    flagged = findings.flagged if is_in_use else scored & (np.nan_to_num(findings.p_value, nan=1.0) <= rate)
    precision = recall = None
    if labels is not None:
        known = scored & (labels != UNKNOWN)
        precision, recall, _ = precision_recall_f1(labels[known] == ANOMALY, flagged[known])
    n_flagged, n_scored = int(flagged.sum()), int(scored.sum())
    times = result.recording.time_ms[: result.n_done]
    days = (int(times.max()) - int(times.min())) / _MS_A_DAY if len(times) else 0.0
    has_time = result.recording.supposed_rate is None and days > 0
    return AtRate(
        rate,
        n_flagged,
        n_flagged / n_scored if n_scored else 0.0,
        n_flagged / days if has_time else None,
        precision,
        recall,
    )


def _fields(result: Result) -> tuple[FieldCount, ...]:
    reasons = [[part.field for part in parts] for parts in result.findings.reasons.values() if parts]
    first = Counter(names[0] for names in reasons)
    named = Counter(name for names in reasons for name in names)
    return tuple(
        FieldCount(name, first[name], named[name]) for name in sorted(named, key=lambda n: (-first[n], -named[n], n))
    )
