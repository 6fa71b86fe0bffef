"""The reference against its derivatives, against 50 digits, and at the edges."""

from __future__ import annotations

from typing import Any

import mpmath as mp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax

import gce
import oracle
from gce import reference

pytestmark = pytest.mark.filterwarnings("error")

GAMMAS = [0.0, 1e-300, 1e-30, 1e-7, 0.1, 0.5, 1 - 1e-7, 1.0]
THRESHOLDS = [0.0, 1e-10, 0.3, 1.0]
VALUES = ["primitive", "surrogate"]
# Around 1 - p = 1/2, where formulas switch; around -37, -709 and -745, where 1 + p, 1/p and p
# underflow or overflow; around log 1e-300 = -690.8; and the ends.
LOG_PS = [
    *[0.0, -5e-324, -1e-300, -1e-30, -1e-16, -1e-8, -1e-3, -0.1, -0.5, -0.69, -0.7, -1.0, -1.5],
    *[-3.0, -16.0, -36.0, -37.0, -69.0, -300.0, -690.0, -691.0, -709.0, -710.0, -745.0, -746.0],
    *[-1500.0, -1e5, -1e30, -1e308],
    *np.linspace(-6.0, -0.2, 15).tolist(),  # where a logarithm, or a difference, could cancel
]

# A handful of roundings, each of 1.1e-16: measured 3.9e-16 for the primitive, 5.3e-16 for weight
# and surrogate, 9.2e-16 for the derivative in γ. Half as much again for another libm.
RELATIVE = 8e-16
RELATIVE_GAMMA_GRAD = 1.5e-15
# e^-ℓ overflows at ℓ = -709.8, so w is 0 where it should be up to 6e-309 (with γ near 1e-300 the
# halves of e^-ℓ keep it); the surrogate multiplies that by -ℓ.
ABSOLUTE = 1e-300


def assert_close(got: np.ndarray, want: object, relative: float, absolute: float) -> None:
    """Compare a double with an mpf, of which some are beyond the doubles."""
    if mp.isinf(want) or abs(want) > np.finfo(float).max:
        assert got == float(want)
        return
    error = abs(mp.mpf(float(got)) - want)
    assert error <= max(relative * abs(want), absolute), (got, mp.nstr(want, 20))


