"""Training on pictures: seeds, schedule, precision; what a cancelled one leaves behind; going on from a champion."""

from __future__ import annotations

import itertools
import math
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from models.evaluation import refinement_efficacy, roc_auc
from models.nets.visual_training import VisualTraining, to_images, uses_bfloat16
from models.representations.autoencoder import DenoisingAutoencoder
from models.representations.cutpaste import CutPaste
from models.representations.rotation import Rotation
from models.training import Progress, TrainingConfig, _warm, train

TINY: dict[str, Any] = {"width": 8, "head_width": 8, "batch_rows": 8, "n_epochs": 5, "steps_per_epoch": 4}
CUTPASTE = TrainingConfig(
    representation="cutpaste", representation_options=TINY, classifier="gde", gamma=0.05, n_subsets=3
)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@pytest.fixture
def X(make_pictures: Any) -> np.ndarray:  # noqa: N802
    return np.asarray(make_pictures(40)[0])


def trained(X: np.ndarray, seed: int = 0, *, device: str = "cpu", steps: int = 20, **options: Any) -> CutPaste:
    made = CutPaste(**{**TINY, **options}).fit(X, np.random.default_rng(seed), device=device)
    made.update(X, steps)
    return made


def weights_of(representation: Any) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = representation.state().arrays
    return arrays


def assert_equal_weights(one: Any, two: Any) -> None:
    assert weights_of(one).keys() == weights_of(two).keys()
    for name, array in weights_of(one).items():
        np.testing.assert_array_equal(array, weights_of(two)[name], err_msg=name)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_same_seed_gives_the_same_weights_and_another_one_others(X: np.ndarray, precision: str) -> None:
    one = trained(X, precision=precision)
    torch.manual_seed(99)  # what the global generator stands at is of no account
    assert_equal_weights(one, trained(X, precision=precision))
    other = trained(X, seed=1, precision=precision)
    assert (weights_of(one)["encoder.conv1.weight"] != weights_of(other)["encoder.conv1.weight"]).any()


def test_training_changes_every_weight_of_encoder_and_head(X: np.ndarray) -> None:
    made = CutPaste(**TINY).fit(X, np.random.default_rng(0))
    before = weights_of(made)
    made.update(X, 3)
    assert not [name for name, array in weights_of(made).items() if np.array_equal(array, before[name])]


def test_the_embedding_follows_the_training(X: np.ndarray) -> None:
    made = CutPaste(**TINY).fit(X, np.random.default_rng(0))
    before = made.embed(X)
    made.update(X, 3)
    assert (made.embed(X) != before).any()


def rates(X: np.ndarray, *calls: int, n_steps: int, **options: Any) -> list[float]:
    """Return the learning rate of every step, in as many updates as are given."""
    made = CutPaste(**{**TINY, **options}).fit(X, np.random.default_rng(0), n_steps=n_steps)
    assert made._training is not None
    optimizer, seen = made._training._optimizer, []
    for n in calls:
        made.update(X, n, lambda step, loss: seen.append(optimizer.param_groups[0]["lr"]))
    return seen


def test_the_rate_falls_to_nothing_by_half_a_cosine_and_goes_on_from_one_update_to_the_next(X: np.ndarray) -> None:
    by_hand = [0.02 * 0.5 * (1.0 + math.cos(math.pi * step / 8)) for step in range(8)]
    assert by_hand[0] == 0.02
    assert by_hand[4] == pytest.approx(0.01)
    assert rates(X, 8, n_steps=8, learning_rate=0.02) == pytest.approx(by_hand)
    assert rates(X, 3, 5, n_steps=8, learning_rate=0.02) == pytest.approx(by_hand)
    # Steps beyond those that were announced: the rate stays at the end of the cosine.
    assert rates(X, 10, n_steps=8, learning_rate=0.02)[8:] == pytest.approx([0.0, 0.0], abs=1e-12)


