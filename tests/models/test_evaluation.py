from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score, precision_recall_fscore_support, roc_auc_score

from models.evaluation import (
    average_precision,
    f1_at_true_ratio,
    mid_ranks,
    precision_at,
    precision_recall_f1,
    recall_at_precision,
    refinement_efficacy,
    roc_auc,
)


@given(st.integers(2, 60), st.integers(0, 10_000), st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_they_agree_with_scikit_learn_ties_and_all(n: int, seed: int, n_values: int) -> None:
    rng = np.random.default_rng(seed)
    y = np.arange(n) < rng.integers(1, n)
    score = rng.integers(n_values, size=n).astype(float)
    flagged = rng.random(n) < 0.5
    np.testing.assert_array_equal(mid_ranks(score), rankdata(score))
    assert roc_auc(y, score) == pytest.approx(roc_auc_score(y, score))
    assert average_precision(y, score) == pytest.approx(average_precision_score(y, score))
    expected = precision_recall_fscore_support(y, flagged, average="binary", zero_division=0.0)[:3]
    assert precision_recall_f1(y, flagged) == pytest.approx(expected)


def test_f1_at_the_true_ratio_flags_as_many_as_there_are() -> None:
    y = np.array([True, True, False, False])
    assert f1_at_true_ratio(y, np.array([4.0, 1.0, 3.0, 2.0])) == 0.5
    assert 0 < np.mean([f1_at_true_ratio(y, np.zeros(4), seed=seed) for seed in range(50)]) < 1


def test_recall_at_precision_is_that_of_the_best_threshold() -> None:
    y = np.array([True, False, True, True, False])
    score = np.array([5.0, 4.0, 3.0, 2.0, 1.0])
    assert recall_at_precision(y, score, 0.75) == 1.0
    assert recall_at_precision(y, score, 0.9) == pytest.approx(1 / 3)
    assert recall_at_precision(y, -score, 0.9) == 0.0


def test_refinement_efficacy_counts_what_was_removed_of_each_kind() -> None:
    y = np.array([True, True, False, False, False, False])
    assert refinement_efficacy(y, np.array([False, True, True, True, True, False])) == (0.5, 0.25)


@pytest.mark.parametrize("y", [[True, True], [False, False]])
def test_one_kind_only_is_refused(y: list[bool]) -> None:
    with pytest.raises(ValueError, match="needed: equal lengths, an anomaly and a normal row"):
        roc_auc(np.array(y), np.zeros(2))


def test_precision_at_k_is_the_share_of_anomalies_among_the_k_highest() -> None:
    rng = np.random.default_rng(0)
    score, is_anomaly = rng.normal(size=200), rng.random(200) < 0.3
    order = np.argsort(-score)
    for k in (1, 7, 200):
        assert precision_at(is_anomaly, score, k) == pytest.approx(is_anomaly[order[:k]].mean())


def test_of_equal_scores_at_the_edge_each_counts_its_share() -> None:
    is_anomaly, score = np.array([True, True, False, False, True]), np.array([9.0, 5.0, 5.0, 5.0, 1.0])
    assert precision_at(is_anomaly, score, 2) == pytest.approx((1 + 1 / 3) / 2)


@pytest.mark.parametrize("k", [0, 4])
def test_precision_at_more_or_less_than_there_is_is_an_error(k: int) -> None:
    with pytest.raises(ValueError, match=f"k is {k} of 3 scores"):
        precision_at(np.array([True, False, False]), np.arange(3.0), k)
