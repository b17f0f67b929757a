"""The benchmarks are commands of the source tree and not installed, so the tests look for them there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Small networks gain nothing from threads, and on a busy machine these wait for each other."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture(autouse=True)
def _threads_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command limits the threads of its process, which here is that of all other tests too."""
    monkeypatch.setattr("benchmarks.runner.limit_threads", lambda n_threads: None)
