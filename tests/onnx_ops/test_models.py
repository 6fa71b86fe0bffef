"""Building models: `loss_node`, `attach_loss`, the schema, the reference evaluator, `register`."""

from __future__ import annotations

import doctest
import importlib
import inspect
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from op_models import (
    ELEM_TYPES,
    FLOATS,
    Value,
    bits,
    make_model,
    make_session,
    numpy_op,
    op_model,
    op_model_for,
    problem,
    runtime_version,
    session_options,
    values_of,
)

import gce.onnx

RNG = np.random.default_rng(12)
MODULES = ["gce._onnx_library"]
MODULES += [f"gce.onnx.{name}" for name in ("_node", "_attach", "_function", "_reference")]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    found = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert found.attempted and not found.failed


def test_the_readmes_example_runs():
    readme = Path(__file__).parents[2] / "README.md"
    section = readme.read_text(encoding="utf-8").partition("## Inside ONNX models")[2]
    (example, *_) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    exec(example, {})  # its last line is an assertion


def test_public_functions_say_all_there_is_to_say():
    for name in ("library_path", "register", "loss_node", "attach_loss", "attach_function"):
        function = getattr(gce.onnx, name)
        sections = set(re.findall(r"^ *(\w[\w ]*)\n *-{3,}$", function.__doc__, re.MULTILINE))
        assert sections >= {"Returns", "Raises", "Examples"}, name
        for parameter in inspect.signature(function).parameters:
            assert re.search(rf"^ *(\w+, )*{parameter}\b", function.__doc__, re.MULTILINE), (
                parameter
            )


def linear(dims=("N", 5), dtype="float32", opset=17, name="logits"):
    """A forward model whose logits are its input plus one."""
    elem_type = ELEM_TYPES[np.dtype(dtype)]
    one = numpy_helper.from_array(np.array(1, dtype), "one")
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "one"], [name])],
        "forward",
        [helper.make_tensor_value_info("x", elem_type, dims)],
        [helper.make_tensor_value_info(name, elem_type, dims)],
        [one],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def dims_of(value):
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


# --- attach_loss ----------------------------------------------------------------------------------


def test_a_forward_model_gets_loss_and_gradient():
    forward = linear()
    before = forward.SerializeToString()
    model = gce.onnx.attach_loss(forward, grad="grad", ignore_index=-100)
    assert forward.SerializeToString() == before
    assert [value.name for value in model.graph.input] == ["x", "labels", "gamma"]
    assert [value.name for value in model.graph.output] == ["logits", "loss", "grad"]
    assert [dims_of(value) for value in model.graph.input] == [["N", 5], ["N"], []]
    assert [dims_of(value) for value in model.graph.output] == [["N", 5], [], ["N", 5]]
    x = RNG.normal(size=(6, 5)).astype("f4")
    labels = np.array([0, 1, 2, 3, -100, 4])
    found = make_session(model).run(None, {"x": x, "labels": labels, "gamma": np.array(0.3)})
    assert bits(found[1:]) == bits(numpy_op(x + np.float32(1), labels, 0.3, ignore_index=-100))


