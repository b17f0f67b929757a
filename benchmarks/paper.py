"""The paper's tabular figures and tables, the published figure beside ours: ``python -m benchmarks.paper figure4``.

Yoon, Sohn, Li, Arik, Lee, Pfister, "Self-supervise, Refine, Repeat: Improving Unsupervised Anomaly Detection" (2022).
Splits are those of its section 4.1 (`benchmarks.protocols.contaminated`); γ is twice the true ratio, 0.005 at ratio 0.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks import images, ours, report
from benchmarks.contamination import counts_table, prepared
from benchmarks.datasets import PAPER, DatasetMissing, load_table
from benchmarks.methods import METHODS, Context, Method, named, options_of
from benchmarks.protocols import MIN_TEST_ANOMALIES, is_feasible
from benchmarks.published import PUBLISHED, PUBLISHED_GAINS, PUBLISHED_RAW_GAINS, TABLE1, published
from benchmarks.report import Record, Table, good, mean, number, percent, values
from benchmarks.runner import Run, Unit, measured, model_seed, names_of, parser, quality, quiet, ratios, warm_up, whole
from models.evaluation import refinement_efficacy

BEST: dict[str, tuple[str, Mapping[str, Any]]] = {
    "kdd": (
        "default",
        {
            "classifier": "gde",
            "classifier_options": {"shrinkage": 0.01},
            "ensemble_options": {},
            "scaling": "standard",
            "refine_rounds": 1,
        },
    ),
    "kddrev": ("goad", {"scaling": "asinh"}),
    "thyroid": ("default", {}),
    "arrhythmia": ("default", {"classifier": "histogram", "ensemble_options": {}}),
}
"""Set → the preset that suits it, with the fields that differ; told γ like the others. Tuned on them: no default."""

RATIOS = {
    "kdd": [0.0, 0.06, 0.1],
    "kddrev": [0.0, 0.01, 0.025],
    "thyroid": [0.0, 0.005, 0.01, 0.015, 0.025],
    "arrhythmia": [0.0, 0.025, 0.05, 0.1],
}
"""Within the ranges of figure 4."""
ONE_RATIO = {"kdd": 0.06, "kddrev": 0.025, "thyroid": 0.015, "arrhythmia": 0.1}
"""Where a figure has one ratio: those that the text has figures for, else the end of the range."""
TOP_RATIO = {"kdd": 0.1, "kddrev": 0.025, "thyroid": 0.025, "arrhythmia": 0.1}
TABLE_RATIOS = {"thyroid": 0.015, "kdd": 0.06}
"""The tabular rows of tables 6 to 8."""
CLEAN_GAMMA = 0.005


def _best(dataset: str) -> tuple[str, Mapping[str, Any]]:
    return BEST.get(dataset, ("default", {}))


ALL_METHODS: dict[str, Method] = {
    **METHODS,
    "best": named("Best preset", _best),
    "best_unrefined": named("Best preset, no refinement", _best, refine="none"),
    "best_otsu": named("Best preset, Otsu", _best, gamma="otsu"),
}
FIGURE4 = (
    "ocsvm_tight",
    "pca",
    "pca_residual",
    "lof",
    "robust_pca",
    "iforest",
    "goad",
    "goad_srr",
    "raw",
    "raw_srr",
    "srr",
    "best",
    "best_unrefined",
)
TABLES: dict[str, tuple[str, ...]] = {
    "Table 6, tabular rows: other methods": (
        "ocsvm_tight",
        "pca",
        "pca_residual",
        "robust_pca",
        "lof",
        "iforest",
        "goad",
        "goad_srr",
        "best",
    ),
    "Table 7, tabular rows: what each part adds": ("goad", "goad_ensemble", "goad_final", "goad_no_final", "goad_srr"),
    "Table 8, tabular rows: γ by Otsu": ("goad", "goad_srr", "goad_otsu", "best_unrefined", "best", "best_otsu"),
}
REFINED = ("goad_srr",)
PAIRS = (
    ("goad", "goad_srr"),
    ("raw", "raw_srr"),
    ("paper", "paper_srr"),
    ("best_unrefined", "best"),
    ("goad_unrefined", "srr_goad"),
)
"""The same representation without and with refinement."""

TABLE1_PRESETS = ("paper_kdd", "paper", "goad", "default")


class Variant(NamedTuple):
    """A unit and the words for what it varies, for figures whose methods differ in settings only."""

    unit: Unit
    words: tuple[str, ...]


def main(arguments: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given[:1] == ["images"]:
        return images.main(given[1:])
    cli = parser(
        "Reproduce the tabular figures and tables of the paper, the published figure beside ours (those on pictures: "
        "`images --help`). Training is half of "
        "the normal rows, a share of them swapped for anomalies; F1 flags as many test rows as there are anomalies. "
        "All targets share one journal, so what one has measured another does not run again.",
        n_seeds=4,
        methods=(),
        allowed=ALL_METHODS,
    )
    cli.add_argument(
        "target", choices=[*TARGETS, "all"], help="Which figure or table; `ocr` is figure 4's F1 over the ratio alone."
    )
    cli.add_argument(
        "--sets",
        type=names_of("set", PAPER),
        default=None,
        help=f"Only these, separated by commas (all: {', '.join(PAPER)}).",
    )
    cli.add_argument(
        "--ratios", type=ratios, help="Shares of anomalies in training, as fractions (default: the paper's, by set)."
    )
    cli.add_argument("--steps", type=whole, help="Training steps of GOAD (default: those of the preset).")
    cli.add_argument("--max-rows", type=whole, help="Draw at most so many rows of a set (default: all).")
    options = cli.parse_args(given)
    if options.quick:
        options.sets, options.seeds = options.sets or ["thyroid"], 1
        options.ratios, options.steps = options.ratios or [0.0, 0.015], options.steps or 32
        options.max_rows = min(options.max_rows or 4_000, 4_000)
    options.sets = options.sets or list(PAPER)
    if options.target in TRACED:
        unfit = [name for name in options.methods if ALL_METHODS[name].config is None]
        if unfit:
            allowed = ", ".join(name for name, method in ALL_METHODS.items() if method.config is not None)
            cli.error(
                f"--methods: {', '.join(unfit)} cannot be varied or traced by {options.target}; allowed: {allowed}"
            )
    targets = [t for t in TARGETS if t != "ocr"] if options.target == "all" else [options.target]
    try:
        for name in options.sets if targets != ["table1"] else []:
            load_table(name)
    except DatasetMissing as error:
        cli.error(str(error))
    return max(TARGETS[target](options) for target in targets)


def _name(target: str, options: argparse.Namespace) -> str:
    """Return what the files of a run are called: runs of some sets only stand beside those of others."""
    some = [] if options.sets == list(PAPER) else options.sets
    return "-".join(["paper", target, *some])


def gamma_of(ratio: float) -> float:
    """Return the paper's γ: twice the true ratio, and 0.5 % where there are no anomalies.

    Examples
    --------
    >>> gamma_of(0.06), gamma_of(0.0)
    (0.12, 0.005)
    """
    return 2.0 * ratio or CLEAN_GAMMA


def figure4(options: argparse.Namespace) -> int:
    """F1, AUC and AP against the ratio, all methods, set by set."""
    run = Run(_name("figure4", options), options, journal="paper")
    chosen, left_out = _ratios(options, RATIOS)
    units = [
        _unit(options, name, ratio, seed, method)
        for name in options.sets
        for ratio in chosen[name]
        for seed in range(options.seeds)
        for method in _methods(options, FIGURE4)
    ]
    records = run.units(units, measure)
    tables = []
    for name in options.sets:
        of_set = [record for record in records if record["dataset"] == name]
        tables += [method_table(f"{name}: F1, AUC and AP in percent", of_set, left_out[name]), gain_table(name, of_set)]
        tables.append(Table(f"{name}: rows, mean over the seeds", *_rows_of(counts_table(of_set))))
    image = f"{run.name}.png"
    panels = {name: _lines(name, [r for r in records if r["dataset"] == name]) for name in options.sets}
    report.plot_lines(
        run.out / image,
        panels,
        x_label="anomalies in training, %",
        y_label="F1, %",
        title="Figure 4: F1 against contamination",
    )
    return run.finish(
        f"Paper, figure 4: F1 against contamination, {', '.join(options.sets)}",
        records,
        tables,
        [image],
        _notes(options),
    )


def ocr(options: argparse.Namespace) -> int:
    """F1 only, one row a method and one column a ratio, from the units of figure 4."""
    run = Run(_name("ocr", options), options, journal="paper")
    chosen, left_out = _ratios(options, RATIOS)
    methods = _methods(options, FIGURE4)
    units = [
        _unit(options, name, ratio, seed, method)
        for name in options.sets
        for ratio in chosen[name]
        for seed in range(options.seeds)
        for method in methods
    ]
    records = run.units(units, measure)
    tables = []
    for name in options.sets:
        columns = ["method", *(text for ratio in chosen[name] for text in (f"{ratio:.1%}", "paper"))]
        rows = []
        for method in methods:
            cells = [ALL_METHODS[method].title]
            for ratio in chosen[name]:
                cells += [
                    percent(values(records, "f1", dataset=name, ratio=ratio, method=method)),
                    published(name, ratio, method),
                ]
            rows.append(cells)
        tables.append(Table(f"{name}: F1 in percent against the ratio", columns, rows, left_out[name]))
    return run.finish("Paper: F1 over the contamination ratio", records, tables, (), _notes(options))


def table1(options: argparse.Namespace) -> int:
    """Hyperparameters of the presets beside the paper's; nothing is measured."""
    run = Run(_name("table1", options), options, journal="paper")
    presets = {name: ours.hyperparameters(name) for name in TABLE1_PRESETS}
    rows = [
        [name, *paper, *(str(presets[preset].get(name, "-")) for preset in TABLE1_PRESETS)]
        for name, paper in TABLE1.items()
    ]
    columns = [
        "hyperparameter",
        "paper: KDD, KDD-Rev",
        "paper: Thyroid, Arrhythmia",
        *(f"`{name}`" for name in TABLE1_PRESETS),
    ]
    notes = ["gamma: how it is estimated; where the ratio is known, as in these figures, it is twice that."]
    return run.finish("Paper, table 1: hyperparameters", [], [Table("Hyperparameters", columns, rows, notes)])


