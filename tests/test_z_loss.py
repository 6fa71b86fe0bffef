"""z-loss: λ logsumexp(z)² more in each row, times its sample weight.

How it goes with the other options is tested in test_options.py, in ONNX in onnx_ops.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import gce
import oracle
from engines import EMULATED
from faults import arguments, call_in_vain
from gce import reference
from test_accuracy import GAMMAS, LIMITS, THRESHOLDS, assert_within, rows_of
from test_layouts import DTYPES, assert_same_bits
from test_reference import DIFFERENCE_TOLERANCE, check_gradients, random_rows

CLASSES = (1, 2, 3, 7, 10, 17, 33, 65, 127, 1025)
EMULATED_CLASSES = (2, 9, 33, 65)
FACTORS = (1e-4, 0.1, 2.0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_against_50_digits(engine, dtype, record_error):
    limits = LIMITS[dtype]
    turn = itertools.cycle(itertools.product(GAMMAS, THRESHOLDS, FACTORS))
    for classes in EMULATED_CLASSES if engine.name in EMULATED else CLASSES:
        for name, (logits, target) in rows_of(classes, dtype).items():
            gamma, b, factor = next(turn)
            exact = oracle.row_with_z_loss(logits, target, gamma, factor, b)
            lse = abs(float(reference.row_stats(logits, target).logsumexp))
            loss, grad = engine.loss_and_grad(logits, target, gamma, threshold=b, z_loss=factor)
            # The size of the gradient; of the error of a logsumexp, which is absolute.
            size = float(exact.weight) + 2.0 * factor * (1.0 + lse)
            value = np.float64(float(exact.value))
            if value > np.finfo(dtype).max:  # 1e30 squared
                assert loss == np.inf
            else:
                limit = max(limits.loss_relative * value, limits.loss_absolute * size)
                share = assert_within(loss, value, limit, f"{name} loss")
                record_error(f"z-loss {dtype}", share)
            exact_grad = np.array([float(slope) for slope in exact.grad])
            limit = limits.grad * size + limits.grad_absolute
            share = assert_within(grad, exact_grad, limit, f"{name} grad")
            record_error(f"z-loss grad {dtype}", share)


@pytest.mark.parametrize("gamma", [0.0, 1e-7, 0.5, 1.0])
def test_the_gradient_is_that_of_the_loss(isa, gamma):
    logits, targets = random_rows()
    options: dict[str, Any] = {"gamma": gamma, "threshold": 0.3, "z_loss": 0.05}
    options |= {"weight": np.linspace(0.0, 1.0, 7), "sample_weight": np.linspace(0.5, 1.0, 12)}
    options |= {"label_smoothing": 0.1, "reduction": "none"}
    check_gradients(logits, targets, options, 2 * DIFFERENCE_TOLERANCE)


def test_against_pytorch(isa):
    torch = pytest.importorskip("torch")
    logits = torch.randn(20, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(20) % 9
    logits.requires_grad_()
    want = torch.nn.functional.cross_entropy(logits, targets)
    want = want + (1e-2 * logits.logsumexp(dim=-1) ** 2).mean()
    want.backward()
    loss, grad = gce.loss_and_grad(logits.detach().numpy(), targets.numpy(), 0.0, z_loss=1e-2)
    np.testing.assert_allclose(loss, want.item(), rtol=1e-14)
    np.testing.assert_allclose(grad, logits.grad.numpy(), rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_layout_and_split(engine, dtype):
    rng = np.random.default_rng(3)
    for rows, classes in ((70, 3), (70, 10), (40, 33), (9, 100), (3, 1100)):
        logits = (3 * rng.standard_normal((rows, classes))).astype(DTYPES[dtype])
        targets = rng.integers(0, classes, rows)
        options = {"gamma": 0.3, "z_loss": 0.01, "ignore_index": 0, "reduction": "none"}
        loss, grad = engine.loss_and_grad(logits, targets, **options)
        columns = np.ascontiguousarray(logits.T)
        found = engine.loss_and_grad(columns, targets, **options, axis=0)
        assert_same_bits(found[0], loss)
        assert_same_bits(found[1].T, grad)
        assert_same_bits(engine.loss(logits, targets, **options), loss)
        for row in (0, rows - 1):
            found = engine.loss_and_grad(logits[row], targets[row], **options)
            assert_same_bits(found[0], loss[row])
            assert_same_bits(found[1], grad[row])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weights_and_rows_that_do_not_count(isa, dtype):
    inf, nan = np.inf, np.nan
    logits = np.array([[1, 2, 3], [nan, 0, 0], [inf, 0, 0], [-inf, -inf, 1], [1, 2, 3]], dtype)
    targets = np.array([0, -100, -100, 2, 1])
    options = {"gamma": 0.5, "reduction": "none"}
    loss, grad = gce.loss_and_grad(logits, targets, **options, z_loss=0.25)
    assert not loss[[1, 2]].any() and not grad[[1, 2]].any()
    assert not grad[3][:2].any()  # logsumexp = 1, q = (0, 0, 1)
    np.testing.assert_allclose([loss[3], grad[3][2]], [0.25, 0.5], rtol=5e-7)
    # Class weights do not multiply it, sample weights do.
    plain, plain_grad = gce.loss_and_grad(logits, targets, **options)
    added, added_grad = loss - plain, grad - plain_grad
    weights = {"weight": [0.0, 4.0, 1.0], "sample_weight": [2.0, 1.0, 1.0, 1.0, 0.0]}
    found = gce.loss_and_grad(logits, targets, **options, **weights, z_loss=0.25)
    np.testing.assert_allclose(found[0][0], 2.0 * added[0], rtol=1e-6)
    np.testing.assert_allclose(found[1][0], 2.0 * added_grad[0], atol=1e-6)
    assert found[0][4] == 0.0 and not found[1][4].any()
    # The divisor of the mean stays the same.
    counted = gce.loss(logits[[0, 3]], targets[[0, 3]], 0.5, z_loss=0.25)
    np.testing.assert_allclose(counted, loss[[0, 3]].mean(), rtol=1e-6)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_poisoned_row_is_nan_and_no_other(isa, poison):
    for classes in (2, 10, 33, 100):
        logits = np.zeros((20, classes), np.float32)
        logits[7, 1] = poison
        options = {"gamma": 0.5, "z_loss": 0.25, "reduction": "none"}
        loss, grad = gce.loss_and_grad(logits, np.zeros(20, int), **options)
        others = np.arange(20) != 7
        assert np.isnan(loss[7]) and np.isnan(grad[7]).all()
        assert np.isfinite(loss[others]).all() and np.isfinite(grad[others]).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_none_is_as_without_the_option(isa, dtype):
    logits = np.random.default_rng(0).normal(size=(40, 12)).astype(DTYPES[dtype])
    logits[3, 5] = np.inf
    logits[4] = -np.inf
    targets = np.arange(40) % 12
    want = gce.loss_and_grad(logits, targets, 0.5, reduction="none")
    found = gce.loss_and_grad(logits, targets, 0.5, reduction="none", z_loss=0.0)
    assert_same_bits(found[0], want[0])
    assert_same_bits(found[1], want[1])


@pytest.mark.parametrize(
    ("factor", "shown"),
    [(-0.5, "-0.5"), (np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf"), (10**400, "inf")],
)
def test_out_of_range(factor, shown):
    given = arguments() | {"z_loss": factor}
    message = rf"^z_loss = {shown}, expected a finite number >= 0$"
    call_in_vain(gce.loss, ValueError, message, given)
    given["out"] = given["logits"]
    call_in_vain(gce.loss_and_grad, ValueError, message, given)


@pytest.mark.parametrize("factor", [None, "0.1", 0.1j, [0.1], np.full(4, 0.1)])
def test_of_no_number(factor):
    given = arguments() | {"z_loss": factor}
    message = r"^z_loss (has type [\w.]+|= None), expected float$"
    call_in_vain(gce.loss, TypeError, message, given)


def test_statistics_have_none():
    with pytest.raises(TypeError, match="unexpected keyword argument 'z_loss'"):
        gce.row_stats(np.zeros((2, 3)), [0, 1], z_loss=0.1)
