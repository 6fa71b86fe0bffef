"""What is made of onnx-ad's graphs, and of models before it sees them."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ad
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper, parser
from onnx_ad.rules import REVERSE, ZERO_DERIVATIVE
from small_graphs import (
    SHAPES,
    Arrays,
    case,
    differences,
    gradients_of,
    largest_error,
    model_of,
    scatters_that_add,
    session_of,
    with_seed,
)

import gce
from gce.onnx._parameters import FLAT
from gce.onnx.training import SGD, Trainer, UnsupportedOperator, _gradients, training_graph
from gce.onnx.training._gradients import FALSE_ZEROS
from gce.onnx.training._seed_axis import without_seed_axis

# --- gathers of equal indices -------------------------------------------------------------------


@pytest.mark.parametrize("indices", ["Gather(a, i)", "GatherND(a, j)"])
def test_equal_indices_lose_nothing_on_two_threads(indices: str) -> None:
    """ONNX Runtime's ScatterND that adds loses updates here, other ones at each run."""
    rng = np.random.default_rng(0)
    rows, width, count = 3, 64, 40000  # of fewer it makes no two pieces
    text = (
        '<ir_version: 10, opset_import: ["" : 20]>'
        f"graph (float[{rows},{width}] a, int64[N] i) => (float[N,{width}] y)"
        f"<int64[1] last = {{-1}}> {{ j = Unsqueeze(i, last)\n y = {indices} }}"
    )
    model, outputs = with_seed(parser.parse_model(text), ["a"])
    assert not scatters_that_add(model.graph)
    feeds = {
        "a": np.zeros((rows, width), np.float32),
        "i": rng.integers(-rows, rows, count),
        "grad": rng.integers(-9, 10, (count, width)).astype(np.float32),
    }
    expected = np.zeros((rows, width))
    np.add.at(expected, feeds["i"], feeds["grad"])
    session = session_of(model, threads=2)
    for _ in range(8):  # sums of integers, below 2^24: exact in any order
        np.testing.assert_array_equal(session.run(outputs, feeds)[0], expected)
    feeds["grad"] = rng.normal(size=(count, width)).astype(np.float32)
    first = session_of(model).run(outputs, feeds)[0]
    for _ in range(8):
        np.testing.assert_array_equal(session.run(outputs, feeds)[0], first)


# --- the axis of the one seed -------------------------------------------------------------------


def keep_seed_axis(nodes: Iterable[onnx.NodeProto], *rest: Any) -> list[onnx.NodeProto]:
    return list(nodes)


@pytest.mark.parametrize(
    "body",
    [
        "y = Tanh(a)",
        "h = ReduceMean(a, last)\n d = Sub(a, h)\n y = Mul(d, b)",
        "h = Transpose <perm = [1, 0]> (a)\n t = Tanh(h)\n y = MatMul(a, t)",
        "y = Softmax(a)",
        "s = Shape(b)\n h = Reshape(a, s)\n t = Sin(h)\n y = Mul(t, b)",
    ],
)
def test_seed_axis_goes(body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = case(body, "int64[1] last = {-1}", parameters=("a",), a=(2, 3), b=(2, 3))

    def long_nodes() -> int:
        """Nodes of which an input or output has the axis of the seed."""
        model, _ = with_seed(model_of(graph, "static", "double"), ["a"])
        known = onnx.shape_inference.infer_shapes(model).graph
        ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in known.value_info}
        return sum(
            any(ranks.get(name, 0) == 3 for name in (*node.input, *node.output))
            for node in model.graph.node
        )

    without = long_nodes()
    monkeypatch.setattr(_gradients, "without_seed_axis", keep_seed_axis)
    assert without == 0 < long_nodes()


