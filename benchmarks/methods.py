"""The detectors that are compared: METHODS, by name, this project's beside the peers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import ours
from benchmarks.ours import Scorer
from benchmarks.protocols import to_unit_range

MAX_SVM_ROWS = 5_000
MAX_NEIGHBOUR_ROWS = 10_000
"""Above these the training rows of the methods whose cost grows with their square are a random draw."""


@dataclass(frozen=True)
class Context:
    """What a method may know beside the rows: never a label."""

    dataset: str = ""
    gamma: float | None = None
    """γ that the paper's protocol gives (twice the true ratio); used by the methods of the paper only."""
    n_steps: int | None = None
    """Training steps of GOAD; None: those of the preset."""
    calibration_ratio: float = 0.02
    """Rows that the methods of the paper hold out: few, since the paper holds out none."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the configuration that an ablation changes."""


@dataclass(frozen=True)
class Method:
    """A detector by name.

    `fit` takes rows, a seed and a context and returns the function that scores; `options` says what decides the result
    beside these; see :func:`options_of`.
    """

    title: str
    fit: Callable[[NDArray[Any], int, Context], Scorer]
    uses_models: bool = False
    """Whether the result depends on the code in ``models/``."""
    is_random: bool = True
    """Whether the seed matters beside the split."""
    max_fit_rows: int | None = None
    options: Callable[[Context], dict[str, Any]] = lambda context: {}
    config: Callable[[Context], Any] | None = None
    """The training configuration of a method of the paper's protocol."""


def options_of(method: Method, context: Context) -> dict[str, Any]:
    """Return all that decides a method's result beside rows and seed: it belongs in a unit's key."""
    limit = {} if method.max_fit_rows is None else {"max_fit_rows": method.max_fit_rows}
    return {**method.options(context), **limit}


def fit(method: Method, X: NDArray[Any], seed: int, context: Context) -> Scorer:
    """Fit a method, on a random draw of the rows if they are more than it can take."""
    if method.max_fit_rows is not None and len(X) > method.max_fit_rows:
        X = X[np.random.default_rng(seed).permutation(len(X))[: method.max_fit_rows]]
    return method.fit(X, seed, context)


def _estimator(title: str, **options: Any) -> Method:
    """Return ``SRRDetector()`` as a user would call it, with `options` changed; it is told neither γ nor the ratio."""
    preset = options.get("preset", "default")
    fields = {name: value for name, value in options.items() if name != "preset"}

    def steps(context: Context) -> dict[str, Any]:
        # The public estimator takes the options of a representation whole.
        chosen = ours.config(preset, n_steps=context.n_steps, **fields)
        return {} if context.n_steps is None else {"representation_options": dict(chosen.representation_options)}

    return Method(
        title,
        lambda X, seed, context: ours.default_scorer(X, seed, **options, **steps(context)),
        uses_models=True,
        options=lambda context: {"config": ours.facts(ours.config(preset, n_steps=context.n_steps, **fields))},
    )


def named(title: str, preset_of: Callable[[str], tuple[str, Mapping[str, Any]]], **options: Any) -> Method:
    """Return a configuration for the paper's protocol: the preset and options of the data set, told γ."""

    def chosen(context: Context) -> Any:
        preset, own = preset_of(context.dataset)
        known = {"gamma": context.gamma, "n_steps": context.n_steps, "calibration_ratio": context.calibration_ratio}
        return ours.config(preset, **{**known, **own, **options, **context.changes})

    return Method(
        title,
        lambda X, seed, context: ours.preset_scorer(X, seed, chosen(context)),
        uses_models=True,
        options=lambda context: {"config": ours.facts(chosen(context))},
        config=chosen,
    )


def _fixed(preset: str, **own: Any) -> Callable[[str], tuple[str, Mapping[str, Any]]]:
    return lambda dataset: (preset, own)


def _published_recipe(dataset: str) -> tuple[str, Mapping[str, Any]]:
    return ("paper_kdd" if dataset in ("kdd", "kddrev") else "paper"), {}


def _classifier(title: str, name: str, **options: Any) -> Method:
    return Method(
        title,
        lambda X, seed, context: ours.classifier_scorer(X, name, **options),
        uses_models=True,
        is_random=False,
        options=lambda context: {"classifier": name, **options},
    )


def _pyod(title: str, name: str, *, max_fit_rows: int | None = None, **options: Any) -> Method:
    """Return a detector of PyOD; `name` is ``module.Class``."""
    module, kind = name.split(".")

    def fit_pyod(X: NDArray[Any], seed: int, context: Context) -> Scorer:
        detector = getattr(import_module(f"pyod.models.{module}"), kind)(**options)
        # PyOD divides by deviations of constant columns; what becomes of it is checked where scores are read.
        with np.errstate(all="ignore"):
            detector.fit(X.astype(np.float64))
        return lambda rows: np.asarray(detector.decision_function(rows.astype(np.float64)), dtype=np.float64)

    return Method(
        title,
        fit_pyod,
        is_random=max_fit_rows is not None,
        max_fit_rows=max_fit_rows,
        options=lambda _: options,
    )


