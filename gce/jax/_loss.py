"""`gamma_cross_entropy`: what it checks, computes and differentiates."""

from __future__ import annotations

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from gce import _native
from gce._types import Reduction, Value
from gce.jax._calls import Inputs, Options, call_loss
from gce.jax._hvp import hessian_product

__all__ = ["gamma_cross_entropy"]

NUMBERS = ("label_smoothing", "z_loss", "softcap", "normalizer")
GRADS = {"logits": "grad", "gamma": "gamma_grad"}  # what can be differentiated, and its gradient
NOTHING = Inputs(*(None for _ in Inputs._fields))


def gamma_cross_entropy(
    logits: Any,
    targets: Any,
    gamma: Any,
    *,
    threshold: Any = 0.0,
    value: Value = "primitive",
    weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int | None = -100,
    label_smoothing: Any = 0.0,
    z_loss: Any = 0.0,
    softcap: Any = None,
    shift: int = 0,
    reduction: Reduction = "mean",
    normalizer: Any = None,
    axis: int = -1,
) -> Any:
    """The γ-cross-entropy, for jax: `gce.loss`, and its gradient under `jax.grad`.

    For a row with logits z, target y, q = softmax(z) and p = q[y]::

        loss      -log(gamma + (1 - gamma) p) / (1 - gamma)   (gamma = 0: -log p; gamma = 1: 1 - p)
        gradient  w (q - e_y),  w = max(threshold, p / (gamma + (1 - gamma) p))

    Parameters
    ----------
    logits : array of float16, bfloat16, float32 or float64
        Any shape with at least one axis.
    targets : array of int, or of float
        Class of each row: the shape of `logits` without the class axis, any integer dtype. Or
        probabilities: a float dtype, the shape of `logits`; "the shape of `targets`" below is then
        that without the class axis.
    gamma : float or array of float
        0 <= gamma <= 1: a scalar, or one per row (the shape of `targets`).
    threshold : float or array of float, default 0.0
        Threshold b on the gradient weight, 0 <= b <= 1: a scalar, or one per row.
    value : {"primitive", "surrogate"}, default "primitive"
        The antiderivative, or ``w * -log(p)`` with w held constant.
    weight : array of float, shape (V,), default None
        Class weights.
    sample_weight : array of float, shape of `targets`, default None
        Multiplies each row's loss.
    ignore_index : int or None, default -100
        Rows with this target have loss 0 and gradient 0 and are not counted by the mean.
    label_smoothing : float, default 0.0
        The part of each row's loss that is spread over all classes, 0 to 1.
    z_loss : float, default 0.0
        lambda >= 0: adds ``lambda logsumexp(z)**2`` to each row's loss.
    softcap : float, default None
        kappa > 0: logits become ``kappa tanh(logits / kappa)`` first.
    shift : int, default 0
        Row t along the last axis of rows predicts target t + shift, as causal language models do
        with token ids (1); what there is one of per row stands where the target is.
    reduction : {"mean", "sum", "none"}, default "mean"
        What is made of the rows' losses.
    normalizer : float, default None
        The mean's divisor in place of the sum of the counted rows' weights; finite, > 0.
    axis : int, default -1
        The class axis of `logits`.

    Returns
    -------
    jax.Array
        A scalar, or with ``reduction="none"`` an array of the targets' shape; float32 for 16-bit
        logits, else their dtype.

    Raises
    ------
    TypeError
        A wrong dtype; a derivative with respect to another argument than `logits` and `gamma`.
    ValueError
        A wrong shape or option, a number out of range, or a derivative with respect to `gamma` of
        the surrogate, whose weight is held constant.
    IndexError
        A target is neither a class nor `ignore_index`.
    NotImplementedError
        A second derivative that involves `gamma`, or a third one.
    jax.errors.JaxRuntimeError
        What is wrong with values that only the running program knows (jax arrays, not numpy's, nor
        numbers): INVALID_ARGUMENT, with the same text. (A ValueError, where jax's fast path calls a
        program that has run before.)

    Notes
    -----
    All options but `value`, `ignore_index`, `shift`, `reduction` and `axis` may be traced: new
    values of them, of `gamma` above all, compile nothing anew. Numbers are float32 unless
    ``jax_enable_x64`` is set, as everywhere in jax.

    Where the loss is differentiated, loss and gradient are made in one pass, and the gradient is
    multiplied by the upstream gradient, which costs nothing where that is the constant 1. With
    ``reduction="none"``, and for float16, whose gradients a mean would round to 0 before a loss
    scale could save them, the backward pass makes the gradient from the logits instead, as
    `gce.loss_and_grad` does of ``grad_output``.

    `jax.vmap` gives what a loop would. Rows are independent, and with ``reduction="none"`` (or one
    row in each call) all of them are one problem; otherwise the custom call has a loop.

    The call runs on XLA's own threads; no result depends on their number. On other platforms than
    CPU it is not there.

    The gradient can be differentiated with respect to `logits` in forward and in reverse mode, by
    the core's product of the Hessian with a vector (`gce.hvp`): `jax.jvp` of `jax.grad`,
    `jax.hessian`, `jax.grad` of a function of `jax.grad`. The loss itself has no forward mode.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from gce.jax import gamma_cross_entropy
    >>> logits = jnp.array([[2.0, 0.0, 0.0], [0.0, 3.0, 0.0]])
    >>> targets = jnp.array([0, 2])
    >>> step = jax.jit(jax.value_and_grad(gamma_cross_entropy))
    >>> loss, grad = step(logits, targets, 0.5)
    >>> float(loss).__round__(4), grad.shape
    (0.7615, (2, 3))
    """
    given = {
        "logits": logits,
        "targets": targets,
        "gamma": gamma,
        "threshold": threshold,
        "weight": weight,
        "sample_weight": sample_weight,
        "label_smoothing": label_smoothing,
        "z_loss": z_loss,
        "softcap": softcap,
        "normalizer": normalizer,
    }
    _native.check_arguments(
        **{name: _as_checked(name, array) for name, array in given.items()},
        value=value,
        ignore_index=ignore_index,
        shift=shift,
        reduction=reduction,
        axis=axis,
    )
    held_targets, ignored = _as_targets(
        targets, None if ignore_index is None else operator.index(ignore_index)
    )
    inputs = Inputs(
        jnp.asarray(logits),
        held_targets,
        **{
            name: _as_real(name, array)
            for name, array in given.items()
            if name not in ("logits", "targets") and not _is_default(name, array)
        },
    )
    ndim = inputs.logits.ndim
    options = Options(
        axis=operator.index(axis) % ndim,
        reduction=str(reduction),
        value=str(value),
        ignore_index=ignored,
        shift=operator.index(shift),
    )
    divisor_is_1 = weight is None and sample_weight is None and normalizer is None
    if ndim == 1 and (options.reduction == "sum" or divisor_is_1):
        options = options._replace(reduction="none")  # one row: vmap then makes one problem of many
    return _loss(options, inputs)


