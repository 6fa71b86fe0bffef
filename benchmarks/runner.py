"""Timing: all contenders of a case take turns, so that whatever slows the machine hits all."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from benchmarks.cases import Case
from benchmarks.contenders import CONTENDERS, CannotDo, Work

TURN = 0.02  # seconds that one contender has before the next one's turn


@dataclass(frozen=True)
class Measured:
    """Seconds for one execution, in each round."""

    case: Case
    seconds: dict[str, list[float]]
    left_out: dict[str, str]

    def median(self, contender: str) -> float:
        return float(np.median(self.seconds[contender]))

    def ratio(self, contender: str, to: str = "gce") -> tuple[float, float, float]:
        """Time of a contender over that of another: median of the rounds' ratios, 10 % and 90 %."""
        ratios = np.array(self.seconds[contender]) / np.array(self.seconds[to])
        low, middle, high = np.percentile(ratios, [10, 50, 90])
        return float(middle), float(low), float(high)


def measure(case: Case, threads: int, names: list[str], rounds: int) -> Measured:
    """Time the named contenders on one case."""
    works: dict[str, Work] = {}
    left_out: dict[str, str] = {}
    for name in names:
        work = _prepare(name, case, threads)
        if isinstance(work, str):
            left_out[name] = work
        else:
            works[name] = work
    repeats = {name: _repeats(work) for name, work in works.items()}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            seconds[name].append(_time(work, repeats[name]))
    return Measured(case, seconds, left_out)


def _prepare(name: str, case: Case, threads: int) -> Work | str:
    """The contender's work, done once; or why it is left out."""
    try:
        work = CONTENDERS[name](case, threads)
        work()
    except CannotDo:
        return "cannot do this case"
    except ImportError as error:
        return f"not installed ({error.name})"
    return work


def _time(work: Work, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - start) / repeats


def _repeats(work: Work) -> int:
    work()
    return max(1, round(TURN / max(_time(work, 1), 1e-7)))
