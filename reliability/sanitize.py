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
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from reliability import processes
from reliability.chosen import chosen
from reliability.pytests import run_pytest
from reliability.record import ROOT, Figures


class Variant(NamedTuple):
    """One build: what -fsanitize= is given, the runtime to preload, and what is run on it."""

    sanitizers: str
    runtime: str
    options: str  # the variable of its options, and those besides log_path
    tests: tuple[str, ...]  # arguments of pytest


# What is no test of this build: programs of their own (in an emulator, under valgrind, built with
# sanitizers by the test), what the users' build looks like, and speed.
OTHERS = (
    *("test_bench", "test_bench_suite", "test_build", "test_c_abi", "test_instructions"),
    *("test_reliability_kills", "test_reliability_soak", "onnx_ops/test_abi"),
)
# Those that measure memory or time, or count threads, of which the sanitizer has one.
UNLIKE = (
    *("neon", "aarch64", "memory_does_not_grow", "takes_no_memory", "needs_more_memory"),
    *("import_takes", "large_calls_use_the_pool", "2_to_the_31"),
    "scores_that_no_memory_holds",  # the runtime's operator new is the sanitizer's, which ends all
    # A library needs the sanitizer's; a thread that is unwound by pthread_exit confuses it.
    *("needs_the_cpp_runtime", "in_python_code_of_a_call_at_the_end"),
    # The child waits for ever for a lock of the sanitizer's allocator that a thread had (GCC < 14).
    "forked_during_a_call_of_another_thread",
)
LEFT_OUT = (
    *("-k", " and ".join(f"not {name}" for name in UNLIKE)),
    *(f"--ignore=tests/{name}.py" for name in OTHERS),
)
TOGETHER = ("-n", "auto", "--dist", "loadgroup")  # on each CPU a part of the suite
# glibc gives the thread-local memory of a thread that has ended to a new one, under a lock that is
# its own, which ThreadSanitizer does not see.
SUPPRESSIONS = "race:_dl_deallocate_tls\n"

VARIANTS = {
    "address": Variant(
        "address,undefined,float-cast-overflow",
        "libasan.so",
        "ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1",
        (*LEFT_OUT, *TOGETHER, "tests"),
    ),
    "thread": Variant(
        "thread",
        "libtsan.so",
        "TSAN_OPTIONS=die_after_fork=0",
        (*LEFT_OUT, "tests/test_concurrency.py"),
    ),
}


def build(name: str, sanitizers: str, compiler: dict[str, str] | None = None) -> Path:
    """The folder of the package that is built with these; the compiler's variables may be given."""
    base = ROOT / "build" / "sanitize" / name
    environment = {**os.environ, **(compiler or {}), "GCE_SANITIZE": sanitizers}
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


def run_tests(name: str, tests: Sequence[str], python: str = sys.executable) -> Figures:
    """What pytest and the sanitizer said of the build of `name`."""
    variant = VARIANTS[name]
    package = build(name, variant.sanitizers)
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
        "PYTHONPATH": f"{package}{os.pathsep}{ROOT}",  # the latter for what tests import
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONMALLOC": "malloc",  # what Python allocates gets guards of its own
    }
    # Or the tests would be those of another build.
    seen = f"import gce._native as n; assert n.__file__.startswith({str(package)!r}), n.__file__"
    subprocess.run([python, "-c", seen], env=environment, cwd=package, check=True)
    print(f"--- {name}: pytest {shlex.join(tests)}", flush=True)
    found = run_pytest(tests, environment, [python], package)
    said = [report.read_text(errors="replace") for report in sorted(reports.iterdir())]
    # Not what it says of memory that was asked for and is not there.
    found_reports = [text for text in said if "SUMMARY:" in text or "runtime error:" in text]
    print(*found_reports, sep="\n")
    return {**found, "reports": len(found_reports)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("variants", nargs="*", metavar="|".join(VARIANTS), help="default: all")
    parser.add_argument("--pytest", default="", help="arguments of pytest in place of the suite's")
    parser.add_argument("--training-python", help="a Python with onnxruntime-training-cpu 1.19.2")


def run(options: argparse.Namespace) -> Figures:
    """Both variants, or those asked for."""
    variants = chosen(options.variants, VARIANTS)
    arguments = shlex.split(options.pytest)
    found = {name: run_tests(name, arguments or VARIANTS[name].tests) for name in variants}
    if "address" in variants and not arguments:
        pythons = processes.training_pythons(sys.executable, options.training_python)
        if "release" in pythons:
            os.environ.setdefault("GCE_STOCK_PYTHON", sys.executable)
            tests = [*LEFT_OUT, "tests/ort_training"]
            release = str(Path(pythons["release"]).absolute())
            found["training"] = run_tests("address", tests, release)
    failures = sum(one["failed"] + one["reports"] for one in found.values())
    return {**found, "failures": failures}


def rows(figures: Figures) -> list[tuple[str, str, str]]:
    what = {
        "address": (
            "No byte is read or written outside of an array or of scratch; nothing undefined",
            "the test suite on a build with AddressSanitizer and UndefinedBehaviorSanitizer, but "
            "for tests of memory and of programs with builds of their own",
        ),
        "training": (
            "The same in ONNX Runtime's training release",
            "its tests on that build",
        ),
        "thread": (
            "Threads of one call, and calls of many threads, do not race",
            "the concurrency tests on a build with ThreadSanitizer",
        ),
    }
    return [
        (
            *what[name],
            "{passed} tests passed, {failed} failed, {skipped} skipped, {reports} reports".format(
                **found
            ),
        )
        for name, found in figures.items()
        if name in what
    ]
