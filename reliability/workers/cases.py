"""Calls of numpy's face whose results are known: each function, with any options, in any layout.

A case is a problem with the results that one thread had for it, as bits. These were held against
`gce.reference` when the case was made; from then on every run of it, on any threads, in any layout
of the same numbers, in place or not, must have the same bits.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import gce
from gce import reference, shards
from reliability.workers.problems import Array, Problem, along, numpy_of, problem, relaid

Results = list[Array]
EPS = float(np.finfo("f8").eps)


class Case(NamedTuple):
    """Something to call, and what it gives."""

    kind: str
    run: Callable[[random.Random], Results]  # in a layout that is chosen anew each time
    want: tuple[bytes, ...]


class PoolError(AssertionError):
    """A result is not what the reference says: nothing can be compared with it."""


def bits(results: Results) -> tuple[bytes, ...]:
    return tuple(np.asarray(result).tobytes() for result in results)


def flat(found: Any) -> Results:
    """Whatever a function returns, as a list of arrays."""
    if not isinstance(found, tuple):
        return [np.asarray(found)]
    return [array for part in found for array in flat(part)]


def pool(seed: int, count: int) -> list[Case]:
    """So many cases, of every kind about as many; their bits are those of one thread."""
    chooser = random.Random(seed)
    gce.set_num_threads(1)
    kinds = list(MAKERS)
    return [MAKERS[kind](kind, chooser) for kind in (kinds[i % len(kinds)] for i in range(count))]


def checked(
    kind: str,
    run: Callable[[random.Random], Results],
    exact: Results,
    dtype: np.dtype[Any],
    size: float,
    steep: float = 1.0,
) -> Case:
    """A case whose first results are those of the reference, within the promise."""
    results = run(random.Random(0))
    for found, expected in zip(results, exact, strict=False):
        require_close(kind, found, np.asarray(expected), dtype, size, steep)
    return Case(kind, run, bits(results))


def require_close(
    kind: str, found: Array, exact: Array, dtype: np.dtype[Any], size: float, steep: float
) -> None:
    """Within the promise, for results whose rows are multiplied by at most `size`."""
    # 1e-6 and 2e-7 of losses, 5e-7 of gradients; the reference's own roundings come to doubles.
    is_double = dtype == np.float64
    relative, absolute = (2e-14, 4e-14) if is_double else (1e-6, 5e-7)
    if found.dtype.itemsize == 2:  # rounded once
        relative += {"float16": 2.0**-11, "bfloat16": 2.0**-8}[found.dtype.name]
        absolute += 2.0**-24
    limit = steep * (relative * np.abs(exact) + absolute * size)
    wide = found.astype("f8")
    with np.errstate(invalid="ignore"):
        right = (np.abs(wide - exact) <= limit) | (wide == exact)
    if found.shape != exact.shape or not right.all():
        worst = np.nanmax(np.abs(wide - exact) / limit) if found.shape == exact.shape else "shape"
        raise PoolError(f"{kind}: not what the reference says, {worst} of the limit")


@functools.cache
def takes(function: Any) -> frozenset[str]:
    """Names of its arguments, asked for once: Python 3.11 fails where threads parse at once."""
    return frozenset(inspect.signature(function).parameters)


# --- functions of rows ----------------------------------------------------------------------------


def size_of(given: Problem) -> float:
    """What a row is multiplied by at most, and how many are added."""
    options = given.options
    factors = [
        np.max(np.abs(options.get(name, 1.0)))
        for name in ("weight", "sample_weight", "grad_output")
    ]
    rows = given.logits.size / given.logits.shape[-1]
    # A row's own logsumexp is below 50 here; of the mean's divisors, the least is one row's 0.25.
    added = 1.0 + 2.0 * options.get("z_loss", 0.0) * 50.0
    return float(np.prod(factors)) * added * (rows if options["reduction"] == "sum" else 4.0)


def call(function: Any, given: Problem, chooser: random.Random, *between: Array) -> Results:
    """Call one in some layout; what has the logits' shape comes back with the classes last."""
    axis = chooser.randrange(given.logits.ndim)
    logits, targets = along(given.logits, axis), given.targets
    if targets.dtype.kind == "f":
        targets = along(targets, axis)
    options = {name: relaid(chooser, option) for name, option in given.options.items()}
    has_gradient = "out" in takes(function)
    if has_gradient and chooser.random() < 0.5:
        logits = logits.copy()  # written over, or beside the gradient
        options["out"] = logits if chooser.random() < 0.5 else np.empty_like(logits)
    else:
        logits = relaid(chooser, logits)
    between = tuple(relaid(chooser, along(vector, axis)) for vector in between)
    gamma = () if function is gce.row_stats else (relaid(chooser, given.gamma),)
    results = flat(function(
        logits, relaid(chooser, targets), *between, *gamma,
        axis=axis, num_threads=chooser.choice((None, None, 1, 2, 8)), **options,
    ))  # fmt: skip
    if has_gradient:
        which = 0 if function is gce.hvp else 1
        results[which] = np.moveaxis(results[which], axis, -1)
    return results


