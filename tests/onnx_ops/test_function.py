"""The operator as a function in standard operators: the same results where there is no library."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from op_models import (
    BFLOAT16,
    FLOATS,
    Value,
    bits,
    feeds_of,
    make_model,
    make_session,
    numpy_op,
    problem,
    runtime_version,
    values_of,
)

import gce.onnx

# The newest opset that the runtime, and the oldest that the function runs with.
NEWEST = 20 if runtime_version() < (1, 20) else 21 if runtime_version() < (1, 24) else 23


def session_of(arguments, grad=True, opset=17, library=False, **attributes):
    inputs = values_of(arguments)
    like = {"loss": arguments["scores"][:, 0], "grad": arguments["scores"]}
    if attributes.get("reduction") != "none":
        like["loss"] = np.zeros(())
    names = ["loss", "grad"] if grad else ["loss"]
    outputs = [Value(name, arguments["scores"].dtype, [None] * like[name].ndim) for name in names]
    node = helper.make_node(
        gce.onnx.OP_TYPE, list(arguments), names, domain=gce.onnx.DOMAIN, **attributes
    )
    model = gce.onnx.attach_function(make_model([node], inputs, outputs, opset))
    onnx.checker.check_model(model)
    return make_session(model, library=library)


def run(arguments, **options):
    session = session_of(arguments, **options)
    results = session.run(None, feeds_of(arguments))
    return [r.astype(arguments["scores"].dtype) for r in results]


def assert_close(found, expected, case=""):
    """Within the rounding of float32, or of the scores' own 16 bits."""
    name = expected[0].dtype.name
    # Ours is within 1e-6 (5e-7 for gradients) of the exact value and the function, in float64, at
    # it; 16-bit results are one rounding apart at most: two units in the last place.
    relative = {"float64": 1e-12, "float32": 1.2e-6, "float16": 2.0**-10, "bfloat16": 2.0**-7}[name]
    absolute = {"float64": 1e-14, "float32": 2e-6, "float16": 2e-6, "bfloat16": 2e-6}[name]
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape, case
        np.testing.assert_allclose(
            one.astype("f8"), other.astype("f8"), rtol=relative, atol=absolute, err_msg=str(case)
        )


@pytest.mark.parametrize("opset", range(15, NEWEST + 1))
def test_every_opset(opset):
    rng = np.random.default_rng(1)
    classes = problem(rng, FLOATS[0], (5, 4, 2), weights=True, ignored=-1)
    probabilities = problem(rng, FLOATS[0], (5, 4, 2), FLOATS[0], weights=True)
    for reduction, arguments in itertools.product(("mean", "none"), (classes, probabilities)):
        options = {"reduction": reduction, "ignore_index": -1, "label_smoothing": 0.25}
        options |= {"z_loss": 0.125, "softcap": 4.0, "shift": 1}
        assert_close(run(arguments, opset=opset, **options), numpy_op(**arguments, **options))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_options_combined(dtype):
    chooser, rng = random.Random(9), np.random.default_rng(9)
    choices: dict[str, list[Any]] = {
        "reduction": ["mean", "sum", "none"],
        "value": ["primitive", "surrogate"],
        "threshold": [0.0, 0.25, 1.0],
        "label_smoothing": [0.0, 0.125, 1.0],
        "z_loss": [0.0, 0.125],
        "softcap": [0.0, 0.5, 30.0],
        "shift": [0, 1, 2, 5],
        "ignore_index": [-100, 1],
    }
    for _ in range(100):
        chosen = [name for name in choices if chooser.random() < 0.6]
        options: dict[str, Any] = {name: chooser.choice(choices[name]) for name in chosen}
        labels_dtype = chooser.choice([np.int32, np.int64, *FLOATS])
        if labels_dtype in FLOATS:
            options.pop("ignore_index", None)
        arguments = problem(
            rng,
            dtype,
            chooser.choice([(1, 1), (4, 3), (3, 5, 2), (2, 9, 2, 3), (3, 200)]),
            labels_dtype,
            chooser.choice(FLOATS),
            gamma_per_row=chooser.random() < 0.5,
            weights=chooser.random() < 0.5,
            ignored=options.get("ignore_index"),
            scale=chooser.choice([0.01, 1.0, 8.0]),
        )
        if chooser.random() < 0.3:
            arguments["gamma"] = np.asarray(np.round(arguments["gamma"].astype("f4")))  # 0 or 1
        assert_close(run(arguments, **options), numpy_op(**arguments, **options), options)


