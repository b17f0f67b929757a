"""A window to a model: how long, where the time goes, how it grows with the window, and DeepOD's GOAD beside ours.

Windows are rows of KDD Cup 1999 (``SRR_DATA_DIR``), one-hot, 121 columns; without them made-up rows of that shape. One
thread, as the service's trainer has by default.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks.datasets import DatasetMissing, load_table
from benchmarks.report import Table, plot_lines
from benchmarks.runner import limit_threads, quiet, whole
from benchmarks.speed.pairs import Claim, Run, interleaved, parser, quartiles, ratio, shown
from models.presets import PRESETS
from models.state import Columns
from models.training import Trained, TrainingConfig, train

CONFIGS: dict[str, TrainingConfig] = {
    "goad": PRESETS["goad"],
    "identity (closed form)": PRESETS["goad"].closed_form(),
    "default (blend)": PRESETS["default"],
}
LIMITS_S = {"goad": 45.0, "identity (closed form)": 1.0, "default (blend)": 1.0}
"""What a window of 100,000 records may take."""
_SIZES = (10_000, 100_000, 1_000_000)
_LARGEST = {"default (blend)": 100_000}
"""Whose cost is known to be linear, and minutes beyond."""
_DEEPOD_ROWS, _DEEPOD_EPOCHS, _M = 5000, 4, 32


def main(arguments: Sequence[str]) -> int:
    cli = parser("train", __doc__, n_rounds=3, has_quick=True)
    cli.add_argument("--largest", type=whole, default=_SIZES[-1], help=f"Rows at most (default {_SIZES[-1]}).")
    options = cli.parse_args(arguments)
    limit_threads(1)
    run = Run("train", arguments, out=options.out, n_threads=1)
    sizes = [300, 1000, 3000] if options.quick else [size for size in _SIZES if size <= options.largest]
    configs = {name: _short(config) if options.quick else config for name, config in CONFIGS.items()}
    X, origin = rows(max(sizes))
    seconds: dict[str, list[float]] = {name: [] for name in configs}
    middle = sizes[min(1, len(sizes) - 1)]
    refine_share, tables, claims = np.nan, [], []
    for size in sizes:
        n_rounds = 1 if options.quick or size > 100_000 else options.rounds
        last: dict[str, Trained] = {}
        window = as_window(X[:size])

        def turn(name: str, window: Columns = window, last: dict[str, Trained] = last) -> float:
            started = time.perf_counter()
            last[name] = train(window, configs[name], seed=0, device="cpu")
            return time.perf_counter() - started

        names = [name for name in configs if size <= _LARGEST.get(name, size)]
        figures = interleaved({name: partial(turn, name) for name in names}, n_rounds=n_rounds, n_warm_up=0)
        for name, values in figures.items():
            seconds[name].append(quartiles(values)[1])
        stages = sorted({stage for each in last.values() for stage in each.report.seconds})
        tables.append(
            Table(
                f"{size:,} rows, seconds",
                ["", "in all", *stages, "MiB resident"],
                [
                    [
                        name,
                        shown(quartiles(figures[name])[1]),
                        *(shown(each.report.seconds.get(stage, 0.0)) for stage in stages),
                        shown(psutil.Process().memory_info().rss / 2**20),
                    ]
                    for name, each in last.items()
                ],
            )
        )
        if size == middle:
            of_goad = last["goad"].report.seconds
            refine_share = of_goad["refine"] / of_goad["train"]
    for name in configs:
        at = seconds[name][sizes.index(middle)]
        claims.append(Claim(f"train {name}, {middle:,} rows", at, "s", "asked", LIMITS_S[name], at_least=False))
    claims.append(Claim(f"refinement in GOAD, {middle:,} rows", refine_share, "of SSL", "asked", 0.05, at_least=False))
    for name, took in seconds.items():
        first, end = sizes[len(took) - 2], sizes[len(took) - 1]
        exponent = float(np.log(took[-1] / took[-2]) / np.log(end / first))
        claims.append(Claim(f"{name}: cost ∝ rows^", exponent, "", f"{first:,} to {end:,} rows", 1.1, at_least=False))
    n_steps = PRESETS["goad"].make_representation().steps_for(1)
    notes = [f"rows: {origin}; GOAD makes {n_steps:,} steps whatever the size"]
    if find_spec("deepod") is None:
        notes.append("DeepOD is not installed (pip install --no-deps deepod tqdm): no comparison")
    else:
        few, n_rounds = (500, 1) if options.quick else (_DEEPOD_ROWS, options.rounds)
        deepod, ours = beside_deepod(X[:few], n_rounds)
        claims.append(ratio("train GOAD + SRR, same sample transformations", deepod, ours, "DeepOD GOAD", 5.0))
    plot_lines(
        options.out / "speed-train.png",
        {"seconds": {name: list(zip(sizes, each, strict=False)) for name, each in seconds.items()}},
        x_label="rows",
        y_label="seconds",
        title="Training",
    )
    return run.finish("Training", claims, tables, images=["speed-train.png"], notes=notes)


def _short(config: TrainingConfig) -> TrainingConfig:
    if not config.make_representation().steps_for(1):
        return config
    return replace(config, representation_options={**config.representation_options, "n_steps": 16})


def rows(n: int) -> tuple[NDArray[np.float32], str]:
    """Return `n` rows of 121 columns, again and again the same if there are not so many, and where they are from."""
    try:
        X, origin = load_table("kdd").X, "KDD Cup 1999, 10 percent"
    except DatasetMissing:
        X, origin = np.random.default_rng(0).normal(size=(20_000, 121)).astype(np.float32), "made up"
    chosen = np.random.default_rng(1).permutation(len(X))
    repeated = np.resize(chosen, n)
    return X[repeated], origin if n <= len(X) else f"{origin}, {len(X):,} rows, repeated"


def as_window(X: NDArray[np.float32]) -> Columns:
    """Return rows as the trainer of the service gets them: columns of float64, each in one piece."""
    return {f"x{i}": column for i, column in enumerate(np.array(X.T, dtype=np.float64, order="C"))}


def trained(X: NDArray[np.float32], config: TrainingConfig) -> Trained:
    """Train on the rows as columns."""
    return train(as_window(X), config, seed=0, device="cpu")


def beside_deepod(X: NDArray[np.float32], n_rounds: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the seconds of DeepOD's fit and of ours, with refinement, for as many rows put through a projection."""
    from deepod.models.tabular import GOAD  # type: ignore[import-not-found]  # installed by whoever compares

    n_transformed = len(X) * _M * _DEEPOD_EPOCHS
    goad: Any = PRESETS["goad"].make_representation()
    batch = goad.options
    config = replace(
        PRESETS["goad"],
        representation_options={
            "n_transforms": _M,
            "n_steps": max(1, n_transformed // (batch["batch_rows"] * batch["n_picked"])),
        },
    )

    def theirs() -> float:
        model = GOAD(epochs=_DEEPOD_EPOCHS, n_trans=_M, device="cpu", verbose=0)
        started = time.perf_counter()
        with quiet():
            model.fit(X)
        return time.perf_counter() - started

    def ours() -> float:
        started = time.perf_counter()
        trained(X, config)
        return time.perf_counter() - started

    contestants: dict[str, Callable[[], float]] = {"DeepOD": theirs, "ours": ours}
    figures = interleaved(contestants, n_rounds=n_rounds)
    return figures["DeepOD"], figures["ours"]
