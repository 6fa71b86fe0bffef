"""What targets in Python share: a package that tells the fuzzer what is covered, and how to run.

Atheris brings libFuzzer with AddressSanitizer and UndefinedBehaviorSanitizer in one library, which
has to be the process's first. The package's libraries are compiled for it by Clang.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from reliability import libfuzzer, sanitize
from reliability.fuzz.tally import Tally
from reliability.record import ROOT, Figures

SANITIZERS = "fuzzer-no-link,address,undefined,float-cast-overflow"
ASAN = "detect_leaks=0:allocator_may_return_null=1"  # an interpreter keeps what it has at its end
# Its limit of a single allocation would take a MemoryError for a finding.
FLAGS = ("-len_control=0", "-malloc_limit_mb=2147483647", "-rss_limit_mb=4096")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What each check that fuzzes takes, and an input to try again."""
    libfuzzer.add_arguments(parser)
    parser.add_argument("--replay", type=Path, help="try the input in this file, and nothing else")


def target(name: str, script: str, max_len: int) -> libfuzzer.Target:
    """The script of reliability/fuzz as a target, on a package that is built for it."""
    try:
        import atheris
    except ModuleNotFoundError as error:
        raise SystemExit("atheris is not installed: pip install --group fuzz") from error
    compiler = os.environ.get("GCE_FUZZ_CXX", "clang++")
    if shutil.which(compiler) is None:
        raise SystemExit(f"{compiler} is not installed; GCE_FUZZ_CXX names another Clang")
    package = sanitize.build("fuzz", SANITIZERS, {"CC": compiler, "CXX": compiler})
    engine = Path(atheris.path(), "asan_with_fuzzer.so")
    # -P: not the modules beside the script. The package comes before the checkout's own.
    program = str(ROOT / "reliability" / "fuzz" / script)
    folders = [package, ROOT, ROOT / "tests" / "onnx_ops"]
    counts = ROOT / "build" / "fuzz" / name / "counts"
    return libfuzzer.Target(
        name,
        (sys.executable, "-P", program, str(counts)),
        (f"-max_len={max_len}", *FLAGS),
        {
            "LD_PRELOAD": f"{engine} {sanitize.runtime('libstdc++.so.6')}",
            "ASAN_OPTIONS": ASAN,
            "UBSAN_OPTIONS": "print_stacktrace=1",
            "PYTHONPATH": os.pathsep.join(map(str, folders)),
            "OPENBLAS_NUM_THREADS": "1",
        },
    )


def counts_of(target: libfuzzer.Target) -> Path:
    """The file that the target counts in."""
    return Path(target.command[-1])


def begin(target: libfuzzer.Target) -> None:
    """Count from 0."""
    counts_of(target).parent.mkdir(parents=True, exist_ok=True)
    counts_of(target).unlink(missing_ok=True)


def tally(target: libfuzzer.Target, names: Sequence[str]) -> Figures:
    """What the target has counted."""
    return Tally(counts_of(target), names).figures()


def keep(target: libfuzzer.Target) -> int:
    """Keep what is new, after the tally is read, as this runs all of it; the files there are."""
    libfuzzer.keep(target)
    return len(list(target.corpus.iterdir()))


def replay(target: libfuzzer.Target, path: Path) -> NoReturn:
    """Show what comes of one input, and record nothing."""
    begin(target)
    code, said = libfuzzer.call(target, [*target.command, *target.flags, str(path.resolve())])
    print(said, flush=True)
    raise SystemExit(code)