@pytest.mark.parametrize("options", [{}, {"shift": 1, "softcap": 2.0}], ids=str)
@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("function", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("dims", [["N", 5], ["B", 5, 4], ["B", "T", 5], [2, 5, 3, 5]], ids=str)
def test_the_class_axis(dims, axis, reduction, function, probabilities, options):
    if axis == 1 and dims[1] == "T":
        dims = ["B", 5, "T"]
    shape = [{"N": 7, "B": 2, "T": 3}.get(dim, dim) for dim in dims]
    x = RNG.normal(size=shape).astype("f4")
    rows = [*shape[:-1]] if axis == -1 else [shape[0], *shape[2:]]
    labels = RNG.integers(0, shape[axis], size=rows)
    if probabilities:
        labels = RNG.random(shape).astype("f4")
    gamma = RNG.random(rows)
    weights = RNG.random(shape[axis])
    options = {"reduction": reduction, "label_smoothing": 0.25, **options}
    model = gce.onnx.attach_loss(
        linear(dims),
        grad="grad",
        axis=axis,
        probabilities=probabilities,
        gamma_per_row=True,
        weights=weights,
        function=function,
        **options,
    )
    feeds = {"x": x, "labels": labels, "gamma": gamma}
    _, loss, grad = make_session(model, library=not function).run(None, feeds)
    arguments = {**options, "weight": weights.astype("f4"), "axis": axis, "ignore_index": None}
    expected = gce.loss_and_grad(x + np.float32(1), labels, gamma, **arguments)
    if function:
        np.testing.assert_allclose(loss, expected[0], rtol=2e-6, atol=2e-6)
        np.testing.assert_allclose(grad, expected[1], rtol=2e-6, atol=2e-6)
    else:
        assert bits([loss, grad]) == bits(expected)
    row_dims = dims[:-1] if axis == -1 else [dims[0], *dims[2:]]
    assert dims_of(model.graph.output[1]) == (row_dims if reduction == "none" else [])
    assert dims_of(model.graph.output[2]) == dims


@pytest.mark.parametrize("axis", [1, -1])
def test_an_empty_batch(axis):
    model = gce.onnx.attach_loss(linear(["B", "T", 5]), grad="grad", axis=axis, reduction="none")
    rows = (0, 4) if axis == -1 else (0, 5)
    feeds = {"x": np.zeros((0, 4, 5), "f4"), "labels": np.zeros(rows, "i8"), "gamma": np.array(0.5)}
    _, loss, grad = make_session(model).run(None, feeds)
    assert loss.shape == rows and grad.shape == (0, 4, 5)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_logits_of_every_type_anywhere_in_the_model(dtype):
    forward = linear()
    to = ELEM_TYPES[dtype]
    forward.graph.node.append(helper.make_node("Cast", ["logits"], ["inner"], to=to))
    forward.graph.node.append(helper.make_node("Cast", ["inner"], ["more"], to=TensorProto.FLOAT))
    forward.graph.output.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, ["N", 5]))
    model = gce.onnx.attach_loss(forward, logits="inner", loss="cost", weights=np.arange(5.0))
    assert model.graph.output[-1].name == "cost"
    assert model.graph.output[-1].type.tensor_type.elem_type == to
    if dtype != ml_dtypes.bfloat16:  # no array of numpy's comes out as bfloat16
        x, labels = RNG.normal(size=(6, 5)).astype("f4"), np.arange(6) % 5
        feeds = {"x": x, "labels": labels, "gamma": np.array(0.3)}
        (cost,) = make_session(model).run(["cost"], feeds)
        inner = (x + np.float32(1)).astype(dtype)
        expected = numpy_op(inner, labels, 0.3, np.arange(5.0).astype(dtype))
        assert bits([cost]) == bits(expected[:1])


def test_weights_may_be_an_input():
    model = gce.onnx.attach_loss(linear(), weights="c")
    assert [value.name for value in model.graph.input] == ["x", "labels", "gamma", "c"]
    assert dims_of(model.graph.input[-1]) == [5]
    x, labels, c = RNG.normal(size=(6, 5)).astype("f4"), np.arange(6) % 5, np.arange(5, dtype="f4")
    feeds = {"x": x, "labels": labels, "gamma": np.array(0.3), "c": c}
    (loss,) = make_session(model).run(["loss"], feeds)
    assert bits([loss]) == bits(numpy_op(x + np.float32(1), labels, 0.3, c)[:1])


def test_types_and_names_of_the_inputs():
    model = gce.onnx.attach_loss(
        linear(), labels="y", gamma="g", labels_dtype="int32", gamma_dtype=np.float32
    )
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    assert types == {"x": TensorProto.FLOAT, "y": TensorProto.INT32, "g": TensorProto.FLOAT}


