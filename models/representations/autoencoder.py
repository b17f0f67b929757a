"""Autoencoders: what did the picture look like? The denoising one embeds, the robust one is measured by its errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from models.blocks import by_blocks
from models.occ.flattening import flatten
from models.representations.cells import cell_means
from models.representations.visual import Visual

if TYPE_CHECKING:
    from models.nets.pretext import Pretext
    from models.nets.resnet import ResNet18

_CELLS = 8
"""A picture's residuals are pooled to at most so many cells a side."""
_CUDA_BATCH_ROWS = 256


class DenoisingAutoencoder(Visual):
    """An encoder from whose features the picture can be told without its noise; see :class:`Visual`.

    Vincent, Larochelle, Bengio, Manzagol (2008).

    Parameters
    ----------
    noise
        Standard deviation of the Gaussian noise, in parts of the range of a pixel.
    """

    name: ClassVar[str] = "denoising_autoencoder"
    task_options: ClassVar[Mapping[str, Any]] = {"noise": 0.2}
    defaults: ClassVar[Mapping[str, Any]] = {"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 1e-2}

    def make_pretext(self, net: ResNet18, shape: tuple[int, int, int]) -> Pretext:
        """Return the task."""
        from models.nets.pretext import Reconstruction

        return Reconstruction(net, shape, self.options, is_robust=False)


class RobustAutoencoder(Visual):
    """The baseline of the paper: an autoencoder that lets odd pictures be odd, measured by what it cannot tell.

    Zhou and Paffenroth, "Anomaly detection with robust deep autoencoders" (2017). Its embedding is the root mean square
    of the residuals in the cells of a grid, so that their squares, added up by the classifier ``energy``, are the
    reconstruction error.

    Parameters
    ----------
    noise
        As for :class:`DenoisingAutoencoder`; 0 in the paper.
    """

    name: ClassVar[str] = "robust_autoencoder"
    task_options: ClassVar[Mapping[str, Any]] = {"noise": 0.0}
    defaults: ClassVar[Mapping[str, Any]] = {"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 1e-2}

    def make_pretext(self, net: ResNet18, shape: tuple[int, int, int]) -> Pretext:
        """Return the task."""
        from models.nets.pretext import Reconstruction

        return Reconstruction(net, shape, self.options, is_robust=True)

    def embed(self, X: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the residuals of pictures ``(n, h, w, channels)``, pooled, ``(n, cells)``."""
        return flatten(np.sqrt(cell_means(self._squares(X), _CELLS).astype(np.float32)))

    def places(self, X: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the residuals' root mean squares at each place of pictures, ``(n, h', w', 1)``."""
        return np.sqrt(cell_means(self._squares(X), _CELLS).astype(np.float32))[..., None]

    def _squares(self, X: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the mean over channels of the squared residuals, ``(n, h, w)``."""
        import torch

        from models.nets.inference import EAGER_BATCH_ROWS
        from models.nets.visual_training import to_images

        net, pretext = self._networks(X)
        head = pretext.head.eval()
        net.eval()
        device = next(net.parameters()).device

        def squares(rows: NDArray[np.uint8]) -> NDArray[np.float32]:
            images = to_images(rows, device)
            with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                squares: NDArray[np.float32] = (head(net(images)) - images).square().mean(dim=1).cpu().numpy()
            return squares

        return by_blocks(squares, X, n_rows=_CUDA_BATCH_ROWS if device.type == "cuda" else EAGER_BATCH_ROWS)