def tables(options: argparse.Namespace) -> int:
    """Tabular rows of tables 6, 7 and 8."""
    run = Run(_name("tables", options), options, journal="paper")
    sets = [name for name in options.sets if name in TABLE_RATIOS]
    if not sets:
        print(
            f"tables 6 to 8 have no rows for {', '.join(options.sets)}; allowed: {', '.join(TABLE_RATIOS)}",
            file=sys.stderr,
        )
        return 0
    methods = list(dict.fromkeys(method for group in TABLES.values() for method in group))
    units = [
        _unit(options, name, TABLE_RATIOS[name], seed, method)
        for name in sets
        for seed in range(options.seeds)
        for method in _methods(options, methods)
    ]
    records = run.units(units, measure)
    made = [
        method_table(f"{title}, {name}", [r for r in records if r["dataset"] == name and r["method"] in group])
        for title, group in TABLES.items()
        for name in sets
    ]
    return run.finish("Paper, tables 6, 7 and 8: tabular rows", records, made, (), _notes(options))


def figure7(options: argparse.Namespace) -> int:
    """F1 over K, over γ, and over what is refined; one thing varied at a time."""
    run = Run(_name("figure7", options), options, journal="paper")
    chosen, _ = _ratios(options, {name: [ratio] for name, ratio in ONE_RATIO.items()})
    variants = [
        Variant(_unit(options, name, ratio, seed, method, changes), (what, value))
        for name in options.sets
        for ratio in chosen[name]
        for seed in range(options.seeds)
        for method in _refined(options, REFINED)
        for what, value, changes in _ablations(ratio)
    ]
    records = run.units([variant.unit for variant in variants], measure)
    grouped: dict[tuple[str, float, str, str, str], list[Record]] = {}
    for variant, record in zip(variants, records, strict=True):
        key = (record["dataset"], record["ratio"], record["method"], *variant.words)
        grouped.setdefault(key, []).append(record)
    rows = [
        [
            name,
            f"{ratio:.1%}",
            ALL_METHODS[method].title,
            what,
            value,
            *(percent(values(found, of)) for of in ("f1", "auc", "ap")),
        ]
        for (name, ratio, method, what, value), found in grouped.items()
    ]
    columns = ["set", "ratio", "method", "varied", "value", "F1", "AUC", "AP"]
    notes = ["One thing varies at a time; else γ is twice the ratio (0.5 % at ratio 0), K is 5, and refine is both."]
    image = f"{run.name}.png"
    lines: dict[str, dict[str, list[tuple[float, float]]]] = {"K": {}, "γ / ratio": {}}
    for (name, ratio, method, what, value), found in grouped.items():
        if what in lines and values(found, "f1"):
            label = f"{name} {ratio:.1%}, {ALL_METHODS[method].title}"
            lines[what].setdefault(label, []).append((float(value), 100 * mean(values(found, "f1"))))
    report.plot_lines(run.out / image, lines, x_label="value", y_label="F1, %", title="Figure 7: sensitivity")
    return run.finish(
        "Paper, figure 7: K, γ and what is refined",
        records,
        [Table("F1, AUC, AP in percent", columns, rows, notes)],
        [image],
        _notes(options),
    )


