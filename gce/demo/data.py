"""Handwritten digits with wrong labels in the training set and none in the test set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from gce.demo.config import DemoConfig

__all__ = ["NoisyDigits", "flip_labels", "noisy_digits"]


@dataclass(frozen=True)
class NoisyDigits:
    """One split of the digits.

    Attributes
    ----------
    train_inputs, test_inputs : ndarray of float32, shape (N, 64)
        Grey values between 0 and 1.
    train_targets : ndarray of int64, shape (N,)
        The labels to train on, of which those in `flipped` are wrong.
    test_targets : ndarray of int64, shape (N,)
        The true labels.
    flipped : ndarray of bool, shape (N,)
        Which training labels are wrong.
    """

    train_inputs: npt.NDArray[np.float32]
    train_targets: npt.NDArray[np.int64]
    flipped: npt.NDArray[np.bool_]
    test_inputs: npt.NDArray[np.float32]
    test_targets: npt.NDArray[np.int64]
    classes: int


def flip_labels(
    labels: npt.NDArray[np.int64], classes: int, share: float, rng: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Replace a share of the labels by another class, each other class being equally likely.

    Parameters
    ----------
    labels : ndarray of int64, shape (N,)
        Labels in [0, classes); not modified.
    classes : int
        Number of classes, at least 2.
    share : float
        The share to replace: ``round(share * N)`` labels, chosen without replacement.
    rng : numpy.random.Generator
        Source of the choice.

    Returns
    -------
    noisy : ndarray of int64, shape (N,)
        The labels with the replacements.
    flipped : ndarray of bool, shape (N,)
        True where `noisy` differs from `labels`.
    """
    chosen = rng.choice(labels.size, size=round(share * labels.size), replace=False)
    flipped = np.zeros(labels.size, dtype=np.bool_)
    flipped[chosen] = True
    # A shift by 1 .. classes - 1 around the circle of classes never ends where it began.
    shift = rng.integers(1, classes, size=labels.size)
    return np.where(flipped, (labels + shift) % classes, labels), flipped


def noisy_digits(config: DemoConfig, seed: int) -> NoisyDigits:
    """Load the digits bundled with scikit-learn, split them, and corrupt the training labels.

    Parameters
    ----------
    config : DemoConfig
        Gives `train_size` and `noise`.
    seed : int
        Decides the split (stratified by class) and the noise.

    Returns
    -------
    NoisyDigits
    """
    pixels, labels = load_digits(return_X_y=True)
    inputs = (pixels / 16.0).astype(np.float32)
    targets = labels.astype(np.int64)
    train_inputs, test_inputs, train_targets, test_targets = train_test_split(
        inputs, targets, train_size=config.train_size, stratify=targets, random_state=seed
    )
    classes = int(targets.max()) + 1
    rng = np.random.default_rng([seed, 0])  # stream 0: noise; stream 1 is the training's
    noisy, flipped = flip_labels(train_targets, classes, config.noise, rng)
    return NoisyDigits(train_inputs, noisy, flipped, test_inputs, test_targets, classes)
