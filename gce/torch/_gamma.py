"""Derivatives in γ that can be differentiated again: of the loss, and of its gradient.

In float64, from log-probabilities ℓ and PyTorch's functions. Where none of that is wanted, the core
has ∂L/∂γ in one pass (`gce.loss_gamma_grad`).

With s = γ + δp, δ = 1 − γ and x = δ(1 − p) = 1 − s::

    ∂L/∂γ = −(x/s + log s) / δ²          the ufunc gce.gamma_grad
    ∂²L/∂γ∂ℓ = p (1 − p) / s²            as ∂L/∂ℓ = −p/s
    ∂²L/∂γ² = (x²/s² − 2x/s − 2 log s) / δ³

Below the knee log t* of a thresholded loss, ∂L/∂γ is that at ℓ = log t*.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from gce.torch._options import Options, class_axis, moved

__all__ = ["curvature", "gamma_gradient", "mixed"]


def mixed(log_p: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    """∂²L/∂γ∂ℓ at b = 0."""
    p, miss = log_p.exp(), -log_p.expm1()
    s = gamma + (1.0 - gamma) * p
    return (p / s) * (miss / s)


TERMS = 60  # of a series in x <= 1/2: the first that is left out is below 2^-57 of the sum


def curvature(log_p: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    """∂²L/∂γ² at b = 0.

    The three terms of the formula agree to order x³. For small x it is the series
    ``(1 − p)³ Σ_{k≥3} (k − 1)(k − 2)/k x^(k−3)``.
    """
    miss, delta = -log_p.expm1(), 1.0 - gamma
    x = delta * miss
    small = x < 0.5
    near, series = x.clamp(max=0.5), torch.zeros_like(x)
    for k in range(TERMS + 2, 2, -1):
        series = series * near + (k - 1) * (k - 2) / k
    s = torch.where(small, 1.0, gamma + delta * log_p.exp())  # 1 - x, with all its digits
    ratio = x / s
    formula = (ratio * ratio - 2.0 * ratio - 2.0 * s.log()) / torch.where(small, 1.0, delta) ** 3
    return torch.where(small, miss**3 * series, formula)


class _Terms(NamedTuple):
    """What the reduced loss is the sum of: ``Σ share · L(log_p)``, over rows or all classes."""

    log_p: torch.Tensor
    share: torch.Tensor
    direction: torch.Tensor | None  # derivative of log_p in the logits along grad_grad


def gamma_gradient(
    input: torch.Tensor,
    target: torch.Tensor,
    gamma: torch.Tensor,
    options: Options,
    grad_loss: torch.Tensor | None,
    grad_grad: torch.Tensor | None,
) -> torch.Tensor:
    """∂/∂γ of ``grad_loss · loss + <grad_grad, grad>``, of γ's shape and dtype."""
    of_each_class = target.is_floating_point()

    def per_term(tensor: torch.Tensor) -> torch.Tensor:
        """Of one number per row (or for all) the one of each term."""
        tensor = tensor.double()
        is_row = of_each_class and tensor.dim() > 0
        return tensor.unsqueeze(class_axis(input)) if is_row else tensor

    terms = (_terms_of_probabilities if of_each_class else _terms_of_classes)(
        input, target, options, grad_grad
    )
    threshold = options.row_threshold
    if threshold is None:
        threshold = torch.tensor(options.threshold, dtype=torch.float64, device="cpu")
    of_terms = per_term(gamma).expand(terms.log_p.shape)
    log_p, is_head = _above_the_knee(terms.log_p, of_terms, per_term(threshold))
    total = torch.zeros_like(log_p)
    if grad_loss is not None:
        total = per_term(grad_loss) * torch.ops.gce.gamma_grad(log_p, of_terms)
    if terms.direction is not None:
        slope = mixed(log_p, of_terms) * terms.direction
        total = total + torch.where(is_head, slope, 0.0)
    # A row that does not count may be infinite.
    total = torch.where(terms.share == 0.0, 0.0, terms.share * total)
    if of_each_class:
        total = total.sum(class_axis(input))
    return total.sum_to_size(gamma.shape).to(gamma.dtype)