def figure8(options: argparse.Namespace) -> int:
    """Shares of anomalies and of normal rows that each refresh excludes."""
    run = Run(_name("figure8", options), options, journal="paper")
    chosen, _ = _ratios(options, {name: [ratio] for name, ratio in ONE_RATIO.items()})
    units = [
        _unit(options, name, ratio, seed, method, is_traced=True)
        for name in options.sets
        for ratio in chosen[name]
        for seed in range(options.seeds)
        for method in _refined(options, (*REFINED, "raw_srr", "best"))
    ]
    records = run.units(units, measure)
    rows, lines = [], {}
    for (name, ratio, method), found in _grouped(records).items():
        steps = refreshes(found)
        label = f"{name} {ratio:.1%}, {ALL_METHODS[method].title}"
        for step, figures in steps.items():
            rows.append(
                [
                    name,
                    f"{ratio:.1%}",
                    ALL_METHODS[method].title,
                    str(step),
                    *(percent(figures[part]) for part in _REFRESH),
                ]
            )
        lines[label] = {
            part.replace("_", " "): [
                (step, 100 * mean(figures[part])) for step, figures in steps.items() if figures[part]
            ]
            for part in _REFRESH[1:]
        }
    columns = ["set", "ratio", "method", "step", "excluded of all", "excluded of anomalies", "excluded of normal rows"]
    notes = ["Of the rows that were not held out for calibration (2 %). A dash: there were no anomalies."]
    image = f"{run.name}.png"
    drawn = {label: {k: v for k, v in parts.items() if v} for label, parts in lines.items()}
    report.plot_lines(
        run.out / image,
        drawn or {"": {}},
        x_label="step",
        y_label="excluded, %",
        title="Figure 8: what refinement excludes",
    )
    return run.finish(
        "Paper, figure 8: what refinement excludes",
        records,
        [Table("Excluded, in percent", columns, rows, notes)],
        [image],
        _notes(options),
    )


