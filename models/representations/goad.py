"""GOAD: a row under M random projections, each through one small network trained to tell which projection it was.

Bergman and Hoshen, "Classification-based anomaly detection for general data" (2020), in the form of the SRR paper's
appendix A.3. Training is :mod:`models.nets.mlp`'s.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from models.blocks import by_blocks
from models.occ.flattening import whole_tiles
from models.state import State

if TYPE_CHECKING:
    import torch

    from models.nets.mlp import ProjectionTraining

LEAK = np.float32(0.2)
_EPOCH_ROWS = 64
_BLOCK_ROWS = 256
"""Of a block that is embedded at once: with 32 transformations of width 8 a quarter of a MiB."""
_FEW_ROWS = 8
"""The same where `are_alike` says no: the largest product that treats all its rows alike there."""
_TILE = 16
"""Inner dimension from which on a product of matrices runs at full speed; layers of width 8 take two at once."""
_CHOICES = {"optimizer": ("adam", "sgd"), "head": ("linear", "centres")}
Layer = tuple[NDArray[np.float32], NDArray[np.float32]]


class Network(NamedTuple):
    """f over all transformations at once, as PyTorch multiplies it."""

    folded: torch.Tensor
    """Projections and first layer, ``(d, M width)``."""
    first_bias: torch.Tensor
    """``(M width,)``."""
    rest: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    """Of the other layers: weight ``(g width, g width)``, g of the layer's on its diagonal, and bias ``(g width,)``."""


