"""The loss as a function: its arguments become those of the operator."""

from __future__ import annotations

import numbers
from typing import Any

import torch

from gce._types import Reduction, Value
from gce.torch import _operators  # noqa: F401, registers torch.ops.gce
from gce.torch._arrays import TYPES
from gce.torch._options import Options

__all__ = ["gamma_cross_entropy"]

INTEGER = (numbers.Integral, torch.SymInt)
REAL = (numbers.Real, torch.SymInt, torch.SymFloat)
# What the options that are no tensors may be, and how that is called.
KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "ignore_index": ((*INTEGER, type(None)), "int or None"),
    "label_smoothing": (REAL, "float"),
    "z_loss": (REAL, "float"),
    "softcap": ((*REAL, type(None)), "float or None"),
    "shift": (INTEGER, "int"),
    "normalizer": ((*REAL, type(None)), "float or None"),
    "value": ((str,), "str"),
    "reduction": ((str,), "str"),
}


def gamma_cross_entropy(
    input: torch.Tensor,
    target: torch.Tensor,
    gamma: float | torch.Tensor,
    weight: torch.Tensor | None = None,
    ignore_index: int | None = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    *,
    threshold: float | torch.Tensor = 0.0,
    value: Value = "primitive",
    z_loss: float = 0.0,
    softcap: float | None = None,
    shift: int = 0,
    sample_weight: torch.Tensor | None = None,
    normalizer: float | None = None,
) -> torch.Tensor:
    """γ-cross-entropy of logits against target classes, with autograd.

    At ``gamma = 0`` it is ``torch.nn.functional.cross_entropy``, whose arguments mean the same
    here; γ comes third, and what PyTorch does not have is given by keyword.

    Parameters
    ----------
    input : Tensor
        Logits of shape (N, C, d1...dk), or (C,) for a single row: float16, bfloat16, float32 or
        float64, on the CPU, of any strides.
    target : Tensor
        Classes, of any integer dtype and of shape (N, d1...dk), or () for a single row. Or
        probabilities: of floating dtype and the input's shape; they are not differentiated.
    gamma : float or Tensor
        γ in [0, 1]: a number, or one per row (of the shape of target classes). 0 is cross-entropy,
        1 is 1 - p. A tensor may require grad, unless ``value="surrogate"``, whose weight holds γ
        constant; the derivative is never positive, so that descent leads to 1 and no further than
        you let it.
    weight : Tensor, optional
        Class weights of shape (C,).
    ignore_index : int or None
        Rows with this target have loss 0 and gradient 0 and are not counted by the mean.
    reduction : {"mean", "sum", "none"}
        What is made of the rows' losses.
    label_smoothing : float
        ε in [0, 1]: the part of each row's loss that is spread over all classes.
    threshold : float or Tensor
        b in [0, 1], the least gradient weight: a number, or one per row.
    value : {"primitive", "surrogate"}
        The antiderivative, of which finite differences are the gradient, or the paper's
        ``w * -log(p)`` with w held constant. Both have the same gradient.
    z_loss : float
        λ ≥ 0: ``λ logsumexp(z)²`` more for each row.
    softcap : float, optional
        κ > 0: logits become ``κ tanh(z / κ)`` first.
    shift : int
        s ≥ 0: row t along the last axis of rows predicts target t + s, as in a causal language
        model with token ids for targets (s = 1). What there is one of per row stands where the
        target is; the first s do not count.
    sample_weight : Tensor, optional
        Weight of each row.
    normalizer : float, optional
        The mean's divisor, in place of the sum of the counted rows' weights.

    Returns
    -------
    Tensor
        A scalar; for ``reduction="none"`` one loss per row. Of the input's dtype, but float32 where
        ``torch.autocast`` is on and the input has 16 bits.

    Raises
    ------
    TypeError, ValueError
        A wrong dtype; a wrong shape, or an option out of its range. Those found by the core are
        RuntimeErrors too, as PyTorch's are.
    IndexError
        A target that is no class and not `ignore_index`.
    NotImplementedError
        A tensor that is not on the CPU; a third derivative, one in forward mode, or a transform of
        ``torch.func``.
    RuntimeError
        An argument requires grad that is not differentiated.

    See Also
    --------
    GammaCrossEntropyLoss : the same as a module.
    gce.loss : the same for numpy arrays, with the formulas.

    Notes
    -----
    Under ``torch.compile`` γ may change from step to step, as a number or in a tensor, and nothing
    is compiled anew for it. Class weights, `sample_weight` and thresholds are not differentiated;
    for weights of rows that are learnt, multiply the losses of ``reduction="none"``.

    Examples
    --------
    >>> import torch
    >>> from gce.torch import gamma_cross_entropy
    >>> logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]], requires_grad=True)
    >>> loss = gamma_cross_entropy(logits, torch.tensor([0, 2]), 0.5)
    >>> loss.backward()
    >>> print(round(loss.item(), 4), logits.grad[1].numpy().round(4))
    0.6135 [ 0.0371  0.1008 -0.1378]
    """
    gamma = _as_tensor("gamma", gamma)
    is_number = isinstance(threshold, (int, float))
    row_threshold = None if is_number else _as_tensor("threshold", threshold)
    tensors = {
        "input": input,
        "target": target,
        "gamma": gamma,
        "weight": weight,
        "sample_weight": sample_weight,
        "threshold": row_threshold,
    }
    _check_tensors(tensors)
    if torch.is_grad_enabled():
        _check_differentiable(tensors, value)
    _check_options(
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        softcap=softcap,
        shift=shift,
        normalizer=normalizer,
        value=value,
        reduction=reduction,
    )
    options = Options(
        weight,
        sample_weight,
        row_threshold,
        _as_float("threshold", threshold, "0 <= threshold <= 1") if is_number else 0.0,
        value,
        ignore_index,
        label_smoothing,
        z_loss,
        softcap,
        shift,
        reduction,
        normalizer,
    )
    loss: torch.Tensor = torch.ops.gce.gamma_cross_entropy(
        input, target, gamma, _wants_gradient(input), None, *options
    )[0]
    is_wider = loss.dtype != input.dtype and not torch.is_autocast_enabled("cpu")
    return loss.to(input.dtype) if is_wider else loss


