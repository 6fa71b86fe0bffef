"""Forward models as other people's exporters write them: PyTorch's, old and new, and scikit-learn's.

`EXPORTED` has the PyTorch modules by name, with what feeds them; `export` makes an ONNX model of one.
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
    """PyTorch's own transformer layer, behind an embedding, read at the first position."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(16, 6)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(self.tokens(tokens))[:, 0])


def floats(*shape: int) -> Callable[[np.random.Generator, int], np.ndarray[Any, Any]]:
    return lambda rng, batch: rng.normal(size=(batch, *shape)).astype(np.float32)


def tokens(rng: np.random.Generator, batch: int) -> np.ndarray[Any, Any]:
    return rng.integers(0, VOCABULARY, (batch, LENGTH))


@dataclass(frozen=True)
class Exported:
    """A module, how to feed it, and the shape of its logits without the batch."""

    make: Callable[[], nn.Module]
    inputs: Callable[[np.random.Generator, int], np.ndarray[Any, Any]]
    logits: tuple[int, ...]

    @property
    def axis(self) -> int:
        return -1 if len(self.logits) > 1 else 1


EXPORTED = {
    "mlp": Exported(mlp, floats(12), (9,)),
    "cnn": Exported(cnn, floats(3, 10, 10), (5,)),
    "transformer": Exported(Transformer, tokens, (LENGTH, VOCABULARY)),
    "encoder": Exported(Encoder, tokens, (6,)),
}


def export(
    module: nn.Module, inputs: np.ndarray[Any, Any], dynamo: bool, opset: int | None = None
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
                output_names=["logits"], dynamic_shapes=({0: batch},), verbose=False, **options,
            )  # fmt: skip
            assert program is not None
            return program.model_proto
        torch.onnx.export(
            module, (torch.from_numpy(inputs),), file, dynamo=False, input_names=["x"],
            output_names=["logits"], dynamic_axes={"x": {0: "batch"}, "logits": {0: "batch"}},
            do_constant_folding=True, **options,
        )  # fmt: skip
    return onnx.load_from_string(file.getvalue())
