"""Which initializers of a model are trained, and which of them are several in truth."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import numpy_helper

from gce.onnx._graphs import bodies_of, fresh_names, value_names
from gce.onnx._schema import tensor_type_name

__all__ = ["split_equal", "trainable"]

TYPES = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)
HALF_TYPES = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
MASK = 1e30  # beyond: added to attention scores to hide some, and no weight


def trainable(
    model: onnx.ModelProto, parameters: Iterable[str] | None, frozen: Iterable[str]
) -> list[str]:
    """Names of the parameters, in the model's order: see `training_graph`."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    left_out = names_of("frozen", frozen, tensors)
    if parameters is None:
        left_out |= statistics(model)
        chosen = [name for name, tensor in tensors.items() if is_weight(tensor)]
        chosen = [name for name in chosen if name not in left_out]
    else:
        wanted = names_of("parameters", parameters, tensors)
        both = sorted(wanted & left_out)
        if both:
            raise ValueError(f"parameters and frozen both have {both[0]!r}")
        chosen = [name for name in tensors if name in wanted]
    for name in chosen:
        if tensors[name].data_type not in TYPES:
            raise TypeError(
                f"parameters: {name!r} has type {tensor_type_name(tensors[name].data_type)}, "
                "expected float or double"
            )
    if not chosen:
        raise ValueError("model has no parameters to train: no weights that its logits depend on")
    return chosen


def names_of(argument: str, names: Iterable[str], tensors: Iterable[str]) -> set[str]:
    """The names as a set, if they are initializers."""
    if isinstance(names, str):
        raise TypeError(f"{argument} = {names!r}, expected several names")
    known = list(tensors)
    given = set(names)
    for name in sorted(given.difference(known), key=str):
        raise ValueError(
            f"{argument} has {name!r}, expected initializers that the logits depend on: {known}"
        )
    return given


def statistics(model: onnx.ModelProto) -> set[str]:
    """Mean and variance of BatchNormalization: averages over data, and not for gradients."""
    return {
        name
        for body in bodies_of(model)
        for node in body.node
        if node.op_type == "BatchNormalization"
        for name in node.input[3:5]
    }


def is_weight(tensor: onnx.TensorProto) -> bool:
    """Whether it looks like a weight, and not like a constant of a formula or a mask."""
    if tensor.data_type not in (*TYPES, *HALF_TYPES):
        return False
    array = numpy_helper.to_array(tensor)
    return array.size > 1 and bool((np.abs(array.astype(np.float64)) < MASK).all())


def split_equal(model: onnx.ModelProto, tied: Iterable[str]) -> None:
    """Undo, in place, what exporters do to parameters that begin equal.

    PyTorch's make one initializer of all that have the same elements, such as the ones and zeros of
    fresh normalizations and biases; trained, these would stay equal. Each node that reads a float
    initializer whose elements are all the same number gets its own, but for the `tied`. Where the
    exporter kept a name, as the output of an Identity, the new one has it.
    """
    graph = model.graph
    candidates = {tensor.name: tensor for tensor in graph.initializer if all_same(tensor)}
    for name in names_of("tied", tied, [tensor.name for tensor in graph.initializer]):
        candidates.pop(name, None)
    outputs = {output.name for output in graph.output}
    kept, copies = [], []

    def copy(name: str, new: str) -> None:
        copies.append(onnx.TensorProto())
        copies[-1].CopyFrom(candidates[name])
        copies[-1].name = new

    for node in graph.node:
        named = node.op_type == "Identity" and node.input[0] in candidates
        if named and node.output[0] not in outputs:
            copy(node.input[0], node.output[0])
        else:
            kept.append(node)
    for tensor in copies:
        candidates[tensor.name] = tensor
    graph.initializer.extend(copies)
    del graph.node[:]
    graph.node.extend(kept)
    copies.clear()
    fresh = {name: fresh_names(value_names(model), name) for name in candidates}
    seen: set[str] = set()
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name in seen:
                node.input[i] = fresh[name]()
                copy(name, node.input[i])
            elif name in candidates:
                seen.add(name)
    graph.initializer.extend(copies)


def all_same(tensor: onnx.TensorProto) -> bool:
    """Whether it has several elements, of a float type, that are the same number."""
    if tensor.data_type not in TYPES:
        return False
    array = numpy_helper.to_array(tensor)
    return array.size > 1 and bool((array == array.flat[0]).all())