@pytest.mark.parametrize(
    ("node", "axes", "rewritten"),
    [
        ("Reshape", [3, 2, 1], True),
        ("Reshape", [3, 2, -1], True),  # as rules write the number of seeds
        ("Reshape", [1, 2, 3], False),
        ("Reshape", [2, 0, 1], False),
        ("Reshape", [-1, 2, 1], False),
        ("Expand", [4, 2, 3, 1], True),
        ("Expand", [2, 3, 4], False),
        ("ReduceSum", [0, 1], True),
        ("ReduceSum", [-1], False),
        ("ReduceSum", [-2], False),
        ("Unsqueeze", [0, 2], True),
        ("Unsqueeze", [-1], False),
    ],
)
def test_seed_axis_goes_where_it_can(node: str, axes: list[int], rewritten: bool) -> None:
    text = (
        '<ir_version: 10, opset_import: ["" : 20]> graph (double[2,3] x) => (double[] y)'
        f"<int64[1] last = {{-1}}, int64[{len(axes)}] s = {{{str(axes)[1:-1]}}}>"
        f"{{ u = Unsqueeze(x, last)\n v = {node}(u, s)\n y = Mul(v, v) }}"
    )
    model = parser.parse_model(text)
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    fresh = map("name{}".format, itertools.count()).__next__
    nodes = without_seed_axis(model.graph.node, changed.graph.initializer, fresh, ["y"])
    del changed.graph.node[:]
    changed.graph.node.extend(nodes)
    order = [node, "Unsqueeze"] if rewritten else ["Unsqueeze", node]
    assert [made.op_type for made in nodes] == [*order, "Mul"]
    feeds = {"x": np.arange(6.0).reshape(2, 3)}
    expected, found = (session_of(m).run(["y"], feeds)[0] for m in (model, changed))
    np.testing.assert_array_equal(found, expected, strict=True)


# Steps of a random graph: what becomes of h [2, 3], and of the parameter p [3].
STEPS = [
    "{y} = Tanh({x})",
    "{y} = Mul({x}, p)",
    "{y} = Add(p, {x})",
    "{y} = Sub({x}, q)",
    "{y} = Div({x}, r)",
    "{y} = Pow({x}, two)",
    "{y} = Neg({x})",
    "{y} = Softmax <axis = 0> ({x})",
    "{y} = LayerNormalization({x}, p)",
    "{y}s = ReduceSum({x}, last)\n {y} = Mul({x}, {y}s)",
    "{y}m = ReduceMean <keepdims = 0> ({x}, zero)\n {y} = Sub({x}, {y}m)",
    "{y}t = Transpose({x})\n {y}e = Sin({y}t)\n {y} = Transpose <perm = [1, 0]> ({y}e)",
    "{y}u = Unsqueeze({x}, last)\n {y}e = Sin({y}u)\n {y} = Squeeze({y}e, last)",
    "{y}f = Reshape({x}, flat)\n {y}e = Cos({y}f)\n {y} = Reshape({y}e, shape)",
    "{y}c = Concat <axis = 1> ({x}, {x})\n {y} = Slice({y}c, one, four, last)",
    "{y} = MatMul({x}, w)",
    "{y}g = Greater({x}, q)\n {y} = Where({y}g, {x}, p)",
    "{y}o = Unsqueeze(p, zero)\n {y}e = Expand({y}o, sizes)\n {y} = Mul({x}, {y}e)",
    "{y}i = Gather <axis = 1> ({x}, indices)\n {y} = Mul({y}i, p)",
]
GIVEN = (
    "FLOAT two = {2}, int64[1] last = {-1}, int64[1] zero = {0}, int64[1] flat = {-1},"
    "int64[2] shape = {-1, 3}, int64[2] sizes = {2, 3}, int64[1] one = {1}, int64[1] four = {4},"
    "int64[3] indices = {0, 2, 2}"
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(STEPS), min_size=1, max_size=6), st.sampled_from(SHAPES))
def test_seed_axis_makes_no_difference(steps: list[str], shapes: str) -> None:
    names = ["h", *(f"h{i}" for i in range(1, len(steps))), "k"]
    body = [step.format(x=x, y=y) for step, x, y in zip(steps, names[:-1], names[1:], strict=True)]
    body.append("l = Add(k, p)\n m = MatMul(l, w)\n n = Mul(m, q)\n o = Div(n, r)\n y = Mul(o, h)")
    graph = case("\n".join(body), GIVEN, positive="hpr", h=(2, 3), p=(3,), q=(2, 1), r=(), w=(3, 3))
    arrays = graph.arrays()
    grad, expected = differences(graph, arrays)
    found = gradients_of(graph, shapes, "double", arrays, grad)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_gradients, "without_seed_axis", keep_seed_axis)
        long = gradients_of(graph, shapes, "double", arrays, grad)
    # Sums over other axes may be in another order.
    assert largest_error(found, long) <= 1e-13 * len(steps)
    # Differences of what six steps make of values up to 2: see test_rules.py.
    assert largest_error(found, expected) <= 1e-5


