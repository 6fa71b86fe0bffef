"""What the loops that are written by hand share: which cases they do, and arrays of whole rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gce.bench.cases import BACKWARD, FORWARD, PLAIN, Data
from gce.bench.contender import CannotDo

__all__ = ["Rows", "rows_of"]


class Rows(NamedTuple):
    """Arrays [N, V] and [N]; the logits are the gradients where the case is in place."""

    logits: npt.NDArray[Any]
    targets: npt.NDArray[np.int64]
    gamma: float
    grads: npt.NDArray[Any] | None  # of a forward pass: none
    out: npt.NDArray[Any] | None  # the same memory in the shape of the case


def rows_of(data: Data) -> Rows:
    """The arrays of a case.

    Raises
    ------
    CannotDo
        If it is more than such loops are written for.
    """
    case = data.case
    if case.dtype not in ("float32", "float64") or not case.is_last_axis or case.options != PLAIN:
        raise CannotDo("by hand: full precision, class axis last, no options")
    z, y = data.logits.reshape(-1, case.classes), data.targets.reshape(-1)
    if case.work == FORWARD:
        return Rows(z, y, float(data.gamma), None, None)
    out = data.out if case.work == BACKWARD else data.logits.copy()
    grads = out.reshape(z.shape)
    return Rows(z if case.work == BACKWARD else grads, y, float(data.gamma), grads, out)
