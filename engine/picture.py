"""Pictures of a matcher at work on pairs of a benchmark: match lines, and correlation maps of several matchers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dataset.pair_dataset import PairDataset, compute_scale, load_image
from engine.evaluate import extract_pairs
from utils.dense import match_densely, resize_features
from utils.draw import draw_correlation, draw_matches
from utils.geometry import cell_to_px, px_to_cell
from utils.localise import correlation, localise
from utils.pck import compute_hits


@dataclass(frozen=True)
class MatchedPair:
    """One pair as a matcher sees it; points are pixels of the resized frame."""

    src_img: torch.Tensor  # (3, H, W) in [-1, 1]
    trg_img: torch.Tensor
    category: str
    src_kps: torch.Tensor  # (N, 2), without padding
    trg_kps: torch.Tensor
    pred_kps: torch.Tensor
    hits: torch.Tensor  # (N,) bool
    sim: torch.Tensor  # (N, h, w)


@dataclass(frozen=True)
class DensePair:
    """One pair with a match for every place of a grid over its source image."""

    src_img: torch.Tensor  # (3, H, W) in [-1, 1]
    trg_img: torch.Tensor
    category: str
    trg_box: torch.Tensor  # (4,) the object, px of the resized frame
    points: torch.Tensor  # (g, g, 2) matches, px of the resized frame
    cycle: torch.Tensor  # (g, g) forward-backward error, share of the image's side


def choose_pairs(dataset: PairDataset, n_pairs: int) -> list[int]:
    """Positions of the first pair of each category in turn, then of the second, ...: the same in every run."""
    by_category: dict[str, list[int]] = {}
    for position, record in enumerate(dataset.benchmark):
        if len(record.src_kps):
            by_category.setdefault(record.category, []).append(position)
    rank = {position: place for group in by_category.values() for place, position in enumerate(group)}
    return sorted(rank, key=lambda position: (rank[position], position))[:n_pairs]


@torch.no_grad()
def match_pair(cfg, matcher, dataset: PairDataset, position: int, device: torch.device) -> MatchedPair:
    """Run the matcher on one pair, with the noise that `evaluate` uses: the picture shows what was scored."""
    batch, src_feat, trg_feat = next(extract_pairs(matcher, dataset, [position], cfg.SEED, 1, device))
    n = int(batch["kps_mask"].sum())
    size, src_kps = dataset.image_size, batch["src_kps"][:, :n]
    localiser, section = cfg.EVAL.PICTURE_LOCALISER, cfg.EVAL
    options = {"beta": section.BETA, "sigma": section.SIGMA}
    pred = localise(src_feat, trg_feat, batch["src_kps"], size, (localiser,), **options)[localiser]
    record = dataset.benchmark[position]
    return MatchedPair(
        src_img=load_image(record.src, size),
        trg_img=load_image(record.trg, size),
        category=record.category,
        src_kps=src_kps[0].cpu(),
        trg_kps=batch["trg_kps"][0, :n].cpu(),
        pred_kps=pred[0, :n].cpu(),
        hits=compute_hits(pred, batch, [section.PICTURE_ALPHA], section.PROTOCOL, size)[0, :n, 0],
        sim=correlation(src_feat, trg_feat, px_to_cell(src_kps, size, src_feat.shape[-2:]))[0].cpu(),
    )


@torch.no_grad()
def match_pair_densely(cfg, matcher, dataset: PairDataset, position: int, device: torch.device, grid: int) -> DensePair:
    """Match every place of a grid x grid over the source image, by EVAL.PICTURE_LOCALISER."""
    _, src_feat, trg_feat = next(extract_pairs(matcher, dataset, [position], cfg.SEED, 1, device))
    size, record, section = dataset.image_size, dataset.benchmark[position], cfg.EVAL
    finer = [resize_features(feat[0], (grid, grid)) for feat in (src_feat, trg_feat)]
    sigma = section.SIGMA * grid / max(src_feat.shape[-2:])
    field = match_densely(*finer, localiser=section.PICTURE_LOCALISER, beta=section.BETA, sigma=sigma)
    scale = torch.from_numpy(compute_scale(record.trg.size, size)).repeat(2)
    return DensePair(
        src_img=load_image(record.src, size),
        trg_img=load_image(record.trg, size),
        category=record.category,
        trg_box=torch.from_numpy(record.trg_bbox) * scale,
        points=cell_to_px(field.points, (grid, grid), size).cpu(),
        cycle=field.cycle.cpu() / grid,
    )


def draw_pair_matches(pair: MatchedPair, title: str) -> np.ndarray:
    """Match lines of one pair, right and wrong apart; RGB (H, W, 3) uint8."""
    titles = (f"{pair.category}: source", title)
    return draw_matches(pair.src_img, pair.trg_img, pair.src_kps, pair.trg_kps, pair.pred_kps, pair.hits, titles=titles)


def choose_point(pairs: dict[str, MatchedPair]) -> int:
    """Index of the first keypoint on which the matchers differ, else of the first."""
    differ = torch.stack([pair.hits for pair in pairs.values()]).float().std(dim=0, correction=0)
    return int(differ.argmax())


def draw_pair_correlation(pairs: dict[str, MatchedPair], point: int | None = None) -> np.ndarray:
    """Correlation maps of the same pair under several matchers (title -> pair), for one keypoint; RGB uint8.

    point: index of the keypoint; by default `choose_point`'s.
    """
    first = next(iter(pairs.values()))
    point = choose_point(pairs) if point is None else point
    return draw_correlation(
        first.src_img,
        first.trg_img,
        first.src_kps[point],
        {title: pair.sim[point] for title, pair in pairs.items()},
        first.trg_kps[point],
        {title: pair.pred_kps[point] for title, pair in pairs.items()},
    )


def draw_pairs(
    cfg, matcher, dataset: PairDataset, positions: Sequence[int], title: str, device: torch.device
) -> list[dict[str, np.ndarray]]:
    """{"matches": picture, "correlation": picture} of each pair."""
    pictures = []
    for position in positions:
        pair = match_pair(cfg, matcher, dataset, position, device)
        pictures.append(
            {"matches": draw_pair_matches(pair, title), "correlation": draw_pair_correlation({title: pair})}
        )
    return pictures
