"""Checks of optimizers' numbers, for both ways to train."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

__all__ = ["check_adamw", "check_range"]


def check_range(name: str, value: Any, below: float = math.inf) -> None:
    """Raise unless the value is a finite number from 0 on, and less than `below`."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating, np.integer)):
        raise TypeError(f"{name} = {value!r}, expected a number")
    if not 0.0 <= value < below:
        limit = "a finite number of at least 0" if below == math.inf else f"0 <= {name} < {below:g}"
        raise ValueError(f"{name} = {value}, expected {limit}")


def check_adamw(betas: Any, eps: Any, weight_decay: Any) -> None:
    """Raise unless these can be an AdamW's."""
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise TypeError(f"betas = {betas!r}, expected two numbers")
    for i, beta in enumerate(betas):
        check_range(f"betas[{i}]", beta, below=1.0)
    check_range("eps", eps)
    check_range("weight_decay", weight_decay)
