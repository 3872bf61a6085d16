"""Item records -> tensors: the batches of the ranking task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from dataset.pair_dataset import Cache, check_caches, load_image
from dataset.ranking import RankingBenchmark
from utils.frame import Frame


class ItemDataset(Dataset):
    """The items of a benchmark as dicts; `dataset.pair_dataset.collate` makes batches of them.

    Keys of a batch (B items of T texts and I images):
        index (B,) int64; item_id, category: lists; texts: B lists of T; identifiers: B lists of I
        K (B, I, ...) for each cache K
        img (B, I, 3, H', W') float32 in [-1, 1], only with_images
    """

    def __init__(
        self,
        benchmark: RankingBenchmark,
        frame: Frame,
        caches: Mapping[str, Cache] | None = None,
        with_images: bool = False,
    ) -> None:
        self.benchmark, self.frame, self.with_images = benchmark, frame, with_images
        self.caches = dict(caches or {})
        if self.caches:
            check_caches(self.caches, benchmark.images())

    def select(self, positions: Sequence[int]) -> ItemDataset:
        """Only the items at `positions`, in that order, with the same caches."""
        return ItemDataset(self.benchmark.select(positions), self.frame, self.caches, self.with_images)

    def __len__(self) -> int:
        return len(self.benchmark)

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
