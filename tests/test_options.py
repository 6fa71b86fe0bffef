"""Every option, on every dtype and instruction set, alone and combined, against `gce.reference`."""

from __future__ import annotations

import inspect
import itertools
import random
import sys
from typing import Any, NamedTuple

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
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
SHAPE, CLASSES = (3, 5), 7
ROWS = np.arange(15).reshape(SHAPE)

# Unit roundoff of each dtype, and half of its smallest subnormal.
ROUNDOFF = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 0.0, "float64": 0.0}
UNDERFLOW = {"float16": 2.0**-25, "bfloat16": 2.0**-134, "float32": 2.0**-150, "float64": 0.0}


def dtype_of(name: str) -> np.dtype[Any]:
    if name != "bfloat16":
        return np.dtype(name)
    require(bfloat16, "ml_dtypes is not installed")
    return np.dtype(bfloat16)


def loss_dtype_of(name: str) -> np.dtype[Any]:
    return np.dtype("float64" if name == "float64" else "float32")


def rows_of(*values: float, dtype: str) -> np.ndarray:
    """One value per row, over and over."""
    return np.resize(np.array(values), SHAPE).astype(dtype_of(dtype))


def targets_with(ignored: int | None, dtype: str = "int64") -> np.ndarray:
    """Every class, and three rows of `ignored`."""
    targets = ROWS % CLASSES
    if ignored is not None:
        targets[ROWS % 6 == 1] = ignored
    return targets.astype(dtype)


def probabilities(dtype: str) -> np.ndarray:
    """Some of them 0, the class axis last."""
    drawn = np.random.default_rng(5).exponential(size=(*SHAPE, CLASSES)).clip(0.3) - 0.3
    return (drawn / drawn.sum(axis=-1, keepdims=True)).astype(dtype_of(dtype))


