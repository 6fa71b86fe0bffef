"""One node of the operator."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx

import gce
from gce._onnx_library import DOMAIN, OP_TYPE
from gce._types import Reduction, Value

__all__ = ["loss_node"]


def loss_node(
    scores: str,
    labels: str,
    gamma: str,
    *,
    weights: str | None = None,
    loss: str = "loss",
    grad: str | None = None,
    reduction: Reduction = "mean",
    value: Value = "primitive",
    threshold: float = 0.0,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    shift: int = 0,
    ignore_index: int | None = None,
    name: str | None = None,
) -> onnx.NodeProto:
    """Make a ``GammaCrossEntropyLoss`` node.

    Parameters
    ----------
    scores, labels, gamma : str
        Names of the inputs: see `gce.onnx` for their types and shapes.
    weights : str, optional
        Name of the class weights.
    loss : str
        Name of the loss.
    grad : str, optional
        Name of the gradient with respect to the scores. None: it is not computed.
    reduction : {"mean", "sum", "none"}
        What is made of the rows' losses.
    value : {"primitive", "surrogate"}
        As for `gce.loss`.
    threshold, label_smoothing, z_loss : float
        As for `gce.loss`. An ONNX attribute is a float32, and the operator takes its value:
        ``numpy.float32(0.1)`` is what ``threshold=0.1`` means here.
    softcap : float, optional
        As for `gce.loss`, as a float32 too. None is 0: no cap.
    shift : int
        As for `gce.loss`: row t along the last axis of the scores that is not the class axis
        predicts label t + shift.
    ignore_index : int, optional
        Rows with this label have loss 0 and gradient 0 and do not count. None: no row is ignored.
        (The default of `gce.loss` is -100; here, as in ONNX, there is none.)
    name : str, optional
        Name of the node.

    Returns
    -------
    onnx.NodeProto
        The model that it goes into must import the domain ``ai.gce``, version 1.

    Raises
    ------
    TypeError, ValueError
        An option of the wrong type or out of its range.

    Examples
    --------
    >>> import gce.onnx
    >>> node = gce.onnx.loss_node("logits", "labels", "gamma", grad="grad", ignore_index=-100)
    >>> print(node.op_type, list(node.output))
    GammaCrossEntropyLoss ['loss', 'grad']
    """
    names: dict[str, Any] = {"scores": scores, "labels": labels, "gamma": gamma, "loss": loss}
    names |= {"weights": weights or "", "grad": grad or "", "name": name or ""}
    for argument, value_name in names.items():
        if not isinstance(value_name, str):
            kind = type(value_name).__name__
            raise TypeError(f"{argument} has type {kind}, expected str, the name of a value")
    numbers: dict[str, Any] = {
        "threshold": threshold,
        "label_smoothing": label_smoothing,
        "z_loss": z_loss,
        "softcap": 0.0 if softcap is None else softcap,
    }
    for argument, number in numbers.items():
        if np.ndim(number) != 0:
            raise TypeError(f"{argument} has shape {np.shape(number)}, expected a number")
        _require_float32(argument, number)
    attributes: dict[str, Any] = {"reduction": reduction, "value": value, **numbers}
    check_attributes({**attributes, "shift": shift, "ignore_index": ignore_index})
    attributes |= {name: float(number) for name, number in numbers.items()}
    attributes["shift"] = int(shift)
    if ignore_index is not None:
        attributes["ignore_index"] = int(ignore_index)
    return onnx.helper.make_node(
        OP_TYPE,
        [scores, labels, gamma] if weights is None else [scores, labels, gamma, weights],
        [loss] if grad is None else [loss, grad],
        name=name,
        domain=DOMAIN,
        **attributes,
    )


def _require_float32(argument: str, number: Any) -> None:
    """That a finite number stays one, and a softcap does not become 0, which is none."""
    try:
        with np.errstate(over="ignore", under="ignore"):
            wide, narrow = float(number), np.float32(number)
    except (TypeError, ValueError, OverflowError):
        return  # the core has to say what that is
    is_lost = argument == "softcap" and wide > 0.0 and narrow == 0.0
    if is_lost or (math.isfinite(wide) and np.isinf(narrow)):
        raise ValueError(f"{argument} = {wide:g} is {narrow:g} as a float32, which an attribute is")


def check_attributes(attributes: dict[str, Any], probabilities: bool = False) -> None:
    """Raise what the core has to say about them: they go into a problem of one class."""
    labels: Any = np.ones((1, 1)) if probabilities else np.zeros(1, np.int64)
    gce.loss(np.zeros((1, 1)), labels, 0.0, **{"ignore_index": None, **attributes})
