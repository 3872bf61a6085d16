"""What a validation draws of its first pairs, for tensorboard."""

from collections.abc import Sequence

import numpy as np
import torch

from dataset.pair_dataset import PairDataset
from engine.build import build_generator
from engine.figure import plot_dense, plot_generated
from engine.generate import generate_for_pair, load_pair_images
from engine.picture import draw_pairs, match_pair_densely
from model.backbone.generate import Generator
from model.prompt.base import Prompt
from utils.draw import render


class Preview:
    """Pictures of each pair by kind: those of `draw_pairs` and what the section VAL asks for.

    The networks of VAL.GENERATE are loaded once and wait on the CPU for the next validation.
    """

    def __init__(self, cfg, device: torch.device) -> None:
        self.cfg, self.device = cfg, device
        self._generator: Generator | None = None

    def draw(self, matcher, dataset: PairDataset, positions: Sequence[int], title: str) -> list[dict[str, np.ndarray]]:
        """{kind: picture} of the pairs at these positions under the matcher's prompt, which is called `title`."""
        pictures = draw_pairs(self.cfg, matcher, dataset, positions, title, self.device)
        if self.cfg.VAL.DENSE:
            for picture, position in zip(pictures, positions, strict=True):
                pair = match_pair_densely(self.cfg, matcher, dataset, position, self.device, self.cfg.VAL.DENSE)
                picture["dense"] = render(plot_dense([{title: pair}]))
        if self.cfg.VAL.GENERATE and positions:
            generated = self._generate(matcher.prompt, dataset, positions)
            for picture, position, images in zip(pictures, positions, generated, strict=True):
                row = (dataset.benchmark[position].category, load_pair_images(dataset, position), {title: images})
                picture["generated"] = render(plot_generated([row]))
        return pictures

    def _generate(self, prompt: Prompt, dataset: PairDataset, positions: Sequence[int]) -> list[list[np.ndarray]]:
        """VAL.GENERATE images for each pair."""
        if self._generator is None:
            self._generator = build_generator(self.cfg, self.device)
        seeds = range(self.cfg.SEED, self.cfg.SEED + self.cfg.VAL.GENERATE)
        generator = self._generator.to(self.device)
        try:
            return [generate_for_pair(generator, prompt, dataset, p, seeds, self.device) for p in positions]
        finally:
            generator.to("cpu")
