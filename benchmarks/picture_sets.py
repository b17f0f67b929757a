"""Picture sets by name, one class normal and the others anomalies: who trains on which pictures.

The paper's protocol (section 4.1): the training set is the normal class's, a share of it swapped for pictures of the
others. Labels decide splits, never a fit.
"""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.datasets import DatasetMissing
from srr_stream.data.fashion_mnist import CLASSES as FASHION

CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MVTEC = (
    "bottle",
    "cable",
    "capsule",
    "hazelnut",
    "metal_nut",
    "pill",
    "screw",
    "toothbrush",
    "transistor",
    "zipper",
    "carpet",
    "grid",
    "leather",
    "tile",
    "wood",
)
CLASSES: dict[str, tuple[str, ...]] = {
    "fashion-mnist": FASHION,
    "cifar10": CIFAR,
    "boards": ("boards",),
    "mvtec": MVTEC,
    "dog-vs-cat": ("dog", "cat"),
}
SOURCES = {
    "fashion-mnist": "https://github.com/zalandoresearch/fashion-mnist, as fashion_mnist_{train,test}.npz (X, label)",
    "cifar10": "https://www.cs.toronto.edu/~kriz/cifar.html, as cifar10_{train,test}_jpeg.npz (blob, offset, label)",
    "boards": "https://github.com/tangsanli5201/DeepPCB, as deeppcb_patches.npz (X, y, source_image)",
    "mvtec": "https://www.mvtec.com/company/research/datasets/mvtec-ad, unpacked into the folder mvtec",
    "dog-vs-cat": "https://www.microsoft.com/download/details.aspx?id=54765, into the folders dog-vs-cat/{Dog,Cat}",
}
_FILES = (".png", ".jpg", ".jpeg")

Pictures = NDArray[np.uint8]


@dataclass(frozen=True)
class PictureSplit:
    """Pictures ``(n, h, w, channels)`` to train and to test on, with labels ``(n,)`` that are for measuring only."""

    train: Pictures
    train_is_anomaly: NDArray[np.bool_]
    test: Pictures
    test_is_anomaly: NDArray[np.bool_]

    @property
    def counts(self) -> dict[str, int]:
        """How many rows of each kind there are, for the records."""
        return {
            "n_train": len(self.train),
            "n_train_anomalies": int(self.train_is_anomaly.sum()),
            "n_test": len(self.test),
            "n_test_anomalies": int(self.test_is_anomaly.sum()),
        }


@dataclass(frozen=True)
class Pool:
    """All pictures of one class against the rest, before anything is drawn: four groups."""

    train_normal: Pictures
    train_anomalous: Pictures
    test_normal: Pictures
    test_anomalous: Pictures
    is_swapped_from_test: bool = False
    """Anomalies that train are taken out of the test set (MVTec, which has no others)."""


def load_split(
    dataset: str,
    class_name: str,
    ratio: float,
    seed: int,
    *,
    n_train: int | None = None,
    n_test: int | None = None,
    side: int | None = None,
) -> PictureSplit:
    """Return the split of a class at a ratio of anomalies.

    A higher ratio swaps more anomalies in and changes nothing else, for one seed.

    Parameters
    ----------
    n_train
        Pictures that train, anomalies among them; None: all of the normal class.
    n_test
        At most so many normal and so many anomalous pictures test; None: all.
    side
        Of the pictures, in pixels, for sets that come in another size.

    Raises
    ------
    DatasetMissing
        If the files are not here; says where they are to be had.
    ValueError
        If there are not enough anomalies for the ratio.
    """
    rng = np.random.default_rng(seed)
    pool = _POOLS[dataset](class_name, seed, side)
    normal, anomalous = rng.permutation(len(pool.train_normal)), rng.permutation(len(pool.train_anomalous))
    size = min(n_train or len(normal), len(normal))
    n_swapped = round(ratio * size)
    if n_swapped > len(anomalous):
        raise ValueError(f"ratio {ratio:g} needs {n_swapped} anomalies; {dataset} {class_name} has {len(anomalous)}")
    train = [pool.train_normal[normal[: size - n_swapped]], pool.train_anomalous[anomalous[:n_swapped]]]
    is_anomaly = np.arange(size) >= size - n_swapped
    order = rng.permutation(size)
    test_anomalous = pool.test_anomalous
    if pool.is_swapped_from_test:
        test_anomalous = pool.train_anomalous[anomalous[n_swapped:]]
    parts = [part[rng.permutation(len(part))[:n_test]] for part in (pool.test_normal, test_anomalous)]
    return PictureSplit(
        np.concatenate(train)[order],
        is_anomaly[order],
        np.concatenate(parts),
        np.repeat([False, True], [len(part) for part in parts]),
    )


