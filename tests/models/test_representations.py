"""Every representation in the table keeps the contract; GOAD's folded form is the unfolded one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch.nn import functional

from models.nets import mlp, projection_graph
from models.nets.projection_graph import LEAK
from models.nets.resnet import ResNet18
from models.representations import REPRESENTATIONS, Representation
from models.representations.goad import Goad
from models.state import State

QUICK: dict[str, Any] = {"n_transforms": 8, "n_steps": 60, "batch_rows": 32}
TINY: dict[str, Any] = {"width": 8, "batch_rows": 8, "n_epochs": 1, "steps_per_epoch": 3}
OPTIONS: dict[str, dict[str, Any]] = {
    "identity": {},
    "goad": QUICK,
    "pixels": {},
    "rotation": TINY,
    "contrastive": {**TINY, "head_layers": 1, "head_width": 8},
    "cutpaste": {**TINY, "head_width": 8},
    "denoising_autoencoder": TINY,
    "robust_autoencoder": TINY,
    "frozen": {},
}
"""Of every representation; the path of the frozen one is that of the fixture `_encoder`."""
TURNS_PICTURES = {"rotation", "contrastive"}
"""They need square ones."""
CASES = [
    (name, shape)
    for name in sorted(REPRESENTATIONS)
    for shape in (
        [(7,)]
        if REPRESENTATIONS[name].takes == "fields"
        else [(16, 16, 1), (20, 20, 3) if name in TURNS_PICTURES else (20, 24, 3)]
    )
]
"""Every representation with every kind of rows that it takes."""
PICTURE_CASES = [(name, shape) for name, shape in CASES if REPRESENTATIONS[name].takes == "picture"]
FIELD_NAMES = sorted(name for name, each in REPRESENTATIONS.items() if each.takes == "fields")


def test_every_representation_is_tested() -> None:
    assert set(OPTIONS) == set(REPRESENTATIONS)
    assert {each.takes for each in REPRESENTATIONS.values()} == {"fields", "picture"}


@pytest.fixture(scope="module", autouse=True)
def _encoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An encoder that somebody else trained, say, for colours."""
    path = tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    torch.manual_seed(0)
    safetensors.torch.save_file(ResNet18(3, 4, stem="full").state_dict(), path)
    OPTIONS["frozen"]["path"] = str(path)
    yield
    del OPTIONS["frozen"]["path"]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{'x'.join(map(str, case[1]))}")
def case(request: pytest.FixtureRequest) -> tuple[str, tuple[int, ...]]:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def name(case: tuple[str, tuple[int, ...]]) -> str:
    return case[0]


@pytest.fixture
def rows(case: tuple[str, tuple[int, ...]]) -> np.ndarray:
    return made_rows(case[1])


@pytest.fixture
def X() -> np.ndarray:  # noqa: N802
    return made_rows((7,))


def made_rows(shape: tuple[int, ...]) -> np.ndarray:
    """Return matrices of scaled fields, or pictures whose pixels are anything."""
    rng = np.random.default_rng(0)
    if len(shape) == 1:
        return rng.normal(size=(300, *shape)).astype(np.float32)
    return rng.integers(0, 256, size=(130 if shape[2] == 1 else 70, *shape), dtype=np.uint8)


def fitted(name: str, X: np.ndarray, seed: int = 0, **options: Any) -> Representation:
    representation = REPRESENTATIONS[name](**{**OPTIONS[name], **options})
    assert representation.fit(X, np.random.default_rng(seed)) is representation
    representation.update(X, representation.steps_for(len(X)))
    return representation


def test_embeddings_are_finite_float32_and_leave_the_input_untouched(name: str, rows: np.ndarray) -> None:
    before = rows.copy()
    representation = fitted(name, rows)
    Z = representation.embed(rows)
    assert Z.dtype == np.float32
    assert Z.ndim in (2, 3)
    assert len(Z) == len(rows)
    assert np.isfinite(Z).all()
    assert (Z[0] != Z).any()
    np.testing.assert_array_equal(rows, before)
    assert representation.embed(rows[:0]).shape == (0, *Z.shape[1:])


