"""PF-PASCAL: pairs in CSV files, keypoints and box of an image in a MAT file."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from dataset.benchmark import Benchmark
from dataset.error import DatasetError, MissingDataError
from dataset.parse import Fields, measure_image, read_csv, refuse_marks
from dataset.record import ImageRef, mirror_bbox, mirror_kps
from dataset.table import PairTable, TableBuilder
from utils.progress import progress

# class 1..20 of the pair lists
PASCAL_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
COLUMNS = ("source_image", "target_image", "class")
ALIASES = {"trn_pairs.csv": "train_pairs.csv"}  # the pair lists of NCNet
_MATRIX, _COMPRESSED = 14, 15
_MAT_TYPES = {*range(1, 8), 9, *range(12, 19)}  # of elements of a MAT file, version 5


@dataclass(frozen=True)
class AnnotatedImage:
    """An image of the data set as its files describe it, not mirrored."""

    path: PurePosixPath  # below the root
    size: tuple[int, int]  # (H, W)
    kps: np.ndarray  # (N, 2), NaN where absent
    bbox: np.ndarray  # (4,)


class PFPascal(Benchmark):
    """PF-PASCAL (Ham et al., 2017): image-relative threshold, up to 20 keypoints, mirrored pairs in training.

    Keypoints are those present in both images; `kps_ids` are their rows in the MAT files.
    """

    name = "pfpascal"
    FOLDER = "pf-pascal"
    LAYOUT = """\
pf-pascal/
  {trn,val,test}_pairs.csv                           source_image,target_image,class[,flip or ,XA,YA,XB,YB]
  PF-dataset-PASCAL/JPEGImages/{image}.jpg
  PF-dataset-PASCAL/Annotations/{class}/{image}.mat  kps (N x 2, NaN = absent), bbox (1 x 4)"""
    threshold_rule = "image"
    max_kps = 20

    def split_files(self) -> list[Path]:
        path = self.root / f"{self.split}_pairs.csv"
        other = path.with_name(ALIASES.get(path.name, path.name))
        return [path if path.exists() or not other.exists() else other]

    def annotation_folders(self) -> list[Path]:
        folder = self.root / "PF-dataset-PASCAL"
        return [folder / "Annotations", folder / "JPEGImages"]

    def find_categories(self) -> tuple[str, ...]:
        return PASCAL_CLASSES

    def read(self) -> PairTable:
        builder = TableBuilder(self.threshold_rule, self.max_kps)
        rows = read_csv(self.split_files()[0], COLUMNS, optional=("flip", "XA", "YA", "XB", "YB"))
        known: dict[tuple[PurePosixPath, str], AnnotatedImage] = {}
        for number, row in enumerate(progress(rows, f"indexing {self.name} {self.split}", unit="pairs"), start=1):
            category = PASCAL_CLASSES[row.whole("class", 1, len(PASCAL_CLASSES)) - 1]
            flip = self.split == "trn" and "flip" in row.values and row.whole("flip", 0, 1) == 1
            keys = [(row.path(column), category) for column in COLUMNS[:2]]
            for key in keys:
                if key not in known:
                    known[key] = self._load_image(*key, row.where)
            add_row(builder, number, row, category, flip, [known[key] for key in keys])
        return builder.build()

    def _load_image(self, path: PurePosixPath, category: str, where: str) -> AnnotatedImage:
        mat = self.root / "PF-dataset-PASCAL" / "Annotations" / category / f"{path.stem}.mat"
        return AnnotatedImage(path, measure_image(self.root / path, where), *read_mat(mat, where))


def add_row(
    builder: TableBuilder, number: int, row: Fields, category: str, flip: bool, sides: list[AnnotatedImage]
) -> None:
    """Adds pair `number` of the list and its images (source, target), mirrored if `flip`."""
    stems = [side.path.stem for side in sides]
    refs = [
        ImageRef(f"{category}-{side.path.stem}-{flip:d}", str(side.path), category, side.size, flip) for side in sides
    ]
    if len(sides[0].kps) != len(sides[1].kps):
        counts = f"{len(sides[0].kps)} in {stems[0]}.mat, {len(sides[1].kps)} in {stems[1]}.mat"
        raise DatasetError(f"{row.where}: keypoint counts differ: {counts} of class {category}")
    common = np.flatnonzero(np.isfinite(sides[0].kps).all(1) & np.isfinite(sides[1].kps).all(1))
    kps = [side.kps[common] for side in sides]
    bbox = [side.bbox for side in sides]
    if flip:
        kps = [mirror_kps(points, side.size[1]) for points, side in zip(kps, sides, strict=True)]
        bbox = [mirror_bbox(box, side.size[1]) for box, side in zip(bbox, sides, strict=True)]
    builder.add_pair(
        f"{number:06d}-{stems[0]}-{stems[1]}-{flip:d}:{category}",
        category,
        images=[builder.add_image(ref, row.where) for ref in refs],
        kps=kps,
        kps_ids=[str(point) for point in common],
        bbox=bbox,
        where=row.where,
    )


def read_mat(path: Path, where: str) -> tuple[np.ndarray, np.ndarray]:
    """kps (N, 2), NaN where absent, and bbox (4,) of a MAT file."""
    from scipy.io import loadmat

    try:
        data = path.read_bytes()
        _require_known_types(data)
        content = loadmat(io.BytesIO(data), variable_names=("kps", "bbox"))
    except FileNotFoundError:
        raise MissingDataError(f"{path}: no such file ({where})") from None
    except Exception as error:  # scipy raises whatever the damaged bytes lead it to
        raise DatasetError(f"{path}: not a readable MAT file ({error}; {where})") from error
    values = {key: np.ravel(value) if key == "bbox" else value for key, value in content.items()}
    fields = Fields(f"{path} ({where})", values)
    kps = fields.array("kps", (None, 2), "an array (N, 2) of numbers", nan=True)
    refuse_marks(kps, str(path), range(len(kps)), "NaN")
    return kps, fields.array("bbox", (4,), "an array (1, 4) of numbers")


def _require_known_types(data: bytes) -> None:
    """ValueError if an element of a MAT file is of no type that the format has: scipy would end the process."""
    if (order := {b"\x00\x01IM": "<", b"\x01\x00MI": ">"}.get(data[124:128])) is None:
        return  # another version of the format
    pending = [data[128:]]
    while pending:
        part, place = pending.pop(), 0
        while place + 8 <= len(part):
            kind, size = struct.unpack_from(f"{order}II", part, place)
            if kind >> 16:  # a small element: its size beside its type, its value in the same 8 bytes
                kind, step = kind & 0xFFFF, 8
            else:
                step = 8 + size if kind == _COMPRESSED else 8 + -(-size // 8) * 8
            if kind not in _MAT_TYPES:
                raise ValueError(f"element of the unknown type {kind}")
            if kind in (_MATRIX, _COMPRESSED):
                inner = part[place + 8 : place + step]
                pending.append(inner if kind == _MATRIX else zlib.decompress(inner))
            place += step
