"""Parameters that are updated in chunks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from optimizer_alone import Alone, normal
from small_models import batch, linear, perceptron

from gce.onnx.training import AdamW, Trainer, _update


@pytest.mark.parametrize("clip_norm", [None, 0.5])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("chunk", [1, 2, 4, 5])
def test_chunks_change_nothing(monkeypatch, chunk, dtype, clip_norm):
    # A Scan over rows of W, and of v, which does not decay, where these are larger than a chunk.
    optimizer = AdamW(weight_decay=0.5, no_decay=("v",))
    whole = Alone(optimizer, dtype, clip_norm)
    monkeypatch.setattr(_update, "CHUNK", chunk)
    chunked = Alone(optimizer, dtype, clip_norm)
    scans = [node for node in chunked.program.model.graph.node if node.op_type == "Scan"]
    assert len(scans) == (2 if chunk < 3 else 1)
    for step in range(5):
        whole.step(normal(dtype)(step), 0.1)
        chunked.step(normal(dtype)(step), 0.1)
        assert chunked.grad_norm == whole.grad_norm
        for name, array in whole.parameters.items():
            # A program has no reshapes at its end; the store gives the shape.
            chunked.parameters[name] = chunked.parameters[name].reshape(array.shape)
        # The runtime may round an element in another way where it is not in a full vector.
        found, expected = (each.parameters | each.state for each in (chunked, whole))
        for name, array in expected.items():
            eps = np.finfo(dtype).eps
            assert found[name].size == array.size
            np.testing.assert_allclose(
                found[name].reshape(array.shape), array, rtol=10 * eps, atol=10 * eps
            )


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_trainer_of_parameters_in_chunks(monkeypatch, accumulate):
    options: dict[str, Any] = {"accumulate": accumulate, "clip_norm": 0.5, "learning_rate": 0.1}
    whole = Trainer(perceptron(), **options)
    monkeypatch.setattr(_update, "CHUNK", 8)
    chunked = Trainer(perceptron(), **options)
    state = chunked._arrays(chunked._now.turns)
    assert (state["W1.grad_sum"].shape, state["W2.grad_sum"].shape) == ((5, 7), (4, 7))
    for step in range(6):
        expected = pytest.approx(float(whole.step(*batch(8, step))), rel=1e-5)
        assert chunked.step(*batch(8, step)) == expected
    for name, array in whole.parameters.items():
        assert chunked.parameters[name].shape == array.shape
        np.testing.assert_allclose(chunked.parameters[name], array, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 15, 16, 17, 24, 37, 64, 97, 1000, 1009, 4096])
def test_sizes_of_chunks(monkeypatch, size):
    monkeypatch.setattr(_update, "CHUNK", 8)
    found = _update.chunked(size)
    if found is None:  # it is small, or as good as prime
        assert size <= 8 or not any(size % rows == 0 for rows in range(-(-size // 8), size // 2))
        return
    rows, columns = found
    assert rows * columns == size and rows > 1 and 2 <= columns <= 8


def test_a_parameter_that_is_large(monkeypatch):
    # With chunks of the size that is used.
    assert _update.chunked(600 * 1000) is not None
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(8, 600)).astype("f4"), rng.integers(0, 1000, 8)
    start = 0.05 * rng.normal(size=(600, 1000)).astype("f4")
    chunked = Trainer(linear(initial=start))
    monkeypatch.setattr(_update, "CHUNK", start.size)
    whole = Trainer(linear(initial=start))
    for _ in range(3):
        expected = pytest.approx(float(whole.step(x, labels)), rel=1e-6)
        assert chunked.step(x, labels) == expected
    found, wanted = (each.parameters["W"] for each in (chunked, whole))
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-7)
    assert np.abs(wanted - start).max() > 1e-3
