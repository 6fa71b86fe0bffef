"""What a call costs in instructions: unlike its time, the same on a busy machine.

valgrind's callgrind counts those of `gce_run` or `gce_binary_run` in ``tests/native/calls.cpp``. A
count that leaves its band is a regression, or an improvement to be written down here. valgrind
knows no AVX-512.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from engines import NATIVE_TESTS, build_program, skip_if_cpu_lacks
from support import require


class Call(NamedTuple):
    """Logits [rows, classes, inner]; inner = 1: the class axis last."""

    rows: int
    classes: int
    inner: int = 1
    what: str = "loss_and_grad"  # as calls.cpp knows it
    gamma: float = 0.5
    dtype: str = "float32"


# Instructions for each logit, as counted of what GCC 12 compiled.
COUNTS = {
    Call(4, 32000, what="loss"): {"avx2": 2.28, "baseline": 10.45},
    Call(4, 32000): {"avx2": 3.27, "baseline": 12.60},
    Call(64, 1000): {"avx2": 3.83, "baseline": 13.58},
    Call(2048, 10): {"avx2": 16.16, "baseline": 44.99},
    Call(32, 10): {"avx2": 35.06, "baseline": 65.96},
    Call(2, 21, 1024): {"avx2": 12.51, "baseline": 37.15},
    Call(16, 1000, dtype="float64"): {"avx2": 10.35, "baseline": 43.85},
    # What is computed in double: few classes, with the rows in lanes, and many.
    Call(512, 10, what="probabilities", gamma=0.0): {"avx2": 68.31, "baseline": 158.44},
    Call(8, 1000, what="probabilities", gamma=0.0): {"avx2": 25.35, "baseline": 76.93},
    Call(512, 10, what="probabilities"): {"avx2": 88.76, "baseline": 231.74},
    Call(8, 1000, what="probabilities"): {"avx2": 46.35, "baseline": 144.94},
    Call(512, 10, what="softcap"): {"avx2": 72.55, "baseline": 196.99},
    Call(8, 1000, what="softcap"): {"avx2": 28.54, "baseline": 102.04},
    Call(512, 10, what="hvp"): {"avx2": 78.80, "baseline": 178.61},
    Call(8, 1000, what="hvp"): {"avx2": 23.40, "baseline": 67.30},
    # Elementwise: the shape does not matter.
    Call(8, 1000, what="binary", gamma=0.0): {"avx2": 45.52, "baseline": 131.12},
    Call(8, 1000, what="binary"): {"avx2": 80.77, "baseline": 246.25},
}
# Compilers of other versions choose and order instructions a little differently.
BAND = 0.15


def count(isa: str, call: Call, folder: Path) -> int:
    """Instructions that one call executes on this ISA."""
    require(shutil.which("valgrind"), "valgrind is not installed")
    program = build_program("calls", main=NATIVE_TESTS / "calls.cpp")
    arguments = [call.what, call.rows, call.classes, call.inner, call.gamma, call.dtype]
    done = subprocess.run(
        [
            "valgrind",
            "--tool=callgrind",
            f"--toggle-collect={'gce_binary_run' if call.what == 'binary' else 'gce_run'}",
            f"--callgrind-out-file={folder / 'callgrind.out'}",
            str(program),
            *map(str, arguments),
        ],
        # Symbols are bound at the start: within the call that took 3000 instructions and more.
        env={**os.environ, "GCE_FORCE_ISA": isa, "LD_BIND_NOW": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == isa
    found = re.search(r"Collected : (\d+)", done.stderr)
    assert found, done.stderr
    return int(found[1])


@pytest.mark.parametrize("isa", ["avx2", "baseline"])
@pytest.mark.parametrize("call", COUNTS, ids=str)
def test_instructions(call, isa, tmp_path):
    if isa != "baseline":
        skip_if_cpu_lacks(isa)
    per_logit = count(isa, call, tmp_path) / (call.rows * call.classes * call.inner)
    expected = COUNTS[call][isa]
    assert per_logit == pytest.approx(expected, rel=BAND), f"{per_logit:.3f} instructions a logit"


def test_the_count_is_the_same_each_time(tmp_path):
    call = Call(64, 1000)
    assert count("baseline", call, tmp_path) == count("baseline", call, tmp_path)
