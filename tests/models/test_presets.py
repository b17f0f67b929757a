"""The published recipes are what the paper and its sources say; what we stand for trains in a second."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from torch import nn

from models.evaluation import roc_auc
from models.nets import augmentation
from models.nets.resnet import ResNet18
from models.nets.visual_training import MOMENTUM
from models.presets import PRESETS
from models.representations.goad import Goad
from models.training import train


@pytest.mark.parametrize(("preset", "n_transforms", "n_steps"), [("paper", 256, 2**16), ("paper_kdd", 32, 2**10)])
def test_the_papers_hyperparameters(preset: str, n_transforms: int, n_steps: int) -> None:
    config = PRESETS[preset]
    goad = config.make_representation()
    assert isinstance(goad, Goad)
    published = {
        "n_transforms": n_transforms,
        "n_picked": n_transforms,
        "n_steps": n_steps,
        "n_projected": 32,
        "width": 8,
        "n_layers": 5,
        "batch_rows": 64,
        "learning_rate": 1e-3,
        "optimizer": "sgd",
        "head": "linear",
    }
    assert goad.options == published
    assert (config.n_subsets, config.vote, config.removal, config.refine_rounds) == (5, "unanimous", "hard", 1)
    assert (config.classifier, config.scaling, config.gamma) == ("gde", "standard", "otsu")


PUBLISHED_PICTURES: dict[str, dict[str, Any]] = {
    # Sohn et al. 2021: views, a head of eight layers, 2048 epochs of 64 pictures under four turns each.
    "paper_rotation": {
        "head_layers": 8,
        "head_width": 512,
        "augment": True,
        "min_scale": 0.5,
        "jitter": 0.4,
        "blur": True,
        "batch_rows": 64,
        "learning_rate": 0.01,
        "weight_decay": 3e-4,
        "n_epochs": 2048,
        "steps_per_epoch": 0,
    },
    # The same with distribution augmentation: the SRR paper's for CIFAR-10, Fashion-MNIST and Dog-vs-Cat.
    "paper_contrastive": {
        "head_layers": 8,
        "head_width": 512,
        "head_outputs": 128,
        "distribution_augmented": True,
        "temperature": 0.2,
        "min_scale": 0.5,
        "jitter": 0.4,
        "blur": True,
        "batch_rows": 32,
        "learning_rate": 0.01,
        "weight_decay": 3e-4,
        "n_epochs": 2048,
        "steps_per_epoch": 0,
    },
    # Li et al. 2021: the SRR paper's for MVTec; 32 pictures, each under three changes, are 96.
    "paper_cutpaste": {
        "kind": "three_way",
        "head_layers": 8,
        "head_width": 512,
        "jitter": 0.1,
        "patch_jitter": 0.1,
        "min_area": 0.02,
        "max_area": 0.15,
        "scar_scale": 1.0,
        "batch_rows": 32,
        "learning_rate": 0.03,
        "weight_decay": 3e-5,
        "n_epochs": 256,
        "steps_per_epoch": 256,
    },
}


@pytest.mark.parametrize("preset", sorted(PUBLISHED_PICTURES))
def test_the_papers_hyperparameters_for_pictures(preset: str) -> None:
    config = PRESETS[preset]
    options = config.make_representation().options
    published = {**PUBLISHED_PICTURES[preset], "width": 64, "layer": 4, "optimizer": "sgd", "l2_normalise": True}
    for name, value in published.items():
        assert options[name] == value, name
    assert options["warm_up_epochs"] == 1  # the first refinement is at the end of the first epoch
    assert options["stem"] == "auto"  # 3 x 3 up to 64 pixels a side, 7 x 7 with pooling beyond
    assert (config.n_subsets, config.vote, config.removal, config.refine_rounds) == (5, "unanimous", "hard", 1)
    assert (config.classifier, config.refine, config.scorer, config.ensemble_classifier) == (
        "gde",
        "both",
        "final",
        None,
    )


def test_what_the_papers_recipes_for_pictures_share_is_in_the_networks_and_augmentations() -> None:
    assert MOMENTUM == 0.9
    assert (augmentation.SCAR_WIDTHS, augmentation.SCAR_HEIGHTS) == ((2.0, 16.0), (10.0, 25.0))
    assert (augmentation.SCAR_SIDE, augmentation.SCAR_DEGREES, augmentation.PATCH_ASPECT) == (256, 45.0, 3.3)
    net = ResNet18(3, 64, stem="usual")
    assert net.n_features == 512
    assert sum(parameter.numel() for parameter in net.parameters()) == 11_176_512  # torchvision's, without its fc
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.momentum, norm.eps) for norm in norms} == {(0.1, 1e-5)}  # 0.9 in the other way of counting


QUICK_PICTURES = {
    "width": 8,
    "head_width": 8,
    "head_layers": 1,
    "head_outputs": 4,
    "n_epochs": 2,
    "steps_per_epoch": 0,
    "warm_up_epochs": 1,
    "batch_rows": 16,
}


@pytest.mark.parametrize("preset", sorted(name for name, config in PRESETS.items() if config.takes_pictures))
def test_every_preset_of_pictures_trains_and_finds_what_is_of_another_kind(preset: str, make_pictures: Any) -> None:
    config = PRESETS[preset]
    options = dict(config.representation_options)
    known = config.make_representation().options
    options |= {name: value for name, value in QUICK_PICTURES.items() if name in known}
    pictures, _ = make_pictures(100)
    pictures[:5] = np.random.default_rng(0).integers(0, 256, size=(5, 16, 16, 1), dtype=np.uint8)
    trained = train({"image": pictures}, replace(config, representation_options=options), seed=0, device="cpu")
    assert trained.report.n_steps == (0 if preset == "pixels" else 10)
    scores = trained.model.score({"image": pictures}).score
    assert np.isfinite(scores).all()
    assert roc_auc(np.arange(100) < 5, scores) > 0.7


@pytest.mark.parametrize("preset", sorted(name for name, config in PRESETS.items() if not config.takes_pictures))
def test_every_preset_trains_and_finds_what_is_far_away(preset: str) -> None:
    config = PRESETS[preset]
    if config.representation == "goad":
        config = replace(
            config,
            representation_options={**config.representation_options, "n_transforms": 8, "n_picked": 8, "n_steps": 60},
        )
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(400, 5))
    numbers[:20] *= 8.0
    columns = {f"x{i}": numbers[:, i] for i in range(5)}
    model = train(columns, config, seed=0, device="cpu").model
    scores = model.score(columns).score
    assert np.isfinite(scores).all()
    if preset != "goad_centres":  # a row far from every centre is as far from its own as from the others: not found
        assert roc_auc(np.arange(400) < 20, scores) > 0.9
