"""What a call costs in instructions: unlike its time, the same on a busy machine.

valgrind's callgrind counts those of `gce_run` in ``tests/native/calls.cpp``. A count that leaves
its band is a regression, or an improvement to be written down here. valgrind knows no AVX-512.
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
    grad: bool = True
    dtype: str = "float32"


# Instructions for each logit, compiled with GCC 12.
COUNTS = {
    Call(4, 32000, grad=False): {"avx2": 2.30, "baseline": 10.46},
    Call(4, 32000): {"avx2": 3.29, "baseline": 12.62},
    Call(64, 1000): {"avx2": 3.91, "baseline": 13.66},
    Call(2048, 10): {"avx2": 16.12, "baseline": 45.00},
    Call(32, 10): {"avx2": 41.88, "baseline": 72.49},
    Call(2, 21, 1024): {"avx2": 12.78, "baseline": 37.07},
    Call(16, 1000, dtype="float64"): {"avx2": 10.61, "baseline": 44.09},
}
# Compilers of other versions choose and order instructions a little differently.
BAND = 0.15


def count(isa: str, call: Call, folder: Path) -> int:
    """Instructions that one call of gce_run executes on this ISA."""
    require(shutil.which("valgrind"), "valgrind is not installed")
    program = build_program("calls", main=NATIVE_TESTS / "calls.cpp")
    arguments = [call.rows, call.classes, call.inner, int(call.grad), call.dtype]
    done = subprocess.run(
        [
            "valgrind",
            "--tool=callgrind",
            "--toggle-collect=gce_run",
            f"--callgrind-out-file={folder / 'callgrind.out'}",
            str(program),
            *map(str, arguments),
        ],
        env={**os.environ, "GCE_FORCE_ISA": isa},
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
