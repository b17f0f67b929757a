"""What the representations that are trained on pictures share: a ResNet-18, a pretext task, pooled features.

Each of :mod:`models.representations.rotation`, `contrastive` and `cutpaste` adds its task and its options. Networks and
training are :mod:`models.nets`'s; how a trained encoder scores quickly is :mod:`models.nets.inference`'s.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from models.state import State

if TYPE_CHECKING:
    from models.nets.inference import Encoder
    from models.nets.pretext import Pretext
    from models.nets.resnet import ResNet18
    from models.nets.visual_training import VisualTraining

Choices = Mapping[str, tuple[Any, ...]]

_OPTIONS: dict[str, Any] = {
    "width": 64,
    "stem": "auto",
    "layer": 4,
    "l2_normalise": True,
    "n_epochs": 64,
    "steps_per_epoch": 0,
    "warm_up_epochs": 1,
    "batch_rows": 64,
    "optimizer": "sgd",
    "learning_rate": 0.03,
    "weight_decay": 3e-4,
    "precision": "auto",
    "is_compiled": False,
}
_CHOICES: dict[str, tuple[Any, ...]] = {
    "stem": ("auto", "full", "half", "usual"),
    "layer": (1, 2, 3, 4),
    "optimizer": ("sgd", "adamw"),
    "precision": ("auto", "float32", "bfloat16"),
}

_MOST = {"jitter": 0.5, "patch_jitter": 1, "min_scale": 1, "min_area": 1, "max_area": 1}
"""Of options that are shares. A hue jittered by 0.5 is any hue."""
_LEAST = {"head_layers": 0, "steps_per_epoch": 0, "batch_rows": 2, "width": 8}
"""Of options that count. PyTorch 2.13 writes beyond its memory at width 4 on processors without AVX-512."""


class Visual(ABC):
    """An encoder of pictures ``(n, h, w, channels)`` uint8, trained on a pretext task.

    Parameters
    ----------
    width
        Channels of the encoder's first stage, at least 8; 64 in the paper. Cost grows with its square.
    stem
        See :class:`models.nets.resnet.ResNet18`; ``auto``: ``full`` up to 64 pixels, else ``usual``.
    layer
        The stage whose features, pooled, are the embedding: 4 in the paper; earlier ones see smaller things.
    l2_normalise
        Bring every embedding to length 1, as the paper does for pictures.
    n_epochs, steps_per_epoch
        Length of a training, and of an epoch; 0: an epoch is a pass over the rows.
    warm_up_epochs
        Epochs on all rows before the first refinement. One suffices in a long training; in a short one the features
        tell nothing so early, and what is then left out by mistake stays odd.
    batch_rows
        Pictures in a minibatch, before the task multiplies them.
    optimizer, learning_rate, weight_decay
        ``sgd`` with momentum 0.9, or ``adamw``; the rate falls to 0 by half a cosine over a training.
    precision, is_compiled
        Of training: see :class:`models.nets.visual_training.VisualTraining`.
    """

    name: ClassVar[str]
    takes: ClassVar[str] = "picture"
    shrinkage: ClassVar[float] = 1e-2
    task_options: ClassVar[Mapping[str, Any]] = {}
    """The task's own options and their defaults."""
    defaults: ClassVar[Mapping[str, Any]] = {}
    """Options that all have, where this task's default is another."""
    choices: ClassVar[Choices] = {}

    def __init__(self, **options: Any) -> None:
        allowed = {**_OPTIONS, **self.defaults, **self.task_options}
        unknown = sorted(set(options) - set(allowed))
        if unknown:
            raise TypeError(f"{self.name} has no option {', '.join(unknown)}; allowed: {', '.join(allowed)}")
        self.options: dict[str, Any] = {**allowed, **options}
        _check(self.options, allowed, {**_CHOICES, **self.choices})
        self._shape: tuple[int, int, int] | None = None
        self._net: ResNet18 | None = None
        self._pretext: Pretext | None = None
        self._training: VisualTraining | None = None
        self._encoder: Encoder | None = None
        self._n_threads: int | None = None

    def steps_per_epoch(self, n_rows: int) -> int:
        """Return how many steps an epoch has: a pass over the rows, unless it is said otherwise."""
        steps: int = self.options["steps_per_epoch"]
        rows: int = self.options["batch_rows"]
        return steps or max(1, round(n_rows / rows))

    def warm_up_steps(self, n_rows: int) -> int:
        """Return the steps on all rows before the first refinement."""
        epochs: int = self.options["warm_up_epochs"]
        return epochs * self.steps_per_epoch(n_rows)

    def steps_for(self, n_rows: int) -> int:
        """Return how many steps a training on `n_rows` rows has."""
        epochs: int = self.options["n_epochs"]
        return epochs * self.steps_per_epoch(n_rows)

    @abstractmethod
    def make_pretext(self, net: ResNet18, shape: tuple[int, int, int]) -> Pretext:
        """Return the task on pictures of a shape (height, width, channels)."""

    def fit(
        self,
        X: NDArray[np.uint8],
        rng: np.random.Generator,
        *,
        device: str = "cpu",
        n_steps: int | None = None,
    ) -> Self:
        """Draw weights for pictures ``(n, h, w, channels)``, unless a state was loaded; get ready to train."""
        from models.nets.visual_training import VisualTraining

        h, w, c = (int(side) for side in X.shape[1:])
        if self._shape is not None and self._shape != (h, w, c):
            raise ValueError(f"{self.name}: X has pictures of {(h, w, c)}, the loaded encoder is for {self._shape}")
        weights_seed, training_seed = (int(seed) for seed in rng.integers(2**31, size=2))
        if self._net is None:
            self._build((h, w, c), seed=weights_seed)
        assert self._net is not None
        assert self._pretext is not None
        o = self.options
        self._training = VisualTraining(
            self._net,
            self._pretext,
            batch_rows=o["batch_rows"],
            optimizer=o["optimizer"],
            learning_rate=o["learning_rate"],
            weight_decay=o["weight_decay"],
            n_steps=self.steps_for(len(X)) if n_steps is None else n_steps,
            precision=o["precision"],
            is_compiled=o["is_compiled"],
            device=device,
            seed=training_seed,
        )
        self._encoder = None
        return self

    def update(self, X: NDArray[np.uint8], n_steps: int, on_step: Callable[[int, float], None] | None = None) -> None:
        """Train for `n_steps` minibatches of ``(n, h, w, channels)``; optimiser and schedule go on."""
        if self._training is None:
            raise RuntimeError(f"{self.name} is not fitted; call fit first")
        self._encoder = None
        self._training.run(X, n_steps, on_step)

    def embed(self, X: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the pooled features ``(n, d)`` of pictures ``(n, h, w, channels)``."""
        return self._ready(X).embed(X)

    def places(self, X: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return what the encoder sees at each place of pictures, ``(n, h', w', d')``: the maps of the stage before."""
        return self._ready(X).places(X)

    def on(self, device: str, n_threads: int | None = None) -> Self:
        """Return one that embeds alike on a device (``cpu``, ``cuda``, …), on a processor with so many threads."""
        other = type(self).from_state(self.state())
        assert other._net is not None
        assert other._pretext is not None
        other._net.to(device)
        other._pretext.head.to(device)
        other._n_threads = n_threads
        return other

    def state(self) -> State:
        """Return the weights of encoder and head; the optimiser is not part of it."""
        if self._net is None or self._pretext is None:
            raise RuntimeError(f"{self.name} is not fitted; call fit first")
        arrays = {
            f"{part}.{key}": tensor.detach().cpu().numpy().copy()
            for part, module in (("encoder", self._net), ("head", self._pretext.head))
            for key, tensor in module.state_dict().items()
            if not key.endswith("num_batches_tracked")
        }
        return State({"options": dict(self.options), "shape": list(self._shape or ())}, arrays)

    @classmethod
    def from_state(cls, state: State) -> Self:
        """Read what :meth:`state` returned; ValueError if it does not fit."""
        try:
            made = cls(**state.values["options"])
            h, w, c = (int(side) for side in state.values["shape"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{cls.name}: state does not fit: {error!r}") from error
        made._build((h, w, c), seed=0)
        assert made._net is not None
        assert made._pretext is not None
        load_arrays(made._net, state, "encoder", cls.name)
        load_arrays(made._pretext.head, state, "head", cls.name)
        return made

    def _build(self, shape: tuple[int, int, int], *, seed: int) -> None:
        """Make networks with random weights, leaving the global generator, which draws them, as it was."""
        import torch

        from models.nets.resnet import ResNet18, chosen_stem

        h, w, c = shape
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            net = ResNet18(c, self.options["width"], stem=chosen_stem(self.options["stem"], h, w))
            self._pretext = self.make_pretext(net, shape)
        self._net, self._shape = net.eval(), shape

    def _networks(self, X: NDArray[np.uint8]) -> tuple[ResNet18, Pretext]:
        """Return the networks; RuntimeError before `fit`, ValueError if they are for other pictures than these."""
        if self._net is None or self._pretext is None:
            raise RuntimeError(f"{self.name} is not fitted; call fit first")
        if X.shape[1:] != self._shape:
            raise ValueError(f"{self.name}: X has pictures of {X.shape[1:]}, the encoder is for {self._shape}")
        return self._net, self._pretext

    def _ready(self, X: NDArray[np.uint8]) -> Encoder:
        from models.nets.inference import Encoder

        net, _ = self._networks(X)
        if self._encoder is None:
            assert self._shape is not None
            self._encoder = Encoder.of_resnet(
                net,
                self._shape,
                n_stages=self.options["layer"],
                l2_normalise=self.options["l2_normalise"],
                n_threads=self._n_threads,
            )
        return self._encoder


def load_arrays(module: Any, state: State, prefix: str, name: str) -> None:
    """Put the arrays ``prefix.*`` of a state into a torch module; ValueError unless all and only its own are there."""
    import torch

    wanted = {key: tensor for key, tensor in module.state_dict().items() if not key.endswith("num_batches_tracked")}
    more = sorted({key for key in state.arrays if key.startswith(f"{prefix}.")} - {f"{prefix}.{key}" for key in wanted})
    if more:
        raise ValueError(f"{name}: there are arrays {', '.join(more[:3])} …, which the options do not lead to expect")
    loaded = {}
    for key, tensor in wanted.items():
        array = state.array(f"{prefix}.{key}", tensor.ndim)
        if array.shape != tuple(tensor.shape):
            raise ValueError(
                f"{name}: array {prefix}.{key} has shape {array.shape}; needed by the options: {tuple(tensor.shape)}"
            )
        loaded[key] = torch.from_numpy(np.array(array, dtype=np.float32))
    module.load_state_dict(loaded, strict=False)


def check_square(name: str, shape: tuple[int, int, int]) -> None:
    """Raise ValueError if pictures of a shape (height, width, channels) change it when they are turned by a quarter."""
    height, width, _ = shape
    if height != width:
        raise ValueError(f"{name} takes square pictures, which can be turned; these are {height} x {width} pixels")


def _check(options: Mapping[str, Any], defaults: Mapping[str, Any], choices: Choices) -> None:
    """Raise ValueError if an option is not allowed, by its list of choices or by what its default is."""
    for name, value in options.items():
        default = defaults[name]
        if name in choices:
            if value not in choices[name]:
                raise ValueError(f"{name} is {value!r}; allowed: {', '.join(map(str, choices[name]))}")
        elif isinstance(default, bool):
            if not isinstance(value, bool):
                raise ValueError(f"{name} is {value!r}; allowed: true or false")
        elif isinstance(default, int):
            least = _LEAST.get(name, 1)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} is {value!r}; allowed: whole numbers from {least} on")
        elif not isinstance(value, (int, float)) or isinstance(value, bool) or not 0.0 <= value <= _MOST.get(name, 100):
            raise ValueError(f"{name} is {value!r}; allowed: numbers from 0 to {_MOST.get(name, 100)}")
        elif name in ("learning_rate", "temperature") and value == 0.0:
            raise ValueError(f"{name} is {value!r}; allowed: above 0")