def random_rows(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows with p from nearly 1 down to e^-18, so that w lies on both sides of any threshold."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=1.5, size=(12, 7))
    targets = rng.integers(7, size=12)
    logits[np.arange(12), targets] += np.linspace(-18, 9, 12)
    return logits, targets


def finite_differences(function, logits: np.ndarray, step: float) -> np.ndarray:
    """Central differences of a function from logits to one value per row."""
    result = np.empty_like(logits)
    for j in range(logits.shape[-1]):
        shift = step * (np.arange(logits.shape[-1]) == j)
        result[..., j] = (function(logits + shift) - function(logits - shift)) / (2 * step)
    return result


# With step 1e-5: rounding of values up to 20 gives 3.6e-15 / 1e-5 = 4e-10, the third derivative
# (at most 1 in size) 1e-10 / 6. A wrong term or factor shows as 1e-3 and more.
STEP, DIFFERENCE_TOLERANCE = 1e-5, 1e-9


def check_gradients(logits, targets, options: dict[str, Any], tolerance: float) -> None:
    """The gradients of `gce` and of the reference are the differences of their losses."""
    for module in (gce, reference):
        _, grad = module.loss_and_grad(logits, targets, **options)
        differences = finite_differences(
            lambda z, module=module: module.loss(z, targets, **options), logits, STEP
        )
        np.testing.assert_allclose(grad, differences, rtol=0.0, atol=tolerance)


# --- derivatives -----------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("gamma", GAMMAS)
def test_gradient_is_that_of_the_primitive_value(gamma, threshold):
    logits, targets = random_rows()
    _, grad = reference.loss_and_grad(logits, targets, gamma, threshold=threshold, reduction="none")
    differences = finite_differences(
        lambda z: reference.loss(z, targets, gamma, threshold=threshold, reduction="none"),
        logits,
        STEP,
    )
    np.testing.assert_allclose(grad, differences, rtol=0, atol=DIFFERENCE_TOLERANCE)


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("gamma", GAMMAS)
def test_gradient_is_that_of_the_surrogate_with_its_weight_frozen(gamma, threshold):
    logits, targets = random_rows()
    value, grad = reference.loss_and_grad(
        logits, targets, gamma, threshold=threshold, value="surrogate", reduction="none"
    )
    log_p = reference.row_stats(logits, targets).target_log_prob
    frozen = value / -log_p
    differences = finite_differences(
        lambda z: frozen * -reference.row_stats(z, targets).target_log_prob, logits, STEP
    )
    np.testing.assert_allclose(grad, differences, rtol=0, atol=DIFFERENCE_TOLERANCE)


def test_thresholds_in_these_tests_bite():
    logits, targets = random_rows()
    log_p = reference.row_stats(logits, targets).target_log_prob
    below = reference.grad_weight(log_p, 0.5) < 0.3
    assert below.any() and not below.all()


@pytest.mark.parametrize("gamma", [0.1, 0.5, 0.9])
def test_gamma_grad_is_the_derivative_in_gamma(gamma):
    log_p = np.linspace(-18, -0.01, 50)
    above, below = (reference.loss_from_log_prob(log_p, gamma + sign * STEP) for sign in (1, -1))
    # The third derivative in γ reaches 1/γ³ · 2: 2000 · 1e-10 / 6 = 3e-8 at γ = 0.1.
    np.testing.assert_allclose(
        reference.gamma_grad(log_p, gamma), (above - below) / (2 * STEP), rtol=0, atol=1e-7
    )


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("log_p", [-5.0, -0.7, -1e-3])
def test_oracle_gamma_grad_is_its_derivative_in_gamma(log_p, gamma):
    with mp.workdps(50):
        derivative = mp.diff(
            lambda g: oracle.value_from_log_prob(log_p, g),
            gamma,
            direction=1 if gamma < 0.5 else -1,
        )
        # One-sided steps of 1e-50 or so are as exact as their digits: half of 50 to be safe.
        assert mp.almosteq(oracle.gamma_grad(log_p, gamma), derivative, rel_eps=1e-25)


def test_the_essays_value_at_gamma_1_differs_by_the_constant_1():
    logits, targets = random_rows()
    value, grad = reference.loss_and_grad(logits, targets, 1.0, reduction="none")

    def essay(z: np.ndarray) -> np.ndarray:
        return -np.exp(np.take_along_axis(log_softmax(z, axis=-1), targets[:, None], -1)[:, 0])

    # Two values in [0, 1], each rounded by at most 1.1e-16, from ℓ good to 1e-15.
    np.testing.assert_allclose(value - essay(logits), 1.0, rtol=0, atol=4e-15)
    differences = finite_differences(essay, logits, STEP)
    np.testing.assert_allclose(grad, differences, rtol=0, atol=DIFFERENCE_TOLERANCE)


# --- 50 digits -------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("gamma", [*GAMMAS, 5e-324, 1 - 2.0**-53])
def test_value_and_weight_against_50_digits(gamma, threshold):
    for log_p in LOG_PS:
        args = (log_p, gamma, threshold)
        # Not so much as an absolute error for the primitive: only denormals lose digits.
        assert_close(
            reference.loss_from_log_prob(*args),
            oracle.value_from_log_prob(*args),
            RELATIVE,
            np.finfo(float).tiny,
        )
        assert_close(
            reference.surrogate_from_log_prob(*args),
            oracle.value_from_log_prob(*args, "surrogate"),
            RELATIVE,
            ABSOLUTE,
        )
        assert_close(
            reference.grad_weight(*args), oracle.weight_from_log_prob(*args), RELATIVE, ABSOLUTE
        )


@pytest.mark.parametrize("gamma", [*GAMMAS, 5e-324, 1 - 2.0**-53])
def test_gamma_grad_against_50_digits(gamma):
    for log_p in [*LOG_PS, *np.linspace(-1.0, -0.01, 30)]:
        got, want = reference.gamma_grad(log_p, gamma), oracle.gamma_grad(log_p, gamma)
        # (1 - p)² underflows below 1e-308.
        assert_close(got, want, RELATIVE_GAMMA_GRAD, np.finfo(float).tiny)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("threshold", [0.0, 0.3])
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 30.0, 1e3, 1e30])
def test_rows_against_50_digits(scale, gamma, threshold, value):
    rng = np.random.default_rng(7)
    for n_classes in (1, 2, 5):
        logits, target = scale * rng.normal(size=n_classes), int(rng.integers(n_classes))
        got, grad = reference.loss_and_grad(logits, target, gamma, threshold=threshold, value=value)
        want = oracle.row(logits.tolist(), target, gamma, threshold, value)
        # The promises of the specification for float64.
        assert_close(got, want.value, 1e-14, 1e-15)
        for got_j, want_j in zip(grad, want.grad, strict=True):
            # A few roundings of q_j <= 1 and of w; and logits of 1e3 less the largest are rounded
            # by up to 1e3 · 1.1e-16, in the exponent. Of larger ones exponentials are 0 or 1.
            tolerance = 5e-16 * max(1.0, min(scale, 1e3))
            assert_close(got_j, want_j, 0.0, float(tolerance * want.weight) + ABSOLUTE)


