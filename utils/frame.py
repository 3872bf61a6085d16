"""How an image becomes the network's input, and how points and boxes follow it: both ways, in one place.

`px` = pixels of the input (H', W'), `orig` = pixels of the upright image on disk (H, W). Points are (x, y), boxes
(x1, y1, x2, y2), sizes (H, W).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from utils.geometry import Size, px_to_cell, rescale_kps

EPS = 1e-4  # px that clamped points keep from the border


@dataclass(frozen=True)
class Frame:
    """image_size: (H', W') of the network's input. A frame is one subclass and one line in FRAMES.

    The `size` of an image is (H, W), or an int tensor (B, 2) with a size for each row of points (B, N, 2).
    """

    image_size: Size
    resampling: ClassVar[str]  # in words, for what is cached

    def fit(self, image: Image.Image) -> Tensor:
        """(3, H', W') float32 in [-1, 1] of an RGB image."""
        raise NotImplementedError

    def to_px(self, points: Tensor, size: Size | Tensor) -> Tensor:
        """Points (..., N, 2) orig -> px, in their own type; not clamped."""
        raise NotImplementedError

    def to_orig(self, points: Tensor, size: Size | Tensor) -> Tensor:
        """The inverse of `to_px`."""
        raise NotImplementedError

    def box_to_px(self, box: Tensor, size: Size) -> Tensor:
        """Box (4,) orig -> px."""
        return self.to_px(box.reshape(2, 2), size).reshape(4)

    def aspect(self, size: Size) -> Size:
        """(H, W) whose aspect ratio shows an image in this frame undistorted."""
        return self.image_size

    def clamp(self, points: Tensor) -> Tensor:
        """Points (..., 2), px, moved into [EPS, W' - 1 - EPS] x [EPS, H' - 1 - EPS]."""
        height, width = self.image_size
        last = points.new_tensor([width - 1, height - 1]) - EPS
        return points.clamp(min=EPS).minimum(last)


class Stretch(Frame):
    """Each axis is resized to its own length; the aspect ratio is not kept (SD4Match).

    As torchvision resizes tensors: bilinear, antialiased, half-pixel centres. Points: x W'/W, y H'/H.
    """

    resampling = "bilinear, antialiased"

    def fit(self, image: Image.Image) -> Tensor:
        pixels = rearrange(torch.from_numpy(np.array(image)), "h w c -> 1 c h w").float() / 255
        resized = F.interpolate(pixels, self.image_size, mode="bilinear", align_corners=False, antialias=True)
        return (resized[0] - 0.5) / 0.5

    def aspect(self, size: Size) -> Size:
        return size

    def to_px(self, points: Tensor, size: Size | Tensor) -> Tensor:
        return rescale_kps(points, size, self.image_size)

    def to_orig(self, points: Tensor, size: Size | Tensor) -> Tensor:
        return rescale_kps(points, self.image_size, size)


class Bicubic(Stretch):
    """As PIL resizes images by default: bicubic, on 8-bit pixels (DSD)."""

    resampling = "bicubic on 8-bit pixels"

    def fit(self, image: Image.Image) -> Tensor:
        resized = image.resize(self.image_size[::-1], Image.Resampling.BICUBIC)
        return (rearrange(torch.from_numpy(np.array(resized)), "h w c -> c h w").float() / 255 - 0.5) / 0.5


class Pad(Frame):
    """The longer side fills the frame, the aspect ratio is kept, and the image lies in the middle of black (GeoAware).

    As there: Lanczos on 8-bit pixels; one factor for both axes, though the shorter side is rounded to whole pixels.
    """

    resampling = "padded, Lanczos"

    def fit(self, image: Image.Image) -> Tensor:
        _, size, offset = self._place(torch.tensor([image.height, image.width]))
        size = size.clamp(min=1).int().tolist()[::-1]
        canvas = Image.new("RGB", self.image_size[::-1])
        canvas.paste(image.resize(size, Image.Resampling.LANCZOS), tuple(offset.int().tolist()))
        return (rearrange(torch.from_numpy(np.array(canvas)), "h w c -> c h w").float() / 255 - 0.5) / 0.5

    def to_px(self, points: Tensor, size: Size | Tensor) -> Tensor:
        scale, offset = self._place_for(points, size)
        return points * scale + offset

    def to_orig(self, points: Tensor, size: Size | Tensor) -> Tensor:
        scale, offset = self._place_for(points, size)
        return (points - offset) / scale

    def _place_for(self, points: Tensor, size: Size | Tensor) -> list[Tensor]:
        scale, _, offset = self._place(torch.as_tensor(size, device=points.device))
        return [part[..., None, :].to(points.dtype) for part in (scale, offset)]

    def _place(self, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Factor (..., 1), new size (..., 2) and offset (x, y) (..., 2) in float64 of images of `size` (..., 2)."""
        size = size.double()
        frame = size.new_tensor(self.image_size)
        scale, axis = (frame / size).min(dim=-1, keepdim=True)
        # multiplied before it is divided: halves are then exact, and go to the even number
        resized = (size * frame.expand_as(size).gather(-1, axis) / size.gather(-1, axis)).round()
        return scale, resized, ((frame - resized) / 2).floor().flip(-1)


FRAMES: dict[str, type[Frame]] = {"stretch": Stretch, "bicubic": Bicubic, "pad": Pad}


def build_frame(name: str, image_size: int | Size) -> Frame:
    """The frame of a name in FRAMES; image_size: one number (a square) or (H', W')."""
    if name not in FRAMES:
        raise ValueError(f"unknown frame {name!r}; known: {', '.join(FRAMES)}")
    return FRAMES[name](as_size(image_size))


def as_frame(frame: Frame | int | Size) -> Frame:
    """The frame itself, or the stretched one of a size."""
    return frame if isinstance(frame, Frame) else Stretch(as_size(frame))


def as_size(image_size: int | Size) -> Size:
    """(H', W') of one number (a square) or two."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if not (height >= 1 and width >= 1):
        raise ValueError(f"image size must be positive pixels (H, W), got {image_size}")
    return int(height), int(width)


def build_sampling_grid(frame: Frame, picture_size: Size, size: Size) -> Tensor:
    """Where the pixels of a picture of `picture_size`, shown in `size` (H, W), lie on maps of the frame.

    (H, W, 2) in [-1, 1] for `grid_sample(map, grid[None], padding_mode="border", align_corners=True)`.
    """
    axes = [(torch.arange(n) + 0.5) * (whole / n) - 0.5 for n, whole in zip(size, picture_size, strict=True)]
    px = frame.to_px(torch.cartesian_prod(*axes).flip(-1), picture_size)
    return (px_to_cell(px, frame.image_size, (2, 2)) * 2 - 1).unflatten(0, size)
