"""gce.torch under torch.compile and torch.export, and PyTorch's own checks of its operators."""

from __future__ import annotations

from typing import Any

import pytest

from gce import schedules
from torch_problems import SHAPES, leaf, problem, torch

if torch is not None:
    from gce.torch import GammaCrossEntropyLoss, gamma_cross_entropy
    from gce.torch._options import Options

pytestmark = [
    pytest.mark.usefixtures("torch_on_one_thread"),
    # Of torch's own making.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    if torch is not None:
        torch._dynamo.reset()


def results(loss: Any, input: Any, *arguments: Any, **options: Any) -> list[Any]:
    """The loss, and its gradient."""
    own = leaf(input)
    value = loss(own, *arguments, **options)
    value.sum().backward()
    return [value.detach(), own.grad]


def assert_equal(found: list[Any], want: list[Any]) -> None:
    for ours, theirs in zip(found, want, strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


# --- opcheck --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "reduction"),
    [("float16", "mean"), ("bfloat16", "sum"), ("float32", "none"), ("float64", "mean")],
)
def test_opcheck(dtype, reduction):
    input, target = problem(SHAPES["images"], dtype)
    rows = torch.rand(target.shape)
    given = Options(
        weight=torch.rand(7),
        sample_weight=rows,
        row_threshold=rows,
        label_smoothing=0.1,
        z_loss=0.1,
        reduction=reduction,
    )
    gamma, wide = torch.tensor(0.5), torch.tensor(0.5, requires_grad=True)
    for options in (Options(reduction=reduction), given):
        for own, with_grad in ((input, False), (leaf(input), True), (leaf(input), False)):
            arguments = (own, target, gamma, with_grad, None, *options)
            torch.library.opcheck(torch.ops.gce.gamma_cross_entropy.default, arguments)
        of_hvp = (input, target, torch.ones_like(input), gamma, *options)
        torch.library.opcheck(torch.ops.gce.gamma_cross_entropy_hvp.default, of_hvp)
    for other in (target, input.softmax(1)):
        arguments = (input, other, wide, False, None, *Options(reduction=reduction))
        torch.library.opcheck(torch.ops.gce.gamma_cross_entropy.default, arguments)


def test_opcheck_of_gamma_grad():
    log_p = leaf(-torch.rand(5, dtype=torch.float64))
    for gamma in (torch.rand(5, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)):
        torch.library.opcheck(torch.ops.gce.gamma_grad.default, (log_p, leaf(gamma)))


# --- torch.compile --------------------------------------------------------------------------------


OPTIONS = {
    "none": lambda shape: {},
    "probabilities": lambda shape: {},
    "per row": lambda shape: {"reduction": "none", "threshold": 0.2, "label_smoothing": 0.1},
    "weighted": lambda shape: {
        "weight": torch.rand(shape[1]),
        "sample_weight": torch.rand(shape[0]),
        "z_loss": 0.1,
        "softcap": 5.0,
    },
}


def check_compiled(compiled: Any, dtype: str, options: str) -> None:
    for shape in ((13, 7), (5, 7), (9, 11)):
        input, target = problem(shape, dtype)
        target = input.softmax(1) if options == "probabilities" else target
        given = OPTIONS[options](shape)
        found = results(compiled, input, target, 0.3, **given)
        assert_equal(found, results(gamma_cross_entropy, input, target, 0.3, **given))
        with torch.no_grad():
            assert_equal([compiled(input, target, 0.3, **given)], found[:1])


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("dynamic", [None, True])
def test_traced_as_a_whole(dynamic, dtype, options):
    # All of the compiler but the last step, which is what takes seconds.
    backend = {"backend": "aot_eager", "fullgraph": True, "dynamic": dynamic}
    check_compiled(torch.compile(gamma_cross_entropy, **backend), dtype, options)


def test_compiled_as_a_whole():
    compiled = torch.compile(gamma_cross_entropy, fullgraph=True, dynamic=True)
    check_compiled(compiled, "bfloat16", "per row")


def test_a_compiled_model_trains_with_changing_gamma():
    from torch._dynamo.utils import counters

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.linear = torch.nn.Linear(8, 5)
            self.criterion = GammaCrossEntropyLoss(0.0)

        def forward(self, x: Any, target: Any) -> Any:
            return self.criterion(self.linear(x), target)

    gamma_at = schedules.linear(12, end=0.9)
    losses = []
    for wrap in (lambda model: model, lambda model: torch.compile(model, fullgraph=True)):
        model = Model()
        step = wrap(model)
        counters.clear()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        x = torch.randn(32, 8, generator=torch.Generator().manual_seed(1))
        target = x[:, :5].argmax(1)
        for number in range(12):  # more than torch compiles anew for
            model.criterion.gamma = gamma_at(number)
            optimizer.zero_grad()
            loss = step(x, target)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert counters["stats"]["unique_graphs"] <= 3  # γ 0, a number, any number
    # The compiled model's other operations may round differently.
    assert losses[12:] == pytest.approx(losses[:12], rel=1e-5)
    assert losses[11] < losses[0]


def test_compiled_gradient_of_gamma():
    input, target = problem(SHAPES["rows"], "float64")
    compiled = torch.compile(gamma_cross_entropy, backend="aot_eager", fullgraph=True)
    grads = []
    for loss in (gamma_cross_entropy, compiled):
        own, gamma = leaf(input), leaf(torch.full((13,), 0.5, dtype=torch.float64))
        loss(own, target, gamma, threshold=0.2).backward()
        grads.append((own.grad, gamma.grad))
    for eager, traced in zip(*grads, strict=True):
        assert torch.equal(traced, eager)


def test_errors_of_what_is_compiled():
    compiled = torch.compile(gamma_cross_entropy, backend="aot_eager", fullgraph=True)
    input, target = problem(SHAPES["rows"], "float32")
    target[2] = 7
    with pytest.raises(IndexError, match=r"targets\[2\] = 7, expected 0 <= target < 7"):
        compiled(input, target, 0.5)
    with pytest.raises(ValueError, match=r"targets has shape \(12,\), expected \(13,\)"):
        compiled(input, target[:-1], 0.5)
    with pytest.raises(ValueError, match=r"gamma = 1\.5, expected 0 <= gamma"):
        compiled(input, target.clamp(max=6), 1.5)


# --- torch.export ---------------------------------------------------------------------------------


class Loss(torch.nn.Module if torch is not None else object):  # type: ignore[misc]
    """The loss with γ = 0.3, of logits and targets."""

    def forward(self, logits: Any, target: Any) -> Any:
        return gamma_cross_entropy(logits, target, 0.3)


def test_exported_program():
    input, target = problem(SHAPES["rows"], "float32")
    rows = torch.export.Dim("rows")
    shapes = {"logits": {0: rows}, "target": {0: rows}}
    program = torch.export.export(Loss(), (leaf(input), target), dynamic_shapes=shapes)
    for count in (13, 5):
        part = input[:count], target[:count]
        found = results(program.module(), *part)
        assert_equal(found, results(Loss(), *part))


def test_fake_tensors_have_the_shapes_and_dtypes_of_real_ones():
    from torch._subclasses.fake_tensor import FakeTensorMode

    for name, dtype in ((name, dtype) for name in SHAPES for dtype in ("bfloat16", "float64")):
        input, target = problem(SHAPES[name], dtype)
        for reduction in ("mean", "none"):
            real = gamma_cross_entropy(leaf(input), target, 0.5, reduction=reduction)
            mode = FakeTensorMode()
            fakes = mode.from_tensor(leaf(input)), mode.from_tensor(target)
            with mode:
                fake = gamma_cross_entropy(*fakes, 0.5, reduction=reduction)
            assert (fake.shape, fake.dtype) == (real.shape, real.dtype)


def test_a_gpu():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():  # which needs none
        input, target = torch.empty(3, 4, device="cuda"), torch.zeros(3, device="cuda").long()
        with pytest.raises(NotImplementedError, match=r"input is on device cuda:0, expected a CPU"):
            gamma_cross_entropy(input, target, 0.5)
