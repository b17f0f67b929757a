"""From a window of columns to a calibrated model with a report: the one way in which models are made."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from models.calibration import calibrate
from models.contamination import GAMMAS, estimate_gamma
from models.detector import Model
from models.devices import resolve
from models.explanation import Explainer
from models.heat_maps import PictureExplainer
from models.occ import CLASSIFIERS, OneClassClassifier
from models.occ.blend import Blend
from models.pictures import PicturePreprocessor, is_picture
from models.preprocessing import SCALINGS, Preprocessor, row_count
from models.refinement import REMOVALS, VOTES, Known, Refinement, fit_weighted, refine
from models.representations import REPRESENTATIONS, FieldRepresentation, PictureRepresentation, Representation
from models.srr import REFINES, SCORERS, Progress, Refined, self_supervise_refine_repeat
from models.state import Columns

__all__ = ["Progress", "Trained", "TrainingConfig", "TrainingReport", "train"]

MIN_ROWS = 8
N_FLAGGED_ROWS = 2000
WARM_STEPS_SHARE = 0.25
"""A representation that was trained before gets this share of the steps."""


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained.

    Raises
    ------
    ValueError
        If a value is not allowed; says which are.
    """

    representation: str = "identity"
    representation_options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the representation, such as ``{"n_steps": 512}``."""
    classifier: str = "blend"
    """f, the final one-class classifier, a key of ``CLASSIFIERS``."""
    classifier_options: Mapping[str, Any] = field(default_factory=dict)
    """Its keyword arguments, such as ``{"shrinkage": 0.01}``."""
    ensemble_classifier: str | None = None
    """Members of the ensemble that refines; None: like the final one, with its options."""
    ensemble_options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the members, over those of the final classifier where that is of the same kind."""
    n_subsets: int = 5
    """K."""
    gamma: float | str = "auto"
    """γ, the share that each member rejects, or how to estimate it: see :func:`models.contamination.estimate_gamma`."""
    contamination: float | None = None
    """Known share of anomalies; γ is then twice this. Not with a number for `gamma`."""
    vote: str = "unanimous"
    """See :func:`models.refinement.refine`."""
    removal: str = "hard"
    """See :func:`models.refinement.refine`."""
    refine_rounds: int = 1
    """How often a refinement judges all rows; see :func:`models.refinement.refine`."""
    refine: str = "both"
    """See :func:`models.srr.self_supervise_refine_repeat`."""
    scorer: str = "final"
    """``final``: f scores; ``ensemble``: the mean of the last refinement's members does."""
    tolerance: float | None = None
    """See :func:`models.srr.self_supervise_refine_repeat`."""
    false_alarm_rate: float = 0.005
    calibration_ratio: float = 0.2
    """Share of the window that is kept from training, for calibration."""
    scaling: str = "asinh"
    """See :meth:`models.preprocessing.Preprocessor.fit`."""

    def __post_init__(self) -> None:
        _one_of("representation", self.representation, REPRESENTATIONS)
        _one_of("classifier", self.classifier, CLASSIFIERS)
        if self.ensemble_classifier is not None:
            _one_of("ensemble_classifier", self.ensemble_classifier, CLASSIFIERS)
        for name, allowed in (
            ("scaling", SCALINGS),
            ("vote", VOTES),
            ("removal", REMOVALS),
            ("refine", REFINES),
            ("scorer", SCORERS),
        ):
            _one_of(name, getattr(self, name), allowed)
        if self.scorer == "ensemble" and self.refine == "none":
            raise ValueError("scorer is 'ensemble' and refine is 'none': without refinement there is no ensemble")
        for name in ("n_subsets", "refine_rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed: whole numbers from 1 on")
        for name, end in (
            ("contamination", 0.5),
            ("false_alarm_rate", 1),
            ("calibration_ratio", 1),
            ("tolerance", 1),
        ):
            value = getattr(self, name)
            if value is not None and not 0.0 < value < end:
                raise ValueError(f"{name} is {value!r}; allowed: above 0 and below {end}")
        if isinstance(self.gamma, str):
            _one_of("gamma", self.gamma, GAMMAS)
        elif not 0.0 < self.gamma < 1.0:
            raise ValueError(f"gamma is {self.gamma!r}; allowed: above 0 and below 1, or {', '.join(GAMMAS)}")
        elif self.contamination is not None:
            raise ValueError(
                f"gamma ({self.gamma}) and contamination ({self.contamination}) exclude each other; give one"
            )
        self.make_classifier()
        self.make_member()
        self.make_representation()

    def make_classifier(self) -> OneClassClassifier:
        """Return a new final classifier, not fitted."""
        return self._make(self.classifier, self.classifier_options, "classifier_options")

    def make_member(self) -> OneClassClassifier:
        """Return a new member of the ensemble, not fitted."""
        name = self.ensemble_classifier or self.classifier
        options = {**self.classifier_options} if name == self.classifier else {}
        return self._make(name, {**options, **self.ensemble_options}, "ensemble_options")

    def _make(self, name: str, options: Mapping[str, Any], setting: str) -> OneClassClassifier:
        if name == "gde":
            options = {"shrinkage": REPRESENTATIONS[self.representation].shrinkage, **options}
        try:
            return CLASSIFIERS[name](**options)
        except TypeError as error:
            raise ValueError(f"{setting} do not fit {name!r}: {error}") from error

    def make_representation(self) -> FieldRepresentation | PictureRepresentation:
        """Return a new representation, not fitted."""
        try:
            return REPRESENTATIONS[self.representation](**self.representation_options)
        except TypeError as error:
            raise ValueError(f"representation_options do not fit {self.representation!r}: {error}") from error

    @property
    def takes_pictures(self) -> bool:
        """Whether the representation takes pictures, not fields."""
        return REPRESENTATIONS[self.representation].takes == "picture"

    @property
    def has_steps(self) -> bool:
        """Whether the representation is trained by steps, which PyTorch does."""
        return self.make_representation().steps_for(1) > 0

    def closed_form(self) -> TrainingConfig:
        """Return the config of a first model, ready in a second: a Gaussian, if this has steps to train."""
        if not self.has_steps:
            return self
        return TrainingConfig(
            representation="pixels" if self.takes_pictures else "identity",
            classifier="gde",
            scaling="standard",
            removal="soft",
            n_subsets=self.n_subsets,
            gamma=self.gamma,
            contamination=self.contamination,
            false_alarm_rate=self.false_alarm_rate,
            calibration_ratio=self.calibration_ratio,
        )

    def refine_data(
        self, Z: NDArray[Any], rng: np.random.Generator, known: Known | None = None
    ) -> tuple[Refinement, float]:
        """Return which rows of ``(n, ...)`` embeddings to learn from, and the γ it was done with."""
        if self.contamination is not None:
            gamma = min(2.0 * self.contamination, 0.5)
        elif isinstance(self.gamma, str):
            gamma = estimate_gamma(Z, method=self.gamma, seed=int(rng.integers(2**31)))
        else:
            gamma = self.gamma
        refinement = refine(
            Z,
            self.make_member,
            n_subsets=self.n_subsets,
            gamma=gamma,
            rng=rng,
            n_rounds=self.refine_rounds,
            vote=self.vote,
            removal=self.removal,
            known=known,
        )
        return refinement, gamma


