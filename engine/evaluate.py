"""Running a matcher over a benchmark: feature maps, predicted points, one record per pair."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch.utils.data import Subset

from dataset.pair_dataset import ImageDataset, PairDataset, drop_padding
from engine.host_copy import HostCopy
from engine.transfer import FeatureStore, build_loader, move_batch
from utils.localise import localise
from utils.noise import identifier_seed
from utils.pck import PCKEvaluator

GIB = 2**30
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
    feature_gib: float = math.inf,
    progress: Callable[[Iterable], Iterable] = iter,
) -> list[dict]:
    """The records of this process's share of the pairs (PCKEvaluator's, in no particular order).

    An image's noise depends on `seed` and its identifier alone, so neither batches nor processes change a result.
    feature_gib: device memory for the maps of one category's images; the rest are kept in host memory.
    """
    evaluator = PCKEvaluator(protocol.localisers, protocol.alphas, protocol.frame, dataset.frame)
    positions = share_positions(dataset, rank, world)
    waiting: tuple[dict, HostCopy] | None = None
    for batch, *maps in progress(
        _extract(matcher, dataset, positions, seed, batch_size, device, num_workers, feature_gib)
    ):
        settings = dataset.image_size, protocol.localisers, protocol.beta, protocol.sigma
        found = HostCopy(localise(*maps, batch["src_kps"].to(device, non_blocking=True), *settings))
        if waiting is not None:  # scored while the device is busy with the next batch
            evaluator.update(waiting[0], waiting[1].get())
        waiting = batch, found
    if waiting is not None:
        evaluator.update(waiting[0], waiting[1].get())
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
    device: torch.device,
    num_workers: int = 0,
) -> Iterator[Features]:
    """(batch on the device, source maps, target maps), (B, C, h, w) each, of the pairs at `positions`.

    Each image goes through the networks once if the matcher allows it, else both images of every pair do.
    """
    for batch, *maps in _extract(matcher, dataset, positions, seed, batch_size, device, num_workers, math.inf):
        yield move_batch(batch, device), *maps


def _extract(
    matcher,
    dataset: PairDataset,
    positions: Sequence[int],
    seed: int,
    batch_size: int,
    device: torch.device,
    num_workers: int,
    feature_gib: float,
) -> Iterator[Features]:
    """As `extract_pairs`, with the batch on the host."""
    if matcher.per_image:
        return _extract_by_image(matcher, dataset, positions, seed, batch_size, device, feature_gib)
    return _extract_by_pair(matcher, dataset, positions, seed, batch_size, device, num_workers)


def _extract_by_image(
    matcher, dataset: PairDataset, positions: Sequence[int], seed: int, batch_size: int, device, feature_gib: float
) -> Iterator[Features]:
    """The maps of one category's images are held at a time."""
    benchmark = dataset.benchmark
    bare = PairDataset(benchmark, dataset.frame)
    for _, group in groupby(positions, key=lambda position: benchmark[position].category):
        group = list(group)
        refs = {ref.identifier: ref for i in group for ref in (benchmark[i].src, benchmark[i].trg)}
        maps = FeatureStore(feature_gib * GIB)
        for names, features in extract_images(matcher, dataset, list(refs.values()), seed, batch_size, device):
            maps.add(names, features)
        for batch in build_loader(Subset(bare, group), device, batch_size=batch_size):
            src_feat, trg_feat = (maps.stack(batch[f"{side}_identifier"], device) for side in ("src", "trg"))
            yield drop_padding(batch), src_feat, trg_feat


def extract_images(
    matcher, dataset: PairDataset, refs: list, seed: int, batch_size: int, device: torch.device
) -> Iterator[tuple[list[str], torch.Tensor]]:
    """(identifiers, maps (n, C, h, w)) of the images, `batch_size` at a time."""
    images = ImageDataset(refs, dataset.frame, dataset.caches, False, dataset.benchmark.categories)
    for batch in build_loader(images, device, batch_size=batch_size):
        seeds = torch.tensor([identifier_seed(seed, name) for name in batch["identifier"]])
        yield batch["identifier"], matcher.extract(move_batch(batch, device), seeds)


def _extract_by_pair(
    matcher,
    dataset: PairDataset,
    positions: Sequence[int],
    seed: int,
    batch_size: int,
    device: torch.device,
    num_workers: int,
) -> Iterator[Features]:
    for batch in build_loader(Subset(dataset, positions), device, num_workers, batch_size=batch_size):
        names = zip(batch["src_identifier"], batch["trg_identifier"], strict=True)
        seeds = torch.tensor([[identifier_seed(seed, name) for name in pair] for pair in names])
        batch = drop_padding(batch)
        yield batch, *matcher.extract_pair(move_batch(batch, device), seeds)
