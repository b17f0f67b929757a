"""What a scorer's memory does under full load: a service with GOAD on a topic that takes it minutes to read.

Resident memory of the scorer's process, twice a second; the first third of the way is left out of its growth.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks.report import Table
from benchmarks.runner import whole
from benchmarks.speed import stream
from benchmarks.speed.latency import service
from benchmarks.speed.pairs import Claim, Run, parser, shown
from chaos.bench import figure, slope, wait_until
from consumers.clients import ClientName

if TYPE_CHECKING:
    from chaos.node import KafkaNode
    from models.detector import Model

_EVERY_S = 0.5


def main(arguments: Sequence[str]) -> int:
    cli = parser("memory", __doc__, n_rounds=1)
    cli.add_argument("--records", type=whole, default=20_000_000, help="In the topic (default 20000000).")
    options = cli.parse_args(arguments)
    home = stream.kafka_home(cli)
    run = Run("memory", arguments, out=options.out)
    model = stream.model(stream.GOAD_32)
    runs: dict[ClientName, list[NDArray[np.float64]]] = {client: [] for client in ClientName}
    with stream.kafka(home) as (node, folder):
        topic = stream.filled(node, "memory", stream.values(50_000, 5), options.records)
        for _ in range(options.rounds):
            for client, found in runs.items():
                found.append(resident(node, folder, topic, options.records, model, client))
    claims, rows = [], []
    for client, found in runs.items():
        most, growth = max(each[:, 1].max() for each in found), float(np.median(list(map(growth_of, found))))
        name = f"scorer at full load, GOAD M = 32, {client}"
        claims += [
            Claim(name, float(most), "MiB resident", "asked", 600.0, at_least=False),
            Claim(f"{name}: growth", growth, "MiB a minute", "flat", 1.0, at_least=False),
        ]
        rows += [
            [
                client.value,
                *(shown(each[int(share * (len(each) - 1)), 1]) for share in (0, 1 / 3, 2 / 3, 1)),
                shown(60 * each[-1, 0]),
            ]
            for each in found
        ]
    table = Table("Resident, MiB", ["", "start", "after a third", "after two", "end", "seconds"], rows)
    bars = {"MiB resident": {client.value: float(max(each[:, 1].max() for each in f)) for client, f in runs.items()}}
    return run.finish("Memory", claims, [table], bars=bars, notes=[f"{options.records:,} records"])


def growth_of(samples: NDArray[np.float64]) -> float:
    """Return the growth of ``(n, 2)`` minutes and MiB from a third of the way on, MiB a minute."""
    kept = samples[len(samples) // 3 :]
    return slope(kept[:, 0].tolist(), kept[:, 1].tolist())


def resident(
    node: KafkaNode, folder: Path, topic: str, n_records: int, model: Model, client: ClientName
) -> NDArray[np.float64]:
    """Return minutes and MiB ``(n, 2)`` of a service's scorer until it has judged all records."""
    with closing(service(node, folder, client, topic)) as surroundings:
        port = surroundings.settings.http.scorer_port
        surroundings.publish(model)
        scorer = psutil.Process(surroundings.serve().pid)
        wait_until(lambda: figure(port, "srr_records_scored_total") > 0, what="a first verdict")
        samples, started = [], time.perf_counter()
        while figure(port, "srr_records_scored_total") < n_records:
            samples.append(((time.perf_counter() - started) / 60, scorer.memory_info().rss / 2**20))
            time.sleep(_EVERY_S)  # between two samples
    return np.array(samples)
