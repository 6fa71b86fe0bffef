"""What a loss tells beside its value: ``return_stats=True``, and the derivative in γ.

That loss and gradient have the same bits with statistics is in test_options.py for all options.
"""

from __future__ import annotations

import inspect
from typing import Any

import mpmath as mp
import numpy as np
import pytest

import gce
import oracle
from engines import EMULATED
from gce import reference
from test_accuracy import GAMMAS, LIMITS, rows_of
from test_layouts import DTYPES, assert_same_bits
from test_options import CLASSES, SHAPE, TARGETS, make_logits, targets_with
from test_options import rows_of as per_row_of

# --- return_stats ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [1, 2, 10, 33, 100, 1025])
def test_stats_are_those_of_row_stats_and_the_loss_keeps_its_bits(engine, classes, dtype):
    rng = np.random.default_rng(classes)
    logits = (3 * rng.standard_normal((70, classes))).astype(DTYPES[dtype])
    targets = rng.integers(0, classes, 70)
    targets[::9] = -100
    for options in ({}, {"threshold": 0.2}, {"value": "surrogate"}, {"z_loss": 0.1}):
        for gamma in (0.0, 0.3, 1.0):
            loss, grad = engine.loss_and_grad(logits, targets, gamma, **options)
            *same, stats = engine.loss_and_grad(
                logits, targets, gamma, return_stats=True, **options
            )
            assert_same_bits(same[0], loss)
            assert_same_bits(same[1], grad)
            alone, stats_alone = engine.loss(logits, targets, gamma, return_stats=True, **options)
            assert_same_bits(alone, loss)
            assert isinstance(stats, gce.LossStats) and isinstance(stats_alone, gce.LossStats)
            for one, other in zip(stats, stats_alone, strict=True):
                assert_same_bits(one, other)
            for one, other in zip(stats, engine.row_stats(logits, targets), strict=False):
                assert_same_bits(one, other)
            # The weight from the log-probability; that was rounded, as was the weight.
            log_p = stats.target_log_prob.astype(np.float64)
            want = reference.grad_weight(log_p, gamma, options.get("threshold", 0.0))
            want = np.where(targets == -100, 0.0, want)
            precision = np.finfo(stats.grad_weight.dtype).eps * (2 + np.abs(log_p))
            assert np.all(np.abs(stats.grad_weight - want) <= precision * want)


def test_stats_of_any_layout(isa):
    logits = make_logits("float32", (9, 11))
    targets = np.arange(99).reshape(9, 11) % CLASSES
    want = gce.loss(logits, targets, 0.3, return_stats=True)[1]
    for axis in (0, 1):
        moved = np.ascontiguousarray(np.moveaxis(logits, -1, axis))
        found = gce.loss_and_grad(moved, targets, 0.3, axis=axis, return_stats=True)[2]
        for one, other in zip(found, want, strict=True):
            assert_same_bits(one, other)
            assert one.shape == targets.shape
    one_row = gce.loss(logits[2, 3], targets[2, 3], 0.3, return_stats=True)[1]
    assert [type(field) for field in one_row] == [np.float32, np.float32, np.int64, np.float32]
    assert [float(field) for field in one_row] == [float(field[2, 3]) for field in want]


def test_stats_of_a_poisoned_and_a_masked_row(isa):
    logits = np.array([[np.nan, 0.0, 1.0], [-np.inf, 0.0, 1.0], [0.0, 0.0, 1.0]])
    for gamma, weight in ((0.0, 1.0), (0.5, 0.0)):
        stats = gce.loss(logits, [0, 0, 0], gamma, return_stats=True)[1]
        assert np.isnan(stats.grad_weight[0]) and stats.grad_weight[1] == weight
        assert stats.target_log_prob[1] == -np.inf


def test_return_stats_takes_a_bool():
    for given in (1, "yes", np.ones(2, bool)):
        with pytest.raises(TypeError, match=r"return_stats has type .*, expected bool"):
            gce.loss(np.zeros((2, 3)), [0, 1], 0.5, return_stats=given)
    with pytest.raises(TypeError, match="return_stats = None, expected bool"):
        gce.loss(np.zeros((2, 3)), [0, 1], 0.5, return_stats=None)


# --- the derivative in γ --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gamma_grad_against_50_digits(engine, dtype):
    for classes in (2, 33) if engine.name in EMULATED else (1, 2, 3, 10, 33, 127):
        for name, (logits, target) in rows_of(classes, dtype).items():
            for gamma in GAMMAS:
                exact = oracle.row(logits, target, gamma)
                with mp.workdps(oracle.ROW_DIGITS):
                    want = float(oracle.gamma_grad(exact.log_p, gamma))
                found = engine.loss_gamma_grad(logits, target, gamma)
                # As accurate as the loss. At γ = 0 it is (1 - p)/p, which overflows.
                limits = LIMITS[dtype]
                limit = max(limits.loss_relative * abs(want), limits.loss_absolute)
                if not np.isfinite(found) or abs(want) > 1e300:
                    assert found < -1e299 and (want == -np.inf or want < -1e299), name
                else:
                    assert abs(found - want) <= limit, (name, gamma)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("per_row", [False, True])
