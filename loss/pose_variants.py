"""GeoAware-SC's objective: sparse and dense terms of a pair, and dense terms of its mirrored images.

All terms are of descriptors (B, C, h, w), not normalised, and of keypoints in px of a frame that is W wide, in which a
mirrored image has them at x' = W - x.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from loss.soft_argmax_error import patch_of
from loss.sparse_contrastive import sparse_contrastive
from utils.geometry import Size, gather_cells, l2_normalise
from utils.localise import FeatureSimilarity
from utils.noise import derive_seeds, draw_noise

LABELS = 1_000_000  # number of the first draw of label noise among an image's; other draws count from 0


@dataclass(frozen=True)
class Points:
    """Keypoints that two images share: src, trg (B, N, 2), px; mask (B, N) bool; extent (B,), px, of the target."""

    src: Tensor
    trg: Tensor
    mask: Tensor
    extent: Tensor


@dataclass(frozen=True)
class PoseVariants:
    """Weighted mean over the terms that a pair has: sum_i w_i L_i / sum_i w_i, of which L_0 has weight 1.

    L_0 = sparse + dense of the pair. Terms of mirrored images are dense only, or sparse only if `dense` is 0:
    double (mirrored source, mirrored target), alone (mirrored source, source), single (mirrored source, target). A term
    whose images share no keypoint is left out.
    """

    sparse: float = 1.0  # weight in L_0
    dense: float = 1.0  # weight in L_0
    noise: float = 0.1  # label noise: sigma = noise * T / 2, T the longest side of the target's box
    double: float = 1.0
    alone: float = 0.25
    single: float = 0.0

    @property
    def needs(self) -> tuple[str, ...]:
        """Whose descriptors are needed."""
        mirrored = {"src_mirrored": self.double or self.alone or self.single, "trg_mirrored": self.double}
        return ("src", "trg", *(name for name, weight in mirrored.items() if weight))

    def __call__(
        self,
        objective: nn.Module,
        maps: Mapping[str, Tensor],
        batch: Mapping[str, Any],
        seeds: Tensor,
        tau: Tensor,
        image_size: Size,
    ) -> Tensor:
        """One loss per pair, (B,); 0 for a pair without keypoints.

        Args:
            objective: the dense one, of loss.LOSSES.
            maps: the descriptors that `needs` names.
            batch: see dataset.pair_dataset. seeds: (B,) int64, of the label noise. tau: of the sparse objective.
            image_size: (H, W) of the frame.
        """
        pair = Points(batch["src_kps"], batch["trg_kps"], batch["kps_mask"], batch["pck_threshold"])
        width = image_size[1]
        terms = [(1.0, "src", "trg", pair)]
        if self.double:
            mirrored = Points(mirror(pair.src, width), mirror(pair.trg, width), pair.mask, pair.extent)
            terms.append((self.double, "src_mirrored", "trg_mirrored", mirrored))
        if self.alone:
            terms.append((self.alone, "src_mirrored", "src", match_mirrored(batch, "src", width)))
        if self.single:
            terms.append((self.single, "src_mirrored", "trg", match_mirrored(batch, "trg", width)))
        total = weights = 0.0
        for number, (weight, src, trg, points) in enumerate(terms):
            feats = maps[src], maps[trg]
            value = 0.0
            if self.dense:
                labels = points.trg + self.draw_noise(points, derive_seeds(seeds, LABELS + number))
                similarity = FeatureSimilarity(*feats)
                value = self.dense * objective(similarity, points.src, labels, points.mask, image_size)
            if number == 0 or not self.dense:
                sides = [
                    describe(feat, kps, image_size) for feat, kps in zip(feats, (points.src, points.trg), strict=True)
                ]
                value = value + self.sparse * sparse_contrastive(*sides, points.mask, tau)
            share = weight * points.mask.any(dim=1)
            total, weights = total + share * value, weights + share
        return total / torch.where(weights > 0, weights, 1.0)

    def draw_noise(self, points: Points, seeds: Tensor) -> Tensor:
        """N(0, sigma^2) for both coordinates of every target point, (B, N, 2), row i drawn from seeds[i]."""
        sigma = self.noise * points.extent / 2
        return sigma[:, None, None] * draw_noise(seeds, points.trg.shape[1:], points.trg.device)


def describe(feat: Tensor, kps: Tensor, image_size: Size) -> Tensor:
    """L2-normalised descriptors (B, N, C) of the patches that keypoints (B, N, 2), px, lie in."""
    patch = patch_of(kps, image_size, tuple(feat.shape[-2:])).long()
    index = patch[..., 1] * feat.shape[-1] + patch[..., 0]
    return l2_normalise(gather_cells(feat, index[..., None]).squeeze(2), dim=-1)


def mirror(kps: Tensor, width: float) -> Tensor:
    """Points (..., 2) of a mirrored image `width` px wide: x' = W - x, no -1, as there."""
    return torch.stack((width - kps[..., 0], kps[..., 1]), dim=-1)


def match_mirrored(batch: Mapping[str, Any], side: str, width: float) -> Points:
    """Keypoints that the mirrored source shares with the source itself ("src") or the target ("trg").

    In a mirrored image, a part stands for the part on the other side: an eye that is seen on the left of the source
    corresponds to the right one.
    """
    shown, partner = find_seen(batch, "src", ""), find_seen(batch, "src", "_partner")  # (B, N, 2), (B, N); -1: none
    ids = find_seen(batch, side, "_ids")
    same = (partner[:, :, None] == ids[:, None]) & (ids >= 0)[:, None]  # (B, N of the source, N of the other)
    position = same.float().argmax(dim=2)[..., None].expand(-1, -1, 2)
    other = find_seen(batch, side, "").gather(1, position)
    extent = batch["pck_threshold" if side == "trg" else "src_threshold"]
    return Points(mirror(shown, width), other, same.any(dim=2), extent)


def find_seen(batch: Mapping[str, Any], side: str, what: str) -> Tensor:
    """Points, "_ids" or "_partner" of all that an image shows; of the shared keypoints where annotations do not say."""
    seen, shared = batch[f"{side}_seen{what}"], batch[f"kps{what}" if what else f"{side}_kps"]
    known = batch["seen_known"].reshape(-1, *[1] * (seen.ndim - 1))
    return torch.where(known, seen, shared)
