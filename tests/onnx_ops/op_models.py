"""Models of one operator, and sessions that run them.

`run_op` takes numpy arrays as `gce.loss_and_grad` does and sends them through ONNX Runtime. Its
models are of IR version 8 and opset 17, which every runtime from 1.17 on reads. No runtime takes
bfloat16 arrays from numpy: such tensors go in and out as float32, with a Cast on each side.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

import gce.onnx

OPSET, IR_VERSION = 17, 8
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
ELEM_TYPES = {
    np.dtype("float32"): TensorProto.FLOAT,
    np.dtype("float64"): TensorProto.DOUBLE,
    np.dtype("float16"): TensorProto.FLOAT16,
    BFLOAT16: TensorProto.BFLOAT16,
    np.dtype("int32"): TensorProto.INT32,
    np.dtype("int64"): TensorProto.INT64,
}
FLOATS = [np.dtype("float32"), np.dtype("float64"), np.dtype("float16"), BFLOAT16]


def runtime_version() -> tuple[int, int]:
    """(1, 32) for 1.32.0."""
    major, minor, *_ = onnxruntime.__version__.split(".")
    return int(major), int(minor)


class Value(NamedTuple):
    """A graph's input or output."""

    name: str
    dtype: np.dtype[Any]
    dims: list[Any] | None


def values_of(arrays: Mapping[str, Any]) -> list[Value]:
    """Graph inputs for these arrays, whatever their sizes."""
    return [Value(name, array.dtype, [None] * array.ndim) for name, array in arrays.items()]


def make_model(
    nodes: list[onnx.NodeProto],
    inputs: list[Value],
    outputs: list[Value],
    opset: int = OPSET,
    functions: Any = (),
) -> onnx.ModelProto:
    """A model in which no graph input or output is bfloat16."""
    before, after, ends = [], [], {}
    for side, values in (("in", inputs), ("out", outputs)):
        infos = []
        for name, dtype, dims in values:
            elem_type, outer = ELEM_TYPES[dtype], name
            if dtype == BFLOAT16:
                elem_type, outer = TensorProto.FLOAT, f"{name}_float"
                if side == "in":
                    to = TensorProto.BFLOAT16
                    before.append(helper.make_node("Cast", [outer], [name], to=to))
                else:
                    after.append(helper.make_node("Cast", [name], [outer], to=TensorProto.FLOAT))
            infos.append(helper.make_tensor_value_info(outer, elem_type, dims))
        ends[side] = infos
    graph = helper.make_graph([*before, *nodes, *after], "test", ends["in"], ends["out"])
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(gce.onnx.DOMAIN, 1)]
    return helper.make_model(
        graph, opset_imports=opsets, ir_version=IR_VERSION, functions=list(functions)
    )


def session_options(threads: int = 1, library: bool = True) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # expected errors need no words on the terminal
    return gce.onnx.register(options) if library else options


def make_session(
    model: onnx.ModelProto, threads: int = 1, library: bool = True
) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(
        model.SerializeToString(),
        session_options(threads, library),
        providers=["CPUExecutionProvider"],
    )


def op_model(
    dtypes: Mapping[str, Any], ranks: Mapping[str, int], grad: bool, attributes: Mapping[str, Any]
) -> onnx.ModelProto:
    """One node with inputs of these types and ranks, whatever their sizes."""
    inputs = [
        Value(name, dtypes[name], [f"{name}_{d}" for d in range(ranks[name])]) for name in ranks
    ]
    outputs = [Value("loss", dtypes["scores"], None)]
    if grad:
        outputs.append(Value("grad", dtypes["scores"], None))
    names = [value.name for value in inputs]
    node = helper.make_node(
        gce.onnx.OP_TYPE, names, [o.name for o in outputs], domain=gce.onnx.DOMAIN, **attributes
    )
    return make_model([node], inputs, outputs)


