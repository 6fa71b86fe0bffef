"""Types of the C++ core. `mypy.stubtest` holds them against the module's own signatures."""

# mypy takes float64 arrays for possible float32 arrays (so do numpy's own stubs, and say so).
# mypy: disable-error-code="overload-overlap"

from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gce._types import LossStats, Reduction, RowStats, Value

__version__: str
compiler: str

# float32 for 16-bit logits, else the dtype of the logits: known where the logits' dtype is. With
# reduction "none" and logits of rank 1, which are one row, it is a scalar and typed as an array
# nevertheless: rows are what "none" is for.

@overload
def loss(
    logits: NDArray[np.float32 | np.float16],
    targets: ArrayLike,
    gamma: ArrayLike,
    *,
    threshold: ArrayLike = 0.0,
    value: Value = "primitive",
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    shift: int = 0,
    reduction: Literal["mean", "sum"] = "mean",
    normalizer: float | None = None,
    axis: int = -1,
    return_stats: Literal[False] = False,
    num_threads: int | None = None,
) -> np.float32: ...
@overload
def loss(
    logits: NDArray[np.float32 | np.float16],
    targets: ArrayLike,
    gamma: ArrayLike,
    *,
    threshold: ArrayLike = 0.0,
    value: Value = "primitive",
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    shift: int = 0,
    reduction: Literal["none"],
    normalizer: float | None = None,
    axis: int = -1,
    return_stats: Literal[False] = False,
    num_threads: int | None = None,
) -> NDArray[np.float32]: ...
@overload
def loss(
    logits: NDArray[np.float64],
    targets: ArrayLike,
    gamma: ArrayLike,
    *,
    threshold: ArrayLike = 0.0,
    value: Value = "primitive",
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    shift: int = 0,
    reduction: Literal["mean", "sum"] = "mean",
    normalizer: float | None = None,
    axis: int = -1,
    return_stats: Literal[False] = False,
    num_threads: int | None = None,
) -> np.float64: ...
@overload
def loss(
    logits: NDArray[np.float64],
    targets: ArrayLike,
    gamma: ArrayLike,
    *,
    threshold: ArrayLike = 0.0,
    value: Value = "primitive",
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    shift: int = 0,
    reduction: Literal["none"],
    normalizer: float | None = None,
    axis: int = -1,
    return_stats: Literal[False] = False,
    num_threads: int | None = None,
) -> NDArray[np.float64]: ...
@overload
def loss(
    logits: ArrayLike,
    targets: ArrayLike,
    gamma: ArrayLike,
    *,
    threshold: ArrayLike = 0.0,
    value: Value = "primitive",
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    shift: int = 0,
    reduction: Literal["mean", "sum"] = "mean",
    normalizer: float | None = None,
    axis: int = -1,
    return_stats: Literal[False] = False,
    num_threads: int | None = None,
) -> np.floating[Any]: ...
@overload
def loss(
    logits: ArrayLike,
    targets: ArrayLike,
    gamma: ArrayLike,
    *,
    threshold: ArrayLike = 0.0,
    value: Value = "primitive",
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    shift: int = 0,
    reduction: Literal["none"],
    normalizer: float | None = None,
    axis: int = -1,
    return_stats: Literal[False] = False,
    num_threads: int | None = None,
) -> NDArray[Any]: ...
@overload
def loss(
    logits: ArrayLike,
    targets: ArrayLike,
    gamma: ArrayLike,
    *,
    threshold: ArrayLike = 0.0,
    value: Value = "primitive",
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    shift: int = 0,
    reduction: Reduction = "mean",
    normalizer: float | None = None,
    axis: int = -1,
    return_stats: Literal[False] = False,
    num_threads: int | None = None,
) -> Any: ...
@overload
def loss(
    logits: ArrayLike,
    targets: ArrayLike,
    gamma: ArrayLike,
    *,
    threshold: ArrayLike = 0.0,
    value: Value = "primitive",
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    shift: int = 0,
    reduction: Reduction = "mean",
    normalizer: float | None = None,
    axis: int = -1,
    return_stats: Literal[True],
    num_threads: int | None = None,
) -> tuple[Any, LossStats]: ...
@overload
def loss_and_grad(
    logits: NDArray[np.float32],
    targets: ArrayLike,
    gamma: ArrayLike,
    *,
    threshold: ArrayLike = 0.0,
    value: Value = "primitive",
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    shift: int = 0,
    reduction: Literal["mean", "sum"] = "mean",
    normalizer: float | None = None,
    axis: int = -1,
    grad_output: ArrayLike = 1.0,
    out: NDArray[np.float32] | None = None,
    return_stats: Literal[False] = False,
    num_threads: int | None = None,
) -> tuple[np.float32, NDArray[np.float32]]: ...
@overload
def loss_and_grad(
    logits: NDArray[np.float32],
    targets: ArrayLike,
    gamma: ArrayLike,
    *,
    threshold: ArrayLike = 0.0,
    value: Value = "primitive",
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    shift: int = 0,
    reduction: Literal["none"],
    normalizer: float | None = None,
    axis: int = -1,
    grad_output: ArrayLike = 1.0,
    out: NDArray[np.float32] | None = None,
    return_stats: Literal[False] = False,
    num_threads: int | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]: ...
