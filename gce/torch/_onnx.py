"""Export: the loss as the ONNX operator ``ai.gce::GammaCrossEntropyLoss``, from both exporters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from gce._onnx_library import DOMAIN, OP_TYPE
from gce.torch import _operators  # noqa: F401, registers torch.ops.gce
from gce.torch._options import Options

__all__ = ["onnx_translations", "register_onnx_symbolic"]

# Element types as ONNX numbers them.
FLOAT, INT32, INT64, FLOAT16, DOUBLE, BFLOAT16 = 1, 6, 7, 10, 11, 16
FLOATS = (FLOAT, FLOAT16, DOUBLE, BFLOAT16)
ELEM_TYPES = {
    torch.float32: FLOAT,
    torch.int32: INT32,
    torch.int64: INT64,
    torch.float16: FLOAT16,
    torch.float64: DOUBLE,
    torch.bfloat16: BFLOAT16,
}


def onnx_translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What ``torch.onnx.export`` takes as `custom_translation_table`.

    Returns
    -------
    dict
        The translation of `gamma_cross_entropy`, and of modules that call it, to one node
        ``ai.gce::GammaCrossEntropyLoss``. Add your own to it.

    Raises
    ------
    ModuleNotFoundError
        onnx or onnxscript is missing: ``pip install 'gamma-ce[onnx]' onnxscript``.

    See Also
    --------
    gce.onnx.register : what a session needs to run the model.
    register_onnx_symbolic : the same for the older exporter.

    Notes
    -----
    The operator takes a threshold, label smoothing, λ and a softcap as float32, and γ in float64.
    It has no `sample_weight`, no threshold per row and no `normalizer`, and the export says so.

    Examples
    --------
    To export a model that returns the loss of its inputs::

        torch.onnx.export(
            model, (x, target), "model.onnx", dynamo=True,
            custom_translation_table=gce.torch.onnx_translations(),
        )

    >>> import gce.torch
    >>> print(*gce.torch.onnx_translations())
    gce.gamma_cross_entropy.default
    """
    from onnxscript import opset18, values

    from gce.onnx._schema import VERSION, operator_schema

    opset = values.Opset(DOMAIN, VERSION)
    operators = {
        count: values.Op(opset, OP_TYPE, operator_schema(with_grad=count == 2)) for count in (1, 2)
    }

    class Emitter:
        """Nodes by onnxscript, whose values are symbolic tensors."""

        def loss(self, inputs: list[Any], outputs: int, attributes: dict[str, Any]) -> Any:
            return operators[outputs](*inputs, **attributes)

        def node(self, op_type: str, *inputs: Any, **attributes: Any) -> Any:
            return getattr(opset18, op_type)(*inputs, **attributes)

        def zero(self) -> Any:
            return opset18.Constant(value_ints=[0])

        def elem_type(self, value: Any) -> int:
            return int(value.dtype)

        def rank(self, value: Any) -> int:
            return len(value.shape)

    def translate(*arguments: Any) -> Any:
        return _translate(Emitter(), *arguments)

    return {torch.ops.gce.gamma_cross_entropy.default: translate}


def register_onnx_symbolic(opset_version: int = 13) -> None:
    """Make ``torch.onnx.export(..., dynamo=False)`` translate the loss as `onnx_translations` does.

    Parameters
    ----------
    opset_version : int
        The oldest opset for which it is registered, 13 or newer.

    Raises
    ------
    ValueError
        `opset_version` is older than 13.

    Notes
    -----
    It calls ``torch.onnx.register_custom_op_symbolic``: once per process is enough.

    Examples
    --------
    >>> import gce.torch
    >>> gce.torch.register_onnx_symbolic()
    """
    if opset_version < 13:  # that of Unsqueeze with axes as an input
        raise ValueError(f"opset_version = {opset_version}, expected 13 or newer")
    import torch.onnx

    def symbolic(graph: Any, *arguments: Any) -> Any:
        return _translate(_GraphEmitter(graph), *map(_plain, arguments, _IS_TENSOR))

    torch.onnx.register_custom_op_symbolic("gce::gamma_cross_entropy", symbolic, opset_version)