def test_steps_at_the_end_of_the_schedule_change_no_weight(X: np.ndarray) -> None:
    made = CutPaste(**{**TINY, "weight_decay": 0.1}).fit(X, np.random.default_rng(0), n_steps=2)
    made.update(X, 2)
    before = weights_of(made)
    made.update(X, 1)
    for name, array in weights_of(made).items():
        if not name.endswith(("running_mean", "running_var")):
            np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_optimiser_goes_on_from_one_update_to_the_next(X: np.ndarray, optimizer: str) -> None:
    made = CutPaste(**{**TINY, "optimizer": optimizer}).fit(X, np.random.default_rng(0))
    assert made._training is not None
    made.update(X, 10)
    kept = made._training._optimizer
    first = next(iter(kept.state.values()))
    made.update(X, 10)
    assert made._training._optimizer is kept
    if optimizer == "adamw":
        assert float(first["step"]) == 20.0
    else:
        assert float(first["momentum_buffer"].abs().max()) > 0.0


def test_steps_of_sgd_have_momentum_and_decay(make_pictures: Any) -> None:
    class Slope:
        head = torch.nn.Linear(1, 1)

        def loss(self, encoder: Any, images: torch.Tensor) -> torch.Tensor:
            return self.head(encoder(images)).sum()

    encoder = torch.nn.Flatten()
    task = Slope()
    with torch.no_grad():
        task.head.weight.fill_(2.0)
        task.head.bias.fill_(1.0)
    training = VisualTraining(
        encoder,
        task,
        batch_rows=2,
        optimizer="sgd",
        learning_rate=0.1,
        weight_decay=0.5,
        n_steps=2,
        precision="float32",
        is_compiled=False,
        device="cpu",
        seed=0,
    )
    X = np.full((2, 1, 1, 1), 255, dtype=np.uint8)
    losses: list[float] = []
    training.run(X, 2, lambda step, loss: losses.append(loss))
    # Slope of the weight and of the bias: 2, for two pictures of one white pixel; by hand, with rates 0.1 and 0.05.
    v1 = 2.0 + 0.5 * 2.0
    w1 = 2.0 - 0.1 * v1
    v2 = 0.9 * v1 + 2.0 + 0.5 * w1
    u1 = 2.0 + 0.5 * 1.0
    b1 = 1.0 - 0.1 * u1
    u2 = 0.9 * u1 + 2.0 + 0.5 * b1
    assert float(task.head.weight.detach()) == pytest.approx(w1 - 0.05 * v2)
    assert float(task.head.bias.detach()) == pytest.approx(b1 - 0.05 * u2)
    assert losses == pytest.approx([2 * (2.0 + 1.0), 2 * (w1 + b1)])


