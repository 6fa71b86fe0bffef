"""Training with the γ-cross-entropy on the stock ONNX Runtime.

`Trainer` takes a forward model, from any exporter, and trains it: loss, gradients (by onnx-ad) and
optimizer are one ONNX graph, which `training_graph` gives to whoever runs it otherwise. It needs
``pip install 'gamma-ce[training]' onnxruntime``; importing this module says what is missing. For
ONNX Runtime's own training release there is `gce.onnx.ort_training`.
"""

import gce.onnx.training._requirements  # noqa: F401  # first, as it says what is missing
from gce.onnx.training._checkpoint import CheckpointError
from gce.onnx.training._graph import TrainingGraph, training_graph
from gce.onnx.training._optimizers import SGD, AdamW
from gce.onnx.training._rules import UnsupportedOperator
from gce.onnx.training._trainer import Trainer

__all__ = [
    "SGD",
    "AdamW",
    "CheckpointError",
    "Trainer",
    "TrainingGraph",
    "UnsupportedOperator",
    "training_graph",
]
