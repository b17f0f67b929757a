"""How many of the rows are anomalies, when nobody knows: γ for refinement.

Two estimates, of which `auto` takes the smaller, since each errs upward. `excess` asks how many more rows lie far out
than a Gaussian window of the same middle has; it falls towards 0 where nothing is there, but rare kinds of normal rows
count as excess. `otsu` is the paper's (appendix A.5), which halves every window without a gap, a clean one too.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from models.occ.gde import GDE, indicators, score_together

GAMMAS = ("auto", "excess", "otsu")
GAMMA_BOUNDS = (0.005, 0.2)
"""Estimated γ is kept within these: the paper's value for clean data, and what a window can lose."""
CORE_SHARE = 0.75
"""The Gaussian that rows are judged by is fitted on so many of them, the likeliest."""
CHANCE = 0.25
"""Times 1/√n: what is added to the estimated share of n rows."""
_N_STEPS = 3
_SHRINKAGE = 0.1
_ONE_DEVIATION_BELOW = 0.15865525393145707
_MAX_ROWS = 10_000


def estimate_gamma(Z: NDArray[Any], *, method: str = "auto", seed: int = 0) -> float:
    """Return γ, twice the estimated share of anomalies, within `GAMMA_BOUNDS`.

    Parameters
    ----------
    Z
        ``(n, d)`` or ``(n, m, d)`` embeddings, whose columns of zeros and ones do not count; of more than
        10,000 a sample by `seed` is looked at.
    method
        ``auto``: the smaller of the two.
        ``excess``: :func:`excess_share` of the scores of a Gaussian fitted on the likeliest three quarters.
        ``otsu``: :func:`otsu_share` of the square root of the shifted scores of a Gaussian fitted on all. (The paper
        does not say on which scores; on raw log densities Otsu nearly switches refinement off.)
    """
    if method not in GAMMAS:
        raise ValueError(f"method is {method!r}; allowed: {', '.join(GAMMAS)}")
    is_indicator = indicators(Z[:, None, :])[0] if Z.ndim == 2 and len(Z) else np.zeros(Z.shape[-1], dtype=bool)
    if len(Z) > _MAX_ROWS:
        Z = Z[np.sort(np.random.default_rng(seed).choice(len(Z), _MAX_ROWS, replace=False))]
    # A category is nothing like Gaussian; its rare values would count as an excess, however normal they are.
    if is_indicator.any() and not is_indicator.all():
        Z = Z[:, ~is_indicator]
    shares = []
    if method in ("auto", "excess"):
        # Of few rows nobody can tell: what chance leaves open is added, since too much costs less than too little.
        scores = core_scores(Z, np.random.default_rng(seed))
        shares.append(excess_share(scores) + CHANCE / math.sqrt(len(Z)))
    if method in ("auto", "otsu"):
        scores = score_together([GDE(shrinkage=_SHRINKAGE).fit(Z)], Z)[0]
        shares.append(otsu_share(np.sqrt(scores - scores.min())))
    low, high = GAMMA_BOUNDS
    return float(np.clip(2.0 * min(shares), low, high))


def core_scores(Z: NDArray[Any], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the negative log density of all rows under a Gaussian of the likeliest three quarters, ``(n,)``.

    Concentration steps as in the minimum covariance determinant (Rousseeuw and van Driessen 1999): fit, keep the
    likeliest rows, fit again. Anomalies that bend a Gaussian fitted on everything do not bend this one. Each half of
    the rows is scored by the core of the other, since rows that a fit has seen look likelier than rows that it has not.
    """
    scores = np.empty(len(Z))
    order = rng.permutation(len(Z))
    halves = (order[::2], order[1::2]) if len(Z) > 1 else (order, order)
    for ours, theirs in (halves, halves[::-1]):
        scores[theirs] = score_together([_core(Z, np.sort(ours))], Z[theirs])[0]
    return scores


def _core(Z: NDArray[Any], rows: NDArray[np.intp]) -> GDE:
    """Return the Gaussian of the likeliest three quarters of some rows."""
    n_core = max(1, round(CORE_SHARE * len(rows)))
    core, own = GDE(shrinkage=_SHRINKAGE).fit(Z, rows=rows), Z[rows]
    for _ in range(_N_STEPS):
        likeliest = np.sort(np.argsort(score_together([core], own)[0], kind="stable")[:n_core])
        core = GDE(shrinkage=_SHRINKAGE).fit(own, rows=likeliest)
    return core


def excess_share(scores: NDArray[np.float64]) -> float:
    """Return by how much the share of rows far out exceeds what a Gaussian leads to expect, 0 to 1.

    The squared distance of Gaussian rows is chi-squared, and its fourth root is all but normal, also with few degrees
    of freedom (Hawkins and Wixley 1986). Median and lower half of the roots, which few anomalies move, give that
    normal; the greatest difference between the observed and the expected share beyond any point at least one deviation
    above the median is the estimate.

    Parameters
    ----------
    scores
        ``(n,)`` negative log densities, n ≥ 1.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> clean = np.square(rng.normal(size=(2000, 8))).sum(axis=1)
    >>> dirty = np.r_[clean, rng.uniform(60.0, 90.0, size=100)]
    >>> round(excess_share(clean), 2), round(excess_share(dirty), 2)
    (0.0, 0.05)
    """
    roots = np.sort(np.sqrt(np.sqrt(scores - scores.min())))
    n = len(roots)
    below, median = np.quantile(roots, [_ONE_DEVIATION_BELOW, 0.5])
    if not median > below:
        return 0.0
    z = (roots - median) / (median - below)
    first = int(np.searchsorted(z, 1.0, side="right"))
    if first == n:
        return 0.0
    observed = (n - np.arange(first, n)) / n
    expected = ndtr(-z[first:])
    excess = float(np.max((observed - expected) / (1.0 - expected)))
    return max(0.0, excess)


def otsu_share(values: NDArray[np.float64]) -> float:
    """Return the share of values above Otsu's threshold (1979): the split with the greatest variance between its sides.

    Parameters
    ----------
    values
        ``(n,)``, n ≥ 1. Sorted and split between any two different neighbours, without a histogram.

    Returns
    -------
    float
        0 to 1, exclusive; 0.0 if all values are equal.
    """
    ordered = np.sort(values)
    n = len(ordered)
    if ordered[0] == ordered[-1]:
        return 0.0
    n_below = np.arange(1, n)
    sums = np.cumsum(ordered)
    mean_below = sums[:-1] / n_below
    mean_above = (sums[-1] - sums[:-1]) / (n - n_below)
    between = n_below * (n - n_below) * np.square(mean_above - mean_below)
    between[ordered[1:] == ordered[:-1]] = -1.0  # a threshold cannot part equal values
    return float(n - n_below[int(np.argmax(between))]) / n
