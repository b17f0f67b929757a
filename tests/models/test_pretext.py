"""Pretext tasks are their formulas, written slowly; what they do to pictures keeps its bounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch.nn import functional

from models.nets import augmentation, pretext
from models.nets.augmentation import PATCH_ASPECT, cut_and_paste, rotations, scar, views
from models.nets.pretext import Contrastive, CutPaste, Decoder, Reconstruction, Rotation, nt_xent
from models.nets.resnet import ResNet18

HEAD = {"head_layers": 1, "head_width": 8}
VIEWS = {"min_scale": 0.5, "jitter": 0.4, "blur": True}
PASTE = {"jitter": 0.0, "patch_jitter": 0.0, "min_area": 0.02, "max_area": 0.15, "scar_scale": 1.0}


def distinct_pictures(n: int, h: int, w: int) -> torch.Tensor:
    """Return colour pictures of which no two pixels are equal."""
    values = torch.randperm(n * h * w, generator=torch.Generator().manual_seed(0)).reshape(n, 1, h, w)
    return torch.cat([values / (n * h * w), torch.rand(n, 2, h, w, generator=torch.Generator().manual_seed(1))], dim=1)


class Spy:
    """An encoder that remembers what it was shown, and whose features are the means of the channels."""

    def __init__(self) -> None:
        self.shown: list[torch.Tensor] = []

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.shown.append(images)
        return images.mean(dim=(2, 3))


def with_linear_head(task: Any, n_features: int, n_outputs: int, *, bias: bool = True) -> Any:
    task.head = torch.nn.Linear(n_features, n_outputs, bias=bias)
    return task


def net(n_channels: int = 3) -> ResNet18:
    return ResNet18(n_channels, 2, stem="full")


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_nt_xent_is_its_formula(temperature: float) -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 7, 5))
    total = 0.0
    for i in range(7):
        similarities = []
        for j in range(7):
            cosine = first[i] @ second[j] / (np.linalg.norm(first[i]) * np.linalg.norm(second[j]))
            similarities.append(math.exp(cosine / temperature))
        total -= math.log(similarities[i] / sum(similarities))
    loss = nt_xent(torch.tensor(first), torch.tensor(second), temperature)
    assert loss.item() == pytest.approx(total / 7, rel=1e-12)


def test_rotations_are_quarter_turns_one_after_the_other() -> None:
    images = distinct_pictures(3, 6, 6)
    turned = rotations(images)
    assert turned.shape == (12, 3, 6, 6)
    for turns in range(4):
        for i in range(3):
            expected = np.rot90(images[i].numpy(), turns, axes=(1, 2))
            np.testing.assert_array_equal(turned[3 * turns + i].numpy(), expected)


def test_the_loss_of_rotation_is_the_cross_entropy_over_the_turn_that_each_picture_was_given() -> None:
    options = {**HEAD, **VIEWS, "augment": False}
    task = with_linear_head(Rotation(net(), (6, 6, 3), options), 3 * 36, 4)
    images = distinct_pictures(5, 6, 6)
    loss = task.loss(lambda shown: shown.flatten(1), images)
    expected = []
    for turns in range(4):
        for image in images:
            logits = task.head(torch.rot90(image, turns, (1, 2)).flatten())
            expected.append(-torch.log_softmax(logits, dim=0)[turns])
    assert loss.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)


def test_with_augment_rotation_turns_views_of_the_pictures() -> None:
    images, spy = distinct_pictures(5, 8, 8), Spy()
    with_linear_head(Rotation(net(), (8, 8, 3), {**HEAD, **VIEWS, "augment": True}), 3, 4).loss(spy, images)
    (shown,) = spy.shown
    assert shown.shape == (20, 3, 8, 8)
    assert not torch.equal(shown[:5], images)
    torch.testing.assert_close(torch.rot90(shown[:5], 1, (2, 3)), shown[5:10])


@pytest.mark.parametrize("is_augmented", [True, False])
def test_the_loss_of_the_contrastive_task_is_nt_xent_of_two_views(is_augmented: bool) -> None:
    options = {**HEAD, **VIEWS, "head_outputs": 4, "temperature": 0.2, "distribution_augmented": is_augmented}
    task = with_linear_head(Contrastive(net(), (8, 8, 3), options), 3, 4, bias=False)
    images, spy = distinct_pictures(5, 8, 8), Spy()
    loss = task.loss(spy, images)
    (shown,) = spy.shown
    first, second = shown.chunk(2)
    assert len(first) == (20 if is_augmented else 5)  # every turn of a picture is an instance of its own
    assert not torch.equal(first, second)
    if is_augmented:
        torch.testing.assert_close(torch.rot90(first[:5], 3, (2, 3)), first[15:])
    outputs = task.head(shown.mean(dim=(2, 3)))
    assert loss.item() == pytest.approx(nt_xent(outputs[: len(first)], outputs[len(first) :], 0.2).item(), rel=1e-6)


@pytest.mark.parametrize(
    ("kind", "kinds"),
    [("patch", ("none", "patch")), ("scar", ("none", "scar")), ("three_way", ("none", "patch", "scar"))],
)
def test_cutpaste_tells_as_many_kinds_apart_as_it_was_asked_to(
    kind: str, kinds: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretext, "cut_and_paste", lambda images, **_: images + 1.0)
    monkeypatch.setattr(pretext, "scar", lambda images, **_: images + 2.0)
    task = CutPaste(net(), (8, 8, 3), {**HEAD, **PASTE, "kind": kind})
    assert task.head[-1].out_features == len(kinds)  # type: ignore[index]
    with_linear_head(task, 3, len(kinds))
    images, spy = distinct_pictures(5, 8, 8), Spy()
    loss = task.loss(spy, images)
    (shown,) = spy.shown
    shift = {"none": 0.0, "patch": 1.0, "scar": 2.0}
    assert torch.equal(shown, torch.cat([images + shift[each] for each in kinds]))
    logits = task.head(shown.mean(dim=(2, 3)))
    labels = torch.tensor([label for label in range(len(kinds)) for _ in range(5)])
    assert loss.item() == pytest.approx(functional.cross_entropy(logits, labels).item(), rel=1e-6)


def test_the_jitter_of_cutpaste_is_of_every_picture_on_its_own_and_within_its_strength() -> None:
    task = with_linear_head(CutPaste(net(), (8, 8, 3), {**HEAD, **PASTE, "jitter": 0.1, "kind": "patch"}), 3, 2)
    images, spy = 0.1 + 0.5 * distinct_pictures(40, 8, 8), Spy()
    torch.manual_seed(0)
    task.loss(spy, images)
    factors = (spy.shown[0][:40] / images).flatten(1)
    torch.testing.assert_close(factors.amin(dim=1), factors.amax(dim=1))
    assert 0.9 <= float(factors.min()) < 0.93
    assert 1.07 < float(factors.max()) <= 1.1 + 1e-6


def window_equals(picture: np.ndarray, part: np.ndarray) -> bool:
    """Return whether the part is somewhere in the picture, both ``(c, h, w)``."""
    h, w = part.shape[1:]
    at = np.argwhere(picture[0] == part[0, 0, 0])
    return any(np.array_equal(picture[:, y : y + h, x : x + w], part) for y, x in at)


@given(
    seed=st.integers(0, 2**31),
    h=st.integers(8, 40),
    w=st.integers(8, 40),
    low=st.floats(0.005, 0.1),
    width=st.floats(0.0, 0.2),
)
@settings(max_examples=60, deadline=None)
def test_a_patch_is_an_exact_copy_of_a_rectangle_of_the_same_picture(
    seed: int, h: int, w: int, low: float, width: float
) -> None:
    images = distinct_pictures(3, h, w)
    torch.manual_seed(seed)
    pasted = cut_and_paste(images, area=(low, low + width), jitter=0.0)
    assert pasted.shape == images.shape
    for before, after in zip(images.numpy(), pasted.numpy(), strict=True):
        is_changed = (before != after).any(axis=0)
        if not is_changed.any():  # pasted where it was cut out
            continue
        rows, columns = np.flatnonzero(is_changed.any(axis=1)), np.flatnonzero(is_changed.any(axis=0))
        y, x = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        # A rectangle: outside of it nothing is changed, inside all is, since no two pixels are equal.
        assert is_changed[y, x].all()
        assert window_equals(before, after[:, y, x])
        # Sides between the real ones, rounded down and up, which are at least one pixel and leave one free.
        height, breadth = len(rows), len(columns)
        assert (height - 1) * (breadth - 1) <= (low + width) * h * w + 1e-3
        assert (height + 1) * (breadth + 1) >= min(low * h * w, min(h, w) - 1) - 1e-3
        if min(height, breadth) > 1 and max(height + 1 - h, breadth + 1 - w) < 0:
            assert (breadth - 1) / (height + 1) <= PATCH_ASPECT
            assert (height - 1) / (breadth + 1) <= PATCH_ASPECT


def test_areas_and_aspects_of_patches_fill_their_ranges() -> None:
    images = distinct_pictures(1, 64, 64).expand(400, -1, -1, -1)
    torch.manual_seed(0)
    is_changed = (cut_and_paste(images, area=(0.02, 0.15), jitter=0.0) != images).any(dim=1).numpy()
    area = is_changed.mean(axis=(1, 2))
    assert (area.min(), area.max()) == (pytest.approx(0.02, abs=0.006), pytest.approx(0.15, abs=0.01))
    assert area.mean() == pytest.approx(0.085, abs=0.01)
    aspect = np.log(is_changed.any(axis=1).sum(axis=1) / is_changed.any(axis=2).sum(axis=1))
    assert np.abs(aspect.mean()) < 0.1
    assert aspect.std() == pytest.approx(2 * math.log(PATCH_ASPECT) / math.sqrt(12), rel=0.1)


@given(seed=st.integers(0, 2**31), side=st.integers(8, 48), scale=st.floats(0.5, 6.0))
@settings(max_examples=60, deadline=None)
def test_a_scar_is_a_turned_strip_of_pixels_of_the_same_picture(seed: int, side: int, scale: float) -> None:
    images = distinct_pictures(3, side, side)
    torch.manual_seed(seed)
    pasted = scar(images, jitter=0.0, scale=scale)
    unit = scale * side / 256
    longest = math.hypot(max(1.0, 16.0 * unit), max(1.0, 25.0 * unit))
    for before, after in zip(images.numpy(), pasted.numpy(), strict=True):
        is_changed = (before != after).any(axis=0)
        assert set(after[0][is_changed].tolist()) <= set(before[0].ravel().tolist())
        at = np.argwhere(is_changed)
        if len(at):
            distances = np.linalg.norm(at[:, None] - at[None], axis=2)
            assert distances.max() <= min(longest, math.hypot(side, side)) + 1e-3


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_sides_and_angles_of_scars_fill_their_ranges(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, np.ndarray] = {}

    def remember(images: torch.Tensor, w: torch.Tensor, h: torch.Tensor, angle: torch.Tensor, jitter: float) -> Any:
        drawn.update(w=w.numpy(), h=h.numpy(), angle=np.degrees(angle.numpy()))
        return images

    monkeypatch.setattr(augmentation, "_paste", remember)
    torch.manual_seed(0)
    scar(torch.zeros(500, 1, 96, 128), jitter=0.1, scale=scale)
    for name, low, high in [("w", 2.0, 16.0), ("h", 10.0, 25.0)]:
        low, high = max(1.0, low * scale / 2), high * scale / 2  # 128 pixels are half of the paper's 256
        assert low <= drawn[name].min() < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < drawn[name].max() <= high
    assert -45.0 <= drawn["angle"].min() < -43.0
    assert 43.0 < drawn["angle"].max() <= 45.0


def test_a_scar_lies_at_the_angle_that_was_drawn() -> None:
    images = distinct_pictures(1, 65, 65).expand(2, -1, -1, -1)
    side, angle = torch.tensor([3.0, 3.0]), torch.tensor([math.radians(30.0), math.radians(-30.0)])
    torch.manual_seed(0)
    is_changed = (augmentation._paste(images, side, 10 * side, angle, 0.0) != images).any(dim=1).numpy()
    for degrees, changed in zip((30.0, -30.0), is_changed, strict=True):
        at = np.argwhere(changed)[:, ::-1].astype(float)
        _, axes = np.linalg.eigh(np.cov(at.T))
        x, y = axes[:, 1] * np.sign(axes[1, 1])
        # The long side is the vertical one; turned by the angle in a picture whose rows go down.
        assert np.degrees(np.arctan2(-x, y)) == pytest.approx(degrees, abs=4.0)
        assert len(at) == pytest.approx(90, abs=15)


def test_the_jitter_of_what_is_pasted_changes_its_brightness_and_contrast_and_nothing_else() -> None:
    images = torch.full((200, 1, 16, 16), 0.5)
    torch.manual_seed(0)
    changed = cut_and_paste(images, area=(0.1, 0.2), jitter=0.1)
    assert float(changed.min()) >= 0.5 * 0.9 - 0.1 - 1e-6
    assert float(changed.max()) <= 0.5 * 1.1 + 0.1 + 1e-6
    n_values = [len(torch.unique(picture)) for picture in changed]
    assert set(n_values) == {2}
    bright = cut_and_paste(torch.ones(50, 1, 16, 16), area=(0.1, 0.2), jitter=1.0)
    assert 0.0 <= float(bright.min()) <= float(bright.max()) <= 1.0


@pytest.mark.parametrize(("h", "w", "c"), [(16, 16, 1), (16, 16, 3), (40, 18, 3), (18, 80, 1)])
def test_views_keep_the_shape_and_the_range_and_are_drawn_by_torchs_seed(h: int, w: int, c: int) -> None:
    images = torch.rand(12, c, h, w, generator=torch.Generator().manual_seed(0))
    before, made = images.clone(), []
    augment: Callable[[torch.Tensor], torch.Tensor] = views(h, w, c, min_scale=0.5, jitter=0.4)
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        made.append(augment(images))
    for each in made:
        assert each.shape == images.shape
        assert each.dtype == torch.float32
        assert float(each.min()) >= 0.0
        assert float(each.max()) <= 1.0
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    assert torch.equal(images, before)


def test_views_without_jitter_flip_and_blur_are_crops_and_of_the_whole_picture_the_picture() -> None:
    images = torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    whole = views(16, 16, 1, min_scale=1.0, jitter=0.0, flip=False, blur=False)(images)
    # The aspect of a crop is drawn as well, so that only a share of it may be missing.
    assert (whole - images).abs().median() < 0.2
    crops = views(16, 16, 1, min_scale=0.3, jitter=0.0, flip=False, blur=False)(images)
    assert (crops - images).abs().median() > (whole - images).abs().median()


def reconstruction(*, is_robust: bool, noise: float = 0.0) -> Reconstruction:
    return Reconstruction(net(1), (4, 4, 1), {"width": 2, "noise": noise}, is_robust=is_robust)


def test_the_robust_loss_is_what_is_left_when_the_sparse_part_has_been_minimised_out() -> None:
    images = torch.rand(9, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    images[:3] *= 0.1
    task = reconstruction(is_robust=True)
    task.head = torch.nn.Identity()
    loss = task.loss(torch.zeros_like, images)  # nothing is reconstructed: the residual R is the picture
    R = images.reshape(9, 16).numpy().astype(np.float64)
    bend = np.sort(size_of(R))[4]
    assert size_of(R).min() < bend < size_of(R).max()
    left = []
    for row in R:
        found = minimize(lambda S, r=row: 0.5 * size_of(r - S) ** 2 + bend * size_of(S), 0.5 * row, tol=1e-12)
        left.append(min(found.fun, 0.5 * size_of(row) ** 2))  # S = 0, where the norm has no slope
    assert loss.item() == pytest.approx(np.mean(left), rel=1e-5)


def size_of(rows: np.ndarray) -> Any:
    return np.sqrt(np.square(rows).mean(axis=-1))


def test_the_loss_of_a_denoising_autoencoder_is_the_error_from_the_clean_picture() -> None:
    images, spy = torch.rand(64, 1, 4, 4, generator=torch.Generator().manual_seed(0)), []
    task = reconstruction(is_robust=False, noise=0.2)
    task.head = torch.nn.Identity()

    def shown(noisy: torch.Tensor) -> torch.Tensor:
        spy.append(noisy)
        return noisy

    torch.manual_seed(0)
    loss = float(task.loss(shown, images))
    assert loss == pytest.approx(float((spy[0] - images).square().mean()), rel=1e-6)
    assert loss == pytest.approx(0.04, rel=0.15)


@pytest.mark.parametrize(("h", "w", "c"), [(4, 4, 1), (20, 24, 3), (16, 33, 3)])
def test_a_decoder_makes_pictures_of_the_shape_it_was_made_for(h: int, w: int, c: int) -> None:
    decoder = Decoder(16, (h, w, c), width=2).eval()
    assert decoder(torch.zeros(3, 16)).shape == (3, c, h, w)


@pytest.mark.parametrize("n_hidden", [0, 2])
def test_a_head_has_the_hidden_layers_asked_for(n_hidden: int) -> None:
    options = {**VIEWS, "augment": False, "head_layers": n_hidden, "head_width": 8}
    head = Rotation(net(), (8, 8, 3), options).head
    kinds = [type(layer).__name__ for layer in head.children()]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU"] * n_hidden + ["Linear"]
    assert head(torch.zeros(2, 16)).shape == (2, 4)
