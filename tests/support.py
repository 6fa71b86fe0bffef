"""What several test modules need."""

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest


def require(condition: object, reason: str) -> None:
    """Skip the test unless `condition` holds; under ``GCE_REQUIRE_ALL=1``, as in CI, fail it.

    For what a machine can be given (a tool, a package), so that a skip there is an oversight. What
    it cannot be given, such as an ISA that its CPU lacks, is a plain ``pytest.skip``.
    """
    if condition:
        return
    if os.environ.get("GCE_REQUIRE_ALL") == "1":
        pytest.fail(f"{reason} (required by GCE_REQUIRE_ALL=1)")
    pytest.skip(reason)


def require_memory(gib: int) -> None:
    """Skip or fail the test, as `require` does, unless so many GiB are free."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except FileNotFoundError:
        pytest.skip("this system tells nothing in /proc")
    kib = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    require(kib >= gib * 2**20, f"{kib / 2**20:.1f} GiB are free, {gib} wanted")


def tool(name: str) -> Any:
    """A script of native/tools, imported."""
    path = Path(__file__).resolve().parent.parent / "native" / "tools" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
