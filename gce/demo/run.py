"""The whole demo: train every variant on every seed, then say what came out."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from threadpoolctl import threadpool_limits

from gce.demo import report
from gce.demo.config import DemoConfig
from gce.demo.data import NoisyDigits, noisy_digits
from gce.demo.train import Outcome, evaluate, train, variants

__all__ = ["run", "run_all"]


def run_all(
    config: DemoConfig, datasets: Sequence[NoisyDigits], console: Console
) -> dict[str, list[Outcome]]:
    """Train and evaluate every variant on every seed, showing progress.

    Parameters
    ----------
    config : DemoConfig
        What to run.
    datasets : sequence of NoisyDigits
        One for each seed.
    console : rich.console.Console
        Where to show progress.

    Returns
    -------
    dict of str to list of Outcome
        The name of a variant, and its outcome for each seed.
    """
    outcomes: dict[str, list[Outcome]] = {}
    columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
    # One thread: these products are too small to share, and BLAS threads that wait for a busy core
    # make them several times slower.
    with (
        threadpool_limits(limits=1, user_api="blas"),
        Progress(*columns, console=console, transient=True) as progress,
    ):
        compared = variants(config)
        task = progress.add_task("", total=len(compared) * config.seeds * config.epochs)
        for variant in compared:
            started = time.perf_counter()
            outcomes[variant.name] = []
            for seed, data in enumerate(datasets):
                label = f"gamma {variant.name}, seed {seed + 1} of {config.seeds}"
                progress.update(task, description=label)
                model = train(data, variant, config, seed, lambda: progress.advance(task))
                outcomes[variant.name].append(evaluate(model, data))
            # A line that stays: where there is no terminal, it is the only progress to see.
            seconds = time.perf_counter() - started
            console.print(f"trained gamma {variant.name} in {seconds:.1f} s", highlight=False)
    return outcomes


def run(config: DemoConfig, console: Console | None = None) -> dict[str, list[Outcome]]:
    """Run the demo: print the table, and write the diagrams to ``config.output``.

    Parameters
    ----------
    config : DemoConfig
        What to run.
    console : rich.console.Console, optional
        Where to print; standard output by default.

    Returns
    -------
    dict of str to list of Outcome
        What the table and the diagrams were made from.
    """
    console = console or Console(highlight=False)
    datasets = [noisy_digits(config, seed) for seed in range(config.seeds)]
    data = datasets[0]
    console.print(
        f"Digits of scikit-learn: {data.train_targets.size} training examples, of which "
        f"{data.flipped.sum()} with a wrong label; {data.test_targets.size} clean test examples.\n"
        f"Seeds: {config.seeds}; epochs: {config.epochs}; gamma 0 to 1 rises linearly from the "
        "first step to the last."
    )
    outcomes = run_all(config, datasets, console)
    console.print(report.results_table(outcomes, config.bins))
    if config.seeds > 1:
        console.print(f"Mean ± standard deviation over {config.seeds} seeds.")
    console.print(report.summary(outcomes, config.bins))
    report.save_diagrams(outcomes, config.bins, config.output)
    console.print(f"Reliability diagrams: {config.output}", soft_wrap=True)
    return outcomes
