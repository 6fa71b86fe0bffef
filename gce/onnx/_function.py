"""The operator once more, as an ONNX function in standard operators: where there is no library."""

from __future__ import annotations

import os
from collections.abc import Callable

import onnx
from onnx import parser

from gce._onnx_library import DOMAIN, OP_TYPE
from gce.onnx._function_text import Parts, function_text
from gce.onnx._graphs import (
    Body,
    bodies_of,
    copy_of,
    fresh_names,
    inferred,
    inlined,
    inner_graphs,
    opset_of,
    value_names,
)
from gce.onnx._node import check_attributes
from gce.onnx._schema import FLOATS, tensor_type_name

__all__ = ["attach_function"]

LABELS, WEIGHTS = 1, 3  # their places among a node's inputs
OLDEST_OPSET = 15  # CastLike, and Shape of some of the axes
FUNCTION_IR_VERSION = 9  # attributes with defaults


def attach_function(model: onnx.ModelProto | str | os.PathLike[str]) -> onnx.ModelProto:
    """Give a model the operator as a function in standard operators.

    A runtime that has the library registered uses the library's kernel; any other runs the
    function, with the same results within the rounding of float32: slower, in float64, and with
    some copies of the scores in memory. There a label out of range is an error in the runtime's own
    words, and γ out of range, or a probability that is negative or not finite, makes the results of
    its row NaN.

    Parameters
    ----------
    model : onnx.ModelProto or path
        A model with ``GammaCrossEntropyLoss`` nodes, of opset 15 or newer. It stays as it is.

    Returns
    -------
    onnx.ModelProto
        A new model. Its nodes list both outputs, the gradient by an empty name where nobody asked
        for it; if some have class weights and others not, the others get weights of 1.

    Raises
    ------
    TypeError, ValueError
        The model has no such node, an older opset, a node with an attribute out of its range, or
        both nodes whose labels are classes and nodes whose labels are probabilities.

    Examples
    --------
    >>> import gce.onnx
    >>> from onnx import TensorProto, helper
    >>> node = gce.onnx.loss_node("scores", "labels", "gamma")
    >>> inputs = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 3]),
    ...           helper.make_tensor_value_info("labels", TensorProto.INT64, ["N"]),
    ...           helper.make_tensor_value_info("gamma", TensorProto.DOUBLE, [])]
    >>> outputs = [helper.make_tensor_value_info("loss", TensorProto.FLOAT, [])]
    >>> model = helper.make_model(
    ...     helper.make_graph([node], "loss", inputs, outputs),
    ...     opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(gce.onnx.DOMAIN, 1)])
    >>> print([function.name for function in gce.onnx.attach_function(model).functions])
    ['GammaCrossEntropyLoss']
    """
    attached = copy_of(model)
    opset = opset_of(attached)
    if opset < OLDEST_OPSET:
        raise ValueError(
            f"model has opset {opset}, expected {OLDEST_OPSET} or newer: see onnx.version_converter"
        )
    for number, function in reversed(list(enumerate(attached.functions))):
        if _is_ours(function.domain, function.name):
            del attached.functions[number]
    bodies = list(bodies_of(attached))
    nodes = [node for body in bodies for node in body.node if _is_ours(node.domain, node.op_type)]
    if not nodes:
        raise ValueError(f"model has no {DOMAIN}::{OP_TYPE} node")
    probabilities = _labels_are_probabilities(attached)
    for node in nodes:
        _check(node, probabilities)
        while node.input and not node.input[-1]:
            node.input.pop()
        # Inlining the function into a node of one output ends some runtimes' process.
        node.output.extend([""] * (2 - len(node.output)))
    parts = Parts(
        weights=any(len(node.input) > WEIGHTS for node in nodes),
        probabilities=probabilities,
        softcap=any(_may_have(node, "softcap") for node in nodes),
        shift=any(_may_have(node, "shift") for node in nodes),
    )
    if parts.weights:
        fresh = fresh_names(value_names(attached), DOMAIN)
        for body in reversed(bodies):  # subgraphs first: what holds them is copied
            _weigh_by_one(body, fresh)
        for function in attached.functions:
            _import_standard(function, opset)
    attached.functions.append(parser.parse_function(function_text(opset, parts)))
    attached.ir_version = max(attached.ir_version, FUNCTION_IR_VERSION)
    return attached


