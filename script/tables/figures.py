"""Figures of the report as SVG: intervals beside the paper's numbers, PCK over alpha, difficulty, timestep."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd

from script.tables.layout import Filled
from utils.draw import new_figure
from utils.plot import COLOURS, plot_curves, style
from utils.statistics import LEVELS, Measure, break_down, compute_curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 7.2  # inches
PAPER_STYLE = {"color": COLOURS[1], "markerfacecolor": "none", "markeredgewidth": 1.6, "markersize": 6}


def draw_intervals(filled: Filled) -> bytes | None:
    """PCK@0.1 on SPair-71k of each line: the measured number with its interval, the paper's as a diamond."""
    cells = filled.cells[(filled.cells[["group", "category"]] == ["spair", "all"]).all(axis=1)]
    cells = cells[
        (cells["alpha"] == 0.1) & (cells["measured"].notna() | (cells["paper"].notna() & filled.world.comparable))
    ]
    if filled.table.by_category or cells["measured"].notna().sum() < 2:
        return None
    figure = new_figure(WIDTH, 0.34 * len(cells) + 0.9, layout="constrained")
    axes = figure.add_subplot()
    for place, cell in enumerate(cells.itertuples()):
        if pd.notna(cell.measured):
            axes.plot([cell.low, cell.high], [place, place], color=COLOURS[0], linewidth=2.2, solid_capstyle="round")
            axes.plot(cell.measured, place, "o", color=COLOURS[0], markersize=6)
        if pd.notna(cell.paper) and filled.world.comparable:
            axes.plot(cell.paper, place, "D", **PAPER_STYLE)
    axes.set_yticks(range(len(cells)), cells["line"])
    axes.set_ylim(len(cells) - 0.5, -0.5)
    over = " and ".join(f"over {name}" for name in cells["over"].dropna().unique())
    handles = axes.plot([], [], "o-", color=COLOURS[0], label=f"measured, 95 % interval {over}")
    handles += axes.plot([], [], "D", label="paper", **PAPER_STYLE) if filled.world.comparable else []
    figure.legend(handles=handles, loc="outside upper right", ncols=2, fontsize=8, frameon=False)
    axes.set_xlabel("PCK@0.1 (%)")
    axes.grid(axis="x", alpha=0.3)
    return to_svg(figure)


def draw_pck_curves(results: Mapping[str, pd.DataFrame], measure: Measure) -> bytes:
    """PCK over alpha in [0.01, 0.2]; results: name of a method -> its scores."""
    curves = {
        name: {alpha: 100 * value for alpha, value in compute_curve(scores, measure).items()}
        for name, scores in results.items()
    }
    return to_svg(plot_curves(curves, "alpha (share of the object's size)", "PCK (%)", from_zero=True))


def draw_timesteps(filled: Filled) -> bytes | None:
    """The table of the timestep of the test as curves, one for each prompt."""
    cells = filled.cells[filled.cells["measured"].notna()]
    curves = {
        group: {
            float(line.removeprefix("t = ")): value for line, value in zip(part["line"], part["measured"], strict=True)
        }
        for group, part in cells.groupby("group", sort=False)
    }
    return to_svg(plot_curves(curves, "timestep", "PCK@0.1 (%)", from_zero=True)) if curves else None


def draw_difficulty(results: Mapping[str, pd.DataFrame], measure: Measure) -> bytes | None:
    """PCK by SPair's flags, a panel each, with 95 % intervals over pairs."""
    tables = {name: 100 * break_down(scores, measure, draws=500) for name, scores in results.items()}
    flags = [flag for flag in LEVELS if any(flag in table.index for table in tables.values())]
    if not flags:
        return None
    figure = new_figure(WIDTH, 3.0, layout="constrained")
    step = 0.7 / len(tables)
    for axes, flag in zip(figure.subplots(1, len(flags), sharey=True, squeeze=False)[0], flags, strict=True):
        levels = [level for level in LEVELS[flag] if any((flag, level) in table.index for table in tables.values())]
        for number, table in enumerate(tables.values()):
            for place, level in enumerate(levels):
                if (flag, level) in table.index:
                    found, x = table.loc[(flag, level)], place + (number - (len(tables) - 1) / 2) * step
                    axes.plot([x, x], [found["low"], found["high"]], color=style(number)["color"], linewidth=1.4)
                    axes.plot(x, found["value"], linestyle="none", **style(number))
        axes.set_xticks(range(len(levels)), levels, fontsize=7)
        axes.set_xlim(-0.6, len(levels) - 0.4)
        axes.set_title(flag.removesuffix("_variation"), fontsize=9)
        axes.grid(axis="y", alpha=0.3)
    first = figure.axes[0]
    first.set_ylabel(f"PCK@{measure.alpha:g} (%)")
    handles = [first.plot([], [], label=name, **style(number))[0] for number, name in enumerate(tables)]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    return to_svg(figure)


def to_svg(figure: Figure) -> bytes:
    """The same bytes every time."""
    from matplotlib import rc_context

    file = io.BytesIO()
    with rc_context({"svg.hashsalt": "sd4match"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
