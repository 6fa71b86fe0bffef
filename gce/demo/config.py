"""What the demo runs: every number of it, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["DemoConfig"]


@dataclass(frozen=True)
class DemoConfig:
    """Settings of the demo.

    Attributes
    ----------
    seeds : int
        How many times all is repeated. The seed decides the split, the noise, the initial weights
        and the order of the minibatches; runs that differ in γ alone share all four.
    epochs : int
        Passes over the training set. The default trains cross-entropy until it has fitted nearly
        all of the wrong labels: the difference between losses is in what they do then.
    gammas : tuple of float
        The constant values of γ; one more run anneals it from 0 to 1.
    noise : float
        Share of the training labels that are replaced by another class.
    train_size : int
        Training examples, of 1,797; the others are the clean test set.
    hidden, batch_size, learning_rate : int, int, float
        Width of the hidden layer, and the minibatches and step size of Adam.
    bins : int
        Equal-width bins of confidence in the calibration error and in the diagrams.
    output : Path
        Where the reliability diagrams go, as a PNG.
    """

    seeds: int = 5
    epochs: int = 250
    gammas: tuple[float, ...] = (0.0, 0.1, 0.5, 0.8, 1.0)
    noise: float = 0.4
    train_size: int = 1200
    hidden: int = 256
    batch_size: int = 64
    learning_rate: float = 2e-3
    bins: int = 10
    output: Path = Path("gce-demo.png")

    @classmethod
    def quick(cls) -> DemoConfig:
        """A run of a few seconds that shows that everything works, and nothing about γ."""
        return cls(seeds=2, epochs=20)
