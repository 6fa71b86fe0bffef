"""What the machine can do at best: a streaming read, a copy, a scaling in place of as many bytes.

Each is a loop of gce's own SIMD layer (``native/core/kernels/limits.inc.h``) on as many of its
threads as the contenders have.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from gce import _native
from gce.bench.cases import BACKWARD, FORWARD, Data
from gce.bench.contender import Contender, Work

__all__ = ["limit"]

TRIALS = 5


def _limit(data: Data, threads: int) -> Work:
    """The pass over memory that no implementation of the case can do without."""
    if data.case.work == FORWARD:
        z = as_floats(data.logits)
        return faster([partial(_native.limit_read, z, threads, cached) for cached in (False, True)])
    if data.case.work == BACKWARD:
        z, out = as_floats(data.logits), as_floats(data.out)
        copy = partial(_native.limit_copy, out, z, threads)
        return faster([partial(copy, cached) for cached in (False, True)])
    # Ones: bytes of another dtype could be subnormal floats, which are slow to multiply.
    ones = np.ones(as_floats(data.logits).size, np.float32)
    return lambda: _native.limit_scale(ones, 1.0, threads)


def as_floats(array: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """The bytes of an array; those left over are left out."""
    raw = array.reshape(-1).view(np.uint8)
    return raw[: raw.size // 4 * 4].view(np.float32)


def faster(works: list[Work]) -> Work:
    """The one of the works that took less time: which is, depends on what fits in the caches."""

    def least(work: Work) -> float:
        times = []
        for _ in range(TRIALS):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        return min(times)

    return min(works, key=least)


limit = Contender("limit", _limit, checked=False, isa=_native.available_isas()[0])
