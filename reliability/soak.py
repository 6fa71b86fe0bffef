"""An hour of mixed calls from 8 threads and of training steps on both runtimes, results checked.

Three processes at once. One makes calls of every function from 8 threads, of numpy's face and the
doors for PyTorch, jax and ONNX Runtime, with random options, dtypes, layouts, in place, wrong
calls among them, changes of the number of threads, and forks: each result must have the bits that
one thread had before, which were held against gce.reference. Two train, one on the current ONNX
Runtime, one on its training release: new trainers again and again, from checkpoints too, whose
losses and parameters must have the same bits each time. What the processes hold (resident memory,
threads, open files) must stay flat.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reliability import growth, processes
from reliability.record import ROOT, Figures

DOORS = ("torch", "jax", "onnxruntime")
# What a worker may take besides its time: to import, to make its cases, to end a step.
GRACE = 300.0
# At least so long its memory may grow: each thread has made most of the calls once.
WARM_UP = 30.0


class Worker:
    """A process that says its figures, and how its memory, threads and files have been."""

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        self.name, self.log = name, log
        self.figures: dict[str, Any] = {}
        self.samples: list[growth.Sample] = []
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT,
                env=processes.environment(),
            )  # fmt: skip
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.figures = json.loads(line)

    def sample(self) -> None:
        """From its first figures on, until its end."""
        if self.figures and not self.figures.get("done") and self.process.poll() is None:
            try:
                self.samples.append(growth.sample(self.process.pid))
            except OSError:
                return

    def end(self, warm_up: int) -> Figures:
        """Its figures; with what it printed, if something is wrong."""
        self.reader.join()
        code = self.process.wait()
        found = {key: value for key, value in self.figures.items() if key != "done"}
        flat = growth.figures(self.samples, warm_up)
        unfinished = not (code == 0 and self.figures.get("done"))
        failures = found.get("failures", 0) + flat.pop("failures") + unfinished
        if failures:
            text = self.log.read_text(errors="replace")
            print(f"--- {self.name} ended with {code}:\n{text[-20000:]}", flush=True)
        return {**found, **flat, "exit_code": code, "failures": failures}

    def line(self) -> str:
        """Its figures in a few words."""
        counts = ", ".join(
            f"{value:,} {name.replace('_', ' ')}"
            for name, value in self.figures.items()
            if type(value) is int
        )
        memory = f"{self.samples[-1].memory / growth.MIB:.0f} MiB" if self.samples else "-"
        return f"{self.name}: {memory}, {counts or 'starting'}"


def watch(workers: Sequence[Worker], seconds: float, warm_up: float = 0.0) -> dict[str, Figures]:
    """Sample the workers until all have ended, and say each minute how they are."""
    start = said = time.monotonic()
    interval = min(5.0, seconds / 60)
    while any(worker.process.poll() is None for worker in workers):
        now = time.monotonic()
        if now - start > seconds + GRACE:
            for worker in workers:
                worker.process.kill()
            break
        for worker in workers:
            worker.sample()
        if now - said >= 60.0:
            said = now
            print(f"[{now - start:5.0f} s]", *map(Worker.line, workers), sep="\n  ", flush=True)
        time.sleep(interval)
    return {worker.name: worker.end(round(warm_up / interval)) for worker in workers}


def commands(
    seconds: float, seed: int, training_python: str | None, leak: int = 0
) -> dict[str, list[str]]:
    """The workers' commands, by name."""
    for_each = ["--seconds", str(seconds), "--seed", str(seed)]
    doors = []
    for name in DOORS:
        if processes.available(name):
            doors.append(name)
        else:
            processes.skip(name, "not installed")
    calls = [sys.executable, "-m", "reliability.workers.calls", "--leak", str(leak)]
    found = {"calls": [*calls, *for_each, "--doors", *doors]}
    for way, python in processes.training_pythons(sys.executable, training_python).items():
        found[way] = [python, "-m", "reliability.workers.steps", way, *for_each]
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=60.0, help="default 60")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the cases, and what follows on what"
    )
    parser.add_argument("--training-python", help="a Python with onnxruntime-training-cpu 1.19.2")


def run(options: argparse.Namespace) -> Figures:
    """All three, for as long as asked for."""
    seconds = 60.0 * options.minutes
    with tempfile.TemporaryDirectory() as folder:
        workers = [
            Worker(name, command, Path(folder, f"{name}.log"))
            for name, command in commands(seconds, options.seed, options.training_python).items()
        ]
        found = watch(workers, seconds, WARM_UP)
    failures = sum(one["failures"] for one in found.values())
    return {"minutes": options.minutes, **found, "failures": failures}


def rows(figures: Figures) -> list[tuple[str, str, str]]:
    calls, minutes = figures["calls"], figures["minutes"]
    trained = {name: figures[name] for name in ("stock", "release") if name in figures}
    steps, checkpoints = (
        sum(one[key] for one in trained.values()) for key in ("steps", "checkpoints")
    )
    memory = {name: figures[name]["memory_mib"] for name in ("calls", *trained)}
    wrong = sum(figures[name]["failures"] for name in trained)
    return [
        (
            "The same bits from any thread, layout and door, among errors and forks",
            f"{minutes:g} minutes of mixed calls from 8 threads",
            "{calls:,} calls, {errors_as_expected:,} errors as expected, {forks:,} forks, "
            "{failures} failures".format(**calls),
        ),
        (
            "Training goes on with the same bits, on both runtimes",
            f"{minutes:g} minutes of training with new trainers from checkpoints",
            f"{steps:,} steps, {checkpoints:,} checkpoints, {wrong} failures",
        ),
        (
            "Resident memory is flat",
            "the same processes: median of their last quarter less that of the first",
            ", ".join(
                f"{name} {of['growth']:+.1f} MiB of {of['start']:.0f}"
                for name, of in memory.items()
            ),
        ),
    ]
