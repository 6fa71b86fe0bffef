"""Valid arguments of every public function of gce, small ones mostly."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from gce import shards
from gce._native import options
from reliability.fuzz.arrays import WRITABLE, laid_out
from reliability.fuzz.choices import Choices

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOATS = (np.dtype("f4"), np.dtype("f8"), np.dtype("f2"), BFLOAT16)
INTEGERS = ("i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1")
# What is turned into float64.
REALS = (*FLOATS, *map(np.dtype, (*INTEGERS, "?", "g")))
UFUNCS = {
    "loss_from_log_prob": ("log_p", "gamma", "threshold"),
    "grad_weight": ("log_p", "gamma", "threshold"),
    "gamma_grad": ("log_p", "gamma"),
}
POSITIONAL = {
    "loss": ("logits", "targets", "gamma"),
    "loss_and_grad": ("logits", "targets", "gamma"),
    "loss_gamma_grad": ("logits", "targets", "gamma"),
    "hvp": ("logits", "targets", "vector", "gamma"),
    "row_stats": ("logits", "targets"),
    "partial_stats": ("logits", "targets"),
    "sharded_loss_and_grad": ("logits", "targets", "gamma", "stats"),
    "binary_loss": ("logits", "targets", "gamma"),
    "binary_loss_and_grad": ("logits", "targets", "gamma"),
}
OPTIONS = {
    function: tuple(name for name, *_, functions in options() if function in functions)
    for function in POSITIONAL
}
# Options that statistics of slices are of.
OF_STATS = ("weight", "label_smoothing", "ignore_index")
# Those whose results are the fuller, oftener.
FUNCTIONS = ("loss_and_grad", "loss", "binary_loss_and_grad", "loss_and_grad", *POSITIONAL)


class Problem:
    """The shapes that arguments of one call share."""

    def __init__(self, choices: Choices, function: str) -> None:
        self.choices, self.function = choices, function
        self.rng = choices.rng()
        self.is_binary = function.startswith("binary")
        self.is_shard = function in ("partial_stats", "sharded_loss_and_grad")
        self.shape = self._shape()
        ndim = len(self.shape)
        self.axis = -1 if self.is_binary else -1 - choices.below(ndim)
        if not self.is_binary and self.shape[self.axis] == 0:
            self.axis = next(d - ndim for d in range(ndim) if self.shape[d])
        self.axis += ndim * choices.below(2)  # both ways of counting
        self.classes = 1 if self.is_binary else self.shape[self.axis]
        self.rows = tuple(n for d, n in enumerate(self.shape) if d != self.axis % max(ndim, 1))
        if self.is_binary:
            self.rows = self.shape
        self.dtype = choices.one(FLOATS)
        self.is_soft = not self.is_binary and not self.is_shard and choices.chance(0.2)
        self.shift = choices.below(3) if self.rows and choices.chance(0.1) else 0
        self.ignored = False  # whether -100 has to be
        self.arguments: dict[str, Any] = {}

    def _shape(self) -> tuple[int, ...]:
        choices = self.choices
        if choices.chance(0.02):  # large enough for a second thread
            return choices.one(((4096, 33), (3, 40000), (2048, 17)))
        if self.is_binary and choices.chance(0.1):
            return ()
        sizes = (3, 5, 1, 2, 8, 17, 33, 64, 65, 0) if choices.chance(0.3) else (3, 5, 2, 4, 1, 7)
        shape = [choices.one(sizes) for _ in range(choices.one((2, 1, 3, 4)))]
        if not self.is_binary:
            # Without classes there is no loss; without rows it is 0.
            shape[choices.below(len(shape))] += 0 in shape
            shape = [1, *shape[1:]] if len(shape) == 1 and not shape[0] else shape
        return tuple(shape if math.prod(shape) < 20000 else shape[:2])

    def fill(self) -> dict[str, Any]:
        """All arguments."""
        for name in POSITIONAL[self.function]:
            self.arguments[name] = self.valid(name)
        for name in OPTIONS[self.function]:
            wanted = name in self.always() or self.choices.chance(0.15)
            if wanted and not (self.is_shard and name in OF_STATS and "stats" in self.arguments):
                self.arguments[name] = self.valid(name)
        return self.arguments

    def always(self) -> Mapping[str, Any]:
        """Options that these shapes need."""
        needed = {"axis": self.axis, "shift": self.shift, "num_classes": self.classes}
        if self.is_binary or self.axis in (-1, len(self.shape) - 1):
            del needed["axis"]
        if not self.shift:
            del needed["shift"]
        if self.is_shard:
            needed["first_class"] = 0
        return needed

    def valid(self, name: str) -> Any:
        """A value that the function takes."""
        if self.is_binary and name in ("targets", "weight", "pos_weight"):
            return self.unit(self.rows) if name == "targets" else self.factors()
        return VALID[name](self)

    def logits(self) -> Any:
        """Of usual size mostly, masked, infinite or NaN in places."""
        scale = self.choices.one((3.0, 1.0, 30.0, 1e-3, 1e3, 1e6))
        with np.errstate(over="ignore"):
            logits = np.asarray(self.rng.normal(size=self.shape) * scale).astype(self.dtype)
        if self.choices.chance(0.2) and logits.size:
            value = self.choices.one((-np.inf, 0.0, np.inf, np.nan, 1e30, -1e30))
            chosen = self.rng.random(self.shape) < 0.2
            with np.errstate(over="ignore"):
                logits = np.where(chosen, self.dtype.type(value), logits)
        return laid_out(self.choices, logits)

    def targets(self) -> Any:
        """Classes, some of them -100 where that is ignored, or probabilities."""
        if self.is_soft:
            t = self.rng.exponential(size=self.shape)
            self.ignored = True  # no class of theirs is
            return laid_out(self.choices, (t / 8).astype(self.choices.one(FLOATS)))
        dtype = self.choices.one(INTEGERS)
        most = min(self.classes, np.iinfo(dtype).max)
        targets = self.rng.integers(0, most, size=self.rows).astype(dtype)
        self.ignored = dtype.startswith("i") and self.choices.chance(0.2)
        if self.ignored:
            targets = np.where(self.rng.random(self.rows) < 0.3, -100, targets).astype(dtype)
        if not self.rows and self.choices.chance(0.5):
            return int(targets)
        if targets.size and self.choices.chance(0.05):
            return targets.tolist()
        return laid_out(self.choices, targets)

    def unit(self, shape: tuple[int, ...]) -> Any:
        """Numbers from 0 to 1."""
        dtype = self.choices.one(REALS)
        numbers = self.rng.random(shape)
        if not np.issubdtype(dtype, np.floating) and dtype != BFLOAT16:
            numbers = np.round(numbers)
        return laid_out(self.choices, np.asarray(numbers).astype(dtype))

    def number(self) -> Any:
        """γ or b: a scalar of some kind, or one per row."""
        if self.choices.chance(0.3):
            return self.unit(self.rows)
        value = self.choices.one((0.5, 0.0, 1.0, 1e-7, 1e-300, 0, 1, True, 1.0 - 1e-9))
        kind = self.choices.one((lambda x: x, np.float32, np.float64, np.array))
        return kind(value)  # type: ignore[operator]

    def factors(self) -> Any:
        """What broadcasts to the logits of the binary form."""
        shape = self.shape[self.choices.below(len(self.shape) + 1) :]
        shape = tuple(1 if self.choices.chance(0.2) else n for n in shape)
        return laid_out(self.choices, self.rng.random(shape) * 2)

    def upstream(self) -> Any:
        """One per row where no sum is made of them."""
        if self.arguments.get("reduction") == "none" and self.choices.chance(0.5):
            return laid_out(self.choices, self.rng.normal(size=self.rows))
        return self.choices.one((1.0, -2.0, 0.0, 1, np.float32(3.0)))

    def out(self) -> Any:
        """None, the logits themselves, or another array like them."""
        logits = self.arguments["logits"]
        kind = self.choices.below(3)
        if kind == 0 and logits.flags.writeable and type(logits) is np.ndarray:
            return logits
        # Not the first layouts alone: what is never written must stay as it is.
        return None if kind == 1 else laid_out(self.choices, np.ones_like(logits), WRITABLE)

    def stats(self) -> Any:
        """Merged statistics of the one slice that these logits are."""
        given = {k: v for k, v in self.arguments.items() if k != "gamma"}
        for name in OF_STATS:
            if self.choices.chance(0.2):
                given[name] = self.arguments[name] = self.valid(name)
        part = shards.partial_stats(**given, **self.always())
        return shards.merge([part])


VALID: dict[str, Callable[[Problem], Any]] = {
    "logits": Problem.logits,
    "targets": Problem.targets,
    "vector": lambda p: p.rng.normal(size=p.shape).astype(p.choices.one((p.dtype, *FLOATS))),
    "gamma": Problem.number,
    "stats": Problem.stats,
    "threshold": Problem.number,
    "value": lambda p: (
        "primitive"
        if p.function == "loss_gamma_grad"
        else p.choices.one(("primitive", "surrogate"))
    ),
    "weight": lambda p: laid_out(p.choices, p.rng.random(p.classes) + 0.1),
    "sample_weight": lambda p: p.unit(p.rows),
    "ignore_index": lambda p: p.choices.one((-100, None, -1, 1)[: 1 if p.ignored else 4]),
    "label_smoothing": lambda p: p.choices.one((0.1, 0.0, 1.0, np.float32(0.5), 1)),
    "z_loss": lambda p: p.choices.one((1e-4, 0.0, 1.0)),
    "softcap": lambda p: p.choices.one((30.0, None, 0.0, 5, 1e-3)),
    "shift": lambda p: p.shift,
    "reduction": lambda p: p.choices.one(("none", "sum", "mean")),
    "normalizer": lambda p: (
        p.choices.one((7.0, None, 1, 1e-3))
        if p.arguments.get("reduction", "mean") == "mean"
        else None
    ),
    "axis": lambda p: p.axis,
    "first_class": lambda p: 0,
    "num_classes": lambda p: p.classes,
    "grad_output": Problem.upstream,
    "gauss_newton": lambda p: p.choices.one((True, False)),
    "out": Problem.out,
    "return_stats": lambda p: p.choices.one((True, False)),
    "num_threads": lambda p: p.choices.one((2, 1, None, 3, 2**40)),
}
