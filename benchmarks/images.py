"""The paper's experiments on pictures, the published figure beside ours: ``python -m benchmarks.paper images``.

Yoon, Sohn, Li, Arik, Lee, Pfister, "Self-supervise, Refine, Repeat: Improving Unsupervised Anomaly Detection" (2022).
One class is normal, a share of its training pictures is swapped for other classes'; γ is twice that share, 0.005 at 0.
The journal remembers every training, so a long run can be made in pieces: call it again with the same arguments.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import ours, report
from benchmarks.datasets import DatasetMissing
from benchmarks.picture_sets import CLASSES, load_split
from benchmarks.published_pictures import MEANS, published
from benchmarks.report import Record, Table, good, mean, number, percent, values
from benchmarks.runner import Run, Unit, model_seed, names_of, parser, quiet, ratios, whole
from models.evaluation import average_precision, recall_at_precision, refinement_efficacy, roc_auc

if TYPE_CHECKING:
    from models.training import TrainingConfig

CALIBRATION_RATIO = 0.02
"""The paper trains on everything; this little is held out, since a model cannot be without calibration."""
CLEAN_GAMMA = 0.005
PRECISIONS = (0.7, 0.9)


@dataclass(frozen=True)
class Scale:
    """How large the experiments are: of each set the preset, and how many pictures of which size."""

    presets: Mapping[str, str]
    n_train: Mapping[str, int] = field(default_factory=dict)
    n_test: int | None = None
    sides: Mapping[str, int] = field(default_factory=dict)


SCALES = {
    # Minutes a training on a processor: networks of a quarter of the width, few epochs, some of the pictures.
    "small": Scale(
        {
            "fashion-mnist": "contrastive",
            "cifar10": "contrastive",
            "boards": "cutpaste",
            "mvtec": "cutpaste",
            "dog-vs-cat": "contrastive",
        },
        {"fashion-mnist": 2000, "cifar10": 2000, "boards": 1700, "dog-vs-cat": 2000},
        1500,
        {"mvtec": 64, "dog-vs-cat": 32},
    ),
    # As published, for a GPU.
    "paper": Scale(
        {
            "fashion-mnist": "paper_contrastive",
            "cifar10": "paper_contrastive",
            "boards": "paper_cutpaste",
            "mvtec": "paper_cutpaste",
            "dog-vs-cat": "paper_contrastive",
        },
        sides={"mvtec": 256, "dog-vs-cat": 64},
    ),
}


@dataclass(frozen=True)
class PictureMethod:
    """A way to train: fields that differ from the scale's preset for the set, or another preset."""

    title: str
    changes: Mapping[str, Any]
    preset: str | None = None


METHODS: dict[str, PictureMethod] = {
    "base": PictureMethod("No refinement", {"refine": "none"}),
    "srr": PictureMethod("SRR", {"refine": "both"}),
    "final": PictureMethod("Final classifier refined only", {"refine": "final"}),
    "ensemble": PictureMethod("Ensemble scores only", {"refine": "final", "scorer": "ensemble"}),
    "no_final": PictureMethod("SRR, ensemble scores", {"refine": "both", "scorer": "ensemble"}),
    "otsu": PictureMethod("SRR, γ by Otsu", {"refine": "both", "gamma": "otsu"}),
    "rotation": PictureMethod("Rotation, no refinement", {"refine": "none"}, "rotation"),
    "rotation_srr": PictureMethod("Rotation + SRR", {"refine": "both"}, "rotation"),
    "denoising": PictureMethod("Denoising autoencoder, no refinement", {"refine": "none"}, "denoising_autoencoder"),
    "denoising_srr": PictureMethod("Denoising autoencoder + SRR", {"refine": "both"}, "denoising_autoencoder"),
    "robust_autoencoder": PictureMethod("Robust autoencoder", {"refine": "none"}, "robust_autoencoder"),
    "pixels": PictureMethod("Pixels, no refinement", {"refine": "none"}, "pixels"),
    "pixels_srr": PictureMethod("Pixels + refinement", {"refine": "final"}, "pixels"),
}
PAIRS = (
    ("base", "srr"),
    ("base", "final"),
    ("rotation", "rotation_srr"),
    ("denoising", "denoising_srr"),
    ("pixels", "pixels_srr"),
)

