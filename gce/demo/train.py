"""Training with a schedule of γ, and what the trained model says of the test set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

import gce
from gce import schedules
from gce.demo.config import DemoConfig
from gce.demo.problem import Examples, Problem
from gce.onnx.training import AdamW, Trainer

__all__ = ["Outcome", "Variant", "evaluate", "train", "variants"]

MEMORY = 256  # training examples that are asked for what was learnt of the wrong targets


@dataclass(frozen=True)
class Variant:
    """One row of the table: γ, None where it rises from 0 to 1 over the whole training, and b."""

    gamma: float | None
    threshold: float

    @property
    def gamma_text(self) -> str:
        """γ for people."""
        return "0 to 1" if self.gamma is None else f"{self.gamma:g}"

    def schedule(self, steps: int) -> schedules.Schedule:
        """γ at each step."""
        if self.gamma is None:
            return schedules.linear(steps, start=0.0, end=1.0)
        return schedules.constant(self.gamma)


@dataclass(frozen=True)
class Outcome:
    """What one trained model says of every row of the test set.

    Attributes
    ----------
    confidence : ndarray of float64, shape (N,)
        The probability that it gives to its own answer.
    correct : ndarray of bool, shape (N,)
        Whether that answer is the true one.
    negative_log_likelihood : float
        Mean of −log of the probability of the true answer.
    memorised : float
        Share of the wrong training targets that it has learnt to repeat; NaN without any.
    """

    confidence: npt.NDArray[np.float64]
    correct: npt.NDArray[np.bool_]
    negative_log_likelihood: float
    memorised: float


def variants(config: DemoConfig) -> list[Variant]:
    """The runs to compare: each γ, then γ that rises, with each threshold, which γ = 0 ignores."""
    gammas = [*config.gammas, None]
    pairs = [Variant(gamma, b) for b in config.thresholds for gamma in gammas]
    return [v for v in pairs if v.gamma != 0.0 or v.threshold == config.thresholds[0]]


def train(
    problem: Problem,
    variant: Variant,
    config: DemoConfig,
    seed: int,
    on_epoch: Callable[[], None] = lambda: None,
    session_options: onnxruntime.SessionOptions | None = None,
) -> Trainer:
    """Train the problem's model with minibatches.

    Parameters
    ----------
    problem : Problem
        Gives the model and the training examples.
    variant : Variant
        Gives γ at every step, and the threshold.
    config : DemoConfig
        Number of epochs, minibatches, step size.
    seed : int
        Decides the order of the minibatches.
    on_epoch : callable
        Called after every epoch, to show progress.
    session_options : onnxruntime.SessionOptions, optional
        For the number of threads.

    Returns
    -------
    Trainer
    """
    rng = np.random.default_rng([seed, 1])
    inputs, targets = problem.train.inputs, problem.train.targets
    starts = range(0, len(inputs), config.batch_size)
    trainer = Trainer(
        problem.model,
        optimizer=AdamW(weight_decay=config.weight_decay),
        learning_rate=config.learning_rate,
        gamma=variant.schedule(config.epochs * len(starts)),
        threshold=variant.threshold,
        axis=-1,
        session_options=session_options,
    )
    for _ in range(config.epochs):
        order = rng.permutation(len(inputs))
        for start in starts:
            batch = order[start : start + config.batch_size]
            trainer.step(inputs[batch], targets[batch])
        on_epoch()
    return trainer


def predictions(trainer: Trainer, examples: Examples, rows: int = 64) -> Iterator[tuple[Any, Any]]:
    """Logits in float64 and targets of all rows, some examples at a time."""
    for start in range(0, len(examples.inputs), rows):
        logits = trainer.predict(examples.inputs[start : start + rows])
        targets = examples.targets[start : start + rows].reshape(-1)
        yield logits.reshape(targets.size, -1).astype(np.float64), targets


def evaluate(trainer: Trainer, problem: Problem) -> Outcome:
    """Ask a trained model about the clean test set, and about the targets that were wrong."""
    confidence, correct, log_probs = [], [], []
    for logits, targets in predictions(trainer, problem.test):
        # From log-probabilities: a model this sure would round a softmax to 0 and its log to −inf.
        stats = gce.row_stats(logits, targets)
        log_confidence = logits.max(axis=1) - stats.logsumexp
        confidence.append(np.exp(np.minimum(log_confidence, 0.0)))  # rounding must not exceed 1
        correct.append(stats.argmax == targets)
        log_probs.append(stats.target_log_prob)
    return Outcome(
        confidence=np.concatenate(confidence),
        correct=np.concatenate(correct),
        negative_log_likelihood=float(-np.concatenate(log_probs).mean()),
        memorised=memorised(trainer, problem),
    )


def memorised(trainer: Trainer, problem: Problem) -> float:
    """Share of the wrong training targets that the model repeats."""
    wrong = problem.wrong.reshape(len(problem.wrong), -1)
    asked = np.flatnonzero(wrong.any(axis=1))[:MEMORY]
    if not asked.size:
        return float("nan")
    examples = Examples(problem.train.inputs[asked], problem.train.targets[asked])
    repeated = [
        logits.argmax(axis=1) == targets for logits, targets in predictions(trainer, examples)
    ]
    return float(np.concatenate(repeated)[wrong[asked].reshape(-1)].mean())
