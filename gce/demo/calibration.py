"""Reliability of a classifier's confidence: the curve of its diagram, and the calibration error.

Why the error is computed here. The curve is scikit-learn's, which has no such error. Of the
libraries that have one, netcal and torchmetrics bring PyTorch with them; relplot 1.0 puts a
confidence of exactly 1, where a saturated softmax sends many answers, into an extra bin of its own;
MAPIE 1.6 takes the number of bins for the number of their edges, and so has one bin too few.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.calibration import calibration_curve

__all__ = ["Reliability", "reliability"]


@dataclass(frozen=True)
class Reliability:
    """Accuracy against confidence, over the bins of confidence that have examples.

    Attributes
    ----------
    centre : ndarray of float64, shape (B,)
        Middle of each bin.
    confidence, accuracy : ndarray of float64, shape (B,)
        Mean confidence and share of correct answers in each bin.
    share : ndarray of float64, shape (B,)
        Share of all examples that are in each bin.
    """

    centre: npt.NDArray[np.float64]
    confidence: npt.NDArray[np.float64]
    accuracy: npt.NDArray[np.float64]
    share: npt.NDArray[np.float64]

    @property
    def error(self) -> float:
        """The expected calibration error: Σ share · |accuracy − confidence| (arXiv 1706.04599)."""
        return float(self.share @ np.abs(self.accuracy - self.confidence))


def reliability(
    confidence: npt.NDArray[np.float64], correct: npt.NDArray[np.bool_], bins: int
) -> Reliability:
    """Bin the examples by confidence, in bins of equal width.

    Parameters
    ----------
    confidence : ndarray of float64, shape (N,)
        Probability of the answer given, between 0 and 1.
    correct : ndarray of bool, shape (N,)
        Whether the answer is right.
    bins : int
        Number of bins; bin k is (k / bins, (k + 1) / bins], and 0 belongs to the first.

    Returns
    -------
    Reliability

    Examples
    --------
    >>> import numpy as np
    >>> from gce.demo.calibration import reliability
    >>> reliability(np.array([0.95, 1.0]), np.array([True, False]), bins=10).error
    0.475
    """
    accuracy, mean_confidence = calibration_curve(correct, confidence, n_bins=bins)
    # The curve does not say how full its bins are. These are its edges and its side of them.
    edges = np.linspace(0.0, 1.0, bins + 1)
    counts = np.bincount(np.searchsorted(edges[1:-1], confidence), minlength=bins)
    used = counts > 0
    centre = (edges[:-1] + edges[1:])[used] / 2
    return Reliability(centre, mean_confidence, accuracy, counts[used] / confidence.size)
