"""SGD and AdamW in standard ONNX operators, with the formulas and defaults of ``torch.optim``.

An optimizer says which state it keeps for each parameter (`slots`), and emits the nodes of one
step. Elementwise operators are what a step of it costs, each a pass over memory, and so the
formulas are arranged to need few.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from gce.onnx._hyperparameters import check_adamw, check_range
from gce.onnx.training._nodes import Nodes

__all__ = ["SGD", "AdamW", "Optimizer"]


class Optimizer(Protocol):
    """What `training_graph` needs of an optimizer."""

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the arrays that it keeps for each parameter, which begin as zeros."""

    @property
    def counts_steps(self) -> bool:
        """Whether it needs the number of the step."""

    def scalars(self, nodes: Nodes, learning_rate: str, step: str) -> dict[str, str]:
        """Emit what is the same for all parameters: names of float64 scalars.

        `step` is the number of this step, counted from 1, a float64 scalar ("" if not needed).
        """

    def update(
        self,
        nodes: Nodes,
        old: Mapping[str, str],
        new: Mapping[str, str],
        scalars: Mapping[str, str],
        dtype: npt.DTypeLike,
    ) -> None:
        """Emit the step of one parameter.

        `old` has the names of its value and gradient, under "parameter" and "gradient", and of each
        slot; `new` those that the new values must get.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class SGD:
    """Stochastic gradient descent, as ``torch.optim.SGD``.

    ``g ← g + weight_decay · p``, ``m ← momentum · m + g``, ``p ← p − learning_rate · m``; with
    `nesterov`, ``p ← p − learning_rate · (g + momentum · m)``.

    Parameters
    ----------
    momentum : float
        In [0, 1). 0: no state is kept.
    nesterov : bool
        Needs a momentum above 0.
    weight_decay : float
        At least 0; part of the gradient.

    Raises
    ------
    TypeError, ValueError
        An argument is not a number, or outside its range.

    Examples
    --------
    >>> from gce.onnx.training import SGD
    >>> SGD(momentum=0.9)
    SGD(momentum=0.9, nesterov=False, weight_decay=0.0)
    """

    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    counts_steps: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_range("momentum", self.momentum, below=1.0)
        check_range("weight_decay", self.weight_decay)
        if not isinstance(self.nesterov, (bool, np.bool_)):
            raise TypeError(f"nesterov = {self.nesterov!r}, expected True or False")
        keep_plain(self, float, "momentum", "weight_decay")
        keep_plain(self, bool, "nesterov")
        if self.nesterov and self.momentum == 0.0:
            raise ValueError("nesterov = True with momentum = 0.0, expected a momentum above 0")

    @property
    def slots(self) -> tuple[str, ...]:
        """The momentum, if there is any."""
        return ("momentum",) if self.momentum else ()

    def scalars(self, nodes: Nodes, learning_rate: str, step: str) -> dict[str, str]:
        """Emit nothing: the learning rate is all."""
        return {"rate": learning_rate}

    def update(
        self,
        nodes: Nodes,
        old: Mapping[str, str],
        new: Mapping[str, str],
        scalars: Mapping[str, str],
        dtype: npt.DTypeLike,
    ) -> None:
        """Emit the formula of the class."""
        parameter, gradient = old["parameter"], old["gradient"]
        if self.weight_decay:
            decay = nodes.op("Mul", parameter, nodes.constant(self.weight_decay, dtype))
            gradient = nodes.op("Add", gradient, decay)
        direction = gradient
        if self.momentum:
            momentum = nodes.constant(self.momentum, dtype)
            kept = nodes.op("Mul", old["momentum"], momentum)
            direction = nodes.op("Add", kept, gradient, output=new["momentum"])
        if self.nesterov:
            direction = nodes.op("Add", gradient, nodes.op("Mul", direction, momentum))
        change = nodes.op("Mul", direction, scalars["rate"])
        nodes.op("Sub", parameter, change, output=new["parameter"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW:
    """Adam with decoupled weight decay (arXiv 1711.05101), as ``torch.optim.AdamW``.

    ``m ← β1 m + (1−β1) g``, ``v ← β2 v + (1−β2) g²``, ``p ← (1 − learning_rate · weight_decay) p −
    learning_rate · m̂ / (√v̂ + eps)``, where ``m̂ = m / (1−β1ᵗ)`` and ``v̂ = v / (1−β2ᵗ)`` in step t.
    The state that is kept is ``m / (1−β1)`` and ``v / (1−β2)``, which takes fewer operators.

    Parameters
    ----------
    betas : tuple of two float
        β1 and β2, in [0, 1).
    eps : float
        At least 0.
    weight_decay : float
        At least 0. (PyTorch's default is 0.01.)
    no_decay : tuple of str
        Names of parameters that do not decay, such as biases and the scales of normalizations. It
        is kept sorted.

    Raises
    ------
    TypeError, ValueError
        An argument is not a number, or outside its range.

    Examples
    --------
    >>> from gce.onnx.training import AdamW
    >>> AdamW(weight_decay=0.1).slots
    ('grad_sum', 'grad_square_sum')
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    no_decay: tuple[str, ...] = ()
    counts_steps: ClassVar[bool] = True
    slots: ClassVar[tuple[str, ...]] = ("grad_sum", "grad_square_sum")

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_adamw(self.betas, self.eps, self.weight_decay)
        no_decay: Any = self.no_decay
        if isinstance(no_decay, str) or not isinstance(no_decay, Iterable):
            raise TypeError(f"no_decay = {no_decay!r}, expected several names")
        names = list(no_decay)
        for name in names:
            if not isinstance(name, str):
                raise TypeError(f"no_decay has {name!r}, expected names")
        object.__setattr__(self, "betas", tuple(map(float, self.betas)))
        object.__setattr__(self, "no_decay", tuple(sorted(set(names))))
        keep_plain(self, float, "eps", "weight_decay")

    def scalars(self, nodes: Nodes, learning_rate: str, step: str) -> dict[str, str]:
        """Emit the factors that bring the two sums and the step size together.

        With M and V for the state, ``m̂ / (√v̂ + eps) = (1−β1) / (1−β1ᵗ) · M / (k √V + eps)`` where
        ``k² = (1−β2) / (1−β2ᵗ)``: one factor for ``M / (√V + eps / k)``.
        """
        double = np.float64

        def unbiased(beta: float) -> str:
            power = nodes.op("Pow", nodes.constant(beta, double), step)
            rest = nodes.op("Sub", nodes.constant(1.0, double), power)
            return nodes.op("Div", nodes.constant(1.0 - beta, double), rest)

        first, second = map(unbiased, self.betas)
        k = nodes.op("Sqrt", second)
        rate = nodes.op("Div", nodes.op("Mul", learning_rate, first), k)
        scalars = {"rate": rate, "eps": nodes.op("Div", nodes.constant(self.eps, double), k)}
        if self.weight_decay:
            decay = nodes.op("Mul", learning_rate, nodes.constant(self.weight_decay, double))
            scalars["keep"] = nodes.op("Sub", nodes.constant(1.0, double), decay)
        return scalars

    def update(
        self,
        nodes: Nodes,
        old: Mapping[str, str],
        new: Mapping[str, str],
        scalars: Mapping[str, str],
        dtype: npt.DTypeLike,
    ) -> None:
        """Emit the formula of the class; without "keep" among the scalars, nothing decays."""
        parameter, gradient = old["parameter"], old["gradient"]
        square = nodes.op("Mul", gradient, gradient)
        total, squares = (
            nodes.op("Add", nodes.op("Mul", old[slot], nodes.constant(beta, dtype)), term,
                     output=new[slot])
            for slot, beta, term in zip(self.slots, self.betas, (gradient, square), strict=True)
        )  # fmt: skip
        scale = nodes.op("Add", nodes.op("Sqrt", squares), scalars["eps"])
        change = nodes.op("Mul", nodes.op("Div", total, scale), scalars["rate"])
        start = nodes.op("Mul", parameter, scalars["keep"]) if "keep" in scalars else parameter
        nodes.op("Sub", start, change, output=new["parameter"])


def keep_plain(optimizer: Any, kind: Callable[[Any], Any], *names: str) -> None:
    """Make plain numbers of numpy's: a checkpoint compares how an optimizer prints itself."""
    for name in names:
        object.__setattr__(optimizer, name, kind(getattr(optimizer, name)))
