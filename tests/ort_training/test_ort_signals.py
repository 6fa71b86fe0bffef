"""Signals during the steps of a training."""

from __future__ import annotations

from engines import python

IN_A_STORM = """
from pathlib import Path
import numpy as np
from trainings import ADAMW, Training, two_heads
from gce.onnx import ort_training
from storm import storm
rng = np.random.default_rng(0)
forward = two_heads(rng, 4, 50, 3)
loss = ort_training.GammaCrossEntropyLoss()
folder = Path({folder!r})
training = Training(folder, forward, ["W", "W0"], loss, ADAMW, loss_input_names=["scores0"])
feeds = rng.normal(size=(4000, 4)).astype("f4"), rng.integers(0, 50, 4000), np.array(0.3)
def results():
    training.load(folder / "checkpoint")
    losses = [training.step(*feeds)[0] for _ in range(5)]
    return [array.tobytes() for array in (*losses, *training.values().values())]
want = results()
for _ in storm():
    assert results() == want
"""


def test_a_storm_of_signals(tmp_path):
    done = python(IN_A_STORM.format(folder=str(tmp_path)))
    assert done.returncode == 0, done.stderr
