"""Every representation in the table keeps the contract; GOAD's folded form is the unfolded one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from models.nets import mlp
from models.representations import REPRESENTATIONS, Representation
from models.representations.goad import LEAK, Goad
from models.state import State

QUICK: dict[str, Any] = {"n_transforms": 8, "n_steps": 60, "batch_rows": 32}
OPTIONS: dict[str, dict[str, Any]] = {"identity": {}, "goad": QUICK}


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


def test_the_pull_back_is_the_gradient_of_a_score_of_the_embedding(name: str, X: np.ndarray) -> None:
    representation = fitted(name, X)
    rng = np.random.default_rng(1)
    dZ = rng.normal(size=representation.embed(X).shape)
    gradient = representation.pull_back(X, dZ)
    assert (gradient.shape, gradient.dtype) == (X.shape, np.float64)
    is_near, axes = [], tuple(range(1, dZ.ndim))
    for column in range(X.shape[1]):
        step = np.zeros(X.shape[1], dtype=np.float32)
        step[column] = 1e-3
        up, down = (representation.embed(X + sign * step).astype(np.float64) for sign in (1.0, -1.0))
        slope = ((up - down) * dZ).sum(axis=axes) / 2e-3
        is_near.append(np.abs(slope - gradient[:, column]) < 0.02 * np.abs(gradient).mean())
    # A step across a kink of the leaky ReLU sees another slope.
    assert np.mean(is_near) > 0.95


def test_goads_pull_back_is_that_of_automatic_differentiation(X: np.ndarray) -> None:
    goad = fitted("goad", X)
    state = goad.state().arrays
    dZ = np.random.default_rng(1).normal(size=(len(X), 8, 8))
    rows = torch.tensor(X, dtype=torch.float64, requires_grad=True)
    hidden = torch.einsum("nd,mdp->nmp", rows, torch.tensor(state["projections"], dtype=torch.float64))
    for layer in range(5):
        weight, bias = (torch.tensor(state[f"{part}{layer}"], dtype=torch.float64) for part in ("weight", "bias"))
        hidden = functional.leaky_relu(functional.linear(hidden, weight, bias), float(LEAK))
    hidden.backward(torch.tensor(dZ))
    assert rows.grad is not None
    is_near = np.abs(goad.pull_back(X, dZ) - rows.grad.numpy()) < 1e-5 * np.abs(rows.grad.numpy()).mean()
    # Where a unit is within rounding of 0, float32 may see its other slope.
    assert is_near.all(axis=1).mean() > 0.99


def test_a_row_is_pulled_back_alike_in_every_batch_bit_for_bit(name: str, X: np.ndarray) -> None:
    representation = fitted(name, X)
    dZ = np.random.default_rng(1).normal(size=representation.embed(X).shape)
    together = representation.pull_back(X, dZ)
    for size in (1, 128, 200):
        cuts = [slice(start, start + size) for start in range(0, len(X), size)]
        parts = [representation.pull_back(X[rows], dZ[rows]) for rows in cuts]
        np.testing.assert_array_equal(np.concatenate(parts), together)


@pytest.mark.parametrize("head", ["linear", "centres"])
@pytest.mark.parametrize("n_picked", [4, 8])
def test_goad_learns_to_tell_its_projections_apart(head: str, n_picked: int) -> None:
    rng = np.random.default_rng(0)
    X = rng.normal([3.0, 0, 0, -3.0, 0, 0], size=(500, 6)).astype(np.float32)
    losses: list[float] = []
    goad = Goad(n_transforms=8, n_picked=n_picked, n_steps=400, head=head).fit(X, rng)
    goad.update(X, 400, lambda step, loss: losses.append(loss))
    assert len(losses) == 8
    # By chance alone: all projections are told apart by the linear head, those in the minibatch by centres.
    assert losses[-1] < 0.8 * np.log(8 if head == "linear" else n_picked)


def slow_loss(
    head: str, projections: torch.Tensor, layers: list[tuple[torch.Tensor, torch.Tensor]], X: torch.Tensor
) -> torch.Tensor:
    """Return the loss of equation 3 with 5, or with 4, projection by projection and row by row."""
    embedded = []
    for projection in projections:
        hidden = X @ projection
        for weight, bias in layers[:5]:
            hidden = functional.leaky_relu(hidden @ weight.T + bias, float(LEAK))
        embedded.append(hidden)
    centres = [hidden.mean(dim=0) for hidden in embedded]
    total = torch.zeros(())
    for m, hidden in enumerate(embedded):
        for row in hidden:
            if head == "linear":
                logits = layers[5][0] @ row + layers[5][1]
            else:
                logits = torch.stack([-(row - centre).square().sum() for centre in centres])
            total = total - torch.log(torch.exp(logits[m]) / torch.exp(logits).sum())
    return total / (len(X) * len(projections))


@pytest.mark.parametrize("head", ["linear", "centres"])
def test_steps_of_sgd_are_those_of_the_paper(head: str) -> None:
    X = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
    options = {"n_transforms": 4, "n_projected": 2, "width": 3, "n_picked": 4, "batch_rows": 10}
    goad = Goad(**options, optimizer="sgd", head=head, learning_rate=0.05).fit(X, np.random.default_rng(0))
    before = goad.state().arrays
    n_layers = 6 if head == "linear" else 5
    flat = [torch.tensor(before[f"{part}{layer}"]) for layer in range(n_layers) for part in ("weight", "bias")]
    momentum = [torch.zeros_like(array) for array in flat]
    for _ in range(3):  # every step sees all ten rows, in whatever order
        flat = [array.detach().requires_grad_() for array in flat]
        layers = list(zip(flat[::2], flat[1::2], strict=True))
        loss = slow_loss(head, torch.tensor(before["projections"]), layers, torch.tensor(X))
        gradients = torch.autograd.grad(loss, flat)
        momentum = [0.9 * v + g + 3e-5 * w for v, g, w in zip(momentum, gradients, flat, strict=True)]
        flat = [w - 0.05 * v for w, v in zip(flat, momentum, strict=True)]
    losses: list[float] = []
    goad.update(X, 3, lambda step, value: losses.append(value))
    assert losses == [pytest.approx(float(loss.detach()), rel=1e-5)]
    after = goad.state().arrays
    for index, expected in enumerate(flat):
        found = after[f"{('weight', 'bias')[index % 2]}{index // 2}"]
        np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-4, atol=1e-6)
    assert any(not np.allclose(after[name], before[name]) for name in after)


def test_the_loss_in_chunks_is_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlp, "_CHUNK_LOGITS", 64)
    generator = torch.Generator().manual_seed(0)
    shapes = [(50, 3), (7, 3), (7,)]
    fast = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    slow = [array.detach().clone().requires_grad_() for array in fast]
    labels = torch.randint(7, (50,), generator=generator)
    loss = mlp.linear_cross_entropy(*fast, labels)
    expected = functional.cross_entropy(functional.linear(*slow), labels)
    (3.0 * loss).backward()  # type: ignore[no-untyped-call]
    (3.0 * expected).backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(loss, expected)
    for mine, theirs in zip(fast, slow, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


@pytest.mark.parametrize("head", ["linear", "centres"])
def test_goad_trains_alike_on_one_thread_and_on_two_and_leaves_their_number_alone(head: str, X: np.ndarray) -> None:
    embeddings = []
    for n_threads in (1, 2):
        torch.set_num_threads(n_threads)
        try:
            goad = Goad(**QUICK, head=head).fit(X, np.random.default_rng(0))
            goad.update(X, 60)
            assert torch.get_num_threads() == n_threads
        finally:
            torch.set_num_threads(1)
        embeddings.append(goad.embed(X))
    np.testing.assert_allclose(embeddings[0], embeddings[1], rtol=1e-5, atol=1e-6)


def test_goad_reads_a_state_from_before_it_had_a_choice_of_optimiser_and_head(X: np.ndarray) -> None:
    goad = fitted("goad", X)
    state = goad.state()
    older = State({name: v for name, v in state.values.items() if name not in ("optimizer", "head")}, state.arrays)
    copy = Goad.from_state(older)
    np.testing.assert_array_equal(copy.embed(X), goad.embed(X))
    assert copy.state().values == state.values


@pytest.mark.parametrize("head", ["linear", "centres"])
def test_goads_state_has_a_classifier_only_with_the_linear_head(head: str, X: np.ndarray) -> None:
    goad = Goad(**QUICK, head=head, optimizer="sgd").fit(X, np.random.default_rng(0))
    state = goad.state()
    assert ("weight5" in state.arrays) == (head == "linear")
    copy = Goad.from_state(state)
    assert (copy.options["head"], copy.options["optimizer"]) == (head, "sgd")
    np.testing.assert_array_equal(copy.embed(X), goad.embed(X))


@pytest.mark.parametrize("n_transforms", [2, 5, 32, 67])
def test_goad_embeds_a_row_alike_in_every_batch_for_any_number_of_projections(n_transforms: int) -> None:
    X = np.random.default_rng(0).normal(size=(200, 121)).astype(np.float32)
    goad = Goad(n_transforms=n_transforms).fit(X, np.random.default_rng(0))
    order = np.random.default_rng(1).permutation(200)
    np.testing.assert_array_equal(goad.embed(X[order]), goad.embed(X)[order])


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
        ({"optimizer": "lion"}, r"optimizer is 'lion'; allowed: adam, sgd"),
        ({"head": "hydra"}, r"head is 'hydra'; allowed: linear, centres"),
        ({"head": "centres", "n_picked": 1}, "n_picked is 1; allowed: whole numbers from 2 on"),
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
    fewer = fitted("goad", X).state()
    fewer.arrays["projections"] = fewer.arrays["projections"][:7]
    with pytest.raises(ValueError, match=r"projections have shape \(7, 7, 32\); needed: 8 x d x 32"):
        Goad.from_state(fewer)


@pytest.mark.gpu
def test_goad_trained_on_a_gpu_embeds_as_if_trained_on_the_cpu(X: np.ndarray) -> None:
    embeddings = []
    for device in ("cpu", "cuda"):
        goad = Goad(**OPTIONS["goad"]).fit(X, np.random.default_rng(0), device=device)
        goad.update(X, 60)
        embeddings.append(goad.embed(X))
    np.testing.assert_allclose(embeddings[0], embeddings[1], rtol=0.05, atol=0.05)
