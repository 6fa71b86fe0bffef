"""The wheels on each Python that is here, and on those given, such as free-threaded ones.

The wheel that `make wheels` built for it is installed into an environment of its own beside numpy,
where a part of the test suite runs: threads, signals, forks, sub-interpreters and the interpreter's
end, where Pythons differ most; arguments, errors and results. A free-threaded Python must keep its
GIL off.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

from reliability.bare import AGREES, LONG_TESTS, TEST_PACKAGES, TESTS
from reliability.pytests import run_pytest
from reliability.record import ROOT, Figures
from reliability.wheels import add_pythons, chosen_pythons, find_wheel, version_of

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


def try_python(python: str, wheel: Path, scratch: Path) -> Figures:
    """What was seen with this interpreter."""
    subprocess.run([python, "-m", "venv", str(scratch / "environment")], check=True)
    own = str(scratch / "environment" / "bin" / "python")
    # Nothing of what the tests need is to be compiled.
    install = [own, "-m", "pip", "install", "-q", "--only-binary=:all:"]
    subprocess.run([*install, str(wheel), *TEST_PACKAGES], check=True)
    subprocess.run([own, "-c", AGREES], cwd=scratch, check=True)
    said = subprocess.run([own, "-c", SEEN], cwd=scratch, stdout=subprocess.PIPE, check=True)
    seen: Figures = json.loads(said.stdout)
    files = [f"tests/{name}.py" for name in SHORT_TESTS]
    return {**seen, **run_pytest(files, python=[own], folder=scratch)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_pythons(parser)
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help="folder of the wheels")


def run(options: argparse.Namespace) -> Figures:
    """Each Python."""
    found = []
    pythons = chosen_pythons(options)
    if not pythons:
        raise SystemExit("no Python here has a wheel's version")
    for python in pythons:
        wheel = find_wheel(options.dist, version_of(python) or "none")
        if wheel is None:
            raise SystemExit(f"{options.dist} has no wheel for {python}: run make wheels first")
        with tempfile.TemporaryDirectory() as scratch:
            found.append(try_python(python, wheel, Path(scratch)))
    failures = sum(one["failed"] + (one["free_threaded"] and one["gil"]) for one in found)
    return {"pythons": found, "failures": failures}


def rows(figures: Figures) -> list[tuple[str, str, str]]:
    return [
        (
            f"Works on {'free-threaded ' if one['free_threaded'] else ''}Python {one['version']}"
            + (", whose GIL stays off" if one["free_threaded"] else ""),
            "threads, signals, forks, sub-interpreters, the interpreter's end; arguments, errors, "
            "results",
            "{passed} tests passed, {failed} failed".format(**one)
            + (", the GIL was on" if one["free_threaded"] and one["gil"] else ""),
        )
        for one in figures["pythons"]
    ]
