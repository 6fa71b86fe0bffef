"""The libraries beside the extension module, which ONNX Runtime and XLA load by their paths."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["library"]

SUFFIX = {"darwin": "dylib", "win32": "dll"}.get(sys.platform, "so")


def library(name: str, purpose: str) -> Path:
    """Path of a library, whose `name` starts at the package.

    Raises
    ------
    FileNotFoundError
        This installation was built without it.
    """
    path = Path(__file__).parent / f"{name}.{SUFFIX}"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: gce was built without {purpose}")
    return path
