"""Triggers: when a training is due, to the second and to the record, and that calm is not drift."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from srr_stream.triggers import ClockTrigger, CountTrigger, DriftTrigger

ALPHA = 0.005


class Clock:
    """A clock that is turned by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# Clock


def test_the_clock_is_due_when_its_time_has_passed_and_not_a_moment_before() -> None:
    clock = Clock()
    trigger = ClockTrigger(60, clock=clock)
    assert trigger.reason is None
    clock.now = math.nextafter(1060.0, 0)
    assert trigger.reason is None
    clock.now = 1060.0
    assert trigger.reason == "60 s since the last training"


def test_the_clock_stays_due_until_it_is_reset_and_then_counts_from_there() -> None:
    clock = Clock()
    trigger = ClockTrigger(60, clock=clock)
    clock.now = 5000.0
    assert trigger.reason is not None
    assert trigger.reason is not None
    trigger.reset()
    clock.now = 5059.0
    assert trigger.reason is None
    clock.now = 5060.0
    assert trigger.reason is not None


# Count


def test_the_count_is_not_due_before_it_has_seen_the_log() -> None:
    assert CountTrigger(10).reason is None


def test_the_count_begins_where_the_log_ends_at_first_sight() -> None:
    trigger = CountTrigger(10)
    trigger.update(1_000_000)
    assert trigger.reason is None


def test_the_count_is_due_at_the_record_that_makes_it_full_and_not_before() -> None:
    trigger = CountTrigger(10)
    for end in (100, 109):
        trigger.update(end)
        assert trigger.reason is None
    trigger.update(110)
    assert trigger.reason == "10 records since the last training"


def test_the_count_goes_on_from_the_end_that_it_was_reset_at() -> None:
    trigger = CountTrigger(10)
    trigger.update(100)
    trigger.update(115)
    trigger.reset()
    assert trigger.reason is None
    trigger.update(124)
    assert trigger.reason is None
    trigger.update(125)
    assert trigger.reason is not None


def test_a_count_that_is_reset_before_it_saw_the_log_still_begins_at_first_sight() -> None:
    trigger = CountTrigger(10)
    trigger.reset()
    trigger.update(500)
    assert trigger.reason is None


# Drift


def verdicts(n: int, rate: float, rng: np.random.Generator) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Verdicts of records of which the share `rate` is flagged; p-values of the others are uniform, as calibrated."""
    flagged = rng.random(n) < rate
    p = np.where(flagged, rng.uniform(1e-6, ALPHA, n), rng.uniform(ALPHA, 1.0, n))
    return flagged, np.log(p) / math.log(ALPHA)


@pytest.mark.parametrize("seed", range(5))
def test_a_stationary_stream_of_200_000_records_is_no_drift(seed: int) -> None:
    trigger = DriftTrigger()
    trigger.update(*verdicts(200_000, ALPHA, np.random.default_rng(seed)))
    assert trigger.reason is None


@pytest.mark.parametrize("seed", range(3))
def test_a_stationary_stream_whose_anomalies_come_in_bursts_is_no_drift(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, length, share = 200_000, 50, 0.03
    is_anomaly = np.convolve(rng.random(n) < share / length, np.ones(length))[:n] > 0
    _, severity = verdicts(n, ALPHA, rng)
    severity[is_anomaly] = rng.uniform(1.0, 3.0, int(is_anomaly.sum()))
    trigger = DriftTrigger()
    trigger.update(severity >= 1.0, severity)
    assert trigger.reason is None


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("rate", "within"), [(0.02, 20_000), (0.05, 6_000), (0.2, 3_000)])
def test_a_flagged_rate_that_rises_is_drift_within_so_many_records(rate: float, within: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    trigger = DriftTrigger()
    trigger.update(*verdicts(50_000, ALPHA, rng))
    assert trigger.reason is None
    trigger.update(*verdicts(within, rate, rng))
    assert trigger.reason is not None
    assert " drifted from " in trigger.reason


def test_a_severity_that_rises_below_the_boundary_is_drift_though_no_more_is_flagged() -> None:
    rng = np.random.default_rng(0)
    trigger = DriftTrigger()
    flagged, severity = verdicts(60_000, ALPHA, rng)
    severity[30_000:] = np.where(flagged[30_000:], severity[30_000:], np.minimum(severity[30_000:] * 1.5, 0.99))
    trigger.update(flagged, severity)
    assert trigger.reason is not None
    assert trigger.reason.startswith("mean severity drifted from 0.")


def test_one_wild_record_is_no_drift() -> None:
    flagged, severity = verdicts(50_000, ALPHA, np.random.default_rng(0))
    flagged[40_000], severity[40_000] = True, 1e9
    trigger = DriftTrigger()
    trigger.update(flagged, severity)
    assert trigger.reason is None
    assert trigger.statistics["mean_severity"] < 0.3


def test_the_reason_tells_of_the_first_drift_and_stays_until_reset() -> None:
    rng = np.random.default_rng(1)
    trigger = DriftTrigger()
    trigger.update(*verdicts(30_000, ALPHA, rng))
    trigger.update(*verdicts(20_000, 0.2, rng))
    first = trigger.reason
    assert first is not None
    trigger.update(*verdicts(30_000, 0.9, rng))
    assert trigger.reason == first
    trigger.reset()
    assert trigger.reason is None
    trigger.update(*verdicts(50_000, 0.9, rng))
    assert trigger.reason is None, "after a reset the new rate is the normal one"


def test_statistics_are_the_means_of_what_was_seen() -> None:
    trigger = DriftTrigger(block_size=100)
    flagged = np.tile([True, False, False, False], 1000)
    trigger.update(flagged, np.full(4000, 0.25))
    assert trigger.statistics == pytest.approx({"flagged_rate": 0.25, "mean_severity": 0.25})


@settings(max_examples=10, deadline=None)
@given(cuts=st.lists(st.integers(0, 30_000), max_size=20), seed=st.integers(0, 3))
def test_the_batches_in_which_records_arrive_do_not_matter(cuts: list[int], seed: int) -> None:
    flagged, severity = verdicts(30_000, ALPHA, np.random.default_rng(seed))
    flagged[20_000:], severity[20_000:] = True, 1.5
    whole, parts = DriftTrigger(), DriftTrigger()
    whole.update(flagged, severity)
    edges = [0, *sorted(cuts), 30_000]
    for start, stop in itertools.pairwise(edges):
        parts.update(flagged[start:stop], severity[start:stop])
    assert parts.reason == whole.reason
    assert parts.reason is not None
    assert parts.statistics == whole.statistics
