"""heat maps: correlation of one source point with the target under each prompt; a row per pair"""

import argparse

from script.figures.rows import add_pair_arguments, build_positions, collect


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_pair_arguments(parser)
    parser.add_argument(
        "--points",
        nargs="+",
        type=int,
        help="index of the keypoint for each row; default: where the prompts first differ",
    )


def build(args: argparse.Namespace, columns: dict):
    from config import ConfigError
    from engine.figure import plot_correlations
    from engine.picture import choose_point, match_pair

    rows = collect(columns, build_positions(args), match_pair)
    counts = [len(next(iter(row.values())).src_kps) for row in rows]
    if 0 in counts:
        raise ConfigError(f"--pair_ids: pair {counts.index(0) + 1} of the list has no keypoint to correlate")
    points = args.points or [choose_point(row) for row in rows]
    if len(points) != len(rows) or not all(0 <= p < n for p, n in zip(points, counts, strict=True)):
        raise ConfigError(f"--points: the rows have {counts} keypoints; give the index of one for each, from 0")
    return plot_correlations(rows, points)
