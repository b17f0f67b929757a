"""One training run of a network on pictures: minibatches, precision, schedule, seeds. The task is a pretext's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models.nets.pretext import Pretext

MOMENTUM = 0.9


class VisualTraining:
    """Trains an encoder and a pretext's head, minibatch by minibatch, as long as asked to.

    Parameters
    ----------
    n_steps
        How many steps are coming in all: the learning rate falls to 0 by the half cosine over them.
    precision
        ``float32``, ``bfloat16`` (autocast), or ``auto``: bfloat16 where the device computes in it.
    is_compiled
        Compile the encoder (CUDA only): the first steps take a minute longer, the others less time.
    """

    def __init__(
        self,
        encoder: nn.Module,
        pretext: Pretext,
        *,
        batch_rows: int,
        optimizer: str,
        learning_rate: float,
        weight_decay: float,
        n_steps: int,
        precision: str,
        is_compiled: bool,
        device: str,
        seed: int,
    ) -> None:
        self._device = torch.device(device)
        self._is_half = uses_bfloat16(precision, self._device)
        # On a processor, 32-bit convolutions of few channels crash in this layout (PyTorch 2.13); 16-bit ones gain.
        self._layout = torch.channels_last if self._is_half or self._device.type == "cuda" else torch.contiguous_format
        self.encoder = encoder.to(self._device).to(memory_format=self._layout)  # type: ignore[call-overload]
        self._pretext = pretext
        pretext.head.to(self._device)
        self._forward = torch.compile(encoder) if is_compiled and self._device.type == "cuda" else encoder
        parameters = [*encoder.parameters(), *pretext.head.parameters()]
        fused = self._device.type == "cuda"
        self._optimizer: torch.optim.Optimizer = (
            torch.optim.SGD(parameters, learning_rate, momentum=MOMENTUM, weight_decay=weight_decay, fused=fused)
            if optimizer == "sgd"
            else torch.optim.AdamW(parameters, learning_rate, weight_decay=weight_decay, fused=fused)
        )
        self._learning_rate = learning_rate
        self._batch_rows = batch_rows
        self._n_steps = n_steps
        self._done = 0
        self._rng = np.random.default_rng(seed)

    def run(self, X: NDArray[np.uint8], n_steps: int, on_step: Callable[[int, float], None] | None = None) -> None:
        """Do `n_steps` minibatches of ``(n, h, w, c)`` pictures; an epoch goes through them in random order."""
        self.encoder.train()
        self._pretext.head.train()
        is_cuda = self._device.type == "cuda"
        with torch.random.fork_rng(devices=[self._device] if is_cuda else []):
            torch.manual_seed(int(self._rng.integers(2**31)))
            order = np.empty(0, dtype=np.int64)
            for step in range(1, n_steps + 1):
                if len(order) < min(self._batch_rows, len(X)):
                    order = np.concatenate([order, self._rng.permutation(len(X))])
                rows, order = order[: self._batch_rows], order[self._batch_rows :]
                loss = self._step(to_images(X[rows], self._device))
                if on_step is not None:
                    on_step(step, loss)
        self.encoder.eval()

    def _step(self, images: torch.Tensor) -> float:
        for group in self._optimizer.param_groups:
            group["lr"] = self._learning_rate * 0.5 * (1.0 + math.cos(math.pi * min(1.0, self._done / self._n_steps)))
        self._optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._is_half):
            loss = self._pretext.loss(self._encode, images)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._done += 1
        return float(loss.detach())

    def _encode(self, images: torch.Tensor) -> Any:
        return self._forward(images.contiguous(memory_format=self._layout))


def uses_bfloat16(precision: str, device: torch.device) -> bool:
    """Return whether to compute in bfloat16: if asked for, or with ``auto`` where the device has units for it."""
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    # Not public, and not in every release: without them float32 it is.
    asks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(ask is not None and ask() for ask in asks)


def to_images(X: NDArray[np.uint8], device: torch.device) -> torch.Tensor:
    """Return ``(n, h, w, c)`` bytes as ``(n, c, h, w)`` float32 in 0 to 1, on the device."""
    tensor = torch.from_numpy(np.ascontiguousarray(X)).to(device, non_blocking=True)
    return tensor.permute(0, 3, 1, 2).to(torch.float32).div_(255.0)
