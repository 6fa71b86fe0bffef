"""The graph that `training_graph` makes: its inputs and outputs, its names, what it computes."""

from __future__ import annotations

import inspect
import re
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_models import (
    CLASSES,
    FEATURES,
    HIDDEN,
    OPTIMIZERS,
    batch,
    linear,
    model_of,
    perceptron,
    sequences,
    weights,
)

import gce.onnx
from gce.onnx import training
from gce.onnx.training import SGD, AdamW, Trainer, _update, training_graph
from gce.onnx.training._graph import DECIDED, OPTIONS

SHAPES = {
    "W1": [FEATURES, HIDDEN],
    "b1": [HIDDEN],
    "W2": [HIDDEN, CLASSES],
    "b2": [CLASSES],
}
FLOAT, DOUBLE, INT64 = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT64


def described(values: Any) -> list[tuple[str, int, list[str | int]]]:
    return [
        (
            value.name,
            value.type.tensor_type.elem_type,
            [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim],
        )
        for value in values
    ]


def session_of(graph: training.TrainingGraph) -> onnxruntime.InferenceSession:
    options = gce.onnx.register(onnxruntime.SessionOptions())
    return onnxruntime.InferenceSession(graph.model.SerializeToString(), options)


# --- inputs and outputs ---------------------------------------------------------------------------


@pytest.mark.parametrize("clip_norm", [None, 1.0])
@pytest.mark.parametrize("elem_type", [FLOAT, DOUBLE])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_inputs_and_outputs(optimizer, elem_type, clip_norm):
    dtype = helper.tensor_dtype_to_np_dtype(elem_type).name
    graph = training_graph(perceptron(dtype), optimizer=OPTIMIZERS[optimizer], clip_norm=clip_norm)
    slots = {
        "SGD": [],
        "momentum": ["momentum"],
        "AdamW": ["grad_sum", "grad_square_sum"],
    }[optimizer]
    step: list[Any] = [("step", INT64, [])] if optimizer == "AdamW" else []
    state = [(f"{name}.{slot}", elem_type, dims) for name, dims in SHAPES.items() for slot in slots]
    carried = [(name, elem_type, dims) for name, dims in SHAPES.items()] + step + state
    assert described(graph.model.graph.input) == [
        ("x", elem_type, ["N", FEATURES]),
        ("labels", INT64, ["N"]),
        ("gamma", DOUBLE, []),
        ("learning_rate", DOUBLE, []),
        *carried,
    ]
    norm: list[Any] = [] if clip_norm is None else [("grad_norm", DOUBLE, [])]
    new = [(f"{name}.new", of_type, dims) for name, of_type, dims in carried]
    assert described(graph.model.graph.output) == [("loss", elem_type, []), *norm, *new]

    names = (graph.labels, graph.gamma, graph.learning_rate, graph.loss, graph.grad_norm)
    assert names == (
        "labels", "gamma", "learning_rate", "loss", None if clip_norm is None else "grad_norm",
    )  # fmt: skip
    assert graph.inputs == ("x",) and graph.parameters == tuple(SHAPES)
    assert list(graph.carried.items()) == [(name, f"{name}.new") for name, _, _ in carried]
    assert list(graph.initial) == list(graph.carried)
    start = weights(dtype)
    for name, of_type, dims in carried:
        array = graph.initial[name]
        assert array.dtype == helper.tensor_dtype_to_np_dtype(of_type)
        assert list(array.shape) == dims
        np.testing.assert_array_equal(array, start.get(name, np.zeros(dims)))


def test_gamma_and_labels_of_many_dimensions():
    graph = training_graph(sequences(), axis=-1, gamma_per_row=True, optimizer=SGD())
    found = described(graph.model.graph.input)[:4]
    assert found == [
        ("tokens", INT64, ["B", "T"]),
        ("labels", INT64, ["B", "T"]),
        ("gamma", DOUBLE, ["B", "T"]),
        ("learning_rate", DOUBLE, []),
    ]


