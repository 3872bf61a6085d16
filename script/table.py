"""Print the paper's tables, computed from the per-pair results that are there, and write them and a report page.

    python script/table.py table1 table3              # markdown to the terminal; all formats to OUTPUT/table
    python script/table.py table2 --mini --format tex
    python script/table.py --mini --report            # every table, and one HTML page with figures

Rows come from script/rows.py (or from the same train.py and test.py commands by hand).
"""

import argparse
import sys
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import ConfigError, load_config, resolve_path  # noqa: E402
from engine.entry import entry_point  # noqa: E402
from script.rows import add_row_arguments, choose_world  # noqa: E402


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", help="such as table1, length; default: all")
    add_row_arguments(parser)
    parser.add_argument("--format", choices=("md", "csv", "tex"), default="md", help="printed; default: %(default)s")
    parser.add_argument("--localiser", default="kernelsoftmax")
    parser.add_argument("--by", choices=("image", "point"), default="image", help="PCK per image or per point")
    parser.add_argument("--average", choices=("pair", "category"), default="pair", help="category: macro average")
    parser.add_argument("--report", action="store_true", help="write report.html and report.md as well")
    return parser.parse_args()


def make_finder(world, state, seeds, more):
    """Row -> one list of records for each seed that has been run."""
    from script.tables.results import find_result, make_job

    @cache
    def find(row):
        results = []
        for seed in seeds:
            try:
                records = find_result(make_job(row, world, seed, more), state)
            except ConfigError:
                continue
            if records:
                results.append(records)
        return results

    return find


def run(args: argparse.Namespace) -> None:
    from engine.result import write_text
    from script.tables.layout import FORMATS, fill
    from script.tables.report import write_report
    from script.tables.results import State
    from script.tables.rows import Row, build_tables
    from utils.statistics import Measure

    world = choose_world(args)
    load_config(world.config_file(Row("", "base", "spair")), args.opts)  # a mistyped setting stops here
    tables = build_tables(world)
    if unknown := [name for name in args.tables if name not in tables]:
        raise ConfigError(f"no table {', '.join(unknown)}; known: {', '.join(tables)}")
    state = State.load(world.root)
    find = make_finder(world, state, args.seeds, args.opts)
    reasons = {key.split("@")[0]: entry["reason"] for key, entry in state.rows.items() if "reason" in entry}
    measure = Measure(args.localiser, by=args.by, average=args.average)
    folder = Path(resolve_path(world.root)) / "table"
    filled = [fill(tables[name], world, find, reasons, measure) for name in args.tables or tables]
    for entry in filled:
        for suffix, write in FORMATS.items():
            write_text(folder / f"{entry.table.name}.{suffix}", write(entry))
        print(FORMATS[args.format](entry))
    print(f"written: {folder}/*.md, .csv, .tex")
    if args.report:
        print(f"report: {write_report(folder.parent, filled, world, find, measure, state)}")


@entry_point(mendable=(ValueError,))
def main() -> int:
    run(parse_args())
    return 0


if __name__ == "__main__":
    sys.exit(main())