@pytest.mark.parametrize(
    ("logits_dtype", "labels_dtype", "expected"),
    [
        ("float32", None, TensorProto.FLOAT),
        ("float64", None, TensorProto.DOUBLE),
        ("float16", None, TensorProto.FLOAT),
        ("float32", "float64", TensorProto.DOUBLE),
        ("float16", np.float16, TensorProto.FLOAT16),
        ("float64", ml_dtypes.bfloat16, TensorProto.BFLOAT16),
    ],
)
def test_the_type_of_probabilities(logits_dtype, labels_dtype, expected):
    model = gce.onnx.attach_loss(
        linear(dtype=logits_dtype), probabilities=True, labels_dtype=labels_dtype
    )
    labels = model.graph.input[1]
    assert labels.type.tensor_type.elem_type == expected and dims_of(labels) == ["N", 5]
    make_session(model)  # there is a kernel for it


def test_a_softcap_of_none_is_none():
    found = {
        a.name: helper.get_attribute_value(a)
        for a in gce.onnx.loss_node("s", "l", "g", softcap=None).attribute
    }
    assert found["softcap"] == 0.0


def test_a_path_is_a_model(tmp_path):
    path = tmp_path / "forward.onnx"
    onnx.save(linear(), path)
    for model in (path, str(path)):
        attached = gce.onnx.attach_loss(model)
        assert attached.SerializeToString() == gce.onnx.attach_loss(linear()).SerializeToString()


def test_two_losses_in_one_model():
    first = gce.onnx.attach_loss(linear(), logits="logits", ignore_index=-1)
    model = gce.onnx.attach_loss(
        first, logits="logits", labels="labels2", gamma="gamma2", loss="loss2", function=True
    )
    feeds = {"x": RNG.normal(size=(6, 5)).astype("f4")}
    feeds |= {"labels": np.zeros(6, "i8"), "labels2": np.ones(6, "i8")}
    feeds |= {"gamma": np.array(0.0), "gamma2": np.array(1.0)}
    logits, loss, loss2 = make_session(model).run(None, feeds)
    assert loss == gce.loss(logits, feeds["labels"], 0.0)
    assert loss2 == gce.loss(logits, feeds["labels2"], 1.0)
    again = make_session(model, library=False).run(None, feeds)
    np.testing.assert_allclose(again[1:], [loss, loss2], rtol=1e-6)


def test_names_inside_do_not_collide():
    forward = linear(["B", "T", 5])
    forward.graph.node.append(helper.make_node("Identity", ["x"], ["loss/0"]))
    forward.graph.node.append(helper.make_node("Identity", ["x"], ["loss/1"]))
    gce.onnx.attach_loss(forward, axis=-1, grad="grad", weights=np.ones(5), reduction="none")


def integer_logits():
    forward = linear()
    forward.graph.node.append(helper.make_node("Cast", ["logits"], ["i"], to=TensorProto.INT32))
    return forward


