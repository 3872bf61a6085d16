"""Figures of the report as SVG: intervals beside the paper's numbers, PCK over alpha, difficulty, timestep."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from script.tables.layout import Cell, Filled
from utils.pck import Record
from utils.plot import COLOURS, MARKERS
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
    figure = new_figure(0.34 * len(blocks) + 0.9)
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
    """A line per entry, x -> y, told apart by colour and marker."""
    figure = new_figure(3.6)
    axes = figure.add_subplot()
    for number, (name, curve) in enumerate(curves.items()):
        every = max(1, len(curve) // 10)
        axes.plot(list(curve), list(curve.values()), label=name, linewidth=1.6, markevery=every, **_style(number))
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return _to_svg(figure)


def draw_difficulty(results: Results, measure: Measure) -> bytes | None:
    """PCK by SPair's flags, a panel each, with 95 % intervals."""
    tables = {name: break_down(records, measure) for name, records in results.items()}
    flags = [flag for flag in FLAG_TITLES if any(flag in table for table in tables.values())]
    if not flags:
        return None
    figure = new_figure(3.0)
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
    handles = [panels[0].plot([], [], label=name, **_style(number))[0] for number, name in enumerate(results)]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    return _to_svg(figure)


def _plot_interval(axes, place: float, found: Interval, number: int) -> None:
    axes.plot([place, place], [100 * found.low, 100 * found.high], color=_style(number)["color"], linewidth=1.4)
    axes.plot(place, 100 * found.value, linestyle="none", **_style(number))


def _style(number: int) -> dict[str, object]:
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)], "markersize": 5}


def new_figure(height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), facecolor="white", layout="constrained")


def _to_svg(figure: Figure) -> bytes:
    from matplotlib import rc_context

    file = io.BytesIO()
    with rc_context({"svg.hashsalt": "sd4match"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
