"""Which initializers are trained, and which of them are several in truth."""

from __future__ import annotations

import warnings
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper, numpy_helper, parser

from gce.onnx._parameters import parameters_of
from gce.onnx._restore import restore_parameters
from gce.onnx.training import training_graph

RNG = np.random.default_rng(0)
W, V = RNG.normal(size=(3, 3)).astype(np.float32), RNG.normal(size=(3, 3)).astype(np.float32)


def forward(
    nodes: str, arrays: dict[str, npt.NDArray[Any]], x: str = "float", logits: str = "float"
) -> onnx.ModelProto:
    """A model from x to logits, each [N, 3], with these initializers."""
    model = parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]>'
        f"graph ({x}[N,3] x) => ({logits}[N,3] logits) {{ {nodes} }}"
    )
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    model.graph.initializer.extend(tensors)
    return model


def trained(model: onnx.ModelProto, **arguments: Any) -> list[str]:
    graph = training_graph(model, **arguments)
    assert set(graph.parameters) <= set(graph.carried) & set(graph.initial)
    return sorted(graph.parameters)


# --- which are trained --------------------------------------------------------------------------

SCORES = "h = MatMul(x, w)\n"


@pytest.mark.parametrize(
    ("nodes", "name", "array"),
    [
        (SCORES + "logits = Add(h, u)", "u", np.float32([0, 0, -np.inf])),
        (SCORES + "logits = Add(h, u)", "u", np.float32([0, 0, np.nan])),
        (SCORES + "logits = Add(h, u)", "u", np.float32([0, 0, np.finfo(np.float32).min])),
        (SCORES + "logits = Mul(h, u)", "u", np.float32(0.5)),
        (SCORES + "logits = Mul(h, u)", "u", np.float32([[0.5]])),
        (
            SCORES + "c = Greater(h, x)\n logits = Where(u, h, x)",
            "u",
            np.array([True, False, True]),
        ),
        (SCORES + "logits = Gather <axis = 1> (h, u)", "u", np.array([2, 1, 0])),
        (SCORES + "l = Cast <to = 1> (u)\n logits = Add(h, l)", "u", np.int32([1, 2, 3])),
        (
            SCORES + "i = Constant <value_ints = [0, 1, 2]> ()\n d = Constant <value_int = 3> ()\n"
            "o = OneHot(i, d, u)\n logits = MatMul(h, o)",
            "u",
            np.float32([0, 1]),
        ),
        (
            SCORES + "a = Constant <value_ints = [1, 2]> ()\n b = Unsqueeze(h, a)\n"
            "c = Resize(b, , u)\n d = Squeeze(c, a)\n s = Constant <value_ints = [0, 3]> ()\n"
            "logits = Reshape(d, s)",
            "u",
            np.float32([1, 1, 1, 1]),
        ),
    ],
    ids=["-inf", "nan", "lowest", "scalar", "one", "bool", "indices", "int", "one-hot", "scales"],
)
def test_constants_are_not_trained(nodes: str, name: str, array: npt.NDArray[Any]) -> None:
    assert trained(forward(nodes, {"w": W, name: np.asarray(array)})) == ["w"]


def test_statistics_are_not_trained() -> None:
    arrays = {"g": np.float32([1, 2, 3]), "b": np.float32([3, 1, 2])}
    arrays |= {"mean": np.float32([0, 1, 2]), "var": np.float32([1, 2, 4])}
    model = forward("logits = BatchNormalization(x, g, b, mean, var)", arrays)
    assert trained(model) == ["b", "g"]


