"""Bad input of every kind: the right exception, a message that helps, and nothing written."""

from __future__ import annotations

import contextlib
import inspect
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import gce
from faults import (
    CUBE,
    EYE,
    SQUARE,
    TABLE,
    Wrong,
    arguments,
    call_in_vain,
    with_element,
    wrong_targets,
)

FUNCTIONS = (gce.loss, gce.loss_and_grad, gce.row_stats)


def name_of(case: Wrong) -> str:
    return case.message[:60]


@pytest.mark.parametrize("case", TABLE, ids=name_of)
def test_every_function_says_what_is_wrong(case):
    tried = 0
    for function in FUNCTIONS:
        taken = set(inspect.signature(function).parameters)
        if not set(case.given) <= taken:
            continue
        given = {key: item for key, item in (arguments() | case.given).items() if key in taken}
        if "out" in taken and "out" not in given and isinstance(given["logits"], np.ndarray):
            dtype = given["logits"].dtype
            good = dtype.isnative and dtype in ("f2", "f4", "f8")
            given["out"] = np.full(given["logits"].shape, 7, dtype if good else "f4")
        call_in_vain(function, case.error, case.pattern, given)
        tried += 1
    assert tried


@pytest.mark.parametrize("case", wrong_targets()[:40:3] + wrong_targets()[40:], ids=name_of)
def test_targets_are_checked_on_every_isa(isa, case):
    given = arguments() | case.given
    given["out"] = given["logits"] = np.array(given["logits"])
    call_in_vain(gce.loss_and_grad, case.error, case.pattern, given)


@pytest.mark.parametrize(
    "given",
    [
        {"gamma": 2.0},
        {"threshold": np.nan},
        {"targets": np.array([0, 1, 2, 5])},
        {"gamma": np.array([0.1, 0.2, 0.3, -1.0])},
        {"normalizer": 0.0},
        {"num_threads": 0},
        {"weight": np.ones(4)},
    ],
    ids=lambda given: next(iter(given)),
)
def test_nothing_is_written_in_place(given):
    given = arguments() | given
    given["out"] = given["logits"]
    expected = IndexError if given["targets"].max() > 4 else ValueError
    call_in_vain(gce.loss_and_grad, expected, "expected", given)


def test_a_late_fault_in_a_large_parallel_call_writes_nothing():
    logits = np.ones((40_000, 8), np.float32)
    targets = np.zeros(40_000, np.int64)
    targets[-1] = 8
    out = np.full_like(logits, 7)
    for given in (
        {"targets": targets, "gamma": 0.5},
        {"targets": targets * 0, "gamma": with_element(-1, 2.0, np.full(40_000, 0.5))},
    ):
        with pytest.raises((IndexError, ValueError), match=r"\[39999\]"):
            gce.loss_and_grad(logits, **given, out=out, num_threads=4)
        assert (out == 7).all()


# --- how a function is called ---------------------------------------------------------------------


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_wrong_calls(function):
    name = function.__name__
    required = ["logits", "targets", "gamma"][: 2 if name == "row_stats" else 3]
    good = [arguments()[argument] for argument in required]
    for missing in range(len(required)):
        with pytest.raises(
            TypeError, match=rf"^{name}\(\) missing required argument '{required[missing]}'$"
        ):
            function(*good[:missing])
    rest = dict(zip(required, good, strict=True))
    del rest["targets"]
    with pytest.raises(TypeError, match=rf"^{name}\(\) missing required argument 'targets'$"):
        function(**rest)
    counts = f"takes {len(good)} positional arguments but {len(good) + 2} were given"
    with pytest.raises(TypeError, match=rf"^{name}\(\) {counts}$"):
        function(*good, 0.0, 0.0)
    for argument in required:
        with pytest.raises(
            TypeError, match=rf"^{name}\(\) got multiple values for argument '{argument}'$"
        ):
            function(*good, **{argument: good[0]})
    for unknown in ("smoothing", "", "Axis", "axis ", "γ", "logit", "self"):
        with pytest.raises(
            TypeError, match=rf"^{name}\(\) got an unexpected keyword argument '{unknown}'$"
        ):
            function(*good, **{unknown: 1})


def test_options_of_the_gradient_are_not_those_of_the_loss():
    for option in ("out", "grad_output"):
        for function in (gce.loss, gce.row_stats):
            given = arguments() if function is gce.loss else dict(list(arguments().items())[:2])
            with pytest.raises(TypeError, match=f"unexpected keyword argument '{option}'"):
                function(**given, **{option: None})


