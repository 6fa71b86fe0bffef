"""Trains with `gce.onnx.training` what a file says, and writes the losses into another.

``python stock.py training.npz losses.npz``, by a Python that has the current onnxruntime.
"""

from __future__ import annotations

import sys

import numpy as np
import onnx
import onnxruntime

from gce.onnx import training


def main(given: str, wanted: str) -> None:
    with np.load(given) as file:
        arrays = dict(file)
    optimizers = {"sgd": training.SGD(), "adamw": training.AdamW(eps=float(arrays["eps"]))}
    trainer = training.Trainer(
        onnx.load_from_string(arrays["model"].tobytes()),
        optimizer=optimizers[str(arrays["optimizer"])],
        learning_rate=float(arrays["learning_rate"]),
        gamma=lambda step: float(arrays["gammas"][step]),
        axis=int(arrays["axis"]),
    )
    losses = [trainer.step(*b) for b in zip(arrays["inputs"], arrays["labels"], strict=True)]
    np.savez(wanted, losses=losses, runtime=onnxruntime.__version__, **trainer.parameters)


if __name__ == "__main__":
    main(*sys.argv[1:])
