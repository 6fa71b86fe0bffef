"""The sigmoid form: against 50 digits and the reference, its options, infinities and NaN.

How it goes with layouts, threads and bad input is tested in test_binary_calls.py, with PyTorch in
test_binary_torch.py.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any, NamedTuple

import numpy as np
import pytest

import gce
import oracle
from engines import EMULATED
from gce import reference
from test_accuracy import GAMMAS, LIMITS, assert_within
from test_layouts import DTYPES, assert_same_bits
from test_reference import DIFFERENCE_TOLERANCE, STEP, finite_differences

LOGITS = (0.0, 1e-30, 1e-3, 0.3, 0.5, 1.0, 2.5, 10.0, 20.0, 40.0, 68.9, 69.0, 69.1, 90.0, 104.0)
LARGE_LOGITS = (600.0, 700.0, 720.0, 740.0, 750.0, 1390.0, 1410.0, 1e4, 1e30)
TARGETS = (0.0, 1.0, 0.5, 1e-30, 1e-3, 0.3, 1.0 - 2.0**-24)
THRESHOLDS = (0.0, 1e-300, 1e-9, 0.3, 1.0 - 1e-7, 1.0)
POS_WEIGHTS = (1.0, 0.0, 1e-3, 3.7, 100.0)
EPSILONS = (0.0, 0.1, 1.0)
VALUES = ("primitive", "surrogate")


class Elements(NamedTuple):
    """Arguments for each element, and the exact results rounded once, to float64."""

    logits: Any
    targets: Any
    gamma: Any
    threshold: Any
    pos_weight: Any
    loss: Any
    grad: Any
    size: Any
    slope_size: Any


@functools.cache
def elements(dtype: str, value: str, epsilon: float, count: int = 400) -> Elements:
    """Random combinations, of every γ with every threshold among them."""
    rng = np.random.default_rng([len(value), int(10 * epsilon), np.dtype(dtype).itemsize])
    turn = itertools.cycle(itertools.product(GAMMAS, THRESHOLDS))
    rows = []
    for gamma, b in itertools.islice(turn, count):
        size = (
            rng.choice(LOGITS + LARGE_LOGITS) if rng.random() < 0.7 else abs(rng.normal(scale=4.0))
        )
        logit = float((rng.choice([-1.0, 1.0]) * size).astype(dtype))
        target = float(np.dtype(dtype).type(rng.choice([*TARGETS, rng.random()])))
        pos_weight = float(rng.choice(POS_WEIGHTS))
        exact = oracle.binary_element(logit, target, gamma, b, value, pos_weight, epsilon)
        rows.append((logit, target, gamma, b, pos_weight, *map(float, exact)))
    return Elements(*map(np.array, zip(*rows, strict=True)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("value", VALUES)
def test_against_50_digits(engine, value, epsilon, dtype, record_error):
    e = elements(dtype, value, epsilon)
    limits = LIMITS[dtype]
    options = {"threshold": e.threshold, "pos_weight": e.pos_weight, "value": value}
    options |= {"label_smoothing": epsilon, "reduction": "none"}
    logits, targets = e.logits.astype(dtype), e.targets.astype(dtype)
    loss, grad = engine.binary_loss_and_grad(logits, targets, e.gamma, **options)
    assert_same_bits(engine.binary_loss(logits, targets, e.gamma, **options), loss)
    names = [str(row) for row in zip(*e[:5], strict=True)]
    # The specification's limits of one outcome, for sums of two with factors.
    limit = np.maximum(limits.loss_relative * e.loss, limits.loss_absolute * e.size) + 1e-320
    record_error(f"binary {dtype}", assert_within(loss, e.loss, limit, "loss", names))
    limit = limits.grad * e.slope_size + limits.grad_absolute
    record_error(f"binary grad {dtype}", assert_within(grad, e.grad, limit, "grad", names))


@pytest.mark.parametrize("gamma", GAMMAS)
def test_the_reference_is_as_exact(gamma):
    for value, epsilon in itertools.product(VALUES, EPSILONS):
        e = elements("float64", value, epsilon)
        loss, grad = reference.binary_loss_and_grad(
            e.logits,
            e.targets,
            e.gamma,
            threshold=e.threshold,
            pos_weight=e.pos_weight,
            value=value,
            label_smoothing=epsilon,
            reduction="none",
        )
        chosen = e.gamma == gamma
        # numpy's exp and log, a dozen roundings; for p < 1e-308, 1/w overflows.
        limit = np.maximum(1e-14 * e.loss, 1e-15 * e.size)
        assert_within(loss[chosen], e.loss[chosen], limit[chosen] + 1e-320, "loss")
        limit = 3e-15 * e.slope_size + np.finfo("f8").tiny
        assert_within(grad[chosen], e.grad[chosen], limit[chosen], "grad")


@pytest.mark.parametrize("epsilon", [1e-17, 1e-300])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_smoothing_that_leaves_a_target_at_1(engine, dtype, epsilon):
    # (1 - ε) t + ε/2 is rounded to 1 where (1 - ε)(1 - t) + ε/2 is not 0. Among ones, and beside a
    # target that is none, an element has the same bits, and both outcomes.
    logits = np.array([40.0, -3.0, 30.0, 2.0] * 16, dtype)
    targets = np.ones(64, dtype)
    beside = np.where(np.arange(64) % 4 == 3, 0.5, targets).astype(dtype)
    options = {"label_smoothing": epsilon, "reduction": "none", "pos_weight": np.float64(0.0)}
    results = [engine.binary_loss_and_grad(logits, t, 0.3, **options) for t in (targets, beside)]
    same = targets == beside
    for one, other in zip(*results, strict=True):
        assert_same_bits(one[same], other[same])
    exact = oracle.binary_element(40.0, 1.0, 0.3, pos_weight=0.0, epsilon=epsilon)
    want = np.array([float(exact.value), float(exact.grad)])
    found = np.array([results[0][0][0], results[0][1][0]], "f8")
    np.testing.assert_allclose(found, want, rtol=1e-6, atol=np.finfo(dtype).tiny)


# --- what the options do --------------------------------------------------------------------------


def problem(shape: tuple[int, ...] = (5, 7), dtype: str = "float64") -> tuple[Any, Any]:
    """Logits, and targets of which two in three are 0 or 1."""
    rng = np.random.default_rng(len(shape))
    logits = (3 * rng.standard_normal(shape)).astype(DTYPES[dtype])
    targets = np.where(rng.random(shape) < 0.67, rng.random(shape) < 0.5, rng.random(shape))
    return logits, targets


OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "threshold": {"threshold": 0.3},
    "thresholds": {"threshold": np.linspace(0.0, 1.0, 35).reshape(5, 7)},
    "surrogate": {"value": "surrogate", "threshold": 0.1},
    "weight": {"weight": np.linspace(0.0, 2.0, 35).reshape(5, 7)},
    "a weight per class": {"weight": np.arange(7.0)},
    "a weight per row": {"weight": np.arange(5.0)[:, np.newaxis]},
    "a weight for all": {"weight": 2.5},
    "negative weights": {"weight": -np.arange(7.0), "pos_weight": np.float32(-2.0)},
    "pos_weight": {"pos_weight": np.linspace(0.0, 4.0, 7)},
    "pos_weight for all": {"pos_weight": 3.0},
    "pos_weight for each": {"pos_weight": np.linspace(0.0, 4.0, 35).reshape(5, 7)},
    "label_smoothing": {"label_smoothing": 0.1},
    "all smoothing": {"label_smoothing": 1.0},
    "normalizer": {"normalizer": 3.0},
    "grad_output": {"grad_output": -2.0},
}
OPTIONS["all"] = {
    **OPTIONS["thresholds"],
    **OPTIONS["a weight per row"],
    **OPTIONS["pos_weight"],
    **OPTIONS["label_smoothing"],
}


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", OPTIONS)
def test_against_the_reference(engine, name, reduction):
    options = {**OPTIONS[name], "reduction": reduction}
    if reduction != "mean" and options.pop("normalizer", None):
        return  # an error; see test_binary_calls.py
    logits, targets = problem()
    gammas = np.random.default_rng(0).choice(GAMMAS, logits.shape)
    for gamma in (0.0, 0.4, 1.0, gammas):
        loss, grad = engine.binary_loss_and_grad(logits, targets, gamma, **options)
        want_loss, want_grad = reference.binary_loss_and_grad(logits, targets, gamma, **options)
        # Both are as exact as above; up to 35 elements are added, of size 4 times 6.
        np.testing.assert_allclose(loss, want_loss, rtol=1e-13, atol=1e-13)
        np.testing.assert_allclose(grad, want_grad, rtol=1e-13, atol=1e-14)
        assert loss.shape == (logits.shape if reduction == "none" else ())


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "surrogate"])
@pytest.mark.parametrize("gamma", [0.0, 1e-7, 0.5, 1.0])
def test_the_gradient_is_that_of_the_loss(isa, gamma, name):
    logits, targets = problem()
    options = {**OPTIONS[name], "reduction": "none"}
    options.pop("normalizer", None)
    factor = options.pop("grad_output", 1.0)
    _, grad = gce.binary_loss_and_grad(logits, targets, gamma, **options, grad_output=factor)

    def loss(z: Any) -> Any:
        return gce.binary_loss(z, targets, gamma, **options)

    differences = factor * (loss(logits + STEP) - loss(logits - STEP)) / (2 * STEP)
    # Weights are up to 8.
    np.testing.assert_allclose(grad, differences, rtol=0, atol=10 * DIFFERENCE_TOLERANCE)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_gradient_is_that_of_the_reduced_loss(isa, reduction):
    logits, targets = problem((13,))
    options: dict[str, Any] = {"reduction": reduction, "weight": np.linspace(0.5, 1.0, 13)}
    _, grad = gce.binary_loss_and_grad(logits, targets, 0.3, **options)
    differences = finite_differences(
        lambda z: gce.binary_loss(z, targets, 0.3, **options), logits, STEP
    )
    np.testing.assert_allclose(grad, differences, rtol=0, atol=DIFFERENCE_TOLERANCE)


def test_it_is_the_loss_of_two_classes(isa):
    # sigmoid(z) is the softmax of (z, 0).
    logits, _ = problem((200,))
    targets = np.arange(200) % 2
    rows = np.stack([np.zeros_like(logits), logits], axis=-1)
    gamma = np.resize(GAMMAS, 200)
    options: dict[str, Any] = {"threshold": 0.2, "reduction": "none"}
    want, want_grad = gce.loss_and_grad(rows, targets, gamma, **options)
    loss, grad = gce.binary_loss_and_grad(logits, targets, gamma, **options)
    np.testing.assert_allclose(loss, want, rtol=2e-14, atol=2e-15)
    np.testing.assert_allclose(grad, want_grad[:, 1], rtol=2e-14, atol=2e-15)
    # The tail at γ = 1: 1 - b + b log(b/p) for p < b.
    p = 1.0 / (1.0 + np.exp(-logits))
    tail = np.where(p < 0.2, 0.8 + 0.2 * np.log(0.2 / p), 1.0 - p)
    loss = gce.binary_loss(logits, np.ones(200), 1.0, **options)
    np.testing.assert_allclose(loss, tail, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("targets", [np.array([0, 1, 1, 0]), [False, True, True, False]])
def test_integer_and_bool_targets(isa, targets):
    logits = np.array([0.5, -1.0, 2.0, 3.0], np.float32)
    want = gce.binary_loss_and_grad(logits, [0.0, 1.0, 1.0, 0.0], 0.5)
    for dtype in (None, np.int8, np.uint64, bool):
        found = gce.binary_loss_and_grad(logits, np.asarray(targets, dtype), 0.5)
        assert_same_bits(found[0], want[0])
        assert_same_bits(found[1], want[1])


def test_weights_do_not_change_the_divisor(isa):
    logits, targets = problem()
    weight = np.arange(7.0)
    each = gce.binary_loss(logits, targets, 0.5, weight=weight, reduction="none")
    mean = gce.binary_loss(logits, targets, 0.5, weight=weight)
    np.testing.assert_allclose(mean, each.sum() / 35, rtol=1e-14)
    mean = gce.binary_loss(logits, targets, 0.5, weight=weight, normalizer=weight.sum())
    np.testing.assert_allclose(mean, each.sum() / 21, rtol=1e-14)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 4)])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_without_elements(engine, reduction, shape):
    logits = np.zeros(shape, np.float32)
    for options in ({}, {"normalizer": 2.0}, {"weight": np.ones(shape[-1:])}):
        if reduction != "mean" and "normalizer" in options:
            continue
        loss, grad = engine.binary_loss_and_grad(
            logits, logits, 0.5, reduction=reduction, **options
        )
        assert grad.shape == shape
        assert_same_bits(loss, np.zeros(shape if reduction == "none" else (), np.float32)[()])


def test_one_number(engine):
    for reduction in ("mean", "sum", "none"):
        loss, grad = engine.binary_loss_and_grad(np.float64(3.0), 0.25, 0.5, reduction=reduction)
        want = reference.binary_loss_and_grad(3.0, 0.25, 0.5, reduction=reduction)
        np.testing.assert_allclose((loss, grad), want, rtol=1e-15)
        assert isinstance(loss, np.float64) and grad.shape == ()


# --- infinities, NaN ------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_infinite_logits_give_the_limits(engine, dtype, gamma):
    inf = np.inf
    logits = np.array([-inf, -inf, inf, inf, -inf, inf]).astype(DTYPES[dtype])
    targets = np.array([0.0, 1.0, 0.0, 1.0, 0.25, 0.25])
    rtol = 1e-14 if dtype == "float64" else 1e-6
    for b, value in itertools.product((0.0, 0.25), VALUES):
        options: dict[str, Any] = {"threshold": b, "value": value, "reduction": "none"}
        loss, grad = engine.binary_loss_and_grad(logits, targets, gamma, **options)
        weight = max(b, 1.0 if gamma == 0 else 0.0)
        if weight > 0:
            wrong = inf
        elif value == "surrogate":
            wrong = 0.0
        else:
            wrong = 1.0 if gamma == 1 else -np.log(gamma) / (1 - gamma)
        want = [0.0, wrong, wrong, 0.0, 0.25 * wrong, 0.75 * wrong]
        np.testing.assert_allclose(loss, want, rtol=rtol)
        slope = [0.0, -weight, weight, 0.0, -0.25 * weight, 0.75 * weight]
        assert grad.astype(np.float64).tolist() == slope  # powers of two, exact in every dtype


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_is_in_its_own_element_alone(engine, dtype):
    logits, targets = problem((41,), dtype)
    poisoned = logits.copy()
    poisoned[[3, 17, 40]] = [np.nan, -np.nan, np.nan]
    others = ~np.isnan(poisoned.astype(np.float64))
    for gamma, b, value in itertools.product((0.0, 1e-300, 0.4, 1.0), (0.0, 0.3, 1.0), VALUES):
        options: dict[str, Any] = {"threshold": b, "value": value, "reduction": "none"}
        want = engine.binary_loss_and_grad(logits, targets, gamma, **options)
        found = engine.binary_loss_and_grad(poisoned, targets, gamma, **options)
        for one, other in zip(found, want, strict=True):
            assert np.isnan(one[~others].astype(np.float64)).all()
            assert_same_bits(one[others], other[others])
            # One NaN, whatever became of it on the way.
            assert len({number.tobytes() for number in one[~others]}) == 1
    assert np.isnan(engine.binary_loss(poisoned, targets, 0.5))


def test_a_weight_of_0_is_a_mask(isa):
    inf, nan = np.inf, np.nan
    logits = np.array([1.0, -inf, inf, 3.0, nan])
    targets = np.array([1, 1, 0, 0, 1])
    weight = np.array([2.0, 0.0, 0.0, 1.0, 0.0])
    for gamma in (0.0, 0.5):
        loss, grad = gce.binary_loss_and_grad(
            logits, targets, gamma, weight=weight, reduction="none"
        )
        # +0.0, no NaN: an infinite loss that does not count is none.
        assert loss[1:3].tobytes() == grad[1:3].tobytes() == np.zeros(2).tobytes()
        assert np.isfinite(loss[[0, 3]]).all() and loss[[0, 3]].all()
        assert np.isnan(loss[4]) and np.isnan(grad[4])  # as rows of sample weight 0 are
        mean = gce.binary_loss(logits[:4], targets[:4], gamma, weight=weight[:4])
        np.testing.assert_allclose(mean, (loss[0] + loss[3]) / 4, rtol=1e-15)
    # So is a factor of 0 in the sum over outcomes: at ±inf above, and where pos_weight is 0.
    found = gce.binary_loss_and_grad([-inf, 0.5], [1.0, 1.0], 0.0, pos_weight=0.0, reduction="sum")
    assert found[0] == 0.0 and not found[1].any()


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers(isa, poison):
    logits, targets = np.array([0.5, 0.5, 0.5]), np.array([1.0, 1.0, 0.0])
    for name in ("weight", "pos_weight"):
        given = {name: np.array([1.0, poison, 1.0])}
        loss, grad = gce.binary_loss_and_grad(logits, targets, 0.5, **given, reduction="none")
        np.testing.assert_array_equal(np.isfinite(loss), [True, False, True])
        np.testing.assert_array_equal(np.isfinite(grad), [True, False, True])
        assert np.isnan(loss[1]) == np.isnan(poison)


def test_no_floating_point_warning(isa):
    logits = np.array([-np.inf, -1e308, -800.0, 0.0, 5e-324, 800.0, np.inf, np.nan])
    with np.errstate(all="raise"):
        for gamma, b, t in itertools.product(GAMMAS, (0.0, 0.3, 1.0), (0.0, 0.5, 1.0)):
            gce.binary_loss_and_grad(logits, np.full(8, t), gamma, threshold=b)


# --- one element's bits are its own ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_neighbours_change_no_bit(engine, dtype):
    # Vectors of which all elements are of one kind take shorter ways: each kind among others, and
    # alone as a vector of itself. Kinds: targets 0, 1 and between; γ 0, tiny and usual; b 0 or not.
    rng = np.random.default_rng(1)
    kinds = list(
        itertools.product((0.0, 1.0, 0.3), (0.0, 1e-300, 0.4, 1.0), (0.0, 0.5), (-0.0, 2.0, -1.5))
    )
    count = 3 * len(kinds)
    targets, gamma, b, c = np.array([kinds[i] for i in rng.permutation(count) % len(kinds)]).T
    logits = (4 * rng.standard_normal(count)).astype(DTYPES[dtype])
    logits[::9] *= 200
    logits[5::31] = 0.0
    for value in VALUES:
        together = engine.binary_loss_and_grad(
            logits, targets, gamma, threshold=b, pos_weight=c, value=value, reduction="none"
        )
        step = 29 if engine.name in EMULATED else 1
        for i in range(0, count, step):
            loss, grad = engine.binary_loss_and_grad(
                np.full(33, logits[i]),
                np.full(33, targets[i]),
                gamma[i],
                threshold=b[i],
                pos_weight=c[i],
                value=value,
                reduction="none",
            )
            assert_same_bits(loss, np.full(33, together[0][i]))
            assert_same_bits(grad, np.full(33, together[1][i]))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bits_are_those_of_float32_rounded_once(engine, dtype):
    logits, targets = problem((333,), dtype)
    logits[:6] = np.array([0.0, -0.0, 80.0, -80.0, 1e-4, -1e4]).astype(logits.dtype)
    options: dict[str, Any] = {"threshold": 0.1, "reduction": "none"}
    loss, grad = engine.binary_loss_and_grad(logits, targets, 0.3, **options)
    want = engine.binary_loss_and_grad(logits.astype(np.float32), targets, 0.3, **options)
    assert_same_bits(loss, want[0])
    assert_same_bits(grad, want[1].astype(logits.dtype))
