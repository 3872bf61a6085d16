"""Adaptive pose alignment (GeoAware-SC): would the mirrored source match the target better than the source itself?

The instance matching distance (IMD) answers it: how far the descriptors of the source's object are from their nearest
ones in the target. Descriptors are L2-normalised features; distances are between them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from utils.geometry import Size, l2_normalise


def mask_distance(src_feat: Tensor, trg_feat: Tensor, src_mask: Tensor, trg_mask: Tensor) -> Tensor:
    """IMD between two objects: the mean over cells of the source's mask of the distance to the nearest of the target's.

    Feature maps (C, h, w), masks (H, W) bool; the descriptors are brought to the masks' size, bilinearly and without
    another normalisation. Cells outside a mask are infinitely far; without a cell in either mask so is the object.
    """
    src, trg = (
        _resize(feat, mask.shape[-2:])[:, mask].T for feat, mask in ((src_feat, src_mask), (trg_feat, trg_mask))
    )
    if not (len(src) and len(trg)):
        return src.new_tensor(torch.inf)
    return torch.cdist(src, trg).amin(dim=1).mean()


def _resize(feat: Tensor, size: Size) -> Tensor:
    return F.interpolate(l2_normalise(feat[None].float(), dim=1), size, mode="bilinear", align_corners=False)[0]


def mutual_distance(src_feat: Tensor, trg_feat: Tensor) -> Tensor:
    """IMD without masks: the mean distance of cells of feature maps (C, h, w) that are each other's nearest."""
    src, trg = (l2_normalise(feat.float(), dim=0).flatten(1).T for feat in (src_feat, trg_feat))
    distance = torch.cdist(src, trg)
    nearest, back = distance.argmin(dim=1), distance.argmin(dim=0)
    mutual = back[nearest] == torch.arange(len(src), device=src.device)
    return distance[mutual].amin(dim=1).mean() if mutual.any() else src.new_tensor(torch.inf)


def mirror_queries(kps: Tensor, mask: Tensor, ids: Tensor, partner: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Where a mirrored source is asked for its keypoints, and for which the answer counts.

    Keypoints (B, N, 2) px of images `width` px wide, `mask` (B, N) of those that both images show, their ids and those
    of the parts on the other side (B, N). In the mirrored image keypoint i lies where its partner did, x -> W - x, if
    the pair shows both, else where it did itself.
    Returns queries (B, N, 2) and (B, N) bool: those whose partner, or who themselves if they have none, the pair shows.
    """
    is_partner = (ids[:, None] == partner[..., None]) & mask[:, None] & mask[..., None]  # (B, N, N)
    shown = is_partner.any(dim=-1)
    place = torch.where(shown, is_partner.int().argmax(dim=-1), torch.arange(kps.shape[1], device=kps.device))
    query = kps.gather(1, place[..., None].expand(-1, -1, 2)).clone()
    query[..., 0] = (width - query[..., 0]).clamp(max=width - 1)
    return query, shown
