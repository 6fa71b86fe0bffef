"""Classes that several processes share: sharded against whole.

Here the slices are in one process; over ``torch.distributed`` they are in
``examples/vocabulary_shards.py``, which the last test runs with two and four processes.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gce
from engines import IN_PROCESS, ROOT, Engine
from faults import call_in_vain
from gce import shards
from support import require
from test_layouts import DTYPES, assert_same_bits

EXAMPLE = ROOT / "examples" / "vocabulary_shards.py"


def sharded(
    engine: Engine,
    logits: Any,
    targets: Any,
    gamma: Any,
    cuts: list[int],
    axis: int = -1,
    **options: Any,
) -> Any:
    """What `gce.loss_and_grad` returns, by slices between the cuts."""
    classes = logits.shape[axis]
    bounds = [0, *cuts, classes]
    names = ("weight", "ignore_index", "label_smoothing", "shift")
    of_stats = {name: options[name] for name in names if name in options}
    slices = [
        np.take(logits, np.arange(begin, end), axis=axis)
        for begin, end in itertools.pairwise(bounds)
    ]
    where = [{"first_class": begin, "num_classes": classes, "axis": axis} for begin in bounds[:-1]]
    stats = shards.merge(
        engine.partial_stats(part, targets, **place, **of_stats)
        for part, place in zip(slices, where, strict=True)
    )
    results = [
        engine.sharded_loss_and_grad(part, targets, gamma, stats, **place, **options)
        for part, place in zip(slices, where, strict=True)
    ]
    for result in results[1:]:  # every process has the same loss
        assert_same_bits(np.asarray(result[0]), np.asarray(results[0][0]))
    grad = np.concatenate([result[1] for result in results], axis=axis)
    return results[0][0], grad, *results[0][2:]


def problem(classes: int, dtype: str, rows: int = 7, scale: float = 3.0) -> tuple[Any, Any]:
    rng = np.random.default_rng(classes)
    logits = (scale * rng.standard_normal((rows, classes))).astype(DTYPES[dtype])
    targets = rng.integers(0, classes, rows)
    targets[:2] = 0, classes - 1
    return logits, targets


OPTIONS: list[dict[str, Any]] = [
    {"gamma": 0.0},
    {"gamma": 0.3, "threshold": 0.2, "return_stats": True},
    {"gamma": np.linspace(0, 1, 7), "reduction": "none", "value": "surrogate", "z_loss": 0.01},
    {"gamma": 1.0, "ignore_index": 0, "sample_weight": np.linspace(0, 2, 7), "grad_output": -0.5},
    {"gamma": 0.5, "label_smoothing": 0.1, "weight": "some 0", "reduction": "sum"},
    {"gamma": 0.5, "label_smoothing": 0.3, "normalizer": 3.0},
    {"gamma": 0.1, "weight": "some 0"},
]


def filled(options: dict[str, Any], classes: int) -> dict[str, Any]:
    if options.get("weight") is None:
        return options
    return {**options, "weight": np.random.default_rng(0).choice([0.0, 0.5, 2.0], classes)}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(options))
def test_slices_of_whole_segments_have_the_bits_of_the_whole(engine, options, dtype):
    logits, targets = problem(2 * 8192 + 1000, dtype)
    options = filled(options, logits.shape[1])
    want = engine.loss_and_grad(logits, targets, **options)
    found = sharded(engine, logits, targets, cuts=[8192, 2 * 8192], **options)
    if "label_smoothing" in options:  # sums of c_v (max - z_v) depend on the slice's maximum
        return assert_close(found, want, dtype)
    assert_same_bits(np.asarray(found[0]), np.asarray(want[0]))
    assert_same_bits(found[1], want[1])
    for one, other in zip(found[2:], want[2:], strict=True):
        for field, whole in zip(one, other, strict=True):
            assert_same_bits(field, whole)


def assert_close(found: Any, want: Any, dtype: str) -> None:
    tolerance = 1e-13 if dtype == "float64" else 1e-6
    np.testing.assert_allclose(found[0], want[0], rtol=tolerance, atol=tolerance)
    # Rounding to 16 bits may go either way; each gradient is within 5e-7 of the weight.
    spacing = {"float16": 1e-3, "bfloat16": 8e-3}.get(dtype, tolerance)
    one, other = found[1].astype("f8"), want[1].astype("f8")
    np.testing.assert_allclose(one, other, rtol=spacing, atol=min(tolerance, 5e-7))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [2, 3, 10, 33, 100, 1000])
def test_any_cuts(engine, classes, dtype):
    logits, targets = problem(classes, dtype)
    rng = np.random.default_rng(1)
    for options in OPTIONS:
        options = filled(options, classes)
        want = engine.loss_and_grad(logits, targets, **options)
        count = int(rng.integers(1, min(classes, 5)))
        cuts = sorted(rng.choice(np.arange(1, classes), count, replace=False).tolist())
        assert_close(sharded(engine, logits, targets, cuts=cuts, **options), want, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("scale", [1e-3, 100.0, 1e5, 1e30])
def test_logits_of_any_size(engine, scale, dtype):
    logits, targets = problem(40, dtype, scale=scale)
    logits[3] += 10 * scale
    logits[4, :20] -= 100 * scale
    for options in (OPTIONS[0], OPTIONS[1], OPTIONS[4]):
        options = {**filled(options, 40), "return_stats": False}
        want = engine.loss_and_grad(logits, targets, **options)
        found = sharded(engine, logits, targets, cuts=[20, 30], **options)
        assert_close(found, want, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_slices_on_both_sides_of_where_logits_are_shifted(engine, sign, dtype):
    rng = np.random.default_rng(0)
    least = sign * (1048576.0 if dtype == "float64" else 32768.0)  # ExponentRange::kLargestLogit
    logits = (least + 2.0 * rng.standard_normal((60, 6))).astype(dtype)
    targets = rng.integers(0, 6, 60)
    want = engine.loss_and_grad(logits, targets, 0.1, reduction="none")
    found = sharded(engine, logits, targets, 0.1, [3], reduction="none")
    # Each within the promise: a row's loss, and the gradient of its weight.
    tolerance = 2e-15 if dtype == "float64" else 1e-6
    np.testing.assert_allclose(found[0], want[0], rtol=10 * tolerance, atol=tolerance)
    np.testing.assert_allclose(found[1], want[1], rtol=0.0, atol=tolerance)


def test_masked_and_poisoned_slices(engine):
    logits = np.zeros((6, 8), np.float32)
    logits[0, :4] = -np.inf  # a slice of its own
    logits[1, 4:] = -np.inf
    logits[2] = -np.inf
    logits[3, 5] = np.nan
    logits[4, 2] = np.inf
    logits[5, :4], logits[5, 2] = -np.inf, np.nan
    targets = np.array([1, 1, 1, 1, 1, 1])
    for options in ({}, {"label_smoothing": 0.1, "weight": [0.0] * 4 + [1.0] * 4}):
        for gamma in (0.0, 0.5):
            given = {"gamma": gamma, "reduction": "none", "return_stats": True, **options}
            want = engine.loss_and_grad(logits, targets, **given)
            found = sharded(engine, logits, targets, cuts=[4], **given)
            np.testing.assert_allclose(found[0], want[0], rtol=1e-6)
            np.testing.assert_allclose(found[1], want[1], rtol=1e-6, atol=1e-7)
            for field, whole in zip(found[2], want[2], strict=True):
                np.testing.assert_allclose(field, whole, rtol=1e-6)


def test_any_layout(engine):
    rng = np.random.default_rng(5)
    logits = rng.standard_normal((4, 50, 3)).astype("f4")
    targets = rng.integers(0, 50, (4, 3))
    want = sharded(engine, logits, targets, 0.3, [20], axis=1, shift=1)
    moved = np.ascontiguousarray(np.moveaxis(logits, 1, -1))
    found = sharded(engine, moved, targets, 0.3, [20], shift=1)
    assert_same_bits(np.asarray(found[0]), np.asarray(want[0]))
    assert_same_bits(np.ascontiguousarray(np.moveaxis(found[1], -1, 1)), want[1])
    assert_close(found, engine.loss_and_grad(moved, targets, 0.3, shift=1), "float32")
    # In place, and a slice that is a view of the whole.
    of_whole = engine.loss_and_grad(logits, targets, 0.3, axis=1)[1][:, 10:30]
    stats = shards.merge([engine.partial_stats(logits, targets, axis=1, num_classes=50)])
    view = logits[:, 10:30]
    grad = engine.sharded_loss_and_grad(
        view, targets, 0.3, stats, axis=1, first_class=10, num_classes=50, out=view
    )[1]
    assert grad is view
    np.testing.assert_allclose(logits[:, 10:30], of_whole, rtol=1e-6, atol=5e-7)
    # One row.
    one = shards.merge([engine.partial_stats(np.zeros(5), 3, num_classes=5)])
    loss, _ = engine.sharded_loss_and_grad(np.zeros(5), 3, 0.3, one, num_classes=5)
    assert loss == engine.loss(np.zeros(5), 3, 0.3)


def test_no_rows(engine):
    stats = engine.partial_stats(np.zeros((0, 4)), np.zeros(0, int), first_class=2, num_classes=9)
    assert stats.shape == (0, 12)
    loss, grad = engine.sharded_loss_and_grad(
        np.zeros((0, 4)), np.zeros(0, int), 0.5, shards.merge([stats]), first_class=2, num_classes=9
    )
    assert loss == 0.0 and grad.shape == (0, 4)


def test_any_number_of_threads(engine):
    rows = 4000 if engine.name in IN_PROCESS else 400  # several threads; emulators always use them
    logits, targets = problem(500, "float32", rows)
    place = {"first_class": 0, "num_classes": 500}
    want = engine.partial_stats(logits, targets, **place, num_threads=1)
    assert_same_bits(engine.partial_stats(logits, targets, **place, num_threads=3), want)
    whole = engine.sharded_loss_and_grad(logits, targets, 0.3, want, **place, num_threads=1)
    found = engine.sharded_loss_and_grad(logits, targets, 0.3, want, **place, num_threads=3)
    assert_same_bits(np.asarray(found[0]), np.asarray(whole[0]))
    assert_same_bits(found[1], whole[1])


def stats_of_slices(logits: Any, **options: Any) -> Any:
    """Of two slices, both with these logits."""
    return shards.merge(
        shards.partial_stats(logits, [0, 1, 7], first_class=begin, num_classes=8, **options)
        for begin in (0, 4)
    )


def usual() -> dict[str, Any]:
    logits = np.zeros((3, 4), np.float32)
    stats = stats_of_slices(logits)
    return {"logits": logits, "targets": np.array([0, 1, 7]), "gamma": 0.5, "stats": stats,
            "first_class": 4, "num_classes": 8}  # fmt: skip


RANGE = "expected 0 <= first_class <= num_classes - 4 for a slice of 4 classes"


SHAPE = r"stats has shape \(3, 9\), expected that of targets, \(3,\), and 12 more"
WEIGHT = r"weight has shape \(4,\), expected \(8,\): one per class"
DTYPE = "targets has dtype float64, expected an integer dtype for a slice"


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"num_classes": 0}, ValueError, f"first_class = 4 and num_classes = 0, {RANGE}"),
        ({"first_class": 5}, ValueError, f"first_class = 5 and num_classes = 8, {RANGE}"),
        ({"first_class": -1}, ValueError, f"first_class = -1 and num_classes = 8, {RANGE}"),
        (
            {"targets": np.array([0, 8, 1])},
            IndexError,
            r"targets\[1\] = 8, expected 0 <= target < 8",
        ),
        ({"targets": np.full((3, 4), 0.25)}, TypeError, DTYPE),
        ({"weight": np.ones(4)}, ValueError, WEIGHT),
        ({"stats": np.zeros((3, 9))}, ValueError, SHAPE),
        (
            {"stats": np.zeros((3, 12), "f4")},
            TypeError,
            "stats has dtype float32, expected float64",
        ),
        ({"softcap": 3.0}, TypeError, "unexpected keyword argument 'softcap'"),
        (
            {
                "stats": shards.partial_stats(
                    np.zeros((3, 4)), [0, 1, 7], first_class=4, num_classes=8
                )
            },
            ValueError,
            r"stats\[0\] is of 4 classes from 4 on, expected of all 8: those of all slices are to",
        ),
        (
            {"label_smoothing": 0.1},
            ValueError,
            r"stats\[0\] was found without label_smoothing, expected with it, as label_smoothing",
        ),
    ],
)
def test_errors(given, error, message):
    call_in_vain(shards.loss_and_grad, error, message, {**usual(), **given})


def test_classes_without_weight_need_no_stats_of_label_smoothing():
    given = {**usual(), "weight": np.zeros(8), "label_smoothing": 0.1}
    logits = given["logits"]
    assert shards.loss_and_grad(**given)[0] == 0.0
    given["stats"] = stats_of_slices(logits, weight=np.zeros(8), label_smoothing=0.1)
    assert shards.loss_and_grad(**given)[0] == 0.0


def test_class_weights_that_cancel():
    weight = np.array([1.0, -1.0, 2.0, -2.0, 0.0, 0.0, 3.0, -3.0])
    given = {**usual(), "weight": weight, "label_smoothing": 0.1, "reduction": "sum"}
    logits = given["logits"]
    given["stats"] = stats_of_slices(logits, weight=weight, label_smoothing=0.1)
    options = {"weight": weight, "label_smoothing": 0.1, "reduction": "sum"}
    want = gce.loss(np.hstack([logits] * 2), given["targets"], given["gamma"], **options)
    np.testing.assert_allclose(shards.loss_and_grad(**given)[0], want, rtol=1e-13)


@pytest.mark.parametrize("target", [0, 1])
def test_doubles_farther_apart_than_any_double(target):
    logits = np.array([[1e308, -1e308]])
    options = {"num_classes": 2, "reduction": "none"}
    stats = shards.merge(
        shards.partial_stats(logits[:, i : i + 1], [target], first_class=i, num_classes=2)
        for i in (0, 1)
    )
    want, want_grad = gce.loss_and_grad(logits, [target], 0.5, reduction="none")
    for i in (0, 1):
        loss, grad = shards.loss_and_grad(
            logits[:, i : i + 1], [target], 0.5, stats, first_class=i, **options
        )
        assert loss == want and grad == want_grad[:, i]


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize(
    ("weight", "loss"),
    [
        ([1, 1, 1], np.inf), ([1, 1, 0], np.inf), ([1, -1, -1], -np.inf), ([1, 1, -1], np.nan),
        ([1, 2, -1], np.nan), ([1, 0, 0], 0.0),
    ],
)  # fmt: skip
def test_a_slice_that_is_masked_as_a_whole(weight, loss, dtype):
    logits = np.array([[1.0, -np.inf, -np.inf]], dtype)
    options = {"weight": np.array(weight, float), "label_smoothing": 0.1}
    slices = {"first": (0, 1), "masked": (1, 3)}
    parts = [
        shards.partial_stats(logits[:, a:b], [0], first_class=a, num_classes=3, **options)
        for a, b in slices.values()
    ]
    found, _ = shards.loss_and_grad(
        logits[:, :1], [0], 0.5, shards.merge(parts), first_class=0, num_classes=3,
        reduction="none", **options,
    )  # fmt: skip
    np.testing.assert_array_equal(found, [loss])
    np.testing.assert_array_equal(found, gce.loss(logits, [0], 0.5, reduction="none", **options))


# What is wrong without care is undefined behaviour: `make sanitize` tells.
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_statistics_of_unaligned_logits(dtype):
    logits = np.random.default_rng(5).normal(size=(3, 7)).astype(dtype)
    unaligned = np.empty(logits.nbytes + 1, np.uint8)[1:].view(dtype).reshape(logits.shape)
    unaligned[...] = logits
    given = {"targets": [0, 3, 6], "num_classes": 7}
    expected = shards.partial_stats(logits, **given)
    assert shards.partial_stats(unaligned, **given).tobytes() == expected.tobytes()


def test_errors_of_merge():
    stats = usual()["stats"]
    for parts in ([], [stats, stats[:2]], [np.zeros(9)], [np.float64(1.0)]):
        with pytest.raises(ValueError, match=r"parts have shapes .*, expected of all that of"):
            shards.merge(parts)
    with pytest.raises(
        TypeError, match=r"^parts has type NoneType, expected an iterable of arrays"
    ):
        shards.merge(None)
    with pytest.raises(TypeError, match=r"^parts has type ndarray, expected an iterable of arrays"):
        shards.merge(np.array(3.0))


@pytest.mark.parametrize(
    ("part", "error"),
    [
        ("mean", ValueError),
        ([[1.0], [2.0, 3.0]], ValueError),
        ([10**400], ValueError),
        (object(), TypeError),
        ([None, {}], TypeError),
    ],
    ids=["text", "ragged", "too large", "an object", "of objects"],
)
def test_merge_says_which_part_is_no_array(part, error):
    with pytest.raises(error, match=r"^parts\[1\] is no array of float64: "):
        shards.merge([usual()["stats"], part])


@pytest.mark.parametrize("field", ["first_class", "classes"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_merge_of_parts_whose_classes_are_no_numbers(field, bad):
    stats = usual()["stats"]
    broken = stats.copy()
    broken[..., shards.FIELDS.index(field)] = bad
    with pytest.raises(ValueError, match=r"^parts\[1\] begins with class .*, expected"):
        shards.merge([broken, stats] if field == "classes" else [stats, broken])


@pytest.mark.parametrize("shift", [0, 1, 9])
def test_merge_says_where_the_order_is_not_that_of_the_classes(shift):
    logits = np.random.default_rng(0).normal(size=(2, 3, 9))
    logits[0, 2] = -np.inf
    logits[1, 1, 4] = np.nan
    targets = np.zeros((2, 3), int)
    first, middle, last = (
        shards.partial_stats(
            logits[..., i : i + 3], targets, first_class=i, num_classes=9, shift=shift
        )
        for i in (0, 3, 6)
    )
    whole = shards.merge([first, middle, last])
    tree = shards.merge([shards.merge([first, middle]), last])
    np.testing.assert_array_equal(tree[..., 6], whole[..., 6])
    if shift == 9:  # there are no rows, and so no order
        return
    for parts, at in [
        ([middle, first, last], 1),
        ([first, last, middle], 1),
        ([first, middle, middle, last], 2),
        ([first, shards.merge([middle, last]), middle], 2),
        ([first, last], 1),
        ([first, whole], 1),
    ]:
        message = (
            rf"^parts\[{at}\] begins with class \d, expected \d, where parts\[{at - 1}\] ends: "
            "each slice once, in the order of the classes$"
        )
        with pytest.raises(ValueError, match=message):
            shards.merge(parts)


@pytest.mark.parametrize("processes", [2, 4])
def test_over_processes(processes):
    pytest.importorskip("torch.distributed")
    require(EXAMPLE.is_file(), "installed without the examples")
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), str(processes)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(gce.__file__).parent.parent)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("same bits as the whole") == processes
    assert done.stdout.count("label smoothing: within 1e-6") == processes


@pytest.mark.parametrize("rubbish", [np.nan, np.inf, -1e300])
def test_statistics_are_anything(rubbish):
    # Also what no int64 holds: under `make sanitize` such a conversion is an error.
    stats = np.full((3, len(shards.FIELDS)), rubbish)
    stats[:, -2:] = 0, 4  # which slice, is checked
    place = {"first_class": 0, "num_classes": 4}
    loss, grad = shards.loss_and_grad(np.zeros((3, 4), "f4"), [0, 1, 2], 0.3, stats, **place)
    assert np.isnan(loss)
    assert grad.shape == (3, 4)
