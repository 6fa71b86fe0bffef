"""Schedules of γ: callables from the step to γ, for annealing from cross-entropy (0) towards 1.

A small γ learns fast from scratch, a larger one is robust once the model is sound; annealing has
both. Each factory returns a small immutable object, which prints its settings, compares by them,
pickles, and keeps no state: call it with the number of the step, counted from 0, as with an optax
schedule.

>>> from gce import schedules
>>> gamma = schedules.linear(total_steps=100, end=0.8)
>>> gamma(0), gamma(50), gamma(100), gamma(10_000)
(0.0, 0.4, 0.8, 0.8)
>>> gamma
Linear(total_steps=100, start=0.0, end=0.8, warmup_steps=0)

Every value is a float in [0, 1] between ``start`` and ``end``, of which either may be the larger.
After the last step the end value holds. A step is an int, or a float where epochs are counted in
fractions; a negative one is a ``ValueError``.
"""

from __future__ import annotations

import abc
import dataclasses
import math
import numbers
import operator
from typing import Protocol, SupportsIndex

__all__ = [
    "Constant",
    "Cosine",
    "Exponential",
    "Linear",
    "Schedule",
    "constant",
    "cosine",
    "exponential",
    "linear",
]


class Schedule(Protocol):
    """Anything that gives γ for a step."""

    def __call__(self, step: float, /) -> float:
        """Return γ at this step."""
        ...


def constant(gamma: float) -> Constant:
    """Return the schedule that is ``gamma`` at every step.

    Parameters
    ----------
    gamma : float
        In [0, 1].

    Returns
    -------
    Constant
        Callable from step to γ.

    Raises
    ------
    TypeError
        `gamma` is not a number.
    ValueError
        `gamma` is outside [0, 1] or NaN.

    Examples
    --------
    >>> from gce import schedules
    >>> schedules.constant(0.1)(1000)
    0.1
    """
    return Constant(gamma)


def linear(
    total_steps: int, *, start: float = 0.0, end: float = 1.0, warmup_steps: int = 0
) -> Linear:
    """Return the schedule that goes from `start` to `end` in a straight line.

    ``γ = start + (end - start) t`` with ``t = (step - warmup_steps) / (total_steps -
    warmup_steps)`` held in [0, 1].

    Parameters
    ----------
    total_steps : int
        Step from which γ is `end`, warmup included; at least 1.
    start, end : float
        Each in [0, 1].
    warmup_steps : int
        Steps that hold `start` first; less than `total_steps`.

    Returns
    -------
    Linear
        Callable from step to γ.

    Raises
    ------
    TypeError
        A count is not an integer, or a value not a number.
    ValueError
        An argument is outside its range or NaN.

    Examples
    --------
    >>> from gce import schedules
    >>> gamma = schedules.linear(12, warmup_steps=8)
    >>> [gamma(step) for step in (0, 8, 9, 10, 11, 12, 13)]
    [0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    """
    return Linear(total_steps, start, end, warmup_steps)


def cosine(
    total_steps: int, *, start: float = 0.0, end: float = 1.0, warmup_steps: int = 0
) -> Cosine:
    """Return the schedule that goes from `start` to `end` along half a cosine, slow at both ends.

    ``γ = start + (end - start) (1 - cos(π t)) / 2`` with ``t = (step - warmup_steps) /
    (total_steps - warmup_steps)`` held in [0, 1].

    Parameters
    ----------
    total_steps : int
        Step from which γ is `end`, warmup included; at least 1.
    start, end : float
        Each in [0, 1].
    warmup_steps : int
        Steps that hold `start` first; less than `total_steps`.

    Returns
    -------
    Cosine
        Callable from step to γ.

    Raises
    ------
    TypeError
        A count is not an integer, or a value not a number.
    ValueError
        An argument is outside its range or NaN.

    Examples
    --------
    >>> from gce import schedules
    >>> gamma = schedules.cosine(100)
    >>> [round(gamma(step), 3) for step in (0, 10, 50, 90, 100)]
    [0.0, 0.024, 0.5, 0.976, 1.0]
    """
    return Cosine(total_steps, start, end, warmup_steps)


def exponential(
    half_life: float, *, start: float = 0.0, end: float = 1.0, warmup_steps: int = 0
) -> Exponential:
    """Return the schedule that halves its distance to `end` every `half_life` steps.

    ``γ = end + (start - end) 2^(-(step - warmup_steps) / half_life)``: fast at first, and never
    done, so that it needs no number of steps.

    Parameters
    ----------
    half_life : float
        Steps in which the distance to `end` halves; above 0 and finite.
    start, end : float
        Each in [0, 1].
    warmup_steps : int
        Steps that hold `start` first; at least 0.

    Returns
    -------
    Exponential
        Callable from step to γ.

    Raises
    ------
    TypeError
        `warmup_steps` is not an integer, or another argument not a number.
    ValueError
        An argument is outside its range or NaN.

    Examples
    --------
    >>> from gce import schedules
    >>> gamma = schedules.exponential(100)
    >>> [gamma(step) for step in (0, 100, 200, 300)]
    [0.0, 0.5, 0.75, 0.875]
    """
    return Exponential(half_life, start, end, warmup_steps)


