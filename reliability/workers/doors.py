"""Cases of the other doors: PyTorch, jax, and ONNX Runtime's sessions with the operator."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np

from gce import reference
from reliability.workers.cases import Case, Results, checked, flat, size_of
from reliability.workers.problems import Problem, problem

# Of the numpy face's options those that a node has too.
OF_NODES = ("reduction", "value", "label_smoothing", "z_loss", "softcap", "shift")


def drawn(
    chooser: random.Random,
    dtypes: tuple[str, ...],
    without: tuple[str, ...],
    only: tuple[str, ...] = (),
) -> Problem:
    """A problem of a small matrix, with classes for targets."""
    given = problem(chooser, chooser.choice(dtypes), chooser.choice(((3, 7), (64, 33), (20, 130))))
    while given.targets.dtype.kind == "f":
        given = problem(chooser, given.logits.dtype.name, given.logits.shape)
    options = {
        name: option
        for name, option in given.options.items()
        if name not in without and (not only or name in only)
    }
    return given._replace(options=options)


def exact_of(given: Problem, **more: Any) -> Results:
    exact = reference.loss_and_grad(
        given.logits, given.targets, given.gamma, **given.options, **more
    )
    return flat(exact)


def of_torch(chooser: random.Random) -> Case:
    """Loss and gradient by autograd, which scales the gradient of the sum of all losses."""
    import torch

    from gce.torch import gamma_cross_entropy

    torch.set_num_threads(1)
    given = drawn(chooser, ("float32", "float64"), ("grad_output",))
    tensors = {
        name: torch.from_numpy(option) if isinstance(option, np.ndarray) else option
        for name, option in given.options.items()
    }
    logits, targets = torch.from_numpy(given.logits), torch.from_numpy(given.targets)
    gamma = torch.from_numpy(given.gamma) if np.ndim(given.gamma) else given.gamma

    def run(how: random.Random) -> Results:
        by_columns = how.random() < 0.5
        input = (logits.t().contiguous().t() if by_columns else logits.clone()).requires_grad_()
        loss = gamma_cross_entropy(input, targets, gamma, **tensors)
        loss.sum().backward()
        assert input.grad is not None
        return [loss.detach().numpy(), input.grad.numpy()]

    return checked("torch", run, exact_of(given), given.logits.dtype, size_of(given))


def of_jax(chooser: random.Random) -> Case:
    """Loss and gradient of a compiled function."""
    import jax

    from gce.jax import gamma_cross_entropy

    given = drawn(chooser, ("float32", "float64"), ("grad_output",))

    def total(logits: Any, gamma: Any) -> Any:
        loss = gamma_cross_entropy(logits, given.targets, gamma, **given.options)
        return loss.sum(), loss

    step = jax.jit(jax.value_and_grad(total, has_aux=True))

    def run(how: random.Random) -> Results:
        (_, loss), grad = step(given.logits, given.gamma)
        return [np.asarray(loss), np.asarray(grad)]

    return checked("jax", run, exact_of(given), given.logits.dtype, size_of(given))


def of_operator(chooser: random.Random) -> Case:
    """A session of one node: all threads run the same, and now and then a new one."""
    given = drawn(chooser, ("float16", "float32", "float64"), (), OF_NODES)
    labels = np.where(given.targets == -100, 0, given.targets).astype("i8")
    feeds = {"logits": given.logits, "labels": labels, "gamma": np.asarray(given.gamma)}
    new = operator_session(feeds, **given.options)
    kept = new()
    # Attributes are floats.
    rounded = {
        name: float(np.float32(option)) if isinstance(option, float) else option
        for name, option in given.options.items()
    }
    given = given._replace(targets=labels, options=rounded)

    def run(how: random.Random) -> Results:
        return list((new() if how.random() < 0.05 else kept).run(["loss", "grad"], feeds))

    return checked("onnxruntime", run, exact_of(given), given.logits.dtype, size_of(given))


def operator_session(feeds: dict[str, Any], **attributes: Any) -> Callable[[], Any]:
    """What makes a session of one node with these inputs, whose outputs are loss and grad."""
    import onnxruntime
    from onnx import helper

    import gce.onnx

    def info(name: str, like: Any, dims: Any) -> Any:
        return helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(like.dtype), dims
        )

    logits, labels = feeds["logits"], feeds["labels"]
    of_loss = labels.shape if attributes.get("reduction") == "none" else ()
    graph = helper.make_graph(
        [gce.onnx.loss_node("logits", "labels", "gamma", loss="loss", grad="grad", **attributes)],
        "one",
        [info(name, array, array.shape) for name, array in feeds.items()],
        [info("loss", logits, of_loss), info("grad", logits, logits.shape)],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(gce.onnx.DOMAIN, 1)]
    text = helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()

    def session() -> Any:
        options = onnxruntime.SessionOptions()
        # One thread of its own; errors are raised, not printed.
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        return onnxruntime.InferenceSession(text, gce.onnx.register(options))

    return session


DOORS: dict[str, Callable[[random.Random], Case]] = {
    "torch": of_torch,
    "jax": of_jax,
    "onnxruntime": of_operator,
}


def cases(seed: int, names: list[str], count: int) -> list[Case]:
    """So many cases of each of these doors."""
    chooser = random.Random(seed)
    return [DOORS[name](chooser) for name in names for _ in range(count)]
