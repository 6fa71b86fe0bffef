"""The peak of memory during a call, as the kernel of Linux counts it."""

from __future__ import annotations

import ctypes
import gc
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

__all__ = ["Unavailable", "available", "peak_of"]

Result = TypeVar("Result")

STATUS = Path("/proc/self/status")
FORGET_PEAK = "5"  # what clear_refs(5) of proc(5) takes for that


class Unavailable(Exception):
    """No figure can be had on this system."""


def peak_of(call: Callable[[], Result]) -> tuple[Result, int]:
    """Call, and count the bytes that the process held at most beyond those before.

    What Python's collector would free during the call is freed first, and what an allocator holds
    back from earlier calls is returned to the system. Pages are counted, and for each thread in
    batches of 64, so that less than 256 KiB is noise.

    Parameters
    ----------
    call : callable
        Without arguments.

    Returns
    -------
    result : object
        What it returned.
    peak : int
        In bytes.

    Raises
    ------
    Unavailable
        On another system than Linux with glibc.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
        clear = Path("/proc/self/clear_refs")
        gc.collect()
        trim(0)
        clear.write_text(FORGET_PEAK)
        before = kilobytes("VmRSS")
    except (AttributeError, OSError, TypeError) as error:
        raise Unavailable(f"no peak of memory on {sys.platform}: {error}") from error
    result = call()
    return result, 1024 * max(0, kilobytes("VmHWM") - before)


def kilobytes(name: str, path: Path = STATUS) -> int:
    """A row of a file that lists kilobytes."""
    found = re.search(rf"^{name}:\s*(\d+) kB", path.read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"{path} has no {name}")
    return int(found[1])


def available() -> int | None:
    """Bytes that can be had without swapping; None where the system does not say."""
    try:
        return 1024 * kilobytes("MemAvailable", Path("/proc/meminfo"))
    except OSError:
        return None
