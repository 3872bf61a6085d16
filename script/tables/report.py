"""One page with every table and figure: report.html, which needs no other file, and report.md beside its figures."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from engine.process import describe_repository
from engine.result import write_text
from script.sweep_timestep import read_curves
from script.tables.estimate import format_duration
from script.tables.figures import draw_difficulty, draw_intervals, draw_lines, draw_pck_curves
from script.tables.layout import (
    MISSING,
    NOT_RUN,
    PAPER,
    Filled,
    Find,
    describe_measure,
    describe_source,
    list_lines,
    list_reasons,
    to_markdown,
)
from script.tables.results import State
from script.tables.rows import CPM, Row, World, build_tables, unique_rows
from utils.statistics import Measure, compare
from utils.store import atomic_path

SHOWN = {  # of the figures: row on SPair -> name
    "text/spair": "text (DIFT)",
    "dinov2/spair": "DINOv2",
    "sd_dino/spair": "SD+DINO",
    "single-spair/spair": "Single",
    "class-spair/spair": "Class",
    "cpm-spair/spair": "CPM",
}
ABLATED = (
    "Pair-DINO-Head-G25-C50",
    "Img-DINO-Feat-G25-C50",
    "Img-DINO-Head-G25-C50",
    "Pair-DINO-Feat-G0-C50",
    f"{CPM}-noN",
)
COMPARED = (  # (row, row that the paper finds better)
    ("text/spair", "single-spair/spair"),
    ("single-spair/spair", "class-spair/spair"),
    ("single-spair/spair", "cpm-spair/spair"),
    *((f"cpm-{variant}/spair", "cpm-spair/spair") for variant in ABLATED),
)
ALWAYS_SHOWN = ("table1", "table2", "table3", "table4")  # other tables only if there is something to compare
PICTURES = 12  # at most
WIDE = 12  # columns from which a table is set small, its titles upright


@dataclass(frozen=True)
class Figure:
    name: str
    title: str
    caption: str
    content: bytes
    kind: str = "svg"


def write_report(
    folder: Path, filled: Sequence[Filled], world: World, find: Find, measure: Measure, state: State
) -> Path:
    """Write report.html and report.md into `folder`, figures into folder/table; the path of the page."""
    filled = [table for table in filled if table.table.name in ALWAYS_SHOWN or table.measured_lines > 1]
    figures = list(draw_figures(folder, filled, find, measure))
    for figure in figures:
        with atomic_path(folder / "table" / f"{figure.name}.{figure.kind}") as temporary:
            temporary.write_bytes(figure.content)
    rows = unique_rows(build_tables(world).values())
    comparisons = list(compare_methods(rows, find, measure))
    title = "SD4Match: the paper's tables" + ("" if world.comparable else ", on the mini world")
    finished = sum(bool(find(row)) for row in rows)
    intro = f"{finished} of {len(rows)} rows of all tables and ablations have been run. {describe_repository()}."
    write_text(folder / "report.md", _markdown(title, intro, filled, figures, comparisons))
    write_text(folder / "report.html", _page(title, intro, filled, figures, comparisons, state))
    return folder / "report.html"


def draw_figures(folder: Path, filled: Sequence[Filled], find: Find, measure: Measure) -> Iterator[Figure]:
    """Those figures whose rows have been run."""
    where = filled[0].title("spair")
    by_key = {row.key: row for table in filled for row in table.table.rows}
    results = {name: find(by_key[key])[0] for key, name in SHOWN.items() if key in by_key and find(by_key[key])}
    for table in filled:
        column = next(
            (i for i, c in enumerate(table.columns) if (c.test_on, c.alpha, c.category) == ("spair", 0.1, "all")), None
        )
        if column is not None and not table.table.by_category and (svg := draw_intervals(table, column)):
            caption = f"{table.title('spair')}, PCK@0.1."
            yield Figure(f"intervals_{table.table.name}", table.table.title, caption, svg)
    if results and (svg := draw_pck_curves(results, measure)):
        yield Figure("curve", "Accuracy over the tolerance", f"{where} test pairs, from the stored errors.", svg)
    if results and (svg := draw_difficulty(results, measure)):
        caption = f"{where} test pairs by their difficulty flags; bars are 95 % bootstrap intervals over pairs."
        yield Figure("difficulty", "Accuracy by difficulty", caption, svg)
    yield from _timestep_figures(folder, filled[0])
    for path in sorted(p for p in (folder / "figure").glob("*.png") if not p.name.startswith("timestep_"))[:PICTURES]:
        yield Figure(
            f"picture_{path.stem}", "Pictures", f"Picture {path.stem.replace('_', ' ')}", path.read_bytes(), "png"
        )


def _timestep_figures(folder: Path, filled: Filled) -> Iterator[Figure]:
    for path in sorted((folder / "figure").glob("timestep_*.csv")):
        curves = {prompt.split("_")[0]: points for prompt, points in read_curves(path).items()}
        dataset, split = path.stem.split("_")[1:3]
        caption = f"Diffusion timestep at test time, {filled.title(dataset)}, {split} pairs, PCK@0.1."
        yield Figure(path.stem, "Accuracy over the timestep", caption, draw_lines(curves, "timestep", "PCK@0.1 (%)"))


def compare_methods(rows: Sequence[Row], find: Find, measure: Measure) -> Iterator[list[str]]:
    """Cells of the table of paired tests: the two rows, paper's and measured difference, p-value, verdict."""
    by_key = {row.key: row for row in rows}
    for first, second in COMPARED:
        paper = [PAPER["pck"].get(key, {}).get("0.1") for key in (first, second)]
        expected = f"{paper[1] - paper[0]:+.1f}" if None not in paper else MISSING
        a, b = (find(by_key[key]) for key in (first, second))
        if not a or not b:
            yield [first, second, expected, NOT_RUN, MISSING, MISSING]
            continue
        found = compare(a[0], b[0], measure)
        value, low, high = (round(100 * v, 1) + 0.0 for v in astuple(found.difference))  # no -0.0
        exact = found.difference
        winner = "second is better" if exact.value > 0 else "first is better"
        verdict = "not told apart" if exact.low <= 0 <= exact.high else winner
        yield [first, second, expected, f"{value:+.1f} [{low:+.1f}, {high:+.1f}]", f"{found.p_value:.2g}", verdict]


