"""The same training on either runtime: a perceptron with tanh, whose steps a seed determines.

It stands on the models and helpers of tests/training and tests/ort_training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import onnx

from gce import schedules

Array = Any
FEATURES, CLASSES, ROWS = 16, 10, 24
ANNEALED = 40  # steps, until γ is 1


class Config(NamedTuple):
    """Which training."""

    seed: int
    optimizer: str  # "sgd" or "adamw"
    hidden: int = 32

    @property
    def rate(self) -> float:
        return 0.01 if self.optimizer == "adamw" else 0.6


def forward(config: Config) -> onnx.ModelProto:
    """``tanh(x W1 + b1) W2 + b2``, of an opset that both runtimes know."""
    from small_models import model_of, perceptron_nodes

    rng = np.random.default_rng(config.seed)
    weights = {
        "W1": rng.normal(size=(FEATURES, config.hidden)) / FEATURES**0.5,
        "b1": np.zeros(config.hidden),
        "W2": rng.normal(size=(config.hidden, CLASSES)) / config.hidden**0.5,
        "b2": np.zeros(CLASSES),
    }
    floats = {name: weight.astype("f4") for name, weight in weights.items()}
    shapes = ({"x": ["N", FEATURES]}, {"logits": ["N", CLASSES]})
    return model_of(perceptron_nodes(), floats, *shapes, opset=17, ir_version=8)


def batch(config: Config, step: int) -> tuple[Array, Array]:
    """Inputs of this step, whose largest of the first features is their class."""
    x = np.random.default_rng([config.seed, step]).normal(size=(ROWS, FEATURES)).astype("f4")
    return x, x[:, :CLASSES].argmax(1)


class Training(Protocol):
    """What both are."""

    losses: list[float]  # of all steps; a checkpoint has them too

    def step(self) -> None: ...

    def save(self, path: Path) -> None: ...

    def load(self, path: Path) -> None: ...

    def values(self) -> dict[str, Array]: ...


class Stock:
    """`gce.onnx.training`, on the current ONNX Runtime."""

    @staticmethod
    def prepare() -> None:
        """Import what takes long, and start no thread."""
        import gce.onnx.training  # noqa: F401

    def __init__(self, folder: Path, config: Config) -> None:
        from onnxruntime import SessionOptions

        from gce.onnx.training import SGD, AdamW, Trainer

        options = SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        self.config = config
        self.losses: list[float] = []
        self.trainer = Trainer(
            forward(config),
            optimizer=AdamW() if config.optimizer == "adamw" else SGD(),
            learning_rate=lambda step: config.rate * 0.99**step,
            gamma=schedules.linear(ANNEALED),
            clip_norm=5.0,
            session_options=options,
        )

    def step(self) -> None:
        self.losses.append(float(self.trainer.step(*batch(self.config, len(self.losses)))))

    def save(self, path: Path) -> None:
        self.trainer.save(path, extra=self.losses)

    def load(self, path: Path) -> None:
        self.losses = self.trainer.load(path)

    def values(self) -> dict[str, Array]:
        return self.trainer.parameters


class Release:
    """`gce.onnx.ort_training`, on the training release; its artifacts are in the folder."""

    @staticmethod
    def prepare() -> None:
        """Import what takes long, and start no thread."""
        import trainings  # noqa: F401

    def __init__(self, folder: Path, config: Config) -> None:
        import onnxruntime
        import trainings
        from onnxruntime.training import artifacts

        from gce.onnx import ort_training

        # It says what its graph transformers do; errors are raised.
        onnxruntime.set_default_logger_severity(4)
        self.config = config
        self.losses: list[float] = []
        sgd = artifacts.OptimType.SGD
        self.training = trainings.Training(
            folder,
            forward(config),
            None,
            ort_training.GammaCrossEntropyLoss(),
            ort_training.AdamW() if config.optimizer == "adamw" else sgd,
        )
        self.gamma = schedules.linear(ANNEALED)

    def step(self) -> None:
        step = len(self.losses)
        feeds = (*batch(self.config, step), np.array(self.gamma(step)))
        rate = self.config.rate * 0.99**step
        loss, _ = self.training.step(*feeds, learning_rate=rate)
        self.losses.append(float(loss))

    def save(self, path: Path) -> None:
        # A property is a number or a text.
        self.training.state.properties["losses"] = " ".join(map(float.hex, self.losses))
        self.training.save(path)

    def load(self, path: Path) -> None:
        self.training.load(path)
        self.losses = list(map(float.fromhex, self.training.state.properties["losses"].split()))

    def values(self) -> dict[str, Array]:
        return self.training.values()


WAYS: dict[str, type[Stock] | type[Release]] = {"stock": Stock, "release": Release}
