"""``srr-stream dlq``: look at dead letters, and send them again."""

from __future__ import annotations

import base64
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from srr_stream.cli.common import EXIT_OUTSIDE, clear_errors, config_option, json_option, load, plain

if TYPE_CHECKING:
    from srr_stream.dead_letters import DeadLetter, DeadLetters, Listing
    from srr_stream.settings import Settings

_MOST_SHOWN = 4096
"""Bytes of a value that are printed."""
reason_option = click.option("--reason", help="Only those of this reason.")


@click.group()
def dlq() -> None:
    """Look at dead letters, and send them again."""


@dlq.command("list")
@config_option
@reason_option
@click.option("--limit", type=click.IntRange(min=0), default=20, show_default=True, help="How many of the newest.")
@json_option
def list_letters(path: Path, reason: str | None, limit: int, as_json: bool) -> None:
    """Count dead letters by reason and input topic, and name the newest."""
    with clear_errors():
        settings = load(path)
        listing = _dead_letters(settings).listing(limit=limit, reason=reason)
    click.echo(json.dumps(_document(listing)) if as_json else _text(settings, listing))


@dlq.command()
@config_option
@click.argument("letter_id", metavar="ID")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write the value to this file, as it is."
)
@json_option
def show(path: Path, letter_id: str, output: Path | None, as_json: bool) -> None:
    """Show one dead letter: reason, headers, value."""
    with clear_errors():
        letter = _dead_letters(load(path)).find(letter_id)
        if output is not None:
            output.write_bytes(letter.value or b"")
    click.echo(json.dumps(_plain_letter(letter)) if as_json else _whole(letter))


@dlq.command()
@config_option
@reason_option
@click.option("--dry-run", is_flag=True, help="Say what would be sent, and send nothing.")
@json_option
@click.argument("ids", metavar="[ID]...", nargs=-1)
def requeue(path: Path, reason: str | None, dry_run: bool, as_json: bool, ids: tuple[str, ...]) -> None:
    """Send dead letters to their input topic again: those named, or all; each at most once, however often called."""
    with clear_errors():
        result = _dead_letters(load(path)).requeue(ids=ids, reason=reason, is_dry=dry_run)
    if as_json:
        whole = {"sent": list(result.sent), "n_before": result.n_before, "refused": dict(result.refused)}
        click.echo(json.dumps({"is_dry_run": dry_run, **whole}))
    else:
        click.echo(f"{'would send' if dry_run else 'sent'} {len(result.sent):,}; sent before: {result.n_before:,}")
    for letter_id, why in result.refused.items():
        click.echo(f"error: {letter_id} cannot be sent: {why}", err=True)
    if result.refused:
        sys.exit(EXIT_OUTSIDE)


def _dead_letters(settings: Settings) -> DeadLetters:
    from srr_stream.assembly import kafka_connection
    from srr_stream.dead_letters import DeadLetters

    return DeadLetters(
        settings.output.dead_letter_topic,
        connection=kafka_connection(settings.kafka),
        topics=settings.input.topics,
        requeue_id=f"{settings.input.group_id}-requeue",
        timeout_s=settings.output.flush_timeout.total_seconds(),
    )


def _document(listing: Listing) -> dict[str, Any]:
    return {
        "counts": [
            {"reason": reason, "topic": topic, "n": n} for (reason, topic), n in sorted(listing.n_by_reason.items())
        ],
        "n_requeued": listing.n_requeued,
        "newest": [
            {
                "id": letter.id,
                "reason": letter.reason,
                "detail": letter.detail,
                "time": _time(letter.time_ms),
                "is_requeued": letter.id in listing.requeued,
            }
            for letter in listing.newest
        ],
    }


def _text(settings: Settings, listing: Listing) -> str:
    total = sum(listing.n_by_reason.values())
    parts = [f"{settings.output.dead_letter_topic}: {total:,} dead letters, {listing.n_requeued:,} sent again"]
    counts = sorted(listing.n_by_reason.items(), key=lambda item: (-item[1], item[0]))
    parts += [f"  {n:>9,}  {plain(reason)} of {plain(topic)}" for (reason, topic), n in counts]
    for letter in listing.newest:
        again = ", sent again" if letter.id in listing.requeued else ""
        first = f"{plain(letter.id)}  {_time(letter.time_ms)}  {plain(letter.reason)}{again}"
        parts += ["", first, f"  {plain(letter.detail)}"]
    return "\n".join(parts)


def _plain_letter(letter: DeadLetter) -> dict[str, Any]:
    """Return a dead letter as JSON has it; bytes are base64."""
    return {
        "id": letter.id,
        "time": _time(letter.time_ms),
        "reason": letter.reason,
        "stage": letter.stage,
        "detail": letter.detail,
        "key": _base64(letter.key),
        "headers": [[name, _base64(content)] for name, content in letter.headers],
        "value": _base64(letter.value),
        "omitted": dict(letter.omitted),
    }


def _base64(content: bytes | None) -> str | None:
    return None if content is None else base64.b64encode(content).decode()


def _whole(letter: DeadLetter) -> str:
    parts = [
        f"id         {plain(letter.id)}",
        f"time       {_time(letter.time_ms)}",
        f"reason     {plain(letter.reason)}, at stage {plain(letter.stage)}",
        f"detail     {plain(letter.detail)}",
        f"key        {'none' if letter.key is None else _readable(letter.key)}",
    ]
    parts += [f"header     {plain(name)}: {_readable(content or b'')}" for name, content in letter.headers]
    parts.append(f"value      {_value(letter)}")
    return "\n".join(parts)


def _value(letter: DeadLetter) -> str:
    n_omitted = letter.omitted.get("value")
    if n_omitted is not None and letter.value is None:
        return f"{n_omitted:,} bytes, which did not fit; the input no longer holds them"
    if letter.value is None:
        return "none"
    origin = ", from the input" if letter.omitted else ""
    is_cut = len(letter.value) > _MOST_SHOWN
    shown, more = _readable(letter.value[:_MOST_SHOWN], is_cut=is_cut), "\n…" if is_cut else ""
    return f"{len(letter.value):,} bytes{origin}\n{shown}{more}"


def _readable(content: bytes, *, is_cut: bool = False) -> str:
    """Return text as it is, anything else in hexadecimal digits: a terminal must not do what a record says."""
    for n_cut in range(4 if is_cut else 1):  # the last letter may have been cut in half
        try:
            text = content[: len(content) - n_cut].decode()
        except UnicodeDecodeError:
            continue
        if _is_printable(text):
            return text
        break
    return content.hex(" ", -4)


def _is_printable(text: str) -> bool:
    return all(character.isprintable() or character in "\n\t" for character in text)


def _time(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
