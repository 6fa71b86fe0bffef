"""The model that host.cpp runs, written to the path that is given."""

from __future__ import annotations

import os
import sys

import onnx
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_opsetid, make_tensor_value_info

import gce.onnx


def write(path: str | os.PathLike[str]) -> None:
    """One node, for a batch of any size."""
    inputs = [
        make_tensor_value_info("scores", TensorProto.FLOAT, ["N", "C"]),
        make_tensor_value_info("labels", TensorProto.INT64, ["N"]),
        make_tensor_value_info("gamma", TensorProto.FLOAT, []),
    ]
    outputs = [
        make_tensor_value_info("loss", TensorProto.FLOAT, []),
        make_tensor_value_info("grad", TensorProto.FLOAT, ["N", "C"]),
    ]
    node = gce.onnx.loss_node("scores", "labels", "gamma", grad="grad")
    opsets = [make_opsetid("", 17), make_opsetid(gce.onnx.DOMAIN, 1)]
    graph = make_graph([node], "host", inputs, outputs)
    onnx.save(make_model(graph, opset_imports=opsets, ir_version=8), path)


if __name__ == "__main__":
    write(sys.argv[1])
