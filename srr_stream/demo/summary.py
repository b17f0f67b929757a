"""What a run over a finite stream came to: records accounted for, verdicts against labels, a text, a picture."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from models.evaluation import average_precision, precision_recall_f1, roc_auc
from srr_stream.demo.live import percent
from srr_stream.plots import Swap, draw_severities, draw_share

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH = 118


class Verdict(NamedTuple):
    """What was published about a record; `time_s` in seconds since the epoch."""

    id: str
    severity: float
    flagged: bool
    version: int
    time_s: float


@dataclass(frozen=True, slots=True)
class Version:
    """A model that was live, since `at_s` seconds after the start."""

    number: int
    representation: str
    reason: str
    at_s: float
    excluded_ratio: float
    """Share of its window that refinement dropped."""
    n_records: int
    """Size of its window."""


@dataclass(frozen=True, slots=True)
class VersionFigures:
    """A model that was live, and what it said."""

    version: Version
    scored: int
    flagged: int
    auc: float | None = None
    """Of what it scored; None without labels, and unless there are records of both kinds among it."""

    @property
    def flagged_ratio(self) -> float | None:
        """None if it scored nothing."""
        return self.flagged / self.scored if self.scored else None

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form."""
        version = self.version
        return {
            "version": version.number,
            "representation": version.representation,
            "reason": version.reason,
            "at_s": round(version.at_s, 3),
            "excluded_ratio": version.excluded_ratio,
            "window": version.n_records,
            "scored": self.scored,
            "flagged_ratio": self.flagged_ratio,
            "auc": self.auc,
        }


@dataclass(frozen=True, slots=True)
class Quality:
    """Severities and flags against the labels of the scored records."""

    n_anomalies: int
    auc: float | None
    """None, as `ap`, unless there are records of both kinds."""
    ap: float | None
    precision: float
    recall: float


@dataclass(frozen=True, slots=True)
class Summary:
    """Counts are of different records."""

    produced: int
    scored: int
    dead_lettered: int
    malformed: int
    """Records that were malformed on purpose."""
    missing: int
    """Records with neither a verdict nor a dead letter."""
    doubled: int
    """Records with more than one of them."""
    versions: tuple[VersionFigures, ...]
    flagged: int
    quality: Quality | None
    """None without labels."""
    seconds: float

    @property
    def flagged_ratio(self) -> float | None:
        """Share of the scored records that are flagged; None if none is scored."""
        return self.flagged / self.scored if self.scored else None

    def to_dict(self) -> dict[str, Any]:
        """Return what ``srr-stream demo --json`` prints."""
        return {
            "produced": self.produced,
            "scored": self.scored,
            "dead_lettered": self.dead_lettered,
            "missing": self.missing,
            "doubled": self.doubled,
            "versions": [each.to_dict() for each in self.versions],
            "flagged_ratio": self.flagged_ratio,
            "auc": self.quality.auc if self.quality else None,
            "ap": self.quality.ap if self.quality else None,
            "seconds": round(self.seconds, 3),
        }


def summarise(
    index_by_id: Mapping[str, int],
    malformed: Collection[int],
    verdicts: Sequence[Verdict],
    dead_ids: Sequence[str],
    is_anomaly: NDArray[np.bool_] | None,
    versions: Sequence[Version],
    seconds: float,
) -> Summary:
    """Account for every produced record, and measure the verdicts against the labels.

    Parameters
    ----------
    index_by_id
        Event id → index, of every record that was produced. What is said of other records is left out.
    malformed
        Indices of records malformed on purpose.
    verdicts, dead_ids
        All that was published, doubles too: of a record's verdicts the first one counts.
    is_anomaly
        Label of every record by its index; None where there are none.
    """
    known = [verdict for verdict in verdicts if verdict.id in index_by_id]
    known_dead = [id_ for id_ in dead_ids if id_ in index_by_id]
    n_answers = Counter([verdict.id for verdict in known]) + Counter(known_dead)
    first = list({verdict.id: verdict for verdict in reversed(known)}.values())
    labels = is_anomaly[[index_by_id[v.id] for v in first]] if is_anomaly is not None else None
    return Summary(
        produced=len(index_by_id),
        scored=len(first),
        dead_lettered=len(set(known_dead)),
        malformed=len(malformed),
        missing=len(index_by_id) - len(n_answers),
        doubled=sum(n > 1 for n in n_answers.values()),
        versions=tuple(_figures(version, first, labels) for version in versions),
        flagged=sum(verdict.flagged for verdict in first),
        quality=_quality(first, labels) if labels is not None else None,
        seconds=seconds,
    )


