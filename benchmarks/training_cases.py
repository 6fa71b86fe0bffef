"""Models to train, with 8000 classes and more: where the loss matters."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

__all__ = ["CASES", "TrainingCase", "export"]


def perceptron(hidden: int, classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(784, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(),
        nn.Linear(hidden, classes),
    )  # fmt: skip


class Block(nn.Module):
    """Causal attention and a perceptron, each behind a LayerNorm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, self.heads, width // self.heads).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).chunk(3, dim=-1)
        )
        scores = q @ k.transpose(-2, -1) * (width // self.heads) ** -0.5
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        attention = scores.masked_fill(later, float("-inf")).softmax(-1)
        x = x + self.out((attention @ v).transpose(1, 2).reshape(batch, length, width))
        return x + self.narrow(nn.functional.gelu(self.wide(self.norm2(x))))


class Transformer(nn.Module):
    """A causal language model of two blocks."""

    def __init__(self, width: int, length: int, classes: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(classes, width)
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.Sequential(Block(width, 4), Block(width, 4))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.blocks(self.tokens(tokens) + self.positions)))


@dataclass(frozen=True)
class TrainingCase:
    """A model, and a batch: rows for the perceptron, sequences for the transformer."""

    kind: str
    width: int
    classes: int
    batch: int
    length: int = 0

    @property
    def name(self) -> str:
        rows = f"{self.batch}x{self.length}" if self.length else str(self.batch)
        return f"{self.kind} {self.width}, V={self.classes}, batch {rows}"

    @property
    def axis(self) -> int:
        return -1 if self.length else 1

    def make(self) -> tuple[nn.Module, NDArray[Any], NDArray[np.int64]]:
        """The module, always with the same weights, inputs and labels."""
        torch.manual_seed(0)
        rng = np.random.default_rng(0)
        if self.kind == "MLP":
            x = rng.normal(size=(self.batch, 784)).astype(np.float32)
            return perceptron(self.width, self.classes), x, rng.integers(0, self.classes, len(x))
        tokens = rng.integers(0, self.classes, (self.batch, self.length + 1))
        module = Transformer(self.width, self.length, self.classes)
        return module, tokens[:, :-1].copy(), tokens[:, 1:].copy()


CASES = {
    case.name: case
    for case in (
        TrainingCase("MLP", 1024, 8000, 64),
        TrainingCase("MLP", 1024, 8000, 512),
        TrainingCase("MLP", 256, 32000, 256),
        TrainingCase("transformer", 128, 8000, 16, 64),
        TrainingCase("transformer", 128, 32000, 16, 64),
        TrainingCase("transformer", 256, 50257, 8, 64),
    )
}


def export(module: nn.Module, inputs: NDArray[Any]) -> onnx.ModelProto:
    """The module as PyTorch's exporter writes it."""
    buffer = io.BytesIO()
    torch.onnx.export(
        module,
        (torch.from_numpy(inputs),),
        buffer,
        dynamo=False,
        input_names=["x"],
        output_names=["logits"],
        dynamic_axes={"x": {0: "N"}, "logits": {0: "N"}},
        opset_version=18,
    )
    return onnx.load_from_string(buffer.getvalue())
