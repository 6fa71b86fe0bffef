"""Timing: all contenders of a case take turns, so that whatever slows the machine hits all."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from gce import _native
from gce.bench.cases import Case, Data
from gce.bench.check import Disagreement, Expected
from gce.bench.contender import CannotDo, Contender, Work
from gce.bench.memory import Unavailable, peak_of

__all__ = ["Effort", "Measured", "measure"]

REST = 0.03  # seconds in which threads of the last turn, which may spin, go to sleep
FEWEST_ROUNDS = 3


@dataclass(frozen=True)
class Effort:
    """How much time is spent.

    Attributes
    ----------
    rounds : int
        Turns of each contender, at most.
    seconds : float
        For a case: a contender that has used its share of them has no further turn, but for the
        first three.
    turn : float
        Seconds that a contender has before the next one's turn: what is quicker is repeated.
    """

    rounds: int = 15
    seconds: float = 10.0
    turn: float = 0.02


@dataclass
class Measured:
    """What is known of a case.

    Attributes
    ----------
    case : Case
        It.
    threads : int
        For every contender.
    seconds : dict
        Contenders to seconds for one execution, in each round.
    left_out : dict
        Contenders to why they are not in it.
    peaks : dict
        Contenders to the bytes that a call took at most beyond what there was before it.
    plain : list of str
        The contenders that compute cross-entropy, that is gamma = 0.
    allocator : str
        "default", or "tuned".
    """

    case: Case
    threads: int
    seconds: dict[str, list[float]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)
    plain: list[str] = field(default_factory=list)
    allocator: str = "default"

    def median(self, contender: str) -> float:
        """Seconds of one execution."""
        return float(np.median(self.seconds[contender]))

    def ratio(self, contender: str, to: str = "gce") -> tuple[float, float, float]:
        """Time of a contender over that of another: median of the rounds' ratios, 10 % and 90 %.

        Of the rounds that both were in, which are the first ones.
        """
        pairs = zip(self.seconds[contender], self.seconds[to], strict=False)
        ratios = np.array([one / other for one, other in pairs])
        low, middle, high = np.percentile(ratios, [10, 50, 90])
        return float(middle), float(low), float(high)


def measure(
    case: Case,
    threads: int,
    contenders: Sequence[Contender],
    effort: Effort,
    with_peaks: bool = False,
) -> Measured:
    """Time contenders on one case.

    Parameters
    ----------
    case : Case
        The work.
    threads : int
        For each of them.
    contenders : sequence of Contender
        Who works.
    effort : Effort
        How long.
    with_peaks : bool
        Measure the memory of a call too.

    Returns
    -------
    Measured
        The times, and who is left out why.

    Raises
    ------
    Disagreement
        If a contender's result is not gce's.
    """
    measured = Measured(case, threads)
    data = Data(case)
    expected = Expected(data)
    isa = _native.isa_name()
    works: dict[str, Work] = {}
    repeats: dict[str, int] = {}
    for contender in contenders:
        with turn_of(contender, isa):
            try:
                if not contender.is_installed():
                    raise CannotDo(f"{contender.package} is not installed")
                work = contender.make(data, threads)
                first = Call(work, watch=with_peaks and contender.keeps_memory)
                expected.check(contender, first.result)
                second = Call(work, watch=with_peaks and not contender.keeps_memory)
                repeats[contender.name] = repeats_of(work, effort.turn)
            except Exception as error:
                measured.left_out[contender.name] = reason_of(error)
                continue
            works[contender.name] = work
            if contender.plain:
                measured.plain.append(contender.name)
            peak = first.peak if contender.keeps_memory else second.peak
            if peak is not None:
                measured.peaks[contender.name] = peak
            del first, second
    measured.seconds = {name: [] for name in works}
    by_name = {contender.name: contender for contender in contenders}
    share = effort.seconds / max(1, len(works))
    with garbage_kept():
        for done in range(effort.rounds):
            for name, work in works.items():
                turns = measured.seconds[name]
                if done >= FEWEST_ROUNDS and sum(turns) * repeats[name] > share:
                    continue  # for good: turns of the same number are of the same round
                with turn_of(by_name[name], isa):
                    if threads > 1:
                        time.sleep(REST)
                    turns.append(seconds_of(work, repeats[name]))
    return measured


class Call:
    """One execution: its result, and its peak of memory if that is watched and can be."""

    def __init__(self, work: Work, watch: bool) -> None:
        self.peak: int | None = None
        if not watch or hasattr(work, "seconds"):  # what another process takes is not seen
            self.result = work()
            return
        try:
            self.result, self.peak = peak_of(work)
        except Unavailable:
            self.result = work()


def reason_of(error: Exception) -> str:
    """Why a contender is left out. Wrong results are no such reason."""
    if isinstance(error, Disagreement):
        raise error
    if isinstance(error, CannotDo):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed"
    first_line = (str(error).strip().splitlines() or [""])[0]
    return f"failed: {type(error).__name__}: {first_line}"


@contextlib.contextmanager
def turn_of(contender: Contender, isa: str) -> Iterator[None]:
    """A turn, in the contender's instruction set."""
    _native.select_isa(contender.isa or isa)
    try:
        yield
    finally:
        _native.select_isa(isa)


@contextlib.contextmanager
def garbage_kept() -> Iterator[None]:
    """No collection, which would hit whoever has the turn."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def seconds_of(work: Work, repeats: int) -> float:
    """Seconds of one execution: the mean of several."""
    if hasattr(work, "seconds"):  # TimesItself
        return float(work.seconds(repeats))
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - start) / repeats


def repeats_of(work: Work, turn: float) -> int:
    """How many executions fill a turn."""
    return max(1, round(turn / max(seconds_of(work, 1), 1e-7)))