WRONG = [
    (TypeError, "model has type dict, expected onnx.ModelProto", {"model": {}}),
    (
        ValueError,
        "logits is not given, expected the name of a value of the model, whose outputs",
        {"outputs": 2},
    ),
    (ValueError, "logits = 'nothing', expected a value of the model", {"logits": "nothing"}),
    (ValueError, "labels = 'x', expected a name that nothing in the model has", {"labels": "x"}),
    (ValueError, "loss = 'logits', expected a name that", {"loss": "logits"}),
    (ValueError, "gamma = 'labels', expected a name that", {"gamma": "labels"}),
    (ValueError, "grad = 'loss', expected a name that", {"grad": "loss"}),
    (ValueError, "weights = 'x', expected a name that", {"weights": "x"}),
    (ValueError, "gamma = '', expected a name that", {"gamma": ""}),
    (TypeError, "labels has type int, expected str", {"labels": 3}),
    (TypeError, "grad has type bool, expected str", {"grad": True}),
    (TypeError, "loss has type NoneType, expected str", {"loss": None}),
    (ValueError, "axis = 0, expected 1 or -1", {"axis": 0}),
    (ValueError, "axis = 2, expected 1 or -1", {"axis": 2}),
    (TypeError, "labels_dtype = 'uint8', expected one of int64, int32", {"labels_dtype": "uint8"}),
    (TypeError, "labels_dtype = 'foo', expected one of int64", {"labels_dtype": "foo"}),
    (TypeError, "labels_dtype = 'M8[s]', expected one of int64", {"labels_dtype": "M8[s]"}),
    (TypeError, "labels_dtype = 'float32', expected one of int64", {"labels_dtype": "float32"}),
    (
        TypeError,
        "labels_dtype = 'int64', expected one of float, double, float16, bfloat16",
        {"labels_dtype": "int64", "probabilities": True},
    ),
    (
        ValueError,
        "ignore_index = 2, expected none, or a negative one, for targets that are probabilities",
        {"ignore_index": 2, "probabilities": True},
    ),
    (TypeError, "axis has type str, expected int", {"axis": "1"}),
    (TypeError, "axis has type float, expected int", {"axis": math.nan}),
    (TypeError, "logits has type list, expected str", {"logits": ["logits"]}),
    (ValueError, "softcap = -1, expected a finite number > 0", {"softcap": -1.0}),
    (ValueError, "softcap = 1e-60 is 0 as a float32", {"softcap": 1e-60}),
    (ValueError, "softcap = 1e+60 is inf as a float32", {"softcap": 1e60}),
    (ValueError, "z_loss = 1e+60 is inf as a float32", {"z_loss": 1e60}),
    (ValueError, "z_loss = inf, expected a finite number >= 0", {"z_loss": math.inf}),
    (ValueError, "softcap = inf, expected a finite number", {"softcap": 10**400}),
    (TypeError, "softcap has shape (1,), expected a number", {"softcap": [1.0]}),
    (ValueError, "shift = -1, expected >= 0", {"shift": -1}),
    (ValueError, "shift = 2147483648, expected a 32-bit", {"shift": 2**31}),
    (TypeError, "shift has type float, expected int", {"shift": 1.0}),
    (TypeError, "gamma_dtype = <class 'int'>, expected one of float", {"gamma_dtype": int}),
    (TypeError, "gamma_dtype = None, expected one of float", {"gamma_dtype": None}),
    (TypeError, "gamma_dtype = <class 'numpy.longdouble'>", {"gamma_dtype": np.longdouble}),
    (ValueError, "weights has shape (4,), expected (5,)", {"weights": np.ones(4)}),
    (ValueError, "weights has shape (5, 1), expected (5,)", {"weights": np.ones((5, 1))}),
    (TypeError, "weights has dtype complex128, expected numbers", {"weights": [1j] * 5}),
    (TypeError, "weights has dtype <U1, expected numbers", {"weights": ["a"] * 5}),
    (
        ValueError,
        "weights[1] = 1e+300, expected a number that float",
        {"weights": [1, 1e300, 1, 1, 1]},
    ),
    (TypeError, "threshold has shape (1,), expected a number", {"threshold": [0.1]}),
    (ValueError, 'reduction = "avg", expected "mean"', {"reduction": "avg"}),
    (ValueError, 'value = "x", expected "primitive"', {"value": "x"}),
    (ValueError, "threshold = 2, expected 0 <= threshold <= 1", {"threshold": 2.0}),
    (ValueError, "label_smoothing = -1, expected 0 <=", {"label_smoothing": -1.0}),
    (TypeError, "threshold has dtype <U1, expected float16", {"threshold": "a"}),
    (TypeError, "ignore_index has type float, expected int", {"ignore_index": 1.5}),
    (ValueError, "ignore_index = 9223372036854775808, expected a 64-bit", {"ignore_index": 2**63}),
    (TypeError, "logits = 'i' has type int32, expected float16", {"cast": True, "logits": "i"}),
    (ValueError, "logits = 'logits' has 1 dimensions, expected at least 2", {"dims": [5]}),
    (ValueError, "model has opset 14, expected 15 or newer", {"opset": 14, "function": True}),
    (
        ValueError,
        "model has opset 13, expected 14 or newer for axis = -1 of 3 dimensions",
        {"opset": 13, "dims": ["B", "T", 5], "axis": -1},
    ),
]


