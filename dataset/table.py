"""The pairs of a split as columns: what an index stores and pair records are built from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain

import numpy as np

from dataset.error import DatasetError
from dataset.record import FLAGS, ImageRef, Keypoints, PairRecord, find_flaw

SIDES = ("source", "target")
OUTSIDE = (2, 0.05)  # px and share of the side that a point or box may lie outside its image: annotators' clicks


@dataclass(frozen=True)
class PairTable:
    """P pairs, and K keypoints over all pairs; `side` is 0 for the source and 1 for the target."""

    images: list[ImageRef]
    pair_id: list[str]  # (P,)
    category: list[str]  # (P,)
    left_out: list[list[str]]  # pair_id, category, reason of pairs that the lists have and this table has not
    kps_name: list[str]
    image: np.ndarray  # (P, side) int32, place in images
    bbox: np.ndarray  # (P, side, 4) float32
    flags: np.ndarray  # (P, FLAGS) int8, -1 = unknown
    kps_start: np.ndarray  # (P + 1,) int64: pair i owns keypoints kps_start[i]:kps_start[i + 1]
    kps: np.ndarray  # (K, side, 2) float32
    kps_code: np.ndarray  # (K,) int32, place in kps_name
    seen_start: np.ndarray  # (I + 1,) int64: image i shows keypoints seen_start[i]:seen_start[i + 1]
    seen: np.ndarray  # (S, 2) float32
    seen_code: np.ndarray  # (S,) int32, place in kps_name
    seen_known: np.ndarray  # (I,) bool, whether the annotations say what the image shows

    def to_columns(self) -> tuple[dict[str, np.ndarray], dict[str, list]]:
        """(arrays, lists of what JSON knows)."""
        columns = {name: getattr(self, name) for name in self.__dataclass_fields__}
        arrays = {name: value for name, value in columns.items() if isinstance(value, np.ndarray)}
        lists = {name: value for name, value in columns.items() if name not in arrays}
        return arrays, lists | {"images": [asdict(ref) for ref in self.images]}

    @classmethod
    def from_columns(cls, arrays: dict[str, np.ndarray], lists: dict[str, list]) -> PairTable:
        """The inverse of `to_columns`; TypeError if a column is missing."""
        images = [ImageRef(**{**ref, "size": tuple(ref["size"])}) for ref in lists["images"]]
        return cls(**{**arrays, **lists, "images": images})

    def record(self, row: int, images: Sequence[ImageRef]) -> PairRecord:
        """The pair in a row, of `images` in place of the table's own."""
        points = slice(*self.kps_start[row : row + 2])
        src_kps, trg_kps = self.kps[points].swapaxes(0, 1).copy()
        src_bbox, trg_bbox = self.bbox[row].copy()
        src, trg = self.image[row]
        return PairRecord(
            pair_id=self.pair_id[row],
            category=self.category[row],
            src=images[src],
            trg=images[trg],
            src_kps=src_kps,
            trg_kps=trg_kps,
            kps_ids=tuple(self.kps_name[code] for code in self.kps_code[points]),
            src_bbox=src_bbox,
            trg_bbox=trg_bbox,
            flags={name: int(flag) for name, flag in zip(FLAGS, self.flags[row], strict=True) if flag >= 0},
            src_seen=self._seen(src),
            trg_seen=self._seen(trg),
        )

    def _seen(self, image: int) -> Keypoints | None:
        if not self.seen_known[image]:
            return None
        points = slice(*self.seen_start[image : image + 2])
        return Keypoints(tuple(self.kps_name[code] for code in self.seen_code[points]), self.seen[points].copy())