@pytest.mark.parametrize(("dtype", "of_type"), [("float32", FLOAT), ("float64", DOUBLE)])
def test_probabilities_are_an_input_of_the_logits_type(dtype, of_type):
    graph = training_graph(perceptron(dtype), probabilities=True, gamma_per_row=True)
    assert described(graph.model.graph.input)[1:3] == [
        ("labels", of_type, ["N", 4]),
        ("gamma", DOUBLE, ["N"]),
    ]


def test_it_is_valid_and_imports_the_operator():
    model = training_graph(perceptron()).model
    onnx.checker.check_model(model, full_check=True)
    assert {opset.domain for opset in model.opset_import} == {"", "ai.gce"}


def test_it_does_what_a_trainer_does():
    # Driven by hand, with plain runs.
    optimizer = AdamW(weight_decay=0.1)
    graph = training_graph(perceptron(), optimizer=optimizer, clip_norm=0.5)
    trainer = Trainer(perceptron(), optimizer=optimizer, clip_norm=0.5, gamma=0.5)
    session = session_of(graph)
    names = [output.name for output in session.get_outputs()]
    values = dict(graph.initial)
    for step in range(4):
        x, labels = batch(8, step)
        fed = {"x": x, graph.labels: labels, graph.gamma: np.array(0.5)}
        fed[graph.learning_rate] = np.array(1e-3)
        results = dict(zip(names, session.run(names, {**fed, **values}), strict=True))
        values = {name: results[new] for name, new in graph.carried.items()}
        assert results[graph.loss] == trainer.step(x, labels)
        assert float(results[graph.grad_norm]) == trainer.grad_norm
    for name, array in trainer.parameters.items():
        assert values[name].tobytes() == array.tobytes()
    assert values["step"] == 4


# --- names ----------------------------------------------------------------------------------------

TAKEN = [
    "labels", "gamma", "loss", "learning_rate", "grad_norm", "step", "step.new", "gce/grad",
    "gce/update/0", "gce/adjoint/0", "loss/0", "labels/0", "W.new", "W.momentum", "W.momentum.new",
    "W.grad_sum", "W.grad_square_sum", "W.accumulated", "W.accumulated.new",
]  # fmt: skip


def with_names_taken(name: str, place: str) -> onnx.ModelProto:
    """``x W`` where something has the name: its input, an inner value, a constant or W itself."""
    array = np.random.default_rng(0).normal(size=(FEATURES, CLASSES)).astype("f4")
    if place == "input":
        return linear(x=name, initial=array)
    if place == "parameter":
        return linear(weight=name, initial=array)
    if place == "logits":
        return linear(logits=name, initial=array)
    model = linear(logits="product", initial=array)
    model.graph.output[0].name = "logits"
    if place == "value":
        nodes = [("Identity", ["product"], [name]), ("Identity", [name], ["logits"])]
    else:
        nodes = [("Mul", ["product", name], ["logits"])]
        model.graph.initializer.append(numpy_helper.from_array(np.float32(1.0), name))
    model.graph.node.extend(helper.make_node(*node) for node in nodes)
    return model


@pytest.mark.parametrize("place", ["input", "value", "constant", "parameter", "logits"])
@pytest.mark.parametrize("optimizer", [SGD(momentum=0.9), AdamW()], ids=["SGD", "AdamW"])
def test_names_that_the_model_has_already(monkeypatch, optimizer, place):
    monkeypatch.setattr(_update, "CHUNK", 8)  # for names inside of a Scan
    x, labels = batch(8, 0)
    plain = with_names_taken("something", place)
    for accumulate in (1, 2):
        options: dict[str, Any] = {
            "optimizer": optimizer, "clip_norm": 0.1, "accumulate": accumulate,
        }  # fmt: skip
        expected = Trainer(plain, **options)
        losses = [expected.step(x, labels) for _ in range(2 * accumulate)]
        for name in TAKEN if accumulate == 1 else ["labels", "W.accumulated", "W.accumulated.new"]:
            model = with_names_taken(name, place)
            trainer = Trainer(model, **options)
            assert [trainer.step(x, labels) for _ in losses] == losses
            assert trainer.grad_norm == expected.grad_norm
            for mine, other in zip(
                trainer.parameters.values(), expected.parameters.values(), strict=True
            ):
                assert mine.tobytes() == other.tobytes()


