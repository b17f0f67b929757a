"""What people know of rows: a known anomaly is never learned from, a known normal row always is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models import training
from models.occ.gde import GDE
from models.persistence import model_to_parts
from models.presets import PRESETS
from models.refinement import REMOVALS, VOTES, Known, keep_all, refine
from models.training import Progress, TrainingConfig, train

Bools = NDArray[np.bool_]


def refine_slowly(
    Z: NDArray[Any], subsets: list[NDArray[np.intp]], is_anomaly: Bools, is_normal: Bools, gamma: float
) -> list[bool]:
    """Equations 1 and 2 word by word, and over them what is known."""
    scores = [GDE().fit(Z[subset]).score(Z) for subset in subsets]
    kept = []
    for i in range(len(Z)):
        n_higher = [sum(score[j] > score[i] for j in range(len(Z))) for score in scores]
        is_rejected = any(n < gamma * len(Z) for n in n_higher)
        if is_anomaly[i]:
            kept.append(False)
        elif is_normal[i]:
            kept.append(True)
        else:
            kept.append(not is_rejected)
    return kept


@pytest.mark.parametrize("seed", range(5))
def test_it_is_what_the_equations_and_what_is_known_say(seed: int) -> None:
    rng = np.random.default_rng(seed)
    Z = rng.standard_t(3, size=(120, 2))
    known = draw_known(rng, 120, 0.2, 0.2)
    order = [i for i in np.random.default_rng(5).permutation(120) if not known.is_anomaly[i]]
    subsets = np.array_split(np.array(order), min(4, len(order) // 20))
    refinement = refine(Z, GDE, n_subsets=4, gamma=0.08, rng=np.random.default_rng(5), known=known)
    assert refinement.kept.tolist() == refine_slowly(Z, subsets, known.is_anomaly, known.is_normal, 0.08)
    np.testing.assert_array_equal(refinement.weights, refinement.kept)


def draw_known(rng: np.random.Generator, n: int, anomalies: float, normals: float) -> Known:
    u = rng.random(n)
    return Known(u < anomalies, u > 1.0 - normals)


class Spy(GDE):
    """A Gaussian that remembers what it was fitted on."""

    seen: list[NDArray[Any]] = []  # noqa: RUF012

    def fit(
        self,
        Z: NDArray[Any],
        weights: NDArray[np.float64] | None = None,
        *,
        rows: NDArray[np.intp] | None = None,
    ) -> Any:
        chosen = np.arange(len(Z)) if rows is None else rows
        self.seen.append(Z[chosen if weights is None else chosen[weights[chosen] > 0.0]])
        return super().fit(Z, weights, rows=rows)


@given(
    n=st.integers(20, 120),
    gamma=st.floats(0.005, 0.5),
    anomalies=st.floats(0.0, 0.9),
    normals=st.floats(0.0, 0.1),
    vote=st.sampled_from(VOTES),
    removal=st.sampled_from(REMOVALS),
    n_rounds=st.integers(1, 3),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_a_known_anomaly_is_never_kept_nor_seen_and_a_known_normal_row_always_is_kept(
    n: int, gamma: float, anomalies: float, normals: float, vote: str, removal: str, n_rounds: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    Z = rng.normal(size=(n, 2))
    known = draw_known(rng, n, anomalies, normals)
    assume(np.count_nonzero(~known.is_anomaly) >= 2)
    Spy.seen.clear()
    refinement = refine(
        Z, Spy, n_subsets=3, gamma=gamma, rng=rng, n_rounds=n_rounds, vote=vote, removal=removal, known=known
    )
    assert not refinement.kept[known.is_anomaly].any()
    assert (refinement.weights[known.is_anomaly] == 0.0).all()
    assert refinement.kept[known.is_normal].all()
    assert (refinement.weights[known.is_normal] == 1.0).all()
    of_anomalies = {row.tobytes() for row in Z[known.is_anomaly]}
    assert not of_anomalies & {row.tobytes() for seen in Spy.seen for row in seen}
    assert Spy.seen


def test_where_nothing_is_known_nothing_changes() -> None:
    Z = np.random.default_rng(0).normal(size=(200, 2))
    one, two = (
        refine(Z, GDE, n_subsets=5, gamma=0.1, rng=np.random.default_rng(1), removal="soft", known=known)
        for known in (None, Known.nothing(200))
    )
    np.testing.assert_array_equal(one.weights, two.weights)
    np.testing.assert_array_equal(one.votes, two.votes)


def test_without_refinement_known_anomalies_are_left_out_all_the_same() -> None:
    known = Known(np.array([True, False, False]), np.array([False, True, False]))
    assert keep_all(3, known).kept.tolist() == [False, True, True]
    assert keep_all(3, known).weights.tolist() == [0.0, 1.0, 1.0]


def test_what_cannot_be_known_is_refused() -> None:
    with pytest.raises(ValueError, match="1 rows are known both as anomalies and as normal"):
        Known(np.array([True, False]), np.array([True, True]))
    everything = Known(np.ones(30, dtype=bool), np.zeros(30, dtype=bool))
    with pytest.raises(ValueError, match="all but 0 of 30 rows are known as anomalies"):
        refine(np.zeros((30, 1)), GDE, n_subsets=2, gamma=0.1, rng=np.random.default_rng(0), known=everything)


# --- a whole training -------------------------------------------------------------------------------------------------

CONFIGS = {
    "default": replace(PRESETS["default"], gamma=0.2),
    "goad": replace(PRESETS["goad"], gamma=0.2, representation_options={"n_transforms": 8, "n_steps": 60}),
    "soft": TrainingConfig(classifier="gde", removal="soft", refine_rounds=3, gamma=0.2),
    "none": TrainingConfig(refine="none", gamma=0.2),
    "ensemble": TrainingConfig(vote="majority", scorer="ensemble", gamma=0.2),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("is_warm", [False, True])
def test_in_a_training_known_anomalies_touch_nothing_and_known_normal_rows_are_kept(
    name: str, is_warm: bool, make_columns: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CONFIGS[name]
    columns, _ = make_columns(300, contamination=0.05)
    numeric = next(key for key, column in columns.items() if column.dtype != object)
    known = draw_known(np.random.default_rng(0), 300, 0.1, 0.1)
    champion = train(columns, config, seed=1, device="cpu").model if is_warm else None
    n_calibrated: list[int] = []
    calibrate = training.calibrate

    def watched(scores: NDArray[np.float64], kept: Bools, **options: Any) -> Any:
        n_calibrated.append(len(scores))
        return calibrate(scores, kept, **options)

    def check(progress: Progress) -> None:
        if progress.kept is not None and progress.rows is not None:
            refined.append(progress.step)
            assert not progress.kept[known.is_anomaly[progress.rows]].any()
            assert progress.kept[known.is_normal[progress.rows]].all()

    monkeypatch.setattr(training, "calibrate", watched)
    refined: list[int] = []
    scores = []
    for far in (1e6, 1e9):  # whatever known anomalies say, the model is the same: nothing of them is in it
        columns[numeric] = np.where(known.is_anomaly, far, columns[numeric])
        trained = train(columns, config, seed=2, device="cpu", warm_start=champion, known=known, on_progress=check)
        scores.append(trained.model.score({key: column[~known.is_anomaly] for key, column in columns.items()}))
        assert not trained.kept[known.is_anomaly].any()
        assert trained.kept[known.is_normal].all()
    np.testing.assert_array_equal(scores[0].score, scores[1].score)
    np.testing.assert_array_equal(scores[0].p_value, scores[1].p_value)
    n_anomalies, n_normals = int(known.is_anomaly.sum()), int(known.is_normal.sum())
    assert (trained.report.n_known_anomalies, trained.report.n_known_normals) == (n_anomalies, n_normals)
    assert n_calibrated == 2 * [round(0.2 * (300 - n_anomalies))]
    assert refined


def test_same_window_same_seed_and_nothing_known_is_the_same_model_bit_by_bit(make_columns: Any) -> None:
    columns, _ = make_columns(300, contamination=0.05)
    parts = [
        model_to_parts(train(columns, CONFIGS["goad"], seed=2, device="cpu", known=known).model)
        for known in (None, Known.nothing(300))
    ]
    assert parts[0] == parts[1]


def test_a_false_alarm_that_is_marked_normal_is_learned_from(make_columns: Any) -> None:
    # A few kinds of records that are rare and far: refinement drops them, a label keeps them.
    columns, _ = make_columns(400, contamination=0.0)
    numeric = next(key for key, column in columns.items() if column.dtype != object)
    rows = np.zeros(400, dtype=bool)
    rows[:6] = True
    columns[numeric][rows] = columns[numeric].max() * 20
    without = train(columns, PRESETS["default"], seed=0, device="cpu")
    known = Known(np.zeros(400, dtype=bool), rows)
    with_labels = train(columns, PRESETS["default"], seed=0, device="cpu", known=known)
    assert not without.kept[rows].any()
    assert with_labels.kept[rows].all()
    before, after = (trained.model.score(columns).p_value[rows] for trained in (without, with_labels))
    assert (after > before).all()


def test_with_too_few_rows_that_are_no_known_anomalies_it_says_so(make_columns: Any) -> None:
    columns, _ = make_columns(20)
    known = Known(np.arange(20) < 13, np.zeros(20, dtype=bool))
    with pytest.raises(ValueError, match="7 of 20 rows are not known as anomalies; needed: at least 8"):
        train(columns, PRESETS["default"], seed=0, known=known)
