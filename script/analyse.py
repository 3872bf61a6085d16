"""What per-pair result files say: PCK with intervals, by category or difficulty, over alpha; and whether two differ.

    python script/analyse.py A_pairs.csv                          # one result
    python script/analyse.py A_pairs.csv B_pairs.csv --by point   # and B minus A, on the same pairs
    python script/analyse.py A_pairs.csv B_pairs.csv --json result.json

The files are those that test.py writes beside a prompt (*_pairs.csv).
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.entry import entry_point  # noqa: E402

ROW = "{:<28}{:>8}{:>10}{:>22}"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="PAIRS_CSV", help="with several, each is compared with the first")
    parser.add_argument("--localiser", default="kernelsoftmax")
    parser.add_argument("--alpha", type=float, default=0.1)
    parser.add_argument("--by", choices=("image", "point"), default="image")
    parser.add_argument("--average", choices=("pair", "category"), default="pair", help="category: macro average")
    parser.add_argument("--draws", type=int, default=10000, help="of the bootstrap and of the permutation test")
    parser.add_argument("--json", metavar="FILE", help="write the numbers as JSON too")
    return parser.parse_args()


def analyse(records: list, measure, draws: int) -> dict:
    """Numbers of one result: overall, by category, by flag, and over alpha if errors are stored."""
    from utils.statistics import bootstrap, break_down, compute_curve

    def entry(group: list) -> dict | None:
        found = bootstrap(group, measure, draws=draws)
        return found and {"pairs": sum(record["n_points"] > 0 for record in group), **dataclasses.asdict(found)}

    categories = sorted({record["category"] for record in records})
    groups = {name: [record for record in records if record["category"] == name] for name in categories}
    flags = {
        flag: {level: {"pairs": pairs, "value": value} for level, (pairs, value) in levels.items()}
        for flag, levels in break_down(records, measure).items()
    }
    with_errors = all(measure.localiser in record.get("errors", {}) for record in records)
    return {
        "all": entry(records),
        "categories": {name: entry(group) for name, group in groups.items()},
        "flags": flags,
        "curve": compute_curve(records, measure) if with_errors else None,
    }


def format_analysis(found: dict) -> str:
    lines = [ROW.format("", "pairs", "PCK (%)", "95 % interval")]
    for name, entry in {"all": found["all"], **found["categories"]}.items():
        if entry:
            interval = f"[{100 * entry['low']:.2f}, {100 * entry['high']:.2f}]"
            lines.append(ROW.format(name, entry["pairs"], f"{100 * entry['value']:.2f}", interval))
    for flag, levels in found["flags"].items():
        for level, entry in levels.items():
            lines.append(ROW.format(f"{flag} {level}", entry["pairs"], f"{100 * entry['value']:.2f}", "").rstrip())
    if found["curve"]:
        lines.append("over alpha: " + "  ".join(f"{a:g}: {100 * value:.1f}" for a, value in found["curve"].items()))
    return "\n".join(lines)


def run(args: argparse.Namespace) -> dict:
    """Print everything; the numbers by file."""
    from engine.result import read_pairs_csv
    from utils.statistics import Measure, compare

    measure = Measure(args.localiser, args.alpha, args.by, args.average)
    results = {file: read_pairs_csv(file) for file in args.files}
    for file, records in results.items():
        if not any(record["n_points"] for record in records):
            raise ValueError(f"{file} holds no pair with keypoints")
    print(f"PCK@{args.alpha:g} per {args.by}, {args.localiser}, averaged over {args.average}s\n")
    content: dict = {"measure": dataclasses.asdict(measure), "results": {}, "comparisons": {}}
    for file, records in results.items():
        content["results"][file] = analyse(records, measure, args.draws)
        print(f"{file}\n{format_analysis(content['results'][file])}\n")
    first, *others = args.files
    for file in others:
        found = compare(results[first], results[file], measure, draws=args.draws)
        content["comparisons"][file] = dataclasses.asdict(found)
        value, low, high = (100 * v for v in dataclasses.astuple(found.difference))
        print(f"{file}\n  minus {first}:")
        print(f"  {value:+.2f}, 95 % interval [{low:+.2f}, {high:+.2f}] (paired bootstrap over {found.pairs} pairs),")
        print(f"  p = {found.p_value:.2g} (two-sided sign-flip permutation test)\n")
    return content


@entry_point(mendable=(ValueError,))
def main() -> int:
    args = parse_args()
    content = run(args)
    if args.json:
        from engine.result import write_text

        write_text(args.json, json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
