"""Trainings that are killed again and again, at random moments, and go on from their checkpoints.

On each runtime a training saves a checkpoint after each step, and is killed (SIGKILL; now and then
SIGTERM or SIGINT) at a moment drawn uniformly from its start to some steps later, so while it
loads, steps or saves, and started again, until it reaches its last step. Losses and parameters must
then have the bits of a training that nobody killed; each checkpoint found must be the last one or
the next; nothing may be left beside it in the end. Besides, checkpoints are written where there is
no room (/dev/full, a limit on files' sizes): an error, after which the old one is as it was.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile

from reliability import processes
from reliability.record import ROOT, Figures


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kills", type=int, default=200, help="on each runtime, default 200")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--training-python", help="a Python with onnxruntime-training-cpu 1.19.2")


def kill(way: str, python: str, kills: int, seed: int) -> Figures:
    """What the worker found, which says how far it is now and then."""
    command = [python, "-m", "reliability.workers.killed", way]
    command += ["--kills", str(kills), "--seed", str(seed)]
    figures: Figures = {}
    # The training release says what it does to each graph.
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=ROOT,
            env=processes.environment(),
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            figures = json.loads(line)
            counts = ", ".join(f"{figures[name]} {name}" for name in ("kills", "failures"))
            print(f"{way}: {counts}", flush=True)
        finished = figures.pop("done", False) and process.wait() == 0
        failures = figures.get("failures", 0) + (not finished)
        if failures:
            log.seek(0)
            print(f"--- {way}:\n{log.read()[-20000:]}", flush=True)
    return {**figures, "failures": failures}


def run(options: argparse.Namespace) -> Figures:
    """One runtime after the other."""
    pythons = processes.training_pythons(sys.executable, options.training_python)
    found = {way: kill(way, python, options.kills, options.seed) for way, python in pythons.items()}
    return {**found, "failures": sum(one["failures"] for one in found.values())}


def rows(figures: Figures) -> list[tuple[str, str, str]]:
    names = {"stock": "ONNX Runtime", "release": "its training release"}
    return [
        (
            f"A training that is killed goes on with the same bits ({names[way]})",
            "signals at random moments of load, step and save; writes that fail",
            "{kills} kills, {in_save} of them in a save, {trainings} trainings, {failed_writes} "
            "failed writes, {mismatches} mismatches, {leftovers} files left".format(**found),
        )
        for way, found in figures.items()
        if way in names
    ]
