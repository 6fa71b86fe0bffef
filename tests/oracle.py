"""The γ-cross-entropy in mpmath, right to 50 digits for the exact values of its float arguments.

Written apart from `gce.reference`, from the formulas of the specification, with digits in place of
care: what cancels is computed with enough of them. Finite logits of any size, and -inf.

    from oracle import row
    value, grad, weight, log_p = row([2.0, 0.0, -1.0], 0, gamma=0.1, b=0.2)

and `binary_element` is the same for one element of the sigmoid form.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import mpmath as mp

# Exponentials and their sums only add what is positive, or go through expm1 and log1p, which do
# not cancel: 50 digits and some for rounding, for rows may have 262,144 classes.
ROW_DIGITS = 60

# Scalars such as 1 - b(1 - γ) with b = 1, or γ + δp - 1, are formed as they are written. The
# smallest double is 5e-324: twice that and 50 digits more leave nothing to cancel.
SCALAR_DIGITS = 720

Real = Any  # mpmath has no types


class Row(NamedTuple):
    """What the oracle says about one row."""

    value: Real
    grad: list[Real]
    weight: Real
    log_p: Real


def row(
    logits: Sequence[float], target: int, gamma: float, b: float = 0.0, value: str = "primitive"
) -> Row:
    """Value, gradient, gradient weight w_b and log-probability of one row of logits."""
    with mp.workdps(ROW_DIGITS):
        z = [mp.mpf(float(logit)) for logit in logits]
        if mp.isinf(z[target]):
            return _masked_target(z, target, gamma, b, value)
        # p = 1 / (1 + rest): neither ℓ nor 1 - p cancels, however far p is from 1 or 0.
        odds = [mp.exp(z_j - z[target]) for z_j in z]
        rest = mp.fsum(odds[:target] + odds[target + 1 :])
        log_p, p, p_miss = -mp.log1p(rest), 1 / (1 + rest), rest / (1 + rest)
        w = _weight(p, gamma, b)
        grad = [w * odd * p for odd in odds]
        grad[target] = -w * p_miss
        return Row(_value(log_p, p, p_miss, gamma, b, value), grad, w, log_p)


def loss_rows(
    logits: Sequence[float], target: int, gamma: float, b: float = 0.0, value: str = "primitive"
) -> Real:
    """Value of one row alone."""
    return row(logits, target, gamma, b, value).value


def smoothed_row(
    logits: Sequence[float],
    target: int,
    gamma: float,
    epsilon: float,
    weight: Sequence[float],
    b: float = 0.0,
    value: str = "primitive",
) -> Row:
    """`row` with label smoothing ε and class weights c; its weight and ℓ are those of `row`.

    (1 - ε) c_y L + (ε/V) Σ_v c_v (-log q_v), where classes with c_v = 0 are no part of the sum, as
    L is none for c_y = 0 or ε = 1, even where it is infinite.
    """
    own = row(logits, target, gamma, b, value)
    with mp.workdps(ROW_DIGITS):
        z, c = ([mp.mpf(float(x)) for x in numbers] for numbers in (logits, weight))
        kept, share = (1 - mp.mpf(epsilon)) * c[target], mp.mpf(epsilon) / len(z)
        top = z.index(max(z))
        odds = [mp.exp(z_j - z[top]) for z_j in z]
        rest = mp.fsum(odds[:top] + odds[top + 1 :])
        # -log q_v = (z_top - z_v) + log(1 + rest): two terms of one sign.
        log_sum = mp.log1p(rest)
        terms = [c_j * (z[top] - z_j + log_sum) for c_j, z_j in zip(c, z, strict=True) if c_j != 0]
        result = share * mp.fsum(terms) + (kept * own.value if kept != 0 else 0)
        factor = share * mp.fsum(c) / (1 + rest)
        grad = [
            kept * own_j + (factor * odd - share * c_j)
            for own_j, odd, c_j in zip(own.grad, odds, c, strict=True)
        ]
        return Row(result, grad, own.weight, own.log_p)


def row_with_z_loss(
    logits: Sequence[float], target: int, gamma: float, z_loss: float, b: float = 0.0
) -> Row:
    """`row` with the primitive value and λ logsumexp(z)² more; weight and ℓ are those of `row`."""
    own = row(logits, target, gamma, b)
    with mp.workdps(ROW_DIGITS):
        z, factor = [mp.mpf(float(logit)) for logit in logits], mp.mpf(float(z_loss))
        top = max(z)
        odds = [mp.exp(z_j - top) for z_j in z]
        total = mp.fsum(odds)
        logsumexp = top + mp.log(total)
        share = 2 * factor * logsumexp / total
        grad = [own_j + share * odd for own_j, odd in zip(own.grad, odds, strict=True)]
        return Row(own.value + factor * logsumexp**2, grad, own.weight, own.log_p)


class AnyRow(NamedTuple):
    """What the oracle says about one row with any options."""

    value: Real
    grad: list[Real]
    product: list[Real]  # of the Hessian and the vector
    size: Real  # what the gradient's factors of q and of the unit vectors add up to


def any_row(
    logits: Sequence[float],
    targets: int | Sequence[float],
    gamma: float,
    b: float = 0.0,
    value: str = "primitive",
    *,
    weight: Sequence[float] | None = None,
    epsilon: float = 0.0,
    z_loss: float = 0.0,
    softcap: float = 0.0,
    vector: Sequence[float] | None = None,
    gauss_newton: bool = False,
) -> AnyRow:
    """Value, gradient and Hessian product of a row, whose target is a class or probabilities.

    Finite logits. The formulas are at the top of ``wide_rows.inc.h``; a class of weight or
    probability 0 is no part of a sum.
    """
    with mp.workdps(ROW_DIGITS):
        z, cap = [mp.mpf(float(logit)) for logit in logits], mp.mpf(float(softcap))
        classes = range(len(z))
        slope, bend, x = [mp.mpf(1)] * len(z), [mp.mpf(0)] * len(z), z
        if cap:
            tanh = [mp.tanh(z_v / cap) for z_v in z]
            x = [cap * tanh_v for tanh_v in tanh]
            slope = [mp.sech(z_v / cap) ** 2 for z_v in z]
            bend = [
                -2 * tanh_v * slope_v / cap for tanh_v, slope_v in zip(tanh, slope, strict=True)
            ]
        top = x.index(max(x))
        odds = [mp.exp(x_v - x[top]) for x_v in x]
        rest = mp.fsum(odds[:top] + odds[top + 1 :])
        total, log_total = 1 + rest, mp.log1p(rest)
        q = [odd / total for odd in odds]
        log_q = [x_v - x[top] - log_total for x_v in x]
        missing = [rest / total if v == top else 1 - q[v] for v in classes]
        lse = x[top] + log_total

        c = [mp.mpf(float(c_v)) for c_v in weight] if weight is not None else [mp.mpf(1)] * len(z)
        if isinstance(targets, int):
            t = [mp.mpf(int(v == targets)) for v in classes]
        else:
            t = [mp.mpf(float(t_v)) for t_v in targets]
        u = [mp.mpf(0)] * len(z)
        if vector is not None:
            u = [mp.mpf(float(u_v)) * slope_v for u_v, slope_v in zip(vector, slope, strict=True)]
        mean = mp.fsum(q_v * u_v for q_v, u_v in zip(q, u, strict=True))

        kept, share = 1 - mp.mpf(float(epsilon)), mp.mpf(float(epsilon)) / len(z)
        factor = mp.mpf(float(z_loss))
        result, a, m = mp.mpf(0), [mp.mpf(0)] * len(z), [mp.mpf(0)] * len(z)
        for k in classes:
            ct = kept * c[k] * t[k]
            if ct == 0:
                continue
            result += ct * _value(log_q[k], q[k], missing[k], gamma, b, value)
            a[k] = ct * _weight(q[k], gamma, b)
            free = _weight(q[k], gamma, 0.0)
            if not gauss_newton and free >= b:
                m[k] = a[k] * (1 - (1 - mp.mpf(gamma)) * free) * (u[k] - mean)
        if share:
            result += share * mp.fsum(-c[v] * log_q[v] for v in classes if c[v] != 0)
        result += factor * lse**2

        positive = max(lse, mp.mpf(0)) if gauss_newton else lse
        common = mp.fsum(a) + share * mp.fsum(c)
        of_all, of_product = common + 2 * factor * lse, common + 2 * factor * positive
        moved = mp.fsum(m) + 2 * factor * mean
        grad = [q[v] * of_all - a[v] - share * c[v] for v in classes]
        product = [slope[v] * (q[v] * (moved + of_product * (u[v] - mean)) - m[v]) for v in classes]
        if vector is not None and not gauss_newton:
            product = [product[v] + grad[v] * bend[v] * mp.mpf(float(vector[v])) for v in classes]
        grad = [slope[v] * grad[v] for v in classes]
        return AnyRow(result, grad, product, common + 2 * factor * (1 + abs(lse)))


class Element(NamedTuple):
    """What the oracle says about one element of the sigmoid form."""

    value: Real
    grad: Real
    # The sizes of what they are sums of: the factors' magnitudes, |c| t + 1 - t, and the same with
    # each times its gradient weight.
    size: Real
    slope_size: Real


def binary_element(
    logit: float,
    target: float,
    gamma: float,
    b: float = 0.0,
    value: str = "primitive",
    pos_weight: float = 1.0,
    epsilon: float = 0.0,
) -> Element:
    """c t L(p1) + (1 - t) L(p0) of one finite logit, after t -> (1 - ε) t + ε/2."""
    with mp.workdps(SCALAR_DIGITS):
        t, c, epsilon = mp.mpf(target), mp.mpf(pos_weight), mp.mpf(epsilon)
        t = (1 - epsilon) * t + epsilon / 2
        result, grad, size, slope_size = [mp.mpf(0)] * 4
        for factor, sign in ((c * t, 1), (1 - t, -1)):
            if factor == 0:
                continue
            # p = 1 / (1 + odds): neither ℓ nor 1 - p cancels.
            with mp.workdps(ROW_DIGITS):
                odds = mp.exp(-sign * mp.mpf(logit))
                log_p, p, p_miss = -mp.log1p(odds), 1 / (1 + odds), odds / (1 + odds)
            w = _weight(p, gamma, b)
            result += factor * _value(log_p, p, p_miss, gamma, b, value)
            grad -= sign * factor * w * p_miss
            size += abs(factor)
            slope_size += abs(factor) * w
        return Element(result, grad, size, slope_size)


def value_from_log_prob(
    log_p: float | Real, gamma: float, b: float = 0.0, value: str = "primitive"
) -> Real:
    """Value of a row whose target has this log-probability."""
    with mp.workdps(SCALAR_DIGITS):
        log_p = mp.mpf(log_p)
        return _value(log_p, mp.exp(log_p), -mp.expm1(log_p), gamma, b, value)


def weight_from_log_prob(log_p: float | Real, gamma: float, b: float = 0.0) -> Real:
    """Gradient weight w_b of a row whose target has this log-probability."""
    with mp.workdps(SCALAR_DIGITS):
        return _weight(mp.exp(mp.mpf(log_p)), gamma, b)


def gamma_grad(log_p: float | Real, gamma: float) -> Real:
    """Derivative of the primitive value in γ, for b = 0."""
    with mp.workdps(SCALAR_DIGITS):
        log_p, gamma = mp.mpf(log_p), mp.mpf(gamma)
        delta, p_miss = 1 - gamma, -mp.expm1(log_p)
        x = delta * p_miss
        # The two terms agree to order x²: from 1e-100 on they leave 720 - 200 digits, below it the
        # first terms of their series are right to 1e-100 · 1e-100.
        if x < mp.mpf("1e-100"):
            return -(p_miss**2) * (mp.mpf(1) / 2 + 2 * x / 3)
        s = gamma + delta * mp.exp(log_p)
        return -p_miss / (s * delta) - mp.log(s) / delta**2


def _weight(p: Real, gamma: float, b: float) -> Real:
    """max(b, w) with w = p / (γ + δp)."""
    with mp.workdps(SCALAR_DIGITS):
        if gamma == 0:
            return mp.mpf(1)
        gamma = mp.mpf(gamma)
        return max(mp.mpf(b), p / (gamma + (1 - gamma) * p))


def _value(log_p: Real, p: Real, p_miss: Real, gamma: float, b: float, value: str) -> Real:
    """Value of a row, given ℓ, p and 1 - p."""
    with mp.workdps(SCALAR_DIGITS):
        if value == "surrogate":
            return _weight(p, gamma, b) * -log_p
        assert value == "primitive", value
        gamma, b = mp.mpf(gamma), mp.mpf(b)
        delta = 1 - gamma
        if gamma == 0:
            return -log_p
        t = b * gamma / (1 - b * delta)
        if p < t:
            at_t = 1 - b if delta == 0 else -mp.log(gamma / (1 - b * delta)) / delta
            return at_t + b * (mp.log(t) - log_p)
        if delta == 0:
            return p_miss
        # 1 - p may be e^-1e30, which no number of digits of γ + δp shows.
        small = delta * p_miss < 0.5
        return -(mp.log1p(-delta * p_miss) if small else mp.log(gamma + delta * p)) / delta


def _masked_target(z: list[Real], target: int, gamma: float, b: float, value: str) -> Row:
    """Return the row whose target is at -inf: p = 0, some other logit being finite."""
    largest = max(z)
    odds = [mp.exp(z_j - largest) for z_j in z]
    total = mp.fsum(odds)
    w = _weight(mp.mpf(0), gamma, b)
    grad = [w * odd / total for odd in odds]
    grad[target] = -w
    if w > 0:
        result = mp.inf
    else:  # hence γ > 0 and b = 0
        surrogate = value == "surrogate"
        result = mp.mpf(0) if surrogate else _value(-mp.inf, mp.mpf(0), mp.mpf(1), gamma, 0, value)
    return Row(result, grad, w, -mp.inf)
