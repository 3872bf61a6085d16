"""What per-pair result files say: PCK with intervals, by category or difficulty, over alpha; and whether two differ.

    python script/analyse.py A_pairs.csv                          # one result
    python script/analyse.py A_pairs.csv B_pairs.csv --by point   # and B minus A, on the same pairs
    python script/analyse.py A_pairs.csv B_pairs.csv --json result.json

The files are those that test.py writes beside a prompt (*_pairs.csv). Several are compared over the pairs that all of
them have.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.entry import entry_point


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("files", nargs="+", metavar="PAIRS_CSV", help="with several, each is compared with the first")
    add("--localiser", default="kernelsoftmax", help="default: %(default)s")
    add("--alpha", type=float, default=0.1, help="default: %(default)s")
    add("--by", choices=("image", "point"), default="image")
    add("--points", choices=("all", "aware"), default="all", help="aware: the geometry-aware keypoints alone")
    add("--dagger", action="store_true", help="PCK-dagger: right only if no other keypoint of the pair is nearer")
    add("--only", nargs=2, metavar=("KIND", "GROUP"), help="pairs of one group of the breakdown, such as view mirror")
    add("--average", choices=("pair", "category"), default="pair", help="category: macro average")
    add("--draws", type=int, default=10000, help="of the bootstrap and of the permutation test")
    add("--json", metavar="FILE", help="write the numbers as JSON too")
    return parser.parse_args()


def read_common(files: list[str]) -> dict:
    """The scores in each file, over the pairs that all of them have; says so if some have others."""
    from engine.result import ResultError, read_scores
    from utils.statistics import select_common

    tables = {file: read_scores(file) for file in dict.fromkeys(files)}
    common = dict(zip(tables, select_common(list(tables.values())), strict=True))
    number = len(next(iter(common.values())))
    if any(len(table) != number for table in tables.values()):
        sizes = "".join(f"\n  {len(table)} pairs: {file}" for file, table in tables.items())
        print(f"THE FILES HOLD DIFFERENT PAIRS; everything below is over the {number} pairs that all have.{sizes}\n")
    for file, table in common.items():
        if not (table["n_points"] > 0).any():
            raise ResultError(f"{file} holds no pair with keypoints")
    return common


def find_group(scores, kind: str, name: str):
    """The pairs of one group; ValueError lists those that there are."""
    from utils.statistics import list_groups

    groups = list_groups(scores)
    if (kind, name) not in groups:
        raise ValueError(f"no group {kind} {name}; known: {', '.join(' '.join(group).strip() for group in groups)}")
    return groups[kind, name].reset_index(drop=True)


def analyse(scores, measure, draws: int) -> dict:
    """Print the numbers of one result: overall, by category, by flag, and over alpha; the same as JSON values."""
    from utils.statistics import break_down, compute_curve, sensitivity

    table = break_down(scores, measure, draws)
    table[["value", "low", "high"]] *= 100
    names = [" ".join(part for part in name if part and part != "category") for name in table.index]
    shown = table.set_axis(names).rename(columns={"value": "PCK (%)", "low": "95 % from", "high": "to"})
    print(shown.to_string(float_format="{:.2f}".format, na_rep="-"))
    views = [table.at[name, "value"] for name in table.index if name[0] == "view" and name[1].isdecimal()]
    if change := sensitivity(views):
        print(f"sensitivity to the view, (best - worst) / best of the {len(views)} views: {change:.3f}")
    curve = {alpha: 100 * value for alpha, value in compute_curve(scores, measure).items()}
    print("over alpha: " + "  ".join(f"{alpha:g}: {value:.1f}" for alpha, value in curve.items()) + "\n")
    rows = table.reset_index().astype(object)
    return {"groups": rows.where(rows.notna(), None).to_dict("records"), "curve": curve, "sensitivity": change}


@entry_point(mendable=(ValueError,))
def main() -> None:
    args = parse_args()
    from utils.metrics import choose
    from utils.pck import find_inequality
    from utils.statistics import Measure, compare
    from utils.store import write_json

    measure = Measure(args.localiser, args.alpha, args.by, args.average, args.points, args.dagger)
    tables = read_common(args.files)
    first = next(iter(tables.values()))
    rule = f"error {find_inequality(first)} alpha x threshold, {first['protocol'].iloc[0]} frame"
    title = f"{measure.title}@{args.alpha:g} per {args.by}, {args.localiser}"
    print(f"{title}: {rule}, averaged over {args.average}s; intervals over pairs\n")
    tables = {file: choose(scores, args.points, args.dagger) for file, scores in tables.items()}
    if args.only:
        tables = {file: find_group(scores, *args.only) for file, scores in tables.items()}
    content: dict = {"measure": dataclasses.asdict(measure), "results": {}, "comparisons": {}}
    for file, scores in tables.items():
        print(file)
        content["results"][file] = analyse(scores, measure, args.draws)
    first, *others = tables
    for file in others:
        found = compare(tables[first], tables[file], measure, draws=args.draws)
        value, low, high = (100 * bound for bound in dataclasses.astuple(found.difference))
        numbers = {"difference": value, "low": low, "high": high, "p_value": found.p_value, "pairs": found.pairs}
        content["comparisons"][file] = numbers
        print(f"{file}\n  minus {first}:")
        print(f"  {value:+.2f}, 95 % interval [{low:+.2f}, {high:+.2f}] (paired bootstrap over {found.pairs} pairs),")
        print(f"  p = {found.p_value:.2g} (two-sided sign-flip permutation test)\n")
    if args.json:
        write_json(args.json, content)


if __name__ == "__main__":
    sys.exit(main())
