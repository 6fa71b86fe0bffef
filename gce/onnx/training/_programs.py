"""The graphs that a `Trainer` runs, and how it runs them.

A `Program` is a graph that is run again and again on arrays that stay where they are. The arrays
are in `Store`s, each of which has two buffers for every array: a run reads one and writes the
other, and the two change places once the run is known to be good. So no array is copied between
runs, and a run that fails changes nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import helper

from gce._onnx_library import OP_TYPE, register
from gce.onnx.training._graph import (
    Forward,
    Step,
    TrainingGraph,
    add_gradients,
    add_loss,
)
from gce.onnx.training._nodes import value_info
from gce.onnx.training._optimizers import Optimizer
from gce.onnx.training._update import add_update

T = TypeVar("T")

DTYPES = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}

__all__ = [
    "Program",
    "Runner",
    "Store",
    "accumulation",
    "evaluation",
    "fed_inputs",
    "prediction",
    "whole_step",
]


@dataclasses.dataclass(frozen=True)
class Program:
    """A graph, and what its inputs and outputs are.

    Attributes
    ----------
    model : onnx.ModelProto
    feeds : dict of str to str
        Inputs that are new at every run, under the names that the trainer has for them.
    carried : dict of str to str
        Inputs that the run changes, and the outputs that are their new values.
    results : dict of str to str
        The other outputs, under the trainer's names.
    """

    model: onnx.ModelProto
    feeds: Mapping[str, str]
    carried: Mapping[str, str]
    results: Mapping[str, str]


def whole_step(graph: TrainingGraph) -> Program:
    """Loss, gradients and optimizer in one run."""
    feeds = fed_inputs({name: name for name in graph.inputs})
    feeds |= {"labels": graph.labels, "gamma": graph.gamma, "learning_rate": graph.learning_rate}
    results = {"loss": graph.loss}
    if graph.grad_norm is not None:
        results["grad_norm"] = graph.grad_norm
    return Program(without_final_reshapes(graph.model), feeds, graph.carried, results)


def without_final_reshapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, with outputs of another shape where a Reshape made them: it would copy them."""
    lean = onnx.ModelProto()
    lean.CopyFrom(model)
    graph = lean.graph
    outputs = {output.name: output for output in graph.output}
    kept, names = [], {}
    for node in graph.node:
        if node.op_type == "Reshape" and node.output[0] in outputs:
            names[node.input[0]] = node.output[0]
        else:
            kept.append(node)
    for node in kept:
        node.output[:] = [names.get(name, name) for name in node.output]
    for name in names.values():
        outputs[name].type.tensor_type.ClearField("shape")
    del graph.node[:]
    graph.node.extend(kept)
    return lean


def accumulation(
    forward: Forward,
    optimizer: Optimizer,
    clip_norm: float | None,
    scale: float,
    options: Mapping[str, Any],
) -> tuple[Program, Program, dict[str, npt.NDArray[Any]], dict[str, npt.NDArray[Any]]]:
    """A step in two halves: gradients are added up; a step is made of `scale` times their sum.

    Returns
    -------
    collect, apply : Program
    sums, state : dict of str to ndarray
        First values of the sums of gradients, and of the optimizer's state.
    """
    step, gradients = add_gradients(forward, options)
    graph = step.model.graph
    sums = {step.named(f"{name}.accumulated"): name for name in forward.initial}
    carried = {}
    for name, parameter in sums.items():
        array = forward.initial[parameter]
        carried[name] = step.named(f"{name}.new")
        graph.input.append(value_info(name, array))
        graph.output.append(value_info(carried[name], array))
        inputs = [name, gradients[parameter]]
        graph.node.append(helper.make_node("Add", inputs, [carried[name]]))
    collect = Program(step.model, feeds_of(forward, step), carried, {"loss": step.loss})

    half = onnx.ModelProto()
    half.CopyFrom(step.model)
    for field in ("node", "initializer", "input", "output", "value_info"):
        half.graph.ClearField(field)
    half.graph.input.extend(value_info(n, forward.initial[sums[n]]) for n in sums)
    by_parameter = {parameter: name for name, parameter in sums.items()}
    update = add_update(
        half, step.named, forward.initial, by_parameter, optimizer, clip_norm, scale
    )
    results = {} if update.grad_norm is None else {"grad_norm": update.grad_norm}
    feeds = {"learning_rate": update.learning_rate}
    apply = Program(without_final_reshapes(half), feeds, update.carried, results)
    zeros = {name: np.zeros_like(forward.initial[parameter]) for name, parameter in sums.items()}
    return collect, apply, zeros, update.initial


def evaluation(forward: Forward, options: Mapping[str, Any]) -> Program:
    """The loss alone."""
    step, _ = add_loss(forward, options, grad=False)
    return Program(step.model, feeds_of(forward, step), {}, {"loss": step.loss})


def prediction(forward: Forward) -> Program:
    """The logits alone."""
    feeds = fed_inputs({name: name for name in forward.inputs})
    return Program(forward.model, feeds, {}, {"logits": forward.logits})


def feeds_of(forward: Forward, step: Step) -> dict[str, str]:
    """What a loss needs."""
    feeds = fed_inputs({name: name for name in forward.inputs})
    return {**feeds, "labels": step.labels, "gamma": step.gamma}


