"""From similarity maps to predicted keypoints.

A localiser is a function from a `Query` to positions (B, N, 2) in cells of the target map; it reads similarities and
nothing else. To add one, write the function and give it a line in LOCALISERS.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from utils.geometry import (
    NORM_EPS,
    Size,
    at_least_float32,
    bilinear_corners,
    cell_grid,
    cell_to_px,
    l2_norm,
    l2_normalise,
    px_to_cell,
    rescale_kps,
    sample_features,
)

OUTSIDE = -1e30  # similarity beyond a mask
CORNER_CLAMP = 1e-5  # cells: how far inside the map the query of the bilinear localiser is kept
PATCH_EPS = 1e-4  # patches: a point this near below a border lies on it, and so beyond


class Similarity(Protocol):
    """How much each target cell looks like given points of the source."""

    src_size: Size  # (h', w') of the grid on which the source's points are given

    def __call__(self, points_cell: Tensor) -> Tensor:
        """Maps (B, N, h, w), at least float32, of points (B, N, 2), (x, y) in cells of the source's grid."""


class FeatureSimilarity:
    """cos of Eq. (4): cosine similarity of two feature maps (B, C, h', w') and (B, C, h, w), not normalised."""

    def __init__(self, src_feat: Tensor, trg_feat: Tensor) -> None:
        self.src_feat, self.trg_feat = src_feat, trg_feat

    @property
    def src_size(self) -> Size:
        return tuple(self.src_feat.shape[-2:])

    @cached_property
    def _target(self) -> tuple[Tensor, Tensor]:
        trg_feat = at_least_float32(self.trg_feat)
        return trg_feat, l2_norm(trg_feat, dim=1)

    def __call__(self, points_cell: Tensor) -> Tensor:
        """The source map is sampled bilinearly; both sides are L2-normalised.

        Dividing the product by the norms equals normalising the target map first, without a second map in memory.
        Autocast would lower the precision and is kept out.
        """
        query = l2_normalise(sample_features(self.src_feat, points_cell), dim=-1)
        trg_feat, trg_norm = self._target
        with torch.autocast(device_type=query.device.type, enabled=False):
            return torch.einsum("bnc,bchw->bnhw", query, trg_feat) / (trg_norm + NORM_EPS)


class LimitedSimilarity:
    """A similarity whose maps are as low as can be beyond a mask (h, w) of the target's cells.

    Not infinite: kernelsoftmax multiplies it by a Gaussian, which may be 0.
    """

    def __init__(self, similarity: Similarity, mask: Tensor) -> None:
        self.similarity, self.mask, self.src_size = similarity, mask, similarity.src_size

    def __call__(self, points_cell: Tensor) -> Tensor:
        return self.similarity(points_cell).masked_fill(~self.mask, OUTSIDE)


@dataclass(frozen=True, eq=False)
class Query:
    """What every localiser reads; the queries' maps are computed on first use and shared.

    query_cell: (B, N, 2), (x, y) in cells of the source's grid; beta: temperature of the soft-arg-max; sigma: width of
    kernelsoftmax's Gaussian, cells; window: as config key EVAL.WINDOW, cells; image_size: (H, W) px of the frame that
    both maps are of, None if there is none.
    """

    similarity: Similarity
    query_cell: Tensor
    beta: float = 0.04
    sigma: float = 7.0
    window: int = 7
    image_size: Size | None = None

    @cached_property
    def sim(self) -> Tensor:
        """Similarity maps of the queries, (B, N, h, w)."""
        return self.similarity(self.query_cell)


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


def nn(query: Query) -> Tensor:
    """The cell of highest similarity."""
    return argmax_cell(query.sim)


def bilinear(query: Query) -> Tensor:
    """`nn` for the four cells around the query, averaged with the query's bilinear weights."""
    h, w = query.similarity.src_size
    x, y = at_least_float32(query.query_cell).unbind(-1)
    inner = [v.clamp(CORNER_CLAMP, max(n - 1 - CORNER_CLAMP, CORNER_CLAMP)) for v, n in ((x, w), (y, h))]
    index, weight = bilinear_corners(torch.stack(inner, dim=-1), (h, w))
    corners = torch.stack((index % w, index.div(w, rounding_mode="floor")), dim=-1).to(weight.dtype)  # (B, N, 4, 2)
    matches = argmax_cell(query.similarity(corners.flatten(1, 2))).unflatten(1, (-1, 4))
    return (matches * weight[..., None]).sum(dim=2)


