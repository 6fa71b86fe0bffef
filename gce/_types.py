"""Types shared by the public functions."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Value: TypeAlias = Literal["primitive", "surrogate"]
Reduction: TypeAlias = Literal["mean", "sum", "none"]


class RowStats(NamedTuple):
    """What one pass over the logits tells about each row.

    Every field has the targets' shape: the logits' shape without the class axis.

    Attributes
    ----------
    target_log_prob : array of float
        Log-probability of the target, ``logits[target] - logsumexp``. 0 for an ignored row.
    logsumexp : array of float
        ``log(sum(exp(logits)))`` over the class axis, of ignored rows too.
    argmax : array of int64
        The class with the largest logit, the first one of equals, of ignored rows too.
    """

    target_log_prob: NDArray[Any]
    logsumexp: NDArray[Any]
    argmax: NDArray[np.int64]
