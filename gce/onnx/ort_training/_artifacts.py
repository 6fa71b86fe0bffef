"""What `onnxruntime.training` makes of a forward model."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from typing import Any

import onnx

from gce._onnx_library import library_path, register
from gce.onnx._graphs import inferred, value_names
from gce.onnx._parameters import names_of, reached_by_gradients
from gce.onnx.ort_training._prepare import Prepared, prepared_of
from gce.onnx.ort_training._runtime import MAX_IR_VERSION, artifacts, onnxblock, onnxruntime

__all__ = ["generate_artifacts", "session_options"]


def session_options(options: Any = None) -> Any:
    """Make session options with which a ``Module`` and its ``Optimizer`` know the loss.

    Parameters
    ----------
    options : onnxruntime.SessionOptions, optional
        Options to add the operator to. By default new ones.

    Returns
    -------
    onnxruntime.SessionOptions

    Examples
    --------
    >>> from gce.onnx import ort_training
    >>> options = ort_training.session_options()
    >>> options.intra_op_num_threads = 2
    """
    return register(onnxruntime.SessionOptions() if options is None else options)


def generate_artifacts(
    model: onnx.ModelProto | str | os.PathLike[str],
    requires_grad: Iterable[str] | None = None,
    *,
    loss: Any,
    optimizer: Any = None,
    **options: Any,
) -> None:
    """Write training, evaluation and optimizer model and the checkpoint of a forward model.

    It is ``onnxruntime.training.artifacts.generate_artifacts`` with `prepare_model`, with the
    operator's library, and with an optimizer model that the runtime can read whatever onnx wrote
    it.

    Parameters
    ----------
    model : onnx.ModelProto or path
        The forward model, up to 2 GiB.
    requires_grad : iterable of str, optional
        The parameters to train, by the names that they have in ``prepare_model(model)``, or in the
        module if PyTorch's newer exporter folded them into others. By default
        all that are parameters, as for `gce.onnx.training.training_graph`, but for the
        ``frozen_params``.
    loss : onnxblock.Block or LossType
        `GammaCrossEntropyLoss`, or a block that uses it.
    optimizer : OptimType or onnxblock.Block, optional
        `AdamW` or another. Without it no optimizer model is written.
    **options
        ``artifact_directory``, ``frozen_params``, ``loss_input_names`` (which outputs the loss
        takes; by default all of them), ``additional_output_names``, ``prefix``, ``ort_format``,
        ``nominal_checkpoint``: as in ONNX Runtime.

    Raises
    ------
    TypeError, ValueError
        A model or option that is not as said above; a parameter that the model does not have; what
        `GammaCrossEntropyLoss.build` raises.

    Warns
    -----
    UserWarning
        `requires_grad` has a parameter, and not another that the exporter had merged into it.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from gce.onnx import ort_training
    >>> from onnx import TensorProto, helper, numpy_helper
    >>> from onnxruntime.training.api import CheckpointState, Module, Optimizer
    >>> forward = helper.make_model(
    ...     helper.make_graph(
    ...         [helper.make_node("MatMul", ["x", "W"], ["logits"])],
    ...         "linear",
    ...         [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
    ...         [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
    ...         [numpy_helper.from_array(np.ones((4, 3), np.float32), "W")]),
    ...     opset_imports=[helper.make_opsetid("", 17)])
    >>> folder = tempfile.mkdtemp()
    >>> ort_training.generate_artifacts(
    ...     forward,
    ...     loss=ort_training.GammaCrossEntropyLoss(),
    ...     optimizer=ort_training.AdamW(),
    ...     artifact_directory=folder)
    >>> state = CheckpointState.load_checkpoint(f"{folder}/checkpoint")
    >>> module = Module(
    ...     f"{folder}/training_model.onnx",
    ...     state,
    ...     f"{folder}/eval_model.onnx",
    ...     session_options=ort_training.session_options())
    >>> optimizer = Optimizer(f"{folder}/optimizer_model.onnx", module)
    >>> optimizer.set_learning_rate(0.1)
    >>> x, labels = np.eye(4, dtype=np.float32), np.array([0, 1, 2, 0])
    >>> for step in range(3):
    ...     gamma = np.array(0.25 * step)  # an input: it may change at each step
    ...     print(f"{module(x, labels, gamma):.4f}")
    ...     optimizer.step()
    ...     module.lazy_reset_grad()
    1.0986
    0.8356
    0.6770
    >>> trained = ort_training.export_model(state, forward)
    """
    if not isinstance(loss, (onnxblock.Block, artifacts.LossType)):
        raise TypeError(
            f"loss has type {type(loss).__name__}, expected an onnxblock.Block, such as "
            "GammaCrossEntropyLoss(), or a LossType"
        )
    if optimizer is not None and not isinstance(optimizer, (onnxblock.Block, artifacts.OptimType)):
        raise TypeError(
            f"optimizer = {optimizer!r}, expected an onnxblock.Block, such as AdamW(), or an "
            "OptimType"
        )
    outputs = options.get("loss_input_names")
    if isinstance(outputs, str):
        raise TypeError(f"loss_input_names = {outputs!r}, expected several names")
    if "custom_op_library" in options:
        raise TypeError("custom_op_library is given, expected none: it is always that of gce")
    prepared = prepared_of(model)
    own = [output.name for output in prepared.model.graph.output]
    for name in outputs or ():
        if name not in value_names(prepared.model):
            raise ValueError(
                f"loss_input_names has {name!r}, expected values of the model, as its outputs {own}"
            )
    frozen = options.pop("frozen_params", None)
    if frozen is not None:
        frozen = _require_parameters(prepared, "frozen_params", frozen)
    if requires_grad is None:
        names = _all_parameters(prepared, outputs or own, frozen or ())
    else:
        names = _require_parameters(prepared, "requires_grad", requires_grad)
        if not names:
            raise ValueError("requires_grad is empty, expected names, or None for all parameters")
        for copy, source in prepared.copies.items():
            if source in names and copy not in (*names, *(frozen or ())):
                warnings.warn(
                    f"requires_grad has {source!r}, and not {copy!r}, which the exporter had "
                    "merged into it and which is not trained",
                    stacklevel=2,
                )
    if isinstance(loss, onnxblock.Block):
        loss = _Scalar(loss)
    if isinstance(optimizer, artifacts.OptimType):
        optimizer = getattr(onnxblock.optim, optimizer.name)()
    if isinstance(optimizer, onnxblock.Block):
        optimizer = _Readable(optimizer)
    artifacts.generate_artifacts(
        prepared.model,
        requires_grad=names,
        frozen_params=frozen,
        loss=loss,
        optimizer=optimizer,
        custom_op_library=library_path(),
        **options,
    )


class _Scalar(onnxblock.Block):  # type: ignore[misc]  # onnxruntime has no types
    """A loss of shape [] in place of [1], which onnxblock's constants make of it.

    The gradient that ONNX Runtime starts from has no dimension, and the builder fails where a loss
    that has one is added to one that has none.
    """

    def __init__(self, loss: Any) -> None:
        super().__init__()
        self._loss = loss
        self._sum = onnxblock.blocks.ReduceSum(keepdims=False)

    def build(self, *names: str) -> Any:
        built = self._loss(*names)
        loss, *others = built if isinstance(built, tuple) else (built,)
        graph = inferred(self.base).graph
        for info in (*graph.value_info, *graph.output):
            dims = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
            if info.name == loss and dims and set(dims) == {1}:
                loss = self._sum(loss)
                break
        return (loss, *others) if others else loss


class _Readable(onnxblock.ForwardBlock):  # type: ignore[misc]  # onnxruntime has no types
    """An optimizer's block whose model has an IR version that the runtime reads.

    onnxblock would write that of the installed onnx.
    """

    def __init__(self, optimizer: Any) -> None:
        super().__init__()
        self._optimizer = optimizer

    def build(self, parameters: Any) -> Any:
        self.base.ir_version = min(self.base.ir_version, MAX_IR_VERSION)
        return self._optimizer(parameters)


def _all_parameters(prepared: Prepared, outputs: Iterable[str], frozen: Iterable[str]) -> list[str]:
    """The parameters that a loss of these outputs trains."""
    wanted = list(outputs)
    reached = set().union(*(reached_by_gradients(prepared.model, output) for output in wanted))
    names = [name for name in prepared.parameters if name in reached and name not in frozen]
    if not names:
        raise ValueError(f"model has no parameters to train: no weights that {wanted} depend on")
    return names


def _require_parameters(prepared: Prepared, argument: str, names: Iterable[str]) -> list[str]:
    """The initializers of these names, or made of parameters of these names."""
    have = [tensor.name for tensor in prepared.model.graph.initializer]
    chosen = names_of(argument, names, have, prepared.made_of)
    return [name for name in have if name in chosen]