class _GraphEmitter:
    """Nodes of a ``torch.Graph``."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph

    def loss(self, inputs: list[Any], outputs: int, attributes: dict[str, Any]) -> Any:
        results = self._op(f"{DOMAIN}::{OP_TYPE}", inputs, attributes, outputs=outputs)
        scores = inputs[0].type()
        batch, _, *rest = scores.varyingSizes()
        is_per_row = attributes["reduction"] == "none"
        loss, *grad = results if outputs > 1 else [results]
        loss.setType(scores.with_sizes([batch, *rest] if is_per_row else []))
        for value in grad:
            value.setType(scores)
        return results

    def node(self, op_type: str, *inputs: Any, **attributes: Any) -> Any:
        return self._op(op_type, inputs, attributes)

    def zero(self) -> Any:
        return self._graph.op("Constant", value_t=torch.tensor([0]))

    def elem_type(self, value: Any) -> int:
        return ELEM_TYPES.get(value.type().dtype(), 0)

    def rank(self, value: Any) -> int:
        return int(value.type().dim())

    def _op(self, op_type: str, inputs: Any, attributes: dict[str, Any], **keywords: Any) -> Any:
        suffixes = {str: "s", int: "i", float: "f"}
        named = {f"{name}_{suffixes[type(item)]}": item for name, item in attributes.items()}
        return self._graph.op(op_type, *inputs, **named, **keywords)


# Of the operator's arguments.
_IS_TENSOR = [True, True, True, False, True, *(i < 3 for i in range(len(Options._fields)))]


def _plain(value: Any, is_tensor: bool) -> Any:
    """The constant that a graph's value is, or the value itself for a tensor that is given."""
    node = value.node()
    if node.mustBeNone():
        return None
    if is_tensor:
        return value
    constant = getattr(node, node.kindOf("value"))("value")
    return constant.item() if isinstance(constant, torch.Tensor) else constant


class _Emitter(Protocol):
    """What both exporters can do."""

    def loss(self, inputs: list[Any], outputs: int, attributes: dict[str, Any]) -> Any: ...
    def node(self, op_type: str, *inputs: Any, **attributes: Any) -> Any: ...
    def zero(self) -> Any: ...  # [0], of int64
    def elem_type(self, value: Any) -> int: ...
    def rank(self, value: Any) -> int: ...


def _translate(
    emit: _Emitter,
    input: Any,
    target: Any,
    gamma: Any,
    with_grad: bool,
    grad_output: Any,
    *rest: Any,
) -> tuple[Any, Any]:
    """The nodes of one call of the operator: loss, and gradient or something that is empty."""
    options = Options(*rest)
    elem_type = emit.elem_type(input)
    _require_exportable(grad_output, options)
    attributes = {
        "reduction": options.reduction,
        "value": options.value,
        "threshold": float(options.threshold),
        "label_smoothing": float(options.label_smoothing),
        "z_loss": float(options.z_loss),
        "softcap": float(options.softcap or 0.0),
        "shift": options.shift,
    }
    if options.ignore_index is not None:
        attributes["ignore_index"] = options.ignore_index
    if emit.elem_type(target) not in (INT32, INT64, *FLOATS):
        target = emit.node("Cast", target, to=INT64)
    weights = [options.weight] if options.weight is not None else []
    weights = [
        item if emit.elem_type(item) == elem_type else emit.node("Cast", item, to=elem_type)
        for item in weights
    ]
    axes = emit.zero() if emit.rank(input) == 1 else None
    if axes is not None:
        input, target = (emit.node("Unsqueeze", item, axes) for item in (input, target))

    results = emit.loss([input, target, gamma, *weights], 2 if with_grad else 1, attributes)
    loss, grad = results if with_grad else (results, _empty(emit, elem_type))
    if axes is not None:
        loss = emit.node("Squeeze", loss, axes) if options.reduction == "none" else loss
        grad = emit.node("Squeeze", grad, axes) if with_grad else grad
    if elem_type in (FLOAT16, BFLOAT16):  # torch.ops.gce gives losses of float32
        loss = emit.node("Cast", loss, to=FLOAT)
    return loss, grad


def _empty(emit: _Emitter, elem_type: int) -> Any:
    """A tensor of shape (0,), in place of the gradient."""
    return emit.node("Cast", emit.node("ConstantOfShape", emit.zero()), to=elem_type)


def _require_exportable(grad_output: Any, options: Options) -> None:
    """Raise where the operator lacks what is asked for."""
    is_there = {
        "sample_weight": options.sample_weight is not None,
        "a threshold per row": options.row_threshold is not None,
        "grad_output": grad_output is not None,
        "normalizer": options.normalizer is not None,
    }
    for what, is_used in is_there.items():
        if is_used:
            raise NotImplementedError(
                f"{DOMAIN}::{OP_TYPE} has no {what}: export the model without, or its logits alone"
            )
