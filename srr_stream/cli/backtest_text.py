"""What ``srr-stream backtest`` says to people."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from srr_stream.backtest.figures import Figures, FlaggedRecord, Quality
from srr_stream.cli.common import painted, plain
from srr_stream.cli.model_text import table
from srr_stream.wording import number_text, percent

_N_FIELDS = 8


def backtest_text(figures: Figures, first: Sequence[FlaggedRecord], remarks: Sequence[str]) -> str:
    """Return what a backtest came to, with the first flagged records."""
    parts = [_head(figures)]
    if figures.quality is not None:
        parts += ["", *_quality_lines(figures.quality)]
    parts += ["", _versions(figures)]
    rejected = [each for each in figures.trainings if each.decision == "rejected"]
    parts += [
        f"rejected by the gate at record {each.at:,}: version {each.version}: {plain(each.gate)}" for each in rejected
    ]
    parts += ["", _bold("with another false alarm rate the same models would have flagged"), _rates_table(figures)]
    if figures.fields:
        parts += ["", _bold("what was unusual"), _fields_table(figures)]
    if first:
        which = "every flagged record" if len(first) == figures.flagged else f"the first {len(first)} flagged records"
        parts += ["", _bold(which)]
        parts += [line for each in first for line in _flagged_lines(each)]
    if remarks:
        parts += ["", *(f"note: {plain(remark)}" for remark in remarks)]
    return "\n".join(parts)


def _head(figures: Figures) -> str:
    dead = ", ".join(f"{n:,} {reason}" for reason, n in figures.dead_lettered.items())
    training = f", {figures.seconds_training:.0f} s of it training" if figures.seconds_training >= 0.5 else ""
    waited = f"; the first {figures.waited:,} waited for the first model" if figures.waited else ""
    lines = [
        f"{plain(figures.name)}: {figures.records:,} records in {figures.seconds:.1f} s{training}",
        f"scored {figures.scored:,}, dead letters {sum(figures.dead_lettered.values()):,}"
        + (f" ({dead})" if dead else "")
        + waited,
        f"flagged {figures.flagged:,} ({percent(figures.flagged_ratio)}) at threshold.false_alarm_rate "
        f"{figures.false_alarm_rate:g}",
    ]
    return "\n".join([_bold(lines[0]), *lines[1:]])


def _quality_lines(quality: Quality) -> list[str]:
    ranking = "" if quality.auc is None else f": AUC {quality.auc:.3f}, average precision {quality.ap:.3f}"
    at = ", ".join(f"{k:,} {percent(share)}" for k, share in quality.precision_at.items())
    return [
        f"against {quality.n_labelled:,} labels, which no model saw: {quality.n_anomalies:,} anomalies{ranking}",
        f"  flags: precision {percent(quality.precision)}, recall {percent(quality.recall)}"
        + (f"; precision of the most severe {at}" if at else ""),
    ]


def _versions(figures: Figures) -> str:
    has_labels = figures.quality is not None
    header = ["version", "from record", "representation", "window", "excluded", "scored", "flagged", "share"]
    rows = [header + (["AUC", "AP"] if has_labels else []) + ["trained because"]]
    for each in figures.versions:
        quality = each.quality
        measured = [
            "-" if quality is None or v is None else f"{v:.3f}"
            for v in (quality and quality.auc, quality and quality.ap)
        ]
        rows.append(
            [
                str(each.version),
                f"{each.since:,}",
                each.representation,
                f"{each.window:,}",
                percent(each.excluded_ratio),
                f"{each.scored:,}",
                f"{each.flagged:,}",
                percent(each.flagged_ratio),
                *(measured if has_labels else []),
                plain(each.reason),
            ]
        )
    return table(rows)


def _rates_table(figures: Figures) -> str:
    has_time, has_labels = any(each.per_day is not None for each in figures.at_rates), figures.quality is not None
    rows = [
        [
            "",
            "rate",
            "flagged",
            "share",
            *(["a day"] if has_time else []),
            *(["precision", "recall"] if has_labels else []),
        ]
    ]
    rows += [
        [
            "in use" if each.false_alarm_rate == figures.false_alarm_rate else "",
            f"{each.false_alarm_rate:g}",
            f"{each.flagged:,}",
            percent(each.flagged_ratio),
            *([number_text(each.per_day) if each.per_day is not None else "-"] if has_time else []),
            *([percent(each.precision), percent(each.recall)] if has_labels else []),
        ]
        for each in figures.at_rates
    ]
    return table(rows)


def _fields_table(figures: Figures) -> str:
    rows = [["field", "first reason", "named"]]
    rows += [[plain(each.field), f"{each.first:,}", f"{each.named:,}"] for each in figures.fields[:_N_FIELDS]]
    return table(rows)


def _flagged_lines(each: FlaggedRecord) -> list[str]:
    key = f", key {plain(each.key)}" if each.key is not None else ""
    label = f", labelled {each.label}" if each.label is not None else ""
    head = f"{painted(plain(each.id), sys.stdout, fg='red')}  {each.time}  severity {each.severity:.2f}"
    return [f"{head}, version {each.version}{key}{label}", f"  {plain(each.why)}"]


def _bold(text: str) -> str:
    return painted(text, sys.stdout, bold=True)
