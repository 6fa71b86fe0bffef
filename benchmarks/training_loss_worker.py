"""A session of the training release: ``python training_loss_worker.py CASES.py CASE``.

Says when it is ready; then, for each line on its standard input, the seconds of so many executions,
or for 0 the loss and the ends of its gradient. gce is not needed here, nor installed.
"""

from __future__ import annotations

import importlib.util
import json
import pickle
import sys
import time
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

MICROSOFT = "com.microsoft"


def data_of(cases_path: str, case: dict[str, Any]) -> Any:
    """The arrays of the case, made by gce/bench/cases.py."""
    spec = importlib.util.spec_from_file_location("cases", cases_path)
    assert spec is not None and spec.loader is not None
    cases = importlib.util.module_from_spec(spec)
    sys.modules["cases"] = cases  # dataclasses look there
    spec.loader.exec_module(cases)
    return cases.Data(cases.Case(**{**case, "shape": tuple(case["shape"])}))


def session_of(shape: tuple[int, ...], threads: int) -> onnxruntime.InferenceSession:
    """The loss, and its gradient for an upstream gradient of 1."""
    rows = [shape[0], *shape[2:]]
    nodes = [
        helper.make_node("SoftmaxCrossEntropyLoss", ["scores", "labels"], ["loss", "log_prob"]),
        helper.make_node(
            "SoftmaxCrossEntropyLossGrad", ["one", "log_prob", "labels"], ["grad"],
            domain=MICROSOFT, reduction="mean",
        ),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "benchmark",
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, shape),
            helper.make_tensor_value_info("labels", TensorProto.INT64, rows),
        ],
        [
            helper.make_tensor_value_info("loss", TensorProto.FLOAT, ()),
            helper.make_tensor_value_info("grad", TensorProto.FLOAT, shape),
        ],
        [helper.make_tensor("one", TensorProto.FLOAT, (), [1.0])],
    )
    opsets = [helper.make_opsetid("", 14), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def say(answer: object) -> None:
    """One pickle: rows of a gradient are too long for text."""
    pickle.dump(answer, sys.stdout.buffer)
    sys.stdout.buffer.flush()


def main(cases_path: str, text: str) -> None:
    asked = json.loads(text)
    data = data_of(cases_path, asked["case"])
    session = session_of(data.case.shape, asked["threads"])
    feeds = {"scores": data.logits, "labels": data.targets}
    session.run(None, feeds)
    say("ready")
    for line in sys.stdin:
        repeats = int(line)
        if repeats == 0:
            loss, grad = session.run(None, feeds)
            say((float(loss), np.concatenate([grad[:2], grad[-2:]])))
            continue
        start = time.perf_counter()
        for _ in range(repeats):
            session.run(None, feeds)
        say((time.perf_counter() - start) / repeats)


if __name__ == "__main__":
    main(*sys.argv[1:])
