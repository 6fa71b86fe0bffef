"""What is promised of every call, whatever its arguments: `check` raises `BrokenPromiseError`."""

from __future__ import annotations

import re
import sys
from typing import Any

import numpy as np

from gce import reference
from reliability.fuzz.arrays import Snapshot
from reliability.fuzz.calls import Call
from reliability.fuzz.problems import FLOATS, POSITIONAL

# What a call may end with, beside an error of the argument's own.
ALLOWED = (TypeError, ValueError, IndexError, MemoryError)
OUTCOMES = ("ok", *(error.__name__ for error in ALLOWED), "its own")


class BrokenPromiseError(AssertionError):
    """A finding."""


def check(call: Call) -> str:
    """How the call ended: "ok", or the name of its error."""
    counts = references(call)
    before = Snapshot(call.arrays())
    outcome, results = outcome_of(call, before)
    if results is not None and not call.meddles():
        check_same_again(call, before, results)
        if call.is_valid:
            check_values(call, results)
    del results, before
    if references(call) != counts and not call.meddles():
        raise BrokenPromiseError(f"references before {counts}, after {references(call)}")
    return outcome


def references(call: Call) -> list[int]:
    """How many there are to each argument, without those that the interpreter shares."""
    shared = (type(None), bool, int, float, str, bytes, tuple, type)
    return [sys.getrefcount(v) for v in call.values() if not isinstance(v, shared)]


def outcome_of(call: Call, before: Snapshot) -> tuple[str, list[Any] | None]:
    """Its name, and copies of the results; an error may have changed nothing."""
    # numpy converts what a ufunc is given.
    own = call.errors() if call.parameters else (*call.errors(), OverflowError)
    try:
        results = call()
    except own:
        outcome = "its own"
    except ALLOWED as error:
        # Of numpy's classes of errors, some are several of these.
        outcome = next(kind.__name__ for kind in ALLOWED if isinstance(error, kind))
        check_error(call, error)
    else:
        flat = results if isinstance(results, tuple) else (results,)
        flat = tuple(x for one in flat for x in (one if isinstance(one, tuple) else (one,)))
        check_inputs(call, before)
        return "ok", [np.array(one) for one in flat]
    if before.changed() and not call.meddles():
        raise BrokenPromiseError(f"{outcome} after memory of an argument was written")
    return outcome, None


def check_error(call: Call, error: BaseException) -> None:
    """A valid call has none, and others say what was wrong."""
    if call.is_valid:
        raise BrokenPromiseError(f"{call.name} refused valid arguments: {error!r}") from error
    if isinstance(error, MemoryError) or call.meddles() or not call.parameters:
        return  # numpy's own words, or the argument's
    names = "|".join(call.parameters)
    if not re.search(rf"^({names})\b|'({names})'|^{call.name}\(\)", str(error)):
        raise BrokenPromiseError(f"{error!r} names no argument of {call.name}") from error


def check_inputs(call: Call, before: Snapshot) -> None:
    """Nothing but out is written."""
    out = call.keywords.get("out")
    outs = [one for one in (out if isinstance(out, tuple) else (out,)) if one is not None]
    for owner in before.changed():
        if not call.meddles() and not any(np.may_share_memory(owner, out) for out in outs):
            raise BrokenPromiseError("an input was written")
    for one in outs:
        index = [i for i, owner in enumerate(before.owners) if np.may_share_memory(owner, one)]
        if index and not call.meddles():
            check_gaps(one, before, index[0])


def check_gaps(out: Any, before: Snapshot, index: int) -> None:
    """The memory around and between out's elements is as it was."""
    owner = before.owners[index]
    if owner is out or not owner.flags.c_contiguous or owner.size == 0:
        return
    was = np.frombuffer(bytearray(before.bytes[index]), np.uint8)
    start = out.__array_interface__["data"][0] - owner.__array_interface__["data"][0]
    view = np.ndarray(out.shape, out.dtype, was.data, start, out.strides)
    view[...] = out
    if was.tobytes() != owner.tobytes():
        raise BrokenPromiseError("memory between the elements of out was written")


