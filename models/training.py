"""From a window of columns to a calibrated model with a report: the one way in which models are made."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.calibration import calibrate
from models.detector import Model
from models.explanation import Explainer
from models.occ import CLASSIFIERS, OneClassClassifier
from models.preprocessing import SCALINGS, Preprocessor, row_count
from models.representations import REPRESENTATIONS, Representation
from models.srr import Progress, Refined, self_supervise_refine_repeat
from models.state import Columns

__all__ = ["Progress", "Trained", "TrainingConfig", "TrainingReport", "train"]

MIN_ROWS = 8
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

    representation: str = "goad"
    representation_options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the representation, such as ``{"n_steps": 512}``."""
    classifier: str = "gde"
    n_subsets: int = 5
    """K."""
    gamma: float | None = None
    """Share that each member of the ensemble rejects; estimated if None."""
    contamination: float | None = None
    """Known share of anomalies; γ is then twice this. Not with `gamma`."""
    false_alarm_rate: float = 0.005
    shrinkage: float | None = None
    """Of covariances, above 0, at most 1; None: what suits the representation. See :class:`models.occ.gde.GDE`."""
    refine_rounds: int = 5
    """How often a refinement judges all rows; see :func:`models.refinement.refine`."""
    calibration_ratio: float = 0.2
    """Share of the window that is kept from training, for calibration."""
    scaling: str = "standard"

    def __post_init__(self) -> None:
        _one_of("representation", self.representation, REPRESENTATIONS)
        _one_of("classifier", self.classifier, CLASSIFIERS)
        _one_of("scaling", self.scaling, SCALINGS)
        for name in ("n_subsets", "refine_rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed: whole numbers from 1 on")
        for name, end in (("gamma", 1), ("contamination", 0.5), ("false_alarm_rate", 1), ("calibration_ratio", 1)):
            value = getattr(self, name)
            if value is not None and not 0.0 < value < end:
                raise ValueError(f"{name} is {value!r}; allowed: above 0 and below {end}")
        if self.gamma is not None and self.contamination is not None:
            raise ValueError(
                f"gamma ({self.gamma}) and contamination ({self.contamination}) exclude each other; give one"
            )
        self.make_classifier()
        self.make_representation()

    def make_classifier(self) -> OneClassClassifier:
        """Return a new classifier, not fitted."""
        shrinkage = REPRESENTATIONS[self.representation].shrinkage if self.shrinkage is None else self.shrinkage
        return CLASSIFIERS[self.classifier](shrinkage=shrinkage)

    def make_representation(self) -> Representation:
        """Return a new representation, not fitted."""
        try:
            return REPRESENTATIONS[self.representation](**self.representation_options)
        except TypeError as error:
            raise ValueError(f"representation_options do not fit {self.representation!r}: {error}") from error

    def with_representation(self, name: str) -> TrainingConfig:
        """Return the same with another representation; options, which are of one representation only, are dropped."""
        if name == self.representation:
            return self
        return replace(self, representation=name, representation_options={})


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
    n_rows: int
    n_steps: int
    refreshes: list[tuple[int, float]]
    """(step, excluded share) of every refinement."""
    seconds: dict[str, float]
    """Stage → seconds."""
    is_warm_started: bool

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form."""
        return asdict(self) | {"refreshes": [list(refresh) for refresh in self.refreshes]}


@dataclass(frozen=True)
class Trained:
    """A model, how it came to be, and which rows of the window it thinks normal, ``(n,)``."""

    model: Model
    report: TrainingReport
    kept: NDArray[np.bool_]


def train(
    columns: Columns,
    config: TrainingConfig,
    *,
    seed: int,
    warm_start: Model | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    device: str = "auto",
) -> Trained:
    """Train a model on a contaminated window without labels.

    Parameters
    ----------
    columns
        Field → ``(n,)``, n ≥ 8; object dtype for categories.
    seed
        Decides the hold-out, subsets, ties, initial weights and minibatches: same seed, same model (on one device).
    warm_start
        A model whose representation is trained on, if it has the same representation, options and layout of columns;
        else the training is cold, and the report says so.
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
    >>> trained = train(columns, TrainingConfig(representation="identity"), seed=0)
    >>> bool(trained.kept[:10].any())
    False
    >>> trained.model.score({"latency": np.array([21.0, 80.0]), "bytes": np.array([1e4, 1e4])}).flagged.tolist()
    [False, True]
    """
    report = on_progress or (lambda progress: None)
    n_rows = row_count(columns)
    if n_rows < MIN_ROWS:
        raise ValueError(f"columns have n_samples = {n_rows} rows; needed: at least {MIN_ROWS}")
    started = time.perf_counter()
    rng = np.random.default_rng(seed)
    is_held_out = _held_out(n_rows, config.calibration_ratio, rng)
    preprocessor = Preprocessor.fit(
        {name: column[~is_held_out] for name, column in columns.items()}, scaling=config.scaling
    )
    everything = preprocessor.transform(columns)
    X, held_out = everything[~is_held_out], everything[is_held_out]
    prepared = time.perf_counter()

    representation = _warm(warm_start, config, preprocessor)
    is_warm = representation is not None
    representation = representation or config.make_representation()
    n_steps = round(representation.n_steps * WARM_STEPS_SHARE) if is_warm else representation.n_steps
    representation.fit(X, rng, device=_device(device) if n_steps else "cpu")
    refined = self_supervise_refine_repeat(
        X,
        representation,
        config.make_classifier,
        n_subsets=config.n_subsets,
        gamma=_gamma(config),
        n_rounds=config.refine_rounds,
        rng=rng,
        n_steps=n_steps,
        is_warm=is_warm,
        on_progress=on_progress,
    )
    learned = time.perf_counter()

    report(Progress("calibrate", n_steps, n_steps, None, refined.refinement.excluded_ratio))
    Z = representation.embed(held_out)
    scores = refined.classifier.score(Z)
    kept = np.empty(n_rows, dtype=bool)
    kept[~is_held_out], kept[is_held_out] = refined.refinement.kept, refined.refinement.keeps(Z)
    # γ is meant to be twice the share of anomalies; where it is estimated, that may be half as many again.
    calibration = calibrate(scores, kept[is_held_out], max_anomalous_ratio=0.75 * refined.gamma)
    explainer = Explainer.fit(X[refined.refinement.kept])
    model = Model(
        preprocessor,
        # As loaded from a file: without optimiser and network, and not to be trained on by anybody.
        representation.from_state(representation.state()),
        refined.classifier,
        calibration,
        explainer,
        config.false_alarm_rate,
        {"n_rows": n_rows, "gamma": refined.gamma, "excluded_ratio": refined.refinement.excluded_ratio},
    )
    seconds = {
        "prepare": prepared - started,
        **refined.seconds,
        "calibrate": time.perf_counter() - learned,
    }
    contamination = _contamination(model, columns)
    return Trained(model, _report(refined, everything, contamination, n_steps, seconds, is_warm), kept)


def _report(
    refined: Refined,
    X: NDArray[np.float32],
    contamination: float,
    n_steps: int,
    seconds: dict[str, float],
    is_warm: bool,
) -> TrainingReport:
    return TrainingReport(
        gamma=refined.gamma,
        n_subsets=len(refined.refinement.members),
        excluded_ratio=refined.refinement.excluded_ratio,
        contamination_ratio=contamination,
        agreement=refined.refinement.agreement,
        duplicate_ratio=1.0 - len({row.tobytes() for row in X}) / len(X),
        n_rows=len(X),
        n_steps=n_steps,
        refreshes=list(refined.refreshes),
        seconds=seconds,
        is_warm_started=is_warm,
    )


def _held_out(n_rows: int, ratio: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    is_held_out = np.zeros(n_rows, dtype=bool)
    is_held_out[rng.permutation(n_rows)[: max(2, round(ratio * n_rows))]] = True
    return is_held_out


def _gamma(config: TrainingConfig) -> float | None:
    return config.gamma if config.contamination is None else min(2.0 * config.contamination, 0.5)


def _contamination(model: Model, columns: Columns) -> float:
    """Return the share of the window that is flagged beyond the false alarms to be expected."""
    flagged, rate = float(model.score(columns).flagged.mean()), model.false_alarm_rate
    return max(0.0, (flagged - rate) / (1.0 - rate))


def _warm(champion: Model | None, config: TrainingConfig, preprocessor: Preprocessor) -> Representation | None:
    """Return a copy of the champion's representation if training can go on from it."""
    if champion is None or champion.representation_name != config.representation:
        return None
    representation = champion.representation
    wanted = config.make_representation()
    if not wanted.n_steps or not champion.preprocessor.has_layout_of(preprocessor):
        return None
    state = representation.state()
    if state.values != getattr(wanted, "options", None):
        return None
    return type(representation).from_state(state)


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device is {name!r}; allowed: auto, cpu, or a device that is here: {reason}") from error
    return name


def _one_of(name: str, value: str, allowed: Any) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")
