"""Calls of the sigmoid form: layouts, in place, threads, and every kind of bad input."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import gce
from engines import EMULATED
from faults import call_in_vain, with_element
from test_layouts import DTYPES, LAYOUTS, Placed, assert_same_bits

FUNCTIONS = (gce.binary_loss, gce.binary_loss_and_grad)
# A, B, V: below, at and around blocks of 64; a chunk of 2048 and a bit; runs of one element.
SIZES = ((1, 1, 1), (2, 3, 5), (1, 1, 64), (3, 1, 21), (5, 13, 1), (2, 65, 17), (1, 0, 4))
FEWER_SIZES = ((1, 1, 1), (2, 3, 5), (2, 65, 17))


class Problem:
    """Numbers with axes A, B, V, options of every kind, and the results from contiguous arrays."""

    def __init__(self, engine: Any, dtype: str, rows: int, more: int, classes: int) -> None:
        rng = np.random.default_rng(classes)
        self.engine = engine
        self.sizes = {"A": rows, "B": more, "V": classes}
        self.shape = shape = (rows, more, classes)
        self.logits = (4 * rng.standard_normal(shape)).astype(DTYPES[dtype])
        targets = np.where(rng.random(shape) < 0.7, rng.random(shape) < 0.5, rng.random(shape))
        self.targets = targets.astype(DTYPES[dtype])
        self.options = {
            "gamma": rng.choice([0.0, 1e-7, 0.3, 1.0], shape),
            "threshold": rng.choice([0.0, 0.2, 1.0], shape).astype(np.float32),
            "weight": rng.random((more, classes))[np.newaxis],
            "pos_weight": rng.random(classes)[np.newaxis, np.newaxis].astype(np.float32),
            "grad_output": rng.normal(size=shape),
        }
        self.loss, self.grad = self.run(self.logits, self.empty("contiguous"))

    def run(self, logits: Any, placed: Placed, **more: Any) -> tuple[Any, Any]:
        """Results for logits laid out like `placed`; the losses with axes A, B, V."""
        options = {name: placed.rearranged(option) for name, option in self.options.items()}
        targets = more.pop("targets", placed.rearranged(self.targets))
        loss, grad = self.engine.binary_loss_and_grad(
            logits, targets, reduction="none", **options, **more
        )
        return loss.transpose([placed.axes.index(letter) for letter in "ABV"]), grad

    def empty(self, layout: str, dtype: Any = None) -> Placed:
        return Placed(LAYOUTS[layout], self.sizes, dtype or self.logits.dtype)

    def place(self, layout: str, numbers: Any) -> Placed:
        return self.empty(layout, numbers.dtype).fill(numbers)


def problems(engine: Any, dtype: str) -> list[Problem]:
    sizes = FEWER_SIZES if engine.name in EMULATED else SIZES
    return [Problem(engine, dtype, *size) for size in sizes]


# --- layouts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_layout(engine, dtype):
    for problem in problems(engine, dtype):
        for layout in LAYOUTS:
            logits = problem.place(layout, problem.logits)
            loss, grad = problem.run(logits.array, logits)
            assert_same_bits(loss, problem.loss)
            assert_same_bits(grad, logits.rearranged(problem.grad))
            logits.assert_holds(problem.logits)


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_layout_of_targets_and_out(engine, dtype):
    for problem in problems(engine, dtype):
        for layout in LAYOUTS:
            out = problem.empty(layout)
            logits = np.ascontiguousarray(out.rearranged(problem.logits))
            # Targets may lie otherwise, and be of another dtype: the same numbers in double.
            targets = problem.place(layout, problem.targets.astype(np.float64))
            loss, grad = problem.run(logits, out, targets=targets.array, out=out.array)
            assert grad is out.array
            assert_same_bits(loss, problem.loss)
            out.assert_holds(problem.grad)
            targets.assert_holds(problem.targets.astype(np.float64))


@pytest.mark.parametrize("dtype", DTYPES)
def test_in_place(engine, dtype):
    for problem in problems(engine, dtype):
        for layout in LAYOUTS:
            logits = problem.place(layout, problem.logits)
            loss, grad = problem.run(logits.array, logits, out=logits.array)
            assert grad is logits.array
            assert_same_bits(loss, problem.loss)
            logits.assert_holds(problem.grad)


def test_read_only_and_broadcast_inputs(engine):
    logits = np.linspace(-3, 3, 77, dtype=np.float32).reshape(7, 11)
    targets = np.broadcast_to(np.arange(11.0) / 10, (7, 11))
    want = engine.binary_loss_and_grad(logits, targets.copy(), 0.4)
    logits.setflags(write=False)
    found = engine.binary_loss_and_grad(logits, targets, np.broadcast_to(0.4, (7, 11)))
    assert_same_bits(found[0], want[0])
    assert_same_bits(found[1], want[1])
    # Logits that share memory: read, not written.
    logits = np.broadcast_to(np.float32(0.5), (7, 11))
    want = engine.binary_loss_and_grad(logits.copy(), targets, 0.4)
    found = engine.binary_loss_and_grad(logits, targets, 0.4, out=np.zeros((7, 11), np.float32))
    assert_same_bits(found[0], want[0])
    assert_same_bits(found[1], want[1])


def test_the_gradient_lies_as_the_logits_do(isa):
    logits = np.zeros((4, 5, 6), np.float32).transpose(2, 0, 1)
    _, grad = gce.binary_loss_and_grad(logits, np.zeros((6, 4, 5)), 0.5)
    assert grad.strides == logits.strides


@pytest.mark.parametrize("shape", [(2, 3), (3, 1), (1, 3), (3,), (1,), ()])
def test_shapes_of_weights(engine, shape):
    # As numpy broadcasts them; given so and given in full.
    logits = np.linspace(-3, 3, 6).reshape(2, 3)
    targets = np.array([[1, 0, 1], [0, 0.5, 1]])
    if shape == (3, 1):
        logits, targets = logits.T, targets.T
    weight = np.arange(1.0, 1.0 + np.prod(shape, dtype=int)).reshape(shape)
    for name in ("weight", "pos_weight"):
        options = {"threshold": 0.1, "reduction": "none"}
        whole = np.broadcast_to(weight, logits.shape).copy()
        want = engine.binary_loss_and_grad(logits, targets, 0.3, **options, **{name: whole})
        found = engine.binary_loss_and_grad(logits, targets, 0.3, **options, **{name: weight})
        assert_same_bits(found[0], want[0])
        assert_same_bits(found[1], want[1])


# --- threads --------------------------------------------------------------------------------------


def large(dtype: str, shape: tuple[int, ...]) -> dict[str, Any]:
    rng = np.random.default_rng(2)
    return {
        "logits": (3 * rng.standard_normal(shape, np.float32)).astype(DTYPES[dtype]),
        "targets": (rng.random(shape) < 0.3).astype(np.float32),
        "gamma": 0.3,
        "pos_weight": np.linspace(1.0, 3.0, shape[-1]),
        "label_smoothing": 0.05,
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(40_009,), (1301, 31), (3, 7, 2048)])
def test_any_number_of_threads(isa, shape, dtype):
    arguments = large(dtype, shape)
    for reduction in ("mean", "sum", "none"):
        want = gce.binary_loss_and_grad(**arguments, reduction=reduction, num_threads=1)
        alone = gce.binary_loss(**arguments, reduction=reduction, num_threads=1)
        assert_same_bits(alone, want[0])
        for threads in range(2, 8):
            found = gce.binary_loss_and_grad(**arguments, reduction=reduction, num_threads=threads)
            assert_same_bits(found[0], want[0])
            assert_same_bits(found[1], want[1])
            alone = gce.binary_loss(**arguments, reduction=reduction, num_threads=threads)
            assert_same_bits(alone, want[0])


def test_any_number_of_threads_elsewhere(engine):
    arguments = large("float32", (1301, 7))
    want = engine.binary_loss_and_grad(**arguments)
    for threads in (2, 3):
        found = engine.binary_loss_and_grad(**arguments, num_threads=threads)
        assert_same_bits(found[0], want[0])
        assert_same_bits(found[1], want[1])


def test_the_reduced_loss_depends_on_no_layout(isa):
    arguments = large("float32", (700, 31))
    want = gce.binary_loss(**arguments)
    strided = np.zeros((700, 62), np.float32)[:, ::2]
    strided[...] = arguments["logits"]
    for logits in (np.asfortranarray(arguments["logits"]), strided):
        assert_same_bits(gce.binary_loss(**{**arguments, "logits": logits}), want)


def test_a_sum_of_many_loses_nothing(isa):
    # 0.1 as a float32 plus 2^26 others: in float32 the sum would stop growing.
    logits = np.broadcast_to(np.float32(-20.0), (1 << 14, 256))
    each = float(np.log1p(np.exp(-20.0)))
    loss = gce.binary_loss(logits, np.zeros(logits.shape, np.float32), 0.0, reduction="sum")
    np.testing.assert_allclose(loss, each * logits.size, rtol=1.2e-7)  # one rounding


def test_calls_at_once(isa):
    arguments = large("float32", (300, 31))
    want = gce.binary_loss_and_grad(**arguments)
    wrong: list[int] = []

    def call(number: int) -> None:
        for _ in range(10):
            loss, grad = gce.binary_loss_and_grad(**arguments, num_threads=2)
            if loss != want[0] or grad.tobytes() != want[1].tobytes():
                wrong.append(number)

    callers = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


# --- bad input ------------------------------------------------------------------------------------


def arguments() -> dict[str, Any]:
    """A problem without fault: 4 times 5 elements."""
    return {
        "logits": np.linspace(-2, 2, 20, dtype=np.float32).reshape(4, 5),
        "targets": (np.arange(20.0).reshape(4, 5) % 3) / 2,
        "gamma": 0.5,
    }


GOOD = arguments()
HALVES = np.full((4, 5), 0.5)
FLOATS = "expected float16, bfloat16, float32 or float64"
OF_LOGITS = r"\(4, 5\), the shape of logits"
BROADCASTS = f"expected a scalar or a shape that broadcasts to {OF_LOGITS}"

WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    # dtypes
    ({"logits": [[1, 2]]}, TypeError, f"logits has dtype int64, {FLOATS}"),
    ({"logits": HALVES.astype(complex)}, TypeError, f"logits has dtype complex128, {FLOATS}"),
    ({"targets": HALVES.astype(complex)}, TypeError, f"targets has dtype complex128, {FLOATS}"),
    ({"targets": "abc"}, TypeError, f"targets has dtype <U3, {FLOATS}"),
    ({"targets": None}, TypeError, f"targets has dtype object, {FLOATS}"),
    ({"gamma": "0.5"}, TypeError, f"gamma has dtype <U3, {FLOATS}"),
    ({"weight": ["a"]}, TypeError, f"weight has dtype <U1, {FLOATS}"),
    ({"pos_weight": 1j}, TypeError, f"pos_weight has dtype complex128, {FLOATS}"),
    ({"threshold": None}, TypeError, "threshold = None, expected float or array of float"),
    ({"label_smoothing": "a"}, TypeError, "label_smoothing has type str, expected float"),
    # shapes
    ({"targets": HALVES[:3]}, ValueError, rf"targets has shape \(3, 5\), expected {OF_LOGITS}"),
    ({"targets": 0.5}, ValueError, rf"targets has shape \(\), expected {OF_LOGITS}"),
    ({"targets": HALVES[0]}, ValueError, rf"targets has shape \(5,\), expected {OF_LOGITS}"),
    *(
        (
            {name: HALVES[0]},
            ValueError,
            rf"{name} has shape \(5,\), expected a scalar or {OF_LOGITS}",
        )
        for name in ("gamma", "threshold")
    ),
    *(
        (
            {name: np.ones(shape)},
            ValueError,
            f"{name} has shape {text}, {BROADCASTS}",
        )
        for name in ("weight", "pos_weight")
        for shape, text in [
            ((4,), r"\(4,\)"),
            ((5, 4), r"\(5, 4\)"),
            ((2, 5), r"\(2, 5\)"),
            ((1, 4, 5), r"\(1, 4, 5\)"),
            ((0,), r"\(0,\)"),
        ]
    ),
    # ranges
    (
        {"targets": with_element((0, 3), 1.5, HALVES)},
        ValueError,
        r"targets\[0, 3\] = 1\.5, expected 0 <= target <= 1",
    ),
    (
        {"targets": with_element((3, 4), -1, np.zeros((4, 5), int))},
        ValueError,
        r"targets\[3, 4\] = -1, expected 0 <= target <= 1",
    ),
    (
        {"targets": with_element((2, 0), np.nan, HALVES)},
        ValueError,
        r"targets\[2, 0\] = nan, expected 0 <= target <= 1",
    ),
    (
        {"targets": with_element((1, 1), 2.0, HALVES).astype(np.float16)[::-1]},
        ValueError,
        r"targets\[2, 1\] = 2, expected 0 <= target <= 1",
    ),
    *(
        (
            {name: item},
            ValueError,
            rf"{name}{index} = {text}, expected 0 <= {name} <= 1",
        )
        for name in ("gamma", "threshold")
        for item, index, text in [
            (1.5, "", r"1\.5"),
            (-0.1, "", r"-0\.1\d*"),
            (np.nan, "", "nan"),
            (with_element((1, 2), np.inf, HALVES), r"\[1, 2\]", "inf"),
        ]
    ),
    (
        {"label_smoothing": 1.5},
        ValueError,
        r"label_smoothing = 1\.5, expected 0 <= label_smoothing <= 1",
    ),
    ({"normalizer": 0.0}, ValueError, "normalizer = 0, expected a finite number > 0"),
    # words, and combinations without sense
    (
        {"value": "exact"},
        ValueError,
        'value = "exact", expected "primitive" or "surrogate"',
    ),
    (
        {"reduction": "average"},
        ValueError,
        'reduction = "average", expected "mean", "sum" or "none"',
    ),
    (
        {"normalizer": 2.0, "reduction": "sum"},
        ValueError,
        'normalizer = 2, expected none unless reduction is "mean"',
    ),
    ({"num_threads": 0}, ValueError, "num_threads = 0, expected at least 1"),
]


@pytest.mark.parametrize("case", range(len(WRONG)))
def test_what_is_wrong_is_said(case):
    given, error, message = WRONG[case]
    for function in FUNCTIONS:
        call_in_vain(function, error, f"^{message}$", {**arguments(), **given})
    # Nothing is written in place either.
    changed = {**arguments(), **given}
    if isinstance(changed["logits"], np.ndarray) and changed["logits"].dtype == np.float32:
        changed["out"] = changed["logits"]
        call_in_vain(gce.binary_loss_and_grad, error, f"^{message}$", changed)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "Fortran order", "unaligned", "all backwards"])
def test_each_target_is_checked_on_every_isa(engine, layout, dtype):
    shape = (2, 17, 5)
    placed = Placed(LAYOUTS[layout], dict(zip("ABV", shape, strict=True)), DTYPES[dtype])
    logits = np.zeros(placed.array.shape, np.float32)
    for at in ((0, 0, 0), (1, 16, 4), (0, 9, 3)):
        for wrong in (1.0078125, -1e-3, np.nan):
            placed.fill(with_element(at, wrong, np.ones(shape)))
            index = tuple(at["ABV".index(axis)] for axis in placed.axes)
            message = rf"^targets\[{', '.join(map(str, index))}\] = \S+, expected 0 <= target <= 1$"
            with pytest.raises(ValueError, match=message):
                engine.binary_loss(logits, placed.array, 0.5, pos_weight=np.ones(shape[-1])[:1])
    placed.fill(np.ones(shape))
    engine.binary_loss(logits, placed.array, 0.5)


def test_a_number_out_of_range():
    with pytest.raises(ValueError, match=r"^targets = 2, expected 0 <= target <= 1$"):
        gce.binary_loss(0.5, 2, 0.5)
    with pytest.raises(ValueError, match=r"^gamma = 2, expected 0 <= gamma <= 1$"):
        gce.binary_loss(np.zeros(0), np.zeros(0), 2.0)


def test_a_late_fault_in_a_large_parallel_call_writes_nothing():
    given = large("float32", (400, 300))
    given["targets"][399, 299] = 1.25
    given |= {"out": given["logits"], "num_threads": 4}
    message = r"^targets\[399, 299\] = 1\.25, expected 0 <= target <= 1$"
    call_in_vain(gce.binary_loss_and_grad, ValueError, message, given)


GRAD_OUTPUT = "grad_output has shape"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"grad_output": HALVES},
            rf'{GRAD_OUTPUT} \(4, 5\), expected a scalar unless reduction is "none"',
        ),
        (
            {"grad_output": HALVES[0], "reduction": "none"},
            rf"{GRAD_OUTPUT} \(5,\), expected a scalar or {OF_LOGITS}",
        ),
        (
            {"out": np.zeros((4, 4), np.float32)},
            rf"out has shape \(4, 4\), expected {OF_LOGITS}",
        ),
        (
            {"out": as_strided(np.zeros(20, np.float32), (4, 5), (0, 4))},
            "out has elements that may share memory, expected each to have its own",
        ),
    ],
)
def test_what_is_wrong_with_the_gradient_is_said(given, message):
    call_in_vain(gce.binary_loss_and_grad, ValueError, f"^{message}$", {**arguments(), **given})


def test_out_of_another_dtype_or_read_only():
    given = arguments() | {"out": np.zeros((4, 5))}
    message = "^out has dtype float64, expected float32, the dtype of logits$"
    call_in_vain(gce.binary_loss_and_grad, TypeError, message, given)
    given["out"] = np.zeros((4, 5), np.float32)
    given["out"].setflags(write=False)
    message = "^out is read-only, expected a writeable array$"
    call_in_vain(gce.binary_loss_and_grad, ValueError, message, given)
    given["out"] = given["logits"].tolist()
    message = r"^out has type list, expected numpy\.ndarray$"
    call_in_vain(gce.binary_loss_and_grad, TypeError, message, given)


def test_out_that_overlaps(isa):
    memory = np.linspace(0.1, 0.9, 60, dtype=np.float32)
    out = memory[5:25].reshape(4, 5)
    for name, item in {
        "targets": memory[20:40].reshape(4, 5),
        "gamma": memory[24:25].reshape(()),
        "threshold": out,
        "weight": memory[1:6],
        "pos_weight": memory[24:29],
        "grad_output": memory[10:30].reshape(4, 5),
    }.items():
        given = {**arguments(), "reduction": "none", name: item, "out": out}
        message = f"^out overlaps {name}, expected memory of its own$"
        call_in_vain(gce.binary_loss_and_grad, ValueError, message, given)
    given = arguments() | {"logits": memory[:20].reshape(4, 5), "out": out}
    message = "^out overlaps logits in part, expected either logits itself or memory of its own$"
    call_in_vain(gce.binary_loss_and_grad, ValueError, message, given)
    # Every other element of the same memory is apart.
    pairs = np.zeros((4, 10), np.float32)
    given = arguments() | {"logits": pairs[:, ::2], "out": pairs[:, 1::2]}
    want = gce.binary_loss_and_grad(np.zeros((4, 5), np.float32), given["targets"], 0.5)[1]
    assert_same_bits(gce.binary_loss_and_grad(**given)[1], want)
    assert not pairs[:, ::2].any()


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_wrong_calls(function):
    name = function.__name__
    for option in ("ignore_index", "axis", "sample_weight", "z_loss"):
        with pytest.raises(
            TypeError, match=rf"^{name}\(\) got an unexpected keyword .*'{option}'$"
        ):
            function(**arguments(), **{option: 0})
    with pytest.raises(TypeError, match="takes 3 positional arguments but 4 were given"):
        function(*arguments().values(), 0.5)
    with pytest.raises(TypeError, match=r"missing required argument 'gamma'"):
        function(GOOD["logits"], GOOD["targets"])
    with pytest.raises(TypeError, match=r"multiple values for argument 'logits'"):
        function(GOOD["logits"], GOOD["targets"], 0.5, logits=GOOD["logits"])
    if function is gce.binary_loss:
        for option in ("out", "grad_output"):
            with pytest.raises(TypeError, match=f"unexpected keyword argument '{option}'"):
                function(**arguments(), **{option: None})
    with pytest.raises(TypeError, match="unexpected keyword argument 'pos_weight'"):
        gce.loss(np.zeros((1, 2)), [0], 0.5, pos_weight=1.0)
