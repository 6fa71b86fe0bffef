"""Training on the stock ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import numpy_helper

from gce.onnx._graphs import copy_of
from gce.onnx.training import _checkpoint, _programs
from gce.onnx.training._checks import (
    Feeds,
    Inputs,
    check_gamma,
    checked_count,
    checked_rate,
    digest,
    kinds,
    plain,
    sizes,
)
from gce.onnx.training._graph import Forward, all_options, checked_optimizer, graph_of
from gce.onnx.training._optimizers import Optimizer
from gce.onnx.training._programs import Program, Runner, Store, fed_inputs

__all__ = ["Trainer"]

Array: TypeAlias = npt.NDArray[Any]
Schedule: TypeAlias = Callable[[int], float]

PARAMETERS, STATE, SUMS = range(3)  # a trainer's stores


class Now(NamedTuple):
    """Where a training is, replaced as a whole: an interrupt sees all of a step or nothing."""

    turns: tuple[int, ...] = (0, 0, 0)  # of the stores
    steps: int = 0
    collected: int = 0  # batches of the next step
    grad_norm: float | None = None


class Trainer:
    """Trains a forward model with the γ-cross-entropy, on the stock ONNX Runtime.

    One session computes the loss, all gradients and the optimizer's step. Parameters and optimizer
    state stay where the runtime reads and writes them; a step feeds a batch and takes a loss.

    Parameters
    ----------
    model, optimizer, logits, parameters, frozen, tied, clip_norm
        As for `training_graph`.
    learning_rate : float or callable
        A number of at least 0, or a function from the number of steps done to one.
    gamma : float, callable or array_like
        The loss' γ, in [0, 1], or a function from the number of steps done to it, such as those of
        `gce.schedules`.
    accumulate : int
        Each step of the optimizer is made from this many calls of `step`: of the mean of their
        gradients, or of the sum with ``reduction="sum"``.
    session_options : onnxruntime.SessionOptions, optional
        For all sessions, as for the number of threads. The operator is registered on them. By
        default the runtime's own, but that it prints nothing: errors are raised.
    **options
        Of the loss, as for `training_graph`.

    Attributes
    ----------
    grad_norm : float or None
        With `clip_norm`, the norm of the last step's gradients before they were clipped.

    Raises
    ------
    gce.onnx.training.UnsupportedOperator
        onnx-ad cannot differentiate a node between a parameter and the logits; it is named.
    TypeError, ValueError, onnx.checker.ValidationError
        As for `training_graph`.

    Notes
    -----
    Memory: parameters and state are held twice, as a step reads the old ones and writes new ones.
    So a step that fails, by an error of the runtime or a loss that is not finite, changes nothing.

    That gradients are finite where the loss is, only `clip_norm` has checked, however large it is.

    One thread at a time may use a trainer, and any thread may. Several trainers are independent.

    Examples
    --------
    >>> import numpy as np
    >>> from gce import schedules
    >>> from gce.onnx import training
    >>> from onnx import TensorProto, helper, numpy_helper
    >>> forward = helper.make_model(
    ...     helper.make_graph(
    ...         [helper.make_node("MatMul", ["x", "W"], ["logits"])],
    ...         "linear",
    ...         [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
    ...         [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
    ...         [numpy_helper.from_array(np.zeros((4, 3), np.float32), "W")]),
    ...     opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    >>> trainer = training.Trainer(
    ...     forward, optimizer=training.SGD(), learning_rate=0.5, gamma=schedules.linear(10))
    >>> x, labels = np.eye(4, dtype=np.float32), np.array([0, 1, 2, 0])
    >>> losses = [float(trainer.step(x, labels)) for _ in range(10)]
    >>> round(losses[0], 4), trainer.steps, trainer.gamma
    (1.0986, 10, 1.0)
    >>> trainer.predict(x).argmax(axis=1)
    array([0, 1, 2, 0])
    >>> trained = trainer.export()
    """

    def __init__(
        self,
        model: onnx.ModelProto | str | os.PathLike[str],
        *,
        optimizer: Optimizer | None = None,
        learning_rate: float | Schedule = 1e-3,
        gamma: float | Schedule | npt.ArrayLike = 0.0,
        logits: str | None = None,
        parameters: Iterable[str] | None = None,
        frozen: Iterable[str] = (),
        tied: Iterable[str] = (),
        clip_norm: float | None = None,
        accumulate: int = 1,
        session_options: onnxruntime.SessionOptions | None = None,
        **options: Any,
    ) -> None:
        optimizer = checked_optimizer(optimizer)
        options = all_options(options, type(self))
        self._accumulate = checked_count("accumulate", accumulate)
        if not callable(learning_rate):
            checked_rate(learning_rate)
        if not callable(gamma):
            check_gamma(gamma, options["gamma_per_row"])
        self._learning_rate, self._gamma, self._options = learning_rate, gamma, options
        self._forward = Forward(model, logits, parameters, frozen, tied)
        self._session_options = session_options
        if session_options is None:
            self._session_options = onnxruntime.SessionOptions()
            # It would warn of constants that its optimizations leave without use, and print errors
            # that are raised.
            self._session_options.log_severity_level = 4
        trained = Store(self._forward.initial)
        if self._accumulate == 1:
            graph = graph_of(self._forward, optimizer, clip_norm, options)
            state = {k: v for k, v in graph.initial.items() if k not in self._forward.initial}
            self._stores = (trained, Store(state), Store({}))
            self._step = self._runner(_programs.whole_step(graph))
        else:
            scale = 1.0 / self._accumulate if options["reduction"] == "mean" else 1.0
            collect, apply, sums, state = _programs.accumulation(
                self._forward, optimizer, clip_norm, scale, options
            )
            self._stores = (trained, Store(state), Store(sums))
            self._step, self._apply = self._runner(collect), self._runner(apply)
        self._config = {
            "parameters": kinds(self._forward.initial),
            "optimizer": repr(optimizer),
            "clip_norm": plain(clip_norm),
            "accumulate": self._accumulate,
            "loss": {key: plain(value) for key, value in options.items()},
            "model": digest(self._forward),
        }
        program = self._step.program
        self._feeds = Feeds(program.model, self._forward.inputs, program.feeds["labels"], options)
        self._evaluation: Runner | None = None
        self._prediction: Runner | None = None
        self._now = Now()

    @property
    def steps(self) -> int:
        """Number of steps that the optimizer has done."""
        return self._now.steps

    @property
    def grad_norm(self) -> float | None:
        """Norm of the last step's gradients before they were clipped; None without `clip_norm`."""
        return self._now.grad_norm

    @property
    def gamma(self) -> Any:
        """γ of the next step."""
        return self._gamma(self.steps) if callable(self._gamma) else self._gamma

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next step."""
        rate = self._learning_rate
        return rate(self.steps) if callable(rate) else rate

    @property
    def parameters(self) -> dict[str, Array]:
        """Copies of the trained parameters, under their names in the model."""
        return {name: array.copy() for name, array in self._parameters().items()}

    def step(
        self,
        inputs: Inputs,
        labels: npt.ArrayLike,
        *,
        gamma: npt.ArrayLike | None = None,
        learning_rate: float | None = None,
    ) -> Any:
        """Do one step on a batch, or with ``accumulate`` add its gradients to those of the step.

        Parameters
        ----------
        inputs : mapping of str to array_like, or array_like
            The inputs of the model by name, those that the logits need; the array alone if there
            is but one. Their types are the model's: nothing is converted.
        labels : array_like of int, or of float
            As the loss takes them: for logits [N, C, d1...dk] of shape [N, d1...dk]; with
            ``probabilities`` floats of the logits' shape.
        gamma : array_like, optional
            γ of this call, instead of the trainer's: a number, or with ``gamma_per_row`` one per
            row too, of the logits' shape without the class axis.
        learning_rate : float, optional
            That of this call, instead of the trainer's. With ``accumulate`` that of the call which
            completes a step counts.

        Returns
        -------
        numpy floating scalar
            The loss of the batch, before the step.

        Raises
        ------
        TypeError, ValueError
            An input is missing, unknown, or of another type or shape than the model's; labels, γ
            or learning rate are of the wrong type or shape, or γ or learning rate out of range.
        IndexError
            A label is out of range.
        FloatingPointError
            The loss, or the norm of the gradients if they are clipped, is not finite.
        RuntimeError
            A node of the model fails; the runtime names it.

        Notes
        -----
        Whatever is raised, parameters, state, sums of gradients and the number of steps are what
        they were; an interrupt (`KeyboardInterrupt`) may come when all of them have been replaced,
        as `steps` tells. With ``accumulate``, gradients that are not finite are found by the call
        that completes the step; where they are those of an earlier one, `load` is the way out.
        """
        rate = checked_rate(self.learning_rate if learning_rate is None else learning_rate)
        feeds = {**self._fed(inputs, labels, gamma), "learning_rate": rate}
        now = self._now
        results = self._run(self._step, feeds)
        loss: Any = results["loss"][()]
        self._require_finite("loss", loss)
        parameters, state, sums = now.turns
        if self._accumulate > 1:
            sums = 1 - sums
            if now.collected + 1 < self._accumulate:
                turns = (parameters, state, sums)
                self._now = now._replace(turns=turns, collected=now.collected + 1)
                return loss
            results = self._apply.run({"learning_rate": rate}, (parameters, state, sums))
        norm = results.get("grad_norm")
        if norm is not None:
            self._require_finite("the norm of the gradients", norm[()])
        for array in self._stores[SUMS].arrays(sums).values():
            array.fill(0.0)  # those of the next step
        self._now = Now(
            turns=(1 - parameters, 1 - state, sums),
            steps=now.steps + 1,
            grad_norm=now.grad_norm if norm is None else float(norm),
        )
        return loss

    def _require_finite(self, what: str, value: Any) -> None:
        if not np.isfinite(value):
            raise FloatingPointError(
                f"{what} is {value} in step {self.steps}, counted from 0: "
                "parameters and state are those before it"
            )

    def evaluate(
        self, inputs: Inputs, labels: npt.ArrayLike, *, gamma: npt.ArrayLike | None = None
    ) -> Any:
        """Compute the loss of a batch, and change nothing.

        Parameters
        ----------
        inputs, labels
            As for `step`.
        gamma : array_like, optional
            γ; that of the next step by default. (0: cross-entropy.)

        Returns
        -------
        numpy floating scalar
            The loss, which may be infinite or NaN.

        Raises
        ------
        TypeError, ValueError, IndexError, RuntimeError
            As for `step`.
        """
        feeds = self._fed(inputs, labels, gamma)
        if self._evaluation is None:
            self._evaluation = self._runner(_programs.evaluation(self._forward, self._options))
        loss: Any = self._run(self._evaluation, feeds)["loss"][()]
        return loss

    def predict(self, inputs: Inputs) -> Array:
        """Compute the logits of a batch.

        Parameters
        ----------
        inputs
            As for `step`.

        Returns
        -------
        ndarray
            The logits.

        Raises
        ------
        TypeError, ValueError, RuntimeError
            As for `step`.
        """
        if self._prediction is None:
            self._prediction = self._runner(_programs.prediction(self._forward))
        feeds = fed_inputs(self._feeds.inputs(inputs))
        return self._prediction.run(feeds, self._now.turns)["logits"]

    def save(self, path: str | bytes | os.PathLike[Any], *, extra: Any = None) -> None:
        """Write a checkpoint: parameters, optimizer state, sums of gradients, number of steps.

        Parameters
        ----------
        path : path
            A file there is replaced once the new one is whole and on the disk, and its permissions
            are kept; of a link it is the file that the link names. A process that is killed leaves
            the old one, and beside it perhaps ``<path>.gce-tmp``, with a number if several write at
            once, of which the last one's stays.
        extra : optional
            Anything that JSON can hold, for `load` to give back.

        Raises
        ------
        OSError
            The file cannot be written, or is no file but a directory, a device or a pipe.
        TypeError, ValueError
            JSON cannot hold `extra`, or `path` is none.
        """
        now = self._now
        header = {
            "config": self._config,
            "steps": now.steps,
            "collected": now.collected,
            "extra": extra,
        }
        _checkpoint.write(path, self._arrays(now.turns), header)

    def load(self, path: str | bytes | os.PathLike[Any]) -> Any:
        """Go on where the checkpoint was written.

        Parameters
        ----------
        path : path
            Written by `save` of a trainer of the same model, parameters, optimizer, `clip_norm`,
            `accumulate` and options of the loss. Learning rate and γ are free: they are no state.

        Returns
        -------
        The `extra` of `save`.

        Raises
        ------
        OSError
            The file cannot be read.
        gce.onnx.training.CheckpointError
            A ValueError: the file is damaged, or of a training that differs; how is said.

        Notes
        -----
        Whatever is raised, the trainer is as it was; or all is loaded, if that is an interrupt.
        """
        path = _checkpoint.text_of(path)
        arrays, header = _checkpoint.read(path)
        _checkpoint.require_same(path, "", header.get("config") or {}, self._config)
        steps = _checkpoint.count(path, header, "steps")
        collected = _checkpoint.count(path, header, "collected", below=self._accumulate)
        turns = tuple(1 - turn for turn in self._now.turns)
        own = self._arrays(turns)
        _checkpoint.require_same(path, "arrays", sizes(arrays), sizes(own))
        for name, array in own.items():
            np.copyto(array, arrays[name].reshape(array.shape))
        self._now = Now(turns, steps, collected)
        return header.get("extra")

    def export(self, path: str | os.PathLike[str] | None = None) -> onnx.ModelProto:
        """Give the forward model with the trained parameters.

        Parameters
        ----------
        path : path, optional
            Where to write it too.

        Returns
        -------
        onnx.ModelProto
            The model that the trainer was made from, of the same inputs, outputs and opset, for any
            runtime: it has no loss. Initializers that were split stay so.
        """
        model = copy_of(self._forward.original)
        trained = self._parameters()
        for tensor in model.graph.initializer:
            if tensor.name in trained:
                tensor.CopyFrom(numpy_helper.from_array(trained[tensor.name], tensor.name))
        if path is not None:
            onnx.save(model, os.fspath(path))
        return model

    def _runner(self, program: Program) -> Runner:
        return Runner(program, self._stores, self._session_options)

    def _parameters(self) -> dict[str, Array]:
        return self._stores[PARAMETERS].arrays(self._now.turns[PARAMETERS])

    def _arrays(self, turns: tuple[int, ...]) -> dict[str, Array]:
        pairs = zip(self._stores, turns, strict=True)
        return {name: array for store, turn in pairs for name, array in store.arrays(turn).items()}

    def _run(self, runner: Runner, feeds: Mapping[str, Array]) -> dict[str, Array]:
        try:
            return runner.run(feeds, self._now.turns)
        except IndexError as error:
            if " = -100, " in str(error) and self._options["ignore_index"] is None:
                hint = "labels of -100 are ignored with ignore_index=-100"
                raise IndexError(f"{error}: {hint}") from error
            raise

    def _fed(
        self, inputs: Inputs, labels: npt.ArrayLike, gamma: npt.ArrayLike | None
    ) -> dict[str, Array]:
        arrays = self._feeds.inputs(inputs)
        of_loss = self._feeds.of_loss(arrays, labels, self.gamma if gamma is None else gamma)
        return {**fed_inputs(arrays), **of_loss}
