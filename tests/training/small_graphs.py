"""Small graphs, their gradients by `with_gradients`, and what these are compared with.

A `Case` is the body of a graph in ONNX's text format, whose result is y, with the shapes of its
inputs. `model_of` makes a model of it in which all their sizes are known ("static"), all but the
first of x ("batch"), of x only the second ("spatial"), or none; those that are equal have one name
("named") or not ("unnamed").
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from onnx import helper, parser

from gce.onnx.training._gradients import with_gradients

Arrays = dict[str, npt.NDArray[Any]]
SHAPES = ("static", "named", "unnamed")
DTYPES = {"double": np.float64, "float": np.float32}


@dataclasses.dataclass(frozen=True)
class Case:
    """A graph.

    Attributes
    ----------
    body : str
        Nodes. FLOAT stands for the type of the inputs.
    shapes : dict of str to tuple
        Of the inputs, all floats.
    given : str
        Initializers.
    opset : int
    positive : str
        Names of the inputs whose values are to be positive.
    parameters : tuple of str
        The inputs that get a gradient; all by default.
    """

    body: str
    shapes: Mapping[str, tuple[int, ...]]
    given: str = ""
    opset: int = 20
    positive: str = ""
    parameters: tuple[str, ...] = ()

    def __str__(self) -> str:
        shapes = ",".join("x".join(map(str, shape)) or "()" for shape in self.shapes.values())
        given = f" {self.given}" if self.given else ""
        return f"{self.body.replace(chr(10), ';')} {shapes}{given}"

    @property
    def names(self) -> list[str]:
        return list(self.parameters or self.shapes)

    @property
    def rng(self) -> np.random.Generator:
        return np.random.default_rng(zlib.crc32(str(self).encode()))

    def arrays(self) -> Arrays:
        rng = self.rng
        return {
            name: np.asarray(rng.uniform(0.5, 2.0, shape))
            if name in self.positive
            else np.asarray(rng.normal(size=shape))
            for name, shape in self.shapes.items()
        }

    def integers(self) -> Arrays:
        """Few and small ones, so that sums of products have no rounding error in float32."""
        rng = self.rng
        return {
            name: np.asarray(rng.integers(-4, 5, shape), float)
            for name, shape in self.shapes.items()
        }


def case(
    body: str,
    given: str = "",
    opset: int = 20,
    positive: str = "",
    parameters: tuple[str, ...] = (),
    **shapes: tuple[int, ...],
) -> Case:
    return Case(body, shapes, given, opset, positive, parameters)


def dims_text(name: str, shape: tuple[int, ...], shapes: str) -> str:
    dims = {
        "static": [str(size) for size in shape],
        "named": [f"d{size}" for size in shape],
        "unnamed": [f"{name}_{i}" for i in range(len(shape))],
        "batch": ["N" if i == 0 and name == "x" else str(size) for i, size in enumerate(shape)],
        "spatial": [
            str(size) if i == 1 or name != "x" else f"{name}_{i}" for i, size in enumerate(shape)
        ],
    }
    return f"[{','.join(dims[shapes])}]" if shape else ""


def model_of(case: Case, shapes: str, dtype: str) -> onnx.ModelProto:
    """The graph as a model, with the shapes that onnx infers."""
    inputs = ", ".join(
        f"{dtype}{dims_text(name, shape, shapes)} {name}" for name, shape in case.shapes.items()
    )
    given = f"<{case.given}>" if case.given else ""
    text = (
        f'<ir_version: 10, opset_import: ["" : {case.opset}]>'
        f"graph ({inputs}) => ({dtype}[] y) {given} {{ {case.body} }}"
    )
    model = parser.parse_model(text.replace("FLOAT", dtype))
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def session_of(model: onnx.ModelProto, threads: int = 1) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # errors are raised
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def with_seed(model: onnx.ModelProto, parameters: list[str]) -> tuple[onnx.ModelProto, list[str]]:
    """The model with one more input `grad`, that of y, and more outputs: those of parameters."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    tensor = made.graph.output[0].type.tensor_type
    dims = [None] * len(tensor.shape.dim)
    made.graph.input.append(helper.make_tensor_value_info("grad", tensor.elem_type, dims))
    gradients = with_gradients(made, "y", "grad", parameters)
    for name in gradients.values():
        made.graph.output.append(helper.make_tensor_value_info(name, tensor.elem_type, None))
    return made, [gradients[name] for name in parameters]


def gradients_of(
    case: Case, shapes: str, dtype: str, arrays: Arrays, grad: npt.NDArray[Any]
) -> Arrays:
    """The gradients of a case's parameters, by ONNX Runtime."""
    model, outputs = with_seed(model_of(case, shapes, dtype), case.names)
    assert not scatters_that_add(model.graph)
    feeds = {name: array.astype(DTYPES[dtype]) for name, array in {**arrays, "grad": grad}.items()}
    return dict(zip(case.names, session_of(model).run(outputs, feeds), strict=True))


def scatters_that_add(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Those of ONNX Runtime lose updates where indices are equal: it runs them on all threads."""
    found = [
        node
        for node in graph.node
        if node.op_type == "ScatterND"
        and any(a.name == "reduction" and a.s != b"none" for a in node.attribute)
    ]
    inner = [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
    return found + [node for body in inner for node in scatters_that_add(body)]


def differences(case: Case, arrays: Arrays) -> tuple[npt.NDArray[Any], Arrays]:
    """A gradient for y, and those that it gives, by central differences in float64."""
    session = session_of(model_of(case, "static", "double"))

    def y(name: str, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        result: npt.NDArray[Any] = session.run(["y"], {**arrays, name: np.asarray(array)})[0]
        return result

    step = 1e-5
    first = case.names[0]
    grad = np.asarray(case.rng.normal(size=y(first, arrays[first]).shape))
    made = {}
    for name in case.names:
        made[name] = np.zeros_like(arrays[name])
        for index in np.ndindex(arrays[name].shape):
            shift = np.zeros_like(arrays[name])
            shift[index] = step
            change = y(name, arrays[name] + shift) - y(name, arrays[name] - shift)
            made[name][index] = (change * grad).sum() / (2 * step)
    return grad, made


def torch_gradients(
    function: Callable[..., Any], arrays: Arrays, grad: Callable[..., npt.NDArray[Any]]
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], Arrays]:
    """In float64: y, the gradient for it that `grad` makes of its shape, and those it gives."""
    tensors = {name: torch.tensor(array, requires_grad=True) for name, array in arrays.items()}
    y = function(*tensors.values())
    seed = grad(tuple(y.shape))
    y.backward(torch.tensor(seed))
    grads = {name: np.asarray(tensor.grad) for name, tensor in tensors.items()}
    return y.detach().numpy(), seed, grads


def largest_error(found: Arrays, expected: Arrays) -> float:
    """The largest, relative to the largest element of its array if that is above 1."""
    errors = [0.0]
    for name, array in expected.items():
        assert found[name].shape == array.shape, name
        scale = max(1.0, float(np.abs(array).max(initial=0.0)))
        errors.append(float(np.abs(found[name] - array).max(initial=0.0)) / scale)
    return max(errors)
