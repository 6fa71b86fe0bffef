"""Fuzzes models with the operator: ``python onnx_models.py COUNTS [libFuzzer's arguments]``.

COUNTS is a file that keeps how many models and runs ended how (`Tally`); `case_of` says what bytes
stand for. A valid model gives the bits of `gce.loss_and_grad`, and refuses what that refuses. Any
other may give anything or be refused, but with words. A crash, or a finding, ends the program and
is written to a file, with which as its last argument the program tries it again.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import numpy as np
import onnxruntime
from op_models import bits, numpy_op, session_options

from reliability.fuzz import engine
from reliability.fuzz.onnx_cases import Case, case_of
from reliability.fuzz.promises import BrokenPromiseError
from reliability.fuzz.tally import Tally

COUNTS = ("models", "refused models", "runs", "refused runs", "as gce.loss_and_grad")


def check(case: Case, tally: Tally) -> None:
    """Load the model, run it, and hold the results against numpy's face."""
    tally.count("models")
    try:
        session = onnxruntime.InferenceSession(
            case.model, session_options(case.options[1]), providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        tally.count("refused models")
        check_error(error)
        if case.is_model_valid:
            raise BrokenPromiseError(f"a valid model was refused: {error}") from error
        return
    wanted = [value.name for value in session.get_inputs()]
    feeds = {name: array for name, array in case.feeds.items() if name in wanted}
    tally.count("runs")
    try:
        results = session.run(None, feeds)
    except Exception as error:
        tally.count("refused runs")
        check_error(error)
        check_refused(case, error)
        return
    check_results(case, results, tally)


def check_error(error: Exception) -> None:
    """An error says something."""
    if not str(error).strip():
        raise BrokenPromiseError(f"{error!r} without words") from error


def expected(case: Case) -> list[Any] | Exception:
    """What numpy's face makes of the same arrays."""
    try:
        return numpy_op(**case.arrays, **case.attributes)[: 1 + case.options[0]]
    except (TypeError, ValueError, IndexError) as error:
        return error


def check_refused(case: Case, error: Exception) -> None:
    """Only what numpy's face refuses, too; or what does not have the shape that the model says."""
    if not case.is_model_valid or "Got invalid dimensions" in str(error):
        return
    if not isinstance(expected(case), Exception):
        raise BrokenPromiseError(f"a valid run was refused: {error}") from error


def check_results(case: Case, results: list[Any], tally: Tally) -> None:
    """The same bits from a valid model."""
    if not case.is_model_valid:
        return
    tally.count("as gce.loss_and_grad")
    other = expected(case)
    if isinstance(other, Exception):
        raise BrokenPromiseError(f"accepted what gce refuses: {other}") from other
    dtype = case.arrays["scores"].dtype
    found = [np.asarray(one).astype(dtype) for one in results[: len(other)]]
    if bits(found) != bits(other):
        raise BrokenPromiseError(f"{found}, expected {other}")


def main() -> None:
    """Never returns."""
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    tally = Tally(sys.argv[1], COUNTS)
    engine.fuzz(lambda data: check(case_of(data), tally))


if __name__ == "__main__":
    main()