@pytest.mark.parametrize(("error", "message", "options"), WRONG, ids=[case[1] for case in WRONG])
def test_wrong_options(error, message, options):
    options = dict(options)
    model = linear(options.pop("dims", ["N", 5]), opset=options.pop("opset", 17))
    model = options.pop("model", model)
    if options.pop("outputs", 1) == 2:
        model.graph.output.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 5]))
    if options.pop("cast", False):
        model = integer_logits()
    with pytest.raises(error) as raised:
        gce.onnx.attach_loss(model, **options)
    assert message in str(raised.value)


def test_another_version_of_the_domain():
    forward = linear()
    forward.opset_import.append(helper.make_opsetid(gce.onnx.DOMAIN, 5))
    with pytest.raises(ValueError, match=r"model imports ai\.gce version 5, expected 1 or none"):
        gce.onnx.attach_loss(forward)


@pytest.mark.parametrize("opset", [7, 9, 11, 13])
def test_old_models(opset):
    """From the time before IR 4, when an initializer was an input too."""
    forward = linear(opset=opset)
    forward.ir_version = 3
    forward.graph.input.append(helper.make_tensor_value_info("one", TensorProto.FLOAT, []))
    model = gce.onnx.attach_loss(forward, weights=np.arange(5.0))
    x, labels = RNG.normal(size=(6, 5)).astype("f4"), np.arange(6) % 5
    (loss,) = make_session(model).run(["loss"], {"x": x, "labels": labels, "gamma": np.array(0.3)})
    expected = numpy_op(x + np.float32(1), labels, 0.3, np.arange(5, dtype="f4"))
    assert bits([loss]) == bits(expected[:1])


def test_the_other_name_of_the_standard_domain():
    model = gce.onnx.attach_loss(linear())
    model.opset_import[0].domain = "ai.onnx"
    assert gce.onnx.attach_function(model).functions[0].opset_import[0].version == 17


