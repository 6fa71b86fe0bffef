"""Checkpoints: what they restore, what they refuse, and what is left when something goes wrong."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from small_models import (
    CLASSES,
    FEATURES,
    OPTIMIZERS,
    batch,
    everything,
    linear,
    perceptron,
    require_refused,
)

from gce import schedules
from gce.onnx.training import SGD, AdamW, Trainer


def trained(steps: int, **options: Any) -> Trainer:
    """A trainer of the perceptron after some calls of `step`."""
    trainer = Trainer(perceptron(), **options)
    train(trainer, 0, steps)
    return trainer


def train(trainer: Trainer, first: int, last: int) -> list[Any]:
    return [trainer.step(*batch(6, step)) for step in range(first, last)]


# --- going on -------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip_norm", [None, 0.5])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_training_goes_on_with_the_same_bits(tmp_path, optimizer, accumulate, clip_norm):
    # Stopped after any number of calls: those between two steps of the optimizer too.
    options: dict[str, Any] = {
        "optimizer": OPTIMIZERS[optimizer], "accumulate": accumulate, "clip_norm": clip_norm,
        "gamma": schedules.linear(5), "learning_rate": lambda step: 0.1 / (step + 1),
    }  # fmt: skip
    path = tmp_path / "training"
    whole = Trainer(perceptron(), **options)
    saved = []
    for call in range(8):
        whole.save(path.with_suffix(f".{call}"), extra=call)
        saved.append(everything(whole))
        train(whole, call, call + 1)
    # Into a trainer of other weights, which the file has; and into one that has trained.
    new, used = (Trainer(perceptron(seed=seed), **options) for seed in (1, 0))
    for call in range(8):
        train(used, 20, 23)
        for trainer in (new, used):
            assert trainer.load(path.with_suffix(f".{call}")) == call
            assert everything(trainer) == saved[call]
            assert trainer.grad_norm is None
            steps = trainer.steps
            train(trainer, call, 8)
            assert everything(trainer) == everything(whole)
            assert trainer.grad_norm == (whole.grad_norm if trainer.steps > steps else None)


@pytest.mark.parametrize("seed", range(3))
def test_a_training_that_is_interrupted_at_any_steps(tmp_path, seed):
    rng = np.random.default_rng(seed)
    path = tmp_path / "training"
    options: dict[str, Any] = {"accumulate": 2, "clip_norm": 1.0, "gamma": schedules.cosine(10)}
    whole = Trainer(perceptron(), **options)
    expected = train(whole, 0, 30)
    found: list[Any] = []
    while len(found) < 30:
        trainer = Trainer(perceptron(), **options)
        if path.exists():
            del found[trainer.load(path) :]
        for _ in range(rng.integers(1, 9)):
            if len(found) < 30:
                found += train(trainer, len(found), len(found) + 1)
            if rng.random() < 0.5:
                trainer.save(path, extra=len(found))
    assert found == expected and everything(trainer) == everything(whole)


def test_both_ways_in_one_trainer(tmp_path):
    # It is loaded into, whichever of the two buffers is in use.
    trainer = trained(3)
    trainer.save(tmp_path / "3")
    at_three = everything(trainer)
    losses = train(trainer, 3, 8)
    for steps in (0, 1, 2):
        assert trainer.load(tmp_path / "3") is None
        assert everything(trainer) == at_three
        train(trainer, 3, 3 + steps)
    trainer.load(tmp_path / "3")
    x, _ = batch(6, 0)
    other = trained(3)
    assert trainer.predict(x).tobytes() == other.predict(x).tobytes()
    assert train(trainer, 3, 8) == losses


def test_learning_rate_and_gamma_are_no_state(tmp_path):
    trained(3, learning_rate=0.1, gamma=0.5).save(tmp_path / "training")
    other = Trainer(perceptron(), learning_rate=lambda step: step, gamma=schedules.linear(6))
    other.load(tmp_path / "training")
    assert other.learning_rate == 3 and other.gamma == 0.5


@pytest.mark.parametrize(
    "extra",
    [None, 0, "text γ \ud800", [1.5, None, True], {"best": {"loss": 0.25}, "epoch": 3}, 2**70],
    ids=repr,
)
def test_extra(tmp_path, extra):
    trained(1).save(tmp_path / "training", extra=extra)
    assert Trainer(perceptron()).load(tmp_path / "training") == extra


NAMES = [
    "layers/0::weight",
    "../W",
    "/etc/W",
    "γ 权重",
    "W\n",
    "header",
    "array_0",
    "names",
    "W.npy",
]


@pytest.mark.parametrize("optimizer", [SGD(momentum=0.9), AdamW()], ids=["SGD", "AdamW"])
@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_names_of_all_kinds(tmp_path, name, optimizer):
    model = linear((FEATURES, CLASSES), weight=name)
    one, other = (Trainer(model, optimizer=optimizer) for _ in range(2))
    train(one, 0, 2)
    one.save(tmp_path / "training")
    other.load(tmp_path / "training")
    assert everything(one) == everything(other) and name in other.parameters
    assert [path.name for path in tmp_path.iterdir()] == ["training"]


def test_the_file_can_be_read_with_numpy(tmp_path):
    trainer = trained(2)
    path = tmp_path / "training"
    trainer.save(str(path), extra="mine")
    with np.load(path, allow_pickle=False) as archive:
        header = json.loads(archive["header"].tobytes())
        assert header["steps"] == 2 and header["extra"] == "mine" and header["version"] == 1
        arrays = {name: archive[f"array_{i}"] for i, name in enumerate(header["names"])}
    assert arrays["W1"].tobytes() == trainer.parameters["W1"].tobytes()


# --- files of another training --------------------------------------------------------------------


def scaled(factor: float, doc: str = "") -> onnx.ModelProto:
    """The perceptron, whose logits are multiplied by a constant."""
    model = perceptron()
    model.graph.node[-1].output[0] = "unscaled"
    model.graph.node.append(helper.make_node("Mul", ["unscaled", "factor"], ["logits"]))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(factor), "factor"))
    if doc:
        model.doc_string = model.graph.doc_string = model.producer_name = doc
        model.metadata_props.add(key="path", value=doc)
        for item in (*model.graph.node, *model.graph.input, *model.graph.initializer):
            item.doc_string = doc
            item.metadata_props.add(key="stack", value=doc)
    return model


BASE: dict[str, Any] = {
    "optimizer": AdamW(), "clip_norm": 1.0, "accumulate": 2, "label_smoothing": 0.125,
    "weights": [1.0, 2.0, 3.0, 4.0],
}  # fmt: skip
DIFFERENCES: dict[str, tuple[dict[str, Any], str]] = {
    "optimizer": ({"optimizer": SGD()}, r"optimizer = 'AdamW\(.*', expected 'SGD\("),
    "eps": ({"optimizer": AdamW(eps=1e-6)}, r"optimizer = .*eps=1e-08.*, expected .*eps=1e-06"),
    "no decay": ({"optimizer": AdamW(no_decay=("b1",))}, r"optimizer = .*, expected .*\('b1',\)"),
    "clip_norm": ({"clip_norm": 2.0}, r"clip_norm = 1\.0, expected 2\.0"),
    "no clip_norm": ({"clip_norm": None}, r"clip_norm = 1\.0, expected None"),
    "accumulate": ({"accumulate": 3}, "accumulate = 2, expected 3"),
    "no accumulation": ({"accumulate": 1}, "accumulate = 2, expected 1"),
    "reduction": ({"reduction": "sum"}, r"loss\.reduction = 'mean', expected 'sum'"),
    "smoothing": ({"label_smoothing": 0.25}, r"loss\.label_smoothing = 0\.125, expected 0\.25"),
    "ignore_index": ({"ignore_index": 1}, r"loss\.ignore_index = None, expected 1"),
    "value": ({"value": "surrogate"}, r"loss\.value = 'primitive', expected 'surrogate'"),
    "threshold": ({"threshold": 0.5}, r"loss\.threshold = 0\.0, expected 0\.5"),
    "weights": ({"weights": [1, 2, 3, 5]}, r"loss\.weights = .*, expected "),
    "no weights": ({"weights": None}, r"loss\.weights = .*, expected None"),
    "frozen": ({"frozen": ["b2"]}, r"parameters\.b2 = 'float32\(4,\)', expected None"),
    "model": ({"model": perceptron()}, "model = '[0-9a-f]{64}', expected '[0-9a-f]{64}'"),
    "constant": ({"model": scaled(3.0)}, "model = "),
    "logits": ({"logits": "unscaled"}, "model = "),
    "type": ({"model": perceptron("float64")}, r"parameters\.W1 = 'float32\(5, 7\)', expected 'fl"),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "training"
    trainer = Trainer(scaled(2.0), **BASE)
    train(trainer, 0, 3)
    trainer.save(path)
    return path


@pytest.mark.parametrize(("changes", "text"), DIFFERENCES.values(), ids=list(DIFFERENCES))
def test_another_training(base, changes, text):
    options = {"model": scaled(2.0), **BASE, **changes}
    require_refused(Trainer(**options), base, rf"is of another training: {text}")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model": scaled(2.0, "by another exporter")},
        {"clip_norm": np.float32(1.0), "accumulate": np.int64(2)},
        {"weights": np.array([1, 2, 3, 4], np.float32), "threshold": 0, "axis": np.int64(1)},
        {"weights": (1, 2, 3, 4), "reduction": "mean", "gamma_per_row": False},
        {"label_smoothing": np.float64(0.125)},
        {"label_smoothing": Fraction(1, 8), "clip_norm": np.longdouble(1)},
        {"label_smoothing": np.array(0.125), "gamma_per_row": np.False_},
        {"optimizer": AdamW(betas=[0.9, 0.999], weight_decay=np.float64(0.01))},
        {"parameters": ["b2", "W2", "b1", "W1"]},
        {"optimizer": None},
    ],
    ids=str,
)
def test_the_same_training_in_other_words(base, changes, tmp_path):
    options = {"model": scaled(2.0), **BASE, **changes}
    if options["optimizer"] is None:
        del options["optimizer"]
    trainer = Trainer(**options)
    trainer.load(base)
    assert trainer.steps == 1
    trainer.save(tmp_path / "again")
    Trainer(scaled(2.0), **BASE).load(tmp_path / "again")


def test_a_model_is_the_same_in_a_file(tmp_path):
    onnx.save(scaled(2.0), tmp_path / "model.onnx")
    one, other = Trainer(tmp_path / "model.onnx"), Trainer(scaled(2.0))
    train(one, 0, 1)
    one.save(tmp_path / "training")
    other.load(tmp_path / "training")
    # And what was exported is the same model, with other parameters.
    third = Trainer(other.export())
    third.load(tmp_path / "training")
    assert everything(third) == everything(one)
