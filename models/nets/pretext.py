"""Pretext tasks: what a network is trained to do on pictures without labels, each a head and a loss on an encoder.

Rotation: Gidaris, Singh, Komodakis (2018), and with the deeper head and views Sohn et al., "Learning and evaluating
representations for deep one-class classification" (2021), whose contrastive task with distribution augmentation is here
too. CutPaste: Li, Sohn, Yoon, Pfister (2021). All as in the SRR paper's appendix A.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional

from models.nets.augmentation import cut_and_paste, rotations, scar, views
from models.nets.resnet import ResNet18, projection_head

Encode = Callable[[torch.Tensor], torch.Tensor]
"""Pictures ``(n, c, h, w)`` → pooled features ``(n, d)``."""


class Pretext(Protocol):
    """A task over pictures of one shape."""

    head: nn.Module
    """Trained with the encoder, and no part of what scores."""

    def loss(self, encoder: Encode, images: torch.Tensor) -> torch.Tensor:
        """Return the mean loss on ``(n, c, h, w)`` pictures, drawing what is random from torch's global generator."""
        ...


class Rotation:
    """By which quarter turn was a picture turned?"""

    def __init__(self, encoder: ResNet18, shape: tuple[int, int, int], options: Mapping[str, Any]) -> None:
        h, w, c = shape
        n_hidden = options["head_layers"]
        self.head: nn.Module = projection_head(encoder.n_features, 4, n_hidden=n_hidden, width=options["head_width"])
        self._augment = (
            views(h, w, c, min_scale=options["min_scale"], jitter=options["jitter"], blur=options["blur"])
            if options["augment"]
            else None
        )

    def loss(self, encoder: Encode, images: torch.Tensor) -> torch.Tensor:
        """Return the cross-entropy over the four turns of every picture."""
        if self._augment is not None:
            images = self._augment(images)
        labels = torch.arange(4, device=images.device).repeat_interleave(len(images))
        return functional.cross_entropy(self.head(encoder(rotations(images))).float(), labels)


class Contrastive:
    """Which of the second views is of the same picture?"""

    def __init__(self, encoder: ResNet18, shape: tuple[int, int, int], options: Mapping[str, Any]) -> None:
        h, w, c = shape
        self.head: nn.Module = projection_head(
            encoder.n_features,
            options["head_outputs"],
            n_hidden=options["head_layers"],
            width=options["head_width"],
            bias=False,
        )
        self._augment = views(h, w, c, min_scale=options["min_scale"], jitter=options["jitter"], blur=options["blur"])
        self._temperature = options["temperature"]
        self._is_distribution_augmented = options["distribution_augmented"]

    def loss(self, encoder: Encode, images: torch.Tensor) -> torch.Tensor:
        """Return :func:`nt_xent` of two views of every picture, or of its four turns as pictures of their own."""
        first, second = self._augment(images), self._augment(images)
        if self._is_distribution_augmented:
            first, second = rotations(first), rotations(second)
        outputs: torch.Tensor = self.head(encoder(torch.cat([first, second]))).float()
        n = len(first)
        return nt_xent(outputs[:n], outputs[n:], self._temperature)


