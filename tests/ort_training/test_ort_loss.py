"""The loss' options: gradients of the scores are those of the numpy face, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.training import onnxblock
from trainings import Training, expected, shifted, two_heads

import gce
from gce.onnx import ort_training

RNG = np.random.default_rng(5)
SHAPES = {"rows": (7, 5), "sequences": (3, 5, 4), "images": (2, 5, 3, 2), "one class": (4, 1)}
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "sum": {"reduction": "sum"},
    "surrogate": {"value": "surrogate"},
    "threshold": {"threshold": 0.3},
    "smoothing": {"label_smoothing": 0.1},
    "ignore": {"ignore_index": -100},
    "ignore a class": {"ignore_index": 2},
    "weights": {"weights": RNG.uniform(0.1, 2.0, size=5)},
    "int32": {"labels_dtype": np.int32},
    "float32 gamma": {"gamma_dtype": np.float32},
    "gamma per row": {"gamma_per_row": True},
    "softcap": {"softcap": 0.7},
    "shift": {"shift": 1},
    "probabilities": {"probabilities": True, "gamma_per_row": True},
    "float64 probabilities": {"probabilities": True, "labels_dtype": "float64", "shift": 1},
    "all": {
        "reduction": "sum",
        "value": "surrogate",
        "threshold": 0.2,
        "label_smoothing": 0.05,
        "softcap": 2.0,
        "shift": 2,
        "ignore_index": 1,
        "weights": RNG.uniform(0.1, 2.0, size=5).astype(np.float32),
        "labels_dtype": "int32",
        "gamma_dtype": np.float32,
        "gamma_per_row": True,
    },
}
OF_THE_NODE = (
    *("reduction", "value", "threshold", "label_smoothing", "ignore_index", "weights"),
    *("softcap", "shift"),
)


def problem(shape: tuple[int, ...], options: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Scores, labels and γ for a block with these options."""
    axis = options.get("axis", 1)
    rows = tuple(np.delete(shape, axis))
    scores = (3 * RNG.normal(size=shape)).astype(np.float32)
    labels = RNG.integers(0, shape[axis], size=rows).astype(np.int64)
    if options.get("probabilities"):
        labels = RNG.random(shape).astype(np.float32)
    labels = labels.astype(options.get("labels_dtype", labels.dtype))
    if options.get("ignore_index", 0) < 0:
        labels.flat[::3] = options["ignore_index"]
    gamma = RNG.random(rows if options.get("gamma_per_row") else ())
    return scores, labels, np.asarray(gamma, options.get("gamma_dtype", np.float64))


def of_the_node(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name in OF_THE_NODE}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_options(tmp_path, shape, name):
    options = dict(OPTIONS[name])
    if "weights" in options:
        options["weights"] = options["weights"][: shape[1]]
    training = Training(
        tmp_path, shifted(shape), ["P"], ort_training.GammaCrossEntropyLoss(**options)
    )
    assert training.module.input_names() == ["x", "labels", "gamma"]
    for _ in range(3):  # γ is another at each step
        feeds = problem(shape, options)
        loss, gradients = training.loss_and_gradients(*feeds)
        wanted_loss, wanted_grad = expected(*feeds, **of_the_node(options))
        assert loss.tobytes() == wanted_loss.tobytes()
        assert gradients["P"].tobytes() == wanted_grad.tobytes()
        assert np.array_equal(training.evaluate(*feeds), loss)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("shape", [(7, 5), (3, 4, 5), (2, 3, 2, 5)], ids=str)
def test_options_with_the_classes_last(tmp_path, shape, name):
    options = {"axis": -1, **OPTIONS[name]}
    training = Training(
        tmp_path, shifted(shape), ["P"], ort_training.GammaCrossEntropyLoss(**options)
    )
    feeds = problem(shape, options)
    loss, gradients = training.loss_and_gradients(*feeds)
    wanted_loss, wanted_grad = expected(*feeds, **of_the_node(options), axis=-1)
    assert loss.tobytes() == wanted_loss.tobytes()
    assert gradients["P"].tobytes() == wanted_grad.tobytes()


