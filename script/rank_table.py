"""The table of rankings: texts and images under DSD, zero-shot and few-shot, its two terms alone, and CLIP.

    python script/rank_table.py                # markdown to the terminal, and to OUTPUT/table/rankings.md
    python script/rank_table.py --commands     # the commands of unfinished rows, one line for each
    python script/rank_table.py --mini --seeds 0 1 2

Attention and noise alone are columns of the same result as the whole score. The publication's numbers are not given:
they could not be checked.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import resolve_path
from engine.entry import entry_point
from script.table import add_row_arguments, choose_world
from script.tables.rows import Row

GROUPS = ("comvg", "refcocog", "vqa_binary", "vqa_other", "winoground")
LEARNED = ("comvg", "refcocog", "vqa_other")  # the groups that have something to learn from
LINES = {"zero-shot": "DSD, zero-shot", "few-shot": "DSD, few-shot", "clip": "CLIP"}
WAYS = {"score": "", "attention": ", attention alone", "noise": ", noise prediction alone"}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_row_arguments(parser)
    return parser.parse_args()


def list_rows(groups: Sequence[str]) -> list[Row]:
    return [
        Row(f"{line}/{group}", f"{group}/{'clip' if line == 'clip' else 'dsd'}", group, group * (line == "few-shot"))
        for group in groups
        for line in LINES
        if line != "few-shot" or group in LEARNED
    ]


def format_cell(tables: Sequence, way: str, measure: str, category: str) -> str:
    """Mean over seeds with its interval, or one number with that over items; percent, strict."""
    from utils.ranking import summarise
    from utils.statistics import spread

    cells = [summarise(table, [way])[way].get(measure, {}).get(category) for table in tables]
    if not cells or None in cells:
        return "not run" if not cells else "-"
    if len(cells) > 1:
        found = spread([100 * cell["strict"] for cell in cells]).interval
        return f"{found.value:.1f} [{found.low:.1f}, {found.high:.1f}] over {len(cells)} seeds"
    cell = {name: 100 * value for name, value in cells[0].items()}
    return f"{cell['strict']:.1f} [{cell['low']:.1f}, {cell['high']:.1f}]"


def format_group(tables: Mapping[str, Sequence]) -> Iterator[str]:
    """Lines of a group, a column for each measure or kind of item; then what few examples gain. tables: by line."""
    from script.tables.layout import format_rows
    from utils.ranking import judge

    first = next((table for some in tables.values() for table in some), None)
    if first is None:
        yield "not run\n"
        return
    kinds = sorted(first["category"].unique()) if first["category"].nunique() > 1 else []
    columns = [(measure, kind) for measure in judge(first, "score") for kind in (*kinds, "all")]
    rows = [
        [f"{LINES[line]}{words}", *(format_cell(some, way, *column) for column in columns)]
        for line, some in tables.items()
        for way, words in WAYS.items()
        if way == "score" or (some and way in some[0])
    ]
    yield format_rows(["", *map(" ".join, columns)], rows)
    if tables.get("zero-shot") and tables.get("few-shot"):
        yield from map(partial(format_gain, tables["zero-shot"][0], tables["few-shot"][0]), judge(first, "score"))


def format_gain(before, after, measure: str) -> str:
    from utils.ranking import compare

    gain = compare(before, after, ("score", "score"), measure)
    low, value, high = (100 * gain[name] for name in ("low", "difference", "high"))
    return (
        f"Few-shot minus zero-shot, {measure}: {value:+.1f} [{low:.1f}, {high:.1f}] (bootstrap over items, first seed; "
        f"McNemar p = {gain['p']:.2g})\n"
    )


@entry_point()
def main() -> None:
    args = parse_args()
    from script.tables.results import make_jobs, print_commands
    from utils.store import write_text

    world, groups = choose_world(args), GROUPS[:1] if args.mini else GROUPS
    jobs, impossible = make_jobs(list_rows(groups), world, args.seeds, args.opts)
    if args.commands:
        print_commands(jobs, impossible, args.launcher)
        return
    found = {group: {row.key.split("/")[0]: [] for row in list_rows((group,))} for group in groups}
    for job in jobs:
        if job.scores is not None:
            found[job.row.test_on][job.row.key.split("/")[0]].append(job.scores)
    parts = ["Strict (a tie is wrong), percent, 95 % intervals: Wilson's over items, Student's t over seeds.\n"]
    for group, tables in found.items():
        parts += [f"### {group}\n", *format_group(tables)]
    table = "\n".join(parts)
    write_text(Path(resolve_path(world.root)) / "table" / "rankings.md", table)
    print(table)


if __name__ == "__main__":
    sys.exit(main())
