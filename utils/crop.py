"""Square crops of square images that hold a given point, and bilinear interpolation as a matrix."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class CropRule:
    """Where a crop of `side` x `side` pixels may begin in an image of `image` x `image`.

    An anchor lies at least `margin` pixels inside the crop whenever the image's border allows it.
    """

    image: int
    side: int
    margin: int

    @classmethod
    def from_shares(cls, image: int, percent: float, margin: float) -> CropRule:
        """percent: of the image's side; margin: share of the crop's side."""
        side = int(image * percent / 100)
        return cls(image, side, int(margin * side))

    def starts(self, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """Least and greatest start, int64, of anchors in pixels, axis by axis."""
        slack = self.image - self.side
        least, greatest = anchors - self.side + self.margin, anchors - self.margin
        return least.clamp(0, slack).long(), greatest.clamp(0, slack).long()

    def draw(self, anchors: Tensor, chance: Tensor) -> Tensor:
        """Starts, int64, uniform among the allowed ones if `chance` is uniform in [0, 1); both of one shape."""
        least, greatest = self.starts(anchors)
        return least + (chance.double() * (greatest - least + 1)).long()

    @property
    def corners(self) -> Tensor:
        """Anchors (4, 2), (x, y), whose crops lie in the corners and together cover the image."""
        ends = torch.tensor([0.0, float(self.image)])
        return torch.cartesian_prod(ends, ends)


@functools.lru_cache(maxsize=64)
def bilinear_matrix(to: int, of: int, device: torch.device | str = "cpu") -> Tensor:
    """U (to, of), float32: U @ x is x resized from `of` to `to` samples with half-pixel centres."""
    matrix = F.interpolate(torch.eye(of)[None], to, mode="linear", align_corners=False)[0].T
    return matrix.contiguous().to(device)
