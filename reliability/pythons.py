"""The package on other Pythons: each that is here, and those given, such as free-threaded ones.

For each a wheel is built as `make wheels` builds it, and installed into an environment of its own
beside numpy, where a part of the test suite runs: threads, signals, forks,
sub-interpreters and the interpreter's end, where Pythons differ most; arguments, errors and
results. A free-threaded Python must keep its GIL off.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path

from reliability.bare import AGREES, LONG_TESTS, TEST_PACKAGES, TESTS
from reliability.pytests import run_pytest
from reliability.record import Figures
from reliability.wheels import build_sdist, build_wheel, find_pythons

SHORT_TESTS = (
    *("test_concurrency", "test_signals", "test_determinism", "test_binary_calls"),
    *(name for name in TESTS if name not in LONG_TESTS),
)
# Asked when the package is imported: that is what turns the GIL on.
SEEN = """
import json, sys, sysconfig, gce
print(json.dumps({
    "version": "%d.%d.%d" % sys.version_info[:3],
    "free_threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    "gil": getattr(sys, "_is_gil_enabled", lambda: True)(),
}))
"""


def try_python(python: str, sdist: Path, scratch: Path) -> Figures:
    """What was seen with this interpreter."""
    wheel = build_wheel(python, sdist, scratch)
    subprocess.run([python, "-m", "venv", str(scratch / "environment")], check=True)
    own = str(scratch / "environment" / "bin" / "python")
    # Nothing of what the tests need is to be compiled.
    install = [own, "-m", "pip", "install", "-q", "--only-binary=:all:"]
    subprocess.run([*install, str(wheel), *TEST_PACKAGES], check=True)
    subprocess.run([own, "-c", AGREES], cwd=scratch, check=True)
    said = subprocess.run([own, "-c", SEEN], cwd=scratch, stdout=subprocess.PIPE, check=True)
    seen: Figures = json.loads(said.stdout)
    # Not the package beside the tests; Python 3.10, which does not know this, imports that.
    safe = os.environ | {"PYTHONSAFEPATH": "1"}
    return {**seen, **run_pytest([f"tests/{name}.py" for name in SHORT_TESTS], safe, [own])}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "pythons", nargs="*", metavar="PYTHON", help="default: one of each version that is here"
    )
    parser.add_argument("--also", nargs="*", default=[], metavar="PYTHON", help="beside those")


def run(options: argparse.Namespace) -> Figures:
    """Each Python."""
    found = []
    with tempfile.TemporaryDirectory() as name:
        sdist = build_sdist(Path(name))
        for python in [*(options.pythons or find_pythons()), *options.also]:
            with tempfile.TemporaryDirectory() as scratch:
                found.append(try_python(python, sdist, Path(scratch)))
    failures = sum(one["failed"] + (one["free_threaded"] and one["gil"]) for one in found)
    return {"pythons": found, "failures": failures}


def rows(figures: Figures) -> list[tuple[str, str, str]]:
    return [
        (
            f"Works on {'free-threaded ' if one['free_threaded'] else ''}Python {one['version']}"
            + (", whose GIL stays off" if one["free_threaded"] else ""),
            "threads, signals, forks, sub-interpreters, the interpreter's end; arguments, errors, "
            "results, with a wheel built for it",
            "{passed} tests passed, {failed} failed".format(**one)
            + (", the GIL was on" if one["free_threaded"] and one["gil"] else ""),
        )
        for one in figures["pythons"]
    ]
