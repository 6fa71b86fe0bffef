"""Whether what a process holds stays flat: samples of its memory, threads and open files.

The first tenth of a run is left out, or more of a short one: pools of threads, caches of compiled
programs and the allocator's own reserves fill then. Of the rest, the median of the last quarter is
held against the first's: medians, since single samples see what calls hold for their time.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

PAGE = os.sysconf("SC_PAGE_SIZE")
MIB = 2**20


class Sample(NamedTuple):
    """What a process holds."""

    memory: int  # bytes, resident and its own: pages of files the system takes and brings back
    threads: int
    files: int


# What may be more at the end. Memory: what the allocator gives to threads and takes back moves
# single samples by 10 MiB and medians by 2 MiB in runs of minutes that leak nothing. 8 MiB are what
# an hour's run, of some three million calls and 30,000 trainers, would gain from 4 bytes a call, or
# 400 of each trainer. Threads and files: those of a moment, as while a checkpoint is written.
BOUNDS = Sample(8 * MIB, 2, 2)


def sample(process: int) -> Sample:
    """Of a process that runs; raises an OSError once it has ended."""
    proc = Path("/proc", str(process))
    resident, shared = map(int, (proc / "statm").read_text().split()[1:3])
    return Sample(
        (resident - shared) * PAGE, len(os.listdir(proc / "task")), len(os.listdir(proc / "fd"))
    )


def rest(values: Sequence[float], warm_up: int = 0) -> Sequence[float]:
    """Without the first tenth, and without so many, but for half of them."""
    return values[max(len(values) // 10, min(warm_up, len(values) // 2)) :]


def growth(values: Sequence[float]) -> float:
    """Median of the last quarter, less the first's."""
    quarter = max(len(values) // 4, 1)
    return median(values[-quarter:]) - median(values[:quarter])


def figures(samples: Sequence[Sample], warm_up: int = 0) -> dict[str, Any]:
    """What became of each, and how many are not flat."""
    if not samples:
        return {"failures": 1}
    found: dict[str, Any] = {"failures": 0}
    for name, bound in BOUNDS._asdict().items():
        values = rest([getattr(each, name) for each in samples], warm_up)
        numbers = {
            "start": values[0],
            "end": values[-1],
            "growth": growth(values),
            "bound": bound,
        }
        found["failures"] += numbers["growth"] > bound
        key, unit = ("memory_mib", MIB) if name == "memory" else (name, 1)
        found[key] = {what: round(number / unit, 2) for what, number in numbers.items()}
    return found
