"""GOAD's network for all projections at once, as graphs of ONNX Runtime: forward, and back again for explanations.

Rows ``(n, d)`` become ``(n M, width)`` behind the first layer, a row for each projection, which all other layers share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.blocks import by_blocks
from models.nets.onnx_session import FLOAT, Graph, open_session

LEAK = 0.2
BLOCK_ROWS = 256
"""Of a block that is computed at once: with 32 projections and layers of width 8, a quarter of a MiB a layer."""
_SIZES = (1, 2, 3, 7, 16, 33, 100)
Layer = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Weight ``(out, in)`` and bias ``(out,)``."""


class ProjectionGraph:
    """f under all projections, on one thread: a block is many small products, which threads slow down.

    Parameters
    ----------
    folded
        Every projection with the first layer's weight, ``(d, M width)``.
    layers
        Of f; of the first one only the bias is looked at.
    """

    def __init__(self, folded: NDArray[np.float32], layers: Sequence[Layer]) -> None:
        self._folded, self._layers = folded, layers
        width = len(layers[0][1])
        self._shape = (folded.shape[1] // width, width)
        self._forward = self._open(self._add_hidden(graph := Graph())[-1], graph)
        self._backward = self._open(self._add_back(graph := Graph()), graph, pulls=folded.shape[1])

    def embed(self, X: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the outputs of f, ``(n, M, width)``, for ``(n, d)`` rows."""
        return self._forward(X).reshape(len(X), *self._shape)

    def pull_back(self, X: NDArray[np.float32], dZ: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return dZ Jᵀ ``(n, d)`` of ``(n, M width)``, J the Jacobian of :meth:`embed` at X: back-propagation."""
        return self._backward(X, dZ)

    def _add_back(self, graph: Graph) -> str:
        """Add f and the way back through it; return where that ends."""
        first, *hidden = self._add_hidden(graph)
        pulled = graph.add("Reshape", ["pulls", graph.constant(np.array([-1, self._shape[1]]))])
        for (weight, _), outputs in zip(reversed(self._layers[1:]), reversed(hidden), strict=True):
            pulled = graph.add("Gemm", [_before_leak(graph, pulled, outputs), graph.constant(weight)])
        pulled = graph.add("Reshape", [pulled, graph.constant(np.array([-1, self._folded.shape[1]]))])
        return graph.add("Gemm", [_before_leak(graph, pulled, first), graph.constant(self._folded)], transB=1)

    def _add_hidden(self, graph: Graph) -> list[str]:
        """Add f; return the outputs of its layers."""
        m, width = self._shape
        (_, first_bias), *rest = self._layers
        hidden = graph.add("Gemm", ["rows", graph.constant(self._folded), graph.constant(np.tile(first_bias, m))])
        outputs = [graph.add("LeakyRelu", [hidden], alpha=LEAK)]
        hidden = graph.add("Reshape", [outputs[0], graph.constant(np.array([-1, width]))])
        for weight, bias in rest:
            hidden = graph.add("Gemm", [hidden, graph.constant(weight), graph.constant(bias)], transB=1)
            hidden = graph.add("LeakyRelu", [hidden], alpha=LEAK)
            outputs.append(hidden)
        return outputs

    def _open(self, out: str, graph: Graph, **more: int) -> _Run:
        graph.add("Identity", [out], output="out")
        widths = {"rows": len(self._folded), **more}
        inputs: dict[str, Any] = {name: (np.float32, ["n", width]) for name, width in widths.items()}
        return _Run(graph.content(inputs, {"out": ["n_out", "width"]}, "goad"), widths)


def _before_leak(graph: Graph, pulled: str, outputs: str) -> str:
    """Return the gradient before a leaky ReLU of which `outputs` came out, of the same sign as what went in."""
    is_above = graph.add("Cast", [graph.add("Greater", [outputs, graph.constant(np.float32(0.0))])], to=FLOAT)
    return graph.add("Mul", [pulled, graph.add("Max", [is_above, graph.constant(np.float32(LEAK))])])


class _Run:
    """A graph at work on rows, each of which gets the same bits in every batch."""

    def __init__(self, content: bytes, widths: dict[str, int]) -> None:
        self._session = open_session(content, n_threads=1)
        self._widths = widths
        rng = np.random.default_rng(0)
        rows = rng.normal(size=(BLOCK_ROWS, sum(widths.values()))).astype(np.float32)
        self._sizes = block_sizes(self._block, rows, rng.permutation(BLOCK_ROWS))

    def __call__(self, *inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        joined = inputs[0] if len(inputs) == 1 else np.concatenate(inputs, axis=1)
        return by_blocks(self._block, joined, **self._sizes)

    def _block(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        given, start = {}, 0
        for name, width in self._widths.items():
            given[name] = np.ascontiguousarray(rows[:, start : start + width])
            start += width
        (out,) = self._session.run(["out"], given)
        result: NDArray[np.float32] = out.reshape(len(rows), -1)
        return result


def block_sizes(
    compute: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    rows: NDArray[np.float32],
    order: NDArray[np.intp],
) -> dict[str, int]:
    """Return how many rows blocks may have on this machine (see :func:`by_blocks`), by trying some.

    How a product of matrices adds up is the machine's business. Where a row gets the same bits in any place of a block
    of any size, few rows make a small block; where only in any place, all blocks have one size; else, one row.
    """
    together = compute(rows)
    if not np.array_equal(compute(rows[order]), together[order]):
        return {"n_rows": 1}
    if all(np.array_equal(compute(rows[:n]), together[:n]) for n in _SIZES):
        return {"n_rows": len(rows), "least_rows": 1}
    return {"n_rows": len(rows)}
