"""The values of Liger-Kernel and of optax' tests, whose cross-entropies are gamma = 0.

Of Liger-Kernel the settings are its tests', on logits that any machine makes alike. The numbers are
what the kernel of 0.8.5 itself gave for them in Triton's interpreter (3.9.0), which stood in for a
GPU; its tanh there was 2 sigmoid(2 x) - 1. optax' are the expected values in its tests.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gce

# --- Liger-Kernel ---------------------------------------------------------------------------------

ROWS, CLASSES = 63, 41  # its tests' "weird shapes": 9 x 7 rows
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "ignored": {"ignore_index": 2},
    "smooth": {"label_smoothing": 0.1},
    "smooth, ignored": {"label_smoothing": 0.2, "ignore_index": 1},
    "capped": {"softcap": 30.0},
    "z-loss of PaLM": {"z_loss": 1e-4},
    "z-loss of Chameleon": {"z_loss": 1e-5},
    "smooth, z-loss": {"label_smoothing": 0.1, "z_loss": 1e-4, "ignore_index": 40},
    "smooth, z-loss, capped": {"label_smoothing": 0.1, "z_loss": 1e-4, "softcap": 30.0},
    "all": {"label_smoothing": 0.2, "z_loss": 1e-5, "softcap": 40.0, "ignore_index": 40},
    "functional": {"label_smoothing": 0.1, "z_loss": 1e-4, "softcap": 30.0, "ignore_index": 0},
    "weights": {"weight": True},
    "weights, others": {
        "weight": True, "label_smoothing": 0.2, "softcap": 40.0, "ignore_index": 40
    },
}  # fmt: skip
# Loss of the mean and of the sum; of the sum's gradient the size and a projection; accuracy.
LIGER = {
    "plain": (6.238968, 393.055, 123.2334, 3.96908, 0.015873),
    "ignored": (6.29509, 384.0005, 119.3848, 4.07635, 0.0163934),
    "smooth": (6.228806, 392.4147, 116.1629, 3.57532, 0.015873),
    "smooth, ignored": (6.225589, 385.9865, 108.7103, 2.65656, 0.016129),
    "capped": (6.22114, 391.9319, 121.8543, 3.93206, 0.015873),
    "z-loss of PaLM": (6.242736, 393.2924, 123.3073, 3.96913, 0.015873),
    "z-loss of Chameleon": (6.239346, 393.0787, 123.2408, 3.96908, 0.015873),
    "smooth, z-loss": (6.175183, 376.6862, 112.464, 3.2318, 0.0163934),
    "smooth, z-loss, capped": (6.214812, 391.5331, 114.8914, 3.54197, 0.015873),
    "all": (6.158152, 375.6473, 106.2098, 2.84483, 0.0163934),
    "functional": (6.191725, 377.6953, 111.1653, 3.54993, 0.0163934),
    "weights": (6.233153, 296.0222, 92.94167, 2.02272, 0.015873),
    "weights, others": (6.148383, 283.1131, 80.22474, 1.38233, 0.0163934),
}


def problem(name: str) -> tuple[Any, Any, dict[str, Any]]:
    logits = 4.0 * np.sin(np.arange(ROWS * CLASSES) * 1.7 + 0.3)
    targets = np.arange(ROWS) * 17 % CLASSES
    options = dict(OPTIONS[name])
    if "weight" in options:
        options["weight"] = (0.5 + 0.5 * np.cos(np.arange(CLASSES)) ** 2).astype("f4")
    return logits.astype("f4").reshape(ROWS, CLASSES), targets, options


@pytest.mark.parametrize("name", OPTIONS)
def test_the_values_of_its_kernel(isa, name):
    logits, targets, options = problem(name)
    mean, total, size, projection, accuracy = LIGER[name]
    # It computes in float32, its figures have seven digits.
    close = {"rtol": 2e-6, "atol": 2e-5}
    np.testing.assert_allclose(gce.loss(logits, targets, 0.0, **options), mean, **close)
    loss, grad, stats = gce.loss_and_grad(
        logits, targets, 0.0, reduction="sum", return_stats=True, **options
    )
    np.testing.assert_allclose(loss, total, **close)
    np.testing.assert_allclose(np.abs(grad.astype("f8")).sum(), size, **close)
    projected = (grad * np.cos(np.arange(grad.size).reshape(grad.shape))).sum()
    np.testing.assert_allclose(projected, projection, **close)
    counted = targets != options.get("ignore_index", -100)
    np.testing.assert_allclose((stats.argmax == targets)[counted].mean(), accuracy, rtol=1e-5)


def test_the_mean_of_z_loss_with_class_weights_is_not_its():
    """Liger divides z-loss by rows; here the mean has one divisor, the weights' sum. Sums agree."""
    logits, targets, options = problem("weights")
    options |= {"z_loss": 0.01}
    rows = gce.loss(logits, targets, 0.0, reduction="none", **options)
    divisor = options["weight"][targets].sum()
    mean = gce.loss(logits, targets, 0.0, **options)
    np.testing.assert_allclose(mean, rows.sum(dtype="f8") / divisor, rtol=1e-6)


# --- optax ----------------------------------------------------------------------------------------

INF = np.inf
SOFTMAX = [  # logits, probabilities, loss
    ([10.0, 1.0, -2.0], [0.0, 1.0, 0.0], 9.00013),
    ([1.0, 4.0, 0.2], [1.0, 0.0, 0.0], 3.0696733),
    ([-INF, 0.0, 0.0], [0.0, 0.5, 0.5], 0.693147),
    ([-INF, 0.0, 0.0], [0.4, 0.3, 0.3], INF),
    ([-INF, 0.0, -INF], [0.0, 1.0, 0.0], 0.0),
]
SIGMOID = [  # logits, labels, mean of the losses
    ([-1e9, -1e-9], [1.0, 0.0], 5e8),
    ([-1e9, -1e-9], [0.0, 1.0], 0.3465736),
    ([1e9, 1e-9], [1.0, 0.0], 0.3465736),
    ([1e9, 1e-9], [0.0, 1.0], 5e8),
    ([-1e9, 1e-9], [1.0, 0.0], 5e8),
    ([-1e9, 1e-9], [0.0, 1.0], 0.3465736),
    ([1e9, -1e-9], [1.0, 0.0], 0.3465736),
    ([1e9, -1e-9], [0.0, 1.0], 5e8),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_values_of_optax(isa, dtype):
    logits, targets, expected = (np.array(column, dtype) for column in zip(*SOFTMAX, strict=True))
    found = gce.loss(logits, targets, 0.0, reduction="none")
    np.testing.assert_allclose(found, expected, atol=1e-6, rtol=1e-6)
    classes = targets.argmax(axis=1)
    of_classes = gce.loss(logits[[0, 1, 4]], classes[[0, 1, 4]], 0.0, reduction="none")
    np.testing.assert_allclose(of_classes, expected[[0, 1, 4]], atol=1e-6, rtol=1e-6)
    for z, t, mean in SIGMOID:
        found = gce.binary_loss(np.array(z, dtype), np.array(t, dtype), 0.0)
        np.testing.assert_allclose(found, mean, rtol=1e-6)
