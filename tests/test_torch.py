"""Against PyTorch: its cross-entropy at γ = 0, and autograd of the loss composed of its ops."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import gce
from torch_problems import SHAPES, axis_of, composed, functional, problem, torch

pytestmark = pytest.mark.usefixtures("torch_on_one_thread")

DTYPES = ("float16", "bfloat16", "float32", "float64")
# PyTorch works in the logits' own precision: 1e-6 is a dozen roundings of its float32, 1e-14 the
# promised accuracy. Sums of rows in float32 are good to some 1e-7 more.
RTOL = {"float16": 2e-6, "bfloat16": 2e-6, "float32": 2e-6, "float64": 2e-14}
ATOL = {"float16": 1e-6, "bfloat16": 1e-6, "float32": 1e-6, "float64": 1e-14}
ROUNDOFF = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 0.0, "float64": 0.0}


def as_array(tensor: Any) -> np.ndarray:
    """A numpy array with the tensor's dtype, for bfloat16 too."""
    if tensor.dtype != torch.bfloat16:
        return tensor.numpy()
    ml_dtypes = pytest.importorskip("ml_dtypes")
    return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)


def by_autograd(loss: Any, logits: Any, grad_output: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """Value and gradient of a function of a tensor of logits, in double arrays."""
    leaf = logits.detach().clone().requires_grad_()
    value = loss(leaf)
    value.backward(torch.ones_like(value) if grad_output is None else grad_output)
    return value.detach().double().numpy(), leaf.grad.double().numpy()


def assert_agree(found: tuple[Any, Any], expected: tuple[Any, Any], dtype: str) -> None:
    loss, grad = (np.asarray(result, np.float64) for result in found)
    np.testing.assert_allclose(loss, expected[0], rtol=RTOL[dtype], atol=ATOL[dtype])
    # Both gradients round to 16 bits where the logits have 16, and once is allowed for.
    np.testing.assert_allclose(
        grad, expected[1], rtol=RTOL[dtype] + 1.01 * ROUNDOFF[dtype], atol=ATOL[dtype]
    )


# --- cross-entropy --------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SHAPES)
def test_gamma_0_is_cross_entropy(isa, name, dtype, reduction):
    shape = SHAPES[name]
    logits, targets = problem(shape, dtype)
    classes = shape[axis_of(shape)]
    # PyTorch takes 16-bit logits too, and loses digits: the comparison is with its float32.
    exact = logits.double() if dtype == "float64" else logits.float()
    weight = torch.linspace(0.5, 2.0, classes, dtype=exact.dtype)
    without = weight * (torch.arange(classes) % 3 != 1)
    for class_weight, ignore_index, epsilon in itertools.product(
        (None, weight, without), (-100, 0), (0.0, 0.1, 1.0)
    ):
        counted = targets.where(targets >= 0, torch.tensor(ignore_index))
        of_torch = {
            "weight": class_weight,
            "ignore_index": ignore_index,
            "label_smoothing": epsilon,
            "reduction": reduction,
        }

        def loss(z: Any, target: Any = counted, options: Any = of_torch) -> Any:
            return functional().cross_entropy(z, target, **options)

        want = by_autograd(loss, exact)
        if not np.isfinite(want[0]).all():
            # Nothing counts: PyTorch's mean is 0/0, ours 0.
            assert reduction == "mean"
            want = (np.zeros(()), np.zeros(shape))
        for gamma, threshold, value in (
            (0.0, 0.0, "primitive"),
            (0.0, 0.3, "surrogate"),
            (0.6, 1.0, "primitive"),
        ):
            found = gce.loss_and_grad(
                as_array(logits),
                counted.numpy(),
                gamma,
                threshold=threshold,
                value=value,
                weight=None if class_weight is None else class_weight.numpy(),
                ignore_index=ignore_index,
                label_smoothing=epsilon,
                reduction=reduction,
                axis=axis_of(shape),
            )
            assert_agree(found, want, dtype)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_upstream_gradients(isa, reduction):
    logits, targets = problem(SHAPES["images"], "float64")
    rng = np.random.default_rng(1)
    upstream = rng.standard_normal(targets.shape if reduction == "none" else ())
    want = by_autograd(
        lambda z: functional().cross_entropy(z, targets, reduction=reduction),
        logits,
        torch.from_numpy(np.asarray(upstream)),
    )
    found = gce.loss_and_grad(
        logits.numpy(), targets.numpy(), 0.0, reduction=reduction, grad_output=upstream, axis=1
    )
    assert_agree(found, want, "float64")


@pytest.mark.parametrize("memory_format", ["contiguous_format", "channels_last"])
def test_memory_formats(isa, memory_format):
    logits, targets = problem(SHAPES["images"], "float32")
    moved = logits.contiguous(memory_format=getattr(torch, memory_format))
    want = by_autograd(lambda z: functional().cross_entropy(z, targets), moved)
    found = gce.loss_and_grad(moved.numpy(), targets.numpy(), 0.0, axis=1)
    assert_agree(found, want, "float32")
    # The gradient lies in memory as the logits do.
    assert found[1].strides == moved.numpy().strides


@pytest.mark.parametrize("epsilon", [0.0, 0.1])  # at 1, PyTorch's masked target is 0 · inf = NaN
def test_extreme_logits(isa, epsilon):
    inf = float("inf")
    logits = torch.tensor(
        [
            [0.0, -inf, 1.0],
            [-inf, 0.0, 0.0],
            [1e30, -1e30, 0.0],
            [0.0, 113.0, 0.0],
            [-inf, -inf, 2.0],
        ]
    )
    targets = torch.tensor([2, 0, 0, 0, 2])
    options = {"reduction": "none", "label_smoothing": epsilon}
    for dtype in ("float32", "float64"):
        exact = logits.to(getattr(torch, dtype))
        want = by_autograd(lambda z: functional().cross_entropy(z, targets, **options), exact)
        found = gce.loss_and_grad(exact.numpy(), targets.numpy(), 0.0, **options)
        assert_agree(found, want, dtype)
        # A masked class is a part of the smoothed loss, for PyTorch and for us.
        assert np.isinf(found[0]).tolist() == [epsilon > 0, True, False, False, epsilon > 0]


def test_poisoned_rows(isa):
    for poison in (float("nan"), float("inf")):
        logits, targets = problem((4, 7), "float32")
        targets[:] = 2
        logits[1, 5] = poison
        want = by_autograd(
            lambda z, target=targets: functional().cross_entropy(z, target, reduction="none"),
            logits,
        )
        found = gce.loss_and_grad(logits.numpy(), targets.numpy(), 0.0, reduction="none")
        np.testing.assert_array_equal(np.isnan(found[0]), np.isnan(want[0]))
        np.testing.assert_array_equal(np.isnan(found[1]), np.isnan(want[1]))


# --- the γ-loss, composed -------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["primitive", "surrogate"])
@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.7])
@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 0.9, 1.0, "per row"])
def test_autograd_of_the_composed_loss(isa, gamma, threshold, value):
    for dtype, name in itertools.product(("float32", "float64"), ("rows", "sequences", "images")):
        logits, targets = problem(SHAPES[name], dtype)
        targets = targets.abs() % 7
        rng = np.random.default_rng(2)
        per_row = rng.choice([0.0, 0.1, 0.5, 0.9, 1.0], tuple(targets.shape))
        of_rows = torch.from_numpy(per_row) if gamma == "per row" else gamma
        # In double for float32 logits too: composed in float32 it loses digits, which is the point
        # of a fused loss.
        want = by_autograd(
            lambda z, t=targets, g=of_rows: composed(z, t, g, threshold, value, 1), logits.double()
        )
        found = gce.loss_and_grad(
            logits.numpy(),
            targets.numpy(),
            per_row if gamma == "per row" else gamma,
            threshold=threshold,
            value=value,
            reduction="none",
            axis=1,
        )
        # -log(γ + δp) / δ in double: 1e-16 divided by δ = 0.1 and by values down to 1e-3.
        tolerance = "float32" if dtype == "float32" else "float64"
        loss, grad = (np.asarray(result, np.float64) for result in found)
        rtol = {"float32": RTOL["float32"], "float64": 1e-12}[tolerance]
        np.testing.assert_allclose(loss, want[0], rtol=rtol, atol=ATOL[tolerance])
        np.testing.assert_allclose(grad, want[1], rtol=rtol, atol=ATOL[tolerance])


