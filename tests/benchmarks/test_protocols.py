"""Splits and scales, against counts worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.protocols import (
    contaminated,
    drawn,
    halves,
    is_feasible,
    kdd_rev_rows,
    to_unit_range,
    z_scores,
)


def labels(n_normal: int, n_anomalies: int) -> np.ndarray:
    return np.random.default_rng(0).permutation(np.r_[np.zeros(n_normal, bool), np.ones(n_anomalies, bool)])


@pytest.mark.parametrize(
    ("n_normal", "n_anomalies", "ratio", "in_train", "normals_in_test", "in_test"),
    [
        (101, 30, 0.0, 0, 51, 30),
        (101, 30, 0.1, 5, 51, 25),  # floor(101 / 2) = 50 rows train, and a tenth of them are swapped
        (101, 30, 0.2, 10, 51, 20),
        (3679, 93, 0.015, 28, 1840, 65),  # Thyroid: floor(3679 / 2) = 1839, x 0.015 = 27.6
        (3679, 93, 0.025, 46, 1840, 47),
        (386, 66, 0.1, 19, 193, 47),  # Arrhythmia: 193 x 0.1 = 19.3
    ],
)
def test_swapped_anomalies_leave_the_test_and_the_training_size_stays(
    n_normal: int, n_anomalies: int, ratio: float, in_train: int, normals_in_test: int, in_test: int
) -> None:
    y = labels(n_normal, n_anomalies)
    split = contaminated(y, ratio, seed=3)
    assert len(split.train) == n_normal // 2
    assert y[split.train].sum() == in_train
    assert (~y[split.test]).sum() == normals_in_test
    assert y[split.test].sum() == in_test


def test_no_row_trains_and_tests_and_replaced_normals_are_dropped() -> None:
    y = labels(101, 30)
    split = contaminated(y, 0.2, seed=0)
    used = np.concatenate([split.train, split.test])
    assert len(np.unique(used)) == len(used) == 131 - 10


def test_a_higher_ratio_adds_anomalies_and_changes_no_test_normal() -> None:
    y = labels(200, 60)
    low, high = contaminated(y, 0.05, seed=1), contaminated(y, 0.2, seed=1)
    assert set(low.train[y[low.train]]) < set(high.train[y[high.train]])
    assert set(low.test[~y[low.test]]) == set(high.test[~y[high.test]])


def test_another_seed_gives_another_split_and_the_same_seed_the_same() -> None:
    y = labels(200, 60)
    assert np.array_equal(contaminated(y, 0.1, seed=1).train, contaminated(y, 0.1, seed=1).train)
    assert set(contaminated(y, 0.1, seed=1).train) != set(contaminated(y, 0.1, seed=2).train)


def test_a_ratio_that_leaves_too_few_anomalies_is_refused_and_known_beforehand() -> None:
    y = labels(100, 20)
    assert is_feasible(y, 0.3)  # 15 of 20 are swapped in, 5 remain
    assert not is_feasible(y, 0.32)
    assert contaminated(y, 0.3, seed=0).test.size == 50 + 5
    with pytest.raises(ValueError, match=r"puts 16 of 20 anomalies into training; needed for the test: at least 5"):
        contaminated(y, 0.32, seed=0)
    with pytest.raises(ValueError, match=r"ratio is 1\.5"):
        contaminated(y, 1.5, seed=0)


def test_halves_draw_at_most_so_many_rows_and_share_none() -> None:
    y = labels(900, 101)
    split = halves(y, seed=0, max_rows=101)
    assert (len(split.train), len(split.test)) == (50, 51)
    assert not set(split.train) & set(split.test)
    everything = halves(y, seed=0)
    assert len(np.union1d(everything.train, everything.test)) == 1001


def test_halves_always_have_something_to_measure() -> None:
    y = labels(40, 1)
    for seed in range(20):
        assert y[halves(y, seed).test].sum() == 1


def test_halves_of_one_kind_of_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="0 anomalies in 5 rows"):
        halves(np.zeros(5, bool), seed=0)


def test_kdd_rev_has_every_normal_connection_and_a_quarter_as_many_attacks() -> None:
    is_attack = labels(98, 300)
    rows = kdd_rev_rows(is_attack, seed=0)
    assert (~is_attack[rows]).sum() == 98
    assert is_attack[rows].sum() == 24  # floor(98 / 4), as 97,278 normal connections give 24,319 attacks
    assert not np.array_equal(rows, kdd_rev_rows(is_attack, seed=1))


def test_a_draw_is_in_order_and_not_larger_than_the_set() -> None:
    assert drawn(5, None, 0).tolist() == drawn(5, 9, 0).tolist() == [0, 1, 2, 3, 4]
    rows = drawn(100, 10, 0)
    assert len(set(rows)) == 10
    assert np.all(np.diff(rows) > 0)


def test_z_scores_know_the_training_rows_only_and_leave_binary_columns_if_told() -> None:
    train = np.array([[1.0, 0.0, 7.0], [3.0, 1.0, 7.0]], dtype=np.float32)
    test = np.array([[5.0, 1.0, 9.0]], dtype=np.float32)
    assert z_scores(train, test)[1].tolist() == [[3.0, 1.0, 2.0]]
    scaled, other = z_scores(train, test, keep_binary=True)
    assert scaled.tolist() == [[-1.0, 0.0, 0.0], [1.0, 1.0, 0.0]]
    assert other.tolist() == [[3.0, 1.0, 2.0]]


def test_a_constant_column_that_float32_cannot_average_counts_as_constant() -> None:
    train = np.full((1000, 1), 0.1, dtype=np.float32)
    assert np.abs(z_scores(train)[0]).max() < 1e-6


def test_the_unit_range_is_that_of_training() -> None:
    train, test = np.array([[2.0, 5.0], [4.0, 5.0]]), np.array([[3.0, 9.0], [8.0, 5.0]])
    assert to_unit_range(train, test)[1].tolist() == [[0.5, 1.0], [1.0, 0.0]]
