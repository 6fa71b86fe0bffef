"""Arrays at the limits: any memory for every argument, and sizes from 0 to beyond 2^31."""

from __future__ import annotations

import importlib.util
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import gce
from gce import shards
from reliability import allocations
from support import require, require_memory

# --- every array argument of every function -------------------------------------------------------

ROWS, CLASSES = 6, 40


def functions() -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """The public functions with all arrays that they take."""
    rng = np.random.default_rng(7)
    logits = rng.standard_normal((ROWS, CLASSES), np.float32)
    targets = rng.integers(0, CLASSES, ROWS)
    per_row = rng.random((4, ROWS))
    weight = rng.random(CLASSES)
    options = {
        "gamma": per_row[0],
        "threshold": per_row[1] / 2,
        "weight": weight,
        "sample_weight": per_row[2],
    }
    both = {"logits": logits, "targets": targets}
    of_rows = {**both, **options, "grad_output": per_row[3], "reduction": "none"}
    slices = {"first_class": 0, "num_classes": CLASSES}
    stats = shards.partial_stats(logits, targets, **slices)
    binary = {
        "logits": logits,
        "targets": rng.random((ROWS, CLASSES)),
        "gamma": rng.random((ROWS, CLASSES)),
        "threshold": rng.random((ROWS, CLASSES)) / 2,
        "weight": per_row[0][:, None],
        "pos_weight": weight,
    }
    into = {"out": np.zeros_like(logits)}
    return {
        "loss": (gce.loss, {**both, **options}),
        "loss_and_grad": (gce.loss_and_grad, {**of_rows, **into}),
        "loss_and_grad of probabilities": (
            gce.loss_and_grad,
            {**of_rows, "targets": rng.random((ROWS, CLASSES), np.float32), **into},
        ),
        "row_stats": (gce.row_stats, both),
        "loss_gamma_grad": (gce.loss_gamma_grad, of_rows),
        "hvp": (
            gce.hvp,
            {**of_rows, "threshold": 0.0, "vector": rng.random((ROWS, CLASSES)), **into},
        ),
        "partial_stats": (shards.partial_stats, {**both, **slices, "weight": weight}),
        "sharded_loss_and_grad": (
            shards.loss_and_grad,
            {**of_rows, **slices, "stats": stats, **into},
        ),
        "binary_loss": (gce.binary_loss, binary),
        "binary_loss_and_grad": (
            gce.binary_loss_and_grad,
            {
                **binary,
                "grad_output": rng.random((ROWS, CLASSES)),
                "reduction": "none",
                **into,
            },
        ),
    }


FUNCTIONS = functions()
ARGUMENTS = [
    (function, name)
    for function, (_, given) in FUNCTIONS.items()
    for name, item in given.items()
    if isinstance(item, np.ndarray)
]
INPUTS = [(function, name) for function, name in ARGUMENTS if name != "out"]
WITH_OUT = [function for function, name in ARGUMENTS if name == "out"]


def test_the_table_has_every_array_argument():
    # So that a new function or option comes into it.
    from gce._native import options

    arrays = {"logits", "targets", "gamma", "vector", "stats", "out"}
    arrays |= {name for name, _, kind, *_ in options() if "array of float" in kind}
    assert {name for _, name in ARGUMENTS} == arrays
    named = {name for *_, functions_of_option in options() for name in functions_of_option}
    assert {function.split(" of ")[0] for function in FUNCTIONS} == named


def unaligned(array: Any) -> Any:
    memory = np.zeros(array.nbytes + 1, np.uint8)
    copy = memory[1:].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def read_only(array: Any) -> Any:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def backwards(array: Any) -> Any:
    every = (slice(None, None, -1),) * array.ndim
    return np.ascontiguousarray(array[every])[every]


def with_gaps(array: Any) -> Any:
    wide = np.zeros([3 * n for n in array.shape], array.dtype)
    copy = wide[(slice(1, None, 3),) * array.ndim]
    copy[...] = array
    return copy


def one_row_again(array: Any) -> Any:
    return np.broadcast_to(array[:1], array.shape)


