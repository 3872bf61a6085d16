"""PF-WILLOW: pairs with ten keypoints each, all in one CSV file."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np

from dataset.benchmark import Benchmark
from dataset.parse import Fields, measure_image, read_csv, refuse_marks
from dataset.record import ImageRef
from dataset.table import PairTable, TableBuilder
from utils.progress import progress

POINTS = 10
IMAGES = ("imageA", "imageB")
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
        return sorted({row.path(column).parent.name for row in self._read_rows() for column in IMAGES})

    def read(self) -> PairTable:
        builder = TableBuilder(self.threshold_rule, self.max_kps)
        sizes: dict[PurePosixPath, tuple[int, int]] = {}
        for number, row in enumerate(progress(self._read_rows(), f"indexing {self.name}", unit="pairs"), start=1):
            paths = [row.path(column) for column in IMAGES]
            for path in paths:
                if path not in sizes:
                    sizes[path] = measure_image(self.root / path, row.where)
            add_row(builder, number, row, paths, [sizes[path] for path in paths])
        return builder.build()

    def _read_rows(self) -> list[Fields]:
        return read_csv(self.split_files()[0], (*IMAGES, *COLUMNS["A"], *COLUMNS["B"]))


def add_row(
    builder: TableBuilder, number: int, row: Fields, paths: list[PurePosixPath], sizes: list[tuple[int, int]]
) -> None:
    """Adds pair `number` of the list and its images (source, target)."""
    categories = [path.parent.name for path in paths]
    refs = [
        ImageRef(f"{category}-{path.stem}", str(path), category, size)
        for category, path, size in zip(categories, paths, sizes, strict=True)
    ]
    kps, kps_ids = common_points(row)
    builder.add_pair(
        f"{number:06d}-{paths[0].stem}-{paths[1].stem}:{categories[0]}",
        categories[0],
        images=[builder.add_image(ref, row.where) for ref in refs],
        kps=kps,
        kps_ids=kps_ids,
        bbox=[tight_box(points) for points in kps],
        where=row.where,
    )


def common_points(row: Fields) -> tuple[np.ndarray, list[str]]:
    """Keypoints (source and target, N, 2) present in both images and their numbers 1..10 as in the column names."""
    kps = (
        np.array([[row.number(column) for column in COLUMNS[side]] for side in "AB"])
        .reshape(2, 2, POINTS)
        .swapaxes(1, 2)
    )
    for side, points in zip("AB", kps, strict=True):
        refuse_marks(points, row.where, (f"{side}{n}" for n in range(1, POINTS + 1)), "an empty cell")
    common = np.flatnonzero(~np.isnan(kps).any(axis=(0, 2)))
    return kps[:, common], [str(point + 1) for point in common]


def tight_box(kps: np.ndarray) -> np.ndarray:
    """(4,) x1 y1 x2 y2 of points (N, 2); zeros of none."""
    return np.concatenate([kps.min(axis=0), kps.max(axis=0)]) if len(kps) else np.zeros(4)
