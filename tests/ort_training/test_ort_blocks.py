"""The loss among other blocks: sums of losses, blocks by hand, what is done to forward models."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.training import artifacts, onnxblock
from onnxruntime.training.api import CheckpointState, Module, Optimizer
from trainings import ADAMW, OPSETS, SGD, Training, expected, shifted, two_heads

import gce.onnx
from gce.onnx import ort_training

RNG = np.random.default_rng(8)
X = RNG.normal(size=(6, 4)).astype(np.float32)
LABELS = [RNG.integers(0, classes, size=6) for classes in (5, 3)]
TARGET = RNG.normal(size=(6, 3)).astype(np.float32)


class WithMSE(onnxblock.Block):
    def __init__(self) -> None:
        super().__init__()
        self.classify = ort_training.GammaCrossEntropyLoss(label_smoothing=0.1)
        self.reconstruct = onnxblock.loss.MSELoss()
        self.add = onnxblock.blocks.Add()

    def build(self, scores: str, copy: str) -> str:
        return self.add(self.classify(scores), self.reconstruct(copy, "target"))


class TwoOfThem(onnxblock.Block):
    """loss(scores0) + 0.25 loss(scores1), of one γ."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        options: dict[str, Any] = {"threshold": 0.25, "ignore_index": 2}
        self.losses = [ort_training.GammaCrossEntropyLoss(**options) for _ in range(blocks)]
        self.quarter = onnxblock.blocks.Constant(0.25)
        self.multiply = onnxblock.blocks.Mul()
        self.add = onnxblock.blocks.Add()

    def build(self, scores0: str, scores1: str) -> str:
        loss0 = self.losses[0](scores0, "labels0")
        loss1 = self.losses[-1](scores1, "labels1")
        return self.add(loss0, self.multiply(loss1, self.quarter()))


def check_two_heads(
    training: Training, loss: Any, gradients: dict[str, Any], upstream: list[Any], value: float
) -> None:
    """Compare with the chain rule by hand, from the gradients of both heads' scores."""
    weights = training.values()
    before = X @ weights["W"]
    hidden = np.maximum(before, 0)
    into_hidden = sum(up @ weights[f"W{i}"].T for i, up in enumerate(upstream))
    wanted = {f"W{i}": hidden.T @ up for i, up in enumerate(upstream)}
    wanted["W"] = X.T @ (into_hidden * (before > 0))
    assert loss.item() == pytest.approx(value, rel=1e-6)
    assert gradients.keys() == wanted.keys()
    for name, gradient in wanted.items():
        np.testing.assert_allclose(gradients[name], gradient, rtol=1e-5, atol=1e-6)


def scores_of(training: Training) -> list[Any]:
    weights = training.values()
    hidden = np.maximum(X @ weights["W"], 0)
    return [hidden @ weights["W0"], hidden @ weights["W1"]]


def test_with_a_loss_of_onnxblock(tmp_path):
    training = Training(tmp_path, two_heads(RNG, 4, 5, 3), ["W", "W0", "W1"], WithMSE())
    assert training.module.input_names() == ["x", "labels", "gamma", "target"]
    for gamma in (np.array(0.0), np.array(0.7)):
        scores, copy = scores_of(training)
        loss, grad = expected(scores, LABELS[0], gamma, label_smoothing=0.1)
        error = copy - TARGET
        feeds = (X, LABELS[0], gamma, TARGET)
        check_two_heads(
            training,
            *training.loss_and_gradients(*feeds),
            [grad, 2 * error / error.size],
            loss + np.square(error).mean(),
        )
        training.step(*feeds, learning_rate=0.01)


@pytest.mark.parametrize("blocks", [1, 2], ids=["one block twice", "two blocks"])
def test_two_heads_that_share_gamma(tmp_path, blocks):
    forward = two_heads(RNG, 4, 5, 3)
    training = Training(tmp_path, forward, ["W", "W0", "W1"], TwoOfThem(blocks))
    assert training.module.input_names() == ["x", "labels0", "gamma", "labels1"]
    gamma = np.array(0.4)
    options: dict[str, Any] = {"threshold": 0.25, "ignore_index": 2}
    (loss0, grad0), (loss1, grad1) = (
        expected(scores, labels, gamma, **options)
        for scores, labels in zip(scores_of(training), LABELS, strict=True)
    )
    found = training.loss_and_gradients(X, LABELS[0], gamma, LABELS[1])
    check_two_heads(training, *found, [grad0, 0.25 * grad1], loss0 + 0.25 * loss1)


