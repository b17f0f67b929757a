"""How long until something is there: the help of a command, and the first verdict of a scorer that has a model."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.speed import stream
from benchmarks.speed.pairs import Claim, Run, interleaved, medians, parser, quartiles, rates_table
from chaos.bench import figure, produce, wait_until

if TYPE_CHECKING:
    from models.detector import Model

PROGRAM = [sys.executable, "-c", "from srr_stream.cli import main; main()"]
"""What the installed script runs."""
BARE, HELP = "python -c pass", "srr-stream --help"


def main(arguments: Sequence[str]) -> int:
    cli = parser("start", __doc__, n_rounds=15, has_quick=True)
    cli.add_argument("--no-broker", action="store_true", help="Only what needs none.")
    options = cli.parse_args(arguments)
    run = Run("start", arguments, out=options.out)
    commands = {
        BARE: [sys.executable, "-c", "pass"],
        HELP: [*PROGRAM, "--help"],
        "srr-stream score --help": [*PROGRAM, "score", "--help"],
    }
    figures = interleaved(
        {name: partial(seconds_of, command) for name, command in commands.items()},
        n_rounds=2 if options.quick else options.rounds,
    )
    claims = [Claim(HELP, 1000 * quartiles(figures[HELP])[1], "ms", "asked", 300.0, at_least=False)]
    tables = [rates_table("Seconds", figures, "s")]
    if not (options.no_broker or options.quick):
        home = stream.kafka_home(cli)
        first: dict[str, Callable[[], float]] = {}
        with stream.kafka(home) as (node, folder):
            for name, config in stream.MODELS.items():
                model = stream.model(config)

                def turn(model: Model = model) -> float:
                    with closing(stream.bench(node, folder)) as surroundings:
                        topic, port = surroundings.topic, surroundings.settings.http.scorer_port
                        records = stream.values(2000, 3)
                        produce(node.bootstrap_servers, topic, records, n_partitions=stream.N_PARTITIONS)
                        surroundings.publish(model)
                        return until_first_verdict(surroundings.write_settings(), port)

                first[f"first verdict, {name}"] = turn
            starts = interleaved(first, n_rounds=max(3, options.rounds // 3))
        claims += [
            Claim(name, quartiles(values)[1], "s", "asked", 3.0, at_least=False) for name, values in starts.items()
        ]
        tables.append(rates_table("From the start of the process to the first verdicts", starts, "s"))
    bars = {"seconds": medians(figures)}
    return run.finish("Starting", claims, tables, bars=bars)


def seconds_of(command: Sequence[str]) -> float:
    """Return how long a command takes, whatever it prints."""
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def until_first_verdict(settings: Path, port: int) -> float:
    """Return how long a scorer takes from its start to its first verdicts, as its metrics tell."""
    started = time.perf_counter()
    scorer = subprocess.Popen(
        [*PROGRAM, "score", "--config", str(settings)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        wait_until(lambda: figure(port, "srr_records_scored_total") > 0, what="a first verdict")
        return time.perf_counter() - started
    finally:
        scorer.terminate()
        scorer.wait(30)
