"""GOAD: a row under M random projections, each through one small network trained to tell which projection it was.

Bergman and Hoshen, "Classification-based anomaly detection for general data" (2020), in the form of the SRR paper's
appendix A.3. Training is :mod:`models.nets.mlp`'s.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from models.state import State

if TYPE_CHECKING:
    from models.nets.mlp import ProjectionTraining
    from models.nets.projection_graph import Layer, ProjectionGraph

_EPOCH_ROWS = 64
_CHOICES = {"optimizer": ("adam", "sgd"), "head": ("linear", "centres")}


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
        self._graph: ProjectionGraph | None = None

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
        self._graph = None

    def embed(self, X: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the outputs of f, ``(n, M, width)``, for ``(n, d)`` rows."""
        return self._as_graph().embed(X)

    def pull_back(self, X: NDArray[np.float32], dZ: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return how a change of the embedding's every part by `dZ` ``(n, M, width)`` pulls at the rows ``(n, d)``.

        That is dZ Jᵀ with J the Jacobian of :meth:`embed` at `X`, by back-propagation.
        """
        pulls = dZ.reshape(len(X), math.prod(dZ.shape[1:])).astype(np.float32)
        return self._as_graph().pull_back(X, pulls).astype(np.float64)

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

    def _as_graph(self) -> ProjectionGraph:
        from models.nets.projection_graph import ProjectionGraph

        projections = self._fitted()
        if self._graph is None:
            layers = self._layers[: self.options["n_layers"]]
            self._graph = ProjectionGraph(_fold(projections, layers[0][0]), layers)
        return self._graph


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
