"""gce.jax has the bits of the numpy face, whatever jax does with it (vmap: test_jax_vmap.py)."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from jax_problems import (
    CASES,
    DTYPES,
    REDUCTIONS,
    TENTH,
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
from gce import _native, reference
from support import require

_jax = pytest.fixture(autouse=True)(jax_alone)
x64 = pytest.fixture(float64_too)

# --- values and gradients -------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bits_of_loss_and_grad(dtype, case):
    logits, targets = problem(dtype=dtype)
    options = options_of(targets, 7)[case]
    if options.get("ignore_index", 0) != -100 and "ignore_index" in options:
        targets = np.abs(targets) % 7
    gamma = np.float32(0.3)
    for reduction in ("mean", "sum"):
        function = functools.partial(gamma_cross_entropy, reduction=reduction, **options)
        expected = gce.loss_and_grad(logits, targets, gamma, reduction=reduction, **options)
        for found in (
            jax.value_and_grad(function)(logits, targets, gamma),
            jax.jit(jax.value_and_grad(function))(logits, targets, gamma),
        ):
            assert_same_bits(found[0], expected[0])
            assert_same_bits(found[1], expected[1])
        assert_same_bits(function(logits, targets, gamma), expected[0])
    per_row = functools.partial(gamma_cross_entropy, reduction="none", **options)
    upstream = np.linspace(-1, 2, 6).astype(np.float64 if dtype == "float64" else np.float32)
    losses, pull = jax.vjp(lambda logits: per_row(logits, targets, gamma), logits)
    expected = gce.loss_and_grad(
        logits, targets, gamma, reduction="none", grad_output=upstream, **options
    )
    assert_same_bits(losses, expected[0])
    assert_same_bits(pull(upstream)[0], expected[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_targets_that_are_probabilities(dtype, reduction, axis):
    logits, _ = problem((3, 4, 5), dtype)
    targets = np.random.default_rng(1).random((3, 4, 5)).astype(np.float32)
    options: dict[str, Any] = {"axis": axis, "reduction": reduction, "label_smoothing": TENTH}
    gamma = np.linspace(0, 1, 60 // logits.shape[axis]).astype(np.float32)
    gamma = gamma.reshape(np.delete(logits.shape, axis))
    expected = gce.loss_and_grad(logits, targets, gamma, **options)
    function = functools.partial(gamma_cross_entropy, **options)
    loss, pull = jax.vjp(lambda logits: function(logits, targets, gamma), logits)
    assert_same_bits(loss, expected[0])
    assert_same_bits(pull(jnp.ones_like(loss))[0], expected[1])
    many = np.stack([logits, logits * 2])
    assert_vmap_is_a_loop(function, (0, None, None), many, targets, gamma)
    assert_vmap_is_a_loop(function, (None, 0, 0), logits, np.stack([targets] * 2), [gamma] * 2)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((7,), 0), ((5, 1), 1), ((3, 4, 7), -1), ((3, 7, 4, 2), 1), ((7, 5), 0), ((7, 5), -2)],
)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_shapes_and_axes(shape, axis, reduction):
    logits, targets = problem(shape, axis=axis)
    gamma = np.random.default_rng(0).random(targets.shape).astype(np.float32)
    options: dict[str, Any] = {"axis": axis, "reduction": reduction}
    expected = gce.loss_and_grad(logits, targets, gamma, **options)
    function = functools.partial(gamma_cross_entropy, **options)
    loss, pull = jax.vjp(lambda logits: function(logits, targets, gamma), logits)
    assert_same_bits(loss, expected[0])
    assert_same_bits(pull(jnp.ones_like(loss))[0], expected[1])


@pytest.mark.parametrize(
    "dtype", [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
)
def test_targets_of_each_integer_dtype(x64, dtype):
    logits, targets = problem()
    targets = np.abs(targets % 7).astype(dtype)
    ignored = jax.jit(lambda targets: gamma_cross_entropy(logits, targets, 0.5, ignore_index=3))
    assert_same_bits(ignored(targets), gce.loss(logits, targets, 0.5, ignore_index=3))
    for index in (-100, 255, 2**63 - 1):  # which not every dtype can hold
        found = jax.grad(
            lambda gamma, index=index: gamma_cross_entropy(
                logits, targets, gamma, ignore_index=index
            )
        )(0.5)
        assert np.isfinite(found)


@pytest.mark.parametrize("ignored", [-(2**63), 2**32 + 1, 2**63 - 1])
def test_ignored_targets_that_32_bits_do_not_hold(ignored):
    logits, targets = problem()
    targets = np.abs(targets.astype(np.int64) % 7)
    targets.flat[::3] = ignored
    options = {"ignore_index": ignored, "reduction": "none"}
    expected = gce.loss(logits, targets, 0.5, **options)
    for given in (targets, targets.tolist()):
        assert_same_bits(gamma_cross_entropy(logits, given, 0.5, **options), expected)


def test_integers_that_32_bits_do_not_hold():
    logits, targets = problem((8, 5))
    large = 2**32 + 8
    for options in (
        {"normalizer": large},
        {"normalizer": np.int64(large)},
        {"normalizer": 10**25},
        {"softcap": np.int64(2**32 + 1)},
        {"z_loss": np.int64(2**32 + 1)},
        {"weight": np.arange(5) + 2**32},
        {"sample_weight": np.full(8, 2**32)},
        {"sample_weight": [2**40] * 8},
    ):
        found = gamma_cross_entropy(logits, targets, 0.5, **options)
        np.testing.assert_allclose(found, gce.loss(logits, targets, 0.5, **options), rtol=1e-6)


@pytest.mark.filterwarnings("error")
def test_numpys_error_state_is_not_asked():
    logits, targets = problem((8, 5))
    with np.errstate(all="raise"):
        assert np.isfinite(gamma_cross_entropy(logits, targets, np.float64(1e-300)))
        with pytest.raises(ValueError, match=r"z_loss = 1e\+300 is inf in float32"):
            gamma_cross_entropy(logits, targets, 0.5, z_loss=np.float64(1e300))


def test_subnormal_numbers_which_xla_takes_for_0():
    logits = np.array([[0, 1, 2], [-np.inf, 0, 0]], "f4")
    tiny = np.full(3, 1e-40, "f4")
    for options in (
        {"weight": tiny},
        {"normalizer": float(tiny[0]), "sample_weight": tiny[:2]},
        {"normalizer": 3e38},
        {"z_loss": float(tiny[0]), "reduction": "none"},
    ):
        expected = gce.loss(logits, [0, 1], 0.5, **options)
        assert_same_bits(gamma_cross_entropy(logits, [0, 1], 0.5, **options), expected)
    found = gamma_cross_entropy(logits, [0, 0], tiny[:2], reduction="none")
    assert_same_bits(found, gce.loss(logits, [0, 0], tiny[:2], reduction="none"))


def test_against_the_reference():
    logits, targets = problem((40, 11))
    for gamma, b in itertools.product((0.0, 1e-7, 0.5, 1.0), (0.0, 0.2, 1.0)):
        found = jax.value_and_grad(gamma_cross_entropy)(logits, targets, gamma, threshold=b)
        expected = reference.loss_and_grad(logits, targets, gamma, threshold=b)
        # Some roundings of float32, of the loss and of numbers such as b = 0.2.
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
        np.testing.assert_allclose(found[1], expected[1], rtol=2e-6, atol=1e-8)


def test_cross_entropy_is_that_of_optax():
    require(importlib.util.find_spec("optax"), "optax is not installed")
    import optax

    logits, targets = problem((30, 12))
    targets = targets % 12
    theirs = optax.losses.softmax_cross_entropy_with_integer_labels
    ours = functools.partial(gamma_cross_entropy, reduction="none")
    # Theirs rounds logsumexp to float32: some 1e-7 of losses up to 10.
    np.testing.assert_allclose(ours(logits, targets, 0.0), theirs(logits, targets), atol=2e-6)
    found, expected = (
        jax.grad(lambda logits, loss=loss: (loss(logits) ** 2).mean())(logits)
        for loss in (lambda z: ours(z, targets, 0.0), lambda z: theirs(z, targets))
    )
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-7)


def test_an_upstream_gradient_multiplies_the_kept_gradient():
    logits, targets = problem()
    _, gradient = gce.loss_and_grad(logits, targets, 0.5)
    found = jax.grad(lambda logits: jnp.exp(3 * gamma_cross_entropy(logits, targets, 0.5)))(logits)
    factor = 3 * np.exp(3 * np.float64(gce.loss(logits, targets, 0.5)))
    np.testing.assert_allclose(found, factor * gradient, rtol=1e-6)  # a few roundings


def test_a_loss_scale_saves_small_gradients_of_float16():
    # The mean's gradients are 2**-25, which float16 rounds to 0, but for the scale.
    logits, targets = np.zeros((4, 2048), np.float16), np.zeros(4, np.int32)

    def mean(logits: Any, scale: float) -> Any:
        return scale * gamma_cross_entropy(logits, targets, 0.0, normalizer=2.0**14)

    assert float(jax.grad(mean)(logits, 1.0)[0, 1]) == 0.0
    assert float(jax.grad(mean)(logits, 2.0**10)[0, 1]) == 2.0**-15


def test_a_gradient_is_not_multiplied_by_1():
    logits, targets = problem((64, 32))
    step = jax.jit(jax.value_and_grad(gamma_cross_entropy))
    compiled = step.lower(logits, targets, 0.5).compile().as_text()
    assert compiled
    assert compiled.count("custom_call_target=") == 1
    assert "multiply(" not in compiled


def test_the_loss_alone_makes_no_gradient():
    logits, targets = problem()
    for make, results in ((jax.jit(gamma_cross_entropy), 1), (jax.value_and_grad, 2)):
        function = jax.jit(make(gamma_cross_entropy) if results == 2 else make)
        text = function.lower(logits, targets, 0.5).as_text()
        assert ("loss,grad" in text) is (results == 2)


# --- the derivative in gamma ----------------------------------------------------------------------


@pytest.mark.parametrize("case", [case for case in CASES if case != "surrogate"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_gradient_in_gamma_is_that_of_the_core(case, reduction, dtype):
    logits, targets = problem(dtype=dtype)
    options = {"reduction": reduction} | options_of(targets, 7)[case]
    if "ignore_index" in options:
        targets = np.abs(targets) % 7
    wide = np.float64 if dtype == "float64" else np.float32
    rng = np.random.default_rng(3)
    upstream = rng.normal(size=6).astype(wide) if reduction == "none" else wide(1)
    for shape in ((), targets.shape):
        gamma = rng.random(shape).astype(wide)
        expected = gce.loss_gamma_grad(logits, targets, gamma, grad_output=upstream, **options)
        _, pull = jax.vjp(
            lambda g, **more: gamma_cross_entropy(logits, targets, g, **(options | more)), gamma
        )
        assert_same_bits(pull(upstream)[0], np.asarray(expected, wide))  # rounded once


@pytest.mark.parametrize("gamma_dtype", DTYPES)
def test_the_gradient_in_gamma_has_its_dtype(x64, gamma_dtype):
    for dtype in DTYPES:
        logits, targets = problem(dtype=dtype)
        gamma = jnp.asarray(0.25, gamma_dtype)
        found = jax.grad(gamma_cross_entropy, argnums=2)(logits, targets, gamma)
        expected = gce.loss_gamma_grad(logits, targets, 0.25)
        assert_same_bits(
            found, np.asarray(expected, np.promote_types("f4", gamma.dtype)).astype(gamma.dtype)
        )


def test_only_what_is_asked_for_is_computed():
    logits, targets = problem()
    for argnums, outputs in ((0, "loss,grad"), (2, "loss,gamma_grad")):
        gradient = jax.jit(jax.grad(gamma_cross_entropy, argnums))
        assert f'"{outputs}"' in gradient.lower(logits, targets, 0.5).as_text()
    both = jax.jit(jax.grad(gamma_cross_entropy, (0, 2)))
    assert '"loss,grad,gamma_grad"' in both.lower(logits, targets, 0.5).as_text()
    for found, expected in zip(
        both(logits, targets, 0.5),
        (jax.grad(gamma_cross_entropy, n)(logits, targets, 0.5) for n in (0, 2)),
        strict=True,
    ):
        assert_same_bits(found, expected)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_jax_finds_the_gradients_right(x64, reduction):
    from jax.test_util import check_grads

    logits, targets = problem((5, 4), "float64")
    for options in ({}, {"label_smoothing": 0.1, "z_loss": 0.01, "threshold": 0.2, "softcap": 5.0}):

        def function(logits: Any, gamma: Any, options: Any = options) -> Any:
            return gamma_cross_entropy(logits, targets, gamma, reduction=reduction, **options)

        check_grads(function, (logits, 0.4), order=1, modes=["rev"])
        check_grads(functools.partial(function, gamma=0.4), (logits,), order=2, modes=["rev"])


# --- within jax -----------------------------------------------------------------------------------


def test_new_numbers_compile_nothing_anew():
    logits, targets = problem()
    traces = []

    @jax.jit
    def step(logits: Any, gamma: Any, smoothing: Any, z_loss: Any, normalizer: Any) -> Any:
        traces.append(1)
        return jax.value_and_grad(gamma_cross_entropy)(
            logits,
            targets,
            gamma,
            label_smoothing=smoothing,
            z_loss=z_loss,
            normalizer=normalizer,
        )

    for gamma in np.linspace(0, 1, 5).tolist():
        options = {"label_smoothing": gamma / 2, "z_loss": gamma / 10, "normalizer": 1.0 + gamma}
        found = step(logits, gamma, *options.values())
        rounded = {name: np.float32(number) for name, number in options.items()}
        expected = gce.loss_and_grad(logits, targets, np.float32(gamma), **rounded)
        assert_same_bits(found[0], expected[0])
        assert_same_bits(found[1], expected[1])
    assert len(traces) == 1


def test_new_numbers_outside_of_a_jit_compile_nothing_either(caplog):
    logits, targets = (jnp.asarray(array) for array in problem((3, 5)))
    step = jax.value_and_grad(gamma_cross_entropy)
    with jax.log_compiles():
        jax.block_until_ready(step(logits, targets, 0.1))
        assert "compil" in caplog.text.lower()
        caplog.clear()
        for gamma in (0.2, 0.3, 0.4):
            jax.block_until_ready(step(logits, targets, gamma))
    assert "compil" not in caplog.text.lower()


def test_scan_and_remat():
    logits, targets = problem((4, 6, 7), axis=2)
    gammas = np.linspace(0, 1, 4).astype(np.float32)

    def total(logits: Any, gammas: Any, wrap: Any) -> Any:
        def body(sum_: Any, xs: Any) -> Any:
            return sum_ + wrap(gamma_cross_entropy)(*xs), None

        return jax.lax.scan(body, 0.0, (logits, targets, gammas))[0]

    expected = np.stack(
        [gce.loss_and_grad(*given)[1] for given in zip(logits, targets, gammas, strict=True)]
    )
    for wrap in (lambda f: f, jax.checkpoint, jax.jit):
        found = jax.grad(total)(logits, gammas, wrap)
        assert_same_bits(found, expected)
        assert np.isfinite(jax.grad(total, argnums=1)(logits, gammas, wrap)).all()


def test_training():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 8)).astype(np.float32)
    labels = (x @ rng.normal(size=(8, 4))).argmax(axis=1)

    def loss_of(parameters: Any, gamma: Any) -> Any:
        hidden = jnp.tanh(x @ parameters[0])
        return gamma_cross_entropy(hidden @ parameters[1], labels, gamma)

    @jax.jit
    def step(parameters: Any, gamma: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_of)(parameters, gamma)
        return loss, jax.tree.map(lambda p, g: p - 0.5 * g, parameters, grads)

    parameters = [rng.normal(size=shape).astype("f4") * 0.3 for shape in ((8, 16), (16, 4))]
    schedule = gce.schedules.linear(100, end=0.8)
    losses = []
    for i in range(200):
        loss, parameters = step(parameters, schedule(i))
        losses.append(float(loss))
    predicted = (np.tanh(x @ parameters[0]) @ parameters[1]).argmax(axis=1)
    assert (predicted == labels).mean() > 0.95
    assert losses[-1] < losses[0] / 4


def test_gradients_stop_at_constants():
    logits, targets = problem()

    def own_weights(logits: Any) -> Any:
        weights = jax.lax.stop_gradient(jax.nn.softmax(logits).max(axis=-1))
        return gamma_cross_entropy(logits, targets, 0.5, sample_weight=weights)

    weights = np.asarray(jax.nn.softmax(logits).max(axis=-1))
    _, expected = gce.loss_and_grad(logits, targets, 0.5, sample_weight=weights)
    assert_same_bits(jax.grad(own_weights)(logits), expected)


# --- IEEE numbers, empty batches, threads ---------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nan_and_infinities_stay_in_their_rows(dtype):
    logits, targets = problem((6, 7), dtype)
    targets = np.abs(targets) % 7
    logits[0, 3], logits[1, 2], logits[2, 1] = np.nan, np.inf, -np.inf
    logits[3] = -np.inf
    targets[2] = 1  # masked
    for gamma in (0.0, 0.5):
        expected = gce.loss_and_grad(logits, targets, gamma, reduction="none")
        found, pull = jax.vjp(
            lambda z, g=gamma: gamma_cross_entropy(z, targets, g, reduction="none"), logits
        )
        for one, other in ((found, expected[0]), (pull(jnp.ones(6))[0], expected[1])):
            np.testing.assert_array_equal(np.asarray(one, "f4"), np.asarray(other, "f4"))
        assert np.isfinite(np.asarray(found)[4:]).all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_where_nothing_counts(reduction):
    function = functools.partial(gamma_cross_entropy, reduction=reduction)
    for rows in (0, 3):
        logits, targets = np.ones((rows, 5), np.float32), np.full(rows, -100)
        loss = jax.jit(function)(logits, targets, 0.5)
        assert loss.shape == ((rows,) if reduction == "none" else ())
        grads = jax.grad(lambda *given: function(*given).sum(), (0, 2))(logits, targets, 0.5)
        assert not np.any(loss) and not np.any(grads[0]) and grads[1] == 0.0


CHECK_ISA = """
import jax, numpy as np, gce, gce._native
from gce.jax import gamma_cross_entropy
rng = np.random.default_rng(0)
step = jax.jit(jax.value_and_grad(gamma_cross_entropy))
for shape in ((9, 3), (5, 33), (3, 70000)):
    logits, targets = rng.normal(size=shape).astype("f4"), rng.integers(0, shape[1], shape[0])
    for found, expected in zip(step(logits, targets, 0.5), gce.loss_and_grad(logits, targets, 0.5)):
        assert np.asarray(found).tobytes() == expected.tobytes(), shape
