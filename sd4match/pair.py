"""Two images whose feature maps are known: points, heat maps and dense fields from one to the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sd4match.error import PointError
from sd4match.flow import Flow, check_mask, compute_flow
from utils.dense import DenseField, match_densely, split_query
from utils.frame import Frame, build_sampling_grid
from utils.geometry import cell_grid, cell_to_px, px_to_cell
from utils.image import Picture
from utils.localise import LOCALISERS, Query, check_localisers

NEAR = 0.1  # "near" in a confidence: within this share of the longer side
BORDER = 0.5  # px that a point may lie outside the centres of the border pixels: the pixels' own area


@dataclass(frozen=True)
class Setting:
    """How points are found on a correlation map."""

    localiser: str
    beta: float  # temperature of the softmax
    sigma: float  # of kernelsoftmax's Gaussian, feature cells
    frame: Frame  # of the networks' input
    window: int = 7  # of the localiser "window", feature cells

    @property
    def options(self) -> dict[str, Any]:
        """Of utils.localise.Query."""
        image_size = self.frame.image_size
        return {"beta": self.beta, "sigma": self.sigma, "window": self.window, "image_size": image_size}


@dataclass(frozen=True, eq=False)
class Matches:
    """N points of the source image and what was found for them in the target image; px of the original images.

    confidence = mass * agreement, in [0, 1]. mass: share of the softmax of the correlation map within NEAR of
    the longer side around the found point (is there one answer, or several?). agreement: exp(-(d / r)^2), d =
    cycle and r = NEAR of the source's longer side (does the way back end where it began?). It ranks points of
    a pair; it is no probability of being right.
    """

    source: np.ndarray  # (N, 2) float32, (x, y)
    points: np.ndarray  # (N, 2) float32, (x, y)
    confidence: np.ndarray  # (N,) float32
    similarity: np.ndarray  # (N,) float32, largest cosine similarity of the point with the target map
    cycle: np.ndarray  # (N,) float32, px of the source between a point and its match's match

    def __len__(self) -> int:
        return len(self.points)

    def to_records(self) -> list[dict]:
        """One dict of plain numbers for each match, for JSON."""
        columns = {"source": self.source, "target": self.points}
        columns |= {name: getattr(self, name) for name in ("confidence", "similarity", "cycle")}
        lists = [np.round(column.astype(float), 4).tolist() for column in columns.values()]
        return [dict(zip(columns, values, strict=True)) for values in zip(*lists, strict=True)]

    def __getitem__(self, index: slice | np.ndarray) -> Matches:
        """Some of the points."""
        return Matches(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


@dataclass(frozen=True, eq=False)
class Pair:
    """Source and target feature maps (C, h, w), not normalised, of the pictures `src` and `trg`.

    Reads no network: it may be used by several threads at once.
    """

    slow: ClassVar[bool] = False  # whether a match takes seconds or more, and tells its progress

    src: Picture
    trg: Picture
    src_feat: Tensor
    trg_feat: Tensor
    setting: Setting

    def match(
        self,
        points: Sequence | np.ndarray | Tensor,
        localiser: str | None = None,
        src_mask: np.ndarray | None = None,
        trg_mask: np.ndarray | None = None,
        budget_mib: int = 512,
    ) -> Matches:
        """The places in the target of `points`, (N, 2) or one (x, y), px of the original source image.

        localiser: "nn", "bilinear", "softmax", "kernelsoftmax" or "window" instead of the matcher's own. Masks, (H, W)
        bool of the originals: points are looked for in trg_mask alone, and the way back leads into src_mask.
        budget_mib: what may be held at once beside the maps and the answer. Raises PointError (a ValueError) for points
        that are not (x, y) inside the image, ValueError for a mask of another size than its image.
        """
        src_cells = self._find_cells(src_mask, self.src, self.src_feat)
        trg_cells = self._find_cells(trg_mask, self.trg, self.trg_feat)
        points = self._check_points(points)
        localiser = localiser or self.setting.localiser
        check_localisers([localiser])
        parts = []
        for query in self._ask(self.src_feat, self.trg_feat, self._to_cells(points), trg_cells, budget_mib):
            cells, sim = LOCALISERS[localiser](query)[0], query.sim[0]
            parts.append((cells, sim.flatten(1).amax(dim=1), mass_near(sim, cells, query.beta)))
        cells, similarity, mass = map(torch.cat, zip(*parts, strict=True))
        queries = self._ask(self.trg_feat, self.src_feat, cells, src_cells, budget_mib)
        back = torch.cat([LOCALISERS[localiser](query)[0] for query in queries])
        cycle = np.linalg.norm(self._to_original(back, self.src, self.src_feat) - points, axis=1)
        agreement = np.exp(-((cycle / (NEAR * max(self.src.size))) ** 2))
        columns = mass.cpu().numpy() * agreement, similarity.cpu().numpy(), cycle
        found = self._to_original(cells, self.trg, self.trg_feat)
        return Matches(points, found, *(column.astype(np.float32) for column in columns))

    def match_mutual(self, count: int | None = 50, localiser: str | None = None, spread: float = 0.05) -> Matches:
        """Up to `count` points (None: all) chosen by the pair itself, the most confident first.

        Candidates are the centres of the source's feature cells that are mutual nearest neighbours: the
        nearest cell of the nearest cell is the cell itself or one beside it. Points keep a distance of `spread`
        of the source's longer side.
        """
        mutual = match_densely(self.src_feat, self.trg_feat, "nn").cycle.flatten() < 1.5
        cells = cell_grid(self.src_feat.shape[-2:], self.src_feat)[mutual]
        found = self.match(self._to_original(cells, self.src, self.src_feat), localiser)
        order = np.argsort(-found.confidence, kind="stable")
        kept = _spread_out(found.source[order], spread * max(self.src.size), count)
        return found[order[kept]]

    def heatmap(self, point: Sequence | np.ndarray | Tensor, size: tuple[int, int] | None = None) -> np.ndarray:
        """Cosine similarity of a source point with every place of the target, stretched to [0, 1].

        (H, W) float32 in the target's original size, or in `size` (H, W); 0 is the least and 1 the most
        similar place of this target.
        """
        sim = self.correlation(point)[0]
        low, high = sim.min(), sim.max()
        stretched = (sim - low) / (high - low).clamp(min=1e-12)
        grid = build_sampling_grid(self.setting.frame, self.trg.size, size or self.trg.size).to(sim.device)
        whole = F.grid_sample(stretched[None, None], grid[None], padding_mode="border", align_corners=True)
        return whole[0, 0].clamp(0, 1).cpu().numpy()

    def correlation(self, points: Sequence | np.ndarray | Tensor) -> Tensor:
        """Cosine similarity (N, h, w) of each source point with every cell of the target's feature map."""
        cells = self._to_cells(self._check_points(points))
        return torch.cat([query.sim[0] for query in self._ask(self.src_feat, self.trg_feat, cells)])

    def dense(self) -> DenseField:
        """The place of every source cell on the target and the way back, in cells."""
        setting = self.setting
        return match_densely(self.src_feat, self.trg_feat, setting.localiser, **setting.options)

    def flow(
        self,
        step: float | None = None,
        tolerance: float | None = None,
        src_mask: np.ndarray | None = None,
        trg_mask: np.ndarray | None = None,
        localiser: str | None = None,
        budget_mib: int = 512,
    ) -> Flow:
        """Where every pixel of the original source lies in the original target: `match` of places `step` px apart.

        Between them it is interpolated, but not across jumps; None: half a feature cell; 1: every pixel is matched.
        tolerance: px of the source within which the way back must end for the flow's mask; None: 1.5 feature cells. The
        rest as for `match`; outside src_mask, and where the target's place is outside trg_mask, confidence is 0. The
        answer and what it is made of take some 40 bytes for each pixel of the source, beside budget_mib.
        """
        options = {"src_mask": src_mask, "trg_mask": trg_mask, "localiser": localiser, "budget_mib": budget_mib}
        return compute_flow(self, step, tolerance, **options)

    def cell_sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """(width, height) of a feature cell in px of the original, of source and target."""
        ends = torch.tensor([[0.0, 0.0], [1.0, 1.0]])

        def measure(picture: Picture, feat: Tensor) -> np.ndarray:
            px = cell_to_px(ends, feat.shape[-2:], self.setting.frame.image_size)
            return self.setting.frame.to_orig(px, picture.size).diff(dim=0)[0].numpy()

        return measure(self.src, self.src_feat), measure(self.trg, self.trg_feat)

    def carry(self, layer: np.ndarray, warp: str = "dense") -> np.ndarray:
        """A layer (H, W, 4) uint8, painted on the source, as it lies on the target; see sd4match.edit.carry_layer."""
        from sd4match.edit import carry_layer

        return carry_layer(self, layer, warp)

    def draw(self, found: Matches) -> np.ndarray:
        """A picture of matches of this pair: lines coloured by confidence; RGB (H, W, 3) uint8."""
        from utils.draw import plot_links, render

        src_points, trg_points = self.src.to_pixels(found.source), self.trg.to_pixels(found.points)
        names = [_printable(Path(picture.name).name) for picture in (self.src, self.trg)]
        return render(plot_links(self.src.image, self.trg.image, src_points, trg_points, found.confidence, names))

    def swap(self) -> Pair:
        """The pair from target to source, with the features of this one.

        Under a prompt that is made from the pair, matcher.pair(b, a) makes another prompt; this does not.
        """
        return Pair(self.trg, self.src, self.trg_feat, self.src_feat, self.setting)

    def _check_points(self, points: Sequence | np.ndarray | Tensor) -> np.ndarray:
        """(N, 2) float32, inside the source image."""
        if isinstance(points, Tensor):
            points = points.detach().cpu().numpy()
        try:
            values = np.asarray(points, dtype=np.float32)
        except (TypeError, ValueError):
            raise PointError(f"points must be (N, 2) numbers (x, y); got {points!r}") from None
        if values.size == 0:
            return np.zeros((0, 2), np.float32)
        values = values[None] if values.shape == (2,) else values
        if values.ndim != 2 or values.shape[1] != 2:
            raise PointError(f"points must be (N, 2) numbers (x, y); got shape {values.shape}")
        height, width = self.src.size
        low, high = np.float32(-BORDER), np.array([width - 1 + BORDER, height - 1 + BORDER], np.float32)
        outside = ~((values >= low) & (values <= high)).all(axis=1)
        if outside.any():
            x, y = values[outside][0]
            raise PointError(
                f"point {x:g},{y:g} lies outside {self.src.name}, which is {width} x {height} px (x 0..{width - 1}, "
                f"y 0..{height - 1})"
            )
        return values

    def _to_cells(self, points: np.ndarray) -> Tensor:
        """Original px of the source (N, 2) -> cells of its map, as the benchmarks' keypoints go."""
        frame = self.setting.frame
        px = frame.clamp(frame.to_px(torch.from_numpy(points), self.src.size))
        return px_to_cell(px.to(self.src_feat.device), frame.image_size, self.src_feat.shape[-2:])

    def _to_original(self, cells: Tensor, picture: Picture, feat: Tensor) -> np.ndarray:
        """Cells (N, 2) of a picture's map -> its original px, (N, 2) float32, inside it."""
        frame = self.setting.frame
        px = cell_to_px(cells, feat.shape[-2:], frame.image_size).cpu()
        last = np.array([picture.size[1] - 1, picture.size[0] - 1], np.float32)
        return np.clip(frame.to_orig(px, picture.size).numpy(), 0, last).astype(np.float32)

    def _find_cells(self, mask: np.ndarray | None, picture: Picture, feat: Tensor) -> Tensor | None:
        """(h, w) bool: the cells whose centres lie in a mask (H, W) of a picture; None if there is no mask, or none."""
        if mask is None:
            return None
        mask = check_mask(mask, picture)
        size = tuple(feat.shape[-2:])
        orig = self.setting.frame.to_orig(
            cell_to_px(cell_grid(size, torch.zeros(0)), size, self.setting.frame.image_size), picture.size
        )
        x, y = orig.round().long().unbind(-1)
        height, width = picture.size
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        whole = torch.from_numpy(np.ascontiguousarray(mask))
        found = inside & whole[y.clamp(0, height - 1), x.clamp(0, width - 1)]
        return found.reshape(size).to(feat.device) if found.any() else None

    def _ask(
        self, from_feat: Tensor, to_feat: Tensor, cells: Tensor, mask: Tensor | None = None, budget_mib: int = 512
    ) -> Iterator[Query]:
        return split_query(from_feat, to_feat, cells, budget_mib, mask=mask, **self.setting.options)


def _printable(name: str) -> str:
    """A file's name as matplotlib can write it: no mathematics, no line breaks, no bytes that are no text."""
    text = name.encode(errors="replace").decode()
    return "".join(c if c.isprintable() else "?" for c in text).replace("$", r"\$")


def mass_near(sim: Tensor, cells: Tensor, beta: float) -> Tensor:
    """Share (N,) of softmax(sim / beta), sim (N, h, w), within NEAR of the map's longer side around cells (N, 2)."""
    height, width = sim.shape[-2:]
    p = (sim.flatten(1) / beta).softmax(dim=1)
    distance = torch.cdist(cells, cell_grid((height, width), sim))
    return (p * (distance <= NEAR * max(height, width))).sum(dim=1).clamp(0, 1)


def _spread_out(points: np.ndarray, distance: float, count: int | None) -> list[int]:
    """Indices of points (N, 2), in their order, that keep a distance from all before them; at most `count`."""
    kept: list[int] = []
    for i, point in enumerate(points):
        if count is not None and len(kept) >= count:
            break
        if not kept or np.linalg.norm(points[kept] - point, axis=1).min() >= distance:
            kept.append(i)
    return kept
