"""The library of the ONNX operator, and how a session gets it: what needs no onnx of `gce.onnx`."""

from __future__ import annotations

from typing import Any, TypeVar

from gce._libraries import library

__all__ = ["DOMAIN", "OP_TYPE", "library_path", "register"]

DOMAIN = "ai.gce"
OP_TYPE = "GammaCrossEntropyLoss"

Options = TypeVar("Options")


def library_path() -> str:
    """Path of the operator's shared library.

    For ``SessionOptions.register_custom_ops_library`` in Python, ``RegisterCustomOpsLibrary_V2`` in
    C, and the like in other languages. The library depends on the C++ runtime alone and exports one
    symbol, ``RegisterCustomOps``.

    Returns
    -------
    str

    Raises
    ------
    FileNotFoundError
        This installation was built without the library.

    Examples
    --------
    >>> import gce.onnx
    >>> import os
    >>> os.path.basename(gce.onnx.library_path()).startswith("libgce_ort.")
    True
    """
    return str(library("onnx/libgce_ort", "its ONNX operator"))


def register(session_options: Options) -> Options:
    """Make ``ai.gce::GammaCrossEntropyLoss`` known to the sessions made with these options.

    Parameters
    ----------
    session_options : onnxruntime.SessionOptions
        Registering twice is the same as once.

    Returns
    -------
    onnxruntime.SessionOptions
        The same object.

    Raises
    ------
    TypeError
        `session_options` is no ``SessionOptions``.
    FileNotFoundError
        This installation was built without the library.
    onnxruntime.capi.onnxruntime_pybind11_state.Fail
        The runtime is older than 1.16.

    Notes
    -----
    In ONNX Runtime 1.28 and newer, the shapes of both outputs are inferred when a model is loaded,
    with symbolic dimensions kept; in 1.24 to 1.27 that of ``loss`` alone, before only types. There
    the runtime would crash on nodes that leave out an optional input or output. Models made by
    `attach_loss` state their shapes.

    Examples
    --------
    >>> import gce.onnx
    >>> import onnxruntime
    >>> options = gce.onnx.register(onnxruntime.SessionOptions())
    """
    options: Any = session_options
    if not hasattr(options, "register_custom_ops_library"):
        raise TypeError(
            f"session_options has type {type(options).__name__}, "
            "expected onnxruntime.SessionOptions"
        )
    options.register_custom_ops_library(library_path())
    return session_options