@pytest.mark.parametrize("load", [True, False])
def test_tensors_in_files_of_their_own(load, tmp_path):
    forward = linear()
    forward.graph.node.insert(0, helper.make_node("MatMul", ["x", "W"], ["y"]))
    forward.graph.node[1].input[0] = "y"
    weights = RNG.normal(size=(5, 5)).astype("f4")
    forward.graph.initializer.append(numpy_helper.from_array(weights, "W"))
    path = tmp_path / "forward.onnx"
    onnx.save(forward, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    model = path if load else onnx.load(path, load_external_data=False)
    attached = tmp_path / "attached.onnx"
    attached.write_bytes(gce.onnx.attach_loss(model, grad="grad").SerializeToString())
    session = onnxruntime.InferenceSession(
        str(attached), session_options(), providers=["CPUExecutionProvider"]
    )
    x, labels = RNG.normal(size=(6, 5)).astype("f4"), np.arange(6) % 5
    logits, *found = session.run(None, {"x": x, "labels": labels, "gamma": np.array(0.3)})
    assert bits(found) == bits(numpy_op(logits, labels, 0.3))


def test_an_invalid_forward_model_is_the_checkers_to_refuse():
    forward = linear()
    forward.graph.node.append(helper.make_node("NoSuchOp", ["x"], ["z"]))
    with pytest.raises(onnx.checker.ValidationError, match="NoSuchOp"):
        gce.onnx.attach_loss(forward, logits="logits")
    forward = linear()
    forward.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 77
    with pytest.raises(ValueError, match=r"^model is inconsistent: .*dimension"):
        gce.onnx.attach_loss(forward, logits="logits")


# --- loss_node, schema ----------------------------------------------------------------------------


def test_a_node_says_what_it_was_told():
    node = gce.onnx.loss_node(
        "s", "l", "g", weights="w", loss="a", grad="b", ignore_index=3, threshold=0.5, name="n"
    )
    assert (list(node.input), list(node.output), node.name) == ([*"slgw"], ["a", "b"], "n")
    found = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    assert found["ignore_index"] == 3 and found["threshold"] == 0.5
    assert found["reduction"] == b"mean" and found["value"] == b"primitive"
    plain = gce.onnx.loss_node("s", "l", "g")
    assert list(plain.output) == ["loss"] and "ignore_index" not in {
        a.name for a in plain.attribute
    }


def test_defaults_are_those_of_the_schema():
    """A node without attributes is the node that `loss_node` makes without options."""
    arguments = problem(np.random.default_rng(1), FLOATS[0], (5, 4))
    inputs = values_of(arguments)
    outputs = [Value("loss", FLOATS[0], [])]
    bare = helper.make_node(gce.onnx.OP_TYPE, list(arguments), ["loss"], domain=gce.onnx.DOMAIN)
    full = gce.onnx.loss_node(*arguments)
    for node in (bare, full):
        session = make_session(make_model([node], inputs, outputs))
        assert bits(session.run(None, arguments)) == bits(numpy_op(**arguments)[:1])
    schema = onnx.defs.get_schema(gce.onnx.OP_TYPE, 1, gce.onnx.DOMAIN)
    for attribute in full.attribute:
        assert helper.get_attribute_value(attribute) == helper.get_attribute_value(
            schema.attributes[attribute.name].default_value
        )


def inferred(dims=("N", 5, "T"), outputs=("loss", "grad"), probabilities=False, **attributes):
    labels_dtype = np.dtype("float32" if probabilities else "int64")
    types = {"scores": FLOATS[2], "labels": labels_dtype, "gamma": FLOATS[1]}
    node = helper.make_node(
        gce.onnx.OP_TYPE, list(types), list(outputs), domain=gce.onnx.DOMAIN, **attributes
    )
    labels_dims = dims if probabilities else [dims[0], *dims[2:]]
    shapes = {"scores": list(dims), "labels": list(labels_dims), "gamma": []}
    model = make_model([node], [Value(n, types[n], shapes[n]) for n in types], [])
    model.graph.output.extend(helper.make_empty_tensor_value_info(n) for n in outputs if n)
    return model


needs_inference = pytest.mark.skipif(
    not hasattr(onnx.defs.OpSchema, "set_type_and_shape_inference_function"),
    reason="this onnx takes no shape inference from Python",
)


@needs_inference
@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_onnx_infers_types_and_shapes(reduction, probabilities):
    model = onnx.shape_inference.infer_shapes(
        inferred(reduction=reduction, probabilities=probabilities),
        check_type=True,
        strict_mode=True,
    )
    loss, grad = model.graph.output
    assert loss.type.tensor_type.elem_type == grad.type.tensor_type.elem_type == TensorProto.FLOAT16
    assert loss.type.tensor_type.HasField("shape")
    assert dims_of(loss) == (["N", "T"] if reduction == "none" else [])
    assert dims_of(grad) == ["N", 5, "T"]


@needs_inference
def test_onnx_infers_a_node_of_one_output():
    (loss,) = onnx.shape_inference.infer_shapes(inferred(outputs=["loss"])).graph.output
    assert dims_of(loss) == []


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_runtime_infers_types_and_shapes(reduction, probabilities):
    session = make_session(inferred(reduction=reduction, probabilities=probabilities))
    loss, grad = session.get_outputs()
    assert loss.type == grad.type == "tensor(float16)"
    # Older runtimes would crash on other models, were they given a function for it: see register().
    if runtime_version() >= (1, 24):
        assert loss.shape == (["N", "T"] if reduction == "none" else [])
    if runtime_version() >= (1, 28):
        assert grad.shape == ["N", 5, "T"]


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_dimensions_without_a_name_stay_unknown(reduction):
    """Two batches of unknown sizes, whose results feed on: no size may be taken for the other's."""
    nodes, inputs = [], []
    for i in "ab":
        names = [f"scores_{i}", f"labels_{i}", "gamma"]
        nodes.append(
            gce.onnx.loss_node(*names, loss=f"loss_{i}", grad=f"grad_{i}", reduction=reduction)
        )
        inputs += [Value(names[0], FLOATS[0], [None, 5])]
        inputs += [Value(names[1], np.dtype("int64"), [None])]
    nodes.append(helper.make_node("Concat", ["grad_a", "grad_b", "scores_a"], ["grads"], axis=0))
    nodes.append(helper.make_node("Mul", ["grads", "grads"], ["squares"]))
    nodes.append(helper.make_node("Neg", ["loss_a"], ["minus_a"]))
    nodes.append(helper.make_node("Neg", ["loss_b"], ["minus_b"]))
    outputs = [Value("squares", FLOATS[0], [None, 5])]
    dims = [None] if reduction == "none" else []
    outputs += [Value("minus_a", FLOATS[0], dims), Value("minus_b", FLOATS[0], dims)]
    model = make_model(nodes, [*inputs, Value("gamma", FLOATS[1], [])], outputs)
    feeds: dict[str, Any] = {"gamma": np.array(0.5)}
    for i, rows in (("a", 3), ("b", 30)):
        feeds[f"scores_{i}"] = RNG.normal(size=(rows, 5)).astype("f4")
        feeds[f"labels_{i}"] = RNG.integers(0, 5, size=rows)
    squares, minus_a, minus_b = make_session(model).run(None, feeds)
    assert squares.shape == (36, 5)
    for i, found in (("a", minus_a), ("b", minus_b)):
        expected = numpy_op(feeds[f"scores_{i}"], feeds[f"labels_{i}"], 0.5, reduction=reduction)
        assert bits([-found]) == bits(expected[:1])


@pytest.mark.parametrize("probabilities", [False, True])
def test_no_size_is_made_up(probabilities):
    model = inferred(dims=(None, 5, None), reduction="none", probabilities=probabilities)
    for output in make_session(model).get_outputs():
        assert not any(isinstance(dim, int) and dim < 0 for dim in output.shape)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"treshold": 0.5}, "Unrecognized attribute"),
        ({"threshold": 1}, "Mismatched attribute type"),
    ],
)
def test_the_checker_knows_the_attributes(attributes, message):
    types = {"scores": FLOATS[0], "labels": np.dtype("int64"), "gamma": FLOATS[1]}
    ranks = {"scores": 2, "labels": 1, "gamma": 0}
    model = op_model(types, ranks, False, attributes)
    model.graph.output[0].type.tensor_type.shape.CopyFrom(onnx.TensorShapeProto())
    with pytest.raises(onnx.checker.ValidationError, match=message):
        onnx.checker.check_model(model, check_custom_domain=True)


