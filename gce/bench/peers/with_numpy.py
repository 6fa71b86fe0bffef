"""numpy: the formula by hand, with no array made twice."""

from __future__ import annotations

import numpy as np

from gce.bench.cases import BACKWARD, FORWARD, PLAIN, Data
from gce.bench.contender import CannotDo, Contender, Work

__all__ = ["PEERS"]

MOST_ROWS = 10_000  # it goes row by row: with more, the interpreter alone would be measured


def by_hand(data: Data, threads: int) -> Work:
    """Row by row, so that a row stays in the cache; on one thread, whatever `threads` is."""
    case = data.case
    if case.dtype not in ("float32", "float64") or not case.is_last_axis or case.options != PLAIN:
        raise CannotDo("by hand: full precision, class axis last, no options")
    if case.rows > MOST_ROWS:
        raise CannotDo(f"by hand: row by row, for up to {MOST_ROWS} rows")
    z = data.logits.reshape(-1, case.classes)
    out = data.out if case.work == BACKWARD else z.copy()
    grads = out.reshape(z.shape)
    y, gamma = data.targets.reshape(-1), float(data.gamma)
    row = np.empty(case.classes, case.dtype)
    kind, n = row.dtype.type, len(z)

    def pass_over(z: np.ndarray, grads: np.ndarray | None) -> float:
        total = 0.0
        for i in range(n):
            e = row if grads is None else grads[i]
            np.subtract(z[i], z[i].max(), out=e)
            np.exp(e, out=e)
            s = float(e.sum())
            p = float(e[y[i]]) / s
            total -= np.log(gamma + (1 - gamma) * p) / (1 - gamma)
            if grads is not None:
                w = p / (gamma + (1 - gamma) * p) / n
                np.multiply(e, kind(w / s), out=e)
                e[y[i]] -= w
        return total / n

    if case.work == FORWARD:
        return lambda: pass_over(z, None)
    logits = z if case.work == BACKWARD else grads
    return lambda: (pass_over(logits, grads), out)


PEERS = (Contender("numpy", by_hand),)
