"""Models of the vehicles. Lengths are object units (a car is about two units long)."""

from __future__ import annotations

from mini.render.geometry import SIDES, Frame, Vec, both, four, mix
from mini.render.primitives import WORLD, Builder

_CORNERS = (("back-right", 4), ("front-right", 5), ("front-left", 6), ("back-left", 7))  # top corners of a block
_WHEELS = four("wheel {}")
_LIGHTS_AND_CORNERS = (*both("{} headlight", "{} tail light"), *four("{} wheel centre", "{} roof corner"))

CAR_PARTS = ("front", "hood", "windscreen", "roof", "trunk", "back", *both("side {}"), *_WHEELS)
CAR_COARSE = ("body", "body", "cabin", "cabin", *("body",) * 4, *("wheels",) * 4)
CAR_KEYPOINTS = (*_LIGHTS_AND_CORNERS, *both("{} windscreen foot"))
BUS_PARTS = ("front", "back", *both("side {}"), "roof", *_WHEELS)
BUS_COARSE = ("ends", "ends", "sides", "sides", "sides", *("wheels",) * 4)
BUS_KEYPOINTS = (*_LIGHTS_AND_CORNERS, *both("{} mirror"))
AEROPLANE_PARTS = ("nose", "fuselage", "fin", *both("wing {}", "tailplane {}", "engine {}"))
AEROPLANE_COARSE = ("body", "body", "tail", "wings", "wings", "tail", "tail", "wings", "wings")
AEROPLANE_KEYPOINTS = (
    *("nose tip", "cockpit", "fin tip", "fin foot", "tail end"),
    *both("{} wing tip", "{} wing root", "{} tailplane tip", "{} engine front"),
)
BICYCLE_PARTS = ("wheel front", "wheel back", "frame", "fork", "handlebar", "saddle", "crank")
BICYCLE_COARSE = ("wheels", "wheels", "frame", "frame", "controls", "controls", "controls")
BICYCLE_KEYPOINTS = (
    *("front wheel centre", "back wheel centre", "front tyre front", "back tyre back", *both("{} handle end"), "stem"),
    *("saddle front", "saddle back", "seat cluster", "bottom bracket", *both("{} pedal")),
)
BOAT_PARTS = (*both("hull {}"), "stern", "deck", "cabin", "mast", "sail")
BOAT_COARSE = ("hull", "hull", "hull", "upper works", "upper works", "rig", "rig")
BOAT_KEYPOINTS = (
    *("bow tip", "bow foot", *both("{} stern corner", "{} stern foot"), "mast top", "boom end"),
    *four("{} cabin corner"),
)


def _road_wheels(b: Builder, front: float, back: float, half_width: float, bottom: float, radius: float) -> None:
    hub = b.u(0.4, 0.65)
    turn = b.draws.bump(-20, 20)
    for end, x, yaw in (("front", front, turn), ("back", back, 0.0)):
        for side, y in SIDES:
            frame = WORLD.child((x, y * (half_width - 0.045), bottom), yaw=yaw)
            b.wheel(f"wheel {end}-{side}", frame, radius, 0.15, hub, y)
            b.keypoint(f"{end}-{side} wheel centre", frame.at(0, y * 0.08, 0), f"wheel {end}-{side}", depth=0.05)


def _lamps(b: Builder, front: list[Vec], back: list[Vec], low: float, high: float) -> None:
    """Head and tail lights; `front` runs from the object's right to its left, `back` from left to right."""
    for end, quad, name, material in (
        ("front", front, "headlight", "light"),
        ("back", back, "tail light", "second"),
    ):
        first, second = ("right", "left") if end == "front" else ("left", "right")
        for side, start in ((first, 0.05), (second, 0.75)):
            corners = b.decal(end, quad, start, start + 0.2, low, high, material)
            b.keypoint(f"{side} {name}", mix(corners[0], corners[2], 0.5), end, depth=0.05)


