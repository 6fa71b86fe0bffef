"""The same bits for any number of threads, split of the batch, layout, run and process."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import gce
from support import require

try:
    from ml_dtypes import bfloat16
except ModuleNotFoundError:
    bfloat16 = None

DTYPES = ("float16", "bfloat16", "float32", "float64")
# All are enough for several threads (native/core/plan.cpp). Many rows, long rows, the class axis in
# the middle, and one row, which is shared in segments.
SHAPES = {
    "many rows": ((4099, 33), -1),
    "long rows": ((3, 200_001), -1),
    "class axis in the middle": ((3, 41, 1301), 1),
    "class axis first": ((41, 4099), 0),
    "one row": ((1, 1_100_009), -1),
}
REDUCTIONS = ("mean", "sum", "none")


def dtype_of(name: str) -> np.dtype[Any]:
    if name != "bfloat16":
        return np.dtype(name)
    require(bfloat16, "ml_dtypes is not installed")
    return np.dtype(bfloat16)


def problem(dtype: str, shape: tuple[int, ...], axis: int = -1) -> dict[str, Any]:
    """Logits with options of every kind, so that no per-row array escapes the comparison."""
    rng = np.random.default_rng(11)
    rows = tuple(np.delete(shape, axis))
    targets = rng.integers(0, shape[axis], rows)
    targets[rng.random(rows) < 0.1] = -100
    return {
        "logits": (4 * rng.standard_normal(shape, np.float32)).astype(dtype_of(dtype)),
        "targets": targets,
        "gamma": rng.choice([0.0, 0.1, 0.5, 1.0], rows),
        "threshold": rng.choice([0.0, 0.0, 0.2], rows),
        "sample_weight": rng.random(rows),
        "weight": rng.random(shape[axis]),
        "axis": axis,
    }


def bits(results: Any) -> list[bytes]:
    return [result.tobytes() for result in results]


def digest(results: Any) -> str:
    return hashlib.sha256(b"".join(bits(results))).hexdigest()


# --- threads --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", SHAPES)
def test_any_number_of_threads(isa, kind, dtype):
    arguments = problem(dtype, *SHAPES[kind])
    # The rows are summed in double, in order of fixed chunks: mean and sum have the same bits too.
    for reduction in REDUCTIONS:
        want = bits(gce.loss_and_grad(**arguments, reduction=reduction, num_threads=1))
        alone = gce.loss(**arguments, reduction=reduction, num_threads=1)
        assert alone.tobytes() == want[0]
        for threads in range(2, 9):
            got = gce.loss_and_grad(**arguments, reduction=reduction, num_threads=threads)
            assert bits(got) == want, threads
            alone = gce.loss(**arguments, reduction=reduction, num_threads=threads)
            assert alone.tobytes() == want[0], threads


UNUSUAL = {
    "a later logit far above the first": ((400_000, 20_000.0),),
    "all far below zero": ((slice(None), -50_000.0),),
    "a NaN": ((300_001, np.nan),),
    "+inf": ((300_001, np.inf),),
    "-inf throughout": ((slice(None), -np.inf),),
    "-inf but for the end": ((slice(0, 1_100_000), -np.inf),),
}


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"ignore_index": 7}])
@pytest.mark.parametrize("kind", UNUSUAL)
def test_an_unusual_row_shared_by_threads(isa, kind, options):
    logits = np.random.default_rng(3).standard_normal((1, 1_100_003), np.float32)
    for where, value in UNUSUAL[kind]:
        logits[0, where] = value
    arguments = {"targets": np.array([7]), "gamma": 0.3, **options}
    want = bits(gce.loss_and_grad(logits, **arguments, num_threads=1))
    stats = bits(gce.row_stats(logits, np.array([7]), num_threads=1))
    for threads in (2, 3):
        assert bits(gce.loss_and_grad(logits, **arguments, num_threads=threads)) == want
        assert bits(gce.row_stats(logits, np.array([7]), num_threads=threads)) == stats
        in_place = logits.copy()
        found = gce.loss_and_grad(in_place, **arguments, out=in_place, num_threads=threads)
        assert bits(found) == want


@pytest.mark.parametrize("dtype", DTYPES)
def test_row_stats_on_any_number_of_threads(isa, dtype):
    arguments = problem(dtype, (4099, 33))
    inputs = {name: arguments[name] for name in ("logits", "targets")}
    want = bits(gce.row_stats(**inputs, num_threads=1))
    assert all(bits(gce.row_stats(**inputs, num_threads=n)) == want for n in range(2, 9))


def test_the_process_setting(isa):
    arguments = problem("float32", (4099, 33))
    before = gce.get_num_threads()
    try:
        found = []
        for threads in range(1, 9):
            gce.set_num_threads(threads)
            found.append(bits(gce.loss_and_grad(**arguments)))
    finally:
        gce.set_num_threads(before)
    assert found[1:] == found[:-1]


def test_sums_where_their_order_would_show(isa):
    # Losses from 1e-4 to 1e7: added in another order, or in float32, the sum has other bits.
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(20_000, 8)).astype(np.float32)
    logits[np.arange(20_000), 0] -= np.exp(rng.uniform(-9, 16, 20_000)).astype(np.float32)
    targets = np.zeros(20_000, np.int64)
    losses = gce.loss(logits, targets, 0.0, reduction="none")
    orders = [np.cumsum(losses[::step], dtype=np.float32)[-1] for step in (1, -1)]
    assert orders[0] != orders[1]
    sums = [gce.loss(logits, targets, 0.0, reduction="sum", num_threads=n) for n in range(1, 9)]
    assert len(set(sums)) == 1
    # 20,000 rounded losses, of which each is within half an ulp of what was added.
    assert float(sums[0]) == pytest.approx(losses.sum(dtype=np.float64), rel=6e-8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_run_to_run(isa, dtype):
    arguments = problem(dtype, (4099, 33))
    want = bits(gce.loss_and_grad(**arguments, num_threads=8))
    for _ in range(20):  # which thread takes which chunk differs from run to run
        assert bits(gce.loss_and_grad(**arguments, num_threads=8)) == want


SCRIPT = """
import sys
import gce
from test_determinism import digest, problem
for dtype in sys.argv[1:]:
    print(digest(gce.loss_and_grad(**problem(dtype, (4099, 33)))))
