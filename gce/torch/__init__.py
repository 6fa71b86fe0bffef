"""The γ-cross-entropy for PyTorch: autograd, ``torch.compile`` and export, on CPU tensors.

`gamma_cross_entropy` and `GammaCrossEntropyLoss` stand beside ``torch.nn.functional.cross_entropy``
and ``torch.nn.CrossEntropyLoss``, with γ after the target. Loss and gradient are computed by the
core of `gce.loss_and_grad`, in one pass over the tensors' own memory.

- **Class axis** 1, as in PyTorch: (N, C, d1...dk) or (C,). No layout is copied.
- **Passes.** Where no gradient is wanted, the loss alone is computed. Else the forward pass
  computes both and keeps the gradient, which the backward pass multiplies: in place, where the
  graph is not retained. float16 waits for the factor, as what ``torch.amp.GradScaler`` does against
  underflow would come too late otherwise.
- **Second derivatives** in the logits (by `gce.hvp`) and in γ, of the surrogate value those of its
  gradient. There are no third ones.
- **Only input and γ are differentiated.** Any other tensor that requires grad is an error.
- **The loss has the logits' dtype**, as PyTorch's has, and float32 under ``torch.autocast``; it is
  computed in float32 or better in any case.
- **An empty mean** (every target ignored) is 0 with gradient 0, not NaN.
- **Threads**: as many as ``torch.get_num_threads()`` says.
- **Errors** are those of `gce.loss` in type and text. TypeErrors and ValueErrors are RuntimeErrors
  too, which is what PyTorch raises for most of them; their text calls the input ``logits`` and the
  target ``targets``.

``pip install 'gamma-ce[torch]'``
"""

from __future__ import annotations

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ModuleNotFoundError(
        "gce.torch needs torch, which is not installed: pip install 'gamma-ce[torch]'",
        name="torch",
    ) from error

from gce.torch._function import gamma_cross_entropy
from gce.torch._module import GammaCrossEntropyLoss
from gce.torch._onnx import onnx_translations, register_onnx_symbolic

__all__ = [
    "GammaCrossEntropyLoss",
    "gamma_cross_entropy",
    "onnx_translations",
    "register_onnx_symbolic",
]