def figure10(options: argparse.Namespace) -> int:
    """What refinement adds on raw features, without a representation."""
    run = Run(_name("figure10", options), options, journal="paper")
    chosen, _ = _ratios(options, {name: [ratio] for name, ratio in TOP_RATIO.items()})
    units = [
        _unit(options, name, ratio, seed, method)
        for name in options.sets
        for ratio in chosen[name]
        for seed in range(options.seeds)
        for method in ("raw", "raw_srr")
    ]
    records = run.units(units, measure)
    rows = []
    for name in options.sets:
        for ratio in chosen[name]:
            found = good(records, dataset=name, ratio=ratio)
            without, refined = (percent(values(found, "ap", method=method)) for method in ("raw", "raw_srr"))
            gain = percent(paired_gains(found, "raw", "raw_srr", "ap"))
            paper = PUBLISHED_RAW_GAINS.get(name, "-") if ratio == TOP_RATIO[name] else "-"
            rows.append([name, f"{ratio:.1%}", without, refined, gain, paper])
    columns = ["set", "ratio", "AP, raw GDE", "AP, refined", "gain", "gain in the paper"]
    return run.finish(
        "Paper, figure 10: raw features",
        records,
        [Table("AP in percent; gains on the same splits", columns, rows)],
        (),
        _notes(options),
    )


