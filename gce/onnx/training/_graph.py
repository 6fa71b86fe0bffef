"""From a forward model to one graph that is a step of training.

`training_graph` is the public way in. `Forward` is a forward model whose parameters are inputs;
`add_gradients` and `_update.add_update` append the two halves of a step to a copy of it, which a
`Trainer` that accumulates gradients runs one without the other.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from gce.onnx._attach import attach_loss, name_of_logits
from gce.onnx._exporters import noted_parameters
from gce.onnx._graphs import copy_of, value_names
from gce.onnx._parameters import parameters_of, reached_by_gradients
from gce.onnx._restore import restore_parameters
from gce.onnx.training._gradients import prepared, with_gradients
from gce.onnx.training._optimizers import SGD, AdamW, Optimizer
from gce.onnx.training._parameters import trainable
from gce.onnx.training._update import add_update

__all__ = [
    "OPTIONS",
    "Forward",
    "TrainingGraph",
    "add_gradients",
    "add_loss",
    "all_options",
    "checked_optimizer",
    "graph_of",
    "training_graph",
]

Arrays = dict[str, npt.NDArray[Any]]

# Arguments of `attach_loss` that are decided here; the others are options, with their defaults.
DECIDED = ["model", "logits", "labels", "gamma", "loss", "grad"]
DECIDED += ["labels_dtype", "gamma_dtype", "function"]
OPTIONS = {
    name: parameter.default
    for name, parameter in inspect.signature(attach_loss).parameters.items()
    if name not in DECIDED
}


@dataclasses.dataclass(frozen=True)
class TrainingGraph:
    """A model that is one step of training, and the names of its inputs and outputs.

    Attributes
    ----------
    model : onnx.ModelProto
        Inputs: those of the forward model, then labels, γ, the learning rate, the parameters and
        the optimizer's state. Outputs: the loss, the gradients' norm if they are clipped, then the
        new parameters and the new state.
    inputs : tuple of str
        The inputs of the forward model that its logits need.
    labels, gamma, learning_rate : str
        The inputs that the loss and the optimizer need: int64 labels (with ``probabilities``
        floats: of the logits' type, or float32 where that has 16 bits); float64 scalars (γ one per
        row with ``gamma_per_row``). The names are these words, or begin with them where the forward
        model has such a name.
    loss : str
        The loss, a scalar of the logits' type: that of the parameters before the step.
    grad_norm : str or None
        The global norm of the gradients before they are clipped, a float64 scalar.
    carried : dict of str to str
        The inputs that are parameters or state, and the outputs that are their new values, in the
        model's order.
    initial : dict of str to ndarray
        The first value of each: the parameters of the forward model; zeros for the state.
    parameters : tuple of str
        Those of `carried` that are parameters: the names of initializers in the forward model.
    """

    model: onnx.ModelProto
    inputs: tuple[str, ...]
    labels: str
    gamma: str
    learning_rate: str
    loss: str
    grad_norm: str | None
    carried: Mapping[str, str]
    initial: Mapping[str, npt.NDArray[Any]]
    parameters: tuple[str, ...]


def training_graph(
    model: onnx.ModelProto | str | os.PathLike[str],
    *,
    optimizer: Optimizer | None = None,
    logits: str | None = None,
    parameters: Iterable[str] | None = None,
    frozen: Iterable[str] = (),
    tied: Iterable[str] = (),
    clip_norm: float | None = None,
    **options: Any,
) -> TrainingGraph:
    """Make one graph of a forward model, the loss, all gradients and the optimizer.

    Parameters
    ----------
    model : onnx.ModelProto or path
        The forward model, of opset 16 or newer, or one that onnx can convert; it stays as it is.
    optimizer : SGD or AdamW, optional
        ``AdamW()`` by default.
    logits : str, optional
        Name of the logits, any value of the model. By default its only output.
    parameters : iterable of str, optional
        Names of the initializers to train, float32 or float64. By default all that are parameters
        and that a gradient reaches, but for `frozen`. PyTorch's newer exporter notes which these
        are. Of its older one and of others it is all but BatchNormalization's mean and variance and
        what has an element that is not finite or beyond 1e30 (attention masks), buffers too; and
        of others but for those of a single element.
    frozen : iterable of str
        Names of initializers that stay as they are. Here and in `parameters` and `tied`, names that
        parameters have in a module do as well, if PyTorch's newer exporter folded these into
        others.
    tied : iterable of str
        Names of initializers that stay one although several nodes read them. Others are split where
        exporters make one of parameters that begin equal, such as the ones and zeros of fresh
        normalizations. What PyTorch's exporters leave tells these from parameters that are read
        several times, as in a module that is called twice or an embedding that is the last layer's
        weight too; of other exporters, what is one number throughout is split among its nodes.
    clip_norm : float, optional
        All gradients are scaled by ``min(1, clip_norm / (norm + 1e-6))``, where norm is that of all
        of them together, as ``torch.nn.utils.clip_grad_norm_`` does. With infinity nothing is
        clipped, and the norm is computed.
    **options
        Of the loss: ``axis``, ``weights`` (numbers), ``probabilities``, ``gamma_per_row``,
        ``reduction`` ("mean" or "sum"), ``value``, ``threshold``, ``label_smoothing``, ``z_loss``,
        ``softcap``, ``shift`` and ``ignore_index``, as for `gce.onnx.attach_loss`.

    Returns
    -------
    TrainingGraph

    Raises
    ------
    gce.onnx.training.UnsupportedOperator
        onnx-ad cannot differentiate a node between a parameter and the logits; it is named.
    TypeError, ValueError
        An argument is unknown, of the wrong type or out of its range, or names what the model has
        not; or the model has nothing to train.
    onnx.checker.ValidationError
        `model` is not valid.

    See Also
    --------
    Trainer : runs such graphs.

    Examples
    --------
    >>> import numpy as np
    >>> from gce.onnx import training
    >>> from onnx import TensorProto, helper, numpy_helper
    >>> forward = helper.make_model(
    ...     helper.make_graph(
    ...         [helper.make_node("MatMul", ["x", "W"], ["logits"])],
    ...         "linear",
    ...         [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
    ...         [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
    ...         [numpy_helper.from_array(np.ones((4, 3), np.float32), "W")]),
    ...     opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    >>> graph = training.training_graph(forward, optimizer=training.SGD(momentum=0.9))
    >>> [value.name for value in graph.model.graph.input]
    ['x', 'labels', 'gamma', 'learning_rate', 'W', 'W.momentum']
    >>> [value.name for value in graph.model.graph.output]
    ['loss', 'W.new', 'W.momentum.new']
    """
    optimizer, options = checked_optimizer(optimizer), all_options(options, training_graph)
    return graph_of(Forward(model, logits, parameters, frozen, tied), optimizer, clip_norm, options)


def checked_optimizer(optimizer: Any) -> Optimizer:
    """The optimizer, or the default."""
    if optimizer is None:
        return AdamW()
    if not isinstance(optimizer, (SGD, AdamW)):
        raise TypeError(f"optimizer = {optimizer!r}, expected an SGD(...) or AdamW(...)")
    return optimizer


def all_options(options: Mapping[str, Any], of: Callable[..., Any]) -> dict[str, Any]:
    """The options of the loss that are given to a function, and the defaults of the others."""
    for name in options:
        if name not in OPTIONS:
            own = [key for key in inspect.signature(of).parameters if key != "options"]
            raise TypeError(
                f"unexpected keyword argument {name!r}, expected those of {of.__name__}, "
                f"{', '.join(own)}, or options of the loss, {', '.join(OPTIONS)}"
            )
    given = {**OPTIONS, **options}
    if isinstance(given["weights"], str):
        raise TypeError(f"weights = {given['weights']!r}, expected numbers")
    if given["reduction"] == "none":
        raise ValueError("reduction = 'none', expected 'mean' or 'sum': a step needs one loss")
    return given


def graph_of(
    forward: Forward, optimizer: Optimizer, clip_norm: float | None, options: Mapping[str, Any]
) -> TrainingGraph:
    """`training_graph` of a forward model that is prepared."""
    step, gradients = add_gradients(forward, options)
    update = add_update(step.model, step.named, forward.initial, gradients, optimizer, clip_norm)
    onnx.checker.check_model(step.model)
    return TrainingGraph(
        model=step.model,
        inputs=forward.inputs,
        labels=step.labels,
        gamma=step.gamma,
        learning_rate=update.learning_rate,
        loss=step.loss,
        grad_norm=update.grad_norm,
        carried=update.carried,
        initial={**forward.initial, **update.initial},
        parameters=tuple(forward.initial),
    )


class Forward:
    """A forward model whose parameters are inputs, and which ends at the logits.

    Parameters
    ----------
    model, logits, parameters, frozen, tied
        As for `training_graph`.

    Attributes
    ----------
    original : onnx.ModelProto
        A copy of what was given, with what `restore_parameters` does.
    model : onnx.ModelProto
        Inputs: those of the original, then the parameters. Output: the logits.
    logits : str
    inputs : tuple of str
        Those of the original that are no parameters and that the logits need.
    initial : dict of str to ndarray
        The parameters, in the model's order.
    """

    def __init__(
        self,
        model: onnx.ModelProto | str | os.PathLike[str],
        logits: str | None,
        parameters: Iterable[str] | None,
        frozen: Iterable[str],
        tied: Iterable[str],
    ) -> None:
        self.original = copy_of(model)
        onnx.checker.check_model(self.original)
        restore_parameters(self.original, tied)
        self.logits = self._logits(logits)
        self.model = prepared(self.original, self.logits)
        reached = reached_by_gradients(self.model, self.logits)
        default = reached.intersection(parameters_of(self.original))
        made_of = noted_parameters(self.original)
        chosen = trainable(self.model, default, parameters, frozen, made_of)
        graph = self.model.graph
        tensors = {tensor.name: tensor for tensor in graph.initializer}
        self.initial: Arrays = {name: numpy_helper.to_array(tensors[name]) for name in chosen}
        kept = [tensor for tensor in graph.initializer if tensor.name not in self.initial]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        # Before IR 4 initializers were inputs too.
        mine = [value for value in graph.input if value.name not in tensors]
        del graph.input[:]
        graph.input.extend(mine)
        self.inputs = tuple(value.name for value in mine)
        for name, array in self.initial.items():
            elem_type = tensors[name].data_type
            graph.input.append(helper.make_tensor_value_info(name, elem_type, array.shape))

    def _logits(self, logits: str | None) -> str:
        name = name_of_logits(self.original, logits)
        if not any(name in node.output for node in self.original.graph.node):
            names = [output.name for output in self.original.graph.output]
            raise ValueError(
                f"logits = {name!r}, expected a value that the model computes, as its outputs "
                f"{names}"
            )
        return name


@dataclasses.dataclass(frozen=True)
class Step:
    """A graph that grows into a step of training."""

    model: onnx.ModelProto
    named: Callable[[str], str]  # the name itself, or another where something has it
    labels: str
    gamma: str
    loss: str


def add_loss(forward: Forward, options: Mapping[str, Any], grad: bool) -> tuple[Step, str | None]:
    """The forward model with its loss, the only output; and the name of the logits' gradient."""
    taken = value_names(forward.model)
    numbers: dict[str, Iterator[int]] = defaultdict(itertools.count)

    def named(stem: str) -> str:
        others = (f"{stem}/{i}" for i in numbers[stem])
        name = stem if stem not in taken else next(n for n in others if n not in taken)
        taken.add(name)
        return name

    labels, gamma, loss = map(named, ("labels", "gamma", "loss"))
    gradient = named("gce/grad") if grad else None
    model = attach_loss(
        forward.model,
        logits=forward.logits,
        labels=labels,
        gamma=gamma,
        loss=loss,
        grad=gradient,
        **options,
    )
    taken |= value_names(model)
    outputs = [output for output in model.graph.output if output.name == loss]
    del model.graph.output[:]
    model.graph.output.extend(outputs)
    return Step(model, named, labels, gamma, loss), gradient


def add_gradients(forward: Forward, options: Mapping[str, Any]) -> tuple[Step, dict[str, str]]:
    """The forward model with its loss and the gradients of all parameters; their names."""
    step, grad = add_loss(forward, options, grad=True)
    assert grad is not None
    gradients = with_gradients(step.model, forward.logits, grad, list(forward.initial))
    return step, gradients
