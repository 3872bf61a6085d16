"""Tables with their numbers: for each line the paper's, the measured ones with their interval, and the difference."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from script.tables.main import TESTED
from script.tables.results import group_reasons
from script.tables.rows import Row, Table, World
from utils.pck import find_inequality
from utils.statistics import Measure, bootstrap, compute_pck, spread

PAPER = json.loads(Path(__file__).with_name("paper.json").read_text(encoding="utf-8"))
TITLES = {**TESTED, "ap10k": "AP-10K", "ap10k-species": "AP-10K cross-species", "ap10k-family": "AP-10K cross-family"}
NOT_RUN, MISSING = "not run", "–"
SMOKE = "SMOKE TEST, NOT A RESULT"
Find = Callable[[Row], list[pd.DataFrame]]  # the scores of a row, one table for each seed that was run
WHERE = ["line", "group", "category", "alpha"]  # what names a number of a table


@dataclass(frozen=True)
class Filled:
    """A table with its numbers.

    cells: a row for each number, in percent: `WHERE` and row, paper, measured, low, high, over ("pairs" or "seeds":
    what the interval is over), seeds, pairs, difference; NaN where there is none. reasons: row -> why it is not run.
    """

    table: Table
    world: World
    measure: Measure
    cells: pd.DataFrame
    reasons: dict[str, str]
    rules: str = ""  # inequalities and frames of the rows that were run

    @property
    def name(self) -> str:
        """Of its files."""
        return f"smoke_{self.table.name}" if self.world.smoke else self.table.name

    @property
    def title(self) -> str:
        return f"{SMOKE}: {self.table.title}" if self.world.smoke else self.table.title

    @property
    def notes(self) -> list[str]:
        """What the numbers are."""
        measure, world = self.measure, self.world
        source = PAPER["sources"].get(self.table.paper, PAPER["source"])
        average = ", macro over categories" if measure.average == "category" else ""
        other = "; the mini world is another world: no difference is given, and its numbers say nothing about them"
        return [
            f"{measure.title} ({self.rules or 'no row has been run'}) per {measure.by}{average}, {measure.localiser}, "
            "percent; 95 % intervals over pairs are bootstraps, those over seeds are Student's t.",
            *([self.table.note] if self.table.note else []),
            f"{SMOKE}: a few steps on the category {world.category} alone."
            if world.smoke
            else f"Paper: {source}{'' if world.comparable else other}.",
            *(f"Not run: {', '.join(rows)}: {reason}." for reason, rows in group_reasons(self.reasons).items()),
        ]

    def group_title(self, group: str) -> str:
        """The mini world has the same layouts, but is not the real one."""
        title = TITLES.get(group, group)
        title = title if self.world.comparable else f"mini {title}"
        return f"{title}, {self.world.category} only" if self.world.smoke else title

    def as_text(self) -> pd.DataFrame:
        """Index (line, kind of number), columns (test set, alpha or category), cells as they are printed."""
        texts: dict[tuple, dict[tuple, str]] = {}
        for (line, group, category, alpha), cell in self.cells.set_index(WHERE).iterrows():
            column = self.group_title(group), category if self.table.by_category else f"@{alpha:g}"
            for kind, text in _list_kinds(cell, self.world.comparable):
                texts.setdefault((line, kind), {})[column] = text
        columns = dict.fromkeys(column for row in texts.values() for column in row)
        order = {line: number for number, line in enumerate(self.table.lines)}
        index = sorted(texts, key=lambda entry: (order[entry[0]], KINDS.index(entry[1])))
        rows = [[texts[entry].get(column, MISSING) for column in columns] for entry in index]
        return pd.DataFrame(rows, pd.MultiIndex.from_tuples(index), pd.MultiIndex.from_tuples(columns))


KINDS = ("paper", "paper (real)", "measured", "95 % over pairs", "95 % over seeds", "difference")


def _list_kinds(cell: pd.Series, comparable: bool) -> Iterator[tuple[str, str]]:
    """(kind, text) of a number: only what there is."""
    if pd.notna(cell["paper"]):
        yield "paper" if comparable else "paper (real)", f"{cell['paper']:.1f}"
    yield "measured", NOT_RUN if pd.isna(cell["measured"]) else f"{cell['measured']:.1f}"
    if pd.notna(cell["low"]):
        yield f"95 % over {cell['over']}", f"[{cell['low']:.1f}, {cell['high']:.1f}]"
    if pd.notna(cell["difference"]):
        yield "difference", f"{round(cell['difference'], 1) + 0.0:+.1f}"  # no -0.0


def fill(table: Table, world: World, find: Find, reasons: dict[str, str], measure: Measure) -> Filled:
    """Compute every number of the table from per-pair scores. reasons: row key -> why it was not run."""
    cells, comparable = [], not world.smoke and measure.title == "PCK"
    for line, rows in table.lines.items():
        for group, row in rows.items():
            tables = find(row)
            for category in _list_categories(table, world, find):
                for alpha in table.alphas[group]:
                    where = {"line": line, "group": group, "category": category, "alpha": alpha, "row": row.key}
                    where["paper"] = _find_paper(table.paper, row.key, category, alpha) if comparable else None
                    cells.append(where | _fill_cell(tables, category, replace(measure, alpha=alpha)))
    numbers = dict.fromkeys(("paper", "measured", "low", "high"), float) | {"seeds": "Int64", "pairs": "Int64"}
    cells = pd.DataFrame(cells).astype(numbers)
    cells["difference"] = cells["measured"] - cells["paper"] if world.comparable else float("nan")
    why = {row.key: reasons[row.key] for row in table.rows if row.key in reasons}
    found = [scores for row in table.rows for scores in find(row)]
    rules = {
        f"error {find_inequality(scores)} alpha x threshold, {scores['protocol'].iloc[0]} frame" for scores in found
    }
    return Filled(table, world, measure, cells, why, "; ".join(sorted(rules)))


def _list_categories(table: Table, world: World, find: Find) -> list[str]:
    """ "all", and the categories before it if the table is by category; the only one in its place."""
    if world.smoke or not table.by_category:
        return [world.category if table.by_category else "all"]
    found = {name for row in table.rows for scores in find(row) for name in scores["category"]}
    return [*(next(iter(PAPER["categories"].values())) if world.comparable else sorted(found)), "all"]


def _find_paper(part: str, key: str, category: str, alpha: float) -> float | None:
    if category == "all":
        return PAPER[part].get(key, {}).get(f"{alpha:g}")
    return PAPER["categories"].get(key, {}).get(category)


def _fill_cell(tables: list[pd.DataFrame], category: str, measure: Measure) -> dict:
    """The measured number, in percent, with the interval over seeds if there are several."""
    tables = [scores if category == "all" else scores[scores["category"] == category] for scores in tables]
    values = [100 * value for scores in tables if (value := compute_pck(scores, measure)) is not None]
    empty = dict.fromkeys(("measured", "low", "high", "over", "seeds", "pairs"))
    if not values:
        return empty
    found = spread(values)
    interval = found.interval or bootstrap(tables[0], measure)
    scale, over = (1, "seeds") if found.interval else (100, "pairs")
    bounds = {"low": scale * interval.low, "high": scale * interval.high, "over": over}
    pairs = int((tables[0]["n_points"] > 0).sum())
    return {"measured": found.mean, **bounds, "seeds": len(values), "pairs": pairs}


def to_markdown(table: pd.DataFrame) -> str:
    """A table of texts with two levels of rows and columns."""
    names = [" ".join(dict.fromkeys(str(part) for part in column if part)) for column in table.columns]
    rows, last = [], None
    for (line, kind), cells in zip(table.index, table.to_numpy(), strict=True):
        rows.append(["" if line == last else line, kind, *cells])
        last = line
    return format_rows(["", "", *names], rows)


def format_rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in markdown."""
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *rows))


def write_markdown(filled: Filled) -> str:
    table = to_markdown(filled.as_text())
    return "\n\n".join([f"### {filled.title}", table.rstrip("\n"), *filled.notes]) + "\n"


def write_csv(filled: Filled) -> str:
    """One row per number; empty where there is none."""
    cells = filled.cells.assign(smoke=True) if filled.world.smoke else filled.cells
    return cells.to_csv(index=False, float_format="%.4f", lineterminator="\n")


def write_latex(filled: Filled) -> str:
    """A table for booktabs."""
    table = filled.as_text().replace(MISSING, "--").rename(index=_escape, columns=_escape)
    caption = _escape(f"{filled.title}. {' '.join(filled.notes)}")
    return table.to_latex(caption=caption, label=f"tab:{filled.name}", multicolumn_format="c", multirow=False)


def _escape(text: str) -> str:
    return text.translate(str.maketrans({c: f"\\{c}" for c in "%&_#$"} | {"–": "--", '"': "''"}))


FORMATS = {"md": write_markdown, "csv": write_csv, "tex": write_latex}
