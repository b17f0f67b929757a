"""The benchmarks are commands of the source tree and not installed, so the tests look for them there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))


@pytest.fixture(autouse=True)
def _threads_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command limits the threads of its process, which here is that of all other tests too."""
    monkeypatch.setattr("benchmarks.runner.limit_threads", lambda n_threads: None)