def one_number_again(array: Any) -> Any:
    return np.broadcast_to(array[(slice(0, 1),) * array.ndim], array.shape)


LAYOUTS = [unaligned, read_only, backwards, with_gaps, one_row_again, one_number_again]


def bits(found: Any) -> Any:
    return [bits(one) for one in found] if isinstance(found, tuple) else np.asarray(found).tobytes()


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize(("function", "name"), INPUTS)
def test_inputs_of_any_memory(function, name, layout):
    if (name, layout) == ("stats", one_number_again):
        return  # 12 numbers that are not each other's
    call, given = FUNCTIONS[function]
    placed = layout(given[name])
    want = call(**{**given, name: placed.copy()})
    want = bits(want)  # out is written again
    assert bits(call(**{**given, name: placed})) == want


@pytest.mark.parametrize(("function", "name"), INPUTS)
def test_inputs_of_the_other_byte_order(function, name):
    call, given = FUNCTIONS[function]
    swapped = given[name].astype(given[name].dtype.newbyteorder())
    taken_as_it_is = name == "logits" or (name == "targets" and "binary" not in function)
    if taken_as_it_is:
        expected = f"^{name} has dtype {re.escape(str(swapped.dtype))}, expected "
        with pytest.raises(TypeError, match=expected):
            call(**{**given, name: swapped})
    else:  # converted, as integers are
        want = bits(call(**{**given, name: given[name].astype(np.float64)}))
        assert bits(call(**{**given, name: swapped})) == want


@pytest.mark.parametrize("layout", [unaligned, backwards, with_gaps], ids=lambda f: f.__name__)
@pytest.mark.parametrize("function", WITH_OUT)
def test_outputs_of_any_memory(function, layout):
    call, given = FUNCTIONS[function]
    want = bits(call(**given))
    out = layout(given["out"])
    assert bits(call(**{**given, "out": out})) == want
    assert out.tobytes() == given["out"].tobytes()