@pytest.mark.parametrize("epsilon", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_weights_of_rows_and_classes(isa, gamma, epsilon):
    logits, targets = problem(SHAPES["rows"], "float64")
    rng = np.random.default_rng(3)
    weight, sample_weight = rng.random(7), rng.random(13)
    counted = targets != -100
    per_row = torch.from_numpy(sample_weight) * counted
    row_weight = torch.from_numpy(weight)[targets.clamp(min=0)] * per_row

    def loss(z: Any) -> Any:
        rows = row_weight * composed(z, targets.clamp(min=0), gamma, 0.2, "primitive")
        of_classes = -functional().log_softmax(z, dim=-1) @ torch.from_numpy(weight) / 7
        rows = (1 - epsilon) * rows + epsilon * per_row * of_classes
        return rows.sum() / row_weight.sum()

    found = gce.loss_and_grad(
        logits.numpy(),
        targets.numpy(),
        gamma,
        threshold=0.2,
        weight=weight,
        sample_weight=sample_weight,
        label_smoothing=epsilon,
    )
    assert_agree(found, by_autograd(loss, logits), "float64")


# --- tensors as arguments -------------------------------------------------------------------------


def test_tensors_are_arrays():
    logits, targets = problem(SHAPES["rows"], "float32")
    gamma = torch.linspace(0.0, 1.0, 13, dtype=torch.float64)
    weight = torch.linspace(0.5, 2.0, 7)
    want = gce.loss_and_grad(
        logits.numpy(), targets.numpy(), gamma.numpy(), weight=weight.numpy(), threshold=0.25
    )
    found = gce.loss_and_grad(logits, targets, gamma, weight=weight, threshold=torch.tensor(0.25))
    assert [type(result) for result in found] == [np.float32, np.ndarray]
    assert [x.tobytes() for x in found] == [x.tobytes() for x in want]
    assert gce.row_stats(logits, targets).argmax.tolist() == logits.argmax(1).tolist()


def test_a_tensors_memory_receives_the_gradient():
    logits, targets = problem(SHAPES["rows"], "float32")
    grad = torch.full_like(logits, 7.0)
    want = gce.loss_and_grad(logits, targets, 0.5)[1]
    gce.loss_and_grad(logits, targets, 0.5, out=grad.numpy())
    np.testing.assert_array_equal(grad.numpy(), want)


def test_a_tensor_that_requires_grad_is_refused_by_torch():
    logits, targets = problem(SHAPES["rows"], "float32")
    with pytest.raises(RuntimeError, match="requires grad"):
        gce.loss(logits.requires_grad_(), targets, 0.5)


def test_a_tensor_is_no_out():
    logits, targets = problem(SHAPES["rows"], "float32")
    with pytest.raises(TypeError, match=r"^out has type Tensor, expected numpy\.ndarray$"):
        gce.loss_and_grad(logits, targets, 0.5, out=torch.empty_like(logits))
