"""The limits: the parts of the test suite that go to them, and how many tests passed.

Arrays of every kind and size in every argument of every function; what happens to the process
around a call; hosts in C and C++ that give the C ABI anything.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

from reliability.chosen import chosen
from reliability.pytests import run_pytest
from reliability.record import Figures


class Part(NamedTuple):
    """Files of tests, and what they are about."""

    promise: str
    how: str
    files: tuple[str, ...]


PARTS = {
    "arrays": Part(
        "Any array: right results, or an error that says what was wrong, with nothing written",
        "unaligned, read-only, backwards, of stride 0, byte-swapped, overlapping; no rows, one "
        "class, ten million, 2^31 elements and more, sizes whose product overflows, results that "
        "no memory has room for; in each argument of each function",
        ("test_extremes", "test_layouts", "test_out", "test_errors", "onnx_ops/test_op_limits"),
    ),
    "process": Part(
        "Whatever happens to the process, a call ends right or is refused with words",
        "signals, forks, other interpreters, daemon threads and calls at the interpreter's end, "
        "calls of many threads",
        ("test_signals", "test_concurrency"),
    ),
    "hosts": Part(
        "Hosts in C and C++ get results, or a message",
        "programs on the C ABI: threads of their own, hostile arguments, traps, roundings and "
        "flushing of their own, calls after a thread's end, memory that runs out; but for the last "
        "with sanitizers and in an emulator of AArch64 too; the operator in ONNX Runtime's C++ API",
        ("test_c_abi", "onnx_ops/test_abi", "onnx_ops/test_host"),
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("parts", nargs="*", metavar="|".join(PARTS), help="default: all")


def run(options: argparse.Namespace) -> Figures:
    """All parts, or those asked for."""
    found: Figures = {
        name: run_pytest([f"tests/{file}.py" for file in PARTS[name].files])
        for name in chosen(options.parts, PARTS)
    }
    return {**found, "failures": sum(one["failed"] for one in found.values())}


def rows(figures: Figures) -> list[tuple[str, str, str]]:
    said = "{passed} tests passed, {failed} failed, {skipped} skipped"
    return [
        (PARTS[name].promise, PARTS[name].how, said.format(**found))
        for name, found in figures.items()
        if name in PARTS
    ]
