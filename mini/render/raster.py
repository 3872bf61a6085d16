"""Rendering of one model into buffers: exact ray casting of quadrics, filled polygons, one depth buffer.

Buffers are (h, w) at the supersampled resolution; pixel (x, y) looks along (x - cx, y - cy, focal).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

from mini.render.geometry import Camera
from mini.render.primitives import Model

FAR = np.float32(1e6)


@dataclass
class CameraModel:
    """A model in camera coordinates, as arrays. q quadrics, p polygons."""

    centre: np.ndarray  # (q, 3)
    axes: np.ndarray  # (q, 3, 3) columns are the axes
    taper: np.ndarray  # (q,) NaN: ellipsoid
    polygons: list[np.ndarray]  # p arrays (m, 3)
    holes: list[np.ndarray | None]
    solid: list[bool]
    normals: np.ndarray  # (p, 3) of the polygons, not normalised
    part: np.ndarray  # (q + p,) fine part
    material: np.ndarray  # (q + p,)
    boxes: np.ndarray  # (q + p, 4) x0 y0 x1 y1 for unit focal length and zero centre


@dataclass
class Buffers:
    """What one object shows: `primitive` (h, w) int16 (-1: nothing) and `depth` (h, w) float32."""

    primitive: np.ndarray
    depth: np.ndarray


def to_camera(model: Model, camera: Camera) -> CameraModel:
    """Model seen from `camera` (its focal length and centre are not used)."""
    centre = camera.points(np.array(model.centre, dtype=np.float64).reshape(-1, 3))
    axes = np.swapaxes(np.array(model.axes, dtype=np.float64).reshape(-1, 3, 3) @ camera.turn.T, 1, 2)
    taper = np.array(model.taper, dtype=np.float64)
    polygons, holes = _transform(model.polygons, camera), _transform_optional(model.holes, camera)
    boxes = np.concatenate([_quadric_boxes(centre, axes, taper), _polygon_boxes(polygons)])
    return CameraModel(
        centre,
        axes,
        taper,
        polygons,
        holes,
        model.solid,
        _normals(polygons),
        np.array(model.quadric_part + model.polygon_part, dtype=np.int16),
        np.array(model.quadric_material + model.polygon_material, dtype=np.int16),
        boxes,
    )


def _transform(polygons: list, camera: Camera) -> list[np.ndarray]:
    if not polygons:
        return []
    points = camera.points(np.array([p for polygon in polygons for p in polygon], dtype=np.float64))
    return np.split(points, np.cumsum([len(polygon) for polygon in polygons])[:-1])


def _transform_optional(holes: list, camera: Camera) -> list[np.ndarray | None]:
    return [None if hole is None else camera.points(np.array(hole, dtype=np.float64)) for hole in holes]


def _quadric_boxes(centre: np.ndarray, axes: np.ndarray, taper: np.ndarray) -> np.ndarray:
    """(q, 4) exact image boxes: of the ellipsoid, or of both end discs of a frustum."""
    ellipsoid = np.isnan(taper)
    grow = 1 + np.where(ellipsoid, 0, taper)[:, None, None]
    base = _conic_boxes(centre, np.where(ellipsoid[:, None, None], axes, axes * [1, 1, 0]))
    tip = _conic_boxes(centre + axes[:, :, 2], axes * [1, 1, 0] * grow)
    both = np.concatenate([np.minimum(base[:, :2], tip[:, :2]), np.maximum(base[:, 2:], tip[:, 2:])], 1)
    return np.where(ellipsoid[:, None], base, both)


def _conic_boxes(centre: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Bounds of the image of the ellipsoids centre + axes u, |u| = 1, from their dual conics."""
    dual = axes @ np.swapaxes(axes, 1, 2) - centre[:, :, None] * centre[:, None, :]
    mid, last = dual[:, :2, 2], dual[:, 2, 2][:, None]
    half = np.sqrt(np.maximum(mid**2 - np.stack([dual[:, 0, 0], dual[:, 1, 1]], 1) * last, 0)) / np.abs(last)
    return np.concatenate([mid / last - half, mid / last + half], 1)


