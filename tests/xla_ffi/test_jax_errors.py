"""gce.jax: errors of the numpy face, and what importing needs."""

from __future__ import annotations

import functools
import inspect
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from jax_problems import (
    MAPPED,
    NUMBERS,
    fails,
    float64_too,
    gamma_cross_entropy,
    jax,
    jax_alone,
    jnp,
    problem,
)

import faults
import gce

_jax = pytest.fixture(autouse=True)(jax_alone)
x64 = pytest.fixture(float64_too)

# --- errors ---------------------------------------------------------------------------------------

# jax raises the latter from its fast path, which calls programs that have run before.
RUN_TIME = (jax.errors.JaxRuntimeError, ValueError) if jax else ()
TAKEN = set(inspect.signature(gamma_cross_entropy).parameters) if jax else set()


@pytest.mark.parametrize(
    "case",
    [case for case in faults.TABLE if set(case.given) <= TAKEN],
    ids=lambda case: case.message[:60],
)
def test_arguments_that_are_no_jax_arrays_fail_as_those_of_numpy(case):
    faults.call_in_vain(
        gamma_cross_entropy, case.error, case.pattern, faults.arguments() | case.given
    )


WRONG_WHEN_TRACED: list[dict[str, Any]] = [
    {"logits": jax and jnp.ones((4, 5), int)},
    {"logits": jax and jnp.ones((4, 5), complex)},
    {"logits": jax and jnp.ones(())},
    {"logits": jax and jnp.ones((4, 0))},
    {"targets": jax and jnp.ones(4)},
    {"targets": jax and jnp.ones((4, 4))},
    {"targets": jax and jnp.ones(4, bool)},
    {"targets": jax and jnp.ones((4, 1), int)},
    {"gamma": jax and jnp.ones(3)},
    {"threshold": jax and jnp.ones((4, 5))},
    {"weight": jax and jnp.ones(4)},
    {"sample_weight": jax and jnp.ones(())},
]


@pytest.mark.parametrize("given", WRONG_WHEN_TRACED, ids=lambda given: next(iter(given)))
def test_shapes_and_dtypes_are_checked_when_traced(given):
    arguments = {name: jnp.asarray(a) for name, a in faults.arguments().items()} | given
    with pytest.raises((TypeError, ValueError)) as expected:
        gce.loss(**{name: np.asarray(array) for name, array in arguments.items()})
    for call in (gamma_cross_entropy, jax.jit(gamma_cross_entropy)):
        with fails(expected.type, str(expected.value)):
            call(**arguments)


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_scalars(name):
    given = faults.arguments()
    with fails(ValueError, f"{name} has shape (2,), expected a scalar"):
        jax.jit(gamma_cross_entropy)(**given, **{name: jnp.ones(2)})
    with fails(TypeError, f"{name} has dtype complex64, expected float"):
        gamma_cross_entropy(**given, **{name: jnp.ones((), complex)})
    assert jnp.isfinite(gamma_cross_entropy(**given, **{name: jnp.ones((), int)}))


@pytest.mark.parametrize(
    "given",
    [
        {"targets": [0, 1, 5, 2]},
        {"targets": [0, 1, -1, 2]},
        {"gamma": 1.5},
        {"gamma": np.nan},
        {"gamma": [0.5, 0.5, -1.0, 0.5]},
        {"threshold": 2.0},
        {"label_smoothing": -0.5},
        {"z_loss": np.inf},
        {"softcap": -1.0},
        {"targets": np.full((4, 5), -0.5, np.float32)},
        {"normalizer": 0.0},
    ],
    ids=str,
)
def test_what_only_the_running_program_knows(given):
    plain = faults.arguments() | given
    with pytest.raises((ValueError, IndexError)) as expected:
        gce.loss(**plain)
    arrays = {name: jnp.asarray(array) for name, array in plain.items()}
    message = f"INVALID_ARGUMENT: {re.escape(str(expected.value))}"
    for function in (gamma_cross_entropy, jax.jit(gamma_cross_entropy)):
        with pytest.raises(RUN_TIME, match=message):
            jax.block_until_ready(function(**arrays))
        # And the next call is right again.
        assert jnp.isfinite(function(**{k: jnp.asarray(a) for k, a in faults.arguments().items()}))


