"""How much contamination costs each detector: ``python -m benchmarks.contamination --set thyroid``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import report
from benchmarks.datasets import TABULAR, DatasetMissing, Table, load_table
from benchmarks.methods import COMPARED, METHODS, Context, options_of
from benchmarks.protocols import MIN_TEST_ANOMALIES, contaminated, drawn, is_feasible, z_scores
from benchmarks.report import Record, mean, number, percent, values
from benchmarks.runner import Run, Unit, measured, model_seed, parser, ratios, whole

RATIOS = (0.0, 0.025, 0.05, 0.1, 0.2)
MAX_ROWS, QUICK_ROWS = 20_000, 1_500


def main(arguments: Sequence[str] | None = None) -> int:
    cli = parser(
        "Measure F1, AUC and AP of detectors as more and more of the training rows are anomalies. The training set is "
        "half of the normal rows, a share of them swapped for anomalies; its size stays. No detector is told the "
        "share.",
        n_seeds=3,
        methods=(*COMPARED, "goad_unrefined"),
    )
    cli.add_argument("--set", choices=TABULAR, required=True, metavar="NAME", help=f"One of {', '.join(TABULAR)}.")
    cli.add_argument(
        "--ratios",
        type=ratios,
        default=list(RATIOS),
        help="Shares of anomalies in training, as fractions (default 0 to 0.2).",
    )
    cli.add_argument(
        "--max-rows", type=whole, default=MAX_ROWS, help=f"Draw at most so many rows (default {MAX_ROWS})."
    )
    cli.add_argument("--steps", type=whole, help="Training steps of GOAD (default: those of its preset).")
    options = cli.parse_args(arguments)
    if options.quick:
        options.seeds, options.ratios = 1, options.ratios[:2]
        options.max_rows, options.steps = min(options.max_rows, QUICK_ROWS), options.steps or 64
    try:
        # Rows are drawn by the seed, so whether a ratio can be made may depend on it.
        tables = [_drawn(options.set, seed, options.max_rows) for seed in range(options.seeds)]
    except DatasetMissing as error:
        cli.error(str(error))
    feasible = [r for r in options.ratios if all(is_feasible(table.is_anomaly, r) for table in tables)]
    if not feasible:
        cli.error(f"--ratios: {options.set} has too few anomalies for any of {options.ratios}; allowed: lower ones")
    left_out = [r for r in options.ratios if r not in feasible]
    run = Run(f"contamination-{options.set}", options)
    units = [
        Unit(
            "contamination",
            options.set,
            ratio,
            seed,
            method,
            _options(method, options.set, options.max_rows, options.steps),
        )
        for ratio in feasible
        for seed in range(options.seeds)
        for method in options.methods
    ]
    records = run.units(units, measure)
    image = f"{run.name}.png"
    lines = {
        METHODS[m].title: [(100 * r, mean(values(records, "f1", method=m, ratio=r))) for r in feasible]
        for m in options.methods
    }
    report.plot_lines(
        run.out / image,
        {options.set: lines},
        x_label="anomalies in training, %",
        y_label="F1",
        title=f"F1 against contamination, seeds: {options.seeds}",
    )
    found = [table(records, of, left_out) for of in ("f1", "auc", "ap")]
    notes = [
        f"{options.set}, seeds: {options.seeds}, at most {options.max_rows} rows; the last table counts them",
        *_without(left_out),
    ]
    return run.finish(f"Contamination: {options.set}", records, [*found, counts_table(records)], [image], notes)


def measure(unit: Unit) -> Mapping[str, Any]:
    """Run one method on one split."""
    assert unit.ratio is not None
    split = prepared(unit.dataset, unit.ratio, unit.seed, unit.options["max_rows"])
    context = Context(dataset=unit.dataset, n_steps=unit.options["n_steps"])
    return {
        **split.counts,
        **measured(unit.method, split.train, split.test, split.is_anomaly, model_seed(unit.seed), context),
    }


@dataclass(frozen=True)
class Prepared:
    """Scaled rows of a split, with labels that are for measuring only, and the counts of both."""

    train: NDArray[np.float32]
    is_anomaly_train: NDArray[np.bool_]
    test: NDArray[np.float32]
    is_anomaly: NDArray[np.bool_]
    counts: dict[str, Any]


@lru_cache(maxsize=1)
def prepared(name: str, ratio: float, seed: int, max_rows: int | None) -> Prepared:
    """Return a contaminated split of a set; of at most `max_rows` rows, drawn by the seed before they are split."""
    table = _drawn(name, seed, max_rows)
    split = contaminated(table.is_anomaly, ratio, seed)
    train, test = z_scores(table.X[split.train], table.X[split.test], keep_binary=True)
    is_anomaly_train, is_anomaly = table.is_anomaly[split.train], table.is_anomaly[split.test]
    counts = {
        "n_train": len(train),
        "n_train_anomalies": int(is_anomaly_train.sum()),
        "n_test": len(test),
        "n_test_anomalies": int(is_anomaly.sum()),
        "source": table.source,
    }
    return Prepared(train, is_anomaly_train, test, is_anomaly, counts)


def table(records: Sequence[Record], of: str, left_out: Sequence[float] = ()) -> report.Table:
    """Return one figure of every method at every ratio, mean ± deviation over the seeds, in percent."""
    shares = sorted({record["ratio"] for record in records})
    methods = list(dict.fromkeys(record["method"] for record in records))
    rows = [
        [METHODS[m].title, *(percent(values(records, of, method=m, ratio=ratio)) for ratio in shares)] for m in methods
    ]
    seconds = {
        m: mean(
            a + b for a, b in zip(values(records, "fit_s", method=m), values(records, "score_s", method=m), strict=True)
        )
        for m in methods
    }
    for row, method in zip(rows, methods, strict=True):
        row.append(number(seconds[method], 2))
    columns = ["method", *(f"{ratio:.1%}" for ratio in shares), "fit + score, s"]
    return report.Table(
        f"{of.upper()} in percent, by the share of anomalies in training", columns, rows, _without(left_out)
    )


def counts_table(records: Sequence[Record]) -> report.Table:
    """Return how many rows trained and tested: F1 and AP depend on the share of anomalies in the test set."""
    rows = []
    for ratio in sorted({record["ratio"] for record in records}):
        known = [record for record in report.good(records, ratio=ratio) if "n_train" in record]
        if known:
            names = ("n_train", "n_train_anomalies", "n_test", "n_test_anomalies")
            rows.append([f"{ratio:.1%}", *(f"{mean(record[name] for record in known):.0f}" for name in names)])
    return report.Table(
        "Rows, mean over the seeds", ["ratio", "training", "of them anomalies", "test", "of them anomalies"], rows
    )


def _without(left_out: Sequence[float]) -> list[str]:
    if not left_out:
        return []
    shares = ", ".join(f"{ratio:.1%}" for ratio in left_out)
    return [
        f"Left out: {shares}; the set has too few anomalies (at least {MIN_TEST_ANOMALIES} must remain for the test)."
    ]


def _options(method: str, dataset: str, max_rows: int, n_steps: int | None) -> dict[str, Any]:
    return {
        "max_rows": max_rows,
        "n_steps": n_steps,
        **options_of(METHODS[method], Context(dataset=dataset, n_steps=n_steps)),
    }


def _drawn(name: str, seed: int, max_rows: int | None) -> Table:
    whole_table = load_table(name, seed)
    rows = drawn(len(whole_table.X), max_rows, seed)
    if len(rows) == len(whole_table.X):
        return whole_table
    return Table(name, whole_table.X[rows], whole_table.is_anomaly[rows], whole_table.source)


if __name__ == "__main__":
    sys.exit(main())
