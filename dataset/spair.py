"""SPair-71k: one JSON file per pair, listed by layout files."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from dataset.benchmark import Benchmark, list_names
from dataset.error import DatasetError, MissingDataError
from dataset.parse import Fields, read_text
from dataset.record import FLAGS, ImageRef, Keypoints
from dataset.symmetry import SPAIR
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
  ImageAnnotation/{category}/{image}.json    all keypoints and the azimuth of an image (optional)
  JPEGImages/{category}/{image}.jpg"""
    threshold_rule = "bbox"
    max_kps = 30
    SYMMETRIES = SPAIR
    IMAGE_FOLDER = "ImageAnnotation"

    def split_files(self) -> list[Path]:
        return [self._layout_file(self.split)]

    def annotation_folders(self) -> list[Path]:
        images = self.root / self.IMAGE_FOLDER
        return [self.root / "PairAnnotation" / self.split, *([images] if images.is_dir() else [])]

    def find_categories(self) -> list[str]:
        """Sorted categories of all layout files there are, so that every split counts them alike."""
        files = [path for path in map(self._layout_file, self.SPLITS) if path.is_file()]
        return sorted({category for path in files for category in read_layout(path).values()})

    def read(self) -> PairTable:
        builder = TableBuilder(self.threshold_rule, self.max_kps)
        lines = read_layout(self._layout_file(self.split))
        folder, *images = map(str, self.annotation_folders())
        seen = SeenImages(*images)
        names = list_names(folder)
        for line, category in progress(lines.items(), f"indexing {self.name} {self.split}", unit="pairs"):
            name = f"{line}.json"
            if name not in names and name.replace(":", "_") in names:  # disks of Windows have no colons
                name = name.replace(":", "_")
            add_annotation(builder, line, category, read_annotation(f"{folder}/{name}"), seen)
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


class SeenImages:
    """What single images show, of the folder ImageAnnotation; without the folder nothing is known."""

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder
        self._known: dict[tuple[str, str], tuple[Keypoints | None, int]] = {}

    def read(self, category: str, image: str) -> tuple[Keypoints | None, int]:
        """Keypoints and azimuth id (-1: not said) of an image, named without suffix."""
        if self.folder is None:
            return None, -1
        if (category, image) not in self._known:
            fields = read_annotation(f"{self.folder}/{category}/{image}.json")
            self._known[category, image] = read_seen(fields), fields.whole("azimuth_id", -1, 7)
        return self._known[category, image]


def read_seen(fields: Fields) -> Keypoints:
    """The keypoints of an image's annotation, {id: [x, y] or null}."""
    kps = fields.get("kps")
    if not isinstance(kps, dict):
        raise fields.wrong("kps", 'an object {"0": [x, y] or null, ...}')
    seen = {name: point for name, point in kps.items() if point is not None}
    points = Fields(fields.where, {"kps": list(seen.values())}).array("kps", (None, 2), "[x, y] or null for each id")
    return Keypoints(tuple(seen), points)


def read_annotation(path: str) -> Fields:
    """The JSON file of a pair, or of an image."""
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise MissingDataError(f"{path}: no such file, but the layout lists it") from None
    try:
        data = json.loads(text)
    except (RecursionError, ValueError) as error:
        raise DatasetError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(data, dict):
        raise DatasetError(f"{path}: holds a {type(data).__name__}, expected an object with the pair's keys")
    return Fields(path, dict.fromkeys((*FLAGS, "azimuth_id"), -1) | data)


def add_annotation(builder: TableBuilder, pair_id: str, category: str, pair: Fields, images_seen: SeenImages) -> None:
    """Adds the pair of one annotation file and its two images."""
    if pair.get("category") != category:
        raise pair.wrong("category", f"{category!r} as its layout line says")
    images = []
    for side in ("src", "trg"):
        name = pair.file_name(f"{side}_imname")
        stem, path = os.path.splitext(name)[0], f"JPEGImages/{category}/{name}"
        seen, azimuth = images_seen.read(category, stem)
        size = read_size(pair, f"{side}_imsize")
        ref = ImageRef(f"{category}-{stem}", path, category, size, azimuth=azimuth)
        images.append(builder.add_image(ref, pair.where, seen))
    names = pair.get("kps_ids")
    if not isinstance(names, list) or not all(isinstance(name, (str, int)) for name in names):
        raise pair.wrong("kps_ids", 'a list of names such as ["0", "7"]')
    builder.add_pair(
        pair_id,
        category,
        images,
        kps=[pair.array(f"{side}_kps", (None, 2), "a list of [x, y] points") for side in ("src", "trg")],
        kps_ids=list(map(str, names)),
        bbox=[pair.array(f"{side}_bndbox", (4,), "[x1, y1, x2, y2]") for side in ("src", "trg")],
        where=pair.where,
        flags=[pair.whole(name, -1, 127) for name in FLAGS],
    )


def read_size(pair: Fields, key: str) -> tuple[int, int]:
    """(H, W) from the file's [W, H, channels]."""
    expected = "[width, height, channels] in pixels"
    width, height, *_ = pair.array(key, (None,), expected).tolist() + [0, 0]
    if not all(1 <= side <= LONGEST_SIDE and side.is_integer() for side in (width, height)):
        raise pair.wrong(key, expected)
    return int(height), int(width)
