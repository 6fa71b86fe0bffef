"""The task "digits": handwritten digits, some of whose training labels are another class."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from gce.demo.config import DemoConfig
from gce.demo.problem import Examples, Problem, flip_labels, forward_model

__all__ = ["digits", "network"]

HIDDEN = 256

NETWORK = """
digits (float[N, 64] x) => (float[N, 10] logits) {
  sums = Gemm(x, w1, b1)
  active = Relu(sums)
  logits = Gemm(active, w2, b2)
}
"""


def network(rng: np.random.Generator) -> onnx.ModelProto:
    """``logits = max(x w1 + b1, 0) w2 + b2``.

    The weights are normal, of variance 2 / inputs before the ReLU and 1 / hidden before the
    softmax; the biases begin at 0.
    """

    def normal(inputs: int, outputs: int, variance: float) -> npt.NDArray[np.float32]:
        return rng.normal(0.0, np.sqrt(variance), (inputs, outputs)).astype(np.float32)

    weights = {
        "w1": normal(64, HIDDEN, 2.0 / 64),
        "b1": np.zeros(HIDDEN, np.float32),
        "w2": normal(HIDDEN, 10, 1.0 / HIDDEN),
        "b2": np.zeros(10, np.float32),
    }
    return forward_model(NETWORK, weights)


def digits(config: DemoConfig, noise: float, seed: int) -> Problem:
    """Load the digits bundled with scikit-learn, split them, and corrupt the training labels.

    Parameters
    ----------
    config : DemoConfig
        Gives `train_size`, of 1,797; the others are the clean test set.
    noise : float
        Share of the training labels that become another class.
    seed : int
        Decides the split (stratified by class), the noise and the initial weights.

    Returns
    -------
    Problem
    """
    pixels, labels = load_digits(return_X_y=True)
    inputs = (pixels / 16.0).astype(np.float32)
    targets = labels.astype(np.int64)
    train_inputs, test_inputs, train_targets, test_targets = train_test_split(
        inputs, targets, train_size=config.train_size, stratify=targets, random_state=seed
    )
    noisy, flipped = flip_labels(train_targets, 10, noise, np.random.default_rng([seed, 0]))
    return Problem(
        network(np.random.default_rng([seed, 2])),
        Examples(train_inputs, noisy),
        Examples(test_inputs, test_targets),
        flipped,
    )
