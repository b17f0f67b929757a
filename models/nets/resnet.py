"""ResNet-18 as the paper's visual experiments have it, at any width, and the heads that pretext tasks train on it.

He, Zhang, Ren, Sun, "Deep residual learning for image recognition" (2016). For small pictures the stem is one 3 x 3
convolution without pooling, as in Sohn et al., "Learning and evaluating representations for deep one-class
classification" (2021), whose deeper head is :func:`projection_head`. Modules are named as in torchvision and timm, so
that a state of theirs fits.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

N_STAGES = 4
_MAX_FULL = 64
"""Pictures up to so many pixels a side keep their resolution in the stem, unless it is said otherwise."""


class ResNet18(nn.Module):
    """Pictures ``(n, channels, h, w)`` float32 in 0 to 1 → features ``(n, 8 width)``, the mean over all positions.

    Parameters
    ----------
    n_channels
        1 or 3.
    width
        Channels of the first stage; 64 in the paper. Cost grows with its square.
    stem
        ``full``: 3 x 3 of stride 1 without pooling, the paper's for 32 and 64 pixels; ``half``: the same of stride 2,
        at a quarter of the cost; ``usual``: 7 x 7 of stride 2 with pooling, for larger pictures.
    """

    def __init__(self, n_channels: int, width: int, *, stem: str) -> None:
        super().__init__()
        size, stride = (7, 2) if stem == "usual" else (3, 2 if stem == "half" else 1)
        self.conv1 = nn.Conv2d(n_channels, width, size, stride=stride, padding=size // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1) if stem == "usual" else nn.Identity()
        self.layer1 = _stage(width, width, 1)
        self.layer2 = _stage(width, 2 * width, 2)
        self.layer3 = _stage(2 * width, 4 * width, 2)
        self.layer4 = _stage(4 * width, 8 * width, 2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @property
    def stages(self) -> tuple[nn.Module, ...]:
        """The four stages, each at half the resolution of the one before, but for the first."""
        return (self.layer1, self.layer2, self.layer3, self.layer4)

    @property
    def n_features(self) -> int:
        """Channels of the last stage."""
        return 8 * self.conv1.out_channels

    def maps(self, images: torch.Tensor, n_stages: int = N_STAGES) -> torch.Tensor:
        """Return the feature maps behind the first `n_stages` stages, ``(n, width 2^(n_stages - 1), h', w')``."""
        hidden: torch.Tensor = self.maxpool(functional.relu(self.bn1(self.conv1(images))))
        for stage in self.stages[:n_stages]:
            hidden = stage(hidden)
        return hidden

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the features of the last stage, pooled."""
        return self.maps(images).mean(dim=(2, 3))


class _Block(nn.Module):
    """Two 3 x 3 convolutions and a way around them."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or n_in != n_out:
            self.downsample = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride=stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(hidden)) + self.downsample(x))


def _stage(n_in: int, n_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(_Block(n_in, n_out, stride), _Block(n_out, n_out, 1))


def chosen_stem(stem: str, height: int, width: int) -> str:
    """Return `stem`, or what ``auto`` stands for with pictures of this size."""
    if stem != "auto":
        return stem
    return "full" if max(height, width) <= _MAX_FULL else "usual"


def projection_head(n_in: int, n_out: int, *, n_hidden: int, width: int, bias: bool = True) -> nn.Sequential:
    """Return ``n_hidden`` x [linear without bias, batch norm, ReLU] of `width` units, and a linear layer to `n_out`."""
    layers: list[nn.Module] = []
    for index in range(n_hidden):
        layers += [nn.Linear(n_in if index == 0 else width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width if n_hidden else n_in, n_out, bias=bias))