@pytest.mark.parametrize(("n", "batch_rows"), [(10, 4), (3, 8), (8, 8)])
def test_an_epoch_goes_through_all_pictures_in_random_order(n: int, batch_rows: int) -> None:
    shown: list[list[int]] = []

    class Remember:
        head = torch.nn.Linear(1, 1)

        def loss(self, encoder: Any, images: torch.Tensor) -> torch.Tensor:
            shown.append((images.flatten() * 255).round().int().tolist())
            return self.head(encoder(images)).sum()

    X = np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1)
    training = VisualTraining(
        torch.nn.Flatten(),
        Remember(),
        batch_rows=batch_rows,
        optimizer="sgd",
        learning_rate=0.1,
        weight_decay=0.0,
        n_steps=20,
        precision="float32",
        is_compiled=False,
        device="cpu",
        seed=0,
    )
    training.run(X, 20)
    assert {len(batch) for batch in shown} == {min(n, batch_rows)}
    order = list(itertools.chain.from_iterable(shown))
    epochs = [order[start : start + n] for start in range(0, len(order) - n + 1, n)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_bytes_become_images_of_0_to_1_with_channels_first() -> None:
    X = np.random.default_rng(0).integers(0, 256, size=(2, 3, 4, 3), dtype=np.uint8)
    images = to_images(X[:, ::-1], torch.device("cpu"))
    assert images.dtype == torch.float32
    np.testing.assert_allclose(images.numpy(), X[:, ::-1].transpose(0, 3, 1, 2) / 255.0, rtol=1e-6)


def test_losses_are_told_step_by_step_and_fall(make_pictures: Any) -> None:
    X, _ = make_pictures(64)
    told: list[tuple[int, float]] = []
    options = {"width": 8, "batch_rows": 16, "learning_rate": 5e-3}
    made = DenoisingAutoencoder(**options).fit(X, np.random.default_rng(0), n_steps=60)
    made.update(X, 60, lambda step, loss: told.append((step, loss)))
    assert [step for step, _ in told] == list(range(1, 61))
    losses = [loss for _, loss in told]
    assert np.mean(losses[-5:]) < 0.15 * losses[0]


def test_rotation_learns_to_tell_turns_apart(make_pictures: Any) -> None:
    X, _ = make_pictures(64)
    losses: list[float] = []
    options = {"width": 8, "batch_rows": 16, "optimizer": "adamw", "learning_rate": 4e-3, "stem": "half"}
    made = Rotation(**options).fit(X, np.random.default_rng(0), n_steps=40)
    made.update(X, 40, lambda step, loss: losses.append(loss))
    assert losses[0] > 1.2  # log 4 by chance alone
    assert np.mean(losses[-5:]) < 0.85


def test_bfloat16_trains_to_about_the_same_embedding_as_float32(X: np.ndarray) -> None:
    one, two = (trained(X, steps=5, precision=each, learning_rate=0.003) for each in ("float32", "bfloat16"))
    cosine = (one.embed(X) * two.embed(X)).sum(axis=1)
    assert cosine.mean() > 0.98
    assert (weights_of(one)["encoder.conv1.weight"] != weights_of(two)["encoder.conv1.weight"]).any()


def test_automatic_precision_is_bfloat16_where_the_device_computes_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert uses_bfloat16("bfloat16", cpu)
    assert not uses_bfloat16("float32", cpu)
    for has_avx, has_amx in [(False, False), (True, False), (False, True)]:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=has_avx: has)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda has=has_amx: has)
        assert uses_bfloat16("auto", cpu) == (has_avx or has_amx)


class Cancelled(Exception):
    pass


@pytest.mark.parametrize("phase", ["train", "refine", "calibrate"])
def test_a_cancelled_training_leaves_nothing_behind(phase: str, make_pictures: Any) -> None:
    columns = {"image": make_pictures(60, contamination=0.1)[0]}
    before = columns["image"].copy()
    expected = train(columns, CUTPASTE, seed=3, device="cpu")
    torch.manual_seed(7)
    process = psutil.Process()
    state, n_threads = torch.random.get_rng_state(), torch.get_num_threads()
    threads, n_files, n_children = threading.active_count(), process.num_fds(), len(process.children())

    def cancel(progress: Progress) -> None:
        if progress.phase == phase and (phase != "train" or progress.step == 7):
            raise Cancelled(f"at step {progress.step}")

    with pytest.raises(Cancelled, match="at step 7" if phase == "train" else "at step"):
        train(columns, CUTPASTE, seed=3, device="cpu", on_progress=cancel)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == n_threads
    assert (threading.active_count(), len(process.children())) == (threads, n_children)
    assert process.num_fds() <= n_files
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")
    np.testing.assert_array_equal(columns["image"], before)
    again = train(columns, CUTPASTE, seed=3, device="cpu")
    assert torch.equal(torch.random.get_rng_state(), state)
    np.testing.assert_array_equal(again.model.score(columns).score, expected.model.score(columns).score)
    assert_equal_weights(again.model.representation, expected.model.representation)


def test_progress_of_pictures_is_told_at_every_step_with_its_loss(X: np.ndarray) -> None:
    told: list[Progress] = []
    trained = train({"image": X}, CUTPASTE, seed=0, device="cpu", on_progress=told.append)
    steps = [p.step for p in told if p.phase == "train"]
    assert steps == list(range(1, 21))
    assert all(p.loss is not None and np.isfinite(p.loss) for p in told if p.phase == "train")
    assert {p.n_steps for p in told} == {20}
    # After epochs 1, 2 and 5, the last of which is the end.
    assert [step for step, _ in trained.report.refreshes] == [4, 8, 20]


