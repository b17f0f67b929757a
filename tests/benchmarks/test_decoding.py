"""The benchmark of decoding runs, on made pictures too, and both sides decode the same."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import decoding
from consumers.images import decode_image


def test_it_prints_a_line_for_every_kind_of_picture(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SRR_DATA_DIR", raising=False)
    assert decoding.main(["--n", "4", "--pairs", "1", "--batch", "2"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| made")]
    assert len(lines) == 6
    assert lines[0].startswith("| made, JPEG 32 × 32 |")


def test_both_sides_decode_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SRR_DATA_DIR", raising=False)
    for task in decoding.tasks(2)[:3]:
        ours = decode_image(task.files[0], task.spec)
        assert np.array_equal(np.squeeze(ours), decoding.with_pillow(task.files[0], task.spec))
