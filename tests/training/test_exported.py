"""Models of other people's exporters train as PyTorch's autograd of the composed loss does."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from exported import EXPORTED, composed_loss, export, floats, tokens
from skl2onnx import to_onnx
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

import gce
from gce import schedules
from gce.onnx import training

# Losses of float32, which grow apart: both sides round differently, and a step of AdamW does not
# grow with its gradient, so that the rounding error of one that is nearly 0 moves its parameter. In
# these few steps it came to 5e-7, or a relative 1e-7 of a sum; two biases that were not trained
# gave 7e-5 at the second step.
STEP_BY_STEP = 1e-5
STEPS = 6

BOTH = pytest.mark.parametrize("dynamo", [False, True], ids=["older", "newer"])


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Two runtimes, each with a pool that waits busily, would take turns."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def one_thread() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # of constants that optimizations leave without use
    return options


@functools.cache
def model_and_module(name: str, dynamo: bool) -> tuple[onnx.ModelProto, nn.Module]:
    torch.manual_seed(0)
    module = EXPORTED[name].make()
    inputs = EXPORTED[name].inputs(np.random.default_rng(0), 3)
    return export(module, inputs, dynamo), module


def check_training(
    model: onnx.ModelProto,
    module: nn.Module,
    name: str,
    *,
    gamma: Any = 0.3,
    optimizer: Any = None,
    arguments: Mapping[str, Any] | None = None,
    **options: Any,
) -> training.Trainer:
    """Train both for a few steps, on batches of several sizes, and compare the losses."""
    kind, rng = EXPORTED[name], np.random.default_rng(1)
    module = copy.deepcopy(module).eval()
    options |= {"axis": kind.axis}
    trainer = training.Trainer(
        model,
        optimizer=optimizer,
        learning_rate=1e-2,
        gamma=gamma,
        session_options=one_thread(),
        **options,
        **(arguments or {}),
    )
    assert sum(a.size for a in trainer.parameters.values()) == sum(
        parameter.numel() for parameter in module.parameters()
    )
    if optimizer is None:
        peer: torch.optim.Optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    else:
        peer = torch.optim.SGD(module.parameters(), lr=1e-2, momentum=optimizer.momentum)
    for step in range(STEPS):
        batch = int(rng.integers(2, 6))
        x, labels = kind.inputs(rng, batch), kind.labels(rng, batch)
        if options.get("ignore_index") is not None:
            labels.flat[::3] = options["ignore_index"]
        peer.zero_grad()
        now = gamma(step) if callable(gamma) else gamma
        loss = composed_loss(module(torch.from_numpy(x)), labels, now, **options)
        loss.backward()
        peer.step()
        expected = pytest.approx(loss.item(), abs=STEP_BY_STEP, rel=1e-6)
        assert float(trainer.step(x, labels)) == expected, step
    x = kind.inputs(rng, 4)
    # Logits differ as losses do, relative to their size.
    logits = module(torch.from_numpy(x)).detach().numpy()
    scale = max(1.0, np.abs(logits).max())
    np.testing.assert_allclose(trainer.predict(x), logits, atol=10 * STEP_BY_STEP * scale)
    return trainer


@BOTH
@pytest.mark.parametrize("name", EXPORTED)
def test_trains_as_torch_does(name: str, dynamo: bool) -> None:
    arguments = {} if dynamo else {"frozen": EXPORTED[name].buffers}
    check_training(*model_and_module(name, dynamo), name, arguments=arguments)


@BOTH
@pytest.mark.parametrize("name", ["encoder", "tied", "details"])
def test_what_an_export_leaves_as_it_is(name: str, dynamo: bool) -> None:
    """Where nothing was merged, folded or dropped, nothing is undone."""
    _, module = model_and_module(name, dynamo)
    inputs = EXPORTED[name].inputs(np.random.default_rng(0), 3)
    arguments = {} if dynamo else {"frozen": EXPORTED[name].buffers}
    model = export(module, inputs, dynamo, optimize=False)
    check_training(model, module, name, arguments=arguments)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mlp", {"weights": np.linspace(0.2, 2.0, 9).astype(np.float32)}),
        ("mlp", {"label_smoothing": 0.1, "reduction": "sum"}),
        ("transformer", {"ignore_index": -100, "reduction": "sum"}),
        ("transformer", {"ignore_index": 3, "label_smoothing": 0.2}),
        (
            "segmentation",
            {
                "ignore_index": 255,
                "label_smoothing": 0.1,
                "weights": np.array([0.5, 1.0, 1.5, 2.0], np.float32),
            },
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("gamma", [0.5, schedules.linear(STEPS - 1)], ids=["half", "linear"])
def test_options_of_the_loss(name: str, options: dict[str, Any], gamma: Any) -> None:
    """With SGD, whose steps are as large as the gradients are, and each γ from 0 to 1."""
    model, module = model_and_module(name, False)
    sums = options.get("reduction") == "sum"
    optimizer = training.SGD(momentum=0.0 if sums else 0.9)
    check_training(model, module, name, gamma=gamma, optimizer=optimizer, **options)


@pytest.mark.parametrize(("name", "opset"), [("mlp", 9), ("cnn", 13), ("encoder", 14)])
def test_older_opsets(name: str, opset: int) -> None:
    _, module = model_and_module(name, False)
    model = export(module, EXPORTED[name].inputs(np.random.default_rng(0), 3), False, opset)
    assert model.opset_import[0].version == opset
    check_training(model, module, name)


# --- parameters that exporters make one, or two, or none ----------------------------------------


def names_of(model: onnx.ModelProto, module: nn.Module) -> set[str]:
    """Names of parameters that the model has as PyTorch has them."""
    return {t.name for t in model.graph.initializer}.intersection(dict(module.named_parameters()))


@BOTH
def test_layers_that_are_copies_get_their_weights_back(dynamo: bool) -> None:
    """What `test_trains_as_torch_does` would not show if exporters no longer merged them."""
    model, module = model_and_module("encoder", dynamo)
    assert len(names_of(model, module)) < len(list(module.parameters())) / 2
    parameters = training.training_graph(model).parameters
    assert len(parameters) == len(list(module.parameters()))
    ending = {name.rpartition("layers.1.")[2] for name in parameters if "layers.1." in name}
    if not dynamo:  # it keeps the names, in Identities, but for those of transposed weights
        assert {"linear1.bias", "linear2.bias", "norm1.weight", "norm2.bias"} <= ending


@BOTH
def test_tied_parameters_stay_one(dynamo: bool) -> None:
    model, _ = model_and_module("encoder", dynamo)
    graph = training.training_graph(model)
    name = "layers.layers.0.norm1.weight"
    others = {n for n in graph.parameters if np.array_equal(graph.initial[n], graph.initial[name])}
    assert len(others) == 4  # that of each normalization
    tied = training.training_graph(model, tied=[name])
    assert len(tied.parameters) == len(graph.parameters) - 3
    assert len(others.intersection(tied.parameters)) == 1


@BOTH
def test_an_embedding_that_is_the_head_too(dynamo: bool) -> None:
    """Exporters fold the transposition and make two of it: it is one, and the head transposes."""
    model, module = model_and_module("tied", dynamo)
    tensors = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    assert {(50, 40), (40, 50)} <= set(tensors.values())
    shapes = [array.shape for array in training.Trainer(model, axis=-1).parameters.values()]
    assert sorted(shapes) == sorted(tuple(p.shape) for p in module.parameters())


def test_a_copy_of_the_embedding_is_no_tie() -> None:
    """What begins equal and has its own name is trained apart."""
    module = nn.Sequential(nn.Embedding(50, 40), nn.Tanh(), nn.Linear(40, 50, bias=False))
    with torch.no_grad():
        module[2].weight.copy_(module[0].weight)
    model = export(module, tokens(np.random.default_rng(0), 3), dynamo=True)
    assert len(training.training_graph(model, axis=-1).parameters) == 2


def test_names_of_the_module_name_what_was_folded() -> None:
    """Of the newer exporter, which notes what it folded: weights are transposed, say."""
    model, module = model_and_module("transformer", dynamo=True)
    everything = set(training.training_graph(model, axis=-1).parameters)
    names = [name for name, _ in module.named_parameters()]
    assert not everything.issuperset(names)
    assert set(training.training_graph(model, axis=-1, parameters=names).parameters) == everything
    blocks = [name for name in names if name.startswith("blocks.")]
    rest = training.training_graph(model, axis=-1, frozen=blocks)
    sizes = {name: p.numel() for name, p in module.named_parameters()}
    trained = sum(rest.initial[name].size for name in rest.parameters)
    assert trained == sum(size for name, size in sizes.items() if name not in blocks)
    with pytest.raises(ValueError, match="frozen has 'blocks', expected initializers"):
        training.training_graph(model, axis=-1, frozen=["blocks"])


def test_parameters_keep_the_names_of_the_module() -> None:
    """Those that the newer exporter merged or dropped, too: but for what is folded."""
    model, module = model_and_module("details", dynamo=True)
    parameters = set(training.training_graph(model).parameters)
    names = {name for name, _ in module.named_parameters()}
    assert names - parameters == {"slope1.weight", "slope2.weight"}


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.unused = nn.Linear(4, 3), nn.Linear(4, 4)
        self.temperature = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) * self.temperature


def test_what_the_exporter_drops_is_said() -> None:
    """It takes out a multiplication by 1, and with it a parameter."""
    model = export(Scaled(), floats(4)(np.random.default_rng(0), 3), dynamo=True)
    lost = r"\['temperature', 'unused.weight', 'unused.bias'\]"
    with pytest.warns(UserWarning, match=f"the exported model lacks the parameters {lost}"):
        graph = training.training_graph(model)
    assert set(graph.parameters) == {"layer.weight", "layer.bias"}


class Normalized(nn.Module):
    """Weights that are computed of parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.sharpness = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = x @ nn.functional.normalize(self.weight).T
        return logits * self.sharpness.exp()


