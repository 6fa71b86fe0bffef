"""A list of nodes that grows, with names that nothing else in the model has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

__all__ = ["Nodes", "value_info"]


def value_info(name: str, array: npt.NDArray[Any]) -> onnx.ValueInfoProto:
    """An input or output of the type and shape of an array."""
    elem_type = helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor_value_info(name, elem_type, array.shape)


class Nodes:
    """Nodes and the constants that they use.

    Parameters
    ----------
    fresh : callable
        Makes a new name at each call.

    Attributes
    ----------
    nodes : list of onnx.NodeProto
    initializers : list of onnx.TensorProto
    """

    def __init__(self, fresh: Callable[[], str]) -> None:
        self.fresh = fresh
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._constants: dict[tuple[Any, ...], str] = {}

    def op(self, op_type: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Append a node of one output, and return the output's name."""
        name = self.fresh() if output is None else output
        self.nodes.append(helper.make_node(op_type, list(inputs), [name], **attributes))
        return name

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike) -> str:
        """Name of a constant; equal ones are one."""
        array = np.array(value, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.fresh()
            self.initializers.append(numpy_helper.from_array(array, self._constants[key]))
        return self._constants[key]

    def ints(self, value: int | list[int]) -> str:
        """Name of an int64 constant."""
        return self.constant(value, np.int64)
