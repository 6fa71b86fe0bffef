"""xla_ffi/ffi_abi.h says what XLA's own header says; the header is jaxlib's."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from engines import ROOT, STRICT
from support import require

HERE = Path(__file__).parent
ABI = ROOT / "xla_ffi" / "ffi_abi.h"


@pytest.fixture(scope="module")
def header_folder() -> str:
    require(importlib.util.find_spec("jax"), "jax is not installed")
    require(shutil.which("g++"), "g++ is not installed")
    import jax

    return jax.ffi.include_dir()


def compile_check(header_folder: str, our_folder: Path) -> subprocess.CompletedProcess[str]:
    # -fpermissive: XLA is compiled with Clang, and its header has fields of their types' names.
    command = ["g++", "-std=c++17", *STRICT, "-fpermissive", "-fsyntax-only"]
    command += ["-isystem", header_folder, f"-I{our_folder}", str(HERE / "abi_check.cpp")]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_abi_is_that_of_the_header(header_folder):
    done = compile_check(header_folder, ABI.parent)
    assert done.returncode == 0, done.stderr


# What the check must find: each is one thing that could be written down wrongly.
WRONG = {
    "a slot": ("X(11, ThreadPool_Schedule", "X(10, ThreadPool_Schedule"),
    "a constant": ("kU16 = 7", "kU16 = 6"),
    "a code": ("kInternal = 13", "kInternal = 12"),
    "a field's place": (
        "  int dtype;  // a DataType\n  void* data;",
        "  void* data;\n  int dtype;",
    ),
    "a field's size": ("  int64_t rank;", "  int rank;"),
    "a field that is missing": (
        "  Extension* extension_start;\n  Error* error;",
        "  Error* error;",
    ),
    "a constant that is not compared": ("kS8 = 2,", "kS8 = 2,\n  kC64 = 15,"),
    "an older version": ("kNewestMinorVersion = 3", "kNewestMinorVersion = -1"),
    "a table elsewhere": ("  [[maybe_unused]] const void* internal_api_;\n", ""),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_the_check_finds_what_is_wrong(header_folder, tmp_path, wrong):
    text = ABI.read_text(encoding="utf-8")
    right, mistake = WRONG[wrong]
    assert text.count(right) == 1
    (tmp_path / "ffi_abi.h").write_text(text.replace(right, mistake), encoding="utf-8")
    done = compile_check(header_folder, tmp_path)
    assert done.returncode != 0
    assert re.search(r"static assertion failed|not handled in switch|has no member", done.stderr)