print(gce._native.isa_name())
"""


@pytest.mark.parametrize("name", _native.compiled_isas())
def test_each_instruction_set(name):
    if name not in _native.available_isas():
        pytest.skip(f"this CPU has no {name}")
    environment = os.environ | {"GCE_FORCE_ISA": name}
    done = subprocess.run(
        [sys.executable, "-c", CHECK_ISA],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [name]


def test_large_problems_have_the_bits_of_one_thread():
    rng = np.random.default_rng(0)
    for shape in ((3000, 200), (2, 700_000)):  # rows in chunks; and rows in segments
        logits = rng.normal(size=shape).astype(np.float32)
        targets = rng.integers(0, shape[1], size=shape[0])
        expected = gce.loss_and_grad(logits, targets, 0.5, num_threads=1)
        for _ in range(5):
            found = jax.jit(jax.value_and_grad(gamma_cross_entropy))(logits, targets, 0.5)
            assert_same_bits(found[0], expected[0])
            assert_same_bits(found[1], expected[1])


def test_many_calls_at_once():
    # More calls than XLA has threads, each of which asks for all of them: none may wait for ever.
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(8, 600, 1000)).astype(np.float32)
    targets = rng.integers(0, 1000, size=(8, 600))
    step = jax.jit(jax.value_and_grad(gamma_cross_entropy))
    two = jax.jit(lambda *given: (step(*given), step(given[0] * 1, *given[1:])))  # side by side
    expected = [gce.loss_and_grad(z, y, 0.5) for z, y in zip(logits, targets, strict=True)]

    def call(i: int) -> Any:
        return jax.block_until_ready(two(logits[i % 8], targets[i % 8], 0.5))

    with ThreadPoolExecutor(8) as pool:
        for i, pair in enumerate(pool.map(call, range(48))):
            for found in pair:
                assert_same_bits(found[0], expected[i % 8][0])
                assert_same_bits(found[1], expected[i % 8][1])
