"""Arrays that receive the gradient: which are refused, and that the others get it and no more."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import gce
from faults import arguments, call_in_vain

IN_PART = "^out overlaps logits in part, expected either logits itself or memory of its own$"
SHARED = "^out has elements that may share memory, expected each to have its own$"


def of_same_memory(dtype: str = "float32") -> np.ndarray:
    return np.linspace(-1, 1, 60, dtype=dtype)


def grid(start: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda memory: memory[start : start + 20].reshape(4, 5)


OVERLAPS = {
    "one element on": (grid(0), grid(1)),
    "one element back": (grid(1), grid(0)),
    "one row on": (grid(0), grid(5)),
    "the last element": (grid(0), grid(19)),
    "rows reversed": (grid(0), lambda m: grid(0)(m)[::-1]),
    "classes reversed": (grid(0), lambda m: grid(0)(m)[:, ::-1]),
    "both reversed": (grid(0), lambda m: grid(0)(m)[::-1, ::-1]),
    "another order": (lambda m: m[:16].reshape(4, 4), lambda m: m[:16].reshape(4, 4).T),
    "one byte on": (grid(0), lambda m: m.view("u1")[1:81].view("f4").reshape(4, 5)),
    "gaps that meet": (lambda m: m[:40].reshape(4, 10)[:, ::2], lambda m: grid(0)(m)),
    "one shared corner": (
        lambda m: m[:40].reshape(4, 10)[:, :5],
        lambda m: as_strided(m[4:], (4, 5), (40, 4)),
    ),
    "broadcast logits": (lambda m: np.broadcast_to(m[:5], (4, 5)), grid(0)),
}


@pytest.mark.parametrize("name", OVERLAPS)
def test_out_that_overlaps_logits_in_part(name):
    of_logits, of_out = OVERLAPS[name]
    memory = of_same_memory()
    logits = of_logits(memory)
    given = {"logits": logits, "targets": np.zeros(4, int), "gamma": 0.5, "out": of_out(memory)}
    assert np.shares_memory(given["logits"], given["out"])
    call_in_vain(gce.loss_and_grad, ValueError, IN_PART, given)


APART = {
    "neighbours": (grid(0), grid(20)),
    "neighbours in front": (grid(20), grid(0)),
    "columns side by side": (
        lambda m: m[:40].reshape(4, 10)[:, :5],
        lambda m: m[:40].reshape(4, 10)[:, 5:],
    ),
    "every other column": (
        lambda m: m[:40].reshape(4, 10)[:, ::2],
        lambda m: m[:40].reshape(4, 10)[:, 1::2],
    ),
    "every other column, reversed": (
        lambda m: m[:40].reshape(4, 10)[:, ::2],
        lambda m: m[:40].reshape(4, 10)[::-1, ::-2],
    ),
    "every other row": (
        lambda m: m[:40].reshape(8, 5)[::2],
        lambda m: m[:40].reshape(8, 5)[1::2],
    ),
    "every third, of which one": (
        lambda m: m.reshape(4, 5, 3)[:, :, 0],
        lambda m: m.reshape(4, 5, 3)[:, :, 2],
    ),
    "itself": (grid(0), grid(0)),
    "itself, with gaps": (
        lambda m: m.reshape(4, 15)[:, ::3],
        lambda m: m.reshape(4, 15)[:, ::3],
    ),
    "itself, backwards": (lambda m: grid(0)(m)[::-1], lambda m: grid(0)(m)[::-1]),
}


@pytest.mark.parametrize("name", APART)
def test_out_that_does_not_overlap(isa, name):
    of_logits, of_out = APART[name]
    memory, targets = of_same_memory(), np.array([0, 1, 2, 3])
    logits, out = of_logits(memory), of_out(memory)
    want_loss, want_grad = gce.loss_and_grad(logits.copy(), targets, 0.5)
    elsewhere = np.ones(60, bool)
    of_out(elsewhere)[...] = False
    before = memory.copy()
    loss, grad = gce.loss_and_grad(logits, targets, 0.5, out=out)
    assert grad is out and loss == want_loss
    np.testing.assert_array_equal(out, want_grad)
    np.testing.assert_array_equal(memory[elsewhere], before[elsewhere])


@pytest.mark.parametrize(
    "strides",
    [(0, 8), (8, 0), (0, 0), (8, 8), (16, 8), (32, 8), (8, 24), (-8, 8), (4, 32), (39, 8)],
    ids=str,
)
def test_out_that_overlaps_itself(strides):
    memory = np.zeros(60)
    given = arguments() | {"out": as_strided(memory[8:], (4, 5), strides)}
    given["logits"] = given["logits"].astype(np.float64)
    with pytest.raises(ValueError, match=SHARED):
        gce.loss_and_grad(**given)
    assert not memory.any()


@pytest.mark.parametrize("strides", [(40, 8), (8, 32), (-40, 8), (48, -8), (41, 8), (8, -32)])
def test_out_of_odd_strides_that_does_not_overlap_itself(strides):
    memory = np.zeros(80)
    given = arguments() | {"out": as_strided(memory[35:], (4, 5), strides)}
    given["logits"] = given["logits"].astype(np.float64)
    grad = gce.loss_and_grad(**given)[1]
    assert grad is given["out"]
    del given["out"]
    np.testing.assert_array_equal(grad, gce.loss_and_grad(**given)[1])


def test_out_of_one_row_may_have_any_stride():
    # An axis of length 1 is never stepped along: numpy leaves anything in its stride.
    out = as_strided(np.zeros(5, np.float32), (1, 5), (0, 4))
    grad = gce.loss_and_grad(np.ones((1, 5), np.float32), [2], 0.5, out=out)[1]
    assert grad is out and grad.any()


@pytest.mark.parametrize(
    ("name", "at", "reduction"),
    [
        ("targets", slice(0, 4), "mean"),
        ("gamma", slice(0, 4), "mean"),
        ("gamma", 19, "mean"),
        ("threshold", slice(16, 20), "mean"),
        ("sample_weight", slice(19, 23), "mean"),
        ("weight", slice(19, 24), "mean"),
        ("grad_output", slice(0, 8, 2), "none"),
        ("grad_output", 19, "mean"),
    ],
)
def test_out_that_overlaps_another_argument(name, at, reduction):
    memory = np.zeros(40)
    given = arguments() | {"reduction": reduction, "out": memory[:20].reshape(4, 5)}
    given["logits"] = given["logits"].astype(np.float64)
    given[name] = memory.view(np.int64 if name == "targets" else np.float64)[at]
    if isinstance(at, int):
        given[name] = memory[at : at + 1].reshape(())
    call_in_vain(
        gce.loss_and_grad,
        ValueError,
        f"^out overlaps {name}, expected memory of its own$",
        given,
    )


def test_out_that_overlaps_nothing_though_its_columns_interleave_with_gamma():
    memory = np.full((4, 6), 0.5)
    out, gamma = memory[:, :5], memory[:, 5]
    logits = arguments()["logits"].astype(np.float64)
    want = gce.loss_and_grad(logits, [0, 1, 2, 3], 0.5)[1]
    np.testing.assert_array_equal(gce.loss_and_grad(logits, [0, 1, 2, 3], gamma, out=out)[1], want)
    assert (gamma == 0.5).all()


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (np.ones((4, 4), "f4"), ValueError, "out has shape (4, 4), expected (4, 5), the shape of"),
        (np.ones((5, 4), "f4"), ValueError, "out has shape (5, 4), expected (4, 5), the shape of"),
        (np.ones(20, "f4"), ValueError, "out has shape (20,), expected (4, 5), the shape of"),
        (np.ones((4, 5, 1), "f4"), ValueError, "out has shape (4, 5, 1), expected (4, 5), the"),
        (np.array(1, "f4"), ValueError, "out has shape (), expected (4, 5), the shape of logits"),
        (
            np.ones((4, 5)),
            TypeError,
            "out has dtype float64, expected float32, the dtype of logits",
        ),
        (np.ones((4, 5), "f2"), TypeError, "out has dtype float16, expected float32, the dtype of"),
        (np.ones((4, 5), "i4"), TypeError, "out has dtype int32, expected float32, the dtype of"),
        (np.ones((4, 5), ">f4"), TypeError, "out has dtype >f4, expected the dtype of logits"),
        (np.ones((4, 5), "c8"), TypeError, "out has dtype complex64, expected the dtype of logits"),
        (np.ones((4, 5), object), TypeError, "out has dtype object, expected the dtype of logits"),
    ],
)
def test_out_of_another_shape_or_dtype(out, error, message):
    call_in_vain(gce.loss_and_grad, error, f"^{re.escape(message)}", arguments() | {"out": out})


def test_out_that_is_read_only():
    given = arguments() | {"out": np.ones((4, 5), np.float32)}
    given["out"].flags.writeable = False
    message = "^out is read-only, expected a writeable array$"
    call_in_vain(gce.loss_and_grad, ValueError, message, given)
    given["logits"] = given["out"]  # nor in place
    call_in_vain(gce.loss_and_grad, ValueError, message, given)
    given["out"] = np.frombuffer(bytes(80), np.float32).reshape(4, 5)
    call_in_vain(gce.loss_and_grad, ValueError, message, given)
