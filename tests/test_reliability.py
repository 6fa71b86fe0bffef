"""reliability/: what fuzzers print and leave is counted as it is, and reported. None runs here."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest

from reliability import artifacts, fuzz_c_abi, libfuzzer, pythons, record, report, sanitize
from reliability.checks import CHECKS
from reliability.pytests import run_pytest

DONE = """INFO: seed corpus: files: 3 min: 3b max: 30b total: 90b rss: 31Mb
#4\tINITED cov: 40 ft: 52 corp: 3/90b exec/s: 0 rss: 31Mb
#1200\tNEW    cov: 61 ft: 80 corp: 4/93b lim: 4 exec/s: 600 rss: 40Mb L: 3/3 MS: 1 EraseBytes-
#2400\tDONE   cov: 63 ft: 99 corp: 4/93b lim: 4 exec/s: 600 rss: 40Mb
Done 2400 runs in 4 second(s)
stat::number_of_executed_units: 2400
stat::average_exec_per_sec:     600
"""
CRASHED = """#4\tINITED cov: 40 ft: 52 corp: 3/90b exec/s: 0 rss: 31Mb
==1==ERROR: AddressSanitizer: heap-buffer-overflow on address 0x602000000011
artifact_prefix='./'; Test unit written to ./crash-da39a3ee
stat::number_of_executed_units: 900
stat::average_exec_per_sec:     300
"""


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (DONE, {"executions": 2400, "seconds": 4, "edges": 63, "features": 99}),
        (CRASHED, {"executions": 900, "seconds": 3, "edges": 40, "features": 52}),
        ("no such file", {"executions": 0, "seconds": 0, "edges": 0, "features": 0}),
    ],
)
def test_counts(said, expected):
    assert libfuzzer.counts(said) == expected


# Stands for a program that libFuzzer is linked to: reads the arguments that it is given.
PROGRAM = """
import pathlib, sys
options = dict(a[1:].split("=", 1) for a in sys.argv[1:] if a.startswith("-"))
folders = [pathlib.Path(a) for a in sys.argv[1:] if not a.startswith("-")]
if "set_cover_merge" in options:
    for path in list(folders[1].iterdir()) + list(folders[2].iterdir()):
        if b"covers" in path.read_bytes():
            (folders[0] / path.name).write_bytes(path.read_bytes())
    sys.exit()
