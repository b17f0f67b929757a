"""What a hot swap costs the batches beside it: scoring while another thread loads and swaps models, and while it rests.

The real registry, in a folder, and the real watch over it, in one process without a broker: what is measured is the
swap, and nothing else that a service does. In half of the turns a version is promoted every 100 ms.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import Table
from benchmarks.runner import OUT, limit_threads, whole
from benchmarks.speed import stream
from benchmarks.speed.pairs import Claim, Run, interleaved, quartiles, ratio, shown
from models.persistence import model_to_parts
from models.presets import PRESETS
from srr_stream.live_model import LiveModel, make_canary
from srr_stream.registry import Manifest, Registry
from srr_stream.service import SWITCH_S

QUIET, SWAPPING = "no swap", "a swap every 100 ms"
_BATCH = 500
_POLL_S = 0.02


def main(arguments: Sequence[str]) -> int:
    cli = argparse.ArgumentParser(prog="python -m benchmarks.speed swap", description=__doc__)
    cli.add_argument("--seconds", type=whole, default=5, help="Of a turn (default 5).")
    cli.add_argument("--rounds", type=whole, default=7, help="How often each has its turn (default 7).")
    cli.add_argument("--quick", action="store_true", help="A run of seconds.")
    cli.add_argument("--out", type=Path, default=OUT, help=f"Write JSON, Markdown and PNG here (default {OUT}).")
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

        figures = interleaved({name: (lambda n=name: turn(n)) for name in took}, n_rounds=n_rounds, n_warm_up=0)
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
            publish(registry, seed)
        live = LiveModel(
            registry,
            schema_digest="speed",
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


def publish(registry: Registry, seed: int) -> None:
    """Put a closed-form model into the registry."""
    from models.training import train

    model = train(stream.columns(2000, seed), PRESETS["goad"].closed_form(), seed=seed, device="cpu").model
    description, weights = model_to_parts(model)
    manifest = Manifest(
        version=0,
        created_at="",
        reason="speed",
        schema={},
        schema_digest="speed",
        window={"ranges": [], "n_records": 2000, "n_bad": 0},
        training={},
        gate={},
        model=description,
        canary=make_canary(model),
    )
    registry.publish(manifest, weights)


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
