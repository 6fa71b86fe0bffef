"""Whether contenders compute the same: times of something else would mean nothing."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from gce.bench.cases import FORWARD, Data
from gce.bench.contender import Contender, work_of_gce

__all__ = ["Disagreement", "Expected"]

# As a share of the loss, or of the largest entry of the gradient. Generous: they tell a wrong
# formula from rounding, and PyTorch rounds 16-bit numbers at each of its steps.
TOLERANCE = {"float64": 1e-6, "float32": 1e-3, "float16": 2e-2, "bfloat16": 5e-2}
# A mean's gradient may be as small as that in float16, which then has a bit or none to say it with.
SMALLEST = {"float64": 0.0, "float32": 0.0, "float16": 2.0**-24, "bfloat16": 0.0}
ENDS = (slice(0, 2), slice(-2, None))


class Disagreement(Exception):
    """A contender computes something else than gce; the message says what."""


class Expected:
    """gce's loss and gradient on the data of a case, to hold results against.

    Parameters
    ----------
    data : Data
        The case's.
    """

    def __init__(self, data: Data) -> None:
        self.data = data

    @cached_property
    def ours(self) -> tuple[float, list[npt.NDArray[np.float64]]]:
        """The loss, and the ends of the gradient."""
        return self._compute(self.data.gamma)

    @cached_property
    def plain(self) -> tuple[float, list[npt.NDArray[np.float64]]]:
        """The same for cross-entropy."""
        return self._compute(0.0)

    def _compute(self, gamma: Any) -> tuple[float, list[npt.NDArray[np.float64]]]:
        data = self.data
        result = work_of_gce(data, gamma, data.logits, None)()
        if data.case.work == FORWARD:
            return float(result), []
        loss, grad = result
        return float(loss), [as_numpy(grad[end]) for end in ENDS]

    def check(self, contender: Contender, result: Any) -> None:
        """Compare what a contender's work returned.

        Raises
        ------
        Disagreement
            If it is not gce's, within what the dtype allows.
        """
        if not contender.checked:
            return
        case, who = self.data.case, contender.name
        loss, ends = self.plain if contender.plain else self.ours
        found, grad = (result, None) if case.work == FORWARD else result
        allowed = TOLERANCE[case.dtype]
        value = float(as_numpy(found))
        if not abs(value - loss) <= allowed * abs(loss):
            raise Disagreement(f"{case.name}: the loss of {who} is {value:.8g}, gce's {loss:.8g}")
        for end, expected in zip(ENDS, ends, strict=False):
            assert grad is not None
            apart = np.abs(as_numpy(grad[end]) - expected).max()
            largest = np.abs(expected).max()
            if not apart <= allowed * largest + SMALLEST[case.dtype]:
                raise Disagreement(
                    f"{case.name}: the gradient of {who} is up to {apart:.2g} away from gce's, "
                    f"whose largest entry is {largest:.2g}"
                )


def as_numpy(array: Any) -> npt.NDArray[np.float64]:
    """An array of any package in double precision."""
    if hasattr(array, "detach"):  # torch, whose bfloat16 numpy does not know
        array = array.detach().double()
    return np.asarray(array).astype(np.float64)
