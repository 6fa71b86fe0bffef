"""One kind of call, again and again, each time with another allocation that fails.

`allocations` runs this in a process of its own, as ``python -m reliability.faulted_calls
KIND``, with tests/native/faults.c preloaded. It prints what it saw as JSON.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import itertools
import json
import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import gce
from gce import shards

MOST_FAULTS = 3000  # in one sweep: a call that never gets through is one that hangs
NATIVE = "/_native."


class Kind(NamedTuple):
    """A call, and what faults it is to see."""

    call: Callable[[], Any]
    outs: tuple[Any, ...] = ()  # arrays that it writes to, if it succeeds
    # Only this library's own allocations fail, and leak: others' may end the process, and blocks
    # that they lose are theirs.
    within: str = ""
    says: tuple[str, ...] = ()  # another library's words for MemoryError
    # How many fail in a row: one, those of its message too, all.
    bursts: tuple[int, ...] = (1, 4, 1000)


def problem(rows: int, classes: int, dtype: str = "float32") -> dict[str, Any]:
    rng = np.random.default_rng(rows)
    return {
        "logits": rng.standard_normal((rows, classes), np.float32).astype(dtype),
        "targets": rng.integers(0, classes, rows),
        "gamma": 0.3,
    }


def of(function: Callable[..., Any], given: dict[str, Any], **options: Any) -> Kind:
    given = given | options
    return Kind(lambda: function(**given), (given["out"],) if "out" in given else ())


def small() -> Kind:
    return of(gce.loss_and_grad, problem(4, 5), reduction="none", return_stats=True)


def into_out() -> Kind:
    given = problem(50, 700)
    return of(gce.loss_and_grad, given, out=np.zeros_like(given["logits"]))


def in_place() -> Kind:
    given = problem(8, 10)
    first = given["logits"].copy()

    def call() -> Any:
        given["logits"][...] = first
        return gce.loss_and_grad(**given, out=given["logits"])

    return Kind(call)


def many_chunks() -> Kind:
    return of(gce.loss, problem(60_000, 3, "float16"), num_threads=3, label_smoothing=0.1)


def split_rows() -> Kind:
    return of(gce.loss_and_grad, problem(1, 1_100_000), num_threads=2)


def weights() -> Kind:
    weight = np.linspace(0, 1, 33)
    return of(gce.loss_and_grad, problem(70, 33, "float64"), weight=weight, label_smoothing=0.2)


def lists() -> Kind:
    given: dict[str, Any] = {"logits": [[1.0, 2.0], [0.5, 0.1]], "targets": [0, 1]}
    return of(gce.loss, given, gamma=[0.1, 0.9], reduction="none", threshold=[0, 1])


def probabilities() -> Kind:
    given = problem(40, 130)
    targets = np.abs(given["logits"])
    return of(gce.loss_and_grad, given, targets=targets, weight=np.ones(130), softcap=30.0)


def statistics() -> Kind:
    return of(gce.row_stats, {k: v for k, v in problem(9, 40).items() if k != "gamma"})


def shift() -> Kind:
    given = problem(30, 40)
    return of(gce.loss_and_grad, given, shift=2, reduction="none")


def hvp() -> Kind:
    given = problem(30, 40)
    return of(gce.hvp, given, vector=given["logits"][::-1])


def gamma_grad() -> Kind:
    return of(gce.loss_gamma_grad, problem(3000, 40), num_threads=2)


def sharded() -> Kind:
    given = problem(6, 40)
    logits, targets, slices = given["logits"], given["targets"], (slice(0, 16), slice(16, 40))

    def call() -> Any:
        stats = shards.merge(
            [
                shards.partial_stats(
                    logits[:, part], targets, first_class=part.start, num_classes=40
                )
                for part in slices
            ]
        )
        found = [
            shards.loss_and_grad(
                logits[:, part], targets, 0.3, stats, first_class=part.start, num_classes=40
            )
            for part in slices
        ]
        return [array for pair in found for array in pair]

    return Kind(call, within=NATIVE)


def binary() -> Kind:
    given = problem(300, 41)
    targets = np.clip(given["logits"], 0, 1)
    out = np.zeros_like(targets)
    return of(gce.binary_loss_and_grad, given, targets=targets, out=out, num_threads=2)


def wrong_target() -> Kind:
    """Its message takes memory, too."""
    given = problem(4, 5) | {"targets": np.array([0, 1, 2, 12])}

    def call() -> Any:
        try:
            gce.loss(**given)
        except IndexError as error:
            return str(error).encode()
        raise AssertionError("a wrong target was taken")

    return Kind(call)


def torch() -> Kind:
    import torch

    from gce.torch import gamma_cross_entropy

    torch.set_num_threads(1)
    logits, targets = torch.randn(5, 7, requires_grad=True), torch.arange(5)

    def call() -> Any:
        (grad,) = torch.autograd.grad(gamma_cross_entropy(logits, targets, 0.3), logits)
        return grad.numpy()

    return Kind(call, within=NATIVE, says=("bad_alloc", "not enough memory"))


def operator() -> Kind:
    import onnx
    import onnxruntime

    import gce.onnx

    node = gce.onnx.loss_node("scores", "labels", "gamma", grad="grad", reduction="none")
    floats, integers = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node],
        "loss",
        [
            value("scores", floats, [70, 30]),
            value("labels", integers, [70]),
            value("gamma", floats, []),
        ],
        [value("loss", floats, [70]), value("grad", floats, [70, 30])],
    )
    imports = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid(gce.onnx.DOMAIN, 1)]
    model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    gce.onnx.register(options)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    given = problem(70, 30)
    feeds = {
        "scores": given["logits"],
        "labels": given["targets"],
        "gamma": np.array(0.3, "f4"),
    }
    return Kind(
        lambda: session.run(None, feeds),
        within="/libgce_ort.",
        says=("out of memory", "bad_alloc"),
    )


def jax() -> Kind:
    import jax

    import gce.jax

    given = problem(7, 30)
    logits, targets = jax.numpy.asarray(given["logits"]), jax.numpy.asarray(given["targets"])
    compiled = jax.jit(jax.value_and_grad(lambda z: gce.jax.gamma_cross_entropy(z, targets, 0.3)))
    return Kind(
        lambda: [np.asarray(array) for array in compiled(logits)],
        within="/libgce_xla.",
        says=("out of memory", "bad_alloc"),
        bursts=(1,),  # XLA's own errors cannot be made without memory
    )


KINDS: dict[str, Callable[[], Kind]] = {
    make.__name__: make
    for make in (
        small,
        into_out,
        in_place,
        many_chunks,
        split_rows,
        weights,
        lists,
        probabilities,
        statistics,
        shift,
        hvp,
        gamma_grad,
        sharded,
        binary,
        wrong_target,
        operator,
        torch,
        jax,
    )
}

# --- faults ---------------------------------------------------------------------------------------

SHIM = ctypes.PyDLL(None)  # with the GIL: a call of it allocates nothing on another thread


def bits(found: Any) -> Any:
    if isinstance(found, tuple | list):
        return [bits(item) for item in found]
    return found if isinstance(found, bytes) else np.asarray(found).tobytes()


def attempt(kind: Kind, want: Any, arm: Callable[[], Any], disarm: Callable[[], Any]) -> str:
    """What came of one call: done, error, or what was wrong with it."""
    before = bits(kind.outs)
    error: BaseException | None = None
    found: Any = None
    arm()
    try:
        found = kind.call()
    except BaseException as caught:
        error = caught
    disarm()
    if error is None:
        return "done" if bits(found) == want else "other bits"
    text = f"{type(error).__name__}: {error}"
    said = isinstance(error, MemoryError) or any(words in text for words in kind.says)
    # Or it would live on in a cycle with this frame: Python has few MemoryErrors in store for when
    # it can make none, and ends the process without one.
    error = None
    if not said:
        return text
    return "error" if bits(kind.outs) == before else "an output was written"


def sweep(kind: Kind, want: Any, seen: dict[str, int], burst: int) -> None:
    """Each allocation of a call fails once."""
    for number in range(MOST_FAULTS):
        arm = functools.partial(SHIM.fault_arm, number, burst)
        came = attempt(kind, want, arm, SHIM.fault_disarm)
        failed = SHIM.fault_count()
        seen["faults"] = seen.get("faults", 0) + failed
        seen[came] = seen.get(came, 0) + 1
        if failed == 0:
            return
    seen["no end"] = 1


def in_child(
    kind: Kind, want: Any, arm: Callable[[], Any], disarm: Callable[[], Any]
) -> dict[str, int]:
    """What came of the first call of a forked process, which has no threads yet."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        came = attempt(kind, want, arm, disarm)
        seen = {came: 1, "faults": SHIM.fault_count()}
        if bits(kind.call()) != want:
            seen["other bits later"] = 1
        os.write(writing, json.dumps(seen).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return json.loads(text) if code == 0 else {"crashes": 1}


def first_calls(kind: Kind, want: Any, seen: dict[str, int]) -> None:
    """The same of a process's first call, which makes the threads; and none can be made."""

    def add(found: dict[str, int]) -> int:
        for what, count in found.items():
            seen[what] = seen.get(what, 0) + count
        return found.get("faults", 1)

    for burst in (kind.bursts[0], kind.bursts[-1]):
        for number in range(MOST_FAULTS):
            arm = functools.partial(SHIM.fault_arm, number, burst)
            if add(in_child(kind, want, arm, SHIM.fault_disarm)) == 0:
                break
    no_threads, threads = (functools.partial(SHIM.fault_threads, fail) for fail in (1, 0))
    add(in_child(kind, want, no_threads, threads))


def leaked(kind: Kind, want: Any, seen: dict[str, int]) -> int:
    """Blocks that each of several sweeps leaves behind."""
    live = []
    for _ in range(12):
        sweep(kind, want, seen, 1)
        gc.collect()
        live.append(SHIM.fault_live())
    # What is kept for later, such as a larger dict, one sweep may add and not each.
    return max(0, min(after - before for before, after in itertools.pairwise(live)))


def run(name: str) -> dict[str, int]:
    """How often a call of this kind was done, was a MemoryError, or went wrong, and how."""
    kind = KINDS[name]()
    want = bits(kind.call())
    if kind.within and not SHIM.fault_within(kind.within.encode()):
        raise SystemExit(f"no library has {kind.within} in its path")
    seen: dict[str, int] = {}
    if not kind.within:  # other libraries' threads do not survive a fork
        first_calls(kind, want, seen)
    for burst in kind.bursts:
        sweep(kind, want, seen, burst)
    seen["leaked"] = leaked(kind, want, seen)
    if bits(kind.call()) != want:
        seen["other bits later"] = 1
    return seen


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1])))
