"""What a validation draws of its first pairs, for tensorboard."""

from collections.abc import Sequence

import numpy as np
import torch

from dataset.pair_dataset import PairDataset
from utils.build import build_generator
from utils.draw import render
from utils.figure import plot_dense, plot_generated
from utils.generate import generate_for_pair, load_pair_images
from utils.picture import draw_pairs, match_pair_densely


def draw_validation(
    cfg, matcher, dataset: PairDataset, positions: Sequence[int], title: str, device: torch.device
) -> list[dict[str, np.ndarray]]:
    """Pictures of each pair by kind, those of `draw_pairs` and what the section VAL asks for."""
    pictures = draw_pairs(cfg, matcher, dataset, positions, title, device)
    if cfg.VAL.DENSE:
        for picture, position in zip(pictures, positions, strict=True):
            pair = match_pair_densely(cfg, matcher, dataset, position, device, cfg.VAL.DENSE)
            picture["dense"] = render(plot_dense([{title: pair}]))
    if cfg.VAL.GENERATE and positions:
        generator, seeds = build_generator(cfg, device), range(cfg.SEED, cfg.SEED + cfg.VAL.GENERATE)
        for picture, position in zip(pictures, positions, strict=True):
            images = generate_for_pair(generator, matcher.prompt, dataset, position, seeds, device)
            row = (dataset.benchmark[position].category, load_pair_images(dataset, position), {title: images})
            picture["generated"] = render(plot_generated([row]))
    return pictures