# Some arguments of each kind; a random case takes one of each. Where an argument changes what the
# others may be (a reduction, an ignored target), the entry says all of it.
GAMMAS = [
    0.0,
    1.0,
    0.3,
    1,
    False,
    np.float32(0.7),
    np.array(0.2),
    rows_of(0.0, 0.1, 0.5, 0.9, 1.0, dtype="float64"),
    rows_of(0.0, 0.1, 0.5, 0.9, 1.0, dtype="float32"),
    rows_of(0.0, 0.1, 0.5, 0.9, 1.0, dtype="float16"),
    rows_of(0.0, 0.1, 0.5, 0.9, 1.0, dtype="bfloat16") if bfloat16 else 0.6,
    rows_of(0, 1, 1, dtype="uint8"),
    rows_of(0, 1, dtype="bool"),
    rows_of(0.3, 0.7, dtype="float32").astype(">f4"),
    rows_of(0.25, 0.75, dtype="float64").tolist(),
    np.broadcast_to(np.array([0.1, 0.2, 0.3, 0.4, 0.5]), SHAPE),
    rows_of(0.8, 0.3, dtype="float64")[:, ::-1],
]
THRESHOLDS = [
    0.0,
    1.0,
    0.3,
    0,
    1,
    np.float16(0.25),
    rows_of(0.0, 0.01, 0.2, 1.0, dtype="float64"),
    rows_of(0.0, 0.01, 0.2, 1.0, dtype="float32"),
    rows_of(0.0, 0.01, 0.2, 1.0, dtype="float16"),
    rows_of(0, 1, dtype="int32"),
    rows_of(0.2, 0.4, dtype="float64").tolist(),
]
WEIGHTS = [
    None,
    np.linspace(0.5, 2.0, CLASSES),
    np.linspace(0.0, 3.0, CLASSES, dtype="float32"),
    np.linspace(2.0, 0.5, CLASSES).astype("float16"),
    np.arange(CLASSES),
    [1, 2.5, 0, 1, 1, 1, 4],
    np.linspace(0.5, 2.0, 2 * CLASSES)[::-2],
]
SAMPLE_WEIGHTS = [
    None,
    rows_of(0.5, 1.0, 2.0, dtype="float64"),
    rows_of(0.0, 1.0, 3.0, dtype="float32"),
    rows_of(0.5, 0.25, dtype="float16"),
    rows_of(0, 1, dtype="bool"),
    rows_of(1, 2, 3, dtype="int16").tolist(),
    np.broadcast_to(np.float64(0.5), SHAPE),
]
TARGETS = [
    {"targets": targets_with(None)},
    {"targets": targets_with(-100)},
    {"targets": targets_with(-100, "int8")},
    {"targets": targets_with(-1), "ignore_index": -1},
    {"targets": targets_with(255, "uint8"), "ignore_index": 255},
    {"targets": targets_with(CLASSES + 5), "ignore_index": CLASSES + 5},
    {"targets": targets_with(None), "ignore_index": 2},
    {"targets": targets_with(None), "ignore_index": None},
    {"targets": targets_with(None, "uint16"), "ignore_index": -(2**63)},
    {"targets": targets_with(-(2**63)), "ignore_index": np.int64(-(2**63))},
    {"targets": np.full(SHAPE, -100)},
    {"targets": targets_with(None).tolist()},
    {"targets": np.asfortranarray(targets_with(-100))},
]
# As arguments of each kind, but for the class axis, along which `check` brings them.
PROBABILITIES = [
    {"targets": probabilities("float64")},
    {"targets": probabilities("float32"), "ignore_index": -1},
    {"targets": probabilities("float16"), "ignore_index": None},
    {"targets": np.asfortranarray(3.0 * probabilities("float64"))},
    {"targets": np.eye(CLASSES, dtype="float32")[ROWS % CLASSES]},
    {"targets": np.zeros((*SHAPE, CLASSES))},
    {"targets": np.broadcast_to(np.full(CLASSES, 1.0 / CLASSES), (*SHAPE, CLASSES))},
]
REDUCTIONS = [
    {},
    {"reduction": "mean"},
    {"reduction": "mean", "normalizer": None, "grad_output": 0.5},
    {"reduction": "mean", "normalizer": 2.5, "grad_output": np.float32(-2.0)},
    {"reduction": "mean", "normalizer": 3, "grad_output": np.array(3)},
    {"normalizer": np.float64(0.125)},
    {"reduction": "sum"},
    {"reduction": "sum", "grad_output": 0.25},
    {"reduction": "none"},
    {"reduction": "none", "grad_output": -1},
    {"reduction": "none", "grad_output": rows_of(1.0, -0.5, 0.0, dtype="float64")},
    {"reduction": "none", "grad_output": rows_of(1.0, -0.5, 0.0, dtype="float32")},
    {"reduction": "none", "grad_output": rows_of(1.0, -0.5, 2.0, dtype="float16")},
    {"reduction": "none", "grad_output": rows_of(1, -2, dtype="int8")},
]
SMOOTHINGS = [0.0, 1e-7, 0.1, 1, True, np.float32(0.3), np.float64(0.5), np.array(0.25)]
Z_LOSSES = [0.0, 1e-4, 0.125, 1, np.float32(0.3), np.array(0.25)]
SOFTCAPS = [None, 0, 5, 0.5, np.float32(30.0), np.array(2.5)]
SHIFTS = [0, 1, np.int64(2), 5, 9]
AXES = [{}, {"axis": -1}, {"axis": 2}, {"axis": 1}, {"axis": 0}, {"axis": np.int8(-2)}]
KINDS: dict[str, list[Any]] = {
    "gamma": [{"gamma": gamma} for gamma in GAMMAS],
    "threshold": [{}, *({"threshold": threshold} for threshold in THRESHOLDS)],
    "value": [{}, {"value": "primitive"}, {"value": "surrogate"}],
    "weight": [{"weight": weight} for weight in WEIGHTS],
    "sample_weight": [{"sample_weight": weight} for weight in SAMPLE_WEIGHTS],
    "targets": [*TARGETS, *PROBABILITIES],
    "label_smoothing": [{}, *({"label_smoothing": epsilon} for epsilon in SMOOTHINGS)],
    "z_loss": [{}, *({"z_loss": factor} for factor in Z_LOSSES)],
    "softcap": [{}, *({"softcap": cap} for cap in SOFTCAPS)],
    "shift": [{}, *({"shift": shift} for shift in SHIFTS)],
    "reduction": REDUCTIONS,
    "axis": AXES,
    "out": [{}, {"out": None}, {"out": "new"}, {"out": "in place"}],
    "return_stats": [{}, {"return_stats": False}, {"return_stats": True}],
    "num_threads": [{}, {"num_threads": None}, {"num_threads": 1}, {"num_threads": np.uint8(3)}],
}
NOT_IN_REFERENCE = ("out", "num_threads", "return_stats")  # they change no number
PLAIN = {"gamma": {"gamma": 0.4}, "targets": {"targets": targets_with(-100)}}


