"""Between host and device: loaders that pin, batches that move, feature maps that are kept."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dataset.pair_dataset import collate
from engine.process import leave_signals_to_parent


def build_loader(dataset: Dataset, device: torch.device, num_workers: int = 0, **batching: Any) -> DataLoader:
    """Batches of `collate`; in pinned memory if they go to a GPU. batching: batch_size, or batch_sampler."""
    return DataLoader(
        dataset,
        collate_fn=collate,
        num_workers=num_workers,
        worker_init_fn=leave_signals_to_parent,
        pin_memory=device.type == "cuda",
        **batching,
    )


def move_batch(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch with every tensor (also inside nested dicts) on the device; from pinned memory without waiting."""
    moved = {}
    for key, value in batch.items():
        if isinstance(value, dict):
            value = move_batch(value, device)
        elif isinstance(value, Tensor):
            value = value.to(device, non_blocking=True)
        moved[key] = value
    return moved


class FeatureStore:
    """Feature maps by identifier: on their device up to a budget, the rest in host memory (pinned for a GPU)."""

    def __init__(self, budget_bytes: float) -> None:
        self._free_bytes = budget_bytes
        self._maps: dict[str, Tensor] = {}
        self.n_spilled = 0  # maps in host memory

    def add(self, identifiers: Sequence[str], maps: Tensor) -> None:
        """Keep maps (n, C, h, w), all of them here or there."""
        n_bytes = maps.numel() * maps.element_size()
        if n_bytes <= self._free_bytes:
            self._free_bytes -= n_bytes
        else:
            self.n_spilled += len(maps)
            maps = maps.to("cpu", non_blocking=True)  # into pinned memory; who reads it waits in the same stream
        self._maps.update(zip(identifiers, maps, strict=True))

    def stack(self, identifiers: Sequence[str], device: torch.device) -> Tensor:
        """The maps (n, C, h, w) of some images, on the device."""
        return torch.stack([self._maps[name].to(device, non_blocking=True) for name in identifiers])
