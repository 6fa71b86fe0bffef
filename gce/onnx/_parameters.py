"""Which initializers of a forward model are parameters, and which of these a gradient reaches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from gce.onnx._exporters import MADE_UP, is_pytorch, noted_parameters
from gce.onnx._graphs import bodies_of, inferred, subgraphs_of

__all__ = ["names_of", "parameters_of", "reached_by_gradients"]

FLOATS = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
)
MASK = 1e30  # beyond: added to attention scores to hide some, and no weight
CONSTANTS = {  # inputs that are no weights: statistics; region and scales; the two values
    "BatchNormalization": slice(3, 5),
    "OneHot": slice(2, 3),
    "Resize": slice(1, 3),
    "Upsample": slice(1, 2),
}
FLAT = {"Bernoulli", "Ceil", "EyeLike", "Floor", "Hardmax", "Round", "Sign"}
FLAT |= {"RandomNormalLike", "RandomUniformLike"}  # floats of floats, without a gradient


def parameters_of(model: onnx.ModelProto) -> list[str]:
    """Initializers that are parameters, as far as can be told, in the model's order."""
    statistics = {
        name
        for body in bodies_of(model)
        for node in body.node
        for i, name in enumerate(node.input)
        if is_statistic(node, i)
    }
    noted = noted_parameters(model)
    names = []
    for tensor in model.graph.initializer:
        if tensor.data_type not in FLOATS or tensor.name in statistics:
            continue
        if noted is None:
            # The older exporter leaves constants of formulas to nodes, but for those it folded.
            small = not is_pytorch(model) or tensor.name.startswith(MADE_UP)
            if is_mask(tensor) or (small and math.prod(tensor.dims) == 1):
                continue
        elif tensor.name not in noted:
            continue
        names.append(tensor.name)
    return names


def is_statistic(node: onnx.NodeProto, i: int) -> bool:
    """Whether the i-th input is one of `CONSTANTS`, which no gradient trains."""
    return i in range(*CONSTANTS.get(node.op_type, slice(0)).indices(len(node.input)))


def is_mask(tensor: onnx.TensorProto) -> bool:
    """Whether some elements are as large as what hides attention scores, or no numbers."""
    array = numpy_helper.to_array(tensor).astype(np.float64)
    return not bool((np.abs(array) < MASK).all())


def reached_by_gradients(model: onnx.ModelProto, logits: str) -> set[str]:
    """Values between which and the logits are operators that a gradient passes."""
    graph = inferred(model).graph
    infos = (*graph.input, *graph.value_info, *graph.output)
    types = {info.name: info.type.tensor_type.elem_type for info in infos}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    reached = {logits}
    for node in reversed(model.graph.node):
        if node.op_type not in FLAT and reached.intersection(node.output):
            # 0: a type that inference does not know
            reached.update(name for name in reads_of(node) if types.get(name, 0) in (0, *FLOATS))
    return reached


def reads_of(node: onnx.NodeProto) -> set[str]:
    """The values that a node reads, in its subgraphs too."""
    names = {name for name in node.input if name}
    for graph in subgraphs_of(node):
        names.update(*(reads_of(inner) for inner in graph.node))
        names.update(output.name for output in graph.output)
    return names


def names_of(
    argument: str,
    names: Iterable[str],
    tensors: Iterable[str],
    made_of: Mapping[str, Iterable[str]] | None = None,
) -> set[str]:
    """The names as a set, if they are initializers, or parameters that some are `made_of`."""
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise TypeError(f"{argument} = {names!r}, expected several names")
    known = list(tensors)
    made: dict[str, set[str]] = {}
    for name, parameters in (made_of or {}).items():
        for parameter in parameters if name in known else ():
            made.setdefault(parameter, set()).add(name)
    given = set(names)
    for name in sorted(given.difference(known, made), key=str):
        raise ValueError(
            f"{argument} has {name!r}, expected initializers that the logits depend on: {known}"
        )
    return set().union(*({name} if name in known else made[name] for name in given))
