"""Data that the tests of models share: made up, seeded, small."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from models.presets import PRESETS
from models.training import Trained, TrainingConfig, train

QUICK = {
    "identity": PRESETS["default"],
    "goad": replace(PRESETS["goad"], representation_options={"n_transforms": 16, "n_steps": 150}),
}
"""A config of every representation that trains in a second."""

MakeColumns = Callable[..., tuple[dict[str, NDArray[Any]], NDArray[np.bool_]]]


def make_columns(
    n: int, *, seed: int = 0, contamination: float = 0.0, spread: float = 5.0, has_missing: bool = False
) -> tuple[dict[str, NDArray[Any]], NDArray[np.bool_]]:
    """Return correlated numbers, a 0/1 field, a category and a constant; anomalies are spread far wider."""
    rng = np.random.default_rng(seed)
    numbers = rng.normal(size=(n, 4))
    numbers[:, 1] += 2.0 * numbers[:, 0]
    is_anomaly = rng.random(n) < contamination
    numbers[is_anomaly] += spread * rng.normal(size=(int(is_anomaly.sum()), 4))
    columns: dict[str, NDArray[Any]] = {f"x{i}": numbers[:, i].copy() for i in range(4)}
    columns["bytes"] = np.exp(rng.normal(5.0, 1.0, size=n))
    columns["is_cached"] = (rng.random(n) < 0.5).astype(np.float64)
    columns["method"] = np.array(["GET", "POST", "PUT"], dtype=object)[rng.integers(3, size=n)]
    columns["constant"] = np.full(n, 7.0)
    if has_missing:
        columns["x2"][rng.random(n) < 0.1] = np.nan
        columns["method"][rng.random(n) < 0.1] = None
    return columns, is_anomaly


def make_pictures(
    n: int, *, seed: int = 0, side: int = 16, n_channels: int = 1, contamination: float = 0.0
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return noisy stripes ``(n, side, side, n_channels)`` that lie about level; those of anomalies are turned."""
    rng = np.random.default_rng(seed)
    is_anomaly = rng.random(n) < contamination
    angle = rng.normal(0.0, 0.15, size=n) + is_anomaly * rng.uniform(0.8, 1.6, size=n)
    phase = rng.uniform(0.0, 2.0 * np.pi, size=n)
    angle, phase = angle[:, None, None], phase[:, None, None]
    y, x = np.mgrid[:side, :side]
    stripes = np.sin(2.0 * np.pi * (x * np.sin(angle) + y * np.cos(angle)) / 5.0 + phase)
    pixels = 128.0 + 60.0 * stripes[..., None] + rng.normal(0.0, 12.0, size=(n, side, side, n_channels))
    return np.clip(pixels, 0.0, 255.0).astype(np.uint8), is_anomaly


def take(columns: Mapping[str, NDArray[Any]], rows: Any) -> dict[str, NDArray[Any]]:
    """Return the same columns with some of the rows."""
    return {name: column[rows] for name, column in columns.items()}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Small matrices gain nothing from threads, and on a busy machine these wait for each other."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(n_threads)


@pytest.fixture(scope="session", name="make_columns")
def _make_columns() -> MakeColumns:
    return make_columns


@pytest.fixture(scope="session", name="make_pictures")
def _make_pictures() -> Callable[..., tuple[NDArray[np.uint8], NDArray[np.bool_]]]:
    return make_pictures


@pytest.fixture(scope="session", name="take")
def _take() -> Callable[[Mapping[str, NDArray[Any]], Any], dict[str, NDArray[Any]]]:
    return take


@pytest.fixture(scope="session", params=sorted(QUICK))
def config(request: pytest.FixtureRequest) -> TrainingConfig:
    """A quick config of every representation."""
    return QUICK[request.param]


@pytest.fixture(scope="session")
def trained(config: TrainingConfig) -> Trained:
    """A model of every representation, trained on a window with 3 % anomalies and missing values."""
    columns, _ = make_columns(1500, contamination=0.03, has_missing=True)
    return train(columns, config, seed=1, device="cpu")