class Weighted(onnxblock.Block):
    """Σ w · loss / N of each row's loss, w being an input."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.loss = ort_training.GammaCrossEntropyLoss(reduction="none", **options)
        self.multiply = onnxblock.blocks.Mul()
        self.mean = onnxblock.blocks.ReduceMean(keepdims=False)

    def build(self, scores: str) -> str:
        rows = self.loss(scores)
        graph = self.base.graph
        (info,) = (info for info in graph.value_info if info.name == rows)
        weights = graph.input.add()
        weights.CopyFrom(info)
        weights.name = "row_weights"
        return self.mean(self.multiply(rows, "row_weights"))


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((7, 5), 1), ((3, 5, 4), 1), ((2, 5, 3, 2), 1), ((3, 4, 5), -1), ((1, 5), 1), ((4, 1), 1)],
    ids=str,
)
@pytest.mark.parametrize("options", [{}, {"gamma_per_row": True, "ignore_index": -100}], ids=str)
def test_a_loss_per_row_weighted_by_hand(tmp_path, shape, axis, options):
    """The gradient that comes from above differs from row to row."""
    options = {"axis": axis, **options}
    training = Training(tmp_path, shifted(shape), ["P"], Weighted(**options))
    scores, labels, gamma = problem(shape, options)
    weights = RNG.uniform(-1, 2, size=labels.shape).astype(np.float32)
    loss, gradients = training.loss_and_gradients(scores, labels, gamma, weights)
    rows, grad = expected(
        scores, labels, gamma, reduction="none", axis=axis, **of_the_node(options)
    )
    upstream = np.expand_dims(weights / weights.size, axis)
    np.testing.assert_allclose(loss, (weights * rows).mean(), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(gradients["P"], upstream * grad, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("dtype", "error"), [("float64", 1e-7), ("float16", 2.0**-10)])
def test_mixed_precision(tmp_path, dtype, error, reduction):
    """Scores of another type than parameters and loss, which this runtime has in float32 alone."""
    forward = shifted((7, 5))
    elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    forward.graph.node[0].output[0] = "sum"
    forward.graph.node.append(helper.make_node("Cast", ["sum"], ["scores"], to=elem_type))
    forward.graph.output[0].type.tensor_type.elem_type = elem_type
    weights = np.arange(1.0, 6.0)
    options = {"reduction": reduction, "weights": weights}
    training = Training(tmp_path, forward, ["P"], ort_training.GammaCrossEntropyLoss(**options))
    scores, labels, gamma = problem((7, 5), {})
    loss, gradients = training.loss_and_gradients(scores, labels, gamma)
    wanted_loss, _ = expected(scores.astype(dtype), labels, gamma, **options)
    options["reduction"] = "mean" if reduction == "mean" else "sum"  # what is trained
    _, wanted_grad = expected(scores.astype(dtype), labels, gamma, **options)
    assert loss.dtype == gradients["P"].dtype == np.float32
    np.testing.assert_allclose(loss, wanted_loss, rtol=error)
    np.testing.assert_allclose(gradients["P"], wanted_grad, rtol=error, atol=error)


def test_a_loss_that_is_no_scalar_is_trained_as_its_sum(tmp_path):
    loss = ort_training.GammaCrossEntropyLoss(reduction="none")
    training = Training(tmp_path, shifted((7, 5)), ["P"], loss)
    feeds = problem((7, 5), {})
    rows, gradients = training.loss_and_gradients(*feeds)
    assert rows.tobytes() == expected(*feeds, reduction="none")[0].tobytes()
    assert gradients["P"].tobytes() == expected(*feeds, reduction="sum")[1].tobytes()


@pytest.mark.parametrize("opset", [12, 13, 14, 15, 17, 18, 19, 20, 21])
def test_opsets(tmp_path, opset):
    forward = shifted((7, 5), opset=opset)
    training = Training(tmp_path, forward, ["P"], Weighted())
    scores, labels, gamma = problem((7, 5), {})
    weights = np.ones(7, np.float32)
    _, gradients = training.loss_and_gradients(scores, labels, gamma, weights)
    wanted = expected(scores, labels, gamma)[1]
    np.testing.assert_allclose(gradients["P"], wanted, rtol=1e-6, atol=1e-9)


def test_what_a_block_appends():
    """All that a model needs is in it, whatever this onnx can infer."""
    with onnxblock.base(two_heads(RNG, 4, 5, 3)) as handle:
        name = ort_training.GammaCrossEntropyLoss(ignore_index=3)("scores1", "y", "knob")
        model = onnx.ModelProto()
        model.CopyFrom(handle.model)
    (node,) = (node for node in model.graph.node if node.domain == gce.onnx.DOMAIN)
    assert node.op_type == gce.onnx.OP_TYPE
    assert list(node.input) == ["scores1", "y", "knob"]
    assert len(node.output) == 2 and node.output[0] == name
    shapes = {
        info.name: [dim.dim_param or dim.dim_value for dim in info.type.tensor_type.shape.dim]
        for info in (*model.graph.input, *model.graph.value_info)
    }
    assert shapes == {
        "x": ["N", 4],
        "y": ["N"],
        "knob": [],
        node.output[0]: [],
        node.output[1]: ["N", 3],
    }
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17), (gce.onnx.DOMAIN, 1)]


def test_labels_and_gamma_that_the_model_has(tmp_path):
    """Computed in the graph: γ grows with the step, to 1 in a thousand."""
    forward = shifted((7, 5))
    make, graph = helper.make_node, forward.graph
    graph.node.extend(
        [
            make("Mul", ["step", "thousandth"], ["ramp"]),
            make("Min", ["ramp", "one"], ["knob"]),
            make("Sub", ["base", "seven"], ["y"]),
        ]
    )
    constants = {"thousandth": 0.001, "one": 1.0, "seven": np.array(7)}
    for name, value in constants.items():
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    graph.input.extend(
        [
            helper.make_tensor_value_info("step", TensorProto.DOUBLE, []),
            helper.make_tensor_value_info("base", TensorProto.INT64, ["N"]),
        ]
    )

    class Loss(onnxblock.Block):
        def __init__(self) -> None:
            super().__init__()
            self.loss = ort_training.GammaCrossEntropyLoss()

        def build(self, scores: str) -> str:
            return self.loss(scores, "y", "knob")

    training = Training(tmp_path, forward, ["P"], Loss())
    assert training.module.input_names() == ["x", "step", "base"]
    scores, labels, _ = problem((7, 5), {})
    for step in (0.0, 300.0, 2000.0):
        loss, gradients = training.loss_and_gradients(scores, np.array(step), labels + 7)
        wanted = expected(scores, labels, np.array(min(step * 0.001, 1.0)))
        assert loss == wanted[0] and np.array_equal(gradients["P"], wanted[1])


WRONG: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (ValueError, 'reduction = "avg", expected "mean"', {"reduction": "avg"}),
    (ValueError, 'value = "x", expected "primitive"', {"value": "x"}),
    (ValueError, "threshold = 2, expected 0 <= threshold <= 1", {"threshold": 2.0}),
    (ValueError, "label_smoothing = -1, expected 0 <=", {"label_smoothing": -1.0}),
    (TypeError, "ignore_index has type float, expected int", {"ignore_index": 1.5}),
    (ValueError, "axis = 2, expected 1 or -1", {"axis": 2}),
    (TypeError, "labels_dtype = 'uint8', expected one of int64, int32", {"labels_dtype": "uint8"}),
    (TypeError, "gamma_dtype = 'int64', expected one of float, double", {"gamma_dtype": "int64"}),
    (
        TypeError,
        "labels_dtype = 'int64', expected one of float, double",
        {"labels_dtype": "int64", "probabilities": True},
    ),
    (
        ValueError,
        "ignore_index = 1, expected none, or a negative one",
        {"ignore_index": 1, "probabilities": True},
    ),
    (ValueError, "softcap = -1, expected a finite number > 0", {"softcap": -1.0}),
    (
        ValueError,
        "shift = 1, expected 0 for reduction = 'none': the gradient of each row's loss",
        {"shift": 1, "reduction": "none"},
    ),
    (TypeError, "weights has type str, expected an array", {"weights": "w"}),
]


@pytest.mark.parametrize(("error", "message", "options"), WRONG, ids=[case[1] for case in WRONG])
def test_wrong_options(error, message, options):
    """When the block is made, not when it is used."""
    with pytest.raises(error) as raised:
        ort_training.GammaCrossEntropyLoss(**options)
    assert message in str(raised.value)


USED_WRONGLY: list[tuple[type[Exception], str, dict[str, Any], tuple[str, ...]]] = [
    (ValueError, "logits = 'y', expected a value of the model", {}, ("y",)),
    (TypeError, "labels_name = 'x' is tensor(float) of the model", {}, ("scores", "x")),
    (
        TypeError,
        "labels_name = 'ids' is tensor(int64) of the model",
        {"probabilities": True},
        ("scores", "ids"),
    ),
    (TypeError, "gamma_name = 'ids' is tensor(int64)", {}, ("scores", "labels", "ids")),
    (TypeError, "logits = 'ids' has type int64, expected float16", {}, ("ids",)),
    (ValueError, "logits = 'flat' has 1 dimensions, expected at least 2", {}, ("flat",)),
    (ValueError, "weights has shape (4,), expected (5,)", {"weights": np.ones(4)}, ("scores",)),
    (TypeError, "weights has dtype <U1, expected numbers", {"weights": ["a"] * 5}, ("scores",)),
]


@pytest.mark.parametrize(
    ("error", "message", "options", "names"), USED_WRONGLY, ids=[case[1] for case in USED_WRONGLY]
)
def test_wrong_uses(error, message, options, names):
    forward = shifted((7, 5))
    forward.graph.input.extend(
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["N", 5]),
            helper.make_tensor_value_info("flat", TensorProto.FLOAT, ["N"]),
        ]
    )
    with onnxblock.base(forward), pytest.raises(error) as raised:
        ort_training.GammaCrossEntropyLoss(**options)(*names)
    assert message in str(raised.value)


def test_a_second_output_is_not_taken_for_labels(tmp_path):
    """onnxblock hands all outputs of the model to the loss unless it is told which."""
    forward, loss = two_heads(RNG, 4, 5, 3), ort_training.GammaCrossEntropyLoss()
    with pytest.raises(TypeError, match=r"'scores1' is tensor\(float\).*loss_input_names"):
        Training(tmp_path, forward, ["W"], loss)
    training = Training(tmp_path, forward, ["W"], loss, loss_input_names=["scores0"])
    assert training.module.input_names() == ["x", "labels", "gamma"]


def test_arrays_that_do_not_fit_are_errors(tmp_path):
    training = Training(tmp_path, shifted((7, 5)), ["P"], ort_training.GammaCrossEntropyLoss())
    scores, labels, gamma = problem((7, 5), {})
    for wrong, message in [
        ((scores, np.full(7, 5), gamma), "targets[0] = 5, expected 0 <= target < 5"),
        ((scores, labels, np.array(1.5)), "gamma = 1.5, expected 0 <= gamma <= 1"),
        ((scores, labels, np.array(0.5, np.float32)), "Unexpected input data type"),
        ((scores, labels.astype(np.int32), gamma), "Unexpected input data type"),
    ]:
        with pytest.raises(RuntimeError) as raised:
            training.module(*wrong)
        assert message in str(raised.value)
