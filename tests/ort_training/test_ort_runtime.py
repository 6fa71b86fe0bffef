"""What must be installed, what is said where it is not; the gradient's registration; docstrings."""

from __future__ import annotations

import doctest
import importlib
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from trainings import Training, expected, shifted

import gce
from gce.onnx import ort_training
from gce.onnx.ort_training import _gradient, _runtime

RNG = np.random.default_rng(17)
MODULES = ["_artifacts", "_export", "_gradient", "_loss", "_prepare"]


def python(code: str, *path: Path, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    """Run it in a process of its own that has these folders before all others."""
    folders = [*map(str, path), str(Path(gce.__file__).parents[1])]
    return subprocess.run(
        [sys.executable, *options, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
        capture_output=True,
        text=True,
        check=False,
    )


def error_of(code: str, *path: Path) -> str:
    """The last line that it says before it fails."""
    ended = python(code, *path)
    assert ended.returncode == 1, ended.stderr
    return ended.stderr.strip().rpartition("\n")[2]


def without(name: str) -> str:
    return f"import sys; sys.modules[{name!r}] = None; from gce.onnx import ort_training"


# --- what must be installed -----------------------------------------------------------------------


def test_importing_gce_onnx_imports_no_runtime():
    ended = python(
        "import gce.onnx, sys; print({'onnxruntime', 'torch'} & set(sys.modules))",
        options=("-W", "error"),
    )
    assert ended.stdout == "set()\n" and not ended.stderr


def test_no_onnxruntime():
    said = error_of(without("onnxruntime"))
    assert said.startswith("ModuleNotFoundError: gce.onnx.ort_training needs the training release")
    assert "pip install onnxruntime-training-cpu==1.19.2 torch 'gamma-ce[onnx]'" in said
    assert "gce.onnx.training trains with the current onnxruntime" in said


@pytest.mark.parametrize(
    ("name", "install"), [("torch", "pip install torch"), ("onnx", "pip install 'gamma-ce[onnx]'")]
)
def test_what_training_needs_besides(name, install):
    said = error_of(without(name))
    assert said.startswith("ModuleNotFoundError: ")
    assert f"imports {name}, which is not installed: {install}" in said


def stock_runtime(folder: Path, version: str = "1.32.0", extension: str = "") -> Path:
    """A package as stock onnxruntime installs it: over the training release, or instead."""
    (folder / "onnxruntime" / "capi").mkdir(parents=True)
    (folder / "onnxruntime" / "__init__.py").write_text(f"__version__ = {version!r}\n")
    (folder / "onnxruntime" / "capi" / "__init__.py").touch()
    (folder / "onnxruntime" / "capi" / "_pybind_state.py").write_text(extension)
    return folder


def test_the_stock_runtime(tmp_path):
    said = error_of("from gce.onnx import ort_training", stock_runtime(tmp_path))
    assert said.startswith("ImportError: onnxruntime is 1.32.0, which cannot train (installed: ")
    assert "expected its training release, another distribution of the same package: " in said
    # All that is installed under that name, here the training release alone.
    assert ": pip uninstall onnxruntime-training" in said
    assert "then pip install onnxruntime-training-cpu==1.19.2" in said


def test_a_runtime_of_mixed_files(tmp_path):
    folder = stock_runtime(tmp_path, extension="from .onnxruntime_pybind11_state import missing\n")
    said = error_of("from gce.onnx import ort_training", folder)
    assert said.startswith("ImportError: onnxruntime cannot be imported (installed: ")


def test_what_onnxruntime_needs_is_its_own_affair(tmp_path):
    folder = stock_runtime(tmp_path, extension="import flatbuffers_of_onnxruntime\n")
    said = error_of("from gce.onnx import ort_training", folder)
    assert said == "ModuleNotFoundError: No module named 'flatbuffers_of_onnxruntime'"


def test_another_training_release():
    code = (
        "import onnxruntime; onnxruntime.__version__ = '1.18.0'; from gce.onnx import ort_training"
    )
    ended = python(code)
    assert ended.returncode == 0
    assert "UserWarning: onnxruntime is 1.18.0, expected 1.19, the only training" in ended.stderr


def test_a_python_without_a_training_release(monkeypatch):
    monkeypatch.setattr(_runtime.sys, "version_info", (3, 14, 0))
    assert "(in Python 3.12 or older: there is none for 3.14)" in _runtime._how_to_install()
    monkeypatch.setattr(_runtime.sys, "version_info", (3, 12, 9))
    assert "older" not in _runtime._how_to_install()


def test_the_limits_are_those_of_the_runtime():
    """The first versions that it does not read."""
    assert onnxruntime.__version__.startswith("1.19.")
    forward = shifted((7, 5))
    for attribute, newest, message in [
        ("ir_version", _runtime.MAX_IR_VERSION, "Unsupported model IR version"),
        ("opset", _runtime.MAX_OPSET, "till opset"),
    ]:
        for version in (newest, newest + 1):
            if attribute == "opset":
                forward.opset_import[0].version = version
            else:
                forward.ir_version = version
            model = forward.SerializeToString()
            if version == newest:
                onnxruntime.InferenceSession(model)
                continue
            with pytest.raises(Exception, match=message):
                onnxruntime.InferenceSession(model)
        forward = shifted((7, 5))


# --- registration ---------------------------------------------------------------------------------


def train_once(folder: Path) -> None:
    training = Training(folder, shifted((7, 5)), ["P"], ort_training.GammaCrossEntropyLoss())
    x, labels = RNG.normal(size=(7, 5)).astype(np.float32), RNG.integers(0, 5, size=7)
    _, gradients = training.loss_and_gradients(x, labels, np.array(0.5))
    assert np.array_equal(gradients["P"], expected(x, labels, np.array(0.5))[1])


class Counting:
    """The runtime's extension module, counting registrations."""

    def __init__(self) -> None:
        self.count = 0

    def register_gradient_definition(self, key: str, nodes: Any) -> None:
        assert key == "ai.gce::GammaCrossEntropyLoss"
        self.count += 1
        _runtime.native.register_gradient_definition(key, nodes)

    def __getattr__(self, name: str) -> Any:
        return getattr(_runtime.native, name)


def test_the_gradient_is_registered_once_by_many_threads(tmp_path, monkeypatch):
    native = Counting()
    monkeypatch.setattr(_gradient, "native", native)
    ort_training.register_gradient()
    assert native.count == 0  # importing the module did it
    monkeypatch.setattr(_gradient, "_registered", False)
    start = threading.Barrier(8)

    def register() -> None:
        start.wait()
        ort_training.register_gradient()

    threads = [threading.Thread(target=register) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert native.count == 1
    train_once(tmp_path)


def test_a_second_import_registers_the_same_again(tmp_path, monkeypatch):
    """The runtime's table is of the process, and takes the same definition twice."""
    for name in [name for name in sys.modules if name.startswith("gce.onnx.ort_training")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(gce.onnx, "ort_training")
    again = importlib.import_module("gce.onnx.ort_training")
    assert again is not ort_training
    train_once(tmp_path)
    loss = again.GammaCrossEntropyLoss()
    again.generate_artifacts(shifted((7, 5)), ["P"], loss=loss, artifact_directory=tmp_path)


# --- docstrings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    module = importlib.import_module(f"gce.onnx.ort_training.{name}")
    found = doctest.testmod(module)
    assert not found.failed
    assert found.attempted or name == "_export"  # shown by generate_artifacts


def test_all_is_documented():
    for name in ort_training.__all__:
        item = getattr(ort_training, name)
        sections = set(re.findall(r"^ *(\w[\w ]*)\n *-{3,}$", item.__doc__, re.MULTILINE))
        assert "Examples" in sections
        if name != "register_gradient":
            assert "Parameters" in sections
        if name not in ("register_gradient", "session_options"):
            assert "Raises" in sections
