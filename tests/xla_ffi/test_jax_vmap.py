"""gce.jax under vmap: what a loop would give; and second derivatives."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from jax_problems import (
    CASES,
    DTYPES,
    MAPPED,
    REDUCTIONS,
    assert_same_bits,
    assert_vmap_is_a_loop,
    float64_too,
    gamma_cross_entropy,
    jax,
    jax_alone,
    jnp,
    options_of,
    problem,
)

import gce

_jax = pytest.fixture(autouse=True)(jax_alone)
x64 = pytest.fixture(float64_too)

# --- vmap -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("in_axes", [(0, 0, None), (1, 0, None), (2, 1, 0), (None, 0, 0)])
def test_vmap_of_the_loss_and_of_its_gradient(reduction, in_axes):
    rng = np.random.default_rng(5)
    batch, rows, classes = 3, 4, 7

    def make(own: tuple[int, ...], axis: int | None) -> tuple[int, ...]:
        return own if axis is None else (*own[:axis], batch, *own[axis:])

    logits = rng.normal(size=make((rows, classes), in_axes[0])).astype(np.float32)
    targets = rng.integers(0, classes, size=make((rows,), in_axes[1])).astype(np.int32)
    gamma = rng.random(make((), in_axes[2])).astype(np.float32)
    function = functools.partial(gamma_cross_entropy, reduction=reduction)
    assert_vmap_is_a_loop(function, in_axes, logits, targets, gamma)
    gradient = jax.grad(lambda *given: function(*given).sum())
    assert_vmap_is_a_loop(gradient, in_axes, logits, targets, gamma)
    of_both = jax.grad(lambda *given: function(*given).sum(), argnums=(0, 2))
    assert_vmap_is_a_loop(of_both, in_axes, logits, targets, gamma)


@pytest.mark.parametrize("name", MAPPED)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_vmap_over_each_option(name, reduction):
    logits, targets = problem((4, 7))
    rng = np.random.default_rng(6)
    own = {"weight": (7,), "sample_weight": (4,)}.get(name, ())
    values = rng.uniform(0.1, 1.0, size=(3, *own)).astype(np.float32)
    if name == "normalizer" and reduction != "mean":
        reduction = "mean"

    def function(logits: Any, value: Any) -> Any:
        return gamma_cross_entropy(
            logits, targets, np.float32(0.3), reduction=reduction, **{name: value}
        )

    assert_vmap_is_a_loop(function, (None, 0), logits, values)
    gradient = jax.grad(lambda *given: function(*given).sum())
    assert_vmap_is_a_loop(gradient, (None, 0), logits, values)
    many = np.stack([logits, logits + 1, logits * 2])
    assert_vmap_is_a_loop(gradient, (0, 0), many, values)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_vmap_over_single_rows_is_one_problem(reduction):
    logits, targets = problem((64, 10))
    function = functools.partial(gamma_cross_entropy, reduction=reduction)
    found = jax.vmap(function, (0, 0, None))(logits, targets, 0.5)
    assert_same_bits(found, gce.loss(logits, targets, 0.5, reduction="none"))
    grad = jax.vmap(jax.grad(function), (0, 0, None))(logits, targets, 0.5)
    assert_same_bits(grad, gce.loss_and_grad(logits, targets, 0.5, reduction="none")[1])
    weight = np.linspace(0, 2, 10).astype(np.float32)
    weighted = functools.partial(function, weight=weight)
    assert_vmap_is_a_loop(weighted, (0, 0, None), logits, targets, 0.5)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nested_vmaps(reduction):
    logits, targets = problem((2, 3, 4, 7), axis=3)
    gamma = np.linspace(0, 1, 3).astype(np.float32)
    function = functools.partial(gamma_cross_entropy, reduction=reduction)
    inner = jax.vmap(function, (0, 0, 0))
    assert_vmap_is_a_loop(inner, (0, 0, None), logits, targets, gamma)
    outer = jax.vmap(jax.vmap(function, (None, None, 0)), (0, 0, None))  # gamma inside, logits out
    found = outer(logits[0], targets[0], gamma)
    for i, j in np.ndindex(3, 3):
        assert_same_bits(found[i, j], function(logits[0, i], targets[0, i], gamma[j]))


def test_vmap_of_nothing():
    for reduction in REDUCTIONS:
        function = functools.partial(gamma_cross_entropy, reduction=reduction)
        found = jax.vmap(function, (0, 0, None))(
            np.zeros((0, 4, 7), "f4"), np.zeros((0, 4), int), 0
        )
        assert found.shape == ((0, 4) if reduction == "none" else (0,))


# --- second derivatives ---------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_products_with_the_hessian_in_both_modes(case, reduction):
    for dtype in DTYPES[1:] if case == "all" else ("float32",):
        logits, targets = problem(dtype=dtype)
        options = {"reduction": reduction} | options_of(targets, 7)[case]
        if "ignore_index" in options:
            targets = np.abs(targets) % 7
        vector = np.random.default_rng(4).normal(size=logits.shape).astype(logits.dtype)
        expected = gce.hvp(logits, targets, vector, np.float32(0.3), **options)

        @jax.jit
        @jax.grad
        def gradient(logits: Any, targets: Any = targets, options: Any = options) -> Any:
            return gamma_cross_entropy(logits, targets, np.float32(0.3), **options).sum()

        def slope(logits: Any, gradient: Any = gradient, vector: Any = vector) -> Any:
            return jax.jvp(gradient, (logits,), (vector,))[1]

        def directional(logits: Any, gradient: Any = gradient, vector: Any = vector) -> Any:
            return jnp.vdot(gradient(logits), vector)

        assert_same_bits(slope(logits), expected)
        assert_same_bits(jax.grad(directional)(logits), expected)
        jax.config.update("jax_enable_x64", False)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_hessians(x64, reduction):
    logits, targets = problem((3, 4), "float64")

    def total(logits: Any) -> Any:
        rows = gamma_cross_entropy(logits, targets, 0.3, reduction=reduction)
        return (jnp.arange(1.0, 4.0) * rows).sum() if reduction == "none" else jnp.exp(rows)

    def plain(logits: Any) -> Any:
        counted = targets >= 0
        log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), (targets % 4)[:, None], 1)[:, 0]
        rows = -jnp.log(0.3 + 0.7 * jnp.exp(log_p)) / 0.7 * counted
        if reduction == "none":
            return (jnp.arange(1.0, 4.0) * rows).sum()
        return jnp.exp(rows.sum() / (counted.sum() if reduction == "mean" else 1))

    expected = jax.hessian(plain)(logits)
    # jacfwd of grad, and jacrev of it: a dozen roundings.
    for found in (jax.hessian(total)(logits), jax.jit(jax.jacrev(jax.grad(total)))(logits)):
        np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_second_derivatives_and_vmap(reduction):
    logits, targets = problem((4, 6, 7), axis=2)
    vectors = np.random.default_rng(8).normal(size=logits.shape).astype(np.float32)

    def gradient(logits: Any, targets: Any) -> Any:
        return jax.grad(lambda z: gamma_cross_entropy(z, targets, 0.5, reduction=reduction).sum())(
            logits
        )

    expected = [
        gce.hvp(*given, 0.5, reduction=reduction)
        for given in zip(logits, targets, vectors, strict=True)
    ]

    def outside(logits: Any) -> Any:  # of a penalty of the batch
        return (jax.vmap(gradient)(logits, targets) * vectors).sum()

    def inside(logits: Any, targets: Any, vector: Any) -> Any:
        return jax.grad(lambda z: (gradient(z, targets) * vector).sum())(logits)

    assert_same_bits(jax.jit(jax.grad(outside))(logits), np.stack(expected))
    assert_same_bits(jax.jit(jax.vmap(inside))(logits, targets, vectors), np.stack(expected))
    once = jax.vmap(inside, (None, None, 0))(logits[0], targets[0], vectors)
    again = [gce.hvp(logits[0], targets[0], v, 0.5, reduction=reduction) for v in vectors]
    assert_same_bits(once, np.stack(again))


def test_the_upstream_gradient_has_derivatives_too():
    logits, targets = problem()
    for dtype, reduction in (("float32", "none"), ("float32", "mean"), ("float16", "mean")):

        def power(logits: Any, reduction: Any = reduction) -> Any:
            options = {"reduction": reduction, "shift": 1}
            return (gamma_cross_entropy(logits, targets, 0.5, **options) ** 2).sum()

        z = jnp.asarray(logits, dtype)
        direction = jnp.ones_like(z).at[:, 0].set(2)
        found = jax.jvp(jax.grad(power), (z,), (direction,))[1]
        wide = z.astype("float32")
        step = 1e-2 * direction.astype("float32")
        expected = (jax.grad(power)(wide + step) - jax.grad(power)(wide - step)) / 2e-2
        # float16's rounding; else what differences leave out, (1e-2)^2 of a third derivative.
        np.testing.assert_allclose(found, expected, atol=3e-3)


def test_what_second_derivatives_there_are_not():
    logits, targets = problem()

    def loss_of(logits: Any, gamma: Any) -> Any:
        return gamma_cross_entropy(logits, targets, gamma)

    mixed = "second derivatives with respect to logits alone"
    with pytest.raises(NotImplementedError, match=mixed):
        jax.grad(lambda gamma: jax.grad(loss_of)(logits, gamma).sum())(0.5)
    with pytest.raises(NotImplementedError, match=mixed):
        jax.grad(lambda z: jax.grad(loss_of, 1)(z, 0.5))(logits)
    with pytest.raises(NotImplementedError, match="no third derivatives"):
        jax.jvp(jax.hessian(lambda z: loss_of(z, 0.5)), (logits,), (logits,))
    with pytest.raises(TypeError, match="forward-mode"):  # jax's own
        jax.jvp(lambda z: loss_of(z, 0.5), (logits,), (logits,))