def test_gamma_grad_is_the_slope_of_the_loss(isa, reduction, per_row):
    logits = make_logits("float64", SHAPE)
    gammas = per_row_of(0.1, 0.5, 0.9, dtype="float64") if per_row else np.float64(0.4)
    for threshold in (0.0, 0.2, 1.0):
        options: dict[str, Any] = {"threshold": threshold, "reduction": reduction}
        options |= {"weight": np.linspace(0.0, 2.0, CLASSES), "label_smoothing": 0.1, "z_loss": 0.1}
        options |= {"sample_weight": per_row_of(0.5, 2.0, 0.0, dtype="float64")}
        targets = targets_with(-100)
        found = gce.loss_gamma_grad(logits, targets, gammas, **options)
        assert found.shape == gammas.shape and found.dtype == np.float64
        h = 1e-5
        slope = [gce.loss(logits, targets, gammas + s, **options) for s in (h, -h)]
        slope = (slope[0] - slope[1]) / (2 * h)
        total = np.sum(slope) if reduction == "none" else slope
        # Third derivatives of -log(γ + δp)/δ here are below 1e3: 1e-10 · 1e3 / 6; rounding 1e-10.
        np.testing.assert_allclose(np.sum(found), total, rtol=1e-6, atol=1e-6)
        if per_row and reduction == "none":
            np.testing.assert_allclose(found, slope, rtol=1e-6, atol=1e-6)
        scaled = gce.loss_gamma_grad(logits, targets, gammas, **options, grad_output=-2.0)
        np.testing.assert_allclose(scaled, -2.0 * found, rtol=1e-15)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("choice", range(len(TARGETS)))
def test_gamma_grad_against_the_reference(isa, choice, dtype):
    logits = make_logits(dtype, SHAPE)
    for gamma in (0.0, 1e-7, 0.3, 1.0, per_row_of(0.0, 0.2, 1.0, dtype="float32")):
        for options in ({}, {"threshold": 0.1}, {"reduction": "sum", "label_smoothing": 0.3}):
            options = {**TARGETS[choice], **options}
            found = gce.loss_gamma_grad(logits, gamma=gamma, **options)
            if options.get("ignore_index", 0) is None:
                options["ignore_index"] = 2**62
            want = reference.loss_gamma_grad(logits, gamma=gamma, **options)
            rtol = 1e-13 if dtype == "float64" else 1e-6
            np.testing.assert_allclose(found, want, rtol=rtol, atol=1e-300)


def test_gamma_grad_has_the_same_bits_on_any_number_of_threads(isa):
    logits = make_logits("float32", (40_000,))
    targets = np.arange(40_000) % CLASSES
    want = gce.loss_gamma_grad(logits, targets, 0.3, num_threads=1)
    for threads in (2, 3, 8):
        assert gce.loss_gamma_grad(logits, targets, 0.3, num_threads=threads) == want


def test_gamma_can_be_learnt(isa):
    # Against a price for γ itself: the minimum of loss + 2 γ lies inside.
    logits, targets = make_logits("float32", (200,)), np.arange(200) % CLASSES
    gamma = 0.9
    for _ in range(200):
        slope = gce.loss_gamma_grad(logits, targets, gamma) + 2.0
        gamma = float(np.clip(gamma - 0.02 * slope, 1e-3, 1.0))
    assert 0.01 < gamma < 0.9
    assert abs(gce.loss_gamma_grad(logits, targets, gamma) + 2.0) < 1e-3


def test_gamma_grad_of_rows_that_do_not_count(isa):
    logits = np.array([[np.nan, 0.0], [0.0, 0.0], [np.nan, 0.0]])
    found = gce.loss_gamma_grad(logits, [-100, 0, 0], np.full(3, 0.5), reduction="sum")
    assert found[0] == 0.0 and found[1] < 0.0 and np.isnan(found[2])
    assert gce.loss_gamma_grad(logits, [-100] * 3, 0.5) == 0.0
    assert gce.loss_gamma_grad(np.zeros((0, 2)), np.zeros(0, int), 0.5) == 0.0
    assert gce.loss_gamma_grad(np.zeros(2), 0, 1.0) == -0.125


@pytest.mark.parametrize("gamma", [0.0, 1e-300, 0.5, 1.0])
def test_threshold_1_is_cross_entropy_whatever_gamma(isa, gamma):
    logits = np.array([0.0, 1.0])
    for targets in (1, np.array([0.5, 0.5])):
        for module in (gce, reference):
            assert module.loss_gamma_grad(logits, targets, gamma, threshold=1.0) == 0.0


def test_gamma_grad_takes_the_options_of_the_loss():
    options = set(inspect.signature(gce.loss).parameters) - {"return_stats"}
    assert set(inspect.signature(gce.loss_gamma_grad).parameters) == options | {"grad_output"}
    with pytest.raises(ValueError, match=r'value = "surrogate", expected "primitive"'):
        gce.loss_gamma_grad(np.zeros((2, 3)), [0, 1], 0.5, value="surrogate")
