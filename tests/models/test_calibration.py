from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.calibration import Calibration, calibrate


def normal_scores(n: int, seed: int, d: int = 8) -> np.ndarray:
    """Negative log densities of standard normal rows, up to a constant."""
    return 0.5 * np.square(np.random.default_rng(seed).normal(size=(n, d))).sum(axis=1)


def below_quantile(scores: np.ndarray, share: float) -> np.ndarray:
    """What an ensemble that rejects the highest `1 - share` keeps."""
    return scores <= np.quantile(scores, share)


@pytest.mark.parametrize("kept_share", [0.8, 0.9, 0.99, 1.0])
def test_clean_scores_are_flagged_at_the_false_alarm_rate_however_many_were_rejected(kept_share: float) -> None:
    rates = []
    for seed in range(8):
        scores = normal_scores(2000, seed)
        calibration = calibrate(scores, below_quantile(scores, kept_share))
        rates.append(float(np.mean(calibration.log_p(normal_scores(20000, seed + 100)) <= np.log(0.005))))
    assert 0.0025 <= np.mean(rates) <= 0.01


@pytest.mark.parametrize("contamination", [0.02, 0.05, 0.1])
def test_anomalies_among_the_held_out_rows_do_not_raise_the_threshold(contamination: float) -> None:
    caught, false_alarms = [], []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        scores = normal_scores(2000, seed)
        scores[: round(contamination * 2000)] = rng.uniform(40.0, 400.0, size=round(contamination * 2000))
        calibration = calibrate(scores, below_quantile(scores, 1.0 - 1.8 * contamination))
        caught.append(float(np.mean(calibration.log_p(rng.uniform(40.0, 400.0, size=2000)) <= np.log(0.005))))
        false_alarms.append(float(np.mean(calibration.log_p(normal_scores(20000, seed + 100)) <= np.log(0.005))))
    assert np.mean(caught) > 0.95
    assert np.mean(false_alarms) < 0.01


def test_no_more_than_the_given_share_is_left_out_as_anomalous() -> None:
    scores = normal_scores(2000, 0)
    scores[:200] += 300.0  # a rare kind of normal records, as far as a label-free method can know
    kept = below_quantile(scores, 0.9)
    free, bounded = calibrate(scores, kept), calibrate(scores, kept, max_anomalous_ratio=0.02)
    assert free.log_p(np.array([300.0]))[0] < np.log(0.005)
    assert bounded.log_p(np.array([300.0]))[0] > np.log(0.05)


def test_equal_scores_flag_nothing() -> None:
    scores = np.full(300, 2.5)
    calibration = calibrate(scores, np.ones(300, dtype=bool))
    np.testing.assert_array_equal(calibration.log_p(scores), 0.0)


def test_nothing_kept_still_gives_a_calibration() -> None:
    scores = normal_scores(50, 0)
    calibration = calibrate(scores, np.zeros(50, dtype=bool))
    assert np.isfinite(calibration.log_p(scores)).all()


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200),
    st.lists(st.floats(-1e9, 1e300), min_size=2, max_size=50),
    st.integers(0, 9),
)
@settings(max_examples=100, deadline=None)
def test_log_p_is_finite_at_most_0_and_never_rises(held_out: list[float], new: list[float], seed: int) -> None:
    scores = np.array(held_out)
    kept = np.random.default_rng(seed).random(len(scores)) < 0.9
    log_p = calibrate(scores, kept).log_p(np.sort(np.array(new)))
    assert np.isfinite(log_p).all()
    assert (log_p <= 0).all()
    assert (np.diff(log_p) <= 1e-12).all()


def test_beyond_the_largest_score_p_still_falls() -> None:
    scores = normal_scores(500, 0)
    log_p = calibrate(scores, np.ones(500, dtype=bool)).log_p(np.array([1e2, 1e4, 1e8, 1e16]))
    assert (np.diff(log_p) < 0).all()


@pytest.mark.parametrize("p_value", [0.9, 0.3, 0.01, 0.005, 1e-9])
def test_the_score_at_a_p_value_has_that_p_value(p_value: float) -> None:
    scores = normal_scores(1000, 0)
    calibration = calibrate(scores, np.ones(1000, dtype=bool))
    assert np.exp(calibration.log_p(np.array([calibration.score_at(p_value)])))[0] == pytest.approx(p_value, rel=0.02)


def test_a_copy_from_its_state_says_the_same() -> None:
    scores = normal_scores(300, 0)
    calibration = calibrate(scores, np.ones(300, dtype=bool))
    np.testing.assert_array_equal(Calibration.from_state(calibration.state()).log_p(scores), calibration.log_p(scores))


def test_a_state_out_of_range_is_refused() -> None:
    state = calibrate(normal_scores(300, 0), np.ones(300, dtype=bool)).state()
    state.values["scale"] = -1.0
    with pytest.raises(ValueError, match="out of range"):
        Calibration.from_state(state)
