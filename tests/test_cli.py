"""The command line ``python -m gce`` and `gce.show_config`."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

import gce
from gce.__main__ import main


def run_python(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


# --- show_config and info


def test_show_config_returns_what_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    config = gce.show_config(mode="dicts")
    assert config is not None
    assert gce.show_config() is None
    printed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert list(printed) == list(config)
    assert printed["isas_available"] == ", ".join(config["isas_available"])
    assert printed["platform"] == config["platform"]


def test_show_config_is_consistent() -> None:
    config = gce.show_config(mode="dicts")
    assert config is not None
    assert config["gce"] == gce.__version__
    assert config["threads"] == gce.get_num_threads()
    assert config["isa"] in config["isas_available"]
    assert set(config["isas_available"]) <= set(config["isas_compiled"])


def test_show_config_names_a_bad_mode() -> None:
    with pytest.raises(ValueError, match=r"mode = 'yaml', expected 'stdout' or 'dicts'"):
        gce.show_config(mode="yaml")


def test_info(tmp_path: Path) -> None:
    done = run_python("-m", "gce", "info", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    names = [line.split()[0] for line in done.stdout.splitlines()]
    config = gce.show_config(mode="dicts")
    assert config is not None
    assert names == list(config)


def test_info_says_in_one_line_that_a_forced_isa_is_unknown(tmp_path: Path) -> None:
    done = run_python("-m", "gce", "info", cwd=tmp_path, GCE_FORCE_ISA="abacus")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("python -m gce info: ")
    assert "abacus" in done.stderr
    assert len(done.stderr.splitlines()) == 1


# --- commands


@pytest.mark.parametrize("command", [[], ["demo"]])
def test_help(command: list[str], tmp_path: Path) -> None:
    done = run_python("-m", "gce", *command, "--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    expected = (
        ["--seeds", "--epochs", "--output", "--quick"] if command else ["demo", "info", "bench"]
    )
    assert all(word in done.stdout for word in expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required"),
        (["paint"], "invalid choice: 'paint'"),
        (["demo", "--colour"], "unrecognized arguments: --colour"),
        (["demo", "--seeds", "0"], "0 is not at least 1"),
        (["demo", "--epochs", "many"], "invalid positive_int value: 'many'"),
        (["demo", "--output", "no/such/directory.png"], "--output no/such/directory.png"),
        (["demo", "--output", "."], "--output ."),
    ],
)
def test_a_mistake_exits_with_2_and_says_what_it_was(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    done = run_python("-m", "gce", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_demo_prints_its_table_on_any_terminal(tmp_path: Path) -> None:
    for module in ("sklearn", "matplotlib", "rich"):
        pytest.importorskip(module)
    options = ["--quick", "--seeds", "2", "--epochs", "1", "--output", "out.png"]
    # An encoding that has no ±: a run must not end in UnicodeEncodeError.
    done = run_python("-m", "gce", "demo", *options, cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "accuracy" in done.stdout
    assert (tmp_path / "out.png").stat().st_size > 0


@pytest.mark.parametrize("module", ["sklearn", "matplotlib", "rich"])
def test_demo_says_what_to_install(module: str, tmp_path: Path) -> None:
    # None in sys.modules is Python's own way to make an import fail as if nothing were there.
    script = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "from gce.__main__ import main; sys.exit(main(['demo']))"
    )
    done = run_python("-c", script, cwd=tmp_path)
    assert done.returncode == 2
    assert "which is not installed: pip install 'gamma-ce[demo]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_bench_says_where_the_benchmarks_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "benchmarks", None)
    assert main(["bench"]) == 2
    assert "source tree" in capsys.readouterr().err


def test_bench_hands_on_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def benchmarks_main(arguments: list[str]) -> int:
        seen.extend(arguments)
        return 3

    package, module = types.ModuleType("benchmarks"), types.ModuleType("benchmarks.__main__")
    module.main = benchmarks_main  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "benchmarks", package)
    monkeypatch.setitem(sys.modules, "benchmarks.__main__", module)
    assert main(["bench", "--help", "name", "-k", "value"]) == 3
    assert seen == ["--help", "name", "-k", "value"]


# --- what an import costs


@pytest.mark.parametrize("statement", ["import gce", "import gce.__main__"])
def test_neither_the_package_nor_its_command_line_loads_the_demo(
    statement: str, tmp_path: Path
) -> None:
    heavy = {"sklearn", "scipy", "matplotlib", "rich", "gce.demo.run"}
    if statement == "import gce":
        heavy |= {"argparse", "gce.demo"}
    script = f"import sys; {statement}; print(sorted({heavy!r} & set(sys.modules)))"
    done = run_python("-c", script, cwd=tmp_path)
    assert done.stdout.strip() == "[]"
