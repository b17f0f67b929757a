"""Contrastive learning: which two views are of the same picture?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from models.representations.visual import Visual, check_square

if TYPE_CHECKING:
    from models.nets.pretext import Pretext
    from models.nets.resnet import ResNet18


class Contrastive(Visual):
    """An encoder that knows a picture again in another view; see :class:`Visual` for what all share.

    Chen, Kornblith, Norouzi, Hinton (2020), as the deep one-class work of Sohn et al. (2021) has it: the paper's for
    CIFAR-10, Fashion-MNIST and Dog-vs-Cat.

    Parameters
    ----------
    head_layers, head_width, head_outputs
        Hidden layers of the head, their units, and dimensions of its output.
    distribution_augmented
        The four quarter turns of a picture count as pictures of their own (square pictures only): the features cannot
        spread evenly over the sphere then, which would leave no room for anomalies.
    temperature
        τ of NT-Xent.
    min_scale, jitter, blur
        Of the views; see :class:`models.representations.rotation.Rotation`.
    """

    name: ClassVar[str] = "contrastive"
    task_options: ClassVar[Mapping[str, Any]] = {
        "head_layers": 8,
        "head_width": 512,
        "head_outputs": 128,
        "distribution_augmented": True,
        "temperature": 0.2,
        "min_scale": 0.5,
        "jitter": 0.4,
        "blur": True,
    }
    defaults: ClassVar[Mapping[str, Any]] = {"learning_rate": 0.01, "batch_rows": 32}

    def make_pretext(self, net: ResNet18, shape: tuple[int, int, int]) -> Pretext:
        """Return the task; ValueError if the four turns are wanted of pictures that are not square."""
        from models.nets.pretext import Contrastive as Task

        if self.options["distribution_augmented"]:
            check_square(f"{self.name} with distribution_augmented", shape)
        return Task(net, shape, self.options)