def test_pictures_are_refined_from_the_end_of_the_warm_up_on(X: np.ndarray) -> None:
    slow = replace(CUTPASTE, representation_options={**TINY, "warm_up_epochs": 3})
    assert [step for step, _ in train({"image": X}, slow, seed=0, device="cpu").report.refreshes] == [12, 20]
    too_slow = replace(CUTPASTE, representation_options={**TINY, "warm_up_epochs": 9})
    assert [step for step, _ in train({"image": X}, too_slow, seed=0, device="cpu").report.refreshes] == [20]


def test_a_champion_is_trained_on_for_a_quarter_of_the_steps_and_is_not_touched(make_pictures: Any) -> None:
    columns = {"image": make_pictures(60)[0]}
    champion = train(columns, CUTPASTE, seed=0, device="cpu").model
    later = {"image": make_pictures(60, seed=1)[0]}
    before = champion.score(later).score
    warm = train(later, CUTPASTE, seed=1, warm_start=champion, device="cpu")
    assert warm.report.is_warm_started
    assert warm.report.n_steps == 5
    assert warm.report.refreshes[0][0] == 0  # its embedding is worth refining with from the start
    np.testing.assert_array_equal(champion.score(later).score, before)
    start = _warm(champion, CUTPASTE, champion.preprocessor)
    assert start is not None
    start.fit(later["image"], np.random.default_rng(1), n_steps=5)
    np.testing.assert_array_equal(start.embed(later["image"]), champion.representation.embed(later["image"]))
    name = "encoder.conv1.weight"
    assert (weights_of(warm.model.representation)[name] != weights_of(champion.representation)[name]).any()


def test_a_champion_with_other_options_or_of_other_pictures_means_a_cold_start(make_pictures: Any) -> None:
    columns = {"image": make_pictures(30)[0]}
    short = replace(CUTPASTE, representation_options={**TINY, "n_epochs": 1})
    champion = train(columns, short, seed=0, device="cpu").model
    livelier = replace(short, representation_options={**TINY, "n_epochs": 1, "jitter": 0.2})
    pixels = replace(short, representation="pixels", representation_options={})
    for window, config in [
        (columns, livelier),
        (columns, pixels),
        ({"image": make_pictures(30, side=12)[0]}, short),
        ({"image": make_pictures(30, n_channels=3)[0]}, short),
        ({"photo": columns["image"]}, short),
    ]:
        report = train(window, config, seed=0, warm_start=champion, device="cpu").report
        assert not report.is_warm_started
        assert report.n_steps == (0 if config is pixels else 4)
    first = train(columns, pixels, seed=0).model
    assert not train(columns, short, seed=0, warm_start=first, device="cpu").report.is_warm_started
    assert train(columns, short, seed=0, warm_start=champion, device="cpu").report.is_warm_started


def test_refined_pictures_are_purer_and_detect_better_than_unrefined(make_pictures: Any) -> None:
    options = {
        "width": 8,
        "stem": "half",
        "layer": 3,
        "n_epochs": 6,
        "batch_rows": 16,
        "optimizer": "adamw",
        "learning_rate": 4e-3,
        "precision": "float32",
    }
    config = TrainingConfig(
        representation="rotation",
        representation_options=options,
        classifier="gde",
        classifier_options={"covariance": "ledoit_wolf"},
    )
    gains, removed_anomalies, removed_normals = [], [], []
    for seed in range(3):
        pictures, is_anomaly = make_pictures(300, seed=seed, contamination=0.1)
        fresh, is_fresh_anomaly = make_pictures(600, seed=100 + seed, contamination=0.3)
        refined = train({"image": pictures}, replace(config, contamination=0.1), seed=seed, device="cpu")
        unrefined = train({"image": pictures}, replace(config, refine="none"), seed=seed, device="cpu")
        aucs = [roc_auc(is_fresh_anomaly, each.model.score({"image": fresh}).score) for each in (refined, unrefined)]
        gains.append(aucs[0] - aucs[1])
        efficacy = refinement_efficacy(is_anomaly, refined.kept)
        removed_anomalies.append(efficacy[0])
        removed_normals.append(efficacy[1])
    assert np.mean(removed_anomalies) > 0.8
    assert np.mean(removed_normals) < 0.4
    assert np.mean(gains) > 0.005


