"""The optimizers, clipping and schedules, step by step beside those of PyTorch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from optimizer_alone import Alone, Arrays, normal
from small_models import CLASSES, batch, linear, perceptron

from gce import schedules
from gce.onnx import training
from gce.onnx.training import SGD, AdamW, Trainer

Array = np.ndarray[Any, Any]

# A step rounds some ten times, here and there, and its m and v have rounded in all steps before.
ROUNDINGS = 20
DTYPES = ["float32", "float64"]


def torch_parameters(arrays: Arrays) -> dict[str, torch.nn.Parameter]:
    return {name: torch.nn.Parameter(torch.tensor(array)) for name, array in arrays.items()}


def torch_optimizer(ours: Any, parameters: dict[str, torch.nn.Parameter]) -> torch.optim.Optimizer:
    if isinstance(ours, SGD):
        return torch.optim.SGD(parameters.values(), lr=1.0, **dataclasses.asdict(ours))
    options = dataclasses.asdict(ours)
    spared = options.pop("no_decay")
    groups = [
        {"params": [p for name, p in parameters.items() if (name in spared) is spare], **change}
        for spare, change in ((False, {}), (True, {"weight_decay": 0.0}))
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=1.0, **options)


def require_close(ours: Array, theirs: torch.Tensor, scale: Array, where: str) -> None:
    """Equal up to roundings of numbers as large as `scale`."""
    expected = theirs.detach().numpy()
    assert ours.dtype == expected.dtype and ours.shape == expected.shape
    limit = ROUNDINGS * np.finfo(ours.dtype).eps * scale
    error = np.abs(ours.astype(np.float64) - expected.astype(np.float64))
    assert (error <= limit).all(), f"{where}: {(error / limit).max()} times the limit"


def train_both(
    ours: Alone,
    optimizer: Any,
    gradients_of: Callable[[int], Arrays],
    rate_of: Callable[[int], float],
    steps: int = 12,
    clip_norm: float | None = None,
) -> None:
    """Compare parameters and state after each step."""
    parameters = torch_parameters(ours.parameters)
    theirs = torch_optimizer(optimizer, parameters)
    moved = {name: np.abs(array).astype(np.float64) for name, array in ours.parameters.items()}
    for step in range(steps):
        gradients, rate = gradients_of(step), rate_of(step)
        before = {name: p.detach().numpy().copy() for name, p in parameters.items()}
        for name, parameter in parameters.items():
            parameter.grad = torch.tensor(gradients[name])
        if clip_norm is not None:
            norm = torch.nn.utils.clip_grad_norm_(parameters.values(), clip_norm)
            eps = float(np.finfo(gradients["W"].dtype).eps)
        for group in theirs.param_groups:
            group["lr"] = rate
        theirs.step()
        ours.step(gradients, rate)
        if clip_norm is not None:
            assert ours.grad_norm == pytest.approx(float(norm), rel=ROUNDINGS * eps, abs=0)
        for name, parameter in parameters.items():
            # Roundings of each step's parameter and change add up.
            change = np.abs(parameter.detach().numpy().astype(np.float64) - before[name])
            moved[name] += change
            require_close(ours.parameters[name], parameter, moved[name], f"{name}, step {step}")


SETTINGS = [
    SGD(),
    SGD(weight_decay=0.1),
    SGD(momentum=0.9),
    SGD(momentum=0.9, nesterov=True),
    SGD(momentum=0.5, weight_decay=0.1),
    SGD(momentum=0.5, nesterov=True, weight_decay=0.1),
    AdamW(),
    AdamW(weight_decay=0.0),
    AdamW(weight_decay=0.5, no_decay=("v",)),
    AdamW(betas=(0.0, 0.999)),
    AdamW(betas=(0.9, 0.0)),
    AdamW(betas=(0.0, 0.0)),
    AdamW(betas=(0.5, 0.7), eps=0.1),
    AdamW(betas=(0.99, 0.9), eps=0.0),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", SETTINGS, ids=repr)
def test_each_step_is_that_of_torch(optimizer, dtype):
    # The rate changes from step to step, from 0 on.
    ours = Alone(optimizer, dtype)
    train_both(ours, optimizer, normal(dtype), lambda step: 0.03 * (step % 5))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", [SGD(momentum=0.9), AdamW()], ids=repr)
def test_state_is_what_torch_keeps(optimizer, dtype):
    ours = Alone(optimizer, dtype)
    parameters = torch_parameters(ours.parameters)
    theirs = torch_optimizer(optimizer, parameters)
    for step in range(5):
        gradients = normal(dtype)(step)
        for name, parameter in parameters.items():
            parameter.grad = torch.tensor(gradients[name])
        theirs.step()
        ours.step(gradients, 1.0)
    for name, parameter in parameters.items():
        kept = theirs.state[parameter]
        if isinstance(optimizer, SGD):
            pairs = [("momentum", kept["momentum_buffer"], 1.0)]
        else:
            factors = [1.0 - beta for beta in optimizer.betas]
            pairs = [
                ("grad_sum", kept["exp_avg"], factors[0]),
                ("grad_square_sum", kept["exp_avg_sq"], factors[1]),
            ]
            assert ours.state["step"] == int(kept["step"]) == 5
        for slot, expected, factor in pairs:
            found = ours.state[f"{name}.{slot}"]
            assert found.dtype == dtype
            require_close(found * found.dtype.type(factor), expected, np.ones(1), slot)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-4, 1e-8, 1e-10, 1e-15, 0.0])
def test_gradients_about_as_small_as_eps(scale, dtype):
    optimizer = AdamW(weight_decay=0.0)  # eps = 1e-8
    ours = Alone(optimizer, dtype)
    start = {name: array.copy() for name, array in ours.parameters.items()}
    train_both(ours, optimizer, normal(dtype, scale), lambda step: 0.1)
    moved = max(np.abs(ours.parameters[name] - start[name]).max() for name in start)
    assert (moved == 0) if scale == 0.0 else (moved < 1e-5) == (scale < 1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_element_that_gets_no_gradient_for_long(dtype):
    # As of an embedding's rows: m and v shrink, the correction of the bias goes on.
    optimizer = AdamW(betas=(0.9, 0.99), weight_decay=0.0)

    def gradients_of(step: int) -> Arrays:
        return normal(dtype, 1.0 if step % 20 == 0 else 0.0)(step)

    train_both(Alone(optimizer, dtype), optimizer, gradients_of, lambda step: 0.1, steps=45)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_late_step_counts_as_a_late_one(dtype):
    # In step 100000 no bias is left, as in PyTorch's.
    optimizer = AdamW()
    ours = Alone(optimizer, dtype)
    parameters = torch_parameters(ours.parameters)
    theirs = torch_optimizer(optimizer, parameters)
    gradients = normal(dtype)(0)
    for parameter, gradient in zip(parameters.values(), gradients.values(), strict=True):
        parameter.grad = torch.tensor(gradient)
        state = {"exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
        theirs.state[parameter] = {"step": torch.tensor(99_999.0), **state}
    ours.state["step"] = np.array(99_999)
    theirs.step()
    ours.step(gradients, 1.0)
    assert ours.state["step"] == 100_000
    for name, parameter in parameters.items():
        require_close(ours.parameters[name], parameter, np.full(1, 10.0), name)


@settings(max_examples=30, deadline=None)
@given(
    beta1=st.floats(0.0, 0.999),
    beta2=st.floats(0.0, 0.9999),
    eps=st.sampled_from([1e-8, 1e-3, 1.0]),
    weight_decay=st.sampled_from([0.0, 0.01, 1.0]),
    rate=st.floats(0.0, 0.5),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_adamw(beta1, beta2, eps, weight_decay, rate, seed):
    optimizer = AdamW(betas=(beta1, beta2), eps=eps, weight_decay=weight_decay)
    ours = Alone(optimizer, "float64", seed=seed)
    train_both(ours, optimizer, normal("float64", seed=seed), lambda step: rate, steps=5)


@settings(max_examples=30, deadline=None)
@given(
    momentum=st.floats(0.0, 0.999),
    nesterov=st.booleans(),
    weight_decay=st.floats(0.0, 1.0),
    rate=st.floats(0.0, 0.5),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_sgd(momentum, nesterov, weight_decay, rate, seed):
    optimizer = SGD(
        momentum=momentum, nesterov=nesterov and momentum > 0, weight_decay=weight_decay
    )
    ours = Alone(optimizer, "float64", seed=seed)
    train_both(ours, optimizer, normal("float64", seed=seed), lambda step: rate, steps=5)


@pytest.mark.parametrize("optimizer", [SGD(), SGD(momentum=0.9), AdamW()], ids=repr)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_rate_of_zero_changes_no_bit(optimizer, dtype):
    # Not by weight decay either, which the rate multiplies; the state goes on.
    ours = Alone(optimizer, dtype)
    before = {name: array.tobytes() for name, array in ours.parameters.items()}
    ours.step(normal(dtype)(0), 0.0)
    assert {name: array.tobytes() for name, array in ours.parameters.items()} == before
    slots = [array for name, array in ours.state.items() if name != "step"]
    assert all(array.any() for array in slots) and len(slots) == 2 * len(optimizer.slots)


# --- clipping -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", [SGD(momentum=0.9), AdamW()], ids=repr)
@pytest.mark.parametrize(
    ("scale", "clip_norm"),
    [(1.0, 100.0), (1.0, 0.5), (1e6, 1.0), (1e-9, 1.0), (1e-9, 1e-9), (0.0, 1.0), (1.0, 0.0)],
)
def test_clipping_is_that_of_torch(scale, clip_norm, optimizer, dtype):
    ours = Alone(optimizer, dtype, clip_norm)
    train_both(ours, optimizer, normal(dtype, scale), lambda step: 0.1, 4, clip_norm=clip_norm)
    assert (ours.grad_norm == 0.0) == (scale == 0.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_norm_is_of_all_gradients_together(dtype):
    ours = Alone(SGD(), dtype, clip_norm=6.5)
    start = {name: array.copy() for name, array in ours.parameters.items()}
    gradients = {"W": np.zeros((3, 4), dtype), "v": np.array([0, 12, 0], dtype)}
    gradients["W"][1, 2] = 5
    ours.step(gradients, 1.0)
    assert ours.grad_norm == 13.0
    for name, gradient in gradients.items():  # half of it, but for the 1e-6 in the quotient
        change = start[name] - ours.parameters[name]
        np.testing.assert_allclose(change, gradient / 2, rtol=2e-6)


@pytest.mark.parametrize("limit", [1000.0, math.inf])
def test_a_norm_below_the_limit_leaves_the_gradients_as_they_are(limit):
    clipped, plain = Alone(SGD(), "float32", limit), Alone(SGD(), "float32")
    for step in range(3):
        clipped.step(normal("float32")(step), 0.1)
        plain.step(normal("float32")(step), 0.1)
    assert clipped.grad_norm is not None and 0 < clipped.grad_norm < 1000
    for name in plain.parameters:
        assert clipped.parameters[name].tobytes() == plain.parameters[name].tobytes()


def test_a_scalar_parameter():
    # It has no axes to add squares over.
    model = perceptron()
    model.graph.node[-1].output[0] = "unscaled"
    model.graph.node.append(helper.make_node("Mul", ["unscaled", "scale"], ["logits"]))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(2.0), "scale"))
    x, labels = batch(8, 0)
    for clip_norm in (None, 1e9):
        trainer = Trainer(
            model, parameters=["scale"], optimizer=SGD(), learning_rate=0.5, clip_norm=clip_norm
        )
        loss = float(trainer.step(x, labels))
        assert trainer.parameters["scale"].shape == ()
        # The slope, by central differences of a loss that is computed in float32.
        up, down = (float(with_scale(model, 2.0 + d).evaluate(x, labels)) for d in (1e-2, -1e-2))
        slope = (up - down) / 2e-2
        assert 2.0 - float(trainer.parameters["scale"]) == pytest.approx(0.5 * slope, rel=1e-3)
        assert trainer.evaluate(x, labels) < loss
        if clip_norm:
            assert trainer.grad_norm == pytest.approx(abs(slope), rel=1e-3)


def with_scale(model: onnx.ModelProto, value: float) -> Trainer:
    changed = onnx.ModelProto.FromString(model.SerializeToString())
    changed.graph.initializer[-1].CopyFrom(numpy_helper.from_array(np.float32(value), "scale"))
    return Trainer(changed, parameters=["scale"])


# --- through a trainer ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("clip_norm", [None, 0.3])
@pytest.mark.parametrize(
    "optimizer", [SGD(momentum=0.9, nesterov=True), AdamW(no_decay=("b1", "b2"))], ids=repr
)
def test_a_training_is_that_of_torch(optimizer, clip_norm, dtype):
    # The whole step, with cross-entropy (γ = 0), and a rate from a schedule.
    rates = schedules.cosine(20, start=0.1, end=0.01)
    trainer = Trainer(
        perceptron(dtype), optimizer=optimizer, learning_rate=rates, clip_norm=clip_norm
    )
    parameters = torch_parameters(trainer.parameters)
    theirs = torch_optimizer(optimizer, parameters)
    for step in range(20):
        x, labels = batch(16, step, dtype)
        for group in theirs.param_groups:
            group["lr"] = rates(step)
        theirs.zero_grad()
        hidden = torch.tanh(torch.tensor(x) @ parameters["W1"] + parameters["b1"])
        logits = hidden @ parameters["W2"] + parameters["b2"]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(labels))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), clip_norm or 1e9)
        theirs.step()
        assert trainer.learning_rate == rates(step)
        # Roundings of the gradients, which AdamW divides by themselves.
        rel = 1e-5 if dtype == "float32" else 1e-12
        assert float(trainer.step(x, labels)) == pytest.approx(loss.item(), rel=rel)
        if clip_norm is None:
            assert trainer.grad_norm is None
        else:
            assert trainer.grad_norm == pytest.approx(float(norm), rel=rel)
    for name, array in trainer.parameters.items():
        expected = parameters[name].detach().numpy()
        np.testing.assert_allclose(array, expected, rtol=10 * rel, atol=10 * rel)


def test_the_rate_of_a_call_is_for_that_call():
    x, labels = batch(8, 0)
    one = Trainer(perceptron(), optimizer=SGD(), learning_rate=lambda step: 0.1 * (step + 1))
    other = Trainer(perceptron(), optimizer=SGD(), learning_rate=0.2)
    one.step(x, labels, learning_rate=0.2)
    other.step(x, labels)
    assert one.learning_rate == other.learning_rate == 0.2
    one.step(x, labels)
    other.step(x, labels)
    for name in one.parameters:
        assert one.parameters[name].tobytes() == other.parameters[name].tobytes()


# --- arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: SGD(momentum=1.0), ValueError, r"momentum = 1\.0, expected 0 <= momentum < 1"),
        (lambda: SGD(momentum=-0.1), ValueError, r"momentum = -0\.1, expected 0 <= momentum < 1"),
        (lambda: SGD(momentum=float("nan")), ValueError, "momentum = nan, expected 0 <= momentum"),
        (lambda: SGD(momentum="0.9"), TypeError, "momentum = '0.9', expected a number"),
        (lambda: SGD(momentum=True), TypeError, "momentum = True, expected a number"),
        (lambda: SGD(weight_decay=-1), ValueError, "weight_decay = -1, expected a finite number"),
        (lambda: SGD(weight_decay=float("inf")), ValueError, "weight_decay = inf, expected a fini"),
        (lambda: SGD(nesterov=True), ValueError, "nesterov = True with momentum = 0"),
        (
            lambda: SGD(momentum=0.9, nesterov="no"),
            TypeError,
            "nesterov = 'no', expected True or False",
        ),
        (lambda: AdamW(betas=0.9), TypeError, "betas = 0.9, expected two numbers"),
        (lambda: AdamW(betas=(0.9,)), TypeError, r"betas = \(0.9,\), expected two numbers"),
        (lambda: AdamW(betas=(0.9, 1.0)), ValueError, r"betas\[1\] = 1.0, expected 0 <= betas\[1"),
        (lambda: AdamW(betas=(None, 0.9)), TypeError, r"betas\[0\] = None, expected a number"),
        (lambda: AdamW(eps=-1e-8), ValueError, "eps = -1e-08, expected a finite number"),
        (lambda: AdamW(weight_decay=None), TypeError, "weight_decay = None, expected a number"),
        (lambda: AdamW(no_decay="b"), TypeError, "no_decay = 'b', expected several names"),
        (lambda: AdamW(no_decay=("b", 3)), TypeError, "no_decay has 3, expected names"),
    ],
)
def test_bad_arguments(make, error, text):
    with pytest.raises(error, match=f"^{text}"):
        make()


def test_a_name_in_no_decay_must_be_trained():
    for optimizer in (AdamW(no_decay=("b3",)), AdamW(no_decay=("b1",))):
        with pytest.raises(ValueError, match=r"no_decay has 'b\d', expected parameters .*\['W1'"):
            Trainer(perceptron(), optimizer=optimizer, frozen=["b1"])


def test_numbers_of_numpy_and_names_in_any_order_are_the_same():
    # Checkpoints compare the text.
    plain = SGD(momentum=0.5, nesterov=True, weight_decay=2.0)
    assert repr(SGD(momentum=np.float32(0.5), nesterov=np.True_, weight_decay=2)) == repr(plain)
    names = [f"b{i}" for i in range(20)]
    one = AdamW(
        betas=[np.float64(0.5), 0], eps=np.float64(1), weight_decay=1, no_decay=tuple(names)
    )
    twice = tuple(reversed([*names, *names]))
    other = AdamW(betas=(0.5, 0.0), eps=1.0, weight_decay=1.0, no_decay=twice)
    assert repr(one) == repr(other)
    assert one.no_decay == tuple(sorted(names))


def test_defaults_are_those_of_torch():
    theirs = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))]).defaults
    for field in dataclasses.fields(AdamW):
        if field.name != "no_decay":
            assert field.default == theirs[field.name]
    theirs = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=1.0).defaults
    for field in dataclasses.fields(SGD):
        assert field.default == theirs[field.name]
    assert training.Trainer(linear((3, CLASSES))).learning_rate == 1e-3
