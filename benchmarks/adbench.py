"""Twenty kinds of data, none of them tuned for: ``python -m benchmarks.adbench``.

Fit on a random unlabelled half, anomalies and all, score the other half, as the sets' authors do not but streams must.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import report
from benchmarks.datasets import ADBENCH, DatasetMissing, load_table
from benchmarks.methods import COMPARED, METHODS, Context, options_of
from benchmarks.protocols import halves, z_scores
from benchmarks.report import Record, Table, mean, number, values
from benchmarks.runner import Run, Unit, measured, model_seed, names_of, parser, whole

MAX_ROWS = 10_000
QUICK_SETS, QUICK_ROWS = ("breastw", "glass", "cardio"), 1_000
REFERENCE = "iforest"
"""Whose time is the unit of the relative times."""


def main(arguments: Sequence[str] | None = None) -> int:
    cli = parser(
        "Compare detectors on 20 ADBench sets. Each fits on a random unlabelled half of at most --max-rows rows, "
        "anomalies and all, and scores the other half; columns are z-scores of the training half. AUC, AP and mean "
        "ranks over the sets.",
        n_seeds=3,
        methods=COMPARED,
    )
    cli.add_argument(
        "--sets", type=names_of("set", ADBENCH), help=f"Only these, separated by commas (all: {', '.join(ADBENCH)})."
    )
    cli.add_argument(
        "--max-rows", type=whole, default=MAX_ROWS, help=f"Draw at most so many rows (default {MAX_ROWS})."
    )
    cli.add_argument("--steps", type=whole, help="Training steps of GOAD (default: those of its preset).")
    options = cli.parse_args(arguments)
    sets = options.sets or list(QUICK_SETS if options.quick else ADBENCH)
    if options.quick:
        options.seeds, options.max_rows, options.steps = 1, min(options.max_rows, QUICK_ROWS), options.steps or 64
    try:
        for name in sets:
            load_table(name)
    except DatasetMissing as error:
        cli.error(str(error))
    run = Run("adbench", options)
    units = [
        Unit("adbench", name, None, seed, method, _options(method, name, options.max_rows, options.steps))
        for name in sets
        for seed in range(options.seeds)
        for method in options.methods
    ]
    records = run.units(units, measure)
    tables = [summary_table(records), *(set_table(records, of) for of in ("auc", "ap"))]
    image = f"{run.name}.png"
    panels = {
        title: {METHODS[m].title: _mean_of_sets(records, m, of) for m in _methods(records)}
        for title, of in (("mean AUC", "auc"), ("mean AP", "ap"))
    }
    report.plot_bars(run.out / image, panels, title=f"{len(sets)} ADBench sets, seeds: {options.seeds}")
    notes = [
        f"{len(sets)} sets, seeds: {options.seeds}, at most {options.max_rows} rows",
        "Fit on a random unlabelled half, anomalies and all; scored on the other; z-scores of the training half",
        "ECOD and COPOD of PyOD look at the training and test rows together when they score",
    ]
    return run.finish("ADBench: 20 kinds of data", records, tables, [image], notes)


def measure(unit: Unit) -> Mapping[str, Any]:
    """Run one method on one split."""
    train, test, is_anomaly, counts = _prepared(unit.dataset, unit.seed, unit.options["max_rows"])
    context = Context(dataset=unit.dataset, n_steps=unit.options["n_steps"])
    return {**counts, **measured(unit.method, train, test, is_anomaly, model_seed(unit.seed), context)}


def summary_table(records: Sequence[Record]) -> Table:
    """Return means over the sets, mean ranks, and times, best mean AUC first."""
    methods = _methods(records)
    of_sets = {of: {name: _of_set(records, name, methods, of) for name in _sets(records)} for of in ("auc", "ap")}
    ranks = {of: report.mean_ranks(of_sets[of]) for of in of_sets}
    seconds = {method: _seconds(records, method) for method in methods}
    reference = seconds.get(REFERENCE, float("nan"))
    rows = [
        [
            METHODS[method].title,
            number(_mean_of_sets(records, method, "auc")),
            number(_mean_of_sets(records, method, "ap")),
            number(ranks["auc"].get(method), 2),
            number(ranks["ap"].get(method), 2),
            number(seconds[method], 2),
            number(seconds[method] / reference if reference else None, 2),
        ]
        for method in sorted(methods, key=lambda m: -_mean_of_sets(records, m, "auc"))
    ]
    columns = [
        "method",
        "mean AUC",
        "mean AP",
        "rank by AUC",
        "rank by AP",
        "fit + score, s",
        f"× {METHODS[REFERENCE].title}",
    ]
    notes = ["Rank 1 is best. Seconds are those of all sets together, mean over the seeds."]
    incomplete = [name for name in _sets(records) if len(of_sets["auc"][name]) < len(methods)]
    if incomplete:
        notes.append(f"Not every method has figures on {', '.join(incomplete)}: left out of the ranks.")
    return Table(f"Means over {len(_sets(records))} sets", columns, rows, notes)


def set_table(records: Sequence[Record], of: str) -> Table:
    """Return one figure of every set and method, mean over the seeds."""
    methods = _methods(records)
    rows = []
    for name in _sets(records):
        found = _of_set(records, name, methods, of)
        best = max(found, key=lambda method: found[method]) if found else None
        rows.append(
            [name, *(number(found.get(method)) for method in methods), "-" if best is None else METHODS[best].title]
        )
    return Table(f"{of.upper()} by set", ["set", *(METHODS[method].title for method in methods), "best"], rows)


def _options(method: str, dataset: str, max_rows: int, n_steps: int | None) -> dict[str, Any]:
    own = options_of(METHODS[method], Context(dataset=dataset, n_steps=n_steps))
    return {"max_rows": max_rows, "n_steps": n_steps, **own}


@lru_cache(maxsize=1)
def _prepared(
    name: str, seed: int, max_rows: int
) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.bool_], dict[str, Any]]:
    table = load_table(name)
    split = halves(table.is_anomaly, seed, max_rows)
    train, test = z_scores(table.X[split.train], table.X[split.test])
    is_anomaly = table.is_anomaly[split.test]
    counts = {
        "n_train": len(train),
        "n_train_anomalies": int(table.is_anomaly[split.train].sum()),
        "n_test": len(test),
        "n_test_anomalies": int(is_anomaly.sum()),
        "source": table.source,
    }
    return train, test, is_anomaly, counts


def _methods(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(record["method"] for record in records))


def _sets(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(record["dataset"] for record in records))


def _of_set(records: Sequence[Record], name: str, methods: Sequence[str], of: str) -> dict[str, float]:
    found = {method: values(records, of, dataset=name, method=method) for method in methods}
    return {method: mean(figures) for method, figures in found.items() if figures}


def _mean_of_sets(records: Sequence[Record], method: str, of: str) -> float:
    return mean(figure for name in _sets(records) for figure in _of_set(records, name, [method], of).values())


def _seconds(records: Sequence[Record], method: str) -> float:
    return sum(
        _of_set(records, name, [method], part).get(method, 0.0)
        for name in _sets(records)
        for part in ("fit_s", "score_s")
    )


if __name__ == "__main__":
    sys.exit(main())
