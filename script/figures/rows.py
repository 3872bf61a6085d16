"""Pairs by prompts: what most figures are made of."""

import argparse
from collections.abc import Callable, Sequence

from engine.argument import positive


def add_pair_arguments(parser: argparse.ArgumentParser, pairs: int = 4) -> None:
    """Which columns and which rows."""
    parser.add_argument("--prompts", nargs="+", default=[], help="a column each: `text`, `empty`, or learned prompts")
    parser.add_argument(
        "--column",
        nargs="+",
        action="append",
        default=[],
        metavar=("TITLE", "KEY VALUE"),
        help="a column with its own title and settings, such as: DIFT PROMPT.TYPE text TEST.TIMESTEP 261",
    )
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument(
        "--pairs",
        type=positive,
        default=pairs,
        help="rows: so many pairs, one category after the other; default: %(default)s",
    )
    chosen.add_argument("--pair_ids", nargs="+", default=[], help="rows: the pairs of these ids (see a result's CSV)")


def build_positions(args: argparse.Namespace) -> Callable[[object], list[int]]:
    """What chooses the rows from the pairs of a split."""
    return lambda pairs: _find_ids(pairs, args.pair_ids) if args.pair_ids else _choose(pairs, args.pairs)


def collect(columns: dict, choose: Callable[[object], Sequence[int]], extract: Callable) -> list[dict]:
    """For each pair that `choose` picks from a split, {title: extract(config, matcher, pairs, position, device)}."""
    from engine.build import build_test

    rows: dict[int, dict] = {}
    for title, cfg in columns.items():
        accelerator, pairs, matcher = build_test(cfg, choose)
        for position in range(len(pairs)):
            found = extract(cfg, matcher, pairs, position, accelerator.device)
            rows.setdefault(position, {})[title] = found
    return list(rows.values())


def _choose(pairs, n_pairs: int) -> list[int]:
    from engine.picture import choose_pairs

    return choose_pairs(pairs, n_pairs)


def _find_ids(pairs, wanted: Sequence[str]) -> list[int]:
    from config import ConfigError

    position = {record.pair_id: place for place, record in enumerate(pairs.benchmark)}
    if missing := [name for name in wanted if name not in position]:
        raise ConfigError(f"--pair_ids: no pair {', '.join(missing)} in this split; one is {next(iter(position))}")
    return [position[name] for name in wanted]