def figure12(options: argparse.Namespace) -> int:
    """F1 and excluded share as training goes on: F1 at a refresh is that of a training that ends there."""
    run = Run(_name("figure12", options), options, journal="paper")
    chosen, _ = _ratios(options, {name: [ratio] for name, ratio in ONE_RATIO.items()})
    cases = [
        (name, ratio, method, seed)
        for name in options.sets
        for ratio in chosen[name]
        for seed in range(options.seeds)
        for method in _refined(options, REFINED)
    ]
    whole_runs = run.units([_unit(options, n, r, s, m, is_traced=True) for n, r, m, s in cases], measure)
    shorter = [
        _unit(options, name, ratio, seed, method, n_steps=refresh["step"], is_traced=True)
        for (name, ratio, method, seed), record in zip(cases, whole_runs, strict=True)
        for refresh in record.get("refreshes", [])[:-1]
        if refresh["step"] > 0
    ]
    cut = run.units(shorter, measure)
    rows, lines = [], {}
    records = [*cut, *whole_runs]
    for (name, ratio, method), found in _grouped(records).items():
        at: dict[int, list[Record]] = {}
        for record in found:
            if record.get("refreshes"):
                at.setdefault(record["refreshes"][-1]["step"], []).append(record)
        for step, ended in sorted(at.items()):
            excluded = [record["refreshes"][-1]["excluded_ratio"] for record in ended]
            rows.append(
                [
                    name,
                    f"{ratio:.1%}",
                    ALL_METHODS[method].title,
                    str(step),
                    percent(values(ended, "f1")),
                    percent(excluded),
                ]
            )
        label = f"{name} {ratio:.1%}, {ALL_METHODS[method].title}"
        lines[label] = [(step, 100 * mean(values(ended, "f1"))) for step, ended in sorted(at.items())]
    columns = ["set", "ratio", "method", "steps", "F1", "excluded"]
    notes = ["Each row is a training of so many steps with the same seed, so the same as a longer one up to there."]
    image = f"{run.name}.png"
    report.plot_lines(
        run.out / image, {"convergence": lines}, x_label="step", y_label="F1, %", title="Figure 12: convergence"
    )
    return run.finish(
        "Paper, figure 12: convergence", records, [Table("In percent", columns, rows, notes)], [image], _notes(options)
    )


TARGETS: dict[str, Callable[[argparse.Namespace], int]] = {
    "figure4": figure4,
    "ocr": ocr,
    "table1": table1,
    "tables": tables,
    "figure7": figure7,
    "figure8": figure8,
    "figure10": figure10,
    "figure12": figure12,
}


TRACED = ("figure7", "figure8", "figure12")


def measure(unit: Unit) -> Mapping[str, Any]:
    """Run one method on one split; with `is_traced`, tell what each refresh excluded too."""
    assert unit.ratio is not None
    split = prepared(unit.dataset, unit.ratio, unit.seed, unit.options["max_rows"])
    context = _context(unit.dataset, unit.ratio, unit.options["n_steps"], unit.options["changes"])
    method = ALL_METHODS[unit.method]
    seed = model_seed(unit.seed)
    if not unit.options["is_traced"]:
        return {
            **split.counts,
            **measured(unit.method, split.train, split.test, split.is_anomaly, seed, context, method),
        }
    warm_up(unit.method, method)
    assert method.config is not None, f"{unit.method} has no refreshes to trace"
    found: list[dict[str, Any]] = []

    def note(progress: Any) -> None:
        refresh = ours.refresh_of(progress, len(split.train))
        if refresh is not None:
            found.append(
                {
                    "step": refresh["step"],
                    "excluded_ratio": refresh["excluded_ratio"],
                    **_excluded(refresh["kept"], split.is_anomaly_train),
                }
            )

    with quiet():
        trained = ours.trained(split.train, seed, method.config(context), note)
        scores = ours.scorer_of(trained)(split.test)
    if found and "of_normal_rows" not in found[-1]:
        found[-1] |= _excluded(trained.kept.astype(np.float64), split.is_anomaly_train)
    return {**split.counts, **quality(split.is_anomaly, scores), "refreshes": found}


