"""Scenes of the mini world: one or two objects over a cluttered background, with all their labels.

Pixel (x, y) has its centre at (x, y). Scenes are drawn at twice the wanted resolution and reduced.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from mini.render.appearance import COLOUR_NAMES, COLOURS, Draws, jitter
from mini.render.background import background, grain, occluder, paint
from mini.render.categories import KNOWN, Category
from mini.render.detail import CODES, detail_codes
from mini.render.geometry import Camera, look_at
from mini.render.primitives import Builder, Model, model_points
from mini.render.raster import Buffers, CameraModel, aim, extent, rasterise, seen_points, shade, to_camera, to_object
from mini.render.relation import Arrangement, find_relation

SPLITS = ("pretrain", "trn", "val", "test")
GENERATOR_VERSION = 2
_SUPER = 2  # supersampling factor
_POSES = ("Frontal", "Left", "Rear", "Right")
_FRONTAL = 25.0  # degrees from the front within which an object counts as facing the camera
_MIN_VISIBLE = 0.35  # share of every object that must remain visible, otherwise the scene is drawn again
_MIN_IMAGE_SHARE = 0.004  # share of the image an object must cover at least


@dataclass(frozen=True)
class SceneObject:
    """Ground truth of one object. Coordinates are pixels (x, y) of the final (possibly mirrored) image."""

    category: str
    colour: str  # word for the main body colour
    facing: str  # left, right or front, in the image
    azimuth: float  # degrees in [0, 360): 0 front, 90 left side, 180 back
    azimuth_id: int  # nearest of the eight 45-degree views
    pose: str  # Left, Right, Frontal or Rear
    mirrored: bool
    truncated: int  # 1: a part lies outside the image
    occluded: int  # 1: a part lies behind something else
    bbox: tuple[int, int, int, int]  # first and last visible column and row: x1, y1, x2, y2
    kps: dict[str, tuple[float, float] | None]  # by keypoint id; None = not visible


@dataclass(frozen=True)
class Scene:
    """One rendered image with its labels."""

    image: np.ndarray  # (H, W, 3) uint8
    part: np.ndarray  # (H, W) uint8, 0: background or occluder, else 1 + fine part of the object's category
    detail: np.ndarray  # (H, W) uint8, 0 as in part, else 1 + CODES x fine part + the end of the part (detail.py)
    instance: np.ndarray  # (H, W) uint8, 0: none, i: objects[i - 1]
    objects: list[SceneObject]

    @property
    def relation(self) -> str | None:
        """How the first of two objects stands to the second, one of RELATIONS, if that is plain to see."""
        boxes = [thing.bbox for thing in self.objects]
        return find_relation(*boxes, self.part.shape) if len(boxes) == 2 else None


@dataclass
class _Layer:
    """One rendered object at the supersampled resolution."""

    category: Category
    colour: str
    azimuth: float
    model: Model
    view: CameraModel
    camera: Camera
    buffers: Buffers
    owner: np.ndarray  # (h, w) bool, where the object is on top
    truncated: bool


def instance_seed(split: str, category: str, index: int) -> np.random.SeedSequence:
    """Seed of instance `index` of a category; different splits never share one.

    Raises ValueError for an unknown split or category.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; choose from {SPLITS}")
    _require_category(category)
    digest = hashlib.blake2b(f"mini/{GENERATOR_VERSION}/{split}/{category}/{index}".encode(), digest_size=16).digest()
    return np.random.SeedSequence(int.from_bytes(digest, "little"))


def random_size(seed: np.random.SeedSequence) -> tuple[int, int]:
    """(H, W) of the benchmarks' image of an instance, 96 to 160 pixels each."""
    sides = np.random.default_rng(np.random.SeedSequence(seed.entropy, spawn_key=(10**6,)))
    return tuple(int(n) for n in sides.integers(96, 161, 2))


@dataclass(frozen=True)
class Options:
    """What is asked of a scene."""

    categories: tuple[str, ...]
    size: tuple[int, int]
    clutter: bool = True  # distractors in the background
    occlude: float = 0.12  # probability of a foreground occluder (True/False: always/never)
    truncate: float = 0.1  # probability that the first object crosses the image border
    azimuth: tuple[float, float] | None = None  # degrees before mirroring; None: the category's views
    scale: tuple[float, float] = (0.7, 1.0)  # long side of a single object, fraction of the image
    colours: tuple[str | None, ...] = (None, None)  # of the objects; None: a random one
    relation: str | None = None  # one of RELATIONS: how the first of two objects stands to the second
    steady: bool = False  # what is said of one thing changes no other thing: each is drawn by itself