@pytest.mark.parametrize("gamma", [0.0, 1e-300, 1e-30, 1e-7, 0.5, 1.0 - 1e-7, 1.0])
def test_the_ends_of_gamma_and_of_p(gamma):
    rows = [[0.0, 40.0], [0.0, -40.0], [0.0, 0.0], [0.0, 700.0], [0.0, 1e30], [1e30, 0.0], [0, 1e4]]
    scores = np.array([*rows, [0.0, -np.inf], [-np.inf, 0.0]])
    arguments = {
        "scores": scores,
        "labels": np.zeros(len(scores), np.int64),
        "gamma": np.array(gamma),
    }
    both = {**arguments, "labels": np.tile([0.75, 0.25], (len(scores), 1))}
    both["labels"][::2] = [1.0, 0.0]
    for threshold, value, case in itertools.product(
        (0.0, 0.25, 1.0), ("primitive", "surrogate"), (arguments, both)
    ):
        options = {"threshold": threshold, "value": value, "reduction": "none"}
        found, expected = run(case, **options), numpy_op(**case, **options)
        # As float32: between 1e-300 and 0 the function may not tell weights apart that both vanish.
        assert_close([r.astype("f4") for r in found], [r.astype("f4") for r in expected], options)


LABELS = [np.array([1, 2, 0, 0]), np.eye(3)[[1, 2, 0, 0]]]


@pytest.mark.parametrize("labels", LABELS, ids=["classes", "probabilities"])
def test_nan_and_infinity_stay_in_their_row(labels):
    inf, nan = np.inf, np.nan
    scores = np.array([[nan, 0, 1], [0, 1, 2], [0, inf, 1], [-inf, -inf, -inf]], "f4")
    arguments = {"scores": scores, "labels": labels, "gamma": np.array(0.5)}
    loss, grad = run(arguments, reduction="none")
    assert np.isnan(loss[[0, 2, 3]]).all() and np.isnan(grad[[0, 2, 3]]).all()
    assert_close([loss[1], grad[1]], [r[1] for r in numpy_op(**arguments, reduction="none")])


@pytest.mark.parametrize("labels", LABELS, ids=["classes", "probabilities"])
def test_capped_infinities_are_numbers(labels):
    inf, nan = np.inf, np.nan
    scores = np.array([[nan, 0, 1], [3e38, 1e-30, 2], [0, inf, 1], [-inf, -inf, -inf]], "f4")
    arguments = {"scores": scores, "labels": labels, "gamma": np.array(0.5)}
    options = {"reduction": "none", "softcap": 2.0}
    loss, grad = run(arguments, **options)
    assert np.isnan(loss).tolist() == [True, False, False, False] and np.isnan(grad[0]).all()
    expected = numpy_op(**arguments, **options)
    assert_close([loss[1:], grad[1:]], [r[1:] for r in expected])


@pytest.mark.parametrize("labels_dtype", [np.int64, np.float32], ids=str)
@pytest.mark.parametrize("shape", [(4, 3), (3, 3, 4), (2, 3, 2, 4)], ids=str)
def test_what_no_row_predicts(shape, labels_dtype):
    """NaN and what is out of range, where only an unshifted loss would see it, change nothing."""
    arguments = problem(
        np.random.default_rng(5), FLOATS[0], shape, labels_dtype, gamma_per_row=True
    )
    spoilt = {name: array.copy() for name, array in arguments.items()}
    last = 0 if len(shape) == 2 else len(shape) - 1  # the scores' last axis of rows
    np.moveaxis(spoilt["scores"], last, 0)[-2:] = np.nan
    np.moveaxis(spoilt["labels"], last if labels_dtype == np.float32 else -1, 0)[:2] = -7
    spoilt["gamma"][..., :2] = 3.0
    for reduction in ("mean", "sum", "none"):
        options = {"reduction": reduction, "shift": 2}
        expected = numpy_op(**arguments, **options)
        assert_close(run(arguments, **options), expected)
        assert_close(run(spoilt, **options), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.25])
