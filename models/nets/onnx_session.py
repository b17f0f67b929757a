"""Graphs for ONNX Runtime: how they are put together, and opened on the processor. PyTorch is not needed for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

OPSET = 17
IR_VERSION = 8
"""Old enough for every ONNX Runtime since 2022."""
FLOAT = 1
"""ONNX's number of float32, ``TensorProto.FLOAT``."""
Shape = Sequence[int | str]
"""Axes; those with a name may have any length."""


class Graph:
    """Nodes and constants, named by their number."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def add(self, kind: str, inputs: Sequence[str], *, output: str | None = None, **attributes: Any) -> str:
        """Append a node and return the name of its output."""
        from onnx import helper

        name = output or f"{kind.lower()}{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def constant(self, value: NDArray[Any] | np.generic) -> str:
        """Add a constant and return its name."""
        from onnx import numpy_helper

        name = f"constant{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def content(
        self, inputs: Mapping[str, tuple[type[np.generic], Shape]], outputs: Mapping[str, Shape], name: str
    ) -> bytes:
        """Return it as a file: of inputs name → type and shape, of outputs, which are float32, name → shape."""
        from onnx import helper

        given = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), list(shape))
            for name, (dtype, shape) in inputs.items()
        ]
        made = [helper.make_tensor_value_info(name, FLOAT, list(shape)) for name, shape in outputs.items()]
        graph = helper.make_graph(self._nodes, name, given, made, self._constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        content: bytes = model.SerializeToString()
        return content


def open_session(content: bytes, n_threads: int) -> Any:
    """Return an ONNX Runtime session on the processor."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # A thread that spins while it waits takes a core from decoding and from the trainer.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
