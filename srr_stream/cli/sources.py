"""A past stream on the command line: a file, or topics from somewhere to somewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

if TYPE_CHECKING:
    from srr_stream.backtest.recording import Recording
    from srr_stream.settings import Settings

Command = TypeVar("Command", bound=Callable[..., Any])

_FILES = (".ndjson", ".jsonl", ".csv", ".parquet", ".npz")

since_option = click.option("--since", help="Only records from then on: 2024-05-01T06:00, or 6h for six hours ago.")
until_option = click.option("--until", help="Only records before then, said in the same way.")
last_option = click.option("--last", type=click.IntRange(min=1), help="Only the newest so many records.")


def source_options(command: Command) -> Command:
    """Add SOURCE and what says which part of it is meant."""
    options = (
        click.argument("source", required=False),
        click.option("--topic", help="A topic, even if there is a file of this name."),
        since_option,
        until_option,
        last_option,
    )
    for option in reversed(options):
        command = option(command)
    return command


class Part(NamedTuple):
    """Which records are meant."""

    source: str | None
    topic: str | None
    since_ms: int | None
    until_ms: int | None
    last: int | None

    @classmethod
    def of(cls, source: str | None, topic: str | None, since: str | None, until: str | None, last: int | None) -> Part:
        """Read the options; raises click's UsageError if they contradict each other."""
        if source is not None and topic is not None:
            raise click.UsageError(f"SOURCE is {source!r} and --topic {topic!r}; allowed: one of them")
        part = cls(source, topic, moment_ms("--since", since), moment_ms("--until", until), last)
        if part.since_ms is not None and part.until_ms is not None and part.since_ms >= part.until_ms:
            raise click.UsageError("--since is not before --until; nothing lies between them")
        return part

    @property
    def file(self) -> Path | None:
        """The file, None if topics are meant: a name that no file has is a topic's, unless it looks like a file's."""
        if self.source is None:
            return None
        path = Path(self.source)
        return path if path.exists() or "/" in self.source or path.suffix in _FILES else None

    def topics(self, settings: Settings) -> tuple[str, ...]:
        """Return the topics that are meant, where no file is; those of ``input.topics`` if none is named."""
        named = self.topic or self.source
        return settings.input.topics if named is None else (named,)


def open_recording(
    settings: Settings,
    part: Part,
    *,
    rate: float | None = None,
    on_read: Callable[[int, int], None] = lambda n, n_all: None,
) -> Recording:
    """Read a part of a past stream into memory.

    Raises
    ------
    ConsumersError
        If the file or the topics cannot be read.
    click.UsageError
        If a time is asked for and the records of the file have none, or a rate is supposed and they have one.
    """
    from srr_stream.assembly import kafka_connection, make_decoder, record_schema
    from srr_stream.backtest.recording import record_file, record_topics

    schema, decoder = record_schema(settings.record), make_decoder(settings)
    path = part.file
    if path is None:
        from consumers.logs import KafkaLog

        if rate is not None:
            raise click.UsageError("--rate is for files, whose records may have no time; those of a topic have one")
        topics = part.topics(settings)
        log = KafkaLog(topics, connection=kafka_connection(settings.kafka))
        try:
            return record_topics(
                log,
                decoder,
                schema,
                name=", ".join(topics),
                since_ms=part.since_ms,
                until_ms=part.until_ms,
                last=part.last,
                on_read=on_read,
            )
        finally:
            log.close()
    if rate is None and schema.time_field is None and (part.since_ms, part.until_ms) != (None, None):
        raise click.UsageError(
            f"{path}: its records have no time to go by with --since and --until; "
            "name the field that is their time in record.time_field, or use --last"
        )
    recording = record_file(path, decoder, schema, rate=rate).between(part.since_ms, part.until_ms)
    return recording if part.last is None else recording.newest(part.last)


def moment_ms(option: str, text: str | None, *, now: Callable[[], float] = time.time) -> int | None:
    """Return a moment in ms since the epoch: ISO 8601, in UTC unless it says otherwise, or how long ago it was.

    Examples
    --------
    >>> moment_ms("--since", "2024-05-01T06:00:00Z")
    1714543200000
    >>> moment_ms("--since", "1h", now=lambda: 7200.0)
    3600000
    """
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        pass
    else:
        return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
    try:
        ago_s = duration_s(text)
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is no moment; allowed: a date and time such as 2024-05-01T06:00, or a duration such as 6h",
            param_hint=option,
        ) from None
    return round((now() - ago_s) * 1000)


def duration_s(text: str) -> float:
    """Return the seconds of a duration such as ``1h30m``; ValueError says what is allowed."""
    from srr_stream.settings import parse_duration

    duration = parse_duration(text)
    assert isinstance(duration, timedelta)
    return duration.total_seconds()
