"""gce.torch's module: its state, training with it, and what a step leaves behind."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from torch_problems import SHAPES, composed, leaf, problem, torch

if torch is not None:
    from gce.torch import GammaCrossEntropyLoss, gamma_cross_entropy

pytestmark = pytest.mark.usefixtures("torch_on_one_thread")


# --- the module -----------------------------------------------------------------------------------


def test_the_module_takes_what_the_function_takes():
    input, target = problem(SHAPES["images"], "float32")
    weight, sample_weight = torch.rand(7), torch.rand(target.shape)
    options = {"threshold": 0.2, "value": "surrogate", "z_loss": 0.1, "normalizer": 3.0}
    criterion = GammaCrossEntropyLoss(0.5, weight, ignore_index=2, label_smoothing=0.1, **options)
    target = target.clamp(min=0)
    want = gamma_cross_entropy(
        input, target, 0.5, weight, 2, "mean", 0.1, sample_weight=sample_weight, **options
    )
    assert torch.equal(criterion(input, target, sample_weight=sample_weight), want)
    assert list(criterion.state_dict()) == ["weight"]
    assert isinstance(criterion, torch.nn.CrossEntropyLoss)


@pytest.mark.filterwarnings("ignore:size_average and reduce args will be deprecated")
def test_old_names_of_reductions():
    assert GammaCrossEntropyLoss(0.5, None, False).reduction == "sum"
    assert GammaCrossEntropyLoss(0.5, reduce=False).reduction == "none"


def test_state_of_the_module():
    threshold = torch.rand(13)
    criterion: Any = GammaCrossEntropyLoss(0.1, torch.ones(7), reduction="sum", threshold=threshold)
    want = "gamma=0.1, weight=Tensor(7,), reduction='sum', threshold=Tensor(13,)"
    assert repr(criterion) == f"GammaCrossEntropyLoss({want})"
    assert repr(GammaCrossEntropyLoss(torch.tensor(0.5))) == "GammaCrossEntropyLoss(gamma=0.5)"
    input, target = problem(SHAPES["rows"], "float32")
    want = criterion(input, target)
    for twin in (copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        assert torch.equal(twin(input, target), want) and repr(twin) == repr(criterion)
        twin.gamma = 0.9  # during training, say
        assert torch.equal(
            twin(input, target),
            gamma_cross_entropy(
                input, target, 0.9, twin.weight, reduction="sum", threshold=twin.threshold
            ),
        )
    assert criterion.gamma == 0.1
    criterion.half()  # γ stays a double
    assert criterion.gamma == 0.1 and criterion.weight.dtype == torch.float16


def test_a_gamma_that_is_learnt():
    criterion: Any = GammaCrossEntropyLoss(torch.nn.Parameter(torch.tensor(0.5)))
    assert [name for name, _ in criterion.named_parameters()] == ["gamma"]
    input, target = problem(SHAPES["rows"], "float32")
    criterion(input, target).backward()
    assert criterion.gamma.grad < 0  # a larger γ makes the loss smaller
    assert "gamma" in criterion.state_dict()


# --- training -------------------------------------------------------------------------------------


def trained(loss: Callable[..., Any], steps: int = 40) -> tuple[list[float], Any]:
    """Losses of a small model's steps, and its parameters."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 5)
    ).double()
    x = torch.randn(64, 8).double()
    target = x[:, :5].argmax(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss(model(x), target)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses, torch.nn.utils.parameters_to_vector(model.parameters()).detach()


def test_training_equals_that_with_the_composition():
    ours, our_parameters = trained(GammaCrossEntropyLoss(0.5))
    theirs, their_parameters = trained(lambda z, y: composed(z, y, 0.5, 0.0, "primitive", 1).mean())
    assert ours[-1] < 0.2 * ours[0]
    # Roundings of 1e-16, which forty steps of AdamW make larger.
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)
    torch.testing.assert_close(our_parameters, their_parameters, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_training_in_16_bits(dtype):
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 5)
    x = torch.randn(64, 8)
    target = x[:, :5].argmax(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    criterion = GammaCrossEntropyLoss(0.3)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=getattr(torch, dtype)):
            loss = criterion(model(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_memory_does_not_grow():
    # Of tensors: nothing that a step makes is alive after it.
    def alive() -> int:
        gc.collect()
        return sum(issubclass(type(item), torch.Tensor) for item in gc.get_objects())

    input, target = problem((64, 100), "float32")
    own = leaf(input)
    gamma = torch.tensor(0.5, requires_grad=True)

    def step() -> None:
        own.grad = gamma.grad = None
        loss = gamma_cross_entropy(own, target, gamma)
        (grad,) = torch.autograd.grad(loss, own, create_graph=True)
        (loss + grad.square().sum()).backward()

    step()
    before = alive()
    for _ in range(20):
        step()
    assert alive() <= before
