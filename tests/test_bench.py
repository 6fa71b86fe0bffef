"""The benchmarks: that they measure what they say, and tell of it. No time is asserted."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gce
from gce import _native
from gce._command_line import CommandError
from gce.bench import check, command, cpus, memory, report
from gce.bench.cases import (
    BACKWARD,
    CASES,
    DTYPES,
    FORMS,
    FORWARD,
    GAMMAS,
    IN_PLACE,
    PRODUCT,
    WEIGHTS,
    WORKS,
    Case,
    Data,
)
from gce.bench.contender import CannotDo, Contender, Work, gce_itself, gce_new_gradient
from gce.bench.limits import as_floats, limit
from gce.bench.peers import OPERATOR, PEERS
from gce.bench.runner import Effort, Measured, measure
from support import require
from test_cli import run_python

TINY = Effort(rounds=3, seconds=1.0, turn=1e-4)
SMALL = Case((6, 5), BACKWARD)


# --- cases ----------------------------------------------------------------------------------------


def test_names_say_the_whole_case() -> None:
    assert len({case.name for case in CASES}) == len(set(CASES)) == len(CASES)
    assert Case((512, 32000), FORWARD).name == "512x32000 fwd"
    assert Case((2, 3, 4), BACKWARD, "bfloat16", axis=1).name == "2x3x4 bf16 axis 1 fwd+bwd"
    assert Case((2, 3), IN_PLACE, axis=1, options=GAMMAS).name == "2x3 in place (gamma per row)"


def test_what_the_issue_names_is_there() -> None:
    names = {case.name for case in CASES}
    shapes = ["512x32000", "512x128256", "512x50257", "4096x1000", "65536x10", "50000x7", "32x10"]
    assert {f"{shape} {work}" for shape in shapes for work in ("fwd", "fwd+bwd")} <= names
    assert "8x21x256x256 axis 1 fwd+bwd" in names
    assert {f"512x32000 {dtype} fwd+bwd" for dtype in ("f16", "bf16", "f64")} <= names
    assert {f"4096x1000 fwd ({options})" for options in (GAMMAS, WEIGHTS)} <= names
    assert {f"65536x10 fwd+bwd ({options})" for options in FORMS} <= names


@pytest.mark.parametrize("dtype", DTYPES)
def test_data_of_a_case(dtype: str) -> None:
    case = Case((4, 3, 5), IN_PLACE, dtype, axis=1)
    data = Data(case)
    assert data.logits.dtype.name == dtype
    assert data.logits.nbytes == case.nbytes
    assert (data.logits.shape, data.targets.shape) == ((4, 3, 5), (4, 5))
    assert (case.rows, case.classes, case.is_last_axis) == (20, 3, False)
    assert set(data.targets.reshape(-1)) <= set(range(3))
    assert (data.logits == Data(case).logits).all()
    assert data.out is data.out is not data.logits


def test_data_of_options() -> None:
    gammas = Data(dataclasses.replace(SMALL, options=GAMMAS)).gamma
    assert isinstance(gammas, np.ndarray)
    assert len(set(gammas)) == 6
    weighted = Data(Case((200, 5), FORWARD, options=WEIGHTS))
    assert 0 < (weighted.targets == weighted.options["ignore_index"]).sum() < 100
    assert weighted.weight is not None
    assert weighted.options["weight"].shape == (5,)


# --- contenders -----------------------------------------------------------------------------------


def tiny(case: Case) -> Case:
    """The same work on little data."""
    most = (8, 40) if len(case.shape) == 2 else (2, 21, 3, 3)
    return dataclasses.replace(case, shape=tuple(map(min, case.shape, most)))


TINY_CASES = sorted({tiny(case) for case in CASES}, key=str)


@pytest.mark.parametrize("case", TINY_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("contender", [gce_itself, gce_new_gradient], ids=lambda c: c.name)
def test_gce_does_every_case(contender: Contender, case: Case) -> None:
    data = Data(case)
    before = data.logits.copy()
    try:
        work = contender.make(data, 1)
    except CannotDo:
        assert (contender, case.work) != (gce_itself, BACKWARD)
        assert contender is gce_new_gradient
        return
    check.Expected(data).check(contender, work())
    work()
    np.testing.assert_array_equal(data.logits, before)


# What each can do; torch.compile, which takes seconds for each, is checked when it is measured.
CAN = {
    "numpy": {FORWARD, BACKWARD, IN_PLACE},
    "numba": {FORWARD, BACKWARD, IN_PLACE},
    "torch": {FORWARD, BACKWARD},
    "torch cross_entropy": {FORWARD, BACKWARD},
    "jax": {FORWARD, BACKWARD},
    OPERATOR: {FORWARD, BACKWARD},
    "onnxruntime": {FORWARD},
}


def test_every_peer_is_checked() -> None:
    assert {*CAN, "torch.compile"} == set(PEERS)


@pytest.mark.parametrize("name", CAN)
@pytest.mark.parametrize("work", WORKS)
def test_peers_agree_with_gce(name: str, work: str) -> None:
    peer = PEERS[name]
    for package in (peer.package, "onnx" if peer.package == "onnxruntime" else None):
        if package is not None:
            require(importlib.util.find_spec(package), f"{package} is not installed")
    threads = cpus.count_of_cpus()
    did = []
    forms = [o for o in FORMS if (o, work) != (PRODUCT, FORWARD)]  # it is a gradient's
    for case in (
        Case((8, 40), work), Case((8, 40), work, options=GAMMAS),
        Case((8, 40), work, options=WEIGHTS), Case((2, 3, 4), work, axis=1),
        Case((8, 40), work, "bfloat16"),
        *(Case((8, 40), work, options=options) for options in forms),
    ):  # fmt: skip
        data = Data(case)
        try:
            result = peer.make(data, threads)()
        except CannotDo:
            continue
        check.Expected(data).check(peer, result)
        did.append(case)
    assert bool(did) is (work in CAN[name])


@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_limit_passes_over_all_bytes(work: str, dtype: str) -> None:
    data = Data(Case((7, 9), work, dtype))
    floats = as_floats(data.logits)
    assert data.logits.nbytes - floats.nbytes < 4
    assert np.shares_memory(floats, data.logits)
    data.out[:] = 0
    found = limit.make(data, 1)()
    if work == FORWARD:
        assert found == floats.max()
    if work == BACKWARD:
        np.testing.assert_array_equal(as_floats(data.out), floats)


# --- the runner -----------------------------------------------------------------------------------


def fake(name: str, loss: float = 0.0, grad: float = 0.0, **options: Any) -> Contender:
    """Computes what gce does, and adds to it."""

    def make(data: Data, threads: int) -> Work:
        value, gradient = gce.loss_and_grad(data.logits, data.targets, data.gamma)
        return lambda: (value + loss, gradient + np.float32(grad))

    return Contender(name, make, **options)


def test_measure_takes_turns() -> None:
    turns: list[str] = []

    def noted(name: str) -> Contender:
        def make(data: Data, threads: int) -> Work:
            result = gce.loss_and_grad(data.logits, data.targets, data.gamma)

            def work() -> Any:
                turns.append(name)
                return result

            return work

        return Contender(name, make)

    measured = measure(SMALL, 1, [noted("a"), noted("b")], Effort(4, 60.0, 1e-9))
    assert turns[-8:] == ["a", "b"] * 4
    assert {name: len(seconds) for name, seconds in measured.seconds.items()} == {"a": 4, "b": 4}
    assert min(measured.seconds["a"]) > 0
    assert measured.left_out == {}


def test_measure_ends_in_time_but_not_before_three_rounds() -> None:
    measured = measure(SMALL, 1, [gce_itself], Effort(1000, 1e-9, 1e-9))
    assert len(measured.seconds["gce"]) == 3


def test_who_is_slow_has_fewer_turns_and_ratios_are_of_the_same_rounds() -> None:
    def slow(data: Data, threads: int) -> Work:
        work = gce_itself.make(data, threads)

        def slowly() -> Any:
            time.sleep(0.2)
            return work()

        return slowly

    measured = measure(SMALL, 1, [gce_itself, Contender("slow", slow)], Effort(9, 1.0, 1e-9))
    assert {name: len(turns) for name, turns in measured.seconds.items()} == {"gce": 9, "slow": 3}
    measured.seconds = {"gce": [1.0, 2.0, 9.0], "slow": [2.0, 4.0]}
    assert measured.ratio("slow")[0] == 2.0
    assert measured.ratio("gce", to="slow")[0] == 0.5


def test_measure_says_who_is_left_out() -> None:
    def cannot(data: Data, threads: int) -> Work:
        raise CannotDo("too proud")

    def missing(data: Data, threads: int) -> Work:
        import no_such_package  # noqa: F401

        raise AssertionError

    def breaks(data: Data, threads: int) -> Work:
        raise RuntimeError("first line\nsecond line")

    contenders = [
        gce_itself, Contender("proud", cannot), Contender("missing", missing),
        Contender("broken", breaks),
    ]  # fmt: skip
    measured = measure(SMALL, 1, contenders, TINY)
    assert list(measured.seconds) == ["gce"]
    assert measured.left_out == {
        "proud": "too proud",
        "missing": "no_such_package is not installed",
        "broken": "failed: RuntimeError: first line",
    }


@pytest.mark.parametrize(
    ("contender", "message"),
    [
        (fake("liar", loss=0.1), r"6x5 fwd\+bwd: the loss of liar is [\d.]+, gce's [\d.]+"),
        (fake("liar", loss=np.nan), "the loss of liar is nan"),
        (
            fake("liar", grad=0.01),
            "the gradient of liar is up to [0-9.e-]+ away from gce's, whose largest entry is ",
        ),
        (fake("liar", grad=np.nan), "the gradient of liar is up to nan away"),
        (fake("liar", plain=True), "the loss of liar"),
    ],
)
def test_wrong_results_end_the_run(contender: Contender, message: str) -> None:
    with pytest.raises(check.Disagreement, match=message):
        measure(SMALL, 1, [gce_itself, contender], TINY)


def test_a_contender_runs_on_its_own_isa() -> None:
    before = _native.isa_name()
    seen = set()

    def make(data: Data, threads: int) -> Work:
        result = gce.loss_and_grad(data.logits, data.targets, data.gamma)

        def work() -> Any:
            seen.add(_native.isa_name())
            return result

        return work

    measure(SMALL, 1, [Contender("old", make, isa="baseline"), gce_itself], TINY)
    assert seen == {"baseline"}
    assert _native.isa_name() == before


def test_ratios_are_those_of_the_rounds() -> None:
    measured = Measured(SMALL, 1, {"gce": [1.0, 2.0, 4.0], "b": [3.0, 4.0, 4.0]})
    assert measured.ratio("b") == (2.0, pytest.approx(1.2), pytest.approx(2.8))
    assert measured.ratio("gce", to="b")[0] == 0.5
    assert measured.median("b") == 4.0


# --- memory and CPUs ------------------------------------------------------------------------------

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's count is Linux's")
MEGABYTE = 2**20


def printed_by(script: str) -> list[float]:
    """Numbers, by a process in which no other test has left threads, garbage or free memory."""
    done = run_python("-c", script, cwd=Path.cwd())
    assert (done.returncode, done.stderr) == (0, "")
    return [float(number) for number in done.stdout.split()]


@LINUX
def test_the_peak_sees_what_is_allocated_and_freed_again() -> None:
    script = """if True:
        import numpy as np
        from gce.bench.memory import peak_of
        def work():
            big = np.ones(32 * 2**20, np.uint8)
            del big
            return 7
        peak_of(work)
        print(*peak_of(work), peak_of(lambda: None)[1])
    """
    result, peak, peak_of_nothing = printed_by(script)
    assert result == 7
    assert 31 * MEGABYTE < peak < 36 * MEGABYTE
    assert peak_of_nothing < MEGABYTE


@LINUX
def test_peaks_of_gce() -> None:
    script = """if True:
        from gce.bench.cases import BACKWARD, Case
        from gce.bench.contender import gce_itself, gce_new_gradient
        from gce.bench.runner import Effort, measure
        case = Case((1024, 8192), BACKWARD)
        both = [gce_itself, gce_new_gradient]
        measured = measure(case, 1, both, Effort(1, 1e-9, 1e-9), with_peaks=True)
        print(measured.peaks["gce"], measured.peaks["gce, new gradient"] / case.nbytes)
    """
    in_place, ratio = printed_by(script)
    assert in_place < 2 * MEGABYTE  # 1.25 of them are of rows between their two passes
    assert 0.95 < ratio < 1.1


def test_no_peak_where_the_system_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.kilobytes, "__defaults__", (Path("no/such/file"),))
    with pytest.raises(memory.Unavailable, match="no peak of memory"):
        memory.peak_of(lambda: None)
    measured = measure(SMALL, 1, [gce_itself], TINY, with_peaks=True)
    assert measured.peaks == {}


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no CPU affinity here")
def test_a_process_is_restricted_to_as_many_cpus_as_threads() -> None:
    before = os.sched_getaffinity(0)
    try:
        assert "more threads than" in cpus.restrict_to(len(before) + 1)
        assert os.sched_getaffinity(0) == before
        assert cpus.restrict_to(1).startswith("restricted to as many CPUs: ")
        assert len(os.sched_getaffinity(0)) == cpus.count_of_cpus() == 1
    finally:
        os.sched_setaffinity(0, before)


# --- the report -----------------------------------------------------------------------------------


@pytest.fixture
def results() -> list[Measured]:
    """Round figures: gce at half the limit's speed, and three times as fast as its best peer."""
    seconds = {
        "gce": [2e-3] * 3, "limit": [1e-3] * 3, "numpy": [6e-3] * 3, "torch": [2e-1] * 3,
        OPERATOR: [1e-3] * 3,
    }  # fmt: skip
    small = {"gce": [2e-6], "limit": [1e-6]}
    return [
        Measured(Case((8, 9), FORWARD), 1, seconds, {"jax": "jax is not installed"}),
        Measured(Case((8, 9), BACKWARD), 1, seconds, {"jax": "jax is not installed"}, {"gce": 5}),
        Measured(Case((2, 3), IN_PLACE), 1, small, {"numpy": "too proud"}, {}, "tuned"),
    ]


