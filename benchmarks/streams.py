"""Seven server streams in the order of time, scored before they are learned: ``python -m benchmarks.streams``."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import report
from benchmarks.datasets import STREAMS, DatasetMissing, Stream, load_stream
from benchmarks.methods import METHODS, Context, fit, half_space_trees, options_of, records
from benchmarks.protocols import to_unit_range, z_scores
from benchmarks.report import Record, Table, mean, number, values
from benchmarks.runner import Run, Unit, model_seed, names_of, parser, quality, quiet, warm_up, whole

WINDOW, EVERY = 10_000, 2_000
SCALES = ("window", "warm-up")
COMPARED = ("srr", "srr_unrefined", "gde", "iforest", "half_space_trees")
ONLINE = "half_space_trees"
QUICK_STREAMS = ("asd_server_1",)


def main(arguments: Sequence[str] | None = None) -> int:
    cli = parser(
        "Test, then train, over the public server streams SMD (3) and ASD (4). The unlabelled part warms up; the "
        "labelled part is scored in order, and models are fitted anew every --every rows on the last --window rows, "
        "anomalies and all.",
        n_seeds=3,
        methods=COMPARED,
    )
    cli.add_argument(
        "--sets", type=names_of("stream", STREAMS), help=f"Only these, separated by commas (all: {', '.join(STREAMS)})."
    )
    cli.add_argument("--window", type=whole, default=WINDOW, help=f"Rows that a model is fitted on (default {WINDOW}).")
    cli.add_argument("--every", type=whole, default=EVERY, help=f"Rows between two fits (default {EVERY}).")
    cli.add_argument(
        "--scale",
        choices=SCALES,
        default=SCALES[0],
        help="z-scores of the rows that a model is fitted on, or of the unlabelled part throughout (default window).",
    )
    cli.add_argument("--steps", type=whole, help="Training steps of GOAD (default: those of its preset).")
    options = cli.parse_args(arguments)
    sets = options.sets or list(QUICK_STREAMS if options.quick else STREAMS)
    if options.quick:
        options.seeds, options.window, options.steps = 1, min(options.window, 2_000), options.steps or 64
    try:
        for name in sets:
            load_stream(name)
    except DatasetMissing as error:
        cli.error(str(error))
    run = Run("streams", options)
    units = []
    for name in sets:
        for method in options.methods:
            own = options_of(METHODS[method], Context(dataset=name, n_steps=options.steps))
            keyed = {
                "window": options.window,
                "every": options.every,
                "scale": options.scale,
                "n_steps": options.steps,
                **own,
            }
            # There is one stream and no split, so that only what is random has something to average over.
            seeds = range(options.seeds if METHODS[method].is_random else 1)
            units += [Unit("streams", name, None, seed, method, keyed) for seed in seeds]
    found = run.units(units, measure)
    image = f"{run.name}.png"
    panels = {
        f"mean {of.upper()}": {
            METHODS[m].title: mean(_of_stream(found, name, m, of) for name in sets) for m in options.methods
        }
        for of in ("auc", "ap")
    }
    report.plot_bars(run.out / image, panels, title=f"{len(sets)} server streams, test then train")
    tables = [table(found, of) for of in ("auc", "ap")]
    notes = [
        f"Refit every {options.every} rows on the last {options.window}, anomalies and all",
        f"z-scores of the {options.scale}",
        f"Seeds: {options.seeds} for what is random",
        "HalfSpaceTrees learns every row from the first on, scaled by the minimum and maximum of the unlabelled part",
    ]
    return run.finish("Streams: test, then train", found, tables, [image], notes)


def measure(unit: Unit) -> Mapping[str, Any]:
    """Run one method over one stream."""
    stream = _stream(unit.dataset)
    warm_up(unit.method, METHODS[unit.method])
    with quiet():
        if unit.method == ONLINE:
            scores, seconds = _online(stream, model_seed(unit.seed))
        else:
            context = Context(dataset=unit.dataset, n_steps=unit.options["n_steps"])
            scores, seconds = _refitted(stream, unit, context)
    is_anomaly = stream.is_anomaly[stream.n_warm_up :]
    return {**quality(is_anomaly, scores), **seconds, "n_test": len(scores), "n_test_anomalies": int(is_anomaly.sum())}


def turns(n_warm_up: int, n_rows: int, window: int, every: int) -> Iterator[tuple[slice, slice]]:
    """Yield, in order, the rows to fit on and the rows to score with that model: never a row that was fitted on.

    Examples
    --------
    >>> [(fit.start, fit.stop, score.start, score.stop) for fit, score in turns(5, 12, window=4, every=3)]
    [(1, 5, 5, 8), (4, 8, 8, 11), (7, 11, 11, 12)]
    """
    for start in range(n_warm_up, n_rows, every):
        yield slice(max(0, start - window), start), slice(start, min(start + every, n_rows))


def table(found: Sequence[Record], of: str) -> Table:
    """Return one figure of every stream and method, mean over the seeds, and the mean over the streams."""
    methods = list(dict.fromkeys(record["method"] for record in found))
    streams = list(dict.fromkeys(record["dataset"] for record in found))
    rows = [[name, *(number(_of_stream(found, name, method, of)) for method in methods)] for name in streams]
    rows.append(
        ["mean", *(number(mean(_of_stream(found, name, method, of) for name in streams)) for method in methods)]
    )
    seconds = [
        sum(mean(values(found, part, dataset=name, method=m)) for name in streams for part in ("fit_s", "score_s"))
        for m in methods
    ]
    rows.append(["fit + score, s", *(number(total, 1) for total in seconds)])
    return Table(f"{of.upper()} by stream", ["stream", *(METHODS[method].title for method in methods)], rows)


def _of_stream(found: Sequence[Record], name: str, method: str, of: str) -> float:
    return mean(values(found, of, dataset=name, method=method))


def _refitted(stream: Stream, unit: Unit, context: Context) -> tuple[NDArray[np.float64], dict[str, float]]:
    parts, seconds = [], {"fit_s": 0.0, "score_s": 0.0}
    for rows, coming in turns(stream.n_warm_up, len(stream.X), unit.options["window"], unit.options["every"]):
        started = time.perf_counter()
        if unit.options["scale"] == "window":
            window, batch = z_scores(stream.X[rows], stream.X[coming])
        else:
            _, window, batch = z_scores(stream.X[: stream.n_warm_up], stream.X[rows], stream.X[coming])
        scorer = fit(METHODS[unit.method], window, model_seed(unit.seed), context)
        fitted = time.perf_counter()
        parts.append(scorer(batch))
        seconds["fit_s"] += fitted - started
        seconds["score_s"] += time.perf_counter() - fitted
    return np.concatenate(parts), seconds


def _online(stream: Stream, seed: int) -> tuple[NDArray[np.float64], dict[str, float]]:
    trees = half_space_trees(stream.n_warm_up, seed)
    warm, coming = to_unit_range(stream.X[: stream.n_warm_up], stream.X[stream.n_warm_up :])
    started = time.perf_counter()
    for record in records(warm):
        trees.learn_one(record)
    fitted = time.perf_counter()
    scores = np.empty(len(coming))
    for index, record in enumerate(records(coming)):
        scores[index] = trees.score_one(record)
        trees.learn_one(record)
    return scores, {"fit_s": fitted - started, "score_s": time.perf_counter() - fitted}


@lru_cache(maxsize=1)
def _stream(name: str) -> Stream:
    return load_stream(name)


if __name__ == "__main__":
    sys.exit(main())
