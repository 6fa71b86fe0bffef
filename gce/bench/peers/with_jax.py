"""JAX: jax.jit of the loss, or of its value_and_grad.

XLA takes as many threads as the process has CPUs, and cannot be told otherwise once it runs: who
wants another number restricts the process to as many CPUs, before anything imports jax.
"""

from __future__ import annotations

import os
from typing import Any

from gce.bench.cases import (
    BINARY,
    CAP,
    FORWARD,
    IN_PLACE,
    PROBABILITIES,
    PRODUCT,
    SOFTCAP,
    WEIGHTS,
    Data,
)
from gce.bench.contender import CannotDo, Contender, Work

__all__ = ["PEERS"]


def jitted(data: Data, threads: int) -> Work:
    """The compiled function, waited for."""
    case = data.case
    if case.work == IN_PLACE:
        raise CannotDo("its arrays cannot be written to")
    if hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) != threads:
        raise CannotDo(f"XLA uses every CPU of the process, which are not {threads}")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax
    import jax.numpy as jnp

    if case.dtype == "float64" and not jax.config.read("jax_enable_x64"):
        raise CannotDo("double precision is a setting of the process")
    z, axis = jnp.asarray(data.logits), case.axis
    y, gamma = jnp.asarray(data.targets), jnp.asarray(data.gamma, jnp.float32)
    weight = None if data.weight is None else jnp.asarray(data.weight)

    def of_log(log_p: Any, gamma: Any) -> Any:
        return -jnp.log(gamma + (1 - gamma) * jnp.exp(log_p)) / (1 - gamma)

    def loss(z: Any, y: Any, gamma: Any) -> Any:
        if case.options == BINARY:
            of_1, of_0 = jax.nn.log_sigmoid(z), jax.nn.log_sigmoid(-z)
            return (y * of_log(of_1, gamma) + (1 - y) * of_log(of_0, gamma)).mean()
        if case.options == PROBABILITIES:
            return (y * of_log(jax.nn.log_softmax(z, axis), gamma)).sum(axis).mean()
        if case.options == SOFTCAP:
            z = CAP * jnp.tanh(z / CAP)
        counted = y >= 0
        inside = jnp.where(counted, y, 0) if case.options == WEIGHTS else y
        log_p = jax.nn.log_softmax(z, axis)
        log_p = jnp.take_along_axis(log_p, jnp.expand_dims(inside, axis), axis).squeeze(axis)
        rows = of_log(log_p, gamma)
        if weight is None:
            return rows.mean()
        row_weights = jnp.where(counted, weight[inside], 0)
        return (rows * row_weights).sum() / row_weights.sum()

    if case.options == PRODUCT:
        vector = jnp.asarray(data.vector)
        product = jax.jit(lambda z: jax.jvp(lambda x: jax.grad(loss)(x, y, gamma), (z,), (vector,)))
        return lambda: (0.0, jax.block_until_ready(product(z)[1]))
    function = jax.jit(loss if case.work == FORWARD else jax.value_and_grad(loss))
    return lambda: jax.block_until_ready(function(z, y, gamma))


PEERS = (Contender("jax", jitted, "jax"),)
