"""ONNX Runtime's training release, or an error that says how to get it."""

from __future__ import annotations

import importlib
import sys
import warnings
from importlib import metadata
from types import ModuleType
from typing import Any

__all__ = [
    "MAX_IR_VERSION",
    "MAX_OPSET",
    "api",
    "artifacts",
    "native",
    "onnxblock",
    "onnxruntime",
    "symbolic_shape_infer",
]

# What this release reads; onnx is newer.
MAX_IR_VERSION, MAX_OPSET = 10, 21

_WANTED = "onnxruntime-training-cpu==1.19.2"
_NEWEST_PYTHON = (3, 12)


def _import_onnxruntime() -> tuple[ModuleType, ModuleType]:
    """``onnxruntime`` and its extension module, which must be able to train."""
    try:
        runtime = importlib.import_module("onnxruntime")
        extension = importlib.import_module("onnxruntime.capi._pybind_state")
    except ImportError as error:
        if error.name == "onnxruntime":
            raise ModuleNotFoundError(
                "gce.onnx.ort_training needs the training release of ONNX Runtime, and no "
                f"onnxruntime is installed: {_how_to_install()}",
                name="onnxruntime",
            ) from error
        if not (error.name or "onnxruntime").startswith("onnxruntime"):
            raise  # something that it needs
        raise ImportError(_wrong_runtime("cannot be imported")) from error
    if not hasattr(extension, "register_gradient_definition"):
        version = getattr(runtime, "__version__", "of an unknown version")
        raise ImportError(_wrong_runtime(f"is {version}, which cannot train"))
    if not runtime.__version__.startswith("1.19."):
        warnings.warn(
            f"onnxruntime is {runtime.__version__}, expected 1.19, the only training release that "
            "gce.onnx.ort_training is tested with",
            stacklevel=3,
        )
    return runtime, extension


def _wrong_runtime(what: str) -> str:
    text = f"onnxruntime {what}; expected its training release: "
    # Distributions of one package: whichever was installed last has overwritten the others.
    found = sorted(set(metadata.packages_distributions().get("onnxruntime", [])))
    if found:
        text = (
            f"onnxruntime {what} (installed: {', '.join(found)}); expected its training release, "
            f"another distribution of the same package: pip uninstall {' '.join(found)}, then "
        )
    return text + _how_to_install()


def _how_to_install() -> str:
    text = f"pip install {_WANTED} torch 'gamma-ce[onnx]'"
    if sys.version_info[:2] > _NEWEST_PYTHON:
        newest, this = (".".join(map(str, v)) for v in (_NEWEST_PYTHON, sys.version_info[:2]))
        text += f" (in Python {newest} or older: there is none for {this})"
    return f"{text}. gce.onnx.training trains with the current onnxruntime."


def _import_training(name: str) -> ModuleType:
    try:
        return importlib.import_module(f"onnxruntime.training.{name}")
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "onnx"):
            raise
        wanted = {"torch": "torch", "onnx": "'gamma-ce[onnx]'"}[error.name]
        raise ModuleNotFoundError(
            f"onnxruntime.training imports {error.name}, which is not installed: "
            f"pip install {wanted}",
            name=error.name,
        ) from error


# None of it has types.
onnxruntime: Any
native: Any
onnxruntime, native = _import_onnxruntime()
artifacts: Any = _import_training("artifacts")
onnxblock: Any = _import_training("onnxblock")
api: Any = _import_training("api")
symbolic_shape_infer: Any = importlib.import_module("onnxruntime.tools.symbolic_shape_infer")