COMPARISON_HEAD = ("first", "second", "paper", "measured, second − first", "p", "95 % interval says")
COMPARISON_NOTE = (
    "PCK@0.1 on the same test pairs of SPair-71k (or of its mini twin); paired bootstrap interval and sign-flip "
    "permutation p-value over pairs. "
    "They tell chance in the choice of pairs, not in training: give several --seeds for that."
)


def _markdown(title: str, intro: str, filled: Sequence[Filled], figures: Sequence[Figure], comparisons: list) -> str:
    lines = [f"# {title}", "", intro, ""]
    for table in filled:
        lines += [to_markdown(table)]
    lines += ["### Differences between methods", "", COMPARISON_NOTE, ""]
    rows = [list(COMPARISON_HEAD), ["---"] * len(COMPARISON_HEAD), *comparisons]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    for figure in figures:
        lines += ["", f"![{figure.caption}](table/{figure.name}.{figure.kind})", "", f"*{figure.caption}*"]
    return "\n".join(lines) + "\n"


def _page(
    title: str, intro: str, filled: Sequence[Filled], figures: Sequence[Figure], comparisons: list, state: State
) -> str:
    sections = [(table.table.name, table.table.title, _html_table(table)) for table in filled]
    sections.append(("differences", "Differences between methods", _html_comparisons(comparisons)))
    for figure_title in dict.fromkeys(figure.title for figure in figures):
        group = [figure for figure in figures if figure.title == figure_title]
        match = next((i for i, (_, name, _) in enumerate(sections) if name == figure_title), None)
        body = "".join(_html_figure(figure) for figure in group)
        if match is None:
            sections.append((group[0].name, figure_title, body))
        else:
            sections[match] = (*sections[match][:2], sections[match][2] + body)
    sections.append(("times", "What each row took", _html_times(state)))
    links = "".join(f'<a href="#{name}">{_escape(text.split(":")[0])}</a>' for name, text, _ in sections)
    body = "".join(f'<section id="{name}"><h2>{_escape(text)}</h2>{part}</section>' for name, text, part in sections)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{_escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
        f"<body><header><h1>{_escape(title)}</h1><p>{_escape(intro)}</p><nav>{links}</nav></header>"
        f"<main>{body}</main></body></html>\n"
    )


def _html_table(filled: Filled) -> str:
    head = "".join(f'<th colspan="{count}">{title}</th>' for title, count in filled.groups)
    titles = "".join(f"<th><span>{_escape(column.title)}</span></th>" for column in filled.columns)
    body = "".join(_html_block(block, filled) for block in filled.blocks)
    notes = [filled.table.note, f"{describe_measure(filled)}.", f"{describe_source(filled)}."]
    reasons = "".join(f"<li>{_escape(reason)}</li>" for reason in list_reasons(filled))
    details = f"<details><summary>Rows that were not run</summary><ul>{reasons}</ul></details>" if reasons else ""
    wide = " class=wide" if len(filled.columns) > WIDE else ""
    header = f"<tr><th></th><th></th>{head}</tr><tr><th></th><th></th>{titles}</tr>"
    return (
        f'<div class="scroll"><table{wide}><thead>{header}</thead>{body}</table></div>'
        f"<p class=note>{' '.join(_escape(note) for note in notes if note)}</p>{details}"
    )


