"""Model of the chair. Lengths are object units (a seat is about half a unit wide)."""

from __future__ import annotations

from mini.render.geometry import SIDES, Frame, both, four, mix
from mini.render.primitives import WORLD, Builder

CHAIR_PARTS = ("seat", "backrest", *both("arm {}"), *four("leg {}"))
CHAIR_COARSE = ("seat", *("back and arms",) * 3, *("legs",) * 4)
CHAIR_KEYPOINTS = (*four("{} seat corner"), *both("{} back top"), *four("{} leg end"), *both("{} arm end"))


def chair(b: Builder) -> None:
    deep, wide, leg = b.u(0.2, 0.28), b.u(0.2, 0.28), b.u(0.34, 0.5)
    thick, radius, splay = b.u(0.035, 0.09), b.u(0.022, 0.04), b.u(0.0, 0.07)
    front = wide * b.u(1.0, 1.15)
    b.block("seat", WORLD, (-deep, deep, -wide, wide, -thick), (-deep, deep, -wide, wide, 0))
    if front > wide * 1.08:
        b.ellipsoid("seat", WORLD, (0, 0, 0), (deep * 0.85, wide * 0.85, 0.05), "second")
    legs = b.draws.pick(("main", "second", "metal"))
    for end, x in (("front", 1), ("back", -1)):
        for side, y in SIDES:
            part = f"leg {end}-{side}"
            top = (x * (deep - radius), y * (wide - radius), -thick)
            foot = (top[0] + x * splay, top[1] + y * splay, -leg)
            b.limb(part, top, foot, radius, radius * 0.8, legs, (False, True))
            b.keypoint(f"{end}-{side} leg end", foot, part, depth=0.07)
            b.keypoint(f"{end}-{side} seat corner", (x * deep, y * wide, 0), "seat", "backrest", depth=0.06)
    _backrest(b, deep, wide, radius, legs)
    if b.chance(0.4):
        _arms(b, deep, wide, radius, legs)


def _backrest(b: Builder, deep: float, wide: float, radius: float, legs: str) -> None:
    tall = b.u(0.38, 0.62)
    back = WORLD.child((-deep + 0.01, 0, 0), pitch=-b.u(-2, 18))
    thick = b.u(0.03, 0.06)
    style = b.draws.index(3)
    for side, y in SIDES:
        top = back.at(0, y * (wide - radius), tall)
        if style:
            b.limb("backrest", back.at(0, y * (wide - radius), 0), top, radius, radius, legs, (False, True))
        b.keypoint(f"{side} back top", top, "backrest", depth=0.07)
    if style == 0:
        _panel(b, back, wide, 0.0, tall + radius, thick)
    elif style == 1:
        for i in range(3):
            _panel(
                b,
                back,
                wide - radius,
                tall * (0.25 + 0.28 * i),
                tall * (0.25 + 0.28 * i) + 0.16 * tall,
                0.025,
            )
    else:
        _panel(b, back, wide - radius, tall * b.u(0.35, 0.55), tall, thick)


def _panel(b: Builder, frame: Frame, half: float, low: float, high: float, thick: float) -> None:
    b.block("backrest", frame, (-thick, 0.0, -half, half, low), (-thick, 0.0, -half, half, high))


def _arms(b: Builder, deep: float, wide: float, radius: float, material: str) -> None:
    high, reach = b.u(0.17, 0.24), deep * b.u(0.5, 1.0)
    for side, y in SIDES:
        part, out = f"arm {side}", y * (wide + 0.5 * radius)
        end = (reach, out, high)
        b.limb(part, (-deep, out, high), end, radius, radius, "second")
        b.limb(
            part,
            mix((-deep, out, high), end, 0.9),
            (reach * 0.85, out, 0),
            radius * 0.8,
            radius * 0.8,
            material,
            (False, False),
        )
        b.keypoint(f"{side} arm end", end, part, depth=0.07)
