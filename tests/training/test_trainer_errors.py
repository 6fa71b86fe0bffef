"""What a `Trainer` raises, and that nothing has changed then and nothing is printed."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from small_models import (
    CLASSES,
    FEATURES,
    batch,
    everything,
    linear,
    model_of,
    perceptron,
    sequences,
)

import gce.onnx
from gce.onnx.training import SGD, AdamW, Trainer, training_graph
from gce.onnx.training._checks import Feeds
from gce.onnx.training._graph import OPTIONS

X, LABELS = batch(4, 0)
ROWS = np.full(4, 0.5)
NAN, INF = float("nan"), float("inf")


def changed(array: np.ndarray[Any, Any], position: Any, value: Any) -> np.ndarray[Any, Any]:
    array = array.copy()
    array[position] = value
    return array


def require_unchanged(trainer: Trainer, call: Callable[[], Any], error: Any, text: str) -> None:
    before = everything(trainer), trainer.grad_norm
    with pytest.raises(error, match=text) as raised:
        call()
    assert raised.type is error
    assert (everything(trainer), trainer.grad_norm) == before


# --- what is fed ----------------------------------------------------------------------------------

WRONG_INPUTS: dict[str, tuple[Any, type[Exception], str]] = {
    "float64": (X.astype("f8"), TypeError, r"^inputs\['x'\] has dtype float64, expected float32$"),
    "float16": ({"x": X.astype("f2")}, TypeError, r"^inputs\['x'\] has dtype float16, expected f"),
    "integers": (np.ones((4, 5), int), TypeError, r"^inputs\['x'\] has dtype int64, expected"),
    "another byte order": (X.astype(">f4"), TypeError, r"^inputs\['x'\] has dtype >f4, expected"),
    "a list": (X.tolist(), TypeError, r"^inputs\['x'\] has dtype float64, expected float32$"),
    "text": ("x", TypeError, r"^inputs\['x'\] has dtype <U1, expected float32$"),
    "None": (None, TypeError, r"^inputs\['x'\] has dtype object, expected float32$"),
    "no input": ({}, ValueError, r"^inputs has no 'x', expected \['x'\]$"),
    "another input": ({"y": X}, ValueError, r"^inputs has 'y', expected \['x'\]$"),
    "one too many": ({"x": X, "z": X}, ValueError, r"^inputs has 'z', expected \['x'\]$"),
    "labels there": ({"x": X, "labels": LABELS}, ValueError, r"^inputs has 'labels', expected \["),
    "rank 1": (X[0], ValueError, r"^inputs\['x'\] has shape \(5,\), expected \(N, 5\)$"),
    "rank 3": (X[None], ValueError, r"^inputs\['x'\] has shape \(1, 4, 5\), expected \(N, 5\)$"),
    "too wide": (np.ones((4, 6), "f4"), ValueError, r"^inputs\['x'\] has shape \(4, 6\), expecte"),
}
WRONG_LABELS: dict[str, tuple[Any, type[Exception], str]] = {
    "float": (LABELS.astype("f4"), TypeError, "^labels has dtype float32, expected integers$"),
    "bool": (LABELS > 1, TypeError, "^labels has dtype bool, expected integers$"),
    "text": ("abc", TypeError, "^labels has dtype <U3, expected integers$"),
    "None": (None, TypeError, "^labels has dtype object, expected integers$"),
    "empty list": ([], TypeError, "^labels has dtype float64, expected integers$"),
    "one-hot": (np.eye(4, dtype=int), ValueError, r"^labels has shape \(4, 4\), expected \(4,\)$"),
    "a scalar": (1, ValueError, r"^labels has shape \(\), expected \(4,\)$"),
    "too few": (LABELS[:3], ValueError, r"^labels has shape \(3,\), expected \(4,\)$"),
    "one": (LABELS[:1], ValueError, r"^labels has shape \(1,\), expected \(4,\)$"),
    "too large": (
        changed(LABELS, 2, CLASSES), IndexError,
        r"^targets\[2\] = 4, expected 0 <= target < 4$",
    ),
    "negative": (
        changed(LABELS, 1, -1), IndexError, r"^targets\[1\] = -1, expected 0 <= target < 4$",
    ),
    "beyond int64": (
        np.full(4, 2**64 - 1, np.uint64), IndexError,
        r"^targets\[0\] = 9223372036854775807, expected 0 <= target < 4$",
    ),
}  # fmt: skip
WRONG_GAMMA: dict[str, tuple[Any, type[Exception], str]] = {
    "above": (1.5, ValueError, "^gamma = 1.5, expected 0 <= gamma <= 1$"),
    "below": (-0.5, ValueError, "^gamma = -0.5, expected 0 <= gamma <= 1$"),
    "just above": (np.nextafter(1, 2), ValueError, "^gamma = 1.0000000000000002, expected 0 <= g"),
    "nan": (NAN, ValueError, "^gamma = nan, expected 0 <= gamma <= 1$"),
    "text": ("0.5", TypeError, "^gamma has dtype <U3, expected numbers$"),
    "complex": (0.5j, TypeError, "^gamma has dtype complex128, expected numbers$"),
    "per row": (ROWS, ValueError, r"^gamma has shape \(4,\), expected a number: one per row need"),
}
WRONG_ROWS: dict[str, tuple[Any, type[Exception], str]] = {
    "above": (changed(ROWS, 2, 1.5), ValueError, r"^gamma\[2\] = 1.5, expected 0 <= gamma <= 1$"),
    "nan": (changed(ROWS, 3, NAN), ValueError, r"^gamma\[3\] = nan, expected 0 <= gamma <= 1$"),
    "too few": (ROWS[:3], ValueError, r"^gamma has shape \(3,\), expected a number or \(4,\), the"),
    "a column": (ROWS[:, None], ValueError, r"^gamma has shape \(4, 1\), expected a number or \("),
}
WRONG_RATES: dict[str, tuple[Any, type[Exception], str]] = {
    "negative": (-1e-3, ValueError, "^learning_rate = -0.001, expected a finite number of at lea"),
    "nan": (NAN, ValueError, "^learning_rate = nan, expected a finite number of at least 0$"),
    "infinite": (INF, ValueError, "^learning_rate = inf, expected a finite number of at least 0$"),
    "text": ("0.1", TypeError, "^learning_rate = '0.1', expected a number$"),
    "complex": (1j, TypeError, "^learning_rate = 1j, expected a number$"),
    "several": (ROWS, TypeError, r"^learning_rate = array\(.*, expected a number$"),
}
Wrong = dict[str, tuple[Any, type[Exception], str]]


def cases(wrong: Wrong) -> Any:
    return pytest.mark.parametrize(("given", "error", "text"), wrong.values(), ids=list(wrong))


@pytest.fixture(params=[1, 3], ids=["", "accumulating"])
def trainer(request: pytest.FixtureRequest) -> Trainer:
    """In the middle of a training; where it accumulates, after two of three batches."""
    made = Trainer(perceptron(), accumulate=request.param, clip_norm=1.0, gamma=0.3)
    for _ in range(5):
        made.step(X, LABELS)
    return made


@cases(WRONG_INPUTS)
def test_wrong_inputs(trainer, given, error, text, capfd):
    require_unchanged(trainer, lambda: trainer.step(given, LABELS), error, text)
    require_unchanged(trainer, lambda: trainer.evaluate(given, LABELS), error, text)
    require_unchanged(trainer, lambda: trainer.predict(given), error, text)
    assert capfd.readouterr() == ("", "")


@cases(WRONG_LABELS)
def test_wrong_labels(trainer, given, error, text, capfd):
    require_unchanged(trainer, lambda: trainer.step(X, given), error, text)
    require_unchanged(trainer, lambda: trainer.evaluate(X, given), error, text)
    assert capfd.readouterr() == ("", "")


@cases(WRONG_GAMMA)
def test_wrong_gamma(trainer, given, error, text, capfd):
    require_unchanged(trainer, lambda: trainer.step(X, LABELS, gamma=given), error, text)
    require_unchanged(trainer, lambda: trainer.evaluate(X, LABELS, gamma=given), error, text)
    with pytest.raises(error, match=text):
        Trainer(perceptron(), gamma=given)
    scheduled = Trainer(perceptron(), gamma=lambda step: given)
    require_unchanged(scheduled, lambda: scheduled.step(X, LABELS), error, text)
    assert capfd.readouterr() == ("", "")


@cases(WRONG_ROWS)
def test_wrong_gamma_of_rows(given, error, text, capfd):
    if "expected 0 <=" in text:  # its shape, the trainer cannot know
        with pytest.raises(error, match=text):
            Trainer(perceptron(), gamma=given, gamma_per_row=True)
    trainer = Trainer(perceptron(), gamma=lambda step: given, gamma_per_row=True)
    require_unchanged(trainer, lambda: trainer.step(X, LABELS), error, text)
    require_unchanged(trainer, lambda: trainer.evaluate(X, LABELS), error, text)
    assert capfd.readouterr() == ("", "")


@cases(WRONG_RATES)
def test_wrong_learning_rates(trainer, given, error, text):
    require_unchanged(trainer, lambda: trainer.step(X, LABELS, learning_rate=given), error, text)
    with pytest.raises(error, match=text):
        Trainer(perceptron(), learning_rate=given)
    scheduled = Trainer(perceptron(), learning_rate=lambda step: given)
    require_unchanged(scheduled, lambda: scheduled.step(X, LABELS), error, text)


def test_gammas_that_are_given_once():
    trainer = Trainer(perceptron(), gamma=ROWS, gamma_per_row=True)
    assert np.isfinite(trainer.step(X, LABELS))
    with pytest.raises(ValueError, match=r"gamma\[1, 0\] = 2, expected 0 <= gamma <= 1"):
        Trainer(perceptron(), gamma=np.array([[0.0], [2.0]]), gamma_per_row=True)


def test_labels_that_pytorch_ignores():
    """Its default ignore_index is -100; here nothing is ignored by default."""
    labels = changed(LABELS, 1, -100)
    text = "expected 0 <= target < .: labels of -100 are ignored with ignore_index=-100"
    trainer = Trainer(perceptron())
    require_unchanged(trainer, lambda: trainer.step(X, labels), IndexError, text)
    require_unchanged(trainer, lambda: trainer.evaluate(X, labels), IndexError, text)
    assert np.isfinite(Trainer(perceptron(), ignore_index=-100).step(X, labels))
    other = Trainer(perceptron(), ignore_index=0)
    require_unchanged(
        other, lambda: other.step(X, labels), IndexError, r"expected 0 <= target < .$"
    )


@pytest.mark.parametrize("make", [Trainer, training_graph])
def test_an_argument_that_there_is_not(make):
    text = (
        rf"unexpected keyword argument 'lr', expected those of {make.__name__}, model, optimizer,"
    )
    with pytest.raises(TypeError, match=rf"{text}.* of the loss, weights, .*, ignore_index$"):
        make(perceptron(), lr=0.1)


def test_a_file_that_is_no_model(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(ValueError, match=r"model.onnx is no ONNX model: "):
        Trainer(path)


# --- which value are the logits -------------------------------------------------------------------


def ending(*nodes: onnx.NodeProto, outputs: tuple[str, ...] = ("y",)) -> onnx.ModelProto:
    model = linear()
    model.graph.node.extend(nodes)
    del model.graph.output[:]
    model.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", CLASSES]) for name in outputs
    )
    return model


@pytest.mark.parametrize("op_type", ["Softmax", "Sigmoid"])
@pytest.mark.parametrize("logits", ["y", None])
def test_probabilities_are_no_logits(op_type, logits):
    model = ending(
        helper.make_node(op_type, ["logits"], ["p"]), helper.make_node("Identity", ["p"], ["y"])
    )
    text = f"logits = 'y' are probabilities, the {op_type} of 'logits', expected logits"
    for make in (Trainer, training_graph, gce.onnx.attach_loss):
        with pytest.raises(ValueError, match=text):
            make(model, logits=logits)
    assert np.isfinite(Trainer(model, logits="logits").step(X, LABELS))


def test_log_probabilities_are_logits():
    """The logarithm of a softmax has itself for its log-softmax."""
    model = ending(helper.make_node("LogSoftmax", ["logits"], ["y"]))
    ours, plain = Trainer(model), Trainer(linear())
    assert ours.step(X, LABELS) == pytest.approx(plain.step(X, LABELS), rel=1e-6)


def test_where_the_logits_may_be():
    model = ending(
        helper.make_node("Softmax", ["logits"], ["p"]),
        helper.make_node("Relu", ["logits"], ["r"]),
        outputs=("p", "r"),
    )
    text = r"whose outputs are \['p', 'r'\]; 'p' are the Softmax of 'logits'$"
    with pytest.raises(ValueError, match=text):
        Trainer(model)


# --- labels ---------------------------------------------------------------------------------------


def test_labels_beyond_int64_are_not_ignored():
    # As an int64, which the graph takes, the largest uint64 would be -1.
    trainer = Trainer(perceptron(), ignore_index=-1)
    labels = np.full(4, 2**64 - 1, np.uint64)
    require_unchanged(trainer, lambda: trainer.step(X, labels), IndexError, r"expected 0 <= target")
    assert trainer.step(X, np.full(4, -1)) == 0.0


@pytest.mark.parametrize("dtype", [">u8", "<u8"])
def test_labels_beyond_int64_of_any_byte_order(dtype):
    trainer = Trainer(perceptron(), ignore_index=-100)
    labels = np.array([0, 1, 2, 2**64 - 100], dtype)
    for call in (trainer.step, trainer.evaluate):
        require_unchanged(
            trainer, lambda call=call: call(X, labels), IndexError, r"targets\[3\] = "
        )


def test_the_texts_are_those_of_the_core():
    trainer = Trainer(perceptron())
    labels = changed(LABELS, 3, 99)
    for call in (lambda: gce.loss(trainer.predict(X), labels, 0.3), lambda: gce.loss(X, LABELS, 2)):
        with pytest.raises((IndexError, ValueError)) as raised:
            call()
        given = {"labels": labels} if raised.type is IndexError else {"labels": LABELS, "gamma": 2}
        with pytest.raises(raised.type) as found:
            trainer.step(X, **given)
        assert str(found.value) == str(raised.value)


def test_labels_of_sequences():
    # The loss flattens them: [T, B] is as many as [B, T].
    rng = np.random.default_rng(0)
    tokens, labels = rng.integers(0, 6, (2, 3)), rng.integers(0, CLASSES, (2, 3))
    trainer = Trainer(sequences(), axis=-1, gamma_per_row=True, gamma=0.5)
    for wrong in (labels.T, labels.ravel(), labels[None], labels[:, :2], labels[:1]):
        text = r"^labels has shape .*, expected \(2, 3\)$"
        require_unchanged(
            trainer, lambda wrong=wrong: trainer.step(tokens, wrong), ValueError, text
        )
    for gamma in (np.full((3, 2), 0.5), np.full(6, 0.5), np.full((2, 1), 0.5)):
        text = r"^gamma has shape .*, expected a number or \(2, 3\), the shape of labels$"
        require_unchanged(
            trainer, lambda gamma=gamma: trainer.step(tokens, labels, gamma=gamma), ValueError, text
        )
    assert trainer.step(tokens, labels) > 0


def test_probabilities_that_are_none():
    trainer = Trainer(perceptron(), probabilities=True, gamma_per_row=True, gamma=0.5)
    soft = np.full((4, CLASSES), 0.25)
    wrong: list[tuple[Any, type[Exception], str]] = [
        (LABELS, TypeError, "^labels has dtype int64, expected floats: probabilities$"),
        (soft > 0, TypeError, "^labels has dtype bool, expected floats"),
        (soft[:, :3], ValueError, r"^labels has shape \(4, 3\), expected \(4, 4\)$"),
        (soft[0], ValueError, r"^labels has shape \(4,\), expected \(4, 4\)$"),
        (changed(soft, (1, 2), -0.5), ValueError, r"^targets\[1, 2\] = -0.5, expected a probab"),
        (changed(soft, (1, 2), NAN), ValueError, r"^targets\[1, 2\] = nan, expected a probab"),
        (changed(soft, (1, 2), 1e300), ValueError, r"^targets\[1, 2\] = inf, expected a prob"),
    ]
    for labels, error, text in wrong:
        require_unchanged(trainer, lambda labels=labels: trainer.step(X, labels), error, text)
    text = r"gamma has shape \(4, 4\), .* or \(4,\), the shape of labels without the class axis$"
    require_unchanged(trainer, lambda: trainer.step(X, soft, gamma=soft), ValueError, text)
    assert trainer.step(X, soft, gamma=ROWS) > 0
    text = "^labels has dtype float64, expected integers$"
    other = Trainer(perceptron())
    require_unchanged(other, lambda: other.step(X, soft), TypeError, text)


@pytest.mark.parametrize("dims", [(None, None), ("?", "?"), ("B", "B"), (2, 3)], ids=str)
def test_sizes_that_the_model_does_not_know(dims):
    # What is not known is not checked; a name that stands for two sizes says nothing.
    rng = np.random.default_rng(0)
    tokens, labels = rng.integers(0, 6, (2, 3)), rng.integers(0, CLASSES, (2, 3))
    trainer = Trainer(sequences(dims), axis=-1)
    assert trainer.step(tokens, labels) > 0
    with pytest.raises(ValueError, match=r"^labels has shape \(6,\), expected \("):
        trainer.step(tokens, labels.ravel())
    if dims == (2, 3):
        with pytest.raises(ValueError, match=r"has shape \(3, 2\), expected \(2, 3\)$"):
            trainer.step(tokens.T, labels.T)
    else:
        assert trainer.step(tokens.T, labels.T) > 0


def test_sizes_without_a_name_are_not_one_size():
    model = model_of([], {}, {"x": [None, 5], "labels": [None, None]}, {})
    x, labels = {"x": np.zeros((2, 5))}, np.zeros((3, 4), int)
    assert Feeds(model, ["x"], "labels", OPTIONS).of_loss(x, labels, 0.5)["labels"].shape == (3, 4)
    named = model_of([], {}, {"x": ["N", 5], "labels": ["N", None]}, {})
    with pytest.raises(ValueError, match=r"^labels has shape \(3, 4\), expected \(2, \?\)$"):
        Feeds(named, ["x"], "labels", OPTIONS).of_loss(x, labels, 0.5)


def test_a_size_that_only_the_core_knows():
    model = linear()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].Clear()
    trainer = Trainer(model)
    text = r"^targets has shape \(3,\), expected \(4,\): the shape of logits \(4, 4\) without axis"
    require_unchanged(trainer, lambda: trainer.step(X, LABELS[:3]), ValueError, text)
    text = r"^labels has shape \(4, 1\), expected \(\w+,\)$"
    require_unchanged(trainer, lambda: trainer.step(X, LABELS[:, None]), ValueError, text)


def test_a_model_of_two_inputs():
    nodes = [
        helper.make_node("Concat", ["a", "b"], ["both"], axis=1),
        helper.make_node("MatMul", ["both", "W"], ["logits"]),
    ]
    model = model_of(
        nodes, {"W": np.ones((4, 3), "f4")}, {"a": ["N", 1], "b": ["N", 3]}, {"logits": ["N", 3]}
    )
    model.graph.input[1].type.tensor_type.elem_type = TensorProto.FLOAT
    trainer = Trainer(model)
    a, b, labels = np.ones((2, 1), "f4"), np.ones((2, 3), "f4"), [0, 1]
    assert trainer.step({"b": b, "a": a}, labels) > 0
    wrong: list[tuple[Any, type[Exception], str]] = [
        (a, TypeError, r"^inputs has type ndarray, expected a mapping: the model .*\['a', 'b'\]"),
        ({"a": a}, ValueError, r"^inputs has no 'b', expected \['a', 'b'\]$"),
        ({"a": a, "b": b, "c": b}, ValueError, r"^inputs has 'c', expected \['a', 'b'\]$"),
        ({"a": b, "b": a}, ValueError, r"^inputs\['a'\] has shape \(2, 3\), expected \(N, 1\)$"),
    ]  # fmt: skip
    for given, error, text in wrong:
        require_unchanged(trainer, lambda given=given: trainer.step(given, labels), error, text)
    # The runtime says which node cannot be run.
    uneven = {"a": a, "b": b[:1]}
    require_unchanged(trainer, lambda: trainer.predict(uneven), RuntimeError, "Concat")
    require_unchanged(trainer, lambda: trainer.step(uneven, labels), RuntimeError, "Concat")
    assert trainer.step({"a": a, "b": b}, labels) > 0


def test_an_index_that_an_embedding_has_not(capfd):
    trainer = Trainer(sequences(), axis=-1)
    tokens, labels = np.full((2, 3), 6), np.zeros((2, 3), int)
    require_unchanged(trainer, lambda: trainer.step(tokens, labels), RuntimeError, "Gather")
    assert capfd.readouterr() == ("", "")


# --- numbers that are not finite ------------------------------------------------------------------


def two_classes(**options: Any) -> Trainer:
    """Logits are (x, -x)."""
    options = {"optimizer": SGD(), "learning_rate": 0.0, **options}
    return Trainer(linear(initial=np.array([[1.0, -1.0]], "f4")), **options)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize(("x", "found"), [(NAN, "nan"), (INF, "nan"), (3e38, "inf")])
def test_a_loss_that_is_not_finite(x, found, accumulate, capfd):
    trainer = two_classes(accumulate=accumulate)
    good, labels = np.ones((2, 1), "f4"), [1, 1]
    for call in range(6):
        text = rf"^loss is {found} in step {trainer.steps}, counted from 0: parameters and state a"
        bad = np.array([[x]], "f4")
        require_unchanged(trainer, lambda bad=bad: trainer.step(bad, [1]), FloatingPointError, text)
        trainer.step(good, labels)
        assert trainer.steps == (call + 1) // accumulate
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("optimizer", [SGD(momentum=0.9), AdamW()], ids=["SGD", "AdamW"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_errors_leave_no_trace(accumulate, optimizer):
    # A training with an error before each step has the bits of one without.
    options: dict[str, Any] = {
        "optimizer": optimizer, "accumulate": accumulate, "clip_norm": 0.5, "gamma": 0.3,
    }  # fmt: skip
    marred, clean = (Trainer(perceptron(), **options) for _ in range(2))
    mishaps = itertools.cycle(
        [
            (FloatingPointError, {"inputs": changed(X, (0, 0), NAN), "labels": LABELS}),
            (IndexError, {"inputs": X, "labels": changed(LABELS, 0, 77)}),
            (ValueError, {"inputs": X, "labels": LABELS, "gamma": 3.0}),
            (TypeError, {"inputs": X, "labels": LABELS + 0.5}),
        ]
    )
    for step in range(2 * accumulate + 1):
        for error, arguments in itertools.islice(mishaps, 3):
            with pytest.raises(error):
                marred.step(**arguments)
            assert everything(marred) == everything(clean)
        data = batch(6, step)
        assert marred.step(*data) == clean.step(*data)
    assert everything(marred) == everything(clean)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_norm_that_is_not_finite(accumulate, capfd):
    # Gradients of 1e30 have squares beyond float32, while the loss is log 4.
    trainer = Trainer(linear(), accumulate=accumulate, clip_norm=1.0)
    for _ in range(2 * accumulate - 1):
        trainer.step(X, LABELS)
    large = np.full((4, FEATURES), 1e30, "f4")
    labels = np.zeros(4, int)
    for array in trainer._parameters().values():
        array.fill(0.0)
    text = r"^the norm of the gradients is inf in step 1, counted from 0: parameters and state ar"
    require_unchanged(trainer, lambda: trainer.step(large, labels), FloatingPointError, text)
    trainer.step(X, LABELS)
    assert trainer.steps == 2 and trainer.grad_norm is not None and trainer.grad_norm < 10
    assert capfd.readouterr() == ("", "")


def test_a_norm_that_an_earlier_call_has_spoilt(tmp_path):
    trainer = Trainer(linear(), accumulate=2, clip_norm=1.0)
    trainer.save(tmp_path / "training")
    trainer.step(np.full((4, FEATURES), 1e30, "f4"), np.zeros(4, int))
    for _ in range(2):
        with pytest.raises(FloatingPointError, match="the norm of the gradients is inf in step 0"):
            trainer.step(X, LABELS)
    trainer.load(tmp_path / "training")
    trainer.step(X, LABELS)
    trainer.step(X, LABELS)
    assert trainer.steps == 1


@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_interrupt_is_an_error_like_others(accumulate, monkeypatch):
    trainer = Trainer(perceptron(), accumulate=accumulate)
    runners = [trainer._step] if accumulate == 1 else [trainer._step, trainer._apply]
    for _ in range(2 * accumulate - 1):
        trainer.step(X, LABELS)
    for runner in runners:
        run = runner.run

        def interrupted(feeds: Any, turns: Any, run: Any = run) -> Any:
            run(feeds, turns)
            raise KeyboardInterrupt("now")

        monkeypatch.setattr(runner, "run", interrupted)
        require_unchanged(trainer, lambda: trainer.step(X, LABELS), KeyboardInterrupt, "^now$")
        monkeypatch.undo()
    other = Trainer(perceptron(), accumulate=accumulate)
    for _ in range(2 * accumulate):
        other.step(X, LABELS)
    trainer.step(X, LABELS)
    assert everything(trainer) == everything(other)


def interrupted_at(line: int, call: Callable[[], Any]) -> bool:
    """Whether the call has as many lines of gce.onnx.training; an interrupt comes in that one."""
    left = line

    def trace(frame: Any, event: str, arg: Any) -> Any:
        nonlocal left
        if os.path.join("gce", "onnx", "training") not in frame.f_code.co_filename:
            return None
        if event == "line":
            left -= 1
            if left < 0:
                raise KeyboardInterrupt("now")
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_interrupt_in_any_line_of_a_step(accumulate):
    options: dict[str, Any] = {"accumulate": accumulate, "clip_norm": 1.0}
    trainer, other = Trainer(perceptron(), **options), Trainer(perceptron(), **options)
    for batches in range(accumulate):
        line, reached = 0, True
        while reached:
            before = everything(trainer)
            reached = interrupted_at(line, lambda: trainer.step(X, LABELS))
            line += 1
            if everything(trainer) != before:  # then all of it was done
                other.step(X, LABELS)
            assert everything(trainer) == everything(other)
            while trainer._now.collected != batches % accumulate:  # the same kind of step again
                trainer.step(X, LABELS)
                other.step(X, LABELS)
        assert line > 40
        trainer.step(X, LABELS)
        other.step(X, LABELS)


# Where it comes between a block and the end of its `with`, a file is closed later.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_in_any_line_of_load(tmp_path):
    path = tmp_path / "training"
    options: dict[str, Any] = {"accumulate": 2}
    saved = Trainer(perceptron(), **options)
    for _ in range(3):
        saved.step(X, LABELS)
    saved.save(path)
    trainer = Trainer(perceptron(), **options)
    trainer.step(X, LABELS)
    start = tmp_path / "start"
    trainer.save(start)
    before = everything(trainer)
    line, reached = 0, True
    while reached:
        reached = interrupted_at(line, lambda: trainer.load(path))
        line += 1
        if everything(trainer) != before:
            assert everything(trainer) == everything(saved)
            trainer.load(start)
            assert everything(trainer) == before
    assert line > 40


def test_a_learning_rate_that_no_float64_holds():
    trainer = Trainer(perceptron())
    rates: list[Any] = [10**400]
    if np.finfo(np.longdouble).max > np.finfo(np.float64).max:
        rates.append(np.longdouble("1e400"))
    for rate in rates:
        with pytest.raises(ValueError, match=r"^learning_rate is more than any float64"):
            trainer.step(X, LABELS, learning_rate=rate)


def test_a_schedule_that_fails():
    def schedule(step: int) -> float:
        raise KeyError("no such step")

    for options in ({"gamma": schedule}, {"learning_rate": schedule}):
        trainer = Trainer(perceptron(), **options)
        with pytest.raises(KeyError, match="no such step"):
            trainer.step(X, LABELS)
        assert everything(trainer) == everything(Trainer(perceptron()))


@pytest.mark.parametrize("elem_type", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_logits_of_16_bits(elem_type):
    # Parameters are float32, logits may be float16; numpy has no bfloat16.
    model = perceptron()
    model.graph.node[-1].output[0] = "wide"
    model.graph.node.append(helper.make_node("Cast", ["wide"], ["logits"], to=elem_type))
    model.graph.output[0].type.tensor_type.elem_type = elem_type
    if elem_type == TensorProto.FLOAT16:
        trainer, plain = Trainer(model), Trainer(perceptron())
        loss = trainer.step(X, LABELS)
        assert loss.dtype == np.float16 and loss == pytest.approx(plain.step(X, LABELS), rel=1e-3)
        return
    with pytest.raises(
        TypeError, match=r"^loss has type tensor\(bfloat16\), expected one of tenso"
    ):
        Trainer(model)


def test_the_model_of_an_error_is_left_as_it_is():
    model = perceptron()
    before = model.SerializeToString()
    for options in ({"bogus": 1}, {"frozen": ["W3"]}, {"weights": [1.0]}, {"clip_norm": -1}):
        with pytest.raises((TypeError, ValueError)):
            Trainer(model, **options)
    assert model.SerializeToString() == before
    assert onnx.load_from_string(before) == model
