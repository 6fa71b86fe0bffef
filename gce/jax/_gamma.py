"""The loss' derivative with respect to gamma."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from gce.jax._calls import Inputs, Options, call_gamma_grad

__all__ = ["gamma_gradient"]


def gamma_gradient(options: Options, inputs: Inputs, log_p: Any, grad_output: Any) -> Any:
    """Gradient in gamma's shape, from the log-probability of each row's target (0: ignored).

    Of a row it is ``G(p)``, which `gce.gamma_grad` computes, times what multiplies the row's loss;
    below the threshold's p* it is ``G(p*)``: there the loss is linear in log p with a slope, b,
    that does not depend on gamma.  ``p* = b gamma / (1 - b (1 - gamma))``.
    """
    gamma = inputs.gamma.astype(jnp.promote_types(inputs.gamma.dtype, jnp.float32))
    if inputs.threshold is not None:
        least = _log_of_threshold(inputs.threshold, gamma.astype(_wider(gamma, log_p)))
        log_p = jnp.maximum(log_p, least.astype(log_p.dtype))
    rows = call_gamma_grad(log_p, jnp.broadcast_to(gamma, log_p.shape))
    factors = grad_output * _factors(options, inputs, log_p)
    # A weight of 0 counts for nothing, even where the derivative is infinite.
    rows = factors * jnp.where(factors == 0, 0, rows)
    total = rows if gamma.shape == rows.shape else rows.sum()
    return total.astype(inputs.gamma.dtype)


def _wider(array: Any, other: Any) -> Any:
    return jnp.promote_types(array.dtype, other.dtype)


def _log_of_threshold(threshold: Any, gamma: Any) -> Any:
    """``log p*``, accurate near 0; 0 for b = 1, where no p is above it."""
    b = threshold.astype(gamma.dtype)
    return -jnp.log1p((1 - b) / jnp.where(b == 1, 1, b * gamma))


def _factors(options: Options, inputs: Inputs, log_p: Any) -> Any:
    """What multiplies each row's loss, beside the upstream gradient."""
    weights = _weights(options, inputs, log_p)
    factors = weights
    if inputs.label_smoothing is not None:
        factors = factors * (1 - inputs.label_smoothing.astype(log_p.dtype))
    if options.reduction != "mean":
        return factors
    if inputs.normalizer is not None:
        return factors / inputs.normalizer
    # A batch in which nothing counts has loss 0, not 0 / 0.
    return jnp.where(jnp.any(weights != 0), factors / weights.sum(), 0)


def _weights(options: Options, inputs: Inputs, log_p: Any) -> Any:
    """Class weight times sample weight of each row, 0 if it is ignored."""
    targets, ignored = inputs.targets, options.ignore_index
    limits = jnp.iinfo(targets.dtype)
    # An ignore_index that the targets' dtype cannot hold is the target of no row.
    can_be = ignored is not None and limits.min <= ignored <= limits.max
    is_counted = targets != ignored if can_be else jnp.ones(targets.shape, bool)
    weights = is_counted.astype(log_p.dtype)
    if inputs.weight is not None:
        weights = weights * inputs.weight[jnp.where(is_counted, targets, 0)]
    if inputs.sample_weight is not None:
        weights = weights * inputs.sample_weight
    return weights
