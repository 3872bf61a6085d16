"""An edit painted on one image carried to others: `carry_layer(matcher.pair(source, target), layer)`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from sd4match.flow import KINDS, sample_image
from sd4match.pair import Pair
from utils.image import ImageError, Picture

WARPS = ("dense", *KINDS)
ROOM = 0.5  # share of the painted part's longer side around it whose matches a transform is fitted to


def read_layer(path: str | Path, picture: Picture) -> np.ndarray:
    """(H, W, 4) uint8 of an image file with transparency, of a picture's size. ImageError for any other."""
    try:
        with Image.open(path) as image:
            layer, is_layer = np.array(image.convert("RGBA")), image.has_transparency_data
    except Exception as error:  # decoders raise all sorts of errors
        raise ImageError(f"{path} cannot be opened: {error}") from error
    if not is_layer:
        raise ImageError(f"{path}: no transparency; paint on a layer of its own and save that as RGBA PNG")
    return check_layer(layer, picture, str(path))


def check_layer(layer: np.ndarray, picture: Picture, name: str = "the layer") -> np.ndarray:
    """The layer itself; ImageError if it does not fit the picture that it was painted on, or is empty."""
    if layer.dtype != np.uint8 or layer.ndim != 3 or layer.shape[2] != 4:
        raise ImageError(f"{name}: a layer is an array (H, W, 4) of uint8; got {layer.shape} of {layer.dtype}")
    if layer.shape[:2] != tuple(picture.size):
        (h, w), (height, width) = layer.shape[:2], picture.size
        raise ImageError(f"{name} is {w} x {h} px, but {picture.name}, which it is painted on, {width} x {height}")
    if not layer[..., 3].any():
        raise ImageError(f"{name}: nothing is painted on it; all of it is transparent")
    return layer


def carry_layer(pair: Pair, layer: np.ndarray, warp: str = "dense") -> np.ndarray:
    """A layer (H, W, 4) uint8, painted on the source, as it lies on the target: (H', W', 4) uint8.

    warp: "dense" follows every pixel's own match, and is transparent where the way there does not lead back; or one
    transform of kind "rigid", "similarity", "affine" or "homography", fitted to the matches around what is painted.
    Raises ImageError for a layer that does not fit, FlowError if no transform does.
    """
    if warp not in WARPS:
        raise ValueError(f"unknown warp {warp!r}; known: {', '.join(WARPS)}")
    layer = check_layer(layer, pair.src)
    alpha = layer[..., 3:].astype(np.float32) / 255
    whole = np.concatenate([layer[..., :3] * alpha, alpha], axis=-1)  # colours of transparent pixels must not bleed in
    back = pair.swap()  # from each pixel of the target to where its colour is painted
    if warp == "dense":
        flow = back.flow()
        seen = sample_image(whole, flow.points, "zeros") * flow.mask[..., None]
    else:
        transform = back.flow(trg_mask=surround(layer[..., 3] > 0)).fit(warp)
        seen = transform.warp(whole, pair.trg.size)
    colour = seen[..., :3] / np.maximum(seen[..., 3:], 1e-6)
    return np.concatenate([colour, 255 * seen[..., 3:]], axis=-1).clip(0, 255).round().astype(np.uint8)


def lay_over(picture: Picture, layer: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: the picture in its original size with a layer over it."""
    base = picture.image if picture.image.size == picture.size[::-1] else picture.image.resize(picture.size[::-1])
    return np.array(Image.alpha_composite(base.convert("RGBA"), Image.fromarray(layer)).convert("RGB"))


def surround(painted: np.ndarray) -> np.ndarray:
    """(H, W) bool: the box around what is painted, and ROOM of its longer side on every side."""
    x1, y1, x2, y2 = Image.fromarray(painted).getbbox()
    room = int(np.ceil(ROOM * (max(x2 - x1, y2 - y1) - 1) + 1))
    mask = np.zeros_like(painted)
    mask[max(0, y1 - room) : y2 + room, max(0, x1 - room) : x2 + room] = True
    return mask