def render_scene(
    seed: int | np.random.SeedSequence,
    categories: Sequence[str],  # one or two names; the second object stands beside or behind
    size: tuple[int, int] = (96, 96),  # (H, W)
    *,
    mirror: bool | None = None,  # None: one half of the scenes
    attempts: int = 100,
    **options: Any,  # others of Options
) -> Scene:
    """Render one scene. The same arguments give the same bytes.

    A mirrored scene is the exact mirror image of the one that `mirror=False` gives, with left and right parts
    and keypoints exchanged; not so with a `relation`, which holds in both. Raises ValueError for unknown categories
    or other than one or two of them.
    """
    if not 1 <= len(categories) <= 2:
        raise ValueError(f"categories must hold one or two names, got {tuple(categories)!r}")
    for name in categories:
        _require_category(name)
    sequence = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
    asked = Options(tuple(categories), tuple(size), **options)
    for attempt in range(attempts):
        draws = Draws(np.random.SeedSequence(sequence.entropy, spawn_key=(*sequence.spawn_key, attempt)))
        coin = draws.chance(0.5)
        scene = _attempt(draws, asked, coin if mirror is None else mirror)
        if scene is not None:
            return scene
    raise ValueError(f"no usable scene in {attempts} attempts for {asked}; ask for a larger size or scale")


def _require_category(name: str) -> None:
    if name not in KNOWN:
        raise ValueError(f"unknown mini category {name!r}; choose from {tuple(KNOWN)}")


def _attempt(draws: Draws, options: Options, flip: bool) -> Scene | None:
    """One try; None when an object is hidden too much."""
    h, w = (_SUPER * s for s in options.size)
    layout, first, second, rest = [draws.branch(n) for n in range(4)] if options.steady else [draws] * 4
    plan = Arrangement(layout, _mirrored(options.relation, flip), (h, w)) if options.relation else None
    streams = zip(options.categories, (first, second), strict=False)
    layers = [_place(stream, name, i, options, plan, (h, w)) for i, (name, stream) in enumerate(streams)]
    cover = None
    if draws.chance(options.occlude):
        cover = np.asarray(occluder(draws, (h, w), _layer_box(layers[0]))) > 0
    _resolve(layers, cover)
    if not all(_usable(layer, options.size) for layer in layers):
        return None
    canvas = np.array(background(rest, (h, w), options.clutter))
    _paint(rest, canvas, layers, cover)
    scene = _finish(rest, canvas, layers, options.size, flip)
    return None if scene and options.relation and scene.relation != options.relation else scene


def _mirrored(relation: str, flip: bool) -> str:
    return {"left of": "right of", "right of": "left of"}.get(relation, relation) if flip else relation


def _place(
    draws: Draws, name: str, order: int, options: Options, plan: Arrangement | None, size: tuple[int, int]
) -> _Layer:
    """Random instance, camera and position of object `order` (0: in front)."""
    category = KNOWN[name]
    drawn = draws.pick(COLOUR_NAMES)
    colour = options.colours[order] or drawn
    builder = Builder(draws, category.fine_parts, category.keypoints, jitter(COLOURS[colour], draws, 18))
    category.build(builder)
    azimuth = _draw_azimuth(draws, category, options.azimuth)
    camera, view = _view(draws, builder.model, azimuth, category)
    h, w = size
    low, high = options.scale
    fraction = draws.uniform(low, high) * (1.0 if len(options.categories) == 1 else 0.72 - 0.12 * order)
    x0, y0, x1, y1 = extent(view)
    fit = min(w / (x1 - x0), h / (y1 - y0)) * max(x1 - x0, y1 - y0)
    camera = aim(camera, view, fraction * fit, (0.0, 0.0))
    half_w, half_h = camera.focal * (x1 - x0) / 2, camera.focal * (y1 - y0) / 2
    side = None if len(options.categories) == 1 else order
    if plan:
        factor, centre = plan.place(order, (half_w, half_h))
        fraction, half_w, half_h = factor * fraction, factor * half_w, factor * half_h
    else:
        centre = _centre(draws, (half_w, half_h), size, draws.chance(options.truncate) and order == 0, side)
    camera = aim(camera, view, fraction * fit, centre)
    buffers = rasterise(view, camera, size)
    outside = (
        centre[0] - half_w < -1.5
        or centre[1] - half_h < -1.5
        or centre[0] + half_w > w + 0.5
        or centre[1] + half_h > h + 0.5
    )
    return _Layer(category, colour, azimuth, builder.model, view, camera, buffers, buffers.primitive >= 0, outside)


