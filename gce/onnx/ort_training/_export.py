"""A forward model with trained parameters."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from gce.onnx._graphs import copy_of
from gce.onnx._restore import restore_parameters
from gce.onnx.ort_training._runtime import api

__all__ = ["export_model"]


def export_model(
    state: Any,
    model: onnx.ModelProto | str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
) -> onnx.ModelProto:
    """Put the trained parameters into the forward model.

    In place of ``Module.export_model_for_inferencing``, which fails on models with operators that
    are not ONNX Runtime's own.

    Parameters
    ----------
    state : CheckpointState or Module
        What was trained, as it is now.
    model : onnx.ModelProto or path
        The forward model that the artifacts were generated from, by `generate_artifacts` or from
        what `prepare_model` gave. It stays as it is.
    path : path, optional
        File to save the result to.

    Returns
    -------
    onnx.ModelProto
        `model` with the values of all parameters of `state`, frozen ones too, and with the
        initializers that `prepare_model` gives it.

    Raises
    ------
    TypeError
        `state` or `model` is something else.
    ValueError
        A parameter that `model` does not have, or has with another shape or type.

    Examples
    --------
    See `generate_artifacts`.
    """
    if isinstance(state, api.Module):
        state = state._state
    if not isinstance(state, api.CheckpointState):
        raise TypeError(
            f"state has type {type(state).__name__}, expected CheckpointState or Module of "
            "onnxruntime.training.api"
        )
    exported = copy_of(model)
    restore_parameters(exported)
    initializers = {tensor.name: tensor for tensor in exported.graph.initializer}
    for name, parameter in state.parameters:
        if name not in initializers:
            raise ValueError(
                f"state has the parameter {name!r}, expected one of the initializers of model: "
                f"{list(initializers)}"
            )
        tensor, trained = initializers[name], parameter.data
        elem_type = onnx.helper.np_dtype_to_tensor_dtype(trained.dtype)
        if tuple(tensor.dims) != trained.shape or tensor.data_type != elem_type:
            raise ValueError(
                f"parameter {name!r} has shape {trained.shape} and dtype {trained.dtype}, expected "
                f"{tuple(tensor.dims)} and "
                f"{np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))}, as in model"
            )
        tensor.CopyFrom(numpy_helper.from_array(trained, name))
    if path is not None:
        onnx.save(exported, os.fspath(path))
    return exported
