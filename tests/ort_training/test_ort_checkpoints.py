"""Checkpoints: training goes on with the same bits; and the trained forward model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import resumable
from onnx import numpy_helper
from onnxruntime.training.api import CheckpointState
from trainings import ADAMW, SGD, Array, Training, expected, shifted, two_heads

import gce.onnx
from gce.onnx import ort_training

RNG = np.random.default_rng(11)
STEPS = 20


def bits(values: dict[str, Array]) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in values.items()}


def heads(folder: Path, optimizer: Any, loss: Any = None) -> Training:
    forward = two_heads(np.random.default_rng(2), 4, 5, 3)
    loss = loss or ort_training.GammaCrossEntropyLoss()
    names = ["W", "W0"]
    return Training(folder, forward, names, loss, optimizer, loss_input_names=["scores0"])


def feeds(step: int) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(step)
    x = rng.normal(size=(8, 4)).astype(np.float32)
    return x, rng.integers(0, 5, size=8), np.array(step / STEPS)


@pytest.mark.parametrize("optimizer", [SGD, ADAMW], ids=["SGD", "AdamW"])
def test_saved_and_loaded_it_goes_on_with_the_same_bits(tmp_path, optimizer):
    training = heads(tmp_path, optimizer)
    saved_at = 7
    losses = []
    for step in range(STEPS):
        if step == saved_at:
            training.save(tmp_path / "saved")
        losses.append(training.step(*feeds(step), learning_rate=0.05)[0])
    wanted = bits(training.values())
    training.load(tmp_path / "saved")
    assert bits(training.values()) != wanted
    # This is not saved: whoever does not set it trains with that of a new optimizer.
    assert training.optimizer.get_learning_rate() == np.float32(0.001)
    for step in range(saved_at, STEPS):
        loss, _ = training.step(*feeds(step), learning_rate=0.05)
        assert loss.tobytes() == losses[step].tobytes()
    assert bits(training.values()) == wanted


def run(folder: Path, kill_after: int | None = None) -> list[str]:
    """What resumable.py says; killed as soon as it has said this many lines."""
    process = subprocess.Popen(
        [sys.executable, resumable.__file__, folder, str(STEPS)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(gce.__file__).parents[1])},
    )
    lines = []
    with process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if len(lines) == kill_after:
                process.send_signal(signal.SIGKILL)  # what it has said till then is still read
    assert process.returncode in {0 if kill_after is None else -signal.SIGKILL, 0}
    return lines


def test_killed_and_resumed_it_gives_the_same_bits(tmp_path, capfd):
    """Killed twice, each time in whatever step it was by then."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    wanted = bits(resumable.train(whole, STEPS).values())
    said = capfd.readouterr().out.splitlines(keepends=True)
    assert len(said) == STEPS
    first, second = run(parts, kill_after=int(RNG.integers(1, 8))), run(parts, kill_after=4)
    lines = [*first, *second, *run(parts)]
    # Of the step in which it was killed, the checkpoint may be there and the line not.
    assert lines == [line for line in said if line in lines]
    assert len(lines) >= STEPS - 2 and len(first) < STEPS
    resumed = CheckpointState.load_checkpoint(parts / "latest").parameters
    assert bits({name: parameter.data for name, parameter in resumed}) == wanted


def test_gradients_accumulate_until_they_are_reset(tmp_path):
    training = heads(tmp_path, SGD)
    (_, first), (_, second) = (training.loss_and_gradients(*feeds(step)) for step in (0, 1))
    training.module.lazy_reset_grad()
    for step in (0, 1):
        training.module(*feeds(step))
    for name in training.parameters:
        accumulated = training.state.parameters[name].grad
        np.testing.assert_allclose(accumulated, first[name] + second[name], rtol=1e-6, atol=1e-8)


# --- export ---------------------------------------------------------------------------------------


def logits_of(model: onnx.ModelProto | Path, x: Array) -> Array:
    """Of a stock session: the forward model needs no library."""
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
    (logits,) = onnxruntime.InferenceSession(source).run(["scores0"], {"x": x})
    return logits


def test_export(tmp_path):
    """Stock onnxruntime fails on the same; from module or state, to a file or not."""
    forward = two_heads(np.random.default_rng(2), 4, 5, 3)
    before = forward.SerializeToString()
    training = heads(tmp_path, ADAMW)
    for step in range(STEPS):
        training.step(*feeds(step))
    x, labels, gamma = feeds(0)
    wanted = training.evaluate(x, labels, gamma)

    path = tmp_path / "trained.onnx"
    models = [
        ort_training.export_model(training.module, forward),
        ort_training.export_model(training.state, forward, path),
        onnx.load(path),
    ]
    for model in models:
        assert expected(logits_of(model, x), labels, gamma)[0] == wanted
        trained = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        assert bits(trained) == bits({**training.values(), "W1": trained["W1"]})
        onnx.checker.check_model(model, full_check=True)
    assert forward.SerializeToString() == before
    # A file is taken too, and the loss attached to the trained model gives the same.
    again = ort_training.export_model(training.state, path)
    attached = gce.onnx.attach_loss(again, logits="scores0", gamma="gamma")
    session = onnxruntime.InferenceSession(
        attached.SerializeToString(), ort_training.session_options()
    )
    (loss,) = session.run(["loss"], {"x": x, "labels": labels, "gamma": gamma})
    assert loss == wanted

    with pytest.raises(RuntimeError, match="GammaCrossEntropyLoss"):
        training.module.export_model_for_inferencing(tmp_path / "stock.onnx", ["scores0"])


def test_export_to_tensors_in_files_of_their_own(tmp_path):
    forward, external = (two_heads(np.random.default_rng(2), 4, 5, 3) for _ in range(2))
    path = tmp_path / "external" / "forward.onnx"
    path.parent.mkdir()
    onnx.save(external, path, save_as_external_data=True, size_threshold=0, location="tensors")
    loss = ort_training.GammaCrossEntropyLoss()
    training = Training(tmp_path, path, ["W", "W0"], loss, loss_input_names=["scores0"])
    training.step(*feeds(0))
    x = feeds(0)[0]
    wanted = logits_of(ort_training.export_model(training.state, forward), x)
    assert np.array_equal(logits_of(ort_training.export_model(training.state, path), x), wanted)


def test_what_cannot_be_exported(tmp_path):
    training = Training(tmp_path, shifted((7, 5)), ["P"], ort_training.GammaCrossEntropyLoss(), SGD)
    export = ort_training.export_model
    with pytest.raises(ValueError, match=r"parameter 'P' has shape \(7, 5\).*expected \(7, 4\)"):
        export(training.state, shifted((7, 4)))
    with pytest.raises(ValueError, match=r"'P' has shape .* dtype float32, expected .* float64"):
        export(training.state, shifted((7, 5), np.float64))
    with pytest.raises(ValueError, match=r"state has the parameter 'P', expected one of .*'W'"):
        export(training.module, two_heads(RNG, 4, 5, 3))
    with pytest.raises(TypeError, match="state has type dict, expected CheckpointState or Module"):
        export(training.values(), shifted((7, 5)))
    with pytest.raises(TypeError, match="model has type int, expected"):
        export(training.state, 3)
