"""Nodes that ONNX Runtime's gradient builder cannot take, written in another way."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from gce.onnx._graphs import described, fresh_names, inferred, value_names
from gce.onnx.ort_training._runtime import onnxruntime

__all__ = ["Rewriter"]


class Rewriter:
    """Rewrites the nodes of a model, in place.

    A method has the name of its operator; it changes the node, or returns those that take its
    place.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.fresh = fresh_names(value_names(model), "prepared")
        known = inferred(model).graph
        self.infos = {
            info.name: info.type.tensor_type
            for info in (*known.input, *known.value_info, *known.output)
        }
        self.tensors = {tensor.name: tensor for tensor in self.graph.initializer}

    def run(self) -> None:
        """Rewrite all nodes of standard operators."""
        nodes: list[onnx.NodeProto] = []
        for node in self.graph.node:
            method = getattr(self, node.op_type, None) if node.domain in ("", "ai.onnx") else None
            made = method(node) if method is not None else None
            nodes += [node] if made is None else made
        del self.graph.node[:]
        self.graph.node.extend(nodes)

    def LayerNormalization(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Mean and inverse standard deviation, and a bias of zeros: it must have that gradient."""
        self._list_outputs(node, 3)
        x, scale, *bias = node.input
        if any(bias):
            return [node]
        # Zeros that depend on the scale: constants, the runtime would share among the nodes, and
        # then fail as each of these makes a gradient of that name.
        zero = self._constant(np.zeros((), self._dtype(scale)))
        del node.input[:]
        node.input.extend([x, scale, self.fresh()])
        return [helper.make_node("Mul", [scale, zero], [node.input[2]]), node]

    def Dropout(self, node: onnx.NodeProto) -> None:
        """The mask."""
        self._list_outputs(node, 2)

    def Constant(self, node: onnx.NodeProto) -> None:
        """A tensor: symbolic shape inference knows no numbers."""
        item = node.attribute[0]
        if item.name in ("value_int", "value_ints", "value_float", "value_floats"):
            dtype = np.int64 if item.name.startswith("value_int") else np.float32
            array = np.array(helper.get_attribute_value(item), dtype)
            item.CopyFrom(helper.make_attribute("value", numpy_helper.from_array(array)))

    def CastLike(self, node: onnx.NodeProto) -> None:
        """A Cast, to a type that is known."""
        elem_type = self._elem_type(node.input[1])
        if elem_type:
            node.op_type = "Cast"
            node.attribute.append(helper.make_attribute("to", elem_type))
            del node.input[1]

    def AveragePool(self, node: onnx.NodeProto) -> None:
        """A Conv, each channel with a kernel of equal weights."""
        given = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        what = described(node)
        why = f"its gradient kills the process of onnxruntime {onnxruntime.__version__}"
        counts = bool(given.get("count_include_pad", 0))
        if given.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
            raise ValueError(f"{what} has auto_pad, expected pads: {why}, and a Conv counts them")
        if any(given.get("pads", ())) and not counts:
            raise ValueError(f"{what} does not count its pads: {why}, and a Conv counts them")
        if given.get("ceil_mode", 0):
            raise ValueError(f"{what} has ceil_mode = 1, expected 0: {why}, and a Conv rounds down")
        dims = self._dims(node.input[0])
        channels = dims[1].dim_value if dims is not None and len(dims) > 1 else 0
        if not channels:
            raise ValueError(f"{what} has an unknown number of channels, as a Conv must not: {why}")
        kernel = given["kernel_shape"]
        weights = np.full([channels, 1, *kernel], 1 / np.prod(kernel), self._dtype(node.input[0]))
        kept = [a for a in node.attribute if a.name not in ("count_include_pad", "ceil_mode")]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute("group", channels)])
        node.op_type = "Conv"
        node.input.append(self._constant(weights))

    def MaxPool(self, node: onnx.NodeProto) -> None:
        """As it is, if its extents are known."""
        dims = self._dims(node.input[0])
        if dims is None or any(not dim.dim_value for dim in dims[2:]):
            raise ValueError(
                f"{described(node)} has unknown extents, expected fixed ones: "
                f"its gradient kills the process of onnxruntime {onnxruntime.__version__}"
            )

    def BatchNormalization(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """``(x - mean) (1 / sqrt(var + epsilon)) scale + bias``: its statistics are constants."""
        given = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        what = described(node)
        if given.get("training_mode", 0):
            raise ValueError(f"{what} is in training mode, expected inference mode")
        x, scale, bias, *statistics = node.input
        dims = self._dims(x)
        if dims is None:
            raise ValueError(f"{what} has an unknown number of dimensions, expected a known one")
        missing = [name for name in statistics if name not in self.tensors]
        if missing:
            raise ValueError(f"{what} reads {missing[0]!r}, expected initializers as statistics")
        shape = [-1, *[1] * (len(dims) - 2)]
        mean, var = (
            numpy_helper.to_array(self.tensors[name]).reshape(shape) for name in statistics
        )
        epsilon = given.get("epsilon", 1e-5)
        inverse = (1 / np.sqrt(var.astype(np.float64) + epsilon)).astype(var.dtype)
        centred, normal, scaled, wide, shift = (self.fresh() for _ in range(5))
        dims_of_rows = self._constant(np.array(shape, np.int64))
        return [
            helper.make_node("Sub", [x, self._constant(mean)], [centred]),
            helper.make_node("Mul", [centred, self._constant(inverse)], [normal]),
            helper.make_node("Reshape", [scale, dims_of_rows], [wide]),
            helper.make_node("Mul", [normal, wide], [scaled]),
            helper.make_node("Reshape", [bias, dims_of_rows], [shift]),
            helper.make_node("Add", [scaled, shift], [node.output[0]]),
        ]

    def _list_outputs(self, node: onnx.NodeProto, count: int) -> None:
        """List optional outputs too, which the gradient reads; an absent one may be named ""."""
        outputs = [*node.output, *[""] * count][:count]
        del node.output[:]
        node.output.extend(name or self.fresh() for name in outputs)

    def _constant(self, array: npt.NDArray[Any]) -> str:
        """Add an initializer; its name."""
        tensor = numpy_helper.from_array(array, self.fresh())
        self.graph.initializer.append(tensor)
        return str(tensor.name)

    def _elem_type(self, name: str) -> int:
        """The element type of a value, 0 if it is unknown."""
        if name in self.tensors:
            return int(self.tensors[name].data_type)
        return int(self.infos[name].elem_type) if name in self.infos else 0

    def _dtype(self, name: str) -> np.dtype[Any]:
        """The same for numpy; float32 if it is unknown."""
        return helper.tensor_dtype_to_np_dtype(self._elem_type(name) or TensorProto.FLOAT)

    def _dims(self, name: str) -> Any:
        """The dimensions of a value, None if their number is unknown."""
        known = name in self.infos and self.infos[name].HasField("shape")
        return self.infos[name].shape.dim if known else None
