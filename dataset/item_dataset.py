"""Item records -> tensors: the batches of the ranking task."""

from __future__ import annotations

from typing import Any

import torch

from dataset.pair_dataset import RecordDataset, load_image
from dataset.ranking import RankingBenchmark


class ItemDataset(RecordDataset):
    """The items of a benchmark.

    Keys of a batch (B items of T texts and I images):
        index (B,) int64; item_id, category: lists; texts: B lists of T; identifiers: B lists of I
        K (B, I, ...) for each cache K
        img (B, I, 3, H', W') float32 in [-1, 1], only with_images
    """

    benchmark: RankingBenchmark

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.benchmark[index]
        names = [ref.identifier for ref in item.images]
        values = {key: torch.stack([cache.get(name) for name in names]) for key, cache in self.caches.items()}
        if self.with_images:
            values["img"] = torch.stack([load_image(ref, self.frame) for ref in item.images])
        return {
            "index": index,
            "item_id": item.item_id,
            "category": item.category,
            "texts": list(item.texts),
            "identifiers": names,
            **values,
        }