def test_in_onnxruntimes_own_generate_artifacts(tmp_path):
    """All but the optimizer model, which has the IR version of a newer onnx."""
    artifacts.generate_artifacts(
        two_heads(RNG, 4, 5, 3),
        requires_grad=["W", "W0", "W1"],
        loss=WithMSE(),
        optimizer=SGD,
        artifact_directory=tmp_path,
        custom_op_library=gce.onnx.library_path(),
    )
    module = Module(
        tmp_path / "training_model.onnx",
        CheckpointState.load_checkpoint(tmp_path / "checkpoint"),
        tmp_path / "eval_model.onnx",
        session_options=ort_training.session_options(),
    )
    feeds = (X, LABELS[0], np.array(0.4), TARGET)
    loss = module(*feeds)
    assert module.eval()(*feeds) == loss
    if onnx.IR_VERSION > 10:
        with pytest.raises(RuntimeError, match="Unsupported model IR version"):
            Optimizer(tmp_path / "optimizer_model.onnx", module)
        return
    Optimizer(tmp_path / "optimizer_model.onnx", module).step()
    assert module(*feeds) != loss


def test_a_training_block_by_hand(tmp_path):
    """As onnxblock's documentation does it, without `generate_artifacts`."""

    class ByHand(onnxblock.TrainingBlock):
        def __init__(self) -> None:
            super().__init__()
            self.loss = WithMSE()

        def build(self, *scores: str) -> str:
            return self.loss(*scores)

    block, names = ByHand(), ["W", "W0", "W1"]
    for name in names:
        block.requires_grad(name)
    forward = ort_training.prepare_model(two_heads(RNG, 4, 5, 3))
    with onnxblock.base(forward), onnxblock.custom_op_library(gce.onnx.library_path()):
        block("scores0", "scores1")
    training, _ = block.to_model_proto()
    onnx.save(training, tmp_path / "by_hand.onnx")
    onnxblock.save_checkpoint(block.parameters(), tmp_path / "by_hand")
    module = Module(
        tmp_path / "by_hand.onnx",
        CheckpointState.load_checkpoint(tmp_path / "by_hand"),
        session_options=ort_training.session_options(),
    )
    feeds = (X, LABELS[0], np.array(0.4), TARGET)
    by_us = Training(tmp_path, forward, names, WithMSE())
    assert module(*feeds) == by_us.loss_and_gradients(*feeds)[0]


def test_a_forward_block(tmp_path):
    """Loss without gradients, for an inference session."""

    class Forward(onnxblock.ForwardBlock):
        def __init__(self) -> None:
            super().__init__()
            self.loss = ort_training.GammaCrossEntropyLoss()

        def build(self, scores: str) -> str:
            return self.loss(scores)

    block = Forward()
    with onnxblock.base(shifted((7, 5))):
        block("scores")
    session = onnxruntime.InferenceSession(
        block.to_model_proto().SerializeToString(), ort_training.session_options()
    )
    x, labels = RNG.normal(size=(7, 5)).astype(np.float32), RNG.integers(0, 5, size=7)
    (loss,) = session.run(None, {"x": x, "labels": labels, "gamma": np.array(0.5)})
    assert loss == expected(x, labels, np.array(0.5))[0]


# --- what is done to forward models ---------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [SGD, ADAMW, None], ids=str)
def test_ir_versions_newer_than_the_runtime(tmp_path, optimizer):
    forward = shifted((7, 5))
    forward.ir_version = 13
    ort_training.generate_artifacts(
        forward,
        ["P"],
        loss=ort_training.GammaCrossEntropyLoss(),
        optimizer=optimizer,
        artifact_directory=tmp_path,
    )
    versions = {path.name: onnx.load(path).ir_version for path in tmp_path.glob("*.onnx")}
    wanted = {"training_model.onnx", "eval_model.onnx"}
    wanted |= {"optimizer_model.onnx"} if optimizer else set()
    assert set(versions) == wanted and max(versions.values()) <= 10
    assert forward.ir_version == 13


