"""What the tests of gce.jax share: problems, options, and what vmap is to give."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from support import require

if importlib.util.find_spec("jax"):
    import jax
    import jax.numpy as jnp

    from gce.jax import gamma_cross_entropy
else:
    jax = jnp = gamma_cross_entropy = None  # type: ignore[assignment]

DTYPES = ("float16", "bfloat16", "float32", "float64")
REDUCTIONS = ("mean", "sum", "none")
# Numbers are float32 in jax, unless 64 bits are enabled.
NUMBERS = ("label_smoothing", "z_loss", "softcap", "normalizer")
TENTH, THIRD = np.float32(0.1), np.float32(1 / 3)


def jax_alone() -> Iterator[None]:
    """Fixture of every module: jax is there, and has float32 again in the end."""
    require(jax, "jax is not installed")
    yield
    jax.config.update("jax_enable_x64", False)


def float64_too() -> None:
    """Fixture: with float64, which `jax_alone` ends."""
    jax.config.update("jax_enable_x64", True)


def problem(shape: tuple[int, ...] = (6, 7), dtype: Any = "float32", axis: int = -1) -> Any:
    """Logits of this shape and targets, some of them -100."""
    rng = np.random.default_rng(len(shape))
    if dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    logits = (3 * rng.normal(size=shape)).astype(jnp.dtype(dtype))
    rows = np.delete(shape, axis)
    targets = rng.integers(0, shape[axis], size=rows).astype(np.int32)
    return logits, np.where(rng.random(rows) < 0.2, -100, targets).astype(np.int32)


def options_of(targets: np.ndarray, classes: int) -> dict[str, dict[str, Any]]:
    """Cases: options of each kind, alone and all together, as float32."""
    rng = np.random.default_rng(7)
    rows = rng.random(targets.shape).astype(np.float32)
    weight = rng.random(classes).astype(np.float32)
    each: dict[str, Any] = {
        "threshold": THIRD,
        "weight": weight,
        "sample_weight": rows,
        "label_smoothing": TENTH,
        "z_loss": TENTH,
        "softcap": np.float32(2.5),
    }
    alone = {name: {name: option} for name, option in each.items()}
    return alone | {
        "none": {},
        "surrogate": {"value": "surrogate"},
        "threshold per row": {"threshold": rows},
        "nothing ignored": {"ignore_index": None},
        "another ignored": {"ignore_index": 1},
        "shifted": {"shift": 2},
        "all": each,
    }


def assert_same_bits(found: Any, expected: Any) -> None:
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert found.tobytes() == expected.tobytes()


@contextlib.contextmanager
def fails(error: type[Exception], text: str) -> Iterator[None]:
    """Expect this error with this text, to which jax may add notes."""
    with pytest.raises(error) as caught:
        yield
    assert str(caught.value) == text


CASES = sorted(options_of(np.zeros(1, int), 1))
MAPPED = ("threshold", "sample_weight", "weight", *NUMBERS)


def looped(function: Any, in_axes: tuple[Any, ...], *arrays: Any) -> Any:
    """What vmap is to give: a Python loop over the mapped axes."""
    (count,) = {
        np.shape(array)[axis]
        for array, axis in zip(arrays, in_axes, strict=True)
        if axis is not None
    }
    results = [
        function(
            *(
                array if axis is None else np.take(array, i, axis)
                for array, axis in zip(arrays, in_axes, strict=True)
            )
        )
        for i in range(count)
    ]
    return jax.tree.map(lambda *parts: np.stack([np.asarray(part) for part in parts]), *results)


def assert_vmap_is_a_loop(function: Any, in_axes: tuple[Any, ...], *arrays: Any) -> None:
    expected = looped(function, in_axes, *arrays)
    arrays = tuple(jnp.asarray(array) for array in arrays)
    for transformed in (jax.vmap(function, in_axes), jax.jit(jax.vmap(function, in_axes))):
        jax.tree.map(assert_same_bits, transformed(*arrays), expected)
