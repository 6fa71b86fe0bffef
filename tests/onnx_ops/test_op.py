"""The operator in a session gives what `gce.loss_and_grad` gives, bit for bit."""

from __future__ import annotations

import inspect
import itertools
import random
import sys
import threading
from typing import Any

import numpy as np
import onnx
import pytest
from op_models import (
    BFLOAT16,
    FLOATS,
    bits,
    make_session,
    numpy_op,
    op_model_for,
    problem,
    run_op,
)

import gce.onnx
from engines import IN_PROCESS, python, skip_if_cpu_lacks

SHAPES = [(1, 1), (3, 2), (5, 7), (64, 10), (2, 3, 4), (9, 33), (2, 5, 3, 4), (4, 1000), (3, 1025)]
REDUCTIONS = ["mean", "sum", "none"]


def check(arguments, **attributes):
    found, expected = run_op(**arguments, **attributes), numpy_op(**arguments, **attributes)
    assert bits(found) == bits(expected)
    (alone,) = run_op(**arguments, **attributes, grad=False)
    assert bits([alone]) == bits(found[:1])


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_dtype_rank_and_reduction(shape, dtype, reduction):
    rng = np.random.default_rng(1)
    check(problem(rng, dtype, shape), reduction=reduction)
    arguments = problem(rng, dtype, shape, np.int32, weights=True, ignored=-1, gamma_per_row=True)
    check(arguments, reduction=reduction, ignore_index=-1)