# --- what is not differentiated -----------------------------------------------------------------

LOGITS = "graph (float[N,3] x) => (float[N,3] logits) <float[3,3] w = {1,2,3,4,5,6,7,8,9}, %s>"


def forward(nodes: str, given: str = "float one = {1}", opset: int = 20) -> onnx.ModelProto:
    head = f'<ir_version: 10, opset_import: ["" : {opset}, "com.acme" : 1]>'
    return parser.parse_model(f"{head} {LOGITS % given} {{ h = MatMul(x, w)\n {nodes} }}")


@pytest.mark.parametrize(
    ("nodes", "given", "message"),
    [
        ("logits = com.acme.Fancy(h)", "float one = {1}", r"no reverse rule for Fancy \(node 'N'"),
        (
            "logits = com.acme.Relu(h)",
            "float one = {1}",
            "com.acme::Relu node 'N': no rule for an operator of this domain",
        ),
        (
            "s = SequenceConstruct(h)\n logits = SequenceAt(s, i)",
            "int64 i = {0}",
            r"no reverse rule for SequenceAt \(node 'N'",
        ),
        (
            "logits, mask = Dropout(h, ratio, training)",
            "float ratio = {0.5}, bool training = {1}",
            "Dropout node 'N': Dropout with training_mode is not differentiated",
        ),
        (
            "logits, m, v = BatchNormalization <training_mode = 1> (h, g, g, g, g)",
            "float[3] g = {1, 2, 3}",
            "BatchNormalization node 'N': BatchNormalization with training_mode",
        ),
    ],
)
def test_error_names_operator_and_node(nodes: str, given: str, message: str) -> None:
    model = forward(nodes, given)
    model.graph.node[-1].name = "N"
    before = dict(REVERSE)
    with pytest.raises(UnsupportedOperator, match=message):
        training_graph(model)
    assert before == REVERSE


def test_node_without_a_name_is_called_by_its_result() -> None:
    with pytest.raises(UnsupportedOperator, match="Dropout node 'logits'"):
        training_graph(forward("logits = Dropout(h, r, t)", "float r = {0.5}, bool t = {1}"))


def test_operators_beside_the_way_need_no_rule() -> None:
    """Neither what depends on no parameter, nor what the logits do not depend on."""
    model = forward("c = com.acme.Fancy(x)\n logits = Add(h, c)\n d = com.acme.Fancy(h)")
    dims = ["N", 3]
    model.graph.value_info.append(helper.make_tensor_value_info("c", onnx.TensorProto.FLOAT, dims))
    graph = training_graph(model).model.graph
    assert [node.op_type for node in graph.node].count("Fancy") == 1


@pytest.mark.parametrize(
    "nodes",
    [
        *(f"f = {op}(u)\n logits = Add(h, f)" for op in ("Floor", "Ceil", "Round", "Sign")),
        "s = Shape(u)\n e = Expand(one, s)\n logits = Add(h, e)",
        "c = Greater(u, one)\n logits = Where(c, h, one)",
        "i = Cast <to = 7> (u)\n c = Cast <to = 1> (i)\n logits = Add(h, c)",
    ],
)
def test_parameter_without_a_gradient(nodes: str) -> None:
    """It is trained only where it is named, and then that is said."""
    model = forward(nodes, "float one = {1}, float[3] u = {0.5, 1.5, 2.5}")
    with pytest.raises(ValueError, match="parameters has 'u', whose gradient is zero"):
        training_graph(model, parameters=["w", "u"])
    assert training_graph(model).parameters == ("w",)


