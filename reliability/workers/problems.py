"""Arguments of calls: problems with any options, and layouts of the same numbers."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401, numpy then knows bfloat16
import numpy as np

Array = Any

DTYPES = ("float16", "bfloat16", "float32", "float64")
GAMMAS = (0.0, 1e-7, 0.1, 0.5, 0.8, 1.0)
SHAPES = ((1,), (7,), (1, 1), (3, 7), (64, 33), (5, 4, 10), (2, 3, 2, 65), (9, 1100))
# On both sides of 131,072 logits, from which on a call uses the pool of threads.
LARGE_SHAPES = ((1300, 100), (1320, 100))


class Problem(NamedTuple):
    """Of a function of rows; the classes are in the last axis."""

    logits: Array
    targets: Array
    gamma: Any
    options: dict[str, Any]


def numpy_of(chooser: random.Random) -> np.random.Generator:
    return np.random.default_rng(chooser.getrandbits(32))


def problem(chooser: random.Random, dtype: str = "", shape: tuple[int, ...] = ()) -> Problem:
    """Logits, some with masked classes; targets, some ignored, or probabilities; any options."""
    rng = numpy_of(chooser)
    shape = shape or chooser.choice(SHAPES * 3 + LARGE_SHAPES)
    rows, classes = shape[:-1], shape[-1]
    logits = rng.normal(size=shape) * chooser.choice((0.1, 1.0, 5.0))
    targets = rng.integers(0, classes, rows)
    is_masked = chooser.random() < 0.2
    if is_masked:  # but no target: that loss is infinite at γ = 0
        mask = rng.random(shape) < 0.1
        np.put_along_axis(mask, targets[..., np.newaxis], False, -1)
        logits[mask] = -np.inf
    if chooser.random() < 0.3:
        targets = np.where(rng.random(rows) < 0.2, -100, targets)
    targets = targets.astype(chooser.choice(("int16", "int32", "int64")))
    if chooser.random() < 0.15 and not is_masked:
        targets = rng.dirichlet(np.ones(classes), rows).astype("float32")
    gamma = rng.random(rows) if chooser.random() < 0.3 else chooser.choice(GAMMAS)
    logits = logits.astype(np.dtype(dtype or chooser.choice(DTYPES)))
    chosen = options(chooser, rng, shape)
    if is_masked:
        chosen.pop("label_smoothing", None)  # it too is infinite
    return Problem(logits, targets, gamma, chosen)


def options(
    chooser: random.Random, rng: np.random.Generator, shape: tuple[int, ...]
) -> dict[str, Any]:
    """A few of the options that functions of rows have."""
    rows = shape[:-1]
    reduction = chooser.choice(("none", "mean", "sum"))
    per_row = reduction == "none" and chooser.random() < 0.5
    offered = {
        "threshold": chooser.choice((0.2, 1.0, rng.random(rows))),
        "value": "surrogate",
        "weight": rng.uniform(0.5, 2.0, shape[-1]).astype(chooser.choice(("f4", "f8"))),
        "sample_weight": rng.uniform(0.5, 2.0, rows),
        "label_smoothing": 0.1,
        "z_loss": 1e-3,
        "softcap": 30.0,
        "normalizer": 1.0 + np.prod(rows),
        "grad_output": rng.uniform(-2.0, 2.0, rows) if per_row else 1.5,
        "shift": 1,
    }
    if reduction != "mean":
        del offered["normalizer"]
    if len(shape) == 1:
        del offered["shift"]  # one row has no axis to shift along
    return {"reduction": reduction} | {
        name: option for name, option in offered.items() if chooser.random() < 0.25
    }


# --- layouts --------------------------------------------------------------------------------------


def relaid(chooser: random.Random, array: Any) -> Any:
    """The same numbers elsewhere: strided, backwards, unaligned, read-only."""
    if not isinstance(array, np.ndarray) or array.ndim == 0:
        return array
    way = chooser.choice(("as it is", "strided", "backwards", "unaligned", "read-only"))
    if way == "as it is":
        return array
    if way == "backwards":
        turned = (slice(None, None, -1),) * array.ndim
        return array[turned].copy()[turned]
    if way == "strided":
        moved = np.empty((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)[..., ::2]
    elif way == "unaligned":
        memory = np.empty(array.nbytes + 1, np.uint8)
        moved = memory[1:].view(array.dtype).reshape(array.shape)
    else:
        moved = np.empty_like(array)
    moved[...] = array
    moved.flags.writeable = way != "read-only"
    return moved


def along(array: Array, axis: int) -> Array:
    """The classes in another axis, in memory too."""
    return np.ascontiguousarray(np.moveaxis(array, -1, axis))
