"""Columns to severity, in memory: a Gaussian beside a matrix product, GOAD beside the machine's floating-point rate.

One thread each, as in the service, where the other cores are the broker's and the trainer's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from benchmarks.report import Table
from benchmarks.runner import limit_threads, whole
from benchmarks.speed import stream
from benchmarks.speed.pairs import Claim, Run, interleaved, parser, quartiles, rate, rates_table, ratio, shown
from models.detector import Model
from models.presets import PRESETS

PRODUCT, GEMM = "numpy: (n, 16) float32 times 16 x 16", "numpy: 2048³ float32"
GAUSSIAN, GOAD, DEFAULT = "identity + GDE", "GOAD, M = 32", "preset default (blend)"
BATCHES = (1, 16, 128, 1024, 8192)
_SIDE = 2048


def main(arguments: Sequence[str]) -> int:
    cli = parser("score", __doc__, n_rounds=9, has_quick=True)
    cli.add_argument("--records", type=whole, default=16_384, help="Scored together (default 16384).")
    options = cli.parse_args(arguments)
    limit_threads(1)
    run = Run("score", arguments, out=options.out, n_threads=1)
    n, n_rounds = (1024, 1) if options.quick else (options.records, options.rounds)
    models = made(is_quick=options.quick)
    columns, matrix = stream.columns(n, 3), stream.matrix(n, 3).astype(np.float32)
    small = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)
    square = np.random.default_rng(0).normal(size=(_SIDE, _SIDE)).astype(np.float32)
    contestants: dict[str, Callable[[], float]] = {
        PRODUCT: lambda: rate(lambda: matrix @ small, n),
        GEMM: lambda: rate(lambda: square @ square, 1) * 2 * _SIDE**3,
        **{name: partial(rate, partial(model.score, columns), n) for name, model in models.items()},
        "scikit-learn IsolationForest": forest(matrix),
        "River HalfSpaceTrees, score and learn": river(stream.columns(512, 3)),
    }
    figures = interleaved(contestants, n_rounds=n_rounds)
    flops = folded_flops(models[GOAD])
    claims = [
        ratio(f"scoring, {GAUSSIAN}", figures[GAUSSIAN], figures[PRODUCT], PRODUCT, 0.5),
        ratio(f"scoring, {GOAD}: {flops:,} operations a record", figures[GOAD] * flops, figures[GEMM], GEMM, 0.5),
        worst_error(models[GOAD]),
    ]
    by_size = [[name, *(shown(rate_at(model, size)) for size in BATCHES)] for name, model in models.items()]
    gemm = figures.pop(GEMM)
    return run.finish(
        "Scoring",
        claims,
        [
            rates_table("Records a second", figures, "records/s"),
            Table("By the size of a batch, records/s", ["", *(f"{size:,}" for size in BATCHES)], by_size),
            Table("Where the time goes, µs a record", ["", *PARTS], [[k, *parts(m, n)] for k, m in models.items()]),
        ],
        bars={"records/s": {name: quartiles(values)[1] for name, values in figures.items() if name != PRODUCT}},
        notes=[f"float32 matrix products: {quartiles(gemm)[1] / 1e9:.0f} GFLOP/s on one thread"],
    )


def rate_at(model: Model, size: int) -> float:
    """Return how many records a second are scored in batches of a size."""
    columns = stream.columns(size, 4)
    return rate(lambda: model.score(columns), size)


def made(*, is_quick: bool) -> dict[str, Model]:
    """Return the models that are timed."""
    goad = stream.GOAD_32
    if is_quick:
        goad = replace(goad, representation_options={"n_transforms": 32, "n_steps": 8})
    configs = {GAUSSIAN: PRESETS["goad"].closed_form(), GOAD: goad, DEFAULT: PRESETS["default"]}
    return {name: stream.model(config) for name, config in configs.items()}


def folded_flops(model: Model) -> int:
    """Return what a record needs at the least: the folded first layer, the others, and the Gaussians' triangles."""
    options: Any = model.representation.state().values
    m, width, n_layers = options["n_transforms"], options["width"], options["n_layers"]
    return int(2 * (len(stream.FIELDS) * m * width + (n_layers - 1) * m * width**2) + m * width * (width + 1))


PARTS = ("scale fields", "embed", "classify", "p-value")


def parts(model: Model, n: int) -> list[str]:
    """Return the microseconds a record of each part of a model."""
    columns = stream.columns(n, 3)
    X: Any = model.preprocessor.transform(columns)
    Z = model.representation.embed(X)
    score = model.classifier.score(Z)
    steps: list[Callable[[], object]] = [
        lambda: model.preprocessor.transform(columns),
        lambda: model.representation.embed(X),
        lambda: model.classifier.score(Z),
        lambda: model.calibration.log_p(score),
    ]
    return [f"{1e6 / rate(step, n):.3f}" for step in steps]


def worst_error(model: Model) -> Claim:
    """Return by how much the score in float32 differs from the same in float64, relative to the score's deviation."""
    X: Any = model.preprocessor.transform(stream.columns(4096, 8))
    state = model.representation.state()
    options = state.values
    hidden = np.einsum("nd,mdp->nmp", X.astype(np.float64), state.arrays["projections"].astype(np.float64))
    for index in range(options["n_layers"]):
        weight, bias = state.arrays[f"weight{index}"], state.arrays[f"bias{index}"]
        hidden = hidden @ weight.T.astype(np.float64) + bias
        hidden = np.where(hidden > 0.0, hidden, 0.2 * hidden)
    exact = model.classifier.score(hidden)
    error = np.abs(model.classifier.score(model.representation.embed(X)) - exact)
    worst = float(error.max() / exact.std())
    return Claim("error of float32, greatest of 4,096", worst, "deviations", "float64", 1e-3, at_least=False)


def forest(matrix: Any) -> Callable[[], float]:
    from sklearn.ensemble import IsolationForest

    trees = IsolationForest(random_state=0).fit(stream.matrix(4000, 99))
    return lambda: rate(lambda: trees.score_samples(matrix), len(matrix))


def river(columns: Any) -> Callable[[], float]:
    from river.anomaly import HalfSpaceTrees

    trees: Any = HalfSpaceTrees(seed=0, limits=dict.fromkeys(stream.FIELDS, (-20.0, 20.0)))
    rows = [dict(zip(columns, row, strict=True)) for row in np.column_stack(list(columns.values())).tolist()]

    def work() -> None:
        for row in rows:
            trees.score_one(row)
            trees.learn_one(row)

    return lambda: rate(work, len(rows))
