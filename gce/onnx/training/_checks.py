"""What a `Trainer` says of its arguments, and what it notes of itself in a checkpoint."""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from gce.onnx.training._graph import Forward

__all__ = [
    "Inputs",
    "checked_count",
    "checked_inputs",
    "checked_labels",
    "checked_rate",
    "digest",
    "kinds",
    "plain",
]

Inputs: TypeAlias = Mapping[str, npt.ArrayLike] | npt.ArrayLike


def checked_count(name: str, value: Any) -> int:
    """The value, if it is an integer of at least 1."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} = {value!r}, expected an integer")
    count = operator.index(value)
    if count < 1:
        raise ValueError(f"{name} = {count}, expected an integer of at least 1")
    return count


def checked_rate(value: Any) -> npt.NDArray[np.float64]:
    """The learning rate as the graph takes it."""
    if isinstance(value, (str, bytes)) or np.ndim(value) != 0:
        raise TypeError(f"learning_rate = {value!r}, expected a number")
    rate = float(value)
    if not 0.0 <= rate < math.inf:
        raise ValueError(f"learning_rate = {rate}, expected a finite number of at least 0")
    return np.array(rate)


def checked_labels(labels: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """The labels as the graph takes them; the loss says more of them."""
    array = np.asarray(labels)
    if array.dtype.kind not in "iu":
        raise TypeError(f"labels has dtype {array.dtype}, expected integers")
    return array.astype(np.int64, copy=False)


def checked_inputs(
    model: onnx.ModelProto, names: Sequence[str], inputs: Inputs
) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """The inputs that `names` are, as arrays of the model's types and of shapes that fit."""
    if not isinstance(inputs, Mapping):
        if len(names) != 1:
            raise TypeError(
                f"inputs has type {type(inputs).__name__}, expected a mapping: "
                f"the model has the inputs {list(names)}"
            )
        inputs = {names[0]: inputs}
    for name in inputs:
        if name not in names:
            raise ValueError(f"inputs has {name!r}, expected {list(names)}")
    values = {value.name: value.type.tensor_type for value in model.graph.input}
    for name in names:
        if name not in inputs:
            raise ValueError(f"inputs has no {name!r}, expected {list(names)}")
        array = np.asarray(inputs[name])
        expected = np.dtype(helper.tensor_dtype_to_np_dtype(values[name].elem_type))
        if array.dtype != expected:
            raise TypeError(f"inputs[{name!r}] has dtype {array.dtype}, expected {expected}")
        if values[name].HasField("shape"):
            require_shape(name, array.shape, values[name].shape.dim)
        yield name, array


def require_shape(name: str, shape: tuple[int, ...], dims: Sequence[Any]) -> None:
    """Raise unless the shape has the dimensions that the model fixes."""
    sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in dims]
    fits = len(shape) == len(sizes) and all(
        size in (None, found) for size, found in zip(sizes, shape, strict=True)
    )
    if not fits:
        texts = [dim.dim_param or "?" if size is None else str(size)
                 for dim, size in zip(dims, sizes, strict=True)]  # fmt: skip
        raise ValueError(
            f"inputs[{name!r}] has shape {shape}, expected ({', '.join(texts)}"
            f"{',' if len(texts) == 1 else ''})"
        )


def digest(forward: Forward) -> str:
    """A hash of the model, but for the values of its parameters and who made it."""
    model = onnx.ModelProto()
    model.CopyFrom(forward.original)
    for field in ("producer_name", "producer_version", "doc_string", "metadata_props"):
        model.ClearField(field)
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in forward.initial]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    data = model.SerializeToString(deterministic=True) + forward.logits.encode()
    return hashlib.sha256(data).hexdigest()


def kinds(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, str]:
    """``{"W": "float32(4, 3)"}``."""
    return {name: f"{array.dtype}{array.shape}" for name, array in arrays.items()}


def plain(value: Any) -> Any:
    """An option as JSON has it: an array as its numbers' hash."""
    if isinstance(value, (str, int, float, type(None))):
        return value
    array = np.ascontiguousarray(value)
    return f"{array.dtype}{array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"
