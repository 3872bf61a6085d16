"""Tables as markdown, CSV and LaTeX: for each line the paper's numbers, the measured ones with their interval, and the
difference, in the paper's columns."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from script.tables.rows import TESTED, Column, Line, Row, Table, World
from utils.pck import Record
from utils.statistics import Interval, Measure, Spread, bootstrap, compute_pck, spread

PAPER = json.loads(Path(__file__).with_name("paper.json").read_text(encoding="utf-8"))
NOT_RUN = "not run"
MISSING = "–"
Find = Callable[[Row], list[list[Record]]]  # the results of a row, one list of records per seed that was run


@dataclass(frozen=True)
class Cell:
    """A number of the paper and the measured one, in percent; None where there is none."""

    paper: float | None = None
    measured: float | None = None
    interval: Interval | None = None  # over pairs (one seed) or over seeds
    seeds: int = 0

    @property
    def difference(self) -> float | None:
        return None if self.paper is None or self.measured is None else self.measured - self.paper


@dataclass(frozen=True)
class Block:
    """A line of a table with its cells; `reasons`: why rows of it were not run."""

    line: Line
    cells: tuple[Cell | None, ...]  # None: the table has no such row
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Filled:
    """A table with its numbers."""

    table: Table
    columns: tuple[Column, ...]
    blocks: tuple[Block, ...]
    comparable: bool  # whether a difference from the paper says anything
    measure: Measure

    @property
    def measured_lines(self) -> int:
        return sum(any(cell and cell.measured is not None for cell in block.cells) for block in self.blocks)

    @property
    def groups(self) -> list[tuple[str, int]]:
        """(title of a test set, number of its columns)."""
        counts = ((name, sum(column.test_on == name for column in self.columns)) for name in TESTED)
        return [(self.title(name), count) for name, count in counts if count]

    def title(self, test_on: str) -> str:
        """A test set's title: the mini world has the same layouts, but is not the real one."""
        return TESTED[test_on] if self.comparable else f"mini {TESTED[test_on]}"


def fill(table: Table, world: World, find: Find, reasons: dict[str, str], measure: Measure) -> Filled:
    """Compute every number of the table from per-pair records. reasons: row key -> why it was not run."""
    columns = _expand(table, world, find)
    blocks = []
    for line in table.lines:
        rows = {name: find(row) for name, row in line.rows.items()}
        cells = tuple(_fill_cell(line, rows, column, measure) for column in columns)
        why = {key: reasons.get(key, "") for key in (row.key for name, row in line.rows.items() if not rows[name])}
        blocks.append(Block(line, cells, tuple(dict.fromkeys(reason for reason in why.values() if reason))))
    return Filled(table, columns, tuple(blocks), world.comparable, measure)


def _expand(table: Table, world: World, find: Find) -> tuple[Column, ...]:
    """The table's columns, with one for each category before "all" if it is by category."""
    if not table.by_category:
        return table.columns
    (overall,) = table.columns
    found = [record["category"] for row in table.rows for records in find(row) for record in records]
    names = next(iter(PAPER["categories"].values())) if world.comparable else sorted(set(found))
    return (*(replace(overall, title=name, category=name) for name in names), overall)


def _fill_cell(line: Line, rows: dict[str, list[list[Record]]], column: Column, measure: Measure) -> Cell | None:
    if column.test_on not in line.rows:
        return None
    key = line.rows[column.test_on].key
    paper = PAPER["categories"] if column.category != "all" else PAPER["pck"]
    cell = Cell(paper.get(key, {}).get(column.category if column.category != "all" else f"{column.alpha:g}"))
    measure = replace(measure, alpha=column.alpha)
    groups = [_select(records, column.category) for records in rows[column.test_on]]
    values = [value for group in groups if (value := compute_pck(group, measure)) is not None]
    if not values:
        return cell
    over_seeds = _percent(spread(values))
    interval = over_seeds.interval or _scale(bootstrap(groups[0], measure))
    return replace(cell, measured=over_seeds.mean, interval=interval, seeds=len(values))


def _select(records: Sequence[Record], category: str) -> list[Record]:
    return [record for record in records if category in ("all", record["category"])]


def _scale(interval: Interval) -> Interval:
    return Interval(100 * interval.value, 100 * interval.low, 100 * interval.high)


def _percent(found: Spread) -> Spread:
    interval = found.interval and _scale(found.interval)
    return replace(found, mean=100 * found.mean, std=found.std and 100 * found.std, interval=interval)


def describe_measure(filled: Filled) -> str:
    """What the numbers are."""
    measure = filled.measure
    several = {cell.seeds > 1 for block in filled.blocks for cell in block.cells if cell and cell.seeds}
    interval = "over seeds (Student's t)" if several == {True} else "over pairs (bootstrap)"
    if len(several) > 1:
        interval += ", of rows with several seeds over these (Student's t)"
    average = ", macro over categories" if measure.average == "category" else ""
    return f"PCK per {measure.by}{average}, {measure.localiser}, percent, with 95 % interval {interval}"


