"""The table of figures and the reliability diagrams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from rich import box
from rich.table import Table

from gce.demo.calibration import reliability
from gce.demo.train import Outcome

__all__ = ["METRICS", "Metric", "figures", "results_table", "save_diagrams", "summary"]

Outcomes = Mapping[str, Sequence[Outcome]]


@dataclass(frozen=True)
class Metric:
    """A column of the table: its heading, its unit and digits, and which end of it is the good one.

    `better` is ``max``, ``min``, or None where neither end is good in itself.
    """

    heading: str
    scale: float
    digits: int
    better: str | None


METRICS = {
    "accuracy": Metric("accuracy\n%", 100.0, 1, "max"),
    "confidence": Metric("mean\nconfidence %", 100.0, 1, None),
    "calibration error": Metric("calibration\nerror %", 100.0, 1, "min"),
    "negative log-likelihood": Metric("negative log-\nlikelihood", 1.0, 3, "min"),
    "wrong labels learnt": Metric("wrong labels\nlearnt %", 100.0, 1, None),
}


def figures(outcome: Outcome, bins: int) -> dict[str, float]:
    """The figures of one run, under the keys of `METRICS`."""
    return {
        "accuracy": float(outcome.correct.mean()),
        "confidence": float(outcome.confidence.mean()),
        "calibration error": reliability(outcome.confidence, outcome.correct, bins).error,
        "negative log-likelihood": outcome.negative_log_likelihood,
        "wrong labels learnt": outcome.memorised,
    }


def collect(outcomes: Outcomes, bins: int) -> dict[str, dict[str, npt.NDArray[np.float64]]]:
    """Figures by the name of the run and the metric, an array over seeds each."""
    runs = {name: [figures(one, bins) for one in seeds] for name, seeds in outcomes.items()}
    return {
        name: {metric: np.array([one[metric] for one in seeds]) for metric in METRICS}
        for name, seeds in runs.items()
    }


def format_figure(values: npt.NDArray[np.float64], metric: Metric) -> str:
    """``mean ± standard deviation`` over seeds; the mean alone if there is one seed."""
    mean = f"{metric.scale * values.mean():.{metric.digits}f}"
    if values.size == 1:
        return mean
    return f"{mean} ± {metric.scale * values.std(ddof=1):.{metric.digits}f}"


def results_table(outcomes: Outcomes, bins: int) -> Table:
    """One row for each run, one column for each of `METRICS`."""
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True)  # no wider than 80 columns
    table.add_column("gamma", no_wrap=True)
    for metric in METRICS.values():
        table.add_column(metric.heading, justify="right", no_wrap=True)
    for name, row in collect(outcomes, bins).items():
        cells = (format_figure(row[key], metric) for key, metric in METRICS.items())
        table.add_row(name, *cells)
    return table


def summary(outcomes: Outcomes, bins: int) -> str:
    """Which run has the best mean of each metric that has a good end."""
    rows = collect(outcomes, bins)
    lines = []
    for key, metric in METRICS.items():
        if metric.better is not None:
            means = {name: float(row[key].mean()) for name, row in rows.items()}
            best = (max if metric.better == "max" else min)(means.values())
            names = ", ".join(f"gamma {name}" for name, mean in means.items() if mean == best)
            word = "highest" if metric.better == "max" else "lowest"
            lines.append(f"{word} mean {key}: {names}")
    return "\n".join(lines)


def draw_diagram(axes: Axes, name: str, outcomes: Sequence[Outcome], bins: int) -> None:
    """Reliability of one variant, all seeds pooled."""
    confidence = np.concatenate([outcome.confidence for outcome in outcomes])
    correct = np.concatenate([outcome.correct for outcome in outcomes])
    curve = reliability(confidence, correct, bins)
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--")
    axes.bar(curve.centre, curve.share, 1 / bins, color="0.85", label="share of answers")
    axes.vlines(curve.confidence, curve.accuracy, curve.confidence, color="tab:red", label="gap")
    axes.plot(curve.confidence, curve.accuracy, "o-", markersize=4, label="accuracy")
    axes.set_title(
        f"gamma {name}: calibration error, pooled, {100 * curve.error:.1f} %", fontsize=9
    )
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")


def save_diagrams(outcomes: Outcomes, bins: int, path: Path) -> None:
    """Write the reliability diagrams, a panel for each run, as a PNG."""
    columns = 3
    rows = -(-len(outcomes) // columns)
    layout = ConstrainedLayoutEngine(wspace=0.05)
    figure = Figure(figsize=(3.6 * columns, 3.6 * rows + 0.6), layout=layout)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(outcomes) :]:
        axes.set_visible(False)
    for axes, (name, runs) in zip(grid.flat, outcomes.items(), strict=False):
        draw_diagram(axes, name, runs, bins)
    figure.supxlabel("confidence in the answer given (all seeds pooled)")
    figure.supylabel("accuracy on clean test data; share of answers")
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(handles), frameon=False)
    figure.savefig(path, format="png", dpi=150)
