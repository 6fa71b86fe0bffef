"""Bytes to a model with the operator and what it is fed: valid, or with anything about it changed.

Most changes are to the operator's node and to what it is fed, few to the bytes of the model: what
is to be reached is the operator's library, not the runtime's parser.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper

# Of tests/onnx_ops
from op_models import BFLOAT16, FLOATS, Value, feeds_of, make_model, problem, values_of

import gce.onnx
from reliability.fuzz.choices import Choices


class Case(NamedTuple):
    """A model, and its inputs."""

    model: bytes
    feeds: dict[str, Any]
    arrays: dict[str, Any]  # the node's inputs: what the feeds are made of
    attributes: dict[str, Any]
    options: tuple[bool, int]  # whether a gradient is asked for, and the threads
    is_model_valid: bool  # and its types those of the arrays


INTEGER = TensorProto.INT64
OWN = {
    "reduction": ("none", "sum", "mean"),
    "value": ("surrogate", "primitive"),
    "threshold": (0.2, 0.0, 1.0),
    "label_smoothing": (0.1, 0.0, 1.0),
    "z_loss": (1e-3, 0.0),
    "softcap": (20.0, 0.0),
    "shift": (1, 0, 2, 100),
    "ignore_index": (-100, -1),
}
ANY = (
    *(1.0, -1.0, 2.0, float("nan"), float("inf"), 1, -1, 2**31, -(2**63), "mean", "", b"\xff\0x"),
    *([1.0, 2.0], [1, 2], ["mean", "sum"], "x" * 5000),
)
NAMES = ("", "scores", "labels", "gamma", "weights", "loss", "grad", "nothing")
TYPES = (1, 11, 10, 16, 6, 7, 2, 3, 9, 8, 13, 14, 0, 17, 99)
DIMS = (0, 1, 2, 3, 5, -1, 2**31, 2**62, "N", "C", "")


def case_of(data: bytes) -> Case:
    """The case that these bytes stand for."""
    choices = Choices(data)
    arrays = arrays_of(choices)
    attributes = {name: choices.one(OWN[name]) for name in OWN if choices.chance(0.2)}
    grad, threads = not choices.chance(0.3), choices.one((1, 2))
    model = model_of(choices, arrays, attributes, grad)
    changes = choices.one((0, 0, 0, 1, 1, 2, 3))
    for _ in range(changes):
        choices.one(CHANGES)(choices, model)
    for _ in range(choices.one((0, 0, 1, 2))):
        change_array(choices, arrays)
    if not changes and choices.chance(0.1):
        # Not what the model says.
        name = choices.one(tuple(arrays))
        arrays[name] = arrays[name].astype(choices.one(("f4", "f8", "i8", "i4", "?")))
        changes = 1
    serialized = model.SerializeToString()
    if choices.chance(0.03):
        serialized, changes = change_bytes(choices, serialized), 1
    given = feeds_of(arrays)
    return Case(serialized, given, arrays, attributes, (grad, threads), not changes)


def arrays_of(choices: Choices) -> dict[str, Any]:
    """Valid inputs of the node."""
    dims = [choices.one((3, 5, 1, 2, 17, 40)) for _ in range(choices.one((2, 3, 4)))]
    if choices.chance(0.05):
        dims = [2048, 33]
    dtype = choices.one(FLOATS)
    return problem(
        choices.rng(),
        dtype,
        tuple(dims),
        labels_dtype=choices.one((np.dtype("i8"), np.dtype("i4"), *FLOATS)),
        gamma_dtype=choices.one(FLOATS),
        gamma_per_row=choices.chance(0.3),
        weights=choices.chance(0.3),
        scale=choices.one((3.0, 1.0, 100.0, 1e4)),
    )


def model_of(
    choices: Choices, arrays: dict[str, Any], attributes: dict[str, Any], grad: bool
) -> onnx.ModelProto:
    """One node; its results are the model's, or go on as in training."""
    names = ["loss", "grad"][: 1 + grad]
    node = helper.make_node(
        gce.onnx.OP_TYPE, list(arrays), names, domain=gce.onnx.DOMAIN, **attributes
    )
    nodes, inputs = [node], values_of(arrays)
    outputs = [Value(name, arrays["scores"].dtype, None) for name in names]
    if grad and arrays["scores"].dtype != BFLOAT16 and choices.chance(0.2):
        # A step: what the gradient takes from the scores.
        nodes.append(helper.make_node("Sub", ["scores", "grad"], ["stepped"]))
        outputs.append(Value("stepped", arrays["scores"].dtype, None))
    if choices.chance(0.2):
        inputs = [
            Value(name, dtype, list(arrays[name].shape) if choices.chance(0.7) else None)
            for name, dtype, _ in inputs
        ]
    return make_model(nodes, inputs, outputs)


# --- changes to a model ---------------------------------------------------------------------------


def node_of(model: onnx.ModelProto) -> onnx.NodeProto:
    """The operator's, or another where that is gone."""
    nodes = [node for node in model.graph.node if node.op_type == gce.onnx.OP_TYPE]
    return nodes[0] if nodes else model.graph.node[0]


def change_attribute(choices: Choices, model: onnx.ModelProto) -> None:
    """Of another value or type, twice, unknown, or gone."""
    attributes, how = node_of(model).attribute, choices.below(6)
    name = choices.one((*OWN, "gama", ""))
    if how < 3 or not attributes:
        value = choices.one(OWN.get(name, ANY) if how == 0 else ANY)
        kept = [one for one in attributes if one.name != name]
        del attributes[:]
        attributes.extend([*kept, helper.make_attribute(name, value)])
        return
    one = attributes[choices.below(len(attributes))]
    if how == 3:
        attributes.append(one)
    elif how == 4:
        one.type = choices.below(15)
    elif choices.chance(0.5):
        one.ref_attr_name = name
    else:
        attributes.remove(one)