def _is_ours(domain: str, name: str) -> bool:
    return (domain, name) == (DOMAIN, OP_TYPE)


def _labels_are_probabilities(model: onnx.ModelProto) -> bool:
    """Whether the labels of our nodes are; of one whose labels have no known type they are not."""
    in_functions = (b for f in model.functions for b in (f, *inner_graphs(f)))
    if any(_is_ours(node.domain, node.op_type) for body in in_functions for node in body.node):
        model = inlined(model)  # the types are those of the calls
    labels = [
        node.input[LABELS]
        for graph in (model.graph, *inner_graphs(model.graph))
        for node in graph.node
        if _is_ours(node.domain, node.op_type) and len(node.input) > LABELS
    ]
    types = _types_of_values(model)
    if not types.keys() >= set(labels):
        types = _types_of_values(inferred(model))
    kinds = {f"tensor({tensor_type_name(types.get(name, 0))})" in FLOATS for name in labels}
    if len(kinds) > 1:
        raise ValueError(
            f"model has {DOMAIN}::{OP_TYPE} nodes whose labels are classes and others whose labels "
            "are probabilities, expected one kind: a model has one function for all of them"
        )
    return True in kinds


def _types_of_values(model: onnx.ModelProto) -> dict[str, int]:
    """Element types that the graph and its subgraphs say, by name."""
    types = {}
    for graph in (model.graph, *inner_graphs(model.graph)):
        for info in (*graph.input, *graph.value_info, *graph.output):
            if info.type.tensor_type.elem_type:
                types[info.name] = info.type.tensor_type.elem_type
        types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    return types


def _may_have(node: onnx.NodeProto, name: str) -> bool:
    """Whether a node has the attribute, and not as 0."""
    return any(
        bool(attribute.ref_attr_name or onnx.helper.get_attribute_value(attribute))
        for attribute in node.attribute
        if attribute.name == name
    )


def _check(node: onnx.NodeProto, probabilities: bool) -> None:
    """Raise what the core has to say about a node's attributes, where no function sets them."""
    attributes = {
        attribute.name: onnx.helper.get_attribute_value(attribute)
        for attribute in node.attribute
        if not attribute.ref_attr_name
    }
    check_attributes(
        {name: a.decode() if isinstance(a, bytes) else a for name, a in attributes.items()},
        probabilities,
    )


def _import_standard(function: onnx.FunctionProto, opset: int) -> None:
    """Let a function use the standard operators, if it had none of them to say a version for."""
    if not any(each.domain in ("", "ai.onnx") for each in function.opset_import):
        function.opset_import.append(onnx.helper.make_opsetid("", opset))


def _weigh_by_one(body: Body, fresh: Callable[[], str]) -> None:
    """Give each of our nodes that has no class weights a vector of ones, as long as needed."""
    nodes = list(body.node)
    del body.node[:]
    for node in nodes:
        if _is_ours(node.domain, node.op_type) and len(node.input) == WEIGHTS:
            classes, floats, ones = fresh(), fresh(), fresh()
            one = onnx.helper.make_tensor("one", onnx.TensorProto.FLOAT, [1], [1.0])
            make = onnx.helper.make_node
            body.node.extend(
                [
                    make("Shape", [node.input[0]], [classes], start=1, end=2),
                    make("ConstantOfShape", [classes], [floats], value=one),
                    make("CastLike", [floats, node.input[0]], [ones]),
                ]
            )
            node.input.append(ones)
        body.node.append(node)