def test_names_that_are_taken_are_told():
    graph = training_graph(linear(x="labels", logits="loss"), optimizer=SGD())
    assert graph.inputs == ("labels",)
    assert graph.labels == "labels/0" and graph.loss == "loss/0" and graph.gamma == "gamma"
    assert [value.name for value in graph.model.graph.input][:4] == [
        "labels", "labels/0", "gamma", "learning_rate",
    ]  # fmt: skip


# --- forward models of all kinds ------------------------------------------------------------------


def test_the_model_stays_as_it_is(tmp_path):
    model = perceptron()
    before = model.SerializeToString()
    path = tmp_path / "model.onnx"
    path.write_bytes(before)
    graphs = [training_graph(source) for source in (model, path, str(path))]
    assert model.SerializeToString() == before == path.read_bytes()
    assert len({graph.model.SerializeToString() for graph in graphs}) == 1


def several_outputs() -> onnx.ModelProto:
    """The perceptron, which gives its hidden values and a sum of another input too."""
    model = perceptron()
    graph = model.graph
    graph.input.append(helper.make_tensor_value_info("other", FLOAT, ["N", 2]))
    graph.node.append(helper.make_node("ReduceSum", ["other"], ["total"], keepdims=0))
    graph.initializer.append(numpy_helper.from_array(np.ones((2, 2), "f4"), "U"))
    graph.node.append(helper.make_node("MatMul", ["other", "U"], ["projected"]))
    graph.output.insert(0, helper.make_tensor_value_info("hidden", FLOAT, ["N", HIDDEN]))
    graph.output.append(helper.make_tensor_value_info("total", FLOAT, []))
    graph.output.append(helper.make_tensor_value_info("projected", FLOAT, ["N", 2]))
    return model


def test_a_model_of_several_outputs_needs_to_be_told_its_logits():
    with pytest.raises(
        ValueError, match=r"logits is not given, expected the name .*'hidden', 'log"
    ):
        training_graph(several_outputs())
    graph = training_graph(several_outputs(), logits="logits")
    assert graph.inputs == ("x",)  # the logits do not need the other
    assert graph.parameters == tuple(SHAPES)
    assert graph.model.graph.output[0].name == "loss"
    for name in ("nothing", "x", "W1"):
        with pytest.raises(
            ValueError, match=f"logits = '{name}', expected a value (of|that) the model"
        ):
            training_graph(several_outputs(), logits=name)


def test_logits_may_be_an_inner_value():
    # As where a model ends with a softmax.
    model = perceptron()
    model.graph.node.append(helper.make_node("Softmax", ["logits"], ["probabilities"]))
    model.graph.output[0].name = "probabilities"
    x, labels = batch(8, 0)
    trainer, plain = Trainer(model, logits="logits"), Trainer(perceptron())
    assert trainer.step(x, labels) == plain.step(x, labels)
    assert trainer.evaluate(x, labels) == plain.evaluate(x, labels)
    np.testing.assert_array_equal(trainer.predict(x), plain.predict(x))


def test_an_old_model_whose_initializers_are_inputs_too():
    model = several_outputs()
    model.ir_version = 3
    for tensor in model.graph.initializer:
        info = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        model.graph.input.append(info)
    graph = training_graph(model, logits="logits")
    assert graph.inputs == ("x",) and graph.parameters == tuple(SHAPES)
    x, labels = batch(8, 0)
    trainer, plain = Trainer(model, logits="logits"), Trainer(perceptron())
    for _ in range(2):
        assert trainer.step(x, labels) == plain.step(x, labels)


