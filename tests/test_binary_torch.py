"""The sigmoid form against PyTorch: binary_cross_entropy_with_logits, and autograd."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np
import pytest

import gce
from test_torch import DTYPES, as_array, assert_agree, by_autograd
from torch_problems import functional, torch

pytestmark = pytest.mark.usefixtures("torch_on_one_thread")

SHAPES = {
    "a number": (),
    "a vector": (7,),
    "multi-label": (13, 7),
    "images": (2, 3, 5, 4),
    "nothing": (0, 7),
}
REDUCTIONS = ("mean", "sum", "none")


def problem(shape: tuple[int, ...], dtype: str) -> tuple[Any, Any]:
    """Logits, and targets most of which are 0 or 1, as tensors."""
    rng = np.random.default_rng(len(shape))
    logits = torch.from_numpy(np.asarray(3 * rng.standard_normal(shape)))
    targets = np.where(rng.random(shape) < 0.7, rng.random(shape) < 0.4, rng.random(shape))
    dtypes = getattr(torch, dtype), torch.float64 if dtype == "float64" else torch.float32
    return logits.to(dtypes[0]), torch.from_numpy(np.asarray(targets)).to(dtypes[1])


def weights_of(shape: tuple[int, ...]) -> dict[str, Any]:
    """Shapes that PyTorch broadcasts to the logits'."""
    options = {"none": None, "one": (), "each": shape}
    if shape:
        options["last axis"] = shape[-1:]
    if len(shape) > 1:
        options["first axis"] = (shape[0], *(1 for _ in shape[1:]))
    return options


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SHAPES)
def test_gamma_0_is_binary_cross_entropy(isa, name, dtype, reduction):
    shape = SHAPES[name]
    logits, targets = problem(shape, dtype)
    # PyTorch takes 16-bit logits too, and loses digits: the comparison is with its float32.
    exact = logits.to(targets.dtype)
    rng = np.random.default_rng(3)
    kinds = weights_of(shape)
    for of_weight, of_pos_weight in itertools.product(kinds.values(), kinds.values()):
        given = {
            option: None if kind is None else torch.from_numpy(np.asarray(2 * rng.random(kind)))
            for option, kind in (("weight", of_weight), ("pos_weight", of_pos_weight))
        }
        of_torch = {key: None if w is None else w.to(exact.dtype) for key, w in given.items()}
        want = by_autograd(
            lambda z, t=targets, options=of_torch: functional().binary_cross_entropy_with_logits(
                z, t, reduction=reduction, **options
            ),
            exact,
        )
        if logits.numel() == 0 and reduction == "mean":  # PyTorch's is 0/0, ours 0
            assert np.isnan(want[0])
            want = np.zeros(()), want[1]
        ours = {key: None if w is None else w.numpy() for key, w in of_torch.items()}
        for gamma, threshold, value in (
            (0.0, 0.0, "primitive"),
            (0.0, 0.3, "surrogate"),
            (0.6, 1.0, "primitive"),
        ):
            found = gce.binary_loss_and_grad(
                as_array(logits),
                targets.numpy(),
                gamma,
                threshold=threshold,
                value=value,
                reduction=reduction,
                **ours,
            )
            assert_agree(found, want, dtype)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_upstream_gradients(isa, reduction):
    logits, targets = problem(SHAPES["images"], "float64")
    rng = np.random.default_rng(1)
    upstream = np.asarray(rng.standard_normal(logits.shape if reduction == "none" else ()))
    want = by_autograd(
        lambda z: functional().binary_cross_entropy_with_logits(z, targets, reduction=reduction),
        logits,
        torch.from_numpy(upstream),
    )
    found = gce.binary_loss_and_grad(
        logits.numpy(), targets.numpy(), 0.0, reduction=reduction, grad_output=upstream
    )
    assert_agree(found, want, "float64")


@pytest.mark.parametrize("value", ["primitive", "surrogate"])
@pytest.mark.parametrize("gamma", [0.1, 0.5, 0.9, 1.0])
def test_gradients_are_autograds(isa, gamma, value):
    logits, targets = problem(SHAPES["multi-label"], "float64")
    delta, epsilon, pos_weight = 1 - gamma, 0.1, torch.linspace(0.5, 3, 7, dtype=torch.float64)
    smooth = (1 - epsilon) * targets + epsilon / 2

    def of_outcome(log_p: Any) -> Any:
        p = log_p.exp()
        if value == "surrogate":
            return -(p / (gamma + delta * p)).detach() * log_p
        return 1 - p if gamma == 1 else -torch.log(gamma + delta * p) / delta

    def loss(z: Any) -> Any:
        positive, negative = (of_outcome(functional().logsigmoid(x)) for x in (z, -z))
        return (pos_weight * smooth * positive + (1 - smooth) * negative).mean()

    found = gce.binary_loss_and_grad(
        logits.numpy(),
        targets.numpy(),
        gamma,
        value=value,
        label_smoothing=epsilon,
        pos_weight=pos_weight.numpy(),
    )
    assert_agree(found, by_autograd(loss, logits), "float64")


def test_huge_logits(isa):
    for dtype in ("float32", "float64"):
        logits = torch.tensor([0.0, 1e4, -1e4, 1e30, -1e30, 113.0, -113.0])
        logits = logits.to(getattr(torch, dtype)).repeat(3)
        targets = torch.repeat_interleave(torch.tensor([0.0, 1.0, 0.25]), 7).to(logits.dtype)
        want = by_autograd(
            lambda z, t=targets: functional().binary_cross_entropy_with_logits(
                z, t, reduction="none"
            ),
            logits,
        )
        found = gce.binary_loss_and_grad(logits.numpy(), targets.numpy(), 0.0, reduction="none")
        assert_agree(found, want, dtype)


# --- PyTorch's own tests --------------------------------------------------------------------------


def samples() -> list[tuple[Any, Any, dict[str, Any]]]:
    """Inputs with which PyTorch tests the function and the module: logits, targets, options."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import op_db
        from torch.testing._internal.common_modules import module_db

    cpu = "cpu", torch.float64
    name = "nn.functional.binary_cross_entropy_with_logits"
    (op,) = (op for op in op_db if op.name == name)
    found = [(s.input, s.args[0], s.kwargs) for s in op.reference_inputs(*cpu)]
    (module,) = (m for m in module_db if m.module_cls is torch.nn.BCEWithLogitsLoss)
    for given in module.module_inputs_func(module, *cpu, requires_grad=False, training=True):
        assert not given.constructor_input.args
        found.append((*given.forward_input.args, given.constructor_input.kwargs))
    return found


def test_samples_of_pytorchs_own_tests(isa):
    found = samples()
    used = {option for _, _, options in found for option in options}
    assert len(found) > 15 and used >= {"reduction", "weight", "pos_weight"}
    for logits, targets, options in found:
        want = by_autograd(
            lambda z, t=targets, o=options: functional().binary_cross_entropy_with_logits(
                z, t, **o
            ),
            logits,
        )
        ours = {
            key: option.numpy() if isinstance(option, torch.Tensor) else option
            for key, option in options.items()
        }
        result = gce.binary_loss_and_grad(logits.numpy(), targets.numpy(), 0.0, **ours)
        assert_agree(result, want, "float64")