def describe_source(filled: Filled) -> str:
    paper = f"paper: {PAPER['source']}"
    if filled.comparable:
        return paper
    return f"{paper}; the mini world is another world: no difference is given, and its numbers say nothing about them"


def list_lines(block: Block, filled: Filled, interval: str = "[{:.1f}, {:.1f}]") -> Iterator[tuple[str, list[str]]]:
    """(kind, text of each cell): the paper's, the measured and their difference; only what there is."""
    in_paper = any(cell and cell.paper is not None for cell in block.cells)
    if in_paper:
        yield (
            "paper" if filled.comparable else "paper (real)",
            [_number(cell.paper if cell else None) for cell in block.cells],
        )
    yield "measured", [_measured(cell, interval) for cell in block.cells]
    if in_paper and filled.comparable:
        yield "difference", [_number(cell.difference if cell else None, "{:+.1f}") for cell in block.cells]


def _number(value: float | None, form: str = "{:.1f}") -> str:
    return MISSING if value is None else form.format(round(value, 1) + 0.0)  # no -0.0


def _measured(cell: Cell | None, interval: str) -> str:
    if cell is None:
        return MISSING
    if cell.measured is None:
        return NOT_RUN
    return f"{cell.measured:.1f} {interval.format(cell.interval.low, cell.interval.high)}"


def head_titles(filled: Filled) -> list[str]:
    return [f"{filled.title(column.test_on)} {column.title}" for column in filled.columns]


def list_reasons(filled: Filled) -> list[str]:
    return [f"{block.line.label}: {reason}" for block in filled.blocks for reason in block.reasons]


def to_markdown(filled: Filled) -> str:
    header = ["", "", *head_titles(filled)]
    rows = [header, ["---"] * len(header)]
    for block in filled.blocks:
        for number, (kind, cells) in enumerate(list_lines(block, filled)):
            rows.append([block.line.label if number == 0 else "", kind, *cells])
    lines = [
        f"### {filled.table.title}",
        "",
        describe_measure(filled) + ".",
        "",
        *("| " + " | ".join(r) + " |" for r in rows),
    ]
    notes = [filled.table.note, f"{describe_source(filled)}."]
    lines += ["", *(note for note in notes if note)]
    if reasons := list_reasons(filled):
        lines += ["", "Not run:", "", *(f"- {reason}" for reason in reasons)]
    return "\n".join(lines) + "\n"


CSV_COLUMNS = (
    "line",
    "row",
    "test_set",
    "category",
    "alpha",
    "paper",
    "measured",
    "low",
    "high",
    "difference",
    "seeds",
)


def to_csv(filled: Filled) -> str:
    """One row per number; empty fields where there is none, "not run" in `measured`."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for block in filled.blocks:
        for column, cell in zip(filled.columns, block.cells, strict=True):
            if cell is None:
                continue
            bounds = (cell.interval.low, cell.interval.high) if cell.interval else (None, None)
            numbers = [cell.paper, cell.measured, *bounds, cell.difference if filled.comparable else None]
            texts = ["" if value is None else f"{value:.4f}" for value in numbers]
            texts[1] = texts[1] or NOT_RUN
            key = block.line.rows[column.test_on].key
            where = [block.line.label, key, column.test_on, column.category, f"{column.alpha:g}"]
            writer.writerow([*where, *texts, cell.seeds])
    return file.getvalue()


LATEX = str.maketrans({"%": r"\%", "&": r"\&", "_": r"\_", "#": r"\#", "–": "--", '"': "''"})


def to_latex(filled: Filled) -> str:
    """A table* for booktabs; intervals in small type."""
    first = [f"\\multicolumn{{{count}}}{{c}}{{{title}}}" for title, count in filled.groups]
    rules, start = [], 3
    for _, count in filled.groups:
        rules.append(f"\\cmidrule(lr){{{start}-{start + count - 1}}}")
        start += count
    lines = [
        r"\begin{table*}\centering\small",
        f"\\caption{{{filled.table.title.translate(LATEX)}. {describe_measure(filled).translate(LATEX)}.}}",
        f"\\begin{{tabular}}{{ll*{{{len(filled.columns)}}}{{c}}}}\\toprule",
        " & & " + " & ".join(first) + r" \\ " + " ".join(rules),
        " & & " + " & ".join(column.title.translate(LATEX) for column in filled.columns) + r" \\ \midrule",
    ]
    for block in filled.blocks:
        for number, (kind, cells) in enumerate(list_lines(block, filled, r"{{\scriptsize[{:.1f}, {:.1f}]}}")):
            label = block.line.label.translate(LATEX) if number == 0 else ""
            texts = [cell.replace(MISSING, "--") for cell in cells]
            lines.append(f"{label} & {kind} & " + " & ".join(texts) + r" \\")
        lines.append(r"\addlinespace")
    lines[-1] = r"\bottomrule\end{tabular}"
    return "\n".join([*lines, r"\end{table*}"]) + "\n"


FORMATS = {"md": to_markdown, "csv": to_csv, "tex": to_latex}
