"""A trained encoder as an ONNX graph: bytes of pictures in, features out, batch norms folded into the convolutions.

Written by hand rather than exported: a ResNet is a dozen kinds of nodes, and PyTorch's exporters change from release to
release. ONNX Runtime computes it faster than PyTorch does on a processor (docs/decisions.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from models.nets.onnx_session import FLOAT, Graph
from models.nets.resnet import ResNet18

PICTURES, FEATURES, PLACES = "pictures", "features", "places"


def to_onnx(
    net: ResNet18,
    shape: tuple[int, int, int],
    *,
    n_stages: int,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    deviation: Sequence[float] = (1.0, 1.0, 1.0),
) -> bytes:
    """Return the graph from ``pictures`` ``(n, h, w, c)`` uint8 to ``features`` ``(n, d)`` and ``places``.

    `features` are the mean of the last stage's maps over all positions, not normalised; `places` are the maps of the
    stage before, ``(n, d / 2, h', w')``, or of the last one if it is the only one.

    Parameters
    ----------
    shape
        Height, width and channels.
    n_stages
        Of the network's four, how many are in the graph.
    mean, deviation
        Of red, green and blue, subtracted and divided by after pixels are brought to 0 to 1.
    """
    n_channels = net.conv1.in_channels
    graph = _Network()
    hidden = graph.add("Cast", [PICTURES], to=FLOAT)
    hidden = graph.add("Transpose", [hidden], perm=[0, 3, 1, 2])
    if shape[2] < n_channels:
        hidden = graph.add("Concat", [hidden] * n_channels, axis=1)
    scale, shift = (np.asarray(values, dtype=np.float32)[:n_channels].reshape(-1, 1, 1) for values in (deviation, mean))
    hidden = graph.add("Mul", [hidden, graph.constant(1.0 / (np.float32(255.0) * scale))])
    if shift.any():
        hidden = graph.add("Sub", [hidden, graph.constant(shift / scale)])
    hidden = graph.add("Relu", [graph.convolution(hidden, net.conv1, net.bn1)])
    if isinstance(net.maxpool, nn.MaxPool2d):
        hidden = graph.add("MaxPool", [hidden], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for number, stage in enumerate(net.stages[:n_stages], 1):
        for block in stage.children():
            hidden = graph.block(hidden, block)
        if number == max(1, n_stages - 1):
            graph.add("Identity", [hidden], output=PLACES)
    graph.add("Flatten", [graph.add("GlobalAveragePool", [hidden])], output=FEATURES, axis=1)
    outputs = {FEATURES: ["n", "d"], PLACES: ["n", "d_places", "rows", "columns"]}
    return graph.content({PICTURES: (np.uint8, ["n", *shape])}, outputs, "encoder")


class _Network(Graph):
    """A graph of convolutions."""

    def convolution(self, hidden: str, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> str:
        """Add a convolution with its batch norm in it."""
        assert norm.running_mean is not None
        assert norm.running_var is not None
        with torch.no_grad():
            weight, bias = fuse_conv_bn_weights(
                conv.weight.double().cpu(),
                None,
                norm.running_mean.double().cpu(),
                norm.running_var.double().cpu(),
                norm.eps,
                norm.weight.double().cpu(),
                norm.bias.double().cpu(),
            )
        assert bias is not None
        assert not isinstance(conv.padding, str)
        size, (padding, _), (stride, _) = conv.kernel_size, conv.padding, conv.stride
        return self.add(
            "Conv",
            [hidden, self.constant(weight.float().numpy()), self.constant(bias.float().numpy())],
            kernel_shape=list(size),
            pads=[int(padding)] * 4,
            strides=[stride, stride],
        )

    def block(self, hidden: str, block: Any) -> str:
        """Add two convolutions and the way around them."""
        inner = self.add("Relu", [self.convolution(hidden, block.conv1, block.bn1)])
        inner = self.convolution(inner, block.conv2, block.bn2)
        around = hidden
        if isinstance(block.downsample, nn.Sequential):
            conv, norm = block.downsample.children()
            assert isinstance(conv, nn.Conv2d)
            assert isinstance(norm, nn.BatchNorm2d)
            around = self.convolution(hidden, conv, norm)
        return self.add("Relu", [self.add("Add", [inner, around])])
