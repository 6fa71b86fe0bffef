"""The picture: how far each contender is from the limit of the machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gce.bench.cases import BACKWARD, FORWARD, IN_PLACE
from gce.bench.report import LIMIT, compared
from gce.bench.runner import Measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["save_picture"]

PANELS = {
    FORWARD: "forward: the limit is to read the logits once",
    BACKWARD: "forward and backward: to copy them past the caches",
    IN_PLACE: "the same in place: to scale them",
}
MARKERS = "sDv^<>PX*ph"


def save_picture(path: Path, results: Sequence[Measured], title: str) -> None:
    """Write a panel for each kind of work: cases downwards, the share of the limit's speed across.

    Parameters
    ----------
    path : Path
        Of the PNG.
    results : sequence of Measured
        What was measured; cases without a limit are not drawn.
    title : str
        What ran where.
    """
    from matplotlib.figure import Figure

    with_limit = [measured for measured in results if LIMIT in measured.seconds]
    panels = {
        work: [measured for measured in with_limit if measured.case.work == work] for work in PANELS
    }
    panels = {work: rows for work, rows in panels.items() if rows}
    heights = [len(rows) + 1.0 for rows in panels.values()]
    figure = Figure(figsize=(9, 0.27 * sum(heights) + 1.9), layout="constrained")
    grid = figure.subplots(
        len(panels), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    for axes, (work, rows) in zip(grid.flat, panels.items(), strict=True):
        draw(axes, rows, compared(with_limit))
        axes.set_title(PANELS[work], fontsize=9, loc="left")
    grid.flat[-1].set_xlabel("share of the limit's speed: time of the limit / time (log scale)")
    legend = {
        label: handle
        for axes in grid.flat
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        list(legend.values()), list(legend), loc="outside lower center", ncols=5, fontsize=8,
        frameon=False,
    )  # fmt: skip
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, format="png", dpi=110)


def draw(axes: Axes, rows: Sequence[Measured], peers: Sequence[str]) -> None:
    """One row for each case, one marker for each contender; gce's is filled and larger."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for place, peer in enumerate(peers):
        places = [i for i, measured in enumerate(rows) if peer in measured.seconds]
        shares = [rows[i].ratio(LIMIT, to=peer)[0] for i in places]
        if places:
            axes.plot(
                shares, places, MARKERS[place % len(MARKERS)], color=f"C{place + 1}",
                markersize=5, fillstyle="none", label=peer,
            )  # fmt: skip
    ours = [measured.ratio(LIMIT, to="gce") for measured in rows]
    for i, (middle, low, high) in enumerate(ours):
        axes.plot([low, high], [i, i], color="black", linewidth=1)
        axes.plot([middle], [i], "o", color="black", markersize=6, label="gce")
    axes.axvline(1, color="tab:red", linewidth=1.5, label="limit")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(range(len(rows)), [case_label(measured) for measured in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(alpha=0.3, axis="x", which="both")


def case_label(measured: Measured) -> str:
    """The name, without the work, which the panel says."""
    name = measured.case.name
    for work in ("fwd+bwd", "fwd", "in place"):
        name = name.replace(f" {work}", "")
    return name