class Goad:
    """f(T_m(x)) for m = 1..M, an embedding of shape ``(n, M, width)``.

    Parameters
    ----------
    n_transforms
        M. More cost time in proportion and gain little above 64.
    n_projected, width, n_layers
        Dimensions after the projection, of every layer of f, and how many layers f has.
    n_steps
        Minibatches in all.
    batch_rows, n_picked
        Rows, and projections drawn anew, in a minibatch.
    learning_rate, optimizer
        The step size, and of what: ``adam``, or ``sgd`` with the momentum and weight decay of the paper's table 1.
    head
        What tells the projections apart in training: ``linear``, a classifier over the M (equation 5), or ``centres``,
        GOAD's own: the softmax of -|f(T_m x) - c_m'|², where c_m' is the mean of the minibatch under projection m'
        (equations 3 and 4). With ``centres`` only the projections in the minibatch have a centre, so that the softmax
        is over the `n_picked` of them.
    """

    name: ClassVar[str] = "goad"
    takes: ClassVar[str] = "fields"
    shrinkage: ClassVar[float] = 1e-3

    def __init__(
        self,
        *,
        n_transforms: int = 64,
        n_projected: int = 32,
        width: int = 8,
        n_layers: int = 5,
        n_steps: int = 2048,
        batch_rows: int = 64,
        n_picked: int = 16,
        learning_rate: float = 1e-3,
        optimizer: str = "adam",
        head: str = "linear",
    ) -> None:
        self.options: dict[str, Any] = {
            "n_transforms": n_transforms,
            "n_projected": n_projected,
            "width": width,
            "n_layers": n_layers,
            "n_steps": n_steps,
            "batch_rows": batch_rows,
            "n_picked": n_picked,
            "learning_rate": learning_rate,
            "optimizer": optimizer,
            "head": head,
        }
        _check(self.options)
        self.n_steps = n_steps
        self._projections: NDArray[np.float32] | None = None
        self._layers: list[Layer] = []
        self._training: ProjectionTraining | None = None
        self._folded: NDArray[np.float32] | None = None
        self._network: Network | None = None

    def steps_per_epoch(self, n_rows: int) -> int:
        """Return N / 64, the paper's minibatch, whatever this one's is."""
        return max(1, round(n_rows / _EPOCH_ROWS))

    def warm_up_steps(self, n_rows: int) -> int:
        """Return an epoch."""
        return self.steps_per_epoch(n_rows)

    def steps_for(self, n_rows: int) -> int:
        """Return the minibatches of a training, however many rows there are."""
        return self.n_steps

    def fit(
        self, X: NDArray[np.float32], rng: np.random.Generator, *, device: str = "cpu", n_steps: int | None = None
    ) -> Self:
        """Draw projections and weights for ``(n, d)``, unless a state was loaded; get ready to train on `device`."""
        from models.nets.mlp import ProjectionNet, ProjectionTraining

        seed = int(rng.integers(2**31))
        if self._projections is None:
            self._draw(X.shape[1], rng)
        projections = self._fitted()
        if projections.shape[1] != X.shape[1]:
            raise ValueError(f"goad: X has {X.shape[1]} columns, the loaded projections {projections.shape[1]}")
        self._training = ProjectionTraining(
            ProjectionNet(projections, self._layers, self.options["head"], device),
            batch_rows=self.options["batch_rows"],
            n_picked=self.options["n_picked"],
            optimizer=self.options["optimizer"],
            learning_rate=self.options["learning_rate"],
            device=device,
            seed=seed,
        )
        return self

    def update(self, X: NDArray[np.float32], n_steps: int, on_step: Callable[[int, float], None] | None = None) -> None:
        """Train for `n_steps` minibatches of ``(n, d)``; the optimiser goes on from the last call."""
        if self._training is None:
            raise RuntimeError("goad is not fitted; call fit first")
        self._training.run(X, n_steps, on_step)
        self._layers = self._training.net.layers()
        self._folded = self._network = None

    def embed(self, X: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the outputs of f, ``(n, M, width)``, for ``(n, d)`` rows."""
        import torch

        from models.nets.mlp import one_thread

        network, n_rows = self._as_network(), _BLOCK_ROWS if are_alike() else _FEW_ROWS
        with torch.inference_mode(), one_thread():
            return by_blocks(lambda block: self._embed_block(block, network), X, n_rows=n_rows)

    def pull_back(self, X: NDArray[np.float32], dZ: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return how a change of the embedding's every part by `dZ` ``(n, M, width)`` pulls at the rows ``(n, d)``.

        That is dZ Jᵀ with J the Jacobian of :meth:`embed` at `X`, by back-propagation.
        """
        folded = self._first_layer()
        d = len(folded)
        backward = whole_tiles(folded.T.astype(np.float64))
        pairs = np.concatenate([X, dZ.reshape(len(X), -1)], axis=1, dtype=np.float64)
        return by_blocks(
            lambda block: self._pull_back_block(block[:, :d].astype(np.float32), block[:, d:], folded, backward), pairs
        )

    def state(self) -> State:
        """Return projections and weights; the optimiser is not part of it."""
        arrays = {"projections": self._fitted()}
        for index, (weight, bias) in enumerate(self._layers):
            arrays[f"weight{index}"], arrays[f"bias{index}"] = weight, bias
        return State(dict(self.options), dict(arrays))

    @classmethod
    def from_state(cls, state: State) -> Goad:
        """Read what :meth:`state` returned; ValueError if it does not fit."""
        goad = cls(**state.values)
        goad._projections = state.array("projections", 3)
        goad._layers = [
            (state.array(f"weight{index}", 2), state.array(f"bias{index}", 1))
            for index in range(len(goad._sizes()) - 1)
        ]
        sizes = goad._sizes()
        shapes = [weight.shape for weight, _ in goad._layers]
        if shapes != list(zip(sizes[1:], sizes[:-1], strict=True)) or any(len(w) != len(b) for w, b in goad._layers):
            raise ValueError(f"goad: layers have shapes {shapes}; allowed by the options: {sizes}")
        m, _, n_projected = goad._projections.shape
        n_transforms = goad.options["n_transforms"]
        if (m, n_projected) != (n_transforms, sizes[0]):
            raise ValueError(
                f"goad: projections have shape {goad._projections.shape}; needed: {n_transforms} x d x {sizes[0]}"
            )
        return goad

    def _sizes(self) -> list[int]:
        """Return input, hidden and output sizes of the layers, the classifier's last if there is one."""
        o = self.options
        sizes = [o["n_projected"], *[o["width"]] * o["n_layers"]]
        return [*sizes, o["n_transforms"]] if o["head"] == "linear" else sizes

    def _draw(self, d: int, rng: np.random.Generator) -> None:
        sizes = self._sizes()
        self._projections = rng.normal(size=(self.options["n_transforms"], d, sizes[0])).astype(np.float32)
        # PyTorch's own initialisation of a linear layer, drawn here so that one rng decides everything.
        for n_in, n_out in itertools.pairwise(sizes):
            bound = 1.0 / np.sqrt(n_in)
            weight = rng.uniform(-bound, bound, size=(n_out, n_in)).astype(np.float32)
            self._layers.append((weight, rng.uniform(-bound, bound, size=n_out).astype(np.float32)))

    def _fitted(self) -> NDArray[np.float32]:
        if self._projections is None:
            raise RuntimeError("goad is not fitted; call fit first")
        return self._projections

    def _first_layer(self) -> NDArray[np.float32]:
        projections = self._fitted()
        if self._folded is None:
            self._folded = _fold(projections, self._layers[0][0])
        return self._folded

    def _as_network(self) -> Network:
        import torch

        if self._network is None:
            folded = self._first_layer()
            (_, first_bias), *rest = self._layers[: self.options["n_layers"]]
            m, width = self.options["n_transforms"], self.options["width"]
            at_once = max(1, _TILE // width)
            at_once = at_once if m % at_once == 0 else 1
            diagonal = np.eye(at_once, dtype=np.float32)
            self._network = Network(
                torch.from_numpy(folded),
                torch.from_numpy(np.tile(first_bias, m)),
                tuple(
                    (torch.from_numpy(np.kron(diagonal, weight.T)), torch.from_numpy(np.tile(bias, at_once)))
                    for weight, bias in rest
                ),
            )
        return self._network

    def _embed_block(self, X: NDArray[np.float32], network: Network) -> NDArray[np.float32]:
        import torch
        from torch.nn import functional

        hidden = torch.addmm(network.first_bias, torch.from_numpy(np.ascontiguousarray(X)), network.folded)
        for weight, bias in network.rest:
            functional.leaky_relu_(hidden, float(LEAK))
            hidden = torch.addmm(bias, hidden.view(-1, len(bias)), weight)
        features: NDArray[np.float32] = functional.leaky_relu_(hidden, float(LEAK)).numpy()
        return features.reshape(len(X), self.options["n_transforms"], self.options["width"])

    def _pull_back_block(
        self,
        X: NDArray[np.float32],
        dZ: NDArray[np.float64],
        folded: NDArray[np.float32],
        backward: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        layers = self._layers[: self.options["n_layers"]]
        hidden = (X @ folded).reshape(-1, self.options["width"]) + layers[0][1]
        slopes = [np.where(hidden > 0.0, np.float32(1.0), LEAK)]
        for weight, bias in layers[1:]:
            hidden = (hidden * slopes[-1]) @ weight.T + bias
            slopes.append(np.where(hidden > 0.0, np.float32(1.0), LEAK))
        pulled = dZ.reshape(hidden.shape) * slopes[-1]
        for (weight, _), slope in zip(reversed(layers[1:]), reversed(slopes[:-1]), strict=True):
            pulled = pulled @ weight.astype(np.float64)
            pulled *= slope
        pull: NDArray[np.float64] = (pulled.reshape(len(X), -1) @ backward)[:, : X.shape[1]]
        return pull


@cache
def are_alike() -> bool:
    """Return whether a row of a float32 product gets the same bits wherever it stands in a block, on this machine."""
    import torch

    from models.nets.mlp import one_thread

    generator = torch.Generator().manual_seed(0)
    with one_thread():
        for n_in, n_out in ((121, 512), (16, 256), (32, 64), (16, 16), (8, 8)):
            rows = torch.randn(_BLOCK_ROWS, n_in, generator=generator)
            weights, bias = torch.randn(n_in, n_out, generator=generator), torch.randn(n_out, generator=generator)
            order = torch.randperm(_BLOCK_ROWS, generator=generator)
            product = torch.addmm(bias, rows, weights)
            if not torch.equal(product[order], torch.addmm(bias, rows[order], weights)):
                return False
    return True


def _check(options: dict[str, Any]) -> None:
    """Raise ValueError if an option is not allowed."""
    least = {"n_transforms": 2, "n_picked": 2 if options["head"] == "centres" else 1}
    for name, value in options.items():
        if name in _CHOICES:
            if value not in _CHOICES[name]:
                raise ValueError(f"{name} is {value!r}; allowed: {', '.join(_CHOICES[name])}")
        elif name == "learning_rate":
            if not 0.0 < value <= 1.0:
                raise ValueError(f"learning_rate is {value!r}; allowed: above 0, at most 1")
        elif not isinstance(value, int) or isinstance(value, bool) or value < least.get(name, 1):
            raise ValueError(f"{name} is {value!r}; allowed: whole numbers from {least.get(name, 1)} on")


def _fold(projections: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return every projection and the first layer as one matrix ``(d, M x width)``: (x T) W = x (T W)."""
    folded = projections.astype(np.float64) @ weight.T.astype(np.float64)
    m, d, width = folded.shape
    return np.ascontiguousarray(folded.transpose(1, 0, 2).reshape(d, m * width), dtype=np.float32)
