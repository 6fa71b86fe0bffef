"""Which parameters are trained, by which optimizer, and models that are written anew for it."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper, parser
from onnxruntime.training import onnxblock
from torch_models import exported, problem
from trainings import SGD, Training, shifted

import gce
from gce.onnx import ort_training

RNG = np.random.default_rng(7)
LOSS = ort_training.GammaCrossEntropyLoss()


def model_of(nodes: str, classes: int = 3, **arrays: Any) -> onnx.ModelProto:
    head = '<ir_version: 10, opset_import: ["" : 17]>'
    graph = f"g (float[N,3] x) => (float[N,{classes}] logits) {{ {nodes} }}"
    model = parser.parse_model(f"{head} {graph}")
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(array, np.float32), name)
        for name, array in arrays.items()
    )
    return model


# --- which --------------------------------------------------------------------------------------


def test_by_default_all_that_are_parameters(tmp_path):
    """No constants, nothing that no gradient reaches, and one for each normalization."""
    norms = "a = LayerNormalization(x, one, zero)\n b = LayerNormalization(a, one, zero)\n"
    rest = "f = Floor(flat)\n c = Mul(b, half)\n d = Add(c, f)\n logits = MatMul(d, w)"
    arrays = {"one": np.ones(3), "zero": np.zeros(3), "half": [0.5], "flat": [1.5, 2.5, 3.5]}
    model = model_of(norms + rest, w=RNG.normal(size=(3, 3)), **arrays)
    training = Training(tmp_path, model, None, LOSS)
    names = {"one", "one/0", "zero", "zero/0", "w"}
    assert set(training.parameters) == names
    frozen = Training(tmp_path, model, None, LOSS, frozen_params=["one", "w"])
    assert set(frozen.parameters) == names - {"one", "w"}
    with pytest.raises(ValueError, match=r"no weights that \['logits'\] depend on"):
        Training(tmp_path, model, None, LOSS, frozen_params=list(names))


def test_by_default_only_what_the_loss_needs(tmp_path):
    model = model_of("logits = MatMul(x, w)\n other = MatMul(x, v)", w=np.ones((3, 3)), v=np.eye(3))
    model.graph.output.append(helper.make_tensor_value_info("other", 1, ["N", 3]))
    training = Training(tmp_path, model, None, LOSS, loss_input_names=["other"])
    assert training.parameters == ["v"]


def test_a_parameter_that_was_merged_is_not_forgotten(tmp_path):
    model = model_of(
        "a = Mul(x, one)\n b = Mul(a, one)\n logits = MatMul(b, w)", one=[1, 1, 1], w=np.eye(3)
    )
    with pytest.warns(UserWarning, match="requires_grad has 'one', and not 'one/0', which the exp"):
        training = Training(tmp_path, model, ["one", "w"], LOSS)
    assert set(training.parameters) == {"one", "w"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Training(tmp_path, model, ["one", "w"], LOSS, frozen_params=["one/0"])
        Training(tmp_path, model, ["one", "one/0"], LOSS)
        Training(tmp_path, model, ["w"], LOSS)


@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("name", ["encoder", "tied"])
def test_the_export_has_the_parameters_that_were_trained(tmp_path, name, dynamo):
    """Those of a model that the exporter merged or folded, and of one that is prepared already."""
    module, x, labels, axis = problem(name, np.random.default_rng(3))
    forward = exported(module, x, dynamo, 18)
    loss = ort_training.GammaCrossEntropyLoss(axis=axis)
    training = Training(tmp_path, forward, None, loss)
    training.step(x, labels, np.array(0.5), learning_rate=1.0)
    feeds = (x, labels, np.array(0.0))
    for model in (forward, ort_training.prepare_model(forward)):
        trained = ort_training.export_model(training.module, model)
        tensors = {t.name: numpy_helper.to_array(t) for t in trained.graph.initializer}
        for parameter, value in training.values().items():
            np.testing.assert_array_equal(tensors[parameter], value)
        session = onnxruntime.InferenceSession(trained.SerializeToString())
        (logits,) = session.run(None, {"x": x})
        rows = logits.reshape(-1, logits.shape[-1]).astype(np.float64)
        log_sum = np.log(np.exp(rows).sum(1))
        expected = np.mean(log_sum - rows[np.arange(len(rows)), labels.reshape(-1)])
        assert training.evaluate(*feeds) == pytest.approx(expected, rel=1e-5)


def test_names_of_the_module_name_what_was_folded(tmp_path):
    module, x, _, axis = problem("transformer", np.random.default_rng(3))
    forward = exported(module, x, True, 18)
    names = [name for name, _ in module.named_parameters()]
    loss = ort_training.GammaCrossEntropyLoss(axis=axis)
    everything = Training(tmp_path, forward, None, loss).parameters
    assert not set(everything).issuperset(names)
    assert set(Training(tmp_path, forward, names, loss).parameters) == set(everything)
    frozen = [name for name in names if name != "head.weight"]
    (head,) = Training(tmp_path, forward, None, loss, frozen_params=frozen).parameters
    assert set(Training(tmp_path, forward, ["head.weight"], loss).parameters) == {head}


def test_preparing_twice_is_as_once():
    for name in ("encoder", "tied", "cnn"):
        for dynamo in (False, True):
            module, x, _, _ = problem(name, np.random.default_rng(3))
            once = ort_training.prepare_model(exported(module, x, dynamo, 18))
            assert ort_training.prepare_model(once).SerializeToString() == once.SerializeToString()


@pytest.mark.parametrize("array", [np.float32(0.5), np.float32([0.5, 0.25, 0.5])], ids=np.shape)
def test_a_parameter_that_is_called_gamma(tmp_path, array):
    """It is not taken for the loss's γ, and two losses share theirs."""

    class Both(onnxblock.Block):
        def __init__(self):
            super().__init__()
            self.one, self.other = (ort_training.GammaCrossEntropyLoss() for _ in range(2))
            self.add = onnxblock.blocks.Add()

        def build(self, logits):
            return self.add(self.one(logits), self.other(logits, "others"))

    model = model_of("h = MatMul(x, w)\n logits = Mul(h, gamma)", w=np.eye(3), gamma=array)
    x, labels = RNG.normal(size=(4, 3)).astype(np.float32), np.array([0, 1, 2, 0])
    for name in ("one", "both"):
        (tmp_path / name).mkdir()
    training = Training(tmp_path / "one", model, None, LOSS)
    assert list(training.module.input_names()) == ["x", "labels", "gamma/0"]
    assert training.parameters == ["w"] if array.ndim == 0 else ["w", "gamma"]
    logits = x * array
    for gamma in (0.0, 1.0):
        loss, _ = training.loss_and_gradients(x, labels, np.array(gamma))
        assert loss == pytest.approx(float(gce.loss(logits, labels, gamma)), rel=1e-6)
    both = Training(tmp_path / "both", model, None, Both())
    assert list(both.module.input_names()) == ["x", "labels", "gamma/0", "others"]
    loss, _ = both.loss_and_gradients(x, labels, np.array(1.0), labels)
    assert loss == pytest.approx(2 * float(gce.loss(logits, labels, 1.0)), rel=1e-6)


