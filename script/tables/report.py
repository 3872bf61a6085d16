"""One page with every table and figure: report.html, which needs no other file, and report.md beside its figures."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from html import escape
from pathlib import Path

import pandas as pd

from engine.process import describe_repository
from script.tables.ablation import SWEEP
from script.tables.figures import draw_difficulty, draw_intervals, draw_pck_curves, draw_timesteps
from script.tables.layout import MISSING, NOT_RUN, PAPER, SMOKE, Filled, Find, format_rows, write_markdown
from script.tables.main import CPM
from script.tables.rows import Row
from utils.statistics import Measure, compare
from utils.store import atomic_path, write_text

SHOWN = {  # of the figures: row on SPair -> name
    "text/spair": "text (DIFT)",
    "dinov2/spair": "DINOv2",
    "sd_dino/spair": "SD+DINO",
    "single-spair/spair": "Single",
    "class-spair/spair": "Class",
    "cpm-spair/spair": "CPM",
}
ABLATED = ("Pair-DINO-Head-G25-C50", "Img-DINO-Feat-G25-C50", "Img-DINO-Head-G25-C50", "Pair-DINO-Feat-G0-C50")
COMPARED = (  # (row, row that the paper finds better)
    ("text/spair", "single-spair/spair"),
    ("single-spair/spair", "class-spair/spair"),
    ("single-spair/spair", "cpm-spair/spair"),
    *((f"cpm-{variant}/spair", "cpm-spair/spair") for variant in (*ABLATED, f"{CPM}-noN")),
)
ALWAYS_SHOWN = ("table1", "table2", "table3", "table4")  # other tables only if there is something to compare
PICTURES = 12  # at most
COMPARISON_NOTE = (
    "PCK@0.1 on the same test pairs of SPair-71k (or of its mini twin), first seed; paired bootstrap interval and "
    "sign-flip permutation p-value, both over pairs. They tell chance in the choice of pairs, not in training: give "
    "several --seeds for that."
)
STYLE = Path(__file__).with_name("report.css")


@dataclass(frozen=True)
class Figure:
    name: str
    caption: str
    content: bytes
    kind: str = "svg"


def write_report(folder: Path, filled: Sequence[Filled], rows: Sequence[Row], find: Find, measure: Measure) -> Path:
    """Write report.html and report.md into `folder`, figures into folder/table; the path of the page."""
    world = filled[0].world
    filled = [table for table in filled if table.table.name in ALWAYS_SHOWN or count_lines(table) > 1]
    figures = list(draw_figures(folder, filled, find, measure))
    for figure in figures:
        with atomic_path(folder / "table" / f"{figure.name}.{figure.kind}") as temporary:
            temporary.write_bytes(figure.content)
    comparisons = compare_methods({row.key: row for row in rows}, find, measure)
    mark = f"{SMOKE}: " if world.smoke else ""
    title = f"{mark}SD4Match, the paper's tables" + ("" if world.comparable else ", on the mini world")
    finished = sum(bool(find(row)) for row in rows)
    intro = f"{mark}{finished} of {len(rows)} rows of all tables and ablations have been run. {describe_repository()}."
    stem = folder / ("smoke_report" if world.smoke else "report")
    write_text(Path(f"{stem}.md"), _markdown(title, intro, filled, figures, comparisons))
    write_text(Path(f"{stem}.html"), _page(title, intro, filled, figures, comparisons))
    return Path(f"{stem}.html")


def count_lines(filled: Filled) -> int:
    """Lines with a measured number."""
    return filled.cells.loc[filled.cells["measured"].notna(), "line"].nunique()


def draw_figures(folder: Path, filled: Sequence[Filled], find: Find, measure: Measure) -> Iterator[Figure]:
    """Those figures whose rows have been run."""
    where, mark = filled[0].group_title("spair"), "smoke_" if filled[0].world.smoke else ""
    by_key = {row.key: row for table in filled for row in table.table.rows}
    found = {name: find(by_key[key]) for key, name in SHOWN.items() if key in by_key}
    results = {name: tables[0] for name, tables in found.items() if tables}
    for table in filled:
        if svg := draw_timesteps(table) if table.table.name == SWEEP else draw_intervals(table):
            yield Figure(f"figure_{table.name}", f"{table.title}: {where}, PCK@0.1.", svg)
    if results:
        caption = f"Accuracy over the tolerance: {where} test pairs."
        yield Figure(f"{mark}curve", caption, draw_pck_curves(results, measure))
        if svg := draw_difficulty(results, measure):
            caption = f"Accuracy by difficulty: {where} test pairs by their flags; bars are 95 % intervals over pairs."
            yield Figure(f"{mark}difficulty", caption, svg)
    for path in sorted((folder / "figure").glob("*.png"))[:PICTURES]:
        yield Figure(f"picture_{path.stem}", f"Picture {path.stem.replace('_', ' ')}", path.read_bytes(), "png")


def compare_methods(rows: dict[str, Row], find: Find, measure: Measure) -> pd.DataFrame:
    """Paired tests of two rows: the paper's and the measured difference, p-value, verdict, as texts."""
    table = []
    for first, second in COMPARED:
        paper = [PAPER["pck"].get(key, {}).get("0.1") for key in (first, second)]
        expected = f"{paper[1] - paper[0]:+.1f}" if None not in paper else MISSING
        a, b = (find(rows[key]) if key in rows else [] for key in (first, second))
        if not a or not b:
            table.append([first, second, expected, NOT_RUN, MISSING, MISSING])
            continue
        found = compare(a[0], b[0], measure)
        exact = found.difference
        value, low, high = (round(100 * v, 1) + 0.0 for v in astuple(exact))  # no -0.0
        winner = "second is better" if exact.value > 0 else "first is better"
        verdict = "not told apart" if exact.low <= 0 <= exact.high else winner
        table.append(
            [first, second, expected, f"{value:+.1f} [{low:+.1f}, {high:+.1f}]", f"{found.p_value:.2g}", verdict]
        )
    return pd.DataFrame(table, columns=["first", "second", "paper", "second − first", "p", "95 % interval says"])


