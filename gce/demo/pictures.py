"""The pictures: each metric against γ, and the reliability diagrams."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from gce.demo.report import METRICS, Metric, Run, means, over_seeds, pooled

__all__ = ["save_diagrams", "save_metrics"]

LOGARITHMIC = 50.0  # the ratio of largest to smallest from which on an axis is


def save_metrics(runs: Sequence[Run], bins: int, path: Path) -> None:
    """Write a panel for each metric: its mean and spread over seeds against γ, as a PNG."""
    columns = 3
    rows = -(-len(METRICS) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.1 * rows + 0.5), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, (key, metric) in zip(grid.flat, METRICS.items(), strict=False):
        draw_metric(axes, runs, bins, key, metric)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    columns = min(len(handles), 4)
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False)
    figure.supxlabel("gamma (0 is cross-entropy; 0 to 1: it rises over the training)", fontsize=10)
    figure.savefig(path, format="png", dpi=120)


def draw_metric(axes: Axes, runs: Sequence[Run], bins: int, key: str, metric: Metric) -> None:
    """One line for each share of noise and each threshold."""
    names = list(dict.fromkeys(run.variant.gamma_text for run in runs))
    places = {name: place for place, name in enumerate(names)}
    noises = list(dict.fromkeys(run.noise for run in runs))
    thresholds = list(dict.fromkeys(run.variant.threshold for run in runs))
    extremes = []
    for color, noise in enumerate(noises):
        for threshold in thresholds:
            # gamma 0 is the same for all thresholds: every line begins there
            line = [
                run for run in runs
                if run.noise == noise and (run.variant.threshold == threshold
                                           or run.variant.gamma == 0.0)
            ]  # fmt: skip
            x = [places[run.variant.gamma_text] for run in line]
            values = [metric.scale * means(run, bins)[key] for run in line]
            mean, spread = np.array([over_seeds(v) for v in values]).T
            extremes += list(mean[~np.isnan(mean)])
            style = "-" if threshold == thresholds[0] else "--"
            label = f"{noise:.0%} wrong, b = {threshold:g}"
            for rises in (False, True):  # no line leads from the constants to what rises
                part = [i for i, run in enumerate(line) if (run.variant.gamma is None) == rises]
                axes.errorbar(
                    [x[i] for i in part], mean[part], spread[part],
                    color=f"C{color}", linestyle=style, marker="D" if rises else "o",
                    markersize=3.5, capsize=2, linewidth=1.2, label=None if rises else label,
                )  # fmt: skip
    if extremes and min(extremes) > 0 and max(extremes) > LOGARITHMIC * min(extremes):
        axes.set_yscale("log")
    axes.set_xticks(list(places.values()), list(places))
    unit = ", %" if metric.scale == 100.0 else ""
    better = {"max": " (more is better)", "min": " (less is better)", None: ""}[metric.better]
    axes.set_title(key + unit + better, fontsize=10)
    axes.grid(alpha=0.3)


def save_diagrams(runs: Sequence[Run], bins: int, path: Path) -> None:
    """Write the reliability diagrams as a PNG: γ from left to right, noise and b downwards."""
    columns = list(dict.fromkeys(run.variant.gamma_text for run in runs))
    rows = list(dict.fromkeys((run.noise, run.variant.threshold) for run in runs))
    layout = ConstrainedLayoutEngine(wspace=0.03, hspace=0.03)
    figure = Figure(figsize=(1.9 * len(columns) + 0.6, 2.05 * len(rows) + 0.9), layout=layout)
    grid = figure.subplots(len(rows), len(columns), sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat:
        axes.set_visible(False)
    for run in runs:
        row = rows.index((run.noise, run.variant.threshold))
        axes = grid[row, columns.index(run.variant.gamma_text)]
        axes.set_visible(True)
        draw_diagram(axes, run, bins)
    figure.supxlabel("confidence in the answer given (all seeds together)", fontsize=10)
    figure.supylabel("accuracy on clean test data; share of answers", fontsize=10)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(handles), frameon=False)
    figure.savefig(path, format="png", dpi=110)


def draw_diagram(axes: Axes, run: Run, bins: int) -> None:
    """Reliability of one run."""
    curve = pooled(run, bins)
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--")
    axes.bar(curve.centre, curve.share, 1 / bins, color="0.85", label="share of answers")
    axes.vlines(curve.confidence, curve.accuracy, curve.confidence, color="tab:red", label="gap")
    axes.plot(curve.confidence, curve.accuracy, "o-", markersize=3, label="accuracy")
    axes.set_title(
        f"{run.noise:.0%} wrong, gamma {run.variant.gamma_text}\n"
        f"b {run.variant.threshold:g}: error {100 * curve.error:.1f} %",
        fontsize=8,
    )
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