_ABLATIONS: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    *(("K", str(k), {"n_subsets": k}) for k in (1, 2, 5, 10)),
    *(("γ / ratio", f"{f:g}", {"gamma_factor": f}) for f in (1.0, 2.0, 3.0)),
)


@dataclass(frozen=True)
class Target:
    """What a figure or table needs measured."""

    title: str
    methods: tuple[str, ...]
    ratios: tuple[float, ...]
    sets: tuple[str, ...] = tuple(CLASSES)
    variants: tuple[tuple[str, str, Mapping[str, Any]], ...] = ()


TARGETS: dict[str, Target] = {
    "figure5": Target("Figure 5: against contamination", ("base", "srr"), (0.0, 0.025, 0.05, 0.1)),
    "figure6": Target("Figure 6: fixed and refined representations", ("base", "final", "srr"), (0.1,)),
    "figure7": Target("Figure 7: sensitivity to K and γ", ("srr",), (0.1,), variants=_ABLATIONS),
    "figure8": Target("Figure 8: what refinement excludes", ("srr",), (0.025, 0.05, 0.1)),
    "figure9": Target("Figure 9: recall at precision 70 and 90", ("base", "srr"), (0.1,)),
    "figure12": Target(
        "Figure 12: convergence",
        ("base", "srr"),
        (0.1,),
        variants=tuple(("epochs", str(n), {"n_epochs": n}) for n in (1, 2, 5, 10, 20)),
    ),
    "table2": Target("Table 2: CIFAR-10 by class", ("base", "srr"), (0.0, 0.1), ("cifar10",)),
    "table4": Target("Table 4: Fashion-MNIST by class", ("base", "srr"), (0.0, 0.1), ("fashion-mnist",)),
    "table6": Target(
        "Table 6: other representations",
        (*dict.fromkeys(name for pair in PAIRS for name in pair if name != "final"), "robust_autoencoder"),
        (0.06,),
    ),
    "table7": Target("Table 7: what each part adds", ("base", "ensemble", "final", "no_final", "srr", "otsu"), (0.06,)),
}


def main(arguments: Sequence[str] | None = None) -> int:
    cli = parser(
        "Reproduce the paper's figures and tables on pictures, the published figure beside ours. CIFAR-10 here is a "
        "JPEG copy, not the original pixels.",
        n_seeds=3,
        methods=(),
        allowed=METHODS,
    )
    cli.prog = "benchmarks.paper images"
    cli.add_argument("target", choices=[*TARGETS], help="Which figure or table.")
    cli.add_argument(
        "--sets", type=names_of("set", CLASSES), help=f"Only these, separated by commas (all: {', '.join(CLASSES)})."
    )
    every = sorted({name for classes in CLASSES.values() for name in classes})
    cli.add_argument("--classes", type=names_of("class", every), help="Only these normal classes (default: all).")
    cli.add_argument("--ratios", type=ratios, help="Shares of anomalies in training, as fractions.")
    cli.add_argument(
        "--scale", choices=[*SCALES], default="small", help="small: for a processor (default); paper: for a GPU."
    )
    cli.add_argument("--device", default="auto", help="auto, cpu, cuda, …")
    cli.add_argument("--max-minutes", type=whole, help="Begin no training after so many minutes; call again to go on.")
    options = cli.parse_args(arguments)
    target = TARGETS[options.target]
    if options.quick:
        options.seeds, options.sets = 1, options.sets or ["boards"]
    chosen = options.sets or list(target.sets)
    classes = {
        name: [c for c in CLASSES[name] if options.classes is None or c in options.classes or name == "boards"]
        for name in chosen
    }
    missing = {name: why for name in chosen if (why := _why_missing(name, options)) is not None}
    if missing and options.sets:
        cli.error(next(iter(missing.values())))
    for why in missing.values():
        print(f"left out: {why}", file=sys.stderr)
    chosen = [name for name in chosen if name not in missing]
    run = Run(_name(options, chosen), options, journal=f"images-{options.scale}")
    deadline = time.monotonic() + 60.0 * options.max_minutes if options.max_minutes else float("inf")
    units = [
        _unit(options, name, class_name, ratio, seed, method, variant)
        for name in chosen
        for class_name in classes[name]
        for ratio in options.ratios or target.ratios
        for seed in range(options.seeds)
        for method in options.methods or target.methods
        for variant in target.variants or (("", "", {}),)
    ]
    records = run.units(units, lambda unit: _measured(unit, options.device, deadline))
    notes = [
        f"Scale {options.scale}; trained on: {', '.join(sorted({r['device'] for r in good(records)})) or 'nothing'}. "
        "AP is that of the rarer kind in the test set, as in the paper.",
        "CIFAR-10 is a JPEG copy at 30 dB of the original pixels.",
    ]
    tables = [*_tables(target, records)]
    image = f"{run.name}.png"
    report.plot_lines(
        run.out / image, _lines(target, records), x_label=_x_label(target), y_label="AUC, %", title=target.title
    )
    return run.finish(f"Paper on pictures, {target.title}", records, tables, [image], notes)


