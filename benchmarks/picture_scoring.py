"""How many 32 x 32 pictures a second an encoder embeds, beside plain PyTorch: ``python -m benchmarks.picture_scoring``.

Every way takes the same pictures in the same batches and gives the same features; ways take turns, so that what else
the machine does hits all alike.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import ours, report
from benchmarks.report import Table, number
from benchmarks.runner import OUT, commit, limit_threads, machine, whole

Way = Callable[[NDArray[np.uint8]], NDArray[Any]]
BATCH_ROWS = 64
ONNX, EAGER = "ONNX Runtime", "eager PyTorch"


def main(arguments: Sequence[str] | None = None) -> int:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--threads", type=whole, default=2, help="Threads of every way (default 2).")
    cli.add_argument("--pairs", type=whole, default=15, help="How often every way has its turn (default 15).")
    cli.add_argument("--pictures", type=whole, default=1024, help="Pictures in a turn (default 1024).")
    cli.add_argument("--compile", action="store_true", help="Also torch.compile, which needs a C++ compiler.")
    cli.add_argument("--out", type=Path, default=OUT, help=f"Write JSON and Markdown here (default {OUT}).")
    options = cli.parse_args(arguments)
    limit_threads(options.threads)
    started = datetime.now(UTC)
    clock = time.perf_counter()
    rows = []
    for width, channels in ((16, 1), (16, 3), (64, 3)):
        n = options.pictures if width < 64 else max(BATCH_ROWS, options.pictures // 8)
        pictures = np.random.default_rng(0).integers(0, 256, size=(n, 32, 32, channels), dtype=np.uint8)
        ways = made(width, channels, options.threads, with_compile=options.compile)
        rows += [[f"{width}", str(channels), *cells] for cells in compared(ways, pictures, options.pairs)]
    columns = ["width", "channels", "way", "pictures/s", "times eager, median of the turns", "largest difference"]
    table = Table("ResNet-18 on 32 x 32 pictures, full resolution", columns, rows)
    summary = report.Summary(
        name="picture-scoring",
        title="Scoring pictures on a processor",
        command=" ".join(["python -m benchmarks.picture_scoring", *sys.argv[1:]]),
        started=started.isoformat(timespec="seconds"),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        wall_s=time.perf_counter() - clock,
        commit=commit(),
        code=ours.code_digest(),
        machine=machine(options.threads),
        tables=[table],
        notes=["The service's way is ONNX Runtime; largest difference: of any feature, over the largest feature."],
    )
    report.show(table)
    options.out.mkdir(parents=True, exist_ok=True)
    report.write(summary, options.out)
    return 0


def made(width: int, channels: int, n_threads: int, *, with_compile: bool) -> dict[str, Way]:
    """Return ways to embed by the same network, of which the first is plain PyTorch."""
    import torch

    from models.nets.inference import Encoder
    from models.nets.resnet import ResNet18
    from models.nets.visual_training import to_images

    torch.manual_seed(0)
    net = ResNet18(channels, width, stem="full")
    with torch.no_grad():  # statistics of batch norms as after a training, not their initial 0 and 1
        for _ in range(4):
            net(torch.rand(64, channels, 32, 32))
    net.eval()
    device = torch.device("cpu")

    def by(forward: Callable[[torch.Tensor], torch.Tensor], layout: torch.memory_format, *, is_half: bool) -> Way:
        def embed(X: NDArray[np.uint8]) -> NDArray[Any]:
            parts = []
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=is_half):
                for start in range(0, len(X), BATCH_ROWS):
                    images = to_images(X[start : start + BATCH_ROWS], device).contiguous(memory_format=layout)
                    parts.append(forward(images).float().numpy())
            return np.concatenate(parts)

        return embed

    plain, last = torch.contiguous_format, torch.channels_last
    encoder = Encoder.of_resnet(
        net, (32, 32, channels), n_stages=4, l2_normalise=False, backend="onnxruntime", n_threads=n_threads
    )
    ways: dict[str, Way] = {
        EAGER: by(net, plain, is_half=False),
        "eager, channels last": by(net, last, is_half=False),
        "eager, channels last, bfloat16": by(net, last, is_half=True),
        ONNX: encoder.embed,
    }
    if with_compile:
        ways["torch.compile"] = by(torch.compile(net), plain, is_half=False)
    return ways


def compared(ways: dict[str, Way], pictures: NDArray[np.uint8], n_pairs: int) -> list[list[str]]:
    """Return for each way its pictures a second, in times the first one's, and how far its features differ."""
    results = {name: embed(pictures) for name, embed in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(n_pairs):
        for name, embed in ways.items():
            started = time.perf_counter()
            embed(pictures)
            seconds[name].append(time.perf_counter() - started)
    first = np.array(seconds[next(iter(ways))])
    reference = results[next(iter(ways))]
    return [
        [
            name,
            number(len(pictures) / float(np.median(seconds[name])), 0),
            number(float(np.median(first / np.array(seconds[name]))), 2),
            f"{float(np.abs(results[name] - reference).max() / np.abs(reference).max()):.1e}",
        ]
        for name in ways
    ]


if __name__ == "__main__":
    sys.exit(main())