def test_what_the_exporter_computes_is_said() -> None:
    """It folds all that depends on parameters alone; without that, they are trained."""
    torch.manual_seed(0)
    module, x = Normalized(), floats(4)(np.random.default_rng(0), 3)
    lost = (
        r"has what the module computes of the parameters \['sharpness', 'weight'\] in their place"
    )
    with pytest.warns(UserWarning, match=lost):
        training.training_graph(export(module, x, dynamo=True))
    kept = training.training_graph(export(module, x, dynamo=True, optimize=False))
    assert set(kept.parameters) == {"weight", "sharpness"}


# --- scikit-learn -------------------------------------------------------------------------------


@pytest.mark.parametrize("zipmap", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("activation", ["relu", "tanh", "logistic"])
def test_sklearn_mlp(activation: str, dtype: Any, zipmap: bool) -> None:
    """Its outputs are label and probabilities: the logits are an inner value."""
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(40, 5)).astype(dtype), rng.integers(0, 3, 40)
    network = MLPClassifier((8, 6), activation=activation, max_iter=2, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # two steps are meant
        network.fit(x, labels)
    model = to_onnx(network, x[:1], options={id(network): {"zipmap": zipmap}})
    softmax = next(n for n in model.graph.node if n.op_type == "Softmax")
    trainer = training.Trainer(
        model, logits=softmax.input[0], optimizer=training.SGD(), learning_rate=1.0, gamma=0.4
    )
    start = trainer.parameters
    assert [a.dtype for a in start.values()] == [dtype] * 6
    loss = trainer.step(x, labels)

    # The same by hand: gce for the loss, PyTorch for what is before it.
    tensors = {
        name: torch.tensor(array.astype(np.float64), requires_grad=True)
        for name, array in start.items()
    }
    act = {"relu": torch.relu, "tanh": torch.tanh, "logistic": torch.sigmoid}[activation]
    weights = [tensor for name, tensor in tensors.items() if name.startswith("coefficient")]
    biases = [tensor for name, tensor in tensors.items() if name.startswith("intercept")]
    hidden = torch.from_numpy(x.astype(np.float64))
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        hidden = act(hidden @ weight + bias)
    logits = hidden @ weights[-1] + biases[-1]
    expected, grad = gce.loss_and_grad(logits.detach().numpy(), labels, gamma=0.4)
    logits.backward(torch.from_numpy(grad))

    # Some roundings: of 6e-8 in float32. In float64 the operator's own bound is 1e-15.
    tolerance = 2e-6 if dtype == np.float32 else 1e-13
    assert loss.dtype == dtype
    assert float(loss) == pytest.approx(float(expected), abs=tolerance)
    for name, array in trainer.parameters.items():
        found = start[name].astype(np.float64) - array
        np.testing.assert_allclose(found, tensors[name].grad, atol=tolerance, err_msg=name)
    np.testing.assert_allclose(
        trainer.predict(x[:0]), np.zeros((0, 3))
    )  # batches of any size, and none
    assert [o.name for o in trainer.export().graph.output] == [o.name for o in model.graph.output]


def test_sklearn_pipeline() -> None:
    """A scaler before the network, whose result onnx knows no shape of."""
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(40, 5)).astype(np.float32), rng.integers(0, 3, 40)
    pipeline = make_pipeline(StandardScaler(), MLPClassifier((8,), max_iter=2, random_state=0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        pipeline.fit(x, labels)
    model = to_onnx(pipeline, x[:1], options={"zipmap": False})
    text = "'probabilities' are the Softmax of 'add_result1'$"
    with pytest.raises(ValueError, match=text):
        training.Trainer(model)
    trainer = training.Trainer(model, logits="add_result1", learning_rate=1e-2)
    first = trainer.evaluate(x, labels)
    for _ in range(20):
        trainer.step(x, labels)
    assert trainer.evaluate(x, labels) < 0.9 * first


@pytest.mark.parametrize(
    ("classifier", "op_type"),
    [
        (LogisticRegression(), "LinearClassifier"),
        (make_pipeline(StandardScaler(), LogisticRegression()), "LinearClassifier"),
        (RandomForestClassifier(3), "TreeEnsembleClassifier"),
    ],
)
def test_sklearn_models_without_initializers(classifier: Any, op_type: str) -> None:
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(40, 5)).astype(np.float32), rng.integers(0, 3, 40)
    model = to_onnx(classifier.fit(x, labels), x[:1], options={"zipmap": False})
    text = f"ai.onnx.ml::{op_type} node '{op_type}' keeps its weights in attributes, expected init"
    with pytest.raises(ValueError, match=text):
        training.Trainer(model, logits="probabilities")
