"""The same numbers, however they lie in memory: the same bits.

Each test computes from contiguous arrays, then from the same numbers elsewhere, on every engine.
Compared are the losses of rows and the gradient, bit by bit; and where the gradient is written into
an array of the caller, also that no byte between its elements has changed.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest

import gce
from engines import EMULATED, ENGINES, IN_PROCESS, python

DTYPES = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}

# Classes: around the lanes of every ISA (2 to 16), around 32 and 64, up to which a tile of rows may
# be transposed, primes, several blocks of 1024. With them two axes of rows, the inner one longer
# than the lanes where that is cheap; 3 · 23 rows are more than the 64 of a tile.
SIZES = (
    *((classes, 3, 23) for classes in (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33)),
    *((classes, 2, 17) for classes in (63, 64, 65, 127, 257)),
    *((classes, 2, 9) for classes in (1023, 1024, 1025, 2053, 3000)),
    *((7, 1, 1), (40, 1, 1), (7, 0, 5), (40, 5, 0), (7, 65, 1), (3, 1, 131)),
)
# An emulator is slow: every way through the kernels, not every size.
FEWER_SIZES = (
    *((1, 3, 23), (2, 3, 23), (5, 3, 23), (33, 3, 23), (65, 2, 17), (1025, 2, 9), (2053, 1, 9)),
    *((7, 1, 1), (7, 0, 5)),
)


class Layout(NamedTuple):
    """Where the elements of an array of classes V and rows A, B lie."""

    axes: str  # the array's axes
    memory: str  # the same, from the outermost to the innermost
    step: Mapping[str, int] = MappingProxyType({})  # an axis takes every n-th element
    gap: Mapping[str, int] = MappingProxyType({})  # bytes after the elements of an axis
    backwards: str = ""  # axes with negative strides
    start: int = 0  # bytes off alignment


LAYOUTS = {
    "contiguous": Layout("ABV", "ABV"),
    "class axis first": Layout("VAB", "VAB"),
    "class axis in the middle": Layout("AVB", "AVB"),
    "Fortran order": Layout("ABV", "VBA"),
    "Fortran order, class axis first": Layout("VAB", "BAV"),
    "Fortran order, class axis in the middle": Layout("AVB", "BVA"),
    "rows transposed": Layout("ABV", "BAV"),
    "columns transposed": Layout("BVA", "AVB"),
    "class axis first, rows contiguous": Layout("VAB", "ABV"),
    "every other class": Layout("ABV", "ABV", step={"V": 2}),
    "every third row, class axis in the middle": Layout("AVB", "AVB", step={"B": 3}),
    "gaps between rows": Layout("ABV", "ABV", gap={"V": 8, "B": 64}),
    "gaps, class axis in the middle": Layout("AVB", "AVB", gap={"B": 8, "V": 24}),
    "classes backwards": Layout("ABV", "ABV", backwards="V"),
    "rows backwards": Layout("ABV", "ABV", backwards="AB"),
    "rows backwards, class axis in the middle": Layout("AVB", "AVB", backwards="B"),
    "classes backwards, class axis in the middle": Layout("AVB", "AVB", backwards="V"),
    "all backwards": Layout("VAB", "ABV", backwards="ABV"),
    "unaligned": Layout("ABV", "ABV", start=1),
    "unaligned, class axis in the middle": Layout("AVB", "AVB", start=3),
    "each row at another alignment": Layout("ABV", "ABV", gap={"V": 1}),
    "each class at another alignment": Layout("AVB", "AVB", gap={"B": 1}),
    "aligned to one element": Layout("ABV", "ABV", start=8),
}


class Placed:
    """An array of a layout inside a buffer of its own, of which the rest must not change."""

    FILL = 0xA5

    def __init__(self, layout: Layout, sizes: dict[str, int], dtype: np.dtype[Any]) -> None:
        offset, stride, strides = 64 + layout.start, dtype.itemsize, {}
        for letter in reversed(layout.memory):
            stride *= layout.step.get(letter, 1)
            strides[letter] = stride
            if letter in layout.backwards:
                offset += stride * max(sizes[letter] - 1, 0)
                strides[letter] = -stride
            stride = stride * sizes[letter] + layout.gap.get(letter, 0)
        self.axes = layout.axes
        self.axis = layout.axes.index("V")
        whole = np.full(offset + abs(stride) + 128, self.FILL, np.uint8)
        # numpy aligns to 16 bytes or so; vectors are longer.
        skip = -whole.ctypes.data % 64
        self.buffer = whole[skip:]
        self._of_buffer = {
            "shape": tuple(sizes[letter] for letter in layout.axes),
            "strides": tuple(strides[letter] for letter in layout.axes),
            "dtype": dtype,
            "offset": offset,
        }
        self.array = self._view(self.buffer)

    def _view(self, buffer: Any) -> Any:
        # ml_dtypes' types have no buffer protocol, but numpy's constructor takes any bytes.
        return np.ndarray(buffer=buffer, **self._of_buffer)

    def fill(self, numbers: Any) -> Placed:
        """Write numbers with axes A, B, V."""
        self.array[...] = self.rearranged(numbers)
        return self

    def rearranged(self, numbers: Any) -> Any:
        """Numbers with axes A, B, V, or A, B, in this array's order of axes."""
        letters = "ABV"[: numbers.ndim]
        return numbers.transpose([letters.index(x) for x in self.axes if x in letters])

    def assert_holds(self, numbers: Any) -> None:
        """The array holds these numbers (axes A, B, V), and around them nothing has changed."""
        expected = np.full_like(self.buffer, self.FILL)
        self._view(expected)[...] = self.rearranged(numbers)
        np.testing.assert_array_equal(self.buffer, expected)


