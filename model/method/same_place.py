"""A guess without any network: every point lies in the target where it lies in the source. What to be better than."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model.method.base import Batch, Method
from utils.geometry import Size, cell_grid


class SamePlace(Method):
    """Similarity = minus the distance from the point, at every pixel."""

    def __init__(self, image_size: Size) -> None:
        super().__init__()
        self.image_size = image_size

    def similarity(self, batch: Batch, seeds: Tensor) -> Nearness:
        return Nearness(self.image_size)

    @classmethod
    def build(cls, cfg, device: torch.device, categories: Sequence[str] | None, training: bool, folder=None):
        return cls(cfg.DATASET.IMAGE_SIZE)


class Nearness:
    def __init__(self, src_size: Size) -> None:
        self.src_size = src_size

    def __call__(self, points_cell: Tensor) -> Tensor:
        return -torch.cdist(points_cell, cell_grid(self.src_size, points_cell)).unflatten(-1, self.src_size)
