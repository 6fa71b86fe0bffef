"""The gamma-cross-entropy ``-log(gamma + (1 - gamma) p) / (1 - gamma)`` and its gradient, on CPU.

One number gamma leads from cross-entropy (0) to smooth accuracy (1). `loss` and `loss_and_grad`
work on logits, `binary_loss` and `binary_loss_and_grad` on those of targets that do not exclude
each other, the ufuncs `loss_from_log_prob`, `grad_weight` and `gamma_grad` on log-probabilities;
`row_stats` tells what a batch's rows look like, `loss_gamma_grad` how the loss changes with gamma,
`hvp` how the gradient changes with the logits. `schedules` anneal gamma, `presets` holds published
settings, `onnx` is the same loss inside ONNX models, `jax` inside programs of jax, `torch` for
PyTorch, and `reference` the same in plain numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# _native first: where this interpreter cannot have it, its error is the one that says so.
from gce import _native as _native
from gce import presets, schedules
from gce._config import get_include, show_config
from gce._native import (
    __version__,
    binary_loss,
    binary_loss_and_grad,
    gamma_grad,
    get_num_threads,
    grad_weight,
    hvp,
    loss,
    loss_and_grad,
    loss_from_log_prob,
    loss_gamma_grad,
    row_stats,
    set_num_threads,
)
from gce._types import LossStats, RowStats

if TYPE_CHECKING:
    from gce import onnx, reference, shards
    from gce import torch as torch

__all__ = [
    "LossStats",
    "RowStats",
    "__version__",
    "binary_loss",
    "binary_loss_and_grad",
    "gamma_grad",
    "get_include",
    "get_num_threads",
    "grad_weight",
    "hvp",
    "loss",
    "loss_and_grad",
    "loss_from_log_prob",
    "loss_gamma_grad",
    "onnx",
    "presets",
    "reference",
    "row_stats",
    "schedules",
    "set_num_threads",
    "shards",
    "show_config",
]


def __getattr__(name: str) -> Any:
    """Import a module when it is first asked for that not everybody needs."""
    if name in ("jax", "onnx", "reference", "shards", "torch"):
        return importlib.import_module(f"gce.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
