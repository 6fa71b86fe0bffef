"""From a forward model to one that computes gradients, by onnx-ad.

`prepared` makes the model what onnx-ad takes, `with_gradients` adds the gradients of its
parameters. What onnx-ad emits is then made right and lean:

* A ScatterND that adds is replaced by a ScatterElements: ONNX Runtime runs the former on several
  threads, and loses updates where indices are equal, as those of an embedding's gradient are.
* The axis of the one seed goes (`_seed_axis`), and so do Expands of what has its shape already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableSequence, Sequence

import numpy as np
import onnx
import onnx_ad
from onnx import helper, numpy_helper
from onnx_ad._graph import node_reads, subgraphs

from gce.onnx._graphs import (
    add_shapes,
    described,
    fresh_names,
    inferred,
    inlined,
    opset_of,
    value_names,
)
from gce.onnx._parameters import reached_by_gradients
from gce.onnx.training._nodes import Nodes
from gce.onnx.training._rules import Dims, UnsupportedOperator, rules_for_one_seed
from gce.onnx.training._seed_axis import without_seed_axis

__all__ = ["UnsupportedOperator", "prepared", "with_gradients"]

LEAST_OPSET, NEW_OPSET = 16, 18  # ScatterElements adds from 16 on; what older models become
SEED_PREFIX = "gce/adjoint/"
FALSE_ZEROS = {"Det": 0, "OneHot": 2}  # inputs whose gradient onnx-ad takes for zero, and is not


def prepared(model: onnx.ModelProto, logits: str) -> onnx.ModelProto:
    """The part of the model that computes `logits`, without functions, of a recent opset."""
    if model.functions:
        model = without_functions(model)
    if opset_of(model) < LEAST_OPSET:
        try:
            model = onnx.version_converter.convert_version(model, NEW_OPSET)
        except Exception as error:
            raise ValueError(
                f"model has opset {opset_of(model)}, expected {LEAST_OPSET} or newer, and onnx's "
                f"version converter cannot raise it: {error}"
            ) from error
    part = onnx.ModelProto()
    part.CopyFrom(model)
    add_shapes(part)
    needed = keep_needed(part.graph, [logits])
    inputs = [value for value in part.graph.input if value.name in needed]
    del part.graph.input[:]
    part.graph.input.extend(inputs)
    del part.graph.output[:]
    found = inferred(part).graph.value_info
    infos = {info.name: info for info in (*found, *model.graph.value_info, *model.graph.output)}
    if logits in infos:
        part.graph.output.append(infos[logits])
        if not any(info.name == logits for info in part.graph.value_info):
            part.graph.value_info.append(infos[logits])  # they will be no output
    part.ir_version = max(part.ir_version, 4)  # before, initializers had to be inputs too
    return part


def without_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without functions, those of another opset too."""
    typed = onnx.ModelProto()
    typed.CopyFrom(model)
    graph = typed.graph
    known = {value.name for value in (*graph.input, *graph.value_info)}
    graph.value_info.extend(  # onnx's inliner converts nothing without the types of initializers
        helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in graph.initializer
        if tensor.name not in known
    )
    return inlined(typed, convert_version=True)


def with_gradients(
    model: onnx.ModelProto, logits: str, grad: str, parameters: Sequence[str]
) -> dict[str, str]:
    """Add to the model the gradients of its parameters.

    Parameters
    ----------
    model : onnx.ModelProto
        Changed in place: of its graph nodes and initializers, and nothing else.
    logits, grad : str
        A value, and the gradient of the loss with respect to it, which the model computes.
    parameters : sequence of str
        Names of inputs of floating-point type.

    Returns
    -------
    dict of str to str
        The name of each parameter's gradient, which has the parameter's shape and type.
    """
    refuse_false_zeros(model, logits, parameters)
    source = onnx.ModelProto()
    source.CopyFrom(model)
    known = inferred(source, data_prop=True).graph
    if not any(output.name == logits for output in source.graph.output):
        info = next(info for info in known.value_info if info.name == logits)
        source.graph.output.append(info)
    with rules_for_one_seed(dims_of(known)):
        reversed_ = onnx_ad.reverse(
            source, inputs=list(parameters), outputs=[logits], prefix=SEED_PREFIX, layout="onnx"
        )
    graph = reversed_.graph
    nodes = list(graph.node)
    fresh = fresh_names(value_names(reversed_), "gce/adjoint")
    last = fresh()
    graph.initializer.append(numpy_helper.from_array(np.array([-1]), last))

    # The seed is the loss' gradient. The nodes that give it are among those before its first use.
    seed = SEED_PREFIX + logits
    first = next((i for i, node in enumerate(nodes) if seed in node.input), len(nodes))
    nodes.insert(first, helper.make_node("Unsqueeze", [grad, last], [seed]))
    made = {name: node for node in nodes for name in node.output}
    gradients = {}
    for parameter in parameters:
        # onnx-ad ends with zeros, or with an Expand to the parameter's shape, which is there.
        ending = made[made[SEED_PREFIX + parameter].input[0]]
        if ending.op_type == "ConstantOfShape":
            raise ValueError(
                f"parameters has {parameter!r}, whose gradient is zero: between it and the logits "
                "are only operators such as Shape and Floor"
            )
        gradients[parameter] = fresh()
        nodes.append(helper.make_node("Squeeze", [ending.input[0], last], [gradients[parameter]]))
    outputs = [output.name for output in model.graph.output]
    forward = needed_for(nodes, [*outputs, logits, grad])
    nodes = without_scatter_races(nodes, graph.initializer, fresh)
    nodes = without_seed_axis(nodes, graph.initializer, fresh, forward)
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(graph.initializer)
    keep_needed(model.graph, [*outputs, *gradients.values()])
    seen = set[str]()
    for node in model.graph.node:  # some are copies, and names must be different
        if node.name in seen:
            node.name = ""
        seen.add(node.name)
    return gradients