@dataclass
class TableBuilder:
    """Collects images and pairs, refuses the ones no benchmark can have, and turns them into a PairTable.

    threshold_rule, max_kps: of the benchmark. `where` in its methods is the file (and line) to name in an error.
    """

    threshold_rule: str
    max_kps: int
    _images: dict[str, tuple[int, ImageRef]] = field(default_factory=dict)
    seen: list[Keypoints | None] = field(default_factory=list)  # that each image shows, where the annotations say so
    _pairs: list[tuple] = field(default_factory=list)
    _kps_codes: dict[str, int] = field(default_factory=dict)
    _left_out: list[list[str]] = field(default_factory=list)

    def add_image(self, ref: ImageRef, where: str, seen: Keypoints | None = None) -> int:
        """Place of the image, which is added if new; another file or size under its identifier is refused.

        seen: the keypoints that it shows, where the annotations say so.
        """
        place, known = self._images.setdefault(ref.identifier, (len(self._images), ref))
        if seen and len(seen.ids) > self.max_kps:
            raise DatasetError(
                f"{where}: image {ref.identifier} shows {len(seen.ids)} keypoints, more than {self.max_kps}"
            )
        if place == len(self.seen):
            self.seen.append(seen)
        if ref != known:
            raise DatasetError(
                f"{where}: image {ref.identifier} is {ref.path} of size (H, W) = {ref.size}, elsewhere {known.path} "
                f"of {known.size}"
            )
        return place

    def add_pair(
        self,
        pair_id: str,
        category: str,
        images: Sequence[int],  # places of the source and the target
        kps: Sequence[np.ndarray],  # (N, 2) each
        kps_ids: Sequence[str],
        bbox: Sequence[np.ndarray],  # (4,) each
        where: str,
        flags: Sequence[int] = (-1,) * len(FLAGS),
    ) -> None:
        """Adds a pair, or leaves it out if it has no threshold. DatasetError for unequal or too many keypoints."""
        if not len(kps[0]) == len(kps[1]) == len(kps_ids):
            counts = f"{len(kps[0])} in the source, {len(kps[1])} in the target, {len(kps_ids)} names"
            raise DatasetError(f"{where}: keypoint counts differ: {counts}")
        if len(kps_ids) > self.max_kps:
            raise DatasetError(
                f"{where}: {len(kps_ids)} keypoints, but this data set has at most {self.max_kps} per pair"
            )
        if flaw := find_flaw(self.threshold_rule, bbox[self.threshold_rule != "src_bbox"], kps[1]):
            self.leave_out(pair_id, category, f"{where}: {flaw}")
            return
        self._pairs.append((pair_id, category, where, images, bbox, flags, np.stack(kps, axis=1), self._code(kps_ids)))

    def leave_out(self, pair_id: str, category: str, reason: str) -> None:
        """Counts a pair that cannot be judged."""
        self._left_out.append([pair_id, category, reason])

    def _code(self, names: Sequence[str]) -> list[int]:
        return [self._kps_codes.setdefault(name, len(self._kps_codes)) for name in names]

    def build(self) -> PairTable:
        """The table of all. DatasetError for points, and boxes that give thresholds, far outside their image."""
        columns = list(zip(*self._pairs, strict=True)) or [()] * 8
        pair_id, category, where, image, bbox, flags, kps, codes = map(list, columns)
        image, bbox = np.array(image, np.int32).reshape(-1, 2), np.array(bbox).reshape(-1, 2, 4)
        counts, kps = [len(pair) for pair in kps], np.concatenate([np.zeros((0, 2, 2)), *kps])
        codes = list(chain(*codes))
        seen = [keypoints or Keypoints((), np.zeros((0, 2))) for keypoints in self.seen]
        seen_codes = [code for ids, _ in seen for code in self._code(ids)]
        names = list(self._kps_codes)
        images = [ref for _, ref in self._images.values()]

        sizes = np.array([ref.size[::-1] for ref in images]).reshape(-1, 2)[image]  # (P, side, 2), (W, H)
        for point, side in find_outside(kps, np.repeat(sizes, counts, axis=0)):
            pair = np.repeat(np.arange(len(counts)), counts)[point]
            what = f"keypoint {names[codes[point]]} of the {SIDES[side]}"
            raise DatasetError(f"{where[pair]}: {what} is {describe(kps[point, side], sizes[pair, side])}")
        for pair, side in find_outside(bbox, np.tile(sizes, 2)) if self.threshold_rule == "bbox" else ():
            what = f"the box of the {SIDES[side]}"
            raise DatasetError(f"{where[pair]}: {what} is {describe(bbox[pair, side], sizes[pair, side])}")
        return PairTable(
            images=images,
            pair_id=pair_id,
            category=category,
            left_out=self._left_out,
            kps_name=names,
            image=image,
            bbox=bbox.astype(np.float32),
            flags=np.array(flags, np.int8).reshape(-1, len(FLAGS)),
            kps_start=np.cumsum([0, *counts], dtype=np.int64),
            kps=kps.astype(np.float32),
            kps_code=np.array(codes, dtype=np.int32),
            seen_start=np.cumsum([0, *(len(ids) for ids, _ in seen)], dtype=np.int64),
            seen=np.concatenate([np.zeros((0, 2)), *(points for _, points in seen)]).astype(np.float32),
            seen_code=np.array(seen_codes, dtype=np.int32),
            seen_known=np.array([keypoints is not None for keypoints in self.seen], dtype=bool),
        )


def find_outside(values: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(..., 2) places (row, side) of coordinates (n, side, c) that lie too far outside their images' sizes, as many."""
    slack = OUTSIDE[0] + OUTSIDE[1] * sizes
    inside = (values >= -slack) & (values <= sizes + slack)  # nan is not
    return np.argwhere(~inside.all(axis=2))


def describe(values: np.ndarray, size: np.ndarray) -> str:
    """Coordinates and the image that they are not in."""
    return f"({', '.join(f'{value:g}' for value in values)}), outside its image of {size[0]} x {size[1]} px"
