"""Accuracy: every dtype on every instruction set, against 50 digits.

A batch holds rows of many kinds (see `rows_of`), each with several γ and thresholds, so that one
call tells much. The oracle says what is exact for the very numbers that the engine gets, so that
all of a difference is the engine's error.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any, NamedTuple

import ml_dtypes
import mpmath as mp
import numpy as np
import pytest

import gce
import oracle
from gce import reference

GAMMAS = (0.0, 1e-300, 1e-30, 1e-7, 0.1, 0.5, 1.0 - 1e-7, 1.0)
THRESHOLDS = (0.0, 0.3, 1.0)
VALUES = ("primitive", "surrogate")

# Around the lanes of every ISA (2 to 16), groups of four vectors (8 to 64), the number of classes
# up to which rows are transposed (32; 64 where they are strided), blocks of 1024, and primes.
FEW_CLASSES = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 61, 63, 64, 65, 127)
MANY_CLASSES = (1000, 1024, 1025, 2053)
EMULATED_CLASSES = (1, 2, 3, 5, 8, 9, 17, 33, 127, 1025)


class Limits(NamedTuple):
    """How far a result may be from the exact one."""

    loss_relative: float
    loss_absolute: float  # where the loss is tiny, as for a target that has nearly all of p
    grad: float  # as a multiple of the gradient weight w
    grad_absolute: float  # where the gradient is tiny
    exponent: float  # relative error of e^x for each unit of |x|


LIMITS = {
    # The first three are promised in the specification; gradients are rounded to subnormal
    # numbers, whose spacing is the fourth. x = z log2(e) - K is rounded to a float, an error of
    # 2^-24 |x|, and log2(e) as a float is off by 2^-26 of itself.
    "float32": Limits(1e-6, 2e-7, 5e-7, float(np.finfo("f4").smallest_subnormal), 8e-8),
    # The specification promises the losses and is silent on gradients. 5e-7 is 4.2 times the
    # spacing of float32 at 1; exponentials and their sums are made by the same steps in either
    # dtype, so 4.5 times that of float64. Where p < 1e-308, 1/w overflows and the gradient may
    # become 0.
    "float64": Limits(1e-14, 1e-15, 1e-15, float(np.finfo("f8").tiny), 2e-16),
}


# --- the batches --------------------------------------------------------------------------------


def rows_of(classes: int, dtype: str) -> dict[str, tuple[Any, int]]:
    """Logits and target of one row of each kind."""
    rng = np.random.default_rng(classes)
    target = int(rng.integers(classes))
    noise = rng.normal(size=classes)
    at_target = np.zeros(classes)
    at_target[target] = 1.0

    rows = {f"scale {scale:g}": noise * scale for scale in (1e-30, 1e-3, 1.0, 10.0, 1e4, 1e30)}
    rows |= {f"around {offset:g}": noise + offset for offset in (1e4, 1e6, -1e6)}
    rows |= {f"target at {lead:+}": noise + lead * at_target for lead in (15, 40, 95, 700)}
    rows |= {f"target at {lead:+}": noise + lead * at_target for lead in (-20, -90, -720, -1e5)}
    rows["around 1e6, target at +15"] = noise + 15 * at_target + 1e6
    rows["equal"] = np.full(classes, -3.7)
    rows["one at the top"] = np.where(np.arange(classes) == classes - 1, 60.0, noise)
    rows["ascending"] = np.linspace(-200.0, 200.0, classes)  # a new maximum in every block
    rows["±1e30"] = np.where(np.arange(classes) % 2, 1e30, -1e30)
    return {name: (row.astype(dtype), target) for name, row in rows.items()}


class Batch(NamedTuple):
    """Arguments of a call, and the exact results rounded once, to float64."""

    names: list[str]
    logits: Any
    targets: Any
    gamma: Any
    threshold: Any
    loss: dict[str, Any]  # for each value
    weight: Any
    grad: Any
    log_p: Any
    logsumexp: Any


@functools.cache
def exact_value(log_p: Any, gamma: float, b: float, value: str) -> float:
    return float(oracle.value_from_log_prob(log_p, gamma, b, value))


@functools.cache
def batch(classes: int, dtype: str, combinations: int = 6) -> Batch:
    """Rows of every kind, each with this many of the pairs of γ and threshold, by turns."""
    pairs = list(itertools.product(GAMMAS, THRESHOLDS))
    turn = itertools.cycle(pairs[classes % len(pairs) :] + pairs[: classes % len(pairs)])
    columns: dict[str, list[Any]] = {name: [] for name in Batch._fields if name != "loss"}
    loss: dict[str, list[float]] = {value: [] for value in VALUES}
    for name, (logits, target) in rows_of(classes, dtype).items():
        at_gamma_0 = oracle.row(logits, target, gamma=0.0)  # whose gradient is q - e_y
        log_p = at_gamma_0.log_p
        with mp.workdps(oracle.ROW_DIGITS + 40):
            logsumexp = mp.mpf(float(logits[target])) - log_p
        for gamma, b in itertools.islice(turn, combinations):
            weight = oracle.weight_from_log_prob(log_p, gamma, b)
            with mp.workdps(oracle.ROW_DIGITS):
                grad = [float(weight * slope) for slope in at_gamma_0.grad]
            for value in VALUES:
                loss[value].append(exact_value(log_p, gamma, b, value))
            row = (name, logits, target, gamma, b, float(weight), grad, float(log_p))
            for column, entry in zip(columns.values(), (*row, float(logsumexp)), strict=True):
                column.append(entry)
    arrays = {name: np.array(column) for name, column in columns.items() if name != "names"}
    return Batch(columns["names"], loss={v: np.array(x) for v, x in loss.items()}, **arrays)


def assert_within(found: Any, exact: Any, limit: Any, what: str, names: Any = None) -> float:
    """Largest error as a share of the limit, which it must not exceed."""
    found = np.asarray(found, np.float64)
    assert found.shape == np.shape(exact)
    # Equal infinities are no error; a NaN is more than any limit.
    error = np.where(found == exact, 0.0, np.abs(found - exact))
    share = np.where(np.isnan(error), np.inf, error) / limit
    worst = np.unravel_index(np.argmax(share), share.shape)
    if not share[worst] <= 1.0:
        row = names[worst[0]] if names else ""
        pytest.fail(
            f"{what}: {row} {worst}: found {found[worst]!r}, exact {np.asarray(exact)[worst]!r}, "
            f"{share[worst]:.3g} times the limit"
        )
    return float(share[worst])


def check_batch(engine: Any, b: Batch, record: Any) -> None:
    """Losses of both conventions and the gradient of one batch."""
    dtype = b.logits.dtype.name
    limits = LIMITS[dtype]
    for value in VALUES:
        loss, grad = engine.loss_and_grad(
            b.logits, b.targets, b.gamma, threshold=b.threshold, value=value, reduction="none"
        )
        assert loss.dtype == grad.dtype == b.logits.dtype
        exact = b.loss[value]
        limit = np.maximum(limits.loss_relative * np.abs(exact), limits.loss_absolute)
        label = f"{value} loss {dtype}"
        record(f"loss {dtype}", assert_within(loss, exact, limit, label, b.names))
        limit = (limits.grad * b.weight + limits.grad_absolute)[:, np.newaxis]
        record(f"grad {dtype}", assert_within(grad, b.grad, limit, f"grad {dtype}", b.names))


# --- losses and gradients -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_loss_and_grad(engine, dtype, record_error):
    emulated = engine.name not in ("avx512", "avx2", "baseline")
    for classes in EMULATED_CLASSES if emulated else FEW_CLASSES + MANY_CLASSES:
        combinations = 2 if classes >= 1000 else 6
        check_batch(engine, batch(classes, dtype, combinations), record_error)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_gamma_with_every_threshold(engine, dtype, record_error):
    check_batch(engine, batch(11, dtype, len(GAMMAS) * len(THRESHOLDS)), record_error)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reductions(engine, dtype, reduction):
    # Losses are not negative and are added in double, so the relative error of the sum is that of a
    # loss. They are of all sizes, and 4,000 rows make several chunks.
    b = batch(9, dtype)
    rows = np.resize(np.flatnonzero(b.loss["primitive"] < 1e4), 4000)
    weights = np.linspace(0.5, 1.5, len(rows))
    found = engine.loss(
        b.logits[rows],
        b.targets[rows],
        b.gamma[rows],
        threshold=b.threshold[rows],
        sample_weight=weights,
        reduction=reduction,
    )
    exact = math.fsum(b.loss["primitive"][rows] * weights)
    exact /= math.fsum(weights) if reduction == "mean" else 1.0
    assert found.dtype == dtype
    assert float(found) == pytest.approx(exact, rel=LIMITS[dtype].loss_relative, abs=0)


# --- very many classes --------------------------------------------------------------------------


@functools.cache
def large_row(kind: str, classes: int, dtype: str) -> tuple[Any, int, oracle.Row]:
    """Logits of few distinct values, so that 50 digits are cheap, target and results at γ = 0."""
    rng = np.random.default_rng(3)
    values = {
        "normal": rng.normal(size=509),
        "steep": rng.normal(size=509) * 5.0,
        "around 1e6": rng.normal(size=509) + 1e6,
        "equal": np.array([0.3]),
        "ascending": np.linspace(-30.0, 30.0, 509),
    }[kind].astype(dtype)
    if kind == "ascending":  # every block has a new maximum
        logits = values[np.arange(classes) * len(values) // classes]
    else:
        logits = values[rng.integers(len(values), size=classes)]
    target = classes // 3
    distinct, counts = np.unique(logits, return_counts=True)
    with mp.workdps(oracle.ROW_DIGITS):
        z_target = mp.mpf(float(logits[target]))
        odds = [mp.exp(mp.mpf(float(z)) - z_target) for z in distinct]
        total = mp.fdot(zip(odds, counts.tolist(), strict=True))
        log_p = -mp.log(total)
        q = {float(z): float(odd / total) for z, odd in zip(distinct, odds, strict=True)}
        grad = [q[z] for z in logits.tolist()]
        grad[target] = float(-(total - 1) / total)
    return logits, target, oracle.Row(-log_p, grad, mp.mpf(1), log_p)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["normal", "steep", "around 1e6", "equal", "ascending"])
def test_262144_classes(engine, dtype, kind, record_error):
    logits, target, at_gamma_0 = large_row(kind, 262_144, dtype)
    limits = LIMITS[dtype]
    for gamma, b in ((0.0, 0.0), (1e-7, 0.0), (0.1, 0.3), (1.0, 0.0)):
        loss, grad = engine.loss_and_grad(logits, target, gamma, threshold=b)
        exact = exact_value(at_gamma_0.log_p, gamma, b, "primitive")
        limit = max(limits.loss_relative * abs(exact), limits.loss_absolute)
        record_error(f"loss {dtype}", assert_within(loss, exact, limit, f"loss γ={gamma}"))
        weight = float(oracle.weight_from_log_prob(at_gamma_0.log_p, gamma, b))
        # With q of 2^-18 or so, an error of 5e-7 w would be a tenth of q: every q is held to its
        # own relative error instead, that of the largest q and what the distance to it adds.
        q = np.abs(at_gamma_0.grad)
        exact_grad = weight * np.array(at_gamma_0.grad)
        relative = limits.grad - limits.exponent * np.log(q / q.max())
        # Gradients that would be subnormal become 0 where that is nothing to w (epilogue.inc.h).
        flushed = min(2.0 * np.finfo(dtype).tiny, 2.0**-32 * weight)
        limit = relative * np.abs(exact_grad) + flushed + limits.grad_absolute
        record_error(f"each q {dtype}", assert_within(grad, exact_grad, limit, f"grad γ={gamma}"))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_262144_distinct_logits(engine, dtype):
    # Against the reference: float64, pairwise sums. Its own error is a few 1e-16, of the sum and of
    # each exponential.
    rng = np.random.default_rng(4)
    logits = (rng.normal(size=(2, 262_144)) * [[1.0], [3.0]]).astype(dtype)
    targets = [5, 262_143]
    loss, grad = engine.loss_and_grad(logits, targets, 0.2, reduction="none")
    exact_loss, exact_grad = reference.loss_and_grad(logits, targets, 0.2, reduction="none")
    weight = reference.grad_weight(reference.row_stats(logits, targets).target_log_prob, 0.2)
    limits = LIMITS[dtype]
    assert_within(loss, exact_loss, limits.loss_relative * exact_loss, "loss")
    # q is at most 2^-11: of w as promised, and small against w.
    limit = np.where(np.abs(exact_grad) < weight[:, np.newaxis] / 100, 0.01, 1.0) * limits.grad
    assert_within(grad, exact_grad, limit * weight[:, np.newaxis], "grad")


# --- 16 bits ------------------------------------------------------------------------------------


def assert_same_bits(found: Any, expected: Any) -> None:
    np.testing.assert_array_equal(found, expected, strict=True)  # which shows where
    assert found.tobytes() == expected.tobytes(), "zeros of different sign"


@pytest.mark.parametrize("excess", range(6, 64, 3))
def test_small_gradients_of_rows_with_large_exponentials(isa, excess):
    # The reference of 64 zeros, one logit far above them, and a target of tiny probability.
    logits = np.zeros((2, 68), np.float32)
    logits[:, 64] = excess * np.log(2)
    logits[:, 67] = -70 + excess * np.log(2)
    targets = np.array([67, 67])
    _, grad = gce.loss_and_grad(logits, targets, 0.1, reduction="sum")
    _, wanted = reference.loss_and_grad(logits.astype(np.float64), targets, 0.1, reduction="sum")
    assert 1e-30 < abs(wanted[0, 67]) < 1e-28
    # Distances of 70 are rounded by 2^-19; and 2^-119 where floats are subnormal.
    np.testing.assert_allclose(grad, wanted, rtol=4e-6, atol=2.0**-119)


@pytest.mark.parametrize("sample_weight", [1.0, 1e-28, 1e-36])
@pytest.mark.parametrize("target", [-60.0, 5.0])
def test_tiny_factors_of_rows_with_large_exponentials(isa, target, sample_weight):
    # As above, and what the exponentials are multiplied by would be a subnormal number.
    logits = np.zeros((3, 100), np.float32)
    logits[:, 70] = 20.0
    logits[:, 3] = target
    arguments = {"gamma": 1.0, "sample_weight": np.full(3, sample_weight), "reduction": "sum"}
    targets = np.array([3, 3, 3])
    _, grad = gce.loss_and_grad(logits, targets, **arguments)
    _, wanted = reference.loss_and_grad(logits.astype(np.float64), targets, **arguments)
    # Half of the least subnormal number; and those below 2^-32 of the largest may be 0.
    least = np.finfo(np.float32).smallest_subnormal
    np.testing.assert_allclose(grad, wanted, rtol=4e-6, atol=abs(wanted).max() * 2.0**-31 + least)


HALVES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@pytest.mark.parametrize("dtype", HALVES)
def test_16_bit_logits_give_what_float32_gives_rounded_once(engine, dtype):
    largest = float(ml_dtypes.finfo(HALVES[dtype]).max)
    for classes in (1, 2, 3, 5, 8, 9, 16, 17, 33, 64, 127, 1025):
        rows = rows_of(classes, "float64").values()
        logits = np.array([np.clip(z, -largest, largest) for z, _ in rows]).astype(HALVES[dtype])
        targets = np.array([target for _, target in rows])
        for gamma, b, value in (
            (0.0, 0.0, "primitive"),
            (0.1, 0.3, "surrogate"),
            (1.0, 0.0, "primitive"),
        ):
            # Gradients from far below the subnormals of float16 to near its largest numbers, where
            # rounding twice, to nearest-away, or flushing would each show.
            scale = np.geomspace(1e-6, 6e4, len(targets))
            options = {"threshold": b, "value": value, "reduction": "none", "grad_output": scale}
            loss, grad = engine.loss_and_grad(logits, targets, gamma, **options)
            wide = logits.astype(np.float32)
            loss_32, grad_32 = engine.loss_and_grad(wide, targets, gamma, **options)
            assert loss.dtype == np.float32
            assert grad.dtype == HALVES[dtype]
            assert_same_bits(loss, loss_32)
            assert_same_bits(grad, grad_32.astype(HALVES[dtype]))
        found = engine.row_stats(logits, targets)
        for ours, of_32 in zip(found, engine.row_stats(wide, targets), strict=True):
            assert_same_bits(ours, of_32)


@pytest.mark.parametrize("dtype", HALVES)
def test_16_bit_logits_of_every_bit_pattern(engine, dtype):
    # Each finite number as a row of its own class and zero: reads and rounds all of them.
    numbers = np.arange(65536, dtype=np.uint16).view(HALVES[dtype])
    with np.errstate(invalid="ignore"):  # of a signalling NaN
        numbers = numbers[np.isfinite(numbers)]
    logits = np.stack([numbers, np.zeros_like(numbers)], axis=-1)
    targets = np.ones(len(numbers), np.int64)
    loss, grad = engine.loss_and_grad(logits, targets, 0.5, reduction="none")
    wide = logits.astype(np.float32)
    loss_32, grad_32 = engine.loss_and_grad(wide, targets, 0.5, reduction="none")
    assert_same_bits(loss, loss_32)
    assert_same_bits(grad, grad_32.astype(HALVES[dtype]))


# --- row_stats ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_row_stats(engine, dtype, record_error):
    limits = LIMITS[dtype]
    for classes in (1, 3, 8, 17, 33, 127, 1025):
        b = batch(classes, dtype, 2 if classes >= 1000 else 6)
        found = engine.row_stats(b.logits, b.targets)
        # -log p is the loss at γ = 0, with the limits of one.
        limit = np.maximum(limits.loss_relative * np.abs(b.log_p), limits.loss_absolute)
        share = assert_within(found.target_log_prob, b.log_p, limit, "target_log_prob", b.names)
        record_error(f"target_log_prob {dtype}", share)
        # max + log(sum) may cancel: what is left is the error of its terms, of the largest logit's
        # size.
        size = np.maximum(np.abs(b.logsumexp), np.abs(b.logits.max(axis=-1).astype(np.float64)))
        limit = np.maximum(limits.loss_absolute, limits.loss_absolute * size)
        share = assert_within(found.logsumexp, b.logsumexp, limit, "logsumexp", b.names)
        record_error(f"logsumexp {dtype}", share)
        np.testing.assert_array_equal(found.argmax, b.logits.argmax(axis=-1))


# --- the elementwise functions ------------------------------------------------------------------

LOG_PROBS = (
    *(0.0, -5e-324, -1e-300, -1e-30, -1e-17, -1e-16, -1e-8, -1e-3, -0.1, -0.4, -0.5, -0.51),
    *(-0.693147, -0.7, -1.0, -1.5, -2.0, -5.0, -10.0, -36.0, -37.5, -100.0, -600.0, -708.0),
    *(-709.5, -720.0, -745.0, -746.0, -800.0, -1e3, -1e5, -1e10, -1e30, -1e38),
)
MORE_GAMMAS = (*GAMMAS, 1e-16, 0.01, 0.9, 0.999, 1.0 - 2.0**-53)
MORE_THRESHOLDS = (0.0, 1e-6, 1e-3, 0.3, 0.9999, 1.0)


def random_log_probs() -> Any:
    rng = np.random.default_rng(5)
    return -np.concatenate([rng.exponential(size=30), np.geomspace(1e-9, 1e3, 60)])


@functools.cache
def pointwise_cases(op: str, dtype: str) -> tuple[Any, Any, Any, Any]:
    log_p = np.unique(np.concatenate([LOG_PROBS, random_log_probs()]).astype(dtype))
    rng = np.random.default_rng(6)
    cases = [
        (float(x), gamma, b if op != "gamma_grad" else 0.0)
        for x in log_p
        for gamma in rng.choice(MORE_GAMMAS, 5, replace=False)
        for b in rng.choice(MORE_THRESHOLDS, 2 if op == "loss_from_log_prob" else 1, replace=False)
    ]
    exact = []
    for x, gamma, b in cases:
        if op == "loss_from_log_prob":
            exact.append(oracle.value_from_log_prob(x, gamma, b))
        elif op == "grad_weight":
            exact.append(oracle.weight_from_log_prob(x, gamma, b))
        else:
            exact.append(oracle.gamma_grad(x, gamma))
    log_p, gamma, b = map(np.array, zip(*cases, strict=True))
    return log_p.astype(dtype), gamma, b, exact


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("op", ["loss_from_log_prob", "grad_weight", "gamma_grad"])
def test_pointwise(engine, op, dtype, record_error):
    log_p, gamma, b, exact = pointwise_cases(op, dtype)
    args = (log_p, gamma) if op == "gamma_grad" else (log_p, gamma, b)
    found = engine.pointwise(op, *args)
    assert found.dtype == dtype
    scalar = np.dtype(dtype).type
    with np.errstate(over="ignore"):
        rounded = np.array([scalar(float(x)) for x in exact])
    finite = np.isfinite(rounded)
    np.testing.assert_array_equal(found[~finite], rounded[~finite])
    with mp.workdps(40):
        ulps = [
            float(abs(mp.mpf(float(ours)) - right) / mp.mpf(float(np.spacing(abs(nearest)))))
            for ours, right, nearest in zip(found, exact, rounded, strict=True)
            if np.isfinite(nearest)
        ]
    # float32: computed in double and rounded once: half an ulp and what little the double's adds.
    # float64: what the kernel promises (pointwise.inc.h); but where v = δ(1 - p)/s is just above
    # 0.41, ∂L/∂γ is v - log(1 + v), which cancels: both terms are 5 times their difference.
    limit = 0.5 + 1e-6 if dtype == "float32" else 20.0 if op == "gamma_grad" else 4.0
    worst = int(np.argmax(ulps))
    record_error(f"{op} {dtype}", ulps[worst] / limit)
    where = [array[finite][worst] for array in (log_p, gamma, b)]
    assert ulps[worst] <= limit, f"{where}: {found[finite][worst]!r}, {ulps[worst]} ulp"


@pytest.mark.parametrize("op", ["loss_from_log_prob", "grad_weight", "gamma_grad"])
def test_float32_log_prob_keeps_gamma_in_double(engine, op):
    # In float32, 1 - 1e-7 is 1 - 1.19e-7, and 1e-300 is 0: results would be those of another γ.
    log_p = np.float32([-3.0, -30.0])
    for gamma in (1.0 - 1e-7, 1.0 - 2.0**-40, 1e-300):
        args = [gamma] if op == "gamma_grad" else [gamma, 0.0]
        in_double = engine.pointwise(op, log_p.astype(np.float64), *args)
        with np.errstate(over="ignore"):
            expected = in_double.astype(np.float32)
        np.testing.assert_array_equal(engine.pointwise(op, log_p, *args), expected)


def test_threshold_with_tiny_gamma(engine):
    # t* = bγ / (1 - bδ) is 1e-325 and 0 as a double; ℓ is far below log t*.
    found = engine.pointwise("loss_from_log_prob", -1e30, 1e-300, 1e-25)
    assert found == pytest.approx(exact_value(-1e30, 1e-300, 1e-25, "primitive"), rel=1e-14)


def test_subnormal_gamma(engine):
    found = engine.pointwise("loss_from_log_prob", -745.0, 5e-324, 0.0)
    assert found == pytest.approx(exact_value(-745.0, 5e-324, 0.0, "primitive"), rel=1e-14)