class Case(NamedTuple):
    """Keyword arguments of `gce.loss_and_grad`; "out" may say how, in words."""

    logits: np.ndarray
    options: dict[str, Any]


def make_logits(dtype: str, shape: tuple[int, ...], axis: int = -1, seed: int = 0) -> np.ndarray:
    """Logits with p on both sides of the thresholds."""
    logits = np.random.default_rng(seed).normal(scale=2.0, size=(*shape, CLASSES))
    return np.ascontiguousarray(np.moveaxis(logits, -1, axis)).astype(dtype_of(dtype))


def case_of(dtype: str, options: dict[str, Any]) -> Case:
    axis = options.get("axis", -1)
    if np.asarray(options["targets"]).dtype.kind == "f":
        options = {**options, "targets": np.moveaxis(options["targets"], -1, axis)}
    return Case(make_logits(dtype, SHAPE, axis), options)


def in_reference_terms(options: dict[str, Any]) -> dict[str, Any]:
    """The options that change what is computed, as `gce.reference` takes them."""
    kept = {name: item for name, item in options.items() if name not in NOT_IN_REFERENCE}
    arrays = ("gamma", "threshold", "weight", "sample_weight", "grad_output")
    for name in (*arrays, "label_smoothing", "z_loss", "softcap"):
        if kept.get(name) is not None:
            kept[name] = np.asarray(kept[name]).astype(np.float64)
    if kept.get("ignore_index", -100) is None:
        kept["ignore_index"] = 2**62  # no target
    return kept


def slopes_of(case: Case, expected: dict[str, Any]) -> np.ndarray:
    """What multiplies q and the unit vectors in each row: gradient errors are fractions of it.

    A row's gradient is s ((1 - ε) Σ_k c_k t_k w_k (q - e_k) + (ε/V) Σ_v c_v (q - e_v) + 2 λ lse q)
    with sample weight s, where the terms may cancel each other: the size is s ((1 - ε) Σ_k c_k t_k
    w_k + (ε/V) Σ_v c_v + 2 λ |lse|), and 2 λ as the error of an lse is absolute.
    """
    axis, shift = expected.get("axis", -1), expected.get("shift", 0)
    targets = np.asarray(expected["targets"])
    of_rows = {name: expected.get(name) for name in ("softcap", "shift") if name in expected}
    ignore_index = expected.get("ignore_index", -100)
    stats = reference.row_stats(
        case.logits, targets, axis=axis, ignore_index=ignore_index, **of_rows
    )
    counted = np.ones(stats.logsumexp.shape, bool)
    if shift:
        counted[..., :shift] = False
    sample_weight = np.ones(counted.shape)
    if expected.get("sample_weight") is not None:
        sample_weight *= expected["sample_weight"]
    weight = expected.get("weight")
    weight = np.ones(case.logits.shape[axis]) if weight is None else weight
    options = (expected["gamma"], expected.get("threshold", 0.0))
    if targets.dtype.kind in "iu":
        counted &= targets != ignore_index
        target_weight = weight[np.where(counted, targets, 0)]
        slope = target_weight * reference.grad_weight(stats.target_log_prob, *options)
        counts = np.sum(np.where(counted, sample_weight * target_weight, 0.0))
    else:
        share = weight * np.moveaxis(targets.astype(np.float64), axis, -1)
        slope = np.sum(share, axis=-1)  # w_k is at most 1
        counts = np.sum(counted)
    epsilon = expected.get("label_smoothing", 0.0)
    slope = (1.0 - epsilon) * slope + epsilon * np.mean(weight)
    slope = slope + 2.0 * expected.get("z_loss", 0.0) * (1.0 + np.abs(stats.logsumexp))
    slope = np.where(counted, slope * sample_weight * np.abs(expected.get("grad_output", 1.0)), 0.0)
    if expected.get("reduction", "mean") == "mean":
        divisor = expected.get("normalizer") or counts
        slope = slope / divisor if divisor != 0 else np.zeros_like(slope)
    if shift:
        rows = np.arange(slope.shape[-1]) + shift
        slope = np.where(rows < len(rows), slope[..., np.minimum(rows, len(rows) - 1)], 0.0)
    return np.expand_dims(slope, axis)