# --- identities ------------------------------------------------------------------------------

log_probs = st.floats(-1e308, 0.0)
unit = st.floats(0.0, 1.0)


@given(log_probs, unit, unit)
def test_value_lies_between_accuracy_and_cross_entropy(log_p, gamma, threshold):
    accuracy = reference.loss_from_log_prob(log_p, 1.0)
    free = reference.loss_from_log_prob(log_p, gamma)
    bounded = reference.loss_from_log_prob(log_p, gamma, threshold)
    # 1 - p <= L(b = 0) <= L(b) <= -ℓ, of which equalities may be off by their rounding.
    slack = 1 + 2 * RELATIVE
    assert 0 <= accuracy <= free * slack
    assert free <= bounded * slack
    assert bounded <= -log_p * slack


@given(log_probs, unit, unit)
def test_weight_lies_between_threshold_and_1(log_p, gamma, threshold):
    assert threshold <= reference.grad_weight(log_p, gamma, threshold) <= 1.0


@given(log_probs, unit)
def test_cross_entropy_where_gamma_is_0_or_threshold_is_1(log_p, knob):
    for value in (reference.loss_from_log_prob, reference.surrogate_from_log_prob):
        assert value(log_p, 0.0, knob) == -log_p
        assert value(log_p, knob, 1.0) == -log_p
    assert reference.grad_weight(log_p, 0.0, knob) == 1.0


def test_gamma_0_gives_every_log_probability_back():
    log_p = -np.logspace(-20, 3, 500)  # log1p(expm1(ℓ)) would miss some by a rounding
    np.testing.assert_array_equal(reference.loss_from_log_prob(log_p, 0.0), -log_p)


@given(log_probs, unit)
def test_value_and_gamma_grad_are_continuous_up_to_gamma_1(log_p, threshold):
    for function, args in (
        (reference.loss_from_log_prob, (threshold,)),
        (reference.gamma_grad, ()),
    ):
        last, end = function(log_p, 1 - 2.0**-53, *args), function(log_p, 1.0, *args)
        # Their derivatives in γ are at most 1 + b and 2/3 there, times 2^-53, and both round.
        assert last == pytest.approx(end, rel=2 * RELATIVE_GAMMA_GRAD, abs=4e-16)


