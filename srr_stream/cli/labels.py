"""``srr-stream labels``: say of records what they are, and see what was said."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from srr_stream.cli.common import (
    EXIT_OUTSIDE,
    EXIT_SETTINGS,
    Progress,
    clear_errors,
    config_option,
    json_option,
    load,
    plain,
)
from srr_stream.cli.model_text import table

if TYPE_CHECKING:
    from srr_stream.labels import Label, LabelBook, LabelTopic
    from srr_stream.labels.labelling import Asked
    from srr_stream.settings import Settings

_NAMES = ("anomaly", "normal", "unsure")
author_option = click.option("--author", envvar="USER", default="", help="Who says so. [default: $USER]")


@click.group()
def labels() -> None:
    """Say of records what they are: anomaly, normal or unsure; and see what was said."""


@labels.command("list")
@config_option
@click.option("--label", type=click.Choice(_NAMES), help="Only these.")
@json_option
def list_labels(path: Path, label: str | None, as_json: bool) -> None:
    """List the labels that count, the newest last."""
    from srr_stream.labels.labelling import to_plain

    with clear_errors():
        book = _read(load(path))
    found = [one for one in book.all() if label in (None, one.label)]
    if as_json:
        click.echo(json.dumps([to_plain(one) for one in found]))
    elif found:
        click.echo(_table(found))
    else:
        click.echo("there are no labels", err=True)
    if book.n_rejected:
        click.echo(f"{book.n_rejected:,} records of the topic are no labels and are left out", err=True)


@labels.command("set")
@config_option
@click.argument("event_id", metavar="ID")
@click.argument("label", type=click.Choice(_NAMES))
@click.option("--note", default="", help="Why, in words.")
@author_option
@json_option
def set_label(path: Path, event_id: str, label: str, note: str, author: str, as_json: bool) -> None:
    """Say of the record ID what it is; what was said before counts no more.

    ID is topic-partition-offset, as in verdicts and alerts. The record is read from the log.
    """
    from srr_stream.labels.labelling import Asked

    with clear_errors(), _wrong_labels_told():
        made = _write(load(path), [Asked(event_id, label, note)], author)
    _say(made, as_json=as_json)


@labels.command()
@config_option
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@json_option
def remove(path: Path, ids: tuple[str, ...], as_json: bool) -> None:
    """Take labels back, as if nothing had been said."""
    with clear_errors():
        settings = load(path)
        book = _read(settings)
        missing = [event_id for event_id in ids if book.get(event_id) is None]
        if missing:
            click.echo(f"error: there is no label of {plain(', '.join(missing))}; nothing was removed", err=True)
            sys.exit(EXIT_OUTSIDE)
        with closing(_topic(settings)) as topic:
            topic.remove(ids)
    click.echo(json.dumps({"n_removed": len(ids)}) if as_json else f"removed {len(ids):,}")


@labels.command("import")
@config_option
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@author_option
@json_option
def import_labels(path: Path, file: Path, author: str, as_json: bool) -> None:
    """Take labels from FILE: CSV with the columns id, label and note, or NDJSON with these keys.

    If one line is wrong nothing is written, and every line that is wrong is told.
    """
    from srr_stream.labels.labelling import read_file

    with clear_errors(), _wrong_labels_told():
        made = _write(load(path), read_file(file), author)
    _say(made, as_json=as_json)


@labels.command()
@config_option
@json_option
def summary(path: Path, as_json: bool) -> None:
    """Tell what the labels say of the detector: precision, and an α that would suit them better, if there is one."""
    from dataclasses import asdict

    with clear_errors():
        settings = load(path)
        rate = settings.threshold.false_alarm_rate
        told = _read(settings).summary(rate)
    if as_json:
        click.echo(json.dumps({**asdict(told), "false_alarm_rate": rate}))
        return
    precision = f"{told.precision:.1%} of what was flagged and labelled" if told.precision is not None else "not known"
    suggested = f"{told.suggested_rate:g}, by hand" if told.suggested_rate is not None else "none"
    click.echo(
        f"anomaly    {told.n_anomaly:,}\nnormal     {told.n_normal:,}\nunsure     {told.n_unsure:,}\n"
        f"precision  {precision}\n"
        f"threshold.false_alarm_rate is {rate:g}; suggested: {suggested}\n  {told.why}"
    )


def _write(settings: Settings, asked: Sequence[Asked], author: str) -> list[Label]:
    from threadpoolctl import threadpool_limits

    from consumers.sinks.serialization import timestamp
    from srr_stream import assembly
    from srr_stream.labels.labelling import make_labels

    with closing(_topic(settings)) as topic, closing(assembly.make_record_reader(settings)) as reader:
        live_model = assembly.make_live_model(settings, assembly.make_registry(settings))
        with threadpool_limits(1), Progress("read", len(asked)) as progress:
            live_model.refresh()
            made = make_labels(
                asked,
                author=author,
                at=timestamp(time.time_ns() // 1_000_000),
                topics=settings.input.topics,
                reader=reader,
                decoder=assembly.make_decoder(settings),
                live=live_model.current,
                on_read=progress.update,
            )
        topic.write(made)
    return made


def _topic(settings: Settings) -> LabelTopic:
    from srr_stream.assembly import kafka_connection
    from srr_stream.labels import LabelTopic

    timeout_s = settings.output.flush_timeout.total_seconds()
    return LabelTopic(kafka_connection(settings.kafka), _name(settings), timeout_s=timeout_s)


def _read(settings: Settings) -> LabelBook:
    from srr_stream.assembly import kafka_connection
    from srr_stream.labels import read_labels

    return read_labels(kafka_connection(settings.kafka), _name(settings))


def _name(settings: Settings) -> str:
    from srr_stream.errors import NoLabelTopic
    from srr_stream.labels import creation_of

    if settings.labels.topic is None:
        raise NoLabelTopic(f"labels.topic is not set; make a topic, {creation_of('NAME')}, and name it there")
    return settings.labels.topic


@contextmanager
def _wrong_labels_told() -> Iterator[None]:
    from srr_stream.labels.labelling import WrongLabels

    try:
        yield
    except WrongLabels as error:
        for problem in error.problems:
            click.echo(f"error: {plain(problem)}", err=True)
        click.echo("nothing was written", err=True)
        sys.exit(EXIT_SETTINGS)


def _say(made: Sequence[Label], *, as_json: bool) -> None:
    from srr_stream.labels.labelling import to_plain

    click.echo(json.dumps([to_plain(label) for label in made]) if as_json else f"labelled {len(made):,}")


def _table(found: Sequence[Label]) -> str:
    rows = [["id", "label", "severity", "by", "at", "note"]]
    for label in found:
        severity = f"{label.severity:.2f}" if label.severity is not None else "-"
        rows.append([label.id, label.label, severity, plain(label.author or "-"), label.at, plain(label.note)])
    return table(rows)
