"""Solid models: a builder of ellipsoids, tapered limbs and flat polygons with part and material labels."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from mini.render.appearance import Colour, Draws, Material, jitter, random_colour, random_material
from mini.render.geometry import Frame, Vec, cross, mix, norm, perpendicular, scale, sub

ELLIPSOID = math.nan  # the taper that marks an ellipsoid
_CIRCLE = [(math.cos(2 * math.pi * i / 20), math.sin(2 * math.pi * i / 20)) for i in range(20)]
WORLD = Frame()


@dataclass(frozen=True)
class Keypoint:
    point: Vec  # object frame
    parts: tuple[int, ...]  # fine parts it lies on
    depth: float  # how far below the visible surface it may lie, object units


@dataclass
class Model:
    """Primitives of one object (object frame): first the quadrics, then the polygons.

    A quadric with a finite `taper` k is a frustum: from `centre` along the third axis, with radius 1 + k s at
    s in [0, 1], in units of the first two axes. One with taper NaN is an ellipsoid.
    """

    centre: list[Vec] = field(default_factory=list)
    axes: list[tuple[Vec, Vec, Vec]] = field(default_factory=list)
    taper: list[float] = field(default_factory=list)
    polygons: list[list[Vec]] = field(default_factory=list)
    holes: list[list[Vec] | None] = field(default_factory=list)
    solid: list[bool] = field(default_factory=list)  # face of a closed solid: hidden from behind
    quadric_part: list[int] = field(default_factory=list)
    polygon_part: list[int] = field(default_factory=list)
    quadric_material: list[int] = field(default_factory=list)
    polygon_material: list[int] = field(default_factory=list)
    materials: list[Material] = field(default_factory=list)
    keypoints: dict[int, Keypoint] = field(default_factory=dict)


class Builder:
    """Adds primitives by part name. Materials: main, second, dark, glass, light, metal, skin."""

    def __init__(self, draws: Draws, fine_parts: tuple[str, ...], keypoints: tuple[str, ...], main: Colour) -> None:
        self.draws, self.model = draws, Model()
        self._part = {name: i for i, name in enumerate(fine_parts)}
        self._keypoint = {name: i for i, name in enumerate(keypoints)}
        self._materials: dict[tuple[str, str], int] = {}
        self._base = {
            "main": random_material(draws, main),
            "second": random_material(draws, random_colour(draws)),
            "dark": Material(jitter((50, 48, 52), draws, 30), (0, 0, 0)),
            "glass": Material(
                jitter(draws.pick(((165, 205, 225), (70, 85, 105), (120, 140, 150))), draws, 25), (0, 0, 0)
            ),
            "light": Material(jitter((240, 235, 200), draws, 20), (0, 0, 0)),
            "metal": Material(jitter((165, 165, 170), draws, 40), (0, 0, 0)),
            "skin": Material(
                jitter(draws.pick(((235, 190, 160), (190, 135, 95), (110, 75, 55))), draws, 20), (0, 0, 0)
            ),
        }
        self.u, self.chance = draws.uniform, draws.chance

    def keypoint(self, name: str, point: Vec, *parts: str, depth: float = 0.05) -> None:
        """Register a keypoint on the given parts, at most `depth` under the visible surface, if the category has it."""
        if name in self._keypoint:
            parts = tuple(self._part[part] for part in parts)
            self.model.keypoints[self._keypoint[name]] = Keypoint(point, parts, depth)

    def ellipsoid(self, part: str, frame: Frame, centre: Vec, radii: Vec, material: str = "main") -> None:
        (a, b, c), (rx, ry, rz) = frame.rows, radii
        axes = (
            (a[0] * rx, b[0] * rx, c[0] * rx),
            (a[1] * ry, b[1] * ry, c[1] * ry),
            (a[2] * rz, b[2] * rz, c[2] * rz),
        )
        self._quadric(frame.at(*centre), axes, ELLIPSOID, part, material)

    def limb(
        self,
        part: str,
        start: Vec,
        end: Vec,
        r0: float,
        r1: float,
        material: str = "main",
        round_ends: tuple[bool, bool] = (True, True),
    ) -> None:
        """Tapered rod from `start` (radius r0) to `end` (radius r1), with spheres at the ends."""
        axis = sub(end, start)
        p, q = perpendicular(axis)
        self._quadric(start, (scale(p, r0), scale(q, r0), axis), r1 / r0 - 1, part, material)
        for point, radius, wanted in zip((start, end), (r0, r1), round_ends, strict=True):
            if wanted:
                self.ellipsoid(part, WORLD, point, (radius, radius, radius), material)

    def polygon(
        self,
        part: str,
        points: list[Vec],
        material: str = "main",
        solid: bool = False,
        hole: list[Vec] | None = None,
    ) -> None:
        """Flat polygon; a `solid` one is seen from the side from which its points turn counter-clockwise."""
        m = self.model
        m.polygons.append(points)
        m.holes.append(hole)
        m.solid.append(solid)
        m.polygon_part.append(self._part[part])
        m.polygon_material.append(self._material(part, material))

    def circle(self, frame: Frame, radius: float) -> list[Vec]:
        """Points of a circle in the x-z plane of `frame`."""
        return [frame.at(radius * c, 0.0, radius * s) for c, s in _CIRCLE]

    def disc(self, part: str, frame: Frame, radius: float, material: str, inner: float = 0.0) -> None:
        """Disc, or ring of inner radius `inner`, in the x-z plane of `frame`."""
        self.polygon(part, self.circle(frame, radius), material, hole=self.circle(frame, inner) if inner else None)

    def wheel(self, part: str, frame: Frame, radius: float, width: float, hub: float, outside: float) -> None:
        """Tyre around the y axis of `frame`, with a hub on the side given by the sign of `outside`."""
        a, b = frame.at(0, -width / 2, 0), frame.at(0, width / 2, 0)
        self.limb(part, a, b, radius, radius, "dark", (False, False))
        for y in (-width / 2, width / 2):
            side = Frame(frame.at(0, y, 0), frame.rows)
            self.disc(part, side, radius, "dark")
        self.disc(part, Frame(frame.at(0, outside * width * 0.53, 0), frame.rows), radius * hub, "metal")

    def block(
        self,
        parts: dict[str, str] | str,
        frame: Frame,
        low: tuple[float, ...],
        high: tuple[float, ...],
        material: str | dict[str, str] = "main",
    ) -> list[Vec]:
        """Solid with a rectangular bottom and top: low and high = (x0, x1, y0, y1, z).

        `parts` and `material` may name faces (front, back, left, right, top, bottom; "" = all others).
        Returns the corners: bottom then top, each (back right, front right, front left, back left).
        """
        corners = [
            frame.at(x, y, box[4])
            for box in (low, high)
            for x, y in ((box[0], box[2]), (box[1], box[2]), (box[1], box[3]), (box[0], box[3]))
        ]
        for face, ids in _FACES.items():
            part = parts if isinstance(parts, str) else parts.get(face, parts.get("", ""))
            mat = material if isinstance(material, str) else material.get(face, material.get("", "main"))
            if part:
                self.polygon(part, [corners[i] for i in ids], mat, solid=True)
        return corners

    def decal(
        self,
        part: str,
        quad: list[Vec],
        left: float,
        right: float,
        low: float,
        high: float,
        material: str,
        lift: float = 0.008,
    ) -> list[Vec]:
        """Part of the face `quad` (bottom start, bottom end, top end, top start), lifted outwards."""
        normal = cross(sub(quad[1], quad[0]), sub(quad[3], quad[0]))
        normal = scale(normal, lift / norm(normal))
        corners = []
        for s, t in ((left, low), (right, low), (right, high), (left, high)):
            p = mix(mix(quad[0], quad[1], s), mix(quad[3], quad[2], s), t)
            corners.append((p[0] + normal[0], p[1] + normal[1], p[2] + normal[2]))
        self.polygon(part, corners, material, solid=True)
        return corners

    def _quadric(self, centre: Vec, axes: tuple[Vec, Vec, Vec], taper: float, part: str, material: str) -> None:
        m = self.model
        m.centre.append(centre)
        m.axes.append(axes)
        m.taper.append(taper)
        m.quadric_part.append(self._part[part])
        m.quadric_material.append(self._material(part, material))

    def _material(self, part: str, name: str) -> int:
        """Index of material `name` as worn by `part` (every part has its own small shift of the colour)."""
        key = (part, name)
        if key not in self._materials:
            base = self._base[name]
            self._materials[key] = len(self.model.materials)
            self.model.materials.append(replace(base, first=jitter(base.first, self.draws, 14)))
        return self._materials[key]


_FACES = {
    "bottom": (3, 2, 1, 0),
    "top": (4, 5, 6, 7),
    "front": (1, 2, 6, 5),
    "back": (3, 0, 4, 7),
    "right": (0, 1, 5, 4),
    "left": (2, 3, 7, 6),
}


def model_points(model: Model) -> np.ndarray:
    """(n, 3) points that bound the model: centres of the quadrics and corners of the polygons."""
    return np.array(model.centre + [p for polygon in model.polygons for p in polygon], dtype=np.float64)