def check_same_again(call: Call, before: Snapshot, results: list[Any]) -> None:
    """The same bits, with another number of threads where that can be said."""
    before.restore()
    more = {"num_threads": 3} if call.problem is not None and call.is_valid else {}
    try:
        again = call(**more)
    except (ValueError, TypeError) as error:
        if before.changed():  # an array that could not be restored, or an iterator at its end
            return
        if call.is_valid:
            raise BrokenPromiseError(f"refused the second time: {error!r}") from error
        return
    flat = again if isinstance(again, tuple) else (again,)
    flat = tuple(x for one in flat for x in (one if isinstance(one, tuple) else (one,)))
    for one, other in zip(results, flat, strict=True):
        other = np.asarray(other)
        if one.dtype != other.dtype or one.tobytes() != other.tobytes():
            raise BrokenPromiseError(f"{one} the first time, {other} the second")


# --- values ---------------------------------------------------------------------------------------

# Of the loss relative to it, and of anything relative to the largest that it could be. Those of
# float32 are what is promised; of float64, where the reference has errors of its own. Gradients
# of 16 bits are rounded to them.
TOLERANCES = {"float32": 2e-6, "float64": 1e-12, "float16": 2e-3, "bfloat16": 1e-2}


def check_values(call: Call, results: list[Any]) -> None:
    """Agreement with the reference where inputs are ordinary, so that its own error is small."""
    problem = call.problem
    if problem is None or not hasattr(reference, call.name):
        return
    given = dict(zip(POSITIONAL[call.name], call.positional, strict=False)) | call.keywords
    if given.get("out") is given["logits"] or not is_ordinary(given):
        return
    for name in ("out", "return_stats", "num_threads"):
        given.pop(name, None)
    if given.get("ignore_index", 0) is None:
        given["ignore_index"] = -(2**62)
    given = {k: np.asarray(v) if isinstance(v, np.ndarray) else v for k, v in given.items()}
    expected = getattr(reference, call.name)(**given)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for name, one, other in zip(NAMES[call.name], results, expected, strict=False):
        dtype = one.dtype.name if name == "grad" else problem.dtype.name
        dtype = dtype if name != "loss" or dtype in ("float32", "float64") else "float32"
        compare(call, name, one, np.asarray(other), TOLERANCES.get(dtype, 2e-6))


NAMES = {
    "loss": ("loss",),
    "loss_and_grad": ("loss", "grad"),
    "loss_gamma_grad": ("gamma's gradient",),
    "hvp": ("grad",),
    "row_stats": ("target_log_prob", "logsumexp"),
    "binary_loss": ("loss",),
    "binary_loss_and_grad": ("loss", "grad"),
}


def is_ordinary(given: dict[str, Any]) -> bool:
    """Whether no logit is large, masked or NaN."""
    logits = given["logits"]
    if logits.dtype not in FLOATS or logits.size == 0:
        return False
    if given.get("softcap") == 1e-3 or given.get("normalizer") == 1e-3:
        return False
    return bool(np.all(np.abs(logits.astype(np.float64)) < 100.0))


def compare(call: Call, name: str, one: Any, other: Any, tolerance: float) -> None:
    """Fail where they are further apart than that, relative to the largest."""
    scale = np.max(np.abs(other), initial=0.0) if other.size else 0.0
    # A gradient is as exact as its weight, which is 1 at most, and so are sums of both signs.
    limit = tolerance * max(scale, 1.0 if name != "loss" else 0.2) * 4.0
    with np.errstate(invalid="ignore"):
        apart = np.abs(one.astype(np.float64) - other)
    if one.shape != other.shape or not np.all(apart <= limit):
        raise BrokenPromiseError(f"{name} of {call.name}: {one}, expected {other} within {limit}")
