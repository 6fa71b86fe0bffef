"""The CPUs that a process may use: what holds for every contender alike."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["count_of_cpus", "restrict_to"]


def count_of_cpus() -> int:
    """How many CPUs the process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def restrict_to(threads: int) -> str:
    """Restrict this process to as many CPUs as it is to have threads, on cores of their own first.

    Packages that choose their number of threads themselves, when they are imported, see no more.

    Parameters
    ----------
    threads : int
        At least 1.

    Returns
    -------
    str
        What was done, for the report.
    """
    if not hasattr(os, "sched_setaffinity"):
        return "not restricted to CPUs: this system has no way to"
    cpus = sorted(os.sched_getaffinity(0), key=lambda cpu: (not is_first_of_core(cpu), cpu))
    if threads > len(cpus):
        return f"more threads than the {len(cpus)} CPUs of the process"
    os.sched_setaffinity(0, cpus[:threads])
    return f"restricted to as many CPUs: {', '.join(map(str, sorted(cpus[:threads])))}"


def is_first_of_core(cpu: int) -> bool:
    """Whether it is no second thread of a core; yes, where the system does not say."""
    path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    try:
        return int(path.read_text().replace("-", ",").split(",")[0]) == cpu
    except (OSError, ValueError):
        return True