def _above_the_knee(
    log_p: torch.Tensor, gamma: torch.Tensor, threshold: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """``max(ℓ, log t*)`` with ``t* = bγ / (1 − bδ)``, and where that is ℓ."""
    is_all = threshold >= 1.0  # 0/0 at γ = 0; t* = 1 for every γ
    knee = threshold * gamma / torch.where(is_all, 1.0, 1.0 - threshold * (1.0 - gamma))
    knee = torch.where(is_all, 1.0, knee)
    log_knee = torch.where(knee > 0.0, knee, 1.0).log()
    is_head = (knee == 0.0) | (log_p >= log_knee)
    return torch.where(is_head, log_p, log_knee), is_head


def _terms_of_classes(
    input: torch.Tensor, target: torch.Tensor, options: Options, grad_grad: torch.Tensor | None
) -> _Terms:
    """A term for each row, whose ℓ is minus its cross-entropy."""
    plain = Options(
        ignore_index=options.ignore_index,
        softcap=options.softcap,
        shift=options.shift,
        reduction="none",
    )
    with_grad = grad_grad is not None or (torch.is_grad_enabled() and input.requires_grad)
    zero = torch.zeros((), dtype=torch.float64, device="cpu")
    cross_entropy, grad = torch.ops.gce.gamma_cross_entropy(
        input, target, zero, with_grad, None, *plain
    )
    counted = moved(torch.ones_like(target, dtype=torch.bool), options.shift)
    if options.ignore_index is not None:
        counted = counted & (target != options.ignore_index)
    share = counted.double()
    if options.weight is not None:
        share = share * options.weight.double()[torch.where(counted, target, 0).long()]
    if options.sample_weight is not None:
        share = share * options.sample_weight.double()
    direction = None
    if grad_grad is not None:
        direction = -(grad.double() * grad_grad.double()).sum(class_axis(input))
        direction = moved(direction, options.shift)
    return _Terms(-cross_entropy.double(), _reduced(share, share.sum(), options), direction)


def _terms_of_probabilities(
    input: torch.Tensor, target: torch.Tensor, options: Options, grad_grad: torch.Tensor | None
) -> _Terms:
    """A term for each class of each row."""
    axis = class_axis(input)
    row_axis = -1 if input.dim() > 2 else 0
    logits, slope = input.double(), torch.ones((), dtype=torch.float64, device="cpu")
    if options.softcap:
        slope = 1.0 / torch.cosh(logits / options.softcap) ** 2  # of κ tanh(z / κ)
        logits = options.softcap * torch.tanh(logits / options.softcap)
    log_q = torch.log_softmax(logits, axis)
    counted = moved(torch.ones_like(input.select(axis, 0)).double(), options.shift)
    share = target.double() * counted.unsqueeze(axis)
    if options.weight is not None:
        share = share * options.weight.double().reshape(-1, *(1,) * (input.dim() - axis - 1))
    if options.sample_weight is not None:
        share = share * options.sample_weight.double().unsqueeze(axis)
    direction = None
    if grad_grad is not None:
        along = grad_grad.double() * slope
        direction = along - (log_q.exp() * along).sum(axis, keepdim=True)
        direction = moved(direction, options.shift, row_axis)
    log_q = moved(log_q, options.shift, row_axis)
    return _Terms(log_q, _reduced(share, counted.sum(), options), direction)


def _reduced(share: torch.Tensor, divisor: torch.Tensor, options: Options) -> torch.Tensor:
    """Each term's share in the reduced loss."""
    share = share * (1.0 - options.label_smoothing)
    if options.reduction != "mean":
        return share
    if options.normalizer is not None:
        return share / options.normalizer
    return torch.where(divisor == 0.0, 0.0, share / divisor)
