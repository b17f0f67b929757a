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
_LEAST_ROWS = 16
"""The same of the last block, if it has so few."""
_FEW_ROWS = 8
"""Of all blocks where `are_alike` says no: the largest product that treats all its rows alike there."""
_TILE = 16
"""Inner dimension from which on a product of matrices runs at full speed; layers of width 8 take two at once."""
_SHAPES = ((121, 512), (16, 256), (32, 64), (16, 16), (8, 8), (256, 16), (512, 128))
"""Inner and outer dimensions of products as there are here."""
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
    back: tuple[torch.Tensor, ...]
    """The transposed weights of the same layers."""
    folded_back: torch.Tensor
    """The transposed first layer, ``(M width, d)`` with columns of zeros added, see :func:`whole_tiles`."""


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

        network = self._as_network()
        with torch.inference_mode(), one_thread():
            return by_blocks(lambda block: self._embed_block(block, network), X, **_block_sizes())

    def pull_back(self, X: NDArray[np.float32], dZ: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return how a change of the embedding's every part by `dZ` ``(n, M, width)`` pulls at the rows ``(n, d)``.

        That is dZ Jᵀ with J the Jacobian of :meth:`embed` at `X`, by back-propagation.
        """
        import torch

        from models.nets.mlp import one_thread

        network, d = self._as_network(), X.shape[1]
        pairs = np.concatenate([X, dZ.reshape(len(X), -1)], axis=1, dtype=np.float32, casting="same_kind")
        with torch.inference_mode(), one_thread():
            pulled = by_blocks(
                lambda block: self._pull_back_block(block[:, :d], block[:, d:], network), pairs, **_block_sizes()
            )
        return pulled.astype(np.float64)

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
                tuple(torch.from_numpy(np.kron(diagonal, weight)) for weight, _ in rest),
                torch.from_numpy(whole_tiles(folded.T)),
            )
        return self._network

    def _embed_block(self, X: NDArray[np.float32], network: Network) -> NDArray[np.float32]:
        features: NDArray[np.float32] = _layers(X, network)[-1].numpy()
        return features.reshape(len(X), self.options["n_transforms"], self.options["width"])

    def _pull_back_block(
        self, X: NDArray[np.float32], dZ: NDArray[np.float32], network: Network
    ) -> NDArray[np.float32]:
        import torch

        slope_of = torch.ops.aten.leaky_relu_backward
        first, *hidden = _layers(X, network)
        pulled = torch.from_numpy(np.ascontiguousarray(dZ))
        for weight, outputs in zip(reversed(network.back), reversed(hidden), strict=True):
            pulled = torch.mm(slope_of(pulled.view(outputs.shape), outputs, float(LEAK), True), weight)
        pulled = torch.mm(slope_of(pulled.view(first.shape), first, float(LEAK), True), network.folded_back)
        pull: NDArray[np.float32] = pulled.numpy()[:, : X.shape[1]]
        return pull


def _layers(X: NDArray[np.float32], network: Network) -> list[torch.Tensor]:
    """Return the outputs of every layer, rows of as many columns as the layer's bias has."""
    import torch
    from torch.nn import functional

    hidden = torch.addmm(network.first_bias, torch.from_numpy(np.ascontiguousarray(X)), network.folded)
    outputs = [functional.leaky_relu_(hidden, float(LEAK))]
    for weight, bias in network.rest:
        hidden = torch.addmm(bias, outputs[-1].view(-1, len(bias)), weight)
        outputs.append(functional.leaky_relu_(hidden, float(LEAK)))
    return outputs


def _block_sizes() -> dict[str, int]:
    """Return how many rows blocks may have on this machine, see :func:`by_blocks`."""
    if not are_alike():
        return {"n_rows": _FEW_ROWS}
    return {"n_rows": _BLOCK_ROWS, "least_rows": _LEAST_ROWS if are_few_alike() else _BLOCK_ROWS}


@cache
def are_alike() -> bool:
    """Return whether a row of a float32 product gets the same bits wherever it stands in a block, on this machine."""
    import torch

    order = torch.randperm(_BLOCK_ROWS, generator=torch.Generator().manual_seed(1))
    return _hold(lambda multiply, rows, product: torch.equal(product[order], multiply(rows[order])))


@cache
def are_few_alike() -> bool:
    """Return whether it gets the same bits in smaller blocks, too."""
    import torch

    sizes = [_LEAST_ROWS << shift for shift in range((_BLOCK_ROWS // _LEAST_ROWS).bit_length() - 1)]
    return _hold(lambda multiply, rows, product: all(torch.equal(product[:n], multiply(rows[:n])) for n in sizes))


def _hold(is_so: Callable[[Callable[[torch.Tensor], torch.Tensor], torch.Tensor, torch.Tensor], bool]) -> bool:
    """Return whether something is so of random products: of how to multiply, a block of rows, and their product."""
    import torch

    from models.nets.mlp import one_thread

    generator = torch.Generator().manual_seed(0)
    with one_thread():
        for n_in, n_out in _SHAPES:
            rows = torch.randn(_BLOCK_ROWS, n_in, generator=generator)
            weights, bias = torch.randn(n_in, n_out, generator=generator), torch.randn(n_out, generator=generator)

            def multiply(some: torch.Tensor, w: torch.Tensor = weights, b: torch.Tensor = bias) -> torch.Tensor:
                return torch.addmm(b, some, w)

            if not is_so(multiply, rows, multiply(rows)):
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
