"""What the demo runs: every number of it that is not the size of a model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

__all__ = ["TASKS", "DemoConfig"]

TASKS = ("digits", "text")


@dataclass(frozen=True)
class DemoConfig:
    """Settings of the demo.

    Attributes
    ----------
    task : {"digits", "text"}
        What is learnt: see `gce.demo.digits` and `gce.demo.text`.
    seeds : int
        How many times all is repeated. The seed decides the split, the noise, the initial weights
        and the order of the minibatches; runs that differ in γ or threshold alone share all four.
    epochs : int
        Passes over the training set. The defaults train cross-entropy until it has learnt a good
        part of what is wrong: the difference between losses is in what they do then.
    gammas : tuple of float
        The constant values of γ; one more run anneals it from 0 to 1.
    thresholds : tuple of float
        The values of b, for every γ but 0, where b does nothing.
    noise : tuple of float
        Shares of the training data that are made wrong.
    train_size : int
        Examples to train on: images, or lines of text.
    batch_size : int
        Examples of a minibatch: images, or windows of text.
    learning_rate, weight_decay : float
        Of AdamW.
    bins : int
        Equal-width bins of confidence in the calibration error and in the diagrams.
    output : Path
        The directory for the figures and the pictures.
    """

    task: str = "digits"
    seeds: int = 5
    epochs: int = 250
    gammas: tuple[float, ...] = (0.0, 0.1, 0.5, 0.8, 1.0)
    thresholds: tuple[float, ...] = (0.0, 0.2)
    noise: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6)
    train_size: int = 1200
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.0
    bins: int = 10
    output: Path = Path("gce-demo")

    @classmethod
    def of(cls, task: str, quick: bool = False) -> DemoConfig:
        """The settings of a task, or of a run of seconds that only shows that everything works."""
        config = cls()
        if task == "text":
            config = cls(
                task="text",
                seeds=3,
                epochs=12,
                gammas=(0.0, 1e-3, 1e-2, 0.1, 1.0),
                noise=(0.3,),
                train_size=4500,
                batch_size=32,
                learning_rate=3e-3,
                weight_decay=0.01,
            )
        if quick:
            seeds, epochs, size = (2, 20, config.train_size) if task == "digits" else (1, 1, 600)
            config = replace(
                config,
                seeds=seeds,
                epochs=epochs,
                train_size=size,
                noise=config.noise[-1:],
                gammas=(0.0, 0.1, 1.0),
            )
        return config
