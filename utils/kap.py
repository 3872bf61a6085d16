"""The similarities by which KAP (keypoint average precision, Spherical Maps) tells shown keypoints from hidden ones."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from utils.geometry import Size, cell_grid, cell_to_px, px_to_cell
from utils.localise import Similarity
from utils.pck import KAP, alpha_key


def collect_kap(
    similarity: Similarity,
    batch: Mapping[str, Any],
    alphas: Sequence[float],
    image_size: Size,
    kind: str,
    device: torch.device,
) -> dict[str, list]:
    """Columns kap+@ALPHA and kap-@ALPHA, an array for each of B pairs; {} if `kind` is "none".

    Every keypoint that the source shows is asked for. kind "definition": one that the target shows as well gives its
    highest similarity within alpha x threshold of the truth as a positive and that beyond as a negative; one that the
    target hides gives its highest similarity as a negative. "released": all give both, hidden ones around (0, 0).
    """
    if kind == "none":
        return {}
    points = px_to_cell(batch["src_seen"].to(device), image_size, similarity.src_size)
    maps = similarity(points).float().cpu()  # (B, M, h, w)
    centres = cell_to_px(cell_grid(maps.shape[-2:], like=maps), maps.shape[-2:], image_size)  # (h * w, 2)
    columns: dict[str, list] = {f"{KAP}{sign}@{alpha_key(alpha)}": [] for alpha in alphas for sign in "+-"}
    for pair in range(len(maps)):
        asked = batch["src_seen_ids"][pair] >= 0
        scores = normalise(maps[pair][asked].flatten(1))
        truth, shown = find_truth(batch, pair, asked)
        distance = torch.linalg.vector_norm(centres - truth[:, None], dim=-1)  # (M, h * w)
        for alpha in alphas:
            tau = alpha * batch["pck_threshold"][pair].item()
            positive, negative = split_scores(scores, distance, shown | (kind == "released"), tau)
            columns[f"{KAP}+@{alpha_key(alpha)}"].append(positive.numpy())
            columns[f"{KAP}-@{alpha_key(alpha)}"].append(negative.numpy())
    return columns


def normalise(maps: Tensor) -> Tensor:
    """Maps (M, cells) of a pair -> [0, 1], by the least and the largest of them all."""
    if not maps.numel():
        return maps
    low, high = maps.min(), maps.max()
    return (maps - low) / (high - low).clamp(min=torch.finfo(maps.dtype).tiny)


def find_truth(batch: Mapping[str, Any], pair: int, asked: Tensor) -> tuple[Tensor, Tensor]:
    """Where the target shows the M keypoints asked for, (M, 2) px, (0, 0) where not; and whether, (M,) bool."""
    same = batch["src_seen_ids"][pair][asked][:, None] == batch["trg_seen_ids"][pair]
    return same.float() @ batch["trg_seen"][pair], same.any(dim=1)


def split_scores(scores: Tensor, distance: Tensor, placed: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Positives and negatives of scores (M, cells), with distances (M, cells) from places that `placed` (M,) have.

    The cell nearest to a place counts as within tau, for on a coarse map no other might be.
    """
    within = (distance <= tau) | (distance == distance.amin(dim=1, keepdim=True))
    positive = scores.masked_fill(~within, -1).amax(dim=1)[placed]
    beyond = scores.masked_fill(within & placed[:, None], -1).amax(dim=1)
    return positive, beyond[beyond >= 0]
