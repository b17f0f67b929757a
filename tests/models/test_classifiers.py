"""Every one-class classifier in the table keeps the contract; each agrees with its formula or with scikit-learn."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from sklearn.covariance import ledoit_wolf
from sklearn.decomposition import PCA as ComponentsOfSklearn  # noqa: N811
from sklearn.ensemble import IsolationForest as SklearnForest
from sklearn.neighbors import KernelDensity, LocalOutlierFactor, NearestNeighbors
from sklearn.svm import OneClassSVM

from models.occ import CLASSIFIERS, OneClassClassifier
from models.occ.centres import Centres
from models.occ.energy import Energy
from models.occ.flattening import choose_rows
from models.occ.gde import GDE, mean_and_covariance, score_together
from models.occ.isolation_forest import IsolationForest
from models.occ.kde import KDE
from models.occ.knn import KNN
from models.occ.lof import LOF
from models.occ.ocsvm import OCSVM
from models.occ.pca import PCA, RobustPCA, low_rank_and_sparse
from models.state import State

SATURATES = {"ocsvm", "isolation_forest"}
"""Scores of these stop growing somewhere away from the fitted rows."""
COUNTS_WEIGHTS = {"gde": 1e-9, "kde": 1e-9, "pca": 1e-9, "centres": 1e-9, "ocsvm": 1e-2, "energy": 0.0}
"""To these a weight of two is a row given twice, within this tolerance; libsvm stops at 1e-3."""

Classifier = type[OneClassClassifier]


@pytest.fixture(params=sorted(CLASSIFIERS))
def classifier(request: pytest.FixtureRequest) -> Classifier:
    return CLASSIFIERS[request.param]


@pytest.fixture(params=["flat", "stacked"])
def Z(request: pytest.FixtureRequest) -> np.ndarray:  # noqa: N802
    """Normal rows of which the last column hardly varies; stacked ones have a centre for each transformation."""
    rng = np.random.default_rng(0)
    spread = np.array([1.0, 1.0, 1.0, 0.3])
    if request.param == "flat":
        return (spread * rng.normal(size=(300, 4))).astype(np.float32)
    centres = np.array([[3.0, 0.0, 0.0, 0.0], [0.0, 3.0, 0.0, 0.0], [-3.0, -3.0, 0.0, 0.0]])
    return (centres + spread * rng.normal(size=(300, 3, 4))).astype(np.float32)


def reloaded(state: State) -> State:
    return State(json.loads(json.dumps(state.values)), safetensors.numpy.load(safetensors.numpy.save(state.arrays)))


def test_names_in_the_table_are_those_of_the_classes() -> None:
    assert {name: classifier.name for name, classifier in CLASSIFIERS.items()} == {name: name for name in CLASSIFIERS}


def test_fit_returns_self_and_leaves_the_input_untouched(classifier: Classifier, Z: np.ndarray) -> None:
    before, weights = Z.copy(), np.linspace(0.0, 1.0, len(Z))
    occ = classifier()
    assert occ.fit(Z, weights) is occ
    occ.score(Z)
    np.testing.assert_array_equal(Z, before)
    np.testing.assert_array_equal(weights, np.linspace(0.0, 1.0, len(Z)))


def test_scores_are_finite_float64_one_a_row(classifier: Classifier, Z: np.ndarray) -> None:
    occ = classifier().fit(Z)
    score = occ.score(Z)
    assert score.shape == (len(Z),)
    assert score.dtype == np.float64
    assert np.isfinite(score).all()
    assert occ.score(Z[:0]).shape == (0,)


def test_far_points_score_higher(classifier: Classifier, Z: np.ndarray) -> None:
    occ = classifier().fit(Z)
    far = np.full_like(Z[:1], 9.0)
    assert occ.score(far)[0] > np.quantile(occ.score(Z), 0.99)
    if classifier.name in SATURATES:
        assert occ.score(2 * far)[0] >= occ.score(far)[0]
    else:
        assert occ.score(far)[0] > occ.score(Z).max()
        assert occ.score(2 * far)[0] > occ.score(far)[0]


def test_scores_stay_finite_very_far_away(classifier: Classifier, Z: np.ndarray) -> None:
    occ = classifier().fit(Z)
    for size in (1e6, 1e12, 1e18):
        assert np.isfinite(occ.score(np.full_like(Z[:2], size))).all()


def test_a_row_scores_alike_in_every_batch_bit_for_bit(classifier: Classifier, Z: np.ndarray) -> None:
    occ = classifier().fit(Z)
    together = occ.score(Z)
    one_by_one = np.concatenate([occ.score(Z[i : i + 1]) for i in range(0, len(Z), 17)])
    np.testing.assert_array_equal(together[::17], one_by_one)
    np.testing.assert_array_equal(occ.score(Z[::-1]), together[::-1])


@pytest.mark.parametrize("d", [1, 37, 121])
def test_the_place_in_a_block_changes_no_bit_whatever_the_number_of_columns(classifier: Classifier, d: int) -> None:
    Z = np.random.default_rng(1).normal(size=(300, d))
    occ = classifier().fit(Z)
    np.testing.assert_array_equal(occ.score(Z[::-1]), occ.score(Z)[::-1])


def test_the_same_rows_give_the_same_scores(classifier: Classifier, Z: np.ndarray) -> None:
    np.testing.assert_array_equal(classifier().fit(Z).score(Z), classifier().fit(Z.copy()).score(Z))


def test_a_copy_from_its_state_scores_alike(classifier: Classifier, Z: np.ndarray) -> None:
    occ = classifier().fit(Z)
    np.testing.assert_array_equal(classifier.from_state(reloaded(occ.state())).score(Z), occ.score(Z))


def test_scoring_and_state_before_fit_are_refused(classifier: Classifier, Z: np.ndarray) -> None:
    with pytest.raises(RuntimeError, match="is not fitted; call fit first"):
        classifier().score(Z)
    with pytest.raises(RuntimeError, match="is not fitted; call fit first"):
        classifier().state()


def test_a_broken_state_is_refused(classifier: Classifier, Z: np.ndarray) -> None:
    state = classifier().fit(Z).state()
    for name, array in state.arrays.items():
        others = {key: value for key, value in state.arrays.items() if key != name}
        with pytest.raises(ValueError, match=r"missing|must|allowed"):
            classifier.from_state(State(state.values, others))
        with pytest.raises(ValueError, match=r"shape|must|allowed"):
            classifier.from_state(State(state.values, {**others, name: array[..., None]}))
        broken = array.astype(np.float64) * np.nan
        with pytest.raises(ValueError, match="not finite"):
            classifier.from_state(State(state.values, {**others, name: broken}))
        if others:
            with pytest.raises(ValueError, match=r"must|allowed"):
                classifier.from_state(State(state.values, {**others, name: array[..., :-1]}))


@pytest.mark.parametrize("n", [1, 2, 5])
def test_fewer_rows_than_dimensions_and_equal_rows_give_finite_scores(classifier: Classifier, n: int) -> None:
    few = np.random.default_rng(0).normal(size=(n, 12))
    assert np.isfinite(classifier().fit(few).score(few)).all()
    equal = np.ones((n, 12))
    occ = classifier().fit(equal)
    assert np.isfinite(occ.score(equal + 5.0)).all()
    if classifier.name == "isolation_forest":  # no cut parts equal rows, hence none parts others from them
        assert occ.score(equal + 5.0)[0] == occ.score(equal)[0]
    else:
        assert occ.score(equal + 5.0)[0] > occ.score(equal)[0]
    stacked = np.ones((n, 3, 4))
    assert np.isfinite(classifier().fit(stacked).score(stacked)).all()


def test_a_row_of_weight_zero_has_no_influence(classifier: Classifier, Z: np.ndarray) -> None:
    weights = (np.arange(len(Z)) % 3 > 0).astype(np.float64)
    weighted = classifier().fit(Z, weights).score(Z)
    np.testing.assert_allclose(weighted, classifier().fit(Z[weights > 0]).score(Z), rtol=1e-9)


@pytest.mark.parametrize("name", sorted(COUNTS_WEIGHTS))
def test_a_weight_of_two_is_a_row_given_twice(name: str, Z: np.ndarray) -> None:
    classifier, tolerance = CLASSIFIERS[name], COUNTS_WEIGHTS[name]
    weights = np.where(np.arange(len(Z)) % 3 == 0, 2.0, 1.0)
    weighted = classifier().fit(Z, weights).score(Z)
    repeated = classifier().fit(np.repeat(Z, weights.astype(int), axis=0)).score(Z)
    np.testing.assert_allclose(weighted, repeated, rtol=1e-9, atol=tolerance * np.ptp(repeated))


@pytest.mark.parametrize("name", ["knn", "lof", "robust_pca"])
def test_those_that_cannot_weigh_leave_out_rows_below_half(name: str, Z: np.ndarray) -> None:
    weights = np.where(np.arange(len(Z)) % 3 == 0, 0.49, 0.5)
    left = CLASSIFIERS[name]().fit(Z[weights == 0.5]).score(Z)
    np.testing.assert_array_equal(CLASSIFIERS[name]().fit(Z, weights).score(Z), left)


def test_trees_are_grown_on_samples_by_weight() -> None:
    Z = np.random.default_rng(0).normal(size=(600, 2))
    Z[:300] += 50.0
    light = IsolationForest(max_samples=32).fit(Z, np.where(np.arange(600) < 300, 1e-3, 1.0))
    assert light.score(Z[:300]).min() > light.score(Z[300:]).mean()


@pytest.mark.parametrize("weights", [np.zeros(5), np.eye(5)[0]])
def test_with_fewer_than_two_rows_of_weight_all_are_taken(weights: np.ndarray) -> None:
    rows, counts = choose_rows(5, weights)
    assert rows.tolist() == [0, 1, 2, 3, 4]
    assert counts.tolist() == [1.0] * 5


@pytest.mark.parametrize("name", ["knn", "kde", "ocsvm", "lof", "robust_pca"])
def test_of_many_rows_a_sample_is_fitted_that_the_seed_draws(name: str) -> None:
    Z = np.random.default_rng(0).normal(size=(300, 3))
    score = CLASSIFIERS[name](max_rows=50, seed=1).fit(Z).score(Z)
    rows, _ = choose_rows(300, None, max_rows=50, seed=1)
    assert len(set(rows.tolist())) == 50
    np.testing.assert_array_equal(score, CLASSIFIERS[name]().fit(Z[rows]).score(Z))
    assert (score != CLASSIFIERS[name](max_rows=50, seed=2).fit(Z).score(Z)).any()


WHOLE = "allowed: whole numbers from"
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("gde", {"shrinkage": 0.0}, r"shrinkage is 0\.0; allowed: above 0"),
    ("gde", {"aggregate": "max"}, "aggregate is 'max'; allowed: mean, median"),
    ("knn", {"n_neighbors": 0}, f"n_neighbors is 0; {WHOLE} 1 on"),
    ("knn", {"n_neighbors": 2.5}, rf"n_neighbors is 2\.5; {WHOLE} 1 on"),
    ("knn", {"max_rows": True}, f"max_rows is True; {WHOLE} 1 on"),
    ("knn", {"whitening": 0.0}, r"whitening is 0\.0; allowed: above 0, at most 1, or None"),
    ("knn", {"seed": -1}, f"seed is -1; {WHOLE} 0 on"),
    ("kde", {"bandwidth": 0.0}, r"bandwidth is 0\.0; allowed: scott, scale or a number above 0"),
    ("kde", {"bandwidth": "silverman"}, "bandwidth is 'silverman'; allowed: scott, scale"),
    ("kde", {"max_rows": 0}, f"max_rows is 0; {WHOLE} 1 on"),
    ("ocsvm", {"nu": 0.0}, r"nu is 0\.0; allowed: above 0, at most 1"),
    ("ocsvm", {"gamma": "auto"}, "gamma is 'auto'; allowed: scale or a number above 0"),
    ("ocsvm", {"gamma": -1.0}, r"gamma is -1\.0; allowed: scale"),
    ("isolation_forest", {"n_estimators": 0}, f"n_estimators is 0; {WHOLE} 1 on"),
    ("isolation_forest", {"max_samples": 0}, f"max_samples is 0; {WHOLE} 1 on"),
    ("lof", {"n_neighbors": 0}, f"n_neighbors is 0; {WHOLE} 1 on"),
    ("lof", {"max_rows": 1}, f"max_rows is 1; {WHOLE} 2 on"),
    ("pca", {"n_components": 1.0}, r"n_components is 1\.0; allowed: whole numbers from 1 on, or above 0 and below 1"),
    ("pca", {"n_components": 0}, f"n_components is 0; {WHOLE} 1 on"),
    ("pca", {"measure": "t2"}, "measure is 't2'; allowed: residual, mahalanobis"),
    ("robust_pca", {"n_components": -1}, f"n_components is -1; {WHOLE} 1 on"),
    ("robust_pca", {"max_rows": 0}, f"max_rows is 0; {WHOLE} 1 on"),
]


@pytest.mark.parametrize(("name", "options", "message"), REFUSED)
def test_settings_out_of_range_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CLASSIFIERS[name](**options)


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


def slow_mean_and_covariance(
    Z: np.ndarray, weights: np.ndarray | None, rows: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance as they are defined: first the one, then the other."""
    rows = np.arange(len(Z)) if rows is None else rows
    w = np.ones(len(Z)) if weights is None else weights
    mean = sum(w[i] * Z[i].astype(np.float64) for i in rows) / w[rows].sum()
    deviations = {i: Z[i] - mean for i in rows}
    return mean, sum(w[i] * deviations[i][:, :, None] * deviations[i][:, None, :] for i in rows) / w[rows].sum()