def _pca(X: NDArray[Any], seed: int, context: Context) -> Scorer:
    """Fit PyOD's PCA on as many components as the rows have: it divides by variances, of which the others' are 0."""
    singular = np.linalg.svd(X - X.mean(axis=0, dtype=np.float64), compute_uv=False)
    n_components = max(1, int(np.sum(singular > 1e-5 * singular[0])))
    kind = import_module("pyod.models.pca").PCA
    detector = kind(n_components=n_components, random_state=seed).fit(X.astype(np.float64))
    return lambda rows: np.asarray(detector.decision_function(rows.astype(np.float64)), dtype=np.float64)


def _isolation_forest(X: NDArray[Any], seed: int, context: Context) -> Scorer:
    from sklearn.ensemble import IsolationForest

    forest = IsolationForest(random_state=seed).fit(X)
    return lambda rows: np.asarray(-forest.score_samples(rows), dtype=np.float64)


HALF_SPACE_TREES = {"n_trees": 25, "height": 8, "window_size": 250}
"""Trees and window as in Tan, Ting, Liu (2011)."""


def half_space_trees(n_rows: int, seed: int) -> Any:
    """Return River's detector; the window is not longer than the rows, since before its end all of them score 0."""
    from river.anomaly import HalfSpaceTrees

    options: dict[str, Any] = {**HALF_SPACE_TREES, "window_size": min(HALF_SPACE_TREES["window_size"], n_rows)}
    return HalfSpaceTrees(**options, seed=seed)


def _half_space_trees(X: NDArray[Any], seed: int, context: Context) -> Scorer:
    trees = half_space_trees(len(X), seed)
    for record in records(to_unit_range(X)[0]):
        trees.learn_one(record)

    def score(rows: NDArray[Any]) -> NDArray[np.float64]:
        return np.array([trees.score_one(record) for record in records(to_unit_range(X, rows)[1])], dtype=np.float64)

    return score


def records(X: NDArray[Any]) -> list[dict[int, float]]:
    """Return rows as River takes them."""
    return [dict(enumerate(row)) for row in X.tolist()]


_RAW: dict[str, Any] = {
    "representation": "identity",
    "representation_options": {},
    "classifier": "gde",
    "classifier_options": {},
    "ensemble_classifier": None,
    "ensemble_options": {},
    "scaling": "standard",
    "n_subsets": 5,
    "vote": "unanimous",
    "removal": "hard",
    "refine_rounds": 1,
    "scorer": "final",
}
"""The paper's raw features: z-scores and one Gaussian."""

METHODS: dict[str, Method] = {
    "srr": _estimator("SRR default"),
    "srr_unrefined": _estimator("SRR, no refinement", refine="none"),
    "srr_goad": _estimator("SRR, GOAD", preset="goad"),
    "goad_unrefined": _estimator("GOAD, no refinement", preset="goad", refine="none"),
    "iforest": Method("Isolation forest", _isolation_forest),
    "ecod": _pyod("ECOD", "ecod.ECOD"),
    "hbos": _pyod("HBOS", "hbos.HBOS"),
    "copod": _pyod("COPOD", "copod.COPOD"),
    "knn": _pyod("KNN", "knn.KNN", max_fit_rows=MAX_NEIGHBOUR_ROWS),
    "lof": _pyod("LOF", "lof.LOF", max_fit_rows=MAX_NEIGHBOUR_ROWS),
    "pca": Method("PCA", _pca, options=lambda _: {"n_components": "rank"}),
    "ocsvm": _pyod("OC-SVM", "ocsvm.OCSVM", max_fit_rows=MAX_SVM_ROWS),
    "ocsvm_tight": _pyod("OC-SVM, ν 0.1", "ocsvm.OCSVM", max_fit_rows=MAX_SVM_ROWS, nu=0.1),
    "gde": _classifier("Plain GDE", "gde", shrinkage=0.1),
    "half_space_trees": Method("HalfSpaceTrees", _half_space_trees, options=lambda _: dict(HALF_SPACE_TREES)),
    "goad": named("GOAD", _fixed("goad"), refine="none"),
    "goad_srr": named("GOAD + SRR", _fixed("goad"), refine="both"),
    "goad_otsu": named("GOAD + SRR, Otsu", _fixed("goad"), refine="both", gamma="otsu"),
    "goad_final": named("GOAD + SRR, final only", _fixed("goad"), refine="final"),
    "goad_ensemble": named("GOAD, ensemble scores", _fixed("goad"), refine="final", refine_rounds=1, scorer="ensemble"),
    "goad_no_final": named("GOAD + SRR, ensemble scores", _fixed("goad"), refine="both", scorer="ensemble"),
    "paper": named("GOAD, published recipe", _published_recipe, refine="none"),
    "paper_srr": named("GOAD + SRR, published recipe", _published_recipe, refine="both"),
    "raw": named("Raw GDE", _fixed("default", **_RAW), refine="none"),
    "raw_srr": named("Raw GDE + refinement", _fixed("default", **_RAW), refine="both"),
    "pca_residual": _classifier("PCA residual", "pca"),
    "robust_pca": _classifier("Robust PCA", "robust_pca"),
}
"""Name → detector. Those of the paper's protocol come last; `benchmarks.paper` adds the preset that suits a set."""

COMPARED = (
    "srr",
    "srr_unrefined",
    "iforest",
    "ecod",
    "hbos",
    "copod",
    "knn",
    "lof",
    "pca",
    "ocsvm",
    "gde",
    "half_space_trees",
)
"""The columns of the comparisons, unless --methods says otherwise."""