def _draw_azimuth(draws: Draws, category: Category, wanted: tuple[float, float] | None) -> float:
    if wanted is not None:
        return draws.uniform(*wanted) % 360
    turn = draws.bump(*category.azimuth)
    return turn if draws.chance(0.5) else (360 - turn) % 360


def _view(draws: Draws, model: Model, azimuth: float, category: Category) -> tuple[Camera, CameraModel]:
    points = model_points(model)
    low, high = points.min(0), points.max(0)
    radius = float(np.linalg.norm(high - low)) / 2
    camera = look_at(
        (low + high) / 2,
        radius * draws.uniform(2.6, 6.0),
        azimuth,
        draws.uniform(*category.elevation),
        draws.bump(-15, 15),
    )
    return camera, to_camera(model, camera)


def _centre(
    draws: Draws, half: tuple[float, float], size: tuple[int, int], truncate: bool, side: int | None
) -> tuple[float, float]:
    """Centre of the object's box: inside the image, over its border, or (of two objects) in one half."""
    h, w = size
    free = [max(0.0, (length - 1) / 2 - r) for length, r in zip((w, h), half, strict=True)]
    x, y = (w - 1) / 2 + draws.uniform(-1, 1) * free[0], (h - 1) / 2 + draws.uniform(-1, 1) * free[1]
    if side is not None:
        x = (w - 1) / 2 + (1 - 2 * side) * draws.uniform(0.4, 1.0) * free[0]
    if truncate:
        over = draws.uniform(0.1, 0.45)
        sign = 1 if draws.chance(0.5) else -1
        if draws.chance(0.65):
            x = (w - 1) / 2 + sign * (free[0] + over * half[0])
        else:
            y = (h - 1) / 2 + sign * (free[1] + over * half[1])
    return x, y


def _layer_box(layer: _Layer) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = extent(layer.view) * layer.camera.focal
    return (x0 + layer.camera.cx, y0 + layer.camera.cy, x1 + layer.camera.cx, y1 + layer.camera.cy)


def _resolve(layers: list[_Layer], cover: np.ndarray | None) -> None:
    """Take away from each layer what the layers before it and the occluder cover."""
    taken = cover
    for layer in layers:
        shown = layer.buffers.primitive >= 0
        layer.owner = shown if taken is None else shown & ~taken
        taken = shown if taken is None else taken | shown


def _usable(layer: _Layer, size: tuple[int, int]) -> bool:
    shown, total = np.count_nonzero(layer.owner), np.count_nonzero(layer.buffers.primitive >= 0)
    return shown >= max(_MIN_VISIBLE * total, _MIN_IMAGE_SHARE * _SUPER**2 * size[0] * size[1])


def _paint(draws: Draws, canvas: np.ndarray, layers: list[_Layer], cover: np.ndarray | None) -> None:
    """Draw the layers, back to front, and the occluder on `canvas` (h, w, 3)."""
    angle = draws.uniform(-70, 70)
    light = np.array([math.sin(math.radians(angle)), -0.75, -0.65])
    light /= np.linalg.norm(light)
    ambient = draws.uniform(0.45, 0.65)
    for layer in reversed(layers):
        colours, pixels = shade(layer.view, layer.model, layer.camera, layer.buffers, light, ambient)
        canvas.reshape(-1, 3)[pixels] = np.clip(colours, 0, 255, out=colours).astype(np.uint8)
    if cover is not None:
        canvas[cover] = np.asarray(paint(draws, canvas.shape[:2]))[cover]


