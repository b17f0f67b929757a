"""Pictures into arrays, beside Pillow alone on as many threads: ``python -m benchmarks.decoding``.

Both decode the same files in turn, the one and the other first, and are compared pair by pair: what else the machine
does meets both.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from itertools import islice, pairwise
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from consumers.images import ImagePool, n_cores
from consumers.records import ImageSpec
from consumers.sources.image_files import read_npz

CIFAR = "cifar10_test_jpeg.npz"
"""In ``$SRR_DATA_DIR``; without it pictures of the same size and about the same number of bytes are made."""


@dataclass(frozen=True)
class Task:
    """Files that are to become arrays of one size."""

    name: str
    files: list[bytes]
    spec: ImageSpec


def main(arguments: Sequence[str] | None = None) -> int:
    cli = argparse.ArgumentParser(prog="python -m benchmarks.decoding", description=__doc__)
    cli.add_argument("--n", type=int, default=2048, help="Pictures of 32 × 32 a round; of larger ones fewer (2048).")
    cli.add_argument("--batch", type=int, default=128, help="Pictures decoded together, as in a poll (128).")
    cli.add_argument("--pairs", type=int, default=15, help="How often each is timed (15).")
    cli.add_argument("--threads", type=int, default=2, help="Threads of both (2).")
    cli.add_argument(
        "--largest", action="store_true", help="Instead: time and memory of the costliest pictures allowed."
    )
    options = cli.parse_args(arguments)
    if options.largest:
        print_largest()
        return 0
    print(f"{options.threads} threads on {n_cores()} cores, batches of {options.batch}, {options.pairs} pairs")
    print("| pictures | srr-stream, pictures/s | Pillow alone | ratio, median of pairs | quartiles |")
    print("|---|---|---|---|---|")
    for task in tasks(options.n):
        ours, pillow = compared(task, options.batch, options.pairs, options.threads)
        low, middle, high = np.quantile(ours / pillow, (0.25, 0.5, 0.75))
        rates = f"{np.median(ours):,.0f} | {np.median(pillow):,.0f}"
        print(f"| {task.name} | {rates} | {middle:.2f} | {low:.2f} to {high:.2f} |")
    return 0


def print_largest() -> None:
    """Decode a picture of as many pixels as are allowed, of every kind, each in a process of its own."""
    picture = PIL.Image.new("RGBA", (4096, 4096), (200, 100, 50, 128))
    picture.paste((0, 0, 0, 255), (0, 0, 2048, 2048))
    deep = PIL.Image.fromarray(np.zeros((4096, 4096), dtype=np.uint16))
    opaque, palette = picture.convert("RGB"), picture.convert("RGB").quantize(16)
    print("| 4096 × 4096 to 64 × 64 | bytes | s | peak MiB |\n|---|---|---|---|")
    for name, image, kind, options in (
        ("JPEG", opaque, "JPEG", {}),
        ("JPEG, progressive", opaque, "JPEG", {"progressive": True, "subsampling": 0}),
        ("JPEG, progressive, CMYK", picture.convert("CMYK"), "JPEG", {"progressive": True}),
        ("PNG", opaque, "PNG", {}),
        ("PNG, 16 bits", deep, "PNG", {}),
        ("PNG, transparent", picture, "PNG", {}),
        ("PNG, transparent palette", palette, "PNG", {"transparency": 0}),
        ("WebP", picture, "WEBP", {"method": 0}),
        ("WebP, lossless", picture, "WEBP", {"method": 0, "lossless": True}),
    ):
        file = BytesIO()
        image.save(file, kind, **options)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            seconds, n_bytes = process.submit(cost, file.getvalue()).result()
        print(f"| {name} | {len(file.getvalue()):,} | {seconds:.2f} | {n_bytes / 2**20:.0f} |")


def cost(data: bytes) -> tuple[float, int]:
    """Return the seconds that decoding takes, and by how many bytes this process grew at its peak."""
    pool = ImagePool(ImageSpec(64, 64))
    pool.decode(made(1, (8, 8), "PNG") + made(1, (8, 8), "JPEG") + made(1, (8, 8), "WEBP"))  # loads the codecs
    before = peak()
    start = time.perf_counter()
    pool.decode([data])
    seconds = time.perf_counter() - start
    return seconds, peak() - before


def peak() -> int:
    """Return the most bytes that this process ever had in memory; ``ru_maxrss`` begins with those of its parent."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])