def _starts(polygons: list[np.ndarray]) -> np.ndarray:
    """Position of each polygon's first point in their concatenation."""
    return np.cumsum([0] + [len(p) for p in polygons[:-1]])


def _polygon_boxes(polygons: list[np.ndarray]) -> np.ndarray:
    if not polygons:
        return np.zeros((0, 4))
    points, starts = np.concatenate(polygons), _starts(polygons)
    xy = points[:, :2] / points[:, 2:]
    return np.concatenate([np.minimum.reduceat(xy, starts), np.maximum.reduceat(xy, starts)], 1)


def _normals(polygons: list[np.ndarray]) -> np.ndarray:
    """(p, 3) sums of the cross products of successive points: twice the areas times the normals."""
    if not polygons:
        return np.zeros((0, 3))
    points, starts = np.concatenate(polygons), _starts(polygons)
    sizes = np.array([len(p) for p in polygons])
    points = points - np.repeat(points[starts], sizes, axis=0)
    following = np.arange(1, len(points) + 1)
    following[starts + sizes - 1] = starts
    (px, py, pz), (qx, qy, qz) = points.T, points[following].T
    products = np.stack([py * qz - pz * qy, pz * qx - px * qz, px * qy - py * qx], 1)
    return np.add.reduceat(products, starts)


def extent(view: CameraModel) -> np.ndarray:
    """(4,) x0 y0 x1 y1 of the whole model for unit focal length and zero centre."""
    return np.concatenate([view.boxes[:, :2].min(0), view.boxes[:, 2:].max(0)])


def aim(camera: Camera, view: CameraModel, long_side: float, centre: tuple[float, float]) -> Camera:
    """Camera that shows the model `long_side` pixels long, with its box centre at pixel `centre` (x, y)."""
    x0, y0, x1, y1 = extent(view)
    focal = long_side / max(x1 - x0, y1 - y0)
    return replace(camera, focal=focal, cx=centre[0] - focal * (x0 + x1) / 2, cy=centre[1] - focal * (y0 + y1) / 2)


def rasterise(view: CameraModel, camera: Camera, size: tuple[int, int]) -> Buffers:
    """Depth-buffered primitive indices of the model in an image of `size` (h, w)."""
    h, w = size
    buffers = Buffers(np.full((h, w), -1, np.int16), np.full((h, w), FAR, np.float32))
    low = np.floor(view.boxes[:, :2] * camera.focal + [camera.cx, camera.cy]).astype(int)
    high = np.ceil(view.boxes[:, 2:] * camera.focal + [camera.cx, camera.cy]).astype(int) + 1
    boxes = np.concatenate([np.maximum(low, 0), np.minimum(high, [w, h])], 1).tolist()
    xs = ((np.arange(w) - camera.cx) / camera.focal).astype(np.float32)
    ys = ((np.arange(h) - camera.cy) / camera.focal).astype(np.float32)
    quadrics, polygons = _Quadrics(view), _Polygons(view, camera)
    n_quadrics = len(view.taper)
    with np.errstate(invalid="ignore", divide="ignore"):  # rays that miss
        for i, (x0, y0, x1, y1) in enumerate(boxes):
            if x0 >= x1 or y0 >= y1:
                continue
            window = (slice(y0, y1), slice(x0, x1))
            grid = (xs[x0:x1], ys[y0:y1, None])
            if i < n_quadrics:
                quadrics.draw(i, buffers, window, grid)
            else:
                polygons.draw(i, i - n_quadrics, buffers, window, grid)
    return buffers


