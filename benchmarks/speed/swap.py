"""What a hot swap costs the batches beside it: scoring while another thread loads and swaps models, and while it rests.

The real registry, in a folder, and the real watch over it, in one process without a broker: what is measured is the
swap, and nothing else that a service does. In half of the turns a version is promoted every 100 ms.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import cycle

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import Table
from benchmarks.runner import limit_threads, whole
from benchmarks.speed import stream
from benchmarks.speed.pairs import Claim, Run, interleaved, parser, quartiles, ratio, shown
from chaos.bench import publish
from models.presets import PRESETS
from models.training import train
from srr_stream.live_model import LiveModel
from srr_stream.registry import Registry
from srr_stream.service import SWITCH_S

QUIET, SWAPPING = "no swap", "a swap every 100 ms"
_BATCH = 500
_POLL_S = 0.02


def main(arguments: Sequence[str]) -> int:
    cli = parser("swap", __doc__, n_rounds=7, has_quick=True)
    cli.add_argument("--seconds", type=whole, default=5, help="Of a turn (default 5).")
    options = cli.parse_args(arguments)
    limit_threads(1)
    run = Run("swap", arguments, out=options.out)
    seconds, n_rounds = (0.5, 1) if options.quick else (float(options.seconds), options.rounds)
    took: dict[str, list[NDArray[np.float64]]] = {QUIET: [], SWAPPING: []}
    n_swaps: list[int] = []
    with as_a_service(), watched(n_swaps) as (live, registry):

        def turn(name: str) -> float:
            stop = threading.Event()
            promoting = threading.Thread(target=promote, args=(registry, stop))
            if name == SWAPPING:
                promoting.start()
            found = batches(live, seconds)
            stop.set()
            if name == SWAPPING:
                promoting.join()
            took[name].append(found)
            return _BATCH * len(found) / float(found.sum())

        figures = interleaved({name: partial(turn, name) for name in took}, n_rounds=n_rounds, n_warm_up=0)
    every = {name: 1000 * np.concatenate(found) for name, found in took.items()}
    longest = {name: np.array([1000 * found.max() for found in each]) for name, each in took.items()}
    over = quartiles(longest[SWAPPING])[1] - float(np.median(every[SWAPPING]))
    claims = [
        ratio("throughput while models are swapped", figures[SWAPPING], figures[QUIET], QUIET, 0.9),
        Claim("longest batch beside swaps, above the median batch", over, "ms", "asked", 5.0, at_least=False),
    ]
    levels = (0.5, 0.99, 0.999, 1.0)
    table = Table(
        f"Batches of {_BATCH} records, ms",
        ["", "median", "p99", "p99.9", "longest", "batches"],
        [
            [name, *(shown(float(np.quantile(values, level))) for level in levels), f"{len(values):,}"]
            for name, values in every.items()
        ],
    )
    bars = {
        f"a batch, ms, {level}": {name: float(np.quantile(values, share)) for name, values in every.items()}
        for level, share in (("median", 0.5), ("p99", 0.99))
    }
    return run.finish("Swaps", claims, [table], bars=bars, notes=[f"{len(n_swaps):,} swaps"])


@contextmanager
def as_a_service() -> Iterator[None]:
    """Let threads take turns as a service does."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@contextmanager
def watched(n_swaps: list[int]) -> Iterator[tuple[LiveModel, Registry]]:
    """Give a live model that watches a registry of two versions, and the registry."""
    with tempfile.TemporaryDirectory(prefix="srr-swap-") as folder:
        registry = Registry(folder)
        for seed in (1, 2):
            trained = train(stream.columns(2000, seed), PRESETS["goad"].closed_form(), seed=seed, device="cpu")
            publish(registry, trained.model, stream.SCHEMA)
        live = LiveModel(
            registry,
            schema_digest=stream.SCHEMA.digest,
            false_alarm_rate=0.005,
            poll_every_s=_POLL_S,
            on_swap=lambda swapped: n_swaps.append(swapped.version),
        )
        registry.promote(1)
        live.refresh()
        live.start()
        try:
            yield live, registry
        finally:
            live.stop()


def promote(registry: Registry, stop: threading.Event) -> None:
    """Let another version be the champion, ten times a second."""
    for version in cycle((2, 1)):
        if stop.wait(0.1):
            return
        registry.promote(version)


def batches(live: LiveModel, seconds: float) -> NDArray[np.float64]:
    """Score batches for a while, each by whichever model is live; return the seconds of each."""
    columns = stream.columns(_BATCH, 9)
    took, until = [], time.perf_counter() + seconds
    while (started := time.perf_counter()) < until:
        current = live.current
        assert current is not None
        current.model.score(columns)
        took.append(time.perf_counter() - started)
    return np.array(took)
