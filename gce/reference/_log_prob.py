"""One row, given the log-probability of its target. Elementwise; arguments broadcast.

Every function is under errstate: each branch of a `where` is computed for every element, so that
branches not taken divide by zero, overflow or give NaN; and infinite logits are allowed.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Doubles: TypeAlias = NDArray[np.float64]


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
    log_p, gamma, threshold = doubles(log_p, gamma, threshold)
    delta = 1.0 - gamma
    # e^-ℓ in two halves: for γ = 1e-300 and ℓ = -710, e^-ℓ overflows where γ e^-ℓ = 2e8.
    gamma_over_p = gamma * np.exp(-log_p / 2) * np.exp(-log_p / 2)
    w = 1.0 / (delta + gamma_over_p)
    # γ = 0: 0 * e^-ℓ would be NaN where e^-ℓ overflows. A NaN in ℓ stays NaN.
    w = np.where((gamma == 0.0) & ~np.isnan(log_p), 1.0, w)
    return plain(np.maximum(threshold, w))


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
    log_p, gamma, threshold = doubles(log_p, gamma, threshold)
    delta = 1.0 - gamma
    p_miss = 0.0 - np.expm1(log_p)  # 1 - p

    head = -_log_s(log_p, gamma) / delta
    # The limit for δ(1 - p) → 0: 1 - p, itself near 0 or because δ is.
    head = np.where(delta * p_miss < 1e-17, p_miss, head)

    log_s_star = _log_s_star(gamma, threshold)
    log_t_star = np.log(threshold) + log_s_star
    head_star = -log_s_star / delta
    head_star = np.where(delta == 0.0, 1.0 - threshold, head_star)
    tail = head_star + threshold * (log_t_star - log_p)

    value = np.where(log_p < log_t_star, tail, head)
    return plain(np.where(gamma == 0.0, 0.0 - log_p, value))


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
    log_p, gamma, threshold = doubles(log_p, gamma, threshold)
    w_b = grad_weight(log_p, gamma, threshold)
    value = w_b * (0.0 - log_p)
    return plain(np.where((w_b == 0.0) & np.isneginf(log_p), 0.0, value))


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
    log_p, gamma = doubles(log_p, gamma)
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
    return plain(np.where(x < 0.75, near, far))


def _log_s(log_p: Doubles, gamma: Doubles) -> Doubles:
    """``log(γ + δp)``."""
    delta = 1.0 - gamma
    x = delta * -np.expm1(log_p)  # δ(1 - p) = 1 - s
    # For large x from the logarithms of both terms, since p may underflow.
    return np.where(x < 0.5, np.log1p(-x), np.logaddexp(np.log(gamma), np.log(delta) + log_p))


def _log_s_star(gamma: Doubles, threshold: Doubles) -> Doubles:
    """``log(γ / (1 - bδ))``, the log of s at t*, where ``t* = b s``, as w = t*/s is b there."""
    # 1 - bδ, which cancels for b near 1 and γ near 0, is (1 - b) + bγ.
    one_minus_b_delta = (1.0 - threshold) + threshold * gamma
    x = (1.0 - gamma) * (1.0 - threshold) / one_minus_b_delta  # 1 - γ/(1 - bδ)
    x = np.where(threshold == 1.0, 0.0, x)  # at γ = 0 it is 0/0
    return np.where(x < 0.5, np.log1p(-x), np.log(gamma) - np.log(one_minus_b_delta))


def log_t_star(gamma: Doubles, threshold: Doubles) -> Doubles:
    """``log t*``, ``t* = bγ / (1 - bδ)``: below it the threshold acts."""
    return np.log(threshold) + _log_s_star(gamma, threshold)


def doubles(*arrays: ArrayLike) -> list[Doubles]:
    """Return float64 arrays."""
    return [np.asarray(array, dtype=np.float64) for array in arrays]


def plain(array: Doubles) -> Doubles:
    """Return a numpy scalar in place of an array of rank 0, as numpy's own functions do."""
    result: Doubles = array[()]
    return result
