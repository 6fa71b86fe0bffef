"""What PyTorch's exporters note of a module's parameters in a model.

The newer one (``dynamo=True``) notes the names that they have in the module, which initializers are
parameters, which came of folding what, and in which module each node is. The older one notes
nothing, but it names nodes ``/module/operator`` and what it folded ``onnx::...``.
"""

from __future__ import annotations

import ast
import re

import onnx
from onnx import helper

__all__ = [
    "MADE_UP",
    "call_of",
    "computed_parameters",
    "has_module",
    "is_pytorch",
    "missing_buffers",
    "missing_parameters",
    "modules_of",
    "note_parameter",
    "noted_parameters",
    "targets_of",
]

MADE_UP = "onnx::"  # begins the names that the older exporter gives to what it folded
SIGNATURE = "pkg.torch.export.ExportedProgram.graph_signature"
FOLDED = "pkg.onnxscript.optimizer.folded_from"
SCOPES = "pkg.torch.onnx.name_scopes"

MOVES = re.compile(
    r"(val|zeros|arange|embedding|alias|clone|contiguous|detach|getitem|chunk|split|split_with_sizes"
    r"|select|slice|t|transpose|permute|view|_unsafe_view|reshape|squeeze|unsqueeze)[_\d]*(/\d+)?"
)


def notes_of(item: onnx.GraphProto | onnx.NodeProto | onnx.ValueInfoProto) -> dict[str, str]:
    """What is noted at a graph, a node or a value."""
    return {entry.key: entry.value for entry in item.metadata_props}


def is_pytorch(model: onnx.ModelProto) -> bool:
    """Whether PyTorch exported it."""
    return str(model.producer_name) == "pytorch"


def targets_of(model: onnx.ModelProto) -> list[str] | None:
    """The module's parameters, by their names in it and in its order; None: not noted."""
    signature = notes_of(model.graph).get(SIGNATURE)
    return None if signature is None else re.findall(r"PARAMETER target='([^']*)'", signature)


def missing_buffers(model: onnx.ModelProto) -> list[str]:
    """The module's buffers that no initializer is, nor is made of: merged with others, perhaps."""
    signature = notes_of(model.graph).get(SIGNATURE, "")
    present = {tensor.name for tensor in model.graph.initializer}.union(*sources_of(model).values())
    return [b for b in re.findall(r"BUFFER target='([^']*)'", signature) if b not in present]


def sources_of(model: onnx.ModelProto) -> dict[str, set[str]]:
    """What each value was folded from."""
    noted = {info.name: notes_of(info).get(FOLDED) for info in model.graph.value_info}
    return {name: set(ast.literal_eval(text)) for name, text in noted.items() if text}


def noted_parameters(model: onnx.ModelProto) -> dict[str, list[str]] | None:
    """Initializers that are parameters or were made of some, and of which; None: not noted."""
    targets = targets_of(model)
    if targets is None:
        return None
    sources = sources_of(model)
    noted = {}
    for tensor in model.graph.initializer:
        made_of = sources.get(tensor.name, set())
        if tensor.name in targets:
            noted[tensor.name] = [tensor.name]
        elif made_of.intersection(targets):
            noted[tensor.name] = [target for target in targets if target in made_of]
    return noted


def computed_parameters(model: onnx.ModelProto) -> dict[str, list[str]]:
    """Initializers that a module's own formula made of parameters, as of normalized weights.

    The exporter's steps have the names ``val_...``, those of a module its operators' names. Some of
    these move elements, which changes nothing.
    """
    sources = sources_of(model)
    return {
        name: made_of
        for name, made_of in (noted_parameters(model) or {}).items()
        if made_of != [name]
        and not all(MOVES.fullmatch(step) for step in {name, *sources[name]}.difference(made_of))
    }


def missing_parameters(model: onnx.ModelProto) -> list[str]:
    """The module's parameters that no initializer is, nor is made of."""
    noted = noted_parameters(model) or {}
    present = noted.keys() | set().union(*noted.values())
    return [target for target in targets_of(model) or () if target not in present]


def note_parameter(graph: onnx.GraphProto, tensor: onnx.TensorProto, target: str) -> None:
    """Note that an initializer is this parameter, or made of it."""
    info = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
    if tensor.name != target:
        entry = info.metadata_props.add()
        entry.key, entry.value = FOLDED, str([target])
    graph.value_info.append(info)


def has_module(node: onnx.NodeProto) -> bool:
    """Whether the newer exporter noted a node's module."""
    return SCOPES in notes_of(node)


def modules_of(graph: onnx.GraphProto) -> dict[str, str | None]:
    """The module that each value was computed in, by the notes of the newer exporter.

    "" is the outermost. A node without a note is of the module that reads its result.
    """
    modules: dict[str, str | None] = {}
    readers: dict[str, str | None] = {}
    for node in reversed(graph.node):
        scopes = notes_of(node).get(SCOPES)
        if scopes:
            module: str | None = str(ast.literal_eval(scopes)[-2])
        else:
            module = next((readers[name] for name in node.output if readers.get(name)), None)
        modules.update(dict.fromkeys(node.output, module))
        readers.update(dict.fromkeys(node.input, module))
    return modules


def call_of(node: onnx.NodeProto, operator: bool = False) -> str:
    """The module of a node of the older exporter, which numbers a module's later calls.

    With `operator`, the node's place in it too.
    """
    module, _, name = str(node.name).rpartition("/")
    module = re.sub(r"_\d+(?=/|$)", "", module)
    return f"{module}/{name}" if operator else module
