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


class LossStats(NamedTuple):
    """What the pass of a loss tells about each row beside it, with ``return_stats=True``.

    Every field has the targets' shape: the logits' shape without the class axis.

    Attributes
    ----------
    target_log_prob, logsumexp, argmax
        As in `RowStats`; ``(stats.argmax == targets).mean()`` is the accuracy.
    grad_weight : array of float
        ``w_b``, by which the loss scales cross-entropy's gradient of the row: near 0 for a target
        that the model does not believe. Without class and sample weights; 0 for an ignored row.
    """

    target_log_prob: NDArray[Any]
    logsumexp: NDArray[Any]
    argmax: NDArray[np.int64]
    grad_weight: NDArray[Any]