def test_the_table_of_speed(results: list[Measured]) -> None:
    lines = report.speed_table(results).splitlines()
    assert lines[2] == (
        "| 8x9 fwd | 2.00 ms | 0.50 (0.50-0.50) | numpy | 3.00 (3.00-3.00) |"
    )  # the operator is no peer
    assert lines[4] == "| 2x3 in place | 2.00 µs | 0.50 (0.50-0.50) | - | - |"


def test_the_table_of_peers(results: list[Measured]) -> None:
    lines = report.peers_table(results).splitlines()
    assert lines[0] == "| time / gce's | numpy | torch | gce (onnx) |"
    assert lines[2] == "| 8x9 fwd | 3.00 (3.00-3.00) | 100 (100-100) | 0.50 (0.50-0.50) |"
    assert lines[4] == "| 2x3 in place | - | - | - |"


def test_the_summary_says_who_is_missing_where(results: list[Measured]) -> None:
    text = report.summary(results)
    assert "- jax: jax is not installed (8x9 fwd, 8x9 fwd+bwd)" in text
    assert "- numpy: too proud (2x3 in place)" in text
    assert "- jax: jax is not installed (everywhere)" in report.summary(results[:2])


def test_json_holds_all_that_was_measured(results: list[Measured], tmp_path: Path) -> None:
    facts = report.surroundings(3, "restricted")
    report.save_json(tmp_path / "it.json", facts, results)
    assert report.load_json(tmp_path / "it.json") == (facts, results)
    names = [entry["name"] for entry in json.loads((tmp_path / "it.json").read_text())["results"]]
    assert names == [measured.case.name for measured in results]


