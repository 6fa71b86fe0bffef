"""Targets that are probabilities: PyTorch's, layouts, edges and errors.

Against 50 digits they are in test_any_options.py, with all other options in test_options.py.
"""

from __future__ import annotations

import numpy as np
import pytest

import gce
from faults import arguments, call_in_vain
from test_layouts import DTYPES, assert_same_bits

CLASSES = (1, 2, 3, 7, 8, 9, 16, 17, 33, 100, 1025)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def problem(rows: int, classes: int, dtype: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = (3 * rng.standard_normal((rows, classes))).astype(DTYPES[dtype])
    return logits, softmax(rng.standard_normal((rows, classes))).astype(DTYPES[dtype])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_against_pytorch(isa, reduction, epsilon):
    torch = pytest.importorskip("torch")
    logits, targets = problem(12, 7, "float64")
    weight = np.linspace(0.0, 2.0, 7)
    for shape, axis in (((12, 7), 1), ((7,), 0), ((3, 7, 4), 1), ((2, 7, 3, 2), 1)):
        z = torch.tensor(np.moveaxis(logits[: np.prod(shape) // 7].reshape(*shape[:axis],
            *shape[axis + 1 :], 7), -1, axis), requires_grad=True)  # fmt: skip
        t = torch.tensor(targets).flatten()[: z.numel()].reshape(z.shape)
        want = torch.nn.functional.cross_entropy(
            z, t, torch.tensor(weight), reduction=reduction, label_smoothing=epsilon
        )
        want.sum().backward()
        loss, grad = gce.loss_and_grad(
            z.detach().numpy(), t.numpy(), 0.0, weight=weight, label_smoothing=epsilon,
            reduction=reduction, axis=axis,
        )  # fmt: skip
        np.testing.assert_allclose(loss, want.detach().numpy(), rtol=1e-14)
        np.testing.assert_allclose(grad, z.grad.numpy(), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", CLASSES)
def test_one_hot_is_the_class(engine, classes, dtype):
    logits, _ = problem(9, classes, dtype)
    index = np.arange(9) % classes
    hot = np.eye(classes, dtype=logits.dtype)[index]
    for gamma, b in ((0.0, 0.0), (0.4, 0.2), (1.0, 0.0)):
        options = {"threshold": b, "reduction": "none"}
        loss, grad = engine.loss_and_grad(logits, index, gamma, **options)
        same, same_grad = engine.loss_and_grad(logits, hot, gamma, **options)
        # Both within the promises: half each. The gradient is rounded to its dtype besides.
        tolerance = (1e-14, 1e-15) if dtype == "float64" else (1e-6, 2e-7)
        np.testing.assert_allclose(same, loss, *tolerance)
        spacing = {"float64": 2e-15, "float32": 5e-7, "float16": 1e-3, "bfloat16": 8e-3}[dtype]
        np.testing.assert_allclose(
            same_grad.astype("f8"), grad.astype("f8"), rtol=spacing, atol=max(spacing * 1e-3, 2e-15)
            if dtype in ("float16", "bfloat16") else spacing,
        )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_layout_and_split(engine, dtype):
    for rows, classes in ((70, 3), (40, 33), (5, 300)):
        logits, targets = problem(rows, classes, dtype)
        options = {"gamma": 0.3, "threshold": 0.1, "reduction": "none", "softcap": 4.0}
        loss, grad = engine.loss_and_grad(logits, targets, **options)
        for wide in (targets.astype("f8"), np.asfortranarray(targets), targets[:, ::-1][:, ::-1]):
            found = engine.loss_and_grad(np.ascontiguousarray(logits.T), wide.T, **options, axis=0)
            assert_same_bits(found[0], loss)
            assert_same_bits(found[1].T, grad)
        assert_same_bits(engine.loss(logits, targets, **options), loss)
        out = logits.copy()
        found = engine.loss_and_grad(out, targets, **options, out=out)
        assert_same_bits(found[0], loss)
        assert_same_bits(out, grad)
        for row in (0, rows - 1):
            found = engine.loss_and_grad(logits[row], targets[row], **options)
            assert_same_bits(found[0], loss[row])
            assert_same_bits(found[1], grad[row])
    shifted = np.empty(logits.nbytes + 1, np.uint8)[1:].view(logits.dtype).reshape(logits.shape)
    shifted[...] = logits
    assert_same_bits(engine.loss_and_grad(shifted, targets, **options)[1], grad)


def test_any_number_of_threads(isa):
    logits, targets = problem(3000, 100, "float32")
    want = gce.loss_and_grad(logits, targets, 0.3, num_threads=1, return_stats=True)
    for threads in (2, 5):
        found = gce.loss_and_grad(logits, targets, 0.3, num_threads=threads, return_stats=True)
        assert_same_bits(found[0], want[0])
        assert_same_bits(found[1], want[1])
        for one, other in zip(found[2], want[2], strict=True):
            assert_same_bits(one, other)


def test_the_mean_divides_by_rows(isa):
    logits, targets = problem(6, 5, "float64")
    options = {"weight": np.arange(5.0), "sample_weight": np.arange(6.0)}
    total = gce.loss(logits, targets, 0.3, reduction="sum", **options)
    assert gce.loss(logits, targets, 0.3, **options) == pytest.approx(total / 6, rel=1e-15)
    assert gce.loss(logits, targets, 0.3, **options, normalizer=2.5) == pytest.approx(total / 2.5)
    loss, grad = gce.loss_and_grad(np.zeros((0, 5)), np.zeros((0, 5)), 0.3)
    assert loss == 0.0 and grad.shape == (0, 5)


def test_stats(isa):
    logits, targets = problem(8, 6, "float64")
    stats = gce.loss(logits, targets, 0.3, threshold=0.2, return_stats=True)[1]
    log_q = np.log(softmax(logits))
    np.testing.assert_allclose(stats.target_log_prob, (targets * log_q).sum(axis=1), rtol=1e-13)
    weight = targets * gce.grad_weight(log_q, 0.3, 0.2)
    np.testing.assert_allclose(stats.grad_weight, weight.sum(axis=1), rtol=1e-13)
    alone = gce.row_stats(logits, targets)
    assert_same_bits(alone.target_log_prob, stats.target_log_prob)
    np.testing.assert_array_equal(alone.argmax, logits.argmax(axis=1))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("classes", [3, 20])
def test_ieee(isa, classes, dtype):
    logits = np.zeros((6, classes), dtype)
    logits[0, 1], logits[1, 1], logits[2, 1] = np.nan, np.inf, -np.inf
    logits[4] = -np.inf
    targets = np.full((6, classes), 1 / classes, dtype)
    targets[3] = 0.0
    loss, grad = gce.loss_and_grad(logits, targets, 0.0, reduction="none")
    assert np.isnan(loss[[0, 1, 4]]).all() and np.isnan(grad[[0, 1, 4]]).all()
    assert loss[2] == np.inf  # the masked class is a target
    assert np.isfinite(grad[[2, 3, 5]]).all()
    assert loss[3] == 0.0 and not grad[3].any()
    targets[2, 1] = 0.0  # no longer
    loss, grad = gce.loss_and_grad(logits, targets, 0.0, reduction="none")
    assert np.isfinite(loss[2]) and grad[2, 1] == 0.0
    # γ > 0: a finite loss for the masked class, and no pull.
    targets[2] = np.eye(classes)[1]
    loss, grad = gce.loss_and_grad(logits, targets, 0.5, reduction="none")
    np.testing.assert_allclose(loss[2], np.log(2) / 0.5, rtol=1e-6)
    assert not grad[2].any()


def test_probability_0_or_weight_0_takes_no_part(isa):
    logits = np.array([[0.0, -np.inf, 1.0]])
    for targets, weight in (([[0.5, 0.0, 0.5]], None), ([[0.5, 0.5, 0.0]], [1.0, 0.0, 1.0])):
        loss, grad = gce.loss_and_grad(logits, np.array(targets), 0.0, weight=weight)
        assert np.isfinite(loss) and np.isfinite(grad).all()


NO_SHAPE = r"targets has shape \(4, 4\), expected \(4, 5\) of probabilities, the shape of logits"
NO_INDEX = "ignore_index = 3, expected none, or a negative one, for targets that are probabilities"
NO_ROWS = r"sample_weight has shape \(4, 5\), expected \(4,\), the shape of targets without the"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"targets": np.full((4, 4), 0.2)}, NO_SHAPE),
        ({"targets": np.full((2, 4, 5), 0.2)}, r"targets has shape \(2, 4, 5\), expected"),
        ({"ignore_index": 3}, NO_INDEX),
        ({"sample_weight": np.ones((4, 5))}, NO_ROWS),
    ],
)
def test_errors(given, message):
    usual = {**arguments(), "targets": np.full((4, 5), 0.2)}
    call_in_vain(gce.loss_and_grad, ValueError, message, {**usual, **given})


