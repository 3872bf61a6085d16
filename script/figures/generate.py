"""images that Stable Diffusion generates from each prompt, beside the pair that it was made for"""

import argparse

from script.figures.rows import add_pair_arguments, build_positions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_pair_arguments(parser, pairs=3)
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0, 1], help="an image of each prompt for each; default: 0 1"
    )


def build(args: argparse.Namespace, columns: dict):
    from engine.figure import plot_generated

    rows = {}
    for title, cfg in columns.items():
        for name, pair, images in _generate(cfg, build_positions(args), args.seeds):
            rows.setdefault(name, (pair, {}))[1][title] = images
    return plot_generated([(category, pair, images) for (_, category), (pair, images) in rows.items()])


def _generate(cfg, choose_positions, seeds: list[int]):
    """((position, category), (source, target), images) of each pair under one prompt."""
    from config import ConfigError
    from engine.build import build_generator, build_test
    from engine.generate import generate_for_pair, load_pair_images

    accelerator, pairs, matcher = build_test(cfg, choose_positions)
    if (prompt := matcher.prompt) is None:
        raise ConfigError(f"METHOD.NAME {cfg.METHOD.NAME} takes no prompt, so there is nothing to generate from")
    del matcher  # its network is cut; the whole one is loaded now
    generator = build_generator(cfg, accelerator.device)
    for position, record in enumerate(pairs.benchmark):
        images = generate_for_pair(generator, prompt, pairs, position, seeds, accelerator.device)
        yield (position, record.category), load_pair_images(pairs, position), images
