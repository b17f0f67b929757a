"""Contributions sum to the score, are exact where they can be, and name the fields that matter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from models.explanation import N_STEPS, Explainer, attribute
from models.occ import CLASSIFIERS, OneClassClassifier
from models.occ.blend import Blend
from models.occ.gde import AGGREGATES, GDE
from models.occ.histogram import Histogram
from models.occ.isolation_forest import IsolationForest
from models.preprocessing import Preprocessor
from models.representations import Representation
from models.representations.goad import Goad
from models.representations.identity import Identity
from models.training import Trained

CLASSIFIERS_TRIED = ("gde", "blend", "knn", "histogram", "isolation_forest", "pca", "centres")
D = 12


def correlated(n: int, seed: int) -> np.ndarray:
    """Return ``(n, 12)`` rows: six pairs of fields that go together."""
    rng = np.random.default_rng(seed)
    half = rng.normal(size=(n, D // 2))
    X = np.concatenate([half, half + 0.4 * rng.normal(size=half.shape)], axis=1)
    return X.astype(np.float32)


def preprocessor_of(X: np.ndarray) -> Preprocessor:
    return Preprocessor.fit({f"x{index}": column.astype(np.float64) for index, column in enumerate(X.T)})


@pytest.fixture(scope="module")
def X() -> np.ndarray:  # noqa: N802
    return correlated(1000, seed=0)


@pytest.fixture(scope="module")
def representations(X: np.ndarray) -> dict[str, Representation]:
    goad = Goad(n_transforms=8, n_steps=300).fit(X, np.random.default_rng(0))
    goad.update(X, 300)
    return {"identity": Identity(), "goad": goad}


@pytest.fixture(scope="module", params=["identity", "goad"])
def representation(request: pytest.FixtureRequest, representations: dict[str, Representation]) -> Representation:
    return representations[request.param]


@pytest.fixture(scope="module", params=CLASSIFIERS_TRIED)
def classifier(request: pytest.FixtureRequest, X: np.ndarray, representation: Representation) -> OneClassClassifier:
    return CLASSIFIERS[request.param]().fit(representation.embed(X))


def suspects(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ``(n, 12)`` rows of which two fields each were moved by 3 to 5 deviations, and which ``(n, 2)``."""
    rng = np.random.default_rng(seed)
    X = correlated(n, seed)
    moved = np.array([rng.choice(D, 2, replace=False) for _ in range(n)])
    shift = rng.uniform(3.0, 5.0, size=(n, 2)) * rng.choice([-1.0, 1.0], size=(n, 2))
    np.put_along_axis(X, moved, np.take_along_axis(X, moved, axis=1) + shift.astype(np.float32), axis=1)
    return X, moved


def test_contributions_sum_to_the_score_less_the_base(
    X: np.ndarray, representation: Representation, classifier: OneClassClassifier
) -> None:
    rows = np.concatenate([suspects(150, seed=1)[0], X[:5]])
    found = Explainer.fit(X).contributions(rows, preprocessor_of(X), representation, classifier)
    scores = classifier.score(representation.embed(rows))
    assert found.values.shape == (155, D)
    np.testing.assert_allclose(found.values.sum(axis=1) + found.base, scores, rtol=1e-6, atol=1e-9)
    assert np.ptp(found.values, axis=1).max() > 0.1 * np.abs(scores - found.base).max() / D


def test_contributions_of_a_row_are_the_same_in_every_batch_bit_for_bit(
    X: np.ndarray, representation: Representation, classifier: OneClassClassifier
) -> None:
    rows, _ = suspects(70, seed=2)
    explainer, preprocessor = Explainer.fit(X), preprocessor_of(X)

    def explain(part: np.ndarray) -> np.ndarray:
        return explainer.contributions(part, preprocessor, representation, classifier).values

    together = explain(rows)
    np.testing.assert_array_equal(np.concatenate([explain(rows[:1]), explain(rows[1:])]), together)


def test_a_row_that_is_the_base_gets_nothing(
    X: np.ndarray, representation: Representation, classifier: OneClassClassifier
) -> None:
    explainer = Explainer.fit(X)
    found = explainer.contributions(
        explainer.mean.astype(np.float32)[None], preprocessor_of(X), representation, classifier
    )
    np.testing.assert_array_equal(found.values, 0.0)


