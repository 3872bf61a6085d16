"""From two feature maps and query keypoints to predicted keypoints.

A localiser is a function from a `MatchQuery` to positions (B, N, 2) in cells of the target map. To add one,
write the function and give it a line in LOCALISERS.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from utils.geometry import (
    NORM_EPS,
    Size,
    at_least_float32,
    bilinear_corners,
    cell_grid,
    cell_to_px,
    gather_cells,
    l2_norm,
    l2_normalise,
    px_to_cell,
    sample_features,
)

CORNER_CLAMP = 1e-5  # cells: how far inside the map the query of the bilinear localiser is kept


def _cosine(query: Tensor, trg_feat: Tensor, trg_norm: Tensor) -> Tensor:
    """Cosine (B, N, h, w) of queries (B, N, C) with a float map (B, C, h, w) of norms (B, 1, h, w).

    Dividing the product by the norms equals normalising the map first, without a second map in memory.
    Autocast would lower the precision and is kept out.
    """
    with torch.autocast(device_type=query.device.type, enabled=False):
        return torch.einsum("bnc,bchw->bnhw", l2_normalise(query, dim=-1), trg_feat) / (trg_norm + NORM_EPS)


def correlation(src_feat: Tensor, trg_feat: Tensor, src_kps_cell: Tensor) -> Tensor:
    """Cosine similarity of every source keypoint with every target cell, (B, N, h, w), at least float32.

    Args:
        src_feat: (B, C, h', w'), not normalised; sampled bilinearly at the keypoints, then L2-normalised.
        trg_feat: (B, C, h, w), not normalised; L2-normalised per cell.
        src_kps_cell: (B, N, 2), (x, y) in cells of the source map.
    """
    trg_feat = at_least_float32(trg_feat)
    return _cosine(sample_features(src_feat, src_kps_cell), trg_feat, l2_norm(trg_feat, dim=1))


@dataclass(frozen=True, eq=False)
class MatchQuery:
    """What every localiser reads; correlation maps are computed on first use and shared.

    src_feat (B, C, h', w') and trg_feat (B, C, h, w) are not normalised, query_cell (B, N, 2) is in cells of
    the source map, `beta` is the softmax temperature, `sigma` (cells) the width of the Gaussian of
    `kernelsoftmax`.
    """

    src_feat: Tensor
    trg_feat: Tensor
    query_cell: Tensor
    beta: float = 0.04
    sigma: float = 7.0

    @cached_property
    def _target(self) -> tuple[Tensor, Tensor]:
        trg_feat = at_least_float32(self.trg_feat)
        return trg_feat, l2_norm(trg_feat, dim=1)

    def correlate(self, src_points: Tensor) -> Tensor:
        """Cosine similarity (B, N, h, w) of source features (B, N, C) with every target cell."""
        return _cosine(src_points, *self._target)

    @cached_property
    def sim(self) -> Tensor:
        """Correlation maps of the queries, (B, N, h, w)."""
        return self.correlate(sample_features(self.src_feat, self.query_cell))


def argmax_cell(sim: Tensor) -> Tensor:
    """Position (..., 2) in cells of the maximum of sim (..., h, w); of equals the first, row by row."""
    index = sim.flatten(-2).argmax(dim=-1)
    width = sim.shape[-1]
    return torch.stack((index % width, index.div(width, rounding_mode="floor")), dim=-1).to(sim.dtype)


def soft_argmax_cell(sim: Tensor, beta: float) -> Tensor:
    """Expected position (..., 2) in cells under softmax(sim / beta), for sim (..., h, w)."""
    p = (sim.flatten(-2) / beta).softmax(dim=-1)
    with torch.autocast(device_type=sim.device.type, enabled=False):
        return p @ cell_grid(sim.shape[-2:], like=sim)


def damp_away_from(sim: Tensor, centre_cell: Tensor, sigma: float) -> Tensor:
    """sim (..., h, w) times exp(-d^2 / (2 sigma^2)), d the distance in cells from centre_cell (..., 2)."""
    h, w = sim.shape[-2:]
    dx = torch.arange(w, device=sim.device, dtype=sim.dtype) - centre_cell[..., 0:1]  # (..., w)
    dy = torch.arange(h, device=sim.device, dtype=sim.dtype) - centre_cell[..., 1:2]  # (..., h)
    gauss_x, gauss_y = (torch.exp(-(d**2) / (2 * sigma**2)) for d in (dx, dy))
    return sim * gauss_y[..., :, None] * gauss_x[..., None, :]


def nn(query: MatchQuery) -> Tensor:
    """The cell of highest cosine similarity."""
    return argmax_cell(query.sim)


def bilinear(query: MatchQuery) -> Tensor:
    """`nn` for the four cells around the query, averaged with the query's bilinear weights."""
    h, w = query.src_feat.shape[-2:]
    x, y = at_least_float32(query.query_cell).unbind(-1)
    inner = [v.clamp(CORNER_CLAMP, max(n - 1 - CORNER_CLAMP, CORNER_CLAMP)) for v, n in ((x, w), (y, h))]
    index, weight = bilinear_corners(torch.stack(inner, dim=-1), (h, w))
    corner_feat = gather_cells(query.src_feat, index)  # (B, N, 4, C)
    matches = argmax_cell(query.correlate(corner_feat.flatten(1, 2))).unflatten(1, (-1, 4))
    return (matches * weight[..., None]).sum(dim=2)


