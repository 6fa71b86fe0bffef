"""Models of PyTorch's and scikit-learn's exporters, against autograd and finite differences."""

from __future__ import annotations

import copy
import functools
import warnings
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from skl2onnx import to_onnx
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from torch_models import composed_loss, exported, problem
from trainings import ADAMW, SGD, Training

from gce import reference
from gce.onnx import ort_training

EXPORTS = {
    "mlp": [(False, 13), (False, 17), (True, 18), (True, 21)],
    "cnn": [(False, 13), (False, 17), (True, 18), (True, 21)],
    "transformer": [(False, 14), (False, 17), (False, 20), (True, 18), (True, 21)],
    "encoder": [(True, 18), (True, 21)],  # the other exporter makes its dropout active
}
CASES = [(name, *export) for name, exports in EXPORTS.items() for export in exports]
GAMMAS = (0.0, 0.2, 0.9, 1.0, 0.5, 1e-3)  # at each step another
# Parameters, their gradients and the loss are float32 on both sides, all of order 1.
TOLERANCE = 1e-5


@functools.cache
def case(name: str, dynamo: bool, opset: int) -> tuple[Any, ...]:
    """The forward model, and what `problem` gives."""
    module, x, labels, axis = problem(name, np.random.default_rng(3))
    return exported(module, x, dynamo, opset, optimize=False), module, x, labels, axis


def ids_of(case: Any) -> str:
    return {False: "torchscript", True: "dynamo"}.get(case, str(case))


class PyTorch:
    """The same training by autograd of the composed loss."""

    def __init__(self, module: torch.nn.Module, optimizer: Any, axis: int) -> None:
        self.module, self.optimizer, self.axis = copy.deepcopy(module), optimizer, axis
        self.parameters: dict[str, Any] = dict(self.module.named_parameters())
        zeros = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self.first, self.second, self.count = zeros, copy.deepcopy(zeros), 0

    def step(
        self, x: Any, labels: Any, gamma: float, learning_rate: float
    ) -> tuple[float, dict[str, Any]]:
        self.module.zero_grad()
        loss = composed_loss(self.module(torch.from_numpy(x)), labels, gamma, self.axis)
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in self.parameters.items()}
        self.count += 1
        with torch.no_grad():
            for name, gradient in gradients.items():
                self.update(name, gradient, learning_rate)
        return loss.item(), {name: g.numpy() for name, g in gradients.items()}

    def update(self, name: str, gradient: Any, learning_rate: float) -> None:
        if self.optimizer is SGD:
            self.parameters[name] -= learning_rate * gradient
            return
        # ONNX Runtime's AdamW is the one of Hugging Face: epsilon, 1e-6, is not corrected for bias.
        first, second = self.first[name], self.second[name]
        first.lerp_(gradient, 1 - 0.9)
        second.lerp_(gradient * gradient, 1 - 0.999)
        rate = learning_rate * (1 - 0.999**self.count) ** 0.5 / (1 - 0.9**self.count)
        self.parameters[name] -= rate * first / (second.sqrt() + 1e-6)


@pytest.mark.parametrize(
    ("optimizer", "learning_rate"), [(SGD, 0.3), (ADAMW, 0.01)], ids=["SGD", "AdamW"]
)
@pytest.mark.parametrize(("name", "dynamo", "opset"), CASES, ids=ids_of)
def test_the_same_training_as_in_pytorch(tmp_path, name, dynamo, opset, optimizer, learning_rate):
    forward, module, x, labels, axis = case(name, dynamo, opset)
    pytorch = PyTorch(module, optimizer, axis)
    parameters = list(pytorch.parameters)
    loss = ort_training.GammaCrossEntropyLoss(axis=axis)
    training = Training(tmp_path, forward, parameters, loss, optimizer)
    first = None
    for gamma in GAMMAS * 2:
        found, found_gradients = training.step(
            x, labels, np.array(gamma), learning_rate=learning_rate
        )
        wanted, wanted_gradients = pytorch.step(x, labels, gamma, learning_rate)
        assert found == pytest.approx(wanted, rel=TOLERANCE, abs=TOLERANCE)
        for parameter in parameters:
            np.testing.assert_allclose(
                found_gradients[parameter], wanted_gradients[parameter], atol=TOLERANCE
            )
        first = wanted if first is None else first
    feeds = (x, labels, np.array(0.0))
    assert training.evaluate(*feeds) < 0.9 * first

    # The export computes what the evaluation model does.
    trained = ort_training.export_model(training.module, forward)
    session = onnxruntime.InferenceSession(trained.SerializeToString())
    (logits,) = session.run(None, {"x": x})
    evaluated = reference.loss(logits, labels, 0.0, axis=axis)
    assert training.evaluate(*feeds) == pytest.approx(evaluated, rel=1e-6)
    with torch.no_grad():
        np.testing.assert_allclose(logits, pytorch.module(torch.from_numpy(x)), atol=1e-4)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", EXPORTS)
