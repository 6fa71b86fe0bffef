"""The checks, by name, and what each one is to the command line and to the report."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple

from reliability import (
    accuracy,
    allocations,
    artifacts,
    bare,
    fuzz_c_abi,
    fuzz_onnx,
    fuzz_python,
    kills,
    limits,
    pythons,
    sanitize,
    soak,
)
from reliability.record import Figures


class Check(NamedTuple):
    """One check; its module's docstring says what it does."""

    doc: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    # What was found; its `failures` is how many things went wrong: the exit code is 1 if any did.
    run: Callable[[argparse.Namespace], Figures]
    # Lines of RELIABILITY.md: promise, how it is tested, last figures.
    rows: Callable[[Figures], list[tuple[str, str, str]]]


CHECKS = {
    module.__name__.rpartition(".")[2]: Check(
        module.__doc__ or "", module.add_arguments, module.run, module.rows
    )
    for module in (
        accuracy,
        limits,
        allocations,
        fuzz_c_abi,
        fuzz_python,
        fuzz_onnx,
        sanitize,
        soak,
        kills,
        artifacts,
        bare,
        pythons,
    )
}
