"""Counts in a file: what was counted is not lost where the process ends by a crash."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np


class Tally:
    """How often each of some names was counted, by all processes that opened the file."""

    def __init__(self, path: str | Path, names: Sequence[str]) -> None:
        self.names = list(names)
        if not Path(path).exists():
            Path(path).write_bytes(bytes(8 * len(names)))
        self._counts = np.memmap(path, np.int64, "r+", shape=(len(names),))

    def count(self, name: str) -> None:
        """One more."""
        self._counts[self.names.index(name)] += 1

    def figures(self) -> dict[str, int]:
        """By name."""
        return dict(zip(self.names, map(int, self._counts), strict=True))