@pytest.mark.parametrize("z_loss", [0.0, 0.25])
def test_masked_classes(smoothing, z_loss):
    scores = np.array([[0.0, -np.inf, 1.0], [2.0, -np.inf, 1.0]], "f4")
    soft = np.array([[0.75, 0.0, 0.25], [0.5, 0.0, 0.5]])
    options = {"label_smoothing": smoothing, "z_loss": z_loss, "reduction": "none"}
    for labels, gamma in itertools.product((np.array([0, 2]), soft), (0.0, 0.5)):
        arguments = {"scores": scores, "labels": labels, "gamma": np.array(gamma)}
        assert_close(run(arguments, **options), numpy_op(**arguments, **options))
        arguments["weights"] = np.array([1.0, 0.0, 2.0], "f4")  # no weight, no part of the sum
        found = run(arguments, **options)
        assert np.isfinite(found[0]).all()
        assert_close(found, numpy_op(**arguments, **options))


@pytest.mark.parametrize("labels_dtype", [np.int64, np.float32], ids=str)
@pytest.mark.parametrize("shape", [(0, 5), (2, 5, 0)], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_no_rows(shape, reduction, labels_dtype):
    arguments = problem(np.random.default_rng(0), FLOATS[0], shape, labels_dtype, weights=True)
    for shift in (0, 1):
        options = {"reduction": reduction, "shift": shift}
        assert_close(run(arguments, **options), numpy_op(**arguments, **options))


def test_nothing_counted_is_zero():
    arguments = problem(np.random.default_rng(0), FLOATS[0], (4, 3))
    arguments["labels"][:] = 7
    loss, grad = run(arguments, ignore_index=7)
    assert loss == 0 and not grad.any()


def test_weights_that_cancel_are_not_nothing():
    arguments = {
        "scores": np.array([[1.0, 2.0], [3.0, 0.0]], np.float32),
        "labels": np.array([0, 1]),
        "gamma": np.array(0.5),
        "weights": np.array([1.0, -1.0], np.float32),
    }
    loss, grad = run(arguments)
    assert np.isinf(loss) and loss == numpy_op(**arguments)[0]
    assert not np.isfinite(grad).any()
    arguments["weights"][:] = 0.0
    assert not any(result.any() for result in run(arguments))
    arguments["scores"][0, 0] = np.nan  # no weight makes a number of that
    for one, other in zip(run(arguments), numpy_op(**arguments), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"z_loss": 0.5}], ids=str)
def test_a_mean_without_weight_is_zero(options):
    # Also where other classes, or z-loss, would count: as of a batch in which all is ignored.
    arguments = {
        "scores": np.array([[0.0, 1.0, 2.0]], np.float32),
        "labels": np.array([0]),
        "gamma": np.array(0.5),
        "weights": np.array([0.0, 1.0, 1.0], np.float32),
    }
    for one, other in zip(run(arguments, **options), numpy_op(**arguments, **options), strict=True):
        assert not one.any() and not other.any()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_an_infinite_loss_without_weight_is_none(reduction):
    arguments = {
        "scores": np.array([[0.0, -np.inf, 1.0], [0.0, 1.0, 2.0]], np.float32),
        "labels": np.array([1, 0]),
        "gamma": np.array(0.0),
        "weights": np.array([1.0, 0.0, 1.0], np.float32),
    }
    found = run(arguments, reduction=reduction)
    assert np.isfinite(found[0]).all()
    assert_close(found, numpy_op(**arguments, reduction=reduction))