def car(b: Builder) -> None:
    length, width, height = b.u(0.8, 1.0), b.u(0.37, 0.45), b.u(0.24, 0.34)
    hood, trunk = b.u(0.22, 0.45) * length, b.draws.pick((0.06, 0.3)) * b.u(0.9, 1.3) * length
    x0, x1 = -length + trunk, length - hood
    dip = b.u(0.0, 0.07)
    sides = {"left": "side left", "right": "side right"}
    b.block(
        {**sides, "top": "trunk", "back": "back"},
        WORLD,
        (-length, x0, -width, width, 0),
        (-length + 0.03, x0, -width, width, height),
    )
    b.block(sides, WORLD, (x0, x1, -width, width, 0), (x0, x1, -width, width, height))
    nose = [(x, y, z) for x, z in ((length, 0.0), (length - 0.05, height - dip)) for y in (-width, width)]
    front = [nose[0], nose[1], nose[3], nose[2]]
    b.polygon("front", front, solid=True)
    b.polygon("hood", [(x1, -width, height), nose[2], nose[3], (x1, width, height)], solid=True)
    b.polygon("side right", [(x1, -width, 0), nose[0], nose[2], (x1, -width, height)], solid=True)
    b.polygon("side left", [nose[1], (x1, width, 0), (x1, width, height), nose[3]], solid=True)
    back = [
        (-length, width, 0),
        (-length, -width, 0),
        (-length + 0.03, -width, height),
        (-length + 0.03, width, height),
    ]
    _lamps(b, front, back, 0.45, 0.8)
    b.decal("front", front, 0.32, 0.68, 0.25, 0.6, "dark")
    b.decal("back", back, 0.38, 0.62, 0.2, 0.45, "light")
    _car_cabin(b, x0, x1, width, height, rear=0.06 if trunk < 0.15 * length else b.u(0.15, 0.3))
    radius = b.u(0.17, 0.22)
    _road_wheels(b, length - b.u(0.28, 0.36), -length + b.u(0.28, 0.38), width, 0.02, radius)


def _car_cabin(b: Builder, x0: float, x1: float, width: float, height: float, rear: float) -> None:
    tall, inset = b.u(0.24, 0.36), b.u(0.04, 0.09)
    slope = b.u(0.12, 0.32)
    parts = {"front": "windscreen", "back": "back", "left": "side left", "right": "side right", "top": "roof"}
    low, high = (
        (x0 + 0.01, x1 - 0.01, -width, width, height),
        (x0 + rear, x1 - slope, -width + inset, width - inset, height + tall),
    )
    c = b.block(parts, WORLD, low, high)
    b.decal("windscreen", [c[1], c[2], c[6], c[5]], 0.08, 0.92, 0.1, 0.9, "glass")
    b.decal("back", [c[3], c[0], c[4], c[7]], 0.1, 0.9, 0.2, 0.85, "glass")
    split = b.u(0.4, 0.6)
    for side, quad in (("left", [c[2], c[3], c[7], c[6]]), ("right", [c[0], c[1], c[5], c[4]])):
        middle = split if side == "left" else 1 - split
        b.decal(f"side {side}", quad, 0.1, middle - 0.03, 0.12, 0.88, "glass")
        b.decal(f"side {side}", quad, middle + 0.03, 0.9, 0.12, 0.88, "glass")
        corner = c[2] if side == "left" else c[1]
        b.keypoint(f"{side} windscreen foot", corner, "windscreen", "hood", f"side {side}", depth=0.06)
    for name, i in _CORNERS:
        end, side = name.split("-")
        b.keypoint(
            f"{name} roof corner",
            c[i],
            "roof",
            f"side {side}",
            "windscreen" if end == "front" else "back",
            depth=0.06,
        )


