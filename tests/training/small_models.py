"""Forward models that are small enough to be written by hand, and trainers of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from gce.onnx import training

Array = np.ndarray[Any, Any]

FEATURES, HIDDEN, CLASSES = 5, 7, 4
OPTIMIZERS = {
    "SGD": training.SGD(),
    "momentum": training.SGD(momentum=0.9, weight_decay=0.01),
    "AdamW": training.AdamW(weight_decay=0.1),
}


def model_of(
    nodes: Sequence[onnx.NodeProto],
    parameters: dict[str, Array],
    inputs: dict[str, Sequence[str | int | None]],
    outputs: dict[str, Sequence[str | int | None]],
    dtype: str = "float32",
    opset: int = 18,
    ir_version: int = 9,
) -> onnx.ModelProto:
    """A model of which all inputs and outputs have one type."""
    elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))

    def infos(shapes: dict[str, Sequence[str | int | None]]) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(name, elem_type, dims) for name, dims in shapes.items()
        ]

    graph = helper.make_graph(
        list(nodes),
        "small",
        infos(inputs),
        infos(outputs),
        [numpy_helper.from_array(array, name) for name, array in parameters.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)


def weights(dtype: str = "float32", seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    shapes = {"W1": (FEATURES, HIDDEN), "b1": (HIDDEN,), "W2": (HIDDEN, CLASSES), "b2": (CLASSES,)}
    return {name: 0.5 * rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def perceptron_nodes() -> list[onnx.NodeProto]:
    """``tanh(x W1 + b1) W2 + b2``, called logits."""
    return [
        helper.make_node("MatMul", ["x", "W1"], ["product1"]),
        helper.make_node("Add", ["product1", "b1"], ["sum1"]),
        helper.make_node("Tanh", ["sum1"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "W2"], ["product2"]),
        helper.make_node("Add", ["product2", "b2"], ["logits"]),
    ]


def perceptron(dtype: str = "float32", seed: int = 0, **more: Any) -> onnx.ModelProto:
    """``tanh(x W1 + b1) W2 + b2``, from x of shape (N, 5) to logits of shape (N, 4)."""
    shapes = ({"x": ["N", FEATURES]}, {"logits": ["N", CLASSES]})
    return model_of(perceptron_nodes(), weights(dtype, seed), *shapes, dtype=dtype, **more)


def linear(
    shape: tuple[int, ...] = (FEATURES, CLASSES),
    *,
    x: str = "x",
    weight: str = "W",
    logits: str = "logits",
    initial: Array | None = None,
) -> onnx.ModelProto:
    """``x W``: zeros, unless `initial` is given, and names as wanted."""
    array = np.zeros(shape, np.float32) if initial is None else initial
    return model_of(
        [helper.make_node("MatMul", [x, weight], [logits])],
        {weight: array},
        {x: ["N", array.shape[0]]},
        {logits: ["N", array.shape[1]]},
        dtype=array.dtype.name,
    )


def sequences(dims: Sequence[str | int | None] = ("B", "T")) -> onnx.ModelProto:
    """Embeddings of tokens of these dimensions times a matrix: logits (..., 4), for ``axis=-1``."""
    rng = np.random.default_rng(1)
    model = model_of(
        [
            helper.make_node("Gather", ["embedding", "tokens"], ["vectors"]),
            helper.make_node("MatMul", ["vectors", "W"], ["logits"]),
        ],
        {
            "embedding": rng.normal(size=(6, 3)).astype("f4"),
            "W": rng.normal(size=(3, CLASSES)).astype("f4"),
        },
        {"tokens": dims},
        {"logits": [*dims, CLASSES]},
    )
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    return model


def batch(size: int, seed: int, dtype: str = "float32") -> tuple[Array, Array]:
    """Inputs and labels of `perceptron`."""
    rng = np.random.default_rng([size, seed])
    return rng.normal(size=(size, FEATURES)).astype(dtype), rng.integers(0, CLASSES, size)


def everything(trainer: training.Trainer) -> list[Any]:
    """All that a step changes, as bits."""
    arrays = trainer._arrays(trainer._now.turns)
    return [
        {name: (array.dtype, array.shape, array.tobytes()) for name, array in arrays.items()},
        trainer.steps,
        trainer._now.collected,
    ]


def require_refused(trainer: training.Trainer, path: Path, text: str) -> None:
    """The checkpoint is an error, which names the file, and the trainer is as it was."""
    before = everything(trainer), trainer.grad_norm
    with pytest.raises(training.CheckpointError, match=text) as raised:
        trainer.load(path)
    assert str(path) in str(raised.value) and isinstance(raised.value, ValueError)
    assert (everything(trainer), trainer.grad_norm) == before
