"""What tests with PyTorch share: tensors of many shapes, and the loss composed of its functions."""

from __future__ import annotations

import types
import warnings
from typing import Any

import numpy as np

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what importing torch warns of is its own affair
    try:
        import torch
    except ModuleNotFoundError:
        torch = None  # type: ignore[assignment]

SHAPES = {  # (N, C, ...), the class axis second as PyTorch has it; and (C,)
    "a row": (7,),
    "rows": (13, 7),
    "one class": (5, 1),
    "many classes": (3, 1100),
    "sequences": (4, 7, 5),
    "images": (2, 7, 3, 4),
    "volumes": (2, 3, 2, 3, 2),
    "no rows": (0, 7),
}


def functional() -> types.ModuleType:
    import torch.nn.functional

    return torch.nn.functional


def axis_of(shape: tuple[int, ...]) -> int:
    return min(1, len(shape) - 1)


def problem(shape: tuple[int, ...], dtype: str, seed: int = 0) -> tuple[Any, Any]:
    """Logits and targets as tensors, some targets being -100."""
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(3 * rng.standard_normal(shape)).to(getattr(torch, dtype))
    rows = tuple(np.delete(shape, axis_of(shape)))
    targets = torch.from_numpy(rng.integers(0, shape[axis_of(shape)], rows))
    if rows:
        targets[torch.from_numpy(rng.random(rows) < 0.2)] = -100
    return logits, targets


def leaf(tensor: Any) -> Any:
    """A tensor of the same numbers and layout that collects its gradient."""
    return tensor.detach().clone(memory_format=torch.preserve_format).requires_grad_()


def composed(
    logits: Any, targets: Any, gamma: Any, threshold: Any, value: str, axis: int = -1
) -> Any:
    """The loss of each row in PyTorch's ops, without care for numerics."""
    log_p = functional().log_softmax(logits, dim=axis)
    log_p = log_p.gather(axis, targets.unsqueeze(axis)).squeeze(axis)
    p = log_p.exp()
    gamma, threshold = (
        torch.as_tensor(item, dtype=log_p.dtype).expand(log_p.shape) for item in (gamma, threshold)
    )
    if value == "surrogate":
        weight = torch.maximum(p / (gamma + (1 - gamma) * p), threshold)
        return weight.detach() * -log_p
    delta = 1 - gamma
    safe = delta.where(delta > 0, torch.ones_like(delta))
    head = torch.where(delta > 0, -torch.log(gamma + delta * p) / safe, 1 - p)
    knee = threshold * gamma / (1 - threshold * delta).clamp(min=1e-300)
    at_knee = torch.where(delta > 0, -torch.log(gamma + delta * knee) / safe, 1 - knee)
    tail = at_knee + threshold * (torch.log(knee.clamp(min=1e-300)) - log_p)
    return torch.where(p < knee, tail, head)
