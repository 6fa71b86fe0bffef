"""From a forward model to one graph that is a step of training.

`training_graph` is the public way in. `Forward` is a forward model whose parameters are inputs;
`add_gradients` and `add_update` append the two halves of a step to a copy of it, which a `Trainer`
that accumulates gradients runs one without the other.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from gce.onnx._attach import attach_loss
from gce.onnx._graphs import copy_of, fresh_names, value_names
from gce.onnx.training._gradients import prepared, with_gradients
from gce.onnx.training._nodes import Nodes
from gce.onnx.training._optimizers import AdamW, Optimizer, check_range
from gce.onnx.training._parameters import split_equal, trainable

__all__ = ["Forward", "TrainingGraph", "add_gradients", "add_update", "training_graph"]

Arrays = dict[str, npt.NDArray[Any]]


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
        The inputs of the forward model.
    labels, gamma, learning_rate : str
        The inputs that the loss and the optimizer need: int64 labels; float64 scalars (γ of the
        labels' shape with ``gamma_per_row``).
    loss : str
        The loss, a scalar of the logits' type: that of the parameters before the step.
    grad_norm : str or None
        The global norm of the gradients before they are clipped, a float64 scalar.
    carried : dict of str to str
        The inputs that are parameters or state, and the outputs that are their new values.
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
        Names of the initializers to train, float32 or float64. By default all of these types that
        the logits depend on, but for those of a single element, those with an element that is not
        finite or beyond 1e30 (attention masks), the mean and variance of BatchNormalization, and
        `frozen`.
    frozen : iterable of str
        Names of initializers that stay as they are.
    tied : iterable of str
        Names of initializers that stay one although several nodes read them and all their elements
        are the same number. Others of this kind are split, one for each node: exporters make one of
        all parameters that begin equal, such as the ones and zeros of fresh normalizations.
    clip_norm : float, optional
        All gradients are scaled by ``min(1, clip_norm / (norm + 1e-6))``, where norm is that of all
        of them together, as ``torch.nn.utils.clip_grad_norm_`` does.
    **options
        Of the loss: ``axis``, ``weights`` (numbers), ``gamma_per_row``, ``reduction`` ("mean" or
        "sum"), ``value``, ``threshold``, ``label_smoothing`` and ``ignore_index``, as for
        `gce.onnx.attach_loss`.

    Returns
    -------
    TrainingGraph

    Raises
    ------
    gce.onnx.training.UnsupportedOperator
        onnx-ad cannot differentiate a node between a parameter and the logits; it is named.
    TypeError, ValueError
        An argument is of the wrong type or out of its range, or names what the model has not.

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
    optimizer = AdamW() if optimizer is None else optimizer
    return graph_of(Forward(model, logits, parameters, frozen, tied), optimizer, clip_norm, options)


def graph_of(
    forward: Forward, optimizer: Optimizer, clip_norm: float | None, options: Mapping[str, Any]
) -> TrainingGraph:
    """`training_graph` of a forward model that is prepared."""
    step, gradients = add_gradients(forward, options)
    update = add_update(step, forward, gradients, optimizer, clip_norm)
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
        A copy of what was given, with what `split_equal` does.
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
        split_equal(self.original, tied)
        self.logits = self._logits(logits)
        self.model = prepared(self.original, self.logits)
        chosen = trainable(self.model, parameters, frozen)
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
        names = [output.name for output in self.original.graph.output]
        if logits is None:
            if len(names) != 1:
                raise ValueError(
                    f"logits is not given, expected one of the model's outputs {names}"
                )
            return str(names[0])
        if not any(logits in node.output for node in self.original.graph.node):
            raise ValueError(
                f"logits = {logits!r}, expected a value that the model computes, "
                f"as its outputs {names}"
            )
        return logits


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

    def named(stem: str) -> str:
        name = stem if stem not in taken else fresh_names(taken, stem)()
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
    if options.get("reduction", "mean") == "none":
        raise ValueError("reduction = 'none', expected 'mean' or 'sum': a step needs one loss")
    step, grad = add_loss(forward, options, grad=True)
    assert grad is not None
    gradients = with_gradients(step.model, forward.logits, grad, list(forward.initial))
    return step, gradients


@dataclasses.dataclass(frozen=True)
class Update:
    """What `add_update` has added to a model."""

    learning_rate: str
    grad_norm: str | None
    carried: dict[str, str]
    initial: Arrays


def add_update(
    step: Step,
    forward: Forward,
    gradients: Mapping[str, str],
    optimizer: Optimizer,
    clip_norm: float | None,
    scale: float = 1.0,
) -> Update:
    """Append the optimizer to a model that has the gradients, which are multiplied by `scale`."""
    check_decay(optimizer, forward.initial)
    graph, named = step.model.graph, step.named
    nodes = Nodes(lambda: named("gce/update"))
    rate, norm = named("learning_rate"), None
    graph.input.append(helper.make_tensor_value_info(rate, TensorProto.DOUBLE, []))
    carried: dict[str, str] = {name: named(f"{name}.new") for name in forward.initial}
    initial: Arrays = {}

    def keep(stem: str, array: npt.NDArray[Any]) -> str:
        name = named(stem)
        initial[name], carried[name] = array, named(f"{name}.new")
        return name

    count = ""
    if optimizer.counts_steps:
        before = keep("step", np.zeros((), np.int64))
        nodes.op("Add", before, nodes.ints(1), output=carried[before])
        count = nodes.op("Cast", carried[before], to=TensorProto.DOUBLE)
    factor = nodes.constant(scale, np.float64) if scale != 1.0 else None
    if clip_norm is not None:
        norm = named("grad_norm")
        factor = clipping(nodes, list(gradients.values()), clip_norm, scale, norm)
    scalars = Scalars(nodes, optimizer.scalars(nodes, rate, count), factor)
    for name, array in forward.initial.items():
        cast, gradient = scalars.of(array.dtype), gradients[name]
        if factor is not None:
            gradient = nodes.op("Mul", gradient, cast["factor"])
        slots = {slot: keep(f"{name}.{slot}", np.zeros_like(array)) for slot in optimizer.slots}
        new = {name: carried[name], **{slot: carried[key] for slot, key in slots.items()}}
        optimizer.update(nodes, name, gradient, new, slots, cast, array.dtype)

    graph.node.extend(nodes.nodes)
    graph.initializer.extend(nodes.initializers)
    state = {**forward.initial, **initial}
    present = {value.name for value in graph.input}
    for name, array in state.items():
        elem_type = helper.np_dtype_to_tensor_dtype(array.dtype)
        if name not in present:
            graph.input.append(helper.make_tensor_value_info(name, elem_type, array.shape))
    # The learning rate, which is fed, before what is kept.
    order = {name: position for position, name in enumerate([rate, *state])}
    inputs = sorted(graph.input, key=lambda value: order.get(value.name, -1))
    del graph.input[:]
    graph.input.extend(inputs)
    if norm is not None:
        graph.output.append(helper.make_tensor_value_info(norm, TensorProto.DOUBLE, []))
    for name, array in state.items():
        elem_type = helper.np_dtype_to_tensor_dtype(array.dtype)
        info = helper.make_tensor_value_info(carried[name], elem_type, array.shape)
        graph.output.append(info)
    return Update(rate, norm, carried, initial)


class Scalars:
    """Float64 scalars, cast to the type of the parameters that they meet."""

    def __init__(self, nodes: Nodes, scalars: Mapping[str, str], factor: str | None) -> None:
        self.nodes = nodes
        self.scalars = {**scalars, **({} if factor is None else {"factor": factor})}
        self.cast: dict[np.dtype[Any], dict[str, str]] = {np.dtype(np.float64): self.scalars}

    def of(self, dtype: np.dtype[Any]) -> dict[str, str]:
        """Names of the scalars of this type."""
        if dtype not in self.cast:
            to = helper.np_dtype_to_tensor_dtype(dtype)
            self.cast[dtype] = {
                key: self.nodes.op("Cast", name, to=to) for key, name in self.scalars.items()
            }
        return self.cast[dtype]


def clipping(
    nodes: Nodes, gradients: Sequence[str], clip_norm: float, scale: float, norm: str
) -> str:
    """Emit the factor of ``clip_grad_norm_`` times `scale`, and the scaled gradients' norm."""
    check_range("clip_norm", clip_norm)
    double = np.float64
    squares = [
        nodes.op("Cast", nodes.op("ReduceSumSquare", name, keepdims=0), to=TensorProto.DOUBLE)
        for name in gradients
    ]
    root = nodes.op("Sqrt", nodes.op("Sum", *squares))
    nodes.op("Mul", root, nodes.constant(scale, double), output=norm)
    above = nodes.op("Add", norm, nodes.constant(1e-6, double))  # as PyTorch has it
    ratio = nodes.op("Div", nodes.constant(clip_norm, double), above)
    limited = nodes.op("Min", ratio, nodes.constant(1.0, double))
    return nodes.op("Mul", limited, nodes.constant(scale, double))


def check_decay(optimizer: Optimizer, parameters: Iterable[str]) -> None:
    """Raise if the optimizer names a parameter that is not trained."""
    known = list(parameters)
    for name in getattr(optimizer, "no_decay", ()):
        if name not in known:
            raise ValueError(
                f"no_decay has {name!r}, expected parameters that are trained: {known}"
            )
