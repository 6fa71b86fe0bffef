"""The graph of an optimizer without a model, and gradients for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper
from small_models import model_of

from gce.onnx.training._graph import OPTIONS, Forward
from gce.onnx.training._programs import accumulation

Arrays = dict[str, np.ndarray[Any, Any]]


class Alone:
    """An optimizer's graph that is fed whatever gradients: the second half of an accumulation.

    Two parameters, "W" (3, 4) and "v" (3,).
    """

    def __init__(
        self, optimizer: Any, dtype: str, clip_norm: float | None = None, seed: int = 0
    ) -> None:
        rng = np.random.default_rng(seed)
        self.parameters: Arrays = {
            "W": rng.normal(size=(3, 4)).astype(dtype),
            "v": rng.normal(size=3).astype(dtype),
        }
        forward = Forward(two_parameters(self.parameters), None, None, (), ())
        _, self.program, sums, self.state = accumulation(
            forward, optimizer, clip_norm, 1.0, dict(OPTIONS)
        )
        self.sums = dict(zip(forward.initial, sums, strict=True))
        self.session = onnxruntime.InferenceSession(self.program.model.SerializeToString())
        self.grad_norm: float | None = None

    def step(self, gradients: Arrays, learning_rate: float) -> None:
        feeds = {**self.parameters, **self.state, "learning_rate": np.array(learning_rate)}
        feeds |= {self.sums[name]: gradient for name, gradient in gradients.items()}
        results = dict(
            zip([o.name for o in self.session.get_outputs()], self.session.run(None, feeds),
                strict=True)
        )  # fmt: skip
        for name, new in self.program.carried.items():
            (self.parameters if name in self.parameters else self.state)[name] = results[new]
        if "grad_norm" in self.program.results:
            self.grad_norm = float(results[self.program.results["grad_norm"]])


def two_parameters(parameters: Arrays) -> onnx.ModelProto:
    """``(x v) W``."""
    nodes = [
        helper.make_node("Mul", ["x", "v"], ["scaled"]),
        helper.make_node("MatMul", ["scaled", "W"], ["logits"]),
    ]
    dtype = parameters["W"].dtype.name
    return model_of(nodes, parameters, {"x": ["N", 3]}, {"logits": ["N", 4]}, dtype=dtype)


def normal(dtype: str, scale: float = 1.0, seed: int = 1) -> Callable[[int], Arrays]:
    def gradients_of(step: int) -> Arrays:
        rng = np.random.default_rng([seed, step])
        return {
            name: (scale * rng.normal(size=shape)).astype(dtype)
            for name, shape in {"W": (3, 4), "v": (3,)}.items()
        }

    return gradients_of
