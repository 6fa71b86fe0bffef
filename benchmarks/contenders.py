"""Who is measured: gce, the machine's limits, and other packages doing the same work.

Each contender makes, for a case, a function without arguments that does the work once on warm
buffers. A package that is not installed, or a case that it cannot do, is left out, and the report
says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import gce
from benchmarks.cases import BACKWARD, FORWARD, GAMMA, IN_PLACE, Case

Work = Callable[[], object]


class CannotDo(Exception):
    """The contender has no way to do this case."""


def gce_itself(case: Case, threads: int) -> Work:
    z, y, axis = case.logits, case.targets, case.axis
    if case.work == FORWARD:
        return lambda: gce.loss(z, y, GAMMA, axis=axis, num_threads=threads)
    out = case.out if case.work == BACKWARD else z
    if case.work == IN_PLACE:
        z = out = case.out
    return lambda: gce.loss_and_grad(z, y, GAMMA, axis=axis, out=out, num_threads=threads)


def limit(case: Case, threads: int) -> Work:
    """One streaming read of the logits; a copy where a gradient is written; a scaling in place.

    numpy's own loops on one thread, so at more threads the ratio may exceed 1.
    """
    z, out = case.logits, case.out
    if case.dtype != "float32":
        bits = z.view(np.uint16), out.view(np.uint16)
        return lambda: np.copyto(bits[1], bits[0])
    if case.work == FORWARD:
        return z.max
    if case.work == BACKWARD:
        return lambda: np.copyto(out, z)
    return lambda: np.multiply(out, np.float32(1), out=out)


def numpy_by_hand(case: Case, threads: int) -> Work:
    """The formula in numpy, row by row so that a row stays in cache, with no array made twice."""
    if case.dtype != "float32" or case.axis != -1 or len(case.logits) > 10000:
        raise CannotDo
    z, y, out = case.logits, case.targets, case.out
    row = np.empty(case.classes, np.float32)

    def work() -> float:
        total = 0.0
        for i in range(len(z)):
            e = row if case.work == FORWARD else out[i]
            np.subtract(z[i], z[i].max(), out=e)
            np.exp(e, out=e)
            s = float(e.sum())
            p = float(e[y[i]]) / s
            total -= np.log(GAMMA + (1 - GAMMA) * p) / (1 - GAMMA)
            if case.work != FORWARD:
                w = p / (GAMMA + (1 - GAMMA) * p)
                np.multiply(e, np.float32(w / s / len(z)), out=e)
                e[y[i]] -= w / len(z)
        return total / len(z)

    return work


def _torch(case: Case, threads: int, compiled: bool) -> Work:
    import torch

    torch.set_num_threads(threads)
    if case.work == IN_PLACE:
        raise CannotDo
    z = torch.from_numpy(case.logits.view(np.uint16) if case.dtype == "bfloat16" else case.logits)
    if case.dtype == "bfloat16":
        z = z.view(torch.bfloat16)
    z.requires_grad_(case.work == BACKWARD)
    y = torch.from_numpy(case.targets)
    axis = case.axis

    def loss(z: Any) -> Any:
        log_p = torch.log_softmax(z, axis).gather(axis, y.unsqueeze(axis))
        return -(torch.log(GAMMA + (1 - GAMMA) * log_p.exp()) / (1 - GAMMA)).mean()

    if compiled:
        torch._dynamo.reset()  # it stops compiling after a few shapes
    function = torch.compile(loss, dynamic=False) if compiled else loss

    def work() -> Any:
        if case.work == FORWARD:
            with torch.no_grad():
                return function(z)
        z.grad = None
        value = function(z)
        value.backward()
        return value

    work()
    return work


def torch_eager(case: Case, threads: int) -> Work:
    """The loss from PyTorch's parts, its gradient by autograd."""
    return _torch(case, threads, compiled=False)


def torch_compile(case: Case, threads: int) -> Work:
    """The same through torch.compile."""
    return _torch(case, threads, compiled=True)


def torch_cross_entropy(case: Case, threads: int) -> Work:
    """PyTorch's own cross_entropy: gamma = 0 only, so less work than the others do."""
    import torch

    torch.set_num_threads(threads)
    if case.work == IN_PLACE or case.dtype != "float32":
        raise CannotDo
    z = torch.from_numpy(case.logits).requires_grad_(case.work == BACKWARD)
    y = torch.from_numpy(case.targets)

    def work() -> Any:
        if case.work == FORWARD:
            with torch.no_grad():
                return torch.nn.functional.cross_entropy(z, y)
        z.grad = None
        value = torch.nn.functional.cross_entropy(z, y)
        value.backward()
        return value

    return work


