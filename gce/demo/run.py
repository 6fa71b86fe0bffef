"""The whole demo: train every variant on every seed, then say what came out."""

from __future__ import annotations

import time
from collections.abc import Callable

import onnxruntime
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from gce.demo import pictures, report
from gce.demo.config import DemoConfig
from gce.demo.problem import Problem
from gce.demo.report import Run
from gce.demo.train import evaluate, train, variants

__all__ = ["run", "run_all"]


def problem_of(task: str) -> Callable[[DemoConfig, float, int], Problem]:
    """How to make a problem of the task: from the settings, the share of noise and the seed."""
    if task == "digits":
        from gce.demo.digits import digits

        return digits
    from gce.demo.text import text

    return text


def session_options(task: str) -> onnxruntime.SessionOptions:
    """One thread for the digits, whose products are too small to share."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if task == "digits":
        options.intra_op_num_threads = 1
    return options


def run_all(config: DemoConfig, console: Console) -> list[Run]:
    """Train and evaluate every variant at every share of noise on every seed, showing progress.

    Parameters
    ----------
    config : DemoConfig
        What to run.
    console : rich.console.Console
        Where to show progress.

    Returns
    -------
    list of Run
    """
    make, runs = problem_of(config.task), []
    columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
    compared = variants(config)
    with Progress(*columns, console=console, transient=True) as progress:
        total = len(config.noise) * len(compared) * config.seeds * config.epochs
        task = progress.add_task("", total=total)
        for noise in config.noise:
            problems = [make(config, noise, seed) for seed in range(config.seeds)]
            for variant in compared:
                started = time.perf_counter()
                outcomes = []
                name = f"{noise:.0%} wrong, {report.describe(variant)}"
                for seed, problem in enumerate(problems):
                    progress.update(task, description=f"{name}, seed {seed + 1} of {config.seeds}")
                    trainer = train(
                        problem, variant, config, seed, lambda: progress.advance(task),
                        session_options(config.task),
                    )  # fmt: skip
                    outcomes.append(evaluate(trainer, problem))
                runs.append(Run(noise, variant, outcomes))
                # A line that stays: where there is no terminal, it is the only progress to see.
                seconds = time.perf_counter() - started
                console.print(f"trained {name} in {seconds:.1f} s", highlight=False)
    return runs


def run(config: DemoConfig, console: Console | None = None, command: str = "") -> list[Run]:
    """Run the demo: print the table, and write figures and pictures to ``config.output``.

    Parameters
    ----------
    config : DemoConfig
        What to run.
    console : rich.console.Console, optional
        Where to print; standard output by default.
    command : str
        The command line, for the JSON.

    Returns
    -------
    list of Run
        What the table and the pictures were made from.
    """
    console = console or Console(highlight=False)
    config.output.mkdir(parents=True, exist_ok=True)
    data = problem_of(config.task)(config, max(config.noise), 0)
    console.print(
        f"{config.task}: {len(data.train.inputs)} training examples, of whose targets up to "
        f"{data.wrong.mean():.0%} are wrong; {len(data.test.inputs)} clean test examples.\n"
        f"Seeds: {config.seeds}; epochs: {config.epochs}; gamma 0 to 1 rises linearly from the "
        "first step to the last."
    )
    runs = run_all(config, console)
    # Perplexity is exp of the other; each has its field.
    without = "perplexity" if config.task == "digits" else "negative log-likelihood"
    console.print(report.results_table(runs, config.bins, without))
    if config.seeds > 1:
        console.print(f"Mean ± standard deviation over {config.seeds} seeds.")
    console.print(report.summary(runs, config.bins))
    paths = [config.output / f"{config.task}{end}" for end in (".json", ".png", "-reliability.png")]
    report.write_json(runs, config, command, paths[0])
    pictures.save_metrics(runs, config.bins, paths[1])
    pictures.save_diagrams(runs, config.bins, paths[2])
    for path in paths:
        console.print(f"written: {path}", soft_wrap=True, markup=False)
    return runs