def _figures(version: Version, verdicts: Sequence[Verdict], is_anomaly: NDArray[np.bool_] | None) -> VersionFigures:
    rows = [row for row, verdict in enumerate(verdicts) if verdict.version == version.number]
    mine = [verdicts[row] for row in rows]
    auc = _quality(mine, is_anomaly[rows]).auc if is_anomaly is not None and mine else None
    return VersionFigures(version, len(mine), sum(verdict.flagged for verdict in mine), auc)


def _quality(verdicts: Sequence[Verdict], is_anomaly: NDArray[np.bool_]) -> Quality:
    flagged = np.array([verdict.flagged for verdict in verdicts], dtype=np.bool_)
    severity = np.array([verdict.severity for verdict in verdicts], dtype=np.float64)
    precision, recall, _ = precision_recall_f1(is_anomaly, flagged)
    n_anomalies = int(is_anomaly.sum())
    if not 0 < n_anomalies < len(verdicts):
        return Quality(n_anomalies, None, None, precision, recall)
    return Quality(
        n_anomalies, roc_auc(is_anomaly, severity), average_precision(is_anomaly, severity), precision, recall
    )


def to_text(summary: Summary, picture: Path) -> str:
    """Return the summary for people."""
    malformed = f" ({summary.malformed:,} malformed on purpose)" if summary.malformed else ""
    lines = [
        f"{summary.produced:,} records in {summary.seconds:.0f} s: {summary.scored:,} scored, "
        f"{summary.dead_lettered:,} dead-lettered{malformed}, {summary.missing:,} missing, {summary.doubled:,} doubled",
        f"flagged: {summary.flagged:,} of {summary.scored:,} ({percent(summary.flagged_ratio)})",
        "no labels to measure against" if summary.quality is None else _quality_line(summary.quality),
    ]
    if summary.versions:
        text = io.StringIO()
        Console(file=text, width=_WIDTH, highlight=False).print(_versions_table(summary.versions))
        lines.append(text.getvalue().rstrip("\n"))
    return "\n".join([*lines, f"picture: {picture}"])


def _quality_line(quality: Quality) -> str:
    ranking = "" if quality.auc is None else f"AUC {quality.auc:.3f}, average precision {quality.ap:.3f}; "
    return (
        f"against the labels, which no model saw: {quality.n_anomalies:,} anomalies; {ranking}"
        f"flags: precision {percent(quality.precision)}, recall {percent(quality.recall)}"
    )


def _versions_table(versions: Sequence[VersionFigures]) -> Table:
    table = Table("version", "live after", "representation", "trained because")
    has_auc = any(each.auc is not None for each in versions)
    for header in ("window", "excluded", "scored", "flagged", *(["AUC"] if has_auc else [])):
        table.add_column(header, justify="right")
    for each in versions:
        version = each.version
        table.add_row(
            str(version.number),
            f"{version.at_s:.1f} s",
            version.representation,
            Text(version.reason),
            f"{version.n_records:,}",
            percent(version.excluded_ratio),
            f"{each.scored:,}",
            percent(each.flagged_ratio),
            *(["-" if each.auc is None else f"{each.auc:.3f}"] if has_auc else []),
        )
    return table


def plot(path: Path, verdicts: Sequence[Verdict], versions: Sequence[Version], *, title: str) -> None:
    """Draw the flagged rate over time, swaps marked, and how the severities are distributed; write it as a PNG.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    rate, severities = figure.subplots(2, 1, height_ratios=(3, 2))
    figure.suptitle(title)
    if verdicts:
        draw_rate(rate, verdicts, versions)
        draw_severities(severities, np.array([verdict.severity for verdict in verdicts]))
    else:
        rate.text(0.5, 0.5, "no verdicts", ha="center", va="center", transform=rate.transAxes)
    figure.savefig(path, format="png", dpi=120)


def draw_rate(axes: Axes, verdicts: Sequence[Verdict], versions: Sequence[Version]) -> None:
    """Draw flagged records per scored ones in slices of time; a model's line stands at its first verdict."""
    times = np.array([verdict.time_s for verdict in verdicts])
    times -= times.min()
    number = np.array([verdict.version for verdict in verdicts])
    swaps = [
        Swap(float(times[mine].min()), f"v{version.number} {version.representation}")
        for version in versions
        if (mine := number == version.number).any()
    ]
    flagged = np.array([verdict.flagged for verdict in verdicts], dtype=np.bool_)
    draw_share(axes, times, flagged, swaps, label="seconds since the first verdict")
