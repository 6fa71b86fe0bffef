"""Models with gce.torch's loss as ONNX models, by both exporters, run by ONNX Runtime."""

from __future__ import annotations

import functools
import importlib.util
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gce.onnx
from support import require
from torch_problems import SHAPES, problem, torch

if torch is not None:
    import gce.torch
    from gce.torch import GammaCrossEntropyLoss, gamma_cross_entropy

pytestmark = [
    pytest.mark.usefixtures("torch_on_one_thread"),
    pytest.mark.filterwarnings("ignore"),  # what exporters warn of is their own affair
]


class Model(torch.nn.Module if torch is not None else object):  # type: ignore[misc]
    """The loss, and one linear layer before it."""

    def __init__(self, criterion: Any, classes: int = 7) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.scale = torch.nn.Parameter(torch.rand(classes))
        self.criterion = criterion

    def forward(self, logits: Any, target: Any) -> Any:
        axis = 1 if logits.dim() > 1 else 0
        shape = [-1 if d == axis else 1 for d in range(logits.dim())]
        scaled = logits * self.scale.to(logits.dtype).reshape(shape)
        return self.criterion(scaled, target)


def by_dynamo(model: Any, arguments: tuple[Any, ...], optimize: bool = True, **options: Any) -> Any:
    program: Any = torch.onnx.export(
        model,
        arguments,
        dynamo=True,
        verbose=False,
        optimize=optimize,
        custom_translation_table=gce.torch.onnx_translations(),
        **options,
    )
    return program.model_proto


def by_tracing(model: Any, arguments: tuple[Any, ...], **options: Any) -> Any:
    import onnx

    gce.torch.register_onnx_symbolic()
    file = io.BytesIO()
    torch.onnx.export(
        model, arguments, file, dynamo=False, input_names=["logits", "target"], **options
    )
    return onnx.load_from_string(file.getvalue())


EXPORTERS = {"dynamo": by_dynamo, "tracing": by_tracing}


@pytest.fixture(params=EXPORTERS)
def export(request: pytest.FixtureRequest) -> Callable[..., Any]:
    for package in ("onnx", "onnxruntime", "onnxscript"):
        require(importlib.util.find_spec(package), f"{package} is not installed")
    return EXPORTERS[request.param]


def run(model: Any, *arguments: Any) -> Any:
    """The model's output, by ONNX Runtime; nothing of it is a tensor of PyTorch."""
    import onnxruntime

    options = gce.onnx.register(onnxruntime.SessionOptions())
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    names = [value.name for value in session.get_inputs()]
    feeds = {name: tensor.numpy() for name, tensor in zip(names, arguments, strict=False)}
    (result,) = session.run(None, feeds)
    return result


def op_types(model: Any) -> list[str]:
    return [node.op_type for node in model.graph.node if node.domain == gce.onnx.DOMAIN]


def check(export: Callable[..., Any], criterion: Any, logits: Any, target: Any) -> Any:
    model = Model(criterion, logits.shape[min(1, logits.dim() - 1)])
    exported = export(model, (logits, target))
    assert op_types(exported) == [gce.onnx.OP_TYPE]
    (node,) = (node for node in exported.graph.node if node.op_type == gce.onnx.OP_TYPE)
    assert len(node.output) == 1  # no gradient is computed
    with torch.no_grad():
        want = model(logits, target).numpy()
    found = run(exported, logits, target)
    # The same kernels on the same numbers.
    assert found.dtype == want.dtype and found.tobytes() == want.tobytes()
    return exported


@pytest.mark.parametrize(
    ("name", "reduction"),
    [("rows", "mean"), ("images", "none"), ("a row", "sum"), ("a row", "none")],
)
def test_the_same_loss(export, name, reduction):
    criterion = GammaCrossEntropyLoss(0.3, reduction=reduction)
    check(export, criterion, *problem(SHAPES[name], "float32"))


@pytest.mark.parametrize("name", ["rows", "a row"])
def test_what_is_not_optimized(name):
    logits, target = problem(SHAPES[name], "float64")
    as_it_is = functools.partial(by_dynamo, optimize=False)
    check(as_it_is, GammaCrossEntropyLoss(0.1), logits, target.clamp(min=0).to(torch.uint8))


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_dtypes(export, dtype):
    logits, target = problem(SHAPES["rows"], dtype)
    check(export, GammaCrossEntropyLoss(0.3, torch.rand(7)), logits, target.int())


def test_bfloat16(export):
    class Narrow(torch.nn.Module):
        def forward(self, logits: Any, target: Any) -> Any:
            return gamma_cross_entropy(logits.bfloat16(), target, 0.3).float()

    logits, target = problem(SHAPES["rows"], "float32")
    exported = export(Narrow(), (logits, target))
    assert op_types(exported) == [gce.onnx.OP_TYPE]
    assert run(exported, logits, target) == Narrow()(logits, target).numpy()