class Problem:
    """Numbers with axes A, B, V, every option, and the results from contiguous arrays."""

    def __init__(self, engine: Any, dtype: str, classes: int, rows: int, more: int) -> None:
        rng = np.random.default_rng(classes)
        self.engine = engine
        self.sizes = {"A": rows, "B": more, "V": classes}
        self.logits = rng.normal(size=(rows, more, classes)) * 4.0
        if self.logits.size:
            self.logits[0, 0] *= 1e30 if dtype in ("float32", "float64") else 1e3  # far off range
            self.logits[-1, -1, : classes // 2] = -np.inf
        self.logits = self.logits.astype(DTYPES[dtype])
        shape = (rows, more)
        self.targets = rng.integers(0, classes, size=shape)
        self.targets.flat[3::7] = -100
        self.options = {
            "gamma": rng.choice([0.0, 1e-7, 0.3, 1.0], size=shape),
            "threshold": rng.choice([0.0, 0.2, 1.0], size=shape),
            "sample_weight": rng.random(shape),
            "grad_output": rng.normal(size=shape),
        }
        self.weight = rng.random(classes)
        self.loss, self.grad = self.run(
            self.logits, Placed(LAYOUTS["contiguous"], self.sizes, self.logits.dtype)
        )

    def arguments(self, placed: Placed) -> dict[str, Any]:
        """Arguments for logits of this layout; those per row in its order of axes."""
        rows = {name: placed.rearranged(option) for name, option in self.options.items()}
        return {
            "targets": placed.rearranged(self.targets),
            "weight": self.weight,
            "axis": placed.axis,
            "reduction": "none",
            **rows,
        }

    def run(self, logits: Any, placed: Placed, **more: Any) -> tuple[Any, Any]:
        """Losses with axes A, B and the gradient, for `logits` laid out like `placed`."""
        loss, grad = self.engine.loss_and_grad(logits, **self.arguments(placed), **more)
        if placed.axes.replace("V", "") == "BA":
            loss = loss.T
        return loss, grad

    def place(self, layout: str) -> Placed:
        """The logits in a layout."""
        return self.empty(layout).fill(self.logits)

    def empty(self, layout: str) -> Placed:
        return Placed(LAYOUTS[layout], self.sizes, self.logits.dtype)


def assert_same_bits(found: Any, expected: Any) -> None:
    found, expected = np.asarray(found), np.asarray(expected)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    if found.tobytes() != expected.tobytes():  # which also tells 0 from -0
        np.testing.assert_array_equal(found, expected, strict=True)
        raise AssertionError("zeros of different sign, or different NaN")


def problems(engine: Any, dtype: str, sizes: Any = None) -> Iterator[Problem]:
    """One problem for each of the sizes."""
    if sizes is None:
        sizes = FEWER_SIZES if engine.name in EMULATED else SIZES
    return (problem_of(engine, dtype, *size) for size in sizes)


KEPT: dict[Any, Problem] = {}


def problem_of(engine: Any, dtype: str, *size: int) -> Problem:
    """A problem and its results, computed once for each engine."""
    key = (engine.name, dtype, *size)
    if key not in KEPT:
        KEPT[key] = Problem(engine, dtype, *size)
        KEPT[key].logits.flags.writeable = False
    return KEPT[key]


# --- logits and gradient ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_logits(engine, dtype, layout):
    for problem in problems(engine, dtype):
        placed = problem.place(layout)
        placed.array.flags.writeable = False
        loss, grad = problem.run(placed.array, placed)
        assert_same_bits(loss, problem.loss)
        assert_same_bits(grad, placed.rearranged(problem.grad))
        alone = problem.engine.loss(placed.array, **without_grad_output(problem, placed))
        assert_same_bits(alone, placed.rearranged(problem.loss))
        placed.assert_holds(problem.logits)


def without_grad_output(problem, placed):
    arguments = problem.arguments(placed)
    del arguments["grad_output"]
    return arguments


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_in_place(engine, dtype, layout):
    for problem in problems(engine, dtype):
        placed = problem.place(layout)
        loss, grad = problem.run(placed.array, placed, out=placed.array)
        assert grad is placed.array
        assert_same_bits(loss, problem.loss)
        placed.assert_holds(problem.grad)


@pytest.mark.parametrize("dtype", DTYPES)
def test_out_of_another_layout_than_logits(engine, dtype):
    # Around the numbers of classes at which the kernels change over to another layout.
    sizes = ((9, 3, 11), (33, 3, 11), (65, 2, 9), (1030, 1, 8))
    emulated = engine.name in EMULATED
    for problem in problems(engine, dtype, sizes):
        pairs = list(itertools.product(LAYOUTS, LAYOUTS))
        for of_logits, of_out in pairs[problem.sizes["V"] % 7 :: 7] if emulated else pairs:
            logits, out = problem.place(of_logits), problem.empty(of_out)
            # Both as the logits' layout has its axes.
            view = out.array.transpose([out.axes.index(letter) for letter in logits.axes])
            loss, _ = problem.run(logits.array, logits, out=view)
            assert_same_bits(loss, problem.loss)
            out.assert_holds(problem.grad)
            logits.assert_holds(problem.logits)


@pytest.mark.parametrize("dtype", DTYPES)
def test_field_of_a_structured_array(engine, dtype):
    # Packed records: rows and elements at every alignment, and neighbours that must stay.
    problem = Problem(engine, dtype, 33, 1, 23)
    fields = [("tag", np.uint8), ("row", DTYPES[dtype], (33,)), ("more", np.uint16)]
    records = np.zeros((1, 23), fields)
    records["tag"], records["more"] = 7, 12345
    records["row"] = problem.logits
    contiguous = problem.empty("contiguous")
    loss, grad = problem.run(records["row"], contiguous, out=records["row"])
    assert np.shares_memory(grad, records)
    assert_same_bits(loss, problem.loss)
    assert_same_bits(records["row"], problem.grad)
    assert (records["tag"] == 7).all() and (records["more"] == 12345).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [5, 33, 65, 1030])