def tasks(n: int) -> list[Task]:
    """Return what is decoded: CIFAR-10 as JPEG, and made pictures as cameras and screens write them."""
    folder = os.environ.get("SRR_DATA_DIR")
    path = Path(folder, CIFAR) if folder else None
    if path is not None and path.is_file():
        small = Task("CIFAR-10, JPEG 32 × 32", list(islice(read_npz(path), n)), ImageSpec(32, 32))
    else:
        small = Task("made, JPEG 32 × 32", made(n, (32, 32), "JPEG"), ImageSpec(32, 32))
    few, very_few = max(1, n // 16), max(1, n // 128)
    return [
        small,
        Task("made, PNG 28 × 28, grey", made(n // 2, (28, 28), "PNG", mode="L"), ImageSpec(28, 28, "grey")),
        Task("made, JPEG 224 × 224", made(few, (224, 224), "JPEG"), ImageSpec(224, 224)),
        Task("made, JPEG 640 × 480 to 64 × 64", made(few, (640, 480), "JPEG"), ImageSpec(64, 64)),
        Task("made, JPEG 4000 × 3000 to 224 × 224", made(very_few, (4000, 3000), "JPEG"), ImageSpec(224, 224)),
        Task("made, WebP 640 × 480 to 64 × 64", made(few, (640, 480), "WEBP"), ImageSpec(64, 64)),
    ]


def made(n: int, size: tuple[int, int], kind: str, mode: str = "RGB") -> list[bytes]:
    """Return the files of `n` smooth pictures; at most 64 different ones."""
    rng, files = np.random.default_rng(0), []
    for _ in range(min(n, 64)):
        picture = PIL.Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).convert(mode)
        file = BytesIO()
        picture.resize(size, PIL.Image.Resampling.BICUBIC).save(file, kind)
        files.append(file.getvalue())
    return [files[i % len(files)] for i in range(n)]


def compared(task: Task, batch: int, n_pairs: int, n_threads: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the pictures a second of every pair, ours and Pillow's."""
    pool = ImagePool(task.spec, n_threads=n_threads)
    with ThreadPoolExecutor(n_threads) as threads:

        def ours(files: list[bytes]) -> object:
            return pool.decode(files)

        def pillow(files: list[bytes]) -> object:
            edges = [len(files) * i // n_threads for i in range(n_threads + 1)]
            parts = [files[start:stop] for start, stop in pairwise(edges)]
            return list(threads.map(lambda part: [with_pillow(data, task.spec) for data in part], parts))

        rates: dict[Callable[[list[bytes]], object], list[float]] = {ours: [], pillow: []}
        for pair in range(-1, n_pairs):  # the first one warms up
            for decode in (ours, pillow) if pair % 2 else (pillow, ours):
                start = time.perf_counter()
                for at in range(0, len(task.files), batch):
                    decode(task.files[at : at + batch])
                if pair >= 0:
                    rates[decode].append(len(task.files) / (time.perf_counter() - start))
    return np.array(rates[ours]), np.array(rates[pillow])


def with_pillow(data: bytes, spec: ImageSpec) -> NDArray[np.uint8]:
    """Decode as one does without this project: nothing is checked, and nothing is missing."""
    image = PIL.Image.open(BytesIO(data)).convert("L" if spec.mode == "grey" else "RGB")
    if image.size != (spec.width, spec.height):
        image = image.resize((spec.width, spec.height), PIL.Image.Resampling.BILINEAR)
    return np.asarray(image)


if __name__ == "__main__":
    sys.exit(main())
