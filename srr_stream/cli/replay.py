"""``srr-stream replay``: past records into a topic again."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from srr_stream.cli.common import Progress, clear_errors, config_option, json_option, load, plain, stop_on_signals
from srr_stream.cli.sources import Part, open_recording, source_options

if TYPE_CHECKING:
    from srr_stream.backtest.recording import Recording
    from srr_stream.settings import Settings


@click.command()
@config_option
@source_options
@click.option("--to", help="The topic that they go to. [default: the only one of input.topics]")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Records a second.")
@click.option("--speed", type=click.FloatRange(min=0, min_open=True), help="In their own tempo, so many times as fast.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many records.")
@click.option("--dry-run", is_flag=True, help="Say what would be sent, and send nothing.")
@click.option("--yes", is_flag=True, help="Do not ask before writing into a topic that is not empty.")
@json_option
def replay(
    path: Path,
    source: str | None,
    topic: str | None,
    since: str | None,
    until: str | None,
    last: int | None,
    to: str | None,
    rate: float | None,
    speed: float | None,
    limit: int | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Send the records of SOURCE to the input topic, with their keys and headers.

    SOURCE is a file or a topic, as for backtest. Without --rate and --speed as fast as the brokers take them. SIGINT
    ends it cleanly, and it says how many were sent.
    """
    if source is None and topic is None:
        raise click.UsageError("what is to be replayed? Name a file or a topic")
    if rate is not None and speed is not None:
        raise click.UsageError("--rate and --speed contradict each other; allowed: one of them")
    part = Part.of(source, topic, since, until, last)
    with clear_errors():
        settings = load(path)
        target = _target(settings, to)
        should_stop = stop_on_signals()
        with Progress("read") as progress:
            recording = open_recording(settings, part, on_read=lambda n, n_all: progress.update(n))
        if speed is not None and recording.supposed_rate is not None:
            raise click.UsageError(
                f"--speed: the records of {recording.name} have no time; name the field that is their time in "
                "record.time_field, or use --rate"
            )
        if limit is not None:
            recording = recording.first(limit)
        if dry_run:
            _say(recording, target, rate, speed, as_json=as_json)
            return
        if not yes and not _may_write(settings, target, len(recording)):
            click.echo("nothing was sent", err=True)
            return
        from srr_stream.assembly import kafka_connection
        from srr_stream.replay import Sender
        from srr_stream.replay import replay as send

        sender = Sender(
            kafka_connection(settings.kafka), target, timeout_s=settings.output.flush_timeout.total_seconds()
        )
        with Progress("sent", len(recording)) as progress:
            done = send(
                recording.records,
                sender,
                _tempo(recording, rate, speed),
                should_stop=should_stop,
                on_sent=progress.update,
            )
    if as_json:
        click.echo(json.dumps({"topic": target, "n_records": len(recording), **asdict(done)}))
        return
    stopped = "" if done.is_whole else "; stopped before the end"
    click.echo(f"sent {done.n_sent:,} of {len(recording):,} records to {target} in {done.seconds:.1f} s{stopped}")


def _target(settings: Settings, to: str | None) -> str:
    if to is not None:
        return to
    topics = settings.input.topics
    if len(topics) > 1:
        raise click.UsageError(f"input.topics are {', '.join(topics)}; say with --to which of them")
    return topics[0]


def _tempo(recording: Recording, rate: float | None, speed: float | None) -> Callable[[int], float]:
    from srr_stream.replay import as_it_came, at_once, at_rate

    if rate is not None:
        return at_rate(rate)
    return as_it_came(recording.time_ms, speed) if speed is not None else at_once


def _say(recording: Recording, target: str, rate: float | None, speed: float | None, *, as_json: bool) -> None:
    n = len(recording)
    seconds = _tempo(recording, rate, speed)(n - 1) if n else 0.0
    if as_json:
        click.echo(json.dumps({"topic": target, "n_records": n, "would_take_s": seconds}))
        return
    time = f" in {seconds:.1f} s" if seconds else ", as fast as the brokers take them"
    click.echo(f"would send {n:,} records of {plain(recording.name)} to {target}{time}")


def _may_write(settings: Settings, target: str, n: int) -> bool:
    """Return whether to write into a topic: it is empty, or somebody says so.

    Raises
    ------
    click.UsageError
        If it is not, and there is nobody to ask.
    """
    from consumers.logs import KafkaLog
    from srr_stream.assembly import kafka_connection

    with closing(KafkaLog([target], connection=kafka_connection(settings.kafka))) as log:
        held = sum(log.ends().values()) - sum(log.beginnings().values())
    if not held:
        return True
    text = f"{target} is not empty, it holds {held:,} records; whoever reads it gets {n:,} more"
    if not sys.stdin.isatty():
        raise click.UsageError(f"{text}. There is no terminal to ask on; --yes writes without asking")
    return click.confirm(f"{text}. Write to it?", err=True)