def method_table(title: str, records: Sequence[Record], notes: Sequence[str] = ()) -> Table:
    """Return F1, AUC and AP of every ratio and method of one set, with the published F1 and the seconds."""
    rows, winners = [], []
    for ratio in sorted({record["ratio"] for record in records}):
        means: dict[str, float] = {}
        for method in dict.fromkeys(record["method"] for record in records):
            found = good(records, ratio=ratio, method=method)
            dataset = next(record["dataset"] for record in records)
            if found:
                means[ALL_METHODS[method].title] = mean(values(found, "f1"))
            seconds = mean(record["fit_s"] + record["score_s"] for record in found if "fit_s" in record)
            figures = [
                percent(values(found, "f1")),
                published(dataset, ratio, method),
                *(percent(values(found, of)) for of in ("auc", "ap")),
            ]
            rows.append([f"{ratio:.1%}", ALL_METHODS[method].title, *figures, number(seconds, 2)])
        if means:
            best = max(means, key=lambda name: means[name])
            winners.append(f"At {ratio:.1%} the highest F1 has {best}: {100 * means[best]:.1f}.")
    columns = ["ratio", "method", "F1", "F1 in the paper", "AUC", "AP", "fit + score, s"]
    return Table(title, columns, rows, [*winners, *notes])


def gain_table(dataset: str, records: Sequence[Record]) -> Table:
    """Return what refinement adds to the same representation on the same splits, in points."""
    rows = []
    for without, refined in PAIRS:
        for ratio in sorted({record["ratio"] for record in records}):
            found = good(records, ratio=ratio)
            gains = [paired_gains(found, without, refined, of) for of in ("f1", "ap")]
            if gains[0]:
                title = f"{ALL_METHODS[refined].title} over {ALL_METHODS[without].title}"
                paper = PUBLISHED_GAINS.get((dataset, ratio, "f1", refined), "-")
                rows.append([f"{ratio:.1%}", title, percent(gains[0]), paper, percent(gains[1])])
    return Table(f"{dataset}: gain by refinement, in points", ["ratio", "pair", "F1", "F1 in the paper", "AP"], rows)


def paired_gains(records: Sequence[Record], without: str, refined: str, of: str) -> list[float]:
    """Return by how much `refined` is above `without`, seed by seed: splits move both by more than refinement does."""
    base = {record["seed"]: record[of] for record in good(records, method=without)}
    return [record[of] - base[record["seed"]] for record in good(records, method=refined) if record["seed"] in base]


_REFRESH = ("excluded_ratio", "of_anomalies", "of_normal_rows")


def refreshes(records: Sequence[Record]) -> dict[int, dict[str, list[float]]]:
    """Return step → figure → values over the seeds, of traced records."""
    steps: dict[int, dict[str, list[float]]] = {}
    for record in good(records):
        for refresh in record.get("refreshes", []):
            figures = steps.setdefault(refresh["step"], {part: [] for part in _REFRESH})
            for part in _REFRESH:
                if part in refresh:
                    figures[part].append(refresh[part])
    return dict(sorted(steps.items()))


def _excluded(kept: Any, is_anomaly: Any) -> dict[str, float]:
    """Return which shares of anomalies and of normal rows are out, of the rows that were judged."""
    if kept is None:
        return {}
    is_judged = ~np.isnan(kept)
    if not is_anomaly[is_judged].any():
        return {"of_normal_rows": float(np.mean(kept[is_judged] == 0.0))}
    of_anomalies, of_normal = refinement_efficacy(is_anomaly[is_judged], kept[is_judged] == 1.0)
    return {"of_anomalies": of_anomalies, "of_normal_rows": of_normal}


def _ablations(ratio: float) -> list[tuple[str, str, dict[str, Any]]]:
    found: list[tuple[str, str, dict[str, Any]]] = [("K", str(k), {"n_subsets": k}) for k in (1, 2, 5, 10)]
    found += [
        ("γ / ratio", f"{f:g}", {"gamma": f * ratio if ratio else CLEAN_GAMMA}) for f in (0.5, 1.0, 1.5, 2.0, 4.0)
    ]
    return found + [("refine", refine, {"refine": refine}) for refine in ("none", "final", "both")]


