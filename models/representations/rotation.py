"""Rotation prediction: by which quarter turn was a picture turned?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from models.representations.visual import Visual, check_square

if TYPE_CHECKING:
    from models.nets.pretext import Pretext
    from models.nets.resnet import ResNet18


class Rotation(Visual):
    """An encoder that tells the four quarter turns of square pictures apart; see :class:`Visual` for what all share.

    Plain (Gidaris, Singh, Komodakis 2018) as it is; with ``head_layers`` 8 and ``augment`` the improved form of the
    deep one-class work (Sohn et al. 2021).

    Parameters
    ----------
    head_layers, head_width
        Hidden layers of the head, and their units.
    augment
        Show a random view of every picture: crop, flip, colours, blur.
    min_scale, jitter, blur
        Of the views: the smallest side of a crop in parts of the picture's, the strength of the colour changes, whether
        half of them are blurred.
    """

    name: ClassVar[str] = "rotation"
    task_options: ClassVar[Mapping[str, Any]] = {
        "head_layers": 0,
        "head_width": 512,
        "augment": False,
        "min_scale": 0.5,
        "jitter": 0.4,
        "blur": True,
    }
    defaults: ClassVar[Mapping[str, Any]] = {"learning_rate": 0.01}

    def make_pretext(self, net: ResNet18, shape: tuple[int, int, int]) -> Pretext:
        """Return the task; ValueError if the pictures are not square."""
        from models.nets.pretext import Rotation as Task

        check_square(self.name, shape)
        return Task(net, shape, self.options)
