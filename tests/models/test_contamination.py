"""How many anomalies there are, without a label: right where it can be known, 0 where there are none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from models.contamination import CHANCE, GAMMA_BOUNDS, GAMMAS, core_scores, estimate_gamma, excess_share, otsu_share


def excess_slowly(scores: np.ndarray) -> float:
    """The greatest difference between observed and expected shares, point by point."""
    roots = (scores - scores.min()) ** 0.25
    median = np.quantile(roots, 0.5)
    deviation = median - np.quantile(roots, norm.cdf(-1.0))
    best = 0.0
    for point in roots:
        z = (point - median) / deviation
        if z > 1.0:
            observed, expected = np.mean(roots >= point), norm.sf(z)
            best = max(best, (observed - expected) / (1.0 - expected))
    return best


def test_the_excess_is_what_its_definition_says() -> None:
    scores = np.random.default_rng(0).gamma(2.0, size=300)
    assert excess_share(scores) == pytest.approx(excess_slowly(scores), abs=1e-9)


@pytest.mark.parametrize("d", [1, 2, 5, 20, 60])
@pytest.mark.parametrize("n", [300, 3000])
def test_clean_gaussian_rows_have_hardly_any_excess(d: int, n: int) -> None:
    shares = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        shares.append(excess_share(core_scores(rng.normal(size=(n, d)) @ rng.normal(size=(d, d)), rng)))
    assert np.median(shares) < (0.03 if n == 3000 else 0.06)


@pytest.mark.parametrize("contamination", [0.03, 0.1])
@pytest.mark.parametrize("n_directions", [1, 10])
def test_scattered_and_clustered_anomalies_are_counted(contamination: float, n_directions: int) -> None:
    shares = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        Z = rng.normal(size=(3000, 10))
        n = round(contamination * 3000)
        directions = rng.normal(size=(n_directions, 10))
        directions *= 10.0 / np.linalg.norm(directions, axis=1, keepdims=True)
        Z[:n] += directions[rng.integers(n_directions, size=n)]
        shares.append(excess_share(core_scores(Z, rng)))
    assert 0.75 * contamination < np.mean(shares) < 1.1 * contamination


def test_gamma_is_twice_the_share_and_stays_in_its_bounds() -> None:
    rng = np.random.default_rng(0)
    Z = rng.normal(size=(2000, 6))
    assert estimate_gamma(Z) < 0.05
    Z[:100] += 12.0
    assert estimate_gamma(Z) == pytest.approx(0.1, abs=0.03)
    Z[:500] = 12.0 * rng.normal(size=(500, 6))
    assert estimate_gamma(Z) == GAMMA_BOUNDS[1]


def test_constant_rows_and_a_single_one_give_the_least_gamma() -> None:
    for Z in (np.ones((50, 3)), np.ones((1, 3)), np.ones((4, 2, 3))):
        assert estimate_gamma(Z, method="otsu") == estimate_gamma(Z) == GAMMA_BOUNDS[0]
        assert estimate_gamma(Z, method="excess") == min(2.0 * CHANCE / np.sqrt(len(Z)), GAMMA_BOUNDS[1])


def test_otsu_halves_a_clean_window_and_the_excess_does_not() -> None:
    Z = np.random.default_rng(0).normal(size=(2000, 6))
    assert estimate_gamma(Z, method="otsu") == GAMMA_BOUNDS[1]
    assert estimate_gamma(Z, method="excess") < 0.05


def test_auto_is_the_smaller_of_the_two_estimates() -> None:
    rng = np.random.default_rng(0)
    kinds = np.r_[rng.normal(size=(1800, 6)), 0.2 * rng.normal(size=(200, 6)) + 9.0]
    by_method = {method: estimate_gamma(kinds, method=method) for method in GAMMAS}
    assert by_method["auto"] == min(by_method["excess"], by_method["otsu"])
    clean = rng.normal(size=(2000, 6))
    assert estimate_gamma(clean) == estimate_gamma(clean, method="excess") < estimate_gamma(clean, method="otsu")


def test_of_many_rows_a_seeded_sample_is_looked_at() -> None:
    rng = np.random.default_rng(0)
    Z = rng.normal(size=(12000, 4))
    Z[:600] += 9.0
    assert estimate_gamma(Z, seed=1) == estimate_gamma(Z, seed=1) == pytest.approx(0.1, abs=0.02)
    assert estimate_gamma(Z, seed=1) != estimate_gamma(Z, seed=2)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="method is 'guess'; allowed: auto, excess, otsu"):
        estimate_gamma(np.zeros((10, 2)), method="guess")


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
