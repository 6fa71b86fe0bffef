"""A forward model with the loss behind it."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import ArrayLike, DTypeLike
from onnx import helper

from gce._onnx_library import DOMAIN
from gce._types import Reduction, Value
from gce.onnx._function import attach_function
from gce.onnx._node import loss_node
from gce.onnx._schema import FLOATS, VERSION, tensor_type_name

__all__ = ["attach_loss"]

Dims = list[Any]  # TensorShapeProto.Dimension


def attach_loss(
    model: onnx.ModelProto | str | os.PathLike[str],
    *,
    logits: str | None = None,
    labels: str = "labels",
    gamma: str = "gamma",
    weights: ArrayLike | str | None = None,
    loss: str = "loss",
    grad: str | None = None,
    axis: int = 1,
    labels_dtype: DTypeLike = np.int64,
    gamma_dtype: DTypeLike = np.float64,
    gamma_per_row: bool = False,
    function: bool = False,
    reduction: Reduction = "mean",
    value: Value = "primitive",
    threshold: float = 0.0,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
) -> onnx.ModelProto:
    """Put the γ-cross-entropy behind a forward model.

    Parameters
    ----------
    model : onnx.ModelProto or path
        Stays as it is.
    logits : str, optional
        Name of the logits, float16, bfloat16, float32 or float64, of rank 2 or more: an output or
        any other value of the model. By default its only output.
    labels, gamma : str
        Names of the new inputs.
    weights : array_like or str, optional
        Class weights: numbers, which are stored in the model, or the name of one more input.
    loss : str
        Name of the new output: a scalar, or for ``reduction="none"`` one per row.
    grad : str, optional
        Name of one more output, the gradient with respect to the logits. None: it is not computed.
    axis : {1, -1}
        The class axis of the logits: 1, as ONNX's own losses have it ([N, C, d1...dk]), or the last
        one ([B, T, C], say; for more than two dimensions the model needs opset 14 or newer).
    labels_dtype : dtype
        int64 or int32.
    gamma_dtype : dtype
        Any float; with the default, what ``numpy.array(0.5)`` is.
    gamma_per_row : bool
        Whether γ is of the labels' shape, and not a scalar.
    function : bool
        Add the operator as a function in standard operators (`attach_function`), so that the model
        runs without the library too.
    reduction, value, threshold, label_smoothing, ignore_index
        As for `loss_node`.

    Returns
    -------
    onnx.ModelProto
        A new model, checked by ``onnx.checker``: the inputs of `model`, then labels, γ and weights;
        the outputs of `model`, then loss and gradient.

    Raises
    ------
    TypeError, ValueError
        An option of the wrong type or out of its range; logits that cannot be told, or have another
        type or too few dimensions; a name that the model has already.
    onnx.checker.ValidationError
        `model` itself is not valid.

    See Also
    --------
    register : what a session needs to run the model.

    Examples
    --------
    >>> import gce.onnx
    >>> import numpy as np
    >>> import onnxruntime
    >>> from onnx import TensorProto, helper, numpy_helper
    >>> rng = np.random.default_rng(0)
    >>> forward = helper.make_model(
    ...     helper.make_graph(
    ...         [helper.make_node("MatMul", ["x", "W"], ["logits"])],
    ...         "linear",
    ...         [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
    ...         [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
    ...         [numpy_helper.from_array(np.ones((4, 3), np.float32), "W")]),
    ...     opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    >>> model = gce.onnx.attach_loss(forward, grad="grad")
    >>> session = onnxruntime.InferenceSession(
    ...     model.SerializeToString(), gce.onnx.register(onnxruntime.SessionOptions()))
    >>> loss, grad = session.run(
    ...     ["loss", "grad"],
    ...     {"x": np.ones((2, 4), np.float32), "labels": np.array([0, 2]), "gamma": np.array(1.0)})
    >>> print(loss.round(4), grad[0].round(4))
    0.6667 [-0.1111  0.0556  0.0556]
    """
    attached = _copy_of(model)
    graph = attached.graph
    logits = _name_of_logits(graph, logits)
    elem_type, dims = _type_of_logits(attached, logits)
    new_names = [labels, gamma, loss]
    new_names += [name for name in (grad, weights) if isinstance(name, str)]
    _require_new(graph, new_names)
    fresh = _fresh_names(graph, new_names, loss)
    row_dims, class_dim = _split_axis(dims, axis)

    labels_type = _elem_type("labels_dtype", labels_dtype, ["tensor(int64)", "tensor(int32)"])
    graph.input.append(_value_info(labels, labels_type, row_dims))
    gamma_type = _elem_type("gamma_dtype", gamma_dtype, FLOATS)
    graph.input.append(_value_info(gamma, gamma_type, row_dims if gamma_per_row else []))
    weights_name = _add_weights(graph, weights, elem_type, class_dim, fresh)

    node = loss_node(
        logits,
        labels,
        gamma,
        weights=weights_name,
        loss=loss,
        grad=grad,
        reduction=reduction,
        value=value,
        threshold=threshold,
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
    )
    if axis == -1 and len(dims) > 2:
        per_row = [
            labels,
            *([gamma] if gamma_per_row else []),
            *([loss] if reduction == "none" else []),
        ]
        graph.node.extend(_on_flattened_rows(node, per_row, fresh))
    else:
        graph.node.append(node)
    graph.output.append(_value_info(loss, elem_type, row_dims if reduction == "none" else []))
    if grad is not None:
        graph.output.append(_value_info(grad, elem_type, dims))
    if not any(opset.domain == DOMAIN for opset in attached.opset_import):
        attached.opset_import.append(helper.make_opsetid(DOMAIN, VERSION))
    if function:
        attached = attach_function(attached)
    onnx.checker.check_model(attached, full_check=True)
    return attached


def _copy_of(model: onnx.ModelProto | str | os.PathLike[str]) -> onnx.ModelProto:
    if isinstance(model, onnx.ModelProto):
        return copy.deepcopy(model)
    if isinstance(model, (str, os.PathLike)):
        return onnx.load(os.fspath(model))
    raise TypeError(f"model has type {type(model).__name__}, expected onnx.ModelProto or a path")


def _name_of_logits(graph: onnx.GraphProto, logits: str | None) -> str:
    names: list[str] = [output.name for output in graph.output]
    if logits is None:
        if len(names) != 1:
            raise ValueError(f"logits is not given, expected one of the model's outputs {names}")
        return names[0]
    if logits not in names and logits not in set(_value_names(graph)):
        raise ValueError(
            f"logits = {logits!r}, expected a value of the model, as its outputs {names}"
        )
    return logits


def _type_of_logits(model: onnx.ModelProto, logits: str) -> tuple[int, Dims]:
    """Element type and dimensions."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    for info in (*graph.output, *graph.value_info, *graph.input):
        if info.name == logits and info.type.tensor_type.elem_type:
            break
    else:
        raise ValueError(
            f"logits = {logits!r} has no known type, expected a value_info in the model"
        )
    tensor = info.type.tensor_type
    name = tensor_type_name(tensor.elem_type)
    if f"tensor({name})" not in FLOATS:
        raise TypeError(
            f"logits = {logits!r} has type {name}, expected float16, bfloat16, float or double"
        )
    if not tensor.HasField("shape"):
        raise ValueError(
            f"logits = {logits!r} has an unknown number of dimensions, "
            "expected a shape in the model"
        )
    if len(tensor.shape.dim) < 2:
        raise ValueError(
            f"logits = {logits!r} has {len(tensor.shape.dim)} dimensions, expected at least 2"
        )
    return tensor.elem_type, list(tensor.shape.dim)


def _split_axis(dims: Dims, axis: int) -> tuple[Dims, Any]:
    """Dimensions of the rows, and that of the classes."""
    if axis not in (1, -1):
        raise ValueError(f"axis = {axis}, expected 1 or -1")
    return ([*dims[:-1]], dims[-1]) if axis == -1 else ([dims[0], *dims[2:]], dims[1])


def _elem_type(name: str, dtype: DTypeLike, allowed: list[str]) -> int:
    elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    if f"tensor({tensor_type_name(elem_type)})" not in allowed:
        expected = ", ".join(text[len("tensor(") : -1] for text in allowed)
        raise TypeError(f"{name} = {np.dtype(dtype)}, expected one of {expected}")
    return elem_type


def _on_flattened_rows(
    node: onnx.NodeProto, per_row: list[str], fresh: Callable[[], str]
) -> list[onnx.NodeProto]:
    """Nodes that do for [..., C] what `node` does for [N, C]; `per_row`: names of what is [...]."""
    logits, labels = node.input[:2]
    minus_one = fresh()
    before = [helper.make_node("Constant", [], [minus_one], value_ints=[-1])]
    after = []
    for i, name in enumerate(node.input):
        if name == logits or name in per_row:
            node.input[i] = fresh()
            flat = [name, minus_one] if name in per_row else [name]
            make = {"op_type": "Reshape"} if name in per_row else {"op_type": "Flatten", "axis": -1}
            before.append(helper.make_node(inputs=flat, outputs=[node.input[i]], **make))
    for i, (name, like) in enumerate(zip(node.output, (labels, logits), strict=False)):
        if i == 1 or name in per_row:
            node.output[i], shape = fresh(), fresh()
            after.append(helper.make_node("Shape", [like], [shape]))
            after.append(helper.make_node("Reshape", [node.output[i], shape], [name], allowzero=1))
    return [*before, node, *after]


def _value_info(name: str, elem_type: int, dims: Dims) -> onnx.ValueInfoProto:
    info = helper.make_tensor_value_info(name, elem_type, [])
    info.type.tensor_type.shape.dim.extend(dims)
    return info


def _add_weights(
    graph: onnx.GraphProto,
    weights: ArrayLike | str | None,
    elem_type: int,
    class_dim: Any,
    fresh: Callable[[], str],
) -> str | None:
    """Add class weights as an input or an initializer; their name."""
    if weights is None:
        return None
    if isinstance(weights, str):
        graph.input.append(_value_info(weights, elem_type, [class_dim]))
        return weights
    array = np.asarray(weights, np.float64)
    classes = class_dim.dim_value  # 0: not known
    if array.ndim != 1 or (classes and len(array) != classes):
        raise ValueError(
            f"weights has shape {array.shape}, expected ({classes or 'C'},): "
            "one per class of logits"
        )
    name = fresh()
    dtype = helper.tensor_dtype_to_np_dtype(elem_type)
    if elem_type == onnx.TensorProto.BFLOAT16:  # float32 there, in an older onnx
        dtype = np.dtype(ml_dtypes.bfloat16)
    graph.initializer.append(
        helper.make_tensor(name, elem_type, array.shape, array.astype(dtype).tobytes(), raw=True)
    )
    return name


def _require_new(graph: onnx.GraphProto, names: Iterable[str]) -> None:
    taken = set(_value_names(graph))
    for name in names:
        if name in taken or not name:
            raise ValueError(
                f"the name {name!r} is taken, expected one that the model does not have"
            )
        taken.add(name)


def _value_names(graph: onnx.GraphProto) -> Iterator[str]:
    """Every name of a value, of subgraphs too."""
    for named in (*graph.input, *graph.initializer, *graph.value_info, *graph.output):
        yield named.name
    for node in graph.node:
        yield from node.input
        yield from node.output
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                yield from _value_names(subgraph)


def _fresh_names(graph: onnx.GraphProto, taken: Iterable[str], prefix: str) -> Callable[[], str]:
    """Return a function that makes names that nothing has."""
    names = {*_value_names(graph), *taken}

    def fresh() -> str:
        number = 0
        while f"{prefix}/{number}" in names:
            number += 1
        names.add(f"{prefix}/{number}")
        return f"{prefix}/{number}"

    return fresh