def test_a_parameter_that_two_nodes_read():
    # Its gradient is the sum of both: x W W, by hand in float64.
    rng = np.random.default_rng(0)
    square, x = rng.normal(size=(4, 4)), rng.normal(size=(6, 4))
    model = linear(initial=square, logits="once")
    model.graph.node.append(helper.make_node("MatMul", ["once", "W"], ["logits"]))
    model.graph.output[0].name = "logits"
    labels = rng.integers(0, 4, 6)
    trainer = Trainer(model, optimizer=SGD(), learning_rate=1.0, gamma=0.5)
    loss = trainer.step(x, labels)
    expected, grad = gce.loss_and_grad(x @ square @ square, labels, 0.5)
    assert loss == pytest.approx(expected, rel=1e-14)
    slope = (x @ square).T @ grad + x.T @ (grad @ square.T)
    np.testing.assert_allclose(square - trainer.parameters["W"], slope, rtol=1e-12, atol=1e-14)


def test_parameters_of_two_types():
    # The step's scalars are made in both.
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(5, 6)).astype("f4"), rng.normal(size=(6, 4))
    nodes = [
        helper.make_node("MatMul", ["x", "A"], ["product"]),
        helper.make_node("Cast", ["product"], ["wide"], to=DOUBLE),
        helper.make_node("MatMul", ["wide", "B"], ["logits"]),
    ]
    model = model_of(nodes, {"A": first, "B": second}, {"x": ["N", 5]}, {"logits": ["N", 4]})
    model.graph.output[0].type.tensor_type.elem_type = DOUBLE
    x, labels = batch(8, 0)
    for optimizer in (SGD(momentum=0.9), AdamW()):
        trainer = Trainer(model, optimizer=optimizer, learning_rate=0.01, clip_norm=0.5)
        losses = [trainer.step(x, labels) for _ in range(20)]
        assert losses[0].dtype == np.float64 and losses[-1] < losses[0]
        found = {name: array.dtype.name for name, array in trainer.parameters.items()}
        assert found == {"A": "float32", "B": "float64"}


# --- arguments ------------------------------------------------------------------------------------


def test_options_are_those_of_attach_loss():
    parameters = inspect.signature(gce.onnx.attach_loss).parameters
    assert {*OPTIONS, *DECIDED} == set(parameters) and not set(OPTIONS) & set(DECIDED)
    assert all(parameters[name].default == default for name, default in OPTIONS.items())
    text = str(training_graph.__doc__).partition("**options\n")[2].partition("Returns")[0]
    assert set(re.findall(r"``(\w+)``", text)) == set(OPTIONS)


