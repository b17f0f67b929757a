"""What a CUDA device brings: minibatches a second in training, and pictures a second in scoring, beside the processor.

The rows are made up: only their shapes count. Both devices train the same representation on the same rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import Table
from benchmarks.speed.pairs import Claim, Run, interleaved, parser, quartiles, rate, ratio, shown

N_FIELDS = 121
"""As many columns as KDD has."""
_TRAININGS = (
    ("goad", 100_000, 512),
    ("paper", 100_000, 64),
    ("cutpaste", 2_000, 16),
    ("contrastive", 2_000, 16),
    ("paper_contrastive", 2_000, 4),
)
"""Preset, rows, and minibatches in a turn on the processor; on the device ten times as many."""


def main(arguments: Sequence[str]) -> int:
    cli = parser("gpu", __doc__, n_rounds=3)
    options = cli.parse_args(arguments)
    import torch

    if not torch.cuda.is_available():
        cli.error("needs a CUDA device, and PyTorch sees none")
    run = Run("gpu", arguments, out=options.out)
    claims: list[Claim] = []
    rows: list[list[str]] = []
    bars: dict[str, float] = {}

    def compare(what: str, unit: str, on: Callable[[str], Callable[[], float]]) -> None:
        figures = interleaved({device: on(device) for device in ("cpu", "cuda")}, n_rounds=options.rounds)
        rows.append([what, unit, *(shown(quartiles(figures[device])[1]) for device in ("cpu", "cuda"))])
        claims.append(ratio(what, figures["cuda"], figures["cpu"], f"the same on {torch.get_num_threads()} cores", 1.0))
        bars[what] = claims[-1].value

    for preset, n_rows, n_steps in _TRAININGS:
        compare(f"train {preset}", "minibatches/s", partial(training, preset, n_rows, n_steps))
    for width in (16, 64):
        compare(f"score 32 x 32 pictures, width {width}", "pictures/s", partial(scoring, width))
    device = torch.cuda.get_device_name(0)
    return run.finish(
        f"On a GPU: {device}",
        claims,
        [Table("Rates", ["", "unit", "processor", "GPU"], rows)],
        bars={f"times the processor, {device}": bars},
        notes=[f"GPU: {device}, PyTorch {torch.__version__}"],
    )


def rows_of(preset: str, n: int) -> NDArray[Any]:
    """Return made-up rows of the kind that a preset takes: fields, or 32 x 32 pictures."""
    from models.presets import PRESETS

    rng = np.random.default_rng(0)
    if PRESETS[preset].takes_pictures:
        return rng.integers(0, 256, size=(n, 32, 32, 3), dtype=np.uint8)
    return rng.normal(size=(n, N_FIELDS)).astype(np.float32)


def training(preset: str, n_rows: int, n_steps: int, device: str) -> Callable[[], float]:
    """Return what trains for some minibatches more, and returns how many a second."""
    import torch

    from models.presets import PRESETS

    X = rows_of(preset, n_rows)
    representation = PRESETS[preset].make_representation()
    representation.fit(X, np.random.default_rng(0), device=device)
    n = n_steps * (10 if device == "cuda" else 1)

    def turn() -> float:
        started = time.perf_counter()
        representation.update(X, n)
        if device == "cuda":
            torch.cuda.synchronize()
        return n / (time.perf_counter() - started)

    return turn


def scoring(width: int, device: str) -> Callable[[], float]:
    """Return what embeds pictures in batches as a scorer does, and returns how many a second."""
    from models.representations import REPRESENTATIONS

    X = rows_of("contrastive", 2048)
    contrastive: Any = REPRESENTATIONS["contrastive"]
    representation = contrastive(width=width, n_epochs=1)
    representation.fit(X[:64], np.random.default_rng(0), device="cpu").update(X[:64], 1)
    on = representation.on(device, None)
    n = len(X) if device == "cuda" else max(256, len(X) * 16 // width // 4)
    return lambda: rate(lambda: on.embed(X[:n]), n)