"""


def printed_by(script, dtypes, isa, **environment):
    """Words, by a process that has this file's functions and an ISA."""
    path = os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", script, *dtypes],
        env=os.environ | {"GCE_FORCE_ISA": isa, "PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def test_process_to_process(isa):
    dtypes = ("float16", "float32", "float64")
    want = [digest(gce.loss_and_grad(**problem(dtype, (4099, 33)))) for dtype in dtypes]
    for threads in ("1", "5"):
        assert printed_by(SCRIPT, dtypes, isa, GCE_NUM_THREADS=threads) == want


FLUSHING = """
import sys
import torch
import gce
from test_determinism import digest, problem
for dtype in sys.argv[1:]:
    arguments = problem(dtype, (4099, 33))
    arguments["logits"] = (30 * arguments["logits"].astype("f8")).astype(dtype)
    found = set()
    for flush in (False, True):  # of this thread alone, not of the pool's
        torch.set_flush_denormal(flush)
        for threads in (1, 2, 3, 1, 3):
            found.add(digest(gce.loss_and_grad(**arguments, num_threads=threads)))
    print(len(found))
"""


def test_a_thread_that_flushes_subnormal_numbers(isa):
    require(importlib.util.find_spec("torch"), "torch is not installed")
    assert printed_by(FLUSHING, ("float32", "float64"), isa) == ["1", "1"]


SUBNORMAL = """
import numpy as np
import torch
import gce
z = np.array([[0, 1, 2], [-np.inf, 0, 0]], "f4")
tiny, vector = np.full(3, 1e-40, "f4"), np.full((2, 3), 9.7e-312)  # before numpy flushes, too
calls = {
    "weights": lambda: gce.loss_and_grad(z, [0, 1], 0.5, weight=tiny),
    "gamma": lambda: gce.loss_and_grad(z, [0, 0], tiny[0]),
    "gamma of each row": lambda: gce.loss_and_grad(z, [0, 0], tiny[:2]),
    "a small mean": lambda: gce.loss_and_grad(z, [0, 1], 0.5, normalizer=3e38),
    "normalizer": lambda: gce.loss_and_grad(z, [0, 1], 0.5, normalizer=1e-310),
    "softcap": lambda: gce.loss_and_grad(z, [0, 1], 0.5, softcap=1e-310),
    "out of range": lambda: gce.loss(z, [0, 1], -1e-310),
    "vector": lambda: gce.hvp(z.astype("f8"), [0, 1], vector, 0.5),
    "gamma's": lambda: gce.loss_gamma_grad(z, [0, 1], 0.5, normalizer=1e308),
    "binary": lambda: gce.binary_loss_and_grad(z[0], [0, 1, 1], 0.5, pos_weight=1e-310),
    "ufunc": lambda: gce.grad_weight(-745.0, 1e-310, 0.0),
    "ufunc of floats": lambda: gce.grad_weight(np.float32(-90), 0.5, 0.0),
}
for name, call in calls.items():
    found = set()
    for flush in (False, True):
        torch.set_flush_denormal(flush)
        try:
            result = call()
            parts = result if isinstance(result, tuple) else (result,)
            found.add(b" ".join(np.asarray(part).tobytes() for part in parts))
        except ValueError as error:
            found.add(str(error))
    torch.set_flush_denormal(False)
    if len(found) > 1:
        print(name)
print("tried", len(calls))
"""


def test_subnormal_options_and_results_in_a_thread_that_flushes_them(isa):
    require(importlib.util.find_spec("torch"), "torch is not installed")
    assert printed_by(SUBNORMAL, (), isa) == ["tried", "12"]


# --- with, without, and where the gradient goes ---------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", SHAPES)
def test_in_place_or_not(isa, kind, dtype):
    arguments = problem(dtype, *SHAPES[kind])
    for reduction in REDUCTIONS:
        want = bits(gce.loss_and_grad(**arguments, reduction=reduction))
        out = np.full_like(arguments["logits"], np.nan)
        assert bits(gce.loss_and_grad(**arguments, reduction=reduction, out=out)) == want
        own = arguments | {"logits": arguments["logits"].copy()}
        found = gce.loss_and_grad(**own, reduction=reduction, out=own["logits"])
        assert found[1] is own["logits"] and bits(found) == want


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [1, 7, 8, 15, 16, 17, 33, 1025])
def test_loss_alone_or_with_gradient(isa, classes, dtype):
    arguments = problem(dtype, (37, classes))
    for value in ("primitive", "surrogate"):
        for reduction in REDUCTIONS:
            options = {"value": value, "reduction": reduction}
            alone = gce.loss(**arguments, **options)
            assert alone.tobytes() == gce.loss_and_grad(**arguments, **options)[0].tobytes()