def test_z_loss_of_scores_near_the_largest():
    arguments = {
        "scores": np.array([[1e308, 0.0]]),
        "labels": np.array([1]),
        "gamma": np.array(0.0),
    }
    options = {"z_loss": 0.5}
    for one, other in zip(run(arguments, **options), numpy_op(**arguments, **options), strict=True):
        np.testing.assert_allclose(one, other)


@pytest.mark.parametrize("imports", [[], [("", 17)]], ids=["none", "17"])
def test_weights_beside_a_models_function_without_any(imports):
    """The function needs standard operators then, and may not have said of which version."""
    weighted = problem(np.random.default_rng(3), FLOATS[0], (6, 5), weights=True)
    names = list(weighted)
    inner = helper.make_function(
        "mine",
        "Inner",
        ["a", "b", "c"],
        ["d"],
        [gce.onnx.loss_node("a", "b", "c", loss="d")],
        [helper.make_opsetid(*each) for each in imports]
        + [helper.make_opsetid(gce.onnx.DOMAIN, 1)],
    )
    nodes = [
        helper.make_node("Inner", names[:3], ["x"], domain="mine"),
        helper.make_node(gce.onnx.OP_TYPE, names, ["y"], domain=gce.onnx.DOMAIN),
    ]
    model = make_model(nodes, values_of(weighted), [Value(n, FLOATS[0], None) for n in "xy"])
    model.functions.append(inner)
    model.opset_import.append(helper.make_opsetid("mine", 1))
    attached = gce.onnx.attach_function(model)
    plain = {name: weighted[name] for name in names[:3]}
    expected = [numpy_op(**plain)[0], numpy_op(**weighted)[0]]
    assert_close(make_session(attached, library=False).run(None, weighted), expected)


@pytest.mark.parametrize("label", [-1, -5, 5, 2**40, -(2**63) + 1])
def test_a_label_out_of_range_is_an_error(label):
    arguments = problem(np.random.default_rng(0), FLOATS[0], (4, 5))
    arguments["labels"][2] = label
    with pytest.raises(Exception, match=r"(?i)out of (range|bound)"):
        run(arguments)


@pytest.mark.parametrize("gamma", [-0.1, 1.1, np.nan])
def test_gamma_out_of_range_is_nan(gamma):
    arguments = problem(np.random.default_rng(0), FLOATS[0], (4, 5), gamma_per_row=True)
    arguments["gamma"][1] = gamma
    loss, grad = run(arguments, reduction="none")
    assert np.isnan(loss).tolist() == [False, True, False, False]
    assert np.isnan(grad[1]).all() and np.isfinite(grad[[0, 2, 3]]).all()


@pytest.mark.parametrize("wrong", [-0.1, np.nan, np.inf])
def test_what_is_no_probability_is_nan(wrong):
    arguments = problem(np.random.default_rng(0), FLOATS[0], (4, 5), FLOATS[0])
    arguments["labels"][1, 2] = wrong
    loss, grad = run(arguments, reduction="none")
    assert np.isnan(loss).tolist() == [False, True, False, False]
    assert np.isnan(grad[1]).all() and np.isfinite(grad[[0, 2, 3]]).all()


def test_probabilities_that_are_all_0():
    """A row without targets still counts for the mean, and for smoothing and z-loss."""
    arguments = problem(np.random.default_rng(0), FLOATS[0], (4, 5), FLOATS[0])
    arguments["labels"][2] = 0.0
    for options in ({}, {"label_smoothing": 0.25, "z_loss": 0.5}, {"reduction": "none"}):
        assert_close(run(arguments, **options), numpy_op(**arguments, **options))