def _name(options: argparse.Namespace, chosen: Sequence[str]) -> str:
    some = [] if options.sets is None else chosen
    return "-".join(["paper-images", options.target, options.scale, *some, *(options.classes or [])])


def _why_missing(name: str, options: argparse.Namespace) -> str | None:
    """Return why a set cannot be read, None if it can."""
    try:
        load_split(name, CLASSES[name][0], 0.0, 0, n_train=8, side=_side(options, name))
    except DatasetMissing as error:
        return str(error)
    return None


def _side(options: argparse.Namespace, name: str) -> int | None:
    return SCALES[options.scale].sides.get(name)


def _unit(
    options: argparse.Namespace,
    dataset: str,
    class_name: str,
    ratio: float,
    seed: int,
    method: str,
    variant: tuple[str, str, Mapping[str, Any]],
) -> Unit:
    scale = SCALES[options.scale]
    config = config_of(options.scale, dataset, ratio, method, variant[2])
    if options.quick:
        config = replace(config, representation_options={**config.representation_options, **_quick(config)})
    return Unit(
        "images",
        dataset,
        ratio,
        seed,
        method,
        {
            "class": class_name,
            "n_train": 200 if options.quick else scale.n_train.get(dataset),
            "n_test": 100 if options.quick else scale.n_test,
            "side": scale.sides.get(dataset),
            "variant": list(variant[:2]),
            "config": ours.facts(config),
        },
    )


def config_of(
    scale: str, dataset: str, ratio: float, method: str, changes: Mapping[str, Any] | None = None
) -> TrainingConfig:
    """Return how a method trains on a set at a ratio.

    `changes` are fields of the configuration, ``n_epochs`` of its representation, or ``gamma_factor``: γ by the ratio.
    """
    from models.presets import PRESETS

    chosen = METHODS[method]
    preset = PRESETS[chosen.preset or SCALES[scale].presets[dataset]]
    fields = {**chosen.changes, **(changes or {})}
    factor = fields.pop("gamma_factor", 2.0)
    options = dict(preset.representation_options)
    if "n_epochs" in fields:
        options["n_epochs"] = fields.pop("n_epochs")
    fields.setdefault("gamma", factor * ratio or CLEAN_GAMMA)
    return replace(preset, representation_options=options, calibration_ratio=CALIBRATION_RATIO, **fields)


def _quick(config: TrainingConfig) -> dict[str, Any]:
    return {} if config.representation == "pixels" else {"n_epochs": 1, "width": 8}


