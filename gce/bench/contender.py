"""What a contender is: gce, a limit of the machine, or another package doing the same work."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import gce
from gce.bench.cases import BACKWARD, BINARY, FORWARD, IN_PLACE, PRODUCT, Data

__all__ = [
    "CannotDo",
    "Contender",
    "TimesItself",
    "Work",
    "gce_itself",
    "gce_new_gradient",
    "work_of_gce",
]

# Does the work once: gives the loss of a forward pass, otherwise (loss, gradient).
Work = Callable[[], Any]


class TimesItself(Protocol):
    """Work that is done in another process, and timed there."""

    def __call__(self) -> Any:
        """Do the work once; of the gradient, its first and last rows are enough."""

    def seconds(self, repeats: int) -> float:
        """Seconds of one execution, the mean of several."""


class CannotDo(Exception):
    """The contender has no way to do this case; the message says why."""


@dataclass(frozen=True)
class Contender:
    """Somebody whose time is taken.

    Attributes
    ----------
    name : str
        In tables and pictures.
    make : callable
        Data and a number of threads to the work, on warm buffers; raises `CannotDo`.
    package : str or None
        What it imports, if it is a peer.
    plain : bool
        It computes cross-entropy, that is gamma = 0: less work than the others do.
    checked : bool
        What its work returns is a result, to compare with gce's.
    isa : str or None
        gce's instruction set in its turns, if not that of the run.
    keeps_memory : bool
        It keeps what it allocates: only the first call's memory can be seen.
    """

    name: str
    make: Callable[[Data, int], Work]
    package: str | None = None
    plain: bool = False
    checked: bool = True
    isa: str | None = None
    keeps_memory: bool = False

    def is_installed(self) -> bool:
        """Whether its package can be imported, as far as that can be known without."""
        try:
            return self.package is None or importlib.util.find_spec(self.package) is not None
        except ValueError:  # a module without a spec
            return False


def work_of_gce(data: Data, gamma: Any, z: Any, out: Any, **options: Any) -> Work:
    """What gce does for a case: its logits are `z`, its gradient `out`, or new if None."""
    case, y, options = data.case, data.targets, {**data.options, **options}
    if case.options == PRODUCT:
        u = data.vector
        return lambda: (0.0, gce.hvp(z, y, u, gamma, out=out, **options))
    is_binary = case.options == BINARY
    if case.work == FORWARD:
        loss = gce.binary_loss if is_binary else gce.loss
        return lambda: loss(z, y, gamma, **options)
    both = gce.binary_loss_and_grad if is_binary else gce.loss_and_grad
    return lambda: both(z, y, gamma, out=out, **options)


def _gce(data: Data, threads: int) -> Work:
    z, out = data.logits, data.out
    if data.case.work == IN_PLACE:
        z = out = z.copy()
    return work_of_gce(data, data.gamma, z, out, num_threads=threads)


def _gce_new(data: Data, threads: int) -> Work:
    if data.case.work != BACKWARD:
        raise CannotDo("only a gradient that is not in place can be new")
    return work_of_gce(data, data.gamma, data.logits, None, num_threads=threads)


gce_itself = Contender("gce", _gce)
gce_new_gradient = Contender("gce, new gradient", _gce_new)