class Faulty:
    """Whatever is asked of it, it fails."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise ZeroDivisionError("of its own")

    def __float__(self) -> float:
        raise ZeroDivisionError("of its own")

    def __str__(self) -> str:
        raise ZeroDivisionError("of its own")


@pytest.mark.parametrize(
    "name",
    [
        *("logits", "targets", "gamma", "threshold", "weight", "sample_weight", "grad_output"),
        *("value", "normalizer", "label_smoothing", "z_loss", "softcap"),
    ],
)
def test_an_objects_own_error_is_passed_on(name):
    with pytest.raises(ZeroDivisionError, match="of its own"):
        gce.loss_and_grad(**arguments() | {name: Faulty()})


@pytest.mark.parametrize("name", ["gamma", "threshold", "normalizer"])
@pytest.mark.parametrize("value", [10**400, -(10**400)], ids=["large", "negative"])
def test_integers_beyond_float64(name, value):
    with pytest.raises(ValueError, match=f"^{name} = .*, expected"):
        gce.loss(**arguments() | {name: value})


@pytest.mark.parametrize("name", ["reduction", "value"])
@pytest.mark.parametrize("value", [7, 10**5000], ids=["7", "5000"])
def test_a_word_that_is_an_integer(name, value):
    with pytest.raises(ValueError, match=f"^{name} = .*, expected"):
        gce.loss(**arguments() | {name: value})


class TooLarge:
    """A number beyond float64, and not even to be compared."""

    def __float__(self) -> float:
        raise OverflowError("too large")

    def __lt__(self, other: object) -> bool:
        raise ZeroDivisionError("of its own")


def test_a_number_that_is_too_large_and_cannot_be_compared():
    with pytest.raises(ZeroDivisionError, match="of its own"):
        gce.loss(**arguments() | {"normalizer": TooLarge()})


# Python itself refuses to print the last of them.
@pytest.mark.parametrize("name", ["axis", "shift", "ignore_index", "num_threads"])
@pytest.mark.parametrize("value", [2**63, -(10**30), 10**5000], ids=["63", "negative", "5000"])
def test_integers_beyond_64_bits(name, value):
    with pytest.raises(ValueError, match=f"^{name} = .*, expected a 64-bit integer$"):
        gce.loss(**arguments() | {name: value})


@pytest.mark.parametrize(
    "value", ["x", 1j, [1.0], np.array([1.0, 2.0]), np.array(b"x"), {}], ids=repr
)
def test_a_normalizer_that_is_no_number(value):
    with pytest.raises(TypeError, match=r"^normalizer has type \w+(\.\w+)?, expected"):
        gce.loss(**arguments() | {"normalizer": value})


# --- what the face should say and does not yet ----------------------------------------------------


@pytest.mark.parametrize(("name", "value"), [("reduction", "sum\0x"), ("value", "surrogate\0")])
def test_words_end_where_they_end(name, value):
    with pytest.raises(ValueError, match=f"^{name} = "):
        gce.loss(**arguments() | {name: value})


def test_words_that_are_not_unicode():
    with pytest.raises(ValueError, match=r"^reduction = "):
        gce.loss(**arguments() | {"reduction": "\ud800"})


def test_targets_above_int64_are_not_the_ignored_int64_max(isa):
    targets = np.array([0, 1, 2, 2**63 + 5], np.uint64)
    with pytest.raises(IndexError, match=f"^targets\\[3\\] = {2**63 + 5}, expected"):
        gce.loss(arguments()["logits"], targets, 0.5, ignore_index=2**63 - 1)


# --- threads ----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, -1, -(2**31)])
def test_set_num_threads_below_1(count):
    before = gce.get_num_threads()
    with pytest.raises(ValueError, match=f"^num_threads = {count}, expected at least 1$"):
        gce.set_num_threads(count)
    assert gce.get_num_threads() == before


@pytest.mark.parametrize("count", ["2", 2.5, None, [2]])
def test_set_num_threads_of_no_integer(count):
    before = gce.get_num_threads()
    with pytest.raises(TypeError, match="num_threads"):
        gce.set_num_threads(count)
    assert gce.get_num_threads() == before


def test_set_num_threads_beyond_int():
    with pytest.raises(ValueError, match=r"^num_threads = 1\d+, expected"):
        gce.set_num_threads(10**30)


# --- nothing crashes ------------------------------------------------------------------------------


def junk() -> list[Any]:
    """Values of every kind, right for some argument and wrong for most."""
    empty = np.empty((0, 5), np.float32)
    return [
        *(None, True, 0, 1, -1, 5, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, np.nan, np.inf, 1j),
        *("mean", "none", "surrogate", "", "x" * 10_000, "\0", b"sum", (), [], [[]], {}, object()),
        *(np.float16(1), np.int8(-100), np.uint64(2**64 - 1), np.array(0.5), np.array(3)),
        *(EYE, EYE[::-1], EYE.T, EYE[:, ::2], EYE[:0], EYE[:, :0], EYE.astype("f2"), EYE * np.nan),
        *(EYE.astype("f8"), EYE.astype("i8"), EYE.astype(object), EYE.astype(">f4"), empty),
        *(np.arange(4), np.arange(5), np.arange(4.0) / 4, np.arange(4, dtype="u1"), -np.arange(4)),
        *(np.full(4, np.nan), np.full(5, np.inf), np.full(4, -100), np.full(4, 2**62), np.zeros(1)),
        *(np.zeros((1,) * 32), np.zeros((1,) * 32, int), np.zeros((2, 0, 3)), CUBE, SQUARE),
        *(np.broadcast_to(np.float32(1), (4, 5)), np.broadcast_to(np.int64(1), 4)),
        *(as_strided(EYE.copy(), (4, 5), (4, 4)), as_strided(np.zeros(3), (10**9, 5), (0, 0))[:4]),
        *([0, 1, 2, 3], [[1.0, 2.0]] * 4, [0.1, 0.2, 0.3, 0.4], range(4), iter("abc"), Faulty()),
        *(np.ma.masked_array(EYE, EYE > 0), np.zeros(4, "M8[s]"), np.zeros(4, [("a", "i4")])),
        *(memoryview(b"abcd"), bytearray(4), slice(2), type, np.ndarray, ..., NotImplemented),
    ]


def calls_of_junk(seed: int, count: int) -> list[tuple[Any, dict[str, Any]]]:
    rng = np.random.default_rng(seed)
    values = junk()
    calls = []
    for _ in range(count):
        function = FUNCTIONS[rng.integers(3)]
        names = list(inspect.signature(function).parameters)
        given = (
            arguments() if function is not gce.row_stats else dict(list(arguments().items())[:2])
        )
        for _ in range(rng.integers(1, 4)):
            given[names[rng.integers(len(names))]] = values[rng.integers(len(values))]
        calls.append((function, given))
    return calls


def survive(seed: int, count: int) -> None:
    """Call with junk; every answer is a result or an error of the promised kinds."""
    errors = [error_of(*call) for call in calls_of_junk(seed, count)]
    raised = [error for error in errors if error is not None]
    # Faulty's own errors are passed on; all others are of the promised kinds.
    promised = {TypeError, ValueError, IndexError, ZeroDivisionError}
    assert {type(error) for error in raised} == promised
    assert all(str(error) for error in raised)
    assert 0.5 * count < len(raised) < count  # some junk is no junk


def error_of(function: Any, given: dict[str, Any]) -> Exception | None:
    try:
        function(**given)
    except Exception as error:
        return error
    return None


def test_junk_crashes_nothing():
    # In a process of its own, so that a crash fails this test and no more.
    path = os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [
            sys.executable,
            "-X",
            "faulthandler",
            "-c",
            "import test_errors as t; t.survive(1, 5_000)",
        ],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr[-4000:]) == (0, "")


def test_errors_leave_the_next_call_alone():
    want = gce.loss_and_grad(**arguments())
    for case in TABLE:
        given = arguments() | case.given
        with contextlib.suppress(TypeError, ValueError, IndexError):
            gce.loss_and_grad(**given)
        found = gce.loss_and_grad(**arguments())
        assert found[0] == want[0] and found[1].tobytes() == want[1].tobytes()


def test_calls_within_calls_end():
    # Python's own limit is more than the stack has room for.
    class Recursive:
        def __init__(self, call):
            self.call = call

        def __array__(self, dtype=None, copy=None):
            return np.array([self.call(self)])

        def __float__(self):
            return float(self.call(self))

    for call in (
        lambda z: gce.loss(z, [0], 0.1),
        lambda z: gce.loss([[1.0, 2.0]], [0], 0.1, z_loss=z),
        lambda z: gce.binary_loss(z, [0.0], 0.1),
    ):
        with pytest.raises(RecursionError, match="50 calls of gce within each other"):
            call(Recursive(call))
        assert gce.loss([[1.0, 2.0]], [0], 0.1) > 0


NUMBERLESS = """
import numpy as np, gce
from numpy._core._multiarray_umath import _get_sfloat_dtype
z, y, odd = np.array([[1.0, 2.0]]), np.array([0]), _get_sfloat_dtype()(1.0)
for again in range(2):
    for name, given in {
        "logits": {"logits": z.view(odd)},
        "gamma": {"gamma": np.array([0.9]).view(odd)},
        "weight": {"weight": np.ones(2).view(odd)},
        "targets": {"targets": z.view(odd)},
        "out": {"out": z.view(odd)},
    }.items():
        try:
            gce.loss_and_grad(**{"logits": z, "targets": y, "gamma": 0.9} | given)
        except TypeError as error:
            assert str(error).startswith(name), error
        else:
            raise AssertionError(f"{name} of {odd} was taken")
    import ml_dtypes
    gce.loss(z.astype(ml_dtypes.bfloat16), y, 0.9)
"""


def test_dtypes_without_a_type_number():
    # In a process that has not seen bfloat16 yet, which has one of its own.
    pytest.importorskip("ml_dtypes")
    umath = pytest.importorskip("numpy._core._multiarray_umath")  # numpy 2
    if not hasattr(umath, "_get_sfloat_dtype"):
        pytest.skip("this numpy has no such dtype")
    done = subprocess.run(
        [sys.executable, "-c", NUMBERLESS], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
