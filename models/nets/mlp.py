"""GOAD's network and one training run of it: which of M random projections was a row put through?

Architecture: SRR paper, appendix A.3. M projections T_m to few dimensions and f = [Linear, LeakyReLU] x n shared by all
of them; what tells the M apart is a linear classifier (equation 5) or the nearest centre (equations 3 and 4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

LEAK = 0.2
SGD_MOMENTUM = 0.9
SGD_WEIGHT_DECAY = 3e-5
"""Of the paper's table 1, as `SGD_MOMENTUM`: momentum 0.9, L2 weight 0.00003."""
_DRAWN_AT_ONCE = 256
_EAGER_STEPS = 3
"""Steps on a GPU before one is recorded: memory and the optimiser's state must be there."""
_CHUNK_LOGITS = 2**17
"""Half a MiB, which stays in a core's cache."""


class ProjectionNet(nn.Module):
    """f and what tells the projections apart, over fixed projections.

    Parameters
    ----------
    projections
        ``(M, d, n_projected)``, not trained.
    layers
        Weight ``(out, in)`` and bias ``(out,)`` of each layer of f, then, with the head ``linear``, of the classifier.
    head
        ``linear`` or ``centres``.
    """

    projections: torch.Tensor

    def __init__(
        self,
        projections: NDArray[np.float32],
        layers: list[tuple[NDArray[np.float32], NDArray[np.float32]]],
        head: str = "linear",
    ) -> None:
        super().__init__()
        self.register_buffer("projections", torch.from_numpy(projections.copy()))
        self.weights = nn.ParameterList([nn.Parameter(torch.from_numpy(w.copy())) for w, _ in layers])
        self.biases = nn.ParameterList([nn.Parameter(torch.from_numpy(b.copy())) for _, b in layers])
        self._head = head

    def loss(self, X: torch.Tensor, picked: torch.Tensor | None) -> torch.Tensor:
        """Return the mean cross-entropy of ``(n, d)`` rows under the picked projections, or all of them if None."""
        n_hidden = len(self.weights) - (self._head == "linear")
        projections = self.projections if picked is None else self.projections[picked]
        # (X T) W is X (T W): folding the first layer into the projection costs d x 8 instead of d x 32 a row.
        folded = projections @ self.weights[0].T
        n, m, width = len(X), len(projections), folded.shape[-1]
        hidden = (X @ folded.transpose(0, 1).reshape(X.shape[1], m * width)).reshape(n * m, width) + self.biases[0]
        for weight, bias in zip(self.weights[1:n_hidden], self.biases[1:n_hidden], strict=True):
            hidden = functional.linear(functional.leaky_relu(hidden, LEAK), weight, bias)
        features = functional.leaky_relu(hidden, LEAK)
        of = torch.arange(m, device=X.device)
        if self._head == "linear":
            of = of if picked is None else picked
            return linear_cross_entropy(features, self.weights[-1], self.biases[-1], of.repeat(n))
        centres = features.reshape(n, m, width).mean(dim=0)
        # Of -|z - c|² the term -|z|² is the same for all centres, and falls out of the softmax.
        return linear_cross_entropy(features, 2.0 * centres, -centres.square().sum(dim=1), of.repeat(n))

    def layers(self) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Return the trained weights and biases as numpy arrays of their own."""
        return [
            (w.detach().cpu().numpy().copy(), b.detach().cpu().numpy().copy())
            for w, b in zip(self.weights, self.biases, strict=True)
        ]


class _LinearCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of a linear layer's logits, and its gradients on the way, a chunk of rows at a time.

    All logits at once are 16 MiB for 64 rows under 256 projections, and PyTorch goes over them six times.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        n, m = len(hidden), len(weight)
        n_chunk = n if hidden.is_cuda else max(1, _CHUNK_LOGITS // m)
        loss = hidden.new_zeros(())
        d_hidden, d_weight, d_bias = torch.empty_like(hidden), torch.zeros_like(weight), torch.zeros_like(bias)
        for start in range(0, n, n_chunk):
            rows, own = hidden[start : start + n_chunk], labels[start : start + n_chunk, None]
            logits = torch.addmm(bias, rows, weight.T)
            logits -= logits.amax(dim=1, keepdim=True)
            loss -= logits.gather(1, own).sum()
            total = logits.exp_().sum(dim=1, keepdim=True)
            loss += total.log().sum()
            # The gradient of the logits: (softmax - one-hot) / n.
            logits /= total * n
            logits.scatter_add_(1, own, logits.new_full((1, 1), -1.0 / n).expand(len(own), 1))
            torch.mm(logits, weight, out=d_hidden[start : start + n_chunk])
            d_weight.addmm_(logits.T, rows)
            d_bias += logits.sum(dim=0)
        ctx.save_for_backward(d_hidden, d_weight, d_bias)
        return loss / n

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (d_loss,) = grads
        d_hidden, d_weight, d_bias = ctx.saved_tensors
        return d_hidden * d_loss, d_weight * d_loss, d_bias * d_loss, None


def linear_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Return the mean cross-entropy of logits ``hidden weightᵀ + bias``, ``(n, M)``, against ``(n,)`` labels."""
    loss: torch.Tensor = _LinearCrossEntropy.apply(hidden, weight, bias, labels)  # type: ignore[no-untyped-call]
    return loss


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
        self.net = net.to(device)
        self._device = device
        self._batch_rows = batch_rows
        self._n_picked = n_picked
        self._optimizer = _OPTIMIZERS[optimizer](list(self.net.parameters()), learning_rate)
        # Draws are made on the CPU, so that a run on a GPU sees the same batches.
        self._generator = torch.Generator().manual_seed(seed)

    def run(self, X: NDArray[np.float32], n_steps: int, on_step: Callable[[int, float], None] | None = None) -> None:
        """Train for `n_steps` minibatches of ``(n, d)``; every 50 steps, and at the end, report (steps done, loss)."""
        data = torch.from_numpy(X).to(self._device)
        with one_thread():
            do = self._step_of(data, n_steps)
            for step, (rows, picked) in enumerate(self._draws(len(X), n_steps), 1):
                loss = do(rows, picked)
                if on_step is not None and (step % 50 == 0 or step == n_steps):
                    on_step(step, loss.item())

    def _step_of(self, data: torch.Tensor, n_steps: int) -> Step:
        """Return what does a minibatch."""

        def step(rows: torch.Tensor, picked: torch.Tensor | None) -> torch.Tensor:
            self._optimizer.zero_grad()
            loss = self.net.loss(data[rows], picked)
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            return loss.detach()

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


def _adam(parameters: list[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=learning_rate, fused=True, capturable=parameters[0].is_cuda)


def _sgd(parameters: list[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        parameters, lr=learning_rate, momentum=SGD_MOMENTUM, weight_decay=SGD_WEIGHT_DECAY, fused=True
    )


_OPTIMIZERS: dict[str, Callable[[list[nn.Parameter], float], torch.optim.Optimizer]] = {"adam": _adam, "sgd": _sgd}


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
