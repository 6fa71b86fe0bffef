"""Trainings in ONNX Runtime's training release, and what they must give."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.training import artifacts
from onnxruntime.training.api import CheckpointState, Module, Optimizer

import gce
from gce.onnx import ort_training

Array = NDArray[Any]
SGD, ADAMW = artifacts.OptimType.SGD, artifacts.OptimType.AdamW
# That of onnx's make_model would be the newest, which this runtime does not know.
OPSETS = [helper.make_opsetid("", 17)]


class Training:
    """Artifacts in a folder, and a module and optimizer that train with them."""

    def __init__(
        self,
        folder: Path,
        forward: onnx.ModelProto,
        parameters: list[str] | None,
        loss: Any,
        optimizer: Any = SGD,
        **options: Any,
    ) -> None:
        self.folder = folder
        ort_training.generate_artifacts(
            forward,
            parameters,
            loss=loss,
            optimizer=optimizer,
            artifact_directory=folder,
            **options,
        )
        self.load(folder / "checkpoint")
        self.parameters = [name for name, p in self.state.parameters if p.requires_grad]

    def load(self, checkpoint: Path) -> None:
        """Go on from this checkpoint."""
        options = ort_training.session_options()
        options.intra_op_num_threads = 1
        self.state = CheckpointState.load_checkpoint(checkpoint)
        self.module = Module(
            self.folder / "training_model.onnx",
            self.state,
            self.folder / "eval_model.onnx",
            session_options=options,
        )
        self.optimizer = Optimizer(self.folder / "optimizer_model.onnx", self.module)

    def save(self, checkpoint: Path) -> None:
        """Write a checkpoint, at once or not at all."""
        new = checkpoint.with_suffix(".new")
        CheckpointState.save_checkpoint(self.state, new, include_optimizer_state=True)
        os.replace(new, checkpoint)

    def loss_and_gradients(self, *feeds: Array) -> tuple[Array, dict[str, Array]]:
        """Loss and the gradient of every parameter; nothing is trained."""
        self.module.train()
        self.module.lazy_reset_grad()
        loss = self.module(*feeds)
        return loss, {name: self.state.parameters[name].grad.copy() for name in self.parameters}

    def step(self, *feeds: Array, learning_rate: float = 0.1) -> tuple[Array, dict[str, Array]]:
        """Train one step; loss and gradients are those before it."""
        loss, gradients = self.loss_and_gradients(*feeds)
        self.optimizer.set_learning_rate(learning_rate)
        self.optimizer.step()
        return loss, gradients

    def evaluate(self, *feeds: Array) -> Any:
        self.module.eval()
        return self.module(*feeds)

    def values(self) -> dict[str, Array]:
        return {name: parameter.data.copy() for name, parameter in self.state.parameters}


def shifted(shape: tuple[int, ...], dtype: Any = np.float32, opset: int = 17) -> onnx.ModelProto:
    """The scores are x + P, both of this shape: the gradient of P is that of the scores."""
    elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    dims = ["N", *shape[1:]]
    return helper.make_model(
        helper.make_graph(
            [helper.make_node("Add", ["x", "P"], ["scores"])],
            "shifted",
            [helper.make_tensor_value_info("x", elem_type, dims)],
            [helper.make_tensor_value_info("scores", elem_type, dims)],
            [numpy_helper.from_array(np.zeros(shape, dtype), "P")],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=8,
    )


def two_heads(rng: np.random.Generator, features: int, *classes: int) -> onnx.ModelProto:
    """Linear heads ``scores0``, ``scores1`` ... of a hidden layer ``relu(x W)``."""
    weights = {"W": rng.normal(size=(features, 6))}
    weights |= {f"W{i}": rng.normal(size=(6, c)) for i, c in enumerate(classes)}
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["xW"]),
        helper.make_node("Relu", ["xW"], ["hidden"]),
        *(helper.make_node("MatMul", ["hidden", f"W{i}"], [f"scores{i}"]) for i in range(2)),
    ]
    return helper.make_model(
        helper.make_graph(
            nodes,
            "heads",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", features])],
            [
                helper.make_tensor_value_info(f"scores{i}", TensorProto.FLOAT, ["N", c])
                for i, c in enumerate(classes)
            ],
            [numpy_helper.from_array(w.astype(np.float32), n) for n, w in weights.items()],
        ),
        opset_imports=OPSETS,
        ir_version=8,
    )


def expected(scores: Array, labels: Array, gamma: Array, **options: Any) -> tuple[Array, Array]:
    """Loss and gradient that a block with these options must give; axis 1 by default."""
    ours = {"axis": 1, "ignore_index": None, **options}
    if "weights" in ours:
        weights = ours.pop("weights")
        ours["weight"] = None if weights is None else weights.astype(scores.dtype)
    for name in ("threshold", "label_smoothing", "softcap"):  # float32 in an ONNX attribute
        if name in ours:
            ours[name] = np.float32(ours[name])
    loss, grad = gce.loss_and_grad(scores, labels, gamma, **ours)
    return np.asarray(loss).astype(scores.dtype), grad
