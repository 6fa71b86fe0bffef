"""The γ-cross-entropy as a function of jax: under `jax.jit`, `jax.grad` and `jax.vmap`, on CPU.

`gamma_cross_entropy` is a custom call of XLA that works on XLA's own buffers and threads, with the
core that `gce.loss_and_grad` and `gce.hvp` use, bit for bit.

`import gce` does not import jax; this module does, and needs jax 0.5 or newer
(``pip install 'gamma-ce[jax]'``).
"""

from __future__ import annotations

import importlib

try:
    importlib.import_module("jax.ffi")
except ModuleNotFoundError as error:
    if error.name not in ("jax", "jaxlib", "jax.ffi"):
        raise
    raise ModuleNotFoundError(
        "gce.jax needs jax 0.5 or newer, which is not installed: pip install 'gamma-ce[jax]'",
        name=error.name,
    ) from error

from gce.jax._loss import gamma_cross_entropy

__all__ = ["gamma_cross_entropy"]
