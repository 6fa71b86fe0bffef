"""Probability targets, softcap, Hessian products: any options of a row at once, against 50 digits.

The options that these meet are combined at random; whole arrays and reductions are in
test_options.py, what is special to each option is in a file of its own.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

import oracle
from engines import EMULATED
from test_accuracy import GAMMAS, LIMITS, THRESHOLDS, assert_within, rows_of
from test_layouts import DTYPES, assert_same_bits

CLASSES = (1, 2, 3, 7, 8, 9, 10, 17, 33, 64, 65, 130, 1100)
EMULATED_CLASSES = (2, 9, 33)
SOFTCAPS = (0.0, 0.0, 0.3, 5.0, 30.0, 1000.0)


def targets_of(chooser: random.Random, rng: Any, classes: int, dtype: str) -> Any:
    """A class, or probabilities: dense, with zeros, of one class, unnormalised."""
    kind = chooser.choice(("class", "dense", "sparse", "one", "counts"))
    if kind == "class":
        return int(rng.integers(classes))
    if kind == "one":
        return np.eye(classes, dtype=dtype)[rng.integers(classes)]
    t = rng.exponential(size=classes)
    if kind == "sparse":
        t = np.where(rng.random(classes) < 0.6, 0.0, t)
    return (3.0 * t if kind == "counts" else t / max(t.sum(), 1.0)).astype(dtype)


def options_of(chooser: random.Random, rng: Any, classes: int) -> dict[str, Any]:
    options: dict[str, Any] = {"softcap": chooser.choice(SOFTCAPS)}
    if chooser.random() < 0.4:
        options["weight"] = rng.choice([0.0, 0.5, 1.0, 4.0], classes)
    if chooser.random() < 0.4:
        options["label_smoothing"] = chooser.choice((1e-3, 0.1, 1.0))
    if chooser.random() < 0.4:
        options["z_loss"] = chooser.choice((1e-4, 0.5))
    return options


def of_oracle(options: dict[str, Any]) -> dict[str, Any]:
    renamed = {"label_smoothing": "epsilon"}
    return {renamed.get(name, name): option for name, option in options.items()}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_against_50_digits(engine, dtype, record_error):
    limits = LIMITS[dtype]
    for classes in EMULATED_CLASSES if engine.name in EMULATED else CLASSES:
        chooser, rng = random.Random(classes), np.random.default_rng(classes)
        for name, (logits, _) in rows_of(classes, dtype).items():
            targets = targets_of(chooser, rng, classes, dtype)
            options = options_of(chooser, rng, classes)
            gamma, b = chooser.choice(GAMMAS), chooser.choice(THRESHOLDS)
            value, gauss_newton = chooser.choice(("primitive", "surrogate")), chooser.random() < 0.3
            vector = rng.uniform(-1.0, 1.0, classes).astype(dtype)
            exact = oracle.any_row(
                logits, targets, gamma, b, value, vector=vector, gauss_newton=gauss_newton,
                **of_oracle(options),
            )  # fmt: skip
            # A cap rounds its result, which is of size κ or the logit's, to a double.
            capped = min(options["softcap"], float(np.abs(logits.astype("f8")).max()))
            rounded = 4.0 * np.finfo("f8").eps * capped
            size = float(exact.size)
            if not np.isfinite(size) or size > 1e25:  # z-loss of 1e30: squares overflow
                continue
            share = {"threshold": b, "reduction": "sum", **options}
            # Its whole: value, absolute error of a logsumexp included, times what multiplies it.
            loss, grad = engine.loss_and_grad(logits, targets, gamma, value=value, **share)
            total = np.float64(float(exact.value))
            limit = max(limits.loss_relative * abs(total), limits.loss_absolute * max(size, 1.0))
            limit += rounded * max(size, 1.0)
            record_error(f"any loss {dtype}", assert_within(loss, total, limit, f"{name} loss"))
            # Doubles lose two roundings more here than where LIMITS were taken: q and its factor.
            of_grad = limits.grad + 2.0 * np.finfo("f8").eps + rounded
            limit = of_grad * size + limits.grad_absolute
            want = np.array([float(slope) for slope in exact.grad])
            record_error(f"any grad {dtype}", assert_within(grad, want, limit, f"{name} grad"))
            share["gauss_newton"] = gauss_newton
            product = engine.hvp(logits, targets, vector, gamma, **share)
            want = np.array([float(slope) for slope in exact.product])
            # The vector is at most 1 and its distance to the mean 2, twice; the cap's 2/κ.
            steep = 6.0 + 2.0 / (options["softcap"] or 1.0)
            limit = of_grad * size * steep + limits.grad_absolute
            record_error(f"product {dtype}", assert_within(product, want, limit, f"{name} hvp"))


# e^-708.4 is the smallest normal double, e^-745.2 is 0; the shorter way's exponentials end at -700.
GAPS = (599.0, 601.0, 650.0, 699.0, 701.0, 705.0, 709.5, 720.0, 740.0, 744.5, 746.0, 800.0, 1390.0)
TINY_GAMMAS = (0.0, 5e-324, 1e-310, 1e-300, 1e-270, 2.0**-101, 0.5)


@pytest.mark.parametrize("value", ["primitive", "surrogate"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_probabilities_near_the_smallest_double(engine, dtype, value):
    limits = LIMITS[dtype]
    pairs = [(gap, gamma) for gap in GAPS for gamma in TINY_GAMMAS]
    logits = np.array([[0.25, 0.0, -gap] for gap, _ in pairs], dtype)
    gamma = np.array([gamma for _, gamma in pairs])
    targets = np.broadcast_to(np.array([0.0, 0.25, 0.75]), logits.shape)
    exact = [
        oracle.any_row(z, t, g, value=value) for z, t, g in zip(logits, targets, gamma, strict=True)
    ]
    loss, grad = engine.loss_and_grad(logits, targets, gamma, value=value, reduction="none")
    want = np.array([float(row.value) for row in exact])
    assert_within(loss, want, np.maximum(limits.loss_relative * want, limits.loss_absolute), "loss")
    want = np.array([[float(slope) for slope in row.grad] for row in exact])
    size = np.array([[float(row.size)] for row in exact])
    # e^x of a double x near -700 is off by 1e-13 of itself, or twice that.
    of_grad = limits.grad + (3e-13 if dtype == "float64" else 0.0)
    assert_within(grad, want, of_grad * size + limits.grad_absolute, "grad")


def mixed_rows(rows: int, classes: int, dtype: str) -> tuple[Any, ...]:
    """Rows that take different ways side by side: masked, ignored, poisoned, at any gamma."""
    rng = np.random.default_rng(rows * classes)
    logits = (3.0 * rng.standard_normal((rows, classes))).astype(DTYPES[dtype])
    logits[rng.random((rows, classes)) < 0.1] = -np.inf
    logits[:, 0] = 1.0
    logits[rows // 2, -1] = np.nan
    targets = rng.integers(classes, size=rows)
    targets[rng.random(rows) < 0.2] = -100
    probabilities = np.where(rng.random((rows, classes)) < 0.5, 0.0, rng.random((rows, classes)))
    per_row = {
        "gamma": rng.choice([0.0, 5e-324, 1e-40, 0.3, 1.0 - 1e-7, 1.0], rows),
        "threshold": rng.choice([0.0, 0.0, 0.0, 0.2, 1.0], rows),
        "sample_weight": rng.choice([0.0, 0.5, 1.0], rows),
        "grad_output": rng.choice([0.0, -1.0, 3.0], rows),
    }
    vector = rng.standard_normal((rows, classes)).astype(DTYPES[dtype])
    return logits, targets, probabilities.astype("f4"), vector, per_row


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [1, 2, 8, 9, 33, 64, 65, 1025])
def test_a_row_has_the_same_bits_whatever_its_neighbours(engine, classes, dtype):
    few = engine.name in EMULATED or classes > 64
    rows = 11 if few else 83
    logits, indices, probabilities, vector, per_row = mixed_rows(rows, classes, dtype)
    for targets in (indices, probabilities):
        for softcap in (0.0, 30.0, 500.0):
            options = {"softcap": softcap, "reduction": "none", "z_loss": 0.01}
            loss, grad = engine.loss_and_grad(logits, targets, **per_row, **options)
            product = engine.hvp(logits, targets, vector, **per_row, **options)
            assert_same_bits(engine.loss(logits, targets, **without_grad(per_row), **options), loss)
            for r in (0, 1, rows // 2, rows - 2, rows - 1):
                of_row = {name: option[r] for name, option in per_row.items()}
                alone = engine.loss_and_grad(logits[r], targets[r], **of_row, **options)
                assert_same_bits(alone[0], loss[r])
                assert_same_bits(alone[1], grad[r])
                alone = engine.hvp(logits[r], targets[r], vector[r], **of_row, **options)
                assert_same_bits(alone, product[r])
            # Rows that are neighbours, in runs shorter than a vector of them.
            n = rows // 3 * 3
            turned = [
                np.ascontiguousarray(np.moveaxis(x[:n].reshape(n // 3, 3, classes), 2, 1))
                for x in (logits, probabilities, vector)
            ]
            of_runs = {name: option[:n].reshape(n // 3, 3) for name, option in per_row.items()}
            ys = turned[1] if targets is probabilities else targets[:n].reshape(n // 3, 3)
            found = engine.loss_and_grad(turned[0], ys, **of_runs, **options, axis=1)
            assert_same_bits(found[0].reshape(n), loss[:n])
            assert_same_bits(np.moveaxis(found[1], 1, 2).reshape(n, classes), grad[:n])
            found = engine.hvp(turned[0], ys, turned[2], **of_runs, **options, axis=1)
            assert_same_bits(np.moveaxis(found, 1, 2).reshape(n, classes), product[:n])


def without_grad(per_row: dict[str, Any]) -> dict[str, Any]:
    return {name: option for name, option in per_row.items() if name != "grad_output"}