def _html_block(block, filled: Filled) -> str:
    lines = list(list_lines(block, filled, "<small>{:.1f}–{:.1f}</small>"))
    rows = []
    for number, (kind, cells) in enumerate(lines):
        label = f'<th rowspan="{len(lines)}" class=label>{_escape(block.line.label)}</th>' if number == 0 else ""
        texts = (f'<td class="{_kind_of(text)}">{text}</td>' for text in cells)
        rows.append(f'<tr class="{kind}">{label}<td class=kind>{kind}</td>{"".join(texts)}</tr>')
    return f"<tbody>{''.join(rows)}</tbody>"


def _kind_of(text: str) -> str:
    return "missing" if text in (NOT_RUN, MISSING) else "number"


def _html_comparisons(comparisons: list[list[str]]) -> str:
    return _plain_table(COMPARISON_HEAD, comparisons) + f"<p class=note>{_escape(COMPARISON_NOTE)}</p>"


def _html_times(state: State) -> str:
    rows = []
    for key, entry in state.rows.items():
        seconds = entry.get("seconds", {})
        times = [format_duration(seconds[stage]) if stage in seconds else MISSING for stage in ("train", "test")]
        rows.append([key, *times, entry.get("reason", "")])
    table = _plain_table(("row", "training", "test", "not run because"), rows)
    return f"<details><summary>{len(rows)} rows</summary>{table}</details>"


def _plain_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{_escape(text)}</th>" for text in head)
    body = "".join("<tr>" + "".join(f"<td>{_escape(text)}</td>" for text in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table class=plain><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _html_figure(figure: Figure) -> str:
    kind = {"svg": "image/svg+xml", "png": "image/png"}[figure.kind]
    data = base64.b64encode(figure.content).decode()
    caption = _escape(figure.caption)
    return f'<figure><img src="data:{kind};base64,{data}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'


_escape: Callable[[str], str] = html.escape
STYLE = """
:root{--ink:#1b1f24;--soft:#57606a;--line:#d0d7de;--blue:#0a5c94;--back:#f6f8fa}
*{box-sizing:border-box}
body{margin:0;font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;color:var(--ink)}
header{background:var(--back);border-bottom:1px solid var(--line);padding:1.5rem max(1rem,calc(50vw - 38rem))}
main{padding:0 max(1rem,calc(50vw - 38rem)) 4rem}
h1{margin:0 0 .3rem;font-size:1.7rem}h2{margin:2.4rem 0 .8rem;font-size:1.25rem}
header p{margin:.2rem 0 .8rem;color:var(--soft)}
nav{display:flex;flex-wrap:wrap;gap:.3rem .6rem}
nav a{color:var(--blue);text-decoration:none;border:1px solid var(--line);border-radius:1rem;padding:.1rem .7rem;
background:#fff;font-size:.88rem}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.88rem}
th,td{padding:.18rem .55rem;text-align:right;white-space:nowrap}
thead th{border-bottom:1px solid var(--line);text-align:center;vertical-align:bottom;font-weight:600}
tbody{border-bottom:1px solid var(--line)}
th.label{text-align:left;vertical-align:top;font-weight:600;max-width:16rem;white-space:normal;background:#fff;
position:sticky;left:0}
td.kind{text-align:left;color:var(--soft)}
tr.paper td{color:var(--soft)}tr.measured td{font-weight:600}tr.measured td.kind{font-weight:400}
tr.difference td{color:var(--blue)}
td small{display:block;font-weight:400;color:var(--soft);font-size:.74rem;line-height:1.1}
tr td.missing{color:#8c959f;font-weight:400}
table.wide{font-size:.76rem}table.wide th,table.wide td{padding:.12rem .2rem}table.wide td small{font-size:.62rem}
table.wide thead span{writing-mode:vertical-rl;transform:rotate(180deg)}table.wide th.label{max-width:6rem}
table.plain td{text-align:left}
.note{color:var(--soft);font-size:.86rem;max-width:60rem}
details{margin:.6rem 0;font-size:.9rem}summary{cursor:pointer;color:var(--blue)}
figure{margin:1.2rem 0}
figure img{max-width:min(100%,52rem);height:auto;border:1px solid var(--line);border-radius:.4rem}
figcaption{color:var(--soft);font-size:.86rem}
"""
