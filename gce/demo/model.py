"""A network of one hidden layer and the Adam optimiser, in plain numpy and float32."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["MLP", "Adam"]

Floats = npt.NDArray[np.float32]


class MLP:
    """``logits = max(x @ w1 + b1, 0) @ w2 + b2``.

    Parameters
    ----------
    inputs, hidden, classes : int
        Widths of the three layers.
    rng : numpy.random.Generator
        Draws the weights from a normal distribution, of variance 2 / inputs before the ReLU and
        1 / hidden before the softmax; the biases begin at 0.

    Attributes
    ----------
    parameters : list of ndarray of float32
        ``[w1, b1, w2, b2]``, updated in place by the optimiser.
    """

    def __init__(self, inputs: int, hidden: int, classes: int, rng: np.random.Generator) -> None:
        w1 = rng.normal(0.0, np.sqrt(2.0 / inputs), (inputs, hidden)).astype(np.float32)
        w2 = rng.normal(0.0, np.sqrt(1.0 / hidden), (hidden, classes)).astype(np.float32)
        b1, b2 = np.zeros(hidden, np.float32), np.zeros(classes, np.float32)
        self.parameters: list[Floats] = [w1, b1, w2, b2]

    def forward(self, x: Floats) -> tuple[Floats, Floats]:
        """Hidden activations, shape (N, hidden), and logits, shape (N, classes), of a batch."""
        w1, b1, w2, b2 = self.parameters
        activations = np.maximum(x @ w1 + b1, np.float32(0.0))
        return activations, activations @ w2 + b2

    def backward(self, x: Floats, activations: Floats, grad_logits: Floats) -> list[Floats]:
        """Gradient of each parameter from the gradient of the logits, in the parameters' order."""
        w2 = self.parameters[2]
        grad_hidden = (grad_logits @ w2.T) * (activations > 0)
        return [
            x.T @ grad_hidden,
            grad_hidden.sum(axis=0),
            activations.T @ grad_logits,
            grad_logits.sum(axis=0),
        ]


class Adam:
    """Adam (arXiv 1412.6980) with its usual constants; `step` updates the parameters in place."""

    beta1, beta2, epsilon = 0.9, 0.999, 1e-8

    def __init__(self, parameters: Sequence[Floats], learning_rate: float) -> None:
        self.parameters = parameters
        self.learning_rate = learning_rate
        self.steps = 0
        self.means = [np.zeros_like(p) for p in parameters]
        self.squares = [np.zeros_like(p) for p in parameters]

    def step(self, gradients: Sequence[Floats]) -> None:
        """Move every parameter against its gradient."""
        self.steps += 1
        unbias1 = 1.0 - self.beta1**self.steps
        unbias2 = 1.0 - self.beta2**self.steps
        for parameter, gradient, mean, square in zip(
            self.parameters, gradients, self.means, self.squares, strict=True
        ):
            mean += (1.0 - self.beta1) * (gradient - mean)
            square += (1.0 - self.beta2) * (gradient * gradient - square)
            scale = np.sqrt(square / unbias2) + self.epsilon
            parameter -= self.learning_rate * (mean / unbias1) / scale
