"""SD+DINO: the features of Stable Diffusion and of DINOv2, each L2-normalised, side by side."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from model.method.base import Batch
from model.method.sd4match import SD4Match


class SDDINO(SD4Match):
    """[sd_weight * SD ; dino_weight * DINO] on the grid of Stable Diffusion's map.

    The cosine of two fused vectors is the mean of the two cosines, weighted with the squared weights.
    """

    inputs = ("posterior", "dino")
    weights = (0.5, 0.5)  # of SD, of DINO

    def extract(self, images: Batch, prompt_embeds: Tensor, seeds: Tensor) -> Tensor:
        return self.fuse(super().extract(images, prompt_embeds, seeds), images["dino"])

    def fuse(self, sd_feat: Tensor, dino_feat: Tensor) -> Tensor:
        """(n, C + D, h, w) of SD (n, C, h, w) and DINO (n, D, h', w'), resampled to h x w if need be."""
        dino_feat = dino_feat.to(device=sd_feat.device, dtype=torch.float32)
        if dino_feat.shape[-2:] != sd_feat.shape[-2:]:
            dino_feat = F.interpolate(
                dino_feat, size=sd_feat.shape[-2:], mode="bilinear", align_corners=False, antialias=True
            )
        sd_weight, dino_weight = self.weights
        return torch.cat([sd_weight * F.normalize(sd_feat, dim=1), dino_weight * F.normalize(dino_feat, dim=1)], dim=1)

    @classmethod
    def build(cls, cfg, *args, **options):
        method = super().build(cfg, *args, **options)
        method.weights = (cfg.METHOD.SD_WEIGHT, cfg.METHOD.DINO_WEIGHT)
        return method
