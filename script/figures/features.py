"""feature maps as colours under each prompt: equal colours are similar features; the images of some pairs"""

import argparse

from script.figures.rows import add_pair_arguments, build_positions, collect


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_pair_arguments(parser, pairs=2)


def build(args: argparse.Namespace, columns: dict):
    from utils.plot import plot_feature_colours

    rows = collect(columns, build_positions(args), _extract)
    images = [image for row in rows for image in next(iter(row.values()))[0]]
    return plot_feature_colours(images, {title: [feat for row in rows for feat in row[title][1]] for title in columns})


def _extract(cfg, matcher, pairs, position: int, device) -> tuple:
    """Images and feature maps, source and target."""
    import torch

    from engine.evaluate import extract_pairs
    from engine.generate import load_pair_images

    with torch.no_grad():
        _, *maps = next(extract_pairs(matcher, pairs, [position], cfg.SEED, 1, device))
    return load_pair_images(pairs, position), [feat[0].cpu() for feat in maps]