def bus(b: Builder) -> None:
    length, width, height = b.u(1.05, 1.45), b.u(0.3, 0.38), b.u(0.62, 0.85)
    lean = b.u(0.0, 0.08)
    parts = {"front": "front", "back": "back", "left": "side left", "right": "side right", "top": "roof"}
    c = b.block(parts, WORLD, (-length, length, -width, width, 0), (-length, length - lean, -width, width, height))
    front, back = [c[1], c[2], c[6], c[5]], [c[3], c[0], c[4], c[7]]
    left, right = [c[2], c[3], c[7], c[6]], [c[0], c[1], c[5], c[4]]
    _lamps(b, front, back, 0.1, 0.24)
    b.decal("front", front, 0.06, 0.94, 0.42, 0.84, "glass")
    b.decal("front", front, 0.25, 0.75, 0.87, 0.97, "dark")
    b.decal("back", back, 0.15, 0.85, 0.55, 0.85, "glass")
    _bus_sides(b, left, right)
    for name, i in _CORNERS:
        end, side = name.split("-")
        b.keypoint(f"{name} roof corner", c[i], "roof", f"side {side}", end, depth=0.06)
    for side, y in SIDES:
        mirror = (length + 0.05, y * (width + 0.06), height * 0.72)
        b.limb("front", (length - 0.05, y * width, height * 0.8), mirror, 0.02, 0.02, "dark", (False, False))
        b.ellipsoid("front", WORLD, mirror, (0.03, 0.045, 0.09), "dark")
        b.keypoint(f"{side} mirror", mirror, "front", depth=0.06)
    _road_wheels(b, length - b.u(0.3, 0.4), -length + b.u(0.3, 0.5), width, 0.02, b.u(0.13, 0.17))


def _bus_sides(b: Builder, left: list[Vec], right: list[Vec]) -> None:
    count, door = 4 + b.draws.index(4), b.u(0.08, 0.14)
    low, high = b.u(0.42, 0.52), b.u(0.8, 0.88)
    band = b.chance(0.6)
    for side, quad in (("left", left), ("right", right)):
        part = f"side {side}"
        if band:
            b.decal(part, quad, 0.0, 1.0, 0.2, 0.36, "second", lift=0.004)
        step = 0.84 / count
        start = 0.13 if side == "left" else 0.03
        for i in range(count):
            x = start + i * step
            b.decal(part, quad, x + 0.1 * step, x + 0.9 * step, low, high, "glass")
        at = 0.02 if side == "left" else 0.98 - door
        b.decal(part, quad, at, at + door, 0.08, high, "dark")


def aeroplane(b: Builder) -> None:
    r, nose, tail = b.u(0.085, 0.13), b.u(0.55, 0.8), -b.u(0.75, 1.0)
    b.limb("nose", (nose * 0.55, 0, 0), (nose - r, 0, -0.1 * r), r, r * 0.6, round_ends=(True, False))
    b.ellipsoid("nose", WORLD, (nose - r, 0, -0.1 * r), (r * 1.1, r * 0.6, r * 0.6))
    b.limb("fuselage", (nose * 0.55, 0, 0), (tail * 0.35, 0, 0), r, r, round_ends=(False, True))
    b.limb("fuselage", (tail * 0.35, 0, 0), (tail, 0, r * 0.6), r, r * 0.25, round_ends=(False, True))
    b.ellipsoid("nose", WORLD, (nose - 1.15 * r, 0, 0.5 * r), (0.75 * r, 0.5 * r, 0.35 * r), "glass")
    b.keypoint("nose tip", (nose, 0, -0.1 * r), "nose", depth=0.06)
    b.keypoint("cockpit", (nose - 1.0 * r, 0, 0.84 * r), "nose", depth=0.05)
    b.keypoint("tail end", (tail, 0, r * 0.6), "fuselage", "fin", depth=0.07)
    for i in range(4):
        x = nose * 0.5 - i * 0.16
        for _, y in SIDES:
            b.ellipsoid("fuselage", WORLD, (x, y * 0.97 * r, 0.25 * r), (0.024, 0.024, 0.024), "dark")
    _fin(b, r, tail)
    span, sweep, dihedral = b.u(0.65, 0.95), b.u(-0.05, 0.38), b.u(-4, 12)
    low_wing, tailplane = b.draws.pick((-0.5, 0.75)) * r, b.u(0.26, 0.38)
    engine = b.u(0.3, 0.5)
    for side, y in SIDES:
        _wing(b, side, y, r, low_wing, span, sweep, dihedral, engine)
        root = WORLD.child((tail + 0.22, y * 0.2 * r, 0.45 * r), roll=y * dihedral)
        _plank(b, f"tailplane {side}", root, y, tailplane, 0.18, 0.09, 0.4 * sweep, 0.016)
        b.keypoint(
            f"{side} tailplane tip",
            root.at(-0.4 * sweep - 0.02, y * tailplane, 0),
            f"tailplane {side}",
            depth=0.05,
        )


