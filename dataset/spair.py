"""SPair-71k: one JSON file per pair, listed by layout files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dataset.error import DatasetError, MissingDataError
from dataset.record import Benchmark
from dataset.table import FLAGS, PairTable, TableBuilder

LINE = re.compile(r"[^/]+-[^/]+-[^/]+:([^/:]+)")  # {number}-{source}-{target}:{category}


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
        return sorted({category for path in files for _, _, category in read_layout(path)})

    def read(self) -> PairTable:
        builder = TableBuilder(self.max_kps)
        layout = self._layout_file(self.split)
        for number, line, category in read_layout(layout):
            path = self.root / "PairAnnotation" / self.split / f"{line}.json"
            try:
                annotation = PairAnnotation(path)
            except FileNotFoundError:
                raise MissingDataError(f"{path}: no such file (line {number} of {layout})") from None
            annotation.expect("category", category)
            add_annotation(builder, line, category, annotation)
        return builder.build()

    def _layout_file(self, split: str) -> Path:
        return self.root / "Layout" / "large" / f"{split}.txt"


def read_layout(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line number from 1, line, category) of every line that is not empty; DatasetError names a bad line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: not UTF-8 text ({error})") from None
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line:
            continue
        match = LINE.fullmatch(line)
        if match is None:
            raise DatasetError(
                f"{path}, line {number}: {line!r} is not of the form 000001-2008_002719-2008_004100:aeroplane"
            )
        yield number, line, match[1]


def add_annotation(builder: TableBuilder, pair_id: str, category: str, annotation: PairAnnotation) -> None:
    """Adds the pair of one annotation file and its two images."""
    images = []
    for side in ("src", "trg"):
        name = annotation.text(f"{side}_imname")
        images.append(
            builder.add_image(
                identifier=f"{category}-{Path(name).stem}",
                path=f"JPEGImages/{category}/{name}",
                category=category,
                size=annotation.size(f"{side}_imsize"),
                flip=False,
                where=str(annotation.path),
            )
        )
    builder.add_pair(
        pair_id,
        images=(images[0], images[1]),
        kps=(annotation.points("src_kps"), annotation.points("trg_kps")),
        kps_ids=annotation.names("kps_ids"),
        bbox=(annotation.box("src_bndbox"), annotation.box("trg_bndbox")),
        where=str(annotation.path),
        flags=[annotation.flag(name) for name in FLAGS],
    )


class PairAnnotation:
    """One JSON file of a pair; its methods name file, key and value when they find something else."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with open(path, "rb") as file:
            content = file.read()
        try:
            self._data = json.loads(content)
        except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
            raise DatasetError(f"{path}: not valid JSON ({error})") from None
        if not isinstance(self._data, dict):
            raise DatasetError(f"{path}: holds a {type(self._data).__name__}, expected an object with the pair's keys")

    def expect(self, key: str, value: str) -> None:
        """Refuses another value than the one the layout line promises."""
        if self.text(key) != value:
            raise DatasetError(f"{self.path}: key {key!r} is {self._data[key]!r}, but its layout line says {value!r}")

    def text(self, key: str) -> str:
        value = self._get(key)
        if not isinstance(value, str) or not value:
            raise self._wrong(key, "a text")
        return value

    def names(self, key: str) -> list[str]:
        value = self._get(key)
        if not isinstance(value, list) or not all(isinstance(name, (str, int)) for name in value):
            raise self._wrong(key, 'a list of names such as ["0", "7"]')
        return [str(name) for name in value]

    def size(self, key: str) -> tuple[int, int]:
        """(H, W) from the file's [W, H, channels]."""
        numbers = self._numbers(key)
        if numbers is None or numbers.ndim != 1 or len(numbers) not in (2, 3) or not (numbers[:2] >= 1).all():
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
        if not isinstance(value, int) or not -1 <= value <= 127:
            raise self._wrong(key, "a small whole number")
        return int(value)

    def _get(self, key: str) -> Any:
        try:
            return self._data[key]
        except KeyError:
            raise DatasetError(f"{self.path}: key {key!r} is missing") from None

    def _numbers(self, key: str) -> np.ndarray | None:
        """The value as a finite float array, None if it is none."""
        value = self._get(key)
        try:
            numbers = np.asarray(value)
        except ValueError:  # rows of unequal length
            return None
        if numbers.dtype.kind not in "iuf" or not np.isfinite(numbers).all():
            return None
        return numbers.astype(np.float64)

    def _wrong(self, key: str, expected: str) -> DatasetError:
        shown = repr(self._data[key])
        shown = shown if len(shown) <= 80 else f"{shown[:80]}..."
        return DatasetError(f"{self.path}: key {key!r} is {shown}, expected {expected}")