def test_no_gradient_is_what_onnx_ad_gives_none() -> None:
    """Operators that give no floats of floats stop it by that, whatever their name."""
    flat = set()
    for op_type in filter(onnx.defs.has, ZERO_DERIVATIVE):
        schema = onnx.defs.get_schema(op_type)
        reads, gives = (
            {name for value in values for name in value.types}
            for values in (schema.inputs, schema.outputs)
        )
        if "tensor(float)" in reads & gives:
            flat.add(op_type)
    # A BitCast is of other bits; that of OneHot and Det is not zero in truth.
    assert flat - FLAT == {"BitCast", *FALSE_ZEROS}


@pytest.mark.parametrize(
    ("nodes", "described"),
    [
        ("d = Det(s)\n logits = Mul(h, d)", "Det node 'd'"),
        (
            "i = Constant <value_ints = [0, 1, 2]> ()\n n = Constant <value_int = 3> ()\n"
            "o = OneHot(i, n, u)\n logits = MatMul(h, o)",
            "OneHot node 'o'",
        ),
    ],
)
def test_a_gradient_that_onnx_ad_takes_for_zero(nodes: str, described: str) -> None:
    given = "float[3,3] s = {1, 0, 0, 0, 1, 0, 0, 2, 3}, float[2] u = {0.5, 1.5}"
    model = forward(nodes, given)
    with pytest.raises(UnsupportedOperator, match=f"{described}: it has no gradient in onnx-ad"):
        training_graph(model, parameters=["w", "s" if "Det" in nodes else "u"])
    assert training_graph(model, parameters=["w"]).parameters == ("w",)


