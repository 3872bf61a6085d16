"""Cluttered backgrounds and foreground occluders."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from mini.render.appearance import Draws, random_colour

_NOISE = np.random.default_rng(0).normal(0, 1, (1024, 1024, 1)).astype(np.float32)


def background(draws: Draws, size: tuple[int, int], clutter: bool) -> Image.Image:
    """RGB image of `size` (h, w): a smooth field, with `clutter` also stripes, blobs and small shapes."""
    h, w = size
    cells = 2 + draws.index(5) if clutter else 2
    spread = draws.uniform(0.1, 0.5)
    base = np.array(random_colour(draws))
    field = draws.rng.random((cells, cells, 3)) * 255
    image = Image.fromarray((base + spread * (field - base)).astype(np.uint8))
    image = image.resize((w // 2, h // 2), Image.Resampling.BICUBIC).resize((w, h), Image.Resampling.NEAREST)
    if clutter:
        canvas = ImageDraw.Draw(image)
        if draws.chance(0.4):
            _horizon(canvas, draws, h, w)
        if draws.chance(0.15):
            _stripes(canvas, draws, h, w)
        for _ in range(draws.index(6)):
            _shape(canvas, draws, h, w)
    return image


def occluder(draws: Draws, size: tuple[int, int], box: tuple[float, float, float, float]) -> Image.Image:
    """Mask (mode "L", 255 = covered) of one foreground blob or pole over a part of `box` (x0, y0, x1, y1)."""
    h, w = size
    mask = Image.new("L", (w, h))
    canvas = ImageDraw.Draw(mask)
    x0, y0, x1, y1 = box
    long_side = max(x1 - x0, y1 - y0)
    x, y = draws.uniform(x0, x1), draws.uniform(y0, y1)
    if draws.chance(0.3):
        lean, half = draws.uniform(-0.2, 0.2) * h, long_side * draws.uniform(0.03, 0.08)
        canvas.polygon([x - lean - half, 0, x - lean + half, 0, x + lean + half, h, x + lean - half, h], fill=255)
    else:
        canvas.polygon(_blob(draws, x, y, long_side * draws.uniform(0.1, 0.22)), fill=255)
    return mask


def paint(draws: Draws, size: tuple[int, int]) -> Image.Image:
    """Two-coloured blotchy texture of `size` (h, w) for an occluder."""
    first, second = np.array(random_colour(draws)), np.array(random_colour(draws))
    blend = draws.rng.random((8, 8, 1)) ** 2
    field = (first + blend * (second - first)).astype(np.uint8)
    return Image.fromarray(field).resize((size[1], size[0]), Image.Resampling.BILINEAR)


def grain(draws: Draws, size: tuple[int, int]) -> np.ndarray:
    """(h, w, 1) float32 unit-variance noise."""
    row, col = draws.index(512), draws.index(512)
    if max(size) > 512:
        return draws.rng.standard_normal((*size, 1), dtype=np.float32)
    return _NOISE[row : row + size[0], col : col + size[1]]


def _blob(draws: Draws, x: float, y: float, radius: float) -> list[tuple[float, float]]:
    n = 5 + draws.index(7)
    radii = [radius * draws.uniform(0.65, 1.35) for _ in range(n)]
    return [(x + r * math.cos(2 * math.pi * i / n), y + r * math.sin(2 * math.pi * i / n)) for i, r in enumerate(radii)]


def _fill(draws: Draws) -> tuple[int, int, int]:
    return tuple(int(c) for c in random_colour(draws))


def _horizon(canvas: ImageDraw.ImageDraw, draws: Draws, h: int, w: int) -> None:
    left, right = draws.uniform(0.4, 0.9) * h, draws.uniform(0.4, 0.9) * h
    canvas.polygon([0, left, w, right, w, h, 0, h], fill=_fill(draws))


def _stripes(canvas: ImageDraw.ImageDraw, draws: Draws, h: int, w: int) -> None:
    """Parallel bands over a part of the image."""
    fill, step, width = _fill(draws), draws.uniform(0.06, 0.2) * w, int(draws.uniform(0.01, 0.06) * w) + 1
    slant, low, high = draws.uniform(-1, 1) * w, draws.uniform(0, 0.5) * h, draws.uniform(0.5, 1) * h
    for i in range(int(2 * w / step)):
        x = i * step - 0.5 * w
        canvas.line([x, low, x + slant * (high - low) / h, high], fill=fill, width=width)


def _shape(canvas: ImageDraw.ImageDraw, draws: Draws, h: int, w: int) -> None:
    x, y = draws.uniform(0, w), draws.uniform(0, h)
    radius = w * draws.uniform(0.02, 0.2)
    kind = draws.index(4)
    if kind == 0:
        canvas.polygon(_blob(draws, x, y, radius), fill=_fill(draws))
    elif kind == 1:
        flat = radius * draws.uniform(0.4, 1)
        canvas.ellipse([x - radius, y - flat, x + radius, y + flat], fill=_fill(draws))
    elif kind == 2:
        a, tall = draws.uniform(0, math.pi), radius * draws.uniform(1, 3)
        canvas.line(
            [x, y, x + tall * math.cos(a), y + tall * math.sin(a)],
            fill=_fill(draws),
            width=1 + int(0.4 * radius),
        )
    else:
        flat = radius * draws.uniform(0.3, 1)
        canvas.rectangle([x - radius, y - flat, x + radius, y + flat], fill=_fill(draws))
