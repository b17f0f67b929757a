"""``srr-stream explain``: why a record was judged as it was."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from srr_stream.cli.common import clear_errors, config_option, json_option, load, painted, plain
from srr_stream.cli.model_text import table

if TYPE_CHECKING:
    from srr_stream.explaining import Explanation, InWindow
    from srr_stream.labels import Label
    from srr_stream.settings import Settings

_BAR = 24
"""Characters of the longest bar."""
_MOST_SHOWN = 400
"""Characters of a record that are printed."""


@click.command()
@config_option
@click.argument("event_id")
@click.option("--version", type=click.IntRange(min=1), help="Version of the model. [default: the live one]")
@json_option
def explain(path: Path, event_id: str, version: int | None, as_json: bool) -> None:
    """Say why the record EVENT_ID was judged as it was, field by field.

    EVENT_ID is topic-partition-offset, as in verdicts and alerts. The record is read from the log again and scored
    again: by the version that stands in its verdict, it gets the same score.
    """
    with clear_errors():
        settings = load(path)
        found = _explain(settings, event_id, version)
    click.echo(json.dumps(_document(found), indent=1) if as_json else _text(found), color=True)


def _explain(settings: Settings, event_id: str, version: int | None) -> Explanation:
    from threadpoolctl import threadpool_limits

    from srr_stream import assembly
    from srr_stream.explaining import explain as explain_record
    from srr_stream.model_shelf import ModelShelf

    registry = assembly.make_registry(settings)
    live_model = assembly.make_live_model(settings, registry)
    # As the service does: how many threads share a sum may change its last bit.
    with threadpool_limits(1), closing(assembly.make_record_reader(settings)) as reader:
        live_model.refresh()
        return explain_record(
            event_id,
            reader=reader,
            decoder=assembly.make_decoder(settings),
            shelf=ModelShelf(live_model, registry),
            registry=registry,
            version=version,
            live_version=live_model.current.version if live_model.current is not None else None,
            labels=_labels(settings, event_id),
        )


def _labels(settings: Settings, event_id: str) -> Mapping[str, Label]:
    """Return the record's label by its id, if there is one and there are labels at all."""
    if settings.labels.topic is None:
        return {}
    from srr_stream.assembly import kafka_connection
    from srr_stream.labels import read_labels

    label = read_labels(kafka_connection(settings.kafka), settings.labels.topic).get(event_id)
    return {} if label is None else {event_id: label}


def _document(found: Explanation) -> dict[str, Any]:
    document = asdict(found)
    if found.label is not None:
        document["label"] = {
            name: getattr(found.label, name) for name in ("label", "note", "author", "at", "version", "severity")
        }
    return document


def _text(found: Explanation) -> str:
    from srr_stream.wording import number_text

    verdict = painted("flagged", sys.stdout, fg="red", bold=True) if found.flagged else "normal"
    live = ", the live one" if found.is_live else ""
    key = f", key {plain(found.key)}" if found.key is not None else ""
    parts = [
        f"{plain(found.id)}, {found.time}{key}",
        f"{verdict} by version {found.version} ({found.representation}){live}",
        f"severity {found.severity:.3f}; 1 is the boundary, at a false alarm rate of {found.false_alarm_rate:g}",
        f"p-value {found.p_value:.3g}: the share of normal records that score as high",
        f"score {number_text(found.score)}, of an average normal record {number_text(found.base_score)}",
        "",
        _contributions(found),
        "",
        _in_window(found.window, found.version),
    ]
    if found.label is not None:
        note = f": {plain(found.label.note)}" if found.label.note else ""
        parts.append(f"labelled {found.label.label} by {plain(found.label.author or 'nobody named')}{note}")
    parts += ["", *_nearest(found)]
    if found.record is not None:
        parts += ["", "the record", f"  {_cut(found.record)}"]
    return "\n".join(parts)


def _contributions(found: Explanation) -> str:
    from srr_stream.wording import number_text, value_text

    largest = max((abs(part.contribution) for part in found.contributions), default=0.0) or 1.0
    rows = [["field", "contribution", "", "observed", "expected"]]
    for part in found.contributions:
        length = round(_BAR * abs(part.contribution) / largest)
        bar = ("█" if part.contribution >= 0 else "░") * length
        sign = "+" if part.contribution >= 0 else ""
        rows.append(
            [
                plain(part.field),
                f"{sign}{number_text(part.contribution)}",
                bar,
                value_text(part.observed),
                value_text(part.expected),
            ]
        )
    return table(rows)


def _in_window(window: InWindow, version: int) -> str:
    if not window.was_in:
        return f"version {version} was not trained on it"
    if window.was_excluded is None:
        return f"it was in the window that version {version} was trained on; whether refinement kept it is not told"
    if not window.was_excluded:
        return f"it was in the window that version {version} was trained on, and refinement kept it"
    votes = f"{window.n_votes} of {window.n_members} members of the ensemble rejected it"
    return f"it was in the window that version {version} was trained on, and refined out: {votes}"


def _nearest(found: Explanation) -> list[str]:
    if not found.nearest:
        return [f"no normal records to compare with: {found.why_no_nearest}"]
    lines = ["the nearest normal records of its training"]
    for near in found.nearest:
        lines.append(f"  {plain(near.id)}, distance {near.distance:.3g}")
        lines.append(f"    {_cut(near.record) if near.record is not None else 'not in the log any more, or a picture'}")
    return lines


def _cut(text: str) -> str:
    shown = plain(text)
    return shown if len(shown) <= _MOST_SHOWN else f"{shown[: _MOST_SHOWN - 1]}…"
