"""DINOv2 alone: its patch tokens, as the cache holds them, are the feature map."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from model.method.base import get_cached


class DINOv2(nn.Module):
    """Reads the maps of model.backbone.vision from the cache; no prompt, no noise, nothing to compute."""

    per_image = True
    cache_keys = ("dino",)
    prompt = None

    def at(self, timestep: int, ensemble: int) -> DINOv2:
        return self

    def extract(self, batch: Mapping[str, Any], seeds: Tensor) -> Tensor:
        return get_cached(batch, "dino").float()

    def extract_pair(
        self, batch: Mapping[str, Any], seeds: Tensor, tokens: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return get_cached(batch, "src_dino").float(), get_cached(batch, "trg_dino").float()
