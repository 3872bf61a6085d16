"""match lines between source and target, right and wrong predictions apart; a row per pair, a column per prompt"""

import argparse

from script.figures.rows import add_pair_arguments, build_positions, collect


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_pair_arguments(parser)


def build(args: argparse.Namespace, columns: dict):
    from engine.figure import plot_matches
    from engine.picture import match_pair

    return plot_matches(collect(columns, build_positions(args), match_pair))
