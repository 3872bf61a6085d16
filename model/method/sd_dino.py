"""SD+DINO: the features of Stable Diffusion and of DINOv2, each L2-normalised, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.method.base import get_cached
from model.method.sd4match import SD4Match
from model.prompt.base import Prompt


class SDDINO(nn.Module):
    """[sd_weight * SD ; dino_weight * DINO] on the grid of Stable Diffusion's map.

    The cosine of two fused vectors is the mean of the two cosines, weighted with the squared weights.
    """

    def __init__(
        self,
        diffusion: SD4Match,
        *,
        sd_weight: float = 0.5,
        dino_weight: float = 0.5,
    ) -> None:
        super().__init__()
        if min(sd_weight, dino_weight) < 0 or sd_weight + dino_weight == 0:
            raise ValueError(f"weights must be at least 0 and not both 0, got {sd_weight} and {dino_weight}")
        self.diffusion = diffusion
        self.sd_weight = sd_weight
        self.dino_weight = dino_weight
        self.per_image = diffusion.per_image
        self.cache_keys = (*diffusion.cache_keys, "dino")

    @property
    def prompt(self) -> nn.Module:
        return self.diffusion.prompt

    def at(self, timestep: int, ensemble: int) -> SDDINO:
        diffusion = self.diffusion.at(timestep, ensemble)
        return SDDINO(diffusion, sd_weight=self.sd_weight, dino_weight=self.dino_weight)

    def under(self, prompt: Prompt) -> SDDINO:
        """The same networks under another prompt."""
        return SDDINO(self.diffusion.under(prompt), sd_weight=self.sd_weight, dino_weight=self.dino_weight)

    def extract(self, batch: Mapping[str, Any], seeds: Tensor) -> Tensor:
        return self._fuse(self.diffusion.extract(batch, seeds), get_cached(batch, "dino"))

    def extract_pair(
        self, batch: Mapping[str, Any], seeds: Tensor, tokens: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        src_feat, trg_feat = self.diffusion.extract_pair(batch, seeds, tokens)
        src_dino, trg_dino = (get_cached(batch, f"{side}_dino") for side in ("src", "trg"))
        return self._fuse(src_feat, src_dino), self._fuse(trg_feat, trg_dino)

    def _fuse(self, sd_feat: Tensor, dino_feat: Tensor) -> Tensor:
        """(n, C + D, h, w) of SD (n, C, h, w) and DINO (n, D, h', w'), resampled to h x w if need be."""
        dino_feat = dino_feat.to(device=sd_feat.device, dtype=torch.float32)
        if dino_feat.shape[-2:] != sd_feat.shape[-2:]:
            dino_feat = F.interpolate(
                dino_feat, size=sd_feat.shape[-2:], mode="bilinear", align_corners=False, antialias=True
            )
        halves = self.sd_weight * F.normalize(sd_feat, dim=1), self.dino_weight * F.normalize(dino_feat, dim=1)
        return torch.cat(halves, dim=1)