def check(case: Case) -> None:
    """Compare `gce.loss` and `gce.loss_and_grad` with the reference, and with each other."""
    expected = in_reference_terms(case.options)
    want_loss, want_grad = reference.loss_and_grad(case.logits, **expected)
    name = case.logits.dtype.name

    options = dict(case.options)
    logits = case.logits.copy(order="K")
    out = options.pop("out", None)
    if out is not None:
        out = logits if out == "in place" else np.full_like(logits, np.nan)
        options["out"] = out
    alone = {key: item for key, item in options.items() if key not in ("out", "grad_output")}
    loss_alone, *stats_alone = tuple_of(gce.loss(logits, **alone))
    loss, grad, *stats = gce.loss_and_grad(logits, **options)
    assert len(stats) == len(stats_alone) == options.get("return_stats", False)

    assert loss.dtype == loss_alone.dtype == loss_dtype_of(name)
    assert grad.dtype == logits.dtype and grad.shape == logits.shape
    assert type(grad) is np.ndarray
    if out is not None:
        assert grad is out
    if np.ndim(want_loss) == 0:
        assert type(loss) is type(loss_alone) is loss_dtype_of(name).type
    else:
        assert type(loss) is type(loss_alone) is np.ndarray and loss.shape == want_loss.shape
    assert loss.tobytes() == loss_alone.tobytes()
    if out is not logits:
        assert logits.tobytes() == case.logits.tobytes()

    # The promise: relative 1e-6 (1e-14 in float64), or 2e-7 (1e-15) times the row's weight where a
    # loss is tiny. No weight here exceeds 4 * 3, nor does what label smoothing makes of them, which
    # lies between that of the target and the mean; and a mean divides by at least a 1/8 of what it
    # sums: 16 times that. The reference itself is good to 1e-15, added once.
    tolerance = {"rtol": 1.1e-14, "atol": 1.6e-14} if name == "float64" else {}
    np.testing.assert_allclose(loss, want_loss, **(tolerance or {"rtol": 1e-6, "atol": 3.2e-6}))
    # The promise: 5e-7 times the weight (in float64 a few roundings of the exponential and of the
    # sum, in both programs); and the one rounding of the result to 16 bits.
    relative = 3e-15 if name == "float64" else 5e-7
    bound = relative * slopes_of(case, expected)
    bound = bound + ROUNDOFF[name] * (np.abs(want_grad) + bound) + UNDERFLOW[name]
    error = np.abs(grad.astype(np.float64) - want_grad)
    assert np.all(error <= bound), (error - bound).max()


