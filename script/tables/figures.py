"""Figures of the report as SVG: intervals beside the paper's numbers, PCK over alpha, difficulty, timestep."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from script.tables.layout import Cell, Filled
from utils.draw import new_figure
from utils.pck import Record
from utils.plot import COLOURS, plot_curves, style
from utils.statistics import LEVELS, Interval, Measure, bootstrap, break_down, compute_curve, select_level

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 7.2  # inches
FLAG_TITLES = {
    "viewpoint_variation": "viewpoint",
    "scale_variation": "scale",
    "truncation": "truncation",
    "occlusion": "occlusion",
}
PAPER_STYLE = {"color": COLOURS[1], "markerfacecolor": "none", "markeredgewidth": 1.6}
Results = Mapping[str, Sequence[Record]]  # name of a method -> its records


def draw_intervals(filled: Filled, column: int) -> bytes | None:
    """One line per method of a table's column: the measured number with its interval, the paper's as a diamond."""
    blocks = [block for block in filled.blocks if _is_shown(block.cells[column], filled.comparable)]
    if sum(block.cells[column].measured is not None for block in blocks) < 2:
        return None
    figure = new_figure(WIDTH, 0.34 * len(blocks) + 0.9, layout="constrained")
    axes = figure.add_subplot()
    for place, block in enumerate(blocks):
        cell = block.cells[column]
        if cell.measured is not None:
            low, high = cell.interval.low, cell.interval.high
            axes.plot([low, high], [place, place], color=COLOURS[0], linewidth=2.2, solid_capstyle="round")
            axes.plot(cell.measured, place, "o", color=COLOURS[0], markersize=6)
        if cell.paper is not None and filled.comparable:
            axes.plot(
                cell.paper, place, "D", color=COLOURS[1], markersize=6, markerfacecolor="none", markeredgewidth=1.6
            )
    axes.set_yticks(range(len(blocks)), [block.line.label for block in blocks])
    axes.set_ylim(len(blocks) - 0.5, -0.5)
    measured = axes.plot([], [], "o-", color=COLOURS[0], label="measured, 95 % interval")
    paper = axes.plot([], [], "D", label="paper", **PAPER_STYLE) if filled.comparable else []
    figure.legend(handles=[*measured, *paper], loc="outside upper right", ncols=2, fontsize=8, frameon=False)
    axes.set_xlabel(f"PCK{filled.columns[column].title} (%)")
    axes.grid(axis="x", alpha=0.3)
    return _to_svg(figure)


def _is_shown(cell: Cell | None, comparable: bool) -> bool:
    return cell is not None and (cell.measured is not None or (comparable and cell.paper is not None))


def draw_pck_curves(results: Results, measure: Measure) -> bytes | None:
    """PCK over alpha in [0.01, 0.2]; methods without stored errors are left out."""
    curves = {}
    for name, records in results.items():
        if all("errors" in record for record in records):
            curves[name] = {alpha: 100 * value for alpha, value in compute_curve(records, measure).items()}
    return draw_lines(curves, "alpha (share of the object's size)", "PCK (%)") if curves else None


def draw_lines(curves: Mapping[str, Mapping[float, float]], x_label: str, y_label: str) -> bytes:
    """`utils.plot.plot_curves`, from zero."""
    return _to_svg(plot_curves(curves, x_label, y_label, from_zero=True))


def draw_difficulty(results: Results, measure: Measure) -> bytes | None:
    """PCK by SPair's flags, a panel each, with 95 % intervals."""
    tables = {name: break_down(records, measure) for name, records in results.items()}
    flags = [flag for flag in FLAG_TITLES if any(flag in table for table in tables.values())]
    if not flags:
        return None
    figure = new_figure(WIDTH, 3.0, layout="constrained")
    panels = figure.subplots(1, len(flags), sharey=True, squeeze=False)[0]
    step = 0.7 / len(results)
    for axes, flag in zip(panels, flags, strict=True):
        levels = [level for level in LEVELS[flag] if any(level in table.get(flag, {}) for table in tables.values())]
        for number, records in enumerate(results.values()):
            shift = (number - (len(results) - 1) / 2) * step
            for place, level in enumerate(levels):
                if found := bootstrap(select_level(records, flag, level), measure, draws=500):
                    _plot_interval(axes, place + shift, found, number)
        axes.set_xticks(range(len(levels)), levels, fontsize=7)
        axes.set_xlim(-0.6, len(levels) - 0.4)
        axes.set_title(FLAG_TITLES[flag], fontsize=9)
        axes.grid(axis="y", alpha=0.3)
    panels[0].set_ylabel(f"PCK@{measure.alpha:g} (%)")
    handles = [panels[0].plot([], [], label=name, **style(number))[0] for number, name in enumerate(results)]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    return _to_svg(figure)


def _plot_interval(axes, place: float, found: Interval, number: int) -> None:
    axes.plot([place, place], [100 * found.low, 100 * found.high], color=style(number)["color"], linewidth=1.4)
    axes.plot(place, 100 * found.value, linestyle="none", **style(number))


def _to_svg(figure: Figure) -> bytes:
    from matplotlib import rc_context

    file = io.BytesIO()
    with rc_context({"svg.hashsalt": "sd4match"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
