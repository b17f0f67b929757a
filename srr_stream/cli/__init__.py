"""The command line. Each command is a few lines: read the settings, put the parts together, run, say how it ended.

Exit codes: 0 all went well · 1 a defect · 2 the command line or the settings are wrong · 3 something outside is wrong:
broker, topic, registry, port, or too few records · 4 the gate rejected the model of ``train --once`` ·
5 ``audit`` found the promise of delivery broken.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import click

from srr_stream.cli.api import api
from srr_stream.cli.audit import audit
from srr_stream.cli.backtest import backtest
from srr_stream.cli.common import (
    clear_errors,
    config_option,
    json_option,
    load,
    reload_on_signals,
    stop_on_signals,
    watch_option,
)
from srr_stream.cli.completion import completion
from srr_stream.cli.dlq import dlq
from srr_stream.cli.doctor import doctor
from srr_stream.cli.explain import explain
from srr_stream.cli.init import init
from srr_stream.cli.labels import labels
from srr_stream.cli.models import models
from srr_stream.cli.plot import plot
from srr_stream.cli.replay import replay
from srr_stream.logs import set_up_logging

EXIT_REJECTED = 4

_FASHION = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot"]
_EPILOG = """\b
Exit codes: 0 all went well; 1 a defect; 2 the command line or the settings are wrong;
3 something outside is wrong: broker, topic, registry, port, or too few records;
4 the gate rejected the model of train --once;
5 audit found the promise of delivery broken."""


@click.group(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="srr-stream", prog_name="srr-stream")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="How much is logged, to standard error.",
)
def main(log_level: str) -> None:
    """Find anomalies in a contaminated, unlabelled Kafka stream."""
    set_up_logging(logging.getLevelNamesMapping()[log_level.upper()], role="srr-stream")


@main.command()
@config_option
@watch_option
def run(path: Path, is_watched: bool) -> None:
    """Score the stream, train beside it, and serve the API and the review page, until stopped."""
    _serve(path, is_alone=False, is_watched=is_watched)


@main.command()
@config_option
@watch_option
def score(path: Path, is_watched: bool) -> None:
    """Score the stream with what the registry holds; another process trains."""
    _serve(path, is_alone=True, is_watched=is_watched)


@main.command()
@config_option
@click.option("--once", is_flag=True, help="Train now, once, print the manifest's essentials as JSON, and end.")
@watch_option
def train(path: Path, once: bool, is_watched: bool) -> None:
    """Train whenever it is due, and publish to the registry; another process scores."""
    with clear_errors():
        reloads = reload_on_signals(path, is_watched=is_watched) if not once else None
        settings = load(path, role="trainer")
        if reloads is not None:
            from srr_stream.trainer_process import run_trainer

            run_trainer(settings, should_stop=stop_on_signals(), on_status=lambda status: None, reloads=reloads)
            return
        from srr_stream.trainer_process import train_once

        outcome = train_once(settings, on_status=lambda status: None)
    manifest = outcome.manifest
    essentials = {
        "version": manifest.version,
        "promoted": outcome.promoted,
        "decision": outcome.decision,
        "gate": outcome.report.reason,
        "n_records": manifest.window["n_records"],
        "training": manifest.training,
    }
    click.echo(json.dumps(essentials, indent=1))
    if outcome.decision == "rejected":
        sys.exit(EXIT_REJECTED)


@main.command("check-config")
@config_option
@json_option
def check_config(path: Path, as_json: bool) -> None:
    """Check a settings file, without a network; say everything that is wrong with it at once."""
    with clear_errors():
        settings = load(path)
    n_fields, topics = len(settings.record.fields), settings.input.topics
    text = f"{path}: good; {n_fields} fields of {', '.join(topics)}"
    click.echo(json.dumps({"is_good": True, "n_fields": n_fields, "topics": list(topics)}) if as_json else text)


@main.command()
@config_option
@click.option("--reason", default="asked for by hand", show_default=True, help="Kept in the model's manifest.")
@json_option
def retrain(path: Path, reason: str, as_json: bool) -> None:
    """Ask the running trainer for a training, wherever it runs."""
    with clear_errors():
        from srr_stream.assembly import make_registry

        make_registry(load(path)).request_training(reason)
    text = "asked; the trainer takes it up when training.min_interval has passed since its last training"
    click.echo(json.dumps({"reason": reason}) if as_json else text)


@main.command("heat-map")
@config_option
@click.argument("topic")
@click.argument("partition", type=click.IntRange(min=0))
@click.argument("offset", type=click.IntRange(min=0))
@click.option("--version", type=click.IntRange(min=1), help="Version of the model. [default: the champion]")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("heat-map.png"),
    show_default=True,
    help="Where the PNG goes.",
)
@json_option
def heat_map(
    path: Path, topic: str, partition: int, offset: int, version: int | None, output: Path, as_json: bool
) -> None:
    """Draw where a picture of the stream is unusual."""
    with clear_errors():
        settings = load(path)
        from srr_stream.assembly import make_heat_maps, make_live_model, make_registry

        registry = make_registry(settings)
        live_model = make_live_model(settings, registry)
        if version is None:
            live_model.refresh()
        heat_maps = make_heat_maps(settings, registry, live_model)
        try:
            drawn = heat_maps.draw(topic, partition, offset, version)
        finally:
            heat_maps.close()
        output.write_bytes(drawn.png)
    text = f"{output}: severity {drawn.severity:.3g} by version {drawn.version}"
    document = {"output": str(output), "severity": drawn.severity, "version": drawn.version}
    click.echo(json.dumps(document) if as_json else text)


@main.command()
@click.option(
    "--dataset",
    type=click.Choice(["kdd", "thyroid", "arrhythmia", "boards", "fashion-mnist"]),
    default="kdd",
    show_default=True,
    help="The last two are pictures; fashion-mnist is fetched.",
)
@click.option(
    "--normal",
    type=click.Choice(_FASHION),
    default="sneaker",
    show_default=True,
    help="Of fashion-mnist: the class that is normal.",
)
@click.option(
    "--input",
    "file",
    type=click.Path(path_type=Path, exists=True),
    help="Replay your own CSV, NDJSON or Parquet file instead, or a folder of pictures.",
)
@click.option("--rate", type=click.IntRange(min=1), help="Records a second. [default: for the stream to take minutes]")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON document on standard output.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("srr-stream-demo.png"),
    show_default=True,
    help="Where the picture goes.",
)
@click.option(
    "--sheet",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("srr-stream-demo-sheet.png"),
    show_default=True,
    help="Where flagged pictures go, with their heat maps.",
)
@click.option("--scorer-port", type=click.IntRange(0, 65535), default=0, help="Port of the scorer's metrics; 0: free.")
@click.option("--trainer-port", type=click.IntRange(0, 65535), default=0, help="Port of the trainer's; 0: free.")
def demo(
    dataset: str,
    normal: str,
    file: Path | None,
    rate: int | None,
    as_json: bool,
    plot: Path,
    sheet: Path,
    scorer_port: int,
    trainer_port: int,
) -> None:
    """Watch it work: an embedded broker, a real stream, a summary against its labels. Ends by itself."""
    from srr_stream.demo.run import DemoOptions, run_demo

    logging.getLogger().setLevel(logging.ERROR)  # the live view tells it better
    with clear_errors():
        options = DemoOptions(
            dataset, file, rate, plot, sheet, normal, scorer_port=scorer_port, trainer_port=trainer_port
        )
        result = run_demo(options, should_stop=stop_on_signals())
    if as_json:
        click.echo(json.dumps(result.summary.to_dict()))
    else:
        click.echo(result.text)
    if result.failure:
        click.echo(f"error: {result.failure}", err=True)
        sys.exit(1)


main.add_command(api)
main.add_command(audit)
main.add_command(backtest)
main.add_command(completion)
main.add_command(dlq)
main.add_command(doctor)
main.add_command(explain)
main.add_command(init)
main.add_command(labels)
main.add_command(models)
main.add_command(plot)
main.add_command(replay)


def _serve(path: Path, *, is_alone: bool, is_watched: bool) -> None:
    with clear_errors():
        reloads = reload_on_signals(path, is_watched=is_watched)
        settings = load(path, role="scorer")
        from srr_stream.service import Service

        has_api = settings.api.enabled and not is_alone
        Service(settings, has_trainer=not is_alone, has_api=has_api, reloads=reloads).run(stop_on_signals())