def _finish(draws: Draws, canvas: np.ndarray, layers: list[_Layer], size: tuple[int, int], flip: bool) -> Scene | None:
    """Reduce, add grain, label and mirror; None when an object vanishes in the labels."""
    image = np.asarray(Image.fromarray(canvas).reduce(_SUPER), np.float32)
    image = (image - 128) * draws.uniform(0.8, 1.1) + 128 + draws.uniform(-15, 15)
    image += draws.uniform(0, 8) * grain(draws, size)
    image = np.clip(image, 0, 255).astype(np.uint8)
    detail, instance = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
    for i, layer in enumerate(layers, 1):
        owner = layer.owner[::_SUPER, ::_SUPER]
        detail[owner] = _label(layer, owner, flip)
        instance[owner] = i
    if flip:
        image, detail, instance = (np.ascontiguousarray(a[:, ::-1]) for a in (image, detail, instance))
    part = np.where(detail > 0, (detail - 1) // CODES + 1, 0).astype(np.uint8)
    if any(not (instance == i).any() for i in range(1, len(layers) + 1)):
        return None
    objects = [_describe(layer, instance == i, flip) for i, layer in enumerate(layers, 1)]
    return Scene(image, part, detail, instance, objects)


def _label(layer: _Layer, owner: np.ndarray, flip: bool) -> np.ndarray:
    """Detail labels (n,) of the pixels in `owner` (H, W) before the image is mirrored."""
    sampled = (slice(None, None, _SUPER), slice(None, None, _SUPER))
    part = layer.view.part[layer.buffers.primitive[sampled][owner]].astype(int)
    rows, cols = np.nonzero(owner)
    seen = seen_points(layer.camera, layer.buffers.depth[sampled][owner], rows * _SUPER, cols * _SUPER)
    ends = detail_codes(layer.category, layer.model, part, to_object(layer.camera, seen), flip)
    if flip:
        part = np.array(layer.category.part_partner)[part]
    return (1 + CODES * part + ends).astype(np.uint8)


def _describe(layer: _Layer, mask: np.ndarray, flip: bool) -> SceneObject:
    azimuth = round((-layer.azimuth if flip else layer.azimuth) % 360, 2) % 360
    folded = min(azimuth, 360 - azimuth)
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    total = np.count_nonzero(layer.buffers.primitive >= 0)
    occluded = int(np.count_nonzero(layer.owner) < 0.97 * total)
    return SceneObject(
        category=layer.category.name,
        colour=layer.colour,
        facing="front" if folded <= _FRONTAL else "left" if azimuth < 180 else "right",
        azimuth=azimuth,
        azimuth_id=round(azimuth / 45) % 8,
        pose=_POSES[round(azimuth / 90) % 4],
        mirrored=flip,
        truncated=int(layer.truncated),
        occluded=occluded,
        bbox=(int(cols[0]), int(rows[0]), int(cols[-1]), int(rows[-1])),
        kps=_keypoints(layer, mask, flip),
    )


def _keypoints(layer: _Layer, mask: np.ndarray, flip: bool) -> dict[str, tuple[float, float] | None]:
    """Visible keypoints of the final image by id; `mask` (H, W) is the object's final visible region."""
    h, w = mask.shape
    found: dict[str, tuple[float, float] | None] = {str(i): None for i in range(len(layer.category.keypoints))}
    indices = list(layer.model.keypoints)
    points = layer.camera.points(np.array([layer.model.keypoints[i].point for i in indices]))
    for i, (px, py, pz) in zip(indices, points.tolist(), strict=True):
        x = px / pz * layer.camera.focal + layer.camera.cx
        y = py / pz * layer.camera.focal + layer.camera.cy
        if not _visible(layer, i, x, y, pz):
            continue
        x, y = ((v + 0.5) / _SUPER - 0.5 for v in (x, y))
        x = w - 1 - x if flip else x
        if 0 <= x <= w - 1 and 0 <= y <= h - 1 and _near(mask, x, y):
            found[str(layer.category.keypoint_partner[i] if flip else i)] = (x, y)
    return found


def _visible(layer: _Layer, index: int, x: float, y: float, z: float) -> bool:
    """Whether the keypoint at supersampled pixel (x, y), depth z, lies on a visible surface of its parts."""
    h, w = layer.owner.shape
    col, row = round(x), round(y)
    if not (0 <= col < w and 0 <= row < h):
        return False
    keypoint = layer.model.keypoints[index]
    primitive, depth = layer.buffers.primitive, layer.buffers.depth
    if primitive[row, col] >= 0 and (not layer.owner[row, col] or depth[row, col] < z - keypoint.depth):
        return False
    window = (slice(max(0, row - _SUPER), row + _SUPER + 1), slice(max(0, col - _SUPER), col + _SUPER + 1))
    shown = layer.owner[window] & (depth[window] > z - keypoint.depth)
    return not set(keypoint.parts).isdisjoint(layer.view.part[primitive[window][shown]].tolist())


def _near(mask: np.ndarray, x: float, y: float) -> bool:
    """Whether the mask has a pixel within one and a half pixels of (x, y)."""
    col, row = round(x), round(y)
    return bool(mask[max(0, row - 1) : row + 2, max(0, col - 1) : col + 2].any())
