"""What is measured: named sizes, and the work done on each.

This file imports nothing of gce: the benchmarks over commits load it alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "BACKWARD", "BINARY", "CAP", "CASES", "DTYPES", "FORMS", "FORWARD", "GAMMA", "GAMMAS",
    "IN_PLACE", "PLAIN", "PROBABILITIES", "PRODUCT", "SOFTCAP", "WEIGHTS", "WORKS", "Case", "Data",
]  # fmt: skip

GAMMA = 0.5
IGNORED = -100

FORWARD, BACKWARD, IN_PLACE = WORKS = "forward", "backward", "in-place"
SHORT = {FORWARD: "fwd", BACKWARD: "fwd+bwd", IN_PLACE: "in place"}
DTYPES = {"float32": "", "float16": "f16", "bfloat16": "bf16", "float64": "f64"}
ITEMSIZE = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8}

# What a case asks for beyond one gamma for all rows.
PLAIN, GAMMAS, WEIGHTS = "", "gamma per row", "weights and ignored rows"
PROBABILITIES, SOFTCAP = "probability targets", "softcap"
# Of other functions: the Hessian's product with a vector, whose loss is 0 here; the sigmoid form.
PRODUCT, BINARY = "hvp", "binary"
FORMS = (PROBABILITIES, SOFTCAP, PRODUCT, BINARY)  # what has passes of its own
CAP = 30.0


@dataclass(frozen=True)
class Case:
    """Logits of one size and dtype, and the work on them.

    Attributes
    ----------
    shape : tuple of int
        Of the logits.
    work : {"forward", "backward", "in-place"}
        The loss; with its gradient into a warm buffer; with the gradient in place of the logits.
    dtype : {"float32", "float16", "bfloat16", "float64"}
        Of the logits.
    axis : int
        The class axis.
    options : {PLAIN, GAMMAS, WEIGHTS, PROBABILITIES, SOFTCAP, PRODUCT, BINARY}
        What is asked for beyond one gamma for all rows.
    """

    shape: tuple[int, ...]
    work: str
    dtype: str = "float32"
    axis: int = -1
    options: str = PLAIN

    @property
    def name(self) -> str:
        """``512x32000 bf16 fwd+bwd``: what the case is called everywhere."""
        parts = ["x".join(map(str, self.shape)), DTYPES[self.dtype]]
        if not self.is_last_axis:
            parts.append(f"axis {self.axis}")
        parts += [SHORT[self.work], self.options and f"({self.options})"]
        return " ".join(part for part in parts if part)

    @property
    def classes(self) -> int:
        """V."""
        return self.shape[self.axis]

    @property
    def rows(self) -> int:
        """N, however the rows lie."""
        return math.prod(self.shape) // self.classes

    @property
    def nbytes(self) -> int:
        """Of the logits."""
        return math.prod(self.shape) * ITEMSIZE[self.dtype]

    @property
    def is_last_axis(self) -> bool:
        """Whether a row is contiguous."""
        return self.axis % len(self.shape) == len(self.shape) - 1


class Data:
    """The arrays of a case, always the same; each is made at its first use.

    Parameters
    ----------
    case : Case
        What they are for.
    """

    def __init__(self, case: Case) -> None:
        self.case = case

    @cached_property
    def logits(self) -> npt.NDArray[Any]:
        """Normally distributed, with a standard deviation of 3."""
        rng = np.random.default_rng(0)
        logits = rng.standard_normal(self.case.shape, dtype=np.float32)
        logits *= 3
        return logits.astype(numpy_dtype(self.case.dtype), copy=False)

    @cached_property
    def targets(self) -> npt.NDArray[Any]:
        """Each class as often as any other; with `WEIGHTS`, one in ten is ignored.

        With `PROBABILITIES` a distribution for each row, with `BINARY` one label in ten is 1.
        """
        if self.case.options in (PROBABILITIES, BINARY):
            t = np.random.default_rng(1).random(self.case.shape, dtype=np.float32)
            if self.case.options == PROBABILITIES:
                t /= t.sum(self.case.axis, keepdims=True)
            else:
                t = (t < 0.1).astype(np.float32)
            return t.astype(self.logits.dtype, copy=False)
        shape = list(self.case.shape)
        del shape[self.case.axis]
        rng = np.random.default_rng(1)
        targets = rng.integers(0, self.case.classes, size=shape)
        if self.case.options == WEIGHTS:
            targets[rng.random(shape) < 0.1] = IGNORED
        return targets

    @cached_property
    def gamma(self) -> float | npt.NDArray[np.float64]:
        """One for all rows; with `GAMMAS`, one for each."""
        if self.case.options != GAMMAS:
            return GAMMA
        return np.random.default_rng(2).uniform(0.1, 0.9, self.targets.shape)

    @cached_property
    def weight(self) -> npt.NDArray[np.float32] | None:
        """Of the classes, with `WEIGHTS`."""
        if self.case.options != WEIGHTS:
            return None
        weight = np.random.default_rng(3).uniform(0.5, 1.5, self.case.classes)
        return weight.astype(np.float32)

    @cached_property
    def vector(self) -> npt.NDArray[Any]:
        """What `PRODUCT` multiplies the Hessian by."""
        rng = np.random.default_rng(4)
        vector = rng.standard_normal(self.case.shape, dtype=np.float32)
        return vector.astype(self.logits.dtype, copy=False)

    @cached_property
    def out(self) -> npt.NDArray[Any]:
        """A warm buffer for the gradient."""
        return self.logits.copy()

    @property
    def options(self) -> dict[str, Any]:
        """Keywords of gce's functions."""
        options: dict[str, Any] = {} if self.case.options == BINARY else {"axis": self.case.axis}
        if self.case.options == SOFTCAP:
            options["softcap"] = CAP
        if self.weight is not None:
            options |= {"weight": self.weight, "ignore_index": IGNORED}
        return options


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The dtype of this name, which for bfloat16 is another package's."""
    if name == "bfloat16":
        import ml_dtypes

        name = ml_dtypes.bfloat16
    dtype: np.dtype[Any] = np.dtype(name)
    return dtype


def _named_cases() -> tuple[Case, ...]:
    both, all_three = WORKS[:2], WORKS
    token, large, image = (512, 32000), (512, 128256), (4096, 1000)
    cases = [Case(token, work) for work in all_three]
    cases += [Case(large, work) for work in all_three]
    cases += [Case((512, 50257), work) for work in all_three]
    cases += [Case(image, work) for work in both]
    cases += [Case(shape, work) for shape in ((65536, 10), (50000, 7)) for work in both]
    cases += [Case((8, 21, 256, 256), work, axis=1) for work in both]
    cases += [Case((32, 10), work) for work in both]
    for dtype in ("bfloat16", "float16"):
        cases += [Case(shape, work, dtype) for shape in (token, image) for work in both]
    cases += [Case(token, work, "float64") for work in all_three]
    plain = [Case(shape, work) for shape in (token, image) for work in both]
    cases += [replace(c, options=o) for o in (GAMMAS, WEIGHTS) for c in plain]
    for options in FORMS:
        cases += [Case(shape, BACKWARD, options=options) for shape in (token, image, (65536, 10))]
    return tuple(cases)


CASES = _named_cases()
