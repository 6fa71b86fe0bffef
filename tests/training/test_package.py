"""The package as such: what importing it needs and says, and its documentation."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx_ad
import pytest

from gce.onnx import training
from gce.onnx.training import _requirements

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def import_again(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import the package as if it had not been imported yet; the old one comes back."""
    monkeypatch.delattr("gce.onnx.training")
    for name in [name for name in sys.modules if name.startswith("gce.onnx.training")]:
        monkeypatch.delitem(sys.modules, name)
    return importlib.import_module("gce.onnx.training")


# --- requirements ---------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["onnx_ad", "onnx", "onnxruntime", "ml_dtypes"])
def test_a_package_that_is_missing(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError) as raised:
        import_again(monkeypatch)
    assert raised.value.name == module
    assert str(raised.value) == (
        f"gce.onnx.training needs {module.replace('_ad', '-ad')}, which is not installed: "
        "pip install 'gamma-ce[training]' onnxruntime"
    )


def test_what_a_package_lacks_itself_is_another_error(monkeypatch, tmp_path):
    (tmp_path / "onnx_ad.py").write_text("import what_is_this\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnx_ad")
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'what_is_this'$"):
        import_again(monkeypatch)


@pytest.mark.parametrize("version", ["0.2.9", "0.3.1", "0.4.0", "0.3.0.dev1"])
def test_another_version_of_onnx_ad(monkeypatch, version):
    monkeypatch.setattr(onnx_ad, "__version__", version)
    with pytest.raises(ImportError) as raised:
        import_again(monkeypatch)
    assert str(raised.value) == (
        f"gce.onnx.training needs onnx-ad 0.3.0, found {version}: pip install 'gamma-ce[training]'"
    )


def test_it_can_be_imported_again(monkeypatch):
    again = import_again(monkeypatch)
    assert again is not training and again.SGD() is not None


def test_versions_are_those_of_the_extra():
    if not PYPROJECT.exists():
        pytest.skip("installed without pyproject.toml")
    text = PYPROJECT.read_text(encoding="utf-8")
    pins = re.findall(r'"onnx-ad([^"]*)"', text)
    assert pins and set(pins) == {f"=={_requirements.ONNX_AD}"}


def test_importing_gce_onnx_does_not_import_it():
    code = (
        "import sys, gce, gce.onnx; gce.onnx.attach_loss;"
        "print([name for name in ('gce.onnx.training', 'onnx_ad', 'onnxruntime')"
        " if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


# --- documentation: tests/test_docs.py runs the examples ------------------------------------------


def sections_of(item: Any) -> set[str]:
    return set(re.findall(r"^ *(\w[\w ]*)\n *-{3,}$", item.__doc__, re.MULTILINE))


def test_public_names_are_documented():
    needed = {
        "SGD": {"Parameters", "Raises", "Examples"},
        "AdamW": {"Parameters", "Raises", "Examples"},
        "Trainer": {"Parameters", "Attributes", "Raises", "Notes", "Examples"},
        "TrainingGraph": {"Attributes"},
        "training_graph": {"Parameters", "Returns", "Raises", "Examples"},
        "CheckpointError": set(),
        "UnsupportedOperator": set(),
    }
    assert set(needed) == set(training.__all__)
    for name, sections in needed.items():
        assert sections <= sections_of(getattr(training, name)), name


@pytest.mark.parametrize(
    "item", [training.training_graph, training.Trainer, training.SGD, training.AdamW]
)
def test_every_argument_is_documented(item):
    names = list(inspect.signature(item).parameters)
    documented = item.__doc__.partition("Parameters\n")[2].partition("Returns\n")[0]
    for name in names:
        assert re.search(rf"^ *(\w+, )*\**{name}\b(, \w+)*( :|$)", documented, re.MULTILINE), name


METHODS = ["step", "evaluate", "predict", "save", "load", "export"]


def test_methods_of_a_trainer_are_documented():
    public = {name for name, item in vars(training.Trainer).items() if name[0] != "_"}
    properties = {"steps", "grad_norm", "gamma", "learning_rate", "parameters"}
    assert public == {*METHODS, *properties}
    assert all(getattr(training.Trainer, name).__doc__ for name in properties)
    for name in METHODS:
        method = getattr(training.Trainer, name)
        sections = sections_of(method)
        assert {"Parameters", "Raises"} <= sections or name == "export"
        assert ("Returns" in sections) is (name != "save")
        for argument in list(inspect.signature(method).parameters)[1:]:
            pattern = rf"^ *(\w+, )*{argument}\b(, \w+)*( :|$)"
            assert re.search(pattern, method.__doc__, re.MULTILINE), (name, argument)