def test_a_table_of_positions_that_is_cut(tmp_path):
    """Its gradient is summed over the batch, though onnx does not know that it was broadcast."""
    head = '<ir_version: 10, opset_import: ["" : 17]>'
    nodes = (
        "e = Gather(w, ids)\n n = Shape <start = 1, end = 2> (ids)\n"
        "z = Constant <value_ints = [0]> ()\n one = Constant <value_ints = [1]> ()\n"
        "cut = Slice(p, z, n, one)\n h = Add(e, cut)\n"
        "m = ReduceMean <axes = [1], keepdims = 0> (h)\n logits = MatMul(m, v)"
    )
    model = parser.parse_model(f"{head} g (int64[N,T] ids) => (float[N,3] logits) {{ {nodes} }}")
    arrays = {"w": RNG.normal(size=(5, 4)), "p": RNG.normal(size=(1, 7, 4))}
    arrays["v"] = RNG.normal(size=(4, 3))
    model.graph.initializer.extend(
        numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()
    )
    training = Training(tmp_path, model, None, LOSS)
    ids, labels = RNG.integers(0, 5, (6, 3)), RNG.integers(0, 3, 6)
    loss, gradients = training.loss_and_gradients(ids, labels, np.array(0.3))
    mean = (arrays["w"][ids] + arrays["p"][:, :3]).mean(axis=1)
    wanted, grad = gce.loss_and_grad(mean @ arrays["v"], labels, 0.3)
    assert loss == pytest.approx(float(wanted), rel=1e-5)
    expected = np.zeros((1, 7, 4))
    expected[:, :3] = (grad @ arrays["v"].T).sum(axis=0) / 3
    np.testing.assert_allclose(gradients["p"], expected, atol=1e-6)


