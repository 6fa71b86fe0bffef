"""Whole arrays of logits: what the fast code computes, for all of its options."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gce._types import Reduction, RowStats, Value
from gce.reference._log_prob import (
    Doubles,
    doubles,
    gamma_grad,
    grad_weight,
    log_t_star,
    loss_from_log_prob,
    plain,
    surrogate_from_log_prob,
)


@np.errstate(all="ignore")
def row_stats(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    axis: int = -1,
    ignore_index: int = -100,
    softcap: float | None = None,
    shift: int = 0,
) -> RowStats:
    """Log-probability of the target, logsumexp and argmax of every row.

    Parameters
    ----------
    logits : array_like of float
        Any rank from 1, V classes along `axis`.
    targets : array_like of int, or of float
        The logits' shape without `axis`; or probabilities, of the logits' shape.
    axis : int
        The class axis.
    ignore_index : int
        Rows with this target have ``target_log_prob`` 0.
    softcap, shift
        As for `loss`.

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
    For probabilities t it is ``Σ_k t_k log q_k``. Where no row predicts a target, all fields are 0
    and argmax -1. A NaN or +inf in a row, or a row of -inf only, gives NaN.

    Examples
    --------
    >>> from gce import reference
    >>> stats = reference.row_stats([[0.0, 0.0], [0.0, -float("inf")]], [1, 0])
    >>> print(stats.target_log_prob.round(6), stats.argmax)
    [-0.693147  0.      ] [0 0]
    """
    rows = _rows(logits, targets, axis, ignore_index, softcap, shift)
    log_p = np.sum(weighted(rows.share, rows.log_p), axis=-1)
    predicted = rows.predicted
    return RowStats(
        plain(np.where(rows.counted, log_p, 0.0)),
        plain(np.where(predicted, rows.logsumexp, 0.0)),
        np.where(predicted, np.argmax(rows.z, axis=-1), -1).astype(np.int64)[()],
    )


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
    softcap: float | None = None,
    shift: int = 0,
    reduction: Reduction = "mean",
    normalizer: float | None = None,
    axis: int = -1,
) -> Doubles:
    """γ-cross-entropy of logits against targets.

    Parameters
    ----------
    logits : array_like of float
        Any rank from 1, V classes along `axis`. -inf is a masked class.
    targets : array_like of int, or of float
        The logits' shape without `axis`; or probabilities, of the logits' shape.
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
    softcap : float, optional
        κ: ``x = κ tanh(z / κ)`` in place of the logits z.
    shift : int
        Row t of the last axis without classes is to predict target t + `shift`; the first `shift`
        targets, which none predicts, do not count.
    reduction : {"mean", "sum", "none"}
        "mean" divides the sum by `normalizer`.
    normalizer : float, optional
        Divisor of the mean; by default the sum over counted rows of ``weight[y] * sample_weight``,
        and for probabilities their number.
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
    For probabilities t the first term is ``(1 - ε) Σ_k c_k t_k L(log q_k)``.

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
        softcap=softcap,
        shift=shift,
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
    softcap: float | None = None,
    shift: int = 0,
    reduction: Reduction = "mean",
    normalizer: float | None = None,
    axis: int = -1,
    grad_output: ArrayLike = 1.0,
) -> tuple[Doubles, Doubles]:
    """γ-cross-entropy and its gradient in the logits.

    Parameters
    ----------
    logits, targets, gamma, threshold, value, weight, sample_weight, ignore_index, \
label_smoothing, z_loss, softcap, shift, reduction, normalizer, axis
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
        + 2 λ logsumexp(z) q)``, for "mean" divided as the loss is. For probabilities the first
        term is ``(1 - ε) (q Σ_k a_k - a)``, ``a_k = c_k t_k w_b(q_k)``. With softcap, times
        ``dx/dz = 1 - tanh²``.

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
    rows = _rows(logits, targets, axis, ignore_index, softcap, shift, weight, sample_weight)
    gamma, threshold, upstream = doubles(gamma, threshold, grad_output)
    own, smooth, z_share = _shares(rows, label_smoothing, z_loss)
    losses = _of_each(row_value(value), rows.log_p, gamma, threshold)
    row_loss = weighted(own, np.sum(weighted(rows.c_share, losses), axis=-1))
    if label_smoothing != 0.0:
        row_loss = row_loss + weighted(smooth, np.sum(weighted(rows.c, -rows.log_q), axis=-1))
    if z_loss != 0.0:
        row_loss = row_loss + weighted(z_share, rows.logsumexp**2)
    row_loss = np.where(rows.counted, row_loss, 0.0)  # chosen: an ignored row may be NaN
    divisor = divisor_of(rows.row_weight, reduction, normalizer)
    result = reduce(row_loss, divisor, reduction)

    row_grad = _gradient(rows, gamma, threshold, own, smooth, z_share)
    row_grad = row_grad * rows.slope * np.broadcast_to(upstream, rows.counted.shape)[..., None]
    return plain(result), _back(rows, row_grad, divisor, axis)


def _gradient(
    rows: _Rows, gamma: Doubles, threshold: Doubles, own: Doubles, smooth: Doubles, z_share: Doubles
) -> Doubles:
    """Return that of each row in x."""
    a = own[..., None] * rows.c_share * _of_each(grad_weight, rows.log_p, gamma, threshold)
    spread = smooth[..., None] * (np.sum(rows.c) * rows.q - rows.c)
    of_z = (2.0 * z_share * rows.logsumexp)[..., None] * rows.q if np.any(z_share) else 0.0
    result: Doubles = rows.times_q_minus_e(a) + spread + of_z
    return result


@np.errstate(all="ignore")
def hvp(
    logits: ArrayLike,
    targets: ArrayLike,
    vector: ArrayLike,
    gamma: ArrayLike,
    *,
    threshold: ArrayLike = 0.0,
    value: Value = "primitive",
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    shift: int = 0,
    reduction: Reduction = "mean",
    normalizer: float | None = None,
    axis: int = -1,
    grad_output: ArrayLike = 1.0,
    gauss_newton: bool = False,
) -> Doubles:
    """Multiply the Hessian of the reduced loss with a vector.

    Parameters
    ----------
    logits, targets, gamma, threshold, value, weight, sample_weight, ignore_index, \
