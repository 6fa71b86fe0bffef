"""Derivatives of the operators.

The gradient is an output of the operator like the loss, and saved for the backward pass. So
autograd itself differentiates what the backward pass makes of it, ``grad_output * grad``, and asks
for the product of the Hessian H and a vector where it asks for the derivative of ``grad``.
"""

from __future__ import annotations

from typing import Any

import torch

from gce.torch._gamma import curvature, gamma_gradient, mixed
from gce.torch._options import Options, class_axis, moved

__all__ = ["backward", "gamma_grad_backward", "gamma_grad_keep", "keep", "no_third_derivative"]

OTHERS = 2 + len(Options._fields)  # arguments after γ, none of which is differentiated


def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Save what `backward` needs."""
    input, target, gamma, with_grad, _, *rest = inputs
    options = Options(*rest)
    ctx.set_materialize_grads(False)  # zeros would cost a Hessian-vector product
    ctx.with_grad = with_grad
    if not with_grad:
        ctx.mark_non_differentiable(output[1])  # it is empty
    ctx.numbers = options.numbers()
    ctx.save_for_backward(input, target, gamma, *options.tensors(), output[1])


def backward(
    ctx: Any, grad_loss: torch.Tensor | None, grad_grad: torch.Tensor | None
) -> tuple[torch.Tensor | None, ...]:
    """Gradients in the input and in γ, of ``grad_loss · loss + <grad_grad, grad>``."""
    input, target, gamma, *tensors, grad = ctx.saved_tensors
    options = Options(*tensors, *ctx.numbers)
    of_input = of_gamma = None
    if ctx.needs_input_grad[0] and grad_loss is not None:
        if ctx.with_grad:
            of_input = _scaled(grad, grad_loss, options)
        else:
            of_input = _late_gradient(input, target, gamma, grad_loss, options)
    if ctx.needs_input_grad[0] and grad_grad is not None:
        product = torch.ops.gce.gamma_cross_entropy_hvp(input, target, grad_grad, gamma, *options)
        of_input = product if of_input is None else of_input + product
    if ctx.needs_input_grad[2] and (torch.is_grad_enabled() or grad_grad is not None):
        of_gamma = gamma_gradient(input, target, gamma, options, grad_loss, grad_grad)
    elif ctx.needs_input_grad[2] and grad_loss is not None:
        of_gamma = torch.ops.gce.gamma_cross_entropy_gamma_grad(
            input, target, gamma, grad_loss, *options
        ).to(gamma.dtype)
    return (of_input, None, of_gamma, *(None,) * OTHERS)


def _late_gradient(
    input: torch.Tensor,
    target: torch.Tensor,
    gamma: torch.Tensor,
    grad_loss: torch.Tensor,
    options: Options,
) -> torch.Tensor:
    """The gradient where the forward pass did not compute it: with its factor, in one pass."""
    operator = torch.ops.gce.gamma_cross_entropy
    if not torch.is_grad_enabled():
        grad: torch.Tensor = operator(input, target, gamma, True, grad_loss, *options)[1]
        return grad
    grad = operator(input, target, gamma, True, None, *options)[1]  # can be differentiated again
    return _scaled(grad, grad_loss, options)


def _scaled(grad: torch.Tensor, factor: torch.Tensor, options: Options) -> torch.Tensor:
    """The gradient times its factor, a number or one per row."""
    if options.reduction == "none" and grad.dim() > 1:
        factor = moved(factor, -options.shift).unsqueeze(class_axis(grad))
    if _is_last_use(grad) and torch._C._has_storage(factor):  # and is no batch under vmap
        # A gradient is large: a pass over it, and new memory for it, cost as much as the loss.
        grad = grad.detach()
        return grad if factor.dim() == 0 and factor.item() == 1.0 else grad.mul_(factor)
    return (grad * factor).to(grad.dtype)


def _is_last_use(saved: torch.Tensor) -> bool:
    """Whether nobody can see a saved tensor after this backward pass, so that it may be changed."""
    return (
        type(saved) is torch.Tensor  # nothing is being traced,
        and not torch.compiler.is_compiling()
        and not torch.is_grad_enabled()  # no derivative of this pass is wanted,
        and not torch._C._autograd._get_current_graph_task_keep_graph()  # and not another pass
    )


def no_third_derivative(*_: Any) -> Any:
    """Say so; the derivative of a Hessian-vector product was asked for."""
    raise NotImplementedError(
        "gce.torch has first and second derivatives of gamma_cross_entropy, no third ones"
    )


def gamma_grad_keep(ctx: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
    """Save what `gamma_grad_backward` needs."""
    ctx.save_for_backward(*inputs)


def gamma_grad_backward(
    ctx: Any, grad: torch.Tensor
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Second derivatives ∂²L/∂γ∂ℓ and ∂²L/∂γ²."""
    log_p, gamma = ctx.saved_tensors
    of_log_p = of_gamma = None
    if ctx.needs_input_grad[0]:
        of_log_p = grad * mixed(log_p, gamma)
    if ctx.needs_input_grad[1]:
        of_gamma = (grad * curvature(log_p, gamma)).sum_to_size(gamma.shape)
    return of_log_p, of_gamma
