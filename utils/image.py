"""The one way from a file, PIL image, array or tensor to upright 8-bit RGB; an error names what cannot be used.

Pixels of an image are those of its upright form, after the EXIF orientation: what every viewer shows.
"""

from __future__ import annotations

import math
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps

from utils.error import UserError

if TYPE_CHECKING:  # reading files needs no torch
    import torch

MAX_PIXELS = 150_000_000  # larger files are refused: a small file may claim any size and fill the memory
KEEP_PIXELS = 16_000_000  # larger images are reduced by a whole factor while decoding, until they fit
MIN_SIDE = 8

ImageSource = Any  # path, PIL image, array (H, W[, C]), tensor (C, H, W)


class ImageError(UserError, ValueError):
    """A picture that cannot be used; the message names it and says why."""


@dataclass(frozen=True, eq=False)
class Picture:
    """Upright RGB pixels, and the size (H, W) of the original that points refer to (larger if it was reduced)."""

    image: Image.Image
    size: tuple[int, int]
    name: str

    def to_pixels(self, points: np.ndarray) -> np.ndarray:
        """Points (N, 2), (x, y) px of the original -> px of `image`; they differ if it was reduced."""
        scale = np.array([self.image.width / self.size[1], self.image.height / self.size[0]], np.float32)
        return (points + np.float32(0.5)) * scale - np.float32(0.5)


def read_image(source: ImageSource, max_pixels: int = MAX_PIXELS) -> Picture:
    """The picture of a path, an open binary file, a PIL image, an array or a tensor.

    Array: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), uint8, uint16, bool, or float in [0, 1]; wider integers if
    they reach above 255 (16 bits). Tensor: the same types, (C, H, W) or (H, W). A PIL image is turned upright only
    as Image.open returned it: one that was made from another holds the pixels that its maker wants. Transparent
    parts are laid on white, the first frame of an animation is taken, 16-bit values are scaled to 8 bits, every
    other mode becomes RGB. Above KEEP_PIXELS the pixels are reduced by a whole factor; `size` stays the original's.

    Raises ImageError: no such file, not an image, damaged, more than `max_pixels`, a side below MIN_SIDE,
    values or shapes that cannot be an image.
    """
    if isinstance(source, Picture):
        return source
    if isinstance(source, Image.Image):
        return _from_pil(source, getattr(source, "filename", "") or "the PIL image", max_pixels)
    if hasattr(source, "permute"):  # a tensor
        return _from_pil(_from_tensor(source), "the tensor", max_pixels)
    if isinstance(source, np.ndarray):
        return _from_pil(_from_array(source), "the array", max_pixels)
    with _open(source) as file:
        return _from_pil(file, _name(source), max_pixels, may_draft=True)


def read_size(path: str | os.PathLike) -> tuple[int, int]:
    """(H, W) of a file's upright image, from its header: pixels are not decoded. Raises ImageError."""
    with _open(path) as file:
        return file.size if _lies_on_its_side(file) else file.size[::-1]


def _name(source: Any) -> str:
    return str(getattr(source, "name", "the file")) if hasattr(source, "read") else os.fspath(source)


def _open(source: Any) -> ImageFile.ImageFile:
    if not (isinstance(source, str | os.PathLike) or hasattr(source, "read")):
        raise ImageError(
            f"an image is a path, a PIL image, an array (H, W, 3) or a tensor (3, H, W); got {type(source).__name__}"
        )
    name = _name(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS is checked instead
            return Image.open(source)
    except FileNotFoundError:
        link = f" (it is a link to {os.readlink(name)}, which is not there)" if os.path.islink(name) else ""
        raise ImageError(f"{name}: no such image{link}") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: {error}") from error
    except Exception as error:  # decoders raise all sorts of errors on damaged headers
        reason = _guess_kind(source) if isinstance(error, Image.UnidentifiedImageError) else error
        raise ImageError(f"{name} cannot be opened: {reason}") from error


def _guess_kind(source: Any) -> str:
    """What a file may be that no decoder knows."""
    if hasattr(source, "read"):
        source.seek(0)
        start = source.read(12)
    else:
        with open(source, "rb") as file:
            start = file.read(12)
    if start[4:8] == b"ftyp" or Path(_name(source)).suffix.lower() in (".heic", ".heif"):
        return (
            "HEIC photos are not read; convert it to JPEG first (on the phone, or by `heif-convert in.heic out.jpg`), "
            "or open it in Python with the package pillow-heif and pass the PIL image"
        )
    return "not an image, or of an unknown format" if start else "the file is empty"


def _from_pil(image: Image.Image, name: str, max_pixels: int, may_draft: bool = False) -> Picture:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            f"{name}: {width} x {height} px is more than the limit of {max_pixels / 1e6:.0f} megapixels; "
            "make it smaller first"
        )
    if min(width, height) < MIN_SIDE:
        raise ImageError(f"{name}: {width} x {height} px is too small; both sides need at least {MIN_SIDE}")
    size = (width, height) if _lies_on_its_side(image) else (height, width)
    try:
        if may_draft:
            _prepare_file(image)
        return Picture(_to_rgb(_reduce(_turn_upright(image))), size, name)
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error
    except Exception as error:  # decoders raise all sorts of errors on damaged data
        raise ImageError(f"{name} is damaged and cannot be decoded: {error}") from error


