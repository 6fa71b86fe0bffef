"""gce.torch: values, dtypes, layouts and errors, against PyTorch and the numpy face."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import gce
from support import require
from torch_problems import SHAPES, axis_of, composed, functional, leaf, problem, torch

if torch is not None:
    from gce.torch import GammaCrossEntropyLoss, gamma_cross_entropy

pytestmark = pytest.mark.usefixtures("torch_on_one_thread")

# float32 and float64: a dozen roundings of PyTorch's, which works in the logits' precision. Halves:
# three of theirs (of PyTorch's result, of our gradient, and of that times its factor).
TOLERANCES = {
    "float16": {"rtol": 3 * 2.0**-11, "atol": 1e-6},
    "bfloat16": {"rtol": 3 * 2.0**-8, "atol": 1e-6},
    "float32": {"rtol": 4e-6, "atol": 2e-6},
    "float64": {"rtol": 2e-14, "atol": 1e-14},
}


def value_and_grad(loss: Callable[..., Any], input: Any, *arguments: Any, **options: Any) -> Any:
    """The loss, and the gradient of a weighted sum of its n elements: 1/n, 2/n, ... 1."""
    own = leaf(input)
    value = loss(own, *arguments, **options)
    upstream = torch.arange(1, value.numel() + 1).reshape(value.shape) / max(value.numel(), 1)
    value.backward(upstream.to(value.dtype))
    return value.detach(), own.grad


def assert_same(found: Any, expected: Any, dtype: str) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, **TOLERANCES[dtype])


# --- PyTorch's own samples ------------------------------------------------------------------------


def samples_of(name: str, dtype: Any) -> Iterator[Any]:
    """What PyTorch tests a function of ``torch.nn.functional`` with."""
    require(importlib.util.find_spec("expecttest"), "expecttest is not installed")
    from torch.testing._internal.common_methods_invocations import op_db

    for operator in op_db:
        if operator.name == f"nn.functional.{name}":
            yield from operator.sample_inputs("cpu", dtype, requires_grad=False)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_samples_of_cross_entropy(dtype):
    torch.manual_seed(0)
    ran = 0
    for sample in samples_of("cross_entropy", getattr(torch, dtype)):
        (target,) = sample.args
        found = value_and_grad(gamma_cross_entropy, sample.input, target, 0.0, **sample.kwargs)
        # For halves PyTorch's float32, rounded.
        exact = torch.promote_types(sample.input.dtype, torch.float32)
        tensors = {"weight": sample.kwargs.get("weight"), "input": sample.input, "target": target}
        wide = {
            name: tensor.to(exact)
            for name, tensor in tensors.items()
            if tensor is not None and tensor.is_floating_point()
        }
        arguments = {"target": target, **sample.kwargs, **wide}
        want = value_and_grad(functional().cross_entropy, arguments.pop("input"), **arguments)
        assert_same(found, [item.to(sample.input.dtype) for item in want], dtype)
        ran += target.is_floating_point()
    assert ran >= 10  # of probabilities, and as many of classes


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_samples_of_nll_loss(dtype):
    # Composed with log_softmax, it is the loss; its samples have old-fashioned reductions too.
    torch.manual_seed(0)
    ran = 0
    for sample in samples_of("nll_loss", getattr(torch, dtype)):
        (target,) = sample.args
        if sample.input.numel() == 0 or sample.kwargs.get("weight") is not None:
            # No row, or weights of any sign: a mean over nothing is 0 here.
            sample.kwargs["reduction"] = "sum"

        def composition(z: Any, y: Any, **options: Any) -> Any:
            axis = axis_of(z.shape)
            return functional().nll_loss(functional().log_softmax(z, axis), y, **options)

        want = value_and_grad(composition, sample.input, target, **sample.kwargs)
        found = value_and_grad(gamma_cross_entropy, sample.input, target, 0.0, **sample.kwargs)
        assert_same(found, want, dtype)
        ran += 1
    assert ran >= 10


def module_samples(which: str, dtype: Any) -> list[Any]:
    require(importlib.util.find_spec("expecttest"), "expecttest is not installed")
    from torch.testing._internal import common_modules

    make = getattr(common_modules, f"module_{which}_torch_nn_CrossEntropyLoss")
    return list(make(None, "cpu", dtype, requires_grad=False, training=True))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_samples_of_the_module(dtype):
    torch.manual_seed(0)
    ran = 0
    for sample in module_samples("inputs", getattr(torch, dtype)):
        constructor, forward = sample.constructor_input, sample.forward_input
        input, target = forward.args
        theirs = torch.nn.CrossEntropyLoss(*constructor.args, **constructor.kwargs)
        ours = GammaCrossEntropyLoss(0.0, *constructor.args, **constructor.kwargs)
        want, found = value_and_grad(theirs, input, target), value_and_grad(ours, input, target)
        if bool((target == theirs.ignore_index).all()) and theirs.reduction == "mean":
            want = [torch.zeros_like(item) for item in want]  # 0/0 for PyTorch
        assert_same(found, want, dtype)
        ran += 1
    assert ran >= 100


def test_wrong_samples_of_the_module():
    # PyTorch's own list of what must raise: the same types here.
    ran = 0
    for sample in module_samples("error_inputs", torch.float32):
        constructor = sample.module_error_input.constructor_input
        input, target = sample.module_error_input.forward_input.args
        ours = GammaCrossEntropyLoss(0.0, *constructor.args, **constructor.kwargs)
        with pytest.raises(sample.error_type):
            ours(input, target)
        ran += 1
    assert ran >= 7


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", SHAPES)
def test_the_numpy_face_to_the_bit(name, dtype, reduction):
    input, target = problem(SHAPES[name], dtype)
    axis = axis_of(input.shape)
    options = {"label_smoothing": 0.1, "threshold": 0.2, "z_loss": 0.01, "reduction": reduction}
    own = leaf(input)
    loss = gamma_cross_entropy(own, target, 0.3, **options)
    loss.backward(torch.ones_like(loss))
    logits = input.float().numpy() if dtype == "bfloat16" else input.numpy()
    want_loss, want_grad = gce.loss_and_grad(logits, target.numpy(), 0.3, axis=axis, **options)
    # bfloat16's results are float32's, rounded once.
    assert torch.equal(loss, torch.from_numpy(np.asarray(want_loss)).to(input.dtype))
    assert torch.equal(own.grad, torch.from_numpy(want_grad).to(input.dtype))
    with torch.no_grad():
        assert torch.equal(gamma_cross_entropy(own, target, 0.3, **options), loss)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, "per row"])
def test_the_composition(gamma):
    input, target = problem(SHAPES["images"], "float64")
    target = target.clamp(min=0)
    torch.manual_seed(0)
    gamma = torch.rand(target.shape, dtype=torch.float64) if gamma == "per row" else gamma
    threshold, sample_weight = torch.rand(target.shape).double(), torch.rand(target.shape).double()
    weight = torch.rand(7).double()

    def composition(z: Any) -> Any:
        rows = composed(z, target, gamma, threshold, "primitive", 1) * sample_weight
        return (rows * weight[target]).sum() / (sample_weight * weight[target]).sum()

    def ours(z: Any) -> Any:
        more = {"threshold": threshold, "sample_weight": sample_weight}
        return gamma_cross_entropy(z, target, gamma, weight, **more)

    # 1e-16 divided by δ, and by values down to 1e-3.
    for found, want in zip(
        value_and_grad(ours, input), value_and_grad(composition, input), strict=True
    ):
        torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-13)


def test_normalizer_and_surrogate():
    input, target = problem(SHAPES["rows"], "float64")
    total = gamma_cross_entropy(input, target, 0.5, value="surrogate", reduction="sum")
    found = gamma_cross_entropy(input, target, 0.5, value="surrogate", normalizer=20.0)
    torch.testing.assert_close(found, total / 20.0)


LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "channels last": lambda z: z.contiguous(memory_format=torch.channels_last),
    "transposed": lambda z: z.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    "sliced": lambda z: torch.stack([z, z + 1], -1)[..., 0],
    "offset": lambda z: torch.cat([torch.zeros(1).to(z.dtype), z.flatten()])[1:].view(z.shape),
    "expanded": lambda z: z[:1].expand(z.shape),
    "negative": lambda z: torch.complex(z.double(), -z.double()).conj().imag.to(z.dtype),
}


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, dtype):
    input, target = problem(SHAPES["images"], dtype)
    laid_out = LAYOUTS[layout](input)
    want = value_and_grad(gamma_cross_entropy, laid_out.clone().contiguous(), target, 0.5)
    own = laid_out.detach().requires_grad_()
    loss = gamma_cross_entropy(own, target, 0.5)
    (grad,) = torch.autograd.grad(loss, own)
    assert torch.equal(loss, want[0]) and torch.equal(grad, want[1])


def test_a_lazily_negated_tensor():
    imaginary = torch.complex(torch.ones(4, 3), torch.randn(4, 3)).conj().imag
    assert imaginary.is_neg()
    target = torch.tensor([0, 1, 2, 0])
    found = gamma_cross_entropy(imaginary, target, 0.5)
    assert torch.equal(found, gamma_cross_entropy(imaginary.resolve_neg(), target, 0.5))


def test_no_layout_is_copied():
    input, target = problem((64, 50, 40), "float32")
    tracemalloc.start()
    try:
        for view in (input, input.transpose(0, 2), input.bfloat16()):
            targets = target if view.shape[0] == 64 else target.T
            gamma_cross_entropy(view, targets, 0.5)
        _, peak = tracemalloc.get_traced_memory()  # of numpy's arrays too
    finally:
        tracemalloc.stop()
    assert peak < input.numel()  # bytes: a copy had two or four times as many


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "int64"])
def test_dtypes_of_targets(dtype):
    input, target = problem(SHAPES["rows"], "float32")
    target = target.clamp(min=0)
    found = gamma_cross_entropy(input, target.to(getattr(torch, dtype)), 0.5)
    assert torch.equal(found, gamma_cross_entropy(input, target, 0.5))


def test_forms_of_gamma_and_threshold():
    input, target = problem(SHAPES["rows"], "float32")
    want = gamma_cross_entropy(input, target, 0.5, threshold=0.25)
    for half, quarter in (
        (torch.tensor(0.5), torch.tensor(0.25)),
        (torch.tensor(0.5, dtype=torch.bfloat16), torch.tensor(0.25, dtype=torch.float16)),
        (np.float64(0.5), np.float32(0.25)),
        (torch.full((13,), 0.5), np.full(13, 0.25)),
        ([0.5] * 13, [0.25] * 13),
    ):
        assert torch.equal(gamma_cross_entropy(input, target, half, threshold=quarter), want)
    ones = gamma_cross_entropy(input, target, torch.tensor(1), threshold=0)
    assert torch.equal(ones, gamma_cross_entropy(input, target, 1.0))


def test_nothing_counts():
    input = leaf(torch.randn(4, 3))
    loss = gamma_cross_entropy(input, torch.full((4,), -100), 0.5)
    loss.backward()
    assert loss.item() == 0.0 and not input.grad.any()  # PyTorch: NaN
    ones = gamma_cross_entropy(input, torch.full((4,), 1), 0.5, ignore_index=None)
    assert ones.item() > 0.0


def test_autocast_gives_float32_and_grad_of_the_logits_dtype():
    input, target = problem(SHAPES["rows"], "bfloat16")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        want = functional().cross_entropy(input, target)
        own = leaf(input)
        loss = gamma_cross_entropy(own, target, 0.0)
    loss.backward()
    assert loss.dtype == want.dtype == torch.float32 and own.grad.dtype == torch.bfloat16
    torch.testing.assert_close(loss.detach(), want, rtol=2e-6, atol=0)  # float32's


def test_threads_are_those_of_pytorch(monkeypatch):
    seen: list[int] = []
    real = gce.loss

    def noting(*arguments: Any, num_threads: int, **options: Any) -> Any:
        seen.append(num_threads)
        return real(*arguments, **options)

    monkeypatch.setattr(gce, "loss", noting)
    input, target = problem(SHAPES["rows"], "float32")
    for threads in (1, 2):
        torch.set_num_threads(threads)
        gamma_cross_entropy(input, target, 0.5)
    assert seen == [1, 2]


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"input": [[0.0]]}, TypeError, r"input has type list, expected torch\.Tensor"),
        ({"target": 1}, TypeError, r"target has type int, expected torch\.Tensor"),
        ({"weight": [1.0] * 7}, TypeError, r"weight has type list, expected torch\.Tensor"),
        ({"input": "int64"}, TypeError, r"logits has dtype int64, expected float16, bfloat16"),
        ({"input": "complex64"}, TypeError, r"logits has dtype complex64, expected float16"),
        ({"input": "float8_e4m3fn"}, TypeError, "input has dtype float8_e4m3fn, expected a number"),
        ({"target": "bool"}, TypeError, r"targets has dtype bool, expected an integer dtype"),
        ({"gamma": "half"}, TypeError, "gamma is 'half', expected a number or a Tensor"),
        ({"gamma": 10**400}, ValueError, "gamma is an integer that no float64 holds, expected"),
        ({"threshold": -(10**400)}, ValueError, "threshold is an integer that no float64 holds"),
        ({"gamma": None}, TypeError, "gamma is None, expected a number or a Tensor"),
        ({"threshold": "high"}, TypeError, "threshold is 'high', expected a number or a Tensor"),
        ({"gamma": torch.tensor(0.5j)}, TypeError, "gamma has dtype complex64, expected a float"),
        ({"threshold": torch.tensor(0.5j)}, TypeError, "threshold has dtype complex64, expected"),
        ({"ignore_index": 1.0}, TypeError, "ignore_index has type float, expected int or None"),
        ({"label_smoothing": None}, TypeError, "label_smoothing has type NoneType, expected float"),
        ({"z_loss": "0"}, TypeError, "z_loss has type str, expected float"),
        ({"z_loss": torch.tensor(1j)}, TypeError, "z_loss has dtype complex64, expected float"),
        ({"softcap": [1.0]}, TypeError, "softcap has type list, expected float or None"),
        ({"normalizer": "1"}, TypeError, "normalizer has type str, expected float or None"),
        ({"shift": np.float32(1.9)}, TypeError, "shift has type float32, expected int"),
        ({"shift": torch.tensor(1.9)}, TypeError, "shift has dtype float32, expected int"),
        ({"reduction": None}, TypeError, "reduction has type NoneType, expected str"),
        ({"value": 3}, TypeError, "value has type int, expected str"),
        ({"input": "sparse"}, TypeError, "input has layout torch.sparse_coo, expected torch.strid"),
        ({"gamma": 1.5}, ValueError, "gamma = 1.5, expected 0 <= gamma <= 1"),
        ({"gamma": float("nan")}, ValueError, "gamma = nan, expected 0 <= gamma <= 1"),
        ({"threshold": -0.5}, ValueError, "threshold = -0.5, expected 0 <= threshold <= 1"),
        ({"label_smoothing": 2.0}, ValueError, "label_smoothing = 2, expected 0 <= label_smooth"),
        ({"z_loss": -1.0}, ValueError, "z_loss = -1, expected a finite number >= 0"),
        ({"normalizer": 0.0}, ValueError, "normalizer = 0, expected a finite number > 0"),
        ({"reduction": "max"}, ValueError, 'reduction = "max", expected "mean", "sum" or "none"'),
        ({"value": "other"}, ValueError, 'value = "other", expected "primitive" or "surrogate"'),
        ({"input": "scalar"}, ValueError, "logits has 0 dimensions, expected 1 to 64"),
        ({"target": "short"}, ValueError, r"targets has shape \(12,\), expected \(13,\)"),
        ({"gamma": [0.5] * 12}, ValueError, r"gamma has shape \(12,\), expected a scalar or \(13"),
        ({"weight": "short"}, ValueError, r"weight has shape \(6,\), expected \(7,\)"),
        ({"target": "outside"}, IndexError, r"targets\[2\] = 7, expected 0 <= target < 7"),
        ({"input": "meta"}, NotImplementedError, "input is on device meta, expected a CPU tensor"),
        ({"weight": "meta"}, NotImplementedError, "weight is on device meta, expected a CPU ten"),
    ],
)
def test_errors(changes, error, message):
    input, target = problem(SHAPES["rows"], "float32")
    arguments = {"input": input, "target": target, "gamma": 0.5, "weight": torch.ones(7)}
    outside = target.clone()
    outside[2] = 7
    odd = {
        "sparse": lambda tensor: tensor.to_sparse(),
        "scalar": lambda tensor: tensor[0, 0],
        "short": lambda tensor: tensor[:-1],
        "outside": lambda tensor: outside,
        "meta": lambda tensor: tensor.to("meta"),
    }
    for name, change in changes.items():
        tensor = arguments.get(name)
        if isinstance(change, str) and isinstance(tensor, torch.Tensor):
            to_dtype = getattr(torch, change, None)
            change = odd[change](tensor) if change in odd else tensor.to(to_dtype)
        arguments[name] = change
    with pytest.raises(error, match=f"^{message}"):
        gamma_cross_entropy(**arguments)
    if "input" not in changes:  # and where loss and gradient are computed
        with pytest.raises(error, match=f"^{message}"):
            gamma_cross_entropy(**{**arguments, "input": leaf(input)})


@pytest.mark.parametrize(
    ("gamma", "changes"), [(1.5, {}), (0.5, {"reduction": "max"}), (0.5, {"weight": "bool"})]
)
def test_errors_of_the_core_are_what_pytorch_raises_too(gamma, changes):
    input, target = problem(SHAPES["rows"], "float32")
    if changes.get("weight"):
        changes, target = {}, target.bool()
    with pytest.raises(RuntimeError) as info:
        gamma_cross_entropy(input, target, gamma, **changes)
    assert isinstance(info.value, (TypeError, ValueError))


@pytest.mark.parametrize("name", ["weight", "sample_weight", "threshold"])
def test_what_is_not_differentiated(name):
    input, target = problem(SHAPES["rows"], "float32")
    size = 7 if name == "weight" else 13
    options = {name: torch.full((size,), 0.5, requires_grad=True)}
    with pytest.raises(RuntimeError, match=f"^{name} requires grad, expected none"):
        gamma_cross_entropy(input, target, 0.5, **options)
    with torch.no_grad():
        gamma_cross_entropy(input, target, 0.5, **options)


@pytest.mark.parametrize("name", ["label_smoothing", "z_loss", "softcap", "normalizer"])
def test_numbers_in_tensors(name):
    input, target = problem(SHAPES["rows"], "float32")
    number = torch.tensor(0.5)
    found = gamma_cross_entropy(input, target, 0.5, **{name: number})
    assert found == gamma_cross_entropy(input, target, 0.5, **{name: np.float32(0.5)})
    with pytest.raises(RuntimeError, match=f"^{name} requires grad, expected none"):
        gamma_cross_entropy(input, target, 0.5, **{name: number.requires_grad_()})
    with torch.no_grad():
        assert found == gamma_cross_entropy(input, target, 0.5, **{name: number})


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # by importing torch.func
def test_transforms_that_would_lose_derivatives():
    input, target = problem(SHAPES["rows"], "float32")

    def loss(z: Any) -> Any:
        return gamma_cross_entropy(z, target, 0.5)

    with pytest.raises(NotImplementedError, match=r"^input is being differentiated by torch\.func"):
        torch.func.grad(loss)(input)
    with pytest.raises(NotImplementedError, match=r"^input is being differentiated by torch\.func"):
        torch.func.jvp(loss, (input,), (input,))
    forward = torch.autograd.forward_ad
    with forward.dual_level(), pytest.raises(NotImplementedError, match="forward mode"):
        loss(forward.make_dual(input, input))
    with pytest.raises(NotImplementedError, match=r"no rule for torch\.vmap"):
        torch.func.vmap(lambda z, y: gamma_cross_entropy(z, y, 0.5))(input, target.clamp(min=0))


# --- imports --------------------------------------------------------------------------------------


def run_python(code: str) -> str:
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_gce_imports_no_torch():
    code = "import sys, gce, gce.onnx; gce.loss([0.0, 1.0], 1, 0.5); print('torch' in sys.modules)"
    assert run_python(code).strip() == "False"
    code = "import gce; print(gce.torch.gamma_cross_entropy.__name__)"
    assert run_python(code).strip() == "gamma_cross_entropy"


def test_without_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import gce\n"
        "try: gce.torch\n"
        "except ModuleNotFoundError as error: print(error)\n"
    )
    assert run_python(code).startswith("gce.torch needs torch, which is not installed: pip install")


def test_every_option_of_the_numpy_face():
    import inspect

    from gce.torch._options import Options

    ours = set(inspect.signature(gamma_cross_entropy).parameters)
    theirs = set(inspect.signature(gce.loss).parameters) - {"logits", "targets"}
    theirs -= {"axis", "num_threads"}  # are PyTorch's
    theirs -= {"return_stats"}  # gce.row_stats takes tensors
    assert theirs == ours - {"input", "target"}
    assert theirs - {"gamma"} <= set(Options._fields)
    of_module = set(inspect.signature(GammaCrossEntropyLoss).parameters)
    assert of_module - {"size_average", "reduce"} == ours - {"input", "target", "sample_weight"}


@pytest.mark.parametrize("which", ["input", "target", "weight"])
@pytest.mark.parametrize("left", [0, 7])
def test_storage_that_was_freed(which, left):
    given = {"input": torch.randn(4, 5), "target": torch.arange(4), "weight": torch.ones(5)}
    given[which].untyped_storage().resize_(left)
    with pytest.raises(ValueError, match=f"has a storage of {left} bytes, expected"):
        gamma_cross_entropy(**given, gamma=0.3)


def test_storage_can_be_resized_afterwards():
    """As buffers that are reused, or freed between steps, are."""
    given = {"input": torch.randn(4, 5), "target": torch.arange(4), "weight": torch.ones(5)}
    given["input"].requires_grad_()
    gamma_cross_entropy(**given, gamma=0.3).backward()
    grad = given["input"].grad
    assert grad is not None
    for tensor in (*given.values(), grad):
        tensor.untyped_storage().resize_(0)
        tensor.untyped_storage().resize_(4000)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors|.*quantized:UserWarning")
def test_tensors_without_one_shape_or_plain_numbers():
    input, target = torch.randn(4, 5), torch.arange(4)
    nested = torch.nested.nested_tensor([input], layout=torch.strided)
    with pytest.raises(TypeError, match=r"^input is nested, expected a tensor of one shape"):
        gamma_cross_entropy(nested, target, 0.3)
    scales = torch.quantize_per_tensor(input, 0.1, 0, torch.quint8)
    with pytest.raises(TypeError, match=r"^input has dtype quint8, expected a number of numpy"):
        gamma_cross_entropy(scales, target, 0.3)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"ignore_index": 2**63}, "ignore_index = 9223372036854775808, expected a 64-bit integer"),
        ({"shift": 2**63}, "shift = 9223372036854775808, expected a 64-bit integer"),
        ({"normalizer": 10**400}, "normalizer is an integer that no float64 holds"),
        ({"z_loss": 10**400}, "z_loss is an integer that no float64 holds"),
    ],
    ids=lambda each: "" if isinstance(each, str) else next(iter(each)),
)
def test_integers_that_no_operator_takes(option, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        gamma_cross_entropy(torch.zeros(2, 3), torch.tensor([0, 1]), 0.5, **option)
