"""Values in place of valid ones: nearly right, of wrong kinds, and objects that do harm."""

from __future__ import annotations

import datetime
import fractions
from collections.abc import Callable
from typing import Any

import numpy as np

from reliability.fuzz.arrays import memory
from reliability.fuzz.choices import Choices


class HostileError(Exception):
    """What no library expects."""


ERRORS: tuple[type[BaseException], ...] = (
    *(HostileError, TypeError, ValueError, OverflowError, RuntimeError, KeyError, MemoryError),
    *(StopIteration, KeyboardInterrupt),
)
TURNED = (slice(None, None, -1),)


class Raising:
    """Answers any attempt to convert it with an error."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def fail(self, *_: object, **__: object) -> Any:
        """Raise it."""
        raise self.error("hostile")

    __array__ = __float__ = __index__ = __str__ = __repr__ = __bool__ = fail
    __len__ = __getitem__ = __lt__ = fail


class Meddling:
    """Does something to an array of the same call while it is converted to a number."""

    def __init__(self, do: Callable[[], object], value: Any) -> None:
        self.do, self.value = do, value

    def __array__(self, *_: object, **__: object) -> Any:
        """Meddle, then be what it stands for."""
        self.do()
        return np.asarray(self.value)

    def __float__(self) -> float:
        self.do()
        return float(self.value)

    def __index__(self) -> int:
        self.do()
        return int(self.value)

    def __str__(self) -> str:
        self.do()
        return str(self.value)


def meddle(array: Any, how: int) -> None:
    """Give the array another shape, dtype or memory, or lock it."""
    try:
        if how == 0:
            array.flags.writeable = False
        elif how == 1:
            array.shape = (1, array.size)
        elif how == 2:
            array.dtype = "V" + str(array.dtype.itemsize)
        elif how == 3:
            array.dtype = array.dtype.newbyteorder()
        elif memory(array) is array and array.flags.owndata:
            array.resize((array.size + 1000,), refcheck=False)
    except (ValueError, AttributeError, TypeError):
        pass  # not of this array


DTYPES = (
    *("f4", "f8", "f2", ">f4", ">f8", ">i8", "g", "c8", "c16", "?", "i8", "u8", "i1", "O", "U3"),
    *("S2", "V4", "M8[s]", "m8[D]", [("a", "f4"), ("b", "i4")], "(2,)f4"),
)
OBJECTS: tuple[Callable[[], Any], ...] = (
    lambda: None,
    lambda: float("nan"),
    lambda: float("inf"),
    lambda: -0.5,
    lambda: 1.5,
    lambda: -1,
    lambda: 2**31,
    lambda: 2**63,
    lambda: -(2**63),
    lambda: 10**400,
    lambda: -(10**5000),
    lambda: True,
    lambda: 1j,
    lambda: "mean",
    lambda: "nonsense\0of \ud800",
    lambda: b"mean",
    list,
    lambda: [[1, 2], [3]],
    lambda: [None, "a"],
    dict,
    lambda: object(),
    lambda: object,
    lambda: np.float16(0.5),
    lambda: np.int8(-1),
    lambda: np.str_("sum"),
    lambda: np.datetime64("2020"),
    lambda: np.longdouble("1e4000"),
    lambda: np.zeros(0),
    lambda: np.array(None),
    lambda: np.zeros((1,) * 64),
    lambda: np.broadcast_to(np.float32(0), (2**15,) * 3),
    lambda: np.ma.masked_array([1.0, 2.0], [True, False]),
    lambda: np.matrix([[1.0, 2.0]]) if hasattr(np, "matrix") else None,
    lambda: np.recarray((2,), dtype=[("a", "f4")]),
    lambda: memoryview(b"12345678"),
    lambda: fractions.Fraction(1, 2),
    lambda: datetime.date(2020, 1, 1),
    lambda: range(3),
    lambda: iter([1.0]),
)


def nearly(choices: Choices, value: Any) -> Any:
    """An array like this one but for its dtype, shape, or a few of its numbers, if numpy has it."""
    try:
        return changed(choices, value)
    except (TypeError, ValueError, OverflowError, IndexError):
        return value


def changed(choices: Choices, value: Any) -> Any:
    """That array; or numpy's error that there is none."""
    array = np.asarray(value)
    if array.size > 1 << 20:  # of strides 0
        return array
    how = choices.below(8)
    if how == 0:
        return array.astype(choices.one(DTYPES))
    if how == 1:
        return array.astype(array.dtype.newbyteorder())
    if how == 2:
        return array[np.newaxis]
    if how == 3:
        return array.reshape(-1)
    if how == 4 and array.ndim:
        return array[1:]
    if how == 5 and array.ndim:
        return np.concatenate([array, array[:1]])
    if how == 6:
        return array.tolist()
    other = array.copy()
    if other.size and other.dtype.kind in "fiu":
        integers = (-1, 127, -100, 2**15, -(2**15)) if other.dtype.kind != "u" else (127, 255)
        numbers = (np.nan, np.inf, -np.inf, -1.0, 2.0)
        at = np.unravel_index(choices.below(other.size), other.shape)
        new = choices.one(numbers if other.dtype.kind == "f" else integers)
        info = None if other.dtype.kind == "f" else np.iinfo(other.dtype)
        other[at] = new if info is None else min(max(int(new), info.min), info.max)
    return other


def overlapping(choices: Choices, logits: Any) -> Any:
    """An out that shares memory with the logits in a way that it may not."""
    if logits.ndim == 0 or logits.size < 2:
        return logits
    shared = (
        lambda: logits[TURNED * logits.ndim],
        lambda: logits.T,
        lambda: logits.reshape(-1).view(np.uint8)[1:-7].view(np.uint8),
        lambda: np.broadcast_to(logits[:1], logits.shape),
        lambda: np.lib.stride_tricks.as_strided(logits, strides=(0,) * logits.ndim),
    )
    try:
        return choices.one(shared)()
    except (ValueError, TypeError):
        return logits[:1]


def replacement(choices: Choices, name: str, arguments: dict[str, Any]) -> Any:
    """What stands for this argument."""
    how = choices.below(10)
    value = arguments.get(name)
    arrays = [given for given in arguments.values() if isinstance(given, np.ndarray)]
    if name == "out" and how < 5 and isinstance(arguments.get("logits"), np.ndarray):
        return overlapping(choices, arguments["logits"])
    if how < 5 and isinstance(value, np.ndarray | float | int | list):
        return nearly(choices, value)
    if how == 8:
        return Raising(choices.one(ERRORS))
    if how == 9 and arrays:
        array, harm = choices.one(arrays), choices.below(5)
        shared = [other for other in arrays if np.may_share_memory(other, array)]
        if harm < 4 or len(shared) == 1:
            return Meddling(lambda: meddle(array, harm), 1 if value is None else value)
    return choices.one(OBJECTS)()