class _Quadrics:
    """Ray coefficients of all quadrics. A ray z (x, y, 1) is o + z d in a quadric's own coordinates."""

    def __init__(self, view: CameraModel) -> None:
        frustum, k, metric, inverse = _surface(view)
        origin = -np.einsum("qij,qj->qi", inverse, view.centre)
        weighted = inverse * metric[:, :, None]
        a = np.swapaxes(inverse, 1, 2) @ weighted  # d^T G d as a form in (x, y, 1)
        b = np.einsum("qi,qij->qj", origin, weighted) - k[:, None] * inverse[:, 2]  # linear in (x, y, 1)
        c = (metric * origin**2).sum(1) - 2 * k * origin[:, 2] - 1
        disc = b[:, :, None] * b[:, None, :] - a * c[:, None, None]
        self.b, self.c, self.disc, self.frustum = b.tolist(), c.tolist(), disc.tolist(), frustum.tolist()
        self.axis = np.concatenate([origin[:, 2:], inverse[:, 2]], 1).tolist()  # position along the axis

    def draw(self, i: int, buffers: Buffers, window: tuple, grid: tuple) -> None:
        """Draw quadric `i` at the entering root z = c / (sqrt(b^2 - a c) - b) of a z^2 + 2 b z + c."""
        x, y = grid
        (m00, m01, m02), (_, m11, m12), (_, _, m22) = self.disc[i]
        disc = (2 * m01 * y) * x
        disc += (m00 * x + 2 * m02) * x + m22
        disc += (m11 * y + 2 * m12) * y
        b = self.b[i]
        root = np.sqrt(disc, out=disc)
        root -= b[0] * x + b[2]
        root -= b[1] * y
        depth = np.divide(self.c[i], root, out=root)
        nearer = depth < buffers.depth[window]
        if self.frustum[i]:
            o, dx, dy, dz = self.axis[i]
            along = ((dx * x + dz) + dy * y) * depth
            nearer &= (along >= -o) & (along <= 1 - o)
        np.copyto(buffers.depth[window], depth, where=nearer)
        np.copyto(buffers.primitive[window], i, where=nearer)


def _surface(view: CameraModel) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Which quadrics are frustums, their k, metric (1, 1, g) and inverse axes.

    In its own coordinates a surface is x^2 + y^2 + g z^2 - 2 k z - 1 = 0: g = 1, k = 0 for an ellipsoid and
    g = -k^2 for a frustum.
    """
    frustum = ~np.isnan(view.taper)
    k = np.where(frustum, view.taper, 0.0)
    metric = np.ones((len(k), 3))
    metric[:, 2] = np.where(frustum, -k * k, 1.0)
    return frustum, k, metric, np.linalg.inv(view.axes)


class _Polygons:
    """Projected outlines and planes of all polygons. On the plane, 1 / z is linear in the ray (x, y, 1)."""

    def __init__(self, view: CameraModel, camera: Camera) -> None:
        self.holes, self.camera = view.holes, camera
        if not view.polygons:
            return
        points, starts = np.concatenate(view.polygons), _starts(view.polygons)
        offset = np.einsum("pj,pj->p", view.normals, points[starts])
        self.hidden = ((np.abs(offset) < 1e-9) | (np.array(view.solid) & (offset > 0))).tolist()
        with np.errstate(divide="ignore", invalid="ignore"):
            self.planes = (view.normals / offset[:, None]).tolist()
        self.outlines = np.split(_pixels(points, camera), starts[1:])

    def draw(self, i: int, j: int, buffers: Buffers, window: tuple, grid: tuple) -> None:
        """Draw polygon `j`, which is primitive `i`."""
        if self.hidden[j]:
            return
        nx, ny, nz = self.planes[j]
        inverse = (nx * grid[0] + nz) + ny * grid[1]
        nearer = inverse * buffers.depth[window] > 1
        nearer &= self._fill(j, window)
        np.copyto(buffers.depth[window], np.divide(1, inverse, out=inverse), where=nearer)
        np.copyto(buffers.primitive[window], i, where=nearer)

    def _fill(self, j: int, window: tuple) -> np.ndarray:
        """Mask (rows, columns of the window) of the outline minus the hole."""
        ys, xs = window
        image = Image.new("L", (xs.stop - xs.start, ys.stop - ys.start))
        draw = ImageDraw.Draw(image)
        corner = (xs.start, ys.start)
        draw.polygon((self.outlines[j] - corner).ravel().tolist(), fill=1)
        if self.holes[j] is not None:
            draw.polygon((_pixels(self.holes[j], self.camera) - corner).ravel().tolist(), fill=0)
        return np.asarray(image).view(bool)


def _pixels(points: np.ndarray, camera: Camera) -> np.ndarray:
    """(n, 2) pixels of camera-frame points (n, 3)."""
    return points[:, :2] / points[:, 2:] * camera.focal + (camera.cx, camera.cy)


def shade(
    view: CameraModel, model: Model, camera: Camera, buffers: Buffers, light: np.ndarray, ambient: float
) -> tuple[np.ndarray, np.ndarray]:
    """Colours (n, 3) float32 in 0..255 of the n covered pixels and their flat indices (n,)."""
    pixels = np.flatnonzero(buffers.primitive >= 0)
    primitive, z = buffers.primitive.ravel()[pixels], buffers.depth.ravel()[pixels]
    rows, cols = np.divmod(pixels.astype(np.int32), np.int32(buffers.depth.shape[1]))
    points = seen_points(camera, z, rows, cols)
    lambert = _lambert(view, primitive, points, light)
    colour = _texture(model, view.material[primitive], to_object(camera, points))
    return colour * (ambient + (1.12 - ambient) * lambert)[:, None], pixels


def seen_points(camera: Camera, depth: np.ndarray, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """Camera-frame points (n, 3) float32 seen at pixels (cols, rows), at depths (n,) float32."""
    points = np.empty((len(depth), 3), np.float32)
    points[:, 0] = (cols - np.float32(camera.cx)) * (depth / np.float32(camera.focal))
    points[:, 1] = (rows - np.float32(camera.cy)) * (depth / np.float32(camera.focal))
    points[:, 2] = depth
    return points


def to_object(camera: Camera, points: np.ndarray) -> np.ndarray:
    """Object-frame points (n, 3) float32 of camera-frame ones."""
    return (points - camera.shift.astype(np.float32)) @ camera.turn.astype(np.float32)


def _lambert(view: CameraModel, primitive: np.ndarray, points: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Cosine (0..1) between the light direction and the surface normals that face the camera."""
    fields = _normal_fields(view).reshape(-1, 12).take(primitive, axis=0).T
    x, y, z = points.T
    nx, ny, nz = (fields[i] + fields[3 + i] * x + fields[6 + i] * y + fields[9 + i] * z for i in range(3))
    lx, ly, lz = light.tolist()
    cosine = lx * nx + ly * ny + lz * nz
    cosine *= np.sign(-(nx * x + ny * y + nz * z))
    cosine /= np.sqrt(nx * nx + ny * ny + nz * nz) + np.float32(1e-12)
    return np.clip(cosine, 0, 1)


