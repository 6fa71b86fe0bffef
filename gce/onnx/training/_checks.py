"""What a `Trainer` says of its arguments, and what it notes of itself in a checkpoint."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

import gce
from gce.onnx._graphs import bodies_of
from gce.onnx._hyperparameters import check_range
from gce.onnx.training._graph import Forward

__all__ = [
    "Feeds",
    "Inputs",
    "check_gamma",
    "checked_count",
    "checked_rate",
    "digest",
    "kinds",
    "plain",
    "sizes",
]

Array: TypeAlias = npt.NDArray[Any]
Inputs: TypeAlias = Mapping[str, npt.ArrayLike] | npt.ArrayLike
Dims: TypeAlias = tuple[int | str, ...] | None  # sizes and names of sizes; None: any shape
UNKNOWN = "?"


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
    number = value[()] if isinstance(value, np.ndarray) else value
    check_range("learning_rate", number)
    try:
        with np.errstate(over="ignore"):
            rate = np.array(number, np.float64)
    except OverflowError:
        rate = np.array(np.inf)
    if not np.isfinite(rate):
        raise ValueError("learning_rate is more than any float64, expected a finite number >= 0")
    return rate


def check_gamma(gamma: npt.ArrayLike, per_row: bool) -> None:
    """Raise what a step would of a γ that is given once for all of them."""
    numbers = numbers_of_gamma(gamma, per_row)
    rows = numbers.shape if numbers.ndim else (1,)
    gce.loss(np.zeros((*rows, 1)), np.zeros(rows, np.int64), numbers)


def numbers_of_gamma(gamma: npt.ArrayLike, per_row: bool) -> Array:
    """γ as an array, if it may be one and its elements are numbers."""
    numbers = np.asarray(gamma)
    if numbers.dtype.kind not in "biuf":
        raise TypeError(f"gamma has dtype {numbers.dtype}, expected numbers")
    if numbers.ndim and not per_row:
        raise ValueError(
            f"gamma has shape {numbers.shape}, expected a number: "
            "one per row needs gamma_per_row=True"
        )
    return numbers


class Feeds:
    """Makes of a caller's arguments what a step is fed, or says what is wrong with them.

    Representation is checked here: types, and what the model says of shapes. The rest, as the range
    of labels and γ, is for the loss to say.

    Parameters
    ----------
    model : onnx.ModelProto
        A step, or its first half.
    inputs : sequence of str
        Those of its inputs that are the forward model's.
    labels : str
        Name of the labels.
    options : mapping of str
        Those of the loss.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        inputs: Sequence[str],
        labels: str,
        options: Mapping[str, Any],
    ) -> None:
        types = {value.name: value.type.tensor_type for value in model.graph.input}
        self._inputs = list(inputs)
        self._dims = {name: dims_of(types[name]) for name in (*inputs, labels)}
        self._dtypes = {
            name: np.dtype(helper.tensor_dtype_to_np_dtype(types[name].elem_type))
            for name in (*inputs, labels)
        }
        self._labels = labels
        self._options = options

    def inputs(self, given: Inputs) -> dict[str, Array]:
        """The inputs of the forward model, by name."""
        names = self._inputs
        if not isinstance(given, Mapping):
            if len(names) != 1:
                raise TypeError(
                    f"inputs has type {type(given).__name__}, expected a mapping: "
                    f"the model has the inputs {names}"
                )
            given = {names[0]: given}
        for name in given:
            if name not in names:
                raise ValueError(f"inputs has {name!r}, expected {names}")
        arrays = {}
        for name in names:
            if name not in given:
                raise ValueError(f"inputs has no {name!r}, expected {names}")
            array = np.asarray(given[name])
            if array.dtype != self._dtypes[name]:
                raise TypeError(
                    f"inputs[{name!r}] has dtype {array.dtype}, expected {self._dtypes[name]}"
                )
            require_shape(f"inputs[{name!r}]", array.shape, self._dims[name])
            arrays[name] = array
        return arrays

    def of_loss(
        self, inputs: Mapping[str, Array], labels: npt.ArrayLike, gamma: npt.ArrayLike
    ) -> dict[str, Array]:
        """Labels and γ; sizes that have a name are known from the inputs."""
        targets = np.asarray(labels)
        probabilities = self._options["probabilities"]
        if probabilities and targets.dtype.kind != "f" and targets.dtype != ml_dtypes.bfloat16:
            raise TypeError(f"labels has dtype {targets.dtype}, expected floats: probabilities")
        if not probabilities and targets.dtype.kind not in "iu":
            raise TypeError(f"labels has dtype {targets.dtype}, expected integers")
        if targets.dtype.newbyteorder("=") == np.uint64:  # what is too large must stay so
            targets = np.minimum(targets, np.uint64(np.iinfo(np.int64).max))
        sizes: dict[str, set[int]] = {}
        for name, array in inputs.items():
            for dim, size in zip(self._dims[name] or (), array.shape, strict=False):
                if isinstance(dim, str) and dim != UNKNOWN:
                    sizes.setdefault(dim, set()).add(size)
        known = {dim: found.pop() for dim, found in sizes.items() if len(found) == 1}
        dims = tuple(known.get(str(dim), dim) for dim in self._dims[self._labels] or ())
        require_shape("labels", targets.shape, dims)
        with np.errstate(over="ignore"):  # an infinite probability is for the loss to refuse
            fed = targets.astype(self._dtypes[self._labels], copy=False)
        numbers = self._gamma(gamma, targets.shape)
        return {"labels": fed, "gamma": numbers.astype(np.float64, copy=False)}

    def _gamma(self, gamma: npt.ArrayLike, labels_shape: tuple[int, ...]) -> Array:
        per_row = self._options["gamma_per_row"]
        numbers = numbers_of_gamma(gamma, per_row)
        if not per_row:
            return numbers
        shape, of = labels_shape, "labels"
        if self._options["probabilities"]:
            axis = self._options["axis"] % len(shape)
            shape, of = shape[:axis] + shape[axis + 1 :], "labels without the class axis"
        if numbers.ndim == 0:
            numbers = np.broadcast_to(numbers, shape)
        if numbers.shape != shape:
            raise ValueError(
                f"gamma has shape {numbers.shape}, expected a number or {shape}, the shape of {of}"
            )
        return numbers