def test_gamma_0_is_scipys_cross_entropy():
    logits, targets = random_rows()
    log_q = log_softmax(logits, axis=-1)
    value, grad = reference.loss_and_grad(logits, targets, 0.0, reduction="none")
    rows = np.arange(len(targets))
    # Sums of 7 exponentials and a logarithm, twice: 10 roundings of values up to 20.
    np.testing.assert_allclose(value, -log_q[rows, targets], rtol=1e-14, atol=1e-15)
    np.testing.assert_allclose(grad, np.exp(log_q) - np.eye(7)[targets], rtol=0, atol=4e-15)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_gradient_sums_to_0_and_a_shift_changes_nothing(gamma):
    logits, targets = random_rows()
    logits = np.round(logits * 1024) / 1024  # so that adding 4096 is exact
    value, grad = reference.loss_and_grad(logits, targets, gamma)
    shifted_value, shifted_grad = reference.loss_and_grad(logits + 4096.0, targets, gamma)
    assert value == shifted_value
    np.testing.assert_array_equal(grad, shifted_grad)
    # 7 numbers of at most 1/12.
    np.testing.assert_allclose(grad.sum(axis=-1), 0.0, rtol=0, atol=1e-16)


# --- options ---------------------------------------------------------------------------------

SHAPES = [((5,), 0), ((4, 5), -1), ((5, 4), 0), ((2, 5, 3), 1), ((5, 2, 3), 0), ((2, 3, 5, 2), -2)]


def options_for(shape: tuple[int, ...], per_row: bool) -> dict[str, object]:
    """Return every option at a value of its own, scalar or per row."""
    rng = np.random.default_rng(3)
    row_shape = shape if per_row else ()
    return {
        "gamma": rng.uniform(size=row_shape),
        "threshold": rng.uniform(0, 0.5, size=row_shape),
        "weight": rng.uniform(0.5, 2.0, size=5),
        "sample_weight": rng.uniform(0.5, 2.0, size=shape),
    }


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "normalizer"])
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_options_against_a_loop_over_rows(shape, axis, reduction, value, per_row):
    rng = np.random.default_rng(2)
    logits = rng.normal(size=shape)
    row_shape = np.moveaxis(logits, axis, -1).shape[:-1]
    targets = rng.integers(5, size=row_shape)
    if targets.size > 1:
        targets.flat[1] = 3  # ignored
    options = options_for(row_shape, per_row)
    upstream = rng.normal(size=row_shape if reduction == "none" and per_row else ())
    normalizer = 7.5 if reduction == "normalizer" else None

    got, grad = reference.loss_and_grad(
        logits,
        targets,
        value=value,
        ignore_index=3,
        reduction="mean" if normalizer else reduction,
        normalizer=normalizer,
        axis=axis,
        grad_output=upstream,
        **options,
    )

    losses, grads, total_weight = np.zeros(row_shape), np.zeros((*row_shape, 5)), 0.0
    for i in np.ndindex(row_shape):
        if targets[i] == 3:
            continue
        gamma, threshold, out = (
            float(np.broadcast_to(array, row_shape)[i])
            for array in (options["gamma"], options["threshold"], upstream)
        )
        row = oracle.row(
            np.moveaxis(logits, axis, -1)[i].tolist(), int(targets[i]), gamma, threshold, value
        )
        row_weight = options["weight"][targets[i]] * options["sample_weight"][i]
        losses[i] = row_weight * float(row.value)
        grads[i] = row_weight * out * np.array([float(g) for g in row.grad])
        total_weight += row_weight
    divisor = {"mean": total_weight, "normalizer": normalizer}.get(reduction, 1.0) or 1.0
    want = losses if reduction == "none" else losses.sum() / divisor

    # Up to 12 rows of values of order 1, a few roundings each.
    np.testing.assert_allclose(got, want, rtol=1e-14, atol=1e-15)
    np.testing.assert_allclose(grad, np.moveaxis(grads / divisor, -1, axis), rtol=1e-13, atol=5e-15)


def test_grad_output_leaves_the_loss_alone():
    logits, targets = random_rows()
    value, grad = reference.loss_and_grad(logits, targets, 0.4)
    scaled_value, scaled_grad = reference.loss_and_grad(logits, targets, 0.4, grad_output=-2.0)
    assert value == scaled_value == reference.loss(logits, targets, 0.4)
    np.testing.assert_array_equal(scaled_grad, -2.0 * grad)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_narrow_floats_are_taken_to_float64_first(dtype):
    dtype = np.dtype(getattr(pytest.importorskip("ml_dtypes"), dtype, dtype))
    logits, targets = random_rows()
    logits = logits.astype(dtype)
    for got, want in zip(
        reference.loss_and_grad(logits, targets, 0.3),
        reference.loss_and_grad(logits.astype(np.float64), targets, 0.3),
        strict=True,
    ):
        assert got.dtype == np.float64
        np.testing.assert_array_equal(got, want)


