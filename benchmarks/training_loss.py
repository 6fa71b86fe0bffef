"""The loss and its gradient by ONNX Runtime's training release, in a process of its environment."""

from __future__ import annotations

import json
import pickle
import subprocess
import weakref
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.plans import TRAINING
from gce.bench import cases
from gce.bench.cases import BACKWARD, Data
from gce.bench.contender import CannotDo, Contender, Work

WORKER = Path(__file__).with_name("training_loss_worker.py")


class Remote:
    """Work in another process, which times it itself; it makes the same data."""

    def __init__(self, python: str, data: Data, threads: int) -> None:
        case = json.dumps({"case": asdict(data.case), "threads": threads})
        command = [python, str(WORKER), str(Path(cases.__file__)), case]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        weakref.finalize(self, stop, self.process)
        self.read()  # it is ready

    def read(self) -> Any:
        assert self.process.stdout is not None
        try:
            return pickle.load(self.process.stdout)
        except EOFError as error:
            raise RuntimeError(f"{WORKER.name} ended with {self.process.wait()}") from error

    def ask(self, repeats: int) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{repeats}\n".encode())
        self.process.stdin.flush()
        return self.read()

    def __call__(self) -> Any:
        """The loss, and the first and last rows of the gradient."""
        return self.ask(0)

    def seconds(self, repeats: int) -> float:
        return float(self.ask(repeats))


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a worker, which ends with its input."""
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()
    process.wait()


def training_loss(python: str) -> Contender:
    """SoftmaxCrossEntropyLoss and its gradient, in the Python of the training release."""

    def make(data: Data, threads: int) -> Work:
        case = data.case
        if case.work != BACKWARD:
            raise CannotDo("measured with its gradient alone")
        if case.dtype != "float32" or case.axis not in (-1, 1) or case.options != cases.PLAIN:
            raise CannotDo("float32, class axis 1, no options")
        return Remote(python, data, threads)

    return Contender(TRAINING, make, plain=True, keeps_memory=True)
