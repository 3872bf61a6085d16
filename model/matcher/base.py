"""What training and testing know of a matcher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor


class Matcher(Protocol):
    """Maps images to feature maps. Batches carry `cache_keys`, for pairs as "src_..." and "trg_..."."""

    per_image: bool  # whether an image's features do not depend on its partner
    cache_keys: tuple[str, ...]

    def extract(self, batch: Mapping[str, Any], seeds: Tensor) -> Tensor:
        """Feature maps (n, C, h, w), float32, of an image batch; seeds: (n,) int64."""

    def extract_pair(
        self, batch: Mapping[str, Any], seeds: Tensor, tokens: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Source and target maps, each (B, C, h, w), float32; seeds: (B, 2); tokens: the prompt's output."""