label_smoothing, z_loss, softcap, shift, reduction, normalizer, axis, grad_output
        As for `loss_and_grad`; `value` changes nothing.
    vector : array_like of float
        u, of the logits' shape.
    gauss_newton : bool
        Multiply with the positive semi-definite part instead: w_b and dx/dz count as constants, and
        a negative logsumexp in z-loss's part as 0.

    Returns
    -------
    float64 array of the logits' shape
        The directional derivative of the gradient.

    Raises
    ------
    IndexError
        A target of V or more.
    ValueError
        An unknown `reduction`; and by numpy, where the shapes do not fit or V is 0.

    Notes
    -----
    The gradient of a row in x is ``Σ_k a_k (q - e_k) + S (C q - c) + 2 λ logsumexp(x) q``, with
    ``dq = q (u - q·u)``, ``d logsumexp = q·u`` and, where the threshold does not act,
    ``da_k = a_k (1 - δ w_k) (u_k - q·u)``. With softcap, ``g(x(z)) x'(z)`` is differentiated:
    ``x' = 1 - tanh²``, ``x'' = -2 tanh x' / κ``.

    Examples
    --------
    >>> from gce import reference
    >>> print(reference.hvp([[0.0, 0.0]], [0], [[1.0, 0.0]], 0.0))
    [[ 0.25 -0.25]]
    """
    rows = _rows(logits, targets, axis, ignore_index, softcap, shift, weight, sample_weight)
    gamma, threshold, upstream = doubles(gamma, threshold, grad_output)
    own, smooth, z_share = _shares(rows, label_smoothing, z_loss)
    vector = _shifted(np.moveaxis(np.asarray(vector, np.float64), axis, -1), shift)
    u = rows.slope * vector
    mean = np.sum(weighted(rows.q, u), axis=-1, keepdims=True)  # q.u
    dq = rows.q * (u - mean)

    w = _of_each(grad_weight, rows.log_p, gamma, threshold)
    a = own[..., None] * rows.c_share * w
    product = np.sum(a, axis=-1, keepdims=True) * dq
    if not gauss_newton:
        free = _of_each(grad_weight, rows.log_p, gamma, np.zeros(())) >= w  # b does not act
        delta = np.broadcast_to(1.0 - gamma, rows.counted.shape)[..., None]
        turn = np.where(free, 1.0 - delta * w, 0.0)
        product = product + rows.times_q_minus_e(a * turn * (rows.at_targets(u) - mean))
    product = product + smooth[..., None] * np.sum(rows.c) * dq
    if z_loss != 0.0:
        lse = np.maximum(rows.logsumexp, 0.0) if gauss_newton else rows.logsumexp
        product = product + 2.0 * z_share[..., None] * (rows.q * mean + lse[..., None] * dq)
    product = product * rows.slope
    if softcap and not gauss_newton:
        bend = -2.0 / softcap * np.tanh(rows.z / softcap) * rows.slope
        product = product + _gradient(rows, gamma, threshold, own, smooth, z_share) * bend * vector
    product = product * np.broadcast_to(upstream, rows.counted.shape)[..., None]
    divisor = divisor_of(rows.row_weight, reduction, normalizer)
    return _back(rows, product, divisor, axis)


@np.errstate(all="ignore")
def loss_gamma_grad(
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
    softcap: float | None = None,
    shift: int = 0,
    reduction: Reduction = "mean",
    normalizer: float | None = None,
    axis: int = -1,
    grad_output: ArrayLike = 1.0,
) -> Doubles:
    """Differentiate the reduced loss in γ.

    Parameters
    ----------
    logits, targets, gamma, threshold, value, weight, sample_weight, ignore_index, \