def test_facts_are_all_that_a_figure_depends_on() -> None:
    facts = report.surroundings(3)
    wanted = {"cpu", "isa", "threads", "compiler", "numpy", "python", "platform", "commit", "torch"}
    assert wanted <= set(facts)
    assert facts["threads"] == "3"
    assert facts["isa"] == _native.isa_name()
    assert all(isinstance(fact, str) and fact for fact in facts.values())


def test_the_picture(results: list[Measured], tmp_path: Path) -> None:
    require(importlib.util.find_spec("matplotlib"), "matplotlib is not installed")
    report.write(tmp_path, {"cpu": "x", "isa": "y", "threads": "1"}, results, "the text")
    assert (tmp_path / "benchmark.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "benchmark.md").read_text().endswith("the text\n")


def test_what_the_picture_shows(results: list[Measured]) -> None:
    require(importlib.util.find_spec("matplotlib"), "matplotlib is not installed")
    from matplotlib.figure import Figure

    from gce.bench.picture import draw

    axes = Figure().subplots()
    draw(axes, results[:2], ["numpy", "torch"])
    lines = {line.get_label(): np.array(line.get_xydata()).tolist() for line in axes.lines}
    assert lines["limit"] == [[1, 0], [1, 1]]
    assert lines["numpy"] == [[pytest.approx(1 / 6), 0], [pytest.approx(1 / 6), 1]]
    assert lines["gce"] == [[0.5, 1]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["8x9", "8x9"]


# --- the command ----------------------------------------------------------------------------------

ALONE = ("--peer", "numpy")


def bench(*arguments: str, cwd: Path, **environment: str) -> Any:
    options = ("--shape", "6,5", "--rounds", "2", "--threads", "1")
    return run_python("-m", "gce", "bench", *options, *arguments, cwd=cwd, **environment)


def test_bench_with_numpy_alone(tmp_path: Path) -> None:
    absent = ["jax", "matplotlib", "ml_dtypes", "numba", "onnx", "onnxruntime", "scipy", "torch"]
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({absent!r}))\n"
        "from gce.__main__ import main\n"
        "sys.exit(main(['bench', '--shape', '6,5', '--rounds', '2', '--output', 'here']))"
    )
    done = run_python("-c", script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| 6x5 fwd+bwd |")]
    assert len(rows) == 2
    assert "| numpy |" in rows[0]
    for peer in ("torch", "jax", "numba"):
        assert f"- {peer}: {peer} is not installed (everywhere)" in done.stdout
    assert "no picture: it needs matplotlib: pip install matplotlib" in done.stderr
    assert sorted(os.listdir(tmp_path / "here")) == ["benchmark.json", "benchmark.md"]


def test_bench_with_torch(tmp_path: Path) -> None:
    require(importlib.util.find_spec("torch"), "torch is not installed")
    require(importlib.util.find_spec("matplotlib"), "matplotlib is not installed")
    done = bench(
        "--peer", "torch", "--work", "backward", "--isa", "baseline", "--output", "here",
        "--axis", "0", "--dtype", "float16", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    facts, (measured,) = report.load_json(tmp_path / "here" / "benchmark.json")
    assert measured.case == Case((6, 5), BACKWARD, "float16", 0)
    assert facts["isa"] == "baseline"
    assert {"gce", "limit", "torch"} <= set(measured.seconds)
    assert "numpy" not in measured.seconds
    assert all(len(seconds) == 2 for seconds in measured.seconds.values())
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert "\n".join(table[:3]) in (tmp_path / "here" / "benchmark.md").read_text()
    assert (tmp_path / "here" / "benchmark.png").exists()


def test_bench_of_gce_alone(tmp_path: Path) -> None:
    done = bench("--peer", "none", "--dtype", "float64", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "| 6x5 f64 in place |" in done.stdout
    assert "time / gce's |" in done.stdout
    assert "Left out" not in done.stdout
    assert done.stderr.splitlines() == [
        f"measuring 6x5 f64 {work}" for work in ("fwd", "fwd+bwd", "in place")
    ]


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["--shape", "99999999,99999999"], {}, "GiB of memory, of which"),
        (["--peer", "none"], {"GCE_FORCE_ISA": "abacus"}, "GCE_FORCE_ISA = abacus"),
    ],
)
def test_bench_says_in_one_line_what_cannot_be(
    arguments: list[str], environment: dict[str, str], message: str, tmp_path: Path
) -> None:
    done = bench(*arguments, cwd=tmp_path, **environment)
    assert done.returncode == 2
    assert done.stdout == ""
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_bench_names_a_bad_number_of_threads(tmp_path: Path) -> None:
    done = run_python("-m", "gce", "bench", cwd=tmp_path, GCE_NUM_THREADS="many")
    assert (done.returncode, done.stdout) == (2, "")
    assert "GCE_NUM_THREADS = many" in done.stderr


@pytest.mark.parametrize("package", ["torch", "jax"])
def test_a_peer_that_is_asked_for_must_be_there(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    from gce.__main__ import build_parser

    arguments = build_parser().parse_args(["bench", "--peer", package])
    with pytest.raises(CommandError, match=f"--peer {package}: it is not installed"):
        command.run(arguments)


def test_the_default_is_a_handful_of_cases() -> None:
    from gce.__main__ import build_parser

    def cases(*options: str) -> list[Case]:
        return command.cases_of(build_parser().parse_args(["bench", *options]))

    assert {case.shape for case in cases()} == set(command.SHAPES)
    assert 4 < len(cases()) < 12
    assert {case.work for case in cases("--work", "in-place")} == {IN_PLACE}
    assert {case.dtype for case in cases("--dtype", "float16")} == {"float16"}
    given = cases("--shape", "4x5", "--shape", "3", "--work", "forward")
    assert given == [Case((4, 5), FORWARD), Case((3,), FORWARD)]


def test_the_packages_to_choose_from_are_those_of_the_peers() -> None:
    assert set(command.PEERS) == {peer.package or peer.name for peer in PEERS.values()}
