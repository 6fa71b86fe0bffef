"""Training with a schedule of γ, and what the trained network says of the test set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

import gce
from gce import schedules
from gce.demo.config import DemoConfig
from gce.demo.data import NoisyDigits
from gce.demo.model import MLP, Adam

__all__ = ["Outcome", "Variant", "evaluate", "train", "train_step", "variants"]


@dataclass(frozen=True)
class Variant:
    """One row of the table: a name, and how to make the schedule of γ for a number of steps."""

    name: str
    schedule: Callable[[int], schedules.Schedule]


@dataclass(frozen=True)
class Outcome:
    """What one trained network says.

    Attributes
    ----------
    confidence : ndarray of float64, shape (N,)
        The probability that it gives to its own answer, for every test example.
    correct : ndarray of bool, shape (N,)
        Whether that answer is the true label.
    negative_log_likelihood : float
        Mean of −log of the probability of the true label on the test set.
    memorised : float
        Share of the wrong training labels that it has learnt to repeat.
    """

    confidence: npt.NDArray[np.float64]
    correct: npt.NDArray[np.bool_]
    negative_log_likelihood: float
    memorised: float


def variants(config: DemoConfig) -> list[Variant]:
    """The runs to compare: every constant γ, and γ rising from 0 to 1 over the whole training."""

    def constant(gamma: float) -> Variant:
        return Variant(f"{gamma:g}", lambda steps: schedules.constant(gamma))

    annealed = Variant("0 to 1", lambda steps: schedules.linear(steps, start=0.0, end=1.0))
    return [*(constant(gamma) for gamma in config.gammas), annealed]


def train_step(
    model: MLP,
    optimiser: Adam,
    inputs: npt.NDArray[np.float32],
    targets: npt.NDArray[np.int64],
    gamma: float,
) -> float:
    """One minibatch: the only place of the demo that meets the loss, and its gradient with it.

    Returns
    -------
    float
        The minibatch's mean loss before the step.
    """
    activations, logits = model.forward(inputs)
    loss, grad_logits = gce.loss_and_grad(logits, targets, gamma)
    optimiser.step(model.backward(inputs, activations, grad_logits))
    return float(loss)


def train(
    data: NoisyDigits,
    variant: Variant,
    config: DemoConfig,
    seed: int,
    on_epoch: Callable[[], None] = lambda: None,
) -> MLP:
    """Train a new network with minibatch Adam.

    Parameters
    ----------
    data : NoisyDigits
        The examples; only the training part is used.
    variant : Variant
        Gives γ at every step.
    config : DemoConfig
        Sizes and number of epochs.
    seed : int
        Decides the initial weights and the order of the minibatches.
    on_epoch : callable
        Called after every epoch, to show progress.

    Returns
    -------
    MLP
    """
    rng = np.random.default_rng([seed, 1])
    examples, pixels = data.train_inputs.shape
    model = MLP(pixels, config.hidden, data.classes, rng)
    optimiser = Adam(model.parameters, config.learning_rate)
    starts = range(0, examples, config.batch_size)
    gamma_at = variant.schedule(config.epochs * len(starts))
    for _ in range(config.epochs):
        order = rng.permutation(examples)
        for start in starts:
            batch = order[start : start + config.batch_size]
            gamma = gamma_at(optimiser.steps)
            train_step(model, optimiser, data.train_inputs[batch], data.train_targets[batch], gamma)
        on_epoch()
    return model


def evaluate(model: MLP, data: NoisyDigits) -> Outcome:
    """Ask a trained network about the clean test set, and about the labels that were wrong."""
    logits = model.forward(data.test_inputs)[1].astype(np.float64)
    # From log-probabilities: a network this sure would round a softmax to 0 and its log to −inf.
    stats = gce.row_stats(logits, data.test_targets)
    log_confidence = logits.max(axis=1) - stats.logsumexp
    flipped_logits = model.forward(data.train_inputs[data.flipped])[1]
    repeated = flipped_logits.argmax(axis=1) == data.train_targets[data.flipped]
    return Outcome(
        confidence=np.exp(np.minimum(log_confidence, 0.0)),  # rounding must not exceed 1
        correct=stats.argmax == data.test_targets,
        negative_log_likelihood=float(-stats.target_log_prob.mean()),
        memorised=float(repeated.mean()),
    )
