"""A method over a benchmark: similarities, predicted points, one record per pair."""

from collections.abc import Iterator, Sequence
from functools import partial

import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Subset

from config import ConfigError
from dataset import Benchmark
from dataset.pair_dataset import ImageDataset, PairDataset, collate, drop_padding
from dataset.record import mirror_identifier, mirror_ref
from engine.journal import Journal
from engine.transfer import build_loader, move_batch
from model.backbone.device import check_finite
from model.method.base import Method
from utils.kap import collect_kap
from utils.localise import FeatureSimilarity, Similarity, localise
from utils.noise import identifier_seed
from utils.pck import PCKEvaluator
from utils.progress import progress

HELD = 512  # images whose maps are held at a time


@torch.no_grad()
def evaluate(
    cfg,
    method: Method,
    dataset: PairDataset,
    device: torch.device,
    rank: int = 0,
    world: int = 1,
    journal: Journal | None = None,  # of predictions; not of the maps that KAP and aligned poses ask for
) -> pd.DataFrame:
    """The scores of this process's share of the pairs (PCKEvaluator's, in no particular order), as EVAL says.

    An image's noise depends on SEED and its identifier alone, so neither batches nor processes change a result.
    """
    section = cfg.EVAL
    evaluator = PCKEvaluator(section.LOCALISERS, section.ALPHAS, section.PROTOCOL, dataset.frame, section.INEQUALITY)
    if section.KAP != "none":
        require_seen(dataset.benchmark)
    positions = share_positions(dataset, rank, world)
    journal = None if section.KAP != "none" or dataset.alignment else journal
    done = set()
    for position, batch, found in journal.read(dataset, positions) if journal else ():
        evaluator.update(batch, found)
        done.add(position)
    positions = [position for position in positions if position not in done]
    find = partial(
        localise,
        image_size=dataset.image_size,
        names=section.LOCALISERS,
        beta=section.BETA,
        sigma=section.SIGMA,
        window=section.WINDOW,
    )
    batches = match_pairs(method, dataset, positions, cfg.SEED, device, section.BATCH_SIZE, cfg.DATASET.NUM_WORKERS)
    with progress(None, "evaluating", len(positions), shown=rank == 0, unit="pair") as bar:
        for batch, similarity in batches:
            found = find(similarity, batch["src_kps"].to(device))
            more = collect_kap(similarity, batch, section.ALPHAS, dataset.image_size, section.KAP, device)
            if dataset.alignment:
                found, columns = dataset.alignment.predict(batch, similarity, find, found)
                more |= columns
            evaluator.update(batch, {name: points.cpu() for name, points in found.items()}, more)
            if journal:
                journal.keep(dataset, batch, found)
            bar.update(len(batch["index"]))
    return evaluator.scores()


def require_seen(benchmark: Benchmark) -> None:
    """ConfigError if the annotations do not say what the images show, which KAP asks for."""
    if not len(benchmark) or benchmark[0].src_seen is None or benchmark[0].trg_seen is None:
        raise ConfigError(
            f"EVAL.KAP: {benchmark.root} does not say which keypoints an image shows (it lacks annotations of single "
            "images); set EVAL.KAP none"
        )


def share_positions(dataset: PairDataset, rank: int, world: int) -> list[int]:
    """This process's pairs: a run of the list sorted by category, so that processes share few images."""
    categories = [record.category for record in dataset.benchmark]
    order = sorted(range(len(categories)), key=lambda position: (categories[position], position))
    return order[len(order) * rank // world : len(order) * (rank + 1) // world]


def match_pairs(
    method: Method,
    dataset: PairDataset,
    positions: Sequence[int],
    seed: int,
    device: torch.device,
    batch_size: int = 1,
    num_workers: int = 0,
) -> Iterator[tuple[dict, Similarity]]:
    """(batch on the host, similarity on the device) of the pairs at `positions`.

    Each image goes through the networks once if the method allows it, else both images of every pair do. Where the
    data set has an alignment, batch["mirrored"] is the similarity of the mirrored sources to the targets.
    """
    if method.per_image:
        yield from _match_by_image(method, dataset, positions, seed, device, batch_size)
        return
    for batch in build_loader(Subset(dataset, positions), num_workers, batch_size):
        names = zip(batch["src_identifier"], batch["trg_identifier"], strict=True)
        seeds = torch.tensor([[identifier_seed(seed, name) for name in pair] for pair in names])
        batch = drop_padding(batch)
        similarity = method.similarity(move_batch(batch, device), seeds)
        if isinstance(similarity, FeatureSimilarity):
            check_finite(similarity.src_feat, batch["src_identifier"], method.block, method.precision)
            check_finite(similarity.trg_feat, batch["trg_identifier"], method.block, method.precision)
        if dataset.alignment:
            batch = batch | {"mirrored": method.similarity(move_batch(mirror_source(batch, dataset), device), seeds)}
        yield batch, similarity


def mirror_source(batch: dict, dataset: PairDataset) -> dict:
    """The pair batch with the arrays of the mirrored sources."""
    names = [mirror_identifier(name) for name in batch["src_identifier"]]
    return batch | {
        f"src_{key}": collate([{"": cache.get(name)} for name in names])[""] for key, cache in dataset.caches.items()
    }


def _match_by_image(
    method: Method, dataset: PairDataset, positions: Sequence[int], seed: int, device: torch.device, batch_size: int
) -> Iterator[tuple[dict, FeatureSimilarity]]:
    """The maps of one category's images are held at a time, and at most HELD."""
    benchmark = dataset.benchmark
    bare = PairDataset(benchmark, dataset.frame)
    for group in group_positions(benchmark, positions):
        refs = {ref.identifier: ref for i in group for ref in (benchmark[i].src, benchmark[i].trg)}
        if dataset.alignment:
            refs |= {ref.identifier: ref for ref in (mirror_ref(benchmark[i].src) for i in group)}
        maps: dict[str, Tensor] = {}
        for names, features in extract_images(method, dataset, list(refs.values()), seed, device, batch_size):
            maps.update(zip(names, features, strict=True))
        for batch in build_loader(Subset(bare, group), batch_size=batch_size):
            src, trg = (torch.stack([maps[name] for name in batch[f"{side}_identifier"]]) for side in ("src", "trg"))
            batch = drop_padding(batch)
            if dataset.alignment:
                mirrored = torch.stack([maps[mirror_identifier(name)] for name in batch["src_identifier"]])
                batch["mirrored"] = FeatureSimilarity(mirrored, trg)
            yield batch, FeatureSimilarity(src, trg)


def group_positions(benchmark: Benchmark, positions: Sequence[int]) -> Iterator[list[int]]:
    """Runs of positions of one category whose pairs are of at most HELD different images."""
    group, images, category = [], set(), None
    for position in positions:
        record = benchmark[position]
        names = {record.src.identifier, record.trg.identifier}
        if group and (record.category != category or len(images | names) > HELD):
            yield group
            group, images = [], set()
        group.append(position)
        images |= names
        category = record.category
    if group:
        yield group


def extract_images(
    method: Method, dataset: PairDataset, refs: list, seed: int, device: torch.device, batch_size: int
) -> Iterator[tuple[list[str], Tensor]]:
    """(identifiers, maps (n, C, h, w)) of the images, `batch_size` at a time."""
    images = ImageDataset(refs, dataset.caches)
    for batch in build_loader(images, batch_size=batch_size):
        seeds = torch.tensor([identifier_seed(seed, name) for name in batch["identifier"]])
        features = method.features(move_batch(batch, device), seeds)
        check_finite(features, batch["identifier"], method.block, method.precision)
        yield batch["identifier"], features
