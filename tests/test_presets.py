"""Presets: the paper's numbers, and that the loss takes them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import gce
from gce import presets, reference

# arXiv 2302.13344: γ, b, ε.
PAPER = {
    "IWSLT14_DE_EN": (0.1, 0.3, 0.1),
    "GIGAWORD": (0.8, 0.2, 0.1),
    "WRITING_PROMPTS": (1e-7, 0.2, 0.0),
    "COCO_SYNTHETIC": (1e-7, 0.2, 0.0),
}


@pytest.mark.parametrize("name", PAPER)
def test_settings_are_the_papers(name):
    preset = getattr(presets, name)
    assert (preset.gamma, preset.threshold, preset.label_smoothing) == PAPER[name]
    assert "2302.13344" in preset.source


def test_no_preset_is_missing_from_this_test_or_from_all():
    found = {name for name, item in vars(presets).items() if isinstance(item, presets.Preset)}
    assert found == set(PAPER)
    assert found <= set(presets.__all__)


@pytest.mark.parametrize("name", PAPER)
def test_options_are_arguments_of_the_loss(name):
    gamma, threshold, epsilon = PAPER[name]
    logits, target = [0.0, 30.0, 1.0], 0  # p = 1e-13, w below every preset's threshold
    options = getattr(presets, name).options()
    got = reference.loss(logits, target, **options)
    thresholded = reference.loss(logits, target, gamma, threshold=threshold)
    assert thresholded > reference.loss(logits, target, gamma)
    # The classes are 30, 0 and 29 below the top, which has all of q up to e^-29.
    assert got == pytest.approx((1 - epsilon) * thresholded + epsilon * 59 / 3, rel=1e-12)
    # As float64 and as the compiled loss; float64's promise is 1e-14.
    assert gce.loss(np.array(logits), target, **options) == pytest.approx(got, rel=1e-14)


def test_options_are_a_new_dict_each_time():
    presets.GIGAWORD.options()["gamma"] = 0.0
    assert presets.GIGAWORD.options()["gamma"] == 0.8


def test_presets_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        presets.GIGAWORD.gamma = 0.0