def test_importing_twice_registers_once():
    from gce.onnx import _schema

    _schema.register_schema()
    assert onnx.defs.has(gce.onnx.OP_TYPE, gce.onnx.DOMAIN)


# --- the reference evaluator ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS[:3], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("grad", [False, True])
def test_the_reference_evaluator(dtype, reduction, grad):
    rng = np.random.default_rng(2)
    classes = problem(rng, dtype, (4, 5, 2), weights=True, ignored=-1)
    options = {"reduction": reduction, "ignore_index": -1, "threshold": 0.25}
    options |= {"softcap": 0.5, "shift": 1}
    for arguments in (classes, problem(rng, dtype, (4, 5, 2), dtype, weights=True)):
        model = op_model_for(arguments, grad, **options)
        evaluator = ReferenceEvaluator(model, new_ops=[gce.onnx.ReferenceOp])
        found = evaluator.run(None, arguments)
        assert bits(found) == bits(numpy_op(**arguments, **options)[: len(found)])
        assert len(found) == 1 + grad


# --- register, library_path -----------------------------------------------------------------------


def test_register_returns_its_argument_and_may_be_repeated():
    options = onnxruntime.SessionOptions()
    for _ in range(3):
        assert gce.onnx.register(options) is options
    options.register_custom_ops_library(gce.onnx.library_path())
    arguments = problem(np.random.default_rng(2), FLOATS[0], (4, 5))
    model = op_model_for(arguments)
    for _ in range(2):  # and options serve more than one session
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        assert bits(session.run(None, arguments)) == bits(numpy_op(**arguments))
    assert gce.onnx.register(session_options())


