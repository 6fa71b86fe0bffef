"""Every instruction set against 50 digits: those of this CPU, and NEON in an emulator.

The tests of accuracy run on each ISA that is compiled in, and on the core cross-compiled for
AArch64, with the same rows; the largest error of each result is noted as a share of what is
promised. Then a part of those tests that leave the choice to the library runs once more on each
ISA that this CPU has, forced by GCE_FORCE_ISA: values, threads, signals, the doors, the operator.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

from gce import _native
from reliability.pytests import run_pytest
from reliability.record import Figures

AGAINST_DIGITS = ("accuracy", "any_options", "binary", "label_smoothing", "z_loss")
FORCED = (
    *("isa", "concurrency", "docs", "properties", "presets", "schedules", "values_of_others"),
    *("options", "out", "errors", "signals", "torch_door", "examples"),
)
FORCED_DOORS = ("onnx_ops/test_op", "onnx_ops/test_models", "xla_ffi/test_jax_values")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-k", default="", help="only tests whose names contain this")


def files(names: tuple[str, ...]) -> list[str]:
    return [f"tests/test_{name}.py" for name in names]


def forced_files() -> list[str]:
    return [*files(FORCED), *(f"tests/{name}.py" for name in FORCED_DOORS)]


def run(options: argparse.Namespace) -> Figures:
    """The largest errors of each engine, and how many tests passed."""
    chosen = ["-k", options.k] if options.k else []
    with tempfile.TemporaryDirectory() as scratch:
        errors = Path(scratch, "errors.json")
        found = run_pytest([f"--errors={errors}", *chosen, *files(AGAINST_DIGITS)])
        largest = json.loads(errors.read_text(encoding="utf-8")) if errors.exists() else {}
    forced = {}
    for isa in _native.available_isas():
        forced[isa] = run_pytest([*chosen, *forced_files()], os.environ | {"GCE_FORCE_ISA": isa})
    return {
        "tests": found,
        "share_of_the_limit": largest,
        "forced": forced,
        "failures": found["failed"] + sum(one["failed"] for one in forced.values()),
    }


def rows(figures: Figures) -> list[tuple[str, str, str]]:
    worst = {
        engine: max(shares.items(), key=lambda item: item[1])
        for engine, shares in figures["share_of_the_limit"].items()
    }
    said = ", ".join(f"{engine} {share:.2f} ({what})" for engine, (what, share) in worst.items())
    digits = "{passed} tests passed, {failed} failed".format(**figures["tests"])
    forced = ", ".join(
        "{isa} {passed} passed, {failed} failed".format(isa=isa, **found)
        for isa, found in figures["forced"].items()
    )
    return [
        (
            "Loss and gradient are as near to the exact ones as the README says, on every ISA",
            f"the same rows on {', '.join(worst)}, against 50 digits; another machine's in an "
            "emulator",
            f"{digits}; the largest error as a share of the promised one: {said}",
        ),
        (
            "An ISA that is forced computes, refuses and survives what the best one does",
            "values, options, errors, threads, signals, the operator, torch and jax, with "
            "GCE_FORCE_ISA",
            forced,
        ),
    ]