def _wants_gradient(input: torch.Tensor) -> bool:
    """Whether the forward pass computes the gradient too."""
    if not (torch.is_grad_enabled() and input.requires_grad):
        return False
    # A model that is exported has no backward pass.
    if torch.compiler.is_exporting() or torch.jit.is_tracing():
        return False
    # Half floats cannot hold small gradients until these are scaled: in the backward pass.
    return bool(input.dtype != torch.float16)


def _as_tensor(name: str, number: Any) -> torch.Tensor:
    """A floating tensor of what may be a number, or anything that makes an array of them."""
    if isinstance(number, torch.Tensor):
        if number.is_complex():  # PyTorch would take the real part
            raise TypeError(f"{name} has dtype {_name(number.dtype)}, expected a floating one")
        return number if number.is_floating_point() else number.double()
    is_compiled = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
    if is_compiled and isinstance(number, (int, float)):
        # In this form the number is an input of what is compiled, and not a constant.
        return torch.ones((), dtype=torch.float64, device="cpu") * number
    try:
        return torch.as_tensor(number, dtype=torch.float64, device="cpu")
    except OverflowError as error:
        raise _too_large(name, f"0 <= {name} <= 1") from error
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} is {number!r}, expected a number or a Tensor") from error


def _as_float(name: str, number: float, expected: str) -> float:
    try:
        return float(number)
    except OverflowError as error:
        raise _too_large(name, expected) from error


def _too_large(name: str, expected: str) -> ValueError:
    return ValueError(f"{name} is an integer that no float64 holds, expected {expected}")


def _check_options(**options: Any) -> None:
    """What the operator's schema would say at length, let pass, or cut off."""
    for name, option in options.items():
        kinds, text = KINDS[name]
        is_integer = INTEGER[0] in kinds
        if isinstance(option, kinds):
            if isinstance(option, int) and not torch.compiler.is_compiling():
                _check_size(name, option, is_integer)
            continue
        if not isinstance(option, torch.Tensor):
            raise TypeError(f"{name} has type {type(option).__name__}, expected {text}")
        if option.is_complex() or (option.is_floating_point() and is_integer):
            raise TypeError(f"{name} has dtype {_name(option.dtype)}, expected {text}")
        if option.requires_grad and torch.is_grad_enabled():
            raise _not_differentiated(name)


def _check_size(name: str, option: int, is_integer: bool) -> None:
    if not is_integer:
        _as_float(name, option, "a finite number")
    elif not -(2**63) <= option < 2**63:
        raise ValueError(f"{name} = {option}, expected a 64-bit integer")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _not_differentiated(name: str) -> RuntimeError:
    return RuntimeError(
        f"{name} requires grad, expected none: gce.torch differentiates in input and gamma"
    )


def _check_tensors(tensors: dict[str, Any]) -> None:
    for name, tensor in tensors.items():
        if tensor is None and name not in ("input", "target", "gamma"):
            continue
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name} has type {type(tensor).__name__}, expected torch.Tensor")
        if tensor.device.type != "cpu":
            raise NotImplementedError(
                f"{name} is on device {tensor.device}, expected a CPU tensor: gce computes on CPUs"
            )
        if tensor.layout != torch.strided:
            raise TypeError(f"{name} has layout {tensor.layout}, expected torch.strided")
        if tensor.is_nested:
            raise TypeError(f"{name} is nested, expected a tensor of one shape")
        if tensor.dtype not in TYPES:
            raise TypeError(f"{name} has dtype {_name(tensor.dtype)}, expected a number of numpy's")
        if not torch.compiler.is_compiling() and _is_transformed(tensor):
            raise NotImplementedError(
                f"{name} is being differentiated by torch.func or forward mode, expected "
                "torch.autograd (backward, grad)"
            )


def _is_transformed(tensor: torch.Tensor) -> bool:
    """Whether derivatives are wanted that the operator would lose without a word."""
    is_dual = torch.autograd.forward_ad.unpack_dual(tensor).tangent is not None
    return bool(is_dual or torch._C._functorch.is_gradtrackingtensor(tensor))


def _check_differentiable(tensors: dict[str, Any], value: str) -> None:
    for name, tensor in tensors.items():
        if tensor is None or not tensor.requires_grad or name == "input":
            continue
        if name != "gamma":
            raise _not_differentiated(name)
        if value == "surrogate":
            raise RuntimeError(
                "gamma requires grad, expected none with value='surrogate', which holds the "
                "weight that depends on gamma constant"
            )