def softmax(query: MatchQuery) -> Tensor:
    """Soft-arg-max over the whole map."""
    return soft_argmax_cell(query.sim, query.beta)


def kernelsoftmax(query: MatchQuery) -> Tensor:
    """Soft-arg-max of the correlation multiplied by a Gaussian around its arg-max; SD4Match's choice."""
    return soft_argmax_cell(damp_away_from(query.sim, argmax_cell(query.sim), query.sigma), query.beta)


LOCALISERS: dict[str, Callable[[MatchQuery], Tensor]] = {
    "nn": nn,
    "bilinear": bilinear,
    "softmax": softmax,
    "kernelsoftmax": kernelsoftmax,
}


def check_localisers(names: Iterable[str]) -> None:
    """Raise ValueError, listing the known names, if one of `names` is no localiser."""
    unknown = [name for name in names if name not in LOCALISERS]
    if unknown:
        raise ValueError(f"unknown localiser {unknown}; known localisers: {list(LOCALISERS)}")


def localise(
    src_feat: Tensor,
    trg_feat: Tensor,
    src_kps: Tensor,
    image_size: Size,
    names: Iterable[str] = tuple(LOCALISERS),
    beta: float = 0.04,
    sigma: float = 7.0,
    convention: str = "align_corners",
) -> dict[str, Tensor]:
    """Predicted target keypoints by each localiser.

    Args:
        src_feat, trg_feat: (B, C, h, w) feature maps, not normalised, any floating type.
        src_kps: (B, N, 2) source keypoints, px of the resized frame; padded points give meaningless
            predictions.
        image_size: (H, W) of the resized frame, the same for source and target.
        names: keys of LOCALISERS.
        beta: softmax temperature.
        sigma: width of the Gaussian of `kernelsoftmax`, in cells.
        convention: how px and cells are tied together, see `utils.geometry`.
    Returns:
        name -> (B, N, 2), px of the resized target frame, at least float32.
    Raises:
        ValueError: unknown localiser or convention.
    """
    names = tuple(names)
    check_localisers(names)
    query_cell = px_to_cell(at_least_float32(src_kps), image_size, src_feat.shape[-2:], convention)
    query = MatchQuery(src_feat, trg_feat, query_cell, beta, sigma)
    trg_size = trg_feat.shape[-2:]
    return {name: cell_to_px(LOCALISERS[name](query), trg_size, image_size, convention) for name in names}
