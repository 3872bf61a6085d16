"""The paper's tables: the commands that make their rows, and the tables themselves once rows have been run.

    python script/table.py table1 table3 --commands   # one line for each prompt: its training and its tests
    python script/table.py table1 table3              # markdown to the terminal; md, csv, tex to OUTPUT/table
    python script/table.py table2 --mini --format tex
    python script/table.py --mini --report            # every table, and one HTML page with figures

The lines of --commands do not depend on each other: run them one after the other (sh script/reproduce.sh), or hand them
to GNU parallel, Slurm or accelerate (docs/reproduce.md). Rows that are finished are left out.
"""

import argparse
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import ConfigError, load_config, resolve_path
from engine.entry import entry_point
from script.tables.rows import MINI, REAL, SMOKE, Row, Table, World, build_tables, unique_rows


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("tables", nargs="*", help="such as table1, length; default: all")
    add_row_arguments(parser)
    add("--smoke", action="store_true", help="with --mini: two rows, a few steps, one category; its numbers are none")
    add("--only", nargs="+", default=[], metavar="ROW", help="only these rows, such as cpm-spair/pfwillow")
    add("--pictures", action="store_true", help="print the commands that draw a few pairs under the paper's prompts")
    add("--format", choices=("md", "csv", "tex"), default="md", help="of what is printed; default: %(default)s")
    add("--localiser", help="of all tables; default: each table's own, mostly kernelsoftmax")
    add("--points", choices=("all", "aware"), default="all", help="aware: the geometry-aware keypoints alone")
    add("--dagger", action="store_true", help="PCK-dagger in place of PCK")
    add("--by", choices=("image", "point"), default="image", help="PCK per image or per point")
    add("--average", choices=("pair", "category"), default="pair", help="category: macro average")
    add("--report", action="store_true", help="write report.html and report.md as well")
    return parser.parse_args()


def add_row_arguments(parser: argparse.ArgumentParser) -> None:
    """Where and how rows are run."""
    add = parser.add_argument
    add("--mini", action="store_true", help="on the mini world")
    add("--output", help="folder of everything that is written; default: that of the world")
    add("--seeds", nargs="+", type=int, default=[0], help="each row once per seed; default: 0")
    add("--opts", nargs="*", default=[], metavar="KEY VALUE", help="settings of every row")
    add("--commands", action="store_true", help="print the commands of unfinished rows instead of the tables")
    add("--launcher", default="python", help="with --commands: what runs train.py and test.py; default: %(default)s")


def choose_world(args: argparse.Namespace, smoke: bool = False) -> World:
    if smoke and not args.mini:
        raise ConfigError("--smoke is a short form of --mini; give both")
    world = SMOKE if smoke else MINI if args.mini else REAL
    return replace(world, root=args.output or world.root)


def choose_tables(args: argparse.Namespace, world: World) -> tuple[list[Table], list[Row]]:
    """The tables that are named, and their rows."""
    tables = build_tables(world)
    if unknown := [name for name in args.tables if name not in tables]:
        raise ConfigError(f"no table {', '.join(unknown)}; known: {', '.join(tables)}")
    chosen = [tables[name] for name in args.tables or tables]
    rows = unique_rows(chosen)
    known = [row.key for row in rows]
    if unknown := [key for key in args.only if key not in known]:
        raise ConfigError(f"no row {', '.join(unknown)} in these tables; known: {', '.join(known)}")
    return chosen, [row for row in rows if row.key in (args.only or known) and row.key in (world.only or known)]


def print_tables(args: argparse.Namespace, world: World, tables: list[Table]) -> None:
    from script.tables.layout import FORMATS, Filled, fill
    from script.tables.report import write_report
    from script.tables.results import make_jobs
    from utils.metrics import choose
    from utils.statistics import Measure
    from utils.store import write_text

    rows = [row for row in unique_rows(build_tables(world).values()) if not world.only or row.key in world.only]
    jobs, reasons = make_jobs(rows, world, args.seeds, args.opts)

    @cache
    def find(row: Row) -> list:
        found = [job.scores for job in jobs if job.row == row and job.scores is not None]
        return [choose(scores, args.points, args.dagger) for scores in found]

    def fill_in(table: Table) -> Filled:
        localiser = args.localiser or table.localiser

        def find_judged(row: Row) -> list:
            return [scores for scores in find(row) if any(scores.columns.str.startswith(f"{localiser}@"))]

        lacking = [row.key for row in table.rows if find(row) and not find_judged(row)]
        if lacking and not any(map(find_judged, table.rows)):
            raise ConfigError(f"no result of {table.name} holds the localiser {localiser} (EVAL.LOCALISERS)")
        why = reasons | dict.fromkeys(lacking, f"tested without the localiser {localiser}")
        return fill(table, world, find_judged, why, measure(localiser))

    def measure(localiser: str) -> Measure:
        return Measure(localiser, by=args.by, average=args.average, points=args.points, dagger=args.dagger)

    folder = Path(resolve_path(world.root))
    filled = [fill_in(table) for table in tables]
    for entry in filled:
        for suffix, write in FORMATS.items():
            write_text(folder / "table" / f"{entry.name}.{suffix}", write(entry))
        print(FORMATS[args.format](entry))
    print(f"written: {folder / 'table'}/*.md, .csv, .tex")
    if args.report:
        print(f"report: {write_report(folder, filled, rows, find, measure(args.localiser or Table.localiser))}")


@entry_point(mendable=(ValueError,))
def main() -> None:
    args = parse_args()
    world = choose_world(args, args.smoke)
    load_config(None, args.opts)  # a mistyped setting stops here
    tables, rows = choose_tables(args, world)
    if not (args.commands or args.pictures):
        print_tables(args, world, tables)
        return
    from script.tables.results import list_pictures, make_jobs, print_commands

    jobs, impossible = make_jobs(rows, world, args.seeds, args.opts)
    if args.pictures:
        print("\n".join(list_pictures(jobs, args.launcher)))
    else:
        print_commands(jobs, impossible, args.launcher)


if __name__ == "__main__":
    sys.exit(main())
