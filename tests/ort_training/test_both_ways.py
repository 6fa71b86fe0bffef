"""ONNX Runtime's training release and `gce.onnx.training` train alike, and as differences say."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from torch_models import exported, problem
from trainings import SGD, Training

import support
from gce.onnx import ort_training, training

# Float32 on both sides, with sums in different orders; losses and parameters are of order 1.
TOLERANCE = 1e-5
STEPS = 12
# As PyTorch's exporters make them by default: merged, folded, without biases of zeros.
NAMES = ("mlp", "cnn", "transformer", "encoder", "tied", "normalized")
MODELS = [(name, dynamo, 18 if dynamo else 17) for name in NAMES for dynamo in (False, True)]
# Of AdamW: large enough that where a gradient is zero but for rounding errors, as that of the bias
# of an attention's keys, these do not become steps.
EPS = 1e-4


def batches(name: str, steps: int) -> tuple[Any, Any, Any, Any, int]:
    """A module, an example of its inputs, the inputs and labels of each step, the class axis."""
    rng = np.random.default_rng(5)
    module, x, labels, axis = problem(name, rng)
    inputs = [x[rng.permutation(len(x))] for _ in range(steps)]
    targets = [rng.integers(0, labels.max() + 1, labels.shape) for _ in range(steps)]
    return module, x, np.array(inputs), np.array(targets), axis


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(("name", "dynamo", "opset"), MODELS)
def test_both_trainings_have_the_same_losses_and_parameters(
    name: str, dynamo: bool, opset: int, optimizer: str, tmp_path: Path
) -> None:
    stock = os.environ.get("GCE_STOCK_PYTHON", "")
    support.require(stock, "GCE_STOCK_PYTHON names no Python with the current onnxruntime")
    module, x, inputs, labels, axis = batches(name, STEPS)
    forward = exported(module, x, dynamo, opset)
    gammas = np.linspace(0.0, 1.0, STEPS)
    rate = 0.1 if optimizer == "sgd" else 1e-2

    native = Training(
        tmp_path,
        forward,
        None,
        ort_training.GammaCrossEntropyLoss(axis=axis),
        SGD if optimizer == "sgd" else ort_training.AdamW(eps=EPS),
    )
    sizes = [array.size for array in native.values().values()]
    assert sum(sizes) == sum(parameter.numel() for parameter in module.parameters())
    losses = []
    for batch, targets, gamma in zip(inputs, labels, gammas, strict=True):
        loss, _ = native.step(batch, targets, np.array(gamma), learning_rate=rate)
        losses.append(float(loss))

    np.savez(
        tmp_path / "training.npz",
        model=np.frombuffer(forward.SerializeToString(), np.uint8),
        optimizer=optimizer,
        eps=EPS,
        learning_rate=rate,
        gammas=gammas,
        axis=axis,
        inputs=inputs,
        labels=labels,
    )
    script = Path(__file__).with_name("stock.py")
    files = [str(tmp_path / "training.npz"), str(tmp_path / "losses.npz")]
    done = subprocess.run([stock, script, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "losses.npz") as file:
        other = dict(file)
    assert str(other["runtime"]) != onnxruntime.__version__  # two runtimes indeed
    np.testing.assert_allclose(other["losses"], losses, rtol=0, atol=TOLERANCE)
    assert max(losses) - min(losses) > 100 * TOLERANCE
    assert native.values().keys() == other.keys() - {"losses", "runtime"}
    for parameter, value in native.values().items():
        np.testing.assert_allclose(other[parameter], value, rtol=0, atol=TOLERANCE)


def linear(dtype: Any) -> onnx.ModelProto:
    """``logits = tanh(x V) W``, of this type."""
    rng = np.random.default_rng(0)
    weights = {"V": rng.normal(size=(4, 5)), "W": rng.normal(size=(5, 3))}
    elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [
        helper.make_node("MatMul", ["x", "V"], ["xV"]),
        helper.make_node("Tanh", ["xV"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "W"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", elem_type, ["N", 4])],
        [helper.make_tensor_value_info("logits", elem_type, ["N", 3])],
        [numpy_helper.from_array(array.astype(dtype), name) for name, array in weights.items()],
    )
    assert elem_type in (TensorProto.FLOAT, TensorProto.DOUBLE)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_gradients_of_both_equal_finite_differences(gamma: float, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    x, labels = rng.normal(size=(6, 4)), rng.integers(0, 3, 6)
    trainer = training.Trainer(
        linear(np.float64), optimizer=training.SGD(), learning_rate=1.0, gamma=gamma
    )
    before = trainer.parameters
    trainer.step(x, labels)
    gradients = {name: before[name] - value for name, value in trainer.parameters.items()}
    for name, gradient in gradients.items():
        for index in np.ndindex(gradient.shape):
            sides = []
            for sign in (1.0, -1.0):
                moved = {n: array.copy() for n, array in before.items()}
                moved[name][index] += sign * 1e-5
                sides.append(loss_at(moved, x, labels, gamma))
            difference = (sides[0] - sides[1]) / 2e-5
            # Of order h² and, by cancellation, 1e-16 / h: both about 1e-11 here.
            assert gradient[index] == pytest.approx(difference, abs=1e-9)

    native = Training(
        tmp_path, linear(np.float32), ["V", "W"], ort_training.GammaCrossEntropyLoss()
    )
    _, found = native.loss_and_gradients(x.astype(np.float32), labels, np.array(gamma))
    for name, gradient in gradients.items():
        np.testing.assert_allclose(found[name], gradient, rtol=0, atol=1e-6)  # float32, order 1


def loss_at(weights: dict[str, Any], x: Any, labels: Any, gamma: float) -> float:
    """The loss with these weights."""
    model = linear(np.float64)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name], tensor.name))
    return float(training.Trainer(model, gamma=gamma).evaluate(x, labels))
