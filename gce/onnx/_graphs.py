"""What `_attach` and `_function` need to know of any ONNX model."""

from __future__ import annotations

import contextlib
import copy
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

import onnx
import onnx.inliner
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

__all__ = [
    "ELEMENTWISE",
    "Body",
    "add_shapes",
    "bodies_of",
    "contradictions_refused",
    "copy_of",
    "described",
    "fresh_names",
    "inferred",
    "inlined",
    "inner_graphs",
    "opset_of",
    "subgraphs_of",
    "value_names",
]

# Of ai.onnx.ml: the result has the operand's shape, and is float.
ELEMENTWISE = ("Binarizer", "Imputer", "Normalizer", "Scaler")

Body: TypeAlias = onnx.GraphProto | onnx.FunctionProto


def copy_of(model: onnx.ModelProto | str | os.PathLike[str]) -> onnx.ModelProto:
    """A model of one's own, from a model or from a file."""
    if isinstance(model, onnx.ModelProto):
        return copy.deepcopy(model)
    if isinstance(model, (str, os.PathLike)):
        try:
            return onnx.load(os.fspath(model))
        except DecodeError as error:
            raise ValueError(f"{os.fspath(model)} is no ONNX model: {error}") from error
    raise TypeError(f"model has type {type(model).__name__}, expected onnx.ModelProto or a path")


def inferred(model: onnx.ModelProto, **options: bool) -> onnx.ModelProto:
    """The model with the types and shapes that onnx finds, unless they contradict each other."""
    with contradictions_refused():
        return onnx.shape_inference.infer_shapes(model, **options)


def inlined(model: onnx.ModelProto, **options: bool) -> onnx.ModelProto:
    """The model with the bodies of its functions in place of their calls, where they have one."""
    try:
        return onnx.inliner.inline_local_functions(model, **options)
    except RuntimeError as error:
        raise ValueError(f"functions of model cannot be inlined: {error}") from error


@contextlib.contextmanager
def contradictions_refused() -> Iterator[None]:
    """Raise a ValueError where onnx finds that a model's types or shapes contradict each other."""
    try:
        yield
    except onnx.shape_inference.InferenceError as error:
        raise ValueError(f"model is inconsistent: {error}") from error


def add_shapes(model: onnx.ModelProto) -> None:
    """Note the shapes of what ai.onnx.ml's elementwise operators give: onnx infers none."""
    graph = model.graph
    for node in graph.node:
        known = {info.name for info in (*graph.value_info, *graph.output)}
        if node.op_type not in ELEMENTWISE or node.output[0] in known:
            continue
        found = inferred(model).graph
        for info in (*found.input, *found.value_info):
            if info.name == node.input[0] and info.type.tensor_type.HasField("shape"):
                noted = graph.value_info.add()
                noted.CopyFrom(info)
                noted.name = node.output[0]
                noted.type.tensor_type.elem_type = onnx.TensorProto.FLOAT


def opset_of(model: onnx.ModelProto) -> int:
    """Version of the standard operators, 0 if the model has none."""
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)


def bodies_of(model: onnx.ModelProto) -> Iterator[Body]:
    """The graph and the model's functions, each followed by its subgraphs."""
    for body in (model.graph, *model.functions):
        yield body
        yield from inner_graphs(body)


def inner_graphs(body: Body) -> Iterator[onnx.GraphProto]:
    """The graphs inside, at any depth."""
    for node in body.node:
        for subgraph in subgraphs_of(node):
            yield subgraph
            yield from inner_graphs(subgraph)


def subgraphs_of(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs that a node has itself."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def described(node: onnx.NodeProto) -> str:
    """How an error calls a node."""
    op_type = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    return f"{op_type} node {node.name or node.output[0]!r}"


def value_names(model: onnx.ModelProto) -> set[str]:
    """Every name of a value, wherever it is."""
    names = set()
    for body in bodies_of(model):
        for node in body.node:
            names |= {*node.input, *node.output}
        if isinstance(body, onnx.FunctionProto):
            names |= {*body.input, *body.output}
            continue
        named = (*body.input, *body.initializer, *body.value_info, *body.output)
        names |= {item.name for item in named}
        names |= {item.values.name for item in body.sparse_initializer}
    return names - {""}


def fresh_names(taken: Iterable[str], prefix: str) -> Callable[[], str]:
    """Return a function that makes one name after the other that nothing has."""
    names, numbers = set(taken), itertools.count()

    def fresh() -> str:
        return next(n for n in (f"{prefix}/{i}" for i in numbers) if n not in names)

    return fresh
