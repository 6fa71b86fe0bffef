"""Tests of the native code under sanitizers: the whole suite, and threads.

``address`` is AddressSanitizer and UndefinedBehaviorSanitizer over the whole suite, ``thread``
ThreadSanitizer over the concurrency tests, both with the C++ library's assertions on, each built in
build/sanitize/. The interpreter is not instrumented, so the sanitizer's runtime is loaded before
it, and the C++ library, whose exceptions the runtime hands on. A report of the first ends the run.
Leaks are not looked for, since an interpreter keeps what it has at its end.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from reliability.record import ROOT, Figures


class Variant(NamedTuple):
    """One build: what -fsanitize= is given, the runtime to preload, and what is run on it."""

    sanitizers: str
    runtime: str
    options: str  # the variable of its options, and those besides log_path
    tests: tuple[str, ...]  # arguments of pytest


# Not in an emulator, whose programs know nothing of the build; nor the sanitizers' own programs.
IN_PROCESS = "not neon and not aarch64"
CORE_TESTS = (
    *("any_options", "binary", "binary_calls", "errors", "hvp", "ieee", "label_smoothing"),
    *("layouts", "options", "out", "probabilities", "shards", "shift", "softcap", "stats"),
    *("ufuncs", "z_loss"),
)
# Those that measure memory, or count threads, of which the sanitizer has one.
UNLIKE = "not memory and not large_calls_use_the_pool"
# glibc gives the thread-local memory of a thread that has ended to a new one, under a lock that is
# its own, which ThreadSanitizer does not see.
SUPPRESSIONS = "race:_dl_deallocate_tls\n"

VARIANTS = {
    "address": Variant(
        "address,undefined,float-cast-overflow",
        "libasan.so",
        "ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1",
        ("-k", IN_PROCESS, *(f"tests/test_{name}.py" for name in CORE_TESTS)),
    ),
    "thread": Variant(
        "thread",
        "libtsan.so",
        "TSAN_OPTIONS=die_after_fork=0",
        ("-k", f"{IN_PROCESS} and {UNLIKE}", "tests/test_concurrency.py"),
    ),
}


def build(name: str) -> Path:
    """The folder of the package that `name` builds."""
    base = ROOT / "build" / "sanitize" / name
    environment = {**os.environ, "GCE_SANITIZE": VARIANTS[name].sanitizers}
    package = base / "lib"
    command = ["setup.py", "-q", "build", "--build-base", str(base), "--build-lib", str(package)]
    subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, check=True)
    return package


def runtime(library: str) -> str:
    """Path of the compiler's own runtime, which has to be the process's first library."""
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    asked = [*compiler, f"-print-file-name={library}"]
    path = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    if not Path(path).is_file():
        raise SystemExit(f"{compiler[0]} has no {library}")
    return path


def run_tests(name: str, arguments: list[str]) -> Figures:
    """What pytest and the sanitizer said of the build of `name`."""
    variant = VARIANTS[name]
    package = build(name)
    reports = package.parent / "reports"
    shutil.rmtree(reports, ignore_errors=True)
    reports.mkdir()
    suppressions = package.parent / "suppressions"
    suppressions.write_text(SUPPRESSIONS if name == "thread" else "")
    variable, _, options = variant.options.partition("=")
    environment = {
        **os.environ,
        # Into files: what pytest catches is lost when the process ends.
        variable: f"{options}:log_path={reports / name}:suppressions={suppressions}",
        "UBSAN_OPTIONS": f"print_stacktrace=1:log_path={reports / 'undefined'}",
        "LD_PRELOAD": f"{runtime(variant.runtime)} {runtime('libstdc++.so.6')}",
        "PYTHONPATH": str(package),
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONMALLOC": "malloc",  # what Python allocates gets guards of its own
    }
    # Or the tests would be those of another build.
    seen = f"import gce._native as n; assert n.__file__.startswith({str(package)!r}), n.__file__"
    subprocess.run([sys.executable, "-c", seen], env=environment, cwd=package, check=True)
    tests = arguments or list(variant.tests)
    print(f"--- {name}: pytest {shlex.join(tests)}", flush=True)
    # -P: not the package beside the tests.
    results = package.parent / "results.xml"
    command = [sys.executable, "-P", "-m", "pytest", "-p", "no:cacheprovider"]
    command += [f"--junitxml={results}", *tests]
    results.unlink(missing_ok=True)
    code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    written = sorted(reports.iterdir())
    for report in written:
        print(report.read_text(errors="replace"))
    found = counts(results) if results.exists() else {"failed": 1}
    found["reports"] = len(written)
    found["failures"] = max(found["failed"] + len(written), 1 if code else 0)
    return found


def counts(results: Path) -> Figures:
    """How many tests passed, failed and were skipped, by pytest's own file."""
    suite = ElementTree.parse(results).getroot()[0].attrib
    skipped, failed = int(suite["skipped"]), int(suite["failures"]) + int(suite["errors"])
    passed = int(suite["tests"]) - skipped - failed
    return {"passed": passed, "failed": failed, "skipped": skipped}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("variants", nargs="*", metavar="|".join(VARIANTS), help="default: all")
    parser.add_argument("--pytest", default="", help="arguments of pytest in place of the suite's")


def run(options: argparse.Namespace) -> Figures:
    """Both variants, or those asked for."""
    chosen = options.variants or list(VARIANTS)
    if unknown := set(chosen) - set(VARIANTS):
        raise SystemExit(f"{sorted(unknown)}: expected {' or '.join(VARIANTS)}")
    found = {name: run_tests(name, shlex.split(options.pytest)) for name in chosen}
    return {**found, "failures": sum(one["failures"] for one in found.values())}


def rows(figures: Figures) -> list[tuple[str, str, str]]:
    what = {
        "address": (
            "No byte is read or written outside of an array or of scratch; nothing undefined",
            "the test suite on a build with AddressSanitizer and UndefinedBehaviorSanitizer",
        ),
        "thread": (
            "Threads of one call, and calls of many threads, do not race",
            "the concurrency tests on a build with ThreadSanitizer",
        ),
    }
    return [
        (*what[name], "{passed} tests passed, {failed} failed, {reports} reports".format(**found))
        for name, found in figures.items()
        if name in what
    ]
