"""The operator's schema: what onnx's checker, shape inference and evaluator know of it."""

from __future__ import annotations

from typing import Any

import onnx
from onnx import TensorProto, defs

from gce._onnx_library import DOMAIN, OP_TYPE

__all__ = [
    "FLOATS",
    "INTEGERS",
    "VERSION",
    "operator_schema",
    "register_schema",
    "tensor_type_name",
]

VERSION = 1
FLOATS = ["tensor(float)", "tensor(double)", "tensor(float16)", "tensor(bfloat16)"]
INTEGERS = ["tensor(int64)", "tensor(int32)"]

_DOC = """The gamma-cross-entropy of scores and labels, and its gradient.

For a row with scores z, p = softmax(z)[label] and d = 1 - gamma:
    loss      L = -log(gamma + d p) / d        (gamma = 0: -log p;  gamma = 1: 1 - p)
    gradient  dL/dz = max(threshold, p / (gamma + d p)) (softmax(z) - onehot(label))
With probabilities t for labels it is the sum of t_k L(softmax(z)_k) over the classes.
At gamma = 0 it is SoftmaxCrossEntropyLoss. Source: arXiv 2302.13344."""

_Parameter = defs.OpSchema.FormalParameter
_Optional = defs.OpSchema.FormalParameterOption.Optional

_INPUTS = [
    _Parameter("scores", "T", "[N, C, d1...dk], the logits"),
    _Parameter(
        "labels",
        "L",
        "integers [N, d1...dk], 0 <= label < C or ignore_index; or floats [N, C, d1...dk], "
        "probabilities >= 0",
    ),
    _Parameter("gamma", "G", "0 <= gamma <= 1: scalar, or [N, d1...dk]"),
    _Parameter("weights", "T", "[C], class weights", param_option=_Optional),
]
_OUTPUTS = [
    _Parameter("loss", "T", "scalar, or [N, d1...dk] for reduction 'none'"),
    _Parameter("grad", "T", "[N, C, d1...dk], gradient of the loss", param_option=_Optional),
]
_TYPES = [
    ("T", FLOATS, "scores, weights and outputs"),
    ("L", INTEGERS + FLOATS, "labels: classes, or probabilities of any of the types of T"),
    ("G", FLOATS, "gamma, of any of these types"),
]


def _attributes() -> list[defs.OpSchema.Attribute]:
    make, attribute = onnx.helper.make_attribute, defs.OpSchema.Attribute
    return [
        attribute("reduction", make("reduction", "mean"), "'mean', 'sum' or 'none'"),
        attribute("value", make("value", "primitive"), "'primitive' or 'surrogate'"),
        attribute("threshold", make("threshold", 0.0), "b, least gradient weight, in [0, 1]"),
        attribute("label_smoothing", make("label_smoothing", 0.0), "epsilon, in [0, 1]"),
        attribute("z_loss", make("z_loss", 0.0), "lambda of lambda logsumexp(scores)^2, >= 0"),
        attribute("softcap", make("softcap", 0.0), "kappa of kappa tanh(scores / kappa); 0: none"),
        attribute(
            "shift",
            make("shift", 0),
            "s >= 0: row t along the last axis of rows predicts label t + s",
        ),
        attribute(
            "ignore_index",
            defs.OpSchema.AttrType.INT,
            "rows with this label do not count; absent: none is ignored",
            required=False,
        ),
    ]


def operator_schema(with_grad: bool = True) -> defs.OpSchema:
    """The operator as onnx knows it; or that of a node which leaves out the gradient."""
    return defs.OpSchema(
        OP_TYPE,
        DOMAIN,
        VERSION,
        _DOC,
        inputs=_INPUTS,
        outputs=_OUTPUTS if with_grad else _OUTPUTS[:1],
        type_constraints=_TYPES,
        attributes=_attributes(),
    )


def register_schema() -> None:
    """Make the operator known to onnx; once per process, however often it is called."""
    if defs.has(OP_TYPE, DOMAIN):
        return
    schema = operator_schema()
    if hasattr(schema, "set_type_and_shape_inference_function"):  # onnx >= 1.18
        schema.set_type_and_shape_inference_function(_infer)
    defs.register_schema(schema)


def _infer(context: onnx.shape_inference.InferenceContext) -> None:
    """Types and shapes of the outputs, as far as those of the inputs tell; symbolic names stay."""
    scores: Any = context.get_input_type(0)  # None where the input is absent
    labels: Any = context.get_input_type(1) if context.get_num_inputs() > 1 else None
    reduction: Any = context.get_attribute("reduction")
    if scores is None or not scores.tensor_type.elem_type:
        return
    loss = onnx.TypeProto()
    loss.tensor_type.elem_type = scores.tensor_type.elem_type
    if reduction is None or reduction.s != b"none":
        loss.tensor_type.shape.CopyFrom(onnx.TensorShapeProto())
    elif labels is not None and labels.tensor_type.HasField("shape"):
        loss.tensor_type.shape.CopyFrom(labels.tensor_type.shape)
        if f"tensor({tensor_type_name(labels.tensor_type.elem_type)})" in FLOATS:
            del loss.tensor_type.shape.dim[1:2]
    elif len(scores.tensor_type.shape.dim) >= 2:
        batch, _, *rest = scores.tensor_type.shape.dim
        loss.tensor_type.shape.dim.extend([batch, *rest])
    context.set_output_type(0, loss)
    if context.get_num_outputs() > 1:
        context.set_output_type(1, scores)


def tensor_type_name(elem_type: int) -> str:
    """``float16`` for ``TensorProto.FLOAT16``."""
    return str(TensorProto.DataType.Name(elem_type)).lower()
