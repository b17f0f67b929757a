"""GOAD's network and one training run of it: which of M random projections was a row put through?

Architecture: SRR paper, appendix A.3. M projections T_m to few dimensions, f = [Linear, LeakyReLU] x n shared by all of
them, and a linear classifier over the M.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

LEAK = 0.2


class ProjectionNet(nn.Module):
    """f and the classifier, over fixed projections.

    Parameters
    ----------
    projections
        ``(M, d, n_projected)``, not trained.
    layers
        Weight ``(out, in)`` and bias ``(out,)`` of each layer of f, then of the classifier.
    """

    projections: torch.Tensor

    def __init__(self, projections: NDArray[np.float32], layers: list[tuple[NDArray[np.float32], NDArray[np.float32]]]):
        super().__init__()
        self.register_buffer("projections", torch.from_numpy(projections.copy()))
        self.weights = nn.ParameterList([nn.Parameter(torch.from_numpy(w.copy())) for w, _ in layers])
        self.biases = nn.ParameterList([nn.Parameter(torch.from_numpy(b.copy())) for _, b in layers])

    def forward(self, X: torch.Tensor, picked: torch.Tensor) -> torch.Tensor:
        """Return the classifier's logits ``(n, len(picked), M)`` of ``(n, d)`` rows under the picked projections."""
        # (X T) W is X (T W): folding the first layer into the projection costs d x 8 instead of d x 32 a row.
        folded = self.projections[picked] @ self.weights[0].T
        n, m, width = len(X), len(picked), folded.shape[-1]
        hidden = (X @ folded.transpose(0, 1).reshape(X.shape[1], m * width)).reshape(n * m, width) + self.biases[0]
        for weight, bias in zip(self.weights[1:], self.biases[1:], strict=True):
            hidden = functional.linear(functional.leaky_relu(hidden, LEAK), weight, bias)
        logits: torch.Tensor = hidden.reshape(n, m, -1)
        return logits

    def layers(self) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Return the trained weights and biases as numpy arrays of their own."""
        return [
            (w.detach().cpu().numpy().copy(), b.detach().cpu().numpy().copy())
            for w, b in zip(self.weights, self.biases, strict=True)
        ]


class ProjectionTraining:
    """A training run that can be continued: network, optimiser and draws live on between calls of :meth:`run`.

    Differs from the paper: Adam instead of SGD, with which the loss hardly leaves ln M, and a random part of the
    projections in each step instead of all, at the same F1 for a tenth of the time.
    """

    def __init__(
        self, net: ProjectionNet, *, batch_rows: int, n_picked: int, learning_rate: float, device: str, seed: int
    ) -> None:
        self.net = net.to(device)
        self._device = device
        self._batch_rows = batch_rows
        self._n_picked = min(n_picked, len(net.projections))
        self._optimizer = torch.optim.Adam(self.net.parameters(), lr=learning_rate)
        # Draws are made on the CPU, so that a run on a GPU sees the same batches.
        self._generator = torch.Generator().manual_seed(seed)

    def run(self, X: NDArray[np.float32], n_steps: int, on_step: Callable[[int, float], None] | None = None) -> None:
        """Train for `n_steps` minibatches of ``(n, d)``; every 50 steps, and at the end, report (steps done, loss)."""
        data = torch.from_numpy(X).to(self._device)
        m = len(self.net.projections)
        order = torch.empty(0, dtype=torch.long)
        for step in range(1, n_steps + 1):
            if len(order) < min(self._batch_rows, len(X)):
                order = torch.randperm(len(X), generator=self._generator)
            rows, order = order[: self._batch_rows], order[self._batch_rows :]
            picked = torch.randperm(m, generator=self._generator)[: self._n_picked].to(self._device)
            logits = self.net(data[rows.to(self._device)], picked)
            loss = functional.cross_entropy(logits.reshape(-1, m), picked.repeat(len(rows)))
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            if on_step is not None and (step % 50 == 0 or step == n_steps):
                on_step(step, loss.item())
