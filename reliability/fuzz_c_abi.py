"""Fuzzing of the C ABI by libFuzzer: calls of which every byte is hostile.

The core is compiled with AddressSanitizer and UndefinedBehaviorSanitizer for every ISA of this
machine; fuzz/c_abi.cpp says what each call is held to. Needs Clang and its runtime libraries.
"""

from __future__ import annotations

import argparse
import os
import runpy
import shutil
from pathlib import Path

from reliability import libfuzzer
from reliability.record import ROOT, Figures

SANITIZERS = "address,undefined,float-cast-overflow"
FLAGS = (
    *(f"-fsanitize=fuzzer,{SANITIZERS}", "-fno-sanitize-recover=all"),
    *("-UNDEBUG", "-D_GLIBCXX_ASSERTIONS", "-fno-omit-frame-pointer", "-O1", "-g1"),
    # These make compiling the kernels several times as long; AddressSanitizer sees what they would.
    "-fno-sanitize=null,object-size,pointer-overflow",
)
# What is covered is told of the core alone.
OWN_FLAGS = ("-fno-sanitize-coverage=edge,inline-8bit-counters,pc-table,trace-cmp,indirect-calls",)
# For memory that the core asks for and does not get.
ENVIRONMENT = {
    "ASAN_OPTIONS": "allocator_may_return_null=1:max_allocation_size_mb=512:detect_leaks=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}
LIBFUZZER = (
    *("-max_len=512", "-len_control=0", "-malloc_limit_mb=1024"),
    "-entropic_scale_per_exec_time=1",  # large calls take long and find little
)


def build() -> Path:
    """The fuzzer's program."""
    compiler = os.environ.get("GCE_FUZZ_CXX", "clang++")
    if shutil.which(compiler) is None:
        raise SystemExit(f"{compiler} is not installed; GCE_FUZZ_CXX names another Clang")
    programs = runpy.run_path(str(ROOT / "native" / "tools" / "programs.py"))
    program: Path = programs["build_program"](
        "fuzz_c_abi",
        sources=sorted((ROOT / "reliability" / "fuzz").glob("*.cpp")),
        compiler=compiler,
        flags=FLAGS,
        source_flags=OWN_FLAGS,
        link_flags=["-Wl,--wrap=aligned_alloc"],
    )
    return program


def add_arguments(parser: argparse.ArgumentParser) -> None:
    libfuzzer.add_arguments(parser)


def run(options: argparse.Namespace) -> Figures:
    """The target's figures."""
    target = libfuzzer.Target("c_abi", (str(build()),), LIBFUZZER, ENVIRONMENT)
    figures = libfuzzer.fuzz(target, options)
    return {**figures, "failures": len(figures["findings"])}


def rows(figures: Figures) -> list[tuple[str, str, str]]:
    return [
        (
            "No call of the C ABI crashes, whatever its bytes: it works, or fails with a message "
            "and nothing written",
            "libFuzzer with AddressSanitizer and UndefinedBehaviorSanitizer, on every ISA",
            libfuzzer.text(figures),
        )
    ]
