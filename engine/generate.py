"""Images generated from prompts for pairs of a benchmark."""

from collections.abc import Sequence

import numpy as np
import torch

from dataset.pair_dataset import PairDataset, collate, load_image
from engine.transfer import move_batch
from model.backbone.generate import Generator
from model.prompt.base import Prompt


def generate_for_pair(
    generator: Generator,
    prompt: Prompt,
    dataset: PairDataset,
    position: int,
    seeds: Sequence[int],
    device: torch.device,
) -> list[np.ndarray]:
    """An image (H, W, 3) uint8 for each seed, from the prompt of one pair; of its source, if each image has its own.

    dataset: with the caches that the prompt reads; prompt: on the device.
    """
    batch = move_batch(collate([dataset[position]]), device)
    return generator.generate(generator.embed(prompt, batch)[:1], seeds)


def load_pair_images(dataset: PairDataset, position: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Source and target, (3, H, W) in [-1, 1], of the resized frame."""
    record = dataset.benchmark[position]
    return load_image(record.src, dataset.image_size), load_image(record.trg, dataset.image_size)