def dims_of(tensor: onnx.TypeProto.Tensor) -> Dims:
    """The dimensions that a model declares; those that it does not know are UNKNOWN."""
    if not tensor.HasField("shape"):
        return None
    return tuple(
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or UNKNOWN
        for dim in tensor.shape.dim
    )


def require_shape(what: str, shape: tuple[int, ...], dims: Dims) -> None:
    """Raise unless the shape has as many dimensions, and the sizes that are numbers."""
    if dims is None:
        return
    if len(shape) != len(dims) or any(
        isinstance(dim, int) and dim != size for dim, size in zip(dims, shape, strict=True)
    ):
        text = ", ".join(map(str, dims))
        raise ValueError(
            f"{what} has shape {shape}, expected ({text}{',' if len(dims) == 1 else ''})"
        )


def digest(forward: Forward) -> str:
    """A hash of the model, but for the values of its parameters and of notes in it."""
    model = onnx.ModelProto()
    model.CopyFrom(forward.original)
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in forward.initial]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    # Exporters note there who they are, and the lines of source that a node is from.
    for field in ("producer_name", "producer_version"):
        model.ClearField(field)
    noted: list[Any] = [model]
    for body in bodies_of(model):
        noted += [body, *body.node, *body.value_info]
        if isinstance(body, onnx.GraphProto):
            noted += [*body.input, *body.output, *body.initializer]
    for item in noted:
        item.ClearField("doc_string")
        item.ClearField("metadata_props")
    data = model.SerializeToString(deterministic=True) + forward.logits.encode()
    return hashlib.sha256(data).hexdigest()


def kinds(arrays: Mapping[str, Array]) -> dict[str, str]:
    """``{"W": "float32(4, 3)"}``."""
    return {name: f"{array.dtype}{array.shape}" for name, array in arrays.items()}


def sizes(arrays: Mapping[str, Array]) -> dict[str, str]:
    """``{"W": "float32, 12"}``: how state is cut into chunks is no part of it."""
    return {name: f"{array.dtype}, {array.size}" for name, array in arrays.items()}


def plain(value: Any) -> Any:
    """An option as JSON has it: numbers that are many as their hash."""
    if value is None or isinstance(value, str):
        return value
    if np.ndim(value) == 0:
        try:
            return operator.index(value)
        except TypeError:
            return float(value)
    array = np.array(value, np.float64)
    return f"{array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"
