"""Running a matcher over a benchmark: feature maps, predicted points, one record per pair."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch.utils.data import DataLoader, Subset

from dataset.pair_dataset import ImageDataset, PairDataset, collate, drop_padding
from model.noise import identifier_seed
from utils.localise import localise
from utils.pck import PCKEvaluator
from utils.runtime import leave_signals_to_parent

Features = tuple[dict, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Protocol:
    """How predictions are made and judged (config section EVAL)."""

    localisers: tuple[str, ...]
    alphas: tuple[float, ...]
    beta: float
    sigma: float  # feature cells
    frame: str  # "resized" or "original"


@torch.no_grad()
def evaluate(
    matcher,
    dataset: PairDataset,
    protocol: Protocol,
    *,
    seed: int,
    batch_size: int,
    device: torch.device,
    num_workers: int = 0,
    rank: int = 0,
    world: int = 1,
    progress: Callable[[Iterable], Iterable] = iter,
) -> list[dict]:
    """The records of this process's share of the pairs (PCKEvaluator's, in no particular order).

    An image's noise depends on `seed` and its identifier alone, so neither batches nor processes change a result.
    """
    evaluator = PCKEvaluator(protocol.localisers, protocol.alphas, protocol.frame, dataset.image_size)
    positions = share_positions(dataset, rank, world)
    batches = extract_pairs(matcher, dataset, positions, seed, batch_size, device, num_workers)
    for batch, src_feat, trg_feat in progress(batches):
        predictions = localise(
            src_feat,
            trg_feat,
            batch["src_kps"],
            dataset.image_size,
            protocol.localisers,
            beta=protocol.beta,
            sigma=protocol.sigma,
        )
        evaluator.update(batch, predictions)
    return evaluator.records()


def share_positions(dataset: PairDataset, rank: int, world: int) -> list[int]:
    """This process's pairs: a run of the list sorted by category, so that processes share few images."""
    categories = [record.category for record in dataset.benchmark]
    order = sorted(range(len(categories)), key=lambda position: (categories[position], position))
    return order[len(order) * rank // world : len(order) * (rank + 1) // world]


def extract_pairs(
    matcher,
    dataset: PairDataset,
    positions: Sequence[int],
    seed: int,
    batch_size: int,
    device,
    num_workers: int = 0,
) -> Iterator[Features]:
    """(batch on the device, source maps, target maps), (B, C, h, w) each, of the pairs at `positions`.

    Each image goes through the networks once if the matcher allows it, else both images of every pair do.
    """
    if matcher.per_image:
        return _extract_by_image(matcher, dataset, positions, seed, batch_size, device)
    return _extract_by_pair(matcher, dataset, positions, seed, batch_size, device, num_workers)


def _extract_by_image(
    matcher, dataset: PairDataset, positions: Sequence[int], seed: int, batch_size: int, device
) -> Iterator[Features]:
    """The maps of one category's images are held at a time."""
    benchmark = dataset.benchmark
    bare = PairDataset(benchmark, dataset.image_size)
    for _, group in groupby(positions, key=lambda position: benchmark[position].category):
        group = list(group)
        refs = {ref.identifier: ref for i in group for ref in (benchmark[i].src, benchmark[i].trg)}
        maps = _extract_images(matcher, dataset, list(refs.values()), seed, batch_size, device)
        for batch in DataLoader(Subset(bare, group), batch_size, collate_fn=collate):
            src_feat = torch.stack([maps[name] for name in batch["src_identifier"]])
            trg_feat = torch.stack([maps[name] for name in batch["trg_identifier"]])
            yield move_batch(drop_padding(batch), device), src_feat, trg_feat


def _extract_images(matcher, dataset: PairDataset, refs: list, seed: int, batch_size: int, device) -> dict:
    """{identifier: (C, h, w) map} of the images."""
    benchmark = dataset.benchmark
    images = ImageDataset(refs, dataset.image_size, dataset.caches, False, benchmark.categories)
    maps = {}
    for batch in DataLoader(images, batch_size, collate_fn=collate):
        seeds = torch.tensor([identifier_seed(seed, name) for name in batch["identifier"]])
        maps.update(zip(batch["identifier"], matcher.extract(move_batch(batch, device), seeds), strict=True))
    return maps


def _extract_by_pair(
    matcher,
    dataset: PairDataset,
    positions: Sequence[int],
    seed: int,
    batch_size: int,
    device,
    num_workers: int,
) -> Iterator[Features]:
    loader = DataLoader(
        Subset(dataset, positions),
        batch_size,
        collate_fn=collate,
        num_workers=num_workers,
        worker_init_fn=leave_signals_to_parent,
    )
    for batch in loader:
        names = zip(batch["src_identifier"], batch["trg_identifier"], strict=True)
        seeds = torch.tensor([[identifier_seed(seed, name) for name in pair] for pair in names])
        batch = move_batch(drop_padding(batch), device)
        yield batch, *matcher.extract_pair(batch, seeds)


def move_batch(batch: dict, device: torch.device) -> dict:
    """The batch with every tensor (also inside nested dicts) on the device."""
    moved = {}
    for key, value in batch.items():
        if isinstance(value, dict):
            value = move_batch(value, device)
        elif isinstance(value, torch.Tensor):
            value = value.to(device, non_blocking=True)
        moved[key] = value
    return moved
