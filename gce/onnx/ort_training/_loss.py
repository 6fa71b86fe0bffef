"""The loss as a block of onnxblock."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, DTypeLike

from gce._types import Reduction, Value
from gce.onnx._attach import append_loss, elem_type_of, name_of_logits, type_of_labels
from gce.onnx._graphs import fresh_names, value_names
from gce.onnx._node import check_attributes, loss_node
from gce.onnx._schema import FLOATS, INTEGERS, tensor_type_name
from gce.onnx.ort_training._runtime import onnxblock

__all__ = ["GammaCrossEntropyLoss"]


class GammaCrossEntropyLoss(onnxblock.Block):  # type: ignore[misc]  # onnxruntime has no types
    """The γ-cross-entropy as a loss of ``onnxruntime.training``.

    It goes wherever onnxblock's own losses go: to `generate_artifacts`, or into the ``build`` of a
    block, alone or combined with other losses. A block may be used more than once, each use with
    labels of its own.

    Parameters
    ----------
    weights : array_like, optional
        Class weights, stored in the training and the evaluation model.
    axis : {1, -1}
        The class axis of the scores: 1, as ONNX's own losses have it ([N, C, d1...dk]), or the last
        one ([B, T, C], say; for more than two dimensions the model needs opset 14 or newer).
    probabilities : bool
        Whether the labels are probabilities, floats of the scores' shape, and not one class per
        row.
    labels_dtype : dtype, optional
        int64, the default, or int32. Of probabilities any float: by default the scores' type, but
        float32 where that has 16 bits.
    gamma_dtype : dtype
        Any float; with the default, what ``numpy.array(0.5)`` is.
    gamma_per_row : bool
        Whether γ is one per row, of the scores' shape without the class axis, and not a scalar.
    reduction, value, threshold, label_smoothing, z_loss, softcap, shift, ignore_index
        As for `gce.onnx.loss_node`; a shift only with a reduction. What ``reduction="none"`` gives
        must still be made a scalar, by ``onnxblock.blocks.ReduceMean`` say: of a loss that is none,
        ONNX Runtime trains the sum.

    Raises
    ------
    TypeError, ValueError
        An option of the wrong type or out of its range.

    Notes
    -----
    Scores may be float32, float64 or float16; this runtime's kernels for the CPU lack what the
    gradient of bfloat16 needs, and those of its optimizers take float32 parameters alone. What is
    fed for γ and labels must be an array of the very type, as ``numpy.array(0.5)``.

    See Also
    --------
    generate_artifacts : an example from the forward model to a training step.

    Examples
    --------
    The sum of this loss and another one, of a model with the outputs ``logits`` and ``copy``:

    >>> from gce.onnx import ort_training
    >>> from onnxruntime.training import onnxblock
    >>> class TwoLosses(onnxblock.Block):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.classify = ort_training.GammaCrossEntropyLoss(ignore_index=-100)
    ...         self.reconstruct = onnxblock.loss.MSELoss()
    ...         self.add = onnxblock.blocks.Add()
    ...
    ...     def build(self, logits, copy):
    ...         return self.add(self.classify(logits), self.reconstruct(copy, "target"))
    >>> loss = TwoLosses()  # for generate_artifacts
    """

    def __init__(
        self,
        *,
        weights: ArrayLike | None = None,
        axis: int = 1,
        probabilities: bool = False,
        labels_dtype: DTypeLike | None = None,
        gamma_dtype: DTypeLike = np.float64,
        gamma_per_row: bool = False,
        reduction: Reduction = "mean",
        value: Value = "primitive",
        threshold: float = 0.0,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
        shift: int = 0,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__()
        attributes: dict[str, Any] = {
            "reduction": reduction,
            "value": value,
            "threshold": threshold,
            "label_smoothing": label_smoothing,
            "z_loss": z_loss,
            "softcap": softcap,
            "shift": shift,
            "ignore_index": ignore_index,
        }
        # Wrong options are the caller's here, and not a surprise in the middle of `build`.
        loss_node("scores", "labels", "gamma", **attributes)
        if probabilities:
            check_attributes(attributes, probabilities)
        type_of_labels(labels_dtype, probabilities, onnx.TensorProto.FLOAT)
        if shift and reduction == "none":
            raise ValueError(
                f"shift = {shift}, expected 0 for reduction = 'none': the gradient of each row's "
                "loss would stand at another row"
            )
        elem_type_of("gamma_dtype", gamma_dtype, FLOATS)
        if isinstance(weights, str):
            raise TypeError("weights has type str, expected an array of numbers")
        if axis not in (1, -1):
            raise ValueError(f"axis = {axis}, expected 1 or -1")
        self._options = {
            "weights": weights if weights is None else np.array(weights),
            "axis": axis,
            "probabilities": probabilities,
            "labels_dtype": labels_dtype,
            "gamma_dtype": gamma_dtype,
            "gamma_per_row": gamma_per_row,
            **attributes,
        }

    def build(
        self, scores_name: str, labels_name: str = "labels", gamma_name: str = "gamma"
    ) -> str:
        """Append the loss to the model that is being built.

        Parameters
        ----------
        scores_name : str
            Name of the logits: an output or any other value of the model.
        labels_name, gamma_name : str
            Names of inputs, which are appended to the model, labels first, or of values that it has
            already: the γ of another loss, say. Where a parameter of the model has the name, the
            input gets another, ``gamma/0``. A γ that is computed from trained parameters is an
            error when the model is loaded, as it has no gradient.

        Returns
        -------
        str
            Name of the loss. It is float32 whatever the scores are: the gradient that ONNX Runtime
            starts from is.

        Raises
        ------
        TypeError, ValueError
            Scores, labels or γ of a wrong type, scores of too few dimensions, class weights of a
            wrong shape.
        """
        model = self.base
        scores_name = name_of_logits(model, scores_name)
        labels_name, gamma_name = (
            _unless_parameter(model, name) for name in (labels_name, gamma_name)
        )
        labels_types = FLOATS if self._options["probabilities"] else INTEGERS
        _check_type(model, "labels_name", labels_name, labels_types)
        _check_type(model, "gamma_name", gamma_name, FLOATS)
        fresh = fresh_names({*value_names(model), labels_name, gamma_name}, "gamma_cross_entropy")
        outputs = append_loss(
            model,
            scores_name,
            labels=labels_name,
            gamma=gamma_name,
            loss=fresh(),
            grad=fresh(),
            grad_of_node=True,
            **self._options,
        )
        # onnx before 1.18 cannot infer them.
        model.graph.value_info.extend(outputs)
        loss: str = outputs[0].name
        if outputs[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            return loss
        cast: str = onnxblock.blocks.Cast(onnx.TensorProto.FLOAT)(loss)
        return cast


def _unless_parameter(model: onnx.ModelProto, name: str) -> str:
    """The name, or another where it is that of a parameter, as modules call theirs gamma too."""
    tensors = {tensor.name for tensor in model.graph.initializer}
    if name not in tensors:
        return name
    inputs = {value.name for value in model.graph.input}  # perhaps of another loss
    taken = (value_names(model) - inputs) | tensors
    return fresh_names(taken, name)()


def _check_type(model: onnx.ModelProto, argument: str, name: str, allowed: list[str]) -> None:
    """Raise if the model says that the value is of another type."""
    graph = model.graph
    for info in (*graph.input, *graph.value_info, *graph.output):
        found = f"tensor({tensor_type_name(info.type.tensor_type.elem_type)})"
        if info.name == name and found not in allowed:
            raise TypeError(
                f"{argument} = {name!r} is {found} of the model, expected the name of a new input, "
                f"or of one of {', '.join(allowed)} (which of several outputs are the scores is "
                "said by loss_input_names)"
            )