# --- splits ---------------------------------------------------------------------------------------


def part(arguments: dict[str, Any], rows: slice) -> dict[str, Any]:
    per_row = ("logits", "targets", "gamma", "threshold", "sample_weight")
    return arguments | {name: arguments[name][rows] for name in per_row}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [3, 16, 33, 1100])
def test_any_split_of_the_batch(isa, classes, dtype):
    rows = 131
    arguments = problem(dtype, (rows, classes))
    want = gce.loss_and_grad(**arguments, reduction="none")
    for cuts in ([1, 2, 3, 64, 65, 130], [17], [100], range(1, rows)):
        edges = [0, *cuts, rows]
        pieces = [
            gce.loss_and_grad(**part(arguments, slice(*ends)), reduction="none")
            for ends in itertools.pairwise(edges)
        ]
        joined = [np.concatenate(results) for results in zip(*pieces, strict=True)]
        assert bits(joined) == bits(want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_neighbours_do_not_matter(isa, dtype):
    # A row keeps its bits between rows that need other paths: shifts, thresholds, NaN, ignored.
    row = problem(dtype, (1, 50))
    row["targets"][:] = 3
    want = bits(gce.loss_and_grad(**row, reduction="none"))
    for at in range(9):
        # 60,000 fits float16.
        crowd = problem(dtype, (9, 50))
        crowd["logits"][::2] *= 1000
        crowd["logits"][1] = np.nan
        crowd["targets"][2] = -100
        for name in ("logits", "targets", "gamma", "threshold", "sample_weight"):
            crowd[name][at] = row[name][0]
        crowd["weight"] = row["weight"]
        loss, grad = gce.loss_and_grad(**crowd, reduction="none")
        assert bits([loss[at : at + 1], grad[at : at + 1]]) == want


@pytest.mark.parametrize("dtype", DTYPES)
def test_permuted_rows(isa, dtype):
    arguments = problem(dtype, (131, 33))
    loss, grad = gce.loss_and_grad(**arguments, reduction="none")
    order = np.random.default_rng(0).permutation(131)
    moved = gce.loss_and_grad(**part(arguments, order), reduction="none")
    assert bits(moved) == bits([loss[order], grad[order]])


# --- layouts --------------------------------------------------------------------------------------


def at_offset(array: np.ndarray, offset: int) -> np.ndarray:
    """A copy that starts `offset` bytes after a multiple of 64."""
    memory = np.empty(array.nbytes + 128, np.uint8)
    start = -memory.ctypes.data % 64 + offset
    copy: np.ndarray = np.ndarray(array.shape, array.dtype, memory.data, start)
    copy[...] = array
    assert copy.ctypes.data % 64 == offset
    return copy


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [5, 16, 67])
def test_any_alignment(isa, classes, dtype):
    arguments = problem(dtype, (19, classes))
    want = bits(gce.loss_and_grad(**arguments))
    step = arguments["logits"].itemsize
    for offset in [*range(0, 64, step), 1, 3, 63]:  # the last are not even aligned to an element
        moved = {
            name: at_offset(item, offset) if isinstance(item, np.ndarray) else item
            for name, item in arguments.items()
        }
        assert bits(gce.loss_and_grad(**moved)) == want
        out = at_offset(arguments["logits"], (offset + 2 * step) % 64)
        assert bits(gce.loss_and_grad(**moved, out=out)) == want
        assert bits(gce.loss_and_grad(**moved, out=moved["logits"])) == want


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [1, 2, 16, 33, 1100])
def test_any_place_of_the_class_axis(isa, classes, dtype):
    arguments = problem(dtype, (67, classes))
    want = gce.loss_and_grad(**arguments, reduction="none")
    # The same numbers: classes first, in memory and as a view; with gaps; backwards.
    first = arguments | {"logits": arguments["logits"].T.copy(), "axis": 0}
    spaced = np.full((67 * 2, classes * 3), np.nan, dtype_of(dtype))
    spaced[::2, ::3] = arguments["logits"]
    layouts = [
        first,
        arguments | {"logits": arguments["logits"].T, "axis": 0},
        arguments | {"logits": first["logits"].T},
        arguments | {"logits": spaced[::2, ::3]},
        arguments | {"logits": spaced.T[::3, ::2], "axis": 0},
        arguments | {"logits": arguments["logits"][::-1, ::-1].copy()[::-1, ::-1]},
    ]
    for layout in layouts:
        loss, grad = gce.loss_and_grad(**layout, reduction="none")
        grad = np.moveaxis(grad, layout["axis"], -1)
        assert bits([loss, grad]) == bits(want)
        in_place = layout | {"logits": layout["logits"].copy(order="K")}
        for name in ("mean", "sum"):
            reduced = gce.loss_and_grad(**in_place, reduction=name)
            assert reduced[0] == gce.loss(**arguments, reduction=name)