@needs_cuda
@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_an_encoder_trained_on_a_gpu_embeds_about_as_one_trained_on_the_processor(
    X: np.ndarray, precision: str
) -> None:
    one = trained(X, steps=3, precision="float32", learning_rate=0.01, jitter=0.0, patch_jitter=0.0)
    two = trained(X, steps=3, precision=precision, learning_rate=0.01, jitter=0.0, patch_jitter=0.0, device="cuda")
    # What is pasted where is drawn on the device, so that the minibatches are the same but not the patches.
    assert (one.embed(X) * two.embed(X)).sum(axis=1).min() > 0.9


@needs_cuda
@pytest.mark.gpu
def test_a_network_embeds_on_a_gpu_as_on_the_processor(X: np.ndarray) -> None:
    on_cpu = trained(X, steps=3)
    on_gpu = CutPaste.from_state(on_cpu.state()).fit(X, np.random.default_rng(0), device="cuda")
    np.testing.assert_allclose(on_gpu.embed(X), on_cpu.embed(X), rtol=1e-4, atol=1e-5)
    copy = CutPaste.from_state(on_gpu.state())  # as a model is made of it: on the processor again
    np.testing.assert_array_equal(copy.embed(X), on_cpu.embed(X))
    moved = on_cpu.on("cuda")
    np.testing.assert_allclose(moved.embed(X), on_cpu.embed(X), rtol=1e-4, atol=1e-5)


@needs_cuda
@pytest.mark.gpu
def test_the_same_seed_gives_the_same_weights_on_a_gpu_but_for_rounding(X: np.ndarray) -> None:
    with torch.backends.cudnn.flags(enabled=True, deterministic=True):  # else sums are in any order, and it grows
        torch.cuda.manual_seed(99)
        one = trained(X, device="cuda", precision="float32")
        torch.cuda.manual_seed(98)
        two = trained(X, device="cuda", precision="float32")
    assert_equal_weights(one, two)


@needs_cuda
@pytest.mark.gpu
def test_a_gpu_trains_in_bfloat16_by_itself_and_the_weights_stay_float32(X: np.ndarray) -> None:
    assert uses_bfloat16("auto", torch.device("cuda")) == torch.cuda.is_bf16_supported()
    made = trained(X, device="cuda")
    assert made._net is not None
    assert {parameter.dtype for parameter in made._net.parameters()} == {torch.float32}
    assert np.isfinite(made.embed(X)).all()


@needs_cuda
@pytest.mark.gpu
def test_a_compiled_encoder_trains_as_one_that_is_not(X: np.ndarray) -> None:
    one, two = (
        trained(X, steps=2, device="cuda", precision="float32", learning_rate=0.01, is_compiled=each)
        for each in (False, True)
    )
    assert (one.embed(X) * two.embed(X)).sum(axis=1).min() > 0.99


@needs_cuda
@pytest.mark.gpu
def test_a_model_of_pictures_trained_on_a_gpu_scores_on_the_processor_and_on_the_gpu(make_pictures: Any) -> None:
    columns = {"image": make_pictures(60, contamination=0.1)[0]}
    state = torch.cuda.get_rng_state()
    model = train(columns, CUTPASTE, seed=0, device="cuda").model
    assert torch.equal(torch.cuda.get_rng_state(), state)
    np.testing.assert_allclose(
        model.on("cuda").score(columns).score, model.on("cpu").score(columns).score, rtol=1e-3, atol=1e-3
    )