def test_what_the_logits_do_not_need_is_not_trained() -> None:
    model = forward("logits = MatMul(x, w)\n other = MatMul(x, v)", {"w": W, "v": V})
    assert trained(model) == ["w"]
    with pytest.raises(ValueError, match=r"parameters has 'v', expected initializers that the "):
        trained(model, parameters=["v"])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_types_are_kept(dtype: Any) -> None:
    name = {np.float32: "float", np.float64: "double"}[dtype]
    graph = training_graph(forward("logits = MatMul(x, w)", {"w": W.astype(dtype)}, name, name))
    types = {v.name: v.type.tensor_type.elem_type for v in graph.model.graph.input}
    assert types["w"] == helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    assert graph.initial["w"].dtype == dtype
    np.testing.assert_array_equal(graph.initial["w"], W)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_refused(dtype: Any) -> None:
    """By name, and before it is left untrained in silence."""
    half = W.astype(dtype)
    model = forward("c = Cast <to = 1> (w)\n logits = MatMul(x, c)", {"w": half})
    name = {"float16": "float16", "bfloat16": "bfloat16"}[np.dtype(dtype).name]
    message = f"parameters: 'w' has type {name}, expected float or double"
    with pytest.raises(TypeError, match=message):
        training_graph(model)
    with pytest.raises(TypeError, match=message):
        training_graph(model, parameters=["w"])
    with pytest.raises(ValueError, match="model has no parameters to train"):
        training_graph(model, frozen=["w"])


TWO = "h = MatMul(x, w)\n t = Tanh(h)\n l = MatMul(t, v)\n logits = Mul(l, s)"
ARRAYS = {"w": W, "v": V, "s": np.float32([2.0])}


def test_parameters_and_frozen() -> None:
    model = forward(TWO, ARRAYS)
    assert trained(model) == ["v", "w"]
    assert trained(model, frozen=["w"]) == ["v"]
    assert trained(model, parameters=["w"]) == ["w"]
    assert trained(model, parameters=iter(["s", "w"])) == ["s", "w"]  # of one element, if named
    assert trained(model, parameters=["v"], frozen=["w"]) == ["v"]