def test_the_same_seed_gives_the_same_embedding(name: str, rows: np.ndarray) -> None:
    np.testing.assert_array_equal(fitted(name, rows).embed(rows), fitted(name, rows).embed(rows))


def test_a_row_is_embedded_alike_in_every_batch_bit_for_bit(name: str, rows: np.ndarray) -> None:
    representation = fitted(name, rows)
    together = representation.embed(rows)
    for size in (3, 16, 64, 128)[: 4 if rows.ndim == 2 or len(rows) > 64 else 3]:
        parts = [representation.embed(rows[start : start + size]) for start in range(0, len(rows), size)]
        np.testing.assert_array_equal(np.concatenate(parts), together)
    some = range(0, len(rows), 9)
    np.testing.assert_array_equal(np.concatenate([representation.embed(rows[i : i + 1]) for i in some]), together[some])
    np.testing.assert_array_equal(representation.embed(rows[::-1]), together[::-1])


def test_a_copy_from_its_state_embeds_alike(name: str, rows: np.ndarray) -> None:
    representation = fitted(name, rows)
    state = representation.state()
    copy = REPRESENTATIONS[name].from_state(state)
    np.testing.assert_array_equal(copy.embed(rows), representation.embed(rows))
    again = copy.state()
    assert again.values == state.values
    assert again.arrays.keys() == state.arrays.keys()
    for key, array in state.arrays.items():
        np.testing.assert_array_equal(again.arrays[key], array)


def test_making_training_and_copying_leave_the_global_generators_alone(name: str, rows: np.ndarray) -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    representation = fitted(name, rows)
    REPRESENTATIONS[name].from_state(representation.state()).embed(rows[:3])
    assert torch.equal(torch.random.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # type: ignore[index]


@pytest.mark.parametrize(("name", "shape"), PICTURE_CASES)
def test_what_is_seen_at_the_places_is_finite_and_alike_in_every_batch_bit_for_bit(
    name: str, shape: tuple[int, ...]
) -> None:
    pictures = made_rows(shape)[:20]
    before = pictures.copy()
    representation: Any = fitted(name, pictures)
    places = representation.places(pictures)
    assert places.dtype == np.float32
    assert places.ndim == 4
    assert len(places) == 20
    assert all(1 <= side <= whole for side, whole in zip(places.shape[1:3], shape[:2], strict=True))
    assert np.isfinite(places).all()
    assert (places != places[0]).any()
    one_by_one = [representation.places(pictures[i : i + 1]) for i in range(20)]
    np.testing.assert_array_equal(np.concatenate(one_by_one), places)
    assert representation.places(pictures[:0]).shape == (0, *places.shape[1:])
    np.testing.assert_array_equal(pictures, before)


@pytest.mark.parametrize("name", ["rotation", "contrastive", "cutpaste", "denoising_autoencoder", "frozen"])
def test_embeddings_have_length_one_unless_it_is_said_otherwise(name: str) -> None:
    pictures = made_rows((16, 16, 1))[:12]
    plain, normalised = fitted(name, pictures, l2_normalise=False), fitted(name, pictures)
    np.testing.assert_allclose(np.linalg.norm(normalised.embed(pictures), axis=1), 1.0, rtol=1e-6)
    lengths = np.linalg.norm(plain.embed(pictures), axis=1, keepdims=True)
    assert np.ptp(lengths) > 0
    np.testing.assert_allclose(plain.embed(pictures) / lengths, normalised.embed(pictures), rtol=1e-4, atol=1e-6)


def test_pixels_and_residuals_at_the_places_are_those_of_the_embedding() -> None:
    pictures = made_rows((20, 24, 3))[:12]
    pixels: Any = fitted("pixels", pictures)
    means, deviations = np.split(pixels.places(pictures), 2, axis=3)
    parts = [means.reshape(12, -1), deviations.reshape(12, -1)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), pixels.embed(pictures))
    robust: Any = fitted("robust_autoencoder", pictures)
    np.testing.assert_array_equal(robust.places(pictures).reshape(12, -1), robust.embed(pictures))