def _normal_fields(view: CameraModel) -> np.ndarray:
    """(n, 4, 3) float32 of every primitive: its normal at camera-frame point p is row 0 + p @ rows 1..3."""
    q = len(view.taper)
    fields = np.zeros((len(view.part), 4, 3), np.float32)
    _, k, metric, inverse = _surface(view)
    linear = np.swapaxes(inverse, 1, 2) @ (inverse * metric[:, :, None])
    fields[:q, 1:] = linear
    fields[:q, 0] = -np.einsum("qij,qj->qi", linear, view.centre) - k[:, None] * inverse[:, 2]
    fields[q:, 0] = view.normals
    return fields


def _texture(model: Model, material: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Colours (n, 3) of object-frame `points` (n, 3) by their materials."""
    m = model.materials
    table = np.array([(*sum(s.waves, ()), *s.phases, *s.weights, s.threshold, s.sharpness) for s in m], np.float32)
    first, second = (np.array(c, np.float32) for c in ([s.first for s in m], [s.second for s in m]))
    row = table.take(material, axis=0)
    x, y, z = points.T
    s0, s1, s2 = (np.sin(row[:, i] * x + row[:, i + 1] * y + row[:, i + 2] * z + row[:, 9 + i // 3]) for i in (0, 3, 6))
    value = row[:, 12] * s0 + row[:, 13] * s1 * s2
    blend = np.clip((value - row[:, 14]) * row[:, 15] + 0.5, 0, 1) * (row[:, 14] < 0.99)
    return first.take(material, axis=0) + (second - first).take(material, axis=0) * blend[:, None]
