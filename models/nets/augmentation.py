"""Random changes of pictures, in batches on the device: kornia's where it has them, CutPaste's geometry here.

All randomness is torch's global generator, which whoever trains seeds (see :mod:`models.nets.visual_training`).
Pictures are ``(n, channels, h, w)`` float32 in 0 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional

Augment = Callable[[torch.Tensor], torch.Tensor]

SCAR_WIDTHS, SCAR_HEIGHTS = (2.0, 16.0), (10.0, 25.0)
"""Pixels of a scar, for pictures of `SCAR_SIDE`; other sizes in proportion."""
SCAR_SIDE = 256
SCAR_DEGREES = 45.0
PATCH_ASPECT = 3.3
"""Of a patch, width to height: 1 / 3.3 to 3.3, uniform in the logarithm (0.3 to 3.3 in the paper)."""


def views(
    height: int, width: int, n_channels: int, *, min_scale: float, jitter: float, flip: bool = True, blur: bool = True
) -> Augment:
    """Return the views of the deep one-class work: crop and resize, flip, colour jitter, grey, blur.

    Parameters
    ----------
    min_scale
        Smallest side of a crop, in parts of the picture's.
    jitter
        Of brightness, contrast and, in colour, saturation and hue.
    """
    import kornia.augmentation as kornia

    steps = [kornia.RandomResizedCrop((height, width), scale=(min_scale**2, 1.0), cropping_mode="resample")]
    if flip:
        steps.append(kornia.RandomHorizontalFlip())
    if jitter:
        colour = (jitter, jitter) if n_channels == 3 else (0.0, 0.0)
        steps.append(kornia.ColorJiggle(jitter, jitter, *colour, p=0.8 if n_channels == 3 else 1.0))
    if n_channels == 3:
        steps.append(kornia.RandomGrayscale(p=0.2))
    if blur:
        kernel = max(3, 2 * round(min(height, width) / 20) + 1)
        steps.append(kornia.RandomGaussianBlur((kernel, kernel), (0.1, 2.0), p=0.5))
    return torch.nn.Sequential(*steps)


def rotations(images: torch.Tensor) -> torch.Tensor:
    """Return the pictures turned by 0, 90, 180 and 270 degrees, one quarter after the other, ``(4 n, c, s, s)``."""
    return torch.cat([torch.rot90(images, turns, (2, 3)) for turns in range(4)])


def cut_and_paste(images: torch.Tensor, *, area: tuple[float, float], jitter: float) -> torch.Tensor:
    """Return the pictures with a rectangle of each, its colour jittered, pasted at another place of the same picture.

    Parameters
    ----------
    area
        Least and greatest share of the picture.
    jitter
        Of the brightness and contrast of the patch.
    """
    n, _, h, w = images.shape
    share = _uniform(n, *area, images)
    aspect = torch.exp(_uniform(n, -math.log(PATCH_ASPECT), math.log(PATCH_ASPECT), images))
    patch_w = torch.clamp(torch.sqrt(share * h * w * aspect), 1.0, w - 1.0)
    patch_h = torch.clamp(share * h * w / patch_w, 1.0, h - 1.0)
    return _paste(images, patch_w, patch_h, torch.zeros_like(share), jitter)


def scar(images: torch.Tensor, *, jitter: float, scale: float = 1.0) -> torch.Tensor:
    """Return the pictures with a thin strip of each, turned by up to 45 degrees, pasted at another place.

    Parameters
    ----------
    scale
        Of the strip's sides, beyond the proportion of the picture's size to the paper's 256 pixels.
    """
    n, _, h, w = images.shape
    unit = scale * max(h, w) / SCAR_SIDE
    patch_w = torch.clamp(_uniform(n, *SCAR_WIDTHS, images) * unit, 1.0, w - 1.0)
    patch_h = torch.clamp(_uniform(n, *SCAR_HEIGHTS, images) * unit, 1.0, h - 1.0)
    angle = _uniform(n, -SCAR_DEGREES, SCAR_DEGREES, images) * (math.pi / 180.0)
    return _paste(images, patch_w, patch_h, angle, jitter)


def _paste(
    images: torch.Tensor, patch_w: torch.Tensor, patch_h: torch.Tensor, angle: torch.Tensor, jitter: float
) -> torch.Tensor:
    """Paste a rectangle of every picture, turned by an angle, at a random place of it; sides ``(n,)`` in pixels."""
    n, _, h, w = images.shape
    # Where the middles of source and target lie: both rectangles whole inside, but for a turned one's corners.
    source_x, target_x = (_middles(patch_w, w) for _ in range(2))
    source_y, target_y = (_middles(patch_h, h) for _ in range(2))
    rows = torch.arange(h, device=images.device) + 0.5
    columns = torch.arange(w, device=images.device) + 0.5
    # Coordinates of every target pixel in the frame of the patch, whose middle is 0.
    dx = (columns[None, None, :] - target_x[:, None, None]).expand(n, h, w)
    dy = (rows[None, :, None] - target_y[:, None, None]).expand(n, h, w)
    cos, sin = torch.cos(angle)[:, None, None], torch.sin(angle)[:, None, None]
    along, across = cos * dx + sin * dy, cos * dy - sin * dx
    is_inside = (along.abs() <= 0.5 * patch_w[:, None, None]) & (across.abs() <= 0.5 * patch_h[:, None, None])
    x = ((along + source_x[:, None, None]) * (2.0 / w) - 1.0).clamp(-1.0, 1.0)
    y = ((across + source_y[:, None, None]) * (2.0 / h) - 1.0).clamp(-1.0, 1.0)
    grid = torch.stack([x, y], dim=-1)
    patch = functional.grid_sample(images, grid, mode="nearest", padding_mode="border", align_corners=False)
    if jitter:
        contrast = _uniform(n, 1.0 - jitter, 1.0 + jitter, images)[:, None, None, None]
        brightness = _uniform(n, -jitter, jitter, images)[:, None, None, None]
        patch = (patch * contrast + brightness).clamp(0.0, 1.0)
    return torch.where(is_inside[:, None], patch, images)


def _middles(side: torch.Tensor, length: int) -> torch.Tensor:
    """Return random middles of segments `side` ``(n,)`` that lie within ``[0, length]``."""
    return 0.5 * side + torch.rand_like(side) * (length - side)


def _uniform(n: int, low: float, high: float, like: torch.Tensor) -> torch.Tensor:
    return torch.rand(n, device=like.device) * (high - low) + low
