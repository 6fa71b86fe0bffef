"""Forward models as ONNX Runtime's gradient builder can take them."""

from __future__ import annotations

import os
from typing import NamedTuple

import onnx

from gce.onnx._exporters import noted_parameters
from gce.onnx._graphs import add_shapes, copy_of, inferred, inlined, opset_of
from gce.onnx._parameters import FLOATS, parameters_of
from gce.onnx._restore import restore_parameters
from gce.onnx.ort_training._rewrite import Rewriter
from gce.onnx.ort_training._runtime import (
    MAX_IR_VERSION,
    MAX_OPSET,
    onnxruntime,
    symbolic_shape_infer,
)

__all__ = ["Prepared", "prepare_model", "prepared_of"]


def prepare_model(model: onnx.ModelProto | str | os.PathLike[str]) -> onnx.ModelProto:
    """Make a copy of a forward model that this runtime's gradient builder can take.

    `generate_artifacts` does it; it is for those who call a ``TrainingBlock`` themselves. What a
    newer onnx or an exporter writes and onnxruntime-training 1.19.2 cannot train is written in
    another way: the IR version becomes at most 10, a LayerNormalization gets the bias and the two
    outputs that its gradient reads and a Dropout its mask, a CastLike becomes a Cast, an
    AveragePool a Conv (its gradient kills the process), a BatchNormalization in inference mode four
    elementwise operators (this release would train it with the statistics of the batch), the
    model's own functions are inlined, and initializers are no inputs of the graph.

    And the parameters become those of the exported module again, as `gce.onnx.training` has them:
    PyTorch's exporters make one initializer of parameters that begin equal, such as the weights of
    fresh normalizations, and two of an embedding that is the last layer's weight too. Names of
    parameters are those of what this function gives.

    Parameters
    ----------
    model : onnx.ModelProto or path
        Stays as it is.

    Returns
    -------
    onnx.ModelProto

    Raises
    ------
    TypeError
        `model` is neither.
    ValueError
        The model's opset is newer than 21; it has an AveragePool that is no Conv, as it does not
        count its pads, rounds sizes up, or has channels of an unknown number; a MaxPool of unknown
        extents; or a BatchNormalization in training mode or of an unknown number of dimensions.

    Warns
    -----
    UserWarning
        The exported model lacks a parameter of its module.

    Examples
    --------
    >>> import onnx
    >>> from gce.onnx import ort_training
    >>> graph = onnx.parser.parse_graph("g (float[N,4] x) => (float[N,4] y) {y = Relu(x)}")
    >>> opsets = [onnx.helper.make_opsetid("", 17)]
    >>> model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=12)
    >>> ort_training.prepare_model(model).ir_version
    10
    """
    return prepared_of(model).model


class Prepared(NamedTuple):
    """A model as `prepare_model` gives it.

    `parameters` are the initializers that are some; `copies` those that were merged into another,
    and that other; `made_of` which of the module's parameters initializers came of.
    """

    model: onnx.ModelProto
    parameters: list[str]
    copies: dict[str, str]
    made_of: dict[str, list[str]]


def prepared_of(model: onnx.ModelProto | str | os.PathLike[str]) -> Prepared:
    """`prepare_model`, and what it knows of the parameters."""
    prepared = copy_of(model)
    if opset_of(prepared) > MAX_OPSET:
        raise ValueError(
            f"model has opset {opset_of(prepared)}, expected at most {MAX_OPSET}, the newest that "
            f"onnxruntime {onnxruntime.__version__} knows: export it with an older one, or convert "
            "it by onnx.version_converter"
        )
    add_shapes(prepared)
    copies = restore_parameters(prepared)
    parameters, made_of = parameters_of(prepared), noted_parameters(prepared) or {}
    if prepared.functions:
        prepared = inlined(prepared)
    prepared.ir_version = min(prepared.ir_version, MAX_IR_VERSION)
    graph = prepared.graph
    initialized = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in initialized]
    del graph.input[:]
    graph.input.extend(inputs)
    Rewriter(prepared).run()
    return Prepared(with_symbolic_shapes(prepared), parameters, copies, made_of)


def with_symbolic_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with names for sizes that onnx's inference knows nothing of.

    Where a shape is unknown, the gradient builder takes a sum over an axis that was broadcast for
    none: gradients are wrong, and processes have died. ONNX Runtime's own inference knows more.
    """
    if not has_unknown_shape(model):
        return model
    completed = inferred_by_runtime(model)
    if completed is None:
        return model
    known = {info.name: info for info in completed.graph.value_info}
    for info in model.graph.value_info:  # what an exporter noted of parameters
        if info.name not in known:
            completed.graph.value_info.append(info)
        elif info.metadata_props:
            known[info.name].metadata_props.extend(info.metadata_props)
    return completed


def inferred_by_runtime(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """The model as ONNX Runtime's inference completes it, or None where that is beyond it.

    These are the steps of its `infer_shapes`, which leaves the model in the working directory
    where it gives up.
    """
    inference = symbolic_shape_infer.SymbolicShapeInference(
        int_max=2**31 - 1, auto_merge=True, guess_output_rank=False, verbose=0
    )
    complete = False
    try:
        inference._preprocess(model)
        while inference.run_:
            complete = inference._infer_impl()
        inference._update_output_from_vi()
    except Exception:
        return None
    completed: onnx.ModelProto = inference.out_mp_
    return completed if complete else None


def has_unknown_shape(model: onnx.ModelProto) -> bool:
    """Whether a float value has a size without a name, as far as onnx can infer."""
    graph = inferred(model).graph
    infos = {info.name: info.type.tensor_type for info in (*graph.value_info, *graph.output)}
    tensors = (infos.get(name) for node in graph.node for name in node.output)
    return any(
        tensor is None
        or not tensor.HasField("shape")
        or any(not dim.dim_value and is_made_up(dim.dim_param) for dim in tensor.shape.dim)
        for tensor in tensors
        if tensor is None or tensor.elem_type in FLOATS
    )


def is_made_up(name: str) -> bool:
    """Whether a size has no name, or one that onnx's inference gives to the unknown."""
    return not name or name.startswith("unk__")
