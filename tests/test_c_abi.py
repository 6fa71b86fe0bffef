"""The C ABI without Python: the header in C and C++, a host program in C with its own threads."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest

from engines import C11, NATIVE_TESTS, ROOT, STRICT, build_emulated, build_program
from support import require

HEADER = ROOT / "native" / "include" / "gce" / "gce.h"


def run(command, **options):
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, **options
    )


@pytest.mark.parametrize("compiler", ["gcc", "g++", "clang", "clang++"])
@pytest.mark.parametrize("language", ["c11", "c++17"])
def test_header_compiles_alone_without_warnings(compiler, language):
    require(shutil.which(compiler), f"{compiler} is not installed")
    flags = C11 if language == "c11" else ("-xc++", "-std=c++17", *STRICT)
    source = '#include "gce/gce.h"\n#include "gce/gce.h"\nint main(void) { return GCE_OK; }\n'
    include = f"-I{HEADER.parent.parent}"
    done = run([compiler, *flags, include, "-fsyntax-only", "-"], input=source)
    assert done.returncode == 0, done.stderr


def test_program_uses_every_function():
    declared = set(re.findall(r"^GCE_API .*?\b(gce_\w+)\(", HEADER.read_text(), re.MULTILINE))
    assert len(declared) > 10
    program = (NATIVE_TESTS / "abi.c").read_text()
    assert {name for name in declared if not re.search(rf"\b{name}\(", program)} == set()


# The baseline alone: sanitizers look at the core's memory and threads, and compiling with them is
# slow. What each ISA reads and writes, tests/test_layouts.py sees.
BUILDS = {
    "plain": [],
    "address": [
        *("-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"),
        *("-UNDEBUG", "-D_GLIBCXX_ASSERTIONS"),
    ],
    "thread": ["-fsanitize=thread"],
}


def program_of(name, build, optimized="-O1"):
    """A program of tests/native, and the core."""
    flags = [optimized, *BUILDS[build]]
    main = NATIVE_TESTS / f"{name}.c"
    return build_program(f"{name}-{build}", main=main, isas=["baseline"], flags=flags)


@pytest.mark.parametrize("build", BUILDS)
def test_program(build):
    done = run([program_of("abi", build)])
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "on baseline\n"


IN_AN_EMULATOR = {"abi": "on neon\non baseline\n", "hostile": "", "habits": ""}


@pytest.mark.parametrize("name", IN_AN_EMULATOR)
def test_program_in_an_emulator(name):
    done = run(build_emulated(name, NATIVE_TESTS / f"{name}.c"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == IN_AN_EMULATOR[name]


@pytest.mark.skipif(sys.platform != "linux", reason="the allocator is glibc's")
def test_memory_that_cannot_be_allocated():
    done = run([program_of("out_of_memory", "plain")])
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("build", ["plain", "address"])
def test_program_that_gets_everything_wrong(build):
    # What no machine has is asked for, too.
    done = run([program_of("hostile", build)], env={"ASAN_OPTIONS": "allocator_may_return_null=1"})
    assert done.returncode == 0, done.stdout + done.stderr


# As a release is: what only an optimized build does, such as to drop stores of destructors, too.
@pytest.mark.skipif(sys.platform != "linux", reason="traps are set by a function of glibc's")
@pytest.mark.parametrize(("build", "optimized"), [("plain", "-O3"), ("address", "-O1")])
def test_program_with_habits_of_its_own(build, optimized):
    done = run([program_of("habits", build, optimized)])
    assert done.returncode == 0, done.stdout + done.stderr
