"""The benchmarks' worker in the training release: its loss and gradient are gce's at gamma 0."""

from __future__ import annotations

import sys

import pytest

from benchmarks.training_loss import training_loss
from gce.bench.cases import BACKWARD, Case
from gce.bench.contender import gce_itself
from gce.bench.runner import Effort, measure


@pytest.mark.parametrize("case", [Case((6, 5), BACKWARD), Case((2, 3, 4, 5), BACKWARD, axis=1)])
def test_it_computes_what_gce_does(case: Case) -> None:
    contenders = [gce_itself, training_loss(sys.executable)]
    measured = measure(case, 1, contenders, Effort(3, 1.0, 1e-4), with_peaks=True)
    assert measured.left_out == {}
    assert min(measured.seconds["onnxruntime training"]) > 0
    assert measured.plain == ["onnxruntime training"]
