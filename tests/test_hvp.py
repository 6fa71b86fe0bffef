"""Hessian- and Gauss-Newton-vector products.

Against 50 digits they are in test_any_options.py, with all options in test_options.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gce
from faults import arguments, call_in_vain
from gce import reference
from test_layouts import DTYPES, assert_same_bits

OPTIONS: list[dict[str, Any]] = [
    {},
    {"threshold": 0.2},
    {"label_smoothing": 0.1, "z_loss": 0.05},
    {"softcap": 2.0, "weight": np.linspace(0.0, 2.0, 7)},
    {"softcap": 3.0, "z_loss": 0.1, "reduction": "sum", "shift": 1},
    {
        "sample_weight": np.linspace(0.0, 1.0, 12).reshape(3, 4),
        "ignore_index": 2,
        "normalizer": 4.0,
    },
]


def problem(probabilities: bool, seed: int = 0) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    logits, vector = 2 * rng.standard_normal((3, 4, 7)), rng.standard_normal((3, 4, 7))
    targets: Any = rng.integers(0, 7, (3, 4))
    if probabilities:
        targets = rng.dirichlet(np.full(7, 0.5), (3, 4))
    return logits, targets, vector


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 1e-7, 0.3, 1.0])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(options) or "plain")
def test_it_is_the_slope_of_the_gradient(isa, options, gamma, probabilities):
    logits, targets, vector = problem(probabilities)
    options = {k: v for k, v in options.items() if not (probabilities and k == "ignore_index")}
    h = 1e-5

    def gradient(module: Any, s: float) -> Any:
        return module.loss_and_grad(logits + s * vector, targets, gamma, **options)[1]

    for module in (gce, reference):  # the reference too: others are held against it
        slope = (gradient(module, h) - gradient(module, -h)) / (2 * h)
        found = module.hvp(logits, targets, vector, gamma, **options)
        # Third derivatives here are below 1e3: 1e-10 / 6 of that, and 1e-16 / 1e-5 from rounding.
        np.testing.assert_allclose(found, slope, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("gauss_newton", [False, True])
def test_the_matrix_is_symmetric_and_gauss_newton_positive(isa, gauss_newton):
    rng = np.random.default_rng(1)
    for options in (
        {},
        {"softcap": 1.5, "z_loss": 0.3},
        {"label_smoothing": 0.2, "threshold": 0.1},
    ):
        for targets in (3, rng.dirichlet(np.ones(6))):
            for gamma in (0.0, 0.4, 1.0):
                logits = 2 * rng.standard_normal(6) - 3.0  # logsumexp may be negative
                columns = [
                    gce.hvp(logits, targets, e, gamma, gauss_newton=gauss_newton, **options)
                    for e in np.eye(6)
                ]
                matrix = np.array(columns)
                np.testing.assert_allclose(matrix, matrix.T, rtol=1e-11, atol=1e-15)
                if gauss_newton:
                    assert np.linalg.eigvalsh(matrix).min() > -1e-15
    # Which the Hessian is not.
    columns = [gce.hvp(np.zeros(3), 0, e, 0.5) for e in np.eye(3)]
    assert np.linalg.eigvalsh(np.array(columns)).min() < -0.01


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_layout_and_in_place(engine, dtype):
    rng = np.random.default_rng(2)
    for classes in (3, 33, 130):
        logits = (2 * rng.standard_normal((9, classes))).astype(DTYPES[dtype])
        vector = rng.standard_normal((9, classes)).astype(DTYPES[dtype])
        targets = np.arange(9) % classes
        want = engine.hvp(logits, targets, vector, 0.3)
        assert want.dtype == logits.dtype
        columns = np.ascontiguousarray(logits.T)
        found = engine.hvp(columns, targets, np.asfortranarray(vector.T), 0.3, axis=0)
        assert_same_bits(found.T, want)
        assert_same_bits(engine.hvp(logits, targets, vector.astype("f8"), 0.3), want)


def test_in_place(isa):
    logits, targets, vector = problem(False)
    want = gce.hvp(logits, targets, vector, 0.3)
    out = logits.copy()
    assert gce.hvp(out, targets, vector, 0.3, out=out) is out
    assert_same_bits(out, want)


def test_rows_that_do_not_count_and_poisoned_ones(isa):
    logits = np.zeros((4, 3))
    logits[1, 0], logits[2, 0] = np.nan, np.inf
    found = gce.hvp(logits, [-100, 0, 0, 1], np.ones((4, 3)) * [1, 2, 3], 0.5)
    assert not found[0].any() and np.isnan(found[1:3]).all() and np.isfinite(found[3]).all()
    assert gce.hvp(np.zeros((0, 3)), np.zeros(0, int), np.zeros((0, 3)), 0.5).shape == (0, 3)
    assert not gce.hvp(np.zeros((2, 1)), [0, 0], np.ones((2, 1)), 0.5).any()


def test_a_newton_step_finds_the_minimum():
    # One row, cross-entropy against probabilities with z-loss: strictly convex.
    targets = np.array([0.6, 0.3, 0.1])
    logits = np.zeros(3)
    for _ in range(20):
        grad = gce.loss_and_grad(logits, targets, 0.0, z_loss=0.1)[1]
        matrix = np.array([gce.hvp(logits, targets, e, 0.0, z_loss=0.1) for e in np.eye(3)])
        logits = logits - np.linalg.solve(matrix, grad)
    assert np.abs(gce.loss_and_grad(logits, targets, 0.0, z_loss=0.1)[1]).max() < 1e-15


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"vector": np.zeros((4, 4))}, ValueError, r"vector has shape \(4, 4\), expected \(4, 5\)"),
        ({"vector": 1.0}, ValueError, r"vector has shape \(\), expected \(4, 5\)"),
        ({"vector": np.zeros((4, 5), complex)}, TypeError, "vector has dtype complex128"),
        ({"gauss_newton": 1}, TypeError, "gauss_newton has type int, expected bool"),
        ({"targets": np.array([0, 1, 2, 5])}, IndexError, r"targets\[3\] = 5, expected"),
        ({"out": np.zeros((4, 5))}, TypeError, "out has dtype float64, expected float32"),
    ],
)
def test_errors(given, error, message):
    usual = {**arguments(), "vector": np.ones((4, 5), np.float32)}
    call_in_vain(gce.hvp, error, message, {**usual, **given})


def test_out_may_not_overlap_the_vector():
    given = {**arguments(), "vector": np.ones((4, 5), np.float32)}
    given["out"] = given["vector"]
    call_in_vain(gce.hvp, ValueError, "out overlaps vector", given)
    with pytest.raises(TypeError, match=r"hvp\(\) missing required argument 'vector'"):
        gce.hvp(**arguments())
