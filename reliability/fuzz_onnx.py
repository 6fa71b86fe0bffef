"""Fuzzing of models with the operator, by atheris: changed models, and changed inputs of them.

Each input of the fuzzer is a model and what it is fed (fuzz/onnx_cases.py): valid ones give the
bits of gce.loss_and_grad and refuse what that refuses, others are refused with words or run. ONNX
Runtime itself is not instrumented, and may crash of a model on its own account: a crash without a
frame of the operator's library is counted apart, and the fuzzer goes on.
"""

from __future__ import annotations

import argparse
import time

from reliability import atheris_target, libfuzzer
from reliability.record import Figures

add_arguments = atheris_target.add_arguments
COUNTS = ("models", "refused models", "runs", "refused runs", "as gce.loss_and_grad")
# A frame of the operator's, or of numpy's face beside it, with and without its source's name.
OURS = ("libgce_ort", "_native.", "/onnx_ops/", "/native/core/", "/native/python/")
# How reports begin whose stack tells whose fault it is.
CRASHES = ("AddressSanitizer: ", "libFuzzer: deadly signal", "libFuzzer: timeout")


def run(options: argparse.Namespace) -> Figures:
    """The figures of all runs: a crash of the runtime's own ends one, and another begins."""
    target = atheris_target.target("onnx", "onnx_models.py", max_len=300)
    if options.replay:
        atheris_target.replay(target, options.replay)
    atheris_target.begin(target)
    ends = time.monotonic() + options.seconds
    total: Figures = {"executions": 0, "seconds": 0}
    ours: list[str] = []
    theirs: list[str] = []
    while not ours and (left := round(ends - time.monotonic())) > 0:
        one = libfuzzer.fuzz(target, argparse.Namespace(seconds=left, keep=False))
        total = {**one, **{name: total[name] + one[name] for name in ("executions", "seconds")}}
        said = (target.folder / "log").read_text(errors="replace")
        (ours if is_ours(said) else theirs).extend(one["findings"])
    total["models"] = atheris_target.tally(target, COUNTS)
    if options.keep and not ours:
        total["corpus"] = atheris_target.keep(target)
    return {**total, "findings": ours, "crashes of the runtime": theirs, "failures": len(ours)}


def is_ours(said: str) -> bool:
    """Whether a finding is this project's: all but crashes without a frame of its own."""
    _, _, report = said.rpartition("ERROR: ")
    return not report.startswith(CRASHES) or any(frame in report for frame in OURS)


def rows(figures: Figures) -> list[tuple[str, str, str]]:
    models = figures["models"]
    of_runtime = len(figures["crashes of the runtime"])
    return [
        (
            "No model crashes the process by the operator: it is refused with words, or runs; a "
            "valid one gives the bits of `gce.loss_and_grad`",
            "atheris on models with changed nodes, attributes, types, bytes and inputs; the "
            "library with AddressSanitizer and UndefinedBehaviorSanitizer",
            f"{libfuzzer.text(figures)}; {models['models']:,} models, "
            f"{models['refused models']:,} refused; {models['runs']:,} runs, "
            f"{models['refused runs']:,} refused, {models['as gce.loss_and_grad']:,} held against "
            f"`gce.loss_and_grad`; {of_runtime} crashes of ONNX Runtime itself",
        )
    ]
