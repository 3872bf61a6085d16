"""PF-WILLOW: pairs with ten keypoints each, all in one CSV file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from dataset.error import DatasetError
from dataset.pair_list import CsvRow, read_csv, read_size
from dataset.record import Benchmark
from dataset.table import PairTable, TableBuilder

POINTS = 10
COLUMNS = {side: [f"{axis}{side}{n}" for axis in "XY" for n in range(1, POINTS + 1)] for side in "AB"}  # XA1 .. YB10


class PFWillow(Benchmark):
    """PF-WILLOW (Ham et al., 2016), a test set: threshold relative to the tight box of the target's points.

    There are no annotated boxes: `src_bbox` and `trg_bbox` are the tight boxes around the keypoints.
    """

    name = "pfwillow"
    FOLDER = "pf-willow"
    SPLITS = ("test",)
    LAYOUT = """\
pf-willow/
  test_pairs.csv                  imageA,imageB,XA1..XA10,YA1..YA10,XB1..XB10,YB1..YB10
  PF-dataset/{class}/{image}.png  classes such as car(G)"""
    threshold_rule = "kps"
    max_kps = POINTS

    def split_files(self) -> list[Path]:
        return [self.root / "test_pairs.csv"]

    def annotation_folders(self) -> list[Path]:
        return [self.root / "PF-dataset"]

    def find_categories(self) -> list[str]:
        """Folders of the images in the pair list, sorted."""
        _, rows = self._read_csv()
        return sorted({row.image_path(column).parent.name for row in rows for column in ("imageA", "imageB")})

    def read(self) -> PairTable:
        builder = TableBuilder(self.max_kps)
        header, rows = self._read_csv()
        extra = [name for name in header if re.fullmatch(r"[XY][AB]\d+", name) and int(name[2:]) > POINTS]
        if extra:
            file = self.split_files()[0]
            raise DatasetError(f"{file}: column {', '.join(extra)}: a pair has at most {POINTS} keypoints here")
        sizes: dict[PurePosixPath, tuple[int, int]] = {}
        for number, row in enumerate(rows, start=1):
            paths = [row.image_path(column) for column in ("imageA", "imageB")]
            for path in paths:
                if path not in sizes:
                    sizes[path] = read_size(self.root / path, row.where)
            add_row(builder, number, row, paths, [sizes[path] for path in paths])
        return builder.build()

    def _read_csv(self) -> tuple[list[str], Iterator[CsvRow]]:
        return read_csv(self.split_files()[0], ("imageA", "imageB", *COLUMNS["A"], *COLUMNS["B"]))


def add_row(
    builder: TableBuilder, number: int, row: CsvRow, paths: list[PurePosixPath], sizes: list[tuple[int, int]]
) -> None:
    """Adds pair `number` of the list and its images (source, target)."""
    images = [
        builder.add_image(f"{path.parent.name}-{path.stem}", str(path), path.parent.name, size, False, row.where)
        for path, size in zip(paths, sizes, strict=True)
    ]
    src_kps, trg_kps, kps_ids = common_points(row)
    builder.add_pair(
        f"{number:06d}-{paths[0].stem}-{paths[1].stem}:{paths[0].parent.name}",
        images=(images[0], images[1]),
        kps=(src_kps, trg_kps),
        kps_ids=kps_ids,
        bbox=(tight_box(src_kps), tight_box(trg_kps)),
        where=row.where,
    )


def common_points(row: CsvRow) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Keypoints (N, 2) present in both images and their numbers 1..10 as in the column names."""
    src, trg = (np.array(row.numbers(COLUMNS[side])).reshape(2, POINTS).T for side in "AB")
    common = np.flatnonzero(np.isfinite(src).all(1) & np.isfinite(trg).all(1))
    if len(common) == 0:
        raise DatasetError(f"{row.where}: no keypoint is present in both images (columns XA1..YB{POINTS})")
    return src[common], trg[common], [str(point + 1) for point in common]


def tight_box(kps: np.ndarray) -> np.ndarray:
    """(4,) x1 y1 x2 y2 of points (N, 2)."""
    return np.concatenate([kps.min(axis=0), kps.max(axis=0)])
