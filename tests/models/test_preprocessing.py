from __future__ import annotations

import numpy as np
import pytest

from models.preprocessing import SCALINGS, SURPRISE, CategoricalField, Preprocessor


def objects(*values: str | None) -> np.ndarray:
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def encoded(fitted: dict[str, np.ndarray], new: dict[str, np.ndarray], **options: object) -> np.ndarray:
    return Preprocessor.fit(fitted, **options).transform(new)


def test_numbers_become_z_scores_of_the_training_rows() -> None:
    X = encoded({"a": np.array([1.0, 2.0, 3.0, 6.0])}, {"a": np.array([3.0, 5.0])})
    np.testing.assert_allclose(X[:, 0], (np.array([3.0, 5.0]) - 3.0) / np.std([1.0, 2.0, 3.0, 6.0]), rtol=1e-6)
    assert X.dtype == np.float32


def test_robust_scaling_ignores_one_absurd_value_of_training() -> None:
    column = np.r_[np.arange(100.0), 1e9]
    X = encoded({"a": column}, {"a": np.array([50.0, 99.0])}, scaling="robust")
    assert X[0, 0] == pytest.approx(0.0)
    assert X[1, 0] > 1.0


def test_robust_scaling_falls_back_to_the_deviation_where_the_middle_half_is_equal() -> None:
    column = np.r_[np.zeros(90), np.full(10, 5.0)]
    X = encoded({"a": column}, {"a": np.array([5.0])}, scaling="robust")
    assert X[0, 0] == pytest.approx(5.0 / column.std(), rel=1e-6)


def test_columns_of_zeros_and_ones_stay_as_they_are() -> None:
    X = encoded({"a": np.array([0.0, 1.0, 1.0, 1.0])}, {"a": np.array([0.0, 1.0])})
    assert X[:, 0].tolist() == [0.0, 1.0]


def test_absurd_values_stay_finite_and_ordered() -> None:
    X = encoded({"a": np.random.default_rng(0).normal(size=50)}, {"a": np.array([30.0, 1e3, 1e9, -1e300])})
    assert np.isfinite(X).all()
    assert X[0, 0] < X[1, 0] < X[2, 0]
    assert X[3, 0] < -SURPRISE


def test_training_values_near_the_end_of_float64_do_not_overflow() -> None:
    column = np.array([1e308, -1e308, 0.0, 1e307])
    assert np.isfinite(encoded({"a": column}, {"a": column})).all()


def test_a_changed_constant_is_visible_and_finite() -> None:
    X = encoded({"a": np.full(9, 7.0), "b": np.zeros(9)}, {"a": np.array([7.0, 14.0]), "b": np.array([0.0, 1.0])})
    assert X[0].tolist() == [0.0, 0.0]
    assert X[1].tolist() == pytest.approx([SURPRISE, SURPRISE])


def test_missing_numbers_seen_in_training_get_a_column_of_their_own() -> None:
    X = encoded({"a": np.array([1.0, np.nan, 3.0])}, {"a": np.array([2.0, np.nan])})
    assert X.tolist() == [[0.0, 0.0], [0.0, 1.0]]


def test_a_number_missing_for_the_first_time_is_a_surprise() -> None:
    X = encoded({"a": np.array([1.0, 2.0, 3.0])}, {"a": np.array([np.nan])})
    assert X.tolist() == [[SURPRISE]]


def test_a_column_that_is_all_missing_can_be_learned_and_a_value_in_it_is_visible() -> None:
    X = encoded({"a": np.full(5, np.nan)}, {"a": np.array([np.nan, 2.0])})
    assert X[0].tolist() == [0.0, 1.0]
    assert X[1, 0] > 0
    assert X[1, 1] == 0


def test_categories_are_one_hot_with_a_slot_for_what_was_never_seen() -> None:
    X = encoded({"k": objects("a", "b", "a")}, {"k": objects("a", "b", "z", None)})
    assert X.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, SURPRISE], [0, 0, SURPRISE]]


def test_a_missing_category_seen_in_training_is_a_value_like_any_other() -> None:
    X = encoded({"k": objects("a", None, None)}, {"k": objects(None, "a")})
    assert X.tolist() == [[1, 0, 0], [0, 1, 0]]