def test_pixels_are_mean_and_deviation_of_the_cells() -> None:
    pictures = made_rows((13, 5, 3))[:4]
    Z = REPRESENTATIONS["pixels"](n_cells=6).embed(pictures)
    means, deviations = Z.reshape(4, 2, 6, 5, 3).transpose(1, 0, 2, 3, 4)
    edges = np.arange(7) * 13 // 6
    for row in range(6):
        cell = pictures[:, edges[row] : edges[row + 1]] / 255.0
        np.testing.assert_allclose(means[:, row], cell.mean(axis=1), rtol=1e-6)
        np.testing.assert_allclose(deviations[:, row], cell.std(axis=1), rtol=1e-4, atol=1e-6)


def test_a_robust_autoencoder_embeds_the_residuals_whose_energy_is_the_error_of_reconstruction() -> None:
    pictures = made_rows((16, 24, 3))[:6]
    robust: Any = fitted("robust_autoencoder", pictures)
    Z = robust.embed(pictures)
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255.0
    with torch.no_grad():
        residual = robust._pretext.head(robust._net(images)) - images
    assert Z.shape == (6, 8 * 8)
    np.testing.assert_allclose(np.square(Z).sum(axis=1) / 64, residual.square().mean(dim=(1, 2, 3)), rtol=1e-5)


@pytest.mark.parametrize("name", ["rotation", "robust_autoencoder", "frozen"])
def test_an_encoder_before_fit_is_refused(name: str) -> None:
    pictures = made_rows((16, 16, 1))[:2]
    new: Any = REPRESENTATIONS[name](**OPTIONS[name])
    acts = [new.state, lambda: new.embed(pictures), lambda: new.places(pictures)]
    for act in acts if name == "frozen" else [*acts, lambda: new.update(pictures, 1)]:
        with pytest.raises(RuntimeError, match=f"{name} is not fitted; call fit first"):
            act()


def test_a_loaded_encoder_is_fitted_before_it_is_trained_on_and_to_pictures_of_its_own_size() -> None:
    pictures = made_rows((16, 16, 1))[:8]
    loaded: Any = REPRESENTATIONS["cutpaste"].from_state(fitted("cutpaste", pictures).state())
    with pytest.raises(RuntimeError, match="cutpaste is not fitted; call fit first"):
        loaded.update(pictures, 1)
    with pytest.raises(ValueError, match=r"X has pictures of \(16, 15, 1\), the loaded encoder is for \(16, 16, 1\)"):
        loaded.fit(pictures[:, :, 1:], np.random.default_rng(0))


@pytest.mark.parametrize(
    ("name", "options"),
    [("rotation", {}), ("rotation", {"augment": True}), ("contrastive", {})],
)
def test_pictures_that_are_not_square_cannot_be_turned(name: str, options: dict[str, Any]) -> None:
    pictures = made_rows((16, 24, 1))[:8]
    with pytest.raises(ValueError, match=rf"{name}.* takes square pictures, .*; these are 16 x 24 pixels"):
        fitted(name, pictures, **options)
    assert fitted("contrastive", pictures, distribution_augmented=False).embed(pictures).shape == (8, 64)


