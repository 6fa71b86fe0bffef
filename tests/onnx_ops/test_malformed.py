"""No model and no input crashes the process, and errors say what is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from malformed import CASES
from op_models import runtime_version

HERE = Path(__file__).parent
RANDOM = [f"random {seed}" for seed in range(300)]


def outcomes(names: list[str]) -> dict[str, str]:
    """What came of each case; "crash" where the process ended, after which a new one goes on."""
    found: dict[str, str] = {}
    left = list(names)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    while left:
        done = subprocess.run(
            [sys.executable, "-X", "faulthandler", str(HERE / "malformed.py"), *left],
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=600,
            check=False,
        )
        for line in done.stdout.splitlines():
            name, _, outcome = line.partition("\t")
            found[name] = f"crash: {done.stderr[-500:]}" if outcome == "begin" else outcome
        assert set(left) & set(found), done.stderr
        left = [name for name in left if name not in found]
    return found


@pytest.fixture(scope="module")
def of_cases() -> dict[str, str]:
    return outcomes(list(CASES))


@pytest.mark.parametrize("name", CASES)
def test_case(name, of_cases):
    outcome = of_cases[name]
    assert not outcome.startswith("crash"), outcome
    assert CASES[name][1] in outcome


# Where the operator's own checks speak, they do so in these words.
OF_THE_OPERATOR = [name for name, (_, text) in CASES.items() if "expected" in text]


@pytest.mark.parametrize("name", OF_THE_OPERATOR)
def test_the_operators_errors_are_invalid_arguments(name, of_cases):
    assert of_cases[name].startswith("InvalidArgument"), of_cases[name]


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("weights empty")])
def test_an_empty_name_is_an_absent_input(name, of_cases):
    if runtime_version() >= (1, 18):
        assert of_cases[name].startswith("ok")
    else:  # infers no types for a node with such an input, and says so
        assert "type inference failed" in of_cases[name]


def test_random_models():
    found = outcomes(RANDOM)
    assert set(found) == set(RANDOM)
    assert not [(name, text) for name, text in found.items() if text.startswith("crash")]
    # The test is about something: many of them run, and many are refused.
    ran = sum(text.startswith("ok") for text in found.values())
    assert 30 < ran < len(RANDOM) - 100
