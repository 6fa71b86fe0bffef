"""A vocabulary that several processes share: each has the logits of a slice of the classes.

Each process finds the statistics of its slice (`partial_stats`), all of them are gathered and put
together (`merge`), and with the result each computes the loss, which is the same everywhere, and
its own slice of the gradient (`loss_and_grad`). What is sent are twelve numbers a row, as one
float64 array. ``examples/vocabulary_shards.py`` does it over ``torch.distributed``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gce._native import partial_stats
from gce._native import sharded_loss_and_grad as loss_and_grad

__all__ = ["loss_and_grad", "merge", "partial_stats"]

Doubles: TypeAlias = NDArray[np.float64]

# gce_shard_field of native/include/gce/gce.h
FIELDS = (
    *("maximum", "shift", "reference", "sum_high", "sum_low"),
    *("target_logit", "argmax", "spread_high", "spread_low", "weight_sum"),
    *("first_class", "classes"),
)

# Log2E and ExponentRange::kLargestLogit of native/core/kernels/math.inc.h
LOG2E = np.log2(np.e)
LOG2E_OF_FLOATS = np.float64(np.float32(LOG2E))
LARGEST_UNSHIFTED_DOUBLE = 1048576.0


@np.errstate(all="ignore")
def merge(parts: Iterable[ArrayLike]) -> Doubles:
    """Statistics of the whole from those of its slices.

    Parameters
    ----------
    parts : iterable of array of float64
        From `partial_stats` for the same rows and options, in the order of the classes; each of the
        targets' shape and 12 more.

    Returns
    -------
    array of float64
        The same for all classes.

    Raises
    ------
    TypeError
        A part that is no array of numbers.
    ValueError
        No parts, parts of other or unequal shapes, or slices that do not follow each other.

    Notes
    -----
    A row of slice i has ``S_i = Σ_v 2^((z_v - shift_i) log2(e) - K_i)``. K is an integer, and for
    logits of usual size there is no shift: then bringing all sums to the largest K changes no digit
    of theirs. They are added in the order of the slices, as the core adds what it sums. With m
    the largest of the maxima, label smoothing's ``Σ_v c_v (m_i - z_v)`` gets ``(m - m_i) Σ_v c_v``
    more.

    Examples
    --------
    >>> import numpy as np
    >>> from gce import shards
    >>> logits, targets = np.array([[2.0, 0.0, -1.0, 1.0]]), np.array([3])
    >>> parts = [
    ...     shards.partial_stats(logits[:, i : i + 2], targets, first_class=i, num_classes=4)
    ...     for i in (0, 2)
    ... ]
    >>> stats = shards.merge(parts)
    >>> loss, grad = shards.loss_and_grad(
    ...     logits[:, 2:], targets, 0.0, stats, first_class=2, num_classes=4
    ... )
    >>> print(loss.round(4), grad.round(4))
    1.4402 [[ 0.0321 -0.7631]]
    """
    try:
        iterator = iter(parts)
    except TypeError:
        text = f"parts has type {type(parts).__name__}, expected an iterable of arrays"
        raise TypeError(text) from None
    arrays = [_doubles(f"parts[{i}]", part) for i, part in enumerate(iterator)]
    shapes = {array.shape for array in arrays}
    if len(shapes) != 1 or not next(iter(shapes)) or arrays[0].shape[-1] != len(FIELDS):
        found = ", ".join(map(str, sorted(shapes))) or "none"
        raise ValueError(
            f"parts have shapes {found}, expected of all that of targets and {len(FIELDS)} more"
        )
    part = dict(zip(FIELDS, np.moveaxis(np.stack(arrays), -1, 0), strict=True))
    _check_order(part["first_class"], part["first_class"] + part["classes"])
    is_masked = np.isneginf(part["maximum"])  # all of the slice's classes are

    maximum = np.max(part["maximum"], axis=0)  # NaN if one is
    lead = np.argmax(part["maximum"], axis=0)[np.newaxis]  # the first of equals, or the first NaN
    merged = {"maximum": maximum, "argmax": np.take_along_axis(part["argmax"], lead, 0)[0]}
    merged["target_logit"] = np.max(part["target_logit"], axis=0)
    merged["first_class"] = part["first_class"][0]
    merged["classes"] = np.sum(part["classes"], axis=0)

    merged["shift"] = np.take_along_axis(part["shift"], lead, 0)[0]
    largest = np.max(np.where(is_masked, -np.inf, part["reference"]), axis=0)
    of_lead = np.take_along_axis(part["reference"], lead, 0)[0]
    unshifted = np.all(is_masked | (part["shift"] == 0.0), axis=0)
    merged["reference"] = np.where(unshifted & np.isfinite(largest), largest, of_lead)
    scale = _exponent_between(
        part["shift"], merged["shift"], part["reference"] - merged["reference"]
    )
    scale = np.where(is_masked, 0.0, scale)
    sums = [
        np.where(is_masked, 0.0, _times_power_of_2(part[name], scale))
        for name in ("sum_high", "sum_low")
    ]
    high, low = _add_in_order(*sums)
    none = np.all(is_masked, axis=0)
    merged["sum_high"], merged["sum_low"] = np.where(none, np.nan, high), low

    weight_sum = part["weight_sum"]
    moved = weight_sum * (maximum - part["maximum"])
    moved = np.where(is_masked | (weight_sum == 0.0), 0.0, moved)  # the masked are from 0 on
    spread_high, spread_low = _add_in_order(part["spread_high"] + moved, part["spread_low"])
    merged["spread_high"] = spread_high
    merged["spread_low"] = np.where(np.isfinite(spread_high), spread_low, 0.0)
    merged["weight_sum"] = np.sum(weight_sum, axis=0)
    return np.stack([merged[name] for name in FIELDS], axis=-1)


def _doubles(name: str, part: ArrayLike) -> Doubles:
    """Return an array of float64, or say which part is none."""
    try:
        return np.asarray(part, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{name} is no array of float64: {error}") from error


def _exponent_between(shift: Doubles, to: Doubles, references: Doubles) -> Doubles:
    """Return ``(shift - to) log2(e) + references``, by the log2(e) that the core takes.

    Whether logits were floats only matters where a slice that is shifted meets one that is not and
    is nearly as large: then the shift tells. Products are exact, or small, as the sum may be.
    """
    size = np.maximum(np.abs(shift), np.abs(to))
    rest = np.where(size < LARGEST_UNSHIFTED_DOUBLE, 0.0, LOG2E - LOG2E_OF_FLOATS)
    distance = np.clip(shift - to, -1e300, 1e300)  # which no product of is infinite
    whole = np.round(distance)
    part = distance - whole
    exponent: Doubles = (whole * LOG2E_OF_FLOATS + references) + (
        whole * rest + part * (LOG2E_OF_FLOATS + rest)
    )
    return exponent


def _check_order(begins: Doubles, ends: Doubles) -> None:
    """Each slice begins where the one before ends."""
    wrong = np.argwhere(begins[1:] != ends[:-1])
    if len(wrong):
        i, *row = map(int, wrong[0])
        found, expected = begins[(i + 1, *row)], ends[(i, *row)]
        raise ValueError(
            f"parts[{i + 1}] begins with class {found:.16g}, expected {expected:.16g}, where "
            f"parts[{i}] ends: each slice once, in the order of the classes"
        )


def _times_power_of_2(x: Doubles, exponent: Doubles) -> Doubles:
    """``x 2^exponent``, exactly where the exponent is an integer."""
    whole = np.round(exponent)
    bounded = np.clip(np.nan_to_num(whole), -5000, 5000).astype(np.int32)
    result: Doubles = np.ldexp(x * np.exp2(exponent - whole), bounded)
    return result


def _add_in_order(high: Doubles, low: Doubles) -> tuple[Doubles, Doubles]:
    """Sum of pairs high + low along the first axis: Knuth's two-sum, as the core adds segments."""
    total_high, total_low = np.zeros(high.shape[1:]), np.zeros(high.shape[1:])
    for x, rest in zip(high, low, strict=True):
        total = total_high + x
        back = total - total_high
        total_low = total_low + ((total_high - (total - back)) + (x - back)) + rest
        total_high = total
    return total_high, total_low