label_smoothing, z_loss, softcap, shift, reduction, normalizer, axis, grad_output
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
        The surrogate value; an unknown `reduction`; and by numpy, where the shapes do not fit or V
        is 0.

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
    if value != "primitive":
        raise ValueError(f"value = {value!r}, expected 'primitive'")
    rows = _rows(logits, targets, axis, ignore_index, softcap, shift, weight, sample_weight)
    gamma, threshold, upstream = doubles(gamma, threshold, grad_output)
    own, _, _ = _shares(rows, label_smoothing, z_loss)
    log_t = np.broadcast_to(log_t_star(gamma, threshold), rows.counted.shape)[..., None]
    log_p = np.where(rows.log_p < log_t, log_t, rows.log_p)
    slope = _of_each(lambda log_p, gamma, _: gamma_grad(log_p, gamma), log_p, gamma, threshold)
    row_grad = weighted(upstream * own, np.sum(weighted(rows.c_share, slope), axis=-1))
    row_grad = np.where(rows.counted, row_grad, 0.0)
    divisor = divisor_of(rows.row_weight, reduction, normalizer)
    row_grad = np.asarray(row_grad / divisor)
    return plain(np.asarray(np.sum(row_grad) if gamma.ndim == 0 else row_grad))


class _Rows(NamedTuple):
    """Rows with the class axis last: shapes (...), (..., V), and (..., K) for a row's K targets.

    A class index is K = 1 target, probabilities are K = V.
    """

    z: Doubles  # (..., V) logits
    slope: Doubles  # (..., V) dx/dz
    log_q: Doubles  # (..., V) log softmax(x)
    q: Doubles
    logsumexp: Doubles  # (...)
    log_p: Doubles  # (..., K) log q of the targets
    share: Doubles  # (..., K) t
    c_share: Doubles  # (..., K) c t
    of_class: NDArray[Any] | None  # (...) that of K = 1
    c: Doubles  # (V,) class weights
    per_row: Doubles  # (...) sample weights
    row_weight: Doubles  # (...) what a row counts for the mean
    counted: NDArray[np.bool_]  # (...)
    predicted: NDArray[np.bool_]  # (...) all but those that `shift` leaves without logits
    shift: int

    def times_q_minus_e(self, a: Doubles) -> Doubles:
        """``Σ_k a_k (q - e_k)`` of each row, for a of shape (..., K)."""
        if self.of_class is None:
            total: Doubles = np.sum(a, axis=-1, keepdims=True)
            return total * self.q - a
        e = np.arange(self.q.shape[-1]) == self.of_class[..., None]
        result: Doubles = np.where(e, a * (self.q - 1.0), a * self.q)
        return result

    def at_targets(self, u: Doubles) -> Doubles:
        """u, of shape (..., V), at the targets: (..., K)."""
        return (
            u if self.of_class is None else np.take_along_axis(u, self.of_class[..., None], axis=-1)
        )


