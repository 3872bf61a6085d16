"""The table of rankings: texts and images under DSD, zero-shot and few-shot, its two terms alone, and CLIP.

    python script/rank_table.py                # markdown to the terminal, and to OUTPUT/table/rankings.md
    python script/rank_table.py --commands     # the commands of unfinished rows, one line for each
    python script/rank_table.py --mini --seeds 0 1 2

Attention and noise alone are columns of the same result as the whole score. The publication's numbers are not given:
they could not be checked.
"""

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import ConfigError, load_config, resolve_path  # noqa: E402
from engine.entry import entry_point  # noqa: E402
from script.tables.rows import MINI, REAL  # noqa: E402

GROUPS = ("comvg", "refcocog", "vqa_binary", "vqa_other", "winoground")
LEARNED = ("comvg", "refcocog", "vqa_other")  # the groups that have something to learn from
LINES = {"zero-shot": "DSD, zero-shot", "few-shot": "DSD, few-shot", "clip": "CLIP"}
WAYS = {"score": "", "attention": ", attention alone", "noise": ", noise prediction alone"}


@dataclass(frozen=True)
class Row:
    """One test: a line of LINES on a group of GROUPS, with one seed."""

    line: str
    group: str
    mini: bool
    root: str  # everything is written below it
    seed: int = 0
    more: tuple[str, ...] = ()  # KEY VALUE settings

    @property
    def file(self) -> str:
        method = "clip" if self.line == "clip" else "dsd"
        return f"config/mini/{method}.yaml" if self.mini else f"config/{self.group}/{method}.yaml"

    def list_settings(self, tested: bool) -> list[str]:
        """KEY VALUE of the training, or of the test."""
        root = f"{self.root}/seed{self.seed}" if self.seed else self.root
        settings = ["OUTPUT_ROOT", root, "CACHE_ROOT", f"{self.root}/asset", "SEED", str(self.seed), *self.more]
        if tested and self.line == "few-shot":
            from model.method import find_method

            settings += ["METHOD.WEIGHTS", find_method("dsd").name_learned(load_config(self.file, settings))]
        return settings

    def list_commands(self) -> Iterator[list[str]]:
        """The training, if there is one, and the test."""
        if self.line == "few-shot":
            yield ["train.py", "--config_file", self.file, *self.list_settings(tested=False)]
        yield ["test.py", "--quiet", "--config_file", self.file, *self.list_settings(tested=True)]

    def load(self):
        """The checked config of the test. ConfigError says why the row cannot be run here."""
        from engine.build import find_folder
        from engine.check import check_config

        if not Path(resolve_path(self.file)).is_file():
            raise ConfigError("the mini world has no such network" if self.mini else f"{self.file} is not there")
        cfg = load_config(self.file, self.list_settings(tested=True))
        check_config(cfg, training=False)
        if not (folder := find_folder(cfg)).is_dir():
            raise ConfigError(f"{folder} is not there")
        return cfg

    def find_scores(self):
        """The items of the row's finished test; None if it was not run with all of this."""
        from engine.build import build_pairs
        from engine.errors import USER_ERRORS
        from engine.identity import find_result, what_makes_result
        from engine.ranking import ITEMS, read_items
        from engine.report import build_result_stem

        try:
            cfg = self.load()
            data = build_pairs(cfg, cfg.TEST.SPLIT)
            place = find_result(build_result_stem(cfg), what_makes_result(cfg, data, download=False))
            return place and read_items(f"{place}{ITEMS}")
        except USER_ERRORS:
            return None


def list_rows(args: argparse.Namespace) -> list[Row]:
    root = args.output or (MINI if args.mini else REAL).root
    groups = ("comvg",) if args.mini else GROUPS
    rows = [(line, group) for group in groups for line in LINES if line != "few-shot" or group in LEARNED]
    return [Row(*row, args.mini, root, seed, tuple(args.opts)) for row in rows for seed in args.seeds]


def print_commands(rows: Sequence[Row], launcher: str) -> None:
    for row in rows:
        try:
            row.load()
        except ConfigError as error:
            print(f"not run: {row.line}/{row.group}: {' '.join(str(error).split())}", file=sys.stderr)
            continue
        if row.find_scores() is None:
            print(" && ".join(f"{launcher} {shlex.join(command)}" for command in row.list_commands()))


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


def write_table(rows: Sequence[Row]) -> str:
    """Markdown: for each group the lines, a column for each measure or kind of item; then what few examples gain."""
    from utils.ranking import IDENTITY, compare, judge

    found = {row: row.find_scores() for row in rows}
    parts = ["Strict (a tie is wrong), percent, 95 % intervals: Wilson's over items, Student's t over seeds.\n"]
    for group in dict.fromkeys(row.group for row in rows):
        tables = {
            line: [
                table for row, table in found.items() if (row.group, row.line) == (group, line) and table is not None
            ]
            for line in LINES
            if any((row.group, row.line) == (group, line) for row in rows)
        }
        first = next((table for some in tables.values() for table in some), None)
        if first is None:
            parts.append(f"### {group}\n\nnot run\n")
            continue
        kinds = sorted(first["category"].unique()) if first["category"].nunique() > 1 else []
        columns = [(measure, kind) for measure in judge(first, "score") for kind in (*kinds, "all")]
        lines = ["| | " + " | ".join(f"{measure} {kind}" for measure, kind in columns) + " |"]
        lines += ["|---" * (len(columns) + 1) + "|"]
        for line, some in tables.items():
            for way, words in WAYS.items():
                if way == "score" or (some and way in set(some[0]) - set(IDENTITY)):
                    cells = [format_cell(some, way, *column) for column in columns]
                    lines.append(f"| {LINES[line]}{words} | {' | '.join(cells)} |")
        parts.append(f"### {group}\n\n" + "\n".join(lines) + "\n")
        if tables.get("zero-shot") and tables.get("few-shot"):
            before, after = tables["zero-shot"][0], tables["few-shot"][0]
            for measure in judge(before, "score"):
                gain = compare(before, after, ("score", "score"), measure)
                low, value, high = (100 * gain[name] for name in ("low", "difference", "high"))
                parts.append(
                    f"Few-shot minus zero-shot, {measure}: {value:+.1f} [{low:.1f}, {high:.1f}] (bootstrap over items, "
                    f"first seed; McNemar p = {gain['p']:.2g})\n"
                )
    return "\n".join(parts)


@entry_point()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mini", action="store_true", help="on the mini world")
    parser.add_argument("--output", help="folder of everything that is written; default: that of the world")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="each row once per seed; default: 0")
    parser.add_argument("--opts", nargs="*", default=[], metavar="KEY VALUE", help="settings of every row")
    parser.add_argument("--commands", action="store_true", help="print the commands of unfinished rows instead")
    parser.add_argument("--launcher", default="python", help="what runs train.py and test.py; default: %(default)s")
    args = parser.parse_args()
    rows = list_rows(args)
    if args.commands:
        print_commands(rows, args.launcher)
        return 0
    from utils.store import write_text

    table = write_table(rows)
    write_text(Path(resolve_path(rows[0].root)) / "table" / "rankings.md", table)
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