def test_what_is_frozen_costs_nothing() -> None:
    """Nothing is computed for it: the gradient ends at what is trained."""
    model = forward(TWO, ARRAYS)

    def products(**arguments: Any) -> int:
        nodes = training_graph(model, **arguments).model.graph.node
        return sum(node.op_type in ("MatMul", "Gemm") for node in nodes)

    assert (products(), products(frozen=["v"]), products(frozen=["w"])) == (5, 4, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"parameters": "w"}, TypeError, "parameters = 'w', expected several names"),
        ({"frozen": "w"}, TypeError, "frozen = 'w', expected several names"),
        ({"tied": "w"}, TypeError, "tied = 'w', expected several names"),
        (
            {"parameters": ["w", "u"]},
            ValueError,
            r"parameters has 'u', expected initializers that the logits depend on: \['w', 'v', 's'",
        ),
        ({"frozen": ["x"]}, ValueError, "frozen has 'x', expected initializers"),
        ({"tied": ["t"]}, ValueError, "tied has 't', expected initializers"),
        ({"parameters": [0]}, ValueError, "parameters has 0, expected initializers"),
        (
            {"parameters": ["w", "v"], "frozen": ["v"]},
            ValueError,
            "parameters and frozen both have 'v'",
        ),
        ({"parameters": []}, ValueError, "model has no parameters to train"),
        ({"frozen": ["w", "v"]}, ValueError, "model has no parameters to train"),
    ],
)
def test_errors(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        training_graph(forward(TWO, ARRAYS), **arguments)


# --- which are several --------------------------------------------------------------------------

ONES = np.ones(3, np.float32)


def split(model: onnx.ModelProto, tied: tuple[str, ...] = ()) -> dict[str, list[str]]:
    """Names of the initializers that are read, and the operators that read each."""
    before = onnx.ModelProto()
    before.CopyFrom(model)
    restore_parameters(model, tied)
    onnx.checker.check_model(model, full_check=True)
    names = [tensor.name for tensor in model.graph.initializer]
    assert len(set(names)) == len(names)
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for tensor in before.graph.initializer:
        assert np.array_equal(arrays[tensor.name], numpy_helper.to_array(tensor))
    return {
        name: [node.op_type for node in model.graph.node if name in node.input]
        for name in arrays
        if any(name in node.input for node in model.graph.node)
    }


NORMS = (
    "a = LayerNormalization(x, one, zero)\n b = LayerNormalization(a, one, zero)\n"
    "c = Mul(b, one)\n logits = MatMul(c, w)"
)


def norms() -> onnx.ModelProto:
    return forward(NORMS, {"one": ONES, "zero": 0 * ONES, "w": W})


def test_each_node_gets_its_ones_and_zeros() -> None:
    assert split(norms()) == {
        "one": ["LayerNormalization"],
        "one/0": ["LayerNormalization"],
        "one/1": ["Mul"],
        "zero": ["LayerNormalization"],
        "zero/0": ["LayerNormalization"],
        "w": ["MatMul"],
    }


def test_tied_stay_one() -> None:
    found = split(norms(), tied=("one",))
    assert found["one"] == ["LayerNormalization", "LayerNormalization", "Mul"]
    assert found["zero"] == found["zero/0"] == ["LayerNormalization"]


def test_new_names_are_new() -> None:
    """Also where the model has the name that would be next."""
    model = norms()
    model.graph.node[0].output[0] = model.graph.node[1].input[0] = "one/0"
    assert {"one", "one/1", "one/2"} <= set(split(model))


def test_other_arrays_and_one_reader_stay() -> None:
    nodes = "a = MatMul(x, w)\n b = MatMul(a, w)\n c = Mul(b, half)\n d = Mul(c, half)\n"
    nodes += "e = Mul(d, one)\n i = Gather <axis = 1> (e, zero)\n j = Gather <axis = 1> (i, zero)\n"
    arrays = {"w": W, "half": np.float32(0.5), "one": ONES, "zero": np.zeros(3, np.int64)}
    model = forward(nodes + "logits = Identity(j)", arrays)
    assert set(split(model)) == {"w", "half", "one", "zero"}


def test_a_node_that_reads_it_twice() -> None:
    found = split(forward("h = MatMul(x, one)\n logits = Add(h, h)", {"one": np.ones((3, 3), "f")}))
    assert found == {"one": ["MatMul"]}
    found = split(forward("s = Add(one, one)\n logits = Mul(x, s)", {"one": ONES}))
    assert found == {"one": ["Add"], "one/0": ["Add"]}


def identities(source: str, new: str, modules: tuple[str, str]) -> onnx.ModelProto:
    """As PyTorch's older exporter writes two equal weights, with the modules of their readers."""
    nodes = "i = Identity(w)\n h = MatMul(x, w)\n t = Tanh(h)\n logits = MatMul(t, i)"
    model = forward(nodes, {"w": W})
    for node in model.graph.node:
        names = {"w": source, "i": new}
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    model.graph.initializer[0].name = source
    model.graph.node[1].name, model.graph.node[3].name = (f"{m}/MatMul" for m in modules)
    model.producer_name = "pytorch"
    return model


@pytest.mark.parametrize(
    ("source", "new", "modules", "several"),
    [
        ("a.weight", "b.weight", ("/a", "/b"), True),
        ("gain1", "gain2", ("", ""), True),  # two parameters of one module
        ("onnx::MatMul_1", "onnx::MatMul_2", ("/layers/layers.0/a", "/layers/layers.1/a"), True),
        ("onnx::MatMul_1", "onnx::MatMul_2", ("/a", "/a"), False),  # a module that is called twice
    ],
)
def test_identities(source: str, new: str, modules: tuple[str, str], several: bool) -> None:
    found = split(identities(source, new, modules))
    if several:
        assert found == {source: ["MatMul"], new: ["MatMul"]}
    else:
        assert found == {source: ["Identity", "MatMul"]}
    for producer, tied in (("pytorch", (source,)), ("another", ())):
        model = identities(source, new, modules)
        model.producer_name = producer
        assert split(model, tied=tied) == {source: ["Identity", "MatMul"]}


def test_identities_of_biases_that_are_zeros() -> None:
    """Several of one module, which is called twice: each is read at its place in both calls."""
    nodes = "h = Add(x, b)\n i = Add(h, c)\n j = Add(i, d)\n k = Add(j, e)\n logits = Add(k, f)"
    copies = "\n".join(f"{name} = Identity(b)" for name in "cdef")
    model = forward(f"{copies}\n{nodes}", {"b": 0 * ONES})
    model.producer_name = "pytorch"
    names = {"c": "onnx::Add_1", "d": "onnx::Add_2", "e": "onnx::Add_3", "f": "f"}
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    places = ["/a/Add", "/a/Add_1", "/a_1/Add", "/a_1/Add_1", "/b/Add"]
    for node, place in zip(model.graph.node[4:], places, strict=True):
        node.name = place
    restore_parameters(model)
    made = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type != "Add"}
    reading = [node.input[1] for node in model.graph.node if node.op_type == "Add"]
    assert [made.get(name, name) for name in reading] == [
        "b",
        "onnx::Add_1",
        "b",
        "onnx::Add_1",
        "f",
    ]