def _fin(b: Builder, r: float, tail: float) -> None:
    tall, foot, tip = b.u(0.26, 0.4), (tail + 0.34, 0.0, r * 0.75), tail - b.u(-0.02, 0.1)
    top = (tip + 0.1, 0.0, r * 0.6 + tall)
    b.polygon("fin", [foot, top, (tip, 0.0, r * 0.6 + tall), (tail + 0.03, 0.0, r * 0.5)], "second")
    b.limb("fin", foot, top, 0.022, 0.016, "second", (False, True))
    b.limb("fin", top, (tip, 0.0, r * 0.6 + tall), 0.016, 0.016, "second", (False, True))
    b.keypoint("fin tip", (tip + 0.02, 0.0, r * 0.6 + tall), "fin", depth=0.05)
    b.keypoint("fin foot", foot, "fin", "fuselage", depth=0.08)


def _wing(
    b: Builder,
    side: str,
    y: float,
    r: float,
    z: float,
    span: float,
    sweep: float,
    dihedral: float,
    engine: float,
) -> None:
    part = f"wing {side}"
    root = WORLD.child((0.12, y * 0.5 * r, z), roll=y * dihedral)
    _plank(b, part, root, y, span, 0.32, 0.14, sweep, 0.024)
    b.keypoint(f"{side} wing tip", root.at(-sweep - 0.02, y * span, 0), part, depth=0.05)
    b.keypoint(f"{side} wing root", root.at(0, y * 0.75 * r, 0), part, "fuselage", depth=0.09)
    x, out = -sweep * engine, y * span * engine
    front, rear = root.at(x + 0.1, out, -0.07), root.at(x - 0.14, out, -0.07)
    b.limb(f"engine {side}", front, rear, 0.062, 0.045, "metal", (False, True))
    b.disc(
        f"engine {side}",
        Frame(root.at(x + 0.1, out, -0.07), root.rows).child((0, 0, 0), yaw=90),
        0.062,
        "dark",
    )
    b.keypoint(f"{side} engine front", root.at(x + 0.1, out, -0.07), f"engine {side}", depth=0.08)


def _plank(
    b: Builder,
    part: str,
    root: Frame,
    y: float,
    span: float,
    chord: float,
    tip: float,
    sweep: float,
    edge: float,
) -> None:
    """Flat wing with a rounded leading edge from the root's origin to (-sweep, y span)."""
    front, end = root.at(0, 0, 0), root.at(-sweep, y * span, 0)
    rear, end_rear = root.at(-chord, 0, 0), root.at(-sweep - tip, y * span, 0)
    b.polygon(part, [front, end, end_rear, rear])
    b.limb(part, front, end, edge, edge * 0.7, round_ends=(False, True))
    b.limb(part, end, end_rear, edge * 0.7, edge * 0.5, round_ends=(False, True))
    b.limb(part, rear, end_rear, edge * 0.5, edge * 0.5, round_ends=(False, False))


