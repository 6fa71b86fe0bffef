"""The loss as a module."""

from __future__ import annotations

import torch

from gce._types import Reduction, Value
from gce.torch._function import gamma_cross_entropy

__all__ = ["GammaCrossEntropyLoss"]


class GammaCrossEntropyLoss(torch.nn.CrossEntropyLoss):  # type: ignore[misc] # torch may be absent
    """γ-cross-entropy as a module: ``torch.nn.CrossEntropyLoss`` with γ in front of its arguments.

    Parameters
    ----------
    gamma : float or Tensor
        γ in [0, 1], as for `gamma_cross_entropy`. An attribute that may be set at any time, as a
        schedule does. A ``torch.nn.Parameter`` is one of the module's, and learnt.
    weight, size_average, ignore_index, reduce, reduction, label_smoothing
        As for ``torch.nn.CrossEntropyLoss``.
    threshold, value, z_loss, softcap, shift, normalizer
        As for `gamma_cross_entropy`. Attributes too.

    Raises
    ------
    TypeError, ValueError, IndexError, NotImplementedError, RuntimeError
        When it is called: as from `gamma_cross_entropy`.

    Notes
    -----
    It is a ``torch.nn.CrossEntropyLoss``, so that libraries that look for one know that the
    model's outputs are logits. In ``state_dict()`` are, as there, class weights alone, and γ where
    it is a parameter.

    Examples
    --------
    >>> import torch
    >>> from gce import schedules
    >>> from gce.torch import GammaCrossEntropyLoss
    >>> criterion = GammaCrossEntropyLoss(0.0, label_smoothing=0.1)
    >>> gamma_at = schedules.linear(100, end=0.8)
    >>> logits = torch.zeros(4, 3, requires_grad=True)
    >>> for step in (0, 100):
    ...     criterion.gamma = gamma_at(step)
    ...     print(round(criterion(logits, torch.tensor([0, 1, 2, 0])).item(), 4))
    1.0986
    0.7538
    >>> criterion
    GammaCrossEntropyLoss(gamma=0.8, label_smoothing=0.1)
    """

    def __init__(
        self,
        gamma: float | torch.Tensor,
        weight: torch.Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: Reduction = "mean",
        label_smoothing: float = 0.0,
        *,
        threshold: float | torch.Tensor = 0.0,
        value: Value = "primitive",
        z_loss: float = 0.0,
        softcap: float | None = None,
        shift: int = 0,
        normalizer: float | None = None,
    ) -> None:
        super().__init__(weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        self.gamma = gamma
        self.threshold = threshold
        self.value = value
        self.z_loss = z_loss
        self.softcap = softcap
        self.shift = shift
        self.normalizer = normalizer

    def forward(
        self,
        input: torch.Tensor,
        target: torch.Tensor,
        *,
        sample_weight: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute the loss; `sample_weight` has one weight per row."""
        return gamma_cross_entropy(
            input,
            target,
            self.gamma,
            self.weight,
            self.ignore_index,
            self.reduction,
            self.label_smoothing,
            threshold=self.threshold,
            value=self.value,
            z_loss=self.z_loss,
            softcap=self.softcap,
            shift=self.shift,
            sample_weight=sample_weight,
            normalizer=self.normalizer,
        )

    def extra_repr(self) -> str:
        """γ, and the options that are not the default's."""
        defaults = {
            "weight": None,
            "ignore_index": -100,
            "reduction": "mean",
            "label_smoothing": 0.0,
            "threshold": 0.0,
            "value": "primitive",
            "z_loss": 0.0,
            "softcap": None,
            "shift": 0,
            "normalizer": None,
        }
        shown = {"gamma": _text(self.gamma)}
        for name, default in defaults.items():
            option = getattr(self, name)
            if isinstance(option, torch.Tensor) or option != default:
                shown[name] = _text(option)
        return ", ".join(f"{name}={text}" for name, text in shown.items())


def _text(option: object) -> str:
    """A number or name; of a tensor with several elements its shape."""
    if not isinstance(option, torch.Tensor):
        return repr(option)
    return repr(option.item()) if option.dim() == 0 else f"Tensor{tuple(option.shape)}"
