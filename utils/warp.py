"""Pictures of a dense match: colours that stand for places, carried from one image to another, and warped images."""

import torch
from torch import Tensor

from utils.geometry import Size, cell_grid, sample_features

CORNERS = ((86, 180, 233), (240, 228, 66), (40, 30, 130), (213, 94, 0))  # sky, yellow, indigo, vermillion
CHECKS = 8  # squares along each side of the box
CHECK_DEPTH = 0.16  # how much darker every second square is


def place_colours(points_px: Tensor, box: Tensor) -> Tensor:
    """Colours (..., 3) in [0, 1] of places (..., 2), px: one for each place of a box, in shaded squares.

    box: (4,) x1 y1 x2 y2, px; left and right differ in hue, top and bottom in lightness. Places outside take the
    colour of the box's nearest place.
    """
    top_left, top_right, bottom_left, bottom_right = torch.tensor(CORNERS, dtype=points_px.dtype) / 255
    unit = ((points_px - box[:2]) / (box[2:] - box[:2]).clamp(min=1)).clamp(0, 1)
    x, y = unit.split(1, dim=-1)
    colours = (1 - y) * ((1 - x) * top_left + x * top_right) + y * ((1 - x) * bottom_left + x * bottom_right)
    square = (unit * CHECKS).floor().clamp(max=CHECKS - 1).sum(dim=-1, keepdim=True)
    return colours * (1 - CHECK_DEPTH * (square % 2))


def inside(points_px: Tensor, box: Tensor) -> Tensor:
    """Whether each place (..., 2), px, lies in a box (4,) x1 y1 x2 y2."""
    return ((points_px >= box[:2]) & (points_px <= box[2:])).all(dim=-1)


def pixel_places(size: Size, like: Tensor) -> Tensor:
    """(x, y) of every pixel, (H, W, 2)."""
    return cell_grid(size, like).unflatten(0, tuple(size))


def warp_image(image: Tensor, points_px: Tensor) -> Tensor:
    """The image (3, H, W) as seen at places (h, w, 2), px: (3, h, w), bilinear."""
    seen = sample_features(image[None], points_px.flatten(0, 1)[None])[0]  # (h*w, 3)
    return seen.T.unflatten(1, points_px.shape[:2])