@pytest.mark.parametrize("labels_dtype", [np.int64, np.float64], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_with_the_library_it_is_the_kernel(dtype, labels_dtype):
    """The same bits as the kernel's, which the function's differ from."""
    same_rounding = {BFLOAT16, np.dtype("float16")}
    if labels_dtype == np.float64:  # the kernel is in float64 too
        same_rounding.add(np.dtype("float32"))
    arguments = problem(np.random.default_rng(3), dtype, (300, 50), labels_dtype, weights=True)
    expected = bits(numpy_op(**arguments))
    assert bits(run(arguments, library=True)) == expected
    if dtype not in same_rounding:
        assert bits(run(arguments)) != expected


def test_the_loss_alone():
    arguments = problem(np.random.default_rng(3), FLOATS[0], (30, 5))
    for library in (False, True):
        (loss,) = run(arguments, grad=False, library=library)
        np.testing.assert_allclose(loss, numpy_op(**arguments)[0], rtol=1e-6)


def test_nodes_with_and_without_weights_in_one_model():
    weighted = problem(np.random.default_rng(3), FLOATS[0], (6, 5), weights=True)
    inputs = values_of(weighted)
    names = list(weighted)
    nodes = [
        helper.make_node(gce.onnx.OP_TYPE, names, ["a", "b"], domain=gce.onnx.DOMAIN),
        helper.make_node(gce.onnx.OP_TYPE, [*names[:3], ""], ["c"], domain=gce.onnx.DOMAIN),
        helper.make_node(
            gce.onnx.OP_TYPE, names[:3], ["d", "e"], domain=gce.onnx.DOMAIN, reduction="none"
        ),
    ]
    outputs = [Value(name, FLOATS[0], None) for name in "abcde"]
    model = make_model(nodes, inputs, outputs)
    plain = {name: weighted[name] for name in names[:3]}
    expected = [*numpy_op(**weighted), numpy_op(**plain)[0], *numpy_op(**plain, reduction="none")]
    attached = gce.onnx.attach_function(model)
    assert_close(make_session(attached, library=False).run(None, weighted), expected)
    assert bits(make_session(attached).run(None, weighted)) == bits(expected)
    # What came in is as it was, and what comes out may go in again.
    assert not model.functions and len(model.graph.node) == 3
    again = gce.onnx.attach_function(attached)
    assert len(again.functions) == 1
    assert_close(make_session(again, library=False).run(None, weighted), expected)


def test_options_of_one_node_are_none_of_another():
    """One function for all of them has the parts that any of them needs."""
    arguments = problem(np.random.default_rng(3), FLOATS[0], (6, 5))
    of_nodes: list[dict[str, Any]] = [{}, {"softcap": 0.5}, {"shift": 2}]
    names = list(arguments)
    nodes = [
        gce.onnx.loss_node(*names, loss=f"loss{i}", grad=f"grad{i}", **options)
        for i, options in enumerate(of_nodes)
    ]
    outputs = [Value(name, FLOATS[0], None) for node in nodes for name in node.output]
    model = gce.onnx.attach_function(make_model(nodes, values_of(arguments), outputs))
    expected = [result for options in of_nodes for result in numpy_op(**arguments, **options)]
    assert_close(make_session(model, library=False).run(None, arguments), expected)
    assert bits(make_session(model).run(None, arguments)) == bits(expected)


def test_classes_and_probabilities_in_one_model_are_refused():
    rng = np.random.default_rng(3)
    classes = problem(rng, FLOATS[0], (6, 5))
    soft = problem(rng, FLOATS[0], (6, 5), FLOATS[0])["labels"]
    nodes = [
        gce.onnx.loss_node("scores", "labels", "gamma", loss="a"),
        gce.onnx.loss_node("scores", "soft", "gamma", loss="b"),
    ]
    outputs = [Value(name, FLOATS[0], []) for name in "ab"]
    model = make_model(nodes, values_of({**classes, "soft": soft}), outputs)
    expected = [numpy_op(**classes)[0], numpy_op(**{**classes, "labels": soft})[0]]
    found = make_session(model).run(None, {**classes, "soft": soft})  # the kernel has both
    assert bits(found) == bits(expected)
    with pytest.raises(ValueError, match="expected one kind: a model has one function for all"):
        gce.onnx.attach_function(model)


def test_probabilities_that_are_computed():
    """Their type is what onnx infers."""
    arguments = problem(np.random.default_rng(3), FLOATS[0], (6, 5), FLOATS[0])
    nodes = [
        helper.make_node("Mul", ["labels", "labels"], ["squares"]),
        gce.onnx.loss_node("scores", "squares", "gamma"),
    ]
    model = make_model(nodes, values_of(arguments), [Value("loss", FLOATS[0], [])])
    attached = gce.onnx.attach_function(model)
    expected = numpy_op(**{**arguments, "labels": arguments["labels"] ** 2})[:1]
    assert_close(make_session(attached, library=False).run(None, arguments), expected)


def test_probabilities_in_a_branch_of_a_models_own_function():
    """Their type is what the function is called with."""
    arguments = problem(np.random.default_rng(3), FLOATS[0], (6, 5), FLOATS[1])
    inner = gce.onnx.loss_node("s", "l", "g", loss="in_branch", softcap=2.0)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(gce.onnx.DOMAIN, 1)]
    function = helper.make_function(
        "mine", "Mine", [*"slg"], ["inner"], in_branches(inner), opset_imports=opsets
    )
    node = helper.make_node("Mine", list(arguments), ["loss"], domain="mine")
    outputs = [Value("loss", FLOATS[0], [])]
    model = make_model([node], values_of(arguments), outputs, functions=[function])
    model.opset_import.append(helper.make_opsetid("mine", 1))
    model.ir_version = 9
    attached = gce.onnx.attach_function(model)
    expected = numpy_op(**arguments, softcap=2.0)[:1]
    for library in (False, True):
        assert_close(make_session(attached, library=library).run(None, arguments), expected)