def softmax(query: Query) -> Tensor:
    """Soft-arg-max over the whole map."""
    return soft_argmax_cell(query.sim, query.beta)


def kernelsoftmax(query: Query) -> Tensor:
    """Soft-arg-max of the similarity multiplied by a Gaussian around its arg-max; SD4Match's choice."""
    return soft_argmax_cell(damp_away_from(query.sim, argmax_cell(query.sim), query.sigma), query.beta)  # Eq. (8)


def window(query: Query) -> Tensor:
    """Soft-arg-max of the similarity in a window around its arg-max; GeoAware-SC's choice.

    Outside the window similarities are multiplied by 0, not left out. The source is read at the cell that the point
    lies in. Cells are squares of pixels, as there: what is found is the expected centre of one.
    """
    src_size, image_size = query.similarity.src_size, query.image_size
    patch = query.query_cell + 0.5
    if image_size:
        patch = rescale_kps(cell_to_px(query.query_cell, src_size, image_size), image_size, src_size)
    last = patch.new_tensor(src_size).flip(-1) - 1
    cell = (patch + PATCH_EPS).floor().clamp(min=0).minimum(last)
    sim = query.similarity(cell)
    found = soft_argmax_cell(keep_near(sim, argmax_cell(sim), query.window), query.beta)
    if not image_size:
        return found
    trg_size = sim.shape[-2:]
    return px_to_cell(rescale_kps(found + 0.5, trg_size, image_size), image_size, trg_size)


def keep_near(sim: Tensor, centre_cell: Tensor, window: float) -> Tensor:
    """sim (..., h, w), 0 farther than `window` cells from centre_cell (..., 2) on an axis; see EVAL.WINDOW."""
    if window <= 0:
        return damp_away_from(sim, centre_cell, -window) if window else sim
    distance = cell_grid(sim.shape[-2:], like=sim) - centre_cell[..., None, :]  # (..., h * w, 2)
    return sim * (distance.abs().amax(dim=-1) <= window).unflatten(-1, sim.shape[-2:])


def centre(query: Query) -> Tensor:
    """`nn` half a cell further on both axes: the cell's middle, counted from the map's corner (LDM_correspondences)."""
    return nn(query) + 0.5


LOCALISERS: dict[str, Callable[[Query], Tensor]] = {
    "nn": nn,
    "bilinear": bilinear,
    "softmax": softmax,
    "kernelsoftmax": kernelsoftmax,
    "window": window,
    "centre": centre,
}


def check_localisers(names: Iterable[str]) -> None:
    """Raise ValueError, listing the known names, if one of `names` is no localiser."""
    unknown = [name for name in names if name not in LOCALISERS]
    if unknown:
        raise ValueError(f"unknown localiser {unknown}; known localisers: {list(LOCALISERS)}")


def localise(
    similarity: Similarity,
    src_kps: Tensor,
    image_size: Size,
    names: Iterable[str] = tuple(LOCALISERS),
    beta: float = 0.04,
    sigma: float = 7.0,
    window: int = 7,
) -> dict[str, Tensor]:
    """Predicted target keypoints by each localiser: name -> (B, N, 2), px, at least float32.

    Args:
        src_kps: (B, N, 2) source keypoints, px; padded points give meaningless predictions.
        image_size: (H, W) of the frame that px are of, the same for source and target.
        names: keys of LOCALISERS.
        beta, sigma, window: see `Query`.
    """
    names = tuple(names)
    check_localisers(names)
    query_cell = px_to_cell(at_least_float32(src_kps), image_size, similarity.src_size)
    query = Query(similarity, query_cell, beta, sigma, window, image_size)
    found = {name: LOCALISERS[name](query) for name in names}
    for name, cells in found.items():
        if cells.shape != query_cell.shape:
            raise ValueError(f"localiser {name} gave {tuple(cells.shape)}; expected {tuple(query_cell.shape)}")
    return {name: cell_to_px(cells, query.sim.shape[-2:], image_size) for name, cells in found.items()}
