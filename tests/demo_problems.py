"""Problems of the demo at a size for tests, and their models run without this package."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from gce.demo.config import DemoConfig
from gce.demo.problem import Problem
from gce.demo.run import problem_of, session_options

DIGITS = DemoConfig.of("digits")
TEXT = dataclasses.replace(DemoConfig.of("text"), train_size=200)
CONFIGS = {"digits": DIGITS, "text": TEXT}


def problem(task: str, noise: float = 0.4, seed: int = 0, **changes: Any) -> Problem:
    return problem_of(task)(dataclasses.replace(CONFIGS[task], **changes), noise, seed)


def weights_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def forward(model: onnx.ModelProto, inputs: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), session_options("digits"))
    return session.run(["logits"], {"x": inputs})[0]
