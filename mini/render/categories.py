"""The ten categories: their parts, keypoints, left-right partners and usual views. Names are PASCAL VOC's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mini.render import animals, furniture, vehicles
from mini.render.primitives import Builder

Range = tuple[float, float]


@dataclass(frozen=True)
class Category:
    """One object class. Fine part i belongs to coarse part coarse_of[i].

    A partner table gives the index that takes the place of index i in a mirrored image (i itself when it lies
    on the symmetry plane).
    """

    name: str
    group: str  # animal, person, vehicle, furniture
    fine_parts: tuple[str, ...]
    coarse_parts: tuple[str, ...]
    coarse_of: tuple[int, ...]
    keypoints: tuple[str, ...]  # keypoint i has the id str(i)
    part_partner: tuple[int, ...]
    keypoint_partner: tuple[int, ...]
    build: Callable[[Builder], None]  # draws one random instance
    azimuth: Range  # degrees away from the front, to either side
    elevation: Range  # degrees above the horizon


def partners(names: tuple[str, ...]) -> tuple[int, ...]:
    """Index of the name with left and right exchanged, for every name."""
    return tuple(names.index(_swap(name)) for name in names)


def _swap(name: str) -> str:
    return name.replace("left", "\0").replace("right", "left").replace("\0", "right")


def _category(
    name: str,
    group: str,
    parts: tuple[str, ...],
    coarse: tuple[str, ...],
    keypoints: tuple[str, ...],
    build: Callable[[Builder], None],
    azimuth: Range,
    elevation: Range = (0, 28),
) -> Category:
    names = tuple(dict.fromkeys(coarse))
    return Category(
        name,
        group,
        parts,
        names,
        tuple(names.index(c) for c in coarse),
        keypoints,
        partners(parts),
        partners(keypoints),
        build,
        azimuth,
        elevation,
    )


_ALL = (
    _category(
        "aeroplane",
        "vehicle",
        vehicles.AEROPLANE_PARTS,
        vehicles.AEROPLANE_COARSE,
        vehicles.AEROPLANE_KEYPOINTS,
        vehicles.aeroplane,
        (42, 123),
        (0, 50),
    ),
    _category(
        "bicycle",
        "vehicle",
        vehicles.BICYCLE_PARTS,
        vehicles.BICYCLE_COARSE,
        vehicles.BICYCLE_KEYPOINTS,
        vehicles.bicycle,
        (58, 117),
        (0, 22),
    ),
    _category(
        "bird",
        "animal",
        animals.BIRD_PARTS,
        animals.BIRD_COARSE,
        animals.BIRD_KEYPOINTS,
        animals.bird,
        (46, 119),
        (-5, 28),
    ),
    _category(
        "boat",
        "vehicle",
        vehicles.BOAT_PARTS,
        vehicles.BOAT_COARSE,
        vehicles.BOAT_KEYPOINTS,
        vehicles.boat,
        (43, 127),
        (4, 28),
    ),
    _category(
        "bus",
        "vehicle",
        vehicles.BUS_PARTS,
        vehicles.BUS_COARSE,
        vehicles.BUS_KEYPOINTS,
        vehicles.bus,
        (34, 101),
        (2, 28),
    ),
    _category(
        "car",
        "vehicle",
        vehicles.CAR_PARTS,
        vehicles.CAR_COARSE,
        vehicles.CAR_KEYPOINTS,
        vehicles.car,
        (39, 126),
        (4, 32),
    ),
    _category(
        "chair",
        "furniture",
        furniture.CHAIR_PARTS,
        furniture.CHAIR_COARSE,
        furniture.CHAIR_KEYPOINTS,
        furniture.chair,
        (22, 103),
        (5, 35),
    ),
    _category(
        "dog",
        "animal",
        animals.QUADRUPED_PARTS,
        animals.QUADRUPED_COARSE,
        animals.DOG_KEYPOINTS,
        animals.dog,
        (37, 118),
    ),
    _category(
        "horse",
        "animal",
        animals.QUADRUPED_PARTS,
        animals.QUADRUPED_COARSE,
        animals.HORSE_KEYPOINTS,
        animals.horse,
        (42, 123),
        (-2, 24),
    ),
    _category(
        "person",
        "person",
        animals.PERSON_PARTS,
        animals.PERSON_COARSE,
        animals.PERSON_KEYPOINTS,
        animals.person,
        (11, 64),
        (-5, 20),
    ),
)
CATEGORIES: dict[str, Category] = {c.name: c for c in sorted(_ALL, key=lambda c: c.name)}
