"""Taking the axis of the one seed out of what onnx-ad emits.

onnx-ad puts a last axis, of as many seeds as there are, on every derivative. A loss has one seed,
and operators on arrays whose last axis has size 1 are slow in ONNX Runtime: a division that
broadcasts took twelve times as long. `without_seed_axis` follows the values that an Unsqueeze gave
that axis through the nodes that leave it alone, and rewrites those for the values without it. Rules
that compute without it begin with `plain` and end with `seeded`.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, MutableSequence
from typing import Any, TypeAlias

import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper
from onnx_ad._graph import node_reads

from gce.onnx.training._nodes import Nodes

__all__ = ["Grads", "plain", "seeded", "without_seed_axis"]

# Names of the derivatives of a node's outputs or inputs; None: there is none.
Grads: TypeAlias = list[str | None]

# Elementwise, broadcasting from the last axis on.
ELEMENTWISE = {
    "Abs", "Add", "And", "Cast", "Cos", "Div", "Equal", "Erf", "Exp", "Greater",
    "GreaterOrEqual", "Less", "LessOrEqual", "Log", "Max", "Min", "Mul", "Neg", "Not", "Or",
    "Pow", "Reciprocal", "Relu", "Sigmoid", "Sign", "Sin", "Sqrt", "Sub", "Sum", "Tanh", "Where",
}  # fmt: skip
REDUCTIONS = ("ReduceSum", "ReduceMean")


def plain(ctx: Any, grad: str | None) -> str:
    """The derivative without the axis of its one seed, in a rule of onnx-ad."""
    assert grad is not None
    return str(ctx.squeeze(grad, [-1]))


def seeded(ctx: Any, value: str) -> str:
    """The derivative with the axis of its one seed."""
    return str(ctx.unsqueeze(value, [-1]))


def without_seed_axis(
    nodes: Iterable[onnx.NodeProto],
    initializers: MutableSequence[onnx.TensorProto],
    fresh: Callable[[], str],
    forward: Container[str],
) -> list[onnx.NodeProto]:
    """The nodes, with fewer of them on values whose last axis is one that an Unsqueeze made.

    All values keep their names, but for those that only nodes with that axis used. Nodes that give
    a value of `forward` stay as they are: there, a last axis may become another.
    """
    walk = Walk(initializers, fresh)
    for node in nodes:
        if any(name in forward for name in node.output):
            walk.keep(node)
        else:
            walk.visit(node)
    initializers.extend(walk.made.initializers)
    return walk.made.nodes


class Walk:
    """The nodes so far."""

    def __init__(self, initializers: Iterable[onnx.TensorProto], fresh: Callable[[], str]) -> None:
        self.made = Nodes(fresh)
        self.tensors = {tensor.name: tensor for tensor in initializers}
        # Values without axes, which broadcast to whatever there is.
        self.scalars = {name for name, tensor in self.tensors.items() if not tensor.dims}
        self.shapes: dict[str, list[str]] = {}  # inputs of Concats
        self.bare: dict[str, str] = {}  # a value with the axis, and the same without it
        self.emitted: set[str] = set()  # those that exist with it too

    def keep(self, node: onnx.NodeProto) -> None:
        """Take one node over as it is."""
        if node.op_type == "Concat":
            self.shapes[node.output[0]] = list(node.input)
        of_scalars = node.op_type in ELEMENTWISE and self.scalars.issuperset(node.input)
        if node.op_type == "Size" or of_scalars:
            self.scalars.add(node.output[0])
        for name in node_reads(node):
            self.emit(name)
        self.made.nodes.append(node)

    def visit(self, node: onnx.NodeProto) -> None:
        """Take one node over, as it is or without the axis."""
        bare_inputs = [name for name in node.input if name in self.bare]
        if node.op_type == "Unsqueeze" and self.ints(node, 1) == [-1]:
            self.emit(node.input[0])
            self.bare[node.output[0]] = node.input[0]  # emitted when somebody needs it
            return
        if node.op_type == "Squeeze" and self.ints(node, 1) == [-1] and bare_inputs:
            self.made.op("Identity", self.bare[node.input[0]], output=node.output[0])
            return
        inputs = self.inputs_without(node) if bare_inputs and len(node.output) == 1 else None
        if inputs is None:
            self.keep(node)
            return
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Transpose":
            attributes["perm"] = list(attributes["perm"])[:-1]
        self.bare[node.output[0]] = self.made.op(node.op_type, *inputs, **attributes)

    def inputs_without(self, node: onnx.NodeProto) -> list[str] | None:
        """Inputs of the node that does the same without the axis, if there is one."""
        first = self.bare.get(node.input[0])
        if node.op_type in ELEMENTWISE:
            inputs = [self.bare.get(name, name) for name in node.input]
            rest = [name for name in node.input if name not in self.bare]
            return inputs if self.scalars.issuperset(rest) else None
        if first is None:
            return None
        if node.op_type == "Transpose":
            perm = next((list(a.ints) for a in node.attribute if a.name == "perm"), [])
            return [first] if perm and perm[-1] == len(perm) - 1 else None
        if node.op_type in REDUCTIONS or node.op_type in ("Squeeze", "Unsqueeze"):
            axes = self.ints(node, 1)
            counted = axes is not None and axes and min(axes) >= 0  # from the front
            return [first, node.input[1]] if counted else None
        if node.op_type in ("Reshape", "Expand"):
            shape = self.shape_without(
                node.input[1], (1, -1) if node.op_type == "Reshape" else (1,)
            )
            return None if shape is None else [first, shape]
        return None

    def shape_without(self, name: str, last: tuple[int, ...]) -> str | None:
        """A shape less its last size, if that is one of `last`: what a last axis of size 1 is."""
        values = self.array(name)
        if values is not None:
            sizes = values.tolist()
            if not sizes or sizes[-1] not in last or 0 in sizes or -1 in sizes[:-1]:
                return None
            return self.made.ints(sizes[:-1])
        parts = self.shapes.get(name, [])
        end = self.array(parts[-1]) if len(parts) == 2 else None
        return parts[0] if end is not None and end.tolist() in [[size] for size in last] else None

    def emit(self, name: str) -> None:
        """Make the value with the axis, which a node needs that is not rewritten."""
        if name in self.bare and name not in self.emitted:
            self.emitted.add(name)
            self.made.op("Unsqueeze", self.bare[name], self.made.ints([-1]), output=name)

    def ints(self, node: onnx.NodeProto, index: int) -> list[int] | None:
        """A constant input of the node, as a list."""
        array = self.array(node.input[index]) if len(node.input) > index else None
        return None if array is None else [int(value) for value in array.flat]

    def array(self, name: str) -> npt.NDArray[Any] | None:
        """A constant."""
        tensor = self.tensors.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)