def _as_checked(name: str, given: Any) -> Any:
    """What the core is to check of an argument; of a jax array, only dtype and shape are known."""
    if not isinstance(given, jax.Array):
        return given
    if name not in NUMBERS:
        return np.broadcast_to(np.zeros((), given.dtype), given.shape)
    if given.ndim != 0:
        raise ValueError(f"{name} has shape {given.shape}, expected a scalar")
    if not jnp.issubdtype(given.dtype, np.number) or jnp.iscomplexobj(given):
        raise TypeError(f"{name} has dtype {given.dtype}, expected float")
    return 1.0


def _is_default(name: str, given: Any) -> bool:
    is_number = isinstance(given, (int, float))
    return given is None or (is_number and given == 0 and name not in ("gamma", "normalizer"))


def _require_held(name: str, number: float) -> None:
    """That a finite number stays one in jax, and none becomes a 0 that says something else."""
    dtype = jnp.result_type(float)
    with np.errstate(over="ignore", under="ignore"):
        held = float(np.asarray(number).astype(dtype))
    is_lost = held == 0.0 and number != 0.0 and name in ("softcap", "normalizer")
    if is_lost or (np.isinf(held) and np.isfinite(number)):
        raise ValueError(f"{name} = {number:g} is {held:g} in {dtype}, which jax has")


def _as_targets(given: Any, ignore_index: int | None) -> tuple[Any, int | None]:
    """Targets, and which are ignored, as jax holds them: without its x64 mode in 32 bits."""
    if isinstance(given, jax.Array) or ignore_index is None:
        return jnp.asarray(given), ignore_index
    array = np.asarray(given)
    if array.dtype.kind in "iu":
        held = np.iinfo(jax.dtypes.canonicalize_dtype(array.dtype))
        if not held.min <= ignore_index <= held.max:
            ignored = array == np.array(ignore_index)
            if np.any(ignored):  # what else is no class has been refused
                array, ignore_index = np.where(ignored, held.max, array), int(held.max)
    return jnp.asarray(array), ignore_index


def _as_real(name: str, given: Any) -> Any:
    """An option as a float array; integers do not become 32-bit ones on the way."""
    if not isinstance(given, jax.Array):
        if np.asarray(given).dtype.kind in "biuO":
            given = np.asarray(given, np.float64)
        if name in NUMBERS:
            _require_held(name, float(given))
    with np.errstate(over="ignore", under="ignore"):  # as jax' own arithmetic
        array = jnp.asarray(given)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return array.astype(jnp.result_type(float))
    # Numbers are read by the library, arrays by the core, which takes 16 bits too.
    return array.astype(jnp.promote_types(array.dtype, jnp.float32)) if name in NUMBERS else array


# --- derivatives ----------------------------------------------------------------------------------