@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 0.25, "value": "surrogate"},
        {"label_smoothing": 0.125, "z_loss": 0.5},  # numbers that float32 holds
        {"ignore_index": 3, "reduction": "none"},
        {"ignore_index": None},
        {"softcap": 2.5, "shift": 1},
        {"shift": 2, "reduction": "none"},
    ],
)
def test_options(export, options):
    logits, target = problem(SHAPES["sequences"], "float32")
    criterion = GammaCrossEntropyLoss(0.7, torch.linspace(0.5, 2.0, 7), **options)
    check(export, criterion, logits, target.clamp(min=0).to(torch.int16))


def test_gamma_per_row_and_to_the_last_digit(export):
    logits, target = problem(SHAPES["rows"], "float64")
    check(export, GammaCrossEntropyLoss(torch.rand(13, dtype=torch.float64)), logits, target)
    check(export, GammaCrossEntropyLoss(0.1), logits, target)  # which float32 does not hold
    check(export, GammaCrossEntropyLoss(torch.nn.Parameter(torch.tensor(0.1))), logits, target)


def test_gamma_as_an_input():
    class Annealed(torch.nn.Module):
        def forward(self, logits: Any, target: Any, gamma: Any) -> Any:
            return gamma_cross_entropy(logits, target, gamma)

    logits, target = problem(SHAPES["rows"], "float32")
    gamma = torch.tensor(0.3, dtype=torch.float64)
    exported = by_dynamo(Annealed(), (logits, target, gamma))
    for other in (gamma, gamma * 0.0, gamma / gamma):
        want = gamma_cross_entropy(logits, target, other).numpy()
        assert run(exported, logits, target, other) == want


def test_sizes_that_vary():
    logits, target = problem(SHAPES["rows"], "float32")
    model = Model(GammaCrossEntropyLoss(0.3, reduction="none"))
    rows = torch.export.Dim("rows")
    shapes = {"logits": {0: rows}, "target": {0: rows}}
    axes = {"logits": {0: "rows"}, "target": {0: "rows"}}
    for exported in (
        by_dynamo(model, (logits, target), dynamic_shapes=shapes),
        by_tracing(model, (logits, target), dynamic_axes=axes),
    ):
        for count in (13, 4):
            part = logits[:count], target[:count]
            np.testing.assert_array_equal(run(exported, *part), model(*part).detach().numpy())


def test_in_standard_operators():
    # Without the library, by the function that attach_function adds.
    import onnxruntime

    logits, target = problem(SHAPES["rows"], "float32")
    model = Model(GammaCrossEntropyLoss(0.3))
    exported = gce.onnx.attach_function(by_dynamo(model, (logits, target)))
    session = onnxruntime.InferenceSession(exported.SerializeToString())
    feeds = {"logits": logits.numpy(), "target": target.numpy()}
    (found,) = session.run(None, feeds)
    # Rounded once more, from float64.
    np.testing.assert_allclose(found, model(logits, target).detach().numpy(), rtol=2e-7)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"sample_weight": "ones"}, "sample_weight"),
        ({"threshold": "ones"}, "threshold per row"),
        ({"normalizer": 5.0}, "normalizer"),
    ],
)
def test_what_the_operator_lacks(options, what):
    logits, target = problem(SHAPES["rows"], "float32")
    options = {
        name: torch.ones(13) if option == "ones" else option for name, option in options.items()
    }

    class Lacking(torch.nn.Module):
        def forward(self, logits: Any, target: Any) -> Any:
            return gamma_cross_entropy(logits, target, 0.3, **options)

    with pytest.raises(NotImplementedError, match=f"GammaCrossEntropyLoss has no (a )?{what}"):
        by_tracing(Lacking(), (logits, target))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["rows", "sequences", "a row"])
@pytest.mark.parametrize("options", [{}, {"reduction": "none", "softcap": 2.5}], ids=str)
def test_probabilities(export, name, options, dtype):
    logits, _ = problem(SHAPES[name], "float32")
    target = logits.softmax(min(1, logits.dim() - 1)).to(dtype)
    check(export, GammaCrossEntropyLoss(0.3, **options), logits, target)


def test_the_older_exporters_oldest_opset():
    with pytest.raises(ValueError, match="opset_version = 12, expected 13 or newer"):
        gce.torch.register_onnx_symbolic(12)


def test_an_exported_program_with_the_gradient():
    # Of a call that asks for it; gamma_cross_entropy does not when it is exported.
    from gce.torch._options import Options

    class Both(torch.nn.Module):
        def forward(self, logits: Any, target: Any) -> Any:
            gamma = torch.tensor(0.3, dtype=torch.float64)
            both = torch.ops.gce.gamma_cross_entropy(logits, target, gamma, True, None, *Options())
            return both[1]

    for name in ("rows", "a row"):
        logits, target = problem(SHAPES[name], "float32")
        for export in (by_dynamo, by_tracing):
            found = run(export(Both(), (logits, target)), logits, target)
            np.testing.assert_array_equal(found, Both()(logits, target).numpy())