def test_an_encoder_that_refused_its_pictures_can_be_fitted_to_others() -> None:
    rotation: Any = REPRESENTATIONS["rotation"](**TINY)
    with pytest.raises(ValueError, match="takes square pictures"):
        rotation.fit(made_rows((16, 24, 1)), np.random.default_rng(0))
    with pytest.raises(RuntimeError, match="not fitted"):
        rotation.embed(made_rows((16, 24, 1)))
    assert rotation.fit(made_rows((16, 16, 1)), np.random.default_rng(0)).embed(made_rows((16, 16, 1))).shape[1] == 64


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pixels", {"n_cells": 0}, "n_cells is 0; allowed: whole numbers from 1 to 64"),
        ("pixels", {"n_cells": True}, "n_cells is True; allowed: whole numbers from 1 to 64"),
        ("rotation", {"width": 0}, "width is 0; allowed: whole numbers from 8 on"),
        ("cutpaste", {"width": 7}, "width is 7; allowed: whole numbers from 8 on"),
        ("rotation", {"head_layers": -1}, "head_layers is -1; allowed: whole numbers from 0 on"),
        ("rotation", {"batch_rows": 1}, "batch_rows is 1; allowed: whole numbers from 2 on"),
        ("rotation", {"n_epochs": True}, "n_epochs is True; allowed: whole numbers from 1 on"),
        ("rotation", {"layer": 5}, "layer is 5; allowed: 1, 2, 3, 4"),
        ("rotation", {"stem": "big"}, "stem is 'big'; allowed: auto, full, half, usual"),
        ("rotation", {"optimizer": "lion"}, "optimizer is 'lion'; allowed: sgd, adamw"),
        ("rotation", {"precision": "float16"}, "precision is 'float16'; allowed: auto, float32, bfloat16"),
        ("rotation", {"augment": 1}, "augment is 1; allowed: true or false"),
        ("rotation", {"learning_rate": 0.0}, r"learning_rate is 0\.0; allowed: above 0"),
        ("rotation", {"weight_decay": -1.0}, r"weight_decay is -1\.0; allowed: numbers from 0 to 100"),
        ("rotation", {"min_scale": 1.5}, r"min_scale is 1\.5; allowed: numbers from 0 to 1"),
        ("contrastive", {"jitter": 0.6}, r"jitter is 0\.6; allowed: numbers from 0 to 0\.5"),
        ("contrastive", {"temperature": 0}, "temperature is 0; allowed: above 0"),
        ("contrastive", {"temperature": "hot"}, "temperature is 'hot'; allowed: numbers from 0 to 100"),
        ("cutpaste", {"kind": "tear"}, "kind is 'tear'; allowed: patch, scar, three_way"),
        ("cutpaste", {"max_area": 2.0}, r"max_area is 2\.0; allowed: numbers from 0 to 1"),
        ("denoising_autoencoder", {"noise": float("nan")}, "noise is nan; allowed: numbers from 0 to 100"),
    ],
)
def test_options_of_pictures_out_of_range_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        REPRESENTATIONS[name](**options)


@pytest.mark.parametrize("name", ["rotation", "contrastive", "cutpaste", "denoising_autoencoder", "robust_autoencoder"])
def test_an_option_that_a_task_does_not_have_is_refused_with_those_it_has(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name} has no option colour, taste; allowed: width, .*precision"):
        REPRESENTATIONS[name](taste=1, colour=2)


