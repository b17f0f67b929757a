"""``srr-stream backtest``: what would have been flagged in a past stream."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from srr_stream.cli.common import (
    Progress,
    clear_errors,
    config_option,
    json_option,
    load,
    stop_on_signals,
)
from srr_stream.cli.sources import Part, duration_s, open_recording, source_options

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from srr_stream.backtest import Lag
    from srr_stream.backtest.figures import Figures
    from srr_stream.backtest.recording import Recording
    from srr_stream.settings import Settings

_KEEP_ALL = 1_000_000


@click.command()
@config_option
@source_options
@click.option(
    "--labels", metavar="FIELD|FILE", help="A field not learned from, or a file of id and label, to measure by."
)
@click.option(
    "--anomaly", "anomalous", multiple=True, metavar="VALUE", help="A label that is an anomaly; all others are not."
)
@click.option("--normal", multiple=True, metavar="VALUE", help="A label that is normal; all others are anomalies.")
@click.option(
    "--top", type=click.IntRange(min=0), default=10, show_default=True, help="How many of the first flagged records."
)
@click.option("--alpha", "alphas", multiple=True, metavar="RATE,…", help="Count flags at these false alarm rates too.")
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    help="Records a second, for a file whose records have no time.",
)
@click.option("--no-retraining", is_flag=True, help="Only the first models: no clock, count or drift.")
@click.option(
    "--training-lag", metavar="DURATION|N", help="How long a training takes, or in how many records. [default: no time]"
)
@click.option(
    "--registry", type=click.Path(path_type=Path, file_okay=False), help="Keep the models here; a new folder."
)
@click.option(
    "--verdicts", type=click.Path(path_type=Path, dir_okay=False), help="Write every verdict here, a line each."
)
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="Write a report here: one HTML file.")
@json_option
def backtest(
    path: Path,
    source: str | None,
    topic: str | None,
    since: str | None,
    until: str | None,
    last: int | None,
    labels: str | None,
    anomalous: tuple[str, ...],
    normal: tuple[str, ...],
    top: int,
    alphas: tuple[str, ...],
    rate: float | None,
    no_retraining: bool,
    training_lag: str | None,
    registry: Path | None,
    verdicts: Path | None,
    report: Path | None,
    as_json: bool,
) -> None:
    """Say what would have been flagged in SOURCE: the service's own path over a past stream.

    SOURCE is a file (CSV, NDJSON, Parquet, npz, a folder of pictures) or a topic; left out: input.topics. Models are
    trained on the way, each on what had come by then. Nothing is written to Kafka, nothing committed.
    """
    part = Part.of(source, topic, since, until, last)
    rates, lag = _rates(alphas), _lag(training_lag)
    if registry is not None and registry.exists() and any(registry.iterdir()):
        raise click.UsageError(f"--registry {registry} is not empty; models are put there: name a new folder")
    logging.getLogger().setLevel(max(logging.getLogger().level, logging.WARNING))  # the rest is told in the end
    with clear_errors():
        settings = load(path)
        _check_outputs(report, verdicts)
        should_stop = stop_on_signals()
        with Progress("read") as progress:
            recording = open_recording(settings, part, rate=rate, on_read=lambda n, n_all: progress.update(n))
        known = _labels(settings, recording, labels, anomalous, normal)
        from srr_stream.backtest import backtest as go
        from srr_stream.backtest.figures import RATES, figures_of, flagged_records

        with (
            _registry(registry) as url,
            _sink(verdicts) as sink,
            Progress("scored", len(recording)) as progress,
        ):
            result = go(
                _with_registry(settings, url),
                recording,
                is_retrained=not no_retraining,
                lag=lag,
                sink=sink,
                should_stop=should_stop,
                on_progress=progress.update,
            )
        figures = figures_of(result, known, rates=rates or RATES)
        first = flagged_records(result, known, most=top)
        remarks = _remarks(settings, figures)
        if report is not None:
            from srr_stream.backtest.report import make_report

            report.write_text(make_report(result, figures, known, remarks=remarks), encoding="utf-8")
    if as_json:
        document = figures.to_dict() | {"first_flagged": [asdict(each) for each in first], "remarks": remarks}
        click.echo(json.dumps(document, indent=1))
    else:
        from srr_stream.cli.backtest_text import backtest_text

        click.echo(backtest_text(figures, first, remarks), color=True)
    if report is not None:
        click.echo(f"report: {report}", err=True)


def _rates(texts: Sequence[str]) -> tuple[float, ...]:
    rates = []
    for text in (part for given in texts for part in given.split(",")):
        try:
            rate = float(text)
        except ValueError:
            rate = 0.0
        if not 0 < rate < 1:
            raise click.BadParameter(f"{text!r}; allowed: above 0 and below 1, such as 0.001", param_hint="--alpha")
        rates.append(rate)
    return tuple(rates)


def _lag(text: str | None) -> Lag:
    from srr_stream.backtest import Lag

    if text is None:
        return Lag()
    if text.isdecimal():
        return Lag(n_records=int(text))
    try:
        return Lag(seconds=duration_s(text))
    except ValueError as error:
        raise click.BadParameter(
            f"{text!r}; allowed: {error}, or a number of records", param_hint="--training-lag"
        ) from None


def _check_outputs(report: Path | None, verdicts: Path | None) -> None:
    """Raise what writing would raise after the work is done."""
    for output in (report, verdicts):
        if output is not None and not output.parent.is_dir():
            raise FileNotFoundError(f"{output}: there is no folder {output.parent}; make it, or name another")
    if report is not None:
        from srr_stream.plots import require_matplotlib

        require_matplotlib()


def _labels(
    settings: Settings,
    recording: Recording,
    labels: str | None,
    anomalous: tuple[str, ...],
    normal: tuple[str, ...],
) -> NDArray[np.int8] | None:
    from srr_stream.assembly import record_schema
    from srr_stream.backtest.labels import Meaning, labels_of_field, labels_of_file

    if labels is None:
        if anomalous or normal:
            raise click.UsageError("--anomaly and --normal say what labels mean; they need --labels")
        return None
    file = Path(labels)
    try:
        meaning = Meaning(anomalous, normal)
        if file.is_file():
            return labels_of_file(file, recording.records, meaning)
        return labels_of_field(recording.records, labels, record_schema(settings.record), meaning)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--labels") from None


@contextmanager
def _registry(folder: Path | None) -> Iterator[str]:
    if folder is not None:
        yield str(folder)
        return
    with tempfile.TemporaryDirectory(prefix="srr-stream-backtest-") as made:
        yield made


@contextmanager
def _sink(path: Path | None) -> Iterator[Any]:
    if path is None:
        yield None
        return
    from consumers.sinks.ndjson import NdjsonSink

    path.unlink(missing_ok=True)  # the sink appends, and this is another run
    path.with_name(f"{path.name}.bad").unlink(missing_ok=True)
    sink = NdjsonSink(path)
    try:
        yield sink
    finally:
        sink.close()


def _with_registry(settings: Settings, url: str) -> Settings:
    """Return settings that keep every model at a place of its own."""
    registry = settings.registry.model_copy(update={"url": url, "keep": _KEEP_ALL})
    return settings.model_copy(update={"registry": registry})


def _remarks(settings: Settings, figures: Figures) -> list[str]:
    """Return what somebody who reads the figures must know."""
    remarks = []
    if figures.stopped_after is not None:
        remarks.append(f"stopped after {figures.stopped_after:,} records; the rest was not looked at")
    if figures.supposed_rate is not None:
        remarks.append(
            f"the records have no time of their own (record.time_field); {figures.supposed_rate:g} a second are "
            "supposed, which matters to training.every and training.min_interval; --rate says another"
        )
    if settings.gate.mode == "manual":
        remarks.append("gate.mode is manual: here every model that passed was promoted at once")
    if settings.gate.reference_version is not None:
        remarks.append("gate.reference_version names a model that is not here; the reference was pinned by itself")
    remarks += [f"at record {note.at:,}: {note.text}" for note in figures.notes]
    return remarks
