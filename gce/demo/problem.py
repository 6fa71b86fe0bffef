"""What the two tasks have in common: a model, data to train on, and clean data to test with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper, parser

__all__ = ["Examples", "Problem", "flip_labels", "forward_model"]

OPSET, IR_VERSION = 20, 9


@dataclass(frozen=True)
class Examples:
    """Inputs of a model, and the class of each row of its logits.

    Attributes
    ----------
    inputs : ndarray, shape (N, ...)
        What the model takes.
    targets : ndarray of int64, shape (N, ...)
        The logits' shape without their last axis, which is the classes'.
    """

    inputs: npt.NDArray[Any]
    targets: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Problem:
    """One split of a task's data, with its noise, and a fresh model.

    Attributes
    ----------
    model : onnx.ModelProto
        The forward model, of input "x" and output "logits", with initial weights.
    train, test : Examples
        To train on, partly wrong; to test with, clean.
    wrong : ndarray of bool, the shape of ``train.targets``
        Which of the training targets were made wrong.
    """

    model: onnx.ModelProto
    train: Examples
    test: Examples
    wrong: npt.NDArray[np.bool_]


def flip_labels(
    labels: npt.NDArray[np.int64], classes: int, share: float, rng: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Replace a share of the labels by another class, each other class being equally likely.

    Parameters
    ----------
    labels : ndarray of int64, shape (N,)
        Labels in [0, classes); not modified.
    classes : int
        Number of classes, at least 2.
    share : float
        The share to replace: ``round(share * N)`` labels, chosen without replacement.
    rng : numpy.random.Generator
        Source of the choice.

    Returns
    -------
    noisy : ndarray of int64, shape (N,)
        The labels with the replacements.
    flipped : ndarray of bool, shape (N,)
        True where `noisy` differs from `labels`.
    """
    chosen = rng.choice(labels.size, size=round(share * labels.size), replace=False)
    flipped = np.zeros(labels.size, dtype=np.bool_)
    flipped[chosen] = True
    # A shift by 1 .. classes - 1 around the circle of classes never ends where it began.
    shift = rng.integers(1, classes, size=labels.size)
    return np.where(flipped, (labels + shift) % classes, labels), flipped


def forward_model(text: str, weights: dict[str, npt.NDArray[Any]]) -> onnx.ModelProto:
    """Make a model of a graph in onnx's textual syntax and the tensors that it names."""
    graph = parser.parse_graph(text)
    for name, array in weights.items():
        graph.initializer.append(numpy_helper.from_array(array, name))
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return model