def test_an_optimizer_block(tmp_path):
    """Its options are those that it was made with, here a gradient norm of at most 0.01."""
    optimizer = onnxblock.optim.SGD(clip_grad=onnxblock.optim.ClipGradNorm(0.01))
    loss = ort_training.GammaCrossEntropyLoss(reduction="sum")
    training = Training(tmp_path, shifted((7, 5)), ["P"], loss, optimizer)
    x, labels = RNG.normal(size=(7, 5)).astype(np.float32), RNG.integers(0, 5, size=7)
    _, gradients = training.step(x, labels, np.array(0.0), learning_rate=1.0)
    norm = np.linalg.norm(gradients["P"])
    assert norm == pytest.approx(0.01) or norm > 0.01
    assert np.linalg.norm(training.values()["P"]) == pytest.approx(0.01, rel=1e-4)


def test_layer_normalization_gets_what_its_gradient_reads(tmp_path):
    make = helper.make_node
    nodes = [
        make("LayerNormalization", ["x", "scale"], ["a"]),
        make("LayerNormalization", ["a", "scale", "bias"], ["b", "", "deviation"]),
        make("LayerNormalization", ["b", "scale"], ["scores", "mean", "prepared/0"]),
    ]
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 5]) for n in ("x", "scores")]
    values = {"scale": RNG.uniform(0.5, 2, size=5), "bias": RNG.normal(size=5)}
    tensors = [numpy_helper.from_array(v.astype(np.float32), n) for n, v in values.items()]
    graph = helper.make_graph(nodes, "norms", infos[:1], infos[1:], tensors)
    forward = helper.make_model(graph, opset_imports=OPSETS, ir_version=8)
    prepared = ort_training.prepare_model(forward)
    onnx.checker.check_model(prepared, full_check=True)
    norms = [n for n in prepared.graph.node if n.op_type == "LayerNormalization"]
    assert all(len(norm.input) == len(norm.output) == 3 and all(norm.output) for norm in norms)
    assert norms[1].input[2] == "bias" and norms[1].output[2] == "deviation"
    assert list(norms[2].output) == ["scores", "mean", "prepared/0"]
    assert [len(node.output) for node in forward.graph.node] == [1, 3, 3]

    loss = ort_training.GammaCrossEntropyLoss()
    training = Training(tmp_path, forward, ["scale", "bias"], loss)
    x, labels = RNG.normal(size=(6, 5)).astype(np.float32), RNG.integers(0, 5, size=6)
    found, gradients = training.step(x, labels, np.array(0.3), learning_rate=0.01)
    slope = -0.01 * sum(np.square(gradient).sum() for gradient in gradients.values())
    change = training.evaluate(x, labels, np.array(0.3)) - found
    assert change == pytest.approx(slope, rel=0.1)  # to first order


def test_functions_and_cast_like(tmp_path):
    """They have no gradients in this runtime; inlined and as Cast they have."""
    forward = shifted((7, 5))
    forward.graph.node[0].output[0] = "sum"
    make = helper.make_node
    body = [make("CastLike", ["a", "b"], ["c"]), make("Mul", ["c", "b"], ["y"])]
    function = helper.make_function("mine", "Scaled", ["a", "b"], ["y"], body, OPSETS)
    forward.functions.append(function)
    forward.opset_import.append(helper.make_opsetid("mine", 1))
    forward.graph.initializer.append(numpy_helper.from_array(np.array(3, np.float32), "three"))
    forward.graph.node.append(make("Scaled", ["sum", "three"], ["scores"], domain="mine"))
    training = Training(tmp_path, forward, ["P"], ort_training.GammaCrossEntropyLoss())
    x, labels = RNG.normal(size=(7, 5)).astype(np.float32), RNG.integers(0, 5, size=7)
    _, gradients = training.loss_and_gradients(x, labels, np.array(0.3))
    wanted = expected(np.float32(3) * x, labels, np.array(0.3))[1]
    np.testing.assert_allclose(gradients["P"], 3 * wanted, rtol=1e-6)
    trained = ort_training.export_model(training.state, forward)
    assert len(trained.functions) == 1  # the model as it was


def test_a_model_without_the_opset_of_a_node():
    forward = shifted((7, 5))
    forward.graph.node[0].domain = "mine"
    with pytest.raises(ValueError, match=r"^model is inconsistent: .* domain mine"):
        ort_training.prepare_model(forward)


def test_initializers_that_are_inputs_too(tmp_path):
    """As exporters wrote them before IR 4, and some on request."""
    forward = shifted((7, 5))
    forward.graph.input.insert(0, helper.make_tensor_value_info("P", TensorProto.FLOAT, [7, 5]))
    training = Training(tmp_path, forward, ["P"], ort_training.GammaCrossEntropyLoss())
    assert training.module.input_names() == ["x", "labels", "gamma"]


