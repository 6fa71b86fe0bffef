"""reliability/fuzz: what bytes become, and that what is promised is held against it. No fuzzer."""

from __future__ import annotations

import importlib
import importlib.util
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gce
from reliability import fuzz_onnx, fuzz_python
from reliability.fuzz import promises
from reliability.fuzz.calls import Call, call_of
from reliability.fuzz.choices import Choices
from reliability.fuzz.tally import Tally
from support import require

pytestmark = pytest.mark.filterwarnings("ignore")  # numpy's, of conversions


def inputs(n: int) -> list[bytes]:
    """What a fuzzer may begin with."""
    rng = np.random.default_rng(7)
    return [rng.bytes(rng.integers(0, 200)) for _ in range(n)]


def test_choices_of_no_bytes_are_the_first():
    choices = Choices(b"")
    assert (choices.byte(), choices.number(), choices.one("abc")) == (0, 0, "a")
    assert not any(choices.chance(0.99) for _ in range(9))


def test_choices_follow_the_bytes():
    choices = Choices(b"\x05\x01\x01\xff\x00")
    assert (choices.below(4), choices.number()) == (1, 257)
    assert choices.chance(0.1) and not choices.chance(0.9)


def test_no_bytes_are_a_valid_call():
    call = call_of(b"")
    assert call.name == "loss_and_grad" and call.is_valid
    assert promises.check(call) == "ok"


def test_calls_keep_the_promises():
    with np.errstate(all="ignore"):
        outcomes = Counter(promises.check(call_of(data)) for data in inputs(400))
    # Most give results, and there are errors of all usual kinds.
    assert 240 < outcomes["ok"] < 350, outcomes
    assert outcomes["TypeError"] > 20 and outcomes["ValueError"] > 10 and outcomes["its own"] > 2


def test_every_function_is_called():
    names = {call.name for call in map(call_of, inputs(800)) if call.is_valid}
    public = {name for name in gce.__all__ if callable(getattr(gce, name)) and name[0].islower()}
    assert public - {"get_include", "get_num_threads", "show_config"} <= names
    assert {"partial_stats", "merge", "sharded_loss_and_grad", "linear", "cosine"} <= names


def call_to(function: Any, *arguments: Any, **keywords: Any) -> Call:
    return Call("loss", function, arguments, keywords, ("logits", "out"), False)


KEPT: list[Any] = []


def spoil(array: Any, error: type[Exception]) -> None:
    array[...] = 7.0
    raise error("logits are wrong")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: spoil(x, ValueError), "memory of an argument was written"),
        (lambda x: [][1], "names no argument"),
        (lambda x: x.fill(7.0), "an input was written"),
        (lambda x: np.random.default_rng().random(), "the second"),
        (lambda x: KEPT.append(x), "references"),
    ],
)
def test_broken_promises_are_found(function, message):
    with pytest.raises(promises.BrokenPromiseError, match=message):
        promises.check(call_to(function, np.zeros(3)))


def test_memory_between_the_elements_of_out_is_watched():
    def function(out: Any) -> None:
        out.base[1] = 5.0

    with pytest.raises(promises.BrokenPromiseError, match="between the elements of out"):
        promises.check(call_to(function, out=np.zeros(6)[::2]))


def test_another_error_is_a_finding_by_itself():
    with pytest.raises(ZeroDivisionError):
        promises.check(call_to(lambda x: 1 // 0, np.zeros(3)))


@pytest.mark.parametrize("off", [1e-4, np.nan])
def test_wrong_values_are_found(off):
    call = call_of(b"")
    wrong = call._replace(function=lambda *a, **k: gce.loss_and_grad(*a, **k)[0] + np.float32(off))
    with pytest.raises(promises.BrokenPromiseError, match="loss of loss_and_grad"):
        promises.check(wrong)


def test_tally_is_shared_by_those_that_open_it(tmp_path):
    one, other = (Tally(tmp_path / "counts", ("runs", "errors")) for _ in range(2))
    one.count("runs")
    other.count("runs")
    assert Tally(tmp_path / "counts", ("runs", "errors")).figures() == {"runs": 2, "errors": 0}


def test_outcomes_are_those_that_are_counted():
    assert fuzz_python.OUTCOMES == promises.OUTCOMES


REPORT = """==1==ERROR: AddressSanitizer: SEGV on unknown address 0x000000000000
    #0 0x7f in onnxruntime::Graph::Resolve() (/x/onnxruntime_pybind11_state.so+0x5)
"""
OF_THE_OPERATOR = REPORT + "    #1 0x7f in run (/x/gce/onnx/libgce_ort.so+0x7)\n"


@pytest.mark.parametrize(
    ("said", "ours"),
    [
        (REPORT, False),
        (OF_THE_OPERATOR, True),
        (OF_THE_OPERATOR + REPORT, False),  # the last report counts
        ("==1== ERROR: libFuzzer: timeout after 60 seconds\n    #0 onnxruntime::f()", False),
        ("BrokenPromiseError: x\n==1== ERROR: libFuzzer: fuzz target exited\n", True),
        ("==1== ERROR: libFuzzer: out-of-memory (used: 4097Mb)\n", True),
        ("onnx_ops/kernel.cpp:5: runtime error: signed integer overflow\n", True),
    ],
)
def test_whose_a_crash_is(said, ours):
    assert fuzz_onnx.is_ours(said) == ours


NAMES_OF_MODULES = ("onnx_cases", "onnx_models")


@pytest.fixture
def onnx_targets(monkeypatch):
    """The modules of models, which take what they share with the operator's tests from there."""
    for name in ("onnx", "onnxruntime"):
        require(importlib.util.find_spec(name), f"needs {name}")
    monkeypatch.syspath_prepend(Path(__file__).parent / "onnx_ops")
    return [importlib.import_module(f"reliability.fuzz.{name}") for name in NAMES_OF_MODULES]


def test_no_bytes_are_a_valid_model(onnx_targets, tmp_path):
    cases, models = onnx_targets
    tally = Tally(tmp_path / "counts", models.COUNTS)
    models.check(cases.case_of(b""), tally)
    assert tally.figures() == {
        **dict.fromkeys(models.COUNTS, 0),
        **dict.fromkeys(("models", "runs", "as gce.loss_and_grad"), 1),
    }
    assert fuzz_onnx.COUNTS == models.COUNTS


def test_valid_models_are_held_against_numpys_face(onnx_targets, tmp_path):
    cases, models = onnx_targets
    tally = Tally(tmp_path / "counts", models.COUNTS)
    made = [cases.case_of(data) for data in inputs(120)]
    valid = [case for case in made if case.is_model_valid]
    assert 40 < len(valid) < 90
    for case in valid:
        models.check(case, tally)
    figures = tally.figures()
    assert figures["refused models"] == 0 and figures["runs"] == len(valid)
    # Inputs of some are wrong.
    assert figures["as gce.loss_and_grad"] > 25 and figures["refused runs"] > 3


def test_wrong_results_of_a_model_are_found(onnx_targets, tmp_path):
    cases, models = onnx_targets
    case = cases.case_of(b"")
    wrong = case._replace(arrays={**case.arrays, "scores": case.arrays["scores"] + 1e-3})
    with pytest.raises(promises.BrokenPromiseError, match="expected"):
        models.check(wrong, Tally(tmp_path / "counts", models.COUNTS))