@pytest.mark.parametrize("axis", ["A", "AB", "V", "ABV"])
def test_broadcast_logits(engine, dtype, classes, axis):
    # Strides of 0: all rows, or all classes, are one.
    problem = Problem(engine, dtype, classes, 3, 9)
    first = tuple(slice(0, 1) if letter in axis else slice(None) for letter in "ABV")
    one = np.nan_to_num(problem.logits.astype(np.float32), posinf=5.0, neginf=-5.0)[first]
    broadcast = np.broadcast_to(one.astype(DTYPES[dtype]), problem.logits.shape)
    for where in ("contiguous", "class axis in the middle", "class axis first"):
        placed = problem.empty(where)
        found = problem.run(placed.rearranged(broadcast), placed)
        expected = problem.run(np.ascontiguousarray(broadcast), problem.empty("contiguous"))
        assert_same_bits(found[0], expected[0])
        assert_same_bits(found[1], placed.rearranged(expected[1]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rank(engine, dtype):
    problem = Problem(engine, dtype, 37, 2, 12)
    rows = problem.empty("contiguous")
    options = problem.arguments(rows)
    loss, grad = engine.loss_and_grad(problem.logits[1, 3], **one_row(options, (1, 3)))
    assert np.ndim(loss) == 0
    assert_same_bits(loss, problem.loss[1, 3])
    assert_same_bits(grad, problem.grad[1, 3])

    many = (2, 1, 3, 1, 1, 4, 1)  # axes of length 1 do not matter, whatever their strides
    per_row = {name: np.reshape(options[name], many) for name in ("targets", *problem.options)}
    logits = np.moveaxis(problem.logits.reshape(*many, 37), -1, 3)
    loss, grad = engine.loss_and_grad(logits, **{**options, **per_row, "axis": 3})
    assert_same_bits(loss, problem.loss.reshape(many))
    assert_same_bits(np.moveaxis(grad, 3, -1), problem.grad.reshape(*many, 37))


def one_row(options, index):
    per_row = ("targets", "gamma", "threshold", "sample_weight", "grad_output")
    row = {name: options[name][index] for name in per_row}
    return {**options, **row, "axis": 0}


# --- splits and threads -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [3, 33, 1100])
@pytest.mark.parametrize("layout", ["contiguous", "class axis in the middle", "unaligned"])
def test_any_split_of_the_batch(engine, dtype, classes, layout):
    problem = Problem(engine, dtype, classes, 1, 150 if classes < 100 else 20)
    placed = problem.place(layout)
    arguments = problem.arguments(placed)
    rows = problem.sizes["B"]
    rng = np.random.default_rng(classes)
    cuts = np.sort(rng.choice(np.arange(1, rows), size=6, replace=False))
    for low, high in itertools.pairwise([0, *cuts, rows]):
        part = (slice(None), slice(low, high))
        named = ("targets", *problem.options)
        options = {**arguments, **{name: arguments[name][part] for name in named}}
        whole = tuple(part[1] if letter == "B" else slice(None) for letter in placed.axes)
        loss, grad = engine.loss_and_grad(placed.array[whole], **options)
        assert_same_bits(loss, problem.loss[part])
        assert_same_bits(grad, placed.rearranged(problem.grad)[whole])


# Logits whose product with log2(e), rounded, is half way between two integers.
NEIGHBOURS = np.arange(30000, 30020, 2.0**-9, np.float32)
HALVES = NEIGHBOURS[NEIGHBOURS * np.float32(np.log2(np.e)) % 1 == 0.5]


# How the rows of one tile may differ, where rows of few classes lie one after another.
UNLIKE = {
    "alike": lambda rng, z: z,
    "large": lambda rng, z: z + np.float32(300),
    "around the least usual maximum": lambda rng, z: z - 32772 + rng.normal(0, 4, (len(z), 1)),
    "around the largest": lambda rng, z: z + 32764 + rng.normal(0, 4, (len(z), 1)),
    "half way between powers of two": lambda rng, z: rng.choice(HALVES, z.shape),
    "offsets of their own": lambda rng, z: z + rng.normal(0, 12, (len(z), 1)),
    "offsets far apart": lambda rng, z: z + rng.normal(0, 200, (len(z), 1)),
    "spread": lambda rng, z: z * 5,
    "spread over all exponents": lambda rng, z: z * 25,
    "small exponentials": lambda rng, z: (
        z - rng.uniform(50, 130, z.shape) * (rng.random(z.shape) < 0.05)
    ),
    "masked classes": lambda rng, z: np.where(rng.random(z.shape) < 0.2, -np.inf, z),
    "classes masked by numbers": lambda rng, z: np.where(rng.random(z.shape) < 0.2, -30000, z),
    "a row of NaN": lambda rng, z: np.where(np.arange(len(z))[:, None] == 21, np.nan, z),
    "a NaN": lambda rng, z: np.where(np.arange(z.size).reshape(z.shape) == 40, np.nan, z),
    "+inf": lambda rng, z: np.where(np.arange(z.size).reshape(z.shape) == 40, np.inf, z),
    "-inf throughout": lambda rng, z: np.full_like(z, -np.inf),
}


# Factors of all sizes, with signs and NaN; and none that is of an unusual size.
FACTORS = {
    "any": lambda rng, rows: {
        "sample_weight": 2.0 ** rng.choice([0, -40, -100, -120, 80, 115], rows),
        "grad_output": rng.choice([1.0, -1.0, np.nan], rows, p=[0.5, 0.495, 0.005]),
    },
    "usual": lambda rng, rows: {
        "sample_weight": rng.choice([0.0, 1.0], rows),
        "grad_output": rng.choice([-1.0, 2.0], rows),
    },
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize("kind", UNLIKE)
def test_rows_unlike_their_neighbours(engine, dtype, kind, factors):
    rng = np.random.default_rng(7)
    for classes in (2, 7, 10, 16) if engine.name in EMULATED else range(2, 20):
        rows = 70 if engine.name in EMULATED else 390  # tiles and a part of one
        normal = 2 * rng.standard_normal((rows, classes), np.float32)
        logits = np.ascontiguousarray(UNLIKE[kind](rng, normal)).astype(DTYPES[dtype])
        per_row = {
            "targets": rng.integers(0, classes, rows),
            "gamma": rng.choice([0.0, 0.2, 0.7, 1.0, 1e-7], rows),
            "threshold": rng.choice([0.0, 0.0, 0.3], rows),
            **FACTORS[factors](rng, rows),
        }
        options = {"ignore_index": 1, "reduction": "none"}
        columns = np.ascontiguousarray(logits.T)  # in lanes of their own
        loss, grad = engine.loss_and_grad(columns, **per_row, **options, axis=0)
        found = engine.loss_and_grad(logits, **per_row, **options)
        assert_same_bits(found[0], loss)
        assert_same_bits(found[1], grad.T)
        for row in (0, 21, rows - 1):
            alone = {name: of_rows[row : row + 1] for name, of_rows in per_row.items()}
            found = engine.loss_and_grad(logits[row : row + 1], **alone, **options)
            assert_same_bits(found[0], loss[row : row + 1])
            assert_same_bits(found[1], grad.T[row : row + 1])


@pytest.mark.parametrize("classes", [4, 10])
def test_masked_classes_beside_small_ones(engine, classes):
    # In a tile with larger logits: what a masked class adds to such a sum, though nothing to any
    # digit of it, must not decide how it is rounded.
    rng = np.random.default_rng(1)
    rows = 640 if engine.name in EMULATED else 25_600
    logits = np.full((rows, classes), -np.inf, np.float32)
    logits[:, 0] = rng.uniform(-24.2, -24.1, rows)
    logits[:, 1] = rng.uniform(-51.6, -49.6, rows)
    logits[::64] = rng.normal(size=(rows // 64, classes))
    options = {"targets": np.zeros(rows, np.int64), "gamma": 0.3, "reduction": "none"}
    columns = engine.loss_and_grad(np.ascontiguousarray(logits.T), **options, axis=0)
    found = engine.loss_and_grad(logits, **options)
    assert_same_bits(found[0], columns[0])
    assert_same_bits(found[1], columns[1].T)


@pytest.mark.parametrize("layout", ["contiguous", "class axis in the middle", "Fortran order"])
def test_threads(engine, layout):
    # 160,000 logits: more than the Python module keeps on one thread, and several chunks.
    problem = Problem(engine, "float64", 1000, 8, 20)
    placed = problem.place(layout)
    options = {"axis": placed.axis, "reduction": "sum"}
    finite = np.nan_to_num(placed.array, posinf=9.0, neginf=-9.0)
    targets = placed.rearranged(problem.targets)
    total = engine.loss(finite, targets, 0.3, **options)
    for threads in (1, 2, 3, 8):
        loss, grad = problem.run(placed.array, placed, num_threads=threads)
        assert_same_bits(loss, problem.loss)
        assert_same_bits(grad, placed.rearranged(problem.grad))
        assert engine.loss(finite, targets, 0.3, **options, num_threads=threads) == total


# One dtype is enough in the emulator, which is slow: only x86-64 has stores that bypass the caches.
LARGE = [(name, "float32") for name in ENGINES if name != "baseline-aarch64"]
LARGE += [(name, dtype) for name in IN_PROCESS for dtype in ("float16", "float64")]


@pytest.mark.parametrize(("engine", "dtype"), LARGE, indirect=["engine"])
def test_gradients_larger_than_the_caches(engine, dtype):
    # From 10 MiB on gradients bypass the caches, in place from 20 MiB: rows at all alignments, and
    # the last one to the very end of its memory.
    classes = 131_101
    rows = 21 * 2**20 // (classes * DTYPES[dtype].itemsize) + 1
    rng = np.random.default_rng(0)
    few = rng.normal(size=9973).astype(DTYPES[dtype])
    logits = np.resize(few, (rows, classes))
    targets = rng.integers(0, classes, size=rows)
    arguments = {"targets": targets, "gamma": 0.4, "reduction": "none"}
    loss, grad = engine.loss_and_grad(logits, **arguments)
    sizes = {"A": 1, "B": rows, "V": classes}
    for layout in ("unaligned", "aligned to one element"):
        out = Placed(LAYOUTS[layout], sizes, DTYPES[dtype])
        engine.loss_and_grad(logits, **arguments, out=out.array[0])
        out.assert_holds(grad[np.newaxis])
    for row in (0, 1, rows - 1):
        one = {**arguments, "targets": targets[row]}
        alone, its_grad = engine.loss_and_grad(logits[row], **one)
        assert_same_bits(alone, loss[row])
        assert_same_bits(its_grad, grad[row])
    in_place, _ = engine.loss_and_grad(logits, **arguments, out=logits)
    assert_same_bits(in_place, loss)
    assert_same_bits(logits, grad)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_rows_that_share_cache_lines(isa, dtype):
    # What bypasses the caches is whole lines, of two rows where one ends and the next begins.
    classes = 1103
    rows = 21 * 2**20 // (classes * DTYPES[dtype].itemsize)
    rng = np.random.default_rng(0)
    logits = np.resize(rng.normal(size=9973).astype(DTYPES[dtype]), (rows, classes))
    logits[rng.integers(0, rows, 50), 3] = np.nan
    targets = rng.integers(0, classes, rows)
    targets[: rows // 2 : 3] = rng.choice(
        [0, 1, 5, classes - 6, classes - 1], len(targets[: rows // 2 : 3])
    )
    targets[rng.integers(0, rows, 50)] = -100
    arguments = {"targets": targets, "gamma": 0.4}
    loss = gce.loss(logits, **arguments)
    want = logits.copy()  # of parts that are small enough for the caches
    counted = np.count_nonzero(targets != -100)
    for part in np.array_split(np.arange(rows), 3):
        few = slice(part[0], part[-1] + 1)
        gce.loss_and_grad(want[few], targets[few], 0.4, normalizer=counted, out=want[few])
    for first, gap, threads in ((0, 0, 1), (1, 0, 3), (7, 0, 2), (29, 0, 1), (3, 5, 2)):
        memory = np.full((rows + 1) * (classes + gap), -7, DTYPES[dtype])
        out = memory[first : first + rows * (classes + gap)].reshape(rows, -1)[:, :classes]
        for in_place in (False, True):
            if in_place:
                out[...] = logits
            source = out if in_place else logits
            got, _ = gce.loss_and_grad(source, **arguments, out=out, num_threads=threads)
            assert_same_bits(got, loss)
            assert_same_bits(out, want)
        out[...] = -7
        assert (memory == -7).all()


@pytest.mark.parametrize("classes", [21, 100])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_gradients_of_columns_larger_than_the_caches(isa, dtype, classes):
    # Neighbouring rows' gradients bypass the caches in whole lines, wherever the first begins.
    inner = 2**24 // (classes * np.dtype(dtype).itemsize) // 64 * 64
    rng = np.random.default_rng(0)
    logits = np.resize(rng.normal(size=9973).astype(dtype), (classes, inner))
    targets = rng.integers(0, classes, size=inner)
    loss, grad = gce.loss_and_grad(np.ascontiguousarray(logits.T), targets, 0.4)
    memory = np.empty(classes * inner + 64, dtype)
    for first in (0, 1, 5, 8, 12, 31):
        out = memory[first : first + classes * inner].reshape(classes, inner)
        memory.fill(np.nan)
        got = gce.loss_and_grad(logits, targets, 0.4, axis=0, out=out)[0]
        assert_same_bits(got, loss)
        assert_same_bits(out, grad.T)
        assert np.isnan(memory[:first]).all() and np.isnan(memory[first + out.size :]).all()


@pytest.mark.parametrize("classes", [2, 21, 100])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_columns_that_share_cache_lines(isa, dtype, classes):
    # As above, where each class begins at another place of a line: of two tiles, where one ends and
    # the next begins.
    itemsize = DTYPES[dtype].itemsize
    inner = 2**24 // (3 * classes * itemsize) | 1
    rng = np.random.default_rng(0)
    logits = np.resize(rng.normal(size=9973).astype(DTYPES[dtype]), (3, classes, inner))
    logits[rng.integers(0, 3, 50), 1, rng.integers(0, inner, 50)] = np.nan
    targets = rng.integers(0, classes, size=(3, inner))
    targets[:, ::17] = -100
    rows = np.ascontiguousarray(np.moveaxis(logits, 1, -1))
    loss, grad = gce.loss_and_grad(rows, targets, 0.4)
    want = np.moveaxis(grad, -1, 1)
    for first, gap, threads in ((0, 0, 1), (1, 0, 3), (7, 3, 2), (29, 64, 1)):
        memory = np.full(3 * classes * (inner + gap) + 64, -7, DTYPES[dtype])
        out = memory[first : first + 3 * classes * (inner + gap)]
        out = out.reshape(3, classes, inner + gap)[..., :inner]
        options = {"axis": 1, "out": out, "num_threads": threads}
        assert_same_bits(gce.loss_and_grad(logits, targets, 0.4, **options)[0], loss)
        assert_same_bits(out, want)
        out[...] = -7
        assert (memory == -7).all()


# --- memory that must not be touched --------------------------------------------------------------

# Arrays that end with a page, or begin with one, next to pages that nobody may even read.
AT_THE_EDGE = """
import ctypes, itertools, mmap
import ml_dtypes
import numpy as np
import gce

libc = ctypes.CDLL(None, use_errno=True)
page = mmap.PAGESIZE

def fenced(size):
    whole = mmap.mmap(-1, (size // page + 3) * page)
    memory = np.frombuffer(whole, np.uint8)
    inside = memory[page : -page]
    for first in (memory.ctypes.data, memory.ctypes.data + len(memory) - page):
        if libc.mprotect(ctypes.c_void_p(first), ctypes.c_size_t(page), 0) != 0:
            raise OSError(ctypes.get_errno(), "mprotect")
    return inside

for dtype, classes, rows in itertools.product(
    (np.float16, ml_dtypes.bfloat16, np.float32, np.float64),
    (1, 2, 3, 5, 7, 8, 9, 10, 15, 16, 17, 31, 33, 63, 65, 127, 1023, 1027, 2051),
    (1, 3, 8, 13, 16, 17, 18, 35, 66),  # beside whole vectors of rows
):
    dtype = np.dtype(dtype)
    size = classes * rows * dtype.itemsize
    numbers = np.random.default_rng(0).normal(size=(rows, classes)).astype(dtype)
    targets = np.arange(rows) % classes
    for axis, at_end in itertools.product((0, 1), (True, False)):
        shape = (rows, classes) if axis == 1 else (classes, rows)
        logits, out = (
            np.ndarray(shape, dtype, buffer=inside, offset=len(inside) - size if at_end else 0)
            for inside in (fenced(size), fenced(size))
        )
        logits[...] = numbers if axis == 1 else numbers.T
        gce.loss_and_grad(logits, targets, 0.3, axis=axis, out=out)
        gce.loss_and_grad(logits, targets, 0.3, axis=axis, out=logits)
        gce.row_stats(logits, targets, axis=axis)
        gce.loss(logits, targets, 0.3, axis=axis)
print("inside")
"""


def test_nothing_beyond_the_arrays_is_read(isa):
    if not sys.platform.startswith("linux"):
        pytest.skip("protects pages by Linux's mprotect")
    done = python(AT_THE_EDGE, GCE_FORCE_ISA=isa)
    assert done.stdout == "inside\n", f"exit status {done.returncode}\n{done.stderr}"


# --- the other arrays ---------------------------------------------------------------------------


def views(array: Any) -> Iterator[tuple[str, Any]]:
    """The same numbers at other places: name and array."""
    yield "Fortran order", np.asfortranarray(array)
    yield "backwards", np.ascontiguousarray(array[::-1])[::-1]
    yield "every third", np.repeat(array, 3, axis=-1)[..., ::3]
    records = np.zeros(array.shape, [("tag", np.uint8), ("number", array.dtype)])
    records["number"] = array
    yield "unaligned", records["number"]
    read_only = array.copy()
    read_only.flags.writeable = False
    yield "read-only", read_only


@pytest.mark.parametrize("layout", ["contiguous", "class axis in the middle", "Fortran order"])
@pytest.mark.parametrize("classes", [5, 40])
def test_arrays_per_row_and_per_class(engine, classes, layout):
    problem = Problem(engine, "float32", classes, 3, 23)
    placed = problem.place(layout)
    arguments = problem.arguments(placed)
    for name in ("targets", "weight", *problem.options):
        for how, view in views(arguments[name]):
            loss, grad = engine.loss_and_grad(placed.array, **{**arguments, name: view})
            message = f"{name}, {how}"
            np.testing.assert_array_equal(loss, problem.loss, message, strict=True)
            np.testing.assert_array_equal(grad, placed.rearranged(problem.grad), message)


@pytest.mark.parametrize("name", ["targets", "gamma", "threshold", "sample_weight", "grad_output"])
def test_broadcast_arrays_per_row(engine, name):
    problem = Problem(engine, "float32", 40, 3, 23)
    arguments = problem.arguments(problem.empty("contiguous"))
    for first in (np.s_[:1], np.s_[:, :1], np.s_[:1, :1]):
        broadcast = np.broadcast_to(arguments[name][first], (3, 23))
        assert 0 in broadcast.strides
        found = engine.loss_and_grad(problem.logits, **{**arguments, name: broadcast})
        copied = engine.loss_and_grad(problem.logits, **{**arguments, name: broadcast.copy()})
        for ours, expected in zip(found, copied, strict=True):
            assert_same_bits(ours, expected)


def test_broadcast_class_weight(engine):
    problem = Problem(engine, "float32", 40, 3, 23)
    arguments = problem.arguments(problem.empty("contiguous"))
    broadcast = np.broadcast_to(np.float64(0.7), (40,))
    found = engine.loss_and_grad(problem.logits, **{**arguments, "weight": broadcast})
    copied = engine.loss_and_grad(problem.logits, **{**arguments, "weight": broadcast.copy()})
    for ours, expected in zip(found, copied, strict=True):
        assert_same_bits(ours, expected)


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"])
def test_dtypes_of_targets(engine, dtype):
    problem = Problem(engine, "float32", 40, 3, 23)
    arguments = problem.arguments(problem.empty("contiguous"))
    ignored = -100 if dtype[0] == "i" else 100
    targets = np.where(problem.targets == -100, ignored, problem.targets).astype(dtype)
    arguments["ignore_index"] = ignored
    for how, view in (("contiguous", targets), *views(targets)):
        loss, grad = engine.loss_and_grad(problem.logits, **{**arguments, "targets": view})
        np.testing.assert_array_equal(loss, problem.loss, how)
        np.testing.assert_array_equal(grad, problem.grad, how)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_of_options(engine, dtype):
    # Options of any float dtype count with the value that they have.
    problem = Problem(engine, "float32", 40, 3, 23)
    arguments = problem.arguments(problem.empty("contiguous"))
    names = ("gamma", "threshold", "sample_weight", "grad_output", "weight")
    narrow = {name: arguments[name].astype(DTYPES[dtype]) for name in names}
    wide = {name: option.astype(np.float64) for name, option in narrow.items()}
    expected = engine.loss_and_grad(problem.logits, **{**arguments, **wide})
    for name in names:
        for _, view in (("contiguous", narrow[name]), *views(narrow[name])):
            found = engine.loss_and_grad(problem.logits, **{**arguments, **wide, name: view})
            for ours, right in zip(found, expected, strict=True):
                assert_same_bits(ours, right)


# --- row_stats ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_row_stats(engine, dtype):
    sizes = FEWER_SIZES if engine.name in EMULATED else SIZES[::2]
    for problem in problems(engine, dtype, sizes):
        expected = engine.row_stats(problem.logits, problem.targets)
        for layout in LAYOUTS:
            placed = problem.place(layout)
            found = engine.row_stats(
                placed.array, placed.rearranged(problem.targets), axis=placed.axis
            )
            for ours, right in zip(found, expected, strict=True):
                assert_same_bits(ours, placed.rearranged(right))


# --- the elementwise functions ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("op", ["loss_from_log_prob", "grad_weight", "gamma_grad"])
def test_pointwise(engine, op, dtype):
    # In any order and at any place in the array, so in any lane: the same bits.
    rng = np.random.default_rng(0)
    for size in (0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31):
        log_p = -rng.exponential(size=size).astype(dtype)
        rest = [rng.random(size), rng.random(size)][: 1 if op == "gamma_grad" else 2]
        expected = engine.pointwise(op, log_p, *rest)
        assert expected.shape == (size,)
        one_by_one = [engine.pointwise(op, *args) for args in zip(log_p, *rest, strict=True)]
        assert_same_bits(np.array(one_by_one, dtype), expected)
        backwards = [np.ascontiguousarray(array[::-1])[::-1] for array in (log_p, *rest)]
        assert_same_bits(engine.pointwise(op, *backwards), expected)