def test_a_model_in_a_file_and_other_options(tmp_path):
    path = tmp_path / "forward.onnx"
    onnx.save(two_heads(RNG, 4, 5, 3), path)
    training = Training(
        tmp_path,
        path,
        ["W0"],
        ort_training.GammaCrossEntropyLoss(),
        frozen_params=["W"],
        loss_input_names=["scores0"],
        additional_output_names=["scores0", "scores1"],
    )
    parameters = {name: parameter.requires_grad for name, parameter in training.state.parameters}
    assert parameters == {"W": False, "W0": True}
    loss, scores0, scores1 = training.module(X, LABELS[0], np.array(0.5))
    assert loss == expected(scores0, LABELS[0], np.array(0.5))[0] and scores1.shape == (6, 3)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # of onnxruntime's converter
def test_ort_format_and_prefix(tmp_path):
    ort_training.generate_artifacts(
        shifted((7, 5)),
        ["P"],
        loss=ort_training.GammaCrossEntropyLoss(),
        optimizer=artifacts.OptimType.SGD,
        artifact_directory=tmp_path,
        prefix="a_",
        ort_format=True,
    )
    module = Module(
        tmp_path / "a_training_model.ort",
        CheckpointState.load_checkpoint(tmp_path / "a_checkpoint"),
        tmp_path / "a_eval_model.ort",
        session_options=ort_training.session_options(),
    )
    x, labels = RNG.normal(size=(7, 5)).astype(np.float32), RNG.integers(0, 5, size=7)
    assert module(x, labels, np.array(0.5)) == expected(x, labels, np.array(0.5))[0]
    Optimizer(tmp_path / "a_optimizer_model.ort", module).step()


def test_losses_of_onnxblock_alone(tmp_path):
    """`generate_artifacts` is good for them too."""
    loss = artifacts.LossType.CrossEntropyLoss
    training = Training(tmp_path, shifted((7, 5)), ["P"], loss, ADAMW)
    x, labels = RNG.normal(size=(7, 5)).astype(np.float32), RNG.integers(0, 5, size=7)
    found, _ = training.step(x, labels)
    assert found == pytest.approx(expected(x, labels, np.array(0.0))[0].item(), rel=1e-6)


def test_wrong_artifacts(tmp_path):
    loss = ort_training.GammaCrossEntropyLoss()

    def generate(model: Any, requires_grad: Any = ("P",), **options: Any) -> None:
        arguments: dict[str, Any] = {"loss": loss, "artifact_directory": tmp_path, **options}
        ort_training.generate_artifacts(model, requires_grad, **arguments)

    forward = shifted((7, 5))
    with pytest.raises(ValueError, match="requires_grad is empty, expected names, or None"):
        generate(forward, [])
    with pytest.raises(TypeError, match="optimizer = 'adamw', expected an onnxblock"):
        generate(forward, optimizer="adamw")
    with pytest.raises(TypeError, match="loss_input_names = 'scores', expected several names"):
        generate(forward, loss_input_names="scores")
    with pytest.raises(ValueError, match=r"loss_input_names has 'y', expected .*\['scores'"):
        generate(forward, loss_input_names=["y"])
    for wrong in (None, "CrossEntropyLoss", ort_training.GammaCrossEntropyLoss):
        with pytest.raises(TypeError, match=r"loss has type .*, expected an onnxblock.Block"):
            generate(forward, loss=wrong)
    with pytest.raises(
        ValueError, match=r"requires_grad has 'Q', expected initializers .* \['P'\]"
    ):
        generate(forward, ["P", "Q"])
    with pytest.raises(ValueError, match="frozen_params has 'x', expected initializers"):
        generate(forward, frozen_params=["x"])
    with pytest.raises(TypeError, match="requires_grad = 'P', expected several names"):
        generate(forward, "P")
    with pytest.raises(TypeError, match="custom_op_library is given, expected none"):
        generate(forward, custom_op_library=gce.onnx.library_path())
    with pytest.raises(TypeError, match=r"model has type int, expected onnx\.ModelProto or a path"):
        generate(3)
    with pytest.raises(ValueError, match="model has opset 22, expected at most 21, the newest"):
        generate(shifted((7, 5), opset=22))
    with pytest.raises(TypeError, match="session_options has type int"):
        ort_training.session_options(3)
    assert not list(tmp_path.iterdir())
