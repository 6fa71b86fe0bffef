"""gce.torch: first and second derivatives, in the logits and in γ, and what a pass computes."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import mpmath
import numpy as np
import pytest

import gce
from torch_problems import SHAPES, axis_of, composed, functional, leaf, problem, torch

if torch is not None:
    from gce.torch import gamma_cross_entropy

pytestmark = pytest.mark.usefixtures("torch_on_one_thread")

GAMMAS = [0.0, 0.3, 1.0]
REDUCTIONS = ["mean", "sum", "none"]


def small(name: str = "rows", scale: float = 1.0, dtype: str = "float64") -> tuple[Any, Any]:
    """A problem of few rows, one of which is ignored, for differences of each element."""
    shape = {"rows": (5, 4), "images": (2, 3, 2, 2), "a row": (4,)}[name]
    torch.manual_seed(0)
    input = (scale * torch.randn(shape, dtype=torch.float64)).to(getattr(torch, dtype))
    target = torch.randint(0, shape[axis_of(shape)], input.select(axis_of(shape), 0).shape)
    if target.dim():
        target.view(-1)[1] = -100
    return leaf(input), target


def probabilities_like(input: Any) -> Any:
    """Targets that are probabilities; one row has all on one class, and one has none."""
    target = torch.rand(input.shape, dtype=input.dtype).softmax(axis_of(input.shape)).detach()
    if input.dim() == 2:
        target[0], target[1] = torch.eye(4)[2], 0.0
    return target


def options_of(input: Any, target: Any) -> Iterator[dict[str, Any]]:
    """None, all at once, and for rows each kind alone."""
    weight = torch.linspace(0.5, 2.0, input.shape[axis_of(input.shape)], dtype=torch.float64)
    rows = torch.linspace(0.2, 1.5, max(target.numel(), 1), dtype=torch.float64)
    kinds: list[dict[str, Any]] = [
        {"threshold": 0.3},
        {"weight": weight},
        {"sample_weight": rows.reshape(target.shape)},
        {"label_smoothing": 0.2},
        {"ignore_index": 2},
        {"z_loss": 0.1},
        {"softcap": 2.0},
    ]
    if input.dim() > 1:
        kinds += [{"shift": 1}]
    yield {}
    for kind in kinds if input.dim() == 2 else []:
        yield {**kind, "ignore_index": kind.get("ignore_index", -100)}
    together = {name: option for kind in kinds for name, option in kind.items()}
    yield {**together, "ignore_index": -100}


# --- in the logits --------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("name", ["rows", "images", "a row"])
def test_first_and_second_derivatives(name, gamma, reduction):
    input, target = small(name)
    for options in options_of(input, target):
        if options.get("ignore_index") == 2:
            target = target.clamp(min=0)

        def loss(z: Any, y: Any = target, more: Any = options) -> Any:
            return gamma_cross_entropy(z, y, gamma, reduction=reduction, **more)

        assert torch.autograd.gradcheck(loss, (input,))
        assert torch.autograd.gradgradcheck(loss, (input,))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("name", ["rows", "images", "a row"])
def test_derivatives_with_probabilities(name, gamma, reduction):
    input, classes = small(name)
    target = probabilities_like(input)
    number = leaf(torch.tensor(gamma, dtype=torch.float64))
    for options in options_of(input, classes):
        options.pop("ignore_index", None)

        def loss(z: Any, g: Any, more: Any = options) -> Any:
            return gamma_cross_entropy(z, target, g, reduction=reduction, **more)

        at_gamma = functools.partial(loss, g=gamma)
        assert torch.autograd.gradcheck(at_gamma, (input,))
        assert torch.autograd.gradgradcheck(at_gamma, (input,))
        if 0.0 < gamma < 1.0:  # not at the ends, beyond which differences would go
            assert torch.autograd.gradcheck(loss, (input, number))
            assert torch.autograd.gradgradcheck(loss, (input, number))


@pytest.mark.parametrize("value", ["primitive", "surrogate"])
@pytest.mark.parametrize("gamma", GAMMAS)
def test_first_derivatives_of_both_values(gamma, value):
    input, target = small()
    target = target.clamp(min=0)
    grads = []
    for loss in (
        lambda z: gamma_cross_entropy(z, target, gamma, value=value),
        lambda z: composed(z, target, gamma, 0.0, value).mean(),
    ):
        (grad,) = torch.autograd.grad(loss(input), input)
        grads.append(grad)
    torch.testing.assert_close(*grads, rtol=1e-13, atol=1e-15)


def test_hessian_of_cross_entropy():
    input, target = small("images")
    hessians = [
        torch.autograd.functional.hessian(loss, input)
        for loss in (
            lambda z: gamma_cross_entropy(z, target, 0.0),
            lambda z: functional().cross_entropy(z, target),
        )
    ]
    torch.testing.assert_close(*hessians, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_gradient_penalty_in_other_dtypes(dtype):
    # The double backward pass of training with a penalty on the gradient, against float64's.
    def trained(input: Any) -> Any:
        own = leaf(input)
        loss = gamma_cross_entropy(own, target, 0.3, reduction="none")
        (grad,) = torch.autograd.grad(loss.sum(), own, create_graph=True)
        (loss.sum() + grad.square().sum()).backward()
        return own.grad

    input, target = small(dtype=dtype)
    found, want = trained(input), trained(input.double())
    assert found.dtype == input.dtype
    # A few roundings: of the gradient, its double, the product and the sum.
    roundoff = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24}[dtype]
    torch.testing.assert_close(found.double(), want, rtol=4 * roundoff, atol=4 * roundoff)


@pytest.mark.parametrize("threshold", [0.0, 0.4])
@pytest.mark.parametrize("gamma", GAMMAS)
def test_second_derivatives_of_the_surrogate_are_those_of_its_gradient(gamma, threshold):
    input, target = small()
    options = {"value": "surrogate", "threshold": threshold}
    loss = functools.partial(gamma_cross_entropy, target=target, gamma=gamma, **options)
    assert torch.autograd.gradgradcheck(loss, (input,))


def test_a_third_derivative_is_refused():
    input, target = small()
    (grad,) = torch.autograd.grad(gamma_cross_entropy(input, target, 0.3), input, create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum(), input, create_graph=True)
    with pytest.raises(NotImplementedError, match="no third ones"):
        second.sum().backward()


# --- in γ -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("name", ["rows", "images", "a row"])
def test_derivatives_in_gamma(name, per_row, reduction):
    input, target = small(name)
    shape = target.shape if per_row else ()
    # Off the knees: there, ∂L/∂γ has no derivative.
    gamma = torch.linspace(0.25, 0.95, max(target.numel(), 1), dtype=torch.float64)
    gamma = leaf(gamma.reshape(shape) if per_row else gamma[0])
    for options in options_of(input, target):
        if options.get("ignore_index") == 2:
            target = target.clamp(min=0)

        def loss(z: Any, g: Any, y: Any = target, more: Any = options) -> Any:
            return gamma_cross_entropy(z, y, g, reduction=reduction, **more)

        assert torch.autograd.gradcheck(loss, (input, gamma))
        assert torch.autograd.gradgradcheck(loss, (input, gamma))
        constant = input.detach()
        assert torch.autograd.gradcheck(lambda g, f=loss, z=constant: f(z, g), (gamma,))


@pytest.mark.parametrize("gamma", [0.0, 1e-7, 0.5, 1.0 - 1e-7, 1.0])
def test_the_second_derivative_in_gamma_against_50_digits(gamma):
    from gce.torch._gamma import curvature

    log_p = np.array([-40.0, -5.0, -1.0, -0.6, -0.1, -1e-3, -1e-9, 0.0])
    if gamma == 0.0:
        log_p = log_p[1:]  # 1/p²
    found = curvature(torch.from_numpy(log_p), torch.tensor(gamma, dtype=torch.float64)).numpy()
    with mpmath.workdps(80):
        want = [float(second_derivative(mpmath.mpf(x), mpmath.mpf(gamma))) for x in log_p]
    # The formula's three terms are at most twenty times the result, from x = 1/2 on.
    np.testing.assert_allclose(found, want, rtol=1e-13)


def second_derivative(log_p: Any, gamma: Any) -> Any:
    miss, delta = -mpmath.expm1(log_p), 1 - gamma
    if delta == 0:
        return 2 * miss**3 / 3
    s = 1 - delta * miss
    ratio = delta * miss / s
    return (ratio**2 - 2 * ratio - 2 * mpmath.log(s)) / delta**3


def test_gamma_that_requires_grad_alone():
    input, target = small()
    gamma: Any = torch.tensor(0.5, requires_grad=True)
    loss: Any = gamma_cross_entropy(input.detach(), target, gamma)
    loss.backward()
    log_p = gce.row_stats(input.detach().numpy(), target.numpy()).target_log_prob
    counted = target.numpy() != -100
    want = gce.gamma_grad(log_p[counted], 0.5).mean()
    assert gamma.grad.dtype == torch.float32 and gamma.grad.item() == pytest.approx(want, 1e-6)


@pytest.mark.parametrize(
    ("gamma", "threshold"),
    [
        (0.0, 0.0),
        (0.3, 0.0),
        (1.0, 0.0),
        (0.0, 0.5),
        (0.3, 0.5),
        (1.0, 0.5),
        (0.3, 1.0),
        (1.0, 1.0),
    ],
)
def test_gamma_at_the_ends_and_rows_that_do_not_count(gamma, threshold):
    input = torch.tensor([[3.0, 0.0], [float("-inf"), 0.0], [0.0, 0.0], [0.0, 1.0]])
    target = torch.tensor([0, 0, -100, 1])
    weight = torch.tensor([0.0, 1.0])  # so that the infinite row does not count
    gamma = torch.tensor(gamma, dtype=torch.float64, requires_grad=True)
    options = {"weight": weight, "threshold": threshold}
    gamma_cross_entropy(input, target, gamma, **options).backward()
    q = 1 / (1 + np.exp(-1.0))
    knee = threshold * gamma.item() / (1 - threshold * (1 - gamma.item())) if threshold < 1 else 1
    want = gce.gamma_grad(np.log(max(q, knee)), gamma.item())
    # The logits are float32, and so is the cross-entropy that log p is taken from.
    assert gamma.grad.item() == pytest.approx(want, 1e-6, 1e-12)


def test_surrogate_has_no_gamma_gradient():
    input, target = small()
    gamma = torch.tensor(0.5, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"^gamma requires grad, expected none with"):
        gamma_cross_entropy(input, target, gamma, value="surrogate")


# --- passes ---------------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the core's functions, as they are called."""
    names: list[str] = []

    def noting(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def function(*arguments: Any, **options: Any) -> Any:
            names.append(name)
            return real(*arguments, **options)

        return function

    for name in ("loss", "loss_and_grad", "hvp", "loss_gamma_grad"):
        monkeypatch.setattr(gce, name, noting(name, getattr(gce, name)))
    return names


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_one_fused_pass(calls, dtype):
    input, target = small(dtype=dtype)
    loss = gamma_cross_entropy(input, target, 0.3)
    assert calls == ["loss_and_grad"]
    loss.backward()
    assert calls == ["loss_and_grad"]


def test_no_gradient_where_none_is_wanted(calls):
    input, target = small()
    gamma_cross_entropy(input.detach(), target, 0.3)
    with torch.no_grad():
        gamma_cross_entropy(input, target, 0.3)
    with torch.inference_mode():
        gamma_cross_entropy(input, target, 0.3)
    gamma = torch.tensor(0.5, requires_grad=True)
    loss = gamma_cross_entropy(input.detach(), target, gamma)
    assert calls == ["loss"] * 4
    loss.backward()  # one more pass for γ
    assert calls == ["loss"] * 4 + ["loss_gamma_grad"]


def test_halves_compute_their_gradient_with_its_factor(calls):
    input, target = small(dtype="float16")
    loss = gamma_cross_entropy(input, target, 0.3)
    assert calls == ["loss"]
    loss.backward()
    assert calls == ["loss", "loss_and_grad"]


def test_scaled_halves_do_not_underflow():
    # What a GradScaler is for: in float16, gradients of 4e-8 are 0 or 6e-8, and 65536 times as
    # large they are normal numbers. Under autocast, as it is used, the loss is float32.
    rows = 4096
    zeros, target = torch.zeros(rows, 64), torch.zeros(rows).long()
    grads = []
    for dtype in (torch.float16, torch.float32):
        input = leaf(zeros.to(dtype))
        with torch.autocast("cpu", dtype=torch.float16):
            loss = gamma_cross_entropy(input, target, 0.0)
        (loss * 65536.0).backward()
        grads.append(input.grad.float())
    assert (grads[1] / 65536.0).abs().min() < 6e-6
    torch.testing.assert_close(*grads, rtol=2.0**-11, atol=0)


def test_the_gradient_is_not_copied():
    # Nobody can see the saved gradient after this pass: it is what arrives.
    seen: list[int] = []

    def note(grad: Any) -> None:
        seen.append(grad.data_ptr())

    input, target = small()
    for factor, retain in itertools.product((1.0, 3.0), (False, True)):
        seen.clear()
        logits = input * 1.0
        logits.register_hook(note)
        loss: Any = gamma_cross_entropy(logits, target, 0.3)
        saved = loss.grad_fn.saved_tensors[-1].data_ptr()
        loss.backward(torch.tensor(factor, dtype=loss.dtype), retain_graph=retain)
        assert (seen == [saved]) is (not retain)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_graph_that_is_retained(reduction):
    input, target = small("images")
    loss = gamma_cross_entropy(input, target, 0.3, reduction=reduction)
    upstream = torch.full_like(loss, 2.0)
    for times in (1, 2, 3):
        loss.backward(upstream, retain_graph=True)
        single = leaf(input)
        gamma_cross_entropy(single, target, 0.3, reduction=reduction).backward(upstream)
        torch.testing.assert_close(input.grad, times * single.grad, rtol=1e-15, atol=0)
        input.grad.mul_(1.0)
    loss.backward(upstream)  # and for the last time
    torch.testing.assert_close(input.grad, 4 * single.grad, rtol=1e-15, atol=0)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward(upstream)


def test_two_losses_of_the_same_logits():
    input, target = small()
    logits = input * 2.0
    total = gamma_cross_entropy(logits, target, 0.3) + 2 * gamma_cross_entropy(logits, target, 0.9)
    total.backward()
    want = torch.zeros_like(input)
    for factor, gamma in ((1, 0.3), (2, 0.9)):
        _, grad = gce.loss_and_grad(2 * input.detach().numpy(), target.numpy(), gamma)
        want += 2 * factor * torch.from_numpy(grad)
    torch.testing.assert_close(input.grad, want, rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_a_batch_of_upstream_gradients(dtype):
    # All at once, under the vmap that torch.autograd.grad has for them.
    input, target = small(dtype=dtype)
    loss = functools.partial(gamma_cross_entropy, target=target, gamma=0.3, reduction="none")
    jacobian = torch.autograd.functional.jacobian
    assert torch.equal(jacobian(loss, input, vectorize=True), jacobian(loss, input))


def test_checkpointed():
    input, target = small()

    def loss(z: Any) -> Any:
        return gamma_cross_entropy(z * 2.0, target, 0.3)

    loss(input).backward()
    want, input.grad = input.grad, None
    torch.utils.checkpoint.checkpoint(loss, input, use_reentrant=False).backward()
    assert torch.equal(input.grad, want)


def test_the_mean_of_large_batches_and_upstream_gradients():
    input, target = problem(SHAPES["sequences"], "float32")
    rng = np.random.default_rng(0)
    upstream = torch.from_numpy(rng.standard_normal(tuple(target.shape)).astype(np.float32))
    own = leaf(input)
    gamma_cross_entropy(own, target, 0.3, reduction="none").backward(upstream)
    _, want = gce.loss_and_grad(
        input.numpy(), target.numpy(), 0.3, reduction="none", axis=1, grad_output=upstream.numpy()
    )
    # One rounding more than with the factor in the pass.
    np.testing.assert_allclose(own.grad.numpy(), want, rtol=2.0**-22, atol=0)
