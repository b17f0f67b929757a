"""Every one-class classifier in the table keeps the contract; the Gaussian agrees with scipy and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.covariance import ledoit_wolf

from models.occ import CLASSIFIERS
from models.occ.gde import GDE

SHAPES = {"flat": (300, 4), "stacked": (300, 3, 4)}


@pytest.fixture(params=sorted(CLASSIFIERS))
def classifier(request: pytest.FixtureRequest) -> type[GDE]:
    return CLASSIFIERS[request.param]


@pytest.fixture(params=sorted(SHAPES))
def Z(request: pytest.FixtureRequest) -> np.ndarray:  # noqa: N802
    return np.random.default_rng(0).normal(size=SHAPES[request.param]).astype(np.float32)


def test_fit_returns_self_and_leaves_the_input_untouched(classifier: type[GDE], Z: np.ndarray) -> None:
    before = Z.copy()
    occ = classifier()
    assert occ.fit(Z) is occ
    occ.score(Z)
    np.testing.assert_array_equal(Z, before)


def test_scores_are_finite_float64_one_a_row(classifier: type[GDE], Z: np.ndarray) -> None:
    score = classifier().fit(Z).score(Z)
    assert score.shape == (len(Z),)
    assert score.dtype == np.float64
    assert np.isfinite(score).all()
    assert classifier().fit(Z).score(Z[:0]).shape == (0,)


def test_far_points_score_higher(classifier: type[GDE], Z: np.ndarray) -> None:
    occ = classifier().fit(Z)
    far = np.full_like(Z[:1], 9.0)
    assert occ.score(far)[0] > occ.score(Z).max()
    assert occ.score(2 * far)[0] > occ.score(far)[0]


def test_a_row_scores_alike_in_every_batch_bit_for_bit(classifier: type[GDE], Z: np.ndarray) -> None:
    occ = classifier().fit(Z)
    together = occ.score(Z)
    one_by_one = np.concatenate([occ.score(Z[i : i + 1]) for i in range(0, len(Z), 17)])
    np.testing.assert_array_equal(together[::17], one_by_one)
    np.testing.assert_array_equal(occ.score(Z[::-1]), together[::-1])


def test_a_copy_from_its_state_scores_alike(classifier: type[GDE], Z: np.ndarray) -> None:
    occ = classifier().fit(Z)
    np.testing.assert_array_equal(classifier.from_state(occ.state()).score(Z), occ.score(Z))


def test_scoring_before_fit_is_refused(classifier: type[GDE], Z: np.ndarray) -> None:
    with pytest.raises(RuntimeError, match="not fitted; call fit first"):
        classifier().score(Z)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_fewer_rows_than_dimensions_and_equal_rows_give_finite_scores(classifier: type[GDE], n: int) -> None:
    few = np.random.default_rng(0).normal(size=(n, 12))
    assert np.isfinite(classifier().fit(few).score(few)).all()
    equal = np.ones((n, 12))
    occ = classifier().fit(equal)
    assert np.isfinite(occ.score(equal + 5.0)).all()
    assert occ.score(equal + 5.0)[0] > occ.score(equal)[0]


def test_a_weight_of_two_is_a_row_given_twice(classifier: type[GDE], Z: np.ndarray) -> None:
    weights = np.where(np.arange(len(Z)) % 3 == 0, 2.0, 1.0)
    weighted = classifier().fit(Z, weights).score(Z)
    repeated = classifier().fit(np.repeat(Z, weights.astype(int), axis=0)).score(Z)
    np.testing.assert_allclose(weighted, repeated, rtol=1e-9)


def test_the_gaussian_agrees_with_scipy() -> None:
    rng = np.random.default_rng(3)
    Z = rng.normal(size=(200, 5)) @ rng.normal(size=(5, 5))
    a = 0.01
    S = np.cov(Z.T, bias=True)
    S = (1 - a) * S + a * np.trace(S) / 5 * np.eye(5)
    expected = -multivariate_normal(Z.mean(axis=0), S).logpdf(Z)
    np.testing.assert_allclose(GDE(shrinkage=a).fit(Z).score(Z), expected, rtol=1e-9)


@pytest.mark.parametrize(("aggregate", "combine"), [("mean", np.mean), ("median", np.median)])
def test_several_gaussians_are_fitted_apart_and_combined(aggregate: str, combine: object) -> None:
    Z = np.random.default_rng(4).normal(size=(150, 3, 4))
    apart = np.array([GDE().fit(Z[:, m]).score(Z[:, m]) for m in range(3)])
    np.testing.assert_allclose(GDE(aggregate=aggregate).fit(Z).score(Z), combine(apart, axis=0), rtol=1e-9)


def test_few_rows_are_shrunk_as_ledoit_and_wolf_say() -> None:
    Z = np.random.default_rng(5).normal(size=(30, 6))
    S, shrinkage = ledoit_wolf(Z)
    assert shrinkage > 1e-3
    expected = -multivariate_normal(Z.mean(axis=0), S).logpdf(Z)
    np.testing.assert_allclose(GDE().fit(Z).score(Z), expected, rtol=1e-9)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shrinkage is 0\.0; allowed: above 0"):
        GDE(shrinkage=0.0)
    with pytest.raises(ValueError, match="aggregate is 'max'; allowed: mean, median"):
        GDE(aggregate="max")


def test_a_state_whose_shapes_disagree_is_refused() -> None:
    state = GDE().fit(np.random.default_rng(0).normal(size=(50, 3))).state()
    state.arrays["mean"] = state.arrays["mean"][:, :2]
    with pytest.raises(ValueError, match="must agree"):
        GDE.from_state(state)
