"""The parameters of a forward model as its author has them, and not as an exporter leaves them.

PyTorch's exporters make one initializer of parameters that begin equal, such as the ones and zeros
of fresh normalizations and biases, or the layers of ``nn.TransformerEncoder``, which are copies:
trained, these would stay equal. They make two of one whose transposition they fold, as of an
embedding that is the last layer's weight too. And they drop biases that are all zeros.
`restore_parameters` undoes it.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from gce.onnx._exporters import (
    MADE_UP,
    call_of,
    computed_parameters,
    has_module,
    is_pytorch,
    missing_buffers,
    missing_parameters,
    modules_of,
    note_parameter,
    noted_parameters,
    targets_of,
)
from gce.onnx._graphs import fresh_names, value_names
from gce.onnx._parameters import FLOATS, is_statistic, names_of

__all__ = ["restore_parameters"]

Tensors: TypeAlias = dict[str, onnx.TensorProto]
Reading: TypeAlias = tuple[onnx.NodeProto, int, str]  # a node, which of its inputs, and its name

NO_PARAMETER = ""
NORMALIZATIONS = (
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "RMSNormalization",
)
WITH_BIAS = ("Conv", "ConvTranspose", "Gemm")


def restore_parameters(model: onnx.ModelProto, tied: Iterable[str] = ()) -> dict[str, str]:
    """Undo, in place, what exporters do to parameters, but for the `tied`, which stay one.

    * Where PyTorch's folded a transposition of another initializer, that is written out again.
    * The older of them leaves an Identity for each parameter that it merged into another: it has
      its own initializer again, of the Identity's name.
    * The newer notes the parameters' names: those that are missing get their own initializer, or a
      warning.
    * Of other exporters, initializers whose elements are all the same number are split, one for
      each node.

    Returns
    -------
    dict of str to str
        The initializers that are new, and those that they were merged into.
    """
    graph = model.graph
    made_of = noted_parameters(model)
    kept = names_of("tied", tied, [tensor.name for tensor in graph.initializer], made_of)
    reading = [name for node in graph.node for name in node.input]
    for name in sorted(kept):
        if reading.count(name) < 2:
            raise ValueError(f"tied has {name!r}, expected initializers that several nodes read")
    if not is_pytorch(model):
        return split_constants(model, kept)
    tie_transposed(model)
    if targets_of(model) is None:
        return split_identities(graph, kept)
    repeat_for_modules(model)
    copies, one = split_missing(model, kept)
    missing = [target for target in missing_parameters(model) if target not in one]
    warn_of_computed(model)
    warn_of_missing(model, without_dropped_biases(model, missing))
    return copies


# --- of any exporter ----------------------------------------------------------------------------


def split_constants(model: onnx.ModelProto, kept: set[str]) -> dict[str, str]:
    """Give each node its own where all elements are the same number."""
    tensors, taken = float_tensors(model.graph), value_names(model)
    copies = {}
    readers = readers_of(model.graph)
    for name, tensor in tensors.items():
        if name not in kept and math.prod(tensor.dims) > 1 and is_constant(tensor):
            fresh = fresh_names(taken, name)
            for node, i, _ in readers[name][1:]:
                node.input[i] = copy_tensor(model.graph, tensor, fresh()).name
                copies[node.input[i]] = name
    return copies


# --- of both of PyTorch's -----------------------------------------------------------------------


def tie_transposed(model: onnx.ModelProto) -> None:
    """Write out the transpositions that were folded, of what is another initializer too.

    The older exporter folds without a note: what is the transposition of another is taken for it.
    """
    graph, noted = model.graph, noted_parameters(model)

    def is_folded(name: str) -> bool:
        return name.startswith(MADE_UP) if noted is None else noted.get(name, [name]) != [name]

    matrices = {
        name: numpy_helper.to_array(tensor)
        for name, tensor in float_tensors(graph).items()
        if len(tensor.dims) == 2 and not is_constant(tensor)
    }
    kept: list[str] = []
    nodes = []
    for name in sorted(matrices, key=is_folded):
        for other in kept if is_folded(name) else ():
            if noted is not None and noted.get(name) != noted.get(other):
                continue
            if are_equal(matrices[name], matrices[other].T):
                nodes.append(helper.make_node("Transpose", [other], [name], perm=[1, 0]))
                break
            if are_equal(matrices[name], matrices[other]):
                nodes.append(helper.make_node("Identity", [other], [name]))
                break
        else:
            kept.append(name)
    made = {node.output[0] for node in nodes}
    tensors = [tensor for tensor in graph.initializer if tensor.name not in made]
    nodes += graph.node
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(tensors)
    graph.node.extend(nodes)


def are_equal(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    """Whether two matrices are equal; most are not, and differ in their first element."""
    return bool(one[0, 0] == other[0, 0]) and np.array_equal(one, other)


# --- of the older -------------------------------------------------------------------------------


def split_identities(graph: onnx.GraphProto, kept: set[str]) -> dict[str, str]:
    """Give each parameter of which an Identity is left an initializer.

    Where the name is the exporter's, as of transposed weights, it is the same parameter if the same
    module reads it, in another call: then the Identity is of that one. Of what is one number
    throughout, such as a module's biases of zeros, the same operator of the module must read it.
    """
    tensors = float_tensors(graph)
    outputs = {output.name for output in graph.output}
    readers = readers_of(graph)
    nodes, copies = [], {}
    owners: dict[tuple[str, str], str] = {}  # by the initializer that is left, and who reads it

    def calls(name: str, value: str) -> list[tuple[str, str]]:
        constant = is_constant(tensors[name])
        return [(name, call_of(reader, operator=constant)) for reader, *_ in readers[value]]

    for node in graph.node:
        name, new = (*node.input, "")[0], node.output[0]
        if node.op_type == "Identity" and name in tensors.keys() - kept and new not in outputs:
            mine = calls(name, new) if new.startswith(MADE_UP) else []
            for call in calls(name, name):
                owners.setdefault(call, name)
            known = next((owners[call] for call in mine if call in owners), None)
            if known is None:
                copy_tensor(graph, tensors[name], new)
                copies[new] = name
                owners.update(dict.fromkeys(mine, new))
                continue
            node.input[0] = known
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return copies


# --- of the newer -------------------------------------------------------------------------------


def repeat_for_modules(model: onnx.ModelProto) -> None:
    """Repeat nodes of no module, that parameters alone go through, for each module that reads them.

    The exporter merges those of equal parameters too, such as the Split of an attention's weights.
    """
    graph, modules = model.graph, modules_of(model.graph)
    known = {tensor.name for tensor in graph.initializer}
    of_parameters = set(noted_parameters(model) or ())
    shared = set[str]()
    for node in graph.node:
        if not has_module(node) and known.issuperset(node.input):
            known.update(node.output)
            if of_parameters.intersection(node.input):
                of_parameters.update(node.output)
                shared.add(node.output[0])
    readers, fresh = readers_of(graph), fresh_names(value_names(model), "parameter")
    nodes: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        nodes.append(node)
        if not node.output or node.output[0] not in shared:
            continue
        copies = {modules[node.output[0]]: node}
        for place, name in enumerate(list(node.output)):
            for reader, i, _ in readers[name]:
                module = modules[reader.output[0]]
                if module not in copies:
                    copies[module] = repeated = onnx.NodeProto()
                    repeated.CopyFrom(node)
                    repeated.name = ""
                    repeated.output[:] = [fresh() for _ in node.output]
                    modules.update(dict.fromkeys(repeated.output, module))
                    nodes.append(repeated)
                    for k, read in enumerate(repeated.input):
                        readers[read].append((repeated, k, read))
                reader.input[i] = copies[module].output[place]
    nodes.reverse()
    del graph.node[:]
    graph.node.extend(nodes)


def split_missing(model: onnx.ModelProto, kept: set[str]) -> tuple[dict[str, str], set[str]]:
    """Give each parameter that was merged into another an initializer.

    Returns
    -------
    copies : dict of str to str
        The new initializers, and those that they were merged into.
    one : set of str
        The parameters that stay merged, into the `kept`.
    """
    graph, noted = model.graph, noted_parameters(model) or {}
    tensors = {name: t for name, t in float_tensors(graph).items() if name in noted}
    reading = [
        (node, i, name)
        for node in graph.node
        for i, name in enumerate(node.input)
        if name in tensors
    ]
    taken, copies, one = value_names(model), dict[tuple[str, str], str](), set[str]()
    for (node, i, name), target in zip(reading, owners_of(model, reading, tensors), strict=True):
        if target is None:
            continue
        if name in kept and target != NO_PARAMETER:
            one.add(target)
            continue
        if (name, target) not in copies:
            as_it_is = noted[name] == [name] and target not in {*taken, NO_PARAMETER}
            new = target if as_it_is else fresh_names(taken, name)()
            taken.add(new)
            copied = copy_tensor(graph, tensors[name], new)
            if target != NO_PARAMETER:
                note_parameter(graph, copied, target)
            copies[name, target] = new
        node.input[i] = copies[name, target]
    made = {new: name for (name, target), new in copies.items() if target != NO_PARAMETER}
    return made, one


def owners_of(
    model: onnx.ModelProto, reading: Sequence[Reading], tensors: Tensors
) -> list[str | None]:
    """The missing parameter that is read in truth, for each reading of an initializer; or None.

    Of those that are equal the exporter keeps the first: what comes after the one that is left may
    have been merged into it. Of one with several names it keeps the last: what comes before is
    another name. What a module reads is one of its own, that whose name ends most alike. Where it
    has several that are equal, such as two gains, they are told by their order, if nothing else
    accounts for them. What a normalization reads that has none is the exporter's ones and zeros,
    and what nothing accounts for, in a module that lacks a buffer, is that.
    """
    noted, missing = noted_parameters(model) or {}, missing_parameters(model)
    buffers = {parent_of(buffer) for buffer in missing_buffers(model)}
    modules = modules_of(model.graph)
    place = {target: i for i, target in enumerate(targets_of(model) or ())}
    direct: dict[str, set[str]] = defaultdict(set)  # the operators of its own module that read it
    for node, _, name in reading:
        if modules[node.output[0]] == parent_of(noted[name][0]):
            direct[name].add(node.op_type)

    def alike(own: str, module: str | None) -> str | None:
        """What another module reads where an initializer stands for several."""
        theirs = [target for target in missing if is_within(target, module)]
        merged = [target for target in missing if place[target] > place[own]]
        found = most_alike(own, [target for target in theirs if place[target] > place[own]])
        if found is None and (first := most_alike(own, theirs)):
            found = most_alike(first, [own, *merged])  # the module has a later name too
        return found

    owners: list[str | None] = [None] * len(reading)
    left: list[tuple[int, str | None]] = []  # what there may be another for, and if there is not
    seen = set[tuple[str, str | None]]()
    for k, (node, i, name) in enumerate(reading):
        own, module = noted[name][0], modules[node.output[0]]
        constant = is_constant(tensors[name])
        if is_statistic(node, i):
            owners[k] = NO_PARAMETER
            continue
        made_up = constant and node.op_type in NORMALIZATIONS
        inside, found = is_within(own, module), None
        if inside:
            others = NORMALIZATIONS if module == parent_of(own) else ()
            made_up = made_up and bool(direct[name].difference(others))
        else:
            found = alike(own, module)
            made_up = made_up and not any(is_within(target, module) for target in missing)
        if made_up and (inside or found is None):
            owners[k] = NO_PARAMETER
            continue
        # A module around the one whose parameter it is may read that, or something else.
        known = module == parent_of(own) or not direct[name] if inside else found is not None
        found = None if found == own else found
        if constant and ((name, module) in seen or not known):
            left.append((k, found))
        else:
            owners[k] = found
        seen.add((name, module))
    for k, found in left:
        node, _, name = reading[k]
        own, module = noted[name][0], modules[node.output[0]]
        mine = (t for t in missing if parent_of(t) == module and t not in owners)
        if found is None and module in buffers:
            found = NO_PARAMETER
        owners[k] = next((t for t in mine if place[t] > place[own]), found)
    return owners


def parent_of(parameter: str) -> str:
    """The module that a parameter is of."""
    return parameter.rpartition(".")[0]


def most_alike(name: str, others: Sequence[str]) -> str | None:
    """The first of those whose last words agree most with those of a name; None: none agrees."""

    def agreeing(other: str) -> int:
        pairs = zip(reversed(name.split(".")), reversed(other.split(".")), strict=False)
        return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))

    best = max(others, key=agreeing, default=None)
    return best if best is not None and agreeing(best) else None


def is_within(parameter: str, module: str | None) -> bool:
    """Whether the parameter of this name is of the module, or of one in it."""
    return module is not None and (not module or parameter.startswith(f"{module}."))


def without_dropped_biases(model: onnx.ModelProto, missing: Sequence[str]) -> list[str]:
    """Give nodes the biases that were dropped as they are all zeros; what else is missing."""
    graph, noted = model.graph, noted_parameters(model) or {}
    tensors, taken, modules = float_tensors(graph), value_names(model), modules_of(graph)
    for node in graph.node:
        if node.op_type not in WITH_BIAS or len(node.input) != 2 or node.input[1] not in noted:
            continue
        weight = tensors[node.input[1]]
        owners = (parent_of(noted[weight.name][0]), modules[node.output[0]])
        names = [f"{module}.bias".lstrip(".") for module in owners if module is not None]
        name = next((name for name in names if name in missing), None)
        if name is None or (name in taken and name not in tensors):
            continue
        if name not in tensors:
            dtype = helper.tensor_dtype_to_np_dtype(weight.data_type)
            tensors[name] = numpy_helper.from_array(np.zeros(bias_size(node, weight), dtype), name)
            note_parameter(graph, copy_tensor(graph, tensors[name], name), name)
        node.input.append(name)
    return [name for name in missing if name not in tensors]


def bias_size(node: onnx.NodeProto, weight: onnx.TensorProto) -> int:
    """How many elements the bias of a node `WITH_BIAS` has."""
    attributes = {item.name: item.i for item in node.attribute}
    if node.op_type == "Gemm":
        return int(weight.dims[0 if attributes.get("transB") else 1])
    if node.op_type == "ConvTranspose":
        return int(weight.dims[1] * attributes.get("group", 1))
    return int(weight.dims[0])


def warn_of_computed(model: onnx.ModelProto) -> None:
    """Name the parameters in whose place something that a module computes of them is trained."""
    computed = computed_parameters(model)
    lost = sorted({target for targets in computed.values() for target in targets})
    if lost:
        warnings.warn(
            f"the exported model has what the module computes of the parameters {lost} in their "
            f"place, as {list(computed)}, and that is trained: export with optimize=False to train "
            "the parameters",
            stacklevel=2,
        )


def warn_of_missing(model: onnx.ModelProto, missing: Sequence[str]) -> None:
    """Name the missing parameters, but for other names of one that is there."""
    noted = noted_parameters(model) or {}
    place = {target: i for i, target in enumerate(targets_of(model) or ())}
    last: dict[str, int] = defaultdict(lambda: -1)  # what each module reads of others'
    modules = modules_of(model.graph)
    for node in model.graph.node:
        for name in noted.keys() & set(node.input):
            module, own = modules[node.output[0]] or "", noted[name][0]
            if not is_within(own, module):
                last[module] = max(last[module], place[own])
    lost = [target for target in missing if last[parent_of(target)] < place[target]]
    if lost:
        warnings.warn(
            f"the exported model lacks the parameters {lost}, which are not trained: the exporter "
            "merges, folds and drops what is equal, 0 or 1, but for optimize=False, or the model "
            "does not use them",
            stacklevel=2,
        )


# --- tensors and their readers ------------------------------------------------------------------


def float_tensors(graph: onnx.GraphProto) -> Tensors:
    """The initializers of floating-point numbers."""
    return {tensor.name: tensor for tensor in graph.initializer if tensor.data_type in FLOATS}


def readers_of(graph: onnx.GraphProto) -> dict[str, list[Reading]]:
    """Where each value is read; Identities are left out."""
    readers: dict[str, list[Reading]] = defaultdict(list)
    for node in graph.node:
        if node.op_type != "Identity":
            for i, name in enumerate(node.input):
                readers[name].append((node, i, name))
    return readers


def is_constant(tensor: onnx.TensorProto) -> bool:
    """Whether all elements are the same number."""
    array = numpy_helper.to_array(tensor)
    return bool(array.size == 0 or (array == array.flat[0]).all())


def copy_tensor(graph: onnx.GraphProto, tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    """Add the same initializer under another name."""
    made = onnx.TensorProto()
    made.CopyFrom(tensor)
    made.name = name
    graph.initializer.append(made)
    return made