def test_a_gaussian_on_the_fields_themselves_is_attributed_exactly(X: np.ndarray) -> None:
    gde = GDE(shrinkage=0.01).fit(X)
    precision = np.linalg.inv(0.99 * np.cov(X.T, bias=True) + 0.01 * np.trace(np.cov(X.T, bias=True)) / D * np.eye(D))
    rows, _ = suspects(20, seed=3)
    found = Explainer.fit(X).contributions(rows, preprocessor_of(X), Identity(), gde)
    for row in range(20):
        away = rows[row].astype(np.float64) - X.astype(np.float64).mean(axis=0)
        for field in range(D):
            by_hand = 0.5 * away[field] * sum(precision[field, other] * away[other] for other in range(D))
            assert found.values[row, field] == pytest.approx(by_hand, rel=1e-4, abs=1e-5)


def test_the_expected_value_is_the_mean_given_the_other_fields(X: np.ndarray) -> None:
    explainer = Explainer.fit(X)
    covariance = np.linalg.inv(explainer.precision)
    rows, _ = suspects(10, seed=4)
    surprise, expected = explainer.decompose(rows, preprocessor_of(X))
    for row in range(10):
        away = rows[row] - explainer.mean
        for field in range(D):
            others = [other for other in range(D) if other != field]
            weights = np.linalg.solve(covariance[np.ix_(others, others)], covariance[others, field])
            assert expected[row, field] - explainer.mean[field] == pytest.approx(weights @ away[others], abs=1e-9)
            variance = covariance[field, field] - weights @ covariance[others, field]
            unexpected = rows[row, field] - expected[row, field]
            assert surprise[row, field] == pytest.approx(0.5 * unexpected**2 / variance, rel=1e-9)


def test_histograms_on_the_fields_are_attributed_by_the_difference_of_their_columns(X: np.ndarray) -> None:
    histogram = Histogram().fit(X)
    explainer = Explainer.fit(X)
    rows, _ = suspects(20, seed=5)
    found = explainer.contributions(rows, preprocessor_of(X), Identity(), histogram)
    base = explainer.mean.astype(np.float32)[None]
    np.testing.assert_allclose(found.values, histogram.column_scores(rows) - histogram.column_scores(base), atol=1e-12)


def test_a_blend_is_attributed_as_the_weighted_sum_of_its_members(X: np.ndarray) -> None:
    blend = Blend(n_neighbors=(5,)).fit(X)
    rows, _ = suspects(20, seed=6)
    explainer, preprocessor = Explainer.fit(X), preprocessor_of(X)
    by_hand = sum(
        explainer.contributions(rows, preprocessor, Identity(), member).values / scale / 3
        for member, scale in zip(blend.members_, blend.scales_, strict=True)
    )
    found = explainer.contributions(rows, preprocessor, Identity(), blend).values
    np.testing.assert_allclose(found, by_hand, rtol=1e-9, atol=1e-12)


def test_without_a_gradient_fields_are_replaced_in_turn(X: np.ndarray) -> None:
    forest = IsolationForest().fit(X)
    rows, _ = suspects(5, seed=7)
    base = np.zeros(D, dtype=np.float32)
    order = np.array([np.random.default_rng(row).permutation(D) for row in range(5)])
    slots = tuple(slice(index, index + 1) for index in range(D))
    found = attribute(rows, base, Identity(), forest, slots=slots, order=order)
    for row in range(5):
        values = rows[row].copy()
        for field in order[row]:
            before = forest.score(values[None])[0]
            values[field] = base[field]
            assert found[row, field] == before - forest.score(values[None])[0]


class Step:
    """A score that is flat but for one jump, which no gradient sees."""

    name = "step"

    def score(self, Z: np.ndarray) -> np.ndarray:
        return (np.abs(Z).sum(axis=1) > 4.0).astype(np.float64)

    def gradient(self, Z: np.ndarray) -> np.ndarray:
        return np.zeros(Z.shape)


def test_a_jump_that_no_gradient_sees_is_spread_over_the_way() -> None:
    rows = np.array([[6.0, -2.0, 0.0]], dtype=np.float32)
    found = attribute(
        rows,
        np.zeros(3, dtype=np.float32),
        Identity(),
        Step(),  # type: ignore[arg-type]  # only scores
        slots=(slice(0, 1), slice(1, 2), slice(2, 3)),
        order=np.zeros((1, 3), dtype=np.intp),
    )
    np.testing.assert_allclose(found, [[0.75, 0.25, 0.0]])


def test_what_the_integral_lacks_is_little(X: np.ndarray, representations: dict[str, Representation]) -> None:
    goad = representations["goad"]
    gde = GDE().fit(goad.embed(X))
    rows, _ = suspects(50, seed=8)
    explainer, preprocessor = Explainer.fit(X), preprocessor_of(X)
    few, many = (
        explainer.contributions(rows, preprocessor, goad, gde, n_steps=n).values for n in (N_STEPS, 16 * N_STEPS)
    )
    assert np.abs(few - many).mean() < 0.1 * np.abs(many).mean()


