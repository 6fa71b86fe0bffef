"""The suite of the source tree: its plans, its processes, and the tables it puts into texts."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as suite
from benchmarks import plans, tables
from benchmarks.plans import (
    DEFAULT,
    FLOAT32,
    LIMIT_ON_ONE_THREAD,
    ONE_THREAD,
    TUNED,
    Run,
    contenders_of,
    isa_name,
)
from benchmarks.training_loss import training_loss
from gce import _native
from gce.bench import report
from gce.bench.cases import BACKWARD, BINARY, CASES, FORWARD, IN_PLACE, WORKS, Case, Data
from gce.bench.contender import CannotDo
from gce.bench.runner import Effort, Measured

ROOT = Path(__file__).parent.parent
TINY = Effort(rounds=3, seconds=1.0, turn=1e-4)
SMALL = Case((6, 5), BACKWARD)


# --- plans ----------------------------------------------------------------------------------------


def test_the_quick_plan_has_something_for_every_table() -> None:
    runs = plans.quick(4, TINY)
    assert [(run.threads, run.allocator, run.alone) for run in runs] == [
        (1, TUNED, False), (4, TUNED, False), (4, TUNED, True), (1, DEFAULT, False),
    ]  # fmt: skip
    one, many, alone, default = runs
    assert {case.dtype for case in one.cases} == {"float32", "bfloat16", "float16", "float64"}
    assert {case.shape for case in one.cases} == {case.shape for case in CASES}
    assert len(one.cases) + len(many.cases) + len(default.cases) < 48  # minutes
    assert {*default.cases, *many.cases} <= {*alone.cases} <= {*one.cases}
    assert Case((32, 10), BACKWARD) not in many.cases
    assert [run.threads for run in plans.quick(1, TINY)] == [1, 1]


def test_the_full_plan_is_everything() -> None:
    runs = plans.full(6, TINY)
    pairs = {(threads, allocator) for threads in (1, 2, 4, 6) for allocator in (TUNED, DEFAULT)}
    assert {(run.threads, run.allocator) for run in runs if not run.alone} == pairs
    assert [run.threads for run in runs if run.alone] == [2, 4, 6]
    assert len(runs) == len(pairs) + 3
    assert all(run.cases == CASES for run in runs)
    assert {run.threads for run in plans.full(1, TINY)} == {1}


def test_a_run_reaches_its_process_as_it_is() -> None:
    run = Run(2, TUNED, CASES, TINY, True, ("numpy",), "python")
    assert Run.of(json.loads(json.dumps(run.as_json()))) == run


def test_who_takes_part() -> None:
    def names(run: Run, case: Case) -> set[str]:
        return {contender.name for contender in contenders_of(run, case)}

    alone = Run(1, DEFAULT, (), TINY, peers=())
    assert names(alone, Case((6, 5), FORWARD)) == {"gce", "limit"}
    assert names(Run(2, TUNED, (), TINY, alone=True), SMALL) == {
        "gce", "limit", ONE_THREAD, LIMIT_ON_ONE_THREAD,
    }  # fmt: skip
    assert names(alone, SMALL) == {"gce", "gce, new gradient", "limit"}
    others = {isa_name(i) for i in _native.available_isas() if i != _native.isa_name()}
    half = Case((6, 5), FORWARD, "float16")
    assert names(Run(2, TUNED, (), TINY, peers=("numpy",)), half) == {
        "gce", "limit", FLOAT32, "numpy", *others,
    }  # fmt: skip
    assert "onnxruntime training" in names(Run(1, DEFAULT, (), TINY, (), (), "python"), SMALL)


# --- processes ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured() -> tuple[dict[str, Any], list[Measured]]:
    """What two processes found in tiny cases."""
    cases = (*(Case((6, 5), work) for work in WORKS), Case((6, 5), BACKWARD, "float64"))
    return suite.measure([
        Run(1, TUNED, cases, TINY, peaks=True, peers=("numpy",)),
        Run(2, TUNED, cases[:2], TINY, peers=()),
        Run(2, TUNED, cases[:1], TINY, alone=True),
        Run(1, DEFAULT, cases[:2], TINY, peers=("numpy",)),
    ])  # fmt: skip


def test_each_run_has_its_threads_and_allocator(
    measured: tuple[dict[str, Any], list[Measured]],
) -> None:
    facts, results = measured
    assert [(run["allocator"], run["threads"][0]) for run in facts["runs"]] == [
        (TUNED, "1"), (TUNED, "2"), (TUNED, "2"), (DEFAULT, "1"),
    ]  # fmt: skip
    assert [(m.threads, m.allocator) for m in results] == (
        [(1, TUNED)] * 4 + [(2, TUNED)] * 3 + [(1, DEFAULT)] * 2
    )
    assert all(set(m.seconds) >= {"gce", "limit"} for m in results)
    assert [ONE_THREAD in m.seconds for m in results if m.threads == 2] == [False, False, True]


def test_a_process_has_the_allocator_that_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    environments = []

    def fail(command: list[str], **options: Any) -> None:
        environments.append(options["env"]["GLIBC_TUNABLES"])
        raise subprocess.CalledProcessError(3, command)

    monkeypatch.setattr(subprocess, "run", fail)
    for allocator in (TUNED, DEFAULT):
        with pytest.raises(subprocess.CalledProcessError):
            suite.execute(Run(1, allocator, (SMALL,), TINY))
    assert "mmap_max=0" in environments[0]
    assert environments[1] == ""


def test_files_and_marks(measured: tuple[dict[str, Any], list[Measured]], tmp_path: Path) -> None:
    facts, results = measured
    suite.write(tmp_path, facts, results)
    assert report.load_json(tmp_path / "benchmark.json") == (facts, results)
    assert (tmp_path / "benchmark.png").read_bytes().startswith(b"\x89PNG")
    markdown = (tmp_path / "benchmark.md").read_text(encoding="utf-8")
    assert "## One thread" in markdown
    assert "| 6x5 fwd+bwd |" in markdown
    readme = tmp_path / "README.md"
    names = ["where", "one-thread", "all-threads", "peers", "allocators", "threads", "dtypes"]
    names += ["isas"] if len(_native.available_isas()) > 1 else []
    marks = [f"<!-- benchmark:{n} -->\nold\n<!-- /benchmark:{n} -->" for n in names]
    readme.write_text("before\n" + "\nbetween\n".join(marks) + "\nafter\n", encoding="utf-8")
    for _ in range(2):  # again, the same
        suite.fill_readme(tmp_path, readme)
        text = readme.read_text(encoding="utf-8")
        assert "old" not in text
        assert text.startswith("before\n<!-- benchmark:where -->\n")
        assert text.endswith("\n<!-- /benchmark:" + names[-1] + " -->\nafter\n")
        assert text.count("\nbetween\n") == len(names) - 1
        assert tables.one_thread(facts, results) in text


# --- tables ---------------------------------------------------------------------------------------

FACTS = {
    "cpu": "C", "isa": "best", "isas_available": "best, old", "compiler": "gcc", "python": "P",
    "numpy": "2", "torch": "3", "jax": "not installed", "commit": "abc",
}  # fmt: skip
RESULTS = [
    Measured(
        Case((3000, 1000), BACKWARD, "float16"),
        1,
        {"gce": [1.0], FLOAT32: [2.0], "gce [old]": [3.0], "gce (onnx)": [1.5],
         "onnxruntime training": [6.0], "torch": [4.0], "limit": [0.5]},
        peaks={"gce": 0, "torch": 12_000_000, "gce [old]": 7},
        allocator=TUNED,
    ),
    Measured(
        Case((6, 5), BACKWARD, options=BINARY), 1,
        {"gce": [1.0], "torch": [2.0], "limit": [0.1]}, allocator=TUNED,
    ),
    Measured(
        Case((3000, 1000), BACKWARD, "float16"), 1, {"gce": [1.0], "torch": [8.0]},
        allocator=DEFAULT,
    ),
    Measured(Case((6, 5), FORWARD), 4, {"gce": [1e-3]}, allocator=TUNED),
    Measured(
        Case((6, 5), FORWARD), 4,
        {"gce": [1e-3], ONE_THREAD: [3e-3], "limit": [5e-4], LIMIT_ON_ONE_THREAD: [1e-3]},
        allocator=TUNED,
    ),
]  # fmt: skip
LAST_ROWS = {
    "where": "C, best, gcc, P, numpy 2, torch 3; commit abc.",
    "one-thread": "| 0.50 (0.50-0.50) | torch | 4.00 (4.00-4.00) |",
    "forms": "| 0.10 (0.10-0.10) | torch | 2.00 (2.00-2.00) |",
    "all-threads": "| 6x5 fwd | 1.00 ms | - | - | - |",
    "peers": "| - | - | 2.00 (2.00-2.00) |",
    "operator": "| 1500.00 ms | 1.50 (1.50-1.50) | 4.00 (4.00-4.00) |",
    "allocators": "| 1000.00 ms, 1000.00 ms | - | 8000.00 ms, 4000.00 ms |",
    "isas": "| 3000x1000 f16 fwd+bwd | 3.00 (3.00-3.00) |",
    "threads": "| 1.00 ms | 3.00 (3.00-3.00) | 2.00 (2.00-2.00) | 0.50 (0.50-0.50) |",
    "dtypes": "| 3000x1000 f16 fwd+bwd | 1000.00 ms | 0.50 (0.50-0.50) |",
    "memory": "| 3000x1000 f16 fwd+bwd | 0.00 | 2.00 |",
}


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "LARGE", 6_000_000)


@pytest.mark.parametrize("name", tables.TABLES)
def test_figures_of_a_table(name: str) -> None:
    assert tables.TABLES[name](FACTS, RESULTS).splitlines()[-1].endswith(LAST_ROWS[name])


def test_a_document_has_the_tables_that_have_rows() -> None:
    assert all(f"## {title}" in tables.document(FACTS, RESULTS) for title in tables.TITLES.values())
    assert set(tables.TITLES) == set(tables.TABLES)
    assert "## All threads" not in tables.document(FACTS, RESULTS[:1])


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("<!-- benchmark:no -->\n<!-- /benchmark:no -->", KeyError, "benchmark:no is none of"),
        ("<!-- benchmark:peers -->", KeyError, r"marks that do not end: \['peers'\]"),
        (
            "<!-- benchmark:dtypes -->\n<!-- /benchmark:dtypes -->",
            tables.NothingMeasured,
            "nothing for benchmark:dtypes was measured",
        ),
    ],
)
def test_bad_marks(text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tables.fill(text, FACTS, RESULTS[3:])


def test_the_marks_of_the_readme_are_tables() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    filled = tables.fill(text, FACTS, RESULTS)
    assert len(re.findall(r"<!-- benchmark:", text)) >= 3
    assert LAST_ROWS["one-thread"] in filled


# --- the command ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--case", "abacus"], "--case 'abacus' is in none of: 512x32000 fwd"),
        (["--output", "no/such"], "--output no/such: not in a directory that exists"),
        (["--readme", "--output", "empty"], "there is no empty/benchmark.json; measure first"),
        (["--rounds", "0"], "'0' is not an integer of at least 1"),
        (["--peer", "abacus"], "invalid choice: 'abacus'"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        suite.main(arguments)
    assert message in capsys.readouterr().err


def test_options_reach_the_runs() -> None:
    options = suite.parse([
        "--case", "512x32000 in place", "--peer", "numpy", "--rounds", "4", "--seconds", "0.5",
        "--training-python", "there",
    ])  # fmt: skip
    runs = suite.runs_of(options)
    assert runs[0] == Run(
        1, TUNED, (Case((512, 32000), IN_PLACE),), Effort(4, 0.5), True, ("numpy",), "there"
    )
    assert suite.runs_of(suite.parse(["--full"]))[0].effort.seconds == 4.0


def test_what_fails_in_a_process_fails_the_suite(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(suite, "runs_of", lambda options: [Run(1, DEFAULT, (SMALL,), TINY)])
    monkeypatch.setattr(sys, "executable", "false")
    assert suite.main(["--output", "docs"]) == 1
    assert "a run ended with 1" in capsys.readouterr().err


# --- the training release; with it, tests/ort_training --------------------------------------------


def test_what_the_training_release_is_not_asked() -> None:
    contender = training_loss("no/such/python")
    for case in (
        Case((6, 5), FORWARD),
        Case((6, 5), BACKWARD, "float64"),
        Case((2, 3, 4), BACKWARD, axis=0),
    ):
        with pytest.raises(CannotDo):
            contender.make(Data(case), 1)


def test_a_worker_that_dies_says_so() -> None:
    with pytest.raises(RuntimeError, match=r"training_loss_worker.py ended with 1"):
        training_loss("false").make(Data(SMALL), 1)
