"""The options of the operators: the one list that schemas, kernels and autograd share."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

__all__ = ["OPTIONS_SCHEMA", "Options", "class_axis", "moved"]

# The arguments at the end of each operator's schema: the fields of `Options`.
OPTIONS_SCHEMA = (
    "Tensor? weight, Tensor? sample_weight, Tensor? row_threshold, float threshold, str value, "
    "int? ignore_index, float label_smoothing, float z_loss, float? softcap, int shift, "
    "str reduction, float? normalizer"
)


class Options(NamedTuple):
    """Options of `gce.loss` as operators take them: all by position, tensors first."""

    weight: torch.Tensor | None = None
    sample_weight: torch.Tensor | None = None
    row_threshold: torch.Tensor | None = None  # in place of `threshold`: a scalar or one per row
    threshold: float = 0.0
    value: str = "primitive"
    ignore_index: int | None = -100
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    softcap: float | None = None
    shift: int = 0
    reduction: str = "mean"
    normalizer: float | None = None

    def tensors(self) -> tuple[torch.Tensor | None, ...]:
        """Those that are tensors: the first fields."""
        return self[:3]

    def numbers(self) -> tuple[Any, ...]:
        """The others."""
        return self[3:]


def class_axis(input: torch.Tensor) -> int:
    """PyTorch's: the second one, and the only one of a single row."""
    return 1 if input.dim() > 1 else 0


def moved(rows: torch.Tensor, shift: int, axis: int = -1) -> torch.Tensor:
    """Bring what stands at t along an axis to t + `shift`; zeros take its place.

    From where the logits are to where their target is; with a negative `shift` back again.
    """
    if shift == 0:
        return rows
    size = rows.shape[axis]
    lost = min(abs(shift), size)
    kept = rows.narrow(axis, 0 if shift > 0 else lost, size - lost)
    zeros = torch.zeros_like(rows.narrow(axis, 0, lost))
    return torch.cat([zeros, kept] if shift > 0 else [kept, zeros], axis)