# --- BatchNormalization -------------------------------------------------------------------------


def normalizing(mean: str = "m", **attributes: Any) -> onnx.ModelProto:
    model = model_of("h = MatMul(x, w)\n logits = Identity(h)", w=np.eye(3))
    arrays = {"s": [1, 2, 3], "b": [3, 2, 1], "m": [0.5, 0.25, 0], "v": [1, 0.5, 2]}
    model.graph.initializer.extend(
        numpy_helper.from_array(np.float32(array), name) for name, array in arrays.items()
    )
    norm = helper.make_node(
        "BatchNormalization", ["h", "s", "b", mean, "v"], ["logits"], **attributes
    )
    model.graph.node[1].CopyFrom(norm)
    return model


def test_statistics_are_constants(tmp_path):
    model = normalizing(epsilon=0.125)
    training = Training(tmp_path, model, None, LOSS)
    assert set(training.parameters) == {"w", "s", "b"}
    x, labels = RNG.normal(size=(4, 3)).astype(np.float32), np.array([0, 1, 2, 0])
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (logits,) = session.run(None, {"x": x})
    loss, _ = training.loss_and_gradients(x, labels, np.array(0.5))
    assert loss == pytest.approx(float(gce.loss(logits, labels, 0.5)), rel=1e-6)


def test_normalizations_that_cannot_be_rewritten():
    with pytest.raises(ValueError, match="BatchNormalization node 'logits' reads 'h', expected in"):
        ort_training.prepare_model(normalizing(mean="h"))
    training = normalizing(training_mode=1)
    with pytest.raises(ValueError, match="BatchNormalization node 'logits' is in training mode"):
        ort_training.prepare_model(training)


# --- AdamW --------------------------------------------------------------------------------------


def test_adamw_is_that_of_pytorch(tmp_path):
    """With ε and decay large enough to tell it from onnxblock's own."""
    options: dict[str, Any] = {"betas": (0.8, 0.95), "eps": 0.1, "weight_decay": 0.3}
    model = shifted((7, 5))
    model.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(RNG.normal(size=(7, 5)).astype(np.float32), "P")
    )
    training = Training(tmp_path, model, None, LOSS, ort_training.AdamW(**options))
    p = training.values()["P"].astype(np.float64)
    m, v = np.zeros_like(p), np.zeros_like(p)
    x, labels = RNG.normal(size=(7, 5)).astype(np.float32), RNG.integers(0, 5, size=7)
    for t in range(1, 6):
        _, gradients = training.step(x, labels, np.array(0.3), learning_rate=0.2)
        g = gradients["P"].astype(np.float64)
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g * g
        scale = np.sqrt(v / (1 - 0.95**t)) + 0.1
        p = (1 - 0.2 * 0.3) * p - 0.2 * m / (1 - 0.8**t) / scale
        # Float32, of order 1: a rounding or two at each step.
        np.testing.assert_allclose(training.values()["P"], p, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"betas": 0.9}, TypeError, "betas = 0.9, expected two numbers"),
        ({"betas": (0.9, 1.0)}, ValueError, r"betas\[1\] = 1.0, expected 0 <= betas\[1\] < 1"),
        ({"eps": -1e-8}, ValueError, "eps = -1e-08, expected a finite number of at least 0"),
        ({"weight_decay": "a"}, TypeError, "weight_decay = 'a', expected a number"),
    ],
)
def test_errors_of_adamw(options, error, message):
    with pytest.raises(error, match=message):
        ort_training.AdamW(**options)


