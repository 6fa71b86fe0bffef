"""Softcap: logits become κ tanh(z/κ) first. Its edges; its numbers are in test_any_options.py."""

from __future__ import annotations

import numpy as np
import pytest

import gce
from faults import arguments, call_in_vain
from test_layouts import DTYPES, assert_same_bits


def test_it_is_the_loss_of_capped_logits(isa):
    rng = np.random.default_rng(0)
    logits = 40 * rng.standard_normal((20, 33))
    targets = rng.integers(0, 33, 20)
    for cap in (0.1, 5.0, 30.0):
        capped = cap * np.tanh(logits / cap)
        loss, grad = gce.loss_and_grad(logits, targets, 0.3, softcap=cap, z_loss=0.01)
        want, inner = gce.loss_and_grad(capped, targets, 0.3, z_loss=0.01)
        np.testing.assert_allclose(loss, want, rtol=1e-13)
        slope = np.cosh(np.clip(logits / cap, -300, 300)) ** -2.0
        np.testing.assert_allclose(grad, inner * slope, rtol=1e-10, atol=1e-16)
    stats = gce.row_stats(logits, targets, softcap=5.0)
    of_capped = gce.row_stats(5.0 * np.tanh(logits / 5.0), targets)
    np.testing.assert_allclose(stats.logsumexp, of_capped.logsumexp, rtol=1e-14)
    # Where the cap makes equals of what lies above it, the largest logit still is the one.
    np.testing.assert_array_equal(stats.argmax, logits.argmax(axis=1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_infinite_logits_become_the_cap(isa, dtype):
    logits = np.array([[np.inf, -np.inf, 0.0], [np.nan, 0.0, 1.0]], DTYPES[dtype])
    loss, grad = gce.loss_and_grad(logits, [1, 1], 0.0, softcap=2.0, reduction="none")
    want = 2.0 + np.log(np.exp(2.0) + np.exp(-2.0) + 1.0)
    np.testing.assert_allclose(loss[0], want, rtol=1e-6)
    assert not grad[0, :2].any() and grad[0, 2] > 0.0
    assert np.isnan(loss[1]) and np.isnan(grad[1]).all()


@pytest.mark.parametrize("none", [None, 0, 0.0, -0.0])
def test_none(isa, none):
    logits = np.random.default_rng(0).standard_normal((5, 9)).astype("f4")
    want = gce.loss_and_grad(logits, [0] * 5, 0.3)
    found = gce.loss_and_grad(logits, [0] * 5, 0.3, softcap=none)
    assert_same_bits(found[0], want[0])
    assert_same_bits(found[1], want[1])


def test_a_large_cap_is_nearly_none(isa):
    logits = np.random.default_rng(0).standard_normal((5, 9))
    want = gce.loss_and_grad(logits, [0] * 5, 0.3)
    for cap in (1e6, 1e300, 1.7e308):
        loss, grad = gce.loss_and_grad(logits, [0] * 5, 0.3, softcap=cap)
        # z - κ tanh(z/κ) is z³/(3κ²).
        np.testing.assert_allclose(loss, want[0], rtol=1e-11)
        np.testing.assert_allclose(grad, want[1], rtol=1e-10)
    grad = gce.loss_and_grad(logits, [0] * 5, 0.3, softcap=5e-324)[1]
    assert not grad.any()  # all slopes are 0: every logit is beyond the cap


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cap", [5e-324, 1e-310, 1e-300])
def test_a_tiny_cap_makes_all_logits_equal(isa, cap, dtype):
    for logits in (np.array([0.0, 1.0, -3.0]), np.array([2.0, 1.0, -3.0])):
        z = logits.astype(DTYPES[dtype])
        loss, grad = gce.loss_and_grad(z, 1, 0.0, softcap=cap)
        np.testing.assert_allclose(loss, np.log(3.0), rtol=1e-6)
        product = gce.hvp(z, 1, np.ones(3, z.dtype), 0.0, softcap=cap)
        # Past the cap nothing changes; at 0 the slope is 1 and the curvature 0.
        assert not grad[logits != 0.0].any() and not product[logits != 0.0].any()
        np.testing.assert_allclose(grad[logits == 0.0].astype("f4"), 1.0 / 3.0, rtol=4e-3)
        np.testing.assert_allclose(product[logits == 0.0].astype("f4"), 2.0 / 9.0, rtol=4e-3)


@pytest.mark.parametrize("bad", [-1.0, -1e-300, np.nan, np.inf, -np.inf])
def test_errors(bad):
    message = r"softcap = .*, expected a finite number > 0"
    for function in (gce.loss_and_grad, gce.loss, gce.loss_gamma_grad):
        call_in_vain(function, ValueError, message, {**arguments(), "softcap": bad})
    with pytest.raises(TypeError, match="softcap has type str, expected float"):
        gce.loss(**arguments(), softcap="30")
