"""GOAD's network and one training run of it: which of M random projections was a row put through?

Architecture: SRR paper, appendix A.3. M projections T_m to few dimensions and f = [Linear, LeakyReLU] x n shared by all
of them; what tells the M apart is a linear classifier (equation 5) or the nearest centre (equations 3 and 4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from models.nets.projection_graph import LEAK

SGD_MOMENTUM = 0.9
SGD_WEIGHT_DECAY = 3e-5
"""Of the paper's table 1, as `SGD_MOMENTUM`: momentum 0.9, L2 weight 0.00003."""
_DRAWN_AT_ONCE = 256
_EAGER_STEPS = 3
"""Steps on a GPU before one is recorded: memory and the optimiser's state must be there."""
_CHUNK_LOGITS = 2**17
"""Half a MiB, which stays in a core's cache."""


class ProjectionNet:
    """f and what tells the projections apart, over fixed projections, with its gradients written out.

    Autograd's bookkeeping would take longer than the products of such small layers. All parameters are parts of one
    vector, so that an optimiser goes over them at once.

    Parameters
    ----------
    projections
        ``(M, d, n_projected)``, not trained.
    layers
        Weight ``(out, in)`` and bias ``(out,)`` of each layer of f, then, with the head ``linear``, of the classifier.
    head
        ``linear`` or ``centres``.
    """

    def __init__(
        self,
        projections: NDArray[np.float32],
        layers: list[tuple[NDArray[np.float32], NDArray[np.float32]]],
        head: str = "linear",
        device: str = "cpu",
    ) -> None:
        self.projections = torch.from_numpy(projections.copy()).to(device)
        parts = [torch.from_numpy(part) for layer in layers for part in layer]
        self.parameters = torch.cat([part.flatten() for part in parts]).to(device)
        self.parameters.grad = torch.zeros_like(self.parameters)
        shapes = [part.shape for part in parts]
        self._layers = _in_pairs(self.parameters, shapes)
        self._gradients = _in_pairs(self.parameters.grad, shapes)
        self._n_hidden = len(layers) - (head == "linear")

    def loss(self, X: torch.Tensor, picked: torch.Tensor | None) -> torch.Tensor:
        """Return the mean cross-entropy of ``(n, d)`` rows under the picked projections, or all of them if None.

        Its gradient is then ``parameters.grad``.
        """
        (first, first_bias), *rest = self._layers[: self._n_hidden]
        (d_first, d_first_bias), *d_rest = self._gradients[: self._n_hidden]
        projections = self.projections if picked is None else self.projections.index_select(0, picked)
        m, d, n_projected = projections.shape
        n, width = len(X), len(first)
        flat = projections.view(m * d, n_projected)
        # (X T) W is X (T W): folding the first layer into the projection costs d x 8 instead of d x 32 a row. Hidden
        # units are rows, what they are of columns: with as few units as here the products are faster than crosswise.
        folded = torch.mm(first, flat.T).view(width * m, d)
        hidden = [torch.mm(folded, X.T).view(width, m * n).add_(first_bias[:, None])]
        functional.leaky_relu_(hidden[0], LEAK)
        for weight, bias in rest:
            hidden.append(functional.leaky_relu_(torch.addmm(bias[:, None], weight, hidden[-1]), LEAK))
        loss, pull = self._head_loss(hidden[-1], m, picked)
        for (weight, _), (d_weight, d_bias) in zip(reversed(rest), reversed(d_rest), strict=True):
            pull = _leaky_relu_backward(pull, hidden.pop())
            torch.mm(pull, hidden[-1].T, out=d_weight)
            torch.sum(pull, dim=1, out=d_bias)
            pull = torch.mm(weight.T, pull)
        pull = _leaky_relu_backward(pull, hidden.pop())
        torch.sum(pull, dim=1, out=d_first_bias)
        torch.mm(torch.mm(pull.view(width * m, n), X).view(width, m * d), flat, out=d_first)
        return loss

    def _head_loss(
        self, features: torch.Tensor, m: int, picked: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss of features ``(width, m n)`` and its gradient by them; those of the head are written."""
        width, n = len(features), features.shape[1] // m
        of = torch.arange(m, device=features.device)
        if self._n_hidden < len(self._layers):
            (weight, bias), (d_weight, d_bias) = self._layers[-1], self._gradients[-1]
            labels = (of if picked is None else picked)[:, None].expand(m, n).flatten()
            return linear_cross_entropy(features, weight, bias, labels, d_weight, d_bias)
        centres = features.view(width, m, n).mean(dim=2)
        d_weight, d_bias = torch.empty_like(centres.T), torch.empty_like(centres[0])
        # Of -|z - c|² the term -|z|² is the same for all centres, and falls out of the softmax.
        labels = of[:, None].expand(m, n).flatten()
        loss, pull = linear_cross_entropy(
            features, 2.0 * centres.T, -centres.square().sum(dim=0), labels, d_weight, d_bias
        )
        d_centres = 2.0 * (d_weight.T - centres * d_bias)
        pull.view(width, m, n).add_(d_centres[:, :, None], alpha=1.0 / n)
        return loss, pull

    def layers(self) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Return the trained weights and biases as numpy arrays of their own."""
        return [(weight.cpu().numpy().copy(), bias.cpu().numpy().copy()) for weight, bias in self._layers]


def _in_pairs(vector: torch.Tensor, shapes: list[torch.Size]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the parts of a vector that are weight and bias of each layer."""
    parts = torch.split(vector, [shape.numel() for shape in shapes])
    shaped = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
    return list(zip(shaped[::2], shaped[1::2], strict=True))


def _leaky_relu_backward(pull: torch.Tensor, activated: torch.Tensor) -> torch.Tensor:
    """Return the gradient before a leaky ReLU of which `activated` came out, of the same sign as what went in."""
    before: torch.Tensor = torch.ops.aten.leaky_relu_backward(pull, activated, LEAK, True)
    return before


def linear_cross_entropy(
    features: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    labels: torch.Tensor,
    d_weight: torch.Tensor,
    d_bias: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean cross-entropy of a linear layer's logits, and its gradient by the features.

    Logits are made a chunk of columns at a time: all at once they are 16 MiB for 64 rows under 256 projections, and are
    gone over six times.

    Parameters
    ----------
    features
        ``(width, n)``, a column for each of the n.
    weight, bias, labels
        ``(M, width)``, ``(M,)`` and ``(n,)``: the logits are ``weight features + bias``.
    d_weight, d_bias
        Where the gradients by weight and bias are written.
    """
    n, m = features.shape[1], len(weight)
    n_chunk = n if features.is_cuda else max(1, _CHUNK_LOGITS // m)
    loss, d_features = features.new_zeros(()), torch.empty_like(features)
    d_weight.zero_()
    d_bias.zero_()
    for start in range(0, n, n_chunk):
        columns, own = features[:, start : start + n_chunk], labels[None, start : start + n_chunk]
        logits = torch.addmm(bias[:, None], weight, columns)
        logits -= logits.amax(dim=0, keepdim=True)
        loss -= logits.gather(0, own).sum()
        total = logits.exp_().sum(dim=0, keepdim=True)
        loss += total.log().sum()
        # The gradient of the logits: (softmax - one-hot) / n.
        logits /= total * n
        logits.scatter_add_(0, own, logits.new_full((1, 1), -1.0 / n).expand_as(own))
        d_features[:, start : start + n_chunk] = torch.mm(weight.T, logits)
        d_weight.addmm_(logits, columns.T)
        d_bias += logits.sum(dim=1)
    return loss / n, d_features


class ProjectionTraining:
    """A training run that can be continued: network, optimiser and draws live on between calls of :meth:`run`.

    Parameters
    ----------
    optimizer
        ``adam``, or ``sgd``: the paper's, with momentum and weight decay.

    Differs from the paper: Adam by default instead of SGD, with which the loss hardly leaves ln M, and a random part of
    the projections in each step instead of all, at the same F1 for a tenth of the time.
    """

    def __init__(
        self,
        net: ProjectionNet,
        *,
        batch_rows: int,
        n_picked: int,
        optimizer: str,
        learning_rate: float,
        device: str,
        seed: int,
    ) -> None:
        self.net = net
        self._device = device
        self._batch_rows = batch_rows
        self._n_picked = n_picked
        self._optimizer = _OPTIMIZERS[optimizer]([net.parameters], learning_rate)
        # Draws are made on the CPU, so that a run on a GPU sees the same batches.
        self._generator = torch.Generator().manual_seed(seed)

    def run(self, X: NDArray[np.float32], n_steps: int, on_step: Callable[[int, float], None] | None = None) -> None:
        """Train for `n_steps` minibatches of ``(n, d)``; every 50 steps, and at the end, report (steps done, loss)."""
        data = torch.from_numpy(X).to(self._device)
        with one_thread(), torch.no_grad():
            do = self._step_of(data, n_steps)
            for step, (rows, picked) in enumerate(self._draws(len(X), n_steps), 1):
                loss = do(rows, picked)
                if on_step is not None and (step % 50 == 0 or step == n_steps):
                    on_step(step, loss.item())

    def _step_of(self, data: torch.Tensor, n_steps: int) -> Step:
        """Return what does a minibatch."""

        def step(rows: torch.Tensor, picked: torch.Tensor | None) -> torch.Tensor:
            loss = self.net.loss(data.index_select(0, rows), picked)
            self._optimizer.step()
            return loss

        return _Recorded(step) if data.is_cuda and n_steps > 2 * _EAGER_STEPS else step

    def _draws(self, n: int, n_steps: int) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Yield the rows, and the projections unless all are taken, of every minibatch, on the device."""
        m = len(self.net.projections)
        order = torch.empty(0, dtype=torch.long)
        for start in range(0, n_steps, _DRAWN_AT_ONCE):
            rows, picked = [], []
            for _ in range(start, min(start + _DRAWN_AT_ONCE, n_steps)):
                if len(order) < min(self._batch_rows, n):
                    order = torch.randperm(n, generator=self._generator)
                rows.append(order[: self._batch_rows])
                order = order[self._batch_rows :]
                if self._n_picked < m:
                    picked.append(torch.randperm(m, generator=self._generator)[: self._n_picked])
            all_rows = torch.stack(rows).to(self._device)
            all_picked = torch.stack(picked).to(self._device) if picked else [None] * len(rows)
            yield from zip(all_rows, all_picked, strict=True)


Step = Callable[[torch.Tensor, "torch.Tensor | None"], torch.Tensor]
"""Does a minibatch of rows and picked projections, both indices on the device, and returns its loss."""


class _Recorded:
    """A step on a GPU that is recorded after a few, and then played back.

    It is a hundred kernels, each done sooner than the processor can ask for the next: one after the other they took
    3.3 ms on an H200, more than the whole step on a processor.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        self._n_done = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._rows = self._picked = self._loss = torch.empty(0)

    def __call__(self, rows: torch.Tensor, picked: torch.Tensor | None) -> torch.Tensor:
        if self._graph is None and self._n_done < _EAGER_STEPS:
            self._n_done += 1
            return self._beside(lambda: self._step(rows, picked))
        if self._graph is None:
            self._record(rows, picked)
        assert self._graph is not None
        self._rows.copy_(rows)
        if picked is not None:
            self._picked.copy_(picked)
        self._graph.replay()
        return self._loss

    def _record(self, rows: torch.Tensor, picked: torch.Tensor | None) -> None:
        self._rows = rows.clone()
        self._picked = rows if picked is None else picked.clone()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._loss = self._step(self._rows, None if picked is None else self._picked)
        self._graph = graph

    @staticmethod
    def _beside(work: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Work on a stream of its own, as what is to be recorded must have been."""
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            done = work()
        torch.cuda.current_stream().wait_stream(side)
        return done


def _adam(parameters: list[torch.Tensor], learning_rate: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=learning_rate, fused=True, capturable=parameters[0].is_cuda)


def _sgd(parameters: list[torch.Tensor], learning_rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        parameters, lr=learning_rate, momentum=SGD_MOMENTUM, weight_decay=SGD_WEIGHT_DECAY, fused=True
    )


_OPTIMIZERS: dict[str, Callable[[list[torch.Tensor], float], torch.optim.Optimizer]] = {"adam": _adam, "sgd": _sgd}


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep PyTorch to one thread: a step is many small products, which threads slow down.

    It also makes the weights the same, bit for bit, whatever number of threads there is.
    """
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)
