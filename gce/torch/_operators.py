"""The operators of ``torch.ops.gce``: kernels on CPU tensors, and what they return of which shape.

``gamma_cross_entropy`` -> loss, grad
    `gce.loss`, or with `with_grad` `gce.loss_and_grad`; else ``grad`` is empty.
``gamma_cross_entropy_hvp`` -> product
    `gce.hvp`.
``gamma_cross_entropy_gamma_grad`` -> dL/dγ
    `gce.loss_gamma_grad`.
``gamma_grad`` -> dL/dγ of log-probabilities
    The ufunc `gce.gamma_grad`.

Losses are float32, float64 of float64 logits. Derivatives are in `_autograd`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import gce
from gce.torch import _autograd
from gce.torch._arrays import arguments_of, array_of, errors_of_pytorch
from gce.torch._options import OPTIONS_SCHEMA, Options, class_axis

__all__: list[str] = []


def _operator(schema: str) -> Callable[[Callable[..., Any]], Any]:
    """Register a kernel under ``torch.ops.gce`` by its own name."""

    def register(kernel: Callable[..., Any]) -> Any:
        operator = torch.library.custom_op(
            f"gce::{kernel.__name__}", kernel, mutates_args=(), device_types="cpu", schema=schema
        )
        operator.register_vmap(_no_vmap)
        return operator

    return register


def _no_vmap(*_: Any) -> Any:
    raise NotImplementedError(
        "gce.torch has no rule for torch.vmap: give input and target their batch axes, of which "
        "there may be any number, and per-row losses are those of reduction='none'"
    )


# --- kernels --------------------------------------------------------------------------------------


@_operator(
    "(Tensor input, Tensor target, Tensor gamma, bool with_grad, Tensor? grad_output, "
    f"{OPTIONS_SCHEMA}) -> (Tensor loss, Tensor grad)"
)
def gamma_cross_entropy(
    input: torch.Tensor,
    target: torch.Tensor,
    gamma: torch.Tensor,
    with_grad: bool,
    grad_output: torch.Tensor | None,
    *options: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    with errors_of_pytorch():
        logits, targets, gammas = array_of(input), array_of(target), array_of(gamma)
        arguments = arguments_of(input, Options(*options))
        if not with_grad:
            loss: Any = gce.loss(logits, targets, gammas, **arguments)
            return torch.from_numpy(np.asarray(loss)), input.new_empty(0)
        if grad_output is not None:
            arguments["grad_output"] = array_of(grad_output)
        grad = torch.empty_like(input)
        loss, _ = gce.loss_and_grad(logits, targets, gammas, out=array_of(grad), **arguments)
        return torch.from_numpy(np.asarray(loss)), grad


@_operator(
    f"(Tensor input, Tensor target, Tensor vector, Tensor gamma, {OPTIONS_SCHEMA}) -> Tensor"
)
def gamma_cross_entropy_hvp(
    input: torch.Tensor,
    target: torch.Tensor,
    vector: torch.Tensor,
    gamma: torch.Tensor,
    *options: Any,
) -> torch.Tensor:
    product = torch.empty_like(input)
    with errors_of_pytorch():
        arrays = (array_of(tensor) for tensor in (input, target, vector, gamma))
        gce.hvp(*arrays, out=array_of(product), **arguments_of(input, Options(*options)))
    return product


@_operator(
    f"(Tensor input, Tensor target, Tensor gamma, Tensor grad_output, {OPTIONS_SCHEMA}) -> Tensor"
)
def gamma_cross_entropy_gamma_grad(
    input: torch.Tensor,
    target: torch.Tensor,
    gamma: torch.Tensor,
    grad_output: torch.Tensor,
    *options: Any,
) -> torch.Tensor:
    with errors_of_pytorch():
        slope: Any = gce.loss_gamma_grad(
            array_of(input),
            array_of(target),
            array_of(gamma),
            grad_output=array_of(grad_output),
            **arguments_of(input, Options(*options)),
        )
    return torch.from_numpy(np.asarray(slope))


@_operator("(Tensor log_p, Tensor gamma) -> Tensor")
def gamma_grad(log_p: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.asarray(gce.gamma_grad(array_of(log_p), array_of(gamma))))


# --- results without numbers, for what only traces ------------------------------------------------


def _like_loss_and_grad(
    input: torch.Tensor,
    target: torch.Tensor,
    gamma: torch.Tensor,
    with_grad: bool,
    grad_output: torch.Tensor | None,
    *options: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    axis = class_axis(input)
    rows = (*input.shape[:axis], *input.shape[axis + 1 :])
    loss = input.new_empty(
        rows if Options(*options).reduction == "none" else (),
        dtype=torch.float64 if input.dtype == torch.float64 else torch.float32,
    )
    return loss, torch.empty_like(input) if with_grad else input.new_empty(0)


def _like_input(input: torch.Tensor, *_: Any) -> torch.Tensor:
    return torch.empty_like(input)


def _like_gamma(
    input: torch.Tensor, target: torch.Tensor, gamma: torch.Tensor, *_: Any
) -> torch.Tensor:
    return gamma.new_empty(gamma.shape, dtype=torch.float64)


def _like_both(log_p: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    return log_p.new_empty(torch.broadcast_shapes(log_p.shape, gamma.shape))


gamma_cross_entropy.register_fake(_like_loss_and_grad)
gamma_cross_entropy_hvp.register_fake(_like_input)
gamma_cross_entropy_gamma_grad.register_fake(_like_gamma)
gamma_grad.register_fake(_like_both)

gamma_cross_entropy.register_autograd(_autograd.backward, setup_context=_autograd.keep)
gamma_cross_entropy_hvp.register_autograd(_autograd.no_third_derivative)
gamma_grad.register_autograd(_autograd.gamma_grad_backward, setup_context=_autograd.gamma_grad_keep)
