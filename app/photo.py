"""A photo that a user chose: pixels for the networks, and a copy for the browser."""

from __future__ import annotations

import base64
import hashlib
import io
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from utils.image import ImageError, Picture, read_image

SHOWN_SIDE = 1024  # px; what the browser gets, and what is kept, is reduced to this longer side


@dataclass(frozen=True)
class Photo:
    """Equal if the files' contents are."""

    digest: str
    path: str = field(compare=False)
    size: tuple[int, int]  # (H, W) of the original; every point refers to it

    def read(self) -> Picture:
        """The pixels, upright RGB; ImageError if the file has gone."""
        return read_image(self.path)


def open_photo(path: str) -> Photo:
    """Check that a file is a usable image. Raises ImageError, whose message names the file, not its folder."""
    try:
        picture = read_image(path)
    except ImageError as error:
        raise ImageError(str(error).replace(path, Path(path).name)) from error
    return Photo(hashlib.sha256(Path(path).read_bytes()).hexdigest(), path, picture.size)


def shrink(image: Image.Image, side: int) -> Image.Image:
    """The image with its longer side at most `side` px."""
    scale = side / max(image.size)
    if scale >= 1:
        return image
    return image.resize([max(1, round(n * scale)) for n in image.size], Image.Resampling.LANCZOS)


def to_data_url(image: Image.Image, lossless: bool = False) -> str:
    """The image as a data: URL, which needs no second request and no file that the server may read."""
    buffer = io.BytesIO()
    kind = "png" if lossless else "jpeg"
    image.save(buffer, format=kind, **({} if lossless else {"quality": 90}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def describe(photo: Photo | None) -> dict | None:
    """What the browser needs to show a photo: url; width, height and digest of the original."""
    if photo is None:
        return None
    height, width = photo.size
    image = shrink(photo.read().image, SHOWN_SIDE)
    url = to_data_url(image, lossless=max(image.size) <= 256)
    return {"url": url, "width": width, "height": height, "digest": photo.digest}