def change_names(choices: Choices, model: onnx.ModelProto) -> None:
    """Of inputs or outputs: another one, one more, one less."""
    node = node_of(model)
    names, how = choices.one((node.input, node.output)), choices.below(3)
    if how == 0 and names:
        names[choices.below(len(names))] = choices.one(NAMES)
    elif how == 1 and names:
        del names[choices.below(len(names))]
    else:
        names.append(choices.one(NAMES))


def change_type(choices: Choices, model: onnx.ModelProto) -> None:
    """What the graph says of an input or an output."""
    infos = choices.one((model.graph.input, model.graph.output))
    if not infos:
        return
    info = infos[choices.below(len(infos))]
    how = choices.below(4)
    if how == 0:
        info.type.tensor_type.elem_type = choices.one(TYPES)
    elif how == 1:
        dims = [choices.one(DIMS) for _ in range(choices.below(5))]
        info.CopyFrom(
            helper.make_tensor_value_info(info.name, info.type.tensor_type.elem_type, dims)
        )
    elif how == 2:
        info.type.tensor_type.ClearField("shape")
    else:
        infos.remove(info)


def change_constant(choices: Choices, model: onnx.ModelProto) -> None:
    """Make an input a constant: a tensor whose shape and bytes may not fit."""
    name, elem_type = choices.one(("gamma", "weights", "labels")), choices.one(TYPES)
    dims = [choices.one((0, 1, 3, 5, 2**40)) for _ in range(choices.below(3))]
    size = choices.one((0, 4, 8, 12, 24, 40))
    tensor = TensorProto(name=name, data_type=elem_type, dims=dims)
    tensor.raw_data = choices.rng().bytes(size) if choices.chance(0.5) else bytes(size)
    model.graph.initializer.append(tensor)


def change_scores(choices: Choices, model: onnx.ModelProto) -> None:
    """What shape no array could be fed in: sizes that overflow without an element, 70 axes."""
    ones = [choices.one((0, 1, 2, 3, 2**40, 2**62)) for _ in range(choices.below(4))]
    dims = choices.one((ones, [0, 2**62], [3, 5] + [1] * 68))
    shape = helper.make_tensor("shape", INTEGER, [len(dims)], dims)
    if 0 not in dims and len(dims) < 5:
        dims = [min(n, 3) for n in dims]
        shape = helper.make_tensor("shape", INTEGER, [len(dims)], dims)
    model.graph.initializer.append(shape)
    made = helper.make_node("ConstantOfShape", ["shape"], ["made"])
    model.graph.node.insert(0, made)
    node = node_of(model)
    if node.input:
        node.input[choices.below(len(node.input))] = "made"


def change_place(choices: Choices, model: onnx.ModelProto) -> None:
    """The node twice, in a branch, or of another version or domain."""
    node, how = node_of(model), choices.below(5)
    if how == 0:
        model.graph.node.append(node)
    elif how == 1:
        for opset in model.opset_import:
            opset.version = choices.one((1, 2, 0, 17, 2**40))
    elif how == 2:
        node.domain = choices.one(("", "ai.onnx", "nobody", "com.microsoft"))
    elif how == 3:
        node.op_type = choices.one(("SoftmaxCrossEntropyLoss", "Identity", "", "Softmax"))
    else:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        infos = [helper.make_empty_tensor_value_info(name) for name in copy.output]
        branch = helper.make_graph([copy], "branch", [], infos)
        yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
        model.graph.initializer.append(yes)
        choice = helper.make_node(
            "If", ["yes"], list(copy.output), then_branch=branch, else_branch=branch
        )
        model.graph.node.remove(node)
        model.graph.node.append(choice)


CHANGES = (
    *(change_attribute, change_attribute, change_names, change_type),
    *(change_constant, change_scores, change_place),
)


def change_bytes(choices: Choices, model: bytes) -> bytes:
    """Some bits turned, some bytes repeated, or an end missing."""
    changed = bytearray(model)
    for _ in range(1 + choices.below(3)):
        at, how = choices.number() % max(len(changed), 1), choices.below(4)
        if how < 2:
            changed[at] ^= 1 << choices.below(8)
        elif how == 2:
            changed[at:at] = changed[at : at + choices.below(20)]
        else:
            del changed[at : at + choices.below(20)]
    return bytes(changed)


# --- changes to what is fed -----------------------------------------------------------------------


def change_array(choices: Choices, arrays: dict[str, Any]) -> None:
    """Another shape, or some numbers that are none to be taken."""
    name, how = choices.one(tuple(arrays)), choices.below(5)
    array = arrays[name]
    if how == 0 and array.ndim:
        arrays[name] = np.ascontiguousarray(array[: choices.below(len(array) + 1)])
    elif how == 1 and array.ndim:
        arrays[name] = np.concatenate([array, array[:1]])
    elif how == 2 and array.ndim:
        axis = choices.below(array.ndim)
        arrays[name] = np.ascontiguousarray(np.moveaxis(array, axis, 0))
    elif array.size:
        changed = array.copy()
        floats = (np.nan, np.inf, -np.inf, -0.5, 2.0, 1e30)
        integers = (-1, array.size, -100, 2**31 - 1, -(2**31))
        at = np.unravel_index(choices.below(array.size), array.shape)
        with np.errstate(over="ignore"):
            changed[at] = choices.one(floats if array.dtype in FLOATS else integers)
        arrays[name] = changed
