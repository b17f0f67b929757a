"""``srr-stream init``: a commented settings file for records that nobody has described."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from consumers.errors import SourceError
from srr_stream.cli.common import EXIT_OUTSIDE, clear_errors, json_option, plain

if TYPE_CHECKING:
    from srr_stream.first_look.inference import Inferred
    from srr_stream.first_look.sampling import Sample
    from srr_stream.first_look.settings import Check
    from srr_stream.settings import KafkaSettings

_GOOD_RATIO = 0.99
_SUFFIXES = (".csv", ".ndjson", ".jsonl", ".parquet", ".npz", ".json", ".txt", ".gz")
_EXAMPLE_SERVERS = "localhost:9092"


@click.command()
@click.argument("source")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("srr-stream.yaml"),
    show_default=True,
    help="Where the settings go.",
)
@click.option("--bootstrap-servers", metavar="HOST:PORT", help="Some brokers, comma-separated.")
@click.option(
    "-c",
    "--config",
    "path",
    type=click.Path(path_type=Path),
    help="Settings file whose section kafka says how to connect. SRR__KAFKA__KEY in the environment goes over it.",
)
@click.option("--topic", help="Name of the input topic, where SOURCE is a file. [default: the file's name]")
@click.option(
    "-n",
    "--records",
    type=click.IntRange(min=1),
    default=2000,
    show_default=True,
    help="How many of the newest are looked at.",
)
@click.option(
    "--max-categories",
    type=click.IntRange(min=1),
    default=200,
    show_default=True,
    help="A text field with more different values is left out.",
)
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
@json_option
def init(
    source: str,
    output: Path,
    bootstrap_servers: str | None,
    path: Path | None,
    topic: str | None,
    records: int,
    max_categories: int,
    force: bool,
    as_json: bool,
) -> None:
    """Look at a topic or a file, and write a commented settings file that reads it.

    SOURCE is the name of a topic, or a CSV, NDJSON, Parquet or .npz file, or a folder of pictures. Nothing is changed
    in Kafka. Exits with 3 if less than 99 % of the records looked at can be read with these settings.
    """
    if output.exists() and not force:
        raise click.UsageError(f"{output} is there already; --force replaces it, -o names another")
    is_file = Path(source).exists() or "/" in source or source.lower().endswith(_SUFFIXES)
    if topic is not None and not is_file:
        raise click.UsageError(f"--topic is for files, and there is no file {source!r}")
    with clear_errors():
        from srr_stream.first_look.inference import infer
        from srr_stream.first_look.settings import check_decoding, first_settings, missing_secrets, read_back, topic_of

        kafka, has_placeholder = _connection(path, bootstrap_servers, is_file=is_file, source=source)
        sample = _sample(source, records, kafka, is_file=is_file)
        inferred = infer(sample.records, max_categories=max_categories)
        text = first_settings(
            sample,
            inferred,
            topic=topic or (topic_of(sample.name) if is_file else source),
            kafka=kafka,
            is_file=is_file,
            has_placeholder=has_placeholder,
        )
        settings = read_back(text, kafka)
        check = check_decoding(settings, sample)
        with output.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    is_good = check.ratio >= _GOOD_RATIO
    if as_json:
        click.echo(json.dumps(_document(sample, inferred, check, output), indent=1))
    else:
        click.echo(_summary(inferred, check, output))
    click.echo(
        _next_steps(
            source if is_file else None, sample, output, kafka, settings.input.topics[0], missing_secrets(kafka)
        ),
        err=True,
    )
    if not is_good:
        click.echo(f"error: only {check.ratio:.1%} of the records looked at can be read: {_why_bad(check)}", err=True)
        sys.exit(EXIT_OUTSIDE)


def _connection(path: Path | None, servers: str | None, *, is_file: bool, source: str) -> tuple[KafkaSettings, bool]:
    """Return how to connect, and whether the address is but an example."""
    import os

    from srr_stream.loading import check_settings, read_sections

    given = read_sections(path).get("kafka") if path is not None else None
    section: dict[str, Any] = dict(given) if isinstance(given, dict) else {}
    has_address = bool(servers or "bootstrap_servers" in section or os.environ.get("SRR__KAFKA__BOOTSTRAP_SERVERS"))
    if not has_address and not is_file:
        raise click.UsageError(
            f"there is no file {source!r}; if it is a topic, say where with --bootstrap-servers host:port "
            "or -c an existing settings file"
        )
    section.setdefault("bootstrap_servers", servers or _EXAMPLE_SERVERS)
    rest = {
        "input": {"topics": ["any"], "start": "earliest"},
        "record": {"fields": [{"name": "any"}]},
        "output": {"alerts_topic": "any.alerts", "dead_letter_topic": "any.dead-letters"},
    }
    kafka = check_settings({"kafka": section, **rest}).kafka
    return (kafka.model_copy(update={"bootstrap_servers": servers}) if servers else kafka), not has_address


def _sample(source: str, n: int, kafka: KafkaSettings, *, is_file: bool) -> Sample:
    from srr_stream.first_look.sampling import sample_file, sample_topic

    if is_file:
        if not Path(source).exists():
            raise SourceError(f"{source}: there is no such file; check the path")
        return sample_file(Path(source), n)
    from consumers.logs import KafkaLog
    from srr_stream.assembly import kafka_connection

    log = KafkaLog([source], connection=kafka_connection(kafka))
    try:
        return sample_topic(log, source, n)
    finally:
        log.close()


def _document(sample: Sample, inferred: Inferred, check: Check, output: Path) -> dict[str, Any]:
    return {
        "source": sample.name,
        "n_records": len(sample.records),
        "n_total": sample.n_total,
        "format": inferred.format,
        "n_unreadable": inferred.n_unreadable,
        "fields": [found.to_dict() for found in inferred.fields],
        "left_out": [found.to_dict() for found in inferred.left_out],
        "n_more_left_out": inferred.n_more_left_out,
        "labels": [found.name for found in inferred.labels],
        "time_field": inferred.time_field,
        "decoded": {"n": check.n_decoded, "of": check.n_checked, "bad": dict(check.reasons)},
        "settings": str(output),
    }


def _summary(inferred: Inferred, check: Check, output: Path) -> str:
    kinds = [found.kind.value for found in inferred.fields if found.kind is not None]
    counted = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    parts = [
        f"{output}: {len(kinds)} field{'s' if len(kinds) > 1 else ''} ({counted}); "
        f"{check.n_decoded:,} of {check.n_checked:,} records can be read with it"
    ]
    parts += [f"left out: {plain(found.name)}: {plain(found.why_not or '')}" for found in inferred.left_out[:20]]
    n_more = len(inferred.left_out[20:]) + inferred.n_more_left_out
    return "\n".join([*parts, *([f"left out: {n_more:,} more"] * (n_more > 0))])


def _why_bad(check: Check) -> str:
    reasons = ", ".join(f"{n:,} {reason}" for reason, n in sorted(check.reasons.items(), key=lambda item: -item[1]))
    return plain(f"{reasons}, such as: {check.example}")


def _next_steps(
    file: str | None, sample: Sample, output: Path, kafka: KafkaSettings, topic: str, secrets: list[str]
) -> str:
    create = f"kafka-topics.sh --bootstrap-server {kafka.bootstrap_servers} --create --partitions"
    n = sample.n_partitions
    steps = [f"export {name}=…    # it was not written" for name in secrets]
    if file is not None:
        steps.append(f"srr-stream backtest {_quoted(file)} -c {_quoted(str(output))}    # what would have been flagged")
    else:
        steps += [f"{create} {n} --topic {topic}.{name}" for name in ("alerts", "scores", "dead-letters")]
        steps.append(f"{create} {n} --topic {topic}.labels --config cleanup.policy=compact")
        steps.append(f"srr-stream doctor -c {_quoted(str(output))}")
        steps.append(f"srr-stream run -c {_quoted(str(output))}")
    return "\n".join(["next:", *(f"  {step}" for step in steps)])


def _quoted(text: str) -> str:
    import shlex

    return shlex.quote(text)
