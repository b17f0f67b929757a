"""A frozen encoder that somebody else trained, from a file: any ONNX model of pictures, or weights of a ResNet-18."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from models.representations.untrained import Untrained
from models.state import State

if TYPE_CHECKING:
    from models.nets.inference import Encoder
    from models.nets.resnet import ResNet18

KINDS = (".onnx", ".safetensors")


class Frozen(Untrained):
    """Features of pictures by an encoder that is never trained; refinement then concerns the classifier alone.

    The file's bytes become part of the model, so that a published version needs no other file. Files are data: an ONNX
    graph, or a safetensors state with the names of torchvision's and timm's ResNet-18 (also at other widths, and as
    this project's own models have it); pickled ones are not read.

    Parameters
    ----------
    path
        Ends in ``.onnx`` or ``.safetensors``; read once, by the first :meth:`fit`. Of an ONNX model the first output
        counts: ``(n, d)`` features, or ``(n, d, h, w)`` maps, which are pooled.
    l2_normalise
        Bring every embedding to length 1.
    mean, deviation
        Of each channel, subtracted and divided by after pixels are brought to 0 to 1; what the encoder was trained
        with, such as ImageNet's (0.485, 0.456, 0.406) and (0.229, 0.224, 0.225).
    layer
        Of a ResNet-18, the stage whose features are taken.
    stem
        Of a ResNet-18 with a 3 x 3 stem: ``full`` or ``half``; ``auto``: ``full``.
    """

    name: ClassVar[str] = "frozen"
    takes: ClassVar[str] = "picture"
    shrinkage: ClassVar[float] = 1e-2

    def __init__(
        self,
        *,
        path: str,
        l2_normalise: bool = True,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        deviation: Sequence[float] = (1.0, 1.0, 1.0),
        layer: int = 4,
        stem: str = "auto",
    ) -> None:
        if not isinstance(path, str) or Path(path).suffix not in KINDS:
            raise ValueError(f"path is {path!r}; allowed: a file that ends in {' or '.join(KINDS)}")
        for key, values in (("mean", mean), ("deviation", deviation)):
            if len(values) != 3 or not np.isfinite(np.asarray(values, dtype=np.float64)).all():
                raise ValueError(f"{key} is {values!r}; allowed: three numbers, for red, green and blue")
        if min(deviation) <= 0.0:
            raise ValueError(f"deviation is {deviation!r}; allowed: numbers above 0")
        if layer not in (1, 2, 3, 4):
            raise ValueError(f"layer is {layer!r}; allowed: 1, 2, 3, 4")
        if stem not in ("auto", "full", "half"):
            raise ValueError(f"stem is {stem!r}; allowed: auto, full, half")
        self.options: dict[str, Any] = {
            "path": path,
            "l2_normalise": bool(l2_normalise),
            "mean": [float(value) for value in mean],
            "deviation": [float(value) for value in deviation],
            "layer": layer,
            "stem": stem,
        }
        self._content: bytes | None = None
        self._encoder: Encoder | None = None
        self._shape: tuple[int, int, int] | None = None
        self._n_threads: int | None = None

    def fit(
        self, X: NDArray[np.uint8], rng: np.random.Generator, *, device: str = "cpu", n_steps: int | None = None
    ) -> Self:
        """Read the file, unless a state was loaded, and try it on a picture of ``(n, h, w, channels)``.

        Raises
        ------
        ValueError
            If the file cannot be read or does not fit the pictures.
        """
        if self._content is None:
            path = self.options["path"]
            try:
                self._content = Path(path).read_bytes()
            except OSError as error:
                raise ValueError(f"encoder {path}: cannot be read: {error.strerror}; check the path") from error
        self._open(tuple(int(side) for side in X.shape[1:]))
        return self

    def embed(self, X: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the features ``(n, d)`` of pictures ``(n, h, w, channels)``."""
        return self._ready(X).embed(X)

    def places(self, X: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return what the encoder sees at each place of pictures, ``(n, h', w', d')``; 1 x 1 if it has no maps."""
        return self._ready(X).places(X)

    def on(self, device: str, n_threads: int | None = None) -> Self:
        """Return one that embeds alike on the processor, with so many threads; an ONNX graph never leaves it."""
        if self._content is None or self._shape is None:
            raise RuntimeError("frozen is not fitted; call fit first")
        other = type(self)(**self.options)
        other._content, other._n_threads = self._content, n_threads
        other._open(self._shape)
        return other

    def state(self) -> State:
        """Return options and the file's bytes."""
        if self._content is None or self._shape is None:
            raise RuntimeError("frozen is not fitted; call fit first")
        content = np.frombuffer(self._content, dtype=np.uint8)
        return State({"options": dict(self.options), "shape": list(self._shape)}, {"file": content})

    @classmethod
    def from_state(cls, state: State) -> Self:
        """Read what :meth:`state` returned, without the file; ValueError if it does not fit."""
        try:
            made = cls(**state.values["options"])
            shape = tuple(int(side) for side in state.values["shape"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"frozen: state does not fit: {error!r}") from error
        content = state.array("file", 1)
        if content.dtype != np.uint8:
            raise ValueError(f"frozen: array 'file' is {content.dtype}; needed: uint8")
        made._content = content.tobytes()
        made._open(shape)
        return made

    def _open(self, shape: tuple[int, ...]) -> None:
        from models.nets.inference import Encoder, OnnxFile, resnet_from_safetensors

        assert self._content is not None
        o = self.options
        h, w, c = shape
        shared = {"mean": o["mean"], "deviation": o["deviation"], "n_threads": self._n_threads}
        file: OnnxFile | ResNet18
        try:
            if Path(o["path"]).suffix == ".onnx":
                file = OnnxFile(self._content, (h, w, c), **shared)
            else:
                file = resnet_from_safetensors(self._content, stem=o["stem"])
        except ValueError as error:
            raise ValueError(f"encoder {o['path']}: {error}") from error
        try:
            if isinstance(file, OnnxFile):
                encoder = Encoder(file, l2_normalise=o["l2_normalise"])
            else:
                encoder = Encoder.of_resnet(
                    file, (h, w, c), n_stages=o["layer"], l2_normalise=o["l2_normalise"], **shared
                )
            features = encoder.embed(np.zeros((1, h, w, c), dtype=np.uint8))
        except Exception as error:  # whatever ONNX Runtime says of a graph that does not fit
            raise ValueError(
                f"encoder {o['path']}: does not take pictures of {h} x {w} with {c} channels: "
                f"{str(error).splitlines()[0]}"
            ) from error
        if features.ndim != 2 or not np.isfinite(features).all():
            raise ValueError(f"encoder {o['path']}: gives {features.shape} of which some are not finite or no rows")
        self._encoder, self._shape = encoder, (h, w, c)

    def _ready(self, X: NDArray[np.uint8]) -> Encoder:
        if self._encoder is None:
            raise RuntimeError("frozen is not fitted; call fit first")
        if X.shape[1:] != self._shape:
            raise ValueError(f"frozen: X has pictures of {X.shape[1:]}, it was fitted to {self._shape}")
        return self._encoder
