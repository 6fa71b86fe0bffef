"""The operator's library in a host without Python, and what the file depends on."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from op_models import runtime_version

import gce.onnx
from engines import ROOT, STRICT
from support import require

HERE = Path(__file__).parent
ELF = pytest.mark.skipif(sys.platform != "linux", reason="nm and readelf are asked about ELF")


def run(*command):
    """Return what `command` prints; if it fails, fail with what it said."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


# --- a host -------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def runtime_library() -> Path:
    """ONNX Runtime's shared library, from its Python package (which is not imported)."""
    spec = importlib.util.find_spec("onnxruntime")
    require(spec, "onnxruntime is not installed")
    assert spec and spec.origin
    folder = Path(spec.origin).parent / "capi"
    found = [*folder.glob("libonnxruntime.so.*"), *folder.glob("libonnxruntime.*.dylib")]
    is_training = (folder.parent / "training").exists()
    if not found and (runtime_version() < (1, 19) or is_training):
        pytest.skip("wheels before 1.19, and of training, have no library beside the module")
    assert found, "this onnxruntime has no shared library beside its module"
    return found[0]


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """host.cpp, compiled."""
    require(shutil.which("g++"), "g++ is not installed")
    program = tmp_path_factory.mktemp("host") / "host"
    flags = ("-std=c++17", "-O1", *STRICT, f"-I{ROOT / 'onnx_ops'}", "-pthread")
    run("g++", *flags, str(HERE / "host.cpp"), "-ldl", "-o", str(program))
    return program


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """One node, for a batch of any size."""
    require(importlib.util.find_spec("onnx"), "onnx is not installed")
    from host_model import write

    path = tmp_path / "loss.onnx"
    write(path)
    return path


def test_host_without_python(host, runtime_library, model):
    said = run(str(host), str(runtime_library), gce.onnx.library_path(), str(model))
    assert re.fullmatch(r"[1-9]\d* passed, 0 failed", said.splitlines()[-1]), said


def test_host_can_fail(host, runtime_library, tmp_path):
    """A missing model, runtime or library: in words, and with an exit code."""
    library, nothing = gce.onnx.library_path(), str(tmp_path / "nothing")
    for arguments in (
        (str(runtime_library), library, nothing),
        (str(runtime_library), nothing, nothing),
        (nothing, library, nothing),
    ):
        done = subprocess.run([host, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert "nothing" in done.stdout.splitlines()[-1]


# --- the file -----------------------------------------------------------------------------------


def dynamic_symbols(option: str) -> list[str]:
    require(shutil.which("nm"), "nm is not installed")
    lines = run("nm", "--portability", "--dynamic", option, gce.onnx.library_path()).splitlines()
    return [line.split()[0] for line in lines]


@ELF
def test_library_exports_one_function():
    assert dynamic_symbols("--defined-only") == ["RegisterCustomOps"]


@ELF
def test_library_takes_nothing_from_python_or_the_runtime():
    taken = dynamic_symbols("--undefined-only")
    assert len(taken) > 10
    assert [name for name in taken if re.match(r"_?Py|Ort|_ZNK?3Ort", name)] == []


# Compilers name some of these and not others.
MAY_NEED = r"(libstdc\+\+|libgcc_s|libc|libm|libpthread|ld-linux[-\w]*)\.so\.\d"


@ELF
def test_library_needs_the_cpp_runtime_alone():
    require(shutil.which("readelf"), "readelf is not installed")
    entries = run("readelf", "--dynamic", "--wide", gce.onnx.library_path())
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", entries)
    assert "libc.so.6" in needed
    assert [name for name in needed if not re.fullmatch(MAY_NEED, name)] == []
    # No folder of the machine that it was built on is searched.
    assert "RPATH" not in entries
    assert "RUNPATH" not in entries


def test_library_does_not_say_where_it_was_built():
    content = Path(gce.onnx.library_path()).read_bytes()
    assert b"targets" in content
    assert str(ROOT).encode() not in content
