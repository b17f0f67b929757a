"""Named ways to train: what we stand for, and what was published."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from models.training import TrainingConfig

_PAPER_GOAD = {
    "optimizer": "sgd",
    "n_projected": 32,
    "width": 8,
    "n_layers": 5,
    "batch_rows": 64,
    "learning_rate": 1e-3,
}
"""Table 1 of the SRR paper and its appendix A.3: momentum 0.9, L2 3e-5, all transformations in every minibatch."""


def _paper(n_transforms: int, n_steps: int) -> TrainingConfig:
    return TrainingConfig(
        representation="goad",
        representation_options={
            **_PAPER_GOAD,
            "n_transforms": n_transforms,
            "n_picked": n_transforms,
            "n_steps": n_steps,
        },
        classifier="gde",
        gamma="otsu",
        scaling="standard",
    )


def _pictures(representation: str, **options: Any) -> TrainingConfig:
    """A Gaussian on features of length 1, whose subsets have few rows for their dimensions (the paper's choice)."""
    return TrainingConfig(
        representation=representation,
        representation_options=options,
        classifier="gde",
        classifier_options={"covariance": "ledoit_wolf"},
    )


_SMALL = {"width": 16, "head_width": 128}
"""A quarter of the paper's width, at a sixteenth of its cost: minutes on a processor."""
_DEEP_ONE_CLASS = {"head_layers": 8, "learning_rate": 0.01, "weight_decay": 3e-4, "n_epochs": 2048}
"""Sohn et al., "Learning and evaluating representations for deep one-class classification" (2021)."""

_QUICK_MEMBERS = {"n_neighbors": 10, "max_rows": 250}
"""Options of a blend whose scores are only voted on: five members see more than one, so each may look at less."""

PRESETS: dict[str, TrainingConfig] = {
    # Closed form: neighbours and histograms on the fields themselves.
    "default": TrainingConfig(ensemble_options=_QUICK_MEMBERS, removal="soft", refine_rounds=2),
    # Self-supervised: GOAD as it works best on a processor, for windows whose normal rows are of many kinds.
    "goad": TrainingConfig(
        representation="goad", classifier="gde", scaling="standard", removal="soft", refine_rounds=2
    ),
    # As published for Thyroid and Arrhythmia, and for KDD and KDD-Rev: hard removal once a refresh.
    "paper": _paper(256, 2**16),
    "paper_kdd": _paper(32, 2**10),
    # Pictures, closed form: what their cells look like; the first model of a service.
    "pixels": TrainingConfig(representation="pixels", classifier="gde", removal="soft"),
    # Pictures on a processor, trained in minutes. Defects of one kind of thing:
    "cutpaste": _pictures(
        "cutpaste",
        **_SMALL,
        stem="half",
        n_epochs=20,
        warm_up_epochs=10,
        optimizer="adamw",
        learning_rate=2e-3,
        weight_decay=1e-2,
        min_area=0.005,
        max_area=0.08,
        scar_scale=2.5,
    ),
    # Things of another kind. A member sees a fifth of the pictures, which tell little of a covariance; what is kept may
    # be looked at more closely:
    "contrastive": replace(
        _pictures(
            "contrastive", **_SMALL, head_outputs=64, head_layers=2, n_epochs=4, batch_rows=64, learning_rate=0.03
        ),
        classifier_options={"shrinkage": 0.1},
        ensemble_options={"shrinkage": 0.5},
        refine_rounds=5,
    ),
    "rotation": _pictures("rotation", **_SMALL, n_epochs=8),
    "denoising_autoencoder": _pictures("denoising_autoencoder", width=16, n_epochs=30),
    "robust_autoencoder": TrainingConfig(
        representation="robust_autoencoder", representation_options={"width": 16, "n_epochs": 30}, classifier="energy"
    ),
    # As published: for a GPU.
    "paper_rotation": replace(_pictures("rotation", **_DEEP_ONE_CLASS, augment=True, batch_rows=64), gamma="otsu"),
    "paper_contrastive": replace(_pictures("contrastive", **_DEEP_ONE_CLASS, batch_rows=32), gamma="otsu"),
    "paper_cutpaste": replace(
        _pictures(
            "cutpaste",
            head_layers=8,
            learning_rate=0.03,
            weight_decay=3e-5,
            batch_rows=32,
            n_epochs=256,
            steps_per_epoch=256,
        ),
        gamma="otsu",
    ),
    # GOAD as its authors had it: distance to centres (equations 3 and 4), no refinement.
    "goad_centres": TrainingConfig(
        representation="goad",
        representation_options={"head": "centres"},
        classifier="centres",
        scaling="standard",
        refine="none",
    ),
}