@pytest.mark.parametrize("name", sorted(set(OPTIONS) - {"identity", "pixels"}))
def test_a_broken_state_is_refused(name: str) -> None:
    shape = next(shape for other, shape in CASES if other == name)
    state = fitted(name, made_rows(shape)).state()
    if name != "goad":
        for values in ({}, {"options": {}}, {**state.values, "options": {"taste": 1}}, {**state.values, "shape": [1]}):
            with pytest.raises(ValueError, match=r"state does not fit|not enough values"):
                REPRESENTATIONS[name].from_state(State(values, state.arrays))
    for key in sorted(state.arrays)[:: 1 + len(state.arrays) // 3]:
        array = state.arrays[key]
        others = {other: each for other, each in state.arrays.items() if other != key}
        with pytest.raises(ValueError, match=r"missing"):
            REPRESENTATIONS[name].from_state(State(state.values, others))
        with pytest.raises(ValueError, match=r"axes|shape"):
            REPRESENTATIONS[name].from_state(State(state.values, {**others, key: array[..., None]}))
        with pytest.raises(ValueError, match="not finite"):
            REPRESENTATIONS[name].from_state(State(state.values, {**others, key: array * np.float32("nan")}))
        with pytest.raises(ValueError, match=r"shape|encoder"):
            REPRESENTATIONS[name].from_state(State(state.values, {**others, key: array[:-1]}))


def test_pixels_refuse_a_state_of_something_else_and_an_encoder_one_with_more_than_its_own() -> None:
    with pytest.raises(ValueError, match="pixels: state does not fit"):
        REPRESENTATIONS["pixels"].from_state(State({"n_cell": 3}))
    state = fitted("rotation", made_rows((16, 16, 1))[:8]).state()
    state.arrays["encoder.layer5.weight"] = np.zeros(3, dtype=np.float32)
    with pytest.raises(ValueError, match=r"rotation: there are arrays encoder\.layer5\.weight"):
        REPRESENTATIONS["rotation"].from_state(state)


def test_there_is_something_to_train_or_there_is_not(name: str) -> None:
    representation = REPRESENTATIONS[name](**OPTIONS[name])
    assert representation.steps_per_epoch(5) >= 1
    is_trained = name not in ("identity", "pixels", "frozen")
    assert (representation.steps_for(100) > 0) == is_trained
    assert representation.warm_up_steps(100) == (representation.steps_per_epoch(100) if is_trained else 0)


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
            hidden = np.where(hidden > 0, hidden, LEAK * hidden)
        np.testing.assert_allclose(goad.embed(X)[:, m], hidden, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", FIELD_NAMES)
def test_the_pull_back_is_the_gradient_of_a_score_of_the_embedding(name: str, X: np.ndarray) -> None:
    representation: Any = fitted(name, X)
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
        hidden = functional.leaky_relu(functional.linear(hidden, weight, bias), LEAK)
    hidden.backward(torch.tensor(dZ))
    assert rows.grad is not None
    is_near = np.abs(goad.pull_back(X, dZ) - rows.grad.numpy()) < 1e-5 * np.abs(rows.grad.numpy()).mean()
    # Where a unit is within rounding of 0, float32 may see its other slope.
    assert is_near.all(axis=1).mean() > 0.99


@pytest.mark.parametrize("name", FIELD_NAMES)
def test_a_row_is_pulled_back_alike_in_every_batch_bit_for_bit(name: str, X: np.ndarray) -> None:
    representation: Any = fitted(name, X)
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
    head: str,
    projections: torch.Tensor,
    layers: list[tuple[torch.Tensor, torch.Tensor]],
    X: torch.Tensor,
    labels: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the loss of equation 3 with 5, or with 4, projection by projection and row by row.

    The labels are those of the projections, if they are not all.
    """
    embedded = []
    for projection in projections:
        hidden = X @ projection
        for weight, bias in layers[:5]:
            hidden = functional.leaky_relu(hidden @ weight.T + bias, LEAK)
        embedded.append(hidden)
    centres = [hidden.mean(dim=0) for hidden in embedded]
    total = torch.zeros(())
    for m, hidden in enumerate(embedded):
        for row in hidden:
            if head == "linear":
                logits = layers[5][0] @ row + layers[5][1]
            else:
                logits = torch.stack([-(row - centre).square().sum() for centre in centres])
            own = m if labels is None else int(labels[m])
            total = total - torch.log(torch.exp(logits[own]) / torch.exp(logits).sum())
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


def test_the_loss_in_chunks_and_its_gradients_are_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlp, "_CHUNK_LOGITS", 64)
    generator = torch.Generator().manual_seed(0)
    shapes = [(50, 3), (7, 3), (7,)]
    arrays = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    rows, weight, bias = (array.detach() for array in arrays)
    labels = torch.randint(7, (50,), generator=generator)
    d_weight, d_bias = torch.empty_like(weight), torch.empty_like(bias)
    loss, d_features = mlp.linear_cross_entropy(rows.T, weight, bias, labels, d_weight, d_bias)
    expected = functional.cross_entropy(functional.linear(*arrays), labels)
    expected.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(loss, expected.detach())
    for found, array in zip((d_features.T, d_weight, d_bias), arrays, strict=True):
        torch.testing.assert_close(found, array.grad)


@pytest.mark.parametrize("head", ["linear", "centres"])
@pytest.mark.parametrize("is_picked", [False, True])
def test_the_gradients_of_goads_loss_are_those_of_autograd(head: str, is_picked: bool) -> None:
    rng = np.random.default_rng(0)
    goad = Goad(n_transforms=6, n_projected=4, width=3, head=head).fit(np.zeros((1, 5), dtype=np.float32), rng)
    assert goad._training is not None
    X, picked = torch.tensor(rng.normal(size=(9, 5)).astype(np.float32)), torch.tensor([4, 0, 3])
    net = goad._training.net
    loss = net.loss(X, picked if is_picked else None)
    flat = [torch.tensor(part).requires_grad_() for layer in net.layers() for part in layer]
    layers = list(zip(flat[::2], flat[1::2], strict=True))
    labels = picked if is_picked else torch.arange(6)
    expected = slow_loss(head, net.projections[labels], layers, X, labels if head == "linear" else None)
    expected.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(loss, expected.detach())
    assert net.parameters.grad is not None
    gradients = torch.cat([part.grad.flatten() for part in flat if part.grad is not None])
    torch.testing.assert_close(net.parameters.grad, gradients, rtol=1e-4, atol=1e-6)


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


@pytest.mark.parametrize("sizes", [{"n_rows": 1}, {"n_rows": 256}, {"n_rows": 256, "least_rows": 1}], ids=str)
def test_goad_embeds_and_pulls_back_few_rows_as_many_whatever_blocks_a_machine_allows(
    sizes: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projection_graph, "block_sizes", lambda *given: sizes)
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 16)).astype(np.float32)
    goad = Goad(n_transforms=32).fit(X, np.random.default_rng(0))
    embedded = goad.embed(X)
    dZ = rng.normal(size=embedded.shape)
    pulled = goad.pull_back(X, dZ)
    for n in (1, 15, 17, 40, 100, 299):
        np.testing.assert_array_equal(goad.embed(X[-n:]), embedded[-n:])
        np.testing.assert_array_equal(goad.pull_back(X[-n:], dZ[-n:]), pulled[-n:])


def test_blocks_are_as_a_machines_products_allow() -> None:
    rows = np.random.default_rng(0).normal(size=(256, 4)).astype(np.float32)
    order = np.random.default_rng(1).permutation(256)

    def by_place(block: np.ndarray) -> np.ndarray:
        return block * (1.0 + 1e-6 * (np.arange(len(block)) % 8 == 7))[:, None]

    def by_size(block: np.ndarray) -> np.ndarray:
        return block * (1.0 + 1e-6 * (len(block) < 16))

    assert projection_graph.block_sizes(lambda block: 2.0 * block, rows, order) == {"n_rows": 256, "least_rows": 1}
    assert projection_graph.block_sizes(by_size, rows, order) == {"n_rows": 256}
    assert projection_graph.block_sizes(by_place, rows, order) == {"n_rows": 1}


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
@pytest.mark.parametrize("options", [{}, {"optimizer": "sgd"}, {"head": "centres"}, {"n_picked": 8}])
def test_steps_that_are_played_back_are_those_that_were_asked_for(options: dict[str, Any], X: np.ndarray) -> None:
    losses: list[list[float]] = []
    for eager_steps in (3, 10_000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mlp, "_EAGER_STEPS", eager_steps)
            goad = Goad(**{**OPTIONS["goad"], **options}).fit(X, np.random.default_rng(0), device="cuda")
            losses.append([])
            for n_steps in (60, 50):
                goad.update(X, n_steps, lambda step, loss: losses[-1].append(loss))
    assert len(losses[0]) == 3
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)


@pytest.mark.gpu
def test_goad_trained_on_a_gpu_embeds_as_if_trained_on_the_cpu(X: np.ndarray) -> None:
    embeddings = []
    for device in ("cpu", "cuda"):
        goad = Goad(**OPTIONS["goad"]).fit(X, np.random.default_rng(0), device=device)
        goad.update(X, 60)
        embeddings.append(goad.embed(X))
    np.testing.assert_allclose(embeddings[0], embeddings[1], rtol=0.05, atol=0.05)