def of_rows(kind: str, chooser: random.Random) -> Case:
    """A case of a function of rows."""
    function, definition = getattr(gce, kind), getattr(reference, kind)
    given = problem(chooser)
    is_double = given.logits.dtype == np.float64
    options = {name: option for name, option in given.options.items() if name in takes(function)}
    between: tuple[Array, ...] = ()
    size, steep = size_of(given), 1.0
    if kind in ("hvp", "loss_gamma_grad"):
        options.pop("value", None)  # the surrogate's weight is a constant
    if kind == "hvp":
        between = (numpy_of(chooser).uniform(-1, 1, given.logits.shape),)
        between = (between[0].astype(given.logits.dtype),)
        steep = 6.0 + 2.0 / options.get("softcap", 1.0)  # the vector's distance to its mean, twice
    if kind == "loss_gamma_grad":
        steep = 10.0 * (100.0 if is_double else 1.0)  # ∂²L/∂γ∂ℓ is as large
    given = given._replace(options=options)
    gamma = () if kind == "row_stats" else (given.gamma,)
    exact = flat(definition(given.logits, given.targets, *between, *gamma, **options))
    if kind in ("loss", "loss_and_grad") and chooser.random() < 0.3:
        given = given._replace(options={**options, "return_stats": True})
    return checked(
        kind,
        lambda how: call(function, given, how, *between),
        exact,
        given.logits.dtype,
        size,
        steep,
    )


def of_shards(kind: str, chooser: random.Random) -> Case:
    """A case of slices of the classes: their statistics, merged, and loss and gradient of each."""
    given = problem(chooser)
    while given.targets.dtype.kind == "f":
        given = problem(chooser)
    logits, classes = given.logits, given.logits.shape[-1]
    options = {name: option for name, option in given.options.items() if name != "softcap"}
    ends = sorted({*(chooser.randrange(classes) for _ in range(3)), 0, classes})
    slices = list(itertools.pairwise(ends))
    own = dict(options)
    options["num_classes"] = classes
    of_stats = {name: options[name] for name in options if name in takes(shards.partial_stats)}

    def run(how: random.Random) -> Results:
        parts = [
            shards.partial_stats(
                relaid(how, logits[..., begin:end]), given.targets, first_class=begin, **of_stats
            )
            for begin, end in slices
        ]
        stats = shards.merge(parts)
        found = [
            shards.loss_and_grad(
                relaid(how, logits[..., begin:end]), given.targets, given.gamma, stats,
                first_class=begin, **options,
            )
            for begin, end in slices
        ]  # fmt: skip
        losses = {np.asarray(loss).tobytes() for loss, _ in found}
        assert len(losses) == 1, "slices differ in the loss"
        return [np.asarray(found[0][0]), np.concatenate([grad for _, grad in found], -1)]

    exact = reference.loss_and_grad(logits, given.targets, given.gamma, **own)
    return checked(kind, run, flat(exact), logits.dtype, size_of(given))


# --- elementwise ----------------------------------------------------------------------------------


def of_binary(kind: str, chooser: random.Random) -> Case:
    """A case of the sigmoid form."""
    function, definition, rng = getattr(gce, kind), getattr(reference, kind), numpy_of(chooser)
    drawn = problem(chooser)
    logits = np.where(np.isneginf(drawn.logits), 1.0, drawn.logits).astype(drawn.logits.dtype)
    targets = rng.choice((0.0, 1.0, 0.3), logits.shape)
    names = ("threshold", "value", "label_smoothing", "reduction", "normalizer", "grad_output")
    options = {
        name: option
        for name, option in drawn.options.items()
        if name in names and name in takes(function) and np.ndim(option) == 0
    }
    if chooser.random() < 0.3:
        options["pos_weight"] = rng.uniform(0.5, 2.0, logits.shape[-1])
    gamma = rng.random(logits.shape) if chooser.random() < 0.3 else 0.3

    def run(how: random.Random) -> Results:
        given = {name: relaid(how, option) for name, option in options.items()}
        if "out" in takes(function) and how.random() < 0.5:
            given["out"] = np.empty_like(logits)
        return flat(function(
            relaid(how, logits), relaid(how, targets), relaid(how, gamma),
            num_threads=how.choice((None, 1, 2)), **given,
        ))  # fmt: skip

    exact = flat(definition(logits, targets, gamma, **options))
    size = 4.0 * (logits.size if options["reduction"] == "sum" else 1.0)
    return checked(kind, run, exact, logits.dtype, size)


def of_ufunc(kind: str, chooser: random.Random) -> Case:
    """A case of a function of log-probabilities: broadcast, with out= and where=."""
    function, definition, rng = getattr(gce, kind), getattr(reference, kind), numpy_of(chooser)
    shape = chooser.choice(((), (5,), (40, 7), (300, 33)))
    dtype = np.dtype(chooser.choice(("float32", "float64")))
    log_p = -rng.exponential(3.0, shape).astype(dtype)
    gamma = rng.random(shape[-1:]).astype(dtype)
    more = () if kind == "gamma_grad" else (np.asarray(chooser.choice((0.0, 0.2)), dtype),)
    where = rng.random(shape) < 0.7

    def run(how: random.Random) -> Results:
        given = (relaid(how, log_p), relaid(how, gamma), *more)
        whole = np.asarray(function(*given))
        part = function(*given, out=np.zeros(shape, dtype), where=where)
        assert bits([part]) == bits([np.where(where, whole, np.zeros((), dtype))]), "where="
        return [whole]

    exact = definition(log_p, gamma, *more)
    # The values of γ are not that of the problem's double, but floats: exact ones.
    return checked(kind, run, [exact], dtype, 1.0, 20.0)


MAKERS: dict[str, Callable[[str, random.Random], Case]] = {
    **dict.fromkeys(("loss", "loss_and_grad", "row_stats", "hvp", "loss_gamma_grad"), of_rows),
    "shards": of_shards,
    **dict.fromkeys(("binary_loss", "binary_loss_and_grad"), of_binary),
    **dict.fromkeys(("loss_from_log_prob", "grad_weight", "gamma_grad"), of_ufunc),
}