def fed_inputs(values: Mapping[str, T]) -> dict[str, T]:
    """What belongs to inputs of the forward model, under the names that a trainer has for them."""
    return {f"inputs.{name}": value for name, value in values.items()}


def with_value(array: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], Any]:
    """The array and an OrtValue of its memory, which does not keep the array alive."""
    return array, onnxruntime.OrtValue.ortvalue_from_numpy(array)


class Store:
    """Arrays that runs read and change: two buffers for each, of which a turn says the current one.

    Parameters
    ----------
    initial : mapping of str to ndarray
        The first values of both, which are copied.
    """

    def __init__(self, initial: Mapping[str, npt.NDArray[Any]]) -> None:
        self._pairs = [
            {name: with_value(np.array(array, order="C")) for name, array in initial.items()}
            for _ in range(2)
        ]

    def arrays(self, turn: int) -> dict[str, npt.NDArray[Any]]:
        """The values, where the runtime has them: the run after the next writes there."""
        return {name: array for name, (array, _) in self._pairs[turn].items()}

    def value(self, name: str, turn: int) -> Any:
        """The OrtValue of a value."""
        return self._pairs[turn][name][1]

    def spare(self, name: str, turn: int, shape: Sequence[int]) -> Any:
        """The OrtValue where a run puts the next one, as an array of this shape."""
        array, value = self._pairs[1 - turn][name]
        return value if array.shape == tuple(shape) else with_value(array.reshape(shape))[1]


class Runner:
    """A session of a program, bound to stores.

    Parameters
    ----------
    program : Program
    stores : sequence of Store
        Together they have all inputs of the program that are not fed.
    session_options : onnxruntime.SessionOptions
        The operator is registered on them.
    """

    def __init__(
        self,
        program: Program,
        stores: Sequence[Store],
        session_options: onnxruntime.SessionOptions,
    ) -> None:
        self.program = program
        self.session = onnxruntime.InferenceSession(
            program.model.SerializeToString(),
            register(session_options),
            providers=["CPUExecutionProvider"],
        )
        fed = set(program.feeds.values())
        names = {value.name for value in self.session.get_inputs()} - fed
        self._homes = {
            name: (i, store)
            for i, store in enumerate(stores)
            for name in store.arrays(0)
            if name in names
        }
        self._used = sorted({i for i, _ in self._homes.values()})
        self._bindings: dict[tuple[int, ...], Any] = {}
        types = {output.name: output.type for output in self.session.get_outputs()}
        self._shapes = {output.name: output.shape for output in self.session.get_outputs()}
        # Results of programs that carry something are scalars, which have their place too.
        self._scalars = {
            key: with_value(np.zeros((), dtype_of(key, types[name])))
            for key, name in program.results.items()
            if program.carried
        }

    def run(
        self, feeds: Mapping[str, npt.NDArray[Any]], turns: Sequence[int]
    ) -> dict[str, npt.NDArray[Any]]:
        """Run once; the new values are in the stores' spare buffers.

        Parameters
        ----------
        feeds : mapping of str to ndarray
            Under the trainer's names.
        turns : sequence of {0, 1}
            Of each store.

        Returns
        -------
        dict of str to ndarray
            The results, under the trainer's names.
        """
        used = tuple(turns[i] for i in self._used)
        if used not in self._bindings:
            self._bindings[used] = self._bound(turns)
        binding = self._bindings[used]
        # Kept alive until the run is done.
        fed = [np.require(feeds[key], requirements=("C", "A")) for key in self.program.feeds]
        for name, array in zip(self.program.feeds.values(), fed, strict=True):
            value = onnxruntime.OrtValue.ortvalue_from_numpy(array)
            binding.bind_ortvalue_input(name, value)
        if not self.program.carried:  # results of any shape, in new arrays
            for name in self.program.results.values():
                binding.bind_output(name)
        try:
            self.session.run_with_iobinding(binding)
        except RuntimeError as error:
            text = text_of_loss(error)
            if text is None:
                raise
            raise (IndexError if "expected 0 <= target" in text else ValueError)(text) from error
        if not self.program.carried:
            made = binding.get_outputs()
            return {
                key: value.numpy() for key, value in zip(self.program.results, made, strict=True)
            }
        return {key: array.copy() for key, (array, _) in self._scalars.items()}

    def _bound(self, turns: Sequence[int]) -> Any:
        """A binding of what stays the same from run to run."""
        binding = self.session.io_binding()
        for name, (i, store) in self._homes.items():
            binding.bind_ortvalue_input(name, store.value(name, turns[i]))
        for name, output in self.program.carried.items():
            i, store = self._homes[name]
            spare = store.spare(name, turns[i], self._shapes[output])
            binding.bind_ortvalue_output(output, spare)
        if self.program.carried:
            for key, (_, value) in self._scalars.items():
                binding.bind_ortvalue_output(self.program.results[key], value)
        return binding


def dtype_of(result: str, type_name: str) -> npt.DTypeLike:
    """The numpy type of a scalar."""
    if type_name not in DTYPES:
        raise TypeError(f"{result} has type {type_name}, expected one of {', '.join(DTYPES)}")
    return DTYPES[type_name]


def text_of_loss(error: RuntimeError) -> str | None:
    """What the core said, if the error is the loss' own.

    A binding has one type for all errors of a run: from this text follows what the numpy face would
    raise.
    """
    before, _, text = str(error).partition("Status Message: ")
    return text if OP_TYPE in before and text else None
