"""One way to train, in a process of its own: ``python training_worker.py WAY FOLDER THREADS``.

Reads ``model.onnx`` and ``case.npz`` of the folder, says "ready", and then does one step for each
line on its standard input, whose seconds and loss it prints. WAY is "stock" (`gce.onnx.training`),
"training" (`gce.onnx.ort_training`) or "torch" (eager, with the loss composed of its functions).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # environments in which gce is not installed

Step = Callable[[], float]
RATE = 1e-3


def stock(folder: Path, case: dict[str, Any], threads: int) -> Step:
    import onnxruntime

    from gce.onnx import training

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    optimizers = {"adamw": training.AdamW(), "sgd": training.SGD()}
    trainer = training.Trainer(
        folder / "model.onnx",
        optimizer=optimizers[str(case["optimizer"])],
        learning_rate=RATE,
        gamma=float(case["gamma"]),
        axis=int(case["axis"]),
        session_options=options,
    )
    return lambda: float(trainer.step(case["inputs"], case["labels"]))


def training_release(folder: Path, case: dict[str, Any], threads: int) -> Step:
    import onnx
    from onnxruntime.training import artifacts
    from onnxruntime.training.api import CheckpointState, Module, Optimizer

    from gce.onnx import ort_training

    made = folder / "artifacts"
    made.mkdir(exist_ok=True)
    optimizers = {"adamw": ort_training.AdamW(), "sgd": artifacts.OptimType.SGD}
    forward = onnx.load(folder / "model.onnx")
    ort_training.generate_artifacts(
        forward,
        loss=ort_training.GammaCrossEntropyLoss(axis=int(case["axis"])),
        optimizer=optimizers[str(case["optimizer"])],
        artifact_directory=made,
    )
    options = ort_training.session_options()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    state = CheckpointState.load_checkpoint(made / "checkpoint")
    module = Module(
        made / "training_model.onnx", state, made / "eval_model.onnx", session_options=options
    )
    optimizer = Optimizer(made / "optimizer_model.onnx", module)
    optimizer.set_learning_rate(RATE)
    module.train()

    def step() -> float:
        loss = module(case["inputs"], case["labels"], np.array(float(case["gamma"])))
        optimizer.step()
        module.lazy_reset_grad()
        return float(loss)

    return step


def torch_eager(folder: Path, case: dict[str, Any], threads: int) -> Step:
    import torch

    from benchmarks.training_cases import CASES

    torch.set_num_threads(threads)
    module, _, _ = CASES[str(case["name"])].make()
    optimizers: dict[str, Any] = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    optimizer = optimizers[str(case["optimizer"])](module.parameters(), lr=RATE)
    inputs, labels = torch.from_numpy(case["inputs"]), torch.from_numpy(case["labels"])
    gamma = float(case["gamma"])

    def step() -> float:
        optimizer.zero_grad()
        log_probs = torch.log_softmax(module(inputs), -1)
        log_p = log_probs.gather(-1, labels.unsqueeze(-1))
        loss = (-torch.log(gamma + (1 - gamma) * log_p.exp()) / (1 - gamma)).mean()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


WAYS = {"stock": stock, "training": training_release, "torch": torch_eager}


def main(way: str, folder: str, threads: str) -> None:
    with np.load(Path(folder) / "case.npz") as file:
        case = dict(file)
    step = WAYS[way](Path(folder), case, int(threads))
    for _ in range(3):  # memory is allocated, code is warm
        step()
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        loss = step()
        print(time.perf_counter() - start, loss, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