def bicycle(b: Builder) -> None:
    radius, base, tube = b.u(0.29, 0.36), b.u(0.46, 0.56), b.u(0.022, 0.032)
    bracket, back = (b.u(-0.1, -0.02), 0.0, radius * 0.9), (-base, 0.0, radius)
    seat = (bracket[0] - b.u(0.1, 0.18), 0.0, radius + b.u(0.34, 0.48))
    steering = Frame((base - b.u(0.16, 0.24), 0.0, radius + b.u(0.38, 0.5))).child((0, 0, 0), yaw=b.draws.bump(-35, 35))
    head = steering.at(0, 0, 0)
    crossbar = mix(bracket, seat, b.u(0.7, 0.95))
    neck = steering.at(0.03, 0, -0.12)
    for start, end, r in (
        (bracket, seat, tube),
        (crossbar, head, tube),
        (bracket, neck, tube * 1.1),
        (crossbar, back, tube * 0.8),
        (bracket, back, tube * 0.8),
    ):
        b.limb("frame", start, end, r, r, round_ends=(start is bracket and end is seat, end is neck))
    b.keypoint("seat cluster", crossbar, "frame", depth=0.06)
    b.keypoint("bottom bracket", bracket, "frame", "crank", depth=0.1)
    drop = steering.at(base - head[0], 0, radius - head[2])
    b.limb("fork", steering.at(-0.01, 0, 0.05), drop, tube, tube * 0.7, "metal", (True, False))
    _handlebar(b, steering, tube)
    _cycle_wheel(b, "front", Frame(drop, steering.rows), radius)
    _cycle_wheel(b, "back", Frame(back), radius)
    top = (seat[0] - 0.01, 0.0, seat[2] + b.u(0.06, 0.12))
    b.limb("saddle", seat, top, tube * 0.8, tube * 0.8, "metal", (False, False))
    b.ellipsoid("saddle", Frame(top), (-0.06, 0, 0), (0.09, 0.075, 0.035), "dark")
    b.limb("saddle", (top[0] - 0.03, 0, top[2]), (top[0] + 0.13, 0, top[2] - 0.005), 0.035, 0.022, "dark")
    b.keypoint("saddle front", (top[0] + 0.145, 0, top[2]), "saddle", depth=0.06)
    b.keypoint("saddle back", (top[0] - 0.145, 0, top[2]), "saddle", depth=0.06)
    _crank(b, Frame(bracket).child((0, 0, 0), pitch=b.u(0, 360)))


def _handlebar(b: Builder, steering: Frame, tube: float) -> None:
    wide, rise, reach = b.u(0.17, 0.27), b.u(0.02, 0.12), b.u(-0.14, 0.1)
    stem = steering.at(0.04, 0, 0.08)
    b.limb("handlebar", steering.at(-0.01, 0, 0.05), stem, tube, tube, round_ends=(False, True))
    b.keypoint("stem", stem, "handlebar", "fork", depth=0.06)
    for side, y in SIDES:
        bend, end = (
            steering.at(0.05, y * wide * 0.7, 0.08 + rise),
            steering.at(0.05 + reach, y * wide, 0.08 + rise),
        )
        b.limb("handlebar", stem, bend, tube * 0.85, tube * 0.85, "metal", (False, False))
        b.limb("handlebar", bend, end, tube, tube, "dark")
        b.keypoint(f"{side} handle end", end, "handlebar", depth=0.06)


def _cycle_wheel(b: Builder, end: str, frame: Frame, radius: float) -> None:
    part, width = f"wheel {end}", 0.045
    b.limb(part, frame.at(0, -width / 2, 0), frame.at(0, width / 2, 0), radius, radius, "dark", (False, False))
    for y in (-width / 2, width / 2):
        b.disc(part, Frame(frame.at(0, y, 0), frame.rows), radius, "dark", inner=radius * 0.84)
    for i in range(4):
        spoke = frame.child((0, 0, 0), pitch=45 * i + 20)
        reach = radius * 0.86
        b.polygon(
            part,
            [
                spoke.at(-reach, 0, -0.006),
                spoke.at(reach, 0, -0.006),
                spoke.at(reach, 0, 0.006),
                spoke.at(-reach, 0, 0.006),
            ],
            "metal",
        )
    b.ellipsoid(part, frame, (0, 0, 0), (0.035, 0.05, 0.035), "metal")
    b.keypoint(f"{end} wheel centre", frame.at(0, 0, 0), part, "frame", "fork", depth=0.1)
    tyre = frame.at(radius, 0, 0) if end == "front" else frame.at(-radius, 0, 0)
    b.keypoint("front tyre front" if end == "front" else "back tyre back", tyre, part, depth=0.06)


def _crank(b: Builder, frame: Frame) -> None:
    b.disc("crank", Frame(frame.at(0, -0.035, 0), frame.rows), 0.085, "metal", inner=0.045)
    for side, y in SIDES:
        arm, foot = frame.at(0, y * 0.05, 0), frame.at(y * 0.16, y * 0.06, 0)
        b.limb("crank", arm, foot, 0.02, 0.018, "metal", (False, False))
        pedal = frame.at(y * 0.16, y * 0.13, 0)
        b.limb("crank", foot, pedal, 0.03, 0.03, "dark")
        b.keypoint(f"{side} pedal", pedal, "crank", depth=0.07)


