"""``srr-stream audit``: whether every record was answered as promised."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from srr_stream.cli.common import clear_errors, config_option, load, plain

if TYPE_CHECKING:
    from srr_stream.ledger import Ledger
    from srr_stream.ledger.reader import Books
    from srr_stream.settings import Settings

EXIT_BROKEN = 5

_COLUMNS = {
    "n_records": "records",
    "n_scored": "verdicts",
    "n_alerted": "alerts",
    "n_dead_lettered": "dead letters",
    "n_waiting": "waiting",
    "n_missing": "missing",
    "n_unverifiable": "unverifiable",
    "n_undecided": "undecided",
    "n_gone": "gone",
}


@dataclass(frozen=True)
class _Scores:
    """How many verdicts were scored again, for the summary."""

    n_equal: int
    n_different: int
    n_unverifiable: Mapping[str, int]


@click.command()
@config_option
@click.option(
    "--last",
    type=click.IntRange(min=1),
    help="Check only the newest so many offsets of each input partition. [default: the whole log]",
)
@click.option("--scores", "with_scores", is_flag=True, help="Score every record again and compare bit for bit.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def audit(path: Path, last: int | None, with_scores: bool, as_json: bool) -> None:
    """Check that every record was answered as promised. Reads only; exits 5 if the promise is broken."""
    with clear_errors():
        settings = load(path)
        if with_scores and settings.output.scores_topic is None:
            raise click.UsageError("--scores needs output.scores_topic: there are no verdicts to compare")
        from srr_stream.assembly import kafka_connection
        from srr_stream.ledger.reader import read_books

        books = read_books(
            kafka_connection(settings.kafka),
            topics=settings.input.topics,
            group_id=settings.input.group_id,
            scores_topic=settings.output.scores_topic,
            alerts_topic=settings.output.alerts_topic,
            dead_letter_topic=settings.output.dead_letter_topic,
            mode=settings.delivery.mode,
            isolation_level=settings.input.isolation_level,
            last=last,
            with_judgements=with_scores,
        )
        ledger = books.check(settings.delivery.mode, starts_late=settings.input.start == "latest")
        scores = None
        if with_scores:
            ledger, scores = _rescore(settings, books, ledger)
    click.echo(json.dumps(_document(ledger, scores)) if as_json else _text(settings, ledger, scores))
    if not ledger.is_kept:
        sys.exit(EXIT_BROKEN)


def _rescore(settings: Settings, books: Books, ledger: Ledger) -> tuple[Ledger, _Scores]:
    """Return the ledger with what came of scoring again."""
    from threadpoolctl import threadpool_limits

    from srr_stream import assembly
    from srr_stream.ledger.reader import open_inputs
    from srr_stream.ledger.rescoring import Rescorer

    assert books.scores is not None
    assert books.judgements is not None
    registry = assembly.make_registry(settings)
    live_model = assembly.make_live_model(settings, registry)
    rescorer = Rescorer(
        books.scores,
        books.judgements,
        assembly.make_decoder(settings),
        versions=registry.versions(),
        load=lambda version: live_model.load(version).model,
    )
    # As the service does: how many threads share a sum may change its last bit.
    with threadpool_limits(1), open_inputs(assembly.kafka_connection(settings.kafka)) as records:
        result = rescorer.check(records)
    if result.n_different:
        ledger = ledger.with_finding(result.finding)
    return ledger, _Scores(result.n_equal, result.n_different, result.n_unverifiable)


def _document(ledger: Ledger, scores: _Scores | None) -> dict[str, Any]:
    return {
        "mode": ledger.mode,
        "is_kept": ledger.is_kept,
        "is_complete": ledger.is_complete,
        "partitions": [asdict(line) for line in ledger.lines],
        "findings": [
            {
                "kind": finding.kind.value,
                "is_fault": finding.is_fault,
                "n": finding.n,
                "examples": [example._asdict() for example in finding.examples],
            }
            for finding in ledger.findings
        ],
        "versions": {str(version): n for version, n in ledger.n_by_version.items()},
        "scores": asdict(scores) if scores is not None else None,
        "notes": list(ledger.notes),
    }


def _text(settings: Settings, ledger: Ledger, scores: _Scores | None) -> str:
    parts = [
        f"group {settings.input.group_id} on {settings.kafka.bootstrap_servers}, {ledger.mode}",
        "",
        _table(ledger),
    ]
    if ledger.n_by_version:
        versions = ", ".join(f"{n:,} by version {version}" for version, n in ledger.n_by_version.items())
        parts += ["", f"verdicts: {versions}"]
    if scores is not None:
        parts += ["", f"scored again: {scores.n_equal:,} verdicts equal in every bit, {scores.n_different:,} not"]
        parts += [f"  {n:,} could not be checked: {why}" for why, n in scores.n_unverifiable.items()]
    for finding in ledger.findings:
        parts += ["", f"{finding.kind.value}: {finding.n:,}{'' if finding.is_fault else ' (no fault)'}"]
        parts += [f"  {plain(str(example))}" for example in finding.examples]
        if finding.n > len(finding.examples):
            parts.append("  …")
    if ledger.notes:
        parts += ["", *(f"note: {note}" for note in ledger.notes)]
    return "\n".join([*parts, "", _verdict(ledger)])


def _verdict(ledger: Ledger) -> str:
    if not ledger.is_kept:
        kinds = ", ".join(f"{finding.n:,} {finding.kind.value}" for finding in ledger.faults)
        return f"the promise is broken: {kinds}; docs/audit.md says what each means and what to do"
    return "the promise is kept" if ledger.is_complete else "the promise is kept as far as could be checked"


def _table(ledger: Ledger) -> str:
    # What is checked by nobody, or empty throughout, has no column.
    always = ("n_records", "n_scored", "n_dead_lettered", "n_waiting", "n_missing")
    names = [
        name
        for name in _COLUMNS
        if any(getattr(line, name) is not None and (name in always or getattr(line, name)) for line in ledger.lines)
    ]
    rows: list[Sequence[str]] = [("partition", "from", "to", "committed", *(_COLUMNS[name] for name in names))]
    rows += [
        (
            f"{line.topic}-{line.partition}",
            f"{line.begin:,}",
            f"{line.end:,}",
            "-" if line.committed is None else f"{line.committed:,}",
            *(f"{getattr(line, name):,}" for name in names),
        )
        for line in ledger.lines
    ]
    totals = (f"{sum(getattr(line, name) for line in ledger.lines):,}" for name in names)
    rows.append(("total", "", "", "", *totals))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    )
