"""Our detectors as the benchmarks make them: presets by name, options that change one thing, all in the key."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import ours
from benchmarks.methods import METHODS, Context, fit, options_of
from benchmarks.paper import ALL_METHODS, BEST


def rows() -> np.ndarray:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 4)).astype(np.float32)
    X[:6] += 6.0
    return X


@pytest.mark.parametrize("name", ["srr", "srr_unrefined", "raw", "raw_srr", "goad", "goad_srr", "best"])
def test_our_methods_score_what_is_far_away_higher(name: str) -> None:
    context = Context(dataset="thyroid", gamma=0.04, n_steps=8)
    scores = fit(ALL_METHODS[name], rows(), 0, context)(rows())
    assert np.isfinite(scores).all()
    assert scores[:6].mean() > scores[6:].mean()


def test_a_configuration_is_part_of_the_key_and_steps_go_to_the_representation() -> None:
    few = options_of(METHODS["goad_srr"], Context(gamma=0.03, n_steps=8))
    many = options_of(METHODS["goad_srr"], Context(gamma=0.03, n_steps=9))
    assert few["config"]["representation_options"]["n_steps"] == 8
    assert few != many
    assert few["config"]["gamma"] == 0.03
    assert options_of(METHODS["goad_otsu"], Context(gamma=0.03))["config"]["gamma"] == "otsu"


def test_changes_win_over_what_a_method_fixes() -> None:
    config = METHODS["goad_srr"].config
    assert config is not None
    assert config(Context(gamma=0.1)).refine == "both"
    assert config(Context(gamma=0.1, changes={"refine": "none", "n_subsets": 2})).refine == "none"


def test_every_best_preset_can_be_made() -> None:
    for name in BEST:
        config = ALL_METHODS["best"].config
        assert config is not None
        assert config(Context(dataset=name, gamma=0.05)).gamma == 0.05


def test_hyperparameters_have_the_representations_defaults_too() -> None:
    found = ours.hyperparameters("goad")
    assert found["n_transforms"] > 0
    assert found["n_subsets"] == 5


def test_refreshes_tell_which_rows_were_judged() -> None:
    seen = []
    X = rows()
    config = ours.config("goad", n_steps=8, gamma=0.04, calibration_ratio=0.1)
    ours.trained(X, 0, config, lambda progress: seen.append(ours.refresh_of(progress, len(X))))
    refreshes = [refresh for refresh in seen if refresh is not None]
    assert refreshes
    kept = refreshes[-1]["kept"]
    assert np.isnan(kept).sum() == 30
    assert 0.0 < np.mean(kept[~np.isnan(kept)] == 0.0) == pytest.approx(refreshes[-1]["excluded_ratio"])
