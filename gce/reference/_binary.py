"""The sigmoid form, elementwise."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from gce._types import Reduction, Value
from gce.reference._log_prob import Doubles, doubles, grad_weight, plain
from gce.reference._rows import divisor_of, reduce, row_value, weighted


def binary_loss(
    logits: ArrayLike,
    targets: ArrayLike,
    gamma: ArrayLike,
    *,
    threshold: ArrayLike = 0.0,
    value: Value = "primitive",
    weight: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    normalizer: float | None = None,
) -> Doubles:
    """Binary γ-cross-entropy of logits against targets from 0 to 1, elementwise.

    Parameters
    ----------
    logits : array_like of float
        Any shape.
    targets : array_like of float
        t in [0, 1], the logits' shape.
    gamma : array_like of float
        γ in [0, 1]: scalar or the logits' shape. 0 is binary cross-entropy.
    threshold : array_like of float
        b in [0, 1], the least gradient weight: scalar or the logits' shape.
    value : {"primitive", "surrogate"}
        `loss_from_log_prob` or `surrogate_from_log_prob`.
    weight : array_like of float, optional
        Multiplies each element: broadcasts to the logits' shape.
    pos_weight : array_like of float, optional
        c, multiplies the part of the positive outcome: broadcasts to the logits' shape.
    label_smoothing : float
        ε in [0, 1]: t becomes ``(1 - ε) t + ε/2``.
    reduction : {"mean", "sum", "none"}
        "mean" divides the sum by `normalizer`.
    normalizer : float, optional
        Divisor of the mean; by default the number of elements. Without elements, the loss is 0.

    Returns
    -------
    float64
        Scalar; for "none" an array of the logits' shape.

    Raises
    ------
    ValueError
        An unknown `value` or `reduction`; and by numpy, where the shapes do not fit.

    Notes
    -----
    ``weight · (c t L(log p₁) + (1 - t) L(log p₀))`` with p₁ = sigmoid(z), p₀ = sigmoid(-z) and L as
    in `loss_from_log_prob`; a part with factor 0 is 0 even where L is infinite.

    Examples
    --------
    >>> from gce import reference
    >>> print(reference.binary_loss([2.0, -1.0], [1, 0], gamma=0.0).round(6))
    0.220095
    >>> print(reference.binary_loss([2.0, -1.0], [1, 0], gamma=1.0, reduction="none").round(6))
    [0.119203 0.268941]
    """
    return binary_loss_and_grad(
        logits,
        targets,
        gamma,
        threshold=threshold,
        value=value,
        weight=weight,
        pos_weight=pos_weight,
        label_smoothing=label_smoothing,
        reduction=reduction,
        normalizer=normalizer,
    )[0]


@np.errstate(all="ignore")
def binary_loss_and_grad(
    logits: ArrayLike,
    targets: ArrayLike,
    gamma: ArrayLike,
    *,
    threshold: ArrayLike = 0.0,
    value: Value = "primitive",
    weight: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    normalizer: float | None = None,
    grad_output: ArrayLike = 1.0,
) -> tuple[Doubles, Doubles]:
    """Binary γ-cross-entropy and its gradient in the logits.

    Parameters
    ----------
    logits, targets, gamma, threshold, value, weight, pos_weight, label_smoothing, reduction, \
normalizer
        As for `binary_loss`.
    grad_output : array_like of float
        Upstream gradient, which multiplies the gradient and not the loss: scalar; for "none" also
        of the logits' shape.

    Returns
    -------
    loss : float64
        As from `binary_loss`.
    grad : float64 array of the logits' shape
        ``grad_output · weight · (c t w_b(p₁) (p₁ - 1) + (1 - t) w_b(p₀) p₁)``, for "mean" divided
        as the loss is.

    Raises
    ------
    ValueError
        An unknown `value` or `reduction`; and by numpy, where the shapes do not fit.

    Notes
    -----
    ``dL(p)/dlog p = -w_b(p)``, ``dlog p₁/dz = p₀`` and ``dlog p₀/dz = -p₁``; arXiv 2302.13344.

    Examples
    --------
    >>> from gce import reference
    >>> value, grad = reference.binary_loss_and_grad([0.0, 0.0], [1, 0], gamma=1.0)
    >>> print(value, grad)
    0.5 [-0.125  0.125]
    """
    z, t, gamma, threshold, upstream = doubles(logits, targets, gamma, threshold, grad_output)
    v = np.float64(1.0) if weight is None else np.asarray(weight, np.float64)
    c = np.float64(1.0) if pos_weight is None else np.asarray(pos_weight, np.float64)
    v = np.broadcast_to(v, z.shape)
    # 1 - t smoothed by itself, which 1 - (t smoothed) would round to fewer digits.
    t, not_t = ((1.0 - label_smoothing) * x + label_smoothing / 2.0 for x in (t, 1.0 - t))

    log_p1, log_p0 = -np.logaddexp(0.0, -z), -np.logaddexp(0.0, z)
    p1, p0 = 1.0 / (1.0 + np.exp(-z)), 1.0 / (1.0 + np.exp(z))
    w1, w0 = grad_weight(log_p1, gamma, threshold), grad_weight(log_p0, gamma, threshold)
    value_of = row_value(value)
    positive = weighted(c * t, value_of(log_p1, gamma, threshold))
    negative = weighted(not_t, value_of(log_p0, gamma, threshold))
    loss = weighted(v, positive + negative)
    grad = v * (not_t * w0 * p1 - c * t * w1 * p0) * upstream

    divisor = divisor_of(np.ones_like(z), reduction, normalizer)
    return plain(reduce(loss, divisor, reduction)), np.asarray(grad / divisor)