def _measured(unit: Unit, device: str, deadline: float) -> Mapping[str, Any]:
    """Train on one split, and return how good the scores and the refinement are, and what it cost."""
    if time.monotonic() > deadline:
        raise TimeoutError("not begun: --max-minutes is over; call again to go on")
    from models.training import TrainingConfig, train

    o = unit.options
    assert unit.ratio is not None
    split = load_split(
        unit.dataset, o["class"], unit.ratio, unit.seed, n_train=o["n_train"], n_test=o["n_test"], side=o["side"]
    )
    found: list[dict[str, Any]] = []

    def note(progress: Any) -> None:
        refresh = ours.refresh_of(progress, len(split.train))
        if refresh is not None and refresh["kept"] is not None:
            is_judged = ~np.isnan(refresh["kept"])
            kept = refresh["kept"][is_judged] == 1.0
            found.append({"step": refresh["step"], **_excluded(kept, split.train_is_anomaly[is_judged])})

    with quiet():
        started = time.perf_counter()
        trained = train(
            {"picture": split.train},
            TrainingConfig(**o["config"]),
            seed=model_seed(unit.seed),
            on_progress=note,
            device=device,
        )
        fitted = time.perf_counter()
        scores = trained.model.score({"picture": split.test}).score
        scored = time.perf_counter()
    is_anomaly = split.test_is_anomaly
    # The rarer kind is what is looked for: of ten classes the normal one.
    positive, strength = (is_anomaly, scores) if is_anomaly.mean() <= 0.5 else (~is_anomaly, -scores)
    return {
        **split.counts,
        "auc": roc_auc(is_anomaly, scores),
        "ap": average_precision(positive, strength),
        **{f"recall_{round(100 * p)}": recall_at_precision(positive, strength, p) for p in PRECISIONS},
        **(_excluded(trained.kept, split.train_is_anomaly) if o["config"]["refine"] != "none" else {}),
        "refreshes": found,
        "fit_s": fitted - started,
        "score_s": scored - fitted,
        "steps_per_s": trained.report.n_steps / trained.report.seconds["train"] if trained.report.n_steps else 0.0,
        "scored_per_s": len(split.test) / (scored - fitted),
        "device": _device_name(device),
    }


def _excluded(kept: Any, is_anomaly: Any) -> dict[str, float]:
    """Return which shares of the anomalies and of the normal rows are out."""
    if not is_anomaly.any():
        return {"of_normal_rows": float(np.mean(~kept))}
    of_anomalies, of_normal = refinement_efficacy(is_anomaly, kept)
    return {"of_anomalies": of_anomalies, "of_normal_rows": of_normal}


def _device_name(device: str) -> str:
    import torch

    is_cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    return torch.cuda.get_device_name() if is_cuda else "the processor"


def _tables(target: Target, records: Sequence[Record]) -> list[Table]:
    made = [_main_table(records), _gain_table(records)]
    if any("of_anomalies" in record for record in records):
        made.append(_refinement_table(records))
    made.append(_cost_table(records))
    return [table for table in made if table.rows]


def _groups(records: Sequence[Record]) -> dict[tuple[str, str, float, str, str], list[Record]]:
    """Return the records by set, class, ratio, method and variant, in their order."""
    found: dict[tuple[str, str, float, str, str], list[Record]] = {}
    for record in good(records):
        variant = " ".join(record["options"]["variant"]).strip()
        key = (record["dataset"], record["options"]["class"], record["ratio"], record["method"], variant)
        found.setdefault(key, []).append(record)
    return found


def _main_table(records: Sequence[Record]) -> Table:
    rows = []
    groups = _groups(records)
    for (name, class_name, ratio, method, variant), found in groups.items():
        rows.append(
            [
                name,
                class_name,
                f"{ratio:.1%}",
                f"{METHODS[method].title}{f', {variant}' if variant else ''}",
                percent(values(found, "auc")),
                published(name, class_name, ratio, method, "auc"),
                percent(values(found, "ap")),
                published(name, class_name, ratio, method, "ap"),
                *(percent(values(found, f"recall_{round(100 * p)}")) for p in PRECISIONS),
            ]
        )
    for name, ratio, method, variant in dict.fromkeys((k[0], *k[2:]) for k in groups):
        of_classes = [found for key, found in groups.items() if (key[0], *key[2:]) == (name, ratio, method, variant)]
        if len(of_classes) > 1:
            means = [100 * mean(mean(values(found, of)) for found in of_classes) for of in ("auc", "ap")]
            paper = MEANS.get((name, ratio), {}).get(method, "- / -").split(" / ")
            recalls = [
                number(100 * mean(mean(values(found, f"recall_{round(100 * p)}")) for found in of_classes), 1)
                for p in PRECISIONS
            ]
            title = f"{METHODS[method].title}{f', {variant}' if variant else ''}"
            rows.append(
                [
                    name,
                    f"mean of {len(of_classes)}",
                    f"{ratio:.1%}",
                    title,
                    number(means[0], 1),
                    paper[0],
                    number(means[1], 1),
                    paper[1],
                    *recalls,
                ]
            )
    columns = ["set", "normal class", "ratio", "method", "AUC", "AUC in the paper", "AP", "AP in the paper"]
    columns += [f"recall at precision {round(100 * p)} %" for p in PRECISIONS]
    return Table("AUC and AP in percent, mean ± deviation over the seeds", columns, rows)


