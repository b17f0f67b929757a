from __future__ import annotations

from typing import Any, Self

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.occ.gde import GDE
from models.refinement import GAMMA_BOUNDS, estimate_gamma, otsu_share, refine
from models.state import State


class DistanceToMean:
    """The simplest classifier there is: a row's distance from the mean of the rows it was fitted on."""

    name = "distance"

    def fit(self, Z: NDArray[Any], weights: NDArray[np.float64] | None = None) -> Self:
        self.mean = float(Z.mean())
        return self

    def score(self, Z: NDArray[Any]) -> NDArray[np.float64]:
        return np.abs(Z[:, 0] - self.mean)

    def state(self) -> State:
        return State({"mean": self.mean})

    @classmethod
    def from_state(cls, state: State) -> Self:
        occ = cls()
        occ.mean = state.values["mean"]
        return occ


def refine_slowly(Z: np.ndarray, subsets: list[np.ndarray], gamma: float) -> np.ndarray:
    """Equations 1 and 2, word by word."""
    n = len(Z)
    scores = [GDE().fit(Z[subset]).score(Z) for subset in subsets]
    thresholds = []
    for score in scores:
        candidates = [eta for eta in score if sum(s >= eta for s in score) >= gamma * n]
        thresholds.append(max(candidates))
    kept = [all(score[i] < eta for score, eta in zip(scores, thresholds, strict=True)) for i in range(n)]
    return np.array(kept)


def test_an_example_worked_by_hand() -> None:
    # 38 rows at 0, and two apart. Both members are fitted on 20 rows; whichever of them holds the row at 100 or at -50,
    # both rows are farthest from every mean (at most 100/20 = 5, at least -50/20 = -2.5), so with γN = 2 just they go.
    Z = np.zeros((40, 1))
    Z[7], Z[31] = 100.0, -50.0
    refinement = refine(Z, DistanceToMean, n_subsets=2, gamma=0.05, rng=np.random.default_rng(0))
    assert np.flatnonzero(~refinement.kept).tolist() == [7, 31]
    assert refinement.votes[[7, 31]].tolist() == [2, 2]
    assert refinement.votes.sum() == 4
    assert refinement.excluded_ratio == pytest.approx(0.05)
    assert refinement.agreement == 1.0


def test_it_is_what_equations_1_and_2_say() -> None:
    rng = np.random.default_rng(1)
    Z = rng.standard_t(3, size=(120, 2))
    expected_subsets = np.array_split(np.random.default_rng(5).permutation(120), 4)
    refinement = refine(Z, GDE, n_subsets=4, gamma=0.08, rng=np.random.default_rng(5))
    np.testing.assert_array_equal(refinement.kept, refine_slowly(Z, expected_subsets, 0.08))


@given(n=st.integers(20, 150), gamma=st.floats(0.005, 0.3), seed=st.integers(0, 99), is_constant=st.booleans())
@settings(max_examples=30, deadline=None)
def test_every_member_rejects_exactly_its_share(n: int, gamma: float, seed: int, is_constant: bool) -> None:
    Z = np.zeros((n, 2)) if is_constant else np.random.default_rng(seed).normal(size=(n, 2))
    refinement = refine(Z, GDE, n_subsets=3, gamma=gamma, rng=np.random.default_rng(seed))
    share = int(np.ceil(gamma * n - 1e-9))
    assert refinement.votes.sum() == len(refinement.members) * share
    assert share <= (~refinement.kept).sum() <= len(refinement.members) * share


def test_equal_rows_lose_no_more_than_the_share_and_the_same_ones_for_the_same_seed() -> None:
    Z = np.ones((100, 3))
    first = refine(Z, GDE, n_subsets=5, gamma=0.1, rng=np.random.default_rng(3))
    second = refine(Z, GDE, n_subsets=5, gamma=0.1, rng=np.random.default_rng(3))
    assert (~first.kept).sum() == 10
    np.testing.assert_array_equal(first.kept, second.kept)


def test_small_windows_get_fewer_members() -> None:
    Z = np.random.default_rng(0).normal(size=(45, 2))
    assert len(refine(Z, GDE, n_subsets=5, gamma=0.1, rng=np.random.default_rng(0)).members) == 2
    assert len(refine(Z[:8], GDE, n_subsets=5, gamma=0.1, rng=np.random.default_rng(0)).members) == 1


def test_repeating_finds_anomalies_that_bend_the_first_fit() -> None:
    found = {1: 0, 5: 0}
    for seed in range(5):
        rng = np.random.default_rng(seed)
        Z = rng.normal(size=(600, 4))
        Z[:60] = Z[:60] * 0.3 + [5.0, -5.0, 5.0, 0.0]
        for n_rounds in found:
            kept = refine(Z, GDE, n_subsets=5, gamma=0.15, rng=np.random.default_rng(seed), n_rounds=n_rounds).kept
            found[n_rounds] += int((~kept[:60]).sum())
    assert found[5] > found[1]


def test_other_rows_are_judged_by_the_same_thresholds() -> None:
    Z = np.random.default_rng(0).normal(size=(400, 2))
    refinement = refine(Z, GDE, n_subsets=4, gamma=0.1, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(refinement.keeps(Z), refinement.kept)
    assert refinement.keeps(np.array([[0.0, 0.0], [9.0, 9.0]])).tolist() == [True, False]


def test_values_that_are_not_allowed_are_refused() -> None:
    Z = np.zeros((30, 1))
    with pytest.raises(ValueError, match=r"gamma is 1\.0"):
        refine(Z, GDE, n_subsets=2, gamma=1.0, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="n_rounds is 0"):
        refine(Z, GDE, n_subsets=2, gamma=0.1, rng=np.random.default_rng(0), n_rounds=0)


def otsu_slowly(values: np.ndarray) -> float:
    """Least weighted variance of the two sides, over every threshold."""
    best, share = np.inf, 0.0
    for threshold in sorted(set(values.tolist()))[1:]:
        above, below = values[values >= threshold], values[values < threshold]
        within = len(above) * above.var() + len(below) * below.var()
        if within < best - 1e-9:
            best, share = within, len(above) / len(values)
    return share


@given(st.lists(st.integers(0, 50), min_size=2, max_size=60))
@settings(max_examples=60, deadline=None)
def test_otsu_splits_where_the_variance_within_is_least(values: list[int]) -> None:
    array = np.array(values, dtype=np.float64)
    share = otsu_share(array)
    if len(set(values)) == 1:
        assert share == 0.0
        return
    threshold = np.sort(array)[len(array) - round(share * len(array))]
    above, below = array[array >= threshold], array[array < threshold]
    best = otsu_slowly(array)
    best_threshold = np.sort(array)[len(array) - round(best * len(array))]
    best_above, best_below = array[array >= best_threshold], array[array < best_threshold]
    within = len(above) * above.var() + len(below) * below.var()
    assert within == pytest.approx(len(best_above) * best_above.var() + len(best_below) * best_below.var(), abs=1e-6)
    assert len(above) == round(share * len(array))


def test_gamma_is_twice_the_share_of_a_separate_group_and_stays_in_its_bounds() -> None:
    rng = np.random.default_rng(0)
    scores = np.r_[rng.normal(10.0, 1.0, size=950), rng.normal(400.0, 5.0, size=50)]
    assert estimate_gamma(scores) == pytest.approx(0.1)
    assert estimate_gamma(np.full(100, 3.0)) == GAMMA_BOUNDS[0]
    assert estimate_gamma(np.r_[np.zeros(50), np.ones(50)]) == GAMMA_BOUNDS[1]
