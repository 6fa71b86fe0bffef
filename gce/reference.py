"""The γ-cross-entropy in plain float64 numpy: the definition that the fast code is tested against.

Nothing here is clever or fast. Each formula is that of the specification, written so that it can be
checked against it by eye; where a formula is rearranged, it is because the plain one cancels or
overflows, and the comment says where.

Symbols: one row has logits ``z`` and target class ``y``;

====================  =================================================================
``q``                 softmax(z)
``log_p``             ℓ = z_y - logsumexp(z), the target's log-probability; p = e^ℓ
``gamma``, ``delta``  γ in [0, 1] and δ = 1 - γ
``s``                 γ + δp
``threshold``         b in [0, 1], the least gradient weight
``w``                 p / s, the gradient weight; w_b = max(b, w)
====================  =================================================================

and the gradient is ``dL/dz = w_b (q - e_y)``, e_y being 1 at the target and 0 elsewhere.

Any float dtype (also ``ml_dtypes.bfloat16``) is taken to float64 first; every result is float64.
Arguments are not validated beyond what numpy does.

Value and weight are within a relative 8e-16 of the exact ones for the given ``log_p``, ``gamma``
and ``threshold`` (weights below 1e-300: an absolute 1e-300), for ℓ from 0 to -1e308 and γ from 0
through 5e-324 to 1: ``tests/test_reference.py`` holds them against 50 digits.

Sources: "Tailoring Language Generation Models under Total Variation Distance" (TaiLr, ICLR 2023,
arXiv 2302.13344); γ = 1 is the loss called DFT in arXiv 2508.05629.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gce._types import Reduction, RowStats, Value

__all__ = [
    "gamma_grad",
    "grad_weight",
    "loss",
    "loss_and_grad",
    "loss_from_log_prob",
    "loss_gamma_grad",
    "row_stats",
    "surrogate_from_log_prob",
]

Doubles: TypeAlias = NDArray[np.float64]

# Why every function is under errstate: each branch of a `where` is computed for every element, so
# that branches not taken divide by zero, overflow or give NaN; and infinite logits are allowed.

# ---------------------------------------------------------------------------------------------
# One row, given the log-probability of its target. Elementwise; arguments broadcast.
# ---------------------------------------------------------------------------------------------


@np.errstate(all="ignore")
def grad_weight(log_p: ArrayLike, gamma: ArrayLike, threshold: ArrayLike = 0.0) -> Doubles:
    """Weight of the gradient, ``w_b = max(b, w)`` with ``w = p / (γ + δp) = 1 / (δ + γ e^-ℓ)``.

    Parameters
    ----------
    log_p : array_like of float
        ℓ, log-probability of the target, from 0 to -inf.
    gamma, threshold : array_like of float
        γ and b, each in [0, 1].

    Returns
    -------
    float64 array of the broadcast shape (a scalar for scalars)
        In [0, 1]: 1 for γ = 0 even where p underflows, p for γ = 1. NaN where ℓ is NaN.

    Raises
    ------
    ValueError
        By numpy, where the shapes do not broadcast.

    Notes
    -----
    arXiv 2302.13344, equation 9.

    Examples
    --------
    >>> from gce import reference
    >>> print(reference.grad_weight([0.0, -1e3], 0.0))
    [1. 1.]
    >>> print(reference.grad_weight([0.0, -1e3], 0.5, threshold=0.2))
    [1.  0.2]
    """
    log_p, gamma, threshold = _doubles(log_p, gamma, threshold)
    delta = 1.0 - gamma
    # e^-ℓ in two halves: for γ = 1e-300 and ℓ = -710, e^-ℓ overflows where γ e^-ℓ = 2e8.
    gamma_over_p = gamma * np.exp(-log_p / 2) * np.exp(-log_p / 2)
    w = 1.0 / (delta + gamma_over_p)
    # γ = 0: 0 * e^-ℓ would be NaN where e^-ℓ overflows. A NaN in ℓ stays NaN.
    w = np.where((gamma == 0.0) & ~np.isnan(log_p), 1.0, w)
    return _plain(np.maximum(threshold, w))


@np.errstate(all="ignore")
def loss_from_log_prob(log_p: ArrayLike, gamma: ArrayLike, threshold: ArrayLike = 0.0) -> Doubles:
    """Value of the loss, convention "primitive": the antiderivative of ``w_b (q - e_y)``.

    With ``t* = bγ / (1 - bδ)``, the p at which w = b::

        p >= t*:  L = -log(γ + δp) / δ
        p <  t*:  L = -log(γ / (1 - bδ)) / δ + b (log t* - ℓ)

    γ = 0: ``L = -ℓ``. γ = 1, by the limit: ``L = 1 - p``, and ``1 - b + b log(b/p)`` for p < b.
    b = 1: ``L = -ℓ`` for every γ.

    Parameters
    ----------
    log_p : array_like of float
        ℓ, log-probability of the target, from 0 to -inf.
    gamma, threshold : array_like of float
        γ and b, each in [0, 1].

    Returns
    -------
    float64 array of the broadcast shape (a scalar for scalars)
        At least 0. NaN where ℓ is NaN. At ℓ = -inf: ``-log(γ)/δ`` for b = 0 (1 for γ = 1),
        +inf for γ = 0 or b > 0.

    Raises
    ------
    ValueError
        By numpy, where the shapes do not broadcast.

    Notes
    -----
    arXiv 2302.13344 gives the gradient; the value is its integral. At γ = 1 some write ``-p``: the
    same loss up to the constant 1, with the same gradient. ``1 - p`` is the limit for γ → 1, keeps
    L continuous in γ and never negative.

    Examples
    --------
    >>> from gce import reference
    >>> print(reference.loss_from_log_prob(-2.0, [0.0, 1.0]).round(6))
    [2.       0.864665]
    >>> print(reference.loss_from_log_prob(-2.0, 0.5, threshold=1.0))
    2.0
    """
    log_p, gamma, threshold = _doubles(log_p, gamma, threshold)
    delta = 1.0 - gamma
    p_miss = 0.0 - np.expm1(log_p)  # 1 - p

    head = -_log_s(log_p, gamma) / delta
    # The limit for δ(1 - p) → 0: 1 - p, itself near 0 or because δ is.
    head = np.where(delta * p_miss < 1e-17, p_miss, head)

    # 1 - bδ, which cancels for b near 1 and γ near 0, is (1 - b) + bγ.
    one_minus_b_delta = (1.0 - threshold) + threshold * gamma
    # At t*, s is γ / (1 - bδ); and t* = b s, for there w = t*/s is b.
    log_s_star = _log_s_star(gamma, threshold, one_minus_b_delta)
    log_t_star = np.log(threshold) + log_s_star
    head_star = -log_s_star / delta
    head_star = np.where(delta == 0.0, 1.0 - threshold, head_star)
    tail = head_star + threshold * (log_t_star - log_p)

    value = np.where(log_p < log_t_star, tail, head)
    return _plain(np.where(gamma == 0.0, 0.0 - log_p, value))


@np.errstate(all="ignore")
def surrogate_from_log_prob(
    log_p: ArrayLike, gamma: ArrayLike, threshold: ArrayLike = 0.0
) -> Doubles:
    """Value of the loss, convention "surrogate": ``L = w_b (-ℓ)``, where w_b counts as a constant.

    Parameters
    ----------
    log_p : array_like of float
        ℓ, log-probability of the target, from 0 to -inf.
    gamma, threshold : array_like of float
        γ and b, each in [0, 1].

    Returns
    -------
    float64 array of the broadcast shape (a scalar for scalars)
        At ℓ = -inf: 0, the limit, where w_b = 0; else +inf. NaN where ℓ is NaN.

    Raises
    ------
    ValueError
        By numpy, where the shapes do not broadcast.

    Notes
    -----
    The stop-gradient form of arXiv 2302.13344 and its code: only with w_b frozen is its derivative
    the gradient ``w_b (q - e_y)``.

    Examples
    --------
    >>> from gce import reference
    >>> print(reference.surrogate_from_log_prob([-2.0, -float("inf")], [0.0, 0.5]))
    [2. 0.]
    """
    log_p, gamma, threshold = _doubles(log_p, gamma, threshold)
    w_b = grad_weight(log_p, gamma, threshold)
    value = w_b * (0.0 - log_p)
    return _plain(np.where((w_b == 0.0) & np.isneginf(log_p), 0.0, value))


@np.errstate(all="ignore")
def gamma_grad(log_p: ArrayLike, gamma: ArrayLike) -> Doubles:
    """Differentiate the primitive value in γ, for b = 0.

    ::

        dL/dγ = -(1 - p) / (s δ) - log(s) / δ²        and, as δ → 0,  -(1 - p)² / 2

    Parameters
    ----------
    log_p : array_like of float
        ℓ, log-probability of the target, from 0 to -inf.
    gamma : array_like of float
        γ in [0, 1].

    Returns
    -------
    float64 array of the broadcast shape (a scalar for scalars)
        At most 0; -inf where it overflows, and at γ = 0, ℓ = -inf. NaN where ℓ is NaN.

    Raises
    ------
    ValueError
        By numpy, where the shapes do not broadcast.

    Notes
    -----
    With x = δ(1 - p) = 1 - s the formula is ``-(x/s + log s) / δ²``, whose two terms agree to order
    x² (p → 1 or δ → 0). With r = x / (2 - x)::

        x/s   = 2r / (1 - r)                       log s = -2 artanh r
        dL/dγ = -(1 - p)² (1 + r)²/2 · (1/(1 - r) - r (1/3 + r²/5 + r⁴/7 + ...))

    in which the subtracted term is at most 0.11 of the first: used up to x = 3/4 (r = 3/5), the
    formula itself from there on. Relative error at most 1e-15 (measured against 50 digits).

    Examples
    --------
    >>> from gce import reference
    >>> print(reference.gamma_grad([-2.0, 0.0], 1.0).round(6) + 0.0)
    [-0.373823  0.      ]
    """
    log_p, gamma = _doubles(log_p, gamma)
    delta = 1.0 - gamma
    p = np.exp(log_p)
    p_miss = 0.0 - np.expm1(log_p)  # 1 - p
    s = gamma + delta * p
    x = delta * p_miss

    r = np.minimum(x / (2.0 - x), 0.6)
    # From its smallest term up. r² <= 0.36: the first term left out is under 0.36^36 / 75 = 1e-18.
    tail = sum((r ** (2 * k) / (2 * k + 3) for k in reversed(range(36))), start=np.zeros_like(r))
    near = -(p_miss**2) * (1.0 + r) ** 2 / 2.0 * (1.0 / (1.0 - r) - r * tail)

    far = -(x / s + _log_s(log_p, gamma)) / delta**2
    far = np.where(s == 0.0, -np.inf, far)  # else inf - inf at γ = 0, ℓ = -inf
    return _plain(np.where(x < 0.75, near, far))


def _log_s(log_p: Doubles, gamma: Doubles) -> Doubles:
    """``log(γ + δp)``."""
    delta = 1.0 - gamma
    x = delta * -np.expm1(log_p)  # δ(1 - p) = 1 - s
    # For large x from the logarithms of both terms, since p may underflow.
    return np.where(x < 0.5, np.log1p(-x), np.logaddexp(np.log(gamma), np.log(delta) + log_p))


def _log_s_star(gamma: Doubles, threshold: Doubles, one_minus_b_delta: Doubles) -> Doubles:
    """``log(γ / (1 - bδ))``, the log of s at t*."""
    x = (1.0 - gamma) * (1.0 - threshold) / one_minus_b_delta  # 1 - γ/(1 - bδ)
    return np.where(x < 0.5, np.log1p(-x), np.log(gamma) - np.log(one_minus_b_delta))


# ---------------------------------------------------------------------------------------------
# Whole arrays of logits.
# ---------------------------------------------------------------------------------------------


@np.errstate(all="ignore")
def row_stats(
    logits: ArrayLike, targets: ArrayLike, *, axis: int = -1, ignore_index: int = -100
) -> RowStats:
    """Log-probability of the target, logsumexp and argmax of every row.

    Parameters
    ----------
    logits : array_like of float
        Any rank from 1, V classes along `axis`.
    targets : array_like of int
        The logits' shape without `axis`.
    axis : int
        The class axis.
    ignore_index : int
        Rows with this target have ``target_log_prob`` 0.

    Returns
    -------
    RowStats
        ``target_log_prob`` float64, ``logsumexp`` float64, ``argmax`` int64, each of the targets'
        shape.

    Raises
    ------
    IndexError
        A target of V or more.
    ValueError
        By numpy, where the shapes do not fit or V is 0.

    Notes
    -----
    ``ℓ = z_y - logsumexp(z)`` with ``logsumexp(z) = m + log(sum(exp(z - m)))``, ``m = max(z)``.
    A NaN or +inf in a row, or a row of -inf only, gives NaN.

    Examples
    --------
    >>> from gce import reference
    >>> stats = reference.row_stats([[0.0, 0.0], [0.0, -float("inf")]], [1, 0])
    >>> print(stats.target_log_prob.round(6), stats.argmax)
    [-0.693147  0.      ] [0 0]
    """
    z, y, counted = _rows(logits, targets, axis, ignore_index)
    log_q, logsumexp, _ = _softmax(z)
    log_p = _of_target(log_q, y)
    argmax = np.argmax(z, axis=-1).astype(np.int64)
    return RowStats(_plain(np.where(counted, log_p, 0.0)), _plain(logsumexp), argmax)


def loss(
    logits: ArrayLike,
    targets: ArrayLike,
    gamma: ArrayLike,
    *,
    threshold: ArrayLike = 0.0,
    value: Value = "primitive",
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: Reduction = "mean",
    normalizer: float | None = None,
    axis: int = -1,
) -> Doubles:
    """γ-cross-entropy of logits against target classes.

    Parameters
    ----------
    logits : array_like of float
        Any rank from 1, V classes along `axis`. -inf is a masked class.
    targets : array_like of int
        The logits' shape without `axis`.
    gamma : array_like of float
        γ in [0, 1]: scalar or the targets' shape. 0 is cross-entropy, 1 is 1 - p.
    threshold : array_like of float
        b in [0, 1], the least gradient weight: scalar or the targets' shape.
    value : {"primitive", "surrogate"}
        `loss_from_log_prob` or `surrogate_from_log_prob`.
    weight : array_like of float, optional
        Class weights c, shape (V,): a row counts c_y.
    sample_weight : array_like of float, optional
        Weight of each row, the targets' shape.
    ignore_index : int
        Rows with this target have loss 0 and gradient 0, and do not count.
    label_smoothing : float
        ε in [0, 1], the part of each row's loss that is spread over all classes.
    z_loss : float
        λ ≥ 0: ``λ · logsumexp(z)²`` more in each row.
    reduction : {"mean", "sum", "none"}
        "mean" divides the sum by `normalizer`.
    normalizer : float, optional
        Divisor of the mean; by default the sum over counted rows of ``weight[y] * sample_weight``.
        Where it is 0, or there are no rows, the loss is 0.
    axis : int
        The class axis.

    Returns
    -------
    float64
        Scalar; for "none" an array of the targets' shape.

    Raises
    ------
    IndexError
        A target of V or more.
    ValueError
        An unknown `value` or `reduction`; and by numpy, where the shapes do not fit or V is 0.

    Notes
    -----
    Row by row ``sample_weight · ((1 - ε) c_y L(ℓ) + (ε/V) Σ_v c_v (-log q_v) + λ logsumexp(z)²)``
    with L as in `loss_from_log_prob`; arXiv 2302.13344. A class of weight 0 is no part of the sum.

    Examples
    --------
    >>> from gce import reference
    >>> logits = [[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    >>> print(reference.loss(logits, [0, 2], gamma=0.0).round(6))
    0.895495
    >>> print(reference.loss(logits, [0, 2], gamma=1.0, reduction="none").round(6))
    [0.213014 0.788058]
    """
    return loss_and_grad(
        logits,
        targets,
        gamma,
        threshold=threshold,
        value=value,
        weight=weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        reduction=reduction,
        normalizer=normalizer,
        axis=axis,
    )[0]


@np.errstate(all="ignore")
def loss_and_grad(
    logits: ArrayLike,
    targets: ArrayLike,
    gamma: ArrayLike,
    *,
    threshold: ArrayLike = 0.0,
    value: Value = "primitive",
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: Reduction = "mean",
    normalizer: float | None = None,
    axis: int = -1,
    grad_output: ArrayLike = 1.0,
) -> tuple[Doubles, Doubles]:
    """γ-cross-entropy and its gradient in the logits.

    Parameters
    ----------
    logits, targets, gamma, threshold, value, weight, sample_weight, ignore_index, \
label_smoothing, z_loss, reduction, normalizer, axis
        As for `loss`.
    grad_output : array_like of float
        Upstream gradient, which multiplies the gradient and not the loss: scalar; for "none" also
        of the targets' shape.

    Returns
    -------
    loss : float64
        As from `loss`.
    grad : float64 array of the logits' shape
        ``grad_output · sample_weight · ((1 - ε) c_y w_b (q - e_y) + (ε/V) Σ_v c_v (q - e_v)
        + 2 λ logsumexp(z) q)``, for "mean" divided as the loss is.

    Raises
    ------
    IndexError
        A target of V or more.
    ValueError
        An unknown `value` or `reduction`; and by numpy, where the shapes do not fit or V is 0.

    Notes
    -----
    Both values have the same gradient; arXiv 2302.13344.

    Examples
    --------
    >>> from gce import reference
    >>> value, grad = reference.loss_and_grad([0.0, 0.0], 1, gamma=1.0)
    >>> print(value, grad)
    0.5 [ 0.25 -0.25]
    """
    z, y, counted = _rows(logits, targets, axis, ignore_index)
    gamma, threshold, upstream = _doubles(gamma, threshold, grad_output)
    label_smoothing = float(label_smoothing)

    classes = z.shape[-1]
    c = np.ones(classes) if weight is None else np.asarray(weight, np.float64)
    per_row = np.float64(1.0) if sample_weight is None else np.asarray(sample_weight, np.float64)
    row_weight = np.broadcast_to(c[y] * per_row, y.shape)

    log_q, logsumexp, q = _softmax(z)
    log_p = _of_target(log_q, y)
    e_y = np.arange(classes) == y[..., np.newaxis]
    row_grad = (row_weight * grad_weight(log_p, gamma, threshold))[..., np.newaxis] * (q - e_y)
    target_loss = _row_value(value)(log_p, gamma, threshold)
    row_loss = row_weight * target_loss
    if label_smoothing != 0.0:
        spread = np.broadcast_to(per_row * (label_smoothing / classes), y.shape)
        smooth_grad = spread[..., np.newaxis] * (np.sum(c) * q - c)
        row_grad = (1.0 - label_smoothing) * row_grad + smooth_grad
        smooth = _weighted(spread, np.sum(_weighted(c, -log_q), axis=-1))
        row_loss = _weighted((1.0 - label_smoothing) * row_weight, target_loss) + smooth
    if z_loss != 0.0:
        share = np.broadcast_to(per_row * float(z_loss), y.shape)
        row_loss = row_loss + _weighted(share, logsumexp**2)
        row_grad = row_grad + (2.0 * share * logsumexp)[..., np.newaxis] * q
    row_grad = row_grad * np.broadcast_to(upstream, y.shape)[..., np.newaxis]

    # Chosen, not multiplied by 0: an ignored row may be NaN.
    row_loss = np.where(counted, row_loss, 0.0)
    row_grad = np.where(counted[..., np.newaxis], row_grad, 0.0)
    row_weight = np.where(counted, row_weight, 0.0)

    result, divisor = _reduce(row_loss, row_weight, reduction, normalizer)
    grad = np.zeros_like(row_grad) if divisor == 0.0 else row_grad / divisor
    return _plain(result), np.moveaxis(grad, -1, axis)


@np.errstate(all="ignore")
def loss_gamma_grad(
    logits: ArrayLike,
    targets: ArrayLike,
    gamma: ArrayLike,
    *,
    threshold: ArrayLike = 0.0,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    normalizer: float | None = None,
    axis: int = -1,
    grad_output: ArrayLike = 1.0,
) -> Doubles:
    """Differentiate the reduced loss in γ.

    Parameters
    ----------
    logits, targets, gamma, threshold, weight, sample_weight, ignore_index, label_smoothing, \
reduction, normalizer, axis, grad_output
        As for `loss_and_grad`.

    Returns
    -------
    float64 array of the shape of gamma (a scalar for a scalar)
        ``grad_output · sample_weight · (1 - ε) c_y dL/dγ`` of each row, for "mean" divided as the
        loss is; for a scalar γ the sum over rows.

    Raises
    ------
    IndexError
        A target of V or more.
    ValueError
        An unknown `reduction`; and by numpy, where the shapes do not fit or V is 0.

    Notes
    -----
    Below ``t* = bγ / (1 - bδ)`` the loss is ``L(t*) + b (log t* - ℓ)``. Its derivative in γ is that
    of L at t*: what t* moves by counts b both ways.

    Examples
    --------
    >>> from gce import reference
    >>> print(reference.loss_gamma_grad([[0.0, 0.0]], [0], 1.0))
    -0.125
    """
    z, y, counted = _rows(logits, targets, axis, ignore_index)
    gamma, threshold, upstream = _doubles(gamma, threshold, grad_output)
    c = np.ones(z.shape[-1]) if weight is None else np.asarray(weight, np.float64)
    per_row = np.float64(1.0) if sample_weight is None else np.asarray(sample_weight, np.float64)
    row_weight = np.where(counted, c[y] * per_row, 0.0)
    log_p = _of_target(_softmax(z)[0], y)
    one_minus_b_delta = 1.0 - threshold * (1.0 - gamma)
    log_t = np.log(threshold) + _log_s_star(gamma, threshold, one_minus_b_delta)
    slope = gamma_grad(np.where(log_p < log_t, log_t, log_p), gamma)
    row_grad = _weighted(upstream * (1.0 - label_smoothing) * row_weight, slope)
    row_grad = np.where(counted, row_grad, 0.0)
    divisor = _reduce(np.zeros_like(row_weight), row_weight, reduction, normalizer)[1]
    row_grad = np.zeros_like(row_grad) if divisor == 0.0 else row_grad / divisor
    return _plain(np.asarray(np.sum(row_grad) if gamma.ndim == 0 else row_grad))


def _reduce(
    row_loss: Doubles, row_weight: Doubles, reduction: Reduction, normalizer: float | None
) -> tuple[Doubles, np.float64]:
    """Return the reduced loss and what its gradient is to be divided by."""
    one, total = np.float64(1.0), np.asarray(np.sum(row_loss))
    if reduction == "none":
        return row_loss, one
    if reduction == "sum":
        return total, one
    if reduction == "mean":
        divisor = np.sum(row_weight) if normalizer is None else np.float64(normalizer)
        return np.zeros(()) if divisor == 0.0 else np.asarray(total / divisor), divisor
    raise ValueError(f"reduction = {reduction!r}, expected 'mean', 'sum' or 'none'")


def _row_value(value: Value) -> Any:
    """Return the function of (log_p, gamma, threshold) that `value` names."""
    if value == "primitive":
        return loss_from_log_prob
    if value == "surrogate":
        return surrogate_from_log_prob
    raise ValueError(f"value = {value!r}, expected 'primitive' or 'surrogate'")


def _rows(
    logits: ArrayLike, targets: ArrayLike, axis: int, ignore_index: int
) -> tuple[Doubles, NDArray[Any], NDArray[np.bool_]]:
    """Logits with the class axis last, targets (0 in ignored rows), and which rows count."""
    z = np.moveaxis(np.asarray(logits, dtype=np.float64), axis, -1)
    y = np.asarray(targets)
    counted = np.asarray(y != ignore_index)
    return z, np.where(counted, y, 0), counted


def _softmax(z: Doubles) -> tuple[Doubles, Doubles, Doubles]:
    """Log q, logsumexp and q of every row of z, shape (..., V)."""
    largest = np.max(z, axis=-1, keepdims=True)
    shifted = z - largest
    exponentials = np.exp(shifted)
    total = np.sum(exponentials, axis=-1, keepdims=True)
    # z - logsumexp(z) with the maximum cancelled by hand: 1e30 + log 2 would lose the log 2.
    log_q = shifted - np.log(total)
    logsumexp = largest + np.log(total)
    return log_q, logsumexp[..., 0], exponentials / total


def _of_target(log_q: Doubles, y: NDArray[Any]) -> Doubles:
    """ℓ, the entry of log q, shape (..., V), at the targets y, shape (...)."""
    return np.take_along_axis(log_q, y[..., np.newaxis], axis=-1)[..., 0]


def _weighted(weight: Doubles, value: Doubles) -> Doubles:
    """Weight times value, 0 where the weight is: an infinite value that does not count is none."""
    return np.where((weight == 0.0) & ~np.isnan(value), 0.0, weight * value)


def _doubles(*arrays: ArrayLike) -> list[Doubles]:
    """Return float64 arrays."""
    return [np.asarray(array, dtype=np.float64) for array in arrays]


def _plain(array: Doubles) -> Doubles:
    """Return a numpy scalar in place of an array of rank 0, as numpy's own functions do."""
    result: Doubles = array[()]
    return result