@dataclasses.dataclass(frozen=True)
class Constant:
    """The schedule made by `constant`."""

    gamma: float

    def __post_init__(self) -> None:
        """Check and normalise the fields."""
        _set(self, gamma=_probability("gamma", self.gamma))

    def __call__(self, step: float) -> float:
        """Return γ at this step."""
        _step(step)
        return self.gamma


@dataclasses.dataclass(frozen=True)
class _Ramp(abc.ABC):
    """From `start` to `end` in a number of steps, along a curve that subclasses give."""

    total_steps: int
    start: float = 0.0
    end: float = 1.0
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        """Check and normalise the fields."""
        total_steps = _count("total_steps", self.total_steps, least=1)
        warmup_steps = _count("warmup_steps", self.warmup_steps, least=0)
        if warmup_steps >= total_steps:
            raise ValueError(
                f"warmup_steps = {warmup_steps}, expected less than total_steps = {total_steps}"
            )
        _set(
            self,
            total_steps=total_steps,
            start=_probability("start", self.start),
            end=_probability("end", self.end),
            warmup_steps=warmup_steps,
        )

    def __call__(self, step: float) -> float:
        """Return γ at this step."""
        done = _step(step) - self.warmup_steps
        t = done / (self.total_steps - self.warmup_steps)
        return _between(self.start, self.end, self._curve(min(max(t, 0.0), 1.0)))

    @staticmethod
    @abc.abstractmethod
    def _curve(t: float) -> float:
        """Return the share of the way that is done after a share t of the time."""


class Linear(_Ramp):
    """The schedule made by `linear`."""

    @staticmethod
    def _curve(t: float) -> float:
        return t


class Cosine(_Ramp):
    """The schedule made by `cosine`."""

    @staticmethod
    def _curve(t: float) -> float:
        # (1 - cos(πt)) / 2, which cancels for small t.
        return math.sin(math.pi * t / 2.0) ** 2


@dataclasses.dataclass(frozen=True)
class Exponential:
    """The schedule made by `exponential`."""

    half_life: float
    start: float = 0.0
    end: float = 1.0
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        """Check and normalise the fields."""
        half_life = _number("half_life", self.half_life)
        if not 0.0 < half_life < math.inf:
            raise ValueError(f"half_life = {half_life}, expected a finite number of steps above 0")
        _set(
            self,
            half_life=half_life,
            start=_probability("start", self.start),
            end=_probability("end", self.end),
            warmup_steps=_count("warmup_steps", self.warmup_steps, least=0),
        )

    def __call__(self, step: float) -> float:
        """Return γ at this step."""
        done = max(_step(step) - self.warmup_steps, 0.0)
        # 1 - 2^-x, which cancels for small x.
        share = -math.expm1(-math.log(2.0) * (done / self.half_life))
        return _between(self.start, self.end, share)


def _between(start: float, end: float, share: float) -> float:
    """Return the point a share of the way from start to end: exact at both, never outside."""
    # start + (end - start) * share can miss the end: 0.1 + (0.46 - 0.1) is not 0.46.
    gamma = start * (1.0 - share) + end * share
    return min(max(gamma, min(start, end)), max(start, end))


def _set(instance: object, **fields: float) -> None:
    """Set fields of a frozen instance under construction."""
    for name, value in fields.items():
        object.__setattr__(instance, name, value)


def _number(name: str, value: object) -> float:
    """Return value as a float, or raise TypeError."""
    # numbers.Real has the scalars of Python and numpy; bool is one too, and always a mistake here.
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} = {value!r}, expected a real number")
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError(f"{name} is larger than any float, expected a number in range") from error


def _probability(name: str, value: object) -> float:
    """Return value as a float in [0, 1], or raise."""
    number = _number(name, value)
    if not 0.0 <= number <= 1.0:  # also where it is NaN
        raise ValueError(f"{name} = {number}, expected a number in [0, 1]")
    return number


def _count(name: str, value: object, *, least: int) -> int:
    """Return value as an int of at least `least`, or raise."""
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise TypeError(f"{name} = {value!r}, expected an integer")
    try:
        count = operator.index(value)
    except TypeError as error:  # such as an array's
        raise TypeError(f"{name} = {value!r}, expected an integer") from error
    if count.bit_length() > 63:  # also those that float() and str() refuse
        raise ValueError(f"{name} has {count.bit_length()} bits, expected a 64-bit integer")
    if count < least:
        raise ValueError(f"{name} = {count}, expected an integer of at least {least}")
    return count


def _step(value: object) -> float:
    """Return the step as a finite float of at least 0, or raise."""
    step = _number("step", value)
    if not 0.0 <= step < math.inf:
        raise ValueError(f"step = {value!r}, expected a finite number of at least 0")
    return step
