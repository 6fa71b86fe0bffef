"""The operator for ``onnx.reference.ReferenceEvaluator``."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun

import gce
from gce._onnx_library import DOMAIN

__all__ = ["ReferenceOp"]


class GammaCrossEntropyLoss(OpRun):
    """The operator in onnx's reference evaluator, computed by `gce.loss_and_grad`.

    The class goes into the evaluator's ``new_ops``.

    Examples
    --------
    >>> import gce.onnx
    >>> import numpy as np
    >>> from onnx import TensorProto, helper
    >>> from onnx.reference import ReferenceEvaluator
    >>> node = gce.onnx.loss_node("scores", "labels", "gamma")
    >>> inputs = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 3]),
    ...           helper.make_tensor_value_info("labels", TensorProto.INT64, ["N"]),
    ...           helper.make_tensor_value_info("gamma", TensorProto.DOUBLE, [])]
    >>> outputs = [helper.make_tensor_value_info("loss", TensorProto.FLOAT, [])]
    >>> model = helper.make_model(
    ...     helper.make_graph([node], "loss", inputs, outputs),
    ...     opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(gce.onnx.DOMAIN, 1)])
    >>> evaluator = ReferenceEvaluator(model, new_ops=[gce.onnx.ReferenceOp])
    >>> feeds = {"scores": np.zeros((2, 3), np.float32), "labels": np.array([0, 2])}
    >>> (loss,) = evaluator.run(None, {**feeds, "gamma": np.array(1.0)})
    >>> print(loss.round(4))
    0.6667
    """

    op_domain = DOMAIN

    def _run(  # type: ignore[no-untyped-def]
        self, scores, labels, gamma, weights=None, **attributes: Any
    ) -> tuple[np.ndarray[Any, Any], ...]:
        given = {name: item for name, item in attributes.items() if item is not None}
        options = {"ignore_index": None, **given}
        loss, grad = gce.loss_and_grad(scores, labels, gamma, weight=weights, axis=1, **options)
        with np.errstate(over="ignore", under="ignore"):  # as the kernel's conversion
            results = (np.asarray(loss).astype(scores.dtype), grad)
        return results[: max(1, len(self.onnx_node.output))]


ReferenceOp = GammaCrossEntropyLoss
