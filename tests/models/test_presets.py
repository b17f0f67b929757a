"""The published recipe is what table 1 of the paper says; what we stand for trains in a second."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.evaluation import roc_auc
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


@pytest.mark.parametrize("preset", sorted(PRESETS))
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
