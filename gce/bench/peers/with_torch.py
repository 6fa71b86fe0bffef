"""PyTorch: the loss from its parts, eager and compiled, and its own cross_entropy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gce.bench.cases import (
    BINARY,
    CAP,
    FORWARD,
    IN_PLACE,
    PROBABILITIES,
    PRODUCT,
    SOFTCAP,
    WEIGHTS,
    Data,
)
from gce.bench.contender import CannotDo, Contender, Work

__all__ = ["PEERS"]


def tensor_of(array: Any) -> Any:
    """A tensor on the memory of an array, bfloat16 too."""
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def work_of(data: Data, threads: int, loss: Callable[[Any], Any]) -> Work:
    """The loss of the logits, and its gradient by autograd where the case wants it."""
    import torch

    torch.set_num_threads(threads)
    if data.case.work == IN_PLACE:
        raise CannotDo("autograd does not write over its input")
    z = tensor_of(data.logits).requires_grad_(data.case.work != FORWARD)

    def forward() -> Any:
        with torch.no_grad():
            return loss(z)

    if data.case.options == PRODUCT:
        return product_of(z, tensor_of(data.vector), loss)

    def both() -> Any:
        value = loss(z)
        value.backward()
        grad, z.grad = z.grad, None  # the caller's alone: the next gradient is new
        return value, grad

    return forward if data.case.work == FORWARD else both


def product_of(z: Any, vector: Any, loss: Callable[[Any], Any]) -> Work:
    """The Hessian-vector product by differentiating twice."""
    import torch

    def twice() -> Any:
        (grad,) = torch.autograd.grad(loss(z), z, create_graph=True)
        return 0.0, torch.autograd.grad(grad, z, vector)[0]

    return twice


def loss_of(data: Data) -> Callable[[Any], Any]:
    """The loss in PyTorch's functions."""
    import torch

    axis, weight = data.case.axis, data.weight
    gamma: Any = data.gamma
    if not isinstance(gamma, float):
        gamma = tensor_of(gamma.astype("f8" if data.case.dtype == "float64" else "f4"))
    y = tensor_of(data.targets)

    def of_log(log_p: Any) -> Any:
        return -torch.log(gamma + (1 - gamma) * log_p.exp()) / (1 - gamma)

    def rows(z: Any, y: Any) -> Any:
        return of_log(torch.log_softmax(z, axis).gather(axis, y.unsqueeze(axis)).squeeze(axis))

    if data.case.options == PROBABILITIES:
        return lambda z: (y * of_log(torch.log_softmax(z, axis))).sum(axis).mean()
    if data.case.options == BINARY:
        log_sigmoid = torch.nn.functional.logsigmoid
        return lambda z: (y * of_log(log_sigmoid(z)) + (1 - y) * of_log(log_sigmoid(-z))).mean()
    if data.case.options == SOFTCAP:
        return lambda z: rows(CAP * torch.tanh(z / CAP), y).mean()
    if data.case.options != WEIGHTS:
        return lambda z: rows(z, y).mean()
    weights = tensor_of(weight)
    counted = y != data.options["ignore_index"]
    inside = torch.where(counted, y, 0)

    def weighted(z: Any) -> Any:
        row_weights = weights[inside] * counted
        return (rows(z, inside) * row_weights).sum() / row_weights.sum()

    return weighted


def eager(data: Data, threads: int) -> Work:
    """The loss from PyTorch's parts, its gradient by autograd."""
    return work_of(data, threads, loss_of(data))


def compiled(data: Data, threads: int) -> Work:
    """The same through torch.compile."""
    import torch

    if data.case.options == PRODUCT:
        raise CannotDo("torch.compile differentiates once")
    torch._dynamo.reset()  # it stops compiling after a few shapes
    return work_of(data, threads, torch.compile(loss_of(data), dynamic=False))


def cross_entropy(data: Data, threads: int) -> Work:
    """PyTorch's own cross_entropy, or binary_cross_entropy_with_logits."""
    import torch

    y, axis = tensor_of(data.targets), data.case.axis
    if axis != 1 and not data.case.is_last_axis:
        raise CannotDo("the class axis is 1 or the last")
    options: dict[str, Any] = {}
    if data.weight is not None:
        weight = tensor_of(data.weight).to(tensor_of(data.logits[:1]).dtype)
        options = {"weight": weight, "ignore_index": data.options["ignore_index"]}
    function: Any = torch.nn.functional.cross_entropy
    if data.case.options == BINARY:
        function = torch.nn.functional.binary_cross_entropy_with_logits
    if data.case.options == SOFTCAP:
        return work_of(data, threads, lambda z: function(CAP * torch.tanh(z / CAP), y))
    if axis == 1 or (data.case.is_last_axis and len(data.case.shape) <= 2):
        return work_of(data, threads, lambda z: function(z, y, **options))
    flat = y.reshape(-1)
    return work_of(
        data, threads, lambda z: function(z.reshape(-1, data.case.classes), flat, **options)
    )


PEERS = (
    Contender("torch", eager, "torch"),
    Contender("torch.compile", compiled, "torch"),
    Contender("torch cross_entropy", cross_entropy, "torch", plain=True),
)