def in_branches(inner, name="inner"):
    """An If, both of whose branches are this node, whose first output is a float scalar."""
    info = helper.make_tensor_value_info(inner.output[0], TensorProto.FLOAT, [])
    branch = helper.make_graph([inner], "branch", [], [info])
    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    return [
        helper.make_node("Constant", [], ["yes"], value=yes),
        helper.make_node("If", ["yes"], [name], then_branch=branch, else_branch=branch),
    ]


def test_in_a_branch():
    arguments = problem(np.random.default_rng(3), FLOATS[0], (6, 5))
    node = gce.onnx.loss_node("scores", "labels", "gamma", loss="inner")
    nodes = in_branches(node, "loss")
    inputs = values_of(arguments)
    model = gce.onnx.attach_function(make_model(nodes, inputs, [Value("loss", FLOATS[0], [])]))
    (loss,) = make_session(model, library=False).run(None, arguments)
    np.testing.assert_allclose(loss, numpy_op(**arguments)[0], rtol=1e-6)


def test_weights_outside_and_none_in_a_branch():
    arguments = problem(np.random.default_rng(3), FLOATS[0], (6, 5), weights=True)
    inner = gce.onnx.loss_node("scores", "labels", "gamma", loss="in_branch")
    outer = gce.onnx.loss_node(*list(arguments)[:3], weights="weights", loss="outer")
    inputs = values_of(arguments)
    outputs = [Value("inner", FLOATS[0], []), Value("outer", FLOATS[0], [])]
    model = make_model([*in_branches(inner), outer], inputs, outputs)
    plain = {name: arguments[name] for name in ("scores", "labels", "gamma")}
    expected = [numpy_op(**plain)[0], numpy_op(**arguments)[0]]
    attached = gce.onnx.attach_function(model)
    for library in (False, True):
        assert_close(make_session(attached, library=library).run(None, arguments), expected)


