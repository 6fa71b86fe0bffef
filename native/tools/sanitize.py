"""Build the native code with sanitizers, in build/sanitize/, and run tests on it.

    python native/tools/sanitize.py [address|thread]... [-- arguments of pytest]

``address`` is AddressSanitizer and UndefinedBehaviorSanitizer, ``thread`` ThreadSanitizer, with the
assertions of the C++ library on. The interpreter is not instrumented, so the sanitizer's runtime is
loaded before it, and the C++ library, whose exceptions the runtime hands on. A report of the first
ends the run. Leaks are not looked for, since an interpreter keeps what it has at its end.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent


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


def run(name: str, arguments: list[str]) -> int:
    """Exit code of pytest with the build of `name`."""
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
    command = [sys.executable, "-P", "-m", "pytest", "-p", "no:cacheprovider", *tests]
    code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    for report in sorted(reports.iterdir()):
        print(report.read_text(errors="replace"))
        code = code or 1
    return code


def main() -> int:
    """0 if no test failed and no sanitizer reported."""
    words = sys.argv[1:]
    split = words.index("--") if "--" in words else len(words)
    chosen, arguments = words[:split] or list(VARIANTS), words[split + 1 :]
    if unknown := set(chosen) - set(VARIANTS):
        raise SystemExit(f"{sorted(unknown)}: expected {' or '.join(VARIANTS)}")
    return max([run(name, arguments) for name in chosen])


if __name__ == "__main__":
    sys.exit(main())
