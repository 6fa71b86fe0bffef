"""Settings of the TaiLr paper (arXiv 2302.13344), by task.

>>> import numpy as np
>>> from gce import presets, reference
>>> presets.GIGAWORD.options()
{'gamma': 0.8, 'threshold': 0.2, 'label_smoothing': 0.1}
>>> logits = np.zeros((2, 4))
>>> print(reference.loss(logits, [0, 3], **presets.GIGAWORD.options()).round(6))
0.869965

Rule of thumb: γ near 0 where the model learns from scratch, larger for fine-tuning, or annealed
(`gce.schedules`).
"""

from __future__ import annotations

import dataclasses
from typing import TypedDict

__all__ = [
    "COCO_SYNTHETIC",
    "GIGAWORD",
    "IWSLT14_DE_EN",
    "WRITING_PROMPTS",
    "Preset",
    "PresetOptions",
]

_PAPER = "TaiLr, ICLR 2023, arXiv 2302.13344"


class PresetOptions(TypedDict):
    """The keyword arguments that `Preset.options` returns."""

    gamma: float
    threshold: float
    label_smoothing: float


@dataclasses.dataclass(frozen=True)
class Preset:
    """One task's settings.

    Attributes
    ----------
    gamma : float
        γ, in [0, 1].
    threshold : float
        b, the least gradient weight, in [0, 1].
    label_smoothing : float
        ε, in [0, 1].
    source : str
        Where the settings are from.

    Examples
    --------
    >>> from gce import presets
    >>> presets.IWSLT14_DE_EN.label_smoothing
    0.1
    """

    gamma: float
    threshold: float
    label_smoothing: float
    source: str

    def options(self) -> PresetOptions:
        """Return the settings as keyword arguments of `gce.loss` and `gce.loss_and_grad`.

        Returns
        -------
        dict
            ``gamma``, ``threshold`` and ``label_smoothing``.

        Examples
        --------
        >>> from gce import presets
        >>> presets.WRITING_PROMPTS.options()
        {'gamma': 1e-07, 'threshold': 0.2, 'label_smoothing': 0.0}
        """
        return {
            "gamma": self.gamma,
            "threshold": self.threshold,
            "label_smoothing": self.label_smoothing,
        }


IWSLT14_DE_EN = Preset(
    gamma=0.1, threshold=0.3, label_smoothing=0.1, source=f"{_PAPER}: IWSLT14 German-English"
)
GIGAWORD = Preset(
    gamma=0.8, threshold=0.2, label_smoothing=0.1, source=f"{_PAPER}: Gigaword summarisation"
)
WRITING_PROMPTS = Preset(
    gamma=1e-7, threshold=0.2, label_smoothing=0.0, source=f"{_PAPER}: WritingPrompts stories"
)
COCO_SYNTHETIC = Preset(
    gamma=1e-7, threshold=0.2, label_smoothing=0.0, source=f"{_PAPER}: synthetic data from COCO"
)
