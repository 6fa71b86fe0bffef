"""Which initializers of a model are trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx

from gce.onnx._graphs import ELEMENTWISE, described
from gce.onnx._parameters import names_of
from gce.onnx._schema import tensor_type_name

__all__ = ["trainable"]

TYPES = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)


def trainable(
    model: onnx.ModelProto,
    default: Iterable[str],
    parameters: Iterable[str] | None,
    frozen: Iterable[str],
    made_of: Mapping[str, Iterable[str]] | None = None,
) -> list[str]:
    """Names of the parameters, in the model's order: see `training_graph`.

    `default` are those that are trained if none are named, unless they are frozen; `made_of` says
    which of the module's parameters initializers came of.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    left_out = names_of("frozen", frozen, tensors, made_of)
    if parameters is None:
        wanted = set(default) - left_out
    else:
        wanted = names_of("parameters", parameters, tensors, made_of)
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
        held = [
            f": {described(node)} keeps its weights in attributes, expected initializers"
            for node in model.graph.node
            if node.domain == "ai.onnx.ml" and node.op_type not in ELEMENTWISE
        ]
        raise ValueError(
            "model has no parameters to train: no weights that its logits depend on"
            + "".join(held[:1])
        )
    return chosen