def _gain_table(records: Sequence[Record]) -> Table:
    rows = []
    groups = _groups(records)
    for without, refined in PAIRS:
        for (name, class_name, ratio, method, variant), found in groups.items():
            base = {r["seed"]: r for r in groups.get((name, class_name, ratio, without, variant), [])}
            pairs = [(base[r["seed"]], r) for r in found if r["seed"] in base] if method == refined else []
            if pairs:
                gains = [percent([r[of] - b[of] for b, r in pairs]) for of in ("auc", "ap")]
                words = f"{METHODS[refined].title} over {METHODS[without].title}"
                rows.append([name, class_name, f"{ratio:.1%}", words + (f", {variant}" if variant else ""), *gains])
    return Table(
        "Gain by refinement on the same splits, in points",
        ["set", "normal class", "ratio", "pair", "AUC", "AP"],
        rows,
    )


def _refinement_table(records: Sequence[Record]) -> Table:
    rows = []
    for (name, class_name, ratio, method, variant), found in _groups(records).items():
        steps: dict[int, list[Mapping[str, float]]] = {}
        for record in found:
            for refresh in record["refreshes"]:
                steps.setdefault(refresh["step"], []).append(refresh)
        title = f"{METHODS[method].title}{f', {variant}' if variant else ''}"
        if values(found, "of_normal_rows"):
            stages = [(str(step), each) for step, each in sorted(steps.items())] + [("end, all rows", found)]
            rows += [
                [
                    name,
                    class_name,
                    f"{ratio:.1%}",
                    title,
                    stage,
                    percent([r["of_anomalies"] for r in each if "of_anomalies" in r]),
                    percent([r["of_normal_rows"] for r in each]),
                ]
                for stage, each in stages
            ]
    columns = ["set", "normal class", "ratio", "method", "step", "of the anomalies", "of the normal rows"]
    return Table("Excluded from training, in percent", columns, rows)


def _cost_table(records: Sequence[Record]) -> Table:
    rows = []
    for (name, class_name, ratio, method, variant), found in _groups(records).items():
        rows.append(
            [
                name,
                class_name,
                f"{ratio:.1%}",
                f"{METHODS[method].title}{f', {variant}' if variant else ''}",
                str(found[0]["n_train"]),
                _test_sizes(found[0]),
                number(mean(values(found, "fit_s")), 1),
            ]
        )
    columns = ["set", "normal class", "ratio", "method", "trained on", "tested on", "training, s"]
    return Table("Sizes and cost", columns, rows)


def _test_sizes(record: Record) -> str:
    return f"{record['n_test'] - record['n_test_anomalies']} + {record['n_test_anomalies']}"


def _x_label(target: Target) -> str:
    return target.variants[0][0] if target.variants else "anomalies in training, %"


def _lines(target: Target, records: Sequence[Record]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for (name, class_name, ratio, method, variant), found in _groups(records).items():
        what, _, value = variant.rpartition(" ")
        panel = f"{name} {class_name}" if class_name != name else name
        label = METHODS[method].title + (f", {what}" if what else "")
        x = float(value) if variant else 100 * ratio
        panels.setdefault(panel, {}).setdefault(label, []).append((x, 100 * mean(values(found, "auc"))))
    return panels or {"": {}}


if __name__ == "__main__":
    sys.exit(main())