def test_finite_differences(tmp_path, name, gamma):
    """Of the reference's loss of the module in float64, along random directions."""
    forward, module, x, labels, axis = case(name, *EXPORTS[name][-1])
    rng = np.random.default_rng(4)
    parameters = [parameter for parameter, _ in module.named_parameters()]
    loss = ort_training.GammaCrossEntropyLoss(axis=axis)
    training = Training(tmp_path, forward, parameters, loss)
    _, gradients = training.loss_and_gradients(x, labels, np.array(gamma))

    exact = copy.deepcopy(module).double()
    inputs = torch.from_numpy(x if x.dtype.kind == "i" else x.astype(np.float64))

    def loss_at(offset: float, directions: dict[str, Any]) -> float:
        moved = {
            parameter: value + offset * torch.from_numpy(directions[parameter])
            for parameter, value in exact.named_parameters()
        }
        with torch.no_grad():
            logits = torch.func.functional_call(exact, moved, (inputs,)).numpy()
        return float(reference.loss(logits, labels, gamma, axis=axis))

    for only in [*parameters, None]:
        directions = {
            parameter: rng.normal(size=gradient.shape) * (only in (None, parameter))
            for parameter, gradient in gradients.items()
        }
        step = 1e-6  # small, as a ReLU may have a kink near
        slope = (loss_at(step, directions) - loss_at(-step, directions)) / (2 * step)
        found = sum((gradients[p].astype(np.float64) * directions[p]).sum() for p in parameters)
        assert found == pytest.approx(slope, rel=1e-4, abs=TOLERANCE)


def test_dropout(tmp_path):
    """It drops others at each training step, and none in evaluation."""
    module, x, labels, axis = problem("encoder", np.random.default_rng(6))
    forward = exported(module, x, False, 17, optimize=False)
    parameters = [name for name, _ in module.named_parameters()]
    loss = ort_training.GammaCrossEntropyLoss(axis=axis)
    training = Training(tmp_path, forward, parameters, loss, ADAMW)
    feeds = (x, labels, np.array(0.3))
    losses = {training.loss_and_gradients(*feeds)[0].item() for _ in range(5)}
    assert len(losses) == 5
    with torch.no_grad():
        wanted = composed_loss(module.eval()(torch.from_numpy(x)), labels, 0.3, axis).item()
    assert training.evaluate(*feeds) == pytest.approx(wanted, rel=1e-6)
    for _ in range(30):
        training.step(*feeds, learning_rate=0.01)
    assert training.evaluate(*feeds) < 0.5 * wanted


def test_a_model_of_scikit_learn(tmp_path):
    """Scores inside the model: its outputs are the label and the probabilities."""
    x, labels = load_digits(return_X_y=True)
    x, labels = (x[:300] / 16).astype(np.float32), labels[:300].astype(np.int64)
    classifier = MLPClassifier((16,), max_iter=2, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # there is more to train
        classifier.fit(x, labels)
    forward = to_onnx(classifier, x[:1], options={"zipmap": False}, target_opset=17)
    (softmax,) = (node for node in forward.graph.node if node.op_type == "Softmax")
    parameters = ["coefficient", "intercepts", "coefficient1", "intercepts1"]
    training = Training(
        tmp_path,
        forward,
        parameters,
        ort_training.GammaCrossEntropyLoss(),
        ADAMW,
        loss_input_names=[softmax.input[0]],
    )

    weights = [*classifier.coefs_, *classifier.intercepts_]
    w1, w2, b1, b2 = (torch.tensor(w, dtype=torch.float32, requires_grad=True) for w in weights)
    logits = torch.relu(torch.from_numpy(x) @ w1 + b1) @ w2 + b2
    wanted = composed_loss(logits, labels, 0.3)
    wanted.backward()
    found, gradients = training.step(x, labels, np.array(0.3), learning_rate=0.01)
    assert found == pytest.approx(wanted.item(), rel=1e-6)
    for name, parameter in zip(parameters, (w1, b1, w2, b2), strict=True):
        gradient = gradients[name].reshape(parameter.shape)
        np.testing.assert_allclose(gradient, parameter.grad, atol=TOLERANCE)

    for step in range(60):
        training.step(x, labels, np.array(step / 60), learning_rate=0.01)
    path = tmp_path / "trained.onnx"
    ort_training.export_model(training.state, forward, path)
    session = onnxruntime.InferenceSession(path)
    found_labels, probabilities = session.run(None, {"X": x})
    assert (found_labels == labels).mean() > 0.9 > classifier.score(x, labels)
    chosen = probabilities[np.arange(300), labels]
    assert training.evaluate(x, labels, np.array(1.0)) == pytest.approx(
        (1 - chosen).mean(), rel=1e-5
    )


def test_inference_that_gives_up_leaves_no_file(tmp_path, monkeypatch):
    """ONNX Runtime's own writes the model into the working directory, this one's among them."""
    forward, *_ = case("encoder", True, 18)
    monkeypatch.chdir(tmp_path)
    ort_training.prepare_model(forward)
    assert not list(tmp_path.iterdir())
