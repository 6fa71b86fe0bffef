"""Bytes to a call of a public function of gce: valid mostly, or with hostile arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import gce
from gce import shards
from reliability.fuzz.arrays import WRITABLE, laid_out
from reliability.fuzz.choices import Choices
from reliability.fuzz.hostile import DTYPES, Meddling, Raising, nearly, replacement
from reliability.fuzz.problems import FUNCTIONS, OPTIONS, POSITIONAL, UFUNCS, Problem


class Call(NamedTuple):
    """What is called, and with what."""

    name: str
    function: Callable[..., Any]
    positional: tuple[Any, ...]
    keywords: dict[str, Any]
    parameters: tuple[str, ...]  # of which an error names one
    is_valid: bool
    problem: Problem | None = None  # of the functions of logits

    def values(self) -> list[Any]:
        """All arguments, those in tuples too."""
        values = [*self.positional, *self.keywords.values()]
        return values + [one for value in values if isinstance(value, tuple) for one in value]

    def arrays(self) -> list[Any]:
        """The arguments that are arrays."""
        return [value for value in self.values() if isinstance(value, np.ndarray)]

    def errors(self) -> tuple[type[BaseException], ...]:
        """Those that hostile arguments raise."""
        given = [v.value if isinstance(v, Meddling) else v for v in self.values()]
        return tuple(value.error for value in given if isinstance(value, Raising))

    def meddles(self) -> bool:
        """Whether an argument changes others."""
        return any(isinstance(value, Meddling) for value in self.values())

    def __call__(self, **more: Any) -> Any:
        """Call it."""
        return self.function(*self.positional, **{**self.keywords, **more})


def call_of(data: bytes) -> Call:
    """The call that these bytes stand for."""
    choices = Choices(data)
    if not choices.chance(0.15):
        return of_logits(choices, choices.one(FUNCTIONS))
    return choices.one((of_ufunc, of_ufunc, of_merge, of_schedule, of_threads))(choices)


def of_logits(choices: Choices, name: str) -> Call:
    """Of the functions of the core."""
    problem = Problem(choices, name)
    arguments = problem.fill()
    wrong = choices.one((0, 0, 0, 0, 0, 1, 1, 2))
    parameters = (*POSITIONAL[name], *OPTIONS[name])
    for _ in range(wrong):
        changed = choices.one(parameters)
        arguments[changed] = replacement(choices, changed, arguments)
    if wrong and choices.chance(0.1):
        arguments.pop(choices.one(parameters), None)
    if wrong and choices.chance(0.1):
        arguments[choices.one(("gama", "Gamma", "\ud800", "reductions", "log_p"))] = 1.0
    by_place = choices.one((3, 2, 1, 0)) if all(p in arguments for p in POSITIONAL[name]) else 0
    positional = tuple(arguments.pop(p) for p in POSITIONAL[name][:by_place])
    if wrong and choices.chance(0.05):
        positional += (1.0,) * choices.below(8)
    module = gce._native if problem.is_shard else gce
    function = getattr(module, name)
    return Call(name, function, positional, arguments, parameters, not wrong, problem)


def of_ufunc(choices: Choices) -> Call:
    """With numpy's own keywords."""
    name = choices.one(tuple(UFUNCS))
    rng, shape = choices.rng(), choices.one(((5,), (), (3, 4), (0,), (2, 1, 17)))
    log_p = -rng.exponential(size=shape) * choices.one((1.0, 100.0, 1e-9))
    given: dict[str, Any] = {"log_p": log_p.astype(choices.one(("f8", "f4", "f2")))}
    given |= {option: rng.random(choices.one((shape, ()))) for option in UFUNCS[name][1:]}
    given = {name: laid_out(choices, np.asarray(value)) for name, value in given.items()}
    is_valid = choices.chance(0.6)
    keywords: dict[str, Any] = {}
    if choices.chance(0.3):
        keywords["out"] = laid_out(choices, np.ones(shape), WRITABLE)
    if choices.chance(0.2):
        keywords.setdefault("out", np.ones(shape))
        keywords["where"] = rng.random(shape) < 0.5
    if not is_valid:
        changed = choices.one((*UFUNCS[name], "out", "where", "dtype"))
        if changed in given:
            given[changed] = replacement(choices, changed, given)
        elif changed == "dtype":
            keywords["dtype"] = choices.one(DTYPES)
        elif changed == "where":
            keywords.setdefault("out", np.ones(shape))
            keywords["where"] = choices.one((np.ones(3, bool), 1, None, "yes", np.ones(shape)))
        else:
            keywords["out"] = nearly(choices, given["log_p"])
    if keywords.get("out") is None:
        keywords.pop("where", None)  # numpy leaves what is not computed as it finds it
    return Call(name, getattr(gce, name), tuple(given.values()), keywords, (), is_valid)


def of_merge(choices: Choices) -> Call:
    """Of statistics of slices, some of which are no such."""
    rng, rows = choices.rng(), choices.one(((3,), (2, 2), (), (0,)))
    logits = rng.normal(size=(*rows, 8)) * choices.one((1.0, 1e4, 1e7))
    if choices.chance(0.3):
        logits[rng.random(logits.shape) < 0.4] = choices.one((-np.inf, np.nan, np.inf))
    targets = rng.integers(0, 8, rows)
    parts: list[Any] = [
        shards.partial_stats(
            np.ascontiguousarray(logits[..., a:b]), targets, first_class=a, num_classes=8
        )
        for a, b in ((0, 3), (3, 7), (7, 8))
    ]
    is_valid = not choices.chance(0.4)
    if not is_valid:
        at = choices.below(3)
        if choices.chance(0.5):
            parts[at] = rng.choice([np.nan, np.inf, -np.inf, 0.0, -1.0, 1e300], parts[at].shape)
        else:
            parts[at] = replacement(choices, "parts", {"parts": parts[at]})
    return Call("merge", shards.merge, (tuple(parts),), {}, ("parts",), is_valid)


def of_schedule(choices: Choices) -> Call:
    """A schedule's factory, and then a step."""
    name, positional, parameters = choices.one(
        (
            ("linear", (100,), ("total_steps", "start", "end", "warmup_steps")),
            ("cosine", (100,), ("total_steps", "start", "end", "warmup_steps")),
            ("exponential", (30.0,), ("half_life", "start", "end", "warmup_steps")),
            ("constant", (0.5,), ("gamma",)),
        )
    )
    given: dict[str, Any] = {parameters[0]: positional[0], "step": choices.number()}
    for option in parameters[1:]:
        if choices.chance(0.3):
            given[option] = choices.below(30) if option == "warmup_steps" else choices.byte() / 255
    is_valid = choices.chance(0.5)
    if not is_valid:
        changed = choices.one((*parameters, "step"))
        given[changed] = replacement(choices, changed, given)

    def function(step: Any, **fields: Any) -> Any:
        return np.float64(getattr(gce.schedules, name)(**fields)(step))

    return Call(name, function, (), given, (*parameters, "step"), is_valid)


def of_threads(choices: Choices) -> Call:
    """The setting of the process; it is put back at once."""
    is_valid = choices.chance(0.2)
    value = 1 + choices.below(4) if is_valid else replacement(choices, "num_threads", {})

    def function(value: Any) -> Any:
        before = gce.get_num_threads()
        gce.set_num_threads(value)
        gce.set_num_threads(before)

    return Call("set_num_threads", function, (value,), {}, ("num_threads",), is_valid)
