"""The option shift: row t predicts target t + s, as a causal language model does with token ids."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gce
from faults import arguments, call_in_vain
from test_layouts import DTYPES, assert_same_bits

BATCH, LENGTH, CLASSES = 3, 6, 11


def problem(dtype: str = "float32", seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    logits = (2 * rng.standard_normal((BATCH, LENGTH, CLASSES))).astype(DTYPES[dtype])
    tokens = rng.integers(0, CLASSES, (BATCH, LENGTH))
    tokens[1, 4:] = -100  # padding
    return logits, tokens


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shift", [1, 2, 5])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_it_is_what_slicing_by_hand_gives(isa, reduction, shift, dtype):
    logits, tokens = problem(dtype)
    mask = (np.arange(LENGTH) >= 2) * np.ones((BATCH, 1))  # the prompt: two tokens
    per_row = {
        "gamma": np.linspace(0, 1, BATCH * LENGTH).reshape(BATCH, LENGTH),
        "sample_weight": mask,
    }
    if reduction == "none":
        per_row["grad_output"] = np.linspace(-1, 2, BATCH * LENGTH).reshape(BATCH, LENGTH)
    options: dict[str, Any] = {"reduction": reduction, "threshold": 0.1, "return_stats": True}
    loss, grad, stats = gce.loss_and_grad(logits, tokens, **per_row, **options, shift=shift)
    sliced = {name: array[:, shift:] for name, array in per_row.items()}
    by_hand = gce.loss_and_grad(logits[:, :-shift], tokens[:, shift:], **sliced, **options)
    assert_same_bits(grad[:, :-shift], by_hand[1])
    assert not grad[:, -shift:].any()
    if reduction == "none":
        assert loss.shape == tokens.shape and not loss[:, :shift].any()
        loss = loss[:, shift:]
    assert_same_bits(np.asarray(loss), np.asarray(by_hand[0]))
    for field, one, other in zip(stats._fields, stats, by_hand[2], strict=True):
        assert_same_bits(np.ascontiguousarray(one[:, shift:]), other)
        assert (one[:, :shift] == (-1 if field == "argmax" else 0)).all()
    alone = gce.row_stats(logits, tokens, shift=shift)
    assert_same_bits(alone.argmax, stats.argmax)
    assert_same_bits(alone.logsumexp, stats.logsumexp)


def test_any_axis_in_place_and_probabilities(isa):
    logits, tokens = problem()
    want = gce.loss_and_grad(logits, tokens, 0.3, shift=1)
    middle = np.ascontiguousarray(np.moveaxis(logits, -1, 1))  # [B, V, T]
    found = gce.loss_and_grad(middle, tokens, 0.3, shift=1, axis=1)
    assert_same_bits(np.asarray(found[0]), np.asarray(want[0]))
    assert_same_bits(np.ascontiguousarray(np.moveaxis(found[1], 1, -1)), want[1])
    out = logits.copy()
    assert gce.loss_and_grad(out, tokens, 0.3, shift=1, out=out)[1] is out
    assert_same_bits(out, want[1])
    # Out with strides of its own: nothing between its elements is written.
    spaced = np.full((BATCH, LENGTH, 2 * CLASSES), 7.0, np.float32)
    gce.loss_and_grad(logits, tokens, 0.3, shift=1, out=spaced[..., ::2])
    assert_same_bits(np.ascontiguousarray(spaced[..., ::2]), want[1])
    assert (spaced[..., 1::2] == 7.0).all()

    targets = np.eye(CLASSES)[np.maximum(tokens, 0)]
    found = gce.loss_and_grad(logits, targets, 0.3, shift=2)
    by_hand = gce.loss_and_grad(logits[:, :-2], targets[:, 2:], 0.3)
    assert_same_bits(np.asarray(found[0]), np.asarray(by_hand[0]))
    assert_same_bits(np.ascontiguousarray(found[1][:, :-2]), by_hand[1])


@pytest.mark.parametrize("shift", [LENGTH, LENGTH + 1, 2**31 - 1])
def test_a_sequence_that_is_too_short_predicts_nothing(isa, shift):
    logits, tokens = problem()
    loss, grad, stats = gce.loss_and_grad(logits, tokens, 0.3, shift=shift, return_stats=True)
    assert loss == 0.0 and not grad.any() and (stats.argmax == -1).all()
    loss = gce.loss(logits, tokens, 0.3, shift=shift, reduction="none")
    assert loss.shape == tokens.shape and not loss.any()
    assert gce.loss_gamma_grad(logits, tokens, 0.3, shift=shift) == 0.0


def test_derivatives(isa):
    logits, tokens = problem("float64")
    vector = np.random.default_rng(3).standard_normal(logits.shape)
    found = gce.hvp(logits, tokens, vector, 0.3, shift=1)
    by_hand = gce.hvp(logits[:, :-1], tokens[:, 1:], vector[:, :-1], 0.3)
    assert_same_bits(np.ascontiguousarray(found[:, :-1]), by_hand)
    assert not found[:, -1].any()
    gammas = np.full(tokens.shape, 0.3)
    slope = gce.loss_gamma_grad(logits, tokens, gammas, shift=1)
    assert slope.shape == tokens.shape and not slope[:, 0].any()
    total = gce.loss_gamma_grad(logits, tokens, 0.3, shift=1)
    np.testing.assert_allclose(slope.sum(), total, rtol=1e-14)


def test_what_no_row_predicts_is_not_looked_at(isa):
    logits, tokens = problem()
    want = gce.loss(logits, tokens, 0.3, shift=1)
    tokens[:, 0] = 10**6  # a token that begins every sequence, say
    assert gce.loss(logits, tokens, 0.3, shift=1) == want
    gammas = np.where(np.arange(LENGTH) == 0, np.nan, 0.3) * np.ones((BATCH, 1))
    assert gce.loss(logits, tokens, gammas, shift=1) == want


def test_errors():
    logits, tokens = problem()
    tokens[2, 3] = CLASSES
    given = {"logits": logits, "targets": tokens, "gamma": 0.3, "shift": 2}
    message = rf"^targets\[2, 3\] = {CLASSES}, expected 0 <= target < {CLASSES}$"
    call_in_vain(gce.loss_and_grad, IndexError, message, given)
    gammas = np.full(tokens.shape, 0.3)
    gammas[1, 4] = 2.0
    message = r"^gamma\[1, 4\] = 2, expected 0 <= gamma <= 1$"
    call_in_vain(gce.loss_and_grad, ValueError, message, {**given, "gamma": gammas})
    targets = np.full(logits.shape, 0.1)
    targets[2, 5, 3] = -1.0
    message = r"^targets\[2, 5, 3\] = -1, expected a probability"
    call_in_vain(gce.loss_and_grad, ValueError, message, {**given, "targets": targets})
    call_in_vain(gce.loss, ValueError, "shift = -1, expected >= 0", {**arguments(), "shift": -1})
    message = r"shift = 1, expected 0 for logits of shape \(5,\): there is no axis of rows"
    with pytest.raises(ValueError, match=message):
        gce.loss(np.zeros(5), 0, 0.3, shift=1)
    with pytest.raises(TypeError, match="shift has type float, expected int"):
        gce.loss(**arguments(), shift=1.0)