def boat(b: Builder) -> None:
    length, width, deep = b.u(0.7, 0.95), b.u(0.2, 0.3), b.u(0.2, 0.3)
    rise, rake = b.u(0.02, 0.14), b.u(0.1, 0.3)
    bow, foot = (length, 0.0, rise), (length - rake, 0.0, -deep)
    b.keypoint("bow tip", bow, "hull left", "hull right", "deck", depth=0.07)
    b.keypoint("bow foot", foot, "hull left", "hull right", depth=0.07)
    rim, keel = {}, {}
    for side, y in SIDES:
        rim[side] = [(-length, y * width * 0.8, 0.02), (0.25 * length, y * width, 0.0), bow]
        keel[side] = [(-length * 0.9, y * width * 0.45, -deep), (0.15 * length, y * width * 0.5, -deep), foot]
        for i in range(2):
            _hull_panel(b, f"hull {side}", rim[side][i : i + 2], keel[side][i : i + 2], side == "left")
        b.keypoint(f"{side} stern corner", rim[side][0], f"hull {side}", "stern", "deck", depth=0.06)
        b.keypoint(f"{side} stern foot", keel[side][0], f"hull {side}", "stern", depth=0.06)
    b.polygon("stern", [rim["left"][0], keel["left"][0], keel["right"][0], rim["right"][0]], "second", solid=True)
    b.polygon("deck", [*rim["right"], *rim["left"][1::-1]], "second")
    rigged = b.chance(0.75)
    if rigged:
        _rig(b, length)
    if not rigged or b.chance(0.6):
        _boat_cabin(b, length, width)


def _hull_panel(b: Builder, part: str, top: list[Vec], bottom: list[Vec], left: bool) -> None:
    """Hull between two stations: two triangles (the quadrilateral is not flat) and a rail on top."""
    for triangle in ([bottom[0], bottom[1], top[1]], [bottom[0], top[1], top[0]]):
        b.polygon(part, triangle[::-1] if left else triangle, solid=True)
    b.limb(part, top[0], top[1], 0.022, 0.022, "dark", (False, True))


def _rig(b: Builder, length: float) -> None:
    tall, at = b.u(0.85, 1.35), b.u(0.0, 0.25) * length
    top, base = (at - b.u(0, 0.06), 0.0, tall), (at, 0.0, 0.0)
    boom = WORLD.child((at, 0, 0.16), yaw=b.draws.bump(-35, 35))
    end, tack = boom.at(-b.u(0.55, 0.8) * length, 0, b.u(0.0, 0.06)), boom.at(-0.02, 0, 0)
    b.limb("mast", base, top, 0.028, 0.02, "metal", (False, True))
    b.limb("mast", tack, end, 0.02, 0.018, "metal", (False, True))
    b.polygon("sail", [tack, mix(top, base, 0.04), end], b.draws.pick(("main", "light", "second")))
    if b.chance(0.6):
        b.polygon("sail", [(at + 0.05, 0, 0.1), mix(top, base, 0.15), (length * 0.95, 0.0, 0.12)], "light")
    b.keypoint("mast top", top, "mast", "sail", depth=0.05)
    b.keypoint("boom end", end, "mast", "sail", depth=0.06)


def _boat_cabin(b: Builder, length: float, width: float) -> None:
    x0, x1, tall = -b.u(0.55, 0.8) * length, -b.u(0.0, 0.2) * length, b.u(0.16, 0.34)
    half, slope = width * b.u(0.5, 0.68), b.u(0.02, 0.12)
    c = b.block("cabin", WORLD, (x0, x1, -half, half, 0), (x0 + 0.02, x1 - slope, -half * 0.9, half * 0.9, tall))
    for quad in ([c[2], c[3], c[7], c[6]], [c[0], c[1], c[5], c[4]]):
        for start in (0.1, 0.55):
            b.decal("cabin", quad, start, start + 0.35, 0.35, 0.8, "glass")
    b.decal("cabin", [c[1], c[2], c[6], c[5]], 0.1, 0.9, 0.35, 0.85, "glass")
    for name, i in _CORNERS:
        b.keypoint(f"{name} cabin corner", c[i], "cabin", depth=0.05)
