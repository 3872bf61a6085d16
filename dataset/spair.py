"""SPair-71k: one JSON file per pair, listed by layout files."""

from __future__ import annotations

import json
import os
import re
import reprlib
from pathlib import Path
from typing import Any

import numpy as np

from dataset.benchmark import Benchmark, list_names
from dataset.error import DatasetError, MissingDataError
from dataset.parse import is_file_name, read_text
from dataset.record import FLAGS, ImageRef
from dataset.table import PairTable, TableBuilder
from utils.progress import progress

LINE = re.compile(r"[^/\\]+-[^/\\]+-[^/\\]+:(?!\.+$)([^/\\:]+)")  # {number}-{source}-{target}:{category}
LONGEST_SIDE = 100_000  # px


class SPair(Benchmark):
    """SPair-71k (Min et al., 2019): box-relative threshold, up to 30 keypoints, difficulty flags."""

    name = "spair"
    FOLDER = "SPair-71k"
    LAYOUT = """\
SPair-71k/
  Layout/large/{trn,val,test}.txt            a line per pair: 000001-2008_002719-2008_004100:aeroplane
  PairAnnotation/{trn,val,test}/{line}.json  keypoints, boxes and sizes of the pair
  JPEGImages/{category}/{image}.jpg"""
    threshold_rule = "bbox"
    max_kps = 30

    def split_files(self) -> list[Path]:
        return [self._layout_file(self.split)]

    def annotation_folders(self) -> list[Path]:
        return [self.root / "PairAnnotation" / self.split]

    def find_categories(self) -> list[str]:
        """Sorted categories of all layout files there are, so that every split counts them alike."""
        files = [path for path in map(self._layout_file, self.SPLITS) if path.is_file()]
        return sorted({category for path in files for category in read_layout(path).values()})

    def read(self) -> PairTable:
        builder = TableBuilder(self.threshold_rule, self.max_kps)
        lines = read_layout(self._layout_file(self.split))
        (folder,) = map(str, self.annotation_folders())
        names = list_names(folder)
        for line, category in progress(lines.items(), f"indexing {self.name} {self.split}", unit="pairs"):
            name = f"{line}.json"
            if name not in names and name.replace(":", "_") in names:  # disks of Windows have no colons
                name = name.replace(":", "_")
            annotation = PairAnnotation(f"{folder}/{name}")
            annotation.expect("category", category)
            add_annotation(builder, line, category, annotation)
        return builder.build()

    def _layout_file(self, split: str) -> Path:
        return self.root / "Layout" / "large" / f"{split}.txt"


def read_layout(path: Path) -> dict[str, str]:
    """{line: category} of every line that is not empty; DatasetError names a bad or repeated line."""
    found: dict[str, tuple[int, str]] = {}
    for number, line in enumerate(map(str.strip, read_text(path).split("\n")), start=1):
        if not line:
            continue
        match = LINE.fullmatch(line)
        if match is None or not line.isprintable():
            raise DatasetError(
                f"{path}, line {number}: {line!r} is not of the form 000001-2008_002719-2008_004100:aeroplane"
            )
        if line in found:
            raise DatasetError(f"{path}, line {number}: {line!r} stands in line {found[line][0]} already")
        found[line] = number, match[1]
    return {line: category for line, (_, category) in found.items()}


def add_annotation(builder: TableBuilder, pair_id: str, category: str, annotation: PairAnnotation) -> None:
    """Adds the pair of one annotation file and its two images."""
    where, images = annotation.path, []
    for side in ("src", "trg"):
        name = annotation.file_name(f"{side}_imname")
        path, size = f"JPEGImages/{category}/{name}", annotation.size(f"{side}_imsize")
        images.append(
            builder.add_image(ImageRef(f"{category}-{os.path.splitext(name)[0]}", path, category, size), where)
        )
    builder.add_pair(
        pair_id,
        category,
        images,
        kps=(annotation.points("src_kps"), annotation.points("trg_kps")),
        kps_ids=annotation.names("kps_ids"),
        bbox=(annotation.box("src_bndbox"), annotation.box("trg_bndbox")),
        where=where,
        flags=[annotation.flag(name) for name in FLAGS],
    )


class PairAnnotation:
    """One JSON file of a pair; its methods name file, key and value when they find something else."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._data = json.loads(read_text(path))
        except FileNotFoundError:
            raise MissingDataError(f"{path}: no such file, but the layout lists it") from None
        except (RecursionError, ValueError) as error:
            if isinstance(error, DatasetError):
                raise
            raise DatasetError(f"{path}: not valid JSON ({error})") from None
        if not isinstance(self._data, dict):
            raise DatasetError(f"{path}: holds a {type(self._data).__name__}, expected an object with the pair's keys")

    def expect(self, key: str, value: str) -> None:
        """Refuses another value than the one the layout line promises."""
        if self._get(key) != value:
            raise self._wrong(key, f"{value!r} as its layout line says")

    def file_name(self, key: str) -> str:
        value = self._get(key)
        if not isinstance(value, str) or not is_file_name(value):
            raise self._wrong(key, "the name of an image file, without a folder")
        return value

    def names(self, key: str) -> list[str]:
        value = self._get(key)
        if not isinstance(value, list) or not all(isinstance(name, (str, int)) for name in value):
            raise self._wrong(key, 'a list of names such as ["0", "7"]')
        return [str(name) for name in value]

    def size(self, key: str) -> tuple[int, int]:
        """(H, W) from the file's [W, H, channels]."""
        numbers = self._numbers(key)
        fits = numbers is not None and numbers.shape in ((2,), (3,))
        if not fits or not all(1 <= side <= LONGEST_SIDE and side.is_integer() for side in numbers[:2].tolist()):
            raise self._wrong(key, "[width, height, channels] in pixels")
        return int(numbers[1]), int(numbers[0])

    def points(self, key: str) -> np.ndarray:
        """(N, 2) float."""
        numbers = self._numbers(key)
        if numbers is not None and numbers.size == 0:
            return np.zeros((0, 2))
        if numbers is None or numbers.ndim != 2 or numbers.shape[1] != 2:
            raise self._wrong(key, "a list of [x, y] points")
        return numbers

    def box(self, key: str) -> np.ndarray:
        """(4,) float."""
        numbers = self._numbers(key)
        if numbers is None or numbers.shape != (4,):
            raise self._wrong(key, "[x1, y1, x2, y2]")
        return numbers

    def flag(self, key: str) -> int:
        """-1 if the file does not say."""
        value = self._data.get(key, -1)
        if type(value) is not int or not -1 <= value <= 127:
            raise self._wrong(key, "a small whole number")
        return value

    def _get(self, key: str) -> Any:
        try:
            return self._data[key]
        except KeyError:
            raise DatasetError(f"{self.path}: key {key!r} is missing") from None

    def _numbers(self, key: str) -> np.ndarray | None:
        """The value as a finite float array, None if it is none."""
        value = self._get(key)
        try:
            numbers = np.array(value)
        except ValueError:  # rows of unequal length, too deep
            return None
        if numbers.dtype.kind not in "iuf" or not np.isfinite(numbers).all():
            return None
        return numbers.astype(np.float64)

    def _wrong(self, key: str, expected: str) -> DatasetError:
        return DatasetError(f"{self.path}: key {key!r} is {reprlib.repr(self._data[key])}, expected {expected}")
