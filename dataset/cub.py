"""CUB-200-2011: birds with 15 parts; every two images of a class are a pair."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path, PurePosixPath

import numpy as np

from dataset.benchmark import Benchmark
from dataset.error import DatasetError
from dataset.parse import is_file_name, measure_image, read_text
from dataset.record import ImageRef
from dataset.table import PairTable, TableBuilder
from utils.progress import progress

PARTS = 15
CLASSES = 3  # the first classes, which LDM_correspondences and those it compares with are judged on
TEXTS = ("images.txt", "train_test_split.txt", "image_class_labels.txt", "classes.txt", "bounding_boxes.txt")


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
        return [*(self.root / name for name in TEXTS), self.root / "parts" / "part_locs.txt"]

    def annotation_folders(self) -> list[Path]:
        return []

    def find_categories(self) -> list[str]:
        """Names of the classes of the split, such as "001.Black_footed_Albatross"."""
        names = sorted(name for number, (name,) in self._read("classes.txt", 2) if self._counts(number))
        if not names:
            raise DatasetError(f"{self.root / 'classes.txt'}: lists no class")
        return names

    def read(self) -> PairTable:
        builder = TableBuilder(self.threshold_rule, self.max_kps)
        paths, classes = self._table("images.txt", 2), self._table("image_class_labels.txt", 2)
        boxes, training = self._numbers("bounding_boxes.txt", 5), self._table("train_test_split.txt", 2)
        names, parts = self._table("classes.txt", 2), self._read_parts()
        wanted = "1" if self.split.startswith("trn") else "0"
        of_class: dict[str, list[str]] = {}
        for number in paths:
            if self._find(training, number, "train_test_split.txt")[0] == wanted:
                of_class.setdefault(self._find(classes, number, "image_class_labels.txt")[0], []).append(number)
        chosen = {label: images for label, images in of_class.items() if self._counts(label)}
        for label, images in progress(chosen.items(), f"indexing {self.name} {self.split}", unit="classes"):
            (category,) = self._find(names, label, "classes.txt")
            places = {image: self._add_image(builder, image, paths[image][0], category) for image in images}
            for pair in combinations(images, 2):
                seen = np.stack([parts.get(image, np.full((PARTS, 2), np.nan)) for image in pair])
                common = np.flatnonzero(~np.isnan(seen).any(axis=(0, 2)))
                boxes_of = [self._find(boxes, image, "bounding_boxes.txt") for image in pair]
                if not len(common):
                    builder.leave_out("-".join(pair), category, "no part is visible in both images")
                    continue
                builder.add_pair(
                    f"{pair[0]}-{pair[1]}:{category}",
                    category,
                    [places[image] for image in pair],
                    kps=list(seen[:, common]),
                    kps_ids=[str(part + 1) for part in common],
                    bbox=[np.array([x, y, x + width, y + height]) for x, y, width, height in boxes_of],
                    where=str(self.root / "images.txt"),
                )
        return builder.build()

    def _add_image(self, builder: TableBuilder, number: str, path: str, category: str) -> int:
        where = f"{self.root / 'images.txt'}, image {number}"
        place = PurePosixPath(path)
        if len(place.parts) != 2 or not all(map(is_file_name, place.parts)) or place.parent.name != category:
            raise DatasetError(f"{where}: {path!r} is not the path of an image of {category}")
        size = measure_image(self.root / "images" / place, where)
        return builder.add_image(ImageRef(place.stem, f"images/{place}", category, size), where)

    def _counts(self, label: str) -> bool:
        return self.split.endswith("_all") or (label.isdigit() and 1 <= int(label) <= CLASSES)

    def _read_parts(self) -> dict[str, np.ndarray]:
        """(PARTS, 2) px of every image, NaN where a part is not visible."""
        found: dict[str, np.ndarray] = {}
        for number, line in self._read("parts/part_locs.txt", 5):
            where = f"{self.root / 'parts' / 'part_locs.txt'}, image {number}"
            part, x, y, visible = _parse_numbers(line, where)
            if not (part.is_integer() and 1 <= part <= PARTS):
                raise DatasetError(f"{where}: part {part:g}, expected 1..{PARTS}")
            if visible:
                found.setdefault(number, np.full((PARTS, 2), np.nan))[int(part) - 1] = x, y
        return found

    def _numbers(self, name: str, width: int) -> dict[str, list[float]]:
        return {key: _parse_numbers(row, f"{self.root / name}, image {key}") for key, row in self._read(name, width)}

    def _table(self, name: str, width: int) -> dict[str, list[str]]:
        rows = list(self._read(name, width))
        if len(table := dict(rows)) < len(rows):
            raise DatasetError(f"{self.root / name}: a number stands there twice")
        return table

    def _read(self, name: str, width: int) -> Iterator[tuple[str, list[str]]]:
        """(first word, the others) of every line of `width` words."""
        for place, line in enumerate(read_text(self.root / name).split("\n"), start=1):
            words = line.split()
            if words and len(words) != width:
                raise DatasetError(f"{self.root / name}, line {place}: {line.strip()!r} has not {width} words")
            if words:
                yield words[0], words[1:]

    def _find(self, table: dict[str, list], number: str, name: str) -> list:
        if number not in table:
            raise DatasetError(f"{self.root / name}: no line for {number}")
        return table[number]


def _parse_numbers(words: list[str], where: str) -> list[float]:
    try:
        values = [float(word) for word in words]
    except ValueError:
        values = [np.nan]
    if not np.isfinite(values).all():
        raise DatasetError(f"{where}: {' '.join(words)!r} are no numbers")
    return values
