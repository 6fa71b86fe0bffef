"""The operator's gradient, for ONNX Runtime's gradient builder."""

from __future__ import annotations

import json
import threading
from typing import Any

from gce._onnx_library import DOMAIN, OP_TYPE
from gce.onnx.ort_training._runtime import native

__all__ = ["register_gradient"]

_lock = threading.Lock()
_registered = False

# d/d scores = GO(0) * O(1), the upstream gradient times the output `grad`. GO(0) is a scalar, or
# for reduction "none" [N, d1...dk], which lacks the class axis: its shape s becomes
# s[:1] + [1] + s[1:], which makes [1] of a scalar and so serves both. By a Slice, whose inputs are
# the same in every opset since 10.
_DEFINITION: list[tuple[str, list[str], list[str], dict[str, Any]]] = [
    ("Constant", [], ["zero"], {"value": [0]}),
    ("Constant", [], ["one"], {"value": [1]}),
    ("Constant", [], ["end"], {"value": [2**31 - 1]}),
    ("Shape", ["GO(0)"], ["shape"], {}),
    ("Slice", ["shape", "zero", "one"], ["batch"], {}),
    ("Slice", ["shape", "one", "end"], ["rest"], {}),
    ("Concat", ["batch", "one", "rest"], ["with_classes"], {"axis": 0}),
    ("Reshape", ["GO(0)", "with_classes"], ["upstream"], {}),
    ("Mul", ["upstream", "O(1)"], ["GI(0)"], {}),
]


def register_gradient() -> None:
    """Tell ONNX Runtime the gradient of ``ai.gce::GammaCrossEntropyLoss``, once per process.

    Importing `gce.onnx.ort_training` does it; again is the same as once. The gradient is that with
    respect to the scores: there is none with respect to γ.

    Examples
    --------
    >>> from gce.onnx import ort_training
    >>> ort_training.register_gradient()
    """
    global _registered
    with _lock:
        if _registered:
            return
        key = f"{DOMAIN}::{OP_TYPE}"
        native.register_gradient_definition(key, [_node(*node) for node in _DEFINITION])
        _registered = True


def _node(op_type: str, inputs: list[str], outputs: list[str], attributes: dict[str, Any]) -> Any:
    node = native.GradientNodeDefinition()
    node.op_type, node.domain = op_type, ""
    node.inputs, node.outputs = inputs, outputs
    definitions = []
    for name, value in attributes.items():
        attribute = native.GradientNodeAttributeDefinition()
        attribute.name, attribute.value_json = name, json.dumps(value)
        attribute.dtype, attribute.is_tensor = "int", isinstance(value, list)
        definitions.append(attribute)
    node.attributes = definitions
    return node