def test_only_the_most_frequent_categories_get_a_column() -> None:
    preprocessor = Preprocessor.fit({"k": objects("c", "b", "b", "a", "a", "a")}, max_categories=2)
    (field,) = preprocessor.fields
    assert isinstance(field, CategoricalField)
    assert field.categories == ("a", "b")
    assert preprocessor.transform({"k": objects("c")}).tolist() == [[0, 0, 1]]


def test_the_order_of_the_columns_given_does_not_matter() -> None:
    columns = {"a": np.array([1.0, 2.0]), "k": objects("x", "y")}
    preprocessor = Preprocessor.fit(columns)
    swapped = {"k": columns["k"], "a": columns["a"]}
    np.testing.assert_array_equal(preprocessor.transform(columns), preprocessor.transform(swapped))


def test_no_rows_make_an_empty_matrix() -> None:
    preprocessor = Preprocessor.fit({"a": np.array([1.0, 2.0]), "k": objects("x", "y")})
    assert preprocessor.transform({"a": np.empty(0), "k": objects()}).shape == (0, 4)


def test_a_copy_from_its_state_transforms_alike() -> None:
    columns = {"a": np.array([1.0, 2.0, np.nan]), "k": objects("x", None, "y")}
    preprocessor = Preprocessor.fit(columns)
    copy = Preprocessor.from_state(preprocessor.state())
    np.testing.assert_array_equal(copy.transform(columns), preprocessor.transform(columns))
    assert copy.has_layout_of(preprocessor)


def test_another_category_is_another_layout() -> None:
    one, other = Preprocessor.fit({"k": objects("x", "y")}), Preprocessor.fit({"k": objects("x", "z")})
    assert not one.has_layout_of(other)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"k": objects("x", "y")}, r"fields \['a'\] are missing"),
        ({"a": objects("1", "2"), "k": objects("x", "y")}, "'a' has dtype object"),
        ({"a": np.array([1.0, 2.0]), "k": np.array([1.0, 2.0])}, "'k' has dtype float64"),
        ({"a": np.array([1.0]), "k": objects("x", "y")}, "one n"),
        ({"a": np.array([1.0, np.inf]), "k": objects("x", "y")}, "'a' holds an infinite value"),
    ],
)
def test_columns_that_do_not_fit_are_named(columns: dict[str, np.ndarray], message: str) -> None:
    preprocessor = Preprocessor.fit({"a": np.array([1.0, 2.0]), "k": objects("x", "y")})
    with pytest.raises(ValueError, match=message):
        preprocessor.transform(columns)


def test_a_category_that_is_no_text_is_refused_in_training() -> None:
    column = np.array([1, "x"], dtype=object)
    with pytest.raises(ValueError, match="'k' holds 1; allowed in a categorical field: str or None"):
        Preprocessor.fit({"k": column})


def test_nothing_to_learn_from_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one field and one row"):
        Preprocessor.fit({"a": np.empty(0)})
    with pytest.raises(ValueError, match="scaling is 'quantile'; allowed: standard, robust"):
        Preprocessor.fit({"a": np.ones(3)}, scaling="quantile")


@pytest.mark.parametrize("scaling", SCALINGS)
def test_a_row_is_scaled_alike_alone_and_among_many_bit_for_bit(scaling: str) -> None:
    rng = np.random.default_rng(0)
    columns: dict[str, np.ndarray] = {f"x{j}": rng.normal(size=5000) * 10.0 ** rng.integers(-3, 4) for j in range(9)}
    columns["x0"][::7] *= 1e6
    columns["x1"][::5] = np.nan
    columns["up"] = rng.integers(0, 2, 5000).astype(bool)
    preprocessor = Preprocessor.fit(columns, scaling=scaling)
    columns["x2"][3] = np.nan
    together = preprocessor.transform(columns)
    for rows in (slice(0, 1), slice(3, 4), slice(100, 300), slice(0, 4999)):
        alone = preprocessor.transform({name: column[rows] for name, column in columns.items()})
        np.testing.assert_array_equal(alone, together[rows])


def test_of_many_fields_the_infinite_one_is_named() -> None:
    columns = {name: np.arange(3.0) for name in ("a", "b", "c")}
    preprocessor = Preprocessor.fit(columns)
    columns["b"] = np.array([1.0, -np.inf, 2.0])
    with pytest.raises(ValueError, match="field 'b' holds an infinite value"):
        preprocessor.transform(columns)
