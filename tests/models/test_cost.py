"""What refinement and training cost, on two cores: bounds with room, since a machine may be busy."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest

from models.occ.gde import GDE
from models.presets import PRESETS
from models.refinement import refine
from models.training import train

pytestmark = pytest.mark.slow


def refine_seconds(n: int) -> float:
    Z = np.random.default_rng(0).standard_normal((n, 32), dtype=np.float32)
    Z[: n // 20] *= 4.0
    started = time.perf_counter()
    refine(Z, GDE, n_subsets=5, gamma=0.1, rng=np.random.default_rng(0))
    return time.perf_counter() - started


def test_refining_a_million_rows_takes_seconds_and_grows_with_them() -> None:
    refine_seconds(10_000)
    quarter, whole = refine_seconds(250_000), refine_seconds(1_000_000)
    assert whole < 6.0
    assert whole < 8.0 * quarter


def test_refining_a_million_rows_needs_less_than_a_gibibyte_beside_them() -> None:
    Z = np.random.default_rng(0).standard_normal((1_000_000, 32), dtype=np.float32)
    tracemalloc.start()
    try:
        refine(Z, GDE, n_subsets=5, gamma=0.1, rng=np.random.default_rng(0))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**30


@pytest.mark.parametrize(("preset", "limit_s"), [("goad", 90.0), ("default", 20.0)])
def test_a_window_of_100_000_records_of_121_columns_is_trained_in_time(preset: str, limit_s: float) -> None:
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(100_000, 34)) * np.where(rng.random((100_000, 1)) < 0.05, 4.0, 1.0)
    bits = rng.random((100_000, 87)) < rng.random(87) * 0.3
    columns = {f"x{i}": numbers[:, i] for i in range(34)} | {f"b{i}": bits[:, i].astype(np.float64) for i in range(87)}
    started = time.perf_counter()
    train(columns, PRESETS[preset], seed=0, device="cpu")
    assert time.perf_counter() - started < limit_s
