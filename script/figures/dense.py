"""dense matches: colours of places carried from target to source, the target warped, the forward-backward error"""

import argparse

from script.figures.rows import add_pair_arguments, build_positions, collect


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_pair_arguments(parser)
    parser.add_argument(
        "--grid", type=int, default=96, help="places matched along each side of an image; default: %(default)s"
    )


def build(args: argparse.Namespace, columns: dict):
    from config import ConfigError
    from engine.figure import plot_dense
    from engine.picture import match_pair_densely

    if args.grid < 2:
        raise ConfigError(f"--grid must be at least 2, got {args.grid}")
    rows = collect(columns, build_positions(args), lambda *pair: match_pair_densely(*pair, args.grid))
    return plot_dense(rows)
