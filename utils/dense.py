"""Dense matching of two feature maps: where every source cell lies on the target, and whether it comes back."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.geometry import Size, at_least_float32, cell_grid
from utils.localise import LOCALISERS, FeatureSimilarity, LimitedSimilarity, Query, check_localisers

MAPS_PER_QUERY = 10  # similarity maps that a localiser holds at once for each query, at most
FEATURES_PER_QUERY = 16  # and feature vectors
MIB = 2**20


@dataclass(frozen=True)
class DenseField:
    """Matches of all cells of a source map (h, w); positions are (x, y) in cells."""

    points: Tensor  # (h, w, 2) place on the target map
    similarity: Tensor  # (h, w) highest cosine similarity with any target cell
    cycle: Tensor  # (h, w) cells between a source cell and where its place on the target is matched back to


@torch.no_grad()
def match_densely(
    src_feat: Tensor,
    trg_feat: Tensor,
    localiser: str = "nn",
    beta: float = 0.04,
    sigma: float = 7.0,
    window: int = 7,
    image_size: Size | None = None,
    budget_mib: int = 512,
) -> DenseField:
    """Match every cell of a map with another map, forward and back.

    Args:
        src_feat, trg_feat: (C, h, w) and (C, h', w'), not normalised, on one device.
        localiser: a name in `utils.localise.LOCALISERS`.
        beta, sigma, window: of the localiser, the last two in cells of the target map.
        image_size: (H, W) px of the frame that both maps are of; the localiser "window" takes it into account.
        budget_mib: what may be held at once beside the maps themselves, but at least one query's similarity maps;
            the source is matched in parts of that size.
    Raises:
        ValueError: unknown localiser, or maps of different channels.
    """
    check_localisers([localiser])
    if src_feat.dim() != 3 or trg_feat.dim() != 3 or len(src_feat) != len(trg_feat):
        shapes = f"{tuple(src_feat.shape)} and {tuple(trg_feat.shape)}"
        raise ValueError(f"expected maps (C, h, w) and (C, h', w') with the same C, got {shapes}")
    if budget_mib < 1:
        raise ValueError(f"budget_mib must be at least 1, got {budget_mib}")
    locate, cells = LOCALISERS[localiser], cell_grid(src_feat.shape[-2:], like=at_least_float32(src_feat))
    options = {"beta": beta, "sigma": sigma, "window": window, "image_size": image_size}
    forth = split_query(src_feat, trg_feat, cells, budget_mib, **options)
    parts = [(locate(query)[0], query.sim[0].flatten(1).amax(dim=1)) for query in forth]
    points, similarity = map(torch.cat, zip(*parts, strict=True))
    back = split_query(trg_feat, src_feat, points, budget_mib, **options)
    cycle = (torch.cat([locate(query)[0] for query in back]) - cells).norm(dim=-1)
    return DenseField(*(values.unflatten(0, src_feat.shape[-2:]) for values in (points, similarity, cycle)))


def resize_features(feat: Tensor, size: Size) -> Tensor:
    """A map (C, h, w) on a finer or coarser grid, (C, *size), bilinear; corner cells stay at the corners."""
    return F.interpolate(at_least_float32(feat)[None], tuple(size), mode="bilinear", align_corners=True)[0]


def split_query(
    src_feat: Tensor,
    trg_feat: Tensor,
    cells: Tensor,
    budget_mib: int = 512,
    mask: Tensor | None = None,
    **options: Any,
) -> Iterator[Query]:
    """Queries, with `options`, of parts of source positions (n, 2), each within `budget_mib`, but of at least one.

    mask: (h', w') bool, the target's cells among which they are looked for.
    """
    src_feat, trg_feat = at_least_float32(src_feat), at_least_float32(trg_feat)
    per_query = trg_feat.element_size() * (MAPS_PER_QUERY * trg_feat[0].numel() + FEATURES_PER_QUERY * len(trg_feat))
    similarity = FeatureSimilarity(src_feat[None], trg_feat[None])
    similarity = similarity if mask is None else LimitedSimilarity(similarity, mask)
    for part in cells.split(max(1, budget_mib * MIB // per_query)):
        yield Query(similarity, part[None], **options)
