"""Small 3D geometry of the mini world: vectors as tuples, articulated frames, and the perspective camera.

Object frame: x forward, y to the object's own left, z up. Camera frame: x right, y down, z along the view.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

Vec = tuple[float, float, float]
Rows = tuple[Vec, Vec, Vec]

SIDES = (("left", 1.0), ("right", -1.0))  # and the sign of y there
IDENTITY: Rows = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


def both(*names: str) -> tuple[str, ...]:
    """Names such as "{} eye", on the left and on the right."""
    return tuple(name.format(side) for name in names for side, _ in SIDES)


def four(*names: str) -> tuple[str, ...]:
    """Names such as "leg {}", at the front-left, front-right, back-left and back-right."""
    return both(*(name.format(end) for name in names for end in ("front-{}", "back-{}")))


def sub(a: Vec, b: Vec) -> Vec:
    return (a[0] - b[0], a[1] - b[1], a[2] - b[2])


def mix(a: Vec, b: Vec, t: float) -> Vec:
    """Point at fraction `t` of the way from `a` to `b`."""
    return (a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1]), a[2] + t * (b[2] - a[2]))


def cross(a: Vec, b: Vec) -> Vec:
    return (a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0])


def scale(a: Vec, s: float) -> Vec:
    return (a[0] * s, a[1] * s, a[2] * s)


def norm(a: Vec) -> float:
    return math.sqrt(a[0] * a[0] + a[1] * a[1] + a[2] * a[2])


def perpendicular(axis: Vec) -> tuple[Vec, Vec]:
    """Two unit vectors that complete `axis` to an orthogonal triple."""
    helper = (0.0, 1.0, 0.0) if abs(axis[1]) < 0.9 * norm(axis) else (1.0, 0.0, 0.0)
    first = cross(helper, axis)
    first = scale(first, 1.0 / norm(first))
    second = cross(axis, first)
    return first, scale(second, 1.0 / norm(second))


def matmul(a: Rows, b: Rows) -> Rows:
    return tuple(tuple(r[0] * b[0][j] + r[1] * b[1][j] + r[2] * b[2][j] for j in range(3)) for r in a)


def rotation(yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0) -> Rows:
    """Rotation from degrees: yaw turns x to the left, pitch raises x, roll turns y up (roll comes first)."""
    cy, sy = math.cos(math.radians(yaw)), math.sin(math.radians(yaw))
    cp, sp = math.cos(math.radians(pitch)), math.sin(math.radians(pitch))
    cr, sr = math.cos(math.radians(roll)), math.sin(math.radians(roll))
    return (
        (cy * cp, -sy * cr - cy * sp * sr, sy * sr - cy * sp * cr),
        (sy * cp, cy * cr - sy * sp * sr, -cy * sr - sy * sp * cr),
        (sp, cp * sr, cp * cr),
    )


@dataclass(frozen=True)
class Frame:
    """A local coordinate frame of an articulated part: `at` maps local coordinates to the object frame."""

    origin: Vec = (0.0, 0.0, 0.0)
    rows: Rows = IDENTITY

    def at(self, x: float, y: float, z: float) -> Vec:
        (a, b, c), o = self.rows, self.origin
        return (
            a[0] * x + a[1] * y + a[2] * z + o[0],
            b[0] * x + b[1] * y + b[2] * z + o[1],
            c[0] * x + c[1] * y + c[2] * z + o[2],
        )

    def child(self, origin: Vec, yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0) -> Frame:
        """Frame at local point `origin`, turned by the angles (degrees) about it."""
        return Frame(self.at(*origin), matmul(self.rows, rotation(yaw, pitch, roll)))


def swing(start: Vec, length: float, angle: float, out: float = 0.0) -> Vec:
    """End of a bone hanging from `start`: `angle` degrees forward, `out` degrees towards +y."""
    a, o = math.radians(angle), math.radians(out)
    return (
        start[0] + length * math.sin(a) * math.cos(o),
        start[1] + length * math.sin(o),
        start[2] - length * math.cos(a) * math.cos(o),
    )


@dataclass(frozen=True)
class Camera:
    """Perspective camera: the camera-frame point (x, y, z) lands at pixel focal (x, y) / z + (cx, cy)."""

    turn: np.ndarray  # (3, 3) object frame -> camera frame
    shift: np.ndarray  # (3,) camera-frame position of the object's origin
    focal: float = 1.0  # pixels
    cx: float = 0.0  # pixels
    cy: float = 0.0  # pixels

    def points(self, points: np.ndarray) -> np.ndarray:
        """(n, 3) object-frame points -> (n, 3) camera-frame points."""
        return points @ self.turn.T + self.shift


def look_at(centre: np.ndarray, distance: float, azimuth: float, elevation: float, roll: float) -> Camera:
    """Camera (unit focal length) that looks at `centre` from `distance`.

    Azimuth 0 sees the front, 90 the object's left side (it faces left in the image), 180 the back; `roll`
    turns the image. Angles are degrees.
    """
    a, e, r = (math.radians(v) for v in (azimuth, elevation, roll))
    away = np.array([math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)])
    right = np.array([-math.sin(a), math.cos(a), 0.0])
    down = np.cross(-away, right)
    turn = np.stack([math.cos(r) * right + math.sin(r) * down, math.cos(r) * down - math.sin(r) * right, -away])
    return Camera(turn, np.array([0.0, 0.0, distance]) - turn @ centre)
