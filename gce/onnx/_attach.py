"""A forward model with the loss behind it."""

from __future__ import annotations

import contextlib
import copy
import operator
import os
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import ArrayLike, DTypeLike
from onnx import helper

from gce._onnx_library import DOMAIN
from gce._types import Reduction, Value
from gce.onnx._function import attach_function
from gce.onnx._graphs import (
    add_shapes,
    contradictions_refused,
    copy_of,
    fresh_names,
    inferred,
    opset_of,
    value_names,
)
from gce.onnx._node import check_attributes, loss_node
from gce.onnx._schema import FLOATS, INTEGERS, VERSION, tensor_type_name

__all__ = ["append_loss", "attach_loss", "elem_type_of", "name_of_logits", "type_of_labels"]

Dims = list[Any]  # TensorShapeProto.Dimension
SAME_ELEMENTS = {"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
SAME_ELEMENTS |= {"ZipMap"}  # of scikit-learn's exporter
OPSET_OF_ALLOWZERO = 14  # of Reshape: without it 0 is no size


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
    probabilities: bool = False,
    labels_dtype: DTypeLike | None = None,
    gamma_dtype: DTypeLike = np.float64,
    gamma_per_row: bool = False,
    function: bool = False,
    reduction: Reduction = "mean",
    value: Value = "primitive",
    threshold: float = 0.0,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    shift: int = 0,
    ignore_index: int | None = None,
) -> onnx.ModelProto:
    """Put the γ-cross-entropy behind a forward model.

    Parameters
    ----------
    model : onnx.ModelProto or path
        Stays as it is. Over 2 GiB only without its tensors, loaded by
        ``onnx.load(path, load_external_data=False)``: the result then belongs beside their files.
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
    probabilities : bool
        Whether the labels are probabilities, floats of the logits' shape, and not one class per
        row.
    labels_dtype : dtype, optional
        int64, the default, or int32. Of probabilities any float: by default the logits' type, but
        float32 where that has 16 bits.
    gamma_dtype : dtype
        Any float; with the default, what ``numpy.array(0.5)`` is.
    gamma_per_row : bool
        Whether γ is one per row, of the logits' shape without the class axis, and not a scalar.
    function : bool
        Add the operator as a function in standard operators (`attach_function`), so that the model
        runs without the library too.
    reduction, value, threshold, label_smoothing, z_loss, softcap, shift, ignore_index
        As for `loss_node`. With a shift and more than two dimensions, classes that are the last
        axis are transposed to be the second.

    Returns
    -------
    onnx.ModelProto
        A new model, checked by ``onnx.checker``: the inputs of `model`, then labels, γ and weights;
        the outputs of `model`, then loss and gradient.

    Raises
    ------
    TypeError, ValueError
        An option of the wrong type or out of its range; logits that cannot be told, are the result
        of a Softmax or Sigmoid, or have another type or too few dimensions; a name that the model
        has already.
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
    attached = copy_of(model)
    add_shapes(attached)
    logits = name_of_logits(attached, logits)
    names = {"labels": labels, "gamma": gamma, "loss": loss}
    names |= {"grad": grad} if grad is not None else {}
    names |= {"weights": weights} if isinstance(weights, str) else {}
    _require_new(value_names(attached), names)
    outputs = append_loss(
        attached,
        logits,
        labels=labels,
        gamma=gamma,
        weights=weights,
        loss=loss,
        grad=grad,
        axis=axis,
        probabilities=probabilities,
        labels_dtype=labels_dtype,
        gamma_dtype=gamma_dtype,
        gamma_per_row=gamma_per_row,
        reduction=reduction,
        value=value,
        threshold=threshold,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        softcap=softcap,
        shift=shift,
        ignore_index=ignore_index,
    )
    attached.graph.output.extend(outputs)
    if function:
        attached = attach_function(attached)
    _check(attached)
    return attached


def append_loss(
    model: onnx.ModelProto,
    logits: str,
    *,
    labels: str,
    gamma: str,
    weights: ArrayLike | str | None,
    loss: str,
    grad: str | None,
    axis: int,
    probabilities: bool,
    labels_dtype: DTypeLike | None,
    gamma_dtype: DTypeLike,
    gamma_per_row: bool,
    grad_of_node: bool = False,
    **attributes: Any,
) -> list[onnx.ValueInfoProto]:
    """Append the loss to `model` itself: its nodes, the domain, and the inputs that are new.

    With `grad_of_node`, the gradient stays what the node gives, where that has the logits in
    another shape or order. Returns what `loss` and `grad` are.
    """
    graph = model.graph
    elem_type, dims = _type_of_logits(model, logits)
    row_dims, class_dim = _split_axis(dims, axis, opset_of(model))
    taken = value_names(model)
    new = {name for name in (labels, gamma, weights, loss, grad) if isinstance(name, str)}
    fresh = fresh_names(taken | new, loss)

    def append_input(name: str, elem_type: int, dims: Dims) -> None:
        if name not in taken:
            graph.input.append(_value_info(name, elem_type, dims))

    labels_type = type_of_labels(labels_dtype, probabilities, elem_type)
    append_input(labels, labels_type, dims if probabilities else row_dims)
    gamma_type = elem_type_of("gamma_dtype", gamma_dtype, FLOATS)
    append_input(gamma, gamma_type, row_dims if gamma_per_row else [])
    weights_name = None
    if isinstance(weights, str):
        weights_name = weights
        append_input(weights, elem_type, [class_dim])
    elif weights is not None:
        weights_name = fresh()
        graph.initializer.append(_weights_of(weights_name, weights, elem_type, class_dim))
        # Before IR 4 an initializer had to be an input too.
        model.ir_version = max(model.ir_version, 4)

    node = loss_node(
        logits, labels, gamma, weights=weights_name, loss=loss, grad=grad, **attributes
    )
    if probabilities:
        check_attributes(attributes, probabilities)
    per_row = attributes.get("reduction") == "none"
    of_rows = {gamma} if gamma_per_row else set()
    of_rows |= {loss} if per_row else set()
    of_classes = {logits} if grad is None or grad_of_node else {logits, grad}
    (of_classes if probabilities else of_rows).add(labels)
    grad_dims = dims
    if axis == 1 or len(dims) == 2:
        graph.node.append(node)
    elif attributes.get("shift"):  # which needs the last axis of rows
        graph.node.extend(_on_second_axis(node, of_classes, len(dims), fresh))
        grad_dims = [dims[0], class_dim, *dims[1:-1]]
    else:
        graph.node.extend(_on_flattened_rows(node, of_rows, of_classes, fresh))
        grad_dims = [onnx.TensorShapeProto.Dimension(), class_dim]
    _import_domain(model)
    outputs = [_value_info(loss, elem_type, row_dims if per_row else [])]
    if grad is not None:
        outputs.append(_value_info(grad, elem_type, grad_dims if grad_of_node else dims))
    return outputs


def name_of_logits(model: onnx.ModelProto, logits: str | None) -> str:
    """The name, by default of the only output, if it is a value and no probabilities."""
    names: list[str] = [output.name for output in model.graph.output]
    if logits is None:
        if len(names) != 1:
            raise ValueError(
                f"logits is not given, expected the name of a value of the model, whose outputs "
                f"are {names}{_hint(model, names)}"
            )
        logits = names[0]
    elif not isinstance(logits, str):
        raise TypeError(f"logits has type {type(logits).__name__}, expected str, a value's name")
    elif logits not in value_names(model):
        raise ValueError(
            f"logits = {logits!r}, expected a value of the model, as its outputs {names}"
        )
    node = _probabilities(model, logits)
    if node is not None:
        raise ValueError(
            f"logits = {logits!r} are probabilities, the {node.op_type} of {_input_of(node)!r}, "
            f"expected logits, which the loss makes probabilities of itself"
        )
    return logits


def _hint(model: onnx.ModelProto, names: list[str]) -> str:
    """Where the logits may be, if outputs are probabilities."""
    found = {name: _probabilities(model, name) for name in names}
    hints = [f"{n!r} are the {v.op_type} of {_input_of(v)!r}" for n, v in found.items() if v]
    return "".join(f"; {hint}" for hint in hints)


def _input_of(node: onnx.NodeProto) -> str:
    return node.input[0] if node.input else ""  # no check has refused it yet


def _probabilities(model: onnx.ModelProto, name: str) -> onnx.NodeProto | None:
    """The node whose probabilities a value has, perhaps in another shape."""
    made: dict[str, onnx.NodeProto] = {
        output: node for node in model.graph.node for output in node.output
    }
    while name in made:
        node = made.pop(name)  # or a cycle, which no check has refused yet, had no end
        if node.op_type in ("Softmax", "Sigmoid"):
            return node
        if node.op_type not in SAME_ELEMENTS or not node.input:
            return None
        name = node.input[0]
    return None


def _type_of_logits(model: onnx.ModelProto, logits: str) -> tuple[int, Dims]:
    """Element type and dimensions."""
    graph = inferred(model).graph
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


def _split_axis(dims: Dims, axis: int, opset: int) -> tuple[Dims, Any]:
    """Dimensions of the rows, and that of the classes."""
    try:
        axis = operator.index(axis)
    except TypeError:
        raise TypeError(f"axis has type {type(axis).__name__}, expected int") from None
    if axis not in (1, -1):
        raise ValueError(f"axis = {axis}, expected 1 or -1")
    if axis == -1 and len(dims) > 2 and opset < OPSET_OF_ALLOWZERO:
        raise ValueError(
            f"model has opset {opset}, expected {OPSET_OF_ALLOWZERO} or newer for axis = -1 of "
            f"{len(dims)} dimensions"
        )
    return ([*dims[:-1]], dims[-1]) if axis == -1 else ([dims[0], *dims[2:]], dims[1])


def _require_new(taken: set[str], names: dict[str, Any]) -> None:
    """Raise unless the names, which are here by argument, are new."""
    for argument, name in names.items():
        if not isinstance(name, str):
            raise TypeError(f"{argument} has type {type(name).__name__}, expected str")
        if name in taken or not name:
            raise ValueError(
                f"{argument} = {name!r}, expected a name that nothing in the model has"
            )
        taken = taken | {name}


def elem_type_of(argument: str, dtype: DTypeLike, allowed: list[str]) -> int:
    elem_type: int = onnx.TensorProto.UNDEFINED
    with contextlib.suppress(TypeError, ValueError, KeyError):
        elem_type = int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype or object)))
    if f"tensor({tensor_type_name(elem_type)})" not in allowed:
        expected = ", ".join(text[len("tensor(") : -1] for text in allowed)
        raise TypeError(f"{argument} = {dtype!r}, expected one of {expected}")
    return elem_type


def type_of_labels(dtype: DTypeLike | None, probabilities: bool, logits_type: int) -> int:
    """The element type of labels, of this dtype or the default one."""
    if dtype is not None:
        return elem_type_of("labels_dtype", dtype, FLOATS if probabilities else INTEGERS)
    if not probabilities:
        return int(onnx.TensorProto.INT64)
    is_double = logits_type == onnx.TensorProto.DOUBLE
    return int(onnx.TensorProto.DOUBLE if is_double else onnx.TensorProto.FLOAT)


def _import_domain(model: onnx.ModelProto) -> None:
    for opset in model.opset_import:
        if opset.domain == DOMAIN and opset.version != VERSION:
            raise ValueError(
                f"model imports {DOMAIN} version {opset.version}, expected {VERSION} or none"
            )
        if opset.domain == DOMAIN:
            return
    model.opset_import.append(helper.make_opsetid(DOMAIN, VERSION))


def _check(model: onnx.ModelProto) -> None:
    """Check with ``onnx.checker``, to which tensors in files of their own are shown as inputs."""
    if any(tensor.external_data for tensor in model.graph.initializer):
        model = copy.deepcopy(model)
        graph = model.graph
        inputs = {value.name for value in graph.input}
        for number, tensor in reversed(list(enumerate(graph.initializer))):
            if not tensor.external_data:
                continue
            if tensor.name not in inputs:
                info = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
                graph.input.append(info)
            del graph.initializer[number]
    with contradictions_refused():
        onnx.checker.check_model(model, full_check=True)


def _on_flattened_rows(
    node: onnx.NodeProto, of_rows: set[str], of_classes: set[str], fresh: Callable[[], str]
) -> list[onnx.NodeProto]:
    """Nodes that do for [..., C] what `node` does for [N, C].

    `of_rows`: names of what has the dimensions [...]; `of_classes`: of what has [..., C].
    """
    logits = node.input[0]
    zero, minus_one = fresh(), fresh()
    before = [
        helper.make_node("Constant", [], [zero], value_ints=[0]),
        helper.make_node("Constant", [], [minus_one], value_ints=[-1]),
    ]
    after = []
    for i, name in enumerate(node.input):
        if name in of_classes:
            node.input[i] = fresh()
            before.append(helper.make_node("Flatten", [name], [node.input[i]], axis=-1))
        elif name in of_rows:
            node.input[i] = fresh()
            before.append(helper.make_node("Reshape", [name, minus_one], [node.input[i]]))
    for i, name in enumerate(node.output):
        if name not in of_classes | of_rows:
            continue
        node.output[i], shape = fresh(), fresh()
        after.append(helper.make_node("Shape", [logits], [shape]))
        if name in of_rows:
            whole, shape = shape, fresh()
            after.append(helper.make_node("Slice", [whole, zero, minus_one], [shape]))
        after.append(helper.make_node("Reshape", [node.output[i], shape], [name], allowzero=1))
    return [*before, node, *after]


def _on_second_axis(
    node: onnx.NodeProto, of_classes: set[str], rank: int, fresh: Callable[[], str]
) -> list[onnx.NodeProto]:
    """Nodes that do for [N, ..., C] what `node` does for [N, C, ...], where names have these."""
    there, back = [0, rank - 1, *range(1, rank - 1)], [0, *range(2, rank), 1]
    before, after = [], []
    for i, name in enumerate(node.input):
        if name in of_classes:
            node.input[i] = fresh()
            before.append(helper.make_node("Transpose", [name], [node.input[i]], perm=there))
    for i, name in enumerate(node.output):
        if name in of_classes:
            node.output[i] = fresh()
            after.append(helper.make_node("Transpose", [node.output[i]], [name], perm=back))
    return [*before, node, *after]


def _value_info(name: str, elem_type: int, dims: Dims) -> onnx.ValueInfoProto:
    info = helper.make_tensor_value_info(name, elem_type, [])
    info.type.tensor_type.shape.dim.extend(dims)
    return info


def _weights_of(name: str, weights: ArrayLike, elem_type: int, class_dim: Any) -> onnx.TensorProto:
    """Class weights as an initializer of the logits' type."""
    dtype = helper.tensor_dtype_to_np_dtype(elem_type)
    if elem_type == onnx.TensorProto.BFLOAT16:  # float32 there, in an older onnx
        dtype = np.dtype(ml_dtypes.bfloat16)
    given = np.asarray(weights)
    if given.dtype.kind not in "biuf" and given.dtype != ml_dtypes.bfloat16:
        raise TypeError(f"weights has dtype {given.dtype}, expected numbers")
    classes = class_dim.dim_value  # 0: not known
    if given.ndim != 1 or (classes and len(given) != classes):
        raise ValueError(
            f"weights has shape {given.shape}, expected ({classes or 'C'},): "
            "one per class of logits"
        )
    with np.errstate(over="ignore", under="ignore"):
        array = given.astype(dtype)
    lost = np.isinf(array) & np.isfinite(given.astype(np.float64))
    if lost.any():
        raise ValueError(
            f"weights[{lost.argmax()}] = {given[lost.argmax()]}, "
            f"expected a number that {tensor_type_name(elem_type)}, the type of logits, can hold"
        )
    return helper.make_tensor(name, elem_type, array.shape, array.tobytes(), raw=True)
