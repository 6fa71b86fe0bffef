"""The custom calls of ``xla_ffi/``: their library, their registration, and how they are called."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["Inputs", "Options", "call_gamma_grad", "call_loss"]


class Options(NamedTuple):
    """What is known when a call is traced: attributes of the custom call."""

    axis: int  # >= 0
    reduction: str
    value: str
    ignore_index: int | None


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
    normalizer: Any = None
    grad_output: Any = None


def _register() -> None:
    suffix = "dylib" if sys.platform == "darwin" else "so"
    path = Path(__file__).with_name(f"libgce_xla.{suffix}")
    if not path.is_file():
        raise ImportError(f"{path} is missing: gce was built without its library for jax")
    library = ctypes.CDLL(str(path))
    for name in ("gce_xla_loss", "gce_xla_gamma_grad"):
        handler = jax.ffi.pycapsule(getattr(library, name))
        jax.ffi.register_ffi_target(name, handler, platform="cpu")


_register()


def call_loss(options: Options, outputs: tuple[str, ...], inputs: Inputs) -> tuple[Any, ...]:
    """Those of ``loss``, ``grad`` and ``target_log_prob`` that `outputs` names, in one pass."""
    logits, targets = inputs.logits, inputs.targets
    wide = jnp.promote_types(logits.dtype, jnp.float32)
    rows = jax.ShapeDtypeStruct(targets.shape, wide)
    results = {
        "loss": rows if options.reduction == "none" else jax.ShapeDtypeStruct((), wide),
        "grad": jax.ShapeDtypeStruct(logits.shape, logits.dtype),
        "target_log_prob": rows,
    }
    given = {name: array for name, array in inputs._asdict().items() if array is not None}
    # vmap puts an axis before those of every array, of length 1 where it is not mapped over.
    call = jax.ffi.ffi_call(
        "gce_xla_loss", tuple(results[name] for name in outputs), vmap_method="expand_dims"
    )
    found: tuple[Any, ...] = call(
        *given.values(),
        arguments=",".join(given),
        results=",".join(outputs),
        ndim=np.int64(logits.ndim),
        axis=np.int64(options.axis),
        reduction=options.reduction,
        value=options.value,
        has_ignore_index=np.int64(options.ignore_index is not None),
        ignore_index=np.int64(options.ignore_index or 0),
    )
    return found


def call_gamma_grad(log_p: Any, gamma: Any) -> Any:
    """`gce.gamma_grad` of arrays of the same shape, float32 or float64."""
    result = jax.ShapeDtypeStruct(log_p.shape, log_p.dtype)
    call = jax.ffi.ffi_call("gce_xla_gamma_grad", result, vmap_method="broadcast_all")
    return call(log_p, gamma)
