"""Fuzzing of the Python face by atheris: hostile arguments of every public function.

Each input of the fuzzer is a call, valid mostly (fuzz/calls.py), which is held to what is promised
of every call (fuzz/promises.py): results that have the same bits again and agree with the
reference, or an error of the right type that names an argument, and nothing written. What is
covered is told of the native code, which has AddressSanitizer and UndefinedBehaviorSanitizer.
"""

from __future__ import annotations

import argparse

from reliability import atheris_target, libfuzzer
from reliability.record import Figures

add_arguments = atheris_target.add_arguments
# As fuzz/promises.py counts them, which needs the package that is fuzzed.
OUTCOMES = ("ok", "TypeError", "ValueError", "IndexError", "MemoryError", "its own")


def run(options: argparse.Namespace) -> Figures:
    """The target's figures, and how its calls ended."""
    target = atheris_target.target("python", "python_face.py", max_len=300)
    if options.replay:
        atheris_target.replay(target, options.replay)
    atheris_target.begin(target)
    figures = libfuzzer.fuzz(target, argparse.Namespace(seconds=options.seconds, keep=False))
    figures["calls"] = atheris_target.tally(target, OUTCOMES)
    if options.keep and not figures["findings"]:
        figures["corpus"] = atheris_target.keep(target)
    return {**figures, "failures": len(figures["findings"])}


def rows(figures: Figures) -> list[tuple[str, str, str]]:
    calls = figures["calls"]
    refused = sum(calls.values()) - calls["ok"]
    return [
        (
            "No argument of a public function crashes the interpreter: results are right and have "
            "the same bits again, or an error names the argument and nothing is written",
            "atheris on native code with AddressSanitizer and UndefinedBehaviorSanitizer; most "
            "calls nearly valid, results held against `gce.reference`",
            f"{libfuzzer.text(figures)}; {calls['ok']:,} calls gave results, {refused:,} errors",
        )
    ]
