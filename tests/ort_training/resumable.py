"""A training that may be killed: ``python resumable.py FOLDER STEPS``.

It makes its artifacts if there are none, goes on from its last checkpoint, and says the loss and
learning rate of each step, which are written after the checkpoint of that step.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
from trainings import ADAMW, Training, two_heads

import gce
from gce.onnx import ort_training

PARAMETERS = ["W", "W0"]


def train(folder: Path, steps: int) -> Training:
    checkpoint, rng = folder / "latest", np.random.default_rng(1)
    forward = two_heads(rng, 4, 5, 3)
    loss = ort_training.GammaCrossEntropyLoss(label_smoothing=0.1)
    training = Training(folder, forward, PARAMETERS, loss, ADAMW, loss_input_names=["scores0"])
    properties = training.state.properties
    properties["step"] = 0
    if checkpoint.exists():
        training.load(checkpoint)
        properties = training.state.properties
    gammas = gce.schedules.linear(steps)
    x = rng.normal(size=(steps, 8, 4)).astype(np.float32)
    labels = rng.integers(0, 5, size=(steps, 8))
    for step in range(properties["step"], steps):
        feeds = (x[step], labels[step], np.array(gammas(step)))
        value, _ = training.step(*feeds, learning_rate=0.1 * 0.9**step)
        properties["step"] = step + 1
        training.save(checkpoint)
        rate = training.optimizer.get_learning_rate()
        print(step, float(value).hex(), float(rate).hex(), flush=True)
        time.sleep(0.01)  # so that there is a step to be killed in
    return training


if __name__ == "__main__":
    train(Path(sys.argv[1]), int(sys.argv[2]))
