"""Infinities, NaN, denormals, signed zeros, huge logits; and no floating-point warning."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import gce
from gce import reference
from support import require

try:
    from ml_dtypes import bfloat16
except ModuleNotFoundError:
    bfloat16 = None

DTYPES = ("float16", "bfloat16", "float32", "float64")
GAMMAS = (0.0, 1e-300, 1e-30, 1e-7, 0.1, 0.5, 1 - 1e-7, 1.0)
# Below, at and above the lanes of every ISA; a block of 1024; and its tail.
CLASSES = (2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 1024, 1041)
# Rows contiguous, and the class axis outermost: two sets of kernels.
AXES = (-1, 0)
LARGEST = {"float16": 65504.0, "bfloat16": 3.3895e38, "float32": 3.4028e38, "float64": 1.7976e308}
SUBNORMAL = {"float16": 6e-8, "bfloat16": 1e-40, "float32": 1e-45, "float64": 5e-324}


def dtype_of(name: str) -> np.dtype[Any]:
    if name != "bfloat16":
        return np.dtype(name)
    require(bfloat16, "ml_dtypes is not installed")
    return np.dtype(bfloat16)


def as_dtype(values: Any, name: str) -> np.ndarray:
    return np.asarray(values, np.float64).astype(dtype_of(name))


def logits_of(dtype: str, rows: int, classes: int, seed: int = 0) -> np.ndarray:
    return as_dtype(np.random.default_rng(seed).normal(size=(rows, classes)), dtype)


def run(logits: np.ndarray, targets: Any, gamma: Any, axis: int = -1, **options: Any) -> Any:
    """Loss and gradient of each row; the class axis is moved to `axis` and back."""
    moved = np.ascontiguousarray(np.moveaxis(logits, -1, axis))
    options = {"axis": axis, "reduction": "none", **options}
    with np.errstate(all="raise"):
        loss, grad = gce.loss_and_grad(moved, targets, gamma, **options)
        alone = gce.loss(moved, targets, gamma, **options)
    np.testing.assert_array_equal(alone, loss)
    return loss.astype(np.float64), np.moveaxis(grad, axis, -1).astype(np.float64)


# --- NaN and +inf ---------------------------------------------------------------------------------


@pytest.mark.parametrize("poison", [np.nan, -np.nan, np.inf])
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_poisoned_row_is_nan_and_no_other(isa, dtype, axis, poison):
    for classes in CLASSES:
        rows = 19  # more than a vector of rows, and a tail
        logits = logits_of(dtype, rows, classes)
        targets = np.arange(rows) % classes
        gamma = np.resize([0.0, 0.1, 1.0], rows)
        loss, grad = run(logits, targets, gamma, axis)
        assert np.isfinite(loss).all() and np.isfinite(grad).all()
        for row, at in itertools.product((0, 7, 18), {0, classes // 2, classes - 1}):
            poisoned = logits.copy()
            poisoned[row, at] = poison
            found_loss, found_grad = run(poisoned, targets, gamma, axis)
            assert np.isnan(found_loss[row]) and np.isnan(found_grad[row]).all()
            others = np.arange(rows) != row
            np.testing.assert_array_equal(found_loss[others], loss[others])
            np.testing.assert_array_equal(found_grad[others], grad[others])


@pytest.mark.parametrize(
    "options", [{"threshold": 0.3}, {"threshold": 1.0}, {"value": "surrogate"}]
)
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_survives_every_option(isa, dtype, gamma, options):
    for poison, axis in itertools.product((np.nan, np.inf), AXES):
        logits = logits_of(dtype, 3, 9)
        logits[1, 4] = poison
        for target in (4, 5):  # the poisoned class, and another
            loss, grad = run(logits, [0, target, 0], gamma, axis, **options)
            assert np.isnan(loss[1]) and np.isnan(grad[1]).all()
            assert np.isfinite(loss[[0, 2]]).all() and np.isfinite(grad[[0, 2]]).all()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_reaches_the_reduced_loss(isa, dtype, reduction):
    logits = logits_of(dtype, 5, 9)
    clean = gce.loss_and_grad(logits, [0, 1, 2, 3, 4], 0.5, reduction=reduction)[1]
    logits[2, 7] = np.nan
    loss, grad = gce.loss_and_grad(logits, [0, 1, 2, 3, 4], 0.5, reduction=reduction)
    assert np.isnan(loss)
    assert np.isnan(grad[2].astype(float)).all()
    np.testing.assert_array_equal(grad[[0, 1, 3, 4]], clean[[0, 1, 3, 4]])


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_row_stats_of_poisoned_rows(isa, dtype, axis):
    logits = logits_of(dtype, 4, 17)
    logits[1, 5], logits[2, 16] = np.nan, np.inf
    stats = gce.row_stats(
        np.ascontiguousarray(np.moveaxis(logits, -1, axis)), [0, 1, 2, 3], axis=axis
    )
    for field in (stats.target_log_prob, stats.logsumexp):
        np.testing.assert_array_equal(np.isfinite(field), [True, False, False, True])
    assert np.isnan(stats.target_log_prob[1:3]).all() and np.isnan(stats.logsumexp[1])
    assert list(stats.argmax[1:3]) == [5, 16]


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_ignored_rows_are_0_whatever_they_hold(isa, dtype, axis):
    for classes in CLASSES:
        logits = logits_of(dtype, 19, classes)
        targets = np.arange(19) % classes
        gamma = np.full(19, 0.5)
        want = run(logits, targets, gamma, axis)
        ignored = [0, 3, 4, 18]
        targets[ignored] = -100
        for poison in (np.nan, np.inf, -np.inf):
            logits[ignored] = poison
            loss, grad = run(logits, targets, gamma, axis)
            # +0.0: no NaN, and no sign of what was multiplied by 0.
            assert loss[ignored].tobytes() == np.zeros(4).tobytes()
            assert grad[ignored].tobytes() == np.zeros((4, classes)).tobytes()
            counted = np.setdiff1d(np.arange(19), ignored)
            np.testing.assert_array_equal(loss[counted], want[0][counted])
            np.testing.assert_array_equal(grad[counted], want[1][counted])
            mean = gce.loss(logits, targets, gamma)
            # One rounding to float32 of the mean, and one of each loss.
            assert mean == pytest.approx(want[0][counted].mean(), rel=1.2e-7)


@pytest.mark.parametrize("dtype", DTYPES)
def test_ignored_rows_are_0_in_place_and_with_poisoned_weights(isa, dtype):
    logits = np.full((3, 9), np.nan).astype(dtype_of(dtype))
    logits[1] = 1.0
    loss, grad = gce.loss_and_grad(
        logits, [-100, 2, -100], 0.5, out=logits, sample_weight=[np.nan, 1.0, np.inf]
    )
    assert np.isfinite(loss) and not grad[[0, 2]].any() and grad[1].all()


# --- -inf: masked classes -------------------------------------------------------------------------


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_masked_class_is_as_if_absent(isa, dtype, axis):
    for classes in CLASSES:
        logits = logits_of(dtype, 5, classes)
        targets = np.zeros(5, np.int64)
        gamma = np.array([0.0, 1e-7, 0.1, 0.5, 1.0])
        masked = np.arange(classes) % 3 != 0  # but not the target
        logits[:, masked] = -np.inf
        loss, grad = run(logits, targets, gamma, axis)
        assert not grad[:, masked].any()
        kept_loss, kept_grad = run(logits[:, ~masked], targets, gamma, axis)
        # Another number of classes, so another order of additions: a few roundings of float32 (of
        # float64), and the one to 16 bits.
        relative = 1e-15 if dtype == "float64" else 3e-7
        np.testing.assert_allclose(loss, kept_loss, rtol=relative, atol=relative)
        roundoff = {"float16": 2.0**-11, "bfloat16": 2.0**-8}.get(dtype, 0.0)
        np.testing.assert_allclose(
            grad[:, ~masked], kept_grad, rtol=relative + 2 * roundoff, atol=relative
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_only_the_target_is_not_masked(isa, dtype):
    for classes, gamma, axis in itertools.product(CLASSES, GAMMAS, AXES):
        logits = np.full((3, classes), -np.inf).astype(dtype_of(dtype))
        logits[:, 1] = [0.0, -50.0, LARGEST[dtype]]
        loss, grad = run(logits, [1, 1, 1], gamma, axis)
        assert loss.tobytes() == np.zeros(3).tobytes()  # +0.0
        assert not grad.any()


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_masked_target(isa, dtype, axis, gamma):
    rounding = 1e-15 if dtype == "float64" else 1.2e-7
    for classes in CLASSES:
        logits = np.zeros((3, classes)).astype(dtype_of(dtype))
        logits[1, classes - 1] = -np.inf
        target = [0, classes - 1, 0]
        q = 1.0 / (classes - 1)  # of the others

        loss, grad = run(logits, target, gamma, axis)
        if gamma == 0.0:  # cross-entropy: w = 1
            assert loss[1] == np.inf and grad[1, -1] == -1.0
            # q rounded to the logits' dtype, and one rounding before it.
            want = float(np.asarray(q).astype(dtype_of(dtype)))
            spacing = {"float16": 2.0**-10, "bfloat16": 2.0**-7}.get(dtype, 2 * rounding)
            np.testing.assert_allclose(grad[1, :-1], want, rtol=spacing)
        else:  # w = 0, and the loss stays bounded
            bound = 1.0 if gamma == 1.0 else -np.log(gamma) / (1 - gamma)
            # At γ = 1 - 1e-7 the quotient here is itself off by 1e-16 / 1e-7.
            assert loss[1] == pytest.approx(bound, rel=max(rounding, 2e-9))
            assert not grad[1].any()

        loss, grad = run(logits, target, gamma, axis, threshold=0.25)  # w_b = b
        assert loss[1] == np.inf
        if gamma > 0.0:
            assert grad[1, -1] == -0.25

        loss, grad = run(logits, target, gamma, axis, value="surrogate")
        # w_b (-ℓ): for γ > 0 the limit of p log p, 0.
        assert loss[1] == (np.inf if gamma == 0.0 else 0.0)
        loss, grad = run(logits, target, gamma, axis, value="surrogate", threshold=0.25)
        assert loss[1] == np.inf
        assert np.isfinite(loss[[0, 2]]).all() and np.isfinite(grad).all()


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_row_stats_of_a_masked_target(isa, dtype, axis):
    logits = np.zeros((2, 5)).astype(dtype_of(dtype))
    logits[0, 2] = -np.inf
    stats = gce.row_stats(np.ascontiguousarray(np.moveaxis(logits, -1, axis)), [2, 2], axis=axis)
    assert stats.target_log_prob[0] == -np.inf
    assert stats.target_log_prob[1] == pytest.approx(-np.log(5), rel=1.2e-7)
    assert stats.logsumexp[0] == pytest.approx(np.log(4), rel=1.2e-7)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_infinite_loss_in_a_reduction(isa, dtype, reduction):
    # Sums that carry an error term must not turn inf into inf - inf = NaN.
    for rows in (3, 40, 20_000):
        logits = logits_of(dtype, rows, 8)
        logits[[0, rows // 2], 3] = -np.inf
        loss, grad = gce.loss_and_grad(logits, np.full(rows, 3), 0.0, reduction=reduction)
        assert loss == np.inf
        assert np.isfinite(grad.astype(float)).all()


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_of_minus_infinity_only_has_no_softmax(isa, dtype, gamma):
    for classes, axis in itertools.product((1, *CLASSES), AXES):
        logits = logits_of(dtype, 3, classes)
        want = run(logits, [0, 0, 0], gamma, axis)
        logits[1] = -np.inf
        loss, grad = run(logits, [0, 0, 0], gamma, axis)
        # 0/0, as numpy, scipy and PyTorch have it.
        assert np.isnan(loss[1]) and np.isnan(grad[1]).all()
        np.testing.assert_array_equal(loss[[0, 2]], want[0][[0, 2]])
        np.testing.assert_array_equal(grad[[0, 2]], want[1][[0, 2]])


# --- huge, tiny, signed ---------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_logits(isa, dtype, gamma):
    top = LARGEST[dtype]
    bound = np.inf if gamma == 0 else 1.0 if gamma == 1 else -np.log(gamma) / (1 - gamma)
    for classes, axis in itertools.product(CLASSES, AXES):
        logits = np.full((4, classes), -top).astype(dtype_of(dtype))
        logits[:2, 1] = top
        logits[3] = top
        loss, grad = run(logits, [1, 0, 0, 0], gamma, axis)
        assert loss[0] == 0.0 and not grad[0].any()
        # ℓ = -2 top, which overflows float32 and float64, as it would anywhere.
        gap = 2.0 * float(as_dtype(top, dtype)) if dtype in ("float16", "bfloat16") else np.inf
        gap = np.inf if gap > 3.4028235e38 else gap
        if gamma == 0.0:
            assert loss[1] == pytest.approx(gap, rel=1.2e-7) and grad[1, 1] == 1.0
        else:
            assert loss[1] == pytest.approx(bound, rel=2e-7)
            assert not grad[1].any()
        # Rows of equal logits, whatever they are: q = 1/V.
        want = reference.loss_from_log_prob(-np.log(classes), gamma)
        np.testing.assert_allclose(loss[2:], want, rtol=1.2e-7)
        assert np.isfinite(grad).all()


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e-3, "subnormal"])
@pytest.mark.parametrize("gamma", [0.0, 1e-7, 0.5, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_denormal_and_tiny_logits(isa, dtype, gamma, scale):
    tiny = SUBNORMAL[dtype] if scale == "subnormal" else scale * np.finfo(np.float32).tiny
    for classes, axis in itertools.product(CLASSES, AXES):
        signs = np.resize([1.0, -1.0, 0.0], (2, classes))
        logits = as_dtype(signs * tiny, dtype)
        loss, grad = run(logits, [0, classes - 1], gamma, axis)
        want = reference.loss_from_log_prob(-np.log(classes), gamma)
        # The promise; float16's 6e-8 is not quite nothing.
        np.testing.assert_allclose(loss, want, rtol=1e-6 if dtype != "float64" else 1e-15)
        # q = 1/V: to the promised 5e-7 w, or the rounding to 16 bits.
        weight = reference.grad_weight(-np.log(classes), gamma)
        roundoff = {"float16": 2.0**-11, "bfloat16": 2.0**-8}.get(dtype, 5e-7)
        np.testing.assert_allclose(
            grad[0, 1:], weight / classes, rtol=roundoff, atol=5e-7 * weight + 2.0**-25
        )


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_signed_zeros_are_equal(isa, dtype, axis):
    for classes in CLASSES:
        zeros = np.zeros((3, classes)).astype(dtype_of(dtype))
        signed = zeros.copy()
        signed[:, ::2] = -0.0
        assert np.signbit(signed[0, 0]) and not np.signbit(zeros[0, 0])
        want = run(zeros, [0, 1, classes - 1], 0.5, axis)
        found = run(signed, [0, 1, classes - 1], 0.5, axis)
        assert [x.tobytes() for x in found] == [x.tobytes() for x in want]


def test_signed_zeros_as_parameters(isa):
    logits = logits_of("float64", 3, 9)
    want = run(logits, [0, 1, 2], 0.0)
    found = run(logits, [0, 1, 2], -0.0, threshold=-0.0)  # in [0, 1], as -0.0 == 0.0
    assert [x.tobytes() for x in found] == [x.tobytes() for x in want]


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_losses_and_gradients_down_to_the_smallest(isa, dtype, gamma):
    # p from 1/2 past where it underflows: w, p and e^-ℓ leave the range, the loss does not.
    gaps = np.array([0.0, 10, 50, 80, 87, 88, 89, 103, 104, 105, 113, 150, 700, 708, 709, 710])
    gaps = np.append(gaps, [744.0, 745, 746, 750, 1500, 1e4, 1e5])
    logits = np.zeros((len(gaps), 2), dtype)
    logits[:, 1] = gaps
    for axis in AXES:
        loss, grad = run(logits, np.zeros(len(gaps), np.int64), gamma, axis)
        want_loss, want_grad = reference.loss_and_grad(
            logits, np.zeros(len(gaps), np.int64), gamma, reduction="none"
        )
        # The promised accuracy, for the loss in relative terms throughout.
        rounding = 1e-14 if dtype == "float64" else 1e-6
        np.testing.assert_allclose(loss, want_loss, rtol=rounding, atol=0.0)
        # For w also in float64: e^-ℓ is 2^x, and x of up to 1075 is rounded by 1.1e-13. Below the
        # normal numbers it may flush.
        rounding = 1.1e-13 if dtype == "float64" else 1e-6
        np.testing.assert_allclose(grad, want_grad, rtol=rounding, atol=np.finfo(dtype).tiny)


def test_softmax_of_log_probabilities_is_not_taken_twice(isa):
    # TaiLr's code takes log(softmax(.)): -inf for a gap of 113, where ℓ is -113.
    logits = np.array([[0.0, 113.0], [113.0, 0.0]], np.float32)
    assert gce.row_stats(logits, [0, 0]).target_log_prob[0] == np.float32(-113.0)
    assert gce.loss(logits, [0, 1], 0.0, reduction="none").tolist() == [113.0, 113.0]


def test_cross_entropy_of_a_vanishing_probability_is_a_number(isa):
    # TaiLr's code gives NaN for γ = 0 and p = 0: 0/0.
    logits = np.array([[-2e4, 2e4, 0.0]], np.float32)
    loss, grad = run(logits, [0], 0.0)
    assert loss[0] == 4e4
    # exp(0) = 1 within 1 ulp: float32's promise is 5e-7.
    np.testing.assert_allclose(grad, [[-1.0, 1.0, 0.0]], rtol=1.2e-7)
    loss, grad = run(logits, [0], 0.0, value="surrogate")
    assert loss[0] == 4e4


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("value", ["primitive", "surrogate"])
def test_no_nan_without_a_cause(isa, value, gamma, scale):
    rng = np.random.default_rng(4)
    for dtype, threshold in itertools.product(("float32", "float64"), (0.0, 1e-30, 0.3, 1.0)):
        logits = (scale * rng.normal(size=(64, 9))).astype(dtype)
        options = {"value": value, "threshold": threshold}
        loss, grad = run(logits, rng.integers(0, 9, 64), gamma, **options)
        assert (loss >= 0.0).all() and np.isfinite(loss).all()
        assert np.isfinite(grad).all() and (np.abs(grad) <= 1.0).all()


# --- ufuncs ---------------------------------------------------------------------------------------


LOG_PS = (0.0, -0.0, -5e-324, -1e-300, -0.5, -37.0, -709.0, -746.0, -1e308, -np.inf)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_ufunc_raises_a_flag(isa, dtype):
    log_p = np.array([*LOG_PS, np.nan])
    log_p = as_dtype(np.where(log_p == -1e308, np.finfo(dtype).min, log_p), dtype)
    gamma, threshold = np.array(GAMMAS)[:, None], np.array([0.0, 1e-300, 0.3, 1.0])[:, None, None]
    with np.errstate(all="raise"):
        loss = gce.loss_from_log_prob(log_p, gamma, threshold)
        weight = gce.grad_weight(log_p, gamma, threshold)
        derivative = gce.gamma_grad(log_p, gamma)
    for result in (loss, weight, derivative):
        assert np.isnan(result[..., -1]).all()
        assert not np.isnan(result[..., :-1]).any()
