"""Named ways to train: what we stand for, and what was published."""

from __future__ import annotations

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
    # GOAD as its authors had it: distance to centres (equations 3 and 4), no refinement.
    "goad_centres": TrainingConfig(
        representation="goad",
        representation_options={"head": "centres"},
        classifier="centres",
        scaling="standard",
        refine="none",
    ),
}
