"""What is measured: named sizes, and the work done on each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

GAMMA = 0.5
FORWARD = "forward"
BACKWARD = "forward + backward"
IN_PLACE = "forward + backward in place"


@dataclass(frozen=True)
class Case:
    """Logits of one size and dtype, and the work on them; arrays are made at first use."""

    name: str
    shape: tuple[int, ...]
    work: str
    dtype: str = "float32"
    axis: int = -1

    @property
    def classes(self) -> int:
        return self.shape[self.axis]

    @cached_property
    def logits(self) -> NDArray[Any]:
        rng = np.random.default_rng(0)
        logits = rng.standard_normal(self.shape, dtype=np.float32) * 3
        return logits.astype(_numpy_dtype(self.dtype), copy=False)

    @cached_property
    def targets(self) -> NDArray[np.int64]:
        shape = list(self.shape)
        del shape[self.axis]
        return np.random.default_rng(1).integers(0, self.classes, size=shape)

    @cached_property
    def out(self) -> NDArray[Any]:
        """A warm buffer for the gradient; the logits themselves for work in place."""
        return self.logits.copy()


def _numpy_dtype(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


CASES = (
    Case("512x32000 fwd", (512, 32000), FORWARD),
    Case("512x32000 fwd+bwd", (512, 32000), BACKWARD),
    Case("512x32000 in place", (512, 32000), IN_PLACE),
    Case("512x128256 fwd", (512, 128256), FORWARD),
    Case("512x128256 fwd+bwd", (512, 128256), BACKWARD),
    Case("512x32000 bf16 fwd+bwd", (512, 32000), BACKWARD, "bfloat16"),
    Case("512x50257 fwd", (512, 50257), FORWARD),
    Case("4096x1000 fwd", (4096, 1000), FORWARD),
    Case("4096x1000 fwd+bwd", (4096, 1000), BACKWARD),
    Case("65536x10 fwd", (65536, 10), FORWARD),
    Case("65536x10 fwd+bwd", (65536, 10), BACKWARD),
    Case("8x21x256x256 fwd+bwd", (8, 21, 256, 256), BACKWARD, axis=1),
    Case("32x10 fwd+bwd", (32, 10), BACKWARD),
)
