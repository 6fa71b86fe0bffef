"""Forward models as ONNX Runtime's gradient builder can take them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, inliner, numpy_helper

from gce.onnx._graphs import add_shapes, copy_of, fresh_names, opset_of, value_names
from gce.onnx._parameters import parameters_of
from gce.onnx._restore import restore_parameters
from gce.onnx.ort_training._runtime import MAX_IR_VERSION, MAX_OPSET, onnxruntime

__all__ = ["Prepared", "prepare_model", "prepared_of"]


def prepare_model(model: onnx.ModelProto | str | os.PathLike[str]) -> onnx.ModelProto:
    """Make a copy of a forward model that this runtime's gradient builder can take.

    `generate_artifacts` does it; it is for those who call a ``TrainingBlock`` themselves. What a
    newer onnx or an exporter writes and onnxruntime-training 1.19.2 cannot train is written in
    another way: the IR version becomes at most 10, a LayerNormalization gets the bias and the two
    outputs that its gradient reads and a Dropout its mask, a CastLike becomes a Cast, an
    AveragePool becomes a Conv (its gradient kills the process), the model's own functions are
    inlined, and initializers are no inputs of the graph.

    And the parameters become those of the exported module again, as `gce.onnx.training` has them:
    PyTorch's exporters make one initializer of parameters that begin equal, such as the weights of
    fresh normalizations, and two of an embedding that is the last layer's weight too. Names of
    parameters are those of what this function gives.

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
        The model's opset is newer than 21, or it has an AveragePool that is no Conv: one that does
        not count its pads, rounds sizes up, or has channels of an unknown number.

    Warns
    -----
    UserWarning
        The exported model lacks a parameter of its module.

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
    return prepared_of(model).model


class Prepared(NamedTuple):
    """A model as `prepare_model` gives it.

    `parameters` are the initializers that are some; `copies` those that were merged into another,
    and that other.
    """

    model: onnx.ModelProto
    parameters: list[str]
    copies: dict[str, str]


def prepared_of(model: onnx.ModelProto | str | os.PathLike[str]) -> Prepared:
    """`prepare_model`, and what it knows of the parameters."""
    prepared = copy_of(model)
    if opset_of(prepared) > MAX_OPSET:
        raise ValueError(
            f"model has opset {opset_of(prepared)}, expected at most {MAX_OPSET}, the newest that "
            f"onnxruntime {onnxruntime.__version__} knows: export it with an older one, or convert "
            "it by onnx.version_converter"
        )
    add_shapes(prepared)
    copies = restore_parameters(prepared)
    parameters = parameters_of(prepared)
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
        elif node.op_type == "AveragePool":
            _make_conv(prepared, node, fresh)
    return Prepared(prepared, parameters, copies)


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


def _make_conv(model: onnx.ModelProto, node: onnx.NodeProto, fresh: Callable[[], str]) -> None:
    """Make a Conv of an AveragePool, each channel with a kernel of equal weights."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    infos = {info.name: info for info in (*inferred.input, *inferred.value_info)}
    given = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    what = f"AveragePool node {node.name or node.output[0]!r}"
    why = f"its gradient kills the process of onnxruntime {onnxruntime.__version__}"
    counts = bool(given.get("count_include_pad", 0))
    if given.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise ValueError(f"{what} has auto_pad, expected pads: {why}, and a Conv counts them")
    if any(given.get("pads", ())) and not counts:
        raise ValueError(f"{what} does not count its pads: {why}, and a Conv counts them")
    if given.get("ceil_mode", 0):
        raise ValueError(f"{what} has ceil_mode = 1, expected 0: {why}, and a Conv rounds down")
    tensor = infos[node.input[0]].type.tensor_type if node.input[0] in infos else None
    channels = tensor.shape.dim[1].dim_value if tensor and len(tensor.shape.dim) > 1 else 0
    if not tensor or not channels:
        raise ValueError(f"{what} has an unknown number of channels, as a Conv must not: {why}")
    kernel = given["kernel_shape"]
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    weights = np.full([channels, 1, *kernel], 1 / np.prod(kernel), dtype)
    model.graph.initializer.append(numpy_helper.from_array(weights, fresh()))
    kept = [a for a in node.attribute if a.name not in ("count_include_pad", "ceil_mode")]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute("group", channels)])
    node.op_type = "Conv"
    node.input.append(model.graph.initializer[-1].name)


def _element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element types of the values that have a known one."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    infos = (*graph.input, *graph.value_info, *graph.output)
    types = {info.name: info.type.tensor_type.elem_type for info in infos}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    return {name: elem_type for name, elem_type in types.items() if elem_type}