@dataclass(frozen=True)
class TrainingReport:
    """What a training did, for manifests and metrics."""

    gamma: float
    n_subsets: int
    """Members of the last ensemble; fewer than configured if the window is small."""
    excluded_ratio: float
    """Share of the training rows that the last refinement dropped."""
    contamination_ratio: float
    """Estimated share of anomalies in the window."""
    agreement: float
    """Of the rows that any member rejects, the mean share of members that do, 0 to 1."""
    duplicate_ratio: float
    """Share of the rows that repeat an earlier one. A flood of equal anomalies looks normal: watch it."""
    rows_by_votes: list[int]
    """How many training rows 0, 1, … K members of the last ensemble reject."""
    n_rows: int
    n_steps: int
    refreshes: list[tuple[int, float]]
    """(step, excluded share) of every refinement."""
    seconds: dict[str, float]
    """Stage → seconds."""
    is_warm_started: bool
    n_known_anomalies: int = 0
    """Rows that people labelled so: nothing was learned from them."""
    n_known_normals: int = 0
    """Rows that people labelled so: they were kept."""

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form."""
        return asdict(self) | {"refreshes": [list(refresh) for refresh in self.refreshes]}


@dataclass(frozen=True)
class Trained:
    """A model, how it came to be, and what it thinks of the rows of the window."""

    model: Model
    report: TrainingReport
    kept: NDArray[np.bool_]
    """``(n,)``: which rows refinement keeps."""
    votes: NDArray[np.int64]
    """``(n,)``: how many members of the last ensemble reject a row."""


def train(
    columns: Columns,
    config: TrainingConfig,
    *,
    seed: int,
    warm_start: Model | None = None,
    known: Known | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    device: str = "auto",
) -> Trained:
    """Train a model on a contaminated window, without labels or with a few.

    Parameters
    ----------
    columns
        Field → ``(n,)``, n ≥ 8; object dtype for categories.
    seed
        Decides the hold-out, subsets, ties, initial weights and minibatches: same seed, same model (on one device).
    warm_start
        A model whose representation is trained on, if it has the same representation, options and layout of columns;
        else the training is cold, and the report says so.
    known
        Which of the n rows are known as anomalies, from which nothing is learned and by which nothing is calibrated,
        and which as normal, which are kept whatever the ensemble says. None: nothing is known, as usual.
    on_progress
        Called often; raising from it ends the training.
    device
        ``auto``, ``cpu``, ``cuda``, ``cuda:1``, …

    Raises
    ------
    ValueError
        If there are too few rows, columns do not fit each other, or there is no such device.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> columns = {"latency": rng.normal(20.0, 2.0, size=500), "bytes": rng.normal(1e4, 1e3, size=500)}
    >>> columns["latency"][:10] = 90.0
    >>> trained = train(columns, TrainingConfig(), seed=0)
    >>> bool(trained.kept[:10].any())
    False
    >>> trained.model.score({"latency": np.array([21.0, 80.0]), "bytes": np.array([1e4, 1e4])}).flagged.tolist()
    [False, True]
    """
    report = on_progress or (lambda progress: None)
    n_rows = row_count(columns)
    if n_rows < MIN_ROWS:
        raise ValueError(f"columns have n_samples = {n_rows} rows; needed: at least {MIN_ROWS}")
    known = known or Known.nothing(n_rows)
    is_usable = ~known.is_anomaly
    if is_usable.sum() < MIN_ROWS:
        raise ValueError(
            f"{int(is_usable.sum())} of {n_rows} rows are not known as anomalies; needed: at least {MIN_ROWS}"
        )
    started = time.perf_counter()
    rng = np.random.default_rng(seed)
    is_held_out = _held_out(is_usable, config.calibration_ratio, rng)
    preprocessor = _preprocessor(_rows_of(columns, is_usable), config)
    everything = preprocessor.transform(columns)
    prepared = time.perf_counter()

    representation = _warm(warm_start, config, preprocessor)
    is_warm = representation is not None
    representation = representation or config.make_representation()
    n_rows_learned = n_rows - int(is_held_out.sum())
    n_steps = round(representation.steps_for(n_rows_learned) * (WARM_STEPS_SHARE if is_warm else 1.0))
    # Where nothing is trained, held-out rows can be judged with the others: only f must not have seen them.
    is_learned_from = ~is_held_out if n_steps else np.ones(n_rows, dtype=bool)
    X, rows = everything[is_learned_from], np.flatnonzero(is_learned_from)
    known_of_X = known.of(rows)
    learned_from = X if is_usable.all() else X[~known_of_X.is_anomaly]
    representation.fit(learned_from, rng, device=resolve(device) if n_steps else "cpu", n_steps=n_steps)
    refined = self_supervise_refine_repeat(
        X,
        representation,
        partial(config.refine_data, known=known_of_X),
        rng=rng,
        n_steps=n_steps,
        refine=config.refine,
        tolerance=config.tolerance,
        is_warm=is_warm,
        known=known_of_X,
        on_progress=lambda progress: report(progress if progress.kept is None else progress._replace(rows=rows)),
    )
    learned = time.perf_counter()

    refinement = refined.refinement
    report(Progress("calibrate", refined.n_steps, refined.n_steps, None, refinement.excluded_ratio))
    Z, votes_of_Z, weights, place = _judge_all(refined, representation, everything, is_learned_from, known)
    votes = votes_of_Z[place]
    kept = known.settle(votes < refinement.n_votes)
    classifier, scores = _classifier(config, refinement, Z, weights, place, is_held_out)
    # γ is meant to be twice the share of anomalies; where it is estimated, that may be half as many again.
    calibration = calibrate(scores, kept[is_held_out], max_anomalous_ratio=0.75 * refined.gamma)
    refined_rows = np.flatnonzero(kept) if kept.any() else np.arange(n_rows)
    explainer: Explainer | PictureExplainer
    if config.takes_pictures:
        usual = scores[kept[is_held_out]] if kept[is_held_out].any() else scores
        seeing = cast(PictureRepresentation, representation)
        explainer = PictureExplainer.fit(everything[refined_rows], float(np.median(usual)), seeing, rng)
    else:
        explainer = Explainer.fit(everything, refined_rows)
    model = Model(
        preprocessor,
        # As loaded from a file: without optimiser and network, and not to be trained on by anybody.
        representation.from_state(representation.state()),
        classifier,
        calibration,
        explainer,
        config.false_alarm_rate,
        {"n_rows": n_rows, "gamma": refined.gamma, "excluded_ratio": refinement.excluded_ratio},
    )
    seconds = {
        "prepare": prepared - started,
        **refined.seconds,
        "calibrate": time.perf_counter() - learned,
    }
    contamination = _contamination(model, columns, rng)
    training = _report(refined, everything, contamination, len(rows), seconds, is_warm, known)
    return Trained(model, training, kept, votes)


def _judge_all(
    refined: Refined,
    representation: Representation,
    everything: NDArray[Any],
    is_refined: NDArray[np.bool_],
    known: Known,
) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.float64], NDArray[np.intp]]:
    """Return embeddings, votes and weights of all rows, those that refinement has seen first, and each row's place.

    To bring the embeddings, which are most of the memory of a training, into the order of the rows takes twice as long.
    """
    refinement = refined.refinement
    if is_refined.all():
        return refined.embedding, refinement.votes, refinement.weights, np.arange(len(everything))
    seen, others = np.flatnonzero(is_refined), np.flatnonzero(~is_refined)
    Z = representation.embed(everything[others])
    votes = refinement.votes_on(Z)
    weights = known.of(others).settle(votes < refinement.n_votes).astype(np.float64)
    return (
        np.concatenate([refined.embedding, Z]),
        np.concatenate([refinement.votes, votes]),
        np.concatenate([refinement.weights, weights]),
        np.argsort(np.concatenate([seen, others])),
    )


def _classifier(
    config: TrainingConfig,
    refinement: Refinement,
    Z: NDArray[Any],
    weights: NDArray[np.float64],
    place: NDArray[np.intp],
    is_held_out: NDArray[np.bool_],
) -> tuple[OneClassClassifier, NDArray[np.float64]]:
    """Return f, and scores of the held-out rows by an f that has not seen them; row i is at ``place[i]`` of `Z`.

    What is in use is fitted on all rows, the held-out ones too: a few more rows hardly change the distribution of
    scores, and small windows need every one.
    """
    if config.scorer == "ensemble":
        ensemble = Blend.of(refinement.members)
        return ensemble, ensemble.score(Z[place[is_held_out]])
    others = fit_weighted(config.make_classifier(), Z, weights, place[~is_held_out])
    return fit_weighted(config.make_classifier(), Z, weights, place), others.score(Z[place[is_held_out]])


def _report(
    refined: Refined,
    X: NDArray[Any],
    contamination: float,
    n_rows: int,
    seconds: dict[str, float],
    is_warm: bool,
    known: Known,
) -> TrainingReport:
    return TrainingReport(
        gamma=refined.gamma,
        n_subsets=len(refined.refinement.members),
        excluded_ratio=refined.refinement.excluded_ratio,
        contamination_ratio=contamination,
        agreement=refined.refinement.agreement,
        duplicate_ratio=1.0 - len({hash(row.tobytes()) for row in X}) / len(X),
        rows_by_votes=np.bincount(refined.refinement.votes, minlength=len(refined.refinement.members) + 1).tolist(),
        n_rows=n_rows,
        n_steps=refined.n_steps,
        refreshes=list(refined.refreshes),
        seconds=seconds,
        is_warm_started=is_warm,
        n_known_anomalies=int(known.is_anomaly.sum()),
        n_known_normals=int(known.is_normal.sum()),
    )


def _held_out(is_usable: NDArray[np.bool_], ratio: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Draw the rows that calibrate, among the ``(n,)`` usable ones."""
    order = rng.permutation(len(is_usable))
    order = order[is_usable[order]]
    is_held_out = np.zeros(len(is_usable), dtype=bool)
    is_held_out[order[: max(2, round(ratio * len(order)))]] = True
    return is_held_out


