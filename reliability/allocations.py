"""Calls of every kind, in which one allocation after the other fails; threads that cannot be had.

Each must end as a MemoryError (or succeed where it can do without), write to no output, leak
nothing, and leave the next call with the bits that it always has; the process must live. One
process for each kind of call (`faulted_calls`), with tests/native/faults.c preloaded: what fails is
any allocation of gce, numpy and Python that a call makes, and for the operators of ONNX Runtime,
XLA and PyTorch, and for shards, those of gce's own library. It takes a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from reliability.chosen import chosen
from reliability.record import ROOT, Figures

SOURCE = ROOT / "tests" / "native" / "faults.c"
FLAGS = ("-std=c11", "-O1", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", "-pedantic")
SECONDS = 300  # a call that waits for ever
# What is no failure, of what a process counts.
HARMLESS = {"faults", "done", "error"}
DOORS = ("operator", "torch", "jax")


def names() -> list[str]:
    from reliability.faulted_calls import KINDS

    return list(KINDS)


def build_shim(folder: Path) -> Path:
    """The preloaded library, compiled."""
    shim = folder / "faults-shim.so"  # the name by which it knows itself
    command = [
        os.environ.get("CC", "gcc"),
        *FLAGS,
        str(SOURCE),
        "-o",
        str(shim),
        "-ldl",
        "-pthread",
    ]
    subprocess.run(command, check=True)
    return shim


def inject(kind: str, shim: Path) -> Figures:
    """What a process counted; `crashes` is 1 if it did not live to tell."""
    environment = os.environ | {
        "LD_PRELOAD": str(shim),
        "PYTHONMALLOC": "malloc",  # each object of Python's is an allocation that can fail
        "OPENBLAS_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "reliability.faulted_calls", kind]
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"crashes": 1, "said": [f"no end after {SECONDS} s"]}
    if done.returncode != 0:
        return {"crashes": 1, "said": [f"exit code {done.returncode}", *done.stderr.splitlines()]}
    seen: Figures = json.loads(done.stdout)
    if not seen.get("faults"):
        seen["nothing failed"] = 1
    return {what: count for what, count in seen.items() if count}


def failures_of(seen: Figures) -> int:
    """How many things went wrong."""
    wrong = {what: count for what, count in seen.items() if what not in HARMLESS}
    return sum(count for count in wrong.values() if isinstance(count, int))


def inject_all(kinds: Iterable[str]) -> Figures:
    """Of each kind what was seen, and the sums."""
    with tempfile.TemporaryDirectory() as folder:
        shim = build_shim(Path(folder))
        found = {kind: inject(kind, shim) for kind in kinds}
    return {
        "kinds": found,
        "faults": sum(seen.get("faults", 0) for seen in found.values()),
        "memory_errors": sum(seen.get("error", 0) for seen in found.values()),
        "completed": sum(seen.get("done", 0) for seen in found.values()),
        "crashes": sum(seen.get("crashes", 0) for seen in found.values()),
        "leaked": sum(seen.get("leaked", 0) for seen in found.values()),
        "failures": sum(map(failures_of, found.values())),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kinds", nargs="*", metavar="KIND", help="default: all")


def run(options: argparse.Namespace) -> Figures:
    return inject_all(chosen(options.kinds, names()))


def rows(figures: Figures) -> list[tuple[str, str, str]]:
    return [
        (
            "Memory that cannot be allocated is a MemoryError: nothing leaks, nothing is written, "
            "and the next call gives the bits that it always gives",
            f"each allocation of {len(figures['kinds'])} kinds of call made to fail (each of gce's "
            "own where another library calls), alone and with those behind it; of numpy's face in "
            "a process's first call too; threads that cannot be made",
            "{faults} faults injected, {memory_errors} errors, {completed} calls done "
            "nevertheless, {crashes} crashes, {leaked} blocks leaked, {failures} failures".format(
                **figures
            ),
        )
    ]
