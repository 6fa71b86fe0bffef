"""Label smoothing: its value and gradient, bits and edges, on every dtype and instruction set.

A row's loss is s ((1 - ε) c_y L + (ε/V) Σ_v c_v (-log q_v)), with sample weight s and class weights
c; classes with c_v = 0 are no part of the sum. How it goes with the other options is tested in
test_options.py, PyTorch's in test_torch.py, what C alone can ask for in native/abi.c.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any, NamedTuple

import mpmath as mp
import numpy as np
import pytest

import gce
import oracle
from engines import EMULATED
from faults import arguments, call_in_vain
from gce import reference
from test_accuracy import GAMMAS, HALVES, LIMITS, THRESHOLDS, assert_within, large_row, rows_of
from test_determinism import DTYPES, REDUCTIONS, SHAPES, bits, part, problem
from test_ieee import AXES, LARGEST, as_dtype, logits_of, run
from test_layouts import LAYOUTS, Problem, assert_same_bits
from test_reference import DIFFERENCE_TOLERANCE, check_gradients, random_rows

# Around the lanes of every ISA, the groups of four vectors, the 32 or 64 classes up to which rows
# are transposed, and blocks of 1024.
FEW_CLASSES = (1, 2, 3, 7, 8, 9, 17, 31, 33, 64, 65, 127)
MANY_CLASSES = (1000, 1025, 2053)
EMULATED_CLASSES = (1, 2, 3, 8, 9, 33, 127, 1025, 2053)

EPSILONS = (1e-7, 0.1, 0.5, 1.0)
WEIGHTS = ("none", "some 0", "of all sizes", "of one class")


def class_weights(kind: str, classes: int) -> Any:
    rng = np.random.default_rng(classes)
    if kind == "none":
        return np.ones(classes)
    if kind == "some 0":
        return np.where(np.arange(classes) % 3 == 1, 0.0, rng.uniform(0.2, 2.0, classes))
    if kind == "of all sizes":
        return rng.permutation(np.geomspace(1e-3, 1e3, classes))
    assert kind == "of one class", kind
    return np.eye(classes)[rng.integers(classes)]


# --- accuracy -------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """Arguments of a call, and the exact results rounded once, to float64."""

    names: list[str]
    logits: Any
    targets: Any
    gamma: Any
    options: dict[str, Any]
    loss: Any
    grad: Any
    loss_size: Any  # what the row's weights add up to: (1 - ε) c_y + (ε/V) Σ_v c_v
    grad_size: Any  # the same with the gradient weight: (1 - ε) c_y w_b + (ε/V) Σ_v c_v


def more_rows_of(classes: int, dtype: str, weight: Any) -> dict[str, tuple[Any, int]]:
    """Rows of test_accuracy, and of what label smoothing alone may trip over."""
    rng = np.random.default_rng(classes + 1)
    target = int(rng.integers(classes))
    noise = 3.0 * rng.normal(size=classes)
    rows = {  # beyond 2^20 a row is shifted by its maximum
        "around 2^21": noise + 2.0**21,
        "around -1e8": 100.0 * noise - 1e8,
        "spread": np.linspace(-1e4, 1e4, classes)[rng.permutation(classes)],
    }
    if not weight.all():
        rows["without weight: -inf"] = np.where(weight == 0.0, -np.inf, noise)
    more = {name: (row.astype(dtype), target) for name, row in rows.items()}
    return {**rows_of(classes, dtype), **more}


@functools.cache
def batch(classes: int, dtype: str, number: int) -> Batch:
    """Rows of every kind. The number chooses ε, and the rest by turns."""
    epsilon = EPSILONS[number % 4]
    kind = WEIGHTS[(number + classes) % 4]
    value = ("primitive", "surrogate")[(number + classes) // 4 % 2]
    weight = class_weights(kind, classes)
    rows = more_rows_of(classes, dtype, weight)
    # 50 digits of many classes take their time: half of the rows, the other half for the next ε.
    names = list(rows)[number // 2 :: 2] if classes >= 1000 else list(rows)
    pairs = list(itertools.product(GAMMAS, THRESHOLDS))
    pairs = [pairs[(5 * i + 7 * number + classes) % len(pairs)] for i in range(len(names))]
    exact = [
        oracle.smoothed_row(*rows[name], gamma, epsilon, weight, b, value)
        for name, (gamma, b) in zip(names, pairs, strict=True)
    ]
    targets = np.array([rows[name][1] for name in names])
    gamma, threshold = map(np.array, zip(*pairs, strict=True))
    kept, smooth = (1.0 - epsilon) * weight[targets], epsilon * weight.mean()
    options = {"threshold": threshold, "value": value, "label_smoothing": epsilon}
    options |= {"weight": None if kind == "none" else weight, "reduction": "none"}
    return Batch(
        [f"ε = {epsilon}, weights {kind}, {name}" for name in names],
        np.array([rows[name][0] for name in names]),
        targets,
        gamma,
        options,
        np.array([float(row.value) for row in exact]),
        np.array([[float(slope) for slope in row.grad] for row in exact]),
        kept + smooth,
        kept * np.array([float(row.weight) for row in exact]) + smooth,
    )


def batches(classes: int, dtype: str) -> list[Batch]:
    """Each ε; for many classes two, which the next number of classes takes turns with."""
    numbers = range(classes % 2, 4, 2) if classes >= 1000 else range(4)
    return [batch(classes, dtype, number) for number in numbers]


def limits_of(b: Batch, dtype: str) -> tuple[Any, Any]:
    """How far loss and gradient may be off: the promise, times what the row's weights add up to.

    A loss is promised to a relative error, or to an absolute one where it is tiny; here it is a sum
    of such losses, each times its weight. A gradient is size q less what belongs to the class. The
    former is promised; of ε c_v / V, which is never more than the size, c_v, ε / V and the result
    are rounded, by 1.8e-7 in all, for which the promise has room: see the shares below.
    """
    limits = LIMITS[dtype]
    loss = np.maximum(limits.loss_relative * np.abs(b.loss), limits.loss_absolute * b.loss_size)
    return loss, (limits.grad * b.grad_size + limits.grad_absolute)[:, np.newaxis]


# Measured, as shares of the limits (`pytest -v` ends with them), the largest of all ISAs, and below
# 1000 classes with all 16 pairs of ε and weights: float32 0.36 for losses and 0.44 for
# gradients, float64 0.25 and 0.5.
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_against_50_digits(engine, dtype, record_error):
    for classes in EMULATED_CLASSES if engine.name in EMULATED else FEW_CLASSES + MANY_CLASSES:
        for b in batches(classes, dtype):
            loss, grad = engine.loss_and_grad(b.logits, b.targets, b.gamma, **b.options)
            assert loss.dtype == grad.dtype == b.logits.dtype
            loss_limit, grad_limit = limits_of(b, dtype)
            share = assert_within(loss, b.loss, loss_limit, f"loss {classes}", b.names)
            record_error(f"smoothed loss {dtype}", share)
            share = assert_within(grad, b.grad, grad_limit, f"grad {classes}", b.names)
            record_error(f"smoothed grad {dtype}", share)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["normal", "around 1e6", "ascending"])
def test_262144_classes(engine, dtype, kind, record_error):
    logits, target, at_gamma_0 = large_row(kind, 262_144, dtype)
    limits = LIMITS[dtype]
    q = np.array(at_gamma_0.grad)
    at_target = q[target]  # q - 1
    q[target] = float(mp.exp(at_gamma_0.log_p))
    of_classes = mean_of_minus_log_q(logits, target, at_gamma_0.log_p)
    for gamma, b, epsilon in ((0.0, 0.0, 0.1), (0.1, 0.3, 1e-7), (0.8, 0.2, 0.1), (1.0, 0.0, 1.0)):
        loss, grad = engine.loss_and_grad(
            logits, target, gamma, threshold=b, label_smoothing=epsilon
        )
        own = float(oracle.value_from_log_prob(at_gamma_0.log_p, gamma, b))
        exact = (1.0 - epsilon) * own + epsilon * of_classes
        limit = max(limits.loss_relative * exact, limits.loss_absolute)
        share = assert_within(loss, exact, limit, f"loss γ={gamma}")
        record_error(f"smoothed loss {dtype}", share)
        # Of a size of 0.1 or so, ε/V is less than the promised error: each class is held to its own
        # q instead, as in test_accuracy, and to its own ε/V.
        weight = (1.0 - epsilon) * float(oracle.weight_from_log_prob(at_gamma_0.log_p, gamma, b))
        exact_grad = weight * q + epsilon * (q - 1.0 / len(q))
        exact_grad[target] += weight * (at_target - q[target])
        relative = limits.grad - limits.exponent * np.log(q / q.max())
        size = (weight + epsilon) * q + epsilon / len(q)
        size[target] += weight
        flushed = min(2.0 * np.finfo(dtype).tiny, 2.0**-32 * (weight + epsilon))
        limit = relative * size + flushed
        share = assert_within(grad, exact_grad, limit, f"grad γ={gamma}")
        record_error(f"smoothed each q {dtype}", share)


def mean_of_minus_log_q(logits: Any, target: int, log_p: Any) -> float:
    """Σ_v (-log q_v) / V for logits of few distinct values."""
    distinct, counts = np.unique(logits, return_counts=True)
    with mp.workdps(oracle.ROW_DIGITS):
        logsumexp = mp.mpf(float(logits[target])) - log_p
        terms = [logsumexp - mp.mpf(float(z)) for z in distinct]
        return float(mp.fdot(terms, counts.tolist()) / len(logits))


def test_the_reference_against_50_digits():
    for classes in FEW_CLASSES + MANY_CLASSES:
        for b in batches(classes, "float64"):
            loss, grad = reference.loss_and_grad(b.logits, b.targets, b.gamma, **b.options)
            # Its sums of exponentials and of losses are plain ones, pairwise at best: twice what
            # the kernels may be off by. Measured: 0.33 and 1.1 times the kernels' limits.
            loss_limit, grad_limit = limits_of(b, "float64")
            assert_within(loss, b.loss, 2.0 * loss_limit, f"loss {classes}", b.names)
            assert_within(grad, b.grad, 2.0 * grad_limit, f"grad {classes}", b.names)


@pytest.mark.parametrize("dtype", HALVES)
def test_16_bit_logits_give_what_float32_gives_rounded_once(engine, dtype):
    for classes in EMULATED_CLASSES if engine.name in EMULATED else (*FEW_CLASSES, 1025):
        rows = rows_of(classes, "float64").values()
        logits = np.array([np.clip(z, -LARGEST[dtype], LARGEST[dtype]) for z, _ in rows])
        logits = logits.astype(HALVES[dtype])
        targets = np.array([target for _, target in rows])
        for epsilon, kind in zip(EPSILONS, WEIGHTS, strict=True):
            # Gradients from far below the subnormals of float16 to near its largest numbers.
            options = {
                "label_smoothing": epsilon,
                "grad_output": np.geomspace(1e-6, 6e4, len(rows)),
            }
            weight = class_weights(kind, classes)
            options |= {"weight": weight / weight.max(), "threshold": 0.1, "reduction": "none"}
            loss, grad = engine.loss_and_grad(logits, targets, 0.3, **options)
            wide = logits.astype(np.float32)
            loss_32, grad_32 = engine.loss_and_grad(wide, targets, 0.3, **options)
            assert loss.dtype == np.float32
            assert_same_bits(loss, loss_32)
            assert_same_bits(grad, grad_32.astype(HALVES[dtype]))


# --- the same bits --------------------------------------------------------------------------------


def smoothed(dtype: str, shape: tuple[int, ...], axis: int = -1) -> dict[str, Any]:
    """A problem with options of every kind, ε and class weights of 0."""
    arguments_of_it = problem(dtype, shape, axis)
    arguments_of_it["weight"][::5] = 0.0
    return arguments_of_it | {"label_smoothing": 0.1}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", SHAPES)
def test_any_number_of_threads_in_place_or_not_with_gradient_or_without(isa, kind, dtype):
    options = smoothed(dtype, *SHAPES[kind])
    assert options["logits"].size >= 131_072  # or all is done by one thread
    for reduction in REDUCTIONS:
        options["reduction"] = reduction
        want = bits(gce.loss_and_grad(**options, num_threads=1))
        for threads in (1, 2, 3, 8):
            assert bits(gce.loss_and_grad(**options, num_threads=threads)) == want, threads
            assert gce.loss(**options, num_threads=threads).tobytes() == want[0], threads
        own = options | {"logits": options["logits"].copy()}
        found = gce.loss_and_grad(**own, out=own["logits"])
        assert found[1] is own["logits"] and bits(found) == want


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [3, 16, 33, 1100])
def test_any_split_of_the_batch(isa, classes, dtype):
    rows = 131
    options = smoothed(dtype, (rows, classes)) | {"reduction": "none"}
    loss, grad = gce.loss_and_grad(**options)
    for cuts in ([1, 2, 3, 64, 65, 130], [17], range(1, rows)):
        for low, high in itertools.pairwise([0, *cuts, rows]):
            found = gce.loss_and_grad(**part(options, slice(low, high)))
            assert bits(found) == bits([loss[low:high], grad[low:high]])


class SmoothedProblem(Problem):
    """The problem of test_layouts, which has a row with masked classes and one far off, with ε."""

    def arguments(self, placed: Any) -> dict[str, Any]:
        weight = np.where(np.arange(len(self.weight)) % 4 == 2, 0.0, self.weight)
        return super().arguments(placed) | {"weight": weight, "label_smoothing": 0.3}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [1, 5, 33, 65, 1027])
def test_any_layout(engine, classes, dtype):
    # Few classes are transposed, rows of many and without contiguous classes are gathered.
    rows, more = (3, 23) if classes < 65 else (1, 9)
    smooth = SmoothedProblem(engine, dtype, classes, rows, more)
    assert np.isnan(smooth.loss).sum() == 0
    for layout in list(LAYOUTS)[classes % 3 :: 3] if engine.name in EMULATED else LAYOUTS:
        placed, out = smooth.place(layout), smooth.empty(layout)
        loss, grad = smooth.run(placed.array, placed, out=out.array)
        assert grad is out.array
        assert_same_bits(loss, smooth.loss)
        out.assert_holds(smooth.grad)
        smooth.run(placed.array, placed, out=placed.array)
        placed.assert_holds(smooth.grad)


@pytest.mark.parametrize("weight", ["none", "some 0"])
def test_gradients_larger_than_the_caches(isa, weight):
    # From 16 MiB on and for 2048 classes or more, float32 gradients that are not written in place
    # bypass the caches. 2053 · 4 bytes put the rows at every alignment.
    rows, classes = 2051, 2053
    assert rows * classes * 4 > 2**24
    few = np.random.default_rng(0).normal(size=9973).astype(np.float32)
    logits = np.resize(few, (rows, classes))
    options = {"gamma": 0.4, "label_smoothing": 0.2, "reduction": "none"}
    options["weight"] = class_weights(weight, classes)
    targets = np.arange(rows) * 7 % classes
    loss, grad = gce.loss_and_grad(logits, targets, **options)
    for low in range(0, rows, 500):  # too few for that
        rows_of_part = slice(low, low + 500)
        found = gce.loss_and_grad(logits[rows_of_part], targets[rows_of_part], **options)
        assert bits(found) == bits([loss[rows_of_part], grad[rows_of_part]])
    in_place = gce.loss_and_grad(logits, targets, **options, out=logits)
    assert bits(in_place) == bits([loss, grad])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", SHAPES)
def test_none_is_as_without_the_option(isa, kind, dtype):
    options = problem(dtype, *SHAPES[kind])
    for value in ("primitive", "surrogate"):
        want = bits(gce.loss_and_grad(**options, value=value))
        for nothing in (0.0, -0.0, 0, False):
            found = gce.loss_and_grad(**options, value=value, label_smoothing=nothing)
            assert bits(found) == want
            alone = gce.loss(**options, value=value, label_smoothing=nothing)
            assert alone.tobytes() == want[0]


# --- what it means --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_of_it_leaves_nothing_of_the_targets_loss(isa, dtype):
    # ε = 1: the same bits for every γ and value; for another target too, apart from the gradient
    # at it, which is computed in double.
    options = smoothed(dtype, (67, 33)) | {"label_smoothing": 1.0, "reduction": "none"}
    want = bits(gce.loss_and_grad(**options))
    for gamma, threshold, value in ((0.0, 0.0, "primitive"), (1.0, 0.5, "surrogate")):
        changed = {"gamma": gamma, "threshold": threshold, "value": value}
        assert bits(gce.loss_and_grad(**options | changed)) == want
    targets = np.where(options["targets"] >= 0, 32 - options["targets"], -100)
    assert gce.loss(**options | {"targets": targets}).tobytes() == want[0]


@pytest.mark.parametrize("value", ["primitive", "surrogate"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_threshold_1_is_cross_entropy(isa, dtype, value):
    options = smoothed(dtype, (67, 33)) | {"reduction": "none", "value": value}
    want = gce.loss_and_grad(**options | {"gamma": 0.0, "threshold": 0.0})
    for gamma in (1e-300, 0.1, 1.0):
        found = gce.loss_and_grad(**options | {"gamma": gamma, "threshold": 1.0})
        # The value is put together from L(t*) = 0 and b (log t* - ℓ): both are within the promise.
        limits = LIMITS[dtype]
        tolerance = {"rtol": 2 * limits.loss_relative, "atol": 2 * limits.loss_absolute}
        np.testing.assert_allclose(found[0], want[0], **tolerance)
        assert_same_bits(found[1], want[1])


def test_the_divisor_of_the_mean_stays_the_same(isa):
    options = smoothed("float64", (67, 33))
    rows, grad = gce.loss_and_grad(**options, reduction="none")
    counted = options["targets"] >= 0
    weight = options["weight"][options["targets"][counted]] * options["sample_weight"][counted]
    # Some 60 rows and their weights are added in another order than here, and rounded.
    for normalizer, divisor in ((None, weight.sum()), (2.5, 2.5)):
        mean, grad_of_mean = gce.loss_and_grad(**options, normalizer=normalizer)
        assert mean == pytest.approx(rows.sum() / divisor, rel=1e-14)
        np.testing.assert_allclose(grad_of_mean * divisor, grad, rtol=1e-14, atol=1e-17)


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_gradient_adds_up_to_0(isa, dtype, weight):
    for classes in FEW_CLASSES:
        rows = list(rows_of(classes, dtype).values())
        logits, targets = (np.array(column) for column in zip(*rows, strict=True))
        c = class_weights(weight, classes)
        for epsilon, gamma in itertools.product(EPSILONS, (0.0, 0.3, 1.0)):
            _, grad = gce.loss_and_grad(
                logits, targets, gamma, weight=c, label_smoothing=epsilon, reduction="none"
            )
            w = reference.grad_weight(reference.row_stats(logits, targets).target_log_prob, gamma)
            size = (1.0 - epsilon) * c[targets] * w + epsilon * c.mean()
            # V numbers, each rounded by half an ulp of its size, which add up to twice the size at
            # most; so do the weights and the offset; and each q is off by a common factor.
            slack = 6 * np.finfo(dtype).eps * size + 2.0 * np.finfo(dtype).tiny * classes
            assert (np.abs(grad.sum(axis=1, dtype=np.float64)) <= slack).all()


@pytest.mark.parametrize("epsilon", [0.1, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 1e-7, 0.5, 1.0])
def test_the_gradient_is_that_of_the_loss(isa, gamma, epsilon):
    logits, targets = random_rows()
    options = {"gamma": gamma, "threshold": 0.3, "label_smoothing": epsilon, "reduction": "none"}
    options |= {"weight": np.linspace(0.0, 1.0, 7), "sample_weight": np.linspace(0.5, 1.0, 12)}
    # The tolerance's reasons hold for the whole: no weight is above 1.
    check_gradients(logits, targets, options, DIFFERENCE_TOLERANCE)


# --- infinities, NaN, huge logits -----------------------------------------------------------------


# Below, at and above lanes; the last is gathered where the class axis comes first.
SIZES = (1, 2, 3, 8, 9, 33, 65, 1030)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_poisoned_row_is_nan_and_no_other(isa, dtype, axis, poison):
    for classes, kind in itertools.product(SIZES, ("none", "of one class")):
        rows = 19  # more than a vector of rows, and a tail
        logits = logits_of(dtype, rows, classes)
        targets = np.arange(rows) % classes
        options = {"weight": class_weights(kind, classes), "label_smoothing": 0.2}
        # A row of weight 0 is no less poisoned than without label smoothing.
        options["sample_weight"] = np.where(np.arange(rows) == 7, 0.0, 1.0)
        loss, grad = run(logits, targets, 0.5, axis, **options)
        assert np.isfinite(loss).all() and np.isfinite(grad).all()
        poisoned = logits.copy()
        for row, at in ((0, 0), (7, classes // 2), (18, classes - 1)):
            poisoned[row, at] = poison
        found_loss, found_grad = run(poisoned, targets, 0.5, axis, **options)
        assert np.isnan(found_loss[[0, 7, 18]]).all() and np.isnan(found_grad[[0, 7, 18]]).all()
        others = np.delete(np.arange(rows), [0, 7, 18])
        np.testing.assert_array_equal(found_loss[others], loss[others])
        np.testing.assert_array_equal(found_grad[others], grad[others])


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_ignored_rows_are_0_whatever_they_hold(isa, dtype, axis):
    ignored = [0, 3, 4, 18]
    for classes, poison in itertools.product(SIZES, (np.nan, np.inf, -np.inf, 1e30)):
        logits = logits_of(dtype, 19, classes)
        with np.errstate(over="ignore"):
            logits[ignored] = poison
        targets = np.arange(19) % classes
        targets[ignored] = -100
        loss, grad = run(logits, targets, 0.5, axis, label_smoothing=0.2)
        # +0.0: no NaN, no sign of what was multiplied by 0, and no offset for any class.
        assert loss[ignored].tobytes() == np.zeros(4).tobytes()
        assert grad[ignored].tobytes() == np.zeros((4, classes)).tobytes()
        assert np.isfinite(loss).all() and np.isfinite(grad).all()


@pytest.mark.parametrize("epsilon", [1e-7, 0.1, 1.0])
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_masked_class_makes_the_loss_infinite(isa, dtype, axis, epsilon):
    # As in PyTorch; the gradient is that of a q of 0. The mask is of one class, a target's in the
    # last row.
    for classes in SIZES[1:]:
        masked = classes // 2
        logits = logits_of(dtype, 3, classes)
        clean = run(logits, [0, 0, 0], 0.5, axis, label_smoothing=epsilon)
        logits[1:, masked] = -np.inf
        loss, grad = run(logits, [0, 0, masked], 0.5, axis, label_smoothing=epsilon)
        assert loss[0] == clean[0][0] and (loss[1:] == np.inf).all()
        np.testing.assert_array_equal(grad[0], clean[1][0])
        assert np.isfinite(grad).all()
        share = float(as_dtype(np.float32(-epsilon / classes), dtype))
        assert grad[1, masked] == (share if dtype != "float64" else -epsilon / classes)
        for reduction in ("mean", "sum"):
            moved = np.ascontiguousarray(np.moveaxis(logits, -1, axis))
            options = {"axis": axis, "label_smoothing": epsilon, "reduction": reduction}
            assert gce.loss(moved, [0, 0, 0], 0.5, **options) == np.inf


@pytest.mark.parametrize("gamma", [0.0, 1e-7, 0.5, 1.0])
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_masked_class_without_weight_is_no_part_of_the_sum(isa, dtype, axis, gamma):
    for classes in SIZES[1:]:
        weight = np.where(np.arange(classes) % 2 == 1, 0.0, np.linspace(0.5, 2.0, classes))
        logits = logits_of(dtype, 3, classes)
        logits[1:, 1::2] = -np.inf
        targets = [0, 0, 1]  # the last is masked, and its loss of weight 0
        options = {"weight": weight, "label_smoothing": 0.25, "reduction": "none"}
        loss, grad = run(logits, targets, gamma, axis, **options)
        want_loss, want_grad = reference.loss_and_grad(logits, targets, gamma, **options)
        assert np.isfinite(want_loss).all()
        assert not grad[1:, 1::2].any()
        # The promise, with weights up to 2 that add up to V at most; and 16 bits' one rounding.
        limits = LIMITS["float64" if dtype == "float64" else "float32"]
        np.testing.assert_allclose(
            loss, want_loss, rtol=limits.loss_relative, atol=2 * limits.loss_absolute
        )
        roundoff = {"float16": 2.0**-11, "bfloat16": 2.0**-8}.get(dtype, 0.0)
        np.testing.assert_allclose(
            grad, want_grad, rtol=1.01 * roundoff, atol=2 * limits.grad + 2.0**-25 * (roundoff > 0)
        )


@pytest.mark.parametrize("gamma", [0.0, 0.5])
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_without_weight_is_0(isa, dtype, axis, gamma):
    # Even where its loss would be infinite, for the target or for another class.
    for classes, epsilon in itertools.product(SIZES[1:], (0.1, 1.0)):
        logits = logits_of(dtype, 3, classes)
        logits[:, classes - 1] = -np.inf
        targets = [0, classes - 1, 0]
        options = {"label_smoothing": epsilon}
        loss, grad = run(logits, targets, gamma, axis, **options, sample_weight=[0.0, 0.0, 1.0])
        assert loss.tolist() == [0.0, 0.0, np.inf]
        assert not grad[:2].any() and np.isfinite(grad).all()
        loss, grad = run(logits, targets, gamma, axis, **options, weight=np.zeros(classes))
        assert loss.tolist() == [0.0, 0.0, 0.0] and not grad.any()


@pytest.mark.parametrize("weight", ["none", "of one class"])
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_of_minus_infinity_only_has_no_softmax(isa, dtype, axis, weight):
    for classes, epsilon in itertools.product(SIZES, (0.1, 1.0)):
        logits = logits_of(dtype, 3, classes)
        options = {"weight": class_weights(weight, classes), "label_smoothing": epsilon}
        want = run(logits, [0, 0, 0], 0.5, axis, **options)
        logits[1] = -np.inf
        loss, grad = run(logits, [0, 0, 0], 0.5, axis, **options)
        assert np.isnan(loss[1]) and np.isnan(grad[1]).all()
        np.testing.assert_array_equal(loss[[0, 2]], want[0][[0, 2]])
        np.testing.assert_array_equal(grad[[0, 2]], want[1][[0, 2]])


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_huge_logits(isa, dtype, axis):
    for classes in SIZES[1:]:
        logits = np.full((3, classes), -1e30)
        logits[:2, 0] = 1e30
        logits = as_dtype(logits, dtype)
        loss, grad = run(logits, [0, 1, 1], 0.0, axis, label_smoothing=0.25)
        gap = 2.0 * float(logits[0, 0])
        others = 0.25 * (classes - 1) / classes
        # Of 2e30, -log q of the class at the top is nothing. Sums of float32 and the promise.
        relative = LIMITS["float64" if dtype == "float64" else "float32"].loss_relative
        want = [others * gap, (0.75 + others) * gap, np.log(classes)]
        np.testing.assert_allclose(loss, want, rtol=relative)
        share = float(as_dtype(np.float32(-0.25 / classes), dtype))
        share = share if dtype != "float64" else -0.25 / classes
        assert (grad[0, 1:] == share).all() and (grad[1, 2:] == share).all()


@pytest.mark.parametrize("weight", ["none", "of one class", "of both signs"])
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_logits_farther_apart_than_any_float(isa, dtype, axis, weight):
    # The distances have no room in 32 bits, their share of the loss has. Of three rows one, so that
    # those beside it in a vector show that theirs are not added in another way.
    for classes in SIZES[1:]:
        logits = logits_of(dtype, 3, classes)
        signs = np.where(np.arange(classes) % 3 == 1, -1.0, 1.5)
        weights = signs if weight == "of both signs" else class_weights(weight, classes)
        options = {"weight": weights, "label_smoothing": 0.25}
        plain = run(logits, [0, 0, 0], 0.0, axis, **options)
        logits[1] = as_dtype(np.float32(3e38), dtype)
        logits[1, classes // 2 :] *= -1
        loss, grad = run(logits, [0, 0, 0], 0.0, axis, **options)
        want, want_grad = reference.loss_and_grad(
            logits, [0, 0, 0], 0.0, reduction="none", **options
        )
        assert 1e36 < want[1] < 3e38 or weight != "none"
        relative = LIMITS["float32"].loss_relative
        cancelled = 1.5e38 * relative if weight == "of both signs" else 0.0
        np.testing.assert_allclose(loss[1], want[1], rtol=relative, atol=cancelled)
        np.testing.assert_array_equal(loss[[0, 2]], plain[0][[0, 2]])
        np.testing.assert_array_equal(grad[[0, 2]], plain[1][[0, 2]])
        np.testing.assert_allclose(grad[1], want_grad[1], rtol=0.01, atol=1e-7)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_class_weights_farther_apart_than_any_floats(isa, dtype, axis):
    # The smallest one counts, where the largest one's class is certain; the scale of the sums is
    # that of the largest.
    for small, large in ((5e-24, 5.7e16), (1e-30, 1e17), (1e-20, 1e15), (1e-300, 1.0)):
        logits = as_dtype(np.array([[-6e4, 0.0, 0.0], [0.0, -1.0, 1.0]]), dtype)
        options = {"weight": np.array([small, large, 0.0]), "label_smoothing": 0.25}
        loss, grad = run(logits, [2, 0], 0.5, axis, **options)
        want, want_grad = reference.loss_and_grad(logits, [2, 0], 0.5, reduction="none", **options)
        relative = LIMITS["float64" if dtype == "float64" else "float32"].loss_relative
        np.testing.assert_allclose(loss, want, rtol=relative)
        if dtype == "float16":  # whose largest is 65504
            want_grad = np.where(
                np.abs(want_grad) > 65504, np.copysign(np.inf, want_grad), want_grad
            )
        roundoff = {"float16": 2.0**-10, "bfloat16": 2.0**-7}.get(dtype, relative)
        np.testing.assert_allclose(grad, want_grad, rtol=roundoff, atol=1e-6 * large)
    masked = as_dtype(np.array([[0.0, -np.inf]]), dtype)
    options = {"weight": [1.0, 1e-46], "label_smoothing": 0.25}
    assert run(masked, [0], 0.5, axis, **options)[0].tolist() == [np.inf]


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("shift", [2.0**20, -(2.0**20), 3.0 * 2**20, -(2.0**22)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_shifted_beyond_the_kernels_range(isa, dtype, shift, axis):
    # Multiples of 1/2 on either side of 2^20, from where a row is shifted by its maximum: the sum
    # is exact, so it is the same problem. Between rows that need no shift.
    for classes in SIZES:
        rng = np.random.default_rng(classes)
        logits = (rng.integers(-40, 40, size=(9, classes)) / 2.0).astype(dtype)
        options = {"weight": class_weights("some 0", classes), "label_smoothing": 0.3}
        targets = np.arange(9) % classes
        want = run(logits, targets, 0.3, axis, **options)
        logits[1::2] += shift
        found = run(logits, targets, 0.3, axis, **options)
        # Another reference exponent, so twice the promise: weights are up to 2.
        limits = LIMITS[dtype]
        tolerance = {"rtol": 2 * limits.loss_relative, "atol": 4 * limits.loss_absolute}
        if dtype == "float64":  # an exponent of up to 2^20 log2 e, rounded by half of 2^-32
            tolerance = {"rtol": 2.0**-32, "atol": 2.0**-32}
        np.testing.assert_allclose(found[0], want[0], **tolerance)
        np.testing.assert_allclose(found[1], want[1], rtol=0.0, atol=4 * limits.grad)


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epsilon", "shown"),
    [
        *((-0.1, "-0.1"), (1.5, "1.5"), (np.nan, "nan"), (-np.nan, "nan"), (np.inf, "inf")),
        *((-np.inf, "-inf"), (2, "2"), (np.float32(-1), "-1"), (-5e-324, "-"), (10**400, "inf")),
        (1.0 + 2.0**-52, "1.0000000000000002"),
    ],
    ids=repr,
)
def test_outside_of_0_and_1(epsilon, shown):
    message = rf"^label_smoothing = {shown}[\de.+-]*, expected 0 <= label_smoothing <= 1$"
    given = arguments() | {"label_smoothing": epsilon}
    call_in_vain(gce.loss, ValueError, message, given)
    given["out"] = np.full_like(given["logits"], 7.0)
    call_in_vain(gce.loss_and_grad, ValueError, message, given)
    call_in_vain(gce.loss_and_grad, ValueError, message, given | {"out": given["logits"]})


@pytest.mark.parametrize("epsilon", [None, "0.1", b"0.1", 0.1j, [0.1], np.full(4, 0.1), {}])
def test_of_no_number(epsilon):
    given = arguments() | {"label_smoothing": epsilon}
    message = r"^label_smoothing (has type [\w.]+|= None), expected float$"
    call_in_vain(gce.loss, TypeError, message, given)
    given["out"] = given["logits"]
    call_in_vain(gce.loss_and_grad, TypeError, message, given)


def test_statistics_have_none():
    with pytest.raises(TypeError, match="unexpected keyword argument 'label_smoothing'"):
        gce.row_stats(np.zeros((2, 3)), [0, 1], label_smoothing=0.1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [1e-300, 1e-50, 1e-42, 1e50, 1e300])
def test_class_weights_beyond_the_logits_dtype(isa, dtype, size):
    """A mean does not depend on the size of the weights, nor on whether a float can hold them."""
    logits = np.array([[1.0, 2.0, 0.0], [3.0, 1.0, -1.0]], dtype)
    weight = np.array([1.0, 0.5, 2.0])
    options = {"targets": [0, 2], "gamma": 0.5, "label_smoothing": 0.5}
    found = gce.loss_and_grad(logits, weight=weight * size, **options)
    expected = gce.loss_and_grad(logits, weight=weight, **options)
    # The sizes are no powers of two: each product is rounded once more, in float64.
    tolerance = 1e-6 if dtype == "float32" else 1e-14
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance)