@pytest.mark.parametrize(
    ("name", "make"), [("identity", GDE), ("identity", CLASSIFIERS["knn"]), ("goad", GDE)], ids=str
)
def test_removing_the_top_fields_lowers_the_score_more_than_removing_random_ones(
    X: np.ndarray, representations: dict[str, Representation], name: str, make: Callable[[], OneClassClassifier]
) -> None:
    representation = representations[name]
    classifier = make().fit(representation.embed(X))
    explainer, preprocessor = Explainer.fit(X), preprocessor_of(X)
    rng = np.random.default_rng(90)
    rows, _ = suspects(200, seed=9)
    values = explainer.contributions(rows, preprocessor, representation, classifier).values
    _, expected = explainer.decompose(rows, preprocessor)

    def drop(fields: np.ndarray) -> float:
        changed = rows.copy()
        put_in = np.take_along_axis(expected, fields, axis=1).astype(np.float32)
        np.put_along_axis(changed, fields, put_in, axis=1)
        before, after = (classifier.score(representation.embed(part)) for part in (rows, changed))
        return float((before - after).mean())

    top = np.argsort(-values, axis=1)[:, :2]
    random = np.array([rng.choice(D, 2, replace=False) for _ in rows])
    assert drop(top) > 2.0 * max(drop(random), 0.0)


@pytest.mark.parametrize("name", ["gde", "blend", "knn", "histogram", "pca"])
def test_the_one_field_that_was_tampered_with_comes_first(
    X: np.ndarray, representation: Representation, name: str
) -> None:
    classifier = CLASSIFIERS[name]().fit(representation.embed(X))
    rng = np.random.default_rng(10)
    rows = correlated(100, seed=10) * np.float32(0.5)
    planted = rng.integers(D, size=100)
    rows[np.arange(100), planted] = rng.choice([-8.0, 8.0], size=100)
    found = Explainer.fit(X).contributions(rows, preprocessor_of(X), representation, classifier)
    assert (found.values.argmax(axis=1) == planted).mean() >= 0.9


@pytest.mark.parametrize("aggregate", sorted(AGGREGATES))
@pytest.mark.parametrize("m", [None, 1, 4, 5])
def test_the_gradient_of_a_gaussian_is_that_of_its_score(aggregate: str, m: int | None) -> None:
    rng = np.random.default_rng(11)
    shape = (3,) if m is None else (m, 3)
    gde = GDE(aggregate=aggregate).fit(rng.normal(size=(200, *shape)))
    Z = 2.0 * rng.normal(size=(10, *shape))
    gradient = gde.gradient(Z)
    assert gradient.shape == Z.shape
    for place in np.ndindex(shape):
        step = np.zeros(shape)
        step[place] = 1e-5
        slope = (gde.score(Z + step) - gde.score(Z - step)) / 2e-5
        np.testing.assert_allclose(gradient[(slice(None), *place)], slope, rtol=1e-5, atol=1e-7)


def test_the_gradient_of_a_gaussian_that_is_not_fitted_is_refused() -> None:
    with pytest.raises(RuntimeError, match="GDE is not fitted; call fit first"):
        GDE().gradient(np.zeros((1, 2)))


def test_an_explainer_whose_state_disagrees_is_refused(X: np.ndarray) -> None:
    state = Explainer.fit(X).state()
    state.arrays["mean"] = state.arrays["mean"][:-1]
    with pytest.raises(ValueError, match=r"precision has shape \(12, 12\), mean \(11,\)"):
        Explainer.from_state(state)


def test_a_models_contributions_cover_all_its_fields_categories_and_missing_values(
    trained: Trained, make_columns: Any, take: Any
) -> None:
    columns, _ = make_columns(300, seed=12, contamination=0.1, has_missing=True)
    columns["method"][:5] = "BREW"
    columns["x2"][:5] = np.nan
    model = trained.model
    found = model.contributions(columns)
    assert found.values.shape == (300, len(model.fields))
    np.testing.assert_allclose(found.values.sum(axis=1) + found.base, model.score(columns).score, rtol=1e-6, atol=1e-6)
    assert list(found.expected) == list(model.fields)
    assert set(found.expected["method"]) <= {"GET", "POST", "PUT", None}
    assert all(isinstance(value, float) and np.isfinite(value) for value in found.expected["x2"])
    assert found.values[:5, model.fields.index("method")].mean() > found.values[5:, model.fields.index("method")].mean()
    top = model.explain(take(columns, slice(0, 20)), 3)
    assert [[part.contribution for part in parts] for parts in top] == np.sort(found.values[:20], axis=1)[
        :, :-4:-1
    ].tolist()