REGISTER_OFTEN = """
import gce.onnx, onnxruntime
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4  # KiB
def cycles(n):
    for _ in range(n):
        gce.onnx.register(onnxruntime.SessionOptions())
cycles(200)
before = resident()
cycles(2000)
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_registering_often_takes_no_memory():
    """The runtime would unload the library with the options, and load it anew each time."""
    done = subprocess.run(
        [sys.executable, "-c", REGISTER_OFTEN], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 2000  # it was 16 MB when the library was unloaded


@pytest.mark.parametrize("wrong", [None, "options", 3])
def test_register_something_else(wrong):
    with pytest.raises(TypeError, match=r"expected onnxruntime\.SessionOptions"):
        gce.onnx.register(wrong)


def test_a_library_that_is_not_there(monkeypatch, tmp_path):
    from gce import _libraries

    monkeypatch.setattr(_libraries, "__file__", str(tmp_path / "_libraries.py"))
    with pytest.raises(FileNotFoundError, match="built without its ONNX operator"):
        gce.onnx.library_path()


WITHOUT_ONNX = """
import sys
sys.modules["onnx"] = None  # as if it were not installed
import gce
assert "gce.onnx" not in sys.modules
import gce.onnx
print(gce.onnx.library_path())
try:
    gce.onnx.loss_node
except ModuleNotFoundError as error:
    print(error)
try:
    gce.onnx.nothing
except AttributeError as error:
    print(error)
import onnxruntime
gce.onnx.register(onnxruntime.SessionOptions())
"""


def test_without_onnx():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_ONNX], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    path, node, nothing = done.stdout.splitlines()
    assert path == gce.onnx.library_path()
    assert (
        node.startswith("gce.onnx.loss_node needs onnx") and "pip install 'gamma-ce[onnx]'" in node
    )
    assert nothing == "module 'gce.onnx' has no attribute 'nothing'"


def test_all_names_are_there():
    assert all(hasattr(gce.onnx, name) for name in gce.onnx.__all__)
    assert dir(gce.onnx) == gce.onnx.__all__


@pytest.mark.parametrize("op_type", ["Identity", "Softmax"])
@pytest.mark.parametrize("inputs", [["z"], ["b"], []])
def test_models_that_are_no_graph_are_refused(inputs, op_type):
    x, *outputs = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in ("x", "z", "b")
    )
    nodes = [
        helper.make_node(op_type, inputs, ["z"]),
        helper.make_node("Identity", ["z"], ["b"]),
    ]
    graph = helper.make_graph(nodes, "cycle", [x], outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    with pytest.raises(ValueError, match="logits is not given"):
        gce.onnx.attach_loss(model)


@pytest.mark.parametrize("name", ["scores", "labels", "gamma", "loss", "weights", "grad", "name"])
def test_names_of_a_node_are_text(name):
    given = {"scores": "a", "labels": "b", "gamma": "c", name: 5}
    with pytest.raises(TypeError, match=f"^{name} has type int, expected str"):
        gce.onnx.loss_node(**given)
