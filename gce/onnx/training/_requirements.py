"""What the package needs, or an error that says how to get it."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["ONNX_AD"]

ONNX_AD = "0.3.0"  # exact, as in pyproject.toml: some of its rules are replaced


def require(module: str, distribution: str) -> Any:
    """The module, in whatever version."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise  # something that it needs itself
        raise ModuleNotFoundError(
            f"gce.onnx.training needs {distribution}, which is not installed: "
            "pip install 'gamma-ce[training]' onnxruntime",
            name=module,
        ) from error


for name in ("ml_dtypes", "onnx", "onnxruntime"):
    require(name, name)
found = require("onnx_ad", "onnx-ad").__version__
if found != ONNX_AD:
    raise ImportError(
        f"gce.onnx.training needs onnx-ad {ONNX_AD}, found {found}: "
        "pip install 'gamma-ce[training]'",
        name="onnx_ad",
    )