@pytest.mark.parametrize("bad", [-0.5, -1e-30, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_number_that_is_no_probability(isa, dtype, bad):
    for classes in (2, 5, 40):
        for axis in (0, 1):
            targets = np.full((4, classes), 0.25, DTYPES[dtype])
            targets[2, classes - 1] = bad
            if targets[2, classes - 1] == 0.0:  # underflow
                continue
            given = {**arguments(), "logits": np.zeros((4, classes), np.float32), "axis": axis}
            index = f"[2, {classes - 1}]"
            if axis == 0:
                targets, given["logits"] = targets.T, given["logits"].T
                index = f"[{classes - 1}, 2]"
            pattern = rf"^targets\{index[:-1]}\] = .*, expected a probability: finite and >= 0$"
            call_in_vain(gce.loss_and_grad, ValueError, pattern, {**given, "targets": targets})


@pytest.mark.parametrize("axis", [0, 1])
def test_targets_that_lie_backwards_are_checked_where_they_are(isa, axis):
    # What lies before and after them is no probability, or hides that one of them is none.
    for around, within in ((np.nan, 0.25), (0.25, -1.0)):
        block = np.full((12, 5), around)
        block[4:8] = 0.25
        block[6, 3] = within
        targets = block[4:8][::-1, ::-1]
        given = {"logits": np.zeros((4, 5)), "targets": targets, "gamma": 0.5, "axis": 1}
        if axis == 0:
            given |= {"logits": np.zeros((5, 4)), "targets": targets.T, "axis": 0}
        if within > 0.0:
            assert np.isfinite(gce.loss(**given))
            continue
        call_in_vain(gce.loss_and_grad, ValueError, r"targets\[1, 1\] = -1, expected a prob", given)


def test_out_may_not_overlap_the_targets():
    given = {**arguments(), "targets": np.full((4, 5), 0.2, np.float32)}
    given["out"] = given["targets"]
    call_in_vain(gce.loss_and_grad, ValueError, "out overlaps targets", given)