def test_identity_that_is_an_output_stays() -> None:
    model = forward(
        "h = MatMul(x, w)\n logits = Add(h, b)\n copy = Identity(b)", {"w": W, "b": ONES}
    )
    model.graph.output.append(helper.make_tensor_value_info("copy", onnx.TensorProto.FLOAT, [3]))
    model.producer_name = "pytorch"
    assert split(model) == {"w": ["MatMul"], "b": ["Add", "Identity"]}


# As PyTorch's newer exporter writes it.

TARGETS = "pkg.torch.export.ExportedProgram.graph_signature"
FOLDED = "pkg.onnxscript.optimizer.folded_from"
SCOPES = "pkg.torch.onnx.name_scopes"


def noted(
    nodes: list[tuple[str, str, str]],
    arrays: dict[str, npt.NDArray[Any]],
    targets: str,
    folded: dict[str, list[str]] | None = None,
    **attributes: Any,
) -> onnx.ModelProto:
    """A chain of nodes: operator, what it reads besides, and its module.

    `targets` are the names that the parameters have in the module, `folded` what arrays came of.
    """
    model = forward("logits = Identity(x)", arrays)
    del model.graph.node[:]
    for i, (op_type, names, module) in enumerate(nodes):
        inputs = [f"h{i}" if i else "x", *names.split()]
        output = "logits" if i == len(nodes) - 1 else f"h{i + 1}"
        node = model.graph.node.add()
        node.CopyFrom(helper.make_node(op_type, inputs, [output], **attributes))
        scopes = ["", *([module] if module else []), op_type]
        node.metadata_props.add(key=SCOPES, value=str(scopes))
    model.producer_name = "pytorch"
    model.graph.metadata_props.add(
        key=TARGETS, value="\n".join(f"p: PARAMETER target='{name}'" for name in targets.split())
    )
    for name, sources in (folded or {}).items():
        info = helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        info.metadata_props.add(key=FOLDED, value=str(sources))
        model.graph.value_info.append(info)
    return model


