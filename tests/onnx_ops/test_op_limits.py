"""The operator at the limits: sizes from 0 to beyond 2^31, and those that no memory holds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from op_models import FLOATS, bits, make_session, numpy_op, op_model_for, problem, run_op

from support import require_memory


@pytest.mark.parametrize("shape", [(1, 10_000_000), (100_000, 1), (0, 10_000_000), (0, 1)], ids=str)
def test_ten_million_classes_one_class_and_no_rows(shape):
    arguments = problem(np.random.default_rng(0), FLOATS[0], shape)
    expected = bits(numpy_op(**arguments))
    for threads in (1, 3):
        assert bits(run_op(**arguments, threads=threads)) == expected


def run_bound(session: Any, arguments: Any, shape: Any, **places: Any) -> Any:
    """The loss. Nothing is copied: the scores are read where they are, as if of this shape."""
    binding = session.io_binding()
    for name, array in arguments.items():
        lengths = shape if name == "scores" else array.shape
        binding.bind_input(name, "cpu", 0, array.dtype, lengths, array.ctypes.data)
    for output in session.get_outputs():
        binding.bind_output(output.name, *places.get(output.name, ()))
    session.run_with_iobinding(binding)
    return binding.get_outputs()[0].numpy()


def run_in_place(arguments: Any, **attributes: Any) -> Any:
    """The loss; the gradient is in the place of the scores."""
    session = make_session(op_model_for(arguments, **attributes), threads=2)
    scores = arguments["scores"]
    place = ("cpu", 0, scores.dtype, scores.shape, scores.ctypes.data)
    return run_bound(session, arguments, scores.shape, grad=place)


@pytest.mark.xdist_group("memory")
def test_more_than_2_to_the_31_elements():
    # 4 GiB of scores, which are the same thousand rows again and again.
    require_memory(6)
    rows, classes, repeats = 1027, 1024, 2043
    block = problem(np.random.default_rng(0), np.dtype("float16"), (rows, classes))
    want_loss, want = numpy_op(**block, reduction="none")
    scores = np.resize(block["scores"], (repeats * rows, classes))
    assert scores.size > 2**31
    labels = np.resize(block["labels"], repeats * rows)
    loss = run_in_place({**block, "scores": scores, "labels": labels}, reduction="none")
    np.testing.assert_array_equal(loss, np.resize(want_loss, repeats * rows))
    grads = scores.reshape(repeats, rows, classes)
    assert [i for i, grad in enumerate(grads) if grad.tobytes() != want.tobytes()] == []

    # One row, whose label is beyond what 32 bits index.
    row = scores.reshape(1, -1)
    row[...] = -1
    row[0, -1] = 19
    p = math.exp(20) / (row.size - 1 + math.exp(20))
    s = 0.3 + 0.7 * p
    label = np.array([row.size - 1])
    loss = run_in_place({"scores": row, "labels": label, "gamma": np.array(0.3)})
    assert loss == np.float16(-math.log(s) / 0.7)
    assert row[0, -1] == np.float16(p / s * (p - 1))
    assert not row[0, :-1].any()  # less than float16 has


NOT_HELD = [
    (True, (1, 2**50), "Failed to allocate memory"),
    (True, (2**31, 2**31), "overflow"),
    (False, (2**31, 2**31), r"strides that span more than 2\^61 bytes"),
    (False, (1, 2**59), r"expected at most 2\^58 elements"),
    (False, (2**40, 2**40), "overflow"),  # which the runtime says before the operator
]


@pytest.mark.parametrize(("grad", "shape", "message"), NOT_HELD, ids=str)
def test_scores_that_no_memory_holds(grad, shape, message):
    # The scores are not there: it has to be an error before they are read.
    arguments = problem(np.random.default_rng(0), FLOATS[0], (1, 5))
    session = make_session(op_model_for(arguments, grad=grad))
    with pytest.raises(RuntimeError, match=message):
        run_bound(session, arguments, shape)
    assert bits(session.run(None, arguments)) == bits(numpy_op(**arguments))[: 1 + grad]
