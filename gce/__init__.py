"""The gamma-cross-entropy loss ``-log(gamma + (1 - gamma) p) / (1 - gamma)`` and its gradient, on CPU.

One number gamma leads from cross-entropy (0) to smooth accuracy (1). `loss` and `loss_and_grad` work on
logits, the ufuncs `loss_from_log_prob`, `grad_weight` and `gamma_grad` on log-probabilities; `row_stats`
tells what a batch's rows look like. `schedules` anneal gamma, `presets` holds published settings, and
`reference` is the same in plain numpy.
"""

from gce import presets, reference, schedules
from gce._config import show_config
from gce._native import (
    __version__,
    gamma_grad,
    get_num_threads,
    grad_weight,
    loss,
    loss_and_grad,
    loss_from_log_prob,
    row_stats,
    set_num_threads,
)
from gce._types import RowStats

__all__ = [
    "RowStats",
    "__version__",
    "gamma_grad",
    "get_num_threads",
    "grad_weight",
    "loss",
    "loss_and_grad",
    "loss_from_log_prob",
    "presets",
    "reference",
    "row_stats",
    "schedules",
    "set_num_threads",
    "show_config",
]
