"""A heat map laid over its picture, as pixels and as a PNG."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray

from consumers.images import require_pillow

_COLOUR = (215.0, 0.0, 38.0)
_OPACITY = 0.8
"""Of the hottest place: the picture stays to be seen through it."""
_GREY_OF_RGB = (0.299, 0.587, 0.114)
_SIDE, _MAX_SCALE = 512, 4
"""Pictures are enlarged, by whole pixels, up to about this side."""


def overlay(picture: NDArray[np.uint8], heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return a picture in grey, redder where it is hotter.

    Only positive heat is shown, in parts of its greatest value in this picture: the hottest place of every picture is
    equally red, and a map without a positive value leaves the picture as it is.

    Parameters
    ----------
    picture
        ``(h, w, channels)``, one or three.
    heat
        ``(h, w)``; 0 is usual, higher is less so. What is not finite is taken for 0.

    Returns
    -------
    numpy.ndarray
        ``(h, w, 3)``, uint8.

    Examples
    --------
    >>> overlay(np.full((1, 2, 1), 200, dtype=np.uint8), np.array([[-3.0, 0.5]], dtype=np.float32)).tolist()
    [[[200, 200, 200], [212, 40, 70]]]
    """
    if heat.shape != picture.shape[:2]:
        raise ValueError(f"the heat map is {heat.shape}, the picture {picture.shape[:2]}; they must be of one size")
    pixels = picture.astype(np.float64)
    grey = pixels @ np.array(_GREY_OF_RGB) if picture.shape[2] == 3 else pixels[:, :, 0]
    positive = np.clip(np.nan_to_num(heat.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0), 0.0, None)
    share = positive / (positive.max(initial=0.0) or 1.0)
    opacity = _OPACITY * share[:, :, None]
    blended = grey[:, :, None] * (1.0 - opacity) + np.array(_COLOUR) * opacity
    return np.rint(blended).astype(np.uint8)


def overlay_png(picture: NDArray[np.uint8], heat: NDArray[np.float32]) -> bytes:
    """Return :func:`overlay` as a PNG; a small picture is enlarged up to four times, so that its pixels can be seen.

    Raises
    ------
    LibraryMissing
        If Pillow is not installed.
    """
    return to_png(enlarged(overlay(picture, heat), scale_for(*heat.shape)))


def scale_for(height: int, width: int) -> int:
    """Return how many times a picture is enlarged to be looked at."""
    return max(1, min(_MAX_SCALE, _SIDE // max(height, width)))


def enlarged(pixels: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    """Return every pixel as a square of `scale` x `scale`."""
    return pixels.repeat(scale, axis=0).repeat(scale, axis=1)


def to_png(pixels: NDArray[np.uint8]) -> bytes:
    """Return ``(h, w, 3)`` as a PNG; raises `LibraryMissing` without Pillow."""
    require_pillow()
    import PIL.Image

    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