@given(
    n=st.integers(1, 700),
    shape=st.sampled_from([(1, 1), (1, 5), (3, 4)]),
    far=st.sampled_from([0.0, 1.0, 1e3, 1e6]),
    is_weighted=st.booleans(),
    are_some=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_moments_in_one_pass_are_those_of_two(
    n: int, shape: tuple[int, int], far: float, is_weighted: bool, are_some: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    Z = rng.normal(far, 1.0, size=(n, *shape)).astype(np.float32)
    weights = rng.random(n) * (rng.random(n) < 0.7) + np.eye(1, n)[0] if is_weighted else None
    rows = np.r_[0, 1 + np.flatnonzero(rng.random(n - 1) < 0.4)] if are_some else None
    mean, covariance = mean_and_covariance(Z, weights, rows)
    slow_mean, slow_covariance = slow_mean_and_covariance(Z, weights, rows)
    np.testing.assert_allclose(mean, slow_mean, rtol=1e-12, atol=1e-12)
    # What is lost is lost of the distance from the middle, not of the distance from 0.
    np.testing.assert_allclose(covariance, slow_covariance, rtol=1e-9, atol=1e-12)


def test_a_row_far_from_all_others_costs_the_moments_no_precision() -> None:
    Z = np.random.default_rng(0).normal(size=(5000, 1, 3))
    Z[0] = 1e9  # the first of the few rows that the middle is taken of
    expected = slow_mean_and_covariance(Z, None, None)
    for fast, slow in zip(mean_and_covariance(Z), expected, strict=True):
        np.testing.assert_allclose(fast, slow, rtol=1e-12)


def test_rows_without_weight_leave_no_trace_in_the_moments() -> None:
    Z = np.random.default_rng(0).normal(size=(600, 2, 3))
    weights = np.where(np.arange(600) % 3 == 0, 0.0, 0.5)
    found = []
    for far in (1e3, 1e9):
        Z[::3] = far
        found.append(mean_and_covariance(Z, weights))
    for one, two in zip(*found, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("options", [{}, {"indicator_variance": 0.1}, {"covariance": "robust"}])
@pytest.mark.parametrize("n_rows", [30, 200])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_a_gaussian_of_some_rows_is_that_of_a_copy_of_them(
    options: dict[str, Any], n_rows: int, is_weighted: bool, Z: np.ndarray
) -> None:
    rng = np.random.default_rng(0)
    rows = np.sort(rng.permutation(len(Z))[:n_rows])
    weights = rng.random(len(Z)) if is_weighted else None
    found = GDE(**options).fit(Z, weights, rows=rows)
    expected = GDE(**options).fit(Z[rows], None if weights is None else weights[rows])
    np.testing.assert_array_equal(found.score(Z), expected.score(Z))


@pytest.mark.parametrize("aggregate", ["mean", "median"])
def test_gaussians_score_together_as_each_alone(aggregate: str, Z: np.ndarray) -> None:
    gdes = [GDE(aggregate=aggregate).fit(Z[start::3]) for start in range(3)]
    alone = [gde.score(Z) for gde in gdes]
    np.testing.assert_allclose(score_together(gdes, Z.astype(np.float64)), alone, rtol=1e-9)
    np.testing.assert_allclose(score_together(gdes, Z), alone, rtol=1e-5, atol=1e-5)
    equal = score_together(gdes, np.repeat(Z[:1], 200, axis=0))
    np.testing.assert_array_equal(np.ptp(equal, axis=1), 0.0)


def test_flat_gaussians_score_together_in_float64() -> None:
    Z = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)
    Z[:, 2] = Z[:, 0] + 1e-5 * Z[:, 2]
    gdes = [GDE(covariance="empirical").fit(Z[start::2]) for start in range(2)]
    np.testing.assert_allclose(score_together(gdes, Z), [gde.score(Z) for gde in gdes], rtol=1e-9)


def test_few_rows_are_shrunk_as_ledoit_and_wolf_say() -> None:
    Z = np.random.default_rng(5).normal(size=(30, 6))
    S, shrinkage = ledoit_wolf(Z)
    assert shrinkage > 1e-3
    expected = -multivariate_normal(Z.mean(axis=0), S).logpdf(Z)
    np.testing.assert_allclose(GDE().fit(Z).score(Z), expected, rtol=1e-9)


def test_a_state_whose_shapes_disagree_is_refused() -> None:
    state = GDE().fit(np.random.default_rng(0).normal(size=(50, 3))).state()
    state.arrays["mean"] = state.arrays["mean"][:, :2]
    with pytest.raises(ValueError, match="must agree"):
        GDE.from_state(state)


@pytest.mark.parametrize("d", [3, 40])
@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("n", [8, 700])
def test_nearest_neighbours_agree_with_scikit_learn_to_float32(d: int, offset: float, n: int) -> None:
    Z = np.random.default_rng(6).normal(size=(n + 50, d)) + offset
    theirs = NearestNeighbors(n_neighbors=min(10, n), algorithm="kd_tree").fit(Z[50:])
    distances, _ = theirs.kneighbors(Z[:60])
    np.testing.assert_allclose(KNN().fit(Z[50:]).score(Z[:60]), distances.mean(axis=1), rtol=1e-5)


def test_whitened_neighbours_are_the_nearest_by_mahalanobis_distance() -> None:
    rng = np.random.default_rng(0)
    Z = rng.normal(size=(400, 3)) @ np.array([[3.0, 2.9, 0.0], [0.0, 0.3, 0.0], [0.0, 0.0, 5.0]])
    covariance = 0.99 * np.cov(Z.T, bias=True)
    covariance += 0.01 * np.trace(np.cov(Z.T, bias=True)) / 3 * np.eye(3)
    search = NearestNeighbors(n_neighbors=10, metric="mahalanobis", metric_params={"VI": np.linalg.inv(covariance)})
    distances, _ = search.fit(Z).kneighbors(Z)
    np.testing.assert_allclose(KNN(whitening=0.01).fit(Z).score(Z), distances.mean(axis=1), rtol=1e-4, atol=1e-4)
    against, along = np.array([[3.0, -3.0, 0.0]]), np.array([[3.0, 3.0, 0.0]])
    whitened = KNN(whitening=0.01).fit(Z)
    assert whitened.score(against)[0] > 5 * whitened.score(along)[0]


def test_a_metric_that_does_not_fit_its_rows_is_refused() -> None:
    state = KNN(whitening=0.1).fit(np.random.default_rng(0).normal(size=(50, 3))).state()
    with pytest.raises(ValueError, match=r"metric \(2, 2\) and centre \(3,\) must agree"):
        KNN.from_state(State(state.values, {**state.arrays, "metric": np.eye(2)}))


def test_a_wild_reference_costs_the_nearest_neighbours_no_precision() -> None:
    Z = np.random.default_rng(7).normal(size=(500, 5))
    Z[0] = 1e9
    distances, _ = NearestNeighbors(n_neighbors=10).fit(Z).kneighbors(Z)
    np.testing.assert_allclose(KNN().fit(Z).score(Z), distances.mean(axis=1), rtol=1e-5)


@pytest.mark.parametrize("whitening", [None, 0.1])
def test_the_gradient_of_nearest_neighbours_is_the_slope_of_the_score(Z: np.ndarray, whitening: float | None) -> None:
    knn = KNN(n_neighbors=5, whitening=whitening).fit(Z[:200])
    rows, step = Z[200:220].astype(np.float64), 1e-3
    gradient = knn.gradient(rows)
    assert gradient.shape == rows.shape
    slope = np.empty_like(gradient)
    for place in np.ndindex(rows.shape[1:]):
        shift = np.zeros(rows.shape[1:])
        shift[place] = step
        slope[(..., *place)] = (knn.score(rows + shift) - knn.score(rows - shift)) / (2 * step)
    # Between two sets of neighbours the score has an edge, and the two sides of the step differ.
    assert np.quantile(np.abs(slope - gradient), 0.95) < 2e-3
    np.testing.assert_array_equal(KNN(n_neighbors=1).fit(Z).gradient(Z), np.zeros(Z.shape))


@pytest.mark.parametrize("offset", [0.0, 1e5])
def test_the_kernel_density_agrees_with_scikit_learn(offset: float) -> None:
    rng = np.random.default_rng(8)
    Z, weights = 3.0 * rng.normal(size=(200, 4)) + offset, rng.uniform(0.1, 2.0, size=200)
    for counts in (None, weights):
        for bandwidth in ("scott", "scale", 0.7):
            kde = KDE(bandwidth=bandwidth).fit(Z, counts)
            theirs = KernelDensity(bandwidth=kde.bandwidth_).fit(Z - offset, sample_weight=counts)
            np.testing.assert_allclose(kde.score(Z), -theirs.score_samples(Z - offset), rtol=1e-6)


def test_bandwidths_follow_their_rules() -> None:
    Z = np.random.default_rng(9).normal(size=(400, 6)) * [1.0, 2.0, 3.0, 4.0, 5.0, 6.0] + 7.0
    variance = Z.var(axis=0).mean()
    assert KDE(bandwidth="scott").fit(Z).bandwidth_ == pytest.approx(np.sqrt(variance) * 400 ** (-1 / 10))
    gamma = 10.0 / (variance * 6)
    assert KDE(bandwidth="scale").fit(Z).bandwidth_ == pytest.approx(np.sqrt(1.0 / (2.0 * gamma)))
    assert KDE(bandwidth=0.7).fit(Z).bandwidth_ == 0.7


@pytest.mark.parametrize("gamma", ["scale", 0.3])
@pytest.mark.parametrize("weights", [None, np.linspace(0.1, 2.0, 300)])
def test_the_support_vector_machine_scores_as_scikit_learns(gamma: str | float, weights: np.ndarray | None) -> None:
    Z = np.random.default_rng(10).normal(size=(300, 4)) + 2.0
    fitted = OCSVM(nu=0.2, gamma=gamma).fit(Z, weights)
    if weights is not None:
        gamma = fitted.rho_and_gamma_[1]
    theirs = OneClassSVM(nu=0.2, gamma=gamma).fit(Z, sample_weight=weights)
    expected = -theirs.decision_function(2 * Z)
    np.testing.assert_allclose(fitted.score(2 * Z), expected, rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize("n", [1, 2, 3, 100, 1000])
def test_the_forest_scores_as_scikit_learns_also_at_its_thresholds(n: int) -> None:
    rng = np.random.default_rng(11)
    Z = rng.normal(size=(n, 3)).round(1)
    theirs = SklearnForest(max_samples=min(n, 256), random_state=3).fit(Z)
    thresholds = np.concatenate([tree.tree_.threshold for tree in theirs.estimators_])
    rows = np.concatenate([Z, 3 * Z, np.resize(rng.permutation(thresholds), (500, 3))])
    np.testing.assert_allclose(IsolationForest(seed=3).fit(Z).score(rows), -theirs.score_samples(rows), rtol=1e-9)


def test_a_forest_whose_children_come_before_their_parents_is_refused() -> None:
    state = IsolationForest(n_estimators=5).fit(np.random.default_rng(0).normal(size=(50, 3))).state()
    with pytest.raises(ValueError, match="no forest"):
        IsolationForest.from_state(State(state.values, {**state.arrays, "child": np.zeros_like(state.arrays["child"])}))
    with pytest.raises(ValueError, match="one a tree or more"):
        IsolationForest.from_state(State({**state.values, "n_estimators": 10_000}, state.arrays))


@pytest.mark.parametrize("n_equal", [0, 15, 60])
@pytest.mark.parametrize("n", [4, 600])
def test_the_local_outlier_factor_is_scikit_learns(n_equal: int, n: int) -> None:
    Z = np.random.default_rng(12).normal(size=(n + 50, 4))
    fitted, new = Z[50:], Z[:50]
    fitted[:n_equal] = fitted[0]
    theirs = LocalOutlierFactor(n_neighbors=min(20, n - 1), novelty=True, algorithm="kd_tree").fit(fitted)
    np.testing.assert_allclose(LOF().fit(fitted).score(new), -theirs.score_samples(new), rtol=1e-6)


@pytest.mark.parametrize("n_components", [2, 0.8])
def test_the_residual_is_what_scikit_learns_components_leave(n_components: int | float) -> None:
    rng = np.random.default_rng(13)
    Z = rng.normal(size=(300, 6)) @ rng.normal(size=(6, 6)) + 5.0
    theirs = ComponentsOfSklearn(n_components=n_components, svd_solver="full").fit(Z)
    expected = np.square(Z - theirs.inverse_transform(theirs.transform(Z))).sum(axis=1)
    np.testing.assert_allclose(PCA(n_components=n_components).fit(Z).score(Z), expected, rtol=1e-9)


def test_the_mahalanobis_measure_is_that_of_probabilistic_components() -> None:
    rng = np.random.default_rng(14)
    Z = rng.normal(size=(300, 5)) @ rng.normal(size=(5, 5))
    centered = Z - Z.mean(axis=0)
    values, vectors = np.linalg.eigh(centered.T @ centered / 300)
    values[:3] = values[:3].mean()
    expected = np.einsum("nd,de,ne->n", centered, (vectors / values) @ vectors.T, centered)
    np.testing.assert_allclose(PCA(n_components=2, measure="mahalanobis").fit(Z).score(Z), expected, rtol=1e-9)


@pytest.mark.parametrize("shape", [(120, 80), (60, 90)])
def test_pursuit_parts_a_low_rank_from_a_sparse_matrix(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(15)
    low_rank = rng.normal(size=(shape[0], 3)) @ rng.normal(size=(3, shape[1]))
    sparse = np.where(rng.random(shape) < 0.05, rng.choice([-20.0, 20.0], size=shape), 0.0)
    found_low_rank, found_sparse = low_rank_and_sparse(low_rank + sparse)
    np.testing.assert_allclose(found_low_rank, low_rank, atol=1e-3)
    np.testing.assert_allclose(found_sparse, sparse, atol=1e-3)


def test_gross_errors_bend_the_components_but_not_the_robust_ones() -> None:
    rng = np.random.default_rng(16)
    clean = rng.normal(size=(400, 2)) @ rng.normal(size=(2, 20))
    Z = clean + np.where(rng.random(clean.shape) < 0.03, 30.0, 0.0)
    plain, robust = PCA(n_components=2).fit(Z).score(clean), RobustPCA(n_components=2).fit(Z).score(clean)
    assert robust.mean() < 0.01 * plain.mean()


def test_centres_score_by_equations_three_and_four() -> None:
    rng = np.random.default_rng(17)
    Z = 2.0 * rng.normal(size=(4, 3)) + rng.normal(size=(50, 4, 3))
    weights = rng.uniform(0.5, 1.5, size=50)
    centres = [np.average(Z[:, m], axis=0, weights=weights) for m in range(4)]
    expected = np.zeros(50)
    for i, z in enumerate(Z):
        for m in range(4):
            nearness = np.exp([-np.square(z[m] - centre).sum() for centre in centres])
            expected[i] -= np.log(nearness[m] / nearness.sum())
    np.testing.assert_allclose(Centres().fit(Z, weights).score(Z), expected, rtol=1e-9)


def test_the_score_of_a_single_transformation_is_the_squared_distance_to_its_centre() -> None:
    Z = np.random.default_rng(18).normal(size=(50, 3))
    expected = np.square(Z - Z.mean(axis=0)).sum(axis=1)
    np.testing.assert_allclose(Centres().fit(Z).score(Z), expected, rtol=1e-9)
    np.testing.assert_allclose(Centres().fit(Z[:, None]).score(Z[:, None]), expected, rtol=1e-9)


def test_energy_is_the_squared_distance_from_nothing_whatever_it_was_fitted_to(Z: np.ndarray) -> None:
    expected = [sum(float(value) ** 2 for value in row.ravel()) for row in Z]
    for fitted in (Energy().fit(Z), Energy().fit(Z[:1] + 100.0), Energy().fit(Z, np.zeros(len(Z)))):
        np.testing.assert_allclose(fitted.score(Z), expected, rtol=1e-9)
    # Not to the middle of the rows, as every other classifier.
    assert Energy().fit(Z + 50.0).score(np.zeros((1, *Z.shape[1:])))[0] == 0.0


def test_the_gradient_of_energy_is_the_slope_of_the_score(Z: np.ndarray) -> None:
    with pytest.raises(RuntimeError, match="Energy is not fitted; call fit first"):
        Energy().gradient(Z)
    gradient = Energy().fit(Z).gradient(Z)
    assert (gradient.shape, gradient.dtype) == (Z.shape, np.float64)
    direction = np.random.default_rng(1).normal(size=Z.shape)
    up, down = (Energy().fit(Z).score(Z + sign * 1e-3 * direction) for sign in (1.0, -1.0))
    slope = (gradient * direction).reshape(len(Z), -1).sum(axis=1)
    np.testing.assert_allclose((up - down) / 2e-3, slope, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("d", [2, 8, 12])
@pytest.mark.parametrize("n", [1, 6, 200])
def test_the_gaussian_refuses_rows_of_another_width(n: int, d: int) -> None:
    gde = GDE().fit(np.random.default_rng(0).normal(size=(50, 4)))
    with pytest.raises(ValueError, match="shape"):
        gde.score(np.zeros((n, d)))
    with pytest.raises(ValueError, match="shape"):
        score_together([gde, gde], np.zeros((n, d)))


def test_states_with_values_that_cannot_be_are_refused() -> None:
    Z = np.random.default_rng(0).normal(size=(50, 3))
    kde, pca = KDE().fit(Z).state(), PCA().fit(Z).state()
    with pytest.raises(ValueError, match=r"'bandwidth' is .*; allowed: one number above 0"):
        KDE.from_state(State(kde.values, {**kde.arrays, "bandwidth": np.zeros(1)}))
    with pytest.raises(ValueError, match="'variances' holds values of 0 or less"):
        PCA.from_state(State(pca.values, {**pca.arrays, "variances": 0.0 * pca.arrays["variances"]}))
    with pytest.raises(ValueError, match="'centres' has shape"):
        Centres.from_state(State({}, {"centres": np.zeros((0, 3))}))