def _rows(
    logits: ArrayLike,
    targets: ArrayLike,
    axis: int,
    ignore_index: int,
    softcap: float | None,
    shift: int,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
) -> _Rows:
    z = _shifted(np.moveaxis(np.asarray(logits, dtype=np.float64), axis, -1), shift)
    y = np.asarray(targets)
    c = np.ones(z.shape[-1]) if weight is None else np.asarray(weight, np.float64)
    tanh = np.tanh(z / softcap) if softcap else None
    x = z if tanh is None or softcap is None else softcap * tanh
    # 1 - tanh² without its cancellation.
    slope = np.ones_like(z) if tanh is None or softcap is None else 1.0 / np.cosh(z / softcap) ** 2
    log_q, logsumexp, q = _softmax(x)
    predicted = np.ones(z.shape[:-1], bool)
    if shift:
        predicted[..., :shift] = False
    per_row = np.float64(1.0) if sample_weight is None else np.asarray(sample_weight, np.float64)
    per_row = np.broadcast_to(per_row, predicted.shape)

    if np.issubdtype(y.dtype, np.integer):
        counted = predicted & (y != ignore_index)
        index = np.where(counted, y, 0)
        log_p = np.take_along_axis(log_q, index[..., None], axis=-1)
        share, c_share = np.ones(log_p.shape), c[index][..., None]
        row_weight = c[index] * per_row
    else:
        counted, index, log_p, row_weight = predicted, None, log_q, np.ones(predicted.shape)
        share = np.moveaxis(y.astype(np.float64), axis, -1)
        c_share = c * share
    row_weight = np.where(counted, row_weight, 0.0)
    of_rows = (log_p, share, c_share, index, c, per_row, row_weight, counted, predicted, shift)
    return _Rows(z, slope, log_q, q, logsumexp, *of_rows)


def _shifted(array: Doubles, shift: int) -> Doubles:
    """Bring row t, of shape (..., V), to where its target is, t + shift."""
    if not shift:
        return array
    moved = np.zeros_like(array)
    moved[..., shift:, :] = array[..., :-shift, :]
    return moved


def _back(rows: _Rows, row_grad: Doubles, divisor: np.float64, axis: int) -> Doubles:
    """What is there of each row, in the logits' order and shape."""
    row_grad = np.where(rows.counted[..., None], row_grad, 0.0)  # chosen: an ignored row may be NaN
    grad = np.asarray(row_grad / divisor)
    if rows.shift:
        back = np.zeros_like(grad)
        back[..., : -rows.shift, :] = grad[..., rows.shift :, :]
        grad = back
    return np.moveaxis(grad, -1, axis)


def _shares(rows: _Rows, label_smoothing: float, z_loss: float) -> tuple[Doubles, Doubles, Doubles]:
    """Return the factors of the targets' terms, of each class's -log q, and of z-loss."""
    own = (1.0 - float(label_smoothing)) * rows.per_row
    smooth = float(label_smoothing) / rows.z.shape[-1] * rows.per_row
    return own, smooth, float(z_loss) * rows.per_row


def _of_each(function: Any, log_p: Doubles, gamma: Doubles, threshold: Doubles) -> Doubles:
    """Give a function of (log_p, gamma, threshold) each target of a row with the row's options."""
    rows = log_p.shape[:-1]
    of_row = (np.broadcast_to(option, rows)[..., None] for option in (gamma, threshold))
    result: Doubles = np.asarray(function(log_p, *of_row))
    return result


def divisor_of(row_weight: Doubles, reduction: Reduction, normalizer: float | None) -> np.float64:
    """Return what the sum of losses, and every derivative, is to be divided by."""
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction = {reduction!r}, expected 'mean', 'sum' or 'none'")
    if reduction != "mean":
        return np.float64(1.0)
    if normalizer is not None:
        return np.float64(normalizer or np.inf)
    return np.sum(row_weight) if np.any(row_weight) else np.float64(np.inf)  # nothing: 0, not 0/0


def reduce(row_loss: Doubles, divisor: np.float64, reduction: Reduction) -> Doubles:
    """Return the reduced loss."""
    return row_loss if reduction == "none" else np.asarray(np.sum(row_loss) / divisor)


def row_value(value: Value) -> Any:
    """Return the function of (log_p, gamma, threshold) that `value` names."""
    if value == "primitive":
        return loss_from_log_prob
    if value == "surrogate":
        return surrogate_from_log_prob
    raise ValueError(f"value = {value!r}, expected 'primitive' or 'surrogate'")


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


def weighted(weight: Doubles, value: Doubles) -> Doubles:
    """Weight times value, 0 where the weight is: an infinite value that does not count is none."""
    return np.where((weight == 0.0) & ~np.isnan(value), 0.0, weight * value)
