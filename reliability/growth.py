"""Whether what a process holds stays flat: samples of its memory, threads and open files.

The first tenth of a run is left out: pools of threads, caches of compiled programs and the
allocator's own reserves fill then. Of the rest, the median of the last quarter is held against the
first's: medians, since single samples see what calls hold for their time.
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

    memory: int  # bytes that are resident
    threads: int
    files: int


# What may be more at the end. Memory: the allocator gives to threads and takes back, which moves
# medians by up to 3 MiB in runs of minutes that leak nothing; 8 MiB are what an hour's run, of
# millions of calls, would gain from 3 bytes a call, or 40 kB lost by each trainer. Threads and
# files: those of a moment, such as a checkpoint that is being written.
BOUNDS = Sample(8 * MIB, 2, 2)


def sample(process: int) -> Sample:
    """Of a process that runs; raises an OSError once it has ended."""
    proc = Path("/proc", str(process))
    pages = int((proc / "statm").read_text().split()[1])
    return Sample(pages * PAGE, len(os.listdir(proc / "task")), len(os.listdir(proc / "fd")))


def growth(values: Sequence[float]) -> float:
    """Median of the last quarter, less the first's, of what follows the first tenth."""
    rest = values[len(values) // 10 :]
    quarter = max(len(rest) // 4, 1)
    return median(rest[-quarter:]) - median(rest[:quarter])


def figures(samples: Sequence[Sample]) -> dict[str, Any]:
    """What became of each, and how many are not flat."""
    if not samples:
        return {"failures": 1}
    found: dict[str, Any] = {"failures": 0}
    for name, bound in BOUNDS._asdict().items():
        values = [getattr(each, name) for each in samples]
        grown = growth(values)
        found["failures"] += grown > bound
        unit = MIB if name == "memory" else 1
        numbers = {
            "start": values[len(values) // 10], "end": values[-1], "growth": grown, "bound": bound
        }  # fmt: skip
        found["memory_mib" if name == "memory" else name] = {
            key: round(number / unit, 2) for key, number in numbers.items()
        }
    return found
