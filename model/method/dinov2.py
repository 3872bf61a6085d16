"""DINOv2 alone: its patch tokens, as the cache holds them, are the feature map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model.method.base import Batch, FeatureMethod


class DINOv2(FeatureMethod):
    """The maps of model.backbone.vision; no prompt, no noise, nothing to compute."""

    reads = ("dino",)

    def __init__(self, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.image_size = image_size

    def features(self, batch: Batch, seeds: Tensor) -> Tensor:
        return batch["dino"].float()

    @classmethod
    def build(cls, cfg, device: torch.device, categories: Sequence[str] | None, training: bool, folder=None):
        return cls(cfg.DATASET.IMAGE_SIZE)