def jax_jit(case: Case, threads: int) -> Work:
    """jax.jit of the loss, or of its value_and_grad; jax chooses its own number of threads."""
    import jax
    import jax.numpy as jnp

    if case.work == IN_PLACE or case.dtype != "float32":
        raise CannotDo
    z, y = jnp.asarray(case.logits), jnp.asarray(case.targets)
    axis = case.axis

    def loss(z: Any) -> Any:
        log_p = jax.nn.log_softmax(z, axis)
        log_p = jnp.take_along_axis(log_p, jnp.expand_dims(y, axis), axis)
        return -(jnp.log(GAMMA + (1 - GAMMA) * jnp.exp(log_p)) / (1 - GAMMA)).mean()

    function = jax.jit(loss if case.work == FORWARD else jax.value_and_grad(loss))
    return lambda: jax.block_until_ready(function(z))


def numba_fused(case: Case, threads: int) -> Work:
    """The loops written by hand and compiled by numba with fastmath, on one thread."""
    import numba

    if case.work == IN_PLACE or case.dtype != "float32" or case.axis != -1:
        raise CannotDo

    @numba.njit(fastmath=True)
    def fused(z: Any, y: Any, out: Any, gamma: float, backward: bool) -> float:
        total = 0.0
        for i in range(z.shape[0]):
            largest = z[i].max()
            s = np.float32(0)
            for v in range(z.shape[1]):
                s += np.exp(z[i, v] - largest)
            p = np.exp(z[i, y[i]] - largest) / s
            total -= np.log(gamma + (1 - gamma) * p) / (1 - gamma)
            if backward:
                w = p / (gamma + (1 - gamma) * p) / z.shape[0]
                scale = np.float32(w / s)
                for v in range(z.shape[1]):
                    out[i, v] = np.exp(z[i, v] - largest) * scale
                out[i, y[i]] -= w
        return total / z.shape[0]

    arguments = (case.logits, case.targets, case.out, GAMMA, case.work == BACKWARD)
    fused(*arguments)
    return lambda: fused(*arguments)


def _session(case: Case, threads: int, standard: bool) -> Work:
    """A session of one node: gce's operator, or ONNX Runtime's own loss."""
    import onnxruntime
    from onnx import TensorProto, helper

    import gce.onnx

    if (
        case.work == IN_PLACE
        or case.dtype != "float32"
        or (case.axis != 1 and case.logits.ndim > 2)
    ):
        raise CannotDo
    if standard and case.work != FORWARD:
        raise CannotDo  # it has no gradient outside the training release
    inputs = {
        "scores": (TensorProto.FLOAT, case.logits),
        "labels": (TensorProto.INT64, case.targets),
    }
    if standard:
        node = helper.make_node("SoftmaxCrossEntropyLoss", [*inputs], ["loss"])
    else:
        inputs["gamma"] = TensorProto.DOUBLE, np.array(GAMMA)
        grad = "grad" if case.work == BACKWARD else None
        node = gce.onnx.loss_node("scores", "labels", "gamma", grad=grad)
    infos = [
        helper.make_tensor_value_info(name, kind, array.shape)
        for name, (kind, array) in inputs.items()
    ]
    shapes = {"loss": (), "grad": case.shape}
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name]) for name in node.output
    ]
    model = helper.make_model(
        helper.make_graph([node], "benchmark", infos, outputs),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(gce.onnx.DOMAIN, 1)],
        ir_version=8,
    )
    options = gce.onnx.register(onnxruntime.SessionOptions())
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feeds = {name: array for name, (_, array) in inputs.items()}
    return lambda: session.run(None, feeds)


def gce_operator(case: Case, threads: int) -> Work:
    """gce's operator in an ONNX Runtime session, its outputs new at each run."""
    return _session(case, threads, standard=False)


def onnxruntime_loss(case: Case, threads: int) -> Work:
    """ONNX Runtime's own SoftmaxCrossEntropyLoss: gamma = 0 only, and no gradient."""
    return _session(case, threads, standard=True)


LIMIT = "limit"
OPERATOR = "gce (onnx)"
ONNXRUNTIME = "onnxruntime"
OURS = ("gce", LIMIT, OPERATOR)  # the others are peers
CONTENDERS: dict[str, Callable[[Case, int], Work]] = {
    "gce": gce_itself,
    LIMIT: limit,
    OPERATOR: gce_operator,
    "numpy": numpy_by_hand,
    "torch": torch_eager,
    "torch.compile": torch_compile,
    "torch cross_entropy": torch_cross_entropy,
    "jax": jax_jit,
    "numba": numba_fused,
    ONNXRUNTIME: onnxruntime_loss,
}
