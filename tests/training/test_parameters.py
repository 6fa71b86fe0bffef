"""Which initializers are trained, and which of them are several in truth."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper, numpy_helper, parser

from gce.onnx.training import training_graph
from gce.onnx.training._parameters import MERGED, split_equal

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
    split_equal(model, tied)
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


def test_identity_that_is_an_output_stays() -> None:
    model = forward(
        "h = MatMul(x, w)\n logits = Add(h, b)\n copy = Identity(b)", {"w": W, "b": ONES}
    )
    model.graph.output.append(helper.make_tensor_value_info("copy", onnx.TensorProto.FLOAT, [3]))
    model.producer_name = "pytorch"
    assert split(model) == {"w": ["MatMul"], "b": ["Add", "Identity"]}


def scoped(scopes: list[list[str]], array: npt.NDArray[Any], **inputs: Any) -> onnx.ModelProto:
    """As PyTorch's newer exporter writes it: a chain of MatMul nodes that note their modules."""
    size = len(array)
    nodes, last = [], "x"
    for i in range(len(scopes)):
        out = "logits" if i == len(scopes) - 1 else f"h{i}"
        nodes.append(f"{out} = MatMul({last}, w)")
        last = out
    model = forward("\n".join(nodes), {"w": array})
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[1].dim_value = size
    for node, scope in zip(model.graph.node, scopes, strict=True):
        item = node.metadata_props.add()
        item.key, item.value = "pkg.torch.onnx.name_scopes", str(scope)
    return model


LAYERS = [["", "layers", f"layers.{i}", f"layers.{i}.a", f"linear_{i}"] for i in range(2)]
CALLED = [["", "a", "linear"], ["", "a", "linear_1"]]
SMALL, LARGE = (RNG.normal(size=(size, size)).astype(np.float32) for size in (32, 33))


@pytest.mark.parametrize(
    ("scopes", "array", "several"),
    [
        (LAYERS, SMALL, True),
        (CALLED, SMALL, False),  # the same module, twice
        (LAYERS, LARGE, False),  # too large to have been merged: one by intention
        ([*LAYERS, LAYERS[0]], SMALL, True),
    ],
)
def test_scopes(scopes: list[list[str]], array: npt.NDArray[Any], several: bool) -> None:
    assert SMALL.size <= MERGED < LARGE.size
    found = split(scoped(scopes, array))
    if several:
        assert found == {"w": ["MatMul"] * (len(scopes) - 1), "w/0": ["MatMul"]}
    else:
        assert found == {"w": ["MatMul", "MatMul"]}
    assert set(split(scoped(scopes, array), tied=("w",))) == {"w"}


def test_scopes_of_other_uses() -> None:
    """An embedding that is the last layer's weight too is one parameter."""
    nodes = "t = Cast <to = 7> (x)\n i = ReduceMax <keepdims = 0> (t, axes)\n h = Gather(w, i)\n"
    model = forward(nodes + "logits = MatMul(h, w)", {"w": W, "axes": np.array([1])})
    for node, scope in zip(model.graph.node[2:], (["", "a", "b"], ["", "c", "d"]), strict=True):
        item = node.metadata_props.add()
        item.key, item.value = "pkg.torch.onnx.name_scopes", str(scope)
    assert split(model)["w"] == ["Gather", "MatMul"]


def test_the_model_that_is_given_stays() -> None:
    model = norms()
    before = model.SerializeToString()
    training_graph(model)
    assert model.SerializeToString() == before