def test_results_are_scalars_or_arrays_as_from_numpy():
    logits, targets = random_rows()
    assert isinstance(reference.loss(logits, targets, 0.5), np.float64)
    assert isinstance(reference.loss(logits[0], targets[0], 0.5, reduction="none"), np.float64)
    assert reference.loss(logits, targets, 0.5, reduction="none").shape == (12,)


def test_arguments_are_left_alone():
    logits, targets = random_rows()
    before = logits.copy()
    _, grad = reference.loss_and_grad(logits, targets, 0.5)
    np.testing.assert_array_equal(logits, before)
    assert not np.shares_memory(grad, logits)


def test_bad_options_and_targets_raise():
    with pytest.raises(ValueError, match="reduction = 'average', expected 'mean'"):
        reference.loss([0.0, 1.0], 0, 0.5, reduction="average")
    with pytest.raises(ValueError, match="value = 'true', expected 'primitive'"):
        reference.loss([0.0, 1.0], 0, 0.5, value="true")
    with pytest.raises(IndexError):
        reference.loss([0.0, 1.0], 2, 0.5)


# --- row_stats -------------------------------------------------------------------------------


def test_row_stats():
    logits = np.array([[0.0, 3.0, 3.0], [1e30, 0.0, -1e30], [5.0, 5.0, 5.0]])
    stats = reference.row_stats(logits, [0, 0, -100])
    # One exponential, one logarithm and two sums of values up to 4.
    np.testing.assert_allclose(
        stats.target_log_prob, [-np.log(1 + 2 * np.exp(3.0)), 0.0, 0.0], rtol=1e-15
    )
    np.testing.assert_allclose(
        stats.logsumexp, [np.log(1 + 2 * np.exp(3.0)), 1e30, 5 + np.log(3)], rtol=1e-15
    )
    np.testing.assert_array_equal(stats.argmax, [1, 0, 0])
    assert stats.argmax.dtype == np.int64


def test_row_stats_takes_any_axis():
    logits = np.random.default_rng(0).normal(size=(3, 4, 5))
    targets = np.random.default_rng(1).integers(4, size=(3, 5))
    middle = reference.row_stats(logits, targets, axis=1)
    last = reference.row_stats(np.moveaxis(logits, 1, -1), targets)
    for got, want in zip(middle, last, strict=True):
        assert got.shape == (3, 5)
        np.testing.assert_array_equal(got, want)


# --- edges -----------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("normalizer", [None, 0.0, 3.0])
def test_nothing_to_count_is_0(reduction, normalizer):
    kwargs = {"gamma": 0.5, "reduction": reduction, "normalizer": normalizer}
    for logits, targets in (
        (np.empty((0, 4)), np.empty(0, int)),
        (np.full((2, 4), np.nan), [-100, -100]),
    ):
        value, grad = reference.loss_and_grad(logits, targets, **kwargs)
        assert value == 0.0
        np.testing.assert_array_equal(grad, np.zeros(logits.shape))


@pytest.mark.parametrize(
    "kwargs", [{"normalizer": 0.0}, {"weight": np.zeros(7)}, {"sample_weight": np.zeros(12)}]
)
def test_a_mean_over_0_is_0(kwargs):
    logits, targets = random_rows()
    value, grad = reference.loss_and_grad(logits, targets, 0.5, **kwargs)
    assert value == 0.0
    np.testing.assert_array_equal(grad, np.zeros_like(logits))