# --- AveragePool --------------------------------------------------------------------------------

POOLS = [
    "kernel_shape = [2, 2]",
    "kernel_shape = [3, 2], strides = [2, 1]",
    "kernel_shape = [3, 3], pads = [1, 0, 1, 2], count_include_pad = 1",
    'kernel_shape = [2, 3], auto_pad = "VALID"',
]


def pooled(attributes: str, channels: str = "3") -> onnx.ModelProto:
    head = '<ir_version: 10, opset_import: ["" : 17]>'
    nodes = (
        f"h = Mul(x, p)\n y = AveragePool <{attributes}> (h)\n f = Flatten(y)\n"
        "i = Constant <value_ints = [0, 1, 2, 3]> ()\n logits = Gather <axis = 1> (f, i)"
    )
    graph = f"g (float[N,{channels},5,6] x) => (float[N,4] logits) {{ {nodes} }}"
    model = parser.parse_model(f"{head} {graph}")
    scale = RNG.normal(size=(1, 1, 5, 6)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(scale, "p"))
    return model


@pytest.mark.parametrize("attributes", POOLS)
def test_average_pool(tmp_path, attributes):
    model = pooled(attributes)
    x = RNG.normal(size=(2, 3, 5, 6)).astype(np.float32)
    prepared = ort_training.prepare_model(model)
    assert "AveragePool" not in {node.op_type for node in prepared.graph.node}
    assert "prepared/0" not in Training(tmp_path, model, None, LOSS).parameters
    found, wanted = (
        onnxruntime.InferenceSession(m.SerializeToString()).run(None, {"x": x})[0]
        for m in (prepared, model)
    )
    np.testing.assert_allclose(found, wanted, atol=1e-6)  # sums of nine, in another order


@pytest.mark.parametrize(
    ("attributes", "channels", "message"),
    [
        ("kernel_shape = [3, 3], pads = [1, 1, 1, 1]", "3", "does not count its pads"),
        ('kernel_shape = [2, 2], auto_pad = "SAME_UPPER"', "3", "has auto_pad, expected pads"),
        ("kernel_shape = [2, 2], ceil_mode = 1", "3", "has ceil_mode = 1, expected 0"),
        ("kernel_shape = [2, 2]", "C", "has an unknown number of channels"),
    ],
)
def test_average_pool_that_is_no_conv(attributes, channels, message):
    with pytest.raises(ValueError, match=f"AveragePool node 'y' {message}.*: its gradient kills"):
        ort_training.prepare_model(pooled(attributes, channels))


def test_max_pool_of_unknown_extents():
    model = pooled(POOLS[0])
    model.graph.node[1].op_type = "MaxPool"
    ort_training.prepare_model(model)
    model.graph.node[1].input[0] = "x"
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_param = "W"
    with pytest.raises(ValueError, match="MaxPool node 'y' has unknown extents, expected"):
        ort_training.prepare_model(model)


def test_sgd_of_onnxblock_goes_too(tmp_path):
    assert Training(tmp_path, pooled(POOLS[0]), ["p"], LOSS, SGD).parameters == ["p"]
