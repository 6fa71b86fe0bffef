"""What this build is and what it runs on: `gce.show_config`, `gce.get_include`."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import numpy as np

import gce
from gce import _native
from gce._onnx_library import library_path

__all__ = ["get_include", "show_config"]


def get_include() -> str:
    """Folder of the C ABI's header, which is included as ``gce/gce.h``.

    For code in C, C++ or Cython that calls the core; ``help("gce.cython")`` says how it finds the
    functions.

    Returns
    -------
    str
        An absolute path, for a compiler's ``-I`` or an extension's ``include_dirs``.

    Examples
    --------
    >>> import pathlib
    >>> import gce
    >>> pathlib.Path(gce.get_include(), "gce", "gce.h").is_file()
    True
    """
    return str(Path(__file__).resolve().parent / "include")


def show_config(mode: str = "stdout") -> dict[str, Any] | None:
    """Show the versions, instruction sets and threads in use.

    Parameters
    ----------
    mode : {"stdout", "dicts"}
        Print the configuration, or return it.

    Returns
    -------
    dict or None
        With ``mode="dicts"``, the configuration: names to strings, numbers or lists of strings.

    Raises
    ------
    ValueError
        If `mode` is neither.
    RuntimeError
        If the environment variable ``GCE_FORCE_ISA`` names an instruction set that this build or
        this CPU does not have.

    Examples
    --------
    >>> import gce
    >>> config = gce.show_config(mode="dicts")
    >>> config["isa"] in config["isas_available"]
    True
    """
    if mode not in ("stdout", "dicts"):
        raise ValueError(f"mode = {mode!r}, expected 'stdout' or 'dicts'")
    config: dict[str, Any] = {
        "gce": _native.__version__,
        "isa": _native.isa_name(),
        "isas_available": _native.available_isas(),
        "isas_compiled": _native.compiled_isas(),
        "threads": gce.get_num_threads(),
        "numpy": np.__version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "compiler": _native.compiler,
        "onnx_library": _onnx_library(),
        "platform": platform.platform(),
    }
    if mode == "dicts":
        return config
    width = max(map(len, config))
    for name, value in config.items():
        text = ", ".join(value) if isinstance(value, list) else value
        print(f"{name:<{width}}  {text}")
    return None


def _onnx_library() -> str:
    try:
        return library_path()
    except FileNotFoundError:
        return "none"
