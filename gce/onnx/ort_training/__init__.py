"""Training with ONNX Runtime's own training release, onnxruntime-training(-cpu) 1.19.2.

`GammaCrossEntropyLoss` is a loss among those of onnxblock, with γ as an input of the graph, to be
fed at each step; `AdamW` is PyTorch's, where onnxblock's own is another. `generate_artifacts`
writes what ``onnxruntime.training.api`` trains with, and `export_model` puts what it trained into
the forward model. An example is at `generate_artifacts`.

Needs the training release in place of onnxruntime (both are the same Python package), torch, which
it imports, and onnx: importing this module says what is missing. It is the last release of its
kind; `gce.onnx.training` trains with the current onnxruntime.

Of ``CheckpointState.save_checkpoint(..., include_optimizer_state=True)`` training goes on with the
same bits, once the learning rate is set: that is not saved. ``state.properties`` may hold the step,
and so where the schedules are.
"""

from __future__ import annotations

import gce.onnx.ort_training._runtime  # noqa: F401  # first, as it says what is missing
from gce.onnx.ort_training._artifacts import generate_artifacts, session_options
from gce.onnx.ort_training._export import export_model
from gce.onnx.ort_training._gradient import register_gradient
from gce.onnx.ort_training._loss import GammaCrossEntropyLoss
from gce.onnx.ort_training._optimizers import AdamW
from gce.onnx.ort_training._prepare import prepare_model

__all__ = [
    "AdamW",
    "GammaCrossEntropyLoss",
    "export_model",
    "generate_artifacts",
    "prepare_model",
    "register_gradient",
    "session_options",
]

register_gradient()