def test_in_a_branch_of_a_models_own_function():
    """The op in an If in a function, in one that hands an attribute on, and outside."""
    arguments = problem(np.random.default_rng(3), FLOATS[0], (6, 5), weights=True)
    inner = gce.onnx.loss_node("s", "l", "g", loss="in_branch", label_smoothing=0.25)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(gce.onnx.DOMAIN, 1)]
    function = helper.make_function(
        "mine", "Mine", [*"slg"], ["inner"], in_branches(inner), opset_imports=opsets
    )
    direct = helper.make_node(gce.onnx.OP_TYPE, [*"slg"], ["loss"], domain=gce.onnx.DOMAIN)
    direct.attribute.append(
        onnx.AttributeProto(
            name="reduction", type=onnx.AttributeProto.STRING, ref_attr_name="reduction"
        )
    )
    other = helper.make_function(
        "mine", "Other", [*"slg"], ["loss"], [direct], opsets, attributes=["reduction"]
    )
    names = list(arguments)
    nodes = [
        helper.make_node("Mine", names[:3], ["a"], domain="mine"),
        helper.make_node("Other", names[:3], ["b"], domain="mine", reduction="sum"),
        gce.onnx.loss_node(*names[:3], weights="weights", loss="c"),
    ]
    inputs = values_of(arguments)
    outputs = [Value(name, FLOATS[0], []) for name in "abc"]
    plain = {name: arguments[name] for name in names[:3]}
    expected = [
        numpy_op(**plain, label_smoothing=0.25)[0],
        numpy_op(**plain, reduction="sum")[0],
        numpy_op(**arguments)[0],
    ]
    for count in (1, 2, 3):  # the op in the functions alone, too
        model = make_model(nodes[:count], inputs, outputs[:count], functions=[function, other])
        model.opset_import.append(helper.make_opsetid("mine", 1))
        model.ir_version = 9
        attached = gce.onnx.attach_function(model)
        for library in (False, True):
            found = make_session(attached, library=library).run(None, arguments)
            assert_close(found, expected[:count])


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("score", [np.nan, np.inf, -np.inf, 3.0])
def test_one_class(score, gamma):
    for smoothing in (0.0, 0.125):
        arguments = {
            "scores": np.full((2, 1, 2), score, "f4"),
            "labels": np.zeros((2, 2), np.int64),
            "gamma": np.array(gamma),
        }
        options = {"reduction": "none", "label_smoothing": smoothing}
        assert_close(run(arguments, **options), numpy_op(**arguments, **options))


def test_wrong_models():
    arguments = problem(np.random.default_rng(3), FLOATS[0], (6, 5))
    inputs = values_of(arguments)
    node = helper.make_node("Identity", ["scores"], ["loss"])
    model = make_model([node], inputs, [Value("loss", FLOATS[0], None)])
    with pytest.raises(TypeError, match="model has type NoneType, expected onnx"):
        gce.onnx.attach_function(None)
    with pytest.raises(ValueError, match=r"model has no ai\.gce::GammaCrossEntropyLoss node"):
        gce.onnx.attach_function(model)
    model.opset_import[0].version = 14
    with pytest.raises(ValueError, match="model has opset 14, expected 15 or newer"):
        gce.onnx.attach_function(model)
    names = list(arguments)
    for attributes, message in [
        ({"reduction": "avg"}, 'reduction = "avg", expected "mean"'),
        ({"threshold": 2.0}, "threshold = 2, expected 0 <= threshold <= 1"),
        ({"softcap": -2.0}, "softcap = -2, expected a finite number > 0"),
        ({"shift": -2}, "shift = -2, expected >= 0"),
    ]:
        node = helper.make_node(
            gce.onnx.OP_TYPE, names, ["loss"], domain=gce.onnx.DOMAIN, **attributes
        )
        with pytest.raises(ValueError, match=message):
            gce.onnx.attach_function(make_model([node], inputs, [Value("loss", FLOATS[0], None)]))

    soft = problem(np.random.default_rng(3), FLOATS[0], (6, 5), FLOATS[0])
    node = gce.onnx.loss_node(*names, ignore_index=3)
    model = make_model([node], values_of(soft), [Value("loss", FLOATS[0], None)])
    with pytest.raises(ValueError, match="ignore_index = 3, expected none, or a negative one"):
        gce.onnx.attach_function(model)