def _lies_on_its_side(image: Image.Image) -> bool:
    """Whether width and height of an opened file are exchanged in its upright form; broken EXIF data counts as none."""
    if not isinstance(image, ImageFile.ImageFile) or image.format == "TIFF":  # Pillow turns a TIFF by itself
        return False
    try:
        return image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    except Exception:
        return False


def _turn_upright(image: Image.Image) -> Image.Image:
    """An opened file as its EXIF orientation wants it."""
    if not isinstance(image, ImageFile.ImageFile):
        return image
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF data counts as none
        return image


def _prepare_file(image: Image.Image) -> None:
    """First frame; a large JPEG is decoded at a half, a quarter or an eighth of its size."""
    if getattr(image, "is_animated", False):
        image.seek(0)
    factor = _reduction(image)
    if factor > 1:
        image.draft(None, (image.width // factor, image.height // factor))


def _reduction(image: Image.Image) -> int:
    """The smallest whole factor that brings an image down to KEEP_PIXELS."""
    return math.ceil(math.sqrt(image.width * image.height / KEEP_PIXELS))


def _reduce(image: Image.Image) -> Image.Image:
    factor = _reduction(image)
    if factor == 1:
        return image
    return (image if image.mode in ("L", "LA", "RGB", "RGBA", "CMYK") else _to_rgb(image)).reduce(factor)


def _to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB, transparent parts on white."""
    if image.mode == "La":  # premultiplied
        image = image.convert("LA")
    if image.mode.startswith(("I", "F")):
        return _from_array(np.asarray(image)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _from_tensor(tensor: torch.Tensor) -> Image.Image:
    if tensor.dim() not in (2, 3) or (tensor.dim() == 3 and len(tensor) not in (1, 3, 4)):
        raise ImageError(f"a tensor must be (C, H, W) with 1, 3 or 4 channels, or (H, W); got {tuple(tensor.shape)}")
    tensor = tensor.detach().cpu()
    tensor = tensor.float() if tensor.is_floating_point() else tensor
    return _from_array((tensor.permute(1, 2, 0) if tensor.dim() == 3 else tensor).numpy())


def _from_array(array: np.ndarray) -> Image.Image:
    """A PIL image of mode L, RGB or RGBA."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim != 2 and (array.ndim != 3 or array.shape[2] not in (3, 4)):
        raise ImageError(f"an array must be (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); got {array.shape}")
    return Image.fromarray(np.ascontiguousarray(_to_uint8(array)))


def _to_uint8(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array * np.uint8(255)
    if not (np.issubdtype(array.dtype, np.integer) or np.issubdtype(array.dtype, np.floating)) or array.size == 0:
        raise ImageError(f"values of type {array.dtype} are no image")
    low, high = array.min(), array.max()
    if np.issubdtype(array.dtype, np.floating):
        if not (low >= 0 and high <= 1):
            raise ImageError(f"floating values must lie in [0, 1]; these range from {low:g} to {high:g}")
        return np.round(array * 255).astype(np.uint8)
    if low < 0 or high > 65535:
        raise ImageError(f"whole values must lie in 0..65535 (16 bits); these range from {low} to {high}")
    if array.dtype.itemsize > 2 and 0 < high <= 255:
        raise ImageError(
            f"{array.dtype} values up to {high} may be of 8 or 16 bits; make them uint8 (0..255) or uint16 (0..65535)"
        )
    return np.round(array / 257).astype(np.uint8)