(folders[0] / "new").write_text("covers more")
print({said!r})
sys.exit({code})
"""


@pytest.fixture
def target(tmp_path, monkeypatch):
    """A target of which nothing lies in the checkout."""
    monkeypatch.setattr(libfuzzer, "CORPUS", tmp_path / "corpus")
    monkeypatch.setattr(libfuzzer, "ROOT", tmp_path)

    def make(said: str, code: int = 0) -> libfuzzer.Target:
        program = tmp_path / "program.py"
        program.write_text(PROGRAM.format(said=said, code=code))
        made = libfuzzer.Target("toy", (sys.executable, str(program)), ("-max_len=9",))
        made.corpus.mkdir(parents=True)
        for name, text in (("old", "covers"), ("dull", ""), ("found-dull", "")):
            (made.corpus / name).write_text(text)
        return made

    return make


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def options(**of: object) -> argparse.Namespace:
    return argparse.Namespace(**{"seconds": 1, "keep": False, **of})


def test_a_run_does_not_change_the_kept_corpus(target):
    toy = target(DONE)
    figures = libfuzzer.fuzz(toy, options())
    assert figures["findings"] == []
    assert figures["corpus"] == 3
    assert figures["executions"] == 2400
    assert names(toy.corpus) == {"old", "dull", "found-dull"}
    assert names(toy.folder / "new") == {"new"}
    assert (toy.folder / "log").read_text().strip() == DONE.strip()


def test_keep_leaves_what_adds_coverage_and_what_was_found(target):
    toy = target(DONE)
    assert libfuzzer.fuzz(toy, options(keep=True))["corpus"] == 3
    assert names(toy.corpus) == {"old", "new", "found-dull"}
    assert not (toy.folder / "new").exists()


def test_findings(target):
    slow = "artifact_prefix='./'; Test unit written to ./slow-unit-2\n"
    toy = target(slow + CRASHED, code=77)
    for _ in range(2):  # of the same name the second time
        assert libfuzzer.fuzz(toy, options())["findings"] == ["crash-da39a3ee"]


@pytest.mark.parametrize(("code", "finding"), [(1, "exit code 1"), (0, "no executions")])
def test_a_program_that_does_not_fuzz_is_a_failure(target, code, finding):
    assert libfuzzer.fuzz(target("", code=code), options())["findings"] == [finding]


def test_row():
    figures = {**libfuzzer.counts(DONE), "corpus": 12, "findings": [], "failures": 0}
    (row,) = fuzz_c_abi.rows(figures)
    assert row[2] == "2,400 executions in 4 s (600/s), 63 edges, a corpus of 12; 0 findings"
    assert CHECKS["fuzz_c_abi"].run is fuzz_c_abi.run


def test_kept_corpus_is_small():
    files = list((libfuzzer.CORPUS / "c_abi").iterdir())
    assert 10 < len(files) < 2000
    assert sum(path.stat().st_size for path in files) < 500_000


# --- checks that run tests ------------------------------------------------------------------------

SKIPPED = "import pytest\ndef test_nothing(): pytest.skip('today')\n"
PASSED = SKIPPED + "def test_something(): pass\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (PASSED, {"passed": 1, "failed": 0, "skipped": 1}),
        (SKIPPED, {"passed": 0, "failed": 1, "skipped": 1}),
        ("", {"passed": 0, "failed": 1, "skipped": 0}),
        ("import os\nos._exit(0)\n", {"passed": 0, "failed": 1, "skipped": 0}),
    ],
)
def test_where_nothing_passed_something_failed(tmp_path, text, expected):
    path = tmp_path / "test_few.py"
    path.write_text(text)
    assert run_pytest([str(path)], folder=tmp_path) == expected


def test_what_a_sanitizer_said_is_a_failure(monkeypatch):
    found = {"passed": 9, "failed": 0, "skipped": 0, "reports": 2}
    monkeypatch.setattr(sanitize, "run_tests", lambda *_: found)
    chosen = options(variants=["thread"], pytest="", training_python=None)
    assert sanitize.run(chosen) == {"thread": found, "failures": 2}
    monkeypatch.setenv("GCE_REQUIRE_ALL", "1")
    with pytest.raises(SystemExit, match="without release: no --training-python"):
        sanitize.run(options(variants=[], pytest="", training_python=None))


def test_checks_of_nothing_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pythons, "chosen_pythons", lambda _: [])
    with pytest.raises(SystemExit, match="no Python here"):
        pythons.run(options())
    monkeypatch.setattr(artifacts, "ROOT", tmp_path)
    (tmp_path / "dist").mkdir()
    with pytest.raises(SystemExit, match=r"has \[\], expected wheels and an sdist"):
        artifacts.run(options(artifacts=[]))
    (tmp_path / "dist" / "gamma_ce-1-cp311-cp311-any.whl").touch()
    with pytest.raises(SystemExit, match=r"has \['.whl'\], expected wheels and an sdist"):
        artifacts.run(options(artifacts=[]))


# --- records --------------------------------------------------------------------------------------


def test_the_report_is_that_of_the_last_records():
    text = report.TEXT.read_text(encoding="utf-8")
    assert report.filled(text) == text, "make reliability"


def test_a_record_of_failures_is_reported_as_such(monkeypatch):
    found = record.Record("command", "date", "commit", "machine", 60.0, {"failures": 3})
    monkeypatch.setattr(report, "load", lambda name: found if name == "kills" else None)
    lines = report.table().splitlines()
    assert lines[2] == ""  # no promise holds
    assert "| kills | **3 failures** | `command` | date | commit | machine | 1.0 min |" in lines


def test_records_name_no_machine(tmp_path):
    given = [f"{record.ROOT}/dist", f"{tmp_path}/some/python3.9", "--dist=x", "-k", "a/b"]
    path = record.save("limits", given, 1.0, {}, tmp_path)
    command = json.loads(path.read_text())["command"]
    assert command == "python -m reliability limits dist python3.9 --dist=x -k a/b"
    files = [report.TEXT, *record.FOLDER.iterdir()]
    assert [artifacts.paths_in_text(file.read_bytes()) for file in files] == [[]] * len(files)


def test_every_record_is_of_a_check():
    names = {path.stem for path in record.FOLDER.glob("*.json")}
    assert names <= set(CHECKS)
