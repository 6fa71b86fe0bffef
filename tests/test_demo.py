"""The demo: its data, its gradient, its calibration figures, and a short run of all of it."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")

from rich.console import Console
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss

from gce.demo import DemoConfig
from gce.demo.calibration import reliability
from gce.demo.data import flip_labels, noisy_digits
from gce.demo.model import MLP, Adam
from gce.demo.report import METRICS, format_figure, results_table, summary
from gce.demo.run import run
from gce.demo.train import Outcome, evaluate, train, train_step, variants

CONFIG = DemoConfig()
SHORT = dataclasses.replace(CONFIG, seeds=1, epochs=2)


# --- data


@pytest.mark.parametrize("seed", [0, 1])
def test_exactly_the_promised_share_of_training_labels_is_wrong(seed: int) -> None:
    noisy = noisy_digits(CONFIG, seed)
    clean = noisy_digits(dataclasses.replace(CONFIG, noise=0.0), seed)
    np.testing.assert_array_equal(noisy.train_inputs, clean.train_inputs)
    np.testing.assert_array_equal(noisy.train_targets != clean.train_targets, noisy.flipped)
    assert noisy.flipped.sum() == 480 == CONFIG.noise * CONFIG.train_size


def test_the_test_labels_are_the_true_ones() -> None:
    pixels, labels = load_digits(return_X_y=True)
    truth = {image.tobytes(): label for image, label in zip(pixels, labels, strict=True)}
    data = noisy_digits(CONFIG, seed=0)
    # The grey values are k / 16: exact in float32, so that the way back is exact as well.
    images = (data.test_inputs * 16.0).astype(pixels.dtype)
    assert data.test_targets.tolist() == [truth[image.tobytes()] for image in images]
    assert len(data.test_targets) == len(labels) - CONFIG.train_size


def test_a_flip_leads_to_every_other_class_and_leaves_its_input_alone() -> None:
    labels = np.repeat(np.arange(4), 250)
    before = labels.copy()
    noisy, flipped = flip_labels(labels, 4, 0.4, np.random.default_rng(0))
    np.testing.assert_array_equal(labels, before)
    assert flipped.sum() == 400
    for label in range(4):
        reached = set(noisy[flipped & (labels == label)])
        assert reached == set(range(4)) - {label}


# --- gradient


class RecordingOptimiser(Adam):
    """Keeps the gradients and leaves the parameters as they are."""

    def __init__(self) -> None:
        super().__init__([], learning_rate=0.0)

    def step(self, gradients: Sequence[np.ndarray]) -> None:
        self.gradients = gradients


def formula(logits: np.ndarray, targets: np.ndarray, gamma: float) -> float:
    """Mean of −log(γ + δp) / δ, of 1 − p at γ = 1, as in the definition."""
    q = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    p = q[np.arange(len(targets)), targets]
    delta = 1.0 - gamma
    return float((1.0 - p if delta == 0.0 else -np.log(gamma + delta * p) / delta).mean())


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 1.0])
def test_a_training_step_follows_the_gradient_of_the_formula(gamma: float) -> None:
    rng = np.random.default_rng(7)
    model = MLP(6, 5, 4, rng)
    # In float64, which the annotations of the demo do not foresee: differences need the digits.
    parameters: list[Any] = [parameter.astype(np.float64) for parameter in model.parameters]
    model.parameters = parameters
    inputs: Any = rng.normal(size=(11, 6))
    targets = rng.integers(0, 4, 11)
    optimiser = RecordingOptimiser()
    loss = train_step(model, optimiser, inputs, targets, gamma)
    # Both are the same few float64 operations, some 10 ulp apart at most.
    assert loss == pytest.approx(formula(model.forward(inputs)[1], targets, gamma), rel=1e-14)

    direction = [rng.normal(size=parameter.shape) for parameter in parameters]
    h = 1e-6

    def loss_along(t: float) -> float:
        moved = MLP(6, 5, 4, rng)
        moved.parameters = [w + t * d for w, d in zip(parameters, direction, strict=True)]
        return formula(moved.forward(inputs)[1], targets, gamma)

    slope = sum(
        float((gradient * d).sum())
        for gradient, d in zip(optimiser.gradients, direction, strict=True)
    )
    # A central difference errs by h² times a third derivative of order 1 (1e-12 times some 10 of
    # direction's length cubed) and by rounding, 1e-16 / h = 1e-10: 1e-8 covers both, and any
    # mistake in a formula is of order 1.
    assert slope == pytest.approx((loss_along(h) - loss_along(-h)) / (2 * h), abs=1e-8)


def test_at_gamma_zero_the_output_bias_moves_by_q_minus_one_hot() -> None:
    rng = np.random.default_rng(3)
    model, optimiser = MLP(64, 16, 10, rng), RecordingOptimiser()
    inputs = rng.random((32, 64), dtype=np.float32)
    targets = rng.integers(0, 10, 32)
    train_step(model, optimiser, inputs, targets, 0.0)
    logits = model.forward(inputs)[1].astype(np.float64)
    q = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = (q - np.eye(10)[targets]).mean(axis=0)
    assert optimiser.gradients[3].dtype == np.float32
    # 32 float32 terms of at most 1 / 32, each within 5e-7 of itself (the promised accuracy of the
    # gradient) and added with a relative error of 6e-8 each: 5e-7 + 32 * 6e-8 < 3e-6.
    np.testing.assert_allclose(optimiser.gradients[3], expected, rtol=0.0, atol=3e-6)


# --- determinism


def test_a_seed_decides_everything() -> None:
    def parameters(seed: int) -> list[np.ndarray]:
        return train(noisy_digits(SHORT, seed), variants(SHORT)[-1], SHORT, seed).parameters

    first, again, other = parameters(0), parameters(0), parameters(1)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert all((a != b).any() for a, b in zip(first, other, strict=True))


def test_gamma_is_annealed_from_zero_to_one_and_constant_elsewhere() -> None:
    *constant, annealed = variants(CONFIG)
    assert [variant.schedule(100)(50) for variant in constant] == list(CONFIG.gammas)
    schedule = annealed.schedule(100)
    assert (schedule(0), schedule(100)) == (0.0, 1.0)
    assert all(schedule(step) < schedule(step + 1) for step in range(100))


# --- calibration


@pytest.mark.parametrize(
    ("confidence", "correct", "expected"),
    [
        # A confidence of 1 shares the last bin: |0.975 − 0.5|. In a bin of its own it would make
        # this (0.05 + 1) / 2 = 0.525.
        ([0.95, 1.0], [True, False], 0.475),
        ([1.0, 1.0], [True, True], 0.0),
        ([1.0, 1.0], [False, False], 1.0),
        # Three bins: 2/4 · |0.85 − 0.5| + 1/4 · |0.55 − 1| + 1/4 · |0.3 − 0|.
        ([0.82, 0.88, 0.55, 0.3], [True, False, True, False], 0.3625),
        # An edge belongs to the bin below it: |0.55 − 0.5| is in one bin, 0.61 in the next.
        ([0.5 + 1e-12, 0.6, 0.61], [False, True, True], (2 * 0.05 + 0.39) / 3),
    ],
)
def test_calibration_error_by_hand(
    confidence: list[float], correct: list[bool], expected: float
) -> None:
    curve = reliability(np.array(confidence), np.array(correct), bins=10)
    # A handful of float64 operations on numbers of order 1; the last case is moved by 1e-12.
    assert curve.error == pytest.approx(expected, abs=2e-12)


@pytest.mark.parametrize("bins", [1, 7, 10, 15])
def test_calibration_error_against_its_definition(bins: int) -> None:
    rng = np.random.default_rng(bins)
    edges = np.linspace(0.0, 1.0, bins + 1)
    confidence = np.concatenate([edges, rng.random(300)])
    correct = rng.random(confidence.size) < confidence**2
    expected = 0.0
    for k in range(bins):
        inside = (confidence > edges[k]) & (confidence <= edges[k + 1])
        if k == 0:
            inside |= confidence == 0.0
        if inside.any():
            gap = abs(correct[inside].mean() - confidence[inside].mean())
            expected += gap * inside.mean()
    curve = reliability(confidence, correct, bins)
    # The same sums of some 300 float64 numbers in another order: 300 · 1e-16.
    assert curve.error == pytest.approx(expected, abs=1e-13)
    assert curve.share.sum() == pytest.approx(1.0, abs=1e-15)  # at most 15 terms, each rounded once


def test_evaluation_agrees_with_scikit_learn() -> None:
    data = noisy_digits(SHORT, seed=0)
    model = train(data, variants(SHORT)[0], SHORT, seed=0)
    outcome = evaluate(model, data)
    logits = model.forward(data.test_inputs)[1].astype(np.float64)
    q = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    # After two epochs no probability is near 0, where log_loss would clip it: only float64
    # rounding remains, a few 1e-16 each.
    assert outcome.negative_log_likelihood == pytest.approx(
        log_loss(data.test_targets, q), rel=1e-13
    )
    np.testing.assert_allclose(outcome.confidence, q.max(axis=1), rtol=1e-13)
    np.testing.assert_array_equal(outcome.correct, q.argmax(axis=1) == data.test_targets)


# --- report


def outcome(confidence: list[float], correct: list[bool]) -> Outcome:
    return Outcome(np.array(confidence), np.array(correct), 0.25, 0.5)


def test_the_spread_is_the_sample_standard_deviation() -> None:
    metric = METRICS["accuracy"]
    assert format_figure(np.array([0.90, 0.94]), metric) == "92.0 ± 2.8"  # 4 / √2 = 2.83
    assert format_figure(np.array([0.90]), metric) == "90.0"


def test_the_summary_follows_the_figures() -> None:
    good, bad = outcome([1.0, 1.0], [True, True]), outcome([0.9, 0.8], [True, False])
    assert summary({"a": [bad], "b": [good]}, bins=10).splitlines() == [
        "highest mean accuracy: gamma b",
        "lowest mean calibration error: gamma b",
        "lowest mean negative log-likelihood: gamma a, gamma b",
    ]


def test_a_short_run_from_end_to_end(tmp_path: Path) -> None:
    config = dataclasses.replace(SHORT, output=tmp_path / "diagrams.png")
    printed = io.StringIO()
    outcomes = run(config, Console(file=printed, width=80))
    names = ["0", "0.1", "0.5", "0.8", "1", "0 to 1"]
    assert list(outcomes) == names

    table = results_table(outcomes, config.bins)
    headings = [
        str(column.header).replace("-\n", "-").replace("\n", " ") for column in table.columns
    ]
    assert headings == [
        "gamma",
        "accuracy %",
        "mean confidence %",
        "calibration error %",
        "negative log-likelihood",
        "wrong labels learnt %",
    ]
    assert list(table.columns[0].cells) == names
    lines = printed.getvalue().splitlines()
    assert all(any(line.strip().startswith(f"{name} ") for line in lines) for name in names)
    assert "…" not in printed.getvalue()  # nothing cut off at the width of a terminal
    assert config.output.read_bytes().startswith(b"\x89PNG")
