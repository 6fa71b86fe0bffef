"""Which initializers of a model are trained, and which of them are several in truth."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
import onnx
from onnx import numpy_helper

from gce.onnx._graphs import bodies_of, fresh_names, value_names
from gce.onnx._schema import tensor_type_name

__all__ = ["split_equal", "trainable"]

Tensors: TypeAlias = dict[str, onnx.TensorProto]
Reading: TypeAlias = list[tuple[onnx.NodeProto, int]]

TYPES = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)
HALF_TYPES = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
MASK = 1e30  # beyond: added to attention scores to hide some, and no weight
CONSTANTS = {  # inputs that are no weights: statistics; region and scales; the two values
    "BatchNormalization": slice(3, 5),
    "OneHot": slice(2, 3),
    "Resize": slice(1, 3),
    "Upsample": slice(1, 2),
}
NAME_OF_EXPORTER = "onnx::"  # begins the names that PyTorch's older exporter makes up
MERGED = 1024  # elements: its newer exporter merges no larger initializers


def trainable(
    model: onnx.ModelProto, parameters: Iterable[str] | None, frozen: Iterable[str]
) -> list[str]:
    """Names of the parameters, in the model's order: see `training_graph`."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    left_out = names_of("frozen", frozen, tensors)
    if parameters is None:
        left_out |= constants_of_operators(model)
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


def constants_of_operators(model: onnx.ModelProto) -> set[str]:
    """What operators read and no gradient is for, as statistics, which are averages over data."""
    return {
        name
        for body in bodies_of(model)
        for node in body.node
        for name in node.input[CONSTANTS.get(node.op_type, slice(0))]
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
    fresh normalizations and biases, or the layers of ``nn.TransformerEncoder``, which are copies;
    trained, these would stay equal. But for the `tied`, float initializers become several:

    * The older one leaves an Identity for each parameter that it took out: it has its own
      initializer again, of the Identity's name. Where the name is the exporter's, as of transposed
      weights, it is the same parameter if the same module reads it, and the Identity stays.
    * The newer one notes each node's module. An initializer that several modules read in the same
      way, and that is small enough for that exporter to have been merged, is split among them.
    * If all elements are the same number, each node that reads it gets its own.
    """
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer if is_array(tensor)}
    for name in names_of("tied", tied, [tensor.name for tensor in graph.initializer]):
        tensors.pop(name, None)
    if model.producer_name == "pytorch":
        tensors |= without_identities(graph, tensors)
    taken = value_names(model)
    for name, reading in readers_of(graph).items():
        if name not in tensors or len(reading) < 2:
            continue
        fresh, names = fresh_names(taken, name), dict[object, str]()
        for (node, i), owner in zip(reading, owners_of(tensors[name], reading), strict=True):
            if names and owner not in names:
                names[owner] = fresh()
                graph.initializer.append(copy_of_tensor(tensors[name], names[owner]))
            node.input[i] = names.setdefault(owner, name)


def without_identities(graph: onnx.GraphProto, tensors: Tensors) -> Tensors:
    """Give each parameter of which an Identity is left an initializer: those that are new."""
    outputs = {output.name for output in graph.output}
    readers = readers_of(graph)
    kept, made = [], {}
    for node in graph.node:
        name, new = (*node.input, "")[0], node.output[0]
        if node.op_type == "Identity" and name in tensors and new not in outputs:
            modules = ({module_of(reader) for reader, _ in readers[value]} for value in (name, new))
            if not new.startswith(NAME_OF_EXPORTER) or not set.intersection(*modules):
                made[new] = copy_of_tensor(tensors[name], new)
                continue
        kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)
    graph.initializer.extend(made.values())
    return made


def copy_of_tensor(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    """The same under another name."""
    made = onnx.TensorProto()
    made.CopyFrom(tensor)
    made.name = name
    return made


def readers_of(graph: onnx.GraphProto) -> dict[str, Reading]:
    """The nodes that read each value, and as which of their inputs; Identities are left out."""
    readers: dict[str, Reading] = defaultdict(list)
    for node in graph.node:
        if node.op_type != "Identity":
            for i, name in enumerate(node.input):
                readers[name].append((node, i))
    return readers


def owners_of(tensor: onnx.TensorProto, reading: Reading) -> Sequence[object]:
    """Something for each reader, which is equal for those that share the initializer."""
    array = numpy_helper.to_array(tensor)
    if (array == array.flat[0]).all():
        return range(len(reading))
    ways = {(node.op_type, i) for node, i in reading}
    merged = len(ways) == 1 and array.size <= MERGED
    return [scope_of(node) if merged else None for node, _ in reading]


def scope_of(node: onnx.NodeProto) -> str | None:
    """The module of a node, as PyTorch's newer exporter notes it, and whatever is around it."""
    for item in node.metadata_props:
        if item.key == "pkg.torch.onnx.name_scopes":  # a list, which ends with the operation
            return str(item.value.rpartition(",")[0])
    return None


def module_of(node: onnx.NodeProto) -> str:
    """The module of a node of PyTorch's older exporter, which names nodes ``/module/operator``."""
    return str(node.name.rpartition("/")[0])


def is_array(tensor: onnx.TensorProto) -> bool:
    """Whether it has several elements, of a type that can be trained."""
    return tensor.data_type in TYPES and math.prod(tensor.dims) > 1
