"""Optimizers as blocks of onnxblock."""

from __future__ import annotations

from typing import Any

from gce.onnx._hyperparameters import check_adamw
from gce.onnx.ort_training._runtime import onnxblock

__all__ = ["AdamW"]


class AdamW(onnxblock.optim.AdamW):  # type: ignore[misc]  # onnxruntime has no types
    """AdamW as ``torch.optim.AdamW`` has it, and `gce.onnx.training.AdamW`.

    onnxblock's own, ``OptimType.AdamW``, is that of Hugging Face, which adds ε before it corrects
    for bias, decays weights after the step, and has other defaults: ε = 1e-6 and no decay. With
    gradient g, at step t::

        m = β₁ m + (1 − β₁) g
        v = β₂ v + (1 − β₂) g²
        w = (1 − lr · weight_decay) w
        w = w − lr · (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + ε)

    Parameters
    ----------
    betas : pair of float
        β₁ and β₂, in [0, 1).
    eps : float
        ε, at least 0.
    weight_decay : float
        At least 0.
    clip_grad : onnxblock.optim.ClipGradNorm, optional

    Raises
    ------
    TypeError, ValueError
        A parameter of the wrong type or out of its range.

    Examples
    --------
    >>> from gce.onnx import ort_training
    >>> optimizer = ort_training.AdamW(weight_decay=0.1)  # for generate_artifacts
    """

    def __init__(
        self,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        clip_grad: Any = None,
    ) -> None:
        super().__init__(betas=betas, eps=eps, weight_decay=weight_decay, clip_grad=clip_grad)
        check_adamw(betas, eps, weight_decay)

    def _optimizer_specific_logic(self, *arguments: Any) -> Any:
        flag = super()._optimizer_specific_logic(*arguments)
        (node,) = (node for node in self.base.graph.node if node.op_type == "AdamWOptimizer")
        (mode,) = (attribute for attribute in node.attribute if attribute.name == "adam_mode")
        mode.i = 0  # PyTorch's formula, in place of Hugging Face's
        return flag