def test_threads_have_rules_of_their_own() -> None:
    """The table of rules is one for the process: whoever uses it waits for the other."""
    before = dict(REVERSE)
    model = forward("logits = Tanh(h)")
    expected = training_graph(model).model.SerializeToString()
    found: list[bytes] = []
    threads = [
        threading.Thread(
            target=lambda: found.append(training_graph(model).model.SerializeToString())
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4
    assert before == REVERSE


def test_one_at_a_time_has_the_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second thread that came to onnx-ad before the first is done would have its rules."""
    original, inside = onnx_ad.reverse, threading.Semaphore(1)
    alone: list[bool] = []

    def reverse(*arguments: Any, **options: Any) -> Any:
        alone.append(inside.acquire(blocking=False))
        time.sleep(0.05)  # what another thread would need to come here
        made = original(*arguments, **options)
        if alone[-1]:
            inside.release()
        return made

    monkeypatch.setattr(onnx_ad, "reverse", reverse)
    model = forward("logits = Tanh(h)")
    threads = [threading.Thread(target=training_graph, args=(model,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert alone == [True] * 4


# --- what becomes of a model first --------------------------------------------------------------

X, LABELS = np.random.default_rng(0).normal(size=(5, 3)), np.array([0, 1, 3, 2, 3])
WEIGHTS = np.random.default_rng(1).normal(size=(3, 4))


def check_gradients(model: onnx.ModelProto, inputs: Arrays) -> None:
    """A step of SGD with a learning rate of 1 against differences, in float64."""
    trainer = Trainer(model, optimizer=SGD(), learning_rate=1.0, gamma=0.3)
    assert list(trainer.parameters) == ["W"]
    trainer.step(inputs, LABELS)
    found = WEIGHTS - trainer.parameters["W"]

    free = onnx.ModelProto()
    free.CopyFrom(model)
    free.graph.initializer.remove(next(t for t in free.graph.initializer if t.name == "W"))
    dims = list(WEIGHTS.shape)
    free.graph.input.append(helper.make_tensor_value_info("W", onnx.TensorProto.DOUBLE, dims))
    session, step = session_of(free), 1e-5

    def loss(weights: npt.NDArray[Any]) -> float:
        logits = session.run(["y"], {**inputs, "W": weights})[0]
        return float(gce.loss(logits, LABELS, gamma=0.3))

    expected = np.zeros_like(WEIGHTS)
    for index in np.ndindex(WEIGHTS.shape):
        shift = np.zeros_like(WEIGHTS)
        shift[index] = step
        expected[index] = (loss(WEIGHTS + shift) - loss(WEIGHTS - shift)) / (2 * step)
    assert expected.any()
    assert largest_error({"W": found}, {"W": expected}) <= 1e-8  # see test_rules.py


def double_model(text: str) -> onnx.ModelProto:
    model = parser.parse_model(text)
    model.graph.initializer.append(numpy_helper.from_array(WEIGHTS, "W"))
    return model


@pytest.mark.parametrize("opset", [18, 20])
def test_functions_are_inlined(opset: int) -> None:
    """Those of the model's opset and of others, one in the other."""
    model = double_model(
        f"""<ir_version: 10, opset_import: ["" : 20, "my" : 1]>
        graph (double[N,3] x) => (double[N,4] y) {{ y = my.Dense(x, W) }}
        <domain: "my", opset_import: ["" : 20, "my" : 1]>
        Dense (x, w) => (z) {{ u = MatMul(x, w)\n z = my.Centred(u) }}
        <domain: "my", opset_import: ["" : {opset}]>
        Centred (u) => (z) {{
            m = Tanh(u)\n k = ReduceMean(m)\n z = Sub(m, k)
        }}"""
    )
    check_gradients(model, {"x": X})


def test_functions_that_onnx_cannot_inline() -> None:
    """One whose opset is beyond what onnx knows, though its only operator has not changed."""
    model = double_model(
        """<ir_version: 10, opset_import: ["" : 20, "my" : 1]>
        graph (double[N,3] x) => (double[N,4] y) { h = my.Rise(x)\n y = MatMul(h, W) }
        <domain: "my", opset_import: ["" : 99]> Rise (u) => (z) { z = Relu(u) }"""
    )
    with pytest.raises(ValueError, match=r"^functions of model cannot be inlined: "):
        training_graph(model)


@pytest.mark.parametrize("opset", [9, 11, 13, 15])
def test_older_opsets_are_converted(opset: int) -> None:
    """Operators whose axes were attributes, and a Softmax of all the axes behind one."""
    axes = {9: "<axes = [1]> ", 11: "<axes = [-1]> ", 13: "<axes = [-1]> ", 15: "<axes = [-1]> "}
    split = "Split <axis = 1, split = [3, 1]> (s)" if opset < 13 else "Split <axis = 1> (s, parts)"
    model = double_model(
        f"""<ir_version: 7, opset_import: ["" : {opset}]>
        graph (double[N,3] x) => (double[N,4] y) <int64[2] parts = {{3, 1}}> {{
            h = MatMul(x, W)\n m = ReduceMean {axes[opset]}(h)\n d = Sub(h, m)
            s = Softmax <axis = 1> (d)\n a, b = {split}\n y = Concat <axis = 1> (b, a)
        }}"""
    )
    check_gradients(model, {"x": X})


def test_opset_that_onnx_cannot_convert() -> None:
    """A Gemm that broadcasts, of a matrix whose shape is not known."""
    model = double_model(
        """<ir_version: 7, opset_import: ["" : 6]>
        graph (double[N,3] x, int64[2] s) => (double[N,4] y) <double[4] c = {1,2,3,4}>
        { w = Reshape(W, s)\n y = Gemm <broadcast = 1> (x, w, c) }"""
    )
    message = (
        "model has opset 6, expected 16 or newer, and onnx's version converter cannot raise it: "
    )
    with pytest.raises(ValueError, match=message):
        training_graph(model)


@pytest.mark.parametrize("ir_version", [3, 10])
def test_only_what_the_logits_need_is_an_input(ir_version: int) -> None:
    """Before IR version 4 initializers were inputs too."""
    model = double_model(
        f"""<ir_version: {ir_version}, opset_import: ["" : 20]>
        graph (double[N,3] x, double[N,3] other) => (double[N,4] y, double[N,4] z)
        <double[3,4] V = {{1,2,3,4,5,6,7,8,9,1,2,3}}> {{
            y = MatMul(x, W)\n z = MatMul(other, V)
        }}"""
    )
    if ir_version < 4:
        for tensor in model.graph.initializer:
            value = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            model.graph.input.append(value)
    graph = training_graph(model, logits="y")
    assert graph.inputs == ("x",)
    assert graph.parameters == ("W",)
    assert [v.name for v in graph.model.graph.input][:2] == ["x", "labels"]
