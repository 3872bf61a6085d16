"""The ten categories, named as in PASCAL VOC, and six further species: parts, keypoints, partners and usual views."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType

from mini.render import animals, furniture, vehicles
from mini.render.primitives import Builder

Range = tuple[float, float]
SIDES = frozenset({"left", "right", "front", "back"})


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
    kin: str = ""  # category with the same parts, whose part labels it shares


def partners(names: tuple[str, ...]) -> tuple[int, ...]:
    """Index of the name with left and right exchanged, for every name."""
    return tuple(names.index(_swap(name)) for name in names)


def _swap(name: str) -> str:
    return name.replace("left", "\0").replace("right", "left").replace("\0", "right")


def keypoint_tables(categories: Iterable[Category]) -> dict[str, dict[str, list]]:
    """By category: the keypoints' names, their permutation under mirroring, and the groups that differ in side alone.

    All are lists over the keypoint ids. Eyes form no group: they are too close to be confused.
    """
    tables = {}
    for category in categories:
        groups = defaultdict(list)
        for i, name in enumerate(category.keypoints):
            words = name.replace("-", " ").split()
            groups[" ".join(word for word in words if word not in SIDES)].append(i)
        alike = [group for noun, group in groups.items() if len(group) > 1 and noun != "eye"]
        tables[category.name] = {
            "names": list(category.keypoints),
            "flip": list(category.keypoint_partner),
            "groups": alike,
        }
    return tables


def _category(
    name: str,
    group: str,
    parts: tuple[str, ...],
    coarse: tuple[str, ...],
    keypoints: tuple[str, ...],
    build: Callable[[Builder], None],
    azimuth: Range,
    elevation: Range = (0, 28),
    kin: str = "",
) -> Category:
    names = tuple(dict.fromkeys(coarse))
    coarse_of = tuple(names.index(kind) for kind in coarse)
    partner_tables = partners(parts), partners(keypoints)
    return Category(name, group, parts, names, coarse_of, keypoints, *partner_tables, build, azimuth, elevation, kin)


def _animal(name: str, keypoints: tuple[str, ...], *views: Range, kin: str = "") -> Category:
    parts = animals.QUADRUPED_PARTS, animals.QUADRUPED_COARSE
    return _category(name, "animal", *parts, keypoints, getattr(animals, name), *views, kin=kin)


def _of(module: ModuleType, group: str, name: str, *views: Range) -> Category:
    tables = (getattr(module, f"{name.upper()}_{table}") for table in ("PARTS", "COARSE", "KEYPOINTS"))
    return _category(name, group, *tables, getattr(module, name), *views)


def _table(*categories: Category) -> dict[str, Category]:
    return {category.name: category for category in categories}


CATEGORIES = _table(
    _of(vehicles, "vehicle", "aeroplane", (42, 123), (0, 50)),
    _of(vehicles, "vehicle", "bicycle", (58, 117), (0, 22)),
    _of(animals, "animal", "bird", (46, 119), (-5, 28)),
    _of(vehicles, "vehicle", "boat", (43, 127), (4, 28)),
    _of(vehicles, "vehicle", "bus", (34, 101), (2, 28)),
    _of(vehicles, "vehicle", "car", (39, 126), (4, 32)),
    _of(furniture, "furniture", "chair", (22, 103), (5, 35)),
    _animal("dog", animals.DOG_KEYPOINTS, (37, 118)),
    _animal("horse", animals.HORSE_KEYPOINTS, (42, 123), (-2, 24)),
    _of(animals, "person", "person", (11, 64), (-5, 20)),
)
SPECIES = _table(  # of the two families of AP-10K's layout
    _animal("antelope", animals.SPECIES_KEYPOINTS, (35, 125), kin="horse"),
    _animal("bison", animals.SPECIES_KEYPOINTS, (35, 125), kin="horse"),
    _animal("cow", animals.SPECIES_KEYPOINTS, (35, 125), kin="horse"),
    _animal("fox", animals.SPECIES_KEYPOINTS, (35, 125), kin="dog"),
    _animal("jackal", animals.SPECIES_KEYPOINTS, (35, 125), kin="dog"),
    _animal("wolf", animals.SPECIES_KEYPOINTS, (35, 125), kin="dog"),
)
FAMILIES = {"dog": "Canidae", "horse": "Bovidae"}  # of the species, by kin
KNOWN = CATEGORIES | SPECIES
