"""CutPaste: was a part of the picture cut out and pasted elsewhere?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from models.representations.visual import Choices, Visual

if TYPE_CHECKING:
    from models.nets.pretext import Pretext
    from models.nets.resnet import ResNet18


class CutPaste(Visual):
    """An encoder that sees where a picture does not fit together; see :class:`Visual` for what all share.

    Li, Sohn, Yoon, Pfister, "CutPaste: Self-supervised learning for anomaly detection and localization" (2021): the
    paper's for MVTec, where anomalies are small defects of one kind of thing.

    Parameters
    ----------
    kind
        What is pasted: ``patch``, a rectangle; ``scar``, a thin turned strip; ``three_way``: all three are told apart.
    head_layers, head_width
        Hidden layers of the head, and their units.
    jitter, patch_jitter
        Strength of the colour changes of the picture, and of what is pasted.
    min_area, max_area
        Of a patch, in parts of the picture.
    scar_scale
        Size of a scar; 1: 2-16 x 10-25 pixels in a picture of 256, in proportion in others.
    """

    name: ClassVar[str] = "cutpaste"
    task_options: ClassVar[Mapping[str, Any]] = {
        "kind": "three_way",
        "head_layers": 1,
        "head_width": 512,
        "jitter": 0.1,
        "patch_jitter": 0.1,
        "min_area": 0.02,
        "max_area": 0.15,
        "scar_scale": 1.0,
    }
    choices: ClassVar[Choices] = {"kind": ("patch", "scar", "three_way")}
    defaults: ClassVar[Mapping[str, Any]] = {"weight_decay": 3e-5}

    def make_pretext(self, net: ResNet18, shape: tuple[int, int, int]) -> Pretext:
        """Return the task."""
        from models.nets.pretext import CutPaste as Task

        return Task(net, shape, self.options)