@pytest.mark.parametrize("gamma", GAMMAS)
def test_masked_classes_count_as_absent(gamma):
    logits, targets = random_rows()
    masked = np.insert(logits, 3, -np.inf, axis=1)
    moved = targets + (targets >= 3)
    value, grad = reference.loss_and_grad(logits, targets, gamma, threshold=0.2)
    masked_value, masked_grad = reference.loss_and_grad(masked, moved, gamma, threshold=0.2)
    # numpy may add 8 numbers in another order than 7.
    assert masked_value == pytest.approx(value, rel=1e-15)
    np.testing.assert_array_equal(masked_grad[:, 3], 0.0)
    np.testing.assert_allclose(np.delete(masked_grad, 3, axis=1), grad, rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("value", VALUES)
def test_masked_target(gamma, threshold, value):
    logits = [0.5, -np.inf, 1.0]
    want = oracle.row(logits, 1, gamma, threshold, value)
    got, grad = reference.loss_and_grad(logits, 1, gamma, threshold=threshold, value=value)
    assert_close(got, want.value, RELATIVE, 0.0)
    # Two exponentials, their sum and a quotient.
    np.testing.assert_allclose(grad, [float(g) for g in want.grad], rtol=1e-15, atol=0)
    # And what the specification says in words.
    if threshold == 0.0 and gamma > 0.0:
        limit = 1.0 if gamma == 1.0 else -np.log(gamma) / (1 - gamma)
        # At γ = 1 - 1e-7 this plain formula itself is only good to 1e-16 / 1e-7.
        assert got == (pytest.approx(limit, rel=2e-9) if value == "primitive" else 0.0)
        np.testing.assert_array_equal(grad, 0.0)
    else:
        assert got == np.inf
        assert grad[1] == -max(threshold, float(gamma == 0.0))


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize(
    "bad_row",
    [[0.0, np.nan, 1.0], [0.0, 1.0, np.inf], [np.inf, 0.0, -np.inf], [-np.inf] * 3],
    ids=["nan", "inf", "inf at the target", "all -inf"],
)
def test_a_row_without_a_softmax_is_nan_alone(bad_row, gamma, threshold, value):
    good, kwargs = [0.0, 1.0, 2.0], {"threshold": threshold, "value": value, "reduction": "none"}
    got, grad = reference.loss_and_grad([good, bad_row, good], [0, 0, 1], gamma, **kwargs)
    alone, alone_grad = reference.loss_and_grad([good, good], [0, 1], gamma, **kwargs)
    np.testing.assert_array_equal(np.isnan(got), [False, True, False])
    assert np.isnan(grad[1]).all()
    np.testing.assert_array_equal(got[[0, 2]], alone)
    np.testing.assert_array_equal(grad[[0, 2]], alone_grad)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_ignored_row_is_0_whatever_it_holds(bad, gamma):
    logits, row_options = [[0.0, 1.0], [bad, 0.0]], np.array([1.0, np.nan])
    value, grad = reference.loss_and_grad(
        logits,
        [0, -100],
        gamma * row_options,
        threshold=0.1 * row_options,
        sample_weight=row_options,
        grad_output=row_options,
        reduction="none",
    )
    want, want_grad = reference.loss_and_grad(logits[0], 0, gamma, threshold=0.1)
    np.testing.assert_array_equal(value, [want, 0.0])
    np.testing.assert_array_equal(grad, [want_grad, [0.0, 0.0]])
    stats = reference.row_stats(logits, [0, -100])
    assert stats.target_log_prob[1] == 0.0
    assert np.isnan(stats.logsumexp[1])


@pytest.mark.parametrize("gamma", GAMMAS)
def test_nan_log_probability_is_nan(gamma):
    for function in (
        reference.loss_from_log_prob,
        reference.surrogate_from_log_prob,
        reference.grad_weight,
        reference.gamma_grad,
    ):
        assert np.isnan(function(np.nan, gamma))


def test_infinite_log_probability():
    assert reference.gamma_grad(-np.inf, 0.0) == -np.inf
    # -1/(γδ) - log(γ)/δ² at γ = 1/2; a few roundings.
    assert reference.gamma_grad(-np.inf, 0.5) == pytest.approx(-4 + 4 * np.log(2), rel=1e-15)
    assert reference.gamma_grad(-np.inf, 1.0) == -0.5
