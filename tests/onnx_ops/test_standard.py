"""At γ = 0 it is SoftmaxCrossEntropyLoss: ONNX's own cases, and ONNX Runtime's own operator."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from op_models import FLOATS, Value, make_model, make_session, problem, run_op

import gce.onnx

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what building the cases of all of ONNX warns of is not ours
    from onnx.backend.test.case.node import collect_testcases

    CASES: dict[str, Any] = {
        case.name: case
        for case in collect_testcases("SoftmaxCrossEntropyLoss")
        if not case.name.endswith("_expanded")  # the same in other operators
    }


def test_all_cases_are_there():
    assert len(CASES) >= 34


@pytest.mark.parametrize("name", CASES)
def test_backend_case(name):
    case = CASES[name]
    (node,) = case.model.graph.node
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    for inputs, outputs in case.data_sets:
        scores, labels, *weights = inputs
        loss, _ = run_op(scores, labels, np.zeros((), scores.dtype), *weights, **attributes)
        # The case is numpy's float32: its softmax adds up to five exponentials, each within one
        # unit in the last place; its means up to 1080 losses one after the other.
        np.testing.assert_allclose(loss, outputs[0], rtol=2e-6)


@pytest.mark.parametrize(
    "name", ["test_sce_mean_weight_ii_3d", "test_sce_NCd1d2d3d4d5_mean_weight"]
)
def test_backend_case_with_the_function(name):
    case = CASES[name]
    model = onnx.ModelProto.FromString(case.model.SerializeToString())
    (node,) = model.graph.node
    scores, labels, weights = case.data_sets[0][0]
    gamma = onnx.numpy_helper.from_array(np.array(0.0), "gamma")
    model.graph.initializer.append(gamma)
    node.op_type, node.domain = gce.onnx.OP_TYPE, gce.onnx.DOMAIN
    node.input.insert(2, "gamma")
    del model.opset_import[:]
    model.opset_import.extend([helper.make_opsetid("", 17), helper.make_opsetid(node.domain, 1)])
    model.ir_version = 8
    session = make_session(gce.onnx.attach_function(model), library=False)
    names = [value.name for value in session.get_inputs()]
    (loss,) = session.run(None, dict(zip(names, (scores, labels, weights), strict=True)))
    np.testing.assert_allclose(loss, case.data_sets[0][1][0], rtol=2e-6)


def standard(arguments, **attributes):
    """ONNX Runtime's SoftmaxCrossEntropyLoss."""
    inputs = [
        Value(name, array.dtype, [None] * array.ndim)
        for name, array in arguments.items()
        if name != "gamma"
    ]
    dtype = arguments["scores"].dtype
    node = helper.make_node(
        "SoftmaxCrossEntropyLoss", [value.name for value in inputs], ["loss"], **attributes
    )
    session = make_session(make_model([node], inputs, [Value("loss", dtype, None)]), library=False)
    return session.run(None, {value.name: arguments[value.name] for value in inputs})[0]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_onnx_runtimes_own_operator(dtype, reduction):
    rng = np.random.default_rng(7)
    shapes = [(4, 3), (2, 5, 3), (2, 5, 3, 2), (1, 1, 1), (3, 300), (7, 4, 2, 1, 3)]
    for shape, weights, ignored, labels_dtype in itertools.product(
        shapes, (False, True), (None, -1, 1), (np.int32, np.int64)
    ):
        arguments = problem(rng, dtype, shape, labels_dtype, weights=weights, ignored=ignored)
        arguments["gamma"] = np.array(0.0)
        if ignored is not None:
            arguments["labels"].flat[0] = 0  # a mean of nothing is NaN there, and 0 here
        attributes = {} if ignored is None else {"ignore_index": ignored}
        loss, _ = run_op(**arguments, reduction=reduction, **attributes)
        # Its float64 operator is the measure: for 16 bits there is none in ONNX Runtime.
        wide = {
            name: array.astype(np.float64) if name in ("scores", "weights") else array
            for name, array in arguments.items()
        }
        expected = standard(wide, reduction=reduction, **attributes)
        # Ours: the promised 1e-6 (2e-7 times the weights, up to 2, where tiny; summed over up to 84
        # rows or 300 without cancellation) and one rounding to 16 bits. Float64: a few roundings of
        # either.
        rounding = {"float32": 1e-6, "float64": 1e-13, "float16": 2.0**-11, "bfloat16": 2.0**-8}
        np.testing.assert_allclose(
            loss.astype(np.float64),
            expected,
            rtol=1.1 * rounding[dtype.name],
            atol=4e-7 * loss.size,
        )
        if dtype in (np.float32, np.float64):
            np.testing.assert_allclose(
                loss,
                standard(arguments, reduction=reduction, **attributes),
                rtol=1e-5 if dtype == np.float32 else 1e-13,  # its float32 softmax and sums
                atol=1e-6,
            )