def tuple_of(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def test_every_option_is_here():
    parameters = set(inspect.signature(gce.loss_and_grad).parameters)
    covered = {name for kind in KINDS.values() for choice in kind for name in choice}
    assert covered | {"logits"} == parameters
    assert set(inspect.signature(gce.loss).parameters) == parameters - {"out", "grad_output"}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_each_option_alone(isa, kind, dtype):
    for choice in KINDS[kind]:
        options: dict[str, Any] = {}
        for part in (PLAIN | {kind: choice}).values():
            options |= part
        check(case_of(dtype, options))


@pytest.mark.parametrize("dtype", DTYPES)
def test_options_combined(isa, dtype):
    chooser = random.Random(2302)  # the same 150 cases for each dtype and ISA
    for _ in range(150):
        options: dict[str, Any] = {}
        for choices in KINDS.values():
            options |= chooser.choice(choices)
        check(case_of(dtype, options))


def check_derivatives(case: Case) -> None:
    """Compare `gce.hvp` and `gce.loss_gamma_grad` with the reference."""
    expected = in_reference_terms(case.options)
    name = case.logits.dtype.name
    options = {k: v for k, v in case.options.items() if k not in ("out", "return_stats")}
    vector = np.random.default_rng(9).uniform(-1, 1, case.logits.shape).astype(case.logits.dtype)
    # Everything that is multiplied is at most 1 and computed in double; the result is rounded once.
    relative = {"float64": 1e-14, "float32": 2.0**-24}.get(name, 0.0) + ROUNDOFF[name]
    # Curvatures are up to 8 times the slopes: 2 λ (1 + |lse|), two terms of each target, a cap's.
    cap = float(expected.get("softcap") or 1.0)
    # Of float64 all is computed to the last bits, of others exponentials and the like to 1e-10.
    factor = 1e-15 if name == "float64" else 1.1e-10
    bound = 8.0 * factor * slopes_of(case, expected) * (1.0 + 2.0 / cap)
    for gauss_newton in (False, True):
        want = reference.hvp(case.logits, vector=vector, gauss_newton=gauss_newton, **expected)
        found = gce.hvp(case.logits, vector=vector, gauss_newton=gauss_newton, **options)
        assert found.dtype == case.logits.dtype
        error = np.abs(found.astype(np.float64) - want)
        assert np.all(error <= bound + relative * np.abs(want) + UNDERFLOW[name])
    if options.get("value") == "surrogate":
        return
    found = gce.loss_gamma_grad(case.logits, **options)
    want = reference.loss_gamma_grad(case.logits, **expected)
    tolerance = 1e-13 if name == "float64" else 1e-6
    np.testing.assert_allclose(found, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
def test_derivatives_with_options_combined(isa, dtype):
    chooser = random.Random(2508)
    for _ in range(150):
        options: dict[str, Any] = {}
        for choices in KINDS.values():
            options |= chooser.choice(choices)
        check_derivatives(case_of(dtype, options))


@pytest.mark.parametrize("value", ["primitive", "surrogate"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_per_row_arrays_follow_any_layout(isa, dtype, reduction, value):
    per_row = {
        "gamma": rows_of(0.0, 0.1, 0.5, 1.0, dtype="float64"),
        "threshold": rows_of(0.0, 0.01, 0.6, dtype="float64"),
        "sample_weight": rows_of(0.5, 1.0, 2.0, 4.0, 0.25, dtype="float64"),
        "targets": targets_with(-100),
    }
    if reduction == "none":
        per_row["grad_output"] = rows_of(1.0, -1.0, 2.0, dtype="float64")
    for lay_out in (np.asfortranarray, every_other, backwards):
        options = {name: lay_out(array) for name, array in per_row.items()}
        check(case_of(dtype, {**options, "reduction": reduction, "value": value}))


def every_other(array: np.ndarray) -> np.ndarray:
    spaced = np.full([2 * n for n in array.shape], -7, array.dtype)
    spaced[::2, ::2] = array
    return spaced[::2, ::2]


def backwards(array: np.ndarray) -> np.ndarray:
    return array[::-1, ::-1].copy()[::-1, ::-1]


def test_long_double_parameters_are_converted():
    check(case_of("float64", PLAIN["targets"] | {"gamma": rows_of(0.3, 1.0, dtype="longdouble")}))


# --- targets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integer_dtypes_of_targets(isa, dtype):
    logits = make_logits("float32", SHAPE)
    options = {"targets": targets_with(None, dtype), "gamma": 0.5, "ignore_index": 3}
    check(Case(logits, options))
    want = gce.loss_and_grad(logits, targets_with(None, "int64"), 0.5, ignore_index=3)
    got = gce.loss_and_grad(logits, **options)
    assert [x.tobytes() for x in got] == [x.tobytes() for x in want]


@pytest.mark.parametrize("dtype", ["longlong", "ulonglong", "intc", "uintc", "intp"])
def test_other_names_of_integer_dtypes(dtype):
    # On Linux int64 is `long`: `longlong` has the same size and another type number.
    check(case_of("float32", {"targets": targets_with(None).astype(dtype), "gamma": 0.5}))


@pytest.mark.parametrize(("dtype", "classes"), [("int8", 128), ("uint8", 256), ("int16", 32768)])
def test_the_largest_target_of_a_small_dtype(isa, dtype, classes):
    logits = np.random.default_rng(3).normal(size=(2, classes))
    targets = np.array([classes - 1, 0], dtype)
    check(Case(logits, {"targets": targets, "gamma": 0.5, "reduction": "none"}))


def test_padding_of_uint8_does_not_stand_for_a_class(isa):
    # A port that maps the ignored target to class 0 first trains on padding.
    logits = make_logits("float32", (4,))
    targets = np.array([0, 255, 3, 255], np.uint8)
    loss, grad = gce.loss_and_grad(logits, targets, 0.1, ignore_index=255, reduction="none")
    assert loss[0] > 0.0 and loss[2] > 0.0
    assert not loss[[1, 3]].any() and not grad[[1, 3]].any()
    mean = gce.loss(logits, targets, 0.1, ignore_index=255)
    # Sum and quotient are computed in double and rounded to float32 once; loss[...] were rounded.
    assert mean == pytest.approx((float(loss[0]) + float(loss[2])) / 2, rel=1.2e-7)


def test_ignore_index_none_ignores_nothing():
    with pytest.raises(IndexError, match=r"targets\[1\] = -100, expected 0 <= target < 7"):
        gce.loss(make_logits("float32", (2,)), [0, -100], 0.1, ignore_index=None)


# --- shapes ---------------------------------------------------------------------------------------

SHAPES = [(), (4,), (2, 3), (2, 3, 2), (2, 1, 3, 2), (1, 1), (1,), (0,), (2, 0), (0, 3, 2)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_ranks_1_to_5_with_the_class_axis_anywhere(isa, shape, dtype):
    targets = np.arange(np.prod(shape, dtype=int)).reshape(shape) % CLASSES
    for axis, reduction in itertools.product(
        range(-len(shape) - 1, len(shape) + 1), ("mean", "sum", "none")
    ):
        options = {"targets": targets, "gamma": 0.3, "axis": axis, "reduction": reduction}
        check(Case(make_logits(dtype, shape, axis), options))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 7), (3, 0, 7), (0, 1)])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_no_rows(isa, reduction, shape, dtype):
    logits = np.empty(shape, dtype_of(dtype))
    targets = np.empty(shape[:-1], np.int64)
    loss, grad = gce.loss_and_grad(logits, targets, 0.5, reduction=reduction)
    assert grad.shape == shape and grad.dtype == logits.dtype
    assert loss.dtype == loss_dtype_of(dtype)
    assert loss.shape == (targets.shape if reduction == "none" else ())
    if reduction != "none":
        assert loss == 0.0
    stats = gce.row_stats(logits, targets)
    assert all(field.shape == targets.shape for field in stats)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 40])
