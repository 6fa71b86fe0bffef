"""Forward models as other people's exporters write them.

`EXPORTED` has PyTorch modules by name, with what feeds them; `export` makes an ONNX model of one.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

VOCABULARY, LENGTH = 50, 7


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 9)
    )


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=4),
        nn.ReLU(),
        nn.Conv2d(8, 6, 2, dilation=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
    )


class Block(nn.Module):
    """Causal attention made of plain operators, then a perceptron, each behind a LayerNorm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(approximate="tanh"), nn.Linear(2 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        q, k, v = (
            t.view(batch, length, self.heads, width // self.heads).transpose(1, 2)
            for t in (q, k, v)
        )
        scores = q @ k.transpose(-2, -1) / (width // self.heads) ** 0.5
        mask = torch.triu(torch.ones(length, length, dtype=torch.bool), diagonal=1)
        attention = scores.masked_fill(mask, float("-inf")).softmax(dim=-1)
        x = x + self.out((attention @ v).transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """A causal language model."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.positions = nn.Parameter(0.02 * torch.randn(LENGTH, width))
        self.blocks = nn.Sequential(Block(width, heads), Block(width, heads))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.blocks(self.tokens(tokens) + self.positions)))


class Encoder(nn.Module):
    """PyTorch's own transformer, behind an embedding, read at the first position.

    Its layers are copies, which begin equal, and so do all its normalizations and most biases.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 6)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(self.tokens(tokens))[:, 0])


class Recurrent(nn.Module):
    """An LSTM, read at the last position."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, 8)
        self.layer = nn.LSTM(8, 12, batch_first=True)
        self.head = nn.Linear(12, 6)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(self.tokens(tokens))[0][:, -1])


class Segmentation(nn.Module):
    """A small U-net: a class for each pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 6, 3, padding=1)
        self.inner = nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect")
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.side = nn.Conv2d(8, 2, 1)
        self.head = nn.Conv2d(14, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outer = self.down(x).relu()
        inner = self.inner(nn.functional.avg_pool2d(outer, 2)).tanh()
        side = nn.functional.interpolate(self.side(inner), scale_factor=2.0, mode="bilinear")
        return self.head(torch.cat([outer, self.up(inner), side], dim=1))


class Patches(nn.Module):
    """A vision transformer: patches and a class token, which is repeated over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, 16))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 5, 16))
        self.block = Block(16, 2)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.repeat(x.shape[0], 1, 1), patches], dim=1)
        return self.head(self.block(tokens + self.positions)[:, 0])


def normalized() -> nn.Module:
    """Normalizations with statistics: behind convolutions, where exporters fold them, and before.

    They are folded here too, as it is the folded weights that are trained.
    """
    model = nn.Sequential(
        nn.BatchNorm2d(3),
        nn.Conv2d(3, 6, 3, stride=2, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(48, 5),
    )
    model(torch.randn(64, 3, 11, 9) * 2 + 1)
    model.eval()
    for i in (1, 4):
        folded: Any = nn.utils.fusion.fuse_conv_bn_eval
        model[i], model[i + 1] = folded(model[i], model[i + 1]), nn.Identity()
    return model.requires_grad_()


class Upscaled(nn.Module):
    """Extents that the older exporter loses, a normalization before strides, and a diagonal."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(4, 8)
        self.depthwise = nn.Conv2d(8, 8, 2, stride=2, groups=8)
        self.up = nn.Conv2d(8, 20, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(nn.functional.interpolate(self.first(x), scale_factor=2.0)).relu()
        pooled = nn.functional.avg_pool2d(self.depthwise(hidden), 3, stride=1, padding=1)
        large = nn.functional.pixel_shuffle(self.up(pooled), 2)
        return torch.diagonal(large, dim1=2, dim2=3).mean(-1)


class Tied(nn.Module):
    """One embedding for what goes in and what comes out, and modules that are called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, 40)
        self.shared = nn.Linear(40, 40)
        self.norm = nn.LayerNorm(40)
        self.head = nn.Linear(40, VOCABULARY, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.tokens(tokens)
        for _ in range(2):
            hidden = self.norm(self.shared(hidden).relu())
        return self.head(hidden)


class Details(nn.Module):
    """What begins equal and is several, and what looks like a parameter and is none."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.rand(12))
        self.scale, self.shift = nn.Parameter(torch.tensor(1.3)), nn.Parameter(torch.zeros(16))
        self.gain1, self.gain2 = nn.Parameter(torch.ones(16)), nn.Parameter(torch.ones(16))
        self.first = nn.Linear(12, 16)
        self.norm, self.group = nn.LayerNorm(16), nn.GroupNorm(4, 16)
        self.plain = nn.LayerNorm(16, elementwise_affine=False)
        self.slope1, self.slope2 = nn.PReLU(), nn.PReLU()
        self.inner, self.copy = nn.Linear(16, 16), nn.Linear(16, 16)
        self.copy.load_state_dict(self.inner.state_dict())
        self.head = nn.Linear(16, 5)
        for layer in (self.first, self.head):
            nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.slope1(self.group(self.first(x - self.mean)))
        hidden = self.inner(self.plain(hidden) * self.gain1).tanh() * self.gain2
        hidden = self.slope2(self.norm(self.copy(hidden))) + self.shift
        return self.head(nn.functional.layer_norm(hidden, (16,))) * self.scale


def floats(*shape: int) -> Callable[[np.random.Generator, int], np.ndarray[Any, Any]]:
    return lambda rng, batch: rng.normal(size=(batch, *shape)).astype(np.float32)


def tokens(rng: np.random.Generator, batch: int) -> np.ndarray[Any, Any]:
    return rng.integers(0, VOCABULARY, (batch, LENGTH))


@dataclass(frozen=True)
class Exported:
    """A module, how to feed it, the shape of its logits without the batch, and their class axis.

    `buffers` are what the older exporter leaves as it leaves parameters.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[np.random.Generator, int], np.ndarray[Any, Any]]
    logits: tuple[int, ...]
    axis: int = 1
    buffers: tuple[str, ...] = ()

    def labels(self, rng: np.random.Generator, batch: int) -> np.ndarray[Any, Any]:
        sizes = list(self.logits)
        classes = sizes.pop(0 if self.axis == 1 else -1)
        return rng.integers(0, classes, (batch, *sizes))


EXPORTED = {
    "mlp": Exported(mlp, floats(12), (9,)),
    "cnn": Exported(cnn, floats(3, 13, 11), (5,)),
    "normalized": Exported(normalized, floats(3, 11, 9), (5,)),
    "transformer": Exported(Transformer, tokens, (LENGTH, VOCABULARY), axis=-1),
    "encoder": Exported(Encoder, tokens, (6,)),
    "recurrent": Exported(Recurrent, tokens, (6,)),
    "segmentation": Exported(Segmentation, floats(3, 8, 6), (4, 8, 6)),
    "patches": Exported(Patches, floats(3, 8, 8), (5,)),
    "upscaled": Exported(Upscaled, floats(3, 7, 6), (5,)),
    "tied": Exported(Tied, tokens, (LENGTH, VOCABULARY), axis=-1),
    "details": Exported(Details, floats(12), (5,), buffers=("mean",)),
}


def export(
    module: nn.Module,
    inputs: np.ndarray[Any, Any],
    dynamo: bool,
    opset: int | None = None,
    optimize: bool = True,
) -> onnx.ModelProto:
    """The module in inference mode, for any batch, with input "x" and output "logits"."""
    module.eval()
    file = io.BytesIO()
    options: dict[str, Any] = {"opset_version": opset} if opset else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        if dynamo:
            batch = torch.export.Dim("batch", min=2)
            program = torch.onnx.export(
                module, (torch.from_numpy(inputs),), dynamo=True, input_names=["x"],
                output_names=["logits"], dynamic_shapes=({0: batch},), verbose=False,
                optimize=optimize, **options,
            )  # fmt: skip
            assert program is not None
            return program.model_proto
        torch.onnx.export(
            module, (torch.from_numpy(inputs),), file, dynamo=False, input_names=["x"],
            output_names=["logits"], dynamic_axes={"x": {0: "batch"}, "logits": {0: "batch"}},
            do_constant_folding=optimize, **options,
        )  # fmt: skip
    return onnx.load_from_string(file.getvalue())


def composed_loss(
    logits: torch.Tensor,
    labels: np.ndarray[Any, Any],
    gamma: float,
    *,
    axis: int = 1,
    weights: np.ndarray[Any, Any] | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """The loss made of PyTorch's own functions: -log(γ + (1 - γ) p) / (1 - γ), and what goes on."""
    log_q = logits.movedim(axis, -1).flatten(0, -2).log_softmax(-1)
    flat = torch.from_numpy(labels.reshape(-1))
    counted = torch.ones_like(flat) if ignore_index is None else (flat != ignore_index).long()
    flat = flat * counted
    log_p = log_q.gather(1, flat[:, None])[:, 0]
    if gamma == 0:
        row = -log_p
    elif gamma == 1:
        row = 1 - log_p.exp()
    else:
        row = -torch.log(gamma + (1 - gamma) * log_p.exp()) / (1 - gamma)
    c = torch.ones(log_q.shape[1]) if weights is None else torch.from_numpy(weights)
    smooth = (c * -log_q).sum(1) * label_smoothing / log_q.shape[1]
    row = (1 - label_smoothing) * c[flat] * row + smooth
    total = (row * counted).sum()
    return total if reduction == "sum" else total / (c[flat] * counted).sum()
