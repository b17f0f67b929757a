from __future__ import annotations

from typing import Any, Self

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.occ.gde import GDE
from models.refinement import keep_all, refine
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


class Copying:
    """A Gaussian that refinement does not know for one: fitted on copies of rows, it scores in float64, by itself."""

    name = "copying"

    def __init__(self) -> None:
        self.gde = GDE()

    def fit(self, Z: NDArray[Any], weights: NDArray[np.float64] | None = None) -> Self:
        self.gde.fit(Z, weights)
        return self

    def score(self, Z: NDArray[Any]) -> NDArray[np.float64]:
        return self.gde.score(Z)

    def state(self) -> State:
        return self.gde.state()

    @classmethod
    def from_state(cls, state: State) -> Self:
        raise NotImplementedError


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


@given(
    n=st.integers(200, 600),
    shape=st.sampled_from([(3,), (4, 2)]),
    vote=st.sampled_from(["unanimous", "majority"]),
    removal=st.sampled_from(["hard", "soft"]),
    n_rounds=st.integers(1, 3),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_of_float32_it_is_what_copies_and_scores_one_by_one_give(
    n: int, shape: tuple[int, ...], vote: str, removal: str, n_rounds: int, seed: int
) -> None:
    Z = np.random.default_rng(seed).standard_t(3, size=(n, *shape)).astype(np.float32)
    options: dict[str, Any] = {"n_subsets": 4, "gamma": 0.08, "n_rounds": n_rounds, "vote": vote, "removal": removal}
    fast = refine(Z, GDE, rng=np.random.default_rng(seed), **options)
    slow = refine(Z, Copying, rng=np.random.default_rng(seed), **options)
    # float32 decides otherwise only where two scores are equal but for their last digits.
    assert np.count_nonzero(fast.votes != slow.votes) <= 2
    np.testing.assert_allclose(fast.thresholds, slow.thresholds, rtol=1e-4)
    if (fast.votes == slow.votes).all() and removal == "soft":
        np.testing.assert_allclose(fast.weights, slow.weights, rtol=1e-3, atol=1e-6)


def test_values_that_are_not_allowed_are_refused() -> None:
    Z = np.zeros((30, 1))
    with pytest.raises(ValueError, match=r"gamma is 1\.0"):
        refine(Z, GDE, n_subsets=2, gamma=1.0, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="n_rounds is 0"):
        refine(Z, GDE, n_subsets=2, gamma=0.1, rng=np.random.default_rng(0), n_rounds=0)
    with pytest.raises(ValueError, match="vote is 'loud'; allowed: unanimous, majority"):
        refine(Z, GDE, n_subsets=2, gamma=0.1, rng=np.random.default_rng(0), vote="loud")
    with pytest.raises(ValueError, match="removal is 'half'; allowed: hard, soft"):
        refine(Z, GDE, n_subsets=2, gamma=0.1, rng=np.random.default_rng(0), removal="half")


def test_a_majority_keeps_what_at_most_half_of_the_members_reject() -> None:
    Z = np.random.default_rng(2).standard_t(3, size=(300, 3))
    unanimous, majority = (
        refine(Z, GDE, n_subsets=5, gamma=0.1, rng=np.random.default_rng(0), vote=vote)
        for vote in ("unanimous", "majority")
    )
    np.testing.assert_array_equal(unanimous.votes, majority.votes)
    np.testing.assert_array_equal(unanimous.kept, unanimous.votes == 0)
    np.testing.assert_array_equal(majority.kept, majority.votes <= 2)
    assert unanimous.excluded_ratio > majority.excluded_ratio
    np.testing.assert_array_equal(majority.keeps(Z), majority.kept)


def test_hard_weights_are_the_vote_and_soft_ones_fall_with_the_score() -> None:
    Z = np.random.default_rng(2).standard_t(3, size=(300, 3))
    hard, soft = (
        refine(Z, GDE, n_subsets=3, gamma=0.1, rng=np.random.default_rng(0), removal=removal)
        for removal in ("hard", "soft")
    )
    np.testing.assert_array_equal(hard.weights, hard.kept.astype(float))
    expected = np.ones(300)
    for member, threshold in zip(soft.members, soft.thresholds, strict=True):
        score = member.score(Z)
        expected /= 1.0 + np.exp(8.0 * (score - threshold) / (threshold - np.median(score)))
    np.testing.assert_allclose(soft.weights, expected)
    assert soft.weights[~soft.kept].max() <= 0.5
    assert np.median(soft.weights) > 0.9


def test_equal_scores_have_no_threshold_to_weigh_by() -> None:
    Z = np.ones((100, 2))
    weights = refine(Z, GDE, n_subsets=2, gamma=0.1, rng=np.random.default_rng(0), removal="soft").weights
    np.testing.assert_array_equal(weights, 1.0)


def test_no_refinement_keeps_everything_and_has_no_members() -> None:
    refinement = keep_all(7)
    assert refinement.excluded_ratio == 0.0
    assert refinement.agreement == 1.0
    np.testing.assert_array_equal(refinement.keeps(np.zeros((3, 2))), True)