def test_one_class_is_certain(isa, rows, dtype):
    logits = np.linspace(-30, 30, rows)[:, None].astype(dtype_of(dtype))
    targets = np.zeros(rows, np.int64)
    for gamma, threshold in itertools.product((0.0, 1e-7, 0.5, 1.0), (0.0, 0.3, 1.0)):
        for value in ("primitive", "surrogate"):
            loss, grad = gce.loss_and_grad(
                logits, targets, gamma, threshold=threshold, value=value, reduction="none"
            )
            # p = 1 exactly: not even a -0.0 or a rounding is left.
            assert loss.tobytes() == np.zeros_like(loss).tobytes()
            assert not grad.any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_all_rows_ignored(isa, reduction, dtype):
    # PyTorch's mean is NaN here, and poisons training.
    logits = make_logits(dtype, SHAPE)
    for ignored in ({}, {"weight": np.ones(CLASSES), "sample_weight": np.ones(SHAPE)}):
        loss, grad = gce.loss_and_grad(
            logits, np.full(SHAPE, -100), 0.5, reduction=reduction, **ignored
        )
        assert not np.any(loss) and not grad.any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "zero",
    [{"weight": np.zeros(CLASSES)}, {"sample_weight": np.zeros(SHAPE)}],
    ids=lambda zero: next(iter(zero)),
)
def test_mean_of_rows_without_weight(isa, zero, dtype):
    loss, grad = gce.loss_and_grad(make_logits(dtype, SHAPE), targets_with(-100), 0.5, **zero)
    assert loss == 0.0 and not grad.any()
    loss, grad = gce.loss_and_grad(
        make_logits(dtype, SHAPE), targets_with(-100), 0.5, normalizer=2.0, **zero
    )
    assert loss == 0.0 and not grad.any()


