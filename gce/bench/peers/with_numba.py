"""numba: the loops by hand, compiled with fastmath, over rows on all threads."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from gce.bench.cases import Data
from gce.bench.contender import CannotDo, Contender, Work
from gce.bench.peers.by_hand import rows_of

__all__ = ["PEERS"]


@lru_cache
def compiled(parallel: bool) -> Any:
    """The fused loop; numba compiles it for each dtype once."""
    import numba

    rows = numba.prange if parallel else range

    @numba.njit(fastmath=True, parallel=parallel)  # type: ignore[untyped-decorator, unused-ignore]
    def fused(z: Any, y: Any, out: Any, gamma: float, backward: bool) -> float:
        total = 0.0
        n, classes = z.shape
        for i in rows(n):
            largest = z[i, 0]
            for v in range(classes):
                largest = max(largest, z[i, v])
            s = z.dtype.type(0)
            target = np.exp(z[i, y[i]] - largest)
            for v in range(classes):
                s += np.exp(z[i, v] - largest)
            p = target / s
            total -= np.log(gamma + (1 - gamma) * p) / (1 - gamma)
            if backward:
                w = p / (gamma + (1 - gamma) * p) / n
                scale = z.dtype.type(w / s)
                for v in range(classes):
                    out[i, v] = np.exp(z[i, v] - largest) * scale
                out[i, y[i]] -= w
        return total / n  # type: ignore[no-any-return]

    return fused


def by_hand(data: Data, threads: int) -> Work:
    """The loops on `threads` threads."""
    import numba

    most = int(numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined, unused-ignore]
    z, y, gamma, grads, out = rows_of(data)
    if threads > most:
        raise CannotDo(f"numba has {most} threads here, not {threads}")
    numba.set_num_threads(threads)
    fused = compiled(threads > 1)
    if grads is None:
        return lambda: fused(z, y, z, gamma, False)
    return lambda: (fused(z, y, grads, gamma, True), out)


PEERS = (Contender("numba", by_hand, "numba"),)
