"""Two images between which a method matches point by point: slow for each new point, and without feature maps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from config import ConfigError
from model.method.ldm_correspondence import AttentionSimilarity
from sd4match.pair import Matches, Pair, mass_near
from utils.localise import LOCALISERS, Query, check_localisers

Progress = Callable[[int, int], None]  # (done, in all); what it raises ends the work


@dataclass(frozen=True, eq=False)
class PointPair(Pair):
    """As `Pair`, with the images themselves (3, R, R) in place of feature maps: maps have their grid.

    The networks run for a point when it is first asked for, under the matcher's lock; its maps are then kept.
    """

    slow = True
    similarity: AttentionSimilarity = field(kw_only=True)
    lock: threading.Lock = field(kw_only=True)
    _kept: dict = field(default_factory=dict)

    def match(
        self,
        points: Sequence | np.ndarray | Tensor,
        localiser: str | None = None,
        progress: Progress | None = None,
        src_mask: np.ndarray | None = None,
        trg_mask: np.ndarray | None = None,
    ) -> Matches:
        """As `Pair.match`. The way back is not gone: confidence = mass, cycle is 0, and src_mask changes nothing.

        progress: told after each pass of the UNet how many of all are done, first of finding embeddings, then of
        reading them; an exception that it raises cancels.
        """
        points = self._check_points(points)
        localiser = localiser or self.setting.localiser
        check_localisers([localiser])
        if len(points) == 0:
            return Matches(points, points, *(np.zeros(0, np.float32) for _ in range(3)))
        wanted, inside = self._to_cells(points), self._find_cells(trg_mask, self.trg, self.trg_feat)

        def ask(cells: Tensor) -> Tensor:
            """Maps of cells (N, 2); some localisers ask for others than the points'."""
            places = points if torch.equal(cells, wanted) else self._to_original(cells, self.src, self.src_feat)
            sim = _stretch(self.similarity.method.combine(self.maps(places, progress)))  # attention has no scale
            return sim if inside is None else sim.masked_fill(~inside, 0.0)

        query = Query(_Asked(tuple(self.src_feat.shape[-2:]), ask), wanted[None], **self.setting.options)
        cells, sim = LOCALISERS[localiser](query)[0], query.sim[0]
        similarity, mass = sim.flatten(1).amax(dim=1), mass_near(sim, cells, self.setting.beta)
        found = self._to_original(cells, self.trg, self.trg_feat)
        columns = mass.cpu().numpy(), similarity.cpu().numpy(), np.zeros(len(points))
        return Matches(points, found, *(column.astype(np.float32) for column in columns))

    def correlation(self, points: Sequence | np.ndarray | Tensor) -> Tensor:
        """Attention (N, R, R) that the embedding of each source point gets at every pixel of the target."""
        return self.similarity.method.combine(self.maps(points))

    def maps(
        self,
        points: Sequence | np.ndarray | Tensor,
        progress: Progress | None = None,
        on_source: bool = False,  # over the source itself
    ) -> Tensor:
        """Attention (N, layers, R, R) of points, px of the original source, layer by layer."""
        points = self._check_points(points)
        keys = [(x, y, on_source) for x, y in points.tolist()]
        with self.lock:
            if todo := [key for key in dict.fromkeys(keys) if key not in self._kept]:
                cells = self._to_cells(np.array([key[:2] for key in todo], np.float32))
                self.similarity.method.progress = progress
                try:
                    maps = self.similarity.layer_maps(cells[None], on_source)[0]
                finally:
                    self.similarity.method.progress = None
                self._kept.update(zip(todo, maps, strict=True))
        return torch.stack([self._kept[key] for key in keys])

    def match_mutual(self, *args, **options):
        raise ConfigError("this method matches point by point: name the points")

    dense = flow = match_mutual

    def swap(self) -> Pair:
        raise ConfigError("this method matches point by point: ask the matcher for the pair of target and source")


@dataclass(frozen=True, eq=False)
class _Asked:
    """A similarity of one pair (utils.localise.Similarity)."""

    src_size: tuple[int, int]
    ask: Callable[[Tensor], Tensor]

    def __call__(self, points_cell: Tensor) -> Tensor:
        return self.ask(points_cell[0])[None]


def _stretch(sim: Tensor) -> Tensor:
    """Maps (N, h, w), each from 0 to 1."""
    low, high = sim.flatten(1).aminmax(dim=1)
    return (sim - low[:, None, None]) / (high - low).clamp(min=1e-30)[:, None, None]