@pytest.mark.parametrize("make", [training_graph, Trainer])
@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"bogus": 1}, TypeError, "unexpected keyword argument 'bogus', expected those of"),
        *(
            ({name: "name"}, TypeError, f"unexpected keyword argument '{name}', expected those of")
            for name in ("labels", "loss", "grad", "labels_dtype", "gamma_dtype", "function")
        ),
        ({"reduction": "none"}, ValueError, "reduction = 'none', expected 'mean' or 'sum'"),
        ({"reduction": "average"}, ValueError, 'reduction = "average", expected "mean"'),
        ({"value": "true"}, ValueError, 'value = "true", expected "primitive" or "surrogate"'),
        ({"threshold": 1.5}, ValueError, "threshold = 1.5, expected 0 <= threshold <= 1"),
        ({"threshold": [0.5]}, TypeError, r"threshold has shape \(1,\), expected a number"),
        ({"label_smoothing": -1}, ValueError, "label_smoothing = -1, expected 0 <= label_smooth"),
        ({"ignore_index": 0.5}, TypeError, "ignore_index has type float, expected int"),
        ({"axis": 0}, ValueError, "axis = 0, expected 1 or -1"),
        ({"weights": "w"}, TypeError, "weights = 'w', expected numbers"),
        ({"weights": [1.0, 2.0]}, ValueError, r"weights has shape \(2,\), expected \(4,\)"),
        ({"weights": ["a"] * 4}, TypeError, "weights has dtype <U1, expected numbers"),
        ({"weights": [1e39] * 4}, ValueError, r"weights\[0\] = 1e\+39, expected a number that f"),
        ({"optimizer": "AdamW"}, TypeError, r"optimizer = 'AdamW', expected an SGD\(\.\.\.\) or"),
        ({"optimizer": SGD}, TypeError, "optimizer = <class .*SGD'>, expected an SGD"),
        ({"clip_norm": "1"}, TypeError, "clip_norm = '1', expected a number"),
        ({"clip_norm": -1.0}, ValueError, "clip_norm = -1.0, expected a finite number of at l"),
        ({"clip_norm": float("nan")}, ValueError, "clip_norm = nan, expected a finite number"),
        ({"frozen": "W1"}, TypeError, "frozen = 'W1', expected several names"),
        ({"frozen": ["W3"]}, ValueError, "frozen has 'W3', expected initializers that the logits"),
        ({"parameters": []}, ValueError, "model has no parameters to train"),
        ({"parameters": ["W3"]}, ValueError, "parameters has 'W3', expected initializers that"),
        ({"frozen": list(SHAPES)}, ValueError, "model has no parameters to train"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_options(make, options, error, text):
    with pytest.raises(error, match=f"^{text}"):
        make(perceptron(), **options)


@pytest.mark.parametrize("make", [training_graph, Trainer])
def test_models_that_cannot_be_trained(make):
    constant = model_of(
        [helper.make_node("LogSoftmax", ["x"], ["logits"])],
        {},
        {"x": ["N", 4]},
        {"logits": ["N", 4]},
    )
    with pytest.raises(ValueError, match="model has no parameters to train: no weights that its"):
        make(constant)
    with pytest.raises(TypeError, match=r"model has type int, expected onnx\.ModelProto or a path"):
        make(3)
    with pytest.raises(FileNotFoundError):
        make("there is no such file.onnx")
    broken = linear()
    broken.graph.node[0].input[0] = "y"
    with pytest.raises(onnx.checker.ValidationError, match="'y'"):
        make(broken)
    unlike = linear()
    unlike.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 77
    with pytest.raises(ValueError, match=r"^model is inconsistent: .*dimension"):
        make(unlike)
    whole = linear()
    whole.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    whole.graph.node[0].output[0] = "product"
    whole.graph.node.append(helper.make_node("Cast", ["product"], ["logits"], to=INT64))
    with pytest.raises(TypeError, match="logits = 'logits' has type int64, expected float16"):
        make(whole)


@pytest.mark.parametrize("make", [training_graph, Trainer])
def test_a_parameter_that_the_logits_do_not_depend_on(make):
    # Its shape alone is read; another is not read for the logits at all.
    model = linear()
    nodes = [
        helper.make_node("Shape", ["V"], ["size"]),
        helper.make_node("ReduceSum", ["size"], ["total"], keepdims=0),
        helper.make_node("Cast", ["total"], ["number"], to=FLOAT),
        helper.make_node("Mul", ["product", "number"], ["logits"]),
    ]
    model.graph.node[0].output[0] = "product"
    model.graph.node.extend(nodes)
    for name in ("V", "unused"):
        model.graph.initializer.append(numpy_helper.from_array(np.arange(2, dtype="f4"), name))
    with pytest.raises(ValueError, match="'V'"):
        make(model, parameters=["W", "V"])
    with pytest.raises(ValueError, match="parameters has 'unused', expected initializers that the"):
        make(model, parameters=["unused"])
    assert list(make(model).parameters) == ["W"]
