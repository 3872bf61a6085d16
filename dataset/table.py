"""The pairs of a split as columns: what an index stores and pair records are built from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np

from dataset.error import DatasetError

FLAGS = (
    "mirror",
    "viewpoint_variation",
    "scale_variation",
    "truncation",
    "occlusion",
)  # difficulty of a pair in SPair


@dataclass(frozen=True)
class PairTable:
    """M images, P pairs, K keypoints over all pairs. Paths are relative to the root of the data set."""

    identifier: list[str]  # (M,)
    path: list[str]  # (M,)
    category: list[str]  # (M,)
    size: np.ndarray  # (M, 2) int32, (H, W)
    flip: np.ndarray  # (M,) bool
    pair_id: list[str]  # (P,)
    src: np.ndarray  # (P,) int32, row of the image
    trg: np.ndarray  # (P,) int32
    src_bbox: np.ndarray  # (P, 4) float32
    trg_bbox: np.ndarray  # (P, 4) float32
    flags: np.ndarray  # (P, 5) int8, -1 = unknown
    kps_start: np.ndarray  # (P + 1,) int64: pair i owns keypoints kps_start[i]:kps_start[i + 1]
    src_kps: np.ndarray  # (K, 2) float32
    trg_kps: np.ndarray  # (K, 2) float32
    kps_code: np.ndarray  # (K,) int32, place of the keypoint's name in kps_name
    kps_name: list[str]

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Every column as an array without objects; strings as one UTF-8 text with a line each."""
        columns = {column.name: getattr(self, column.name) for column in fields(self)}
        return {name: pack_text(value) if isinstance(value, list) else value for name, value in columns.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> PairTable:
        """The inverse of `to_arrays`; KeyError if a column is missing."""
        is_text = {column.name: column.type == "list[str]" for column in fields(cls)}
        return cls(**{name: unpack_text(arrays[name]) if text else arrays[name] for name, text in is_text.items()})


def pack_text(lines: Sequence[str]) -> np.ndarray:
    """Strings without line breaks as one uint8 array."""
    return np.frombuffer("".join(f"{line}\n" for line in lines).encode(), dtype=np.uint8)


def unpack_text(array: np.ndarray) -> list[str]:
    """The strings that `pack_text` packed."""
    return array.tobytes().decode().split("\n")[:-1]


@dataclass
class TableBuilder:
    """Collects images and pairs, refuses the ones no benchmark can have, and turns them into a PairTable.

    `where` in its methods is the file (and line) to name in an error.
    """

    max_kps: int
    _images: dict[str, tuple[int, str, str, tuple[int, int], bool]] = field(default_factory=dict)
    _pairs: list[tuple] = field(default_factory=list)
    _kps_codes: dict[str, int] = field(default_factory=dict)

    def add_image(
        self, identifier: str, path: str, category: str, size: tuple[int, int], flip: bool, where: str
    ) -> int:
        """Row of the image, which is added if new; a second size (H, W) for the same image is refused."""
        if identifier not in self._images:
            self._images[identifier] = (len(self._images), path, category, size, flip)
        row, _, _, known_size, _ = self._images[identifier]
        if size != known_size:
            raise DatasetError(f"{where}: image {identifier} has size (H, W) = {size}, elsewhere {known_size}")
        return row

    def add_pair(
        self,
        pair_id: str,
        images: tuple[int, int],  # rows of the source and the target
        kps: tuple[np.ndarray, np.ndarray],  # (N, 2) each
        kps_ids: Sequence[str],
        bbox: tuple[np.ndarray, np.ndarray],  # (4,) each
        where: str,
        flags: Sequence[int] = (-1,) * len(FLAGS),
    ) -> None:
        """Adds a pair; DatasetError for unequal or too many keypoints and for boxes without area."""
        if not len(kps[0]) == len(kps[1]) == len(kps_ids):
            counts = f"{len(kps[0])} in the source, {len(kps[1])} in the target, {len(kps_ids)} names"
            raise DatasetError(f"{where}: keypoint counts differ: {counts}")
        if len(kps[0]) > self.max_kps:
            raise DatasetError(
                f"{where}: {len(kps[0])} keypoints, but this data set has at most {self.max_kps} per pair"
            )
        for side, (x1, y1, x2, y2) in zip(("source", "target"), bbox, strict=True):
            if not (x2 > x1 and y2 > y1):
                box = [float(x1), float(y1), float(x2), float(y2)]
                raise DatasetError(f"{where}: the {side} box {box} has no area (x1 y1 x2 y2)")
        codes = [self._kps_codes.setdefault(name, len(self._kps_codes)) for name in kps_ids]
        self._pairs.append((pair_id, *images, *bbox, flags, *kps, codes))

    def build(self) -> PairTable:
        """The table of all that was added."""
        rows = list(self._images.values())
        pair_id, src, trg, src_bbox, trg_bbox, flags, src_kps, trg_kps, codes = (
            zip(*self._pairs, strict=True) if self._pairs else ((),) * 9
        )
        return PairTable(
            identifier=list(self._images),
            path=[row[1] for row in rows],
            category=[row[2] for row in rows],
            size=np.array([row[3] for row in rows], dtype=np.int32).reshape(-1, 2),
            flip=np.array([row[4] for row in rows], dtype=bool),
            pair_id=list(pair_id),
            src=np.array(src, dtype=np.int32),
            trg=np.array(trg, dtype=np.int32),
            src_bbox=np.array(src_bbox, dtype=np.float32).reshape(-1, 4),
            trg_bbox=np.array(trg_bbox, dtype=np.float32).reshape(-1, 4),
            flags=np.array(flags, dtype=np.int8).reshape(-1, len(FLAGS)),
            kps_start=np.cumsum([0, *(len(points) for points in src_kps)], dtype=np.int64),
            src_kps=np.concatenate([np.zeros((0, 2)), *src_kps]).astype(np.float32),
            trg_kps=np.concatenate([np.zeros((0, 2)), *trg_kps]).astype(np.float32),
            kps_code=np.array([code for pair in codes for code in pair], dtype=np.int32),
            kps_name=list(self._kps_codes),
        )
