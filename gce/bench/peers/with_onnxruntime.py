"""ONNX Runtime: sessions of one node, its own loss or gce's operator, with new outputs."""

from __future__ import annotations

from typing import Any

import numpy as np

from gce.bench.cases import (
    BACKWARD,
    BINARY,
    CAP,
    FORWARD,
    IN_PLACE,
    PROBABILITIES,
    PRODUCT,
    SOFTCAP,
    Data,
)
from gce.bench.contender import CannotDo, Contender, Work

__all__ = ["OPERATOR", "PEERS"]

OPERATOR = "gce (onnx)"


def own_loss(data: Data, threads: int) -> Work:
    """SoftmaxCrossEntropyLoss."""
    if data.case.work != FORWARD:
        raise CannotDo("its gradient is in the training release alone")
    return session_of(data, threads, standard=True)


def operator(data: Data, threads: int) -> Work:
    """Gce's GammaCrossEntropyLoss."""
    return session_of(data, threads, standard=False)


def session_of(data: Data, threads: int, standard: bool) -> Work:
    """A session of one node, fed with the arrays of the case."""
    import onnxruntime
    from onnx import helper

    import gce.onnx

    case = data.case
    if case.work == IN_PLACE:
        raise CannotDo("its outputs are new")
    if case.dtype == "bfloat16" or (standard and case.dtype == "float16"):
        raise CannotDo(f"no {case.dtype}")
    if case.options in (PRODUCT, BINARY) or (standard and case.options in (PROBABILITIES, SOFTCAP)):
        raise CannotDo(f"no {case.options}")
    if len(case.shape) > 2 and case.axis != 1:
        raise CannotDo("the class axis is 1")
    inputs: dict[str, Any] = {"scores": data.logits, "labels": data.targets}
    if not standard:
        inputs["gamma"] = np.asarray(data.gamma)
    if data.weight is not None:
        inputs["weights"] = data.weight.astype(case.dtype)
    weights = None if data.weight is None else "weights"
    ignored = data.options.get("ignore_index")
    if standard:
        attributes = {} if ignored is None else {"ignore_index": ignored}
        node = helper.make_node("SoftmaxCrossEntropyLoss", [*inputs], ["loss"], **attributes)
    else:
        node = gce.onnx.loss_node(
            "scores", "labels", "gamma", weights=weights, ignore_index=ignored,
            grad="grad" if case.work == BACKWARD else None,
            softcap=CAP if case.options == SOFTCAP else None,
        )  # fmt: skip
    kind = helper.np_dtype_to_tensor_dtype(data.logits.dtype)
    infos = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
        )
        for name, array in inputs.items()
    ]
    shapes = {"loss": (), "grad": case.shape}
    outputs = [helper.make_tensor_value_info(name, kind, shapes[name]) for name in node.output]
    model = helper.make_model(
        helper.make_graph([node], "benchmark", infos, outputs),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(gce.onnx.DOMAIN, 1)],
        ir_version=8,
    )
    options = gce.onnx.register(onnxruntime.SessionOptions())
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    if case.work == FORWARD:
        return lambda: session.run(None, inputs)[0]
    return lambda: session.run(None, inputs)


PEERS = (
    Contender(OPERATOR, operator, "onnxruntime", keeps_memory=True),
    Contender("onnxruntime", own_loss, "onnxruntime", plain=True, keeps_memory=True),
)
