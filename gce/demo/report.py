"""The figures of the runs: a table, and all of them as JSON."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from rich import box
from rich.table import Table

import gce
from gce.demo.calibration import reliability
from gce.demo.config import DemoConfig
from gce.demo.train import Outcome, Variant

__all__ = [
    "METRICS",
    "Metric",
    "Run",
    "figures",
    "means",
    "over_seeds",
    "results_table",
    "summary",
    "write_json",
]


@dataclass(frozen=True)
class Run:
    """One variant at one share of noise, and its outcome for each seed."""

    noise: float
    variant: Variant
    outcomes: Sequence[Outcome]


Values: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Metric:
    """A column of the table: its heading, its unit and form, and which end of it is the good one.

    `better` is ``max``, ``min``, or None where neither end is good in itself.
    """

    heading: str
    scale: float
    form: str
    better: str | None

    def text(self, values: Values) -> str:
        """``mean±standard deviation`` over seeds; the mean alone if there is one seed."""
        mean, spread = (format(self.scale * value, self.form) for value in over_seeds(values))
        if np.isnan(values).all():
            return "-"
        return mean if values.size == 1 else f"{mean}±{spread}"


def over_seeds(values: Values) -> tuple[float, float]:
    """Mean and sample standard deviation over the seeds that have a figure; NaN if none has."""
    known = values[~np.isnan(values)]
    if not known.size:
        return math.nan, math.nan
    return float(known.mean()), float(known.std(ddof=1)) if known.size > 1 else 0.0


# In a terminal of 80 columns the table just fits.
METRICS = {
    "accuracy": Metric("accuracy\n%", 100.0, ".1f", "max"),
    "negative log-likelihood": Metric("negative log-\nlikelihood", 1.0, ".2f", "min"),
    "perplexity": Metric("\nperplexity", 1.0, ".3g", "min"),
    "calibration error": Metric("calibration\nerror %", 100.0, ".1f", "min"),
    "confidence when wrong": Metric("confidence\nif wrong %", 100.0, ".1f", "min"),
    "wrong targets learnt": Metric("wrong\nlearnt %", 100.0, ".1f", None),
}


def figures(outcome: Outcome, bins: int) -> dict[str, float]:
    """The figures of one model, under the keys of `METRICS`."""
    wrong = outcome.confidence[~outcome.correct]
    loss = outcome.negative_log_likelihood
    return {
        "accuracy": float(outcome.correct.mean()),
        "negative log-likelihood": loss,
        "perplexity": math.exp(min(loss, 300.0)),  # beyond, its square overflows in the spread
        "calibration error": reliability(outcome.confidence, outcome.correct, bins).error,
        "confidence when wrong": float(wrong.mean()) if wrong.size else math.nan,
        "wrong targets learnt": outcome.memorised,
    }


def means(run: Run, bins: int) -> dict[str, Values]:
    """The figures of a run by metric, an array over seeds each."""
    each = [figures(outcome, bins) for outcome in run.outcomes]
    return {metric: np.array([one[metric] for one in each]) for metric in METRICS}


def results_table(runs: Sequence[Run], bins: int, without: str) -> Table:
    """One row for each run, one column for each of `METRICS` but one, as they would be too many."""
    shown = {key: metric for key, metric in METRICS.items() if key != without}
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    for heading in ("wrong", "gamma", "b"):
        table.add_column(heading, no_wrap=True)
    for metric in shown.values():
        table.add_column(metric.heading, justify="right", no_wrap=True)
    for before, run in zip([None, *runs], runs, strict=False):
        if before is not None and before.noise != run.noise:
            table.add_section()
        row = means(run, bins)
        cells = (metric.text(row[key]) for key, metric in shown.items())
        variant = run.variant
        table.add_row(f"{run.noise:.0%}", variant.gamma_text, f"{variant.threshold:g}", *cells)
    return table


def summary(runs: Sequence[Run], bins: int) -> str:
    """Which run has the best mean of each metric that has a good end, for each share of noise."""
    lines = []
    for noise in dict.fromkeys(run.noise for run in runs):
        rows = {run.variant: means(run, bins) for run in runs if run.noise == noise}
        best = []
        for key, metric in METRICS.items():
            if metric.better is None:
                continue
            by_variant = {variant: over_seeds(row[key])[0] for variant, row in rows.items()}
            known = {variant: mean for variant, mean in by_variant.items() if mean == mean}
            if not known:
                continue
            end = (max if metric.better == "max" else min)(known.values())
            names = " and ".join(describe(v) for v, mean in known.items() if mean == end)
            best.append(f"{key}: {names}")
        lines.append(f"best at {noise:.0%} wrong: " + "; ".join(best))
    return "\n".join(lines)


def describe(variant: Variant) -> str:
    """``gamma 0.1, b 0.2``."""
    return f"gamma {variant.gamma_text}, b {variant.threshold:g}"


def write_json(runs: Sequence[Run], config: DemoConfig, command: str, path: Path) -> None:
    """Write every figure of every seed, and the reliability of each run, all seeds together."""
    document: dict[str, Any] = {
        "command": command,
        "config": {**asdict(config), "output": str(config.output)},
        "versions": {
            "gce": gce.__version__,
            "numpy": np.__version__,
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
        },
        "runs": [as_json(run, config.bins) for run in runs],
    }
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def as_json(run: Run, bins: int) -> dict[str, Any]:
    """One run."""
    curve = pooled(run, bins)
    return {
        "noise": run.noise,
        "gamma": run.variant.gamma_text,
        "threshold": run.variant.threshold,
        "metrics": {key: without_nan(values) for key, values in means(run, bins).items()},
        "reliability": {
            key: [round(float(value), 6) for value in getattr(curve, key)]
            for key in ("confidence", "accuracy", "share")
        },
    }


def without_nan(values: Values) -> list[float | None]:
    """Numbers as JSON has them: six digits, null for NaN."""
    return [None if value != value else float(f"{value:.6g}") for value in values]


def pooled(run: Run, bins: int) -> Any:
    """Reliability of a run, all seeds together."""
    confidence = np.concatenate([outcome.confidence for outcome in run.outcomes])
    correct = np.concatenate([outcome.correct for outcome in run.outcomes])
    return reliability(confidence, correct, bins)
