"""Forward models as ONNX Runtime's gradient builder can take them."""

from __future__ import annotations

import os
from collections.abc import Callable

import onnx
from onnx import TensorProto, helper, inliner

from gce.onnx._graphs import copy_of, fresh_names, opset_of, value_names
from gce.onnx.ort_training._runtime import MAX_IR_VERSION, MAX_OPSET, onnxruntime

__all__ = ["prepare_model"]


def prepare_model(model: onnx.ModelProto | str | os.PathLike[str]) -> onnx.ModelProto:
    """Make a copy of a forward model that this runtime's gradient builder can take.

    `generate_artifacts` does it; it is for those who call a ``TrainingBlock`` themselves. What a
    newer onnx or an exporter writes and onnxruntime-training 1.19.2 cannot train is written in
    another way: the IR version becomes at most 10, a LayerNormalization gets the bias and the two
    outputs that its gradient reads and a Dropout its mask, a CastLike becomes a Cast, the model's
    own functions are inlined, and initializers are no inputs of the graph.

    Parameters
    ----------
    model : onnx.ModelProto or path
        Stays as it is.

    Returns
    -------
    onnx.ModelProto

    Raises
    ------
    TypeError
        `model` is neither.
    ValueError
        The model's opset is newer than 21.

    Examples
    --------
    >>> import onnx
    >>> from gce.onnx import ort_training
    >>> graph = onnx.parser.parse_graph("g (float[N,4] x) => (float[N,4] y) {y = Relu(x)}")
    >>> opsets = [onnx.helper.make_opsetid("", 17)]
    >>> model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=12)
    >>> ort_training.prepare_model(model).ir_version
    10
    """
    prepared = copy_of(model)
    if opset_of(prepared) > MAX_OPSET:
        raise ValueError(
            f"model has opset {opset_of(prepared)}, expected at most {MAX_OPSET}, the newest that "
            f"onnxruntime {onnxruntime.__version__} knows: export it with an older one, or convert "
            "it by onnx.version_converter"
        )
    if prepared.functions:
        prepared = inliner.inline_local_functions(prepared)
    prepared.ir_version = min(prepared.ir_version, MAX_IR_VERSION)
    graph = prepared.graph
    initialized = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in initialized]
    del graph.input[:]
    graph.input.extend(inputs)
    types = _element_types(prepared)
    fresh = fresh_names(value_names(prepared), "prepared")
    # Backwards, as nodes are inserted.
    for position, node in reversed(list(enumerate(graph.node))):
        if node.domain not in ("", "ai.onnx"):
            continue
        if node.op_type == "LayerNormalization":
            _list_outputs(node, 3, fresh)  # mean and inverse standard deviation
            _give_bias(graph, position, types, fresh)
        elif node.op_type == "Dropout":
            _list_outputs(node, 2, fresh)  # the mask
        elif node.op_type == "CastLike" and node.input[1] in types:
            node.op_type = "Cast"
            node.attribute.append(helper.make_attribute("to", types[node.input[1]]))
            del node.input[1]
    return prepared


def _list_outputs(node: onnx.NodeProto, count: int, fresh: Callable[[], str]) -> None:
    """List the optional outputs too, which the gradient reads; an absent one may be named ""."""
    outputs = [*node.output, *[""] * count][:count]
    del node.output[:]
    node.output.extend(name or fresh() for name in outputs)


def _give_bias(
    graph: onnx.GraphProto, position: int, types: dict[str, int], fresh: Callable[[], str]
) -> None:
    """Give a LayerNormalization without a bias one of zeros: it must have that gradient."""
    node = graph.node[position]
    x, scale, *bias = node.input
    if any(bias):
        return
    # Zeros that depend on the scale: constants, the runtime would share among the nodes, and then
    # fail as each of these makes a gradient of that name.
    zero = helper.make_tensor(fresh(), types.get(scale, TensorProto.FLOAT), [], [0.0])
    graph.initializer.append(zero)
    del node.input[:]
    node.input.extend([x, scale, fresh()])
    graph.node.insert(position, helper.make_node("Mul", [scale, zero.name], [node.input[2]]))


def _element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element types of the values that have a known one."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    infos = (*graph.input, *graph.value_info, *graph.output)
    types = {info.name: info.type.tensor_type.elem_type for info in infos}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    return {name: elem_type for name, elem_type in types.items() if elem_type}
