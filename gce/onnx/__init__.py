"""The γ-cross-entropy inside ONNX models: the operator ``ai.gce::GammaCrossEntropyLoss``.

`register` makes the operator known to an ONNX Runtime session: it computes loss and gradient with
the core that `gce.loss_and_grad` uses, bit for bit. `attach_loss` puts it behind a forward model,
`loss_node` makes a single node of it, `attach_function` gives a model the same in standard
operators for runtimes that do not have the library.

================  ==============================================================================
inputs            ``scores`` T[N, C, d1...dk]; ``labels`` int32 or int64 [N, d1...dk], or
                  probabilities, any float [N, C, d1...dk]; ``gamma`` any float, scalar or
                  [N, d1...dk]; ``weights`` T[C], optional
outputs           ``loss`` T, scalar, or [N, d1...dk] for reduction "none"; ``grad``
                  T[N, C, d1...dk], optional: the loss' (or the losses' sum's) gradient
attributes        ``reduction``, ``value``, ``threshold``, ``label_smoothing``, ``z_loss``,
                  ``softcap``, ``shift``, ``ignore_index``
T, any float      float, double, float16, bfloat16
================  ==============================================================================

It mirrors the standard SoftmaxCrossEntropyLoss, which it equals at gamma = 0. Importing this module
makes the operator known to `onnx.checker` and `onnx.shape_inference`, where onnx is installed; only
`library_path` and `register` do without onnx (``pip install 'gamma-ce[onnx]'``). The runtime is
yours to install: onnxruntime, or its training release, which is the same Python package.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gce._onnx_library import DOMAIN, OP_TYPE, library_path, register

if TYPE_CHECKING:
    from gce.onnx._attach import attach_loss
    from gce.onnx._function import attach_function
    from gce.onnx._node import loss_node
    from gce.onnx._reference import ReferenceOp

__all__ = [
    "DOMAIN",
    "OP_TYPE",
    "ReferenceOp",
    "attach_function",
    "attach_loss",
    "library_path",
    "loss_node",
    "register",
]

_NEED_ONNX = {
    "ReferenceOp": "gce.onnx._reference",
    "attach_function": "gce.onnx._function",
    "attach_loss": "gce.onnx._attach",
    "loss_node": "gce.onnx._node",
}

try:
    importlib.import_module("onnx")
except ModuleNotFoundError:
    pass
else:
    importlib.import_module("gce.onnx._schema").register_schema()


def __getattr__(name: str) -> Any:
    """Import what needs onnx when it is first asked for."""
    if name not in _NEED_ONNX:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_NEED_ONNX[name]), name)
    except ModuleNotFoundError as error:
        if error.name != "onnx":
            raise
        raise ModuleNotFoundError(
            f"gce.onnx.{name} needs onnx, which is not installed: pip install 'gamma-ce[onnx]'",
            name="onnx",
        ) from error


def __dir__() -> list[str]:
    return __all__
