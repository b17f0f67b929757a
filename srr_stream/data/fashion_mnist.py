"""Fashion-MNIST as a stream: one class is normal, a few of the others are among it. Fetched once, not shipped."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import os
import urllib.error
import urllib.request
import uuid
import zipfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from consumers.errors import SourceError
from consumers.records import ImageSpec
from srr_stream.data import Dataset

CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")
"""Names of the set's numbers."""
URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
CHECKSUMS = {IMAGES: "8d4fb7e6c68d591d4c3dfef9ec88bf0d", LABELS: "25c81989df183df01b3e8a0aad5dffbe"}
"""MD5, as published by the set's authors: https://github.com/zalandoresearch/fashion-mnist"""
RAW = "fashion_mnist_train.npz"
"""The file in $SRR_DATA_DIR: arrays `X`, ``(n, 28, 28)`` uint8, and `label`, ``(n,)``."""

_N_NORMAL = 4000
_ANOMALY_RATIO = 0.05
_SPEC = ImageSpec(32, 32, "grey", "pad")
_MAX_BYTES = 64 << 20
_TIMEOUT_S = 30.0
_UNREADABLE = (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error)


def load_fashion_mnist(
    normal: str = "sneaker",
    *,
    url: str = URL,
    checksums: Mapping[str, str] = CHECKSUMS,
    on_fetch: Callable[[str], None] = lambda url: None,
) -> Dataset:
    """Return 4000 pictures of one class with 5 % of the others among them, in a random order that is always the same.

    They are looked for in $SRR_DATA_DIR, then in the cache ($XDG_CACHE_HOME/srr-stream), and fetched into the cache
    (30 MB) where they are in neither.

    Parameters
    ----------
    normal
        One of `CLASSES`.
    url
        Where the set's files are; ends in a slash.
    checksums
        File name → MD5.
    on_fetch
        Called with the address before a file is fetched.

    Raises
    ------
    ValueError
        If there is no such class.
    SourceError
        If the pictures cannot be had; says what to do.
    LibraryMissing
        If Pillow is not installed.
    """
    if normal not in CLASSES:
        raise ValueError(f"class {normal!r} is not one of Fashion-MNIST; allowed: {', '.join(CLASSES)}")
    pixels, label = _raw() or _cached(url, checksums, on_fetch)
    order = _chosen(label, CLASSES.index(normal))
    kinds = ["normal" if CLASSES[i] == normal else CLASSES[i] for i in label[order].tolist()]
    return Dataset.from_pictures(f"fashion-mnist, normal: {normal}", pixels[order], _SPEC, kinds)


def _chosen(label: NDArray[np.uint8], normal: int) -> NDArray[np.intp]:
    """Return the rows of the stream in their order."""
    rng = np.random.default_rng(0)
    usual, others = np.flatnonzero(label == normal), np.flatnonzero(label != normal)
    usual = rng.permutation(usual)[:_N_NORMAL]
    n_others = round(len(usual) * _ANOMALY_RATIO / (1 - _ANOMALY_RATIO))
    return rng.permutation(np.concatenate([usual, rng.permutation(others)[:n_others]]))


Arrays = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""Pixels ``(n, h, w)``, numbers of classes ``(n,)``."""


def _raw() -> Arrays | None:
    folder = os.environ.get("SRR_DATA_DIR")
    path = Path(folder, RAW) if folder else None
    if path is None or not path.is_file():
        return None
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as raw:
            return _checked(raw["X"], raw["label"])
    except _UNREADABLE as error:
        raise SourceError(f"{path}: is no Fashion-MNIST: {error}; repair it, or unset SRR_DATA_DIR") from error


def _cached(url: str, checksums: Mapping[str, str], on_fetch: Callable[[str], None]) -> Arrays:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "srr-stream", "fashion-mnist")
    files = []
    for name, checksum in checksums.items():
        path = folder / name
        content = path.read_bytes() if path.is_file() else b""
        if not _is(content, checksum):
            on_fetch(url + name)
            content = _fetched(url + name, checksum, folder)
            _write(path, content)
        files.append(content)
    try:
        pixels, label = (_from_idx(gzip.decompress(content)) for content in files)
        return _checked(pixels, label)
    except _UNREADABLE as error:
        raise SourceError(f"{folder}: is no Fashion-MNIST: {error}; delete it, it is fetched anew then") from error


def _fetched(url: str, checksum: str, folder: Path) -> bytes:
    advice = (
        f"put {' and '.join(CHECKSUMS)} of https://github.com/zalandoresearch/fashion-mnist into {folder}, "
        f"or set SRR_DATA_DIR to a folder with {RAW}"
    )
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
            content: bytes = answer.read(_MAX_BYTES)
    except (OSError, ValueError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise SourceError(f"{url}: cannot be fetched: {error}; {advice}") from error
    if not _is(content, checksum):
        raise SourceError(f"{url}: is not the file it should be (its MD5 is not {checksum}); {advice}")
    return content


def _write(path: Path, content: bytes) -> None:
    """Keep a file, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise SourceError(
            f"{path}: cannot be written: {error.strerror}; set XDG_CACHE_HOME to a folder that can"
        ) from error


def _is(content: bytes, checksum: str) -> bool:
    return hashlib.md5(content, usedforsecurity=False).hexdigest() == checksum


def _from_idx(content: bytes) -> NDArray[np.uint8]:
    """Read LeCun's format: two zeros, 8 for bytes, the number of axes, their lengths in 32 bits, the values."""
    if content[:3] != b"\0\0\x08":
        raise ValueError("it does not begin as an idx file of bytes")
    n_axes = content[3]
    shape = np.frombuffer(content, dtype=">u4", count=n_axes, offset=4).astype(np.int64)
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * n_axes).reshape(shape)


def _checked(pixels: NDArray[np.uint8], label: NDArray[np.uint8]) -> Arrays:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or label.shape != pixels.shape[:1]:
        raise ValueError(f"pictures are {pixels.dtype} of shape {pixels.shape}, labels of shape {label.shape}")
    if not np.isin(label, np.arange(len(CLASSES))).all():
        raise ValueError(f"labels go from {label.min()} to {label.max()}; allowed: 0 to {len(CLASSES) - 1}")
    return pixels, label
