"""Models of the animals and the person. Lengths are object units (a horse's body is about one unit long)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mini.render.geometry import SIDES, Frame, Vec, both, four, mix, swing
from mini.render.primitives import WORLD, Builder

Range = tuple[float, float]

QUADRUPED_PARTS = ("head", "neck", "body", "tail", *four("leg {}"))
QUADRUPED_COARSE = ("head", "head", "body", "body", *("limbs",) * 4)
_HEAD_TO_TAIL = ("nose", *both("{} eye", "{} ear tip"), "withers", "tail base", "tail tip")
HORSE_KEYPOINTS = (*_HEAD_TO_TAIL, *four("{} hoof"), *both("front-{} knee"))
DOG_KEYPOINTS = (*_HEAD_TO_TAIL, *four("{} paw"))
BIRD_PARTS = ("head", "body", "tail", *both("wing {}", "leg {}"))
BIRD_COARSE = ("head", "body", "body", "wings", "wings", "legs", "legs")
BIRD_KEYPOINTS = (
    *("beak tip", "crown", *both("{} eye"), "breast"),
    *both("{} wing shoulder", "{} wing tip", "{} tail corner", "{} foot"),
)
PERSON_PARTS = ("head", "torso", *both("upper arm {}", "forearm {}", "thigh {}", "shin {}"))
PERSON_COARSE = ("head", "torso", *("arms",) * 4, *("legs",) * 4)
PERSON_KEYPOINTS = (
    *("head top", "nose"),
    *both("{} eye", "{} shoulder", "{} elbow", "{} hand", "{} knee", "{} toe"),
)
SPECIES_KEYPOINTS = (  # AP-10K's, in its order
    *(*both("{} eye"), "nose", "neck", "root of tail"),
    *(f"{side} {joint}" for side, _ in SIDES for joint in ("shoulder", "elbow", "front paw")),
    *(f"{side} {joint}" for side, _ in SIDES for joint in ("hip", "knee", "back paw")),
)


@dataclass(frozen=True)
class Quadruped:
    """Proportions of a four-legged animal as (low, high) ranges."""

    half_length: Range
    half_height: Range
    leg: Range
    leg_radius: Range
    neck: Range
    neck_pitch: Range  # degrees above the horizontal
    neck_radius: Range  # fraction of the body's half height, at the head
    head: Range  # overall size of the head
    muzzle: Range  # length, fraction of the head size
    foot: str  # hoof or paw
    floppy: float = 0.0  # probability of hanging ears
    ear: Range = (0.5, 0.8)  # length, fraction of the head size
    mane: bool = False
    tail: str = "raised"  # raised, switch (hangs, with long hair) or brush (thick)
    horn: Range | None = None  # length, fraction of the head size
    hump: float = 0.0  # height, fraction of the body's half height
    knees: bool = False  # the front knees are keypoints

    def __call__(self, builder: Builder) -> None:
        _quadruped(builder, self)


horse = Quadruped(
    half_length=(0.40, 0.52),
    half_height=(0.17, 0.23),
    leg=(0.58, 0.80),
    leg_radius=(0.042, 0.058),
    neck=(0.30, 0.46),
    neck_pitch=(25, 70),
    neck_radius=(0.40, 0.5),
    head=(0.16, 0.21),
    muzzle=(1.25, 1.7),
    foot="hoof",
    mane=True,
    tail="switch",
    knees=True,
)
dog = Quadruped(
    half_length=(0.34, 0.50),
    half_height=(0.14, 0.20),
    leg=(0.26, 0.48),
    leg_radius=(0.048, 0.066),
    neck=(0.10, 0.20),
    neck_pitch=(20, 65),
    neck_radius=(0.62, 0.75),
    head=(0.19, 0.26),
    muzzle=(0.8, 1.15),
    foot="paw",
    floppy=0.5,
)
fox = replace(dog, half_height=(0.11, 0.15), leg=(0.24, 0.36), floppy=0.0, ear=(0.9, 1.2), tail="brush")
jackal = replace(dog, half_height=(0.10, 0.14), leg=(0.44, 0.58), leg_radius=(0.036, 0.048), floppy=0.0, ear=(1.1, 1.5))
wolf = replace(dog, leg=(0.42, 0.56), neck_radius=(0.8, 0.95), floppy=0.0, tail="switch")
antelope = replace(
    horse,
    half_height=(0.14, 0.18),
    leg_radius=(0.03, 0.042),
    neck_pitch=(45, 75),
    mane=False,
    tail="raised",
    horn=(1.6, 2.4),
)
bison = replace(
    horse,
    half_height=(0.22, 0.28),
    leg=(0.34, 0.46),
    leg_radius=(0.05, 0.066),
    neck=(0.10, 0.18),
    neck_pitch=(-20, 15),
    neck_radius=(0.7, 0.85),
    head=(0.2, 0.25),
    muzzle=(0.9, 1.2),
    mane=False,
    horn=(0.4, 0.6),
    hump=0.55,
)
cow = replace(
    bison, leg=(0.42, 0.58), neck=(0.2, 0.3), neck_pitch=(5, 40), neck_radius=(0.5, 0.6), horn=(0.5, 0.9), hump=0.0
)


def _quadruped(b: Builder, spec: Quadruped) -> None:
    length, height = b.u(*spec.half_length), b.u(*spec.half_height)
    width = height * b.u(0.72, 0.95)
    b.ellipsoid("body", WORLD, (0, 0, 0), (length * 0.9, width * 0.95, height * 0.92))
    b.ellipsoid("body", WORLD, (0.42 * length, 0, 0), (0.55 * length, width, height * 1.05))
    b.ellipsoid("body", WORLD, (-0.48 * length, 0, 0.02), (0.5 * length, width, height))
    if spec.hump:
        tall = spec.hump * height
        b.ellipsoid("body", WORLD, (0.3 * length, 0, height), (0.45 * length, 0.6 * width, tall))
    b.keypoint("withers", (0.45 * length, 0, height * 1.03), "body", "neck", depth=0.07)
    end, direction = _neck(b, spec, length, height)
    _quadruped_head(b, spec, end, direction)
    _quadruped_legs(b, spec, length, width, height)
    _tail(b, spec, (-0.93 * length, 0, 0.38 * height))


def _neck(b: Builder, spec: Quadruped, length: float, height: float) -> tuple[Vec, float]:
    """Returns the position of the head joint and the yaw of the neck."""
    yaw, pitch, reach = b.draws.bump(-25, 25), b.u(*spec.neck_pitch), b.u(*spec.neck)
    frame = WORLD.child((0.66 * length, 0, 0.35 * height), yaw, pitch)
    end = frame.at(reach + 0.3 * height, 0, 0)
    radius = height * b.u(*spec.neck_radius)
    b.limb("neck", frame.at(0, 0, 0), end, height * 0.72, radius, round_ends=(True, False))
    if spec.mane:
        b.ellipsoid("neck", frame, (0.55 * reach, 0, height * 0.52), (reach * 0.72, 0.03, height * 0.3), "second")
    b.keypoint("neck", frame.at(0.4 * reach, 0, 0), "neck", "body", depth=1.1 * height)
    return end, yaw


def _quadruped_head(b: Builder, spec: Quadruped, at: Vec, yaw: float) -> None:
    s = b.u(*spec.head)
    frame = Frame(at).child((0, 0, 0), yaw + b.draws.bump(-35, 35), -b.u(5, 45))
    muzzle, thick = s * b.u(*spec.muzzle), s * b.u(0.26, 0.32)
    b.ellipsoid("head", frame, (0.1 * s, 0, 0.05 * s), (0.58 * s, 0.42 * s, 0.5 * s))
    b.limb(
        "head",
        frame.at(0.2 * s, 0, -0.05 * s),
        frame.at(muzzle, 0, -0.18 * s),
        0.36 * s,
        thick,
        round_ends=(False, True),
    )
    b.ellipsoid("head", frame, (muzzle + 0.7 * thick, 0, -0.1 * s), (0.42 * thick, 0.5 * thick, 0.4 * thick), "dark")
    b.keypoint("nose", frame.at(muzzle + 1.0 * thick, 0, -0.12 * s), "head")
    floppy = spec.floppy > 0 and b.chance(spec.floppy)
    spread, tall = b.u(0.1, 0.3), s * b.u(*spec.ear)
    horn = s * b.u(*spec.horn) if spec.horn else 0.0
    for side, y in SIDES:
        b.ellipsoid("head", frame, (0.36 * s, y * 0.33 * s, 0.24 * s), (0.09 * s, 0.07 * s, 0.09 * s), "light")
        b.ellipsoid("head", frame, (0.39 * s, y * 0.37 * s, 0.25 * s), (0.06 * s, 0.05 * s, 0.06 * s), "dark")
        b.keypoint(f"{side} eye", frame.at(0.38 * s, y * 0.40 * s, 0.25 * s), "head", depth=0.04)
        base = frame.at(-0.05 * s, y * 0.3 * s, 0.4 * s)
        if floppy:
            tip = frame.at(-0.05 * s, y * 0.55 * s, 0.4 * s - tall)
            b.limb("head", base, tip, 0.15 * s, 0.12 * s, "second")
        else:
            tip = frame.at(-0.15 * s, y * (0.3 + spread) * s, 0.4 * s + tall)
            b.limb("head", base, tip, 0.17 * s, 0.05 * s, "second", (False, True))
        b.keypoint(f"{side} ear tip", tip, "head", depth=0.05)
        if horn:
            root, point = frame.at(0.12 * s, y * 0.24 * s, 0.4 * s), frame.at(-0.1 * s, y * 0.6 * s, 0.4 * s + horn)
            b.limb("head", root, point, 0.09 * s, 0.03 * s, "light", (False, True))


def _quadruped_legs(b: Builder, spec: Quadruped, length: float, width: float, height: float) -> None:
    leg, radius = b.u(*spec.leg), b.u(*spec.leg_radius)
    stride = b.u(3, 10) if b.chance(0.4) else b.u(15, 38)
    lower = "second" if b.chance(0.4) else "main"
    for end, x, upper, middle in (("front", 0.62, "shoulder", "elbow"), ("back", -0.66, "hip", "knee")):
        front = end == "front"
        for side, y in SIDES:
            part = f"leg {end}-{side}"
            hip = (x * length, y * 0.55 * width, -0.35 * height)
            angle = b.u(-stride, stride) + (0 if front else 8)
            joint = swing(hip, 0.5 * leg + 0.2 * height, angle)
            foot = swing(joint, 0.5 * leg, angle - b.u(0, 0.9 * stride) - (0 if front else 14))
            b.limb(part, hip, joint, radius * (1.9 if front else 2.3), radius * 1.1)
            b.limb(part, joint, foot, radius * 1.1, radius * 0.85, lower, (False, False))
            shape = (
                (radius * 1.35, radius * 1.2, radius) if spec.foot == "hoof" else (radius * 1.8, radius * 1.25, radius)
            )
            b.ellipsoid(
                part,
                Frame(foot),
                (radius * 0.4, 0, -0.3 * radius),
                shape,
                "dark" if spec.foot == "hoof" else lower,
            )
            sole = (foot[0] + radius * 0.6, foot[1], foot[2] - 0.5 * radius)
            b.keypoint(f"{end}-{side} {spec.foot}", sole, part, depth=0.09)
            b.keypoint(f"{side} {end} paw", sole, part, depth=0.09)
            b.keypoint(f"{side} {upper}", hip, part, "body", depth=0.9 * width)
            b.keypoint(f"{side} {middle}", joint, part, depth=0.1)
            if spec.knees and front:
                b.keypoint(f"{end}-{side} knee", joint, part, depth=0.1)


def _tail(b: Builder, spec: Quadruped, base: Vec) -> None:
    swish = b.u(-25, 25)
    if spec.tail == "switch":
        mid = swing(base, 0.16, -b.u(40, 75), 0.3 * swish)
        tip = swing(mid, b.u(0.28, 0.45), -b.u(2, 25), swish)
        radii, material = (0.035, 0.06, 0.03), "second"
    else:
        raise_ = b.u(70, 150)
        mid = swing(base, 0.14, -raise_, 0.3 * swish)
        tip = swing(mid, b.u(0.12, 0.28), -raise_ - b.u(0, 40), swish)
        radii, material = ((0.05, 0.1, 0.04), "second") if spec.tail == "brush" else ((0.045, 0.038, 0.022), "main")
    b.limb("tail", base, mid, radii[0], radii[1], material, (False, True))
    b.limb("tail", mid, tip, radii[1], radii[2], material, (False, True))
    b.keypoint("tail base", base, "tail", "body", depth=0.09)
    b.keypoint("root of tail", base, "tail", "body", depth=0.09)
    b.keypoint("tail tip", tip, "tail", depth=0.06)


def bird(b: Builder) -> None:
    long, round_ = b.u(0.26, 0.36), b.u(0.13, 0.19)
    body = WORLD.child((0, 0, 0), pitch=b.u(0, 45))
    b.ellipsoid("body", body, (0, 0, 0), (long, round_ * 0.95, round_))
    b.keypoint("breast", body.at(0.62 * long, 0, -0.72 * round_), "body", depth=0.06)
    _bird_head(b, body, long, round_)
    spread, reach = b.chance(0.45), b.u(0.42, 0.62)
    lift = b.u(-15, 55)
    for side, y in SIDES:
        if spread:
            _spread_wing(b, body, side, y, long, round_, reach, lift)
        else:
            _folded_wing(b, body, side, y, long, round_)
    _bird_tail(b, body, long)
    _bird_legs(b, body, round_)


def _bird_head(b: Builder, body: Frame, long: float, round_: float) -> None:
    s = b.u(0.095, 0.135)
    at = body.at(long + b.u(-0.02, 0.08), 0, round_ * 0.6 + b.u(0.0, 0.12))
    b.limb("body", body.at(0.55 * long, 0, 0.2 * round_), at, round_ * 0.7, s * 0.75, round_ends=(True, False))
    frame = Frame(at).child((0, 0, 0), b.draws.bump(-35, 35), b.u(-20, 12))
    b.ellipsoid("head", frame, (0, 0, 0), (s * 1.1, s * 0.95, s))
    beak = s * b.u(0.9, 2.2)
    base, tip = frame.at(0.75 * s, 0, -0.1 * s), frame.at(0.9 * s + beak, 0, -0.25 * s)
    b.limb(
        "head",
        base,
        tip,
        s * b.u(0.35, 0.5),
        s * 0.1,
        b.draws.pick(("second", "dark", "light")),
        (False, True),
    )
    b.keypoint("beak tip", tip, "head", depth=0.04)
    b.keypoint("crown", frame.at(-0.1 * s, 0, s), "head", depth=0.05)
    for side, y in SIDES:
        b.ellipsoid("head", frame, (0.5 * s, y * 0.68 * s, 0.3 * s), (0.22 * s, 0.2 * s, 0.22 * s), "light")
        b.ellipsoid("head", frame, (0.55 * s, y * 0.78 * s, 0.32 * s), (0.14 * s, 0.13 * s, 0.14 * s), "dark")
        b.keypoint(f"{side} eye", frame.at(0.55 * s, y * 0.85 * s, 0.32 * s), "head", depth=0.035)


def _spread_wing(
    b: Builder, body: Frame, side: str, y: float, long: float, round_: float, reach: float, lift: float
) -> None:
    part = f"wing {side}"
    wing = body.child((0.3 * long, y * 0.6 * round_, 0.5 * round_), roll=y * lift)
    mid, tip = wing.at(0.05, y * reach * 0.55, 0.02), wing.at(-0.12, y * (reach + 0.12), 0)
    shoulder, root = wing.at(0.1, 0, 0), wing.at(-0.75 * long, 0, 0)
    b.polygon(
        part,
        [shoulder, mid, tip, wing.at(-0.3, y * reach * 0.8, 0), wing.at(-0.36, y * reach * 0.4, 0), root],
        "second",
    )
    b.limb(part, shoulder, mid, 0.045, 0.03)
    b.limb(part, mid, tip, 0.03, 0.014, round_ends=(False, True))
    b.keypoint(f"{side} wing shoulder", wing.at(0.1, 0, 0.03), part, "body", depth=0.06)
    b.keypoint(f"{side} wing tip", tip, part, depth=0.05)


def _folded_wing(b: Builder, body: Frame, side: str, y: float, long: float, round_: float) -> None:
    part = f"wing {side}"
    wing = body.child((0.1 * long, y * 0.82 * round_, 0.12 * round_), pitch=b.u(0, 12), yaw=y * 6)
    shoulder, tip = wing.at(0.5 * long, 0, 0.1 * round_), wing.at(-1.25 * long, -y * 0.3 * round_, -0.02)
    b.ellipsoid(part, wing, (0, 0, 0), (0.72 * long, 0.3 * round_, 0.6 * round_), "second")
    b.limb(part, wing.at(-0.2 * long, 0.0, 0), tip, 0.45 * round_, 0.02, "second", (False, True))
    b.keypoint(f"{side} wing shoulder", shoulder, part, "body", depth=0.09)
    b.keypoint(f"{side} wing tip", tip, part, depth=0.05)


def _bird_tail(b: Builder, body: Frame, long: float) -> None:
    tail = body.child((-0.85 * long, 0, 0.02), pitch=b.u(-25, 10))
    end, wide = -b.u(0.2, 0.36), b.u(0.07, 0.15)
    left, right = tail.at(end, wide, 0), tail.at(end, -wide, 0)
    b.polygon("tail", [tail.at(0.05, 0.05, 0), left, right, tail.at(0.05, -0.05, 0)])
    b.limb("tail", tail.at(0.05, 0, 0), tail.at(0.8 * end, 0, 0), 0.06, 0.02)
    b.limb("tail", left, right, 0.016, 0.016)
    b.keypoint("left tail corner", left, "tail", depth=0.04)
    b.keypoint("right tail corner", right, "tail", depth=0.04)


def _bird_legs(b: Builder, body: Frame, round_: float) -> None:
    reach, tuck = b.u(0.2, 0.34), b.u(-15, 15)
    for side, y in SIDES:
        part = f"leg {side}"
        hip = body.at(-0.02, y * 0.45 * round_, -0.72 * round_)
        foot = swing(hip, reach, tuck + b.u(-18, 18))
        b.limb(part, hip, foot, 0.026, 0.018, "light", (False, False))
        b.limb(part, foot, (foot[0] + 0.085, foot[1] + y * 0.02, foot[2] - 0.01), 0.022, 0.016, "light")
        b.keypoint(f"{side} foot", foot, part, depth=0.05)


def person(b: Builder) -> None:
    lean = WORLD.child((0, 0, 0), yaw=b.draws.bump(-15, 15), pitch=0, roll=b.draws.bump(-8, 8))
    chest = b.u(0.15, 0.19)
    b.ellipsoid("torso", lean, (0, 0, 0.02), (0.1, chest * 0.95, 0.12))
    b.ellipsoid("torso", lean, (0, 0, 0.2), (0.095, chest * 0.9, 0.2))
    b.ellipsoid("torso", lean, (0, 0, 0.36), (0.105, chest * 1.08, 0.15))
    _person_head(b, lean)
    sleeves, arms = b.draws.pick(("main", "skin")), b.u(8, 60)
    trousers = b.draws.pick(("second", "second", "main"))
    for side, y in SIDES:
        _arm(b, lean, side, y, chest, sleeves, arms)
        _leg(b, side, y, trousers)


def _person_head(b: Builder, torso: Frame) -> None:
    s = b.u(0.135, 0.175)
    b.limb("head", torso.at(0, 0, 0.45), torso.at(0.01, 0, 0.58), 0.055, 0.05, "skin", (False, False))
    head = torso.child((0.015, 0, 0.53 + s), b.draws.bump(-40, 40), b.draws.bump(-15, 15))
    b.ellipsoid("head", head, (0, 0, 0), (0.9 * s, 0.8 * s, 1.08 * s), "skin")
    b.ellipsoid("head", head, (-0.2 * s, 0, 0.3 * s), (0.88 * s, 0.9 * s, 0.95 * s), b.draws.pick(("dark", "second")))
    b.ellipsoid("head", head, (0.92 * s, 0, -0.12 * s), (0.2 * s, 0.15 * s, 0.22 * s), "skin")
    b.keypoint("head top", head.at(-0.1 * s, 0, 1.22 * s), "head", depth=0.06)
    b.keypoint("nose", head.at(1.08 * s, 0, -0.14 * s), "head", depth=0.04)
    for side, y in SIDES:
        b.ellipsoid("head", head, (0.76 * s, y * 0.34 * s, 0.12 * s), (0.15 * s, 0.18 * s, 0.16 * s), "dark")
        b.keypoint(f"{side} eye", head.at(0.86 * s, y * 0.34 * s, 0.12 * s), "head", depth=0.045)


def _arm(b: Builder, torso: Frame, side: str, y: float, chest: float, sleeves: str, spread: float) -> None:
    shoulder = torso.at(0, y * (chest + 0.02), 0.43)
    raised = 120 if b.chance(0.15) else 0
    elbow = swing(shoulder, b.u(0.24, 0.3), b.u(-35, 40) + raised, y * b.u(10, spread))
    hand = swing(elbow, b.u(0.22, 0.28), b.u(0, 80) + raised, y * b.u(-10, spread))
    b.limb(f"upper arm {side}", shoulder, elbow, 0.066, 0.05)
    b.limb(f"forearm {side}", elbow, hand, 0.05, 0.038, sleeves, (False, False))
    b.ellipsoid(f"forearm {side}", WORLD, hand, (0.055, 0.05, 0.055), "skin")
    b.keypoint(f"{side} shoulder", shoulder, f"upper arm {side}", "torso", depth=0.09)
    b.keypoint(f"{side} elbow", mix(elbow, shoulder, 0.03), f"upper arm {side}", f"forearm {side}", depth=0.08)
    b.keypoint(f"{side} hand", hand, f"forearm {side}", depth=0.08)


def _leg(b: Builder, side: str, y: float, trousers: str) -> None:
    hip = (0.0, y * 0.09, -0.02)
    angle = b.draws.bump(-35, 55)
    knee = swing(hip, b.u(0.28, 0.38), angle, y * b.u(0, 14))
    ankle = swing(knee, b.u(0.28, 0.36), angle - b.u(0, 45), y * b.u(-4, 8))
    toe = (ankle[0] + 0.15, ankle[1] + y * 0.02, ankle[2] - 0.035)
    b.limb(f"thigh {side}", hip, knee, 0.092, 0.068, trousers)
    b.limb(f"shin {side}", knee, ankle, 0.066, 0.045, b.draws.pick((trousers, "skin")), (False, False))
    b.limb(f"shin {side}", ankle, toe, 0.05, 0.04, "dark")
    b.keypoint(f"{side} knee", knee, f"thigh {side}", f"shin {side}", depth=0.1)
    b.keypoint(f"{side} toe", toe, f"shin {side}", depth=0.07)