@overload
def loss_and_grad(
    logits: NDArray[np.float16],
    targets: ArrayLike,
    gamma: ArrayLike,
    *,
    threshold: ArrayLike = 0.0,
    value: Value = "primitive",
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    shift: int = 0,
    reduction: Literal["mean", "sum"] = "mean",
    normalizer: float | None = None,
    axis: int = -1,
    grad_output: ArrayLike = 1.0,
    out: NDArray[np.float16] | None = None,
    return_stats: Literal[False] = False,
    num_threads: int | None = None,
) -> tuple[np.float32, NDArray[np.float16]]: ...
@overload
def loss_and_grad(
    logits: NDArray[np.float16],
    targets: ArrayLike,
    gamma: ArrayLike,
    *,
    threshold: ArrayLike = 0.0,
    value: Value = "primitive",
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    shift: int = 0,
    reduction: Literal["none"],
    normalizer: float | None = None,
    axis: int = -1,
    grad_output: ArrayLike = 1.0,
    out: NDArray[np.float16] | None = None,
    return_stats: Literal[False] = False,
    num_threads: int | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float16]]: ...
@overload
def loss_and_grad(
    logits: NDArray[np.float64],
    targets: ArrayLike,
    gamma: ArrayLike,
    *,
    threshold: ArrayLike = 0.0,
    value: Value = "primitive",
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    shift: int = 0,
    reduction: Literal["mean", "sum"] = "mean",
    normalizer: float | None = None,
    axis: int = -1,
    grad_output: ArrayLike = 1.0,
    out: NDArray[np.float64] | None = None,
    return_stats: Literal[False] = False,
    num_threads: int | None = None,
) -> tuple[np.float64, NDArray[np.float64]]: ...
@overload
def loss_and_grad(
    logits: NDArray[np.float64],
    targets: ArrayLike,
    gamma: ArrayLike,
    *,
    threshold: ArrayLike = 0.0,
    value: Value = "primitive",
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    shift: int = 0,
    reduction: Literal["none"],
    normalizer: float | None = None,
    axis: int = -1,
    grad_output: ArrayLike = 1.0,
    out: NDArray[np.float64] | None = None,
    return_stats: Literal[False] = False,
    num_threads: int | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]: ...
