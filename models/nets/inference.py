"""A trained encoder at work: pictures to features in batches, on a processor by ONNX Runtime, on CUDA by PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray

from models.blocks import by_blocks
from models.nets.onnx_session import open_session
from models.nets.resnet import ResNet18
from models.nets.visual_training import to_images

BATCH_ROWS = 64
"""Pictures computed together; more gain nothing on a processor, and cost memory."""
CUDA_BATCH_ROWS = 1024
EAGER_BATCH_ROWS = 8
"""Pictures in a block of PyTorch's on a processor, which computes a single one another way than several: blocks of one
size keep a picture's bits alike in every batch. One alone then takes about four times as long, many as long as in
blocks of 64; in blocks of 4 it would be twice, and a third longer."""
_LEAST_LENGTH = 1e-12


class Backend(Protocol):
    """Computes features and feature maps of pictures ``(n, h, w, c)`` uint8."""

    def features(self, X: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the pooled features, ``(n, d)``."""
        ...

    def places(self, X: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return feature maps, ``(n, d', h', w')``; 1 x 1 if there are none."""
        ...


class Encoder:
    """An encoder that only scores.

    Parameters
    ----------
    l2_normalise
        Bring every embedding to length 1.
    """

    def __init__(self, backend: Backend, *, l2_normalise: bool, batch_rows: int = BATCH_ROWS) -> None:
        self._backend = backend
        self._l2_normalise = l2_normalise
        self._batch_rows = batch_rows

    @classmethod
    def of_resnet(
        cls,
        net: ResNet18,
        shape: tuple[int, int, int],
        *,
        n_stages: int,
        l2_normalise: bool,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        deviation: Sequence[float] = (1.0, 1.0, 1.0),
        backend: str = "auto",
        n_threads: int | None = None,
    ) -> Encoder:
        """Return an encoder by a network as it is now.

        Parameters
        ----------
        net
            Where it lies decides where is computed. It must not be trained on while this is in use.
        shape
            Height, width and channels of the pictures; grey ones are shown three times to a network of colours.
        n_stages
            The embedding is of the stage with this number.
        mean, deviation
            Of red, green and blue, subtracted and divided by.
        backend
            ``auto``: ``onnxruntime`` on a processor, else ``eager``, which is PyTorch.
        n_threads
            Of ONNX Runtime; None: as many as PyTorch has.
        """
        device = next(net.parameters()).device
        if backend == "onnxruntime" or (backend == "auto" and device.type == "cpu"):
            from models.nets.onnx_graph import to_onnx

            content = to_onnx(net, shape, n_stages=n_stages, mean=mean, deviation=deviation)
            return cls(OnnxBackend(content, n_threads), l2_normalise=l2_normalise)
        batch_rows = CUDA_BATCH_ROWS if device.type == "cuda" else BATCH_ROWS
        return cls(EagerBackend(net, n_stages, mean, deviation), l2_normalise=l2_normalise, batch_rows=batch_rows)

    def embed(self, X: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the embeddings ``(n, d)`` of pictures ``(n, h, w, c)``."""
        return self._in_batches(lambda rows: self._normalised(self._backend.features(rows)), X)

    def places(self, X: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return what is seen at each place of pictures ``(n, h, w, c)``: feature maps, ``(n, h', w', d)``."""
        return self._in_batches(lambda rows: np.ascontiguousarray(self._backend.places(rows).transpose(0, 2, 3, 1)), X)

    def _normalised(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        if not self._l2_normalise:
            return features
        lengths = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
        return np.asarray(features / np.maximum(lengths, _LEAST_LENGTH), dtype=np.float32)

    def _in_batches(self, compute: Callable[[NDArray[np.uint8]], NDArray[Any]], X: NDArray[np.uint8]) -> NDArray[Any]:
        if not len(X):
            return compute(np.zeros((1, *X.shape[1:]), dtype=np.uint8))[:0]
        starts = range(0, len(X), self._batch_rows)
        return np.concatenate([compute(X[start : start + self._batch_rows]) for start in starts])


class OnnxBackend:
    """A graph of our own (:mod:`models.nets.onnx_graph`) in ONNX Runtime, on the processor."""

    def __init__(self, content: bytes, n_threads: int | None = None) -> None:
        self._session = open_session(content, n_threads or torch.get_num_threads())

    def features(self, X: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the pooled features, ``(n, d)``."""
        return self._run("features", X)

    def places(self, X: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the feature maps of the stage before, ``(n, d / 2, 2 h', 2 w')``."""
        return self._run("places", X)

    def _run(self, output: str, X: NDArray[np.uint8]) -> NDArray[np.float32]:
        (result,) = self._session.run([output], {"pictures": np.ascontiguousarray(X)})
        return np.asarray(result, dtype=np.float32)


class OnnxFile:
    """Somebody's graph in ONNX Runtime: one input of pictures, whose first output counts.

    Its input may be float32, channels first, of normalised pixels, or uint8 as pictures are here.

    Raises
    ------
    ValueError
        If it is no ONNX graph, or its input is nothing that pictures of this shape can be made into.
    """

    def __init__(
        self,
        content: bytes,
        shape: tuple[int, int, int],
        *,
        mean: Sequence[float],
        deviation: Sequence[float],
        n_threads: int | None = None,
    ) -> None:
        try:
            self._session = open_session(content, n_threads or torch.get_num_threads())
        except Exception as error:  # ONNX Runtime has a dozen error classes, none of them public
            raise ValueError(f"is no ONNX graph that can be opened: {str(error).splitlines()[0]}") from error
        inputs = self._session.get_inputs()
        sides = inputs[0].shape if len(inputs) == 1 else []
        if len(sides) != 4 or inputs[0].type not in ("tensor(float)", "tensor(uint8)"):
            raise ValueError(
                f"the graph's inputs are {', '.join(f'{i.name} {i.type} {i.shape}' for i in inputs)}; "
                "allowed: one of four axes, float or uint8"
            )
        h, w, c = shape
        self._is_float = inputs[0].type == "tensor(float)"
        n_channels = sides[1 if self._is_float else 3]
        self._repeat = 3 if n_channels == 3 and c == 1 else 1
        wanted = (n_channels, *sides[2:]) if self._is_float else (n_channels, *sides[1:3])
        given = (c * self._repeat, h, w)
        if any(isinstance(side, int) and side != have for side, have in zip(wanted, given, strict=True)):
            raise ValueError(
                f"the graph takes pictures of {wanted[1]} x {wanted[2]} with {wanted[0]} channels, these are {h} x {w} "
                f"with {c}; declare that size for the records"
            )
        self._fixed_rows = sides[0] if isinstance(sides[0], int) else None
        self._input, self._output = inputs[0].name, self._session.get_outputs()[0].name
        self._mean, self._deviation = (np.asarray(values, dtype=np.float32) for values in (mean, deviation))

    def features(self, X: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the first output, pooled if it is maps, ``(n, d)``."""
        result = self._run(X)
        return result.mean(axis=(2, 3), dtype=np.float32) if result.ndim == 4 else result.reshape(len(X), -1)

    def places(self, X: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the first output as maps, ``(n, d, h', w')``, 1 x 1 if it is none."""
        result = self._run(X)
        return result if result.ndim == 4 else result.reshape(len(X), -1, 1, 1)

    def _run(self, X: NDArray[np.uint8]) -> NDArray[np.float32]:
        pictures = np.repeat(X, self._repeat, axis=3)
        if self._is_float:
            c = pictures.shape[3]
            scaled = (pictures / np.float32(255.0) - self._mean[:c]) / self._deviation[:c]
            pictures = np.ascontiguousarray(scaled.transpose(0, 3, 1, 2), dtype=np.float32)
        size = self._fixed_rows or len(pictures)
        results = []
        for start in range(0, len(pictures), size):
            rows = pictures[start : start + size]
            padded = np.concatenate([rows, np.zeros((size - len(rows), *rows.shape[1:]), dtype=rows.dtype)])
            (result,) = self._session.run([self._output], {self._input: padded})
            results.append(np.asarray(result, dtype=np.float32)[: len(rows)])
        return np.concatenate(results)


class EagerBackend:
    """PyTorch, in float32, where the network lies; on a processor in blocks of :data:`EAGER_BATCH_ROWS`."""

    def __init__(self, net: ResNet18, n_stages: int, mean: Sequence[float], deviation: Sequence[float]) -> None:
        first = next(net.parameters())
        n_channels = net.conv1.in_channels
        self._net, self._n_stages, self._device, self._n_channels = net, n_stages, first.device, n_channels
        self._mean, self._deviation = (
            torch.tensor(list(values)[:n_channels], device=first.device).reshape(1, -1, 1, 1)
            for values in (mean, deviation)
        )

    def features(self, X: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the pooled features, ``(n, d)``."""
        return self._computed(lambda rows: self._maps(rows, self._n_stages).mean(dim=(2, 3)), X)

    def places(self, X: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the feature maps of the stage before, ``(n, d / 2, 2 h', 2 w')``."""
        return self._computed(lambda rows: self._maps(rows, max(1, self._n_stages - 1)), X)

    def _computed(
        self, forward: Callable[[NDArray[np.uint8]], torch.Tensor], X: NDArray[np.uint8]
    ) -> NDArray[np.float32]:
        def compute(rows: NDArray[np.uint8]) -> NDArray[np.float32]:
            with torch.inference_mode():
                result: NDArray[np.float32] = forward(rows).cpu().numpy()
            return result

        return compute(X) if self._device.type == "cuda" else by_blocks(compute, X, n_rows=EAGER_BATCH_ROWS)

    def _maps(self, X: NDArray[np.uint8], n_stages: int) -> torch.Tensor:
        images = to_images(X, self._device)
        images = images.expand(-1, self._n_channels, -1, -1)  # grey pictures for a network of colours
        images = ((images - self._mean) / self._deviation).contiguous(memory_format=torch.channels_last)
        # TF32 would make scores differ from the processor's in the third digit.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return self._net.eval().maps(images, n_stages).float()


def resnet_from_safetensors(content: bytes, *, stem: str = "auto") -> ResNet18:
    """Return the ResNet-18 of a state with torchvision's names, at any width; what is behind the stages is left out.

    Raises
    ------
    ValueError
        If it is no safetensors file, or not the state of a ResNet-18.
    """
    try:
        arrays = safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError) as error:
        raise ValueError(f"is no safetensors file: {error}") from error
    prefix = next(
        (key.removesuffix("conv1.weight") for key in arrays if key.endswith("conv1.weight") and "layer" not in key),
        None,
    )
    if prefix is None:
        raise ValueError(f"has no conv1.weight, as a ResNet-18 has; there are {', '.join(list(arrays)[:5])}, …")
    weights = {key.removeprefix(prefix): array.float() for key, array in arrays.items() if key.startswith(prefix)}
    n_axes = weights["conv1.weight"].ndim
    if n_axes != 4:
        raise ValueError(f"is not the state of a ResNet-18: conv1.weight has {n_axes} axes, not 4")
    width, n_channels, size, _ = weights["conv1.weight"].shape
    with torch.random.fork_rng(devices=[]):  # the initial weights, soon replaced, are drawn from the global generator
        net = ResNet18(n_channels, width, stem="usual" if size == 7 else "full" if stem == "auto" else stem)
    own = net.state_dict()
    needed = {key for key in own if not key.endswith("num_batches_tracked")}
    wrong = sorted(key for key in needed if key not in weights or weights[key].shape != own[key].shape)
    if wrong:
        raise ValueError(f"is not the state of a ResNet-18: {', '.join(wrong[:3])} … are missing or of another shape")
    more = sorted(key for key in weights if key.startswith("layer") and key not in own)
    if more:
        raise ValueError(f"is not the state of a ResNet-18 but of a larger network: it has {', '.join(more[:3])} …")
    net.load_state_dict({key: weights[key] for key in needed}, strict=False)
    return net.eval()
