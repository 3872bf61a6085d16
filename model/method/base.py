"""What training and testing know of a matcher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from model.prompt.base import Prompt


class Matcher(Protocol):
    """Maps images to feature maps. Batches carry `cache_keys`, for pairs as "src_..." and "trg_...".

    A matcher is a torch module: `to`, `train` and `eval` act on its learnable part, its networks are frozen.
    """

    per_image: bool  # whether an image's features do not depend on its partner
    cache_keys: tuple[str, ...]
    prompt: Prompt | None  # None: there is nothing to learn

    def at(self, timestep: int, ensemble: int) -> Matcher:
        """The same networks and prompt, shared, at another diffusion step and number of noise draws.

        A matcher without noise ignores what it has no use for.
        """

    def extract(self, batch: Mapping[str, Any], seeds: Tensor) -> Tensor:
        """Feature maps (n, C, h, w), float32, of an image batch; seeds: (n,) int64.

        ValueError if not `per_image`.
        """

    def extract_pair(
        self, batch: Mapping[str, Any], seeds: Tensor, tokens: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Source and target maps, each (B, C, h, w), float32; seeds: (B, 2) int64, source and target.

        tokens: what the prompt gave for this batch, if it was called from outside (through a distributed
        wrapper); None: it is called here.
        """


def get_cached(batch: Mapping[str, Any], key: str) -> Tensor:
    """An array of the batch; ValueError if it was built without that cache."""
    if key not in batch:
        raise ValueError(f"the batch has no {key}: build the data set with the cache that holds it")
    return batch[key]
