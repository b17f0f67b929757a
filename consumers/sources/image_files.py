"""Pictures out of a folder or an ``.npz``, each as the file that it would be in Kafka, and what they have in common."""

from __future__ import annotations

import logging
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from io import BytesIO
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consumers.errors import SourceError
from consumers.image_headers import read_header
from consumers.images import decode_image, require_pillow
from consumers.reasons import Bad
from consumers.records import ImageSpec

log = logging.getLogger(__name__)

MAX_FILE_SIZE = 64 << 20
"""Bytes. Of a larger file in a folder no more is read, and a byte: a decoder finds it too large."""
_N_LOOKED_AT = 100
"""Pictures that decide whether there is colour."""
_MAX_SIDE = 256
"""Pixels. A model's pictures are smaller than a camera's: who wants more says so in the settings."""


def list_files(folder: Path) -> list[str]:
    """Return the regular files below a folder, as paths relative to it, in their order.

    Left out, and logged: what is hidden, links to folders, links that lead out of the folder, and what is no file.

    Raises
    ------
    SourceError
        If a folder cannot be read, or there is no file.
    """
    root, found = folder.resolve(), []
    for here, names, files in os.walk(root, onerror=_unreadable):
        for name in [*names, *files]:
            path = Path(here, name)
            relative = path.relative_to(root).as_posix()
            if why := _why_left_out(path, root):
                log.info("%s: %s is left out: %s", folder, relative, why)
            elif name in files:
                found.append(relative)
        names[:] = [name for name in names if not name.startswith(".")]
    if not found:
        raise SourceError(f"{folder}: there is no file in this folder; expected: JPEG, PNG or WebP files")
    return sorted(found)


def read_file(path: Path) -> bytes | None:
    """Return the bytes of a file; None, and a word in the log, if it cannot be read: it is one record of many."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_SIZE + 1)
    except OSError as error:
        log.warning("%s: cannot be read: %s; its record is empty", path, error.strerror)
        return None


def read_npz(path: Path) -> Iterator[bytes]:
    """Yield the pictures of an ``.npz``: of files packed behind each other the files, of pixels PNGs.

    The pixels are ``X`` or ``images``, uint8, ``(n, height, width)`` or ``(n, height, width, 1 or 3)``. Packed files
    are ``blob``, uint8, and ``offset``, n + 1 integers: picture i is ``blob[offset[i]:offset[i + 1]]``.

    Raises
    ------
    SourceError
        If the file is none, or holds nothing of the kind. Pickled objects are never read.
    """
    if not zipfile.is_zipfile(path):
        raise SourceError(f"{path}: is no .npz file; write one with numpy.savez(path, images=...)")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if {"blob", "offset"} <= set(arrays.files):
                return _unpacked(path, np.asarray(arrays["blob"]), np.asarray(arrays["offset"]))
            name = next((name for name in ("X", "images") if name in arrays.files), None)
            if name is None:
                raise SourceError(
                    f"{path}: has no pictures, but {', '.join(arrays.files) or 'nothing'}; "
                    "allowed: X or images, or blob with offset"
                )
            return _as_pngs(path, name, np.asarray(arrays[name]))
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise SourceError(f"{path}: is no readable .npz file: {error}") from error


def common_spec(files: Iterable[bytes | None]) -> ImageSpec | None:
    """Return the size of the first picture, at most 256 pixels a side, and whether there is colour in the first 100.

    None if no picture is readable.
    """
    spec: ImageSpec | None = None
    for data in islice((data for data in files if data), _N_LOOKED_AT):
        try:
            if spec is None:
                spec = _spec_of(data)
            pixels = decode_image(data, spec)
        except Bad:
            continue
        if (pixels != pixels[:, :, :1]).any():
            return spec
    return None if spec is None else ImageSpec(spec.width, spec.height, "grey")


def _spec_of(data: bytes) -> ImageSpec:
    width, height = read_header(data).size
    scale = min(1.0, _MAX_SIDE / max(width, height))
    if scale < 1:
        log.info("the pictures are %d × %d pixels; taken is %d as the longer side", width, height, _MAX_SIDE)
    return ImageSpec(max(1, round(width * scale)), max(1, round(height * scale)))


def _why_left_out(path: Path, root: Path) -> str | None:
    if path.name.startswith("."):
        return "it is hidden"
    if path.is_dir():
        return "it is a link to a folder" if path.is_symlink() else None
    if not path.is_file():
        return "it is no regular file"
    if path.is_symlink() and not path.resolve().is_relative_to(root):
        return "it is a link that leads out of the folder"
    return None


def _unreadable(error: OSError) -> None:
    raise SourceError(f"{error.filename}: cannot be read: {error.strerror}; check the folder and its rights") from error


def _unpacked(path: Path, blob: NDArray[Any], offset: NDArray[Any]) -> Iterator[bytes]:
    is_good = blob.dtype == np.uint8 and blob.ndim == 1 and offset.dtype.kind in "iu" and offset.ndim == 1
    if not is_good or len(offset) == 0 or offset[0] < 0 or offset[-1] > len(blob) or (np.diff(offset) < 0).any():
        raise SourceError(
            f"{path}: blob is {blob.dtype} {blob.shape} and offset {offset.dtype} {offset.shape}; "
            "allowed: uint8 (bytes,), and integers (n + 1,) that rise from 0 to the end of blob"
        )
    edges = offset.tolist()
    return (blob[start:stop].tobytes() for start, stop in pairwise(edges))


def _as_pngs(path: Path, name: str, images: NDArray[Any]) -> Iterator[bytes]:
    if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[-1] in (1, 3))):
        raise SourceError(
            f"{path}: {name} is {images.dtype} {images.shape}; "
            "allowed: uint8 (n, height, width), or with 1 or 3 channels behind"
        )
    require_pillow()
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    return map(_as_png, images)


def _as_png(pixels: NDArray[np.uint8]) -> bytes:
    import PIL.Image

    file = BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()