@pytest.mark.parametrize("classes", [3, 40])
@pytest.mark.parametrize("value", ["primitive", "surrogate"])
@pytest.mark.parametrize(("gamma", "threshold"), [(0.0, 0.0), (0.5, 0.1), (0.0, 1.0)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_infinite_loss_without_weight_is_none(isa, dtype, gamma, threshold, value, classes):
    # Where PyTorch has 0 times infinity: what does not count must not spoil what does.
    logits = np.random.default_rng(0).normal(scale=2.0, size=(3, classes)).astype(dtype_of(dtype))
    logits[0, 1] = -np.inf
    given = {"threshold": threshold, "value": value}
    for weights in ({"sample_weight": [0.0, 1.0, 2.0]}, {"weight": np.arange(classes) != 1}):
        loss, grad = gce.loss_and_grad(
            logits, [1, 0, 2], gamma, reduction="none", **given, **weights
        )
        rest = gce.loss(logits[1:], [0, 2], gamma, reduction="none", **given)
        assert loss[0] == 0.0 and not grad[0].any()
        assert loss[1] == rest[0] and np.isfinite(loss[2])
        for reduction in ("sum", "mean"):
            found = gce.loss(logits, [1, 0, 2], gamma, reduction=reduction, **given, **weights)
            assert np.isfinite(found) and found > 0.0
        logits_nan = logits.copy()
        logits_nan[0, 0] = np.nan  # no weight makes a number of that
        assert np.isnan(gce.loss(logits_nan, [1, 0, 2], gamma, **given, **weights))


# --- what counts as an array ----------------------------------------------------------------------


def test_lists():
    logits = [[2.0, 0.0, -1.0], [0.0, 0.0, 3.0]]
    want = gce.loss_and_grad(np.array(logits), np.array([0, 1]), 0.5)
    got = gce.loss_and_grad(logits, [0, 1], 0.5)
    assert got[0].dtype == np.float64 and got[0] == want[0]
    np.testing.assert_array_equal(got[1], want[1])
    assert gce.loss((2.0, 0.0), 0, 0.0) == gce.loss(np.array([2.0, 0.0]), np.int64(0), 0.0)


def test_rank_1_gives_scalars():
    logits = np.array([2.0, 0.0, -1.0], np.float32)
    for reduction in ("mean", "sum", "none"):
        loss, grad = gce.loss_and_grad(logits, 0, 0.5, reduction=reduction)
        assert type(loss) is np.float32 and grad.shape == (3,)
    stats = gce.row_stats(logits, 0)
    assert [type(field) for field in stats] == [np.float32, np.float32, np.int64]


class Tagged(np.ndarray):
    """An array with a name; its results need none."""


def test_subclasses_are_arrays():
    logits = make_logits("float32", SHAPE)
    want = gce.loss_and_grad(logits, targets_with(-100), 0.5)
    got = gce.loss_and_grad(logits.view(Tagged), targets_with(-100).view(Tagged), 0.5)
    assert type(got[0]) is np.float32 and type(got[1]) is np.ndarray
    assert [x.tobytes() for x in got] == [x.tobytes() for x in want]
    out = np.empty_like(logits).view(Tagged)
    assert gce.loss_and_grad(logits, targets_with(-100), 0.5, out=out)[1] is out
    assert out.tobytes() == want[1].tobytes()


def test_memory_maps(tmp_path):
    logits = make_logits("float16", SHAPE)
    logits.tofile(tmp_path / "logits")
    mapped = np.memmap(tmp_path / "logits", np.float16, "r", shape=logits.shape)
    want = gce.loss_and_grad(logits, targets_with(-100), 0.5)
    got = gce.loss_and_grad(mapped, targets_with(-100), 0.5)
    assert [x.tobytes() for x in got] == [x.tobytes() for x in want]
    out = np.memmap(tmp_path / "grad", np.float16, "w+", shape=logits.shape)
    gce.loss_and_grad(mapped, targets_with(-100), 0.5, out=out)
    out.flush()
    assert (tmp_path / "grad").read_bytes() == want[1].tobytes()


def test_read_only_inputs():
    arrays = [make_logits("float32", SHAPE), targets_with(-100), rows_of(0.5, 0.1, dtype="float64")]
    want = gce.loss_and_grad(*arrays)
    for array in arrays:
        array.flags.writeable = False
    assert gce.loss_and_grad(*arrays)[1].tobytes() == want[1].tobytes()


class WithArray:
    """What numpy calls an array-like: a framework's tensor, say."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.array if dtype is None else self.array.astype(dtype)


def test_objects_with_an_array_protocol():
    logits, targets, gamma = make_logits("float32", SHAPE), targets_with(-100), np.full(SHAPE, 0.3)
    want = gce.loss_and_grad(logits, targets, gamma)
    got = gce.loss_and_grad(WithArray(logits), WithArray(targets), WithArray(gamma))
    assert [x.tobytes() for x in got] == [x.tobytes() for x in want]


def test_keywords_for_the_positional_arguments():
    logits, targets = make_logits("float32", SHAPE), targets_with(-100)
    want = gce.loss(logits, targets, 0.3)
    assert gce.loss(gamma=0.3, targets=targets, logits=logits) == want
    assert gce.loss(logits, gamma=0.3, axis=-1, targets=targets) == want
    joined = "".join(["gam", "ma"])  # a keyword that the interpreter has not interned
    assert gce.loss(logits, targets, **{joined: 0.3}) == want


def test_nothing_keeps_a_reference():
    logits, targets = make_logits("float32", SHAPE), targets_with(-100)
    gamma, out = np.full(SHAPE, 0.3), np.empty_like(make_logits("float32", SHAPE))
    arrays = [logits, targets, gamma, out]
    before = [sys.getrefcount(array) for array in arrays]
    for _ in range(50):
        gce.loss_and_grad(logits, targets, gamma, out=out, sample_weight=gamma)
        gce.row_stats(logits, targets)
        with pytest.raises(ValueError, match="normalizer"):
            gce.loss_and_grad(logits, targets, gamma, out=out, normalizer=-1.0)
        with pytest.raises(TypeError, match="unexpected"):
            gce.loss_and_grad(logits, targets, gamma, out=out, smoothing=0.1)
    assert [sys.getrefcount(array) for array in arrays] == before


# --- row_stats ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [-1, 0, 1])
@pytest.mark.parametrize("choice", range(len(TARGETS)))
def test_row_stats(isa, choice, axis, dtype):
    options = {**TARGETS[choice], "axis": axis}
    logits = make_logits(dtype, SHAPE, axis)
    want = reference.row_stats(logits, **in_reference_terms(options))
    got = gce.row_stats(logits, **options)
    assert isinstance(got, gce.RowStats)
    assert got.target_log_prob.dtype == got.logsumexp.dtype == loss_dtype_of(dtype)
    assert got.argmax.dtype == np.int64
    np.testing.assert_array_equal(got.argmax, want.argmax)
    # ℓ is γ = 0's loss: its promise. logsumexp, of size up to 8, is rounded likewise.
    tolerance = {"rtol": 1e-6, "atol": 2e-7}
    if dtype == "float64":
        tolerance = {"rtol": 1e-14, "atol": 2e-15}
    np.testing.assert_allclose(got.target_log_prob, want.target_log_prob, **tolerance)
    np.testing.assert_allclose(got.logsumexp, want.logsumexp, **tolerance)
    ignored = np.asarray(options["targets"]) == options.get("ignore_index", -100)
    assert not got.target_log_prob[ignored].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [0, 1])
def test_argmax_is_the_first_of_equals(isa, axis, dtype):
    for classes in (1, 2, 7, 33, 64, 100):
        logits = np.zeros((12, classes))
        logits[0] = -np.inf
        logits[1, classes // 2 :] = 1.0
        logits[2, -1] = 1.0
        logits[3] = -1.0
        logits[4, ::2] = -0.0  # equal to 0.0
        logits[5, 0] = np.inf
        logits[6, classes // 3] = np.nan
        logits[7, [classes // 3, -1]] = np.nan
        logits[8] = np.nan
        logits[9, 0], logits[9, -1] = np.inf, np.nan
        logits[10, -1] = -np.inf
        logits[11] = np.arange(classes)[::-1] // 3
        logits = logits.astype(dtype_of(dtype))
        want = np.argmax(logits.astype(np.float64), axis=-1)
        stored = np.ascontiguousarray(np.moveaxis(logits, -1, axis))
        np.testing.assert_array_equal(gce.row_stats(stored, [0] * 12, axis=axis).argmax, want)


def test_row_stats_share_the_losses_log_prob(isa):
    logits, targets = make_logits("float64", SHAPE), targets_with(-100)
    loss = gce.loss(logits, targets, 0.0, reduction="none")
    np.testing.assert_array_equal(-gce.row_stats(logits, targets).target_log_prob + 0.0, loss + 0.0)


def test_means_of_unusual_weights():
    logits = np.array([[1.0, 2.0], [3.0, 1.0]])
    plain = gce.loss_and_grad(logits, [0, 0], 0.5)
    tiny = gce.loss_and_grad(logits, [0, 0], 0.5, weight=[2.0**-1030] * 2)
    for one, other in zip(plain, tiny, strict=True):
        # A loss times 2**-1030 is subnormal, with 44 bits left.
        np.testing.assert_allclose(one, other, rtol=2.0**-42)
    with np.errstate(divide="ignore"):
        cancelling = gce.loss(logits, [0, 0], 0.5, sample_weight=[1.0, -1.0])
    assert np.isinf(cancelling)  # not 0: something was counted
    assert np.isinf(gce.reference.loss(logits, [0, 0], 0.5, sample_weight=[1.0, -1.0]))
    for module in (gce, gce.reference):  # as inf / inf is
        loss, grad = module.loss_and_grad(logits, [0, 0], 0.5, sample_weight=[np.inf, 1.0])
        assert np.isnan(loss) and np.isnan(grad[0]).all() and not grad[1].any()
        assert np.isnan(module.loss(-logits, [0, 0], 0.0, sample_weight=[1.7e308, 1.7e308]))
    large = [1.0, 1e100, 1.0, -1e100]
    mean = gce.loss(np.zeros((4, 2)), [0] * 4, 0.0, sample_weight=large)
    assert mean == pytest.approx(np.log(2), rel=1e-15)
