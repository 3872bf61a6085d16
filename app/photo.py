"""A photo that a user chose: its file's bytes in memory, and a copy for the browser. No path is read."""

from __future__ import annotations

import base64
import hashlib
import io
from dataclasses import dataclass, field

import numpy as np
from matplotlib import colormaps
from PIL import Image

from utils.image import Picture, read_image

MAX_PIXELS = 40_000_000  # a small file may claim any size: decoding more would take gigabytes
SHOWN_SIDE = 1024  # px; what the browser gets is reduced to this longer side


@dataclass(frozen=True)
class Photo:
    """Equal if the files' contents are."""

    digest: str
    content: bytes = field(compare=False, repr=False)
    name: str = field(compare=False)
    rendered: bool = field(compare=False)  # an example of the mini world
    size: tuple[int, int]  # (H, W) of the original; every point refers to it
    url: str = field(compare=False, repr=False)  # data: URL of what the browser shows

    def read(self) -> Picture:
        """The pixels, upright RGB."""
        return _decode(self.content, self.name)


def open_photo(content: bytes, name: str, rendered: bool = False) -> Photo:
    """The photo of a file's bytes; ImageError, which calls it `name`, if they are no usable image."""
    picture = _decode(content, name)
    shown = shrink(picture.image, SHOWN_SIDE)
    url = to_data_url(shown, lossless=max(shown.size) <= 256)
    return Photo(hashlib.sha256(content).hexdigest(), content, name, rendered, picture.size, url)


def _decode(content: bytes, name: str) -> Picture:
    file = io.BytesIO(content)
    file.name = name
    return read_image(file, MAX_PIXELS)


def shrink(image: Image.Image, side: int) -> Image.Image:
    """The image with its longer side at most `side` px."""
    smaller = image.copy()
    smaller.thumbnail((side, side), Image.Resampling.LANCZOS)
    return smaller


def paint_heat(heat: np.ndarray) -> Image.Image:
    """A map (H, W), in its own range, in viridis' colours, RGBA: clearer where it is lower."""
    low, high = float(heat.min()), float(heat.max())
    stretched = (heat - low) / max(high - low, 1e-12)
    pixels = colormaps["viridis"](stretched, bytes=True)
    pixels[..., 3] = np.round(255 * (0.2 + 0.7 * stretched**2))
    return Image.fromarray(pixels)


def to_data_url(image: Image.Image, lossless: bool = False) -> str:
    """The image as a data: URL, which needs no second request and no file that the server may read."""
    buffer, kind = io.BytesIO(), "png" if lossless else "jpeg"
    image.save(buffer, kind, quality=90)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def describe(photo: Photo | None) -> dict | None:
    """What the browser needs to show a photo: url; width, height and digest of the original."""
    if photo is None:
        return None
    height, width = photo.size
    return {"url": photo.url, "width": width, "height": height, "digest": photo.digest}