@pytest.mark.parametrize("dtype", DTYPES)
def test_outer_axes_are_rows_in_order(isa, dtype):
    flat = problem(dtype, (60, 33))
    for reduction in REDUCTIONS:
        want = bits(gce.loss_and_grad(**flat, reduction=reduction))
        for shape in [(6, 10), (3, 4, 5), (60, 1), (1, 60), (2, 3, 2, 5)]:
            folded = flat | {
                name: item.reshape(*shape, *item.shape[1:])
                for name, item in flat.items()
                if name not in ("weight", "axis")
            }
            assert bits(gce.loss_and_grad(**folded, reduction=reduction)) == want


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("classes", [1, 5, 40, 1030])
def test_bits_of_nan(isa, classes, bad):
    # A NaN's sign would otherwise depend on the order of operations, and so on the layout.
    logits = np.zeros((3, classes), np.float32)
    logits[1, 0] = bad
    targets = np.zeros(3, int)
    options = {"targets": targets, "gamma": 0.5, "reduction": "none"}
    loss, grad = gce.loss_and_grad(logits, **options)
    assert np.isnan(loss).tolist() == [False, True, False]
    assert np.isnan(grad[1]).all()
    strided = np.zeros((3, 2 * classes), np.float32)[:, ::2]
    strided[...] = logits
    for other in (strided, np.asfortranarray(logits)):
        its_loss, its_grad = gce.loss_and_grad(other, **options)
        assert its_loss.tobytes() == loss.tobytes()
        assert its_grad.tobytes() == grad.tobytes()
    alone, its_grad = gce.loss_and_grad(logits[1], 0, 0.5)
    assert alone.tobytes() == loss[1].tobytes()
    assert its_grad.tobytes() == grad[1].tobytes()