def _fashion(class_name: str, seed: int, side: int | None) -> Pool:
    """28 pixels become 32 by two zeros on every side, as in the paper."""
    return _by_label(_fashion_file("train"), _fashion_file("test"), FASHION.index(class_name))


@lru_cache(maxsize=2)
def _fashion_file(part: str) -> tuple[Pictures, NDArray[Any]]:
    with np.load(_path(f"fashion_mnist_{part}.npz", "fashion-mnist"), allow_pickle=False) as arrays:
        return np.pad(arrays["X"], ((0, 0), (2, 2), (2, 2)))[..., None], arrays["label"]


def _cifar(class_name: str, seed: int, side: int | None) -> Pool:
    return _by_label(_cifar_file("train"), _cifar_file("test"), CIFAR.index(class_name))


@lru_cache(maxsize=2)
def _cifar_file(part: str) -> tuple[Pictures, NDArray[Any]]:
    with np.load(_path(f"cifar10_{part}_jpeg.npz", "cifar10"), allow_pickle=False) as arrays:
        blob, offset = arrays["blob"], arrays["offset"]
        files = [blob[a:b].tobytes() for a, b in itertools.pairwise(offset)]
        return np.stack([_decoded(file, None) for file in files]), arrays["label"]


def _by_label(train: tuple[Pictures, NDArray[Any]], test: tuple[Pictures, NDArray[Any]], label: int) -> Pool:
    groups = [X[(labels == label) == is_normal] for X, labels in (train, test) for is_normal in (True, False)]
    return Pool(*groups)


def _boards(class_name: str, seed: int, side: int | None) -> Pool:
    """Half of the source pictures train, the other half test, so that no board is on both sides."""
    with np.load(_path("deeppcb_patches.npz", "boards"), allow_pickle=False) as arrays:
        X, is_anomaly, source = arrays["X"], arrays["y"].astype(bool), arrays["source_image"]
    sources = np.random.default_rng([seed, 1]).permutation(np.unique(source))
    is_train = np.isin(source, sources[: len(sources) // 2])
    groups = [X[(is_train == train) & (is_anomaly != normal)] for train in (True, False) for normal in (True, False)]
    return Pool(*groups)


def _mvtec(class_name: str, seed: int, side: int | None) -> Pool:
    """Defects that train come out of the test set: the set has no others."""
    folder = _folder("mvtec") / class_name
    train = _read_folder(folder / "train" / "good", side)
    good = _read_folder(folder / "test" / "good", side)
    defects = [path for path in sorted((folder / "test").iterdir()) if path.is_dir() and path.name != "good"]
    bad = np.concatenate([_read_folder(path, side) for path in defects])
    return Pool(train, bad, good, bad, is_swapped_from_test=True)


def _dog_vs_cat(class_name: str, seed: int, side: int | None) -> Pool:
    """Half of each kind trains, drawn at random."""
    rng = np.random.default_rng([seed, 1])
    halves = []
    for name in (class_name, "cat" if class_name == "dog" else "dog"):
        pictures = _read_folder(_folder("dog-vs-cat") / name.capitalize(), side)
        order = rng.permutation(len(pictures))
        halves.append((pictures[order[: len(order) // 2]], pictures[order[len(order) // 2 :]]))
    (normal, test_normal), (anomalous, test_anomalous) = halves
    return Pool(normal, anomalous, test_normal, test_anomalous)


def _read_folder(folder: Path, side: int | None) -> Pictures:
    if not folder.is_dir():
        raise DatasetMissing(f"there is no folder {folder}; source: {SOURCES['mvtec']}; {SOURCES['dog-vs-cat']}")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _FILES)
    return np.stack([_decoded(path.read_bytes(), side) for path in files])


def _decoded(file: bytes, side: int | None) -> Pictures:
    from PIL import Image

    image = Image.open(io.BytesIO(file)).convert("RGB")
    if side is not None and image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(image)


def _folder(name: str) -> Path:
    folder = Path(os.environ.get("SRR_DATA_DIR", "")) / name
    if not os.environ.get("SRR_DATA_DIR") or not folder.is_dir():
        raise DatasetMissing(f"folder {name} is not in SRR_DATA_DIR; source: {SOURCES[name]}")
    return folder


def _path(file: str, origin: str) -> Path:
    path = Path(os.environ.get("SRR_DATA_DIR", "")) / file
    if not os.environ.get("SRR_DATA_DIR") or not path.is_file():
        raise DatasetMissing(f"{file} is not in SRR_DATA_DIR; source: {SOURCES[origin]}")
    return path


_POOLS: dict[str, Callable[[str, int, int | None], Pool]] = {
    "fashion-mnist": _fashion,
    "cifar10": _cifar,
    "boards": _boards,
    "mvtec": _mvtec,
    "dog-vs-cat": _dog_vs_cat,
}