def _unit(
    options: argparse.Namespace,
    name: str,
    ratio: float,
    seed: int,
    method: str,
    changes: Mapping[str, Any] | None = None,
    *,
    n_steps: int | None = None,
    is_traced: bool = False,
) -> Unit:
    steps = options.steps if n_steps is None else n_steps
    config = ALL_METHODS[method].config
    if changes and config is not None:
        # A change to what is so already is the same unit, and is not run twice.
        is_same = config(_context(name, ratio, steps, changes)) == config(_context(name, ratio, steps, {}))
        changes = None if is_same else changes
    own = options_of(ALL_METHODS[method], _context(name, ratio, steps, changes or {}))
    given = {"max_rows": options.max_rows, "n_steps": steps, "changes": dict(changes or {}), "is_traced": is_traced}
    return Unit("paper", name, ratio, seed, method, {**given, **own})


def _context(name: str, ratio: float, n_steps: int | None, changes: Mapping[str, Any]) -> Context:
    return Context(dataset=name, gamma=gamma_of(ratio), n_steps=n_steps, changes=changes)


def _ratios(
    options: argparse.Namespace, usual: Mapping[str, list[float]]
) -> tuple[dict[str, list[float]], dict[str, list[str]]]:
    """Return the ratios of every set that can be made, and notes on those that cannot."""
    chosen, notes = {}, {}
    for name in options.sets:
        wanted = options.ratios or usual[name]
        is_anomaly = load_table(name).is_anomaly
        # A draw of rows keeps about the share of anomalies, so fewer of them are there in proportion.
        n_rows = min(len(is_anomaly), options.max_rows or len(is_anomaly))
        n_anomalies = round(float(is_anomaly.mean()) * n_rows)
        stand_in = np.arange(n_rows) < n_anomalies
        chosen[name] = [ratio for ratio in wanted if is_feasible(stand_in, ratio)]
        left_out = [f"{ratio:.1%}" for ratio in wanted if ratio not in chosen[name]]
        notes[name] = [
            f"Left out: {', '.join(left_out)}; too few anomalies (the test needs at least {MIN_TEST_ANOMALIES})."
        ] * bool(left_out)
    return chosen, notes


def _methods(options: argparse.Namespace, usual: Sequence[str]) -> list[str]:
    return options.methods or list(usual)


def _refined(options: argparse.Namespace, usual: Sequence[str]) -> list[str]:
    """Return the methods that have a configuration to vary and refreshes to trace; those of `all` may be others."""
    return [name for name in _methods(options, usual) if ALL_METHODS[name].config is not None] or list(usual)


def _grouped(records: Sequence[Record]) -> dict[tuple[str, float, str], list[Record]]:
    found: dict[tuple[str, float, str], list[Record]] = {}
    for record in records:
        found.setdefault((record["dataset"], record["ratio"], record["method"]), []).append(record)
    return found


def _lines(name: str, records: Sequence[Record]) -> dict[str, list[tuple[float, float]]]:
    lines: dict[str, list[tuple[float, float]]] = {}
    for (_, ratio, method), found in _grouped(records).items():
        if values(found, "f1"):
            lines.setdefault(ALL_METHODS[method].title, []).append((100 * ratio, 100 * mean(values(found, "f1"))))
    for (dataset, ratio), known in PUBLISHED.items():
        if dataset == name:
            for word in ("GOAD", "SRR"):
                if word in known:
                    lines.setdefault(f"{word} in the paper", []).append((100 * ratio, float(known[word].split()[0])))
    return lines


def _rows_of(table: Table) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    return table.columns, table.rows


def _notes(options: argparse.Namespace) -> list[str]:
    best = "; ".join(
        f"{name}: {preset} {dict(own) or ''}".rstrip() for name, (preset, own) in BEST.items() if name in options.sets
    )
    rows = "all rows" if options.max_rows is None else f"at most {options.max_rows} rows of each set"
    return [
        f"Split seeds: {options.seeds}; {rows}; γ is twice the ratio, 0.5 % at ratio 0",
        "F1 flags as many test rows as there are anomalies",
        f"Best preset: {best}",
        "OC-SVM is fitted on at most 5,000 training rows, LOF on 10,000, robust PCA on 2,000",
        "`SRR default` is told no ratio",
    ]


if __name__ == "__main__":
    sys.exit(main())