def _call_jvp(
    options: Options, outputs: tuple[str, ...], primals: tuple[Inputs], tangents: tuple[Inputs]
) -> tuple[Any, Any]:
    """Differentiate a call: loss by gradient, gradient by Hessian, and that in `grad_output`."""
    (inputs,), (slopes,) = primals, tangents
    moving = {
        name
        for name, slope in slopes._asdict().items()
        if slope is not None and not isinstance(slope, SymbolicZero)
    }
    if moving - {"logits", "grad_output"} or "gamma_grad" in outputs:
        raise NotImplementedError(
            "gamma_cross_entropy has second derivatives with respect to logits alone, "
            "not with one of them with respect to gamma"
        )
    found = dict(zip(outputs, _call(options, outputs, inputs), strict=True))
    found_slopes = {name: jnp.zeros_like(array) for name, array in found.items()}
    if "loss" in outputs:
        grad = found["grad"] if "grad" in outputs else _call(options, ("grad",), inputs)[0]
        wide = found["loss"].dtype
        axis = options.axis if options.reduction == "none" else None
        product = grad.astype(wide) * slopes.logits.astype(wide)
        found_slopes["loss"] = _shifted(options, product.sum(axis), options.shift)
    if "grad" in outputs and "logits" in moving:
        found_slopes["grad"] = hessian_product(options, inputs, slopes.logits)
    if "grad" in outputs and "grad_output" in moving:
        found_slopes["grad"] += _along_upstream(options, inputs, slopes.grad_output)
    return tuple(found.values()), tuple(found_slopes.values())


def _along_upstream(options: Options, inputs: Inputs, slope: Any) -> Any:
    """The gradient for the upstream gradient `slope`, as a product that jax can transpose."""
    logits = inputs.logits
    # In 16 bits the gradient would be rounded twice.
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    (grad,) = _call(options, ("grad",), inputs._replace(logits=wide, grad_output=None))
    if options.reduction == "none":
        slope = jnp.expand_dims(_shifted(options, slope, -options.shift), options.axis)
    return (grad * slope).astype(logits.dtype)


def _shifted(options: Options, rows: Any, by: int) -> Any:
    """Move what is at the targets to the rows that predict them, or back. What comes round is 0."""
    return rows if by == 0 or options.reduction != "none" else jnp.roll(rows, by, axis=-1)


_call = jax.custom_jvp(call_loss, nondiff_argnums=(0, 1))
_call.defjvp(_call_jvp, symbolic_zeros=True)


def _loss_alone(options: Options, inputs: Inputs) -> Any:
    (loss,) = _call(options, ("loss",), inputs)
    return loss


def _forward(options: Options, primals: Inputs) -> tuple[Any, Any]:
    """The loss, and what the backward pass needs: the gradient, or all that makes it."""
    inputs = jax.tree.map(lambda primal: primal.value, primals, is_leaf=_is_primal)
    wanted = {
        name
        for name, primal in primals._asdict().items()
        if primal is not None and primal.perturbed
    }
    _check_differentiable(options, wanted)
    grads = [grad for name, grad in GRADS.items() if name in wanted]
    if options.reduction == "none" or inputs.logits.dtype == jnp.float16:
        return _loss_alone(options, inputs), (inputs, dict.fromkeys(grads))
    loss, *made = _call(options, ("loss", *grads), inputs)
    # The other arrays' memory is needed no more.
    return loss, (NOTHING._replace(gamma=inputs.gamma), dict(zip(grads, made, strict=True)))


def _is_primal(leaf: Any) -> bool:
    return hasattr(leaf, "perturbed")


def _check_differentiable(options: Options, wanted: set[str]) -> None:
    for name in sorted(wanted - set(GRADS)):
        raise TypeError(
            f"gamma_cross_entropy is not differentiable with respect to {name}, "
            "expected logits or gamma: jax.lax.stop_gradient makes a constant of it"
        )
    if "gamma" in wanted and options.value == "surrogate":
        raise ValueError(
            'value = "surrogate", expected "primitive" for a derivative in gamma: the surrogate\'s '
            "weight, all of it that depends on gamma, counts as a constant"
        )


def _backward(options: Options, residuals: Any, grad_output: Any) -> tuple[Inputs]:
    inputs, grads = residuals
    if isinstance(grad_output, SymbolicZero) or not grads:
        return (NOTHING,)
    if inputs.logits is not None:
        made = _call(options, tuple(grads), inputs._replace(grad_output=grad_output))
        grads = dict(zip(grads, made, strict=True))
    else:
        grads = {name: _product(grad, grad_output) for name, grad in grads.items()}
    of_gamma = grads.get("gamma_grad")
    if of_gamma is not None:
        of_gamma = of_gamma.astype(inputs.gamma.dtype)
    return (NOTHING._replace(logits=grads.get("grad"), gamma=of_gamma),)


def _product(grad: Any, factor: Any) -> Any:
    wide = jnp.promote_types(grad.dtype, factor.dtype)
    return (grad.astype(wide) * factor).astype(grad.dtype)


_loss = jax.custom_vjp(_loss_alone, nondiff_argnums=(0,))
_loss.defvjp(_forward, _backward, symbolic_zeros=True)