def op_model_for(
    arrays: Mapping[str, Any], grad: bool = True, **attributes: Any
) -> onnx.ModelProto:
    """One node that takes these arrays."""
    dtypes = {name: array.dtype for name, array in arrays.items()}
    ranks = {name: array.ndim for name, array in arrays.items()}
    return op_model(dtypes, ranks, grad, attributes)


@functools.lru_cache(maxsize=512)
def _session(
    dtypes: Any, ranks: Any, grad: bool, attributes: Any, threads: int
) -> onnxruntime.InferenceSession:
    model = op_model(dict(dtypes), dict(ranks), grad, dict(attributes))
    return make_session(model, threads)


def run_op(
    scores: Any,
    labels: Any,
    gamma: Any,
    weights: Any = None,
    *,
    grad: bool = True,
    threads: int = 1,
    **attributes: Any,
) -> list[Any]:
    """Loss, and gradient if asked for, as arrays of the scores' dtype."""
    arrays = {"scores": scores, "labels": labels, "gamma": np.asarray(gamma)}
    if weights is not None:
        arrays["weights"] = weights
    session = _session(
        tuple((name, array.dtype) for name, array in arrays.items()),
        tuple((name, array.ndim) for name, array in arrays.items()),
        grad,
        tuple(attributes.items()),
        threads,
    )
    results = session.run(None, feeds_of(arrays))
    return [np.asarray(result).astype(scores.dtype) for result in results]


def feeds_of(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """What the session of a `make_model` is fed."""
    return {
        f"{name}_float" if array.dtype == BFLOAT16 else name: (
            array.astype(np.float32) if array.dtype == BFLOAT16 else array
        )
        for name, array in arrays.items()
    }


def numpy_op(
    scores: Any, labels: Any, gamma: Any, weights: Any = None, **attributes: Any
) -> list[Any]:
    """What `run_op` is to give: `gce.loss_and_grad`, the loss rounded to the scores' dtype."""
    options = {"ignore_index": None, **attributes}
    for name in (
        "threshold",
        "label_smoothing",
        "z_loss",
        "softcap",
    ):  # float32 in an ONNX attribute
        if name in options:
            options[name] = np.float32(options[name])
    loss, grad = gce.loss_and_grad(scores, labels, gamma, weight=weights, axis=1, **options)
    return [np.asarray(loss).astype(scores.dtype), grad]


def problem(
    rng: np.random.Generator,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    labels_dtype: Any = np.int64,
    gamma_dtype: Any = np.float64,
    gamma_per_row: bool = False,
    weights: bool = False,
    ignored: int | None = None,
    scale: float = 3.0,
) -> dict[str, Any]:
    """Random inputs for scores of this shape, classes along axis 1; float labels: probabilities."""
    rows = (shape[0], *shape[2:])
    scores = (rng.normal(size=shape) * scale).astype(dtype)
    if np.dtype(labels_dtype) in FLOATS:
        labels = probabilities(rng, shape).astype(labels_dtype)
    else:
        labels = rng.integers(0, shape[1], size=rows).astype(labels_dtype)
    if ignored is not None:
        labels[rng.random(rows) < 0.3] = ignored
    gamma = rng.random(rows) if gamma_per_row else rng.random()
    arguments = {"scores": scores, "labels": labels, "gamma": np.asarray(gamma).astype(gamma_dtype)}
    if weights:
        arguments["weights"] = rng.uniform(0.1, 2.0, size=shape[1]).astype(dtype)
    return arguments


def probabilities(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    """Some of them 0, and the sums of rows 1."""
    t = rng.exponential(size=shape) * (rng.random(shape) < 0.7)
    return t / np.maximum(t.sum(axis=1, keepdims=True), 1e-3)


def bits(results: Any) -> list[tuple[Any, ...]]:
    """Dtype, shape and bytes of each result."""
    return [(r.dtype.name, np.shape(r), np.asarray(r).tobytes()) for r in results]
