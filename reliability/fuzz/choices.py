"""Decisions from bytes: what a fuzzer changes is which decision falls how."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


class Choices:
    """Takes one or two bytes for each decision; where none are left, all are 0.

    So 0 is everywhere the most ordinary choice: no bytes at all are a plain valid call.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def byte(self) -> int:
        """From 0 to 255."""
        self.at += 1
        return self.data[self.at - 1] if self.at <= len(self.data) else 0

    def below(self, n: int) -> int:
        """From 0 to n - 1."""
        return self.number() % n if n > 256 else self.byte() % n

    def number(self) -> int:
        """From 0 to 65535."""
        return self.byte() + 256 * self.byte()

    def one(self, of: Sequence[T]) -> T:
        """One of these."""
        return of[self.below(len(of))]

    def chance(self, share: float) -> bool:
        """Whether a thing happens that does in this share of cases; never without bytes left."""
        return self.byte() >= 256 - round(256 * share)

    def rng(self) -> np.random.Generator:
        """For what is many numbers: a fuzzer cannot aim at each of them."""
        return np.random.default_rng(self.number())
