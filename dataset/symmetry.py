"""What a keypoint becomes in a mirrored image, and which keypoints of an object differ in their side alone.

Ids are the benchmark's own. Flip pairs and geometry-aware groups differ on purpose: eyes are swapped in a mirrored
image, but close together, so that nobody confuses them at PCK's tolerance.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from dataset.error import DatasetError

FILE = "keypoints.json"  # in the folder of a data set that brings its own tables


@dataclass(frozen=True)
class Symmetry:
    """Of one category, whose keypoints have the ids 0, 1, ..., len(permutation) - 1.

    permutation: for each id that of the part on the other side, itself on the plane of symmetry. groups: ids of parts
    that look alike but for their side or place, two or more each.
    """

    permutation: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]

    @cached_property
    def _group(self) -> dict[int, tuple[int, ...]]:
        return {i: group for group in self.groups for i in group}

    def partners(self, ids: Sequence[int]) -> np.ndarray:
        """(N,) int64 ids of the opposite sides' parts; -1 for an id outside the table."""
        known = range(len(self.permutation))
        return np.array([self.permutation[i] if i in known else -1 for i in ids], dtype=np.int64)

    def find_aware(self, ids: Sequence[int], seen: Sequence[int]) -> np.ndarray:
        """(N,) bool: which of a pair's keypoints `ids` have another of their group among those `seen` in the target."""
        seen = set(seen)
        return np.array([bool(seen & set(self._group.get(i, ())) - {i}) for i in ids], dtype=bool)


def build_symmetry(size: int, groups: Sequence[Sequence[int]], pairs: Sequence[Sequence[int]]) -> Symmetry:
    """Of ids below `size`, of which `pairs` change places in a mirrored image."""
    permutation = list(range(size))
    for a, b in pairs:
        permutation[a], permutation[b] = b, a
    return Symmetry(tuple(permutation), tuple(map(tuple, groups)))


def read_symmetries(path: Path) -> dict[str, Symmetry]:
    """By category, of a JSON file {category: {"names": [...], "flip": permutation, "groups": [[...], ...]}}."""
    try:
        tables = json.loads(path.read_text(encoding="utf-8"))
        found = {
            name: Symmetry(tuple(table["flip"]), tuple(map(tuple, table["groups"]))) for name, table in tables.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(
            f"{path}: not a table of keypoints ({type(error).__name__}: {error}); write it again, or remove it"
        ) from None
    for name, symmetry in found.items():
        if flaw := find_table_flaw(symmetry):
            raise DatasetError(f"{path}: the table of {name!r} {flaw}")
    return found


def find_table_flaw(symmetry: Symmetry) -> str:
    """What is wrong with a table; empty if nothing is."""
    flip, members = symmetry.permutation, [i for group in symmetry.groups for i in group]
    ids = range(len(flip))
    if sorted(flip) != list(ids) or any(flip[flip[i]] != i for i in ids):
        return "is no permutation that gives every id back when it is applied twice"
    if any(i not in ids for i in members) or len(set(members)) < len(members):
        return "has groups with an id that is outside the table or in two of them"
    return ""


def _parse(size: int, groups: str, pairs: str) -> Symmetry:
    return build_symmetry(
        size, *([list(map(int, word.split(","))) for word in text.split()] for text in (groups, pairs))
    )


_QUADRUPED = "0,1 2,3 4,5 6,7 9,10 11,12 15,16 17,18 19,20"
_SIDES = "4,5 6,7 8,9 10,11 12,13 14,15 16,17 18,19 20,21"
_WHEELS = "10,13,20,23 11,14,21,24 12,15,22,25 16,17,26,27 18,19,28,29"
_WHEEL_PAIRS = "10,20 13,23 11,21 14,24 12,22 15,25 16,17 26,27 18,19 28,29"
_CARRIAGE = "0,1 2,3 4,5 6,7 8,9 10,11 12,13 14,15 16,17"

# Of SPair-71k. Its bicycles have no 11 and 12, its buses no 8 and 9.
SPAIR: Mapping[str, Symmetry] = {
    "aeroplane": _parse(25, _SIDES, _SIDES),
    "bicycle": _parse(14, "2,3 6,7 9,10", "2,3 6,7 9,10"),
    "bird": _parse(17, "1,2 10,11 12,13 14,15", "1,2 4,5 7,8 10,11 12,13 14,15"),
    "boat": _parse(14, "1,2 3,4 5,6 7,8 9,10 11,12", "1,2 3,4 5,6 7,8 9,10 11,12"),
    "bottle": _parse(10, "0,1 2,3 4,5 6,7 8,9", "0,1 2,3 4,5 6,7 8,9"),
    "bus": _parse(30, f"0,1 2,3,5,6 4,7 {_WHEELS}", f"0,1 2,3 5,6 {_WHEEL_PAIRS}"),
    "car": _parse(30, f"0,1 2,3,6,7 4,8 5,9 {_WHEELS}", f"0,1 2,3 6,7 {_WHEEL_PAIRS}"),
    "cat": _parse(15, "2,3 9,10,11,12", "0,1 2,3 4,5 6,7 9,10 11,12"),
    "chair": _parse(14, "0,1 2,3 4,5,6,7 8,9 10,11 12,13", "0,1 2,3 4,5 6,7 8,9 10,11 12,13"),
    "cow": _parse(21, "2,3 9,10,11,12 15,16,17,18 19,20", _QUADRUPED),
    "dog": _parse(16, "2,3 9,10,11,12", "0,1 2,3 4,5 9,10 11,12"),
    "horse": _parse(20, "2,3 10,11,12,13 16,17,18,19", "0,1 2,3 4,5 6,7 10,11 12,13 16,17 18,19"),
    "motorbike": _parse(13, "0,1 2,3", "0,1 2,3"),
    "person": _parse(20, "8,9 10,11 12,13 14,15 16,17 18,19", "0,1 2,3 8,9 10,11 12,13 14,15 16,17 18,19"),
    "pottedplant": _parse(9, "0,1,2,3 4,5 6,8", "0,2 4,5 6,8"),
    "sheep": _parse(21, "2,3 9,10,11,12 15,16,17,18 19,20", _QUADRUPED),
    "train": _parse(18, _CARRIAGE, _CARRIAGE),
    "tvmonitor": _parse(16, "0,2,4,6 1,3,5,7 8,10,12,14 9,11,13,15", "0,2 4,6 3,7 8,10 12,14 11,15"),
}
AP10K = _parse(17, "5,8 6,9,12,15 7,10,13,16 11,14", "0,1 5,8 6,9 7,10 11,14 12,15 13,16")
