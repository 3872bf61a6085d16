"""A method at work on pairs of a benchmark: what `utils.draw` makes pictures of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from config import ConfigError
from dataset.pair_dataset import PairDataset, collate, load_image
from engine.build import build_generator
from engine.evaluate import match_pairs
from engine.transfer import move_batch
from utils.dense import match_densely, resize_features
from utils.draw import (
    WIDE_PANEL,
    DensePair,
    GeneratedPair,
    MatchedPair,
    plot_correlations,
    plot_layer_maps,
    plot_matches,
)
from utils.geometry import cell_to_px, px_to_cell
from utils.localise import FeatureSimilarity, Similarity, localise
from utils.pck import compute_hits
from utils.plot import FeaturePair
from utils.store import digest

if TYPE_CHECKING:
    from matplotlib.figure import Figure


MAPS = "maps"  # what the names of pictures of a point's maps start with


def choose_pairs(dataset: PairDataset, n_pairs: int) -> list[int]:
    """Positions of the first pair of each category in turn, then of the second, ...: the same in every run."""
    by_category: dict[str, list[int]] = {}
    for position, record in enumerate(dataset.benchmark):
        if len(record.src_kps):
            by_category.setdefault(record.category, []).append(position)
    rank = {position: place for group in by_category.values() for place, position in enumerate(group)}
    return sorted(rank, key=lambda position: (rank[position], position))[:n_pairs]


def choose_point(pairs: Mapping[str, MatchedPair]) -> int:
    """Index of the first keypoint on which the methods differ, else of the first."""
    differ = torch.stack([pair.hits for pair in pairs.values()]).float().std(dim=0, correction=0)
    return int(differ.argmax())


@torch.no_grad()
def match_pair(cfg, method, dataset: PairDataset, position: int, device: torch.device) -> MatchedPair:
    """Run the method on one pair, with the noise that `evaluate` uses: the picture shows what was scored."""
    batch, similarity = next(match_pairs(method, dataset, [position], cfg.SEED, device))
    batch = move_batch(batch, device)
    n = int(batch["kps_mask"].sum())
    size, src_kps = dataset.image_size, batch["src_kps"][:, :n]
    localiser, section = cfg.EVAL.PICTURE_LOCALISER, cfg.EVAL
    options = {"beta": section.BETA, "sigma": section.SIGMA, "window": section.WINDOW}
    find = partial(localise, image_size=size, names=(localiser,), **options)
    found = find(similarity, batch["src_kps"])
    if dataset.alignment:
        found, _ = dataset.alignment.predict(batch, similarity, find, found)
    pred = found[localiser]
    return MatchedPair(
        **_load_images(dataset, position),
        src_kps=src_kps[0].cpu(),
        trg_kps=batch["trg_kps"][0, :n].cpu(),
        pred_kps=pred[0, :n].cpu(),
        hits=compute_hits(pred, batch, [section.PICTURE_ALPHA], section.PROTOCOL, dataset.frame, section.INEQUALITY)[
            0, :n, 0
        ],
        sim=similarity(px_to_cell(src_kps, size, similarity.src_size))[0].cpu(),
    )


@torch.no_grad()
def match_pair_densely(cfg, method, dataset: PairDataset, position: int, device: torch.device, grid: int) -> DensePair:
    """Match every place of a grid x grid over the source image, by EVAL.PICTURE_LOCALISER."""
    _, similarity = next(match_pairs(method, dataset, [position], cfg.SEED, device))
    size, record, section = dataset.image_size, dataset.benchmark[position], cfg.EVAL
    finer = [resize_features(feat, (grid, grid)) for feat in _find_maps(cfg, similarity)]
    finer_by = grid / max(similarity.src_size)
    field = match_densely(
        *finer,
        localiser=section.PICTURE_LOCALISER,
        beta=section.BETA,
        sigma=section.SIGMA * finer_by,
        window=round(section.WINDOW * finer_by),
        image_size=size,
    )
    return DensePair(
        **_load_images(dataset, position),
        trg_box=dataset.frame.box_to_px(torch.from_numpy(record.trg_bbox), record.trg.size),
        points=cell_to_px(field.points, (grid, grid), size).cpu(),
        cycle=field.cycle.cpu() / grid,
    )


@torch.no_grad()
def extract_features(cfg, method, dataset: PairDataset, position: int, device: torch.device) -> FeaturePair:
    """Both feature maps of one pair."""
    _, similarity = next(match_pairs(method, dataset, [position], cfg.SEED, device))
    src_feat, trg_feat = (feat.cpu() for feat in _find_maps(cfg, similarity))
    return FeaturePair(**_load_images(dataset, position), src_feat=src_feat, trg_feat=trg_feat)


class PairGenerator:
    """Images that Stable Diffusion generates from a prompt for pairs.

    Its networks are loaded on first use and wait on the CPU in between.
    """

    def __init__(self, cfg, device: torch.device) -> None:
        self._cfg, self._device, self._generator = cfg, device, None

    def generate(self, prompt, dataset: PairDataset, position: int, seeds: Sequence[int]) -> GeneratedPair:
        """An image for each seed, from the prompt of one pair; of its source, if each image has its own.

        dataset: with the caches that the prompt reads; prompt: on the device.
        """
        self._generator = self._generator or build_generator(self._cfg, self._device)
        batch = move_batch(collate([dataset[position]]), self._device)
        generator = self._generator.to(self._device)
        try:
            images = generator.generate(generator.embed(prompt, batch)[:1], seeds)
        finally:
            generator.to("cpu")
        return GeneratedPair(**_load_images(dataset, position), images=images)


def draw_pairs(
    cfg, method, dataset: PairDataset, positions: Sequence[int], title: str, device: torch.device
) -> list[dict[str, Figure]]:
    """{"matches": figure, "correlation": figure} of each pair under the method, which is called `title`."""
    pictures = []
    for position in positions:
        row = {title: match_pair(cfg, method, dataset, position, device)}
        correlation = plot_correlations([row], [choose_point(row)], WIDE_PANEL)
        maps = draw_layer_maps(method, dataset, position, row[title], cfg.SEED, device)
        pictures.append({"matches": plot_matches([row], WIDE_PANEL), "correlation": correlation, **maps})
    return pictures


def draw_layer_maps(
    method, dataset: PairDataset, position: int, pair: MatchedPair, seed: int, device: torch.device
) -> dict[str, Figure]:
    """A figure for each point of a pair, with its maps over both images, if the method has maps of several layers."""
    batch, similarity = next(match_pairs(method, dataset, [position], seed, device))
    if not hasattr(similarity, "layer_maps"):
        return {}
    points, names = batch["src_kps"].to(device), [*similarity.layers, "mean"]
    src, trg = (similarity.layer_maps(points, on_source)[0].cpu() for on_source in (True, False))
    src, trg = (torch.cat([maps, maps.mean(dim=1, keepdim=True)], dim=1) for maps in (src, trg))
    prefix = f"{MAPS}_{digest(dataset.benchmark[position].pair_id)[:8]}"
    figures = (plot_layer_maps(pair, k, names, src[k], trg[k]) for k in range(len(pair.src_kps)))
    return {f"{prefix}_{k:02d}": figure for k, figure in enumerate(figures)}


def _find_maps(cfg, similarity: Similarity) -> tuple[Tensor, Tensor]:
    """The feature maps (C, h, w) of a pair; ConfigError if the method has none."""
    if not isinstance(similarity, FeatureSimilarity):
        raise ConfigError(f"METHOD.NAME {cfg.METHOD.NAME} matches point by point and has no feature maps to show")
    return similarity.src_feat[0], similarity.trg_feat[0]


def _load_images(dataset: PairDataset, position: int) -> dict:
    """The fields of `utils.draw.ImagePair`."""
    record, frame = dataset.benchmark[position], dataset.frame
    images = {"src_img": load_image(record.src, frame), "trg_img": load_image(record.trg, frame)}
    sizes = {"src_size": frame.aspect(record.src.size), "trg_size": frame.aspect(record.trg.size)}
    return {"category": record.category, **images, **sizes}