def test_an_error_under_vmap_says_where():
    logits, targets = problem((2, 3, 4, 7), axis=3)
    targets = np.abs(targets) % 7
    targets[1, 2, 3] = 9
    given = (jnp.asarray(logits), jnp.asarray(targets))
    for reduction, text in (
        ("none", "targets[1, 2, 3] = 9, expected 0 <= target < 7"),
        ("mean", "targets[3] = 9, expected 0 <= target < 7, in the call at [1, 2] of vmap"),
    ):
        function = functools.partial(gamma_cross_entropy, gamma=0.5, reduction=reduction)
        with pytest.raises(RUN_TIME, match=re.escape(text)):
            jax.block_until_ready(jax.vmap(jax.vmap(function))(*given))


WITHOUT_DERIVATIVE = (
    "gamma_cross_entropy is not differentiable with respect to {}, expected logits or gamma: "
    "jax.lax.stop_gradient makes a constant of it"
)


@pytest.mark.parametrize("name", MAPPED)
def test_what_has_no_derivative_says_so(name):
    logits, targets = problem()
    own = {"weight": (7,), "sample_weight": (6,)}.get(name, ())
    message = WITHOUT_DERIVATIVE.format(name)
    for transform in (jax.grad, lambda function: jax.grad(jax.jit(function))):
        with fails(TypeError, message):
            transform(lambda option: gamma_cross_entropy(logits, targets, 0.5, **{name: option}))(
                jnp.full(own, 0.5)
            )


def test_probabilities_have_no_derivative():
    logits, _ = problem()
    with fails(TypeError, WITHOUT_DERIVATIVE.format("targets")):
        jax.grad(lambda targets: gamma_cross_entropy(logits, targets, 0.5))(jnp.ones((6, 7)))


def test_the_surrogate_has_no_derivative_in_gamma():
    logits, targets = problem()
    with pytest.raises(ValueError) as expected:
        gce.loss_gamma_grad(logits, targets, 0.5, value="surrogate")
    with fails(ValueError, str(expected.value)):
        jax.grad(functools.partial(gamma_cross_entropy, value="surrogate"), argnums=2)(
            logits, targets, 0.5
        )


# --- importing ------------------------------------------------------------------------------------


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_gce_does_not_import_jax():
    assert run_python("import sys, gce; print('jax' in sys.modules)").split() == ["False"]
    assert run_python("import gce; print(gce.jax.gamma_cross_entropy.__name__)").split() == [
        "gamma_cross_entropy"
    ]


def test_without_jax_the_error_says_what_to_install():
    code = """if True:
        import sys
        sys.modules["jax"] = None
        import gce
        try:
            import gce.jax
        except ModuleNotFoundError as error:
            print(error)
    """
    assert run_python(code).strip() == (
        "gce.jax needs jax 0.5 or newer, which is not installed: pip install 'gamma-ce[jax]'"
    )


def test_the_options_are_those_of_the_numpy_face():
    ours = inspect.signature(gamma_cross_entropy).parameters
    theirs = inspect.signature(gce.loss).parameters
    assert set(theirs) - set(ours) == {"num_threads", "return_stats"}  # XLA has its threads
    assert set(ours) <= set(theirs)
    assert all(ours[name].default == theirs[name].default for name in ours)
    assert all(ours[name].kind == theirs[name].kind for name in ours)


@pytest.mark.parametrize(
    ("name", "number", "found"),
    [
        ("normalizer", 1e-60, "1e-60 is 0"),
        ("softcap", 1e-60, "1e-60 is 0"),
        ("softcap", 1e60, "1e+60 is inf"),
        ("z_loss", 1e60, "1e+60 is inf"),
    ],
)
def test_numbers_that_no_float32_holds(name, number, found):
    with fails(ValueError, f"{name} = {found} in float32, which jax has"):
        gamma_cross_entropy(**faults.arguments(), **{name: number})