REFUSED = {
    "read-only": (read_only, ValueError, "out is read-only"),
    "zero strides": (
        lambda out: as_strided(out, out.shape, (0, out.itemsize)),
        ValueError,
        "out has elements that may share memory",
    ),
    "byte-swapped": (
        lambda out: out.astype(out.dtype.newbyteorder()),
        TypeError,
        "out has dtype >f4",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("function", WITH_OUT)
def test_outputs_that_are_refused(function, kind):
    make, error, message = REFUSED[kind]
    call, given = FUNCTIONS[function]
    out = make(np.full_like(given["out"], 7))
    with pytest.raises(error, match=f"^{message}"):
        call(**{**given, "out": out})
    assert (out == 7).all()


@pytest.mark.parametrize(
    ("function", "name"), [(function, name) for function, name in INPUTS if function in WITH_OUT]
)
def test_an_out_that_overlaps_an_input_in_part(function, name):
    call, given = FUNCTIONS[function]
    array = given[name]
    memory = np.zeros(array.nbytes + given["out"].nbytes, np.uint8)
    placed = memory[: array.nbytes].view(array.dtype).reshape(array.shape)
    placed[...] = array
    at = array.itemsize * (array.size - 1)  # its last element is out's first
    out = memory[at : at + given["out"].nbytes].view(given["out"].dtype).reshape(ROWS, CLASSES)
    before = memory.copy()
    with pytest.raises(ValueError, match=rf"^out overlaps {name}\b"):
        call(**{**given, name: placed, "out": out})
    np.testing.assert_array_equal(memory, before)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_inputs_may_overlap_each_other(function):
    call, given = FUNCTIONS[function]
    memory = np.linspace(0, 0.9, 2 * ROWS * CLASSES)
    shared: dict[str, Any] = {}
    for at, (name, array) in enumerate(given.items()):
        if isinstance(array, np.ndarray) and name not in ("logits", "targets", "stats", "out"):
            shared[name] = memory[at : at + array.size].reshape(array.shape)
    apart = {name: array.copy() for name, array in shared.items()}
    want = bits(call(**{**given, **apart}))
    assert bits(call(**{**given, **shared})) == want


@pytest.mark.parametrize("name", ["log_p", "gamma", "threshold"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("ufunc", ["loss_from_log_prob", "grad_weight", "gamma_grad"])
def test_ufuncs_of_any_memory(ufunc, layout, name):
    function = getattr(gce, ufunc)
    given = {
        "log_p": -np.linspace(0, 9, 50, dtype="f4"),
        "gamma": np.linspace(0, 1, 50),
        "threshold": np.linspace(0, 0.5, 50),
    }
    arguments = list(given)[: function.nin]
    if name not in arguments:
        return  # gamma_grad has no threshold
    placed = given | {name: layout(given[name])}
    want = function(*(placed[argument].copy() for argument in arguments))
    assert bits(function(*(placed[argument] for argument in arguments))) == bits(want)


# --- sizes ----------------------------------------------------------------------------------------

EMPTY = [(0, 5), (0, 0, 5), (3, 0, 5), (0, 3, 1), (2, 0, 3, 0, 7)]


@pytest.mark.parametrize("shape", EMPTY, ids=str)
@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_no_rows(shape, axis):
    shape = list(shape)
    shape.insert(axis % len(shape), shape.pop())  # the class axis, which is not empty
    logits = np.empty(shape, np.float32)
    rows = np.delete(shape, axis)
    targets = np.empty(rows, np.int64)
    given = {"logits": logits, "targets": targets, "axis": axis}
    loss, grad = gce.loss_and_grad(**given, gamma=0.3)
    assert loss == 0.0 and grad.shape == logits.shape
    assert gce.loss(**given, gamma=np.empty(rows), reduction="none").shape == targets.shape
    assert gce.loss(**given, gamma=0.3, reduction="sum", shift=1 if shape[-1] else 0) == 0.0
    assert gce.row_stats(**given).argmax.shape == targets.shape
    assert gce.hvp(**given, vector=logits, gamma=0.3).shape == logits.shape
    assert gce.loss_gamma_grad(**given, gamma=0.3) == 0.0
    assert gce.loss(logits, logits, 0.3, axis=axis) == 0.0  # probabilities
    stats = shards.partial_stats(**given, first_class=0, num_classes=shape[axis])
    assert stats.shape == (*rows, 12)


@pytest.mark.parametrize("shape", [(0,), (0, 5), (3, 0, 2), ()], ids=str)
def test_binary_form_of_any_rank_and_of_no_elements(shape):
    logits = np.zeros(shape, np.float32)
    loss, grad = gce.binary_loss_and_grad(logits, logits, 0.3)
    assert grad.shape == shape
    assert (loss == 0.0) == (0 in shape)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 0), (2, 3, 0)], ids=str)
def test_no_classes(shape):
    logits, targets = np.empty(shape, np.float32), np.zeros(shape[:-1], np.int64)
    message = f"^logits has shape {re.escape(str(shape))}, expected at least 1 class along axis "
    for call in (
        lambda: gce.loss(logits, targets, 0.3),
        lambda: gce.loss_and_grad(logits, targets, 0.3, out=logits),
        lambda: gce.loss(logits, logits, 0.3),
        lambda: gce.row_stats(logits, targets),
        lambda: gce.hvp(logits, targets, logits, 0.3),
        lambda: gce.loss_gamma_grad(logits, targets, 0.3),
        lambda: shards.partial_stats(logits, targets, first_class=0, num_classes=1),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_one_class(isa, dtype):
    # p = 1: no loss, no gradient, whatever the logit.
    logits = np.linspace(-1000, 1000, 101).astype(dtype).reshape(101, 1)
    for gamma in (0.0, 0.3, 1.0):
        loss, grad = gce.loss_and_grad(logits, np.zeros(101, np.int8), gamma, reduction="none")
        assert not loss.any() and not grad.astype(float).any()
    stats = gce.row_stats(logits, np.zeros(101, np.int8))
    assert not stats.target_log_prob.any() and not stats.argmax.any()
    # To the last place: the maximum and log2 of a sum are added.
    want = logits[:, 0].astype(stats.logsumexp.dtype)
    np.testing.assert_allclose(stats.logsumexp, want, rtol=np.finfo(want.dtype).eps)


@pytest.mark.parametrize("gamma", [0.0, 0.4, 1.0])
def test_ten_million_classes(isa, gamma):
    classes = 10_000_000
    logits = np.random.default_rng(0).standard_normal((1, classes), np.float32) * np.float32(3)
    target = int(logits.argmax())
    exponentials = np.exp(logits[0].astype(np.float64) - logits[0, target])
    # The promise of every V: 1e-6 of the loss; the sum is exact, its terms are double.
    p = 1 / math.fsum(exponentials)
    s = gamma + (1 - gamma) * p
    want = 1 - p if gamma == 1 else -math.log(s) / (1 - gamma)
    loss, grad = gce.loss_and_grad(logits, [target], gamma, out=logits)
    assert abs(loss - want) <= 1e-6 * want
    weight = p / s
    expected = exponentials * (weight * p)
    expected[target] -= weight
    assert np.abs(grad[0] - expected).max() <= 5e-7 * weight


# --- beyond 2^31 ----------------------------------------------------------------------------------


@pytest.mark.xdist_group("memory")
def test_more_than_2_to_the_31_elements():
    # 4 GiB of 16-bit logits in place, in one call after the other.
    require_memory(6)
    rng = np.random.default_rng(0)
    period, classes, rows = 1027, 1024, 2**21 + 3
    memory = np.empty(rows * classes, ml_dtypes.bfloat16)

    block = rng.standard_normal((period, classes), np.float32).astype(memory.dtype)
    block_targets = rng.integers(0, 128, period, np.int8)
    want_loss, want = gce.loss_and_grad(
        block, block_targets, 0.3, reduction="none", normalizer=None
    )
    logits = memory.reshape(rows, classes)
    for start in range(0, rows, period):
        part = logits[start : start + period]
        part[...] = block[: len(part)]
    targets = np.resize(block_targets, rows)
    loss, _ = gce.loss_and_grad(logits, targets, 0.3, reduction="none", out=logits)
    np.testing.assert_array_equal(loss, np.resize(want_loss, rows))
    for start in range(0, rows, period):
        part = logits[start : start + period].view(np.uint16)
        assert np.array_equal(part, want.view(np.uint16)[: len(part)]), start

    # The class axis first: strides of 4 MiB. Rows at both ends are those of a small problem.
    columns = memory.reshape(classes, rows)
    ends = np.r_[0:50, rows - 50 : rows]
    some = gce.loss(columns[:, ends].copy(), targets[ends], 0.3, axis=0, reduction="none")
    every = gce.loss(columns, targets, 0.3, axis=0, reduction="none")
    np.testing.assert_array_equal(every[ends], some)

    # One row, whose target is beyond what 32 bits index.
    row = memory.reshape(1, -1)
    row[...] = 0
    row[0, -1] = 20
    sum_exp = row.size - 1 + math.exp(20)
    p = math.exp(20) / sum_exp
    s = 0.3 + 0.7 * p
    of_row, _ = gce.loss_and_grad(row, [row.size - 1], 0.3, out=row)
    assert abs(of_row + math.log(s) / 0.7) <= 1e-6 * of_row
    others = row[0, :-1].view(np.uint16)
    assert others.min() == others.max() == np.array(p / s / sum_exp, memory.dtype).view(np.uint16)
    assert row[0, -1] == np.array(p / s * (p - 1), memory.dtype)


def test_more_than_2_to_the_31_elements_that_share_memory():
    row = np.random.default_rng(0).standard_normal(2**20, np.float32).astype(np.float16)
    for repeats in ((2**11 + 1,), (2**6 + 1, 2**5)):
        logits = np.broadcast_to(row, (*repeats, 2**20))
        assert logits.size > 2**31
        targets = np.broadcast_to(np.int8(1), repeats)
        losses = gce.loss(logits, targets, 0.3, reduction="none")
        np.testing.assert_array_equal(losses, np.full(repeats, gce.loss(row, 1, 0.3)))


def calls_of(logits: Any) -> dict[str, Callable[[], Any]]:
    targets = np.broadcast_to(np.int8(0), logits.shape[:-1])
    classes = logits.shape[-1]
    return {
        "loss": lambda: gce.loss(logits, targets, 0.3),
        "losses": lambda: gce.loss(logits, targets, 0.3, reduction="none"),
        "loss_and_grad": lambda: gce.loss_and_grad(logits, targets, 0.3),
        "probabilities": lambda: gce.loss(logits, logits, 0.3),
        "row_stats": lambda: gce.row_stats(logits, targets),
        "loss_gamma_grad": lambda: gce.loss_gamma_grad(logits, targets, 0.3),
        "hvp": lambda: gce.hvp(logits, targets, logits, 0.3),
        "partial_stats": lambda: shards.partial_stats(
            logits, targets, first_class=0, num_classes=classes
        ),
        "binary_loss": lambda: gce.binary_loss(logits, logits, 0.3),
        "binary_loss_and_grad": lambda: gce.binary_loss_and_grad(logits, logits, 0.3),
    }


HUGE = [(2**30, 2**31), (2**59, 3), (3, 2**59), (2**20, 2**20, 2**21), (2**61, 1), (1, 2**61)]


@pytest.mark.parametrize("shape", HUGE, ids=str)
def test_sizes_that_no_memory_holds(shape):
    logits = np.broadcast_to(np.float16(0), shape)
    for call in calls_of(logits).values():
        # From numpy, where it is to make a result first.
        with pytest.raises(
            (ValueError, MemoryError), match=r"expected at most 2\^58 elements|[Uu]nable|too big"
        ):
            call()


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_class_weights_that_no_memory_holds(dtype):
    # Each would be looked at, if they were not all the same: days.
    logits = np.broadcast_to(np.zeros((), dtype), (1, 2**47))
    weight = np.broadcast_to(1.5, 2**47)
    with pytest.raises(MemoryError):
        gce.loss(logits, [0], 0.3, weight=weight, label_smoothing=0.1)


def test_results_that_cannot_be_allocated():
    logits = np.broadcast_to(np.float32(0), (2**30, 2**10))  # 4 TiB, of 4 bytes
    targets = np.broadcast_to(np.int8(0), (2**30,))
    for call in (
        lambda: gce.loss_and_grad(logits, targets, 0.3),
        lambda: gce.hvp(logits, targets, logits, 0.3),
        lambda: gce.binary_loss_and_grad(logits, logits, 0.3),
        lambda: gce.binary_loss(logits, logits, 0.3, reduction="none"),
    ):
        with pytest.raises(MemoryError):
            call()


# --- memory that cannot be allocated --------------------------------------------------------------

FAULTED = ["into_out", "many_chunks", "binary", "wrong_target", "operator", "torch"]


@pytest.fixture
def shim(tmp_path):
    """The library that makes allocations fail, and counts them."""
    if sys.platform != "linux" or "LD_PRELOAD" in os.environ:
        pytest.skip("allocations are made to fail by LD_PRELOAD")
    require(shutil.which("gcc"), "gcc is not installed")
    return allocations.build_shim(tmp_path)


@pytest.mark.parametrize("kind", FAULTED)
def test_each_allocation_of_a_call_fails(kind, shim):
    # All kinds: python -m reliability allocations.
    if kind in allocations.DOORS:
        needed = {"operator": "onnxruntime"}.get(kind, kind)
        require(importlib.util.find_spec(needed), f"{needed} is not installed")
    found = allocations.inject(kind, shim)
    assert allocations.failures_of(found) == 0, found
    assert found["faults"] > 5 and found["error"] > 2


LOSES = """
import numpy as np
from reliability import faulted_calls
kept = []
def call():
    kept.append(np.ones(5000))
    return np.ones(3)
faulted_calls.KINDS["loses"] = lambda: faulted_calls.Kind(call, within="/_multiarray_umath.")
print(faulted_calls.run("loses")["leaked"])
"""


def test_a_lost_block_is_counted(shim):
    environment = os.environ | {"LD_PRELOAD": str(shim)}
    done = subprocess.run(
        [sys.executable, "-c", LOSES],
        cwd=allocations.ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0
