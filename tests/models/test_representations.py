"""Every representation in the table keeps the contract; GOAD's folded form is the unfolded one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from models.representations import REPRESENTATIONS, Representation
from models.representations.goad import LEAK, Goad

OPTIONS: dict[str, dict[str, Any]] = {"identity": {}, "goad": {"n_transforms": 8, "n_steps": 60, "batch_rows": 32}}


def test_every_representation_is_tested() -> None:
    assert set(OPTIONS) == set(REPRESENTATIONS)


@pytest.fixture(params=sorted(REPRESENTATIONS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def X() -> np.ndarray:  # noqa: N802
    return np.random.default_rng(0).normal(size=(300, 7)).astype(np.float32)


def fitted(name: str, X: np.ndarray, seed: int = 0) -> Representation:
    representation = REPRESENTATIONS[name](**OPTIONS[name])
    assert representation.fit(X, np.random.default_rng(seed)) is representation
    representation.update(X, representation.n_steps)
    return representation


def test_embeddings_are_finite_float32_and_leave_the_input_untouched(name: str, X: np.ndarray) -> None:
    before = X.copy()
    Z = fitted(name, X).embed(X)
    assert Z.dtype == np.float32
    assert Z.ndim in (2, 3)
    assert len(Z) == len(X)
    assert np.isfinite(Z).all()
    np.testing.assert_array_equal(X, before)
    assert fitted(name, X).embed(X[:0]).shape == (0, *Z.shape[1:])


def test_the_same_seed_gives_the_same_embedding(name: str, X: np.ndarray) -> None:
    np.testing.assert_array_equal(fitted(name, X).embed(X), fitted(name, X).embed(X))


def test_a_row_is_embedded_alike_in_every_batch_bit_for_bit(name: str, X: np.ndarray) -> None:
    representation = fitted(name, X)
    together = representation.embed(X)
    for size in (1, 3, 128, 200):
        parts = [representation.embed(X[start : start + size]) for start in range(0, len(X), size)]
        np.testing.assert_array_equal(np.concatenate(parts), together)


def test_a_copy_from_its_state_embeds_alike(name: str, X: np.ndarray) -> None:
    representation = fitted(name, X)
    copy = REPRESENTATIONS[name].from_state(representation.state())
    np.testing.assert_array_equal(copy.embed(X), representation.embed(X))


def test_goad_before_fit_is_refused(X: np.ndarray) -> None:
    for act in (Goad().state, lambda: Goad().embed(X), lambda: Goad().update(X, 1)):
        with pytest.raises(RuntimeError, match="goad is not fitted; call fit first"):
            act()


def test_goad_folded_is_projection_then_network(X: np.ndarray) -> None:
    goad = fitted("goad", X)
    state = goad.state().arrays
    for m in range(8):
        hidden = X.astype(np.float64) @ state["projections"][m]
        for layer in range(5):
            hidden = hidden @ state[f"weight{layer}"].T + state[f"bias{layer}"]
            hidden = np.where(hidden > 0, hidden, float(LEAK) * hidden)
        np.testing.assert_allclose(goad.embed(X)[:, m], hidden, rtol=1e-3, atol=1e-4)


def test_goad_learns_to_tell_its_projections_apart() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal([3.0, 0, 0, -3.0, 0, 0], size=(500, 6)).astype(np.float32)
    losses: list[float] = []
    goad = Goad(n_transforms=8, n_steps=400).fit(X, rng)
    goad.update(X, 400, lambda step, loss: losses.append(loss))
    assert len(losses) == 8
    assert losses[-1] < 0.8 * np.log(8)


def test_goad_goes_on_with_its_optimiser_from_one_update_to_the_next(X: np.ndarray) -> None:
    # 300 rows are 9 batches of 32: two updates of whole passes draw the same batches as one.
    at_once, in_two = (Goad(**OPTIONS["goad"]).fit(X, np.random.default_rng(0)) for _ in range(2))
    at_once.update(X, 18)
    in_two.update(X, 9)
    in_two.update(X, 9)
    np.testing.assert_array_equal(at_once.embed(X), in_two.embed(X))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_transforms": 1}, "n_transforms is 1; allowed: whole numbers from 2 on"),
        ({"n_steps": 2.5}, r"n_steps is 2\.5; allowed: whole numbers from 1 on"),
        ({"learning_rate": 0.0}, r"learning_rate is 0\.0; allowed: above 0"),
    ],
)
def test_goad_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Goad(**options)


def test_goad_refuses_a_state_whose_shapes_disagree_and_rows_of_another_width(X: np.ndarray) -> None:
    state = fitted("goad", X).state()
    with pytest.raises(ValueError, match="X has 5 columns, the loaded projections 7"):
        Goad.from_state(state).fit(X[:, :5], np.random.default_rng(0))
    state.arrays["weight1"] = state.arrays["weight1"][:, :3]
    with pytest.raises(ValueError, match="layers have shapes"):
        Goad.from_state(state)


@pytest.mark.gpu
def test_goad_trained_on_a_gpu_embeds_as_if_trained_on_the_cpu(X: np.ndarray) -> None:
    embeddings = []
    for device in ("cpu", "cuda"):
        goad = Goad(**OPTIONS["goad"]).fit(X, np.random.default_rng(0), device=device)
        goad.update(X, 60)
        embeddings.append(goad.embed(X))
    np.testing.assert_allclose(embeddings[0], embeddings[1], rtol=0.05, atol=0.05)