def readers(model: onnx.ModelProto, tied: tuple[str, ...] = ()) -> dict[str, list[int]]:
    """The parameters, and the numbers of the nodes that read each."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of parameters that are nowhere
        split(model, tied)
    return {
        name: [i for i, node in enumerate(model.graph.node) if name in node.input]
        for name in parameters_of(model)
    }


NORM = "LayerNormalization"


@pytest.mark.parametrize(
    ("nodes", "arrays", "targets", "expected"),
    [
        pytest.param(
            [(NORM, "a.w a.b", "a"), (NORM, "a.w a.b", "c")],
            {"a.w": ONES, "a.b": 0 * ONES},
            "a.w a.b c.w c.b",
            {"a.w": [0], "a.b": [0], "c.w": [1], "c.b": [1]},
            id="two that begin equal",
        ),
        pytest.param(
            [(NORM, "a.w", "a"), (NORM, "a.w", "a")],
            {"a.w": ONES},
            "a.w",
            {"a.w": [0, 1]},
            id="one that is called twice",
        ),
        pytest.param(
            [(NORM, "c.w", "a"), (NORM, "c.w", "c")],
            {"c.w": ONES},
            "a.w c.w",
            {"c.w": [0, 1]},
            id="one of two names",
        ),
        pytest.param(
            [("MatMul", "a.w", "a"), ("MatMul", "a.w", "c")],
            {"a.w": W},
            "a.w c.w",
            {"a.w": [0], "c.w": [1]},
            id="copies of random weights",
        ),
        pytest.param(
            [("Mul", "g", ""), ("Tanh", "", ""), ("Mul", "g", "")],
            {"g": ONES},
            "g g2",
            {"g": [0], "g2": [2]},
            id="two of one module, in order",
        ),
        pytest.param(
            [("BatchNormalization", "a.w a.b a.b a.w", "a"), (NORM, "a.w a.b", "c")],
            {"a.w": ONES, "a.b": 0 * ONES},
            "a.w a.b c.w c.b",
            {"a.w": [0], "a.b": [0], "c.w": [1], "c.b": [1]},
            id="statistics",
        ),
        pytest.param(
            [("Mul", "a.g", "a"), ("Mul", "a.g", "a"), ("Mul", "a.g", "c"), ("Mul", "a.g", "c")],
            {"a.g": ONES},
            "a.g a.h c.g c.h",
            {"a.g": [0], "a.h": [1], "c.g": [2], "c.h": [3]},
            id="two of each module, in order",
        ),
        pytest.param(
            [(NORM, "a.w", "a"), (NORM, "a.w", "c"), (NORM, "a.w", "c")],
            {"a.w": ONES},
            "a.w c.w",
            {"a.w": [0], "c.w": [1, 2]},
            id="one of two that begin equal is called twice",
        ),
        pytest.param(
            [("Mul", "g", ""), ("Tanh", "", ""), ("Mul", "g", "")],
            {"g": W[0]},
            "g g2",
            {"g": [0, 2]},
            id="one of one module, read twice: random ones are not equal",
        ),
        pytest.param(
            [
                ("Add", "a.b", "a"),
                (NORM, "c.w a.b", "c"),
                (NORM, "c.w a.b", "d"),
            ],
            {"a.b": 0 * ONES, "c.w": ONES},
            "a.b c.w c.b d.w d.b",
            {"a.b": [0], "c.w": [1], "c.b": [1], "d.w": [2], "d.b": [2]},
            id="biases of several kinds",
        ),
        pytest.param(
            [("Mul", "gain", ""), (NORM, "gain shift", "n")],
            {"gain": ONES, "shift": 0 * ONES},
            "gain shift n.w n.b",
            {"gain": [0], "shift": [], "n.w": [1], "n.b": [1]},
            id="other names, in order",
        ),
        pytest.param(
            [(NORM, "a.w", "a"), (NORM, "a.w", "plain")],
            {"a.w": ONES},
            "a.w",
            {"a.w": [0]},
            id="a normalization without parameters",
        ),
        pytest.param(
            [(NORM, "a.w", "a"), (NORM, "a.w", "")],
            {"a.w": ONES},
            "a.w",
            {"a.w": [0]},
            id="a normalization of a function",
        ),
        pytest.param(
            [("Mul", "g", ""), (NORM, "g", ""), ("Tanh", "", "")],
            {"g": ONES},
            "g",
            {"g": [0]},
            id="a normalization of a function beside a gain",
        ),
        pytest.param(
            [(NORM, "g", ""), (NORM, "g", "")],
            {"g": ONES},
            "g",
            {"g": [0, 1]},
            id="a function with a parameter, twice",
        ),
        pytest.param(
            [
                ("MatMul", "b.n.w", "a.n"),
                ("MatMul", "b.n.w", "a.m"),
                ("MatMul", "b.n.w", "b.n"),
                ("MatMul", "b.n.w", "b.m"),
            ],
            {"b.n.w": W},
            "a.n.w a.m.w b.n.w b.m.w",
            {"b.n.w": [0, 2], "b.m.w": [1, 3]},
            id="a module of two names with copies in it",
        ),
        pytest.param(
            [("Gemm", "a.weight", "a"), ("Gemm", "c.weight", "c")],
            {"a.weight": W, "c.weight": V},
            "a.weight a.bias c.weight",
            {"a.weight": [0], "c.weight": [1], "a.bias": [0]},
            id="a bias that was dropped",
        ),
        pytest.param(
            [("Gemm", "m.a.weight", "m"), ("Gemm", "m.a.weight", "m")],
            {"m.a.weight": W},
            "m.a.weight m.a.bias",
            {"m.a.weight": [0, 1], "m.a.bias": [0, 1]},
            id="a dropped bias of a function, called twice",
        ),
        pytest.param(
            [("Add", "buffer", ""), ("Mul", "two", ""), ("Mul", "t", "")],
            {"buffer": ONES, "two": np.float32([2]), "t": np.float32(3)},
            "t",
            {"t": [2]},
            id="what is no parameter, and one of a single element",
        ),
    ],
)
def test_what_is_noted(
    nodes: list[tuple[str, str, str]],
    arrays: dict[str, npt.NDArray[Any]],
    targets: str,
    expected: dict[str, list[int]],
) -> None:
    assert readers(noted(nodes, arrays, targets)) == expected


def test_what_is_noted_of_folded_ones() -> None:
    """A parameter is what was made of one; copies of it are so too, by other names."""
    nodes = [("MatMul", "val", "a"), ("MatMul", "val", "c"), ("Mul", "k", "")]
    folded = {"val": ["a.weight"], "k": ["one", "two"]}
    model = noted(nodes, {"val": W, "k": V[0]}, "a.weight c.weight", folded)
    assert readers(model) == {"val": [0], "val/0": [1]}
    assert readers(model) == {"val": [0], "val/0": [1]}  # it stays so
    assert readers(noted(nodes, {"val": W, "k": V[0]}, "a.weight c.weight", folded), ("val",)) == {
        "val": [0, 1]
    }


@pytest.mark.parametrize(
    ("op_type", "weight", "size", "attributes"),
    [
        ("Gemm", (3, 3), 3, {}),
        ("Gemm", (3, 4), 4, {}),
        ("Gemm", (4, 3), 4, {"transB": 1}),
        ("Conv", (4, 3, 1), 4, {}),
        ("ConvTranspose", (3, 4, 1), 4, {}),
        ("ConvTranspose", (3, 2, 1), 6, {"group": 3}),
    ],
)
def test_sizes_of_dropped_biases(
    op_type: str, weight: tuple[int, ...], size: int, attributes: dict[str, int]
) -> None:
    """Also of a normalization that was folded into the weight, and had the bias."""
    arrays = {"c.weight": RNG.normal(size=weight).astype(np.float32)}
    model = noted([(op_type, "c.weight", "n")], arrays, "c.weight n.bias", **attributes)
    restore_parameters(model)
    bias = next(t for t in model.graph.initializer if t.name == "n.bias")
    assert not numpy_helper.to_array(bias).any() and list(bias.dims) == [size]
    assert list(model.graph.node[0].input) == ["x", "c.weight", "n.bias"]


def test_a_node_that_was_merged_is_repeated() -> None:
    """As the Split of the weights of two layers that begin equal."""
    nodes = [("MatMul", "first", "a"), ("MatMul", "first", "c"), ("MatMul", "second", "c")]
    model = noted(nodes, {"a.w": np.concatenate([W, V])}, "a.w c.w")
    split = helper.make_node("Split", ["a.w"], ["first", "second"], num_outputs=2)
    model.graph.node.insert(0, split)
    restore_parameters(model)
    onnx.checker.check_model(model, full_check=True)
    splits = {node.output[0]: node for node in model.graph.node if node.op_type == "Split"}
    assert {node.input[0] for node in splits.values()} == {"a.w", "c.w"}
    one, other, third = (n.input[1] for n in model.graph.node if n.op_type == "MatMul")
    assert splits[one].input[0] == "a.w" and splits[other].input[0] == "c.w"
    assert third == splits[other].output[1]


@pytest.mark.parametrize("ones", [ONES, W[0]])
def test_a_buffer_that_was_merged_is_no_parameter(ones: npt.NDArray[Any]) -> None:
    nodes = [(NORM, "n.w", "n"), ("Mul", "n.w", ""), ("Mul", "n.w", "")]
    model = noted(nodes, {"n.w": ones}, "n.w")
    assert readers(model)["n.w"] == [0, 1, 2]  # a function that reads what is its module's
    model = noted(nodes, {"n.w": ones}, "n.w")
    model.graph.metadata_props[0].value += "\nb: BUFFER target='scale' persistent=True"
    # Random ones are not equal by chance.
    assert readers(model)["n.w"] == ([0] if ones is ONES else [0, 1, 2])


def test_parameters_that_are_not_in_the_model() -> None:
    nodes = [("MatMul", "a.w", "a"), ("MatMul", "d.w", "c")]
    model = noted(nodes, {"a.w": W, "d.w": V}, "a.w b c.w d.w e.w")
    # c.w is another name of d.w, which its module reads.
    with pytest.warns(UserWarning, match=r"lacks the parameters \['b', 'e.w'\], which are not"):
        restore_parameters(model)


# Of both.


@pytest.mark.parametrize(
    ("older", "first", "second", "tied"),
    [
        (True, "a.weight", "onnx::MatMul_1", True),
        (True, "onnx::MatMul_1", "onnx::MatMul_2", True),
        (True, "a.weight", "c.weight", False),
        (False, "a.weight", "val", True),
        (False, "a.weight", "c.weight", False),
    ],
)
def test_transpositions(older: bool, first: str, second: str, tied: bool) -> None:
    """What an exporter folded is computed again; what has a name of its own is itself."""
    nodes = [("MatMul", first, "a"), ("MatMul", second, "c")]
    model = noted(nodes, {first: W, second: W.T}, "c.weight a.weight", {"val": ["a.weight"]})
    if older:
        del model.graph.metadata_props[:], model.graph.value_info[:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        restore_parameters(model)
    onnx.checker.check_model(model, full_check=True)
    made = [node for node in model.graph.node if node.op_type == "Transpose"]
    assert [list(node.input) for node in made] == ([[first]] if tied else [])
    assert len(model.graph.initializer) == (1 if tied else 2)
    assert [node.input[1] for node in model.graph.node[-2:]] == [first, second]


@pytest.mark.parametrize("sources", [["a.weight"], ["c.weight"]])
def test_the_same_folded_twice(sources: list[str]) -> None:
    """As of a module that is called twice, if it is too large for the exporter to merge."""
    nodes = [("MatMul", "val_0", "a"), ("MatMul", "val_1", "a")]
    folded = {"val_0": ["a.weight"], "val_1": sources}
    model = noted(nodes, {"val_0": W, "val_1": W}, "a.weight c.weight", folded)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        restore_parameters(model)
    assert len(model.graph.initializer) == (1 if sources == ["a.weight"] else 2)


def test_the_model_that_is_given_stays() -> None:
    model = norms()
    before = model.SerializeToString()
    training_graph(model)
    assert model.SerializeToString() == before
