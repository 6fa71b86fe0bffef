"""PyTorch's modules and exporters, and the loss composed of PyTorch's functions."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

VOCABULARY = 13
torch.set_num_threads(1)  # models this small are slower on more


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 6)
    )


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 6),
    )


class Transformer(nn.Module):
    """Two causal blocks, some norms without a bias; [B, T] token ids to [B, T, V] scores."""

    def __init__(self, width: int = 12, heads: int = 2, length: int = 6) -> None:
        super().__init__()
        self.heads = heads
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.positions = nn.Parameter(0.1 * torch.randn(length, width))
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(width, bias=False),
                    "qkv": nn.Linear(width, 3 * width, bias=False),
                    "out": nn.Linear(width, width),
                    "norm2": nn.LayerNorm(width),
                    "up": nn.Linear(width, 4 * width),
                    "down": nn.Linear(4 * width, width),
                }
            )
            for _ in range(2)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)

    def attend(self, block: Any, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        qkv = block["qkv"](x).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / (width // self.heads) ** 0.5
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
        probabilities = scores.masked_fill(hidden, -1e9).softmax(-1)
        return block["out"]((probabilities @ v).transpose(1, 2).reshape(batch, length, width))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids) + self.positions
        for block in self.blocks:
            x = x + self.attend(block, block["norm1"](x))
            x = x + block["down"](nn.functional.gelu(block["up"](block["norm2"](x))))
        return self.head(self.norm(x))


def encoder() -> nn.Module:
    """PyTorch's own layer; with dropout, which is inactive in eval mode."""
    layer = nn.TransformerEncoderLayer(12, 2, 24, activation="gelu", batch_first=True)
    return nn.Sequential(layer, nn.Linear(12, 6)).eval()


def normalized() -> nn.Module:
    """Statistics that no exporter folds, of which those of a fresh normalization are 0 and 1."""
    model = nn.Sequential(
        nn.BatchNorm1d(20), nn.Linear(20, 16), nn.ReLU(), nn.BatchNorm1d(16), nn.Linear(16, 6)
    )
    nn.init.normal_(model[0].running_mean)
    nn.init.uniform_(model[0].running_var, 0.5, 2.0)
    return model


class Tied(nn.Module):
    """An embedding that is the last layer's weight too, and modules that are called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, 12)
        self.shared, self.norm = nn.Linear(12, 12), nn.LayerNorm(12)
        self.head = nn.Linear(12, VOCABULARY, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids)
        for _ in range(2):
            x = self.norm(x + torch.tanh(self.shared(x)))
        return self.head(x)


def problem(name: str, rng: np.random.Generator) -> tuple[nn.Module, np.ndarray, np.ndarray, int]:
    """A module, and inputs, labels and the axis of the classes."""
    torch.manual_seed(int(rng.integers(1 << 30)))
    if name in ("transformer", "tied"):
        ids = rng.integers(0, VOCABULARY, size=(3, 7))
        module = Transformer() if name == "transformer" else Tied()
        return module, ids[:, :-1], ids[:, 1:], -1
    if name == "encoder":
        x = rng.normal(size=(3, 4, 12)).astype(np.float32)
        return encoder(), x, rng.integers(0, 6, size=(3, 4)), -1
    labels = rng.integers(0, 6, size=5)
    if name == "cnn":
        return cnn(), rng.normal(size=(5, 1, 8, 8)).astype(np.float32), labels, 1
    if name == "normalized":
        return normalized(), rng.normal(size=(5, 20)).astype(np.float32), labels, 1
    return mlp(), rng.normal(size=(5, 20)).astype(np.float32), labels, 1


def exported(
    module: nn.Module, x: np.ndarray, dynamo: bool, opset: int, optimize: bool = True
) -> onnx.ModelProto:
    """The forward model; unless optimized, with its parameters as they are.

    By default the exporters merge parameters of equal values, such as those of layer norms that
    nothing has trained yet, and fold transpositions into others.
    """
    module.eval()
    arguments, names = (torch.from_numpy(x),), {"input_names": ["x"], "output_names": ["logits"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the exporters, and of the older one
        if dynamo:
            program = torch.onnx.export(
                module,
                arguments,
                dynamo=True,
                optimize=optimize,
                opset_version=opset,
                dynamic_shapes=({0: torch.export.Dim("N")},),
                verbose=False,
                **names,
            )
            assert program is not None
            return program.model_proto
        buffer = io.BytesIO()
        as_they_are = {
            "training": torch.onnx.TrainingMode.TRAINING,
            "do_constant_folding": False,
        }
        torch.onnx.export(
            module,
            arguments,
            buffer,
            dynamo=False,
            opset_version=opset,
            dynamic_axes={"x": {0: "N"}, "logits": {0: "N"}},
            **({} if optimize else as_they_are),
            **names,
        )
    return onnx.load_from_string(buffer.getvalue())


def composed_loss(
    logits: torch.Tensor, labels: np.ndarray, gamma: float, axis: int = 1
) -> torch.Tensor:
    """The mean of -log(γ + (1 - γ) p) / (1 - γ), by PyTorch's own functions."""
    rows = logits.movedim(axis, -1).flatten(0, -2)
    log_p = rows.log_softmax(-1).gather(1, torch.from_numpy(labels.reshape(-1, 1)))
    if gamma == 0:
        return -log_p.mean()
    if gamma == 1:
        return (1 - log_p.exp()).mean()
    return (-torch.log(gamma + (1 - gamma) * log_p.exp()) / (1 - gamma)).mean()
