"""Fixtures that run a test on every instruction set."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engines import ENGINES, IN_PROCESS, Emulated, Engine, InProcess, emulated_engine, selected
from support import require

# Of each engine, of each kind of result.
ERRORS = pytest.StashKey[dict[str, dict[str, float]]]()


def has_training_release() -> bool:
    """Whether the package onnxruntime is its training release, found out without importing it."""
    spec = importlib.util.find_spec("onnxruntime")
    folders = (spec.submodule_search_locations or []) if spec else []
    return any(Path(folder, "training").is_dir() for folder in folders)


# `make test` runs these in an environment of its own: no environment can have both runtimes.
collect_ignore = [] if has_training_release() else ["ort_training"]


@pytest.fixture(params=IN_PROCESS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Name of each ISA that the extension module has, selected while the test runs."""
    with selected(request.param):
        yield request.param


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, emulated: Callable[[str], Emulated]) -> Iterator[Engine]:
    """Each engine of tests/engines.py: the ISAs of this machine, and NEON in an emulator."""
    if request.param not in IN_PROCESS:
        in_emulator = emulated(request.param)
        in_emulator.start()
        yield in_emulator
        return
    with selected(request.param):
        yield InProcess(request.param)


@pytest.fixture(scope="session")
def emulated() -> Iterator[Callable[[str], Emulated]]:
    """Engine of this name in another process, which is kept for the session."""
    engines: dict[str, Emulated] = {}

    def get(name: str) -> Emulated:
        if name not in engines:
            engines[name] = emulated_engine(name)
        return engines[name]

    yield get
    for engine in engines.values():
        engine.stop()


@pytest.fixture
def torch_on_one_thread() -> Iterator[None]:
    """PyTorch, if it is installed, with one thread: small arrays are slower on more."""
    from torch_problems import torch

    require(torch, "torch is not installed")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--errors", type=Path, help="file for the largest errors, in JSON")


@pytest.fixture
def record_error(engine: Engine, request: pytest.FixtureRequest) -> Callable[[str, float], None]:
    """Notes an error that this engine made, as a share of the limit.

    `pytest -v` ends with the largest of each kind; `--errors FILE` writes them.
    """
    errors = request.config.stash.setdefault(ERRORS, {}).setdefault(engine.name, {})

    def record(what: str, error: float) -> None:
        errors[what] = max(error, errors.get(what, 0.0))

    return record


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print or write what `record_error` was told."""
    errors = config.stash.get(ERRORS, {})
    if file := config.getoption("--errors"):
        file.write_text(json.dumps(errors, indent=1), encoding="utf-8")
    if not errors or config.get_verbosity() < 1:
        return
    terminalreporter.section("largest errors, as a share of the limit")
    for engine, of_engine in errors.items():
        for what, error in sorted(of_engine.items()):
            terminalreporter.write_line(f"{what:24} {engine:17} {error:.3g}")