def _markdown(title: str, intro: str, filled: Sequence[Filled], figures: Sequence[Figure], comparisons) -> str:
    parts = [f"# {title}", intro, *(write_markdown(table).rstrip("\n") for table in filled)]
    flat = format_rows(list(comparisons), comparisons.to_numpy().tolist())
    parts += ["### Differences between methods", COMPARISON_NOTE, flat.rstrip("\n")]
    parts += [f"![{f.caption}](table/{f.name}.{f.kind})\n\n*{f.caption}*" for f in figures]
    return "\n\n".join(parts) + "\n"


def _page(title: str, intro: str, filled: Sequence[Filled], figures: Sequence[Figure], comparisons) -> str:
    sections = [(table.name, table.title, _show_table(table.as_text(), table.notes)) for table in filled]
    sections.append(("differences", "Differences between methods", _show_table(comparisons, [COMPARISON_NOTE], False)))
    sections.append(("figures", "Figures", "".join(map(_show_figure, figures))))
    links = "".join(f'<a href="#{name}">{escape(text)}</a>' for name, text, _ in sections)
    body = "".join(f'<section id="{name}"><h2>{escape(text)}</h2>{part}</section>' for name, text, part in sections)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE.read_text(encoding='utf-8')}</style></head>"
        f"<body><header><h1>{escape(title)}</h1><p>{escape(intro)}</p><nav>{links}</nav></header>"
        f"<main>{body}</main></body></html>\n"
    )


def _show_table(table: pd.DataFrame, notes: Sequence[str], index: bool = True) -> str:
    text = table.to_html(border=0, index=index, classes=("wide" if table.shape[1] > 12 else "") if index else "plain")
    return f'<div class="scroll">{text}</div>' + "".join(f"<p class=note>{escape(note)}</p>" for note in notes)


def _show_figure(figure: Figure) -> str:
    kind = {"svg": "image/svg+xml", "png": "image/png"}[figure.kind]
    data, caption = base64.b64encode(figure.content).decode(), escape(figure.caption)
    return f'<figure><img src="data:{kind};base64,{data}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'