def nt_xent(first: torch.Tensor, second: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the normalised temperature-scaled cross-entropy, in one direction.

    Mean over i of -log(exp(s_ii / τ) / Σ_j exp(s_ij / τ)) with s_ij the cosine of first view i and second view j
    (Sohn et al. 2021, as the authors' code has it: only second views are compared with).

    Parameters
    ----------
    first, second
        ``(n, d)``, row i of both a view of instance i.
    temperature
        τ. Smaller: harder negatives count more.
    """
    similarity = functional.normalize(first, dim=1) @ functional.normalize(second, dim=1).T
    return functional.cross_entropy(similarity / temperature, torch.arange(len(first), device=first.device))


class CutPaste:
    """Was a part of the picture cut out and pasted elsewhere?"""

    def __init__(self, encoder: ResNet18, shape: tuple[int, int, int], options: Mapping[str, Any]) -> None:
        self._kinds = ("none", "patch", "scar") if options["kind"] == "three_way" else ("none", options["kind"])
        self.head: nn.Module = projection_head(
            encoder.n_features, len(self._kinds), n_hidden=options["head_layers"], width=options["head_width"]
        )
        self._options = options

    def loss(self, encoder: Encode, images: torch.Tensor) -> torch.Tensor:
        """Return the cross-entropy over the kinds that every picture was changed by."""
        n = len(images)
        changed = torch.cat([self._change(kind, images) for kind in self._kinds])
        labels = torch.arange(len(self._kinds), device=images.device).repeat_interleave(n)
        return functional.cross_entropy(self.head(encoder(changed)).float(), labels)

    def _change(self, kind: str, images: torch.Tensor) -> torch.Tensor:
        o = self._options
        if o["jitter"]:
            n = len(images)
            contrast = 1.0 + o["jitter"] * (2.0 * torch.rand(n, 1, 1, 1, device=images.device) - 1.0)
            images = (images * contrast).clamp(0.0, 1.0)
        if kind == "patch":
            return cut_and_paste(images, area=(o["min_area"], o["max_area"]), jitter=o["patch_jitter"])
        if kind == "scar":
            return scar(images, jitter=o["patch_jitter"], scale=o["scar_scale"])
        return images


class Reconstruction:
    """What did the picture look like before the noise, as seen through the encoder's features alone?

    With `is_robust` the loss is the Huber function of each picture's residual norm, its bend at the minibatch's median.
    That is the robust autoencoder of Zhou and Paffenroth (2017), X = L + S with S by the ℓ2,1 norm, whose S has been
    minimised out: min over S of ½|R - S|² + λ|S| is the Huber function of |R|.
    """

    def __init__(
        self, encoder: ResNet18, shape: tuple[int, int, int], options: Mapping[str, Any], *, is_robust: bool
    ) -> None:
        self.head: nn.Module = Decoder(encoder.n_features, shape, width=options["width"])
        self._noise = options["noise"]
        self._is_robust = is_robust

    def loss(self, encoder: Encode, images: torch.Tensor) -> torch.Tensor:
        """Return the mean squared error a pixel, or its robust form."""
        noisy = images + self._noise * torch.randn_like(images) if self._noise else images
        residual: torch.Tensor = self.head(encoder(noisy)).float() - images
        if not self._is_robust:
            return residual.square().mean()
        size = residual.square().mean(dim=(1, 2, 3)).add(1e-12).sqrt()
        bend = size.detach().median()
        return torch.where(size <= bend, 0.5 * size.square(), bend * (size - 0.5 * bend)).mean()


class Decoder(nn.Module):
    """Features ``(n, d)`` → pictures ``(n, c, h, w)``: four doublings of the resolution from a small map."""

    def __init__(self, n_features: int, shape: tuple[int, int, int], *, width: int) -> None:
        super().__init__()
        h, w, c = shape
        self._shape = shape
        self._small = (max(1, -(-h // 16)), max(1, -(-w // 16)))
        self._width = 8 * width
        self.expand = nn.Linear(n_features, self._width * self._small[0] * self._small[1])
        layers: list[nn.Module] = []
        n_in = self._width
        for n_out in (4 * width, 2 * width, width, width):
            layers += [
                nn.Upsample(scale_factor=2),
                nn.Conv2d(n_in, n_out, 3, padding=1, bias=False),
                nn.BatchNorm2d(n_out),
                nn.ReLU(),
            ]
            n_in = n_out
        self.layers = nn.Sequential(*layers, nn.Conv2d(n_in, c, 3, padding=1))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the pictures."""
        h, w, _ = self._shape
        small = self.expand(features).reshape(len(features), self._width, *self._small)
        images: torch.Tensor = self.layers(small)
        return images[:, :, :h, :w]
