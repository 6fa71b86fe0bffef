"""The custom call of ``xla_ffi/``: its library, its registration, and how it is called."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gce._libraries import library

__all__ = ["TARGET", "Inputs", "Options", "attributes_of", "call_loss"]

TARGET = "gce_xla_loss"


class Options(NamedTuple):
    """What is known when a call is traced: attributes of the custom call."""

    axis: int  # >= 0
    reduction: str
    value: str
    ignore_index: int | None
    shift: int


class Inputs(NamedTuple):
    """The arrays of a call; None: absent. Numbers are arrays too, so new ones need no new trace."""

    logits: Any
    targets: Any
    gamma: Any
    threshold: Any = None
    weight: Any = None
    sample_weight: Any = None
    label_smoothing: Any = None
    z_loss: Any = None
    softcap: Any = None
    normalizer: Any = None
    grad_output: Any = None


def _register() -> None:
    try:
        path = library("jax/libgce_xla", "its library for jax")
    except FileNotFoundError as error:
        raise ImportError(str(error)) from error
    handler = jax.ffi.pycapsule(ctypes.CDLL(str(path)).gce_xla_loss)
    jax.ffi.register_ffi_target(TARGET, handler, platform="cpu")


_register()


def attributes_of(options: Options, ndim: int) -> dict[str, Any]:
    """Attributes of a custom call with logits of this rank; integers are 64-bit ones there."""
    return {
        "ndim": np.int64(ndim),
        "axis": np.int64(options.axis),
        "shift": np.int64(options.shift),
        "reduction": options.reduction,
        "value": options.value,
        "has_ignore_index": np.int64(options.ignore_index is not None),
        "ignore_index": np.int64(options.ignore_index or 0),
    }


def call_loss(options: Options, outputs: tuple[str, ...], inputs: Inputs) -> tuple[Any, ...]:
    """Those of ``loss``, ``grad`` and ``gamma_grad`` that `outputs` names, in one pass."""
    logits = inputs.logits
    wide = jnp.promote_types(logits.dtype, jnp.float32)
    rows = logits.shape[: options.axis] + logits.shape[options.axis + 1 :]
    results = {
        "loss": jax.ShapeDtypeStruct(rows if options.reduction == "none" else (), wide),
        "grad": jax.ShapeDtypeStruct(logits.shape, logits.dtype),
        # The core has it in float64, even where jax has not: it is converted below.
        "gamma_grad": jax.ShapeDtypeStruct(inputs.gamma.shape, np.dtype(np.float64)),
    }
    given = {name: array for name, array in inputs._asdict().items() if array is not None}
    # vmap puts an axis before those of every array, of length 1 where it is not mapped over.
    call = jax.ffi.ffi_call(
        TARGET, tuple(results[name] for name in outputs), vmap_method="expand_dims"
    )
    found = call(
        *given.values(),
        arguments=",".join(given),
        results=",".join(outputs),
        **attributes_of(options, logits.ndim),
    )
    narrow = jnp.promote_types(inputs.gamma.dtype, wide)
    return tuple(
        jax.lax.convert_element_type(array, narrow) if name == "gamma_grad" else array
        for name, array in zip(outputs, found, strict=True)
    )