def refuse_false_zeros(model: onnx.ModelProto, logits: str, parameters: Iterable[str]) -> None:
    """Raise for a node whose gradient onnx-ad would leave out."""
    reached, depending = reached_by_gradients(model, logits), set(parameters)
    for node in model.graph.node:
        if depending & node_reads(node):
            depending.update(node.output)
        read = FALSE_ZEROS.get(node.op_type)
        if read is not None and node.input[read] in depending & reached:
            raise UnsupportedOperator(f"{described(node)}: it has no gradient in onnx-ad")


def dims_of(graph: onnx.GraphProto) -> dict[str, Dims]:
    """What is known of each value's shape."""
    dims: dict[str, Dims] = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for info in (*graph.input, *graph.value_info, *graph.output):
        tensor = info.type.tensor_type
        if tensor.HasField("shape"):
            sizes = (
                dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None
                for dim in tensor.shape.dim
            )
            dims[info.name] = tuple(sizes)
    return dims


def without_scatter_races(
    nodes: Iterable[onnx.NodeProto],
    initializers: MutableSequence[onnx.TensorProto],
    fresh: Callable[[], str],
) -> list[onnx.NodeProto]:
    """The nodes, with ``ScatterND(reduction="add")`` in terms of ScatterElements."""
    made = Nodes(fresh)
    op = made.op
    for node in nodes:
        for body in subgraphs(node):
            inner = without_scatter_races(body.node, initializers, fresh)
            del body.node[:]
            body.node.extend(inner)
        adds = any(a.name == "reduction" and a.s == b"add" for a in node.attribute)
        if node.op_type != "ScatterND" or not adds:
            made.nodes.append(node)
            continue
        data, indices, updates = node.input
        # An index is for as many leading axes of the data as the last axis of the indices is long.
        # All those are made one, of rows, and the index becomes the number of a row.
        shape = op("Shape", data)
        leading = op("Slice", shape, made.ints([0]), op("Shape", indices, start=-1))
        rows = op("ReduceProd", leading, keepdims=1)
        counted = op("Range", made.ints(0), op("Squeeze", rows, made.ints([0])), made.ints(1))
        numbers = op("GatherND", op("Reshape", counted, leading), indices)
        table = op("Reshape", data, op("Concat", rows, made.ints([-1]), axis=0))
        width = op("Shape", table, start=1)
        column = op("Reshape", numbers, made.ints([-1, 1]))
        wide = op("Expand", column, op("Concat", made.ints([1]), width, axis=0))
        added = op("Reshape", updates, op("Concat", made.ints([-1]), width, axis=0))
        summed = op("ScatterElements", table, wide, added, axis=0, reduction="add")
        op("Reshape", summed, shape, output=node.output[0])
    initializers.extend(made.initializers)
    return made.nodes


def needed_for(nodes: Sequence[onnx.NodeProto], values: Iterable[str]) -> set[str]:
    """The names of the values, and of all that they are computed from."""
    needed = set(values)
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed |= node_reads(node)
    return needed


def keep_needed(graph: onnx.GraphProto, outputs: Iterable[str]) -> set[str]:
    """Remove the nodes and initializers that none of `outputs` needs; the names that they do."""
    needed = needed_for(graph.node, outputs)
    nodes = [node for node in graph.node if needed.intersection(node.output)]
    initializers = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(initializers)
    return needed
