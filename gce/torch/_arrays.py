"""Tensors as the arrays that the core reads and writes: views, never copies."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gce.torch._options import Options, class_axis

__all__ = ["TYPES", "arguments_of", "array_of", "errors_of_pytorch"]


NAMES = (  # the same in numpy
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
)
TYPES: dict[torch.dtype, np.dtype[Any]] = {
    **{getattr(torch, name): np.dtype(name) for name in NAMES},
    torch.bfloat16: np.dtype("uint16"),  # of which numpy has none
}


class _Memory:
    """What numpy makes an array of: after `Tensor.numpy`, nobody could resize the storage."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor  # the array keeps this alive
        size = tensor.element_size()
        self.__array_interface__ = {
            "version": 3,
            "shape": tuple(tensor.shape),
            "strides": tuple(size * step for step in tensor.stride()),
            "typestr": TYPES[tensor.dtype].str,
            "data": (tensor.data_ptr(), False),
        }


def array_of(tensor: torch.Tensor) -> NDArray[Any]:
    """The memory of a CPU tensor as an array of the same shape, strides and dtype."""
    tensor = tensor.detach().resolve_neg()
    if tensor.numel() == 0:
        array: NDArray[Any] = np.empty(tuple(tensor.shape), TYPES[tensor.dtype])
    else:
        steps = ((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
        needed = (tensor.storage_offset() + sum(steps) + 1) * tensor.element_size()
        found = tensor.untyped_storage().nbytes()
        if found < needed:  # it was freed, or made smaller
            raise ArgumentValueError(
                f"a tensor of shape {tuple(tensor.shape)} has a storage of {found} bytes, expected"
                f" {needed} or more"
            )
        array = np.asarray(_Memory(tensor))
    if tensor.dtype == torch.bfloat16:
        import ml_dtypes

        return array.view(ml_dtypes.bfloat16)
    return array


def arguments_of(input: torch.Tensor, options: Options) -> dict[str, Any]:
    """The options as keywords of `gce.loss`."""
    arguments = options._asdict()
    row_threshold = arguments.pop("row_threshold")
    if row_threshold is not None:
        arguments["threshold"] = row_threshold
    arguments = {
        name: array_of(item) if isinstance(item, torch.Tensor) else item
        for name, item in arguments.items()
    }
    return {**arguments, "axis": class_axis(input), "num_threads": torch.get_num_threads()}


class ArgumentTypeError(TypeError, RuntimeError):
    """A TypeError of gce that is also what PyTorch raises."""


class ArgumentValueError(ValueError, RuntimeError):
    """A ValueError of gce that is also what PyTorch raises."""


@contextlib.contextmanager
def errors_of_pytorch() -> Iterator[None]:
    """Make the core's errors those that a handler written for PyTorch catches too.

    PyTorch raises RuntimeError for most wrong dtypes, shapes and options. IndexError, for a target
    out of bounds, is the same here and there.
    """
    try:
        yield
    except (ArgumentTypeError, ArgumentValueError):
        raise
    except TypeError as error:
        raise ArgumentTypeError(str(error)) from None
    except ValueError as error:
        raise ArgumentValueError(str(error)) from None
