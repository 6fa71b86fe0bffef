"""The γ-cross-entropy in plain float64 numpy: the definition that the fast code is tested against.

Nothing here is clever or fast. Each formula is that of the specification, written so that it can be
checked against it by eye; where a formula is rearranged, it is because the plain one cancels or
overflows, and the comment says where.

Symbols: one row has logits ``z`` and target class ``y``;

====================  =================================================================
``q``                 softmax(z)
``log_p``             ℓ = z_y - logsumexp(z), the target's log-probability; p = e^ℓ
``gamma``, ``delta``  γ in [0, 1] and δ = 1 - γ
``s``                 γ + δp
``threshold``         b in [0, 1], the least gradient weight
``w``                 p / s, the gradient weight; w_b = max(b, w)
====================  =================================================================

and the gradient is ``dL/dz = w_b (q - e_y)``, e_y being 1 at the target and 0 elsewhere.

`_log_prob` has the functions of ℓ, `_rows` those of whole arrays of logits, `_binary` the sigmoid
form.

Any float dtype (also ``ml_dtypes.bfloat16``) is taken to float64 first; every result is float64.
Arguments are not validated beyond what numpy does.

Value and weight are within a relative 8e-16 of the exact ones for the given ``log_p``, ``gamma``
and ``threshold`` (weights below 1e-300: an absolute 1e-300), for ℓ from 0 to -1e308 and γ from 0
through 5e-324 to 1: ``tests/test_reference.py`` holds them against 50 digits.

Sources: "Tailoring Language Generation Models under Total Variation Distance" (TaiLr, ICLR 2023,
arXiv 2302.13344); γ = 1 is the loss called DFT in arXiv 2508.05629.
"""

from gce.reference._binary import binary_loss, binary_loss_and_grad
from gce.reference._log_prob import (
    gamma_grad,
    grad_weight,
    loss_from_log_prob,
    surrogate_from_log_prob,
)
from gce.reference._rows import hvp, loss, loss_and_grad, loss_gamma_grad, row_stats

__all__ = [
    "binary_loss",
    "binary_loss_and_grad",
    "gamma_grad",
    "grad_weight",
    "hvp",
    "loss",
    "loss_and_grad",
    "loss_from_log_prob",
    "loss_gamma_grad",
    "row_stats",
    "surrogate_from_log_prob",
]
