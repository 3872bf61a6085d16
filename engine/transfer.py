"""Loaders of batches, and batches on a device."""

from collections.abc import Mapping
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