@pytest.mark.parametrize("labels_dtype", [np.int32, np.int64, *FLOATS], ids=str)
@pytest.mark.parametrize("gamma_dtype", FLOATS, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_combination_of_types(dtype, gamma_dtype, labels_dtype):
    rng = np.random.default_rng(2)
    for per_row, weights in itertools.product((False, True), repeat=2):
        check(problem(rng, dtype, (6, 5, 2), labels_dtype, gamma_dtype, per_row, weights))


ATTRIBUTES: dict[str, list[Any]] = {
    "reduction": REDUCTIONS,
    "value": ["primitive", "surrogate"],
    "threshold": [0.0, 0.2, 1.0],
    "label_smoothing": [0.0, 0.1, 1.0],
    "z_loss": [0.0, 1e-4, 0.5],
    "softcap": [0.0, 0.7, 30.0],
    "shift": [0, 1, 3],
    "ignore_index": [-100, 0, -1],
}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_attributes_combined(dtype):
    chooser = random.Random(5)
    rng = np.random.default_rng(5)
    for _ in range(60):
        chosen = chooser.sample(sorted(ATTRIBUTES), chooser.randint(0, len(ATTRIBUTES)))
        attributes: dict[str, Any] = {name: chooser.choice(ATTRIBUTES[name]) for name in chosen}
        labels_dtype = chooser.choice([np.int32, np.int64, *FLOATS])
        if labels_dtype in FLOATS:
            attributes.pop("ignore_index", None)
        arguments = problem(
            rng,
            dtype,
            chooser.choice(SHAPES),
            labels_dtype,
            chooser.choice(FLOATS),
            gamma_per_row=chooser.random() < 0.5,
            weights=chooser.random() < 0.5,
            ignored=attributes.get("ignore_index"),
            scale=chooser.choice([0.01, 1.0, 10.0]),
        )
        check(arguments, **attributes)


def test_attributes_are_those_of_the_numpy_face():
    schema = onnx.defs.get_schema(gce.onnx.OP_TYPE, 1, gce.onnx.DOMAIN)
    ours = inspect.signature(gce.loss).parameters
    # γ and weights are inputs; the rest has no place in an operator with classes along axis 1.
    elsewhere = {"logits", "targets", "gamma", "weight", "sample_weight", "normalizer", "axis"}
    elsewhere |= {"num_threads", "return_stats"}
    assert set(schema.attributes) == set(ours) - elsewhere
    assert set(schema.attributes) == set(ATTRIBUTES)


def test_special_scores():
    scores = np.array(
        [[0.0, -np.inf, 1.0], [np.nan, 0.0, 1.0], [np.inf, 0.0, 1.0], [3e38, -3e38, 0.0]], "f4"
    )
    labels = np.array([1, 0, 1, 1])
    for gamma, reduction in itertools.product((0.0, 1e-30, 0.5, 1.0), REDUCTIONS):
        for smoothing, z_loss, softcap in ((0, 0, 0), (0.25, 0, 0), (0, 0.5, 0), (0, 0, 5)):
            for given in (labels, np.eye(3)[labels]):
                check(
                    {"scores": scores, "labels": given, "gamma": np.array(gamma)},
                    reduction=reduction,
                    label_smoothing=float(smoothing),
                    z_loss=float(z_loss),
                    softcap=float(softcap),
                )


@pytest.mark.parametrize("shape", [(0, 5), (0, 5, 3), (2, 5, 0)], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_no_rows(dtype, shape):
    rng = np.random.default_rng(0)
    for reduction in REDUCTIONS:
        for labels_dtype, shift in itertools.product((np.int64, np.float64), (0, 2)):
            arguments = problem(rng, dtype, shape, labels_dtype, weights=True)
            loss, grad = run_op(**arguments, reduction=reduction, shift=shift)
            assert grad.shape == shape and grad.dtype == dtype
            if reduction == "none":
                assert loss.shape == (shape[0], *shape[2:])
            else:
                assert loss.shape == () and loss == 0


def test_nothing_counted_is_zero():
    arguments = problem(np.random.default_rng(0), FLOATS[0], (4, 3))
    arguments["labels"][:] = 7
    loss, grad = run_op(**arguments, ignore_index=7)
    assert loss == 0 and not grad.any()


# --- threads --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", [(64, 20000), (3000, 100), (100000, 7), (4, 21, 96, 96)], ids=str)
def test_any_number_of_threads_of_the_session(shape, dtype):
    arguments = problem(np.random.default_rng(3), dtype, shape, ignored=-1)
    expected = bits(numpy_op(**arguments, ignore_index=-1))
    for threads in (1, 2, 3, 8):
        assert bits(run_op(**arguments, ignore_index=-1, threads=threads)) == expected


def test_sessions_from_several_threads():
    """Runs of one session and of several at once, from eight threads."""
    rng = np.random.default_rng(4)
    problems = [problem(rng, FLOATS[i % 4], (40 + i, 900), ignored=-1) for i in range(8)]
    expected = [bits(numpy_op(**p, ignore_index=-1)) for p in problems]
    wrong = []

    def work(number):
        for turn in range(24):
            i = (number + turn) % len(problems)
            threads = 1 + (number + turn) % 3
            found = bits(run_op(**problems[i], ignore_index=-1, threads=threads))
            if found != expected[i]:
                wrong.append((number, turn))

    workers = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


IN_A_STORM = """
import numpy as np
from op_models import FLOATS, bits, problem, run_op
from storm import storm
arguments = problem(np.random.default_rng(0), FLOATS[0], (1000, 700))
want = bits(run_op(**arguments))
for _ in storm():
    for threads in (4, 1, 3):
        assert bits(run_op(**arguments, threads=threads)) == want
"""


def test_a_storm_of_signals():
    done = python(IN_A_STORM)
    assert done.returncode == 0, done.stderr


# --- instruction sets -----------------------------------------------------------------------------

ON_AN_ISA = """
import hashlib, sys
sys.path[:0] = ["tests", "tests/onnx_ops"]
import numpy as np
import gce
from op_models import FLOATS, bits, numpy_op, problem, run_op
rng = np.random.default_rng(6)
found = []
for dtype in FLOATS:
    for shape in [(7, 3), (33, 17), (2, 5, 19), (6, 1025), (128, 2048)]:
        for options in ({}, {"threshold": 0.3, "label_smoothing": 0.1, "reduction": "none"}):
            arguments = problem(rng, dtype, shape, weights=True)
            results = bits(run_op(**arguments, threads=2, **options))
            assert results == bits(numpy_op(**arguments, **options)), (dtype, shape, options)
            found.append(results)
print(gce.show_config(mode="dicts")["isa"], hashlib.sha256(repr(found).encode()).hexdigest())
"""


@pytest.fixture(scope="module")
def digests():
    """What the operator gives on each ISA, compared there with numpy's face."""
    found = {}
    for isa in IN_PROCESS:
        if isa in gce.show_config(mode="dicts")["isas_available"]:
            done = python(ON_AN_ISA, GCE_FORCE_ISA=isa)
            assert done.returncode == 0, done.stderr
            name, digest = done.stdout.split()
            assert name == isa
            found[isa] = digest
    return found


@pytest.mark.parametrize("isa", IN_PROCESS)
def test_every_isa(isa, digests):
    skip_if_cpu_lacks(isa)
    # The library picked this ISA too: each rounds in its own way, so no two digests agree.
    assert [name for name, digest in digests.items() if digest == digests[isa]] == [isa]


UNKNOWN_ISA = """
import sys
sys.path[:0] = ["tests", "tests/onnx_ops"]
import numpy as np
from op_models import run_op
try:
    run_op(np.zeros((2, 3), "f4"), np.zeros(2, "i8"), 0.5)
except Exception as error:
    print(error)
"""


def test_an_unknown_isa_is_an_error_and_not_a_crash():
    done = python(UNKNOWN_ISA, GCE_FORCE_ISA="mmx")
    assert done.returncode == 0, done.stderr
    assert "GCE_FORCE_ISA = mmx, expected one of" in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="such bytes in an environment are POSIX's")
def test_an_isa_that_is_no_text():
    done = python(UNKNOWN_ISA, GCE_FORCE_ISA="\udcff")
    assert done.returncode == 0, done.stderr
    assert "GCE_FORCE_ISA = ?, expected one of" in done.stdout


# --- memory that a caller brings ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["scores", "labels", "weights"])
def test_a_loss_bound_to_an_input_is_refused(name):
    arguments = problem(np.random.default_rng(1), FLOATS[1], (8, 8), np.int64, weights=True)
    session = make_session(op_model_for(arguments, reduction="none"))
    binding = session.io_binding()
    for key, array in arguments.items():
        binding.bind_cpu_input(key, array)
    pointer = arguments[name].ctypes.data
    binding.bind_output("loss", "cpu", 0, np.float64, (8,), pointer)
    binding.bind_output("grad")
    before = {key: array.copy() for key, array in arguments.items()}
    argument = {"scores": "logits", "labels": "targets", "weights": "weight"}[name]
    with pytest.raises(Exception, match=f"loss overlaps {argument}, expected memory of its own"):
        session.run_with_iobinding(binding)
    for key, array in arguments.items():
        assert array.tobytes() == before[key].tobytes()


def test_a_gradient_bound_to_the_scores_is_in_place():
    arguments = problem(np.random.default_rng(1), FLOATS[0], (80, 70))
    expected = bits(numpy_op(**arguments))
    session = make_session(op_model_for(arguments))
    binding = session.io_binding()
    for key, array in arguments.items():
        binding.bind_cpu_input(key, array)
    scores = arguments["scores"]
    binding.bind_output("loss")
    binding.bind_output("grad", "cpu", 0, np.float32, scores.shape, scores.ctypes.data)
    session.run_with_iobinding(binding)
    loss = binding.copy_outputs_to_cpu()[0]
    assert bits([loss, scores]) == expected


def test_bfloat16_is_bfloat16():
    """The models' casts keep what they carry: 16-bit results, not float32 ones."""
    arguments = problem(np.random.default_rng(8), BFLOAT16, (50, 20))
    _, grad = run_op(**arguments)
    wide = {**arguments, "scores": arguments["scores"].astype("f4")}
    assert bits([grad]) == bits([numpy_op(**wide)[1].astype(BFLOAT16)])
