"""CUB-200-2011: birds with 15 parts; every two images of a class are a pair."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np

from dataset.benchmark import Benchmark
from dataset.error import DatasetError
from dataset.parse import Fields, measure_image, read_lines
from dataset.record import ImageRef
from dataset.table import PairTable, TableBuilder
from utils.progress import progress

PARTS = 15
CLASSES = 3  # the first classes, which LDM_correspondences and those it compares with are judged on
TABLES = {  # the words of a line of each file
    "images.txt": ("id", "path"),
    "image_class_labels.txt": ("id", "class"),
    "classes.txt": ("id", "name"),
    "train_test_split.txt": ("id", "training"),
    "bounding_boxes.txt": ("id", "x", "y", "width", "height"),
    "parts/part_locs.txt": ("id", "part", "x", "y", "visible"),
}


class CUB(Benchmark):
    """CUB-200-2011 (Wah et al., 2011): box-relative threshold, parts visible in both images, in the order of parts.

    Pairs are the combinations of two images of a class in the order of images.txt, the first being the source; of
    classes 1 to 3 ("trn", "test") or of all 200 ("trn_all", "test_all"). Those without a common part are left out.
    """

    name = "cub"
    FOLDER = "CUB_200_2011"
    SPLITS = ("trn", "test", "trn_all", "test_all")
    LAYOUT = """\
CUB_200_2011/
  images.txt, classes.txt              id path; id name
  image_class_labels.txt               id class
  train_test_split.txt                 id 1 (training) or 0
  bounding_boxes.txt                   id x y width height
  parts/part_locs.txt                  id part x y visible
  images/{class}/{image}.jpg"""
    threshold_rule = "bbox"
    max_kps = PARTS

    def split_files(self) -> list[Path]:
        return [self.root / name for name in TABLES]

    def annotation_folders(self) -> list[Path]:
        return []

    def find_categories(self) -> list[str]:
        """Names of the classes of the split, such as "001.Black_footed_Albatross"."""
        names = sorted(row.get("name") for row in self._rows_of("classes.txt") if self._counts(row.get("id")))
        if not names:
            raise DatasetError(f"{self.root / 'classes.txt'}: lists no class")
        return names

    def read(self) -> PairTable:
        builder = TableBuilder(self.threshold_rule, self.max_kps)
        paths, classes, names, training, boxes = map(self._by_id, list(TABLES)[:5])
        wanted, parts = "1" if self.split.startswith("trn") else "0", self._read_parts()
        of_class: dict[str, list[str]] = {}
        for number in paths.values:
            label = classes.get(number).get("class")
            if training.get(number).get("training") == wanted and self._counts(label):
                of_class.setdefault(label, []).append(number)
        for label, images in progress(of_class.items(), f"indexing {self.name} {self.split}", unit="classes"):
            category = names.get(label).get("name")
            places = {image: self._add_image(builder, paths.get(image), category) for image in images}
            for pair in combinations(images, 2):
                seen = np.stack([parts.get(image, np.full((PARTS, 2), np.nan)) for image in pair])
                common = np.flatnonzero(~np.isnan(seen).any(axis=(0, 2)))
                if not len(common):
                    builder.leave_out("-".join(pair), category, "no part is visible in both images")
                    continue
                builder.add_pair(
                    f"{pair[0]}-{pair[1]}:{category}",
                    category,
                    [places[image] for image in pair],
                    kps=list(seen[:, common]),
                    kps_ids=[str(part + 1) for part in common],
                    bbox=[read_box(boxes.get(image)) for image in pair],
                    where=paths.where,
                )
        return builder.build()

    def _add_image(self, builder: TableBuilder, row: Fields, category: str) -> int:
        place = row.path("path")
        if place.parent.as_posix() != category:
            raise row.wrong("path", f"the path of an image of {category}")
        size = measure_image(self.root / "images" / place, row.where)
        return builder.add_image(ImageRef(place.stem, f"images/{place}", category, size), row.where)

    def _counts(self, label: str) -> bool:
        return self.split.endswith("_all") or (label.isdigit() and 1 <= int(label) <= CLASSES)

    def _read_parts(self) -> dict[str, np.ndarray]:
        """(PARTS, 2) px of every image, NaN where a part is not visible."""
        found: dict[str, np.ndarray] = {}
        for row in self._rows_of("parts/part_locs.txt"):
            part = row.whole("part", 1, PARTS)
            if row.whole("visible", 0, 1):
                point = row.number("x"), row.number("y")
                found.setdefault(row.get("id"), np.full((PARTS, 2), np.nan))[part - 1] = point
        return found

    def _by_id(self, name: str) -> Fields:
        """The lines of a file by the id that each begins with."""
        rows = self._rows_of(name)
        table = Fields(str(self.root / name), {row.get("id"): row for row in rows})
        if len(table.values) < len(rows):
            raise DatasetError(f"{table.where}: an id stands there twice")
        return table

    def _rows_of(self, name: str) -> list[Fields]:
        rows = []
        for where, line in read_lines(self.root / name):
            words = line.split()
            if len(words) != len(TABLES[name]):
                raise DatasetError(f"{where}: {line!r} has not {len(TABLES[name])} words")
            rows.append(Fields(where, dict(zip(TABLES[name], words, strict=True))))
        return rows


def read_box(row: Fields) -> np.ndarray:
    """(4,) x1 y1 x2 y2."""
    x, y, width, height = (row.number(name) for name in ("x", "y", "width", "height"))
    return np.array([x, y, x + width, y + height])