@overload
def loss_and_grad(
    logits: ArrayLike,
    targets: ArrayLike,
    gamma: ArrayLike,
    *,
    threshold: ArrayLike = 0.0,
    value: Value = "primitive",
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    shift: int = 0,
    reduction: Literal["mean", "sum"] = "mean",
    normalizer: float | None = None,
    axis: int = -1,
    grad_output: ArrayLike = 1.0,
    out: NDArray[Any] | None = None,
    return_stats: Literal[False] = False,
    num_threads: int | None = None,
) -> tuple[np.floating[Any], NDArray[Any]]: ...
@overload
def loss_and_grad(
    logits: ArrayLike,
    targets: ArrayLike,
    gamma: ArrayLike,
    *,
    threshold: ArrayLike = 0.0,
    value: Value = "primitive",
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    shift: int = 0,
    reduction: Literal["none"],
    normalizer: float | None = None,
    axis: int = -1,
    grad_output: ArrayLike = 1.0,
    out: NDArray[Any] | None = None,
    return_stats: Literal[False] = False,
    num_threads: int | None = None,
) -> tuple[NDArray[Any], NDArray[Any]]: ...
@overload
def loss_and_grad(
    logits: ArrayLike,
    targets: ArrayLike,
    gamma: ArrayLike,
    *,
    threshold: ArrayLike = 0.0,
    value: Value = "primitive",
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    shift: int = 0,
    reduction: Reduction = "mean",
    normalizer: float | None = None,
    axis: int = -1,
    grad_output: ArrayLike = 1.0,
    out: NDArray[Any] | None = None,
    return_stats: Literal[False] = False,
    num_threads: int | None = None,
) -> tuple[Any, NDArray[Any]]: ...
@overload
def loss_and_grad(
    logits: ArrayLike,
    targets: ArrayLike,
    gamma: ArrayLike,
    *,
    threshold: ArrayLike = 0.0,
    value: Value = "primitive",
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    shift: int = 0,
    reduction: Reduction = "mean",
    normalizer: float | None = None,
    axis: int = -1,
    grad_output: ArrayLike = 1.0,
    out: NDArray[Any] | None = None,
    return_stats: Literal[True],
    num_threads: int | None = None,
) -> tuple[Any, NDArray[Any], LossStats]: ...
def row_stats(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    ignore_index: int | None = -100,
    softcap: float | None = None,
    shift: int = 0,
    axis: int = -1,
    num_threads: int | None = None,
) -> RowStats: ...

# float64: a number for a scalar gamma, else an array.
def loss_gamma_grad(
    logits: ArrayLike,
    targets: ArrayLike,
    gamma: ArrayLike,
    *,
    threshold: ArrayLike = 0.0,
    value: Value = "primitive",
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    shift: int = 0,
    reduction: Reduction = "mean",
    normalizer: float | None = None,
    axis: int = -1,
    grad_output: ArrayLike = 1.0,
    num_threads: int | None = None,
) -> Any: ...
def hvp(
    logits: ArrayLike,
    targets: ArrayLike,
    vector: ArrayLike,
    gamma: ArrayLike,
    *,
    threshold: ArrayLike = 0.0,
    value: Value = "primitive",
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    shift: int = 0,
    reduction: Reduction = "mean",
    normalizer: float | None = None,
    axis: int = -1,
    grad_output: ArrayLike = 1.0,
    gauss_newton: bool = False,
    out: NDArray[Any] | None = None,
    num_threads: int | None = None,
) -> NDArray[Any]: ...

# (log_p, gamma, threshold), (log_p, gamma, threshold) and (log_p, gamma).
loss_from_log_prob: np.ufunc
grad_weight: np.ufunc
gamma_grad: np.ufunc

def get_num_threads() -> int: ...
def set_num_threads(num_threads: int) -> None: ...

# Not public.
__pyx_capi__: dict[str, object]  # capsules

def options() -> list[tuple[str, str, str, str, list[str]]]: ...
def check_arguments(
    logits: ArrayLike,
    targets: ArrayLike,
    gamma: ArrayLike,
    *,
    threshold: ArrayLike = 0.0,
    value: Value = "primitive",
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    shift: int = 0,
    reduction: Reduction = "mean",
    normalizer: float | None = None,
    axis: int = -1,
    return_stats: bool = False,
    num_threads: int | None = None,
) -> None: ...
def isa_name() -> str: ...
def available_isas() -> list[str]: ...
def compiled_isas() -> list[str]: ...
def select_isa(name: str | None) -> None: ...
def limit_read(array: NDArray[np.float32], num_threads: int = 1, cached: bool = False) -> float: ...
def limit_copy(
    out: NDArray[np.float32],
    array: NDArray[np.float32],
    num_threads: int = 1,
    cached: bool = False,
) -> None: ...
def limit_scale(array: NDArray[np.float32], factor: float, num_threads: int = 1) -> None: ...
