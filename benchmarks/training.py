"""The time of a training step: ``python -m benchmarks.training`` (or ``make bench-training``).

`gce.onnx.training` on the current ONNX Runtime, `gce.onnx.ort_training` on its training release,
and PyTorch eager train the same model on the same batch, each in a process of its own, taking
turns.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from benchmarks.training_cases import CASES, TrainingCase, export
from gce.bench.report import surroundings
from gce.bench.runner import REST

WORKER = Path(__file__).with_name("training_worker.py")
NAMES = {
    "stock": "gce.onnx.training",
    "training": "gce.onnx.ort_training",
    "torch": "PyTorch eager",
}


class Worker:
    """A process that does a step when it is told to."""

    def __init__(self, python: str, way: str, folder: Path, threads: int) -> None:
        command = [python, str(WORKER), way, str(folder), str(threads)]
        self.log = (folder / f"{way}.log").open("w+")
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True
        )
        if self.read() != "ready":
            self.log.seek(0)
            raise RuntimeError(f"{way}: {self.log.read()[-2000:]}")

    def read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def step(self) -> tuple[float, float]:
        """Seconds and loss."""
        assert self.process.stdin is not None
        time.sleep(REST)
        print("step", file=self.process.stdin, flush=True)
        seconds, loss = self.read().split()
        return float(seconds), float(loss)

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        self.log.close()


def measure(
    case: TrainingCase, optimizer: str, pythons: dict[str, str], threads: int, rounds: int
) -> dict[str, list[float]]:
    """Seconds of each way in each round; the losses must agree."""
    module, inputs, labels = case.make()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter, about itself
            onnx.save(export(module, inputs), folder / "model.onnx")
        np.savez(
            folder / "case.npz",
            name=case.name,
            optimizer=optimizer,
            gamma=0.3,
            axis=case.axis,
            inputs=inputs,
            labels=labels,
        )
        workers = {way: Worker(python, way, folder, threads) for way, python in pythons.items()}
        seconds: dict[str, list[float]] = {way: [] for way in workers}
        for _ in range(rounds):
            losses = {}
            for way, worker in workers.items():
                took, losses[way] = worker.step()
                seconds[way].append(took)
            if max(losses.values()) - min(losses.values()) > 1e-3:
                raise RuntimeError(f"{case.name}: the losses are {losses}")
        for worker in workers.values():
            worker.stop()
    return seconds


def row(name: str, seconds: dict[str, list[float]]) -> str:
    """A line of the table: B's time, and the others' over it."""
    ours = np.array(seconds["stock"])
    cells = [name, f"{np.median(ours) * 1e3:.1f} ms"]
    for way in ("training", "torch"):
        if way not in seconds:
            cells.append("-")
            continue
        low, middle, high = np.percentile(np.array(seconds[way]) / ours, [10, 50, 90])
        cells.append(f"{middle:.2f} ({low:.2f}-{high:.2f})")
    return "| " + " | ".join(cells) + " |"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--threads", type=int, default=1, help="for every way (default 1)")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--case", default="", help="only cases whose name contains this")
    parser.add_argument("--optimizer", choices=["adamw", "sgd"], action="append")
    parser.add_argument("--training-python", help="a Python with onnxruntime-training-cpu 1.19.2")
    parser.add_argument("--output", type=Path, help="JSON with all rounds")
    options = parser.parse_args(arguments)
    pythons = {"stock": sys.executable, "torch": sys.executable}
    if options.training_python:
        pythons["training"] = options.training_python
    facts = surroundings(options.threads)
    for name, fact in facts.items():
        print(f"{name:15} {fact}")
    print(f"\n| case, optimizer | {NAMES['stock']} | {NAMES['training']}, its time over that | "
          f"{NAMES['torch']}, its time over that |\n|---|---|---|---|")  # fmt: skip
    results = []
    for case in CASES.values():
        for optimizer in options.optimizer or ["adamw", "sgd"]:
            if options.case not in case.name:
                continue
            seconds = measure(case, optimizer, pythons, options.threads, options.rounds)
            print(row(f"{case.name}, {optimizer}", seconds), flush=True)
            results.append({"case": case.name, "optimizer": optimizer, "seconds": seconds})
    if options.output is not None:
        options.output.write_text(json.dumps({"facts": facts, "cases": results}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