def _rows_of(columns: Columns, is_wanted: NDArray[np.bool_]) -> Columns:
    """Return the columns of some rows; the same ones if all are wanted."""
    return columns if is_wanted.all() else {name: column[is_wanted] for name, column in columns.items()}


def _contamination(model: Model, columns: Columns, rng: np.random.Generator) -> float:
    """Return the share of the window, or of a sample of it, that is flagged beyond the false alarms to be expected."""
    rows = np.sort(rng.permutation(row_count(columns))[:N_FLAGGED_ROWS])
    sample = {name: column[rows] for name, column in columns.items()}
    flagged, rate = float(model.score(sample).flagged.mean()), model.false_alarm_rate
    return max(0.0, (flagged - rate) / (1.0 - rate))


def _preprocessor(columns: Columns, config: TrainingConfig) -> Preprocessor | PicturePreprocessor:
    if any(is_picture(column) for column in columns.values()) != config.takes_pictures:
        kind = REPRESENTATIONS[config.representation].takes
        suiting = [name for name, each in REPRESENTATIONS.items() if each.takes != kind]
        raise ValueError(
            f"representation {config.representation!r} takes {'pictures' if config.takes_pictures else 'fields'}, the "
            f"columns are {'fields' if config.takes_pictures else 'pictures'}; allowed with them: {', '.join(suiting)}"
        )
    if config.takes_pictures:
        return PicturePreprocessor.fit(columns)
    return Preprocessor.fit(columns, scaling=config.scaling)


def _warm(
    champion: Model | None, config: TrainingConfig, preprocessor: Preprocessor | PicturePreprocessor
) -> FieldRepresentation | PictureRepresentation | None:
    """Return a copy of the champion's representation if training can go on from it."""
    if champion is None or champion.representation_name != config.representation:
        return None
    representation = champion.representation
    wanted = config.make_representation()
    if not wanted.steps_for(1) or not champion.preprocessor.has_layout_of(preprocessor):
        return None
    state = representation.state()
    # Those of pictures put the shape of a picture beside their options; the layouts agree in it.
    if state.values.get("options", state.values) != getattr(wanted, "options", None):
        return None
    return type(representation).from_state(state)


def _one_of(name: str, value: str, allowed: Any) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")
