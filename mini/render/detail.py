"""Which end of its part a surface point lies on: the finest labels of the mini world.

Each fine part is cut in the middle of its own bounding box (object frame), along one axis or two: the axes along
which parts of that name are long. The codes are 0..3: bit i tells the upper side of the i-th cut.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from mini.render.appearance import Draws
from mini.render.categories import KNOWN, Category
from mini.render.primitives import Builder, Model

CODES = 4  # per fine part
_LEFT = 1  # the object frame's y axis, which mirroring reverses
_SAMPLES = 8  # instances whose parts are measured
_LONG = 0.5  # share of the longest side above which a second axis is cut too


def detail_codes(
    category: Category,
    model: Model,
    part: np.ndarray,  # (n,) fine parts before mirroring
    points: np.ndarray,  # (n, 3) object frame
    flip: bool,
) -> np.ndarray:
    """The end code (n,) of surface points, as seen in the image (exchanged left and right if `flip`)."""
    low, high = part_bounds(model, len(category.fine_parts))[part].swapaxes(0, 1)
    upper = points > (low + high) / 2
    if flip:
        upper[:, _LEFT] = ~upper[:, _LEFT]
    cuts = part_cuts(category.name)[part]  # (n, 2)
    bits = np.take_along_axis(upper, np.maximum(cuts, 0), 1) & (cuts >= 0)
    return bits @ np.array([1, 2])


@lru_cache
def part_cuts(name: str) -> np.ndarray:
    """The axes (parts, 2) along which the parts of a category are cut; -1: no second cut."""
    category = KNOWN[KNOWN[name].kin or name]  # kin are cut alike
    sides = np.mean([_measure(category, seed) for seed in range(_SAMPLES)], axis=0)
    sides = sides + sides[list(category.part_partner)]
    order = np.argsort(-sides, axis=1, kind="stable")[:, :2]
    longest, second = np.take_along_axis(sides, order, 1).T
    cuts = np.sort(np.where((second >= _LONG * longest)[:, None], order, order[:, :1]), axis=1)
    cuts[cuts[:, 0] == cuts[:, 1], 1] = -1
    return cuts


def _measure(category: Category, seed: int) -> np.ndarray:
    builder = Builder(Draws(np.random.SeedSequence(seed)), category.fine_parts, category.keypoints, (0.0, 0.0, 0.0))
    category.build(builder)
    bounds = part_bounds(builder.model, len(category.fine_parts))
    return np.maximum(bounds[:, 1] - bounds[:, 0], 0.0)  # -inf: a part that this instance lacks


def part_bounds(model: Model, parts: int) -> np.ndarray:
    """Bounding boxes (parts, 2, 3), low and high, of the fine parts in the object frame."""
    bounds = np.stack([np.full((parts, 3), np.inf), np.full((parts, 3), -np.inf)], 1)
    for points, owner in _outlines(model):
        np.minimum.at(bounds[:, 0], owner, points)
        np.maximum.at(bounds[:, 1], owner, points)
    return bounds


def _outlines(model: Model):
    """Points (n, 3) on the primitives, with their parts (n,)."""
    if model.centre:
        centre, axes = np.array(model.centre), np.array(model.axes)
        ellipsoid = np.isnan(model.taper)
        tip = centre + axes[:, 2]
        grow = 1 + np.where(ellipsoid, 0.0, model.taper)[:, None]
        owner = np.array(model.quadric_part)
        yield tip, owner
        yield np.where(ellipsoid[:, None], centre - axes[:, 2], centre), owner
        for axis in (axes[:, 0], axes[:, 1], -axes[:, 0], -axes[:, 1]):
            yield centre + axis, owner
            yield np.where(ellipsoid[:, None], centre, tip + grow * axis), owner
    for polygon, part in zip(model.polygons, model.polygon_part, strict=True):
        yield np.array(polygon), np.full(len(polygon), part)
