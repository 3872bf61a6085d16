"""SPair-71k: one JSON file per pair, listed by layout files."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np

from dataset.benchmark import Benchmark
from dataset.error import DatasetError, MissingDataError
from dataset.parse import LONGEST_SIDE, Fields, read_names, read_record
from dataset.record import FLAGS, ImageRef, Keypoints
from dataset.split import list_names
from dataset.symmetry import SPAIR, Symmetry
from dataset.table import PairTable, TableBuilder
from utils.progress import progress

LINE = re.compile(r"[^/\\]+-[^/\\]+-[^/\\]+:(?!\.+$)([^/\\:]+)")  # {number}-{source}-{target}:{category}
EXTRA = "ExtraPairAnnotation"
logger = logging.getLogger(__name__)


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
    folders = ("PairAnnotation", "ImageAnnotation", "JPEGImages")  # below the root

    def split_files(self) -> list[Path]:
        return [self._layout_file(self.split)]

    def annotation_folders(self) -> list[Path]:
        pairs, images, _ = self.folders
        known = (self.root / images).is_dir()
        return [self.root / pairs / self.split, *([self.root / images] if known else [])]

    def find_categories(self) -> list[str]:
        """Sorted categories of all layout files there are, so that every split counts them alike."""
        files = [path for path in map(self._layout_file, self.SPLITS) if path.is_file()]
        return sorted({category for path in files for category in read_layout(path).values()})

    def list_lines(self) -> dict[str, str]:
        """{line: category} of the split."""
        return read_layout(self._layout_file(self.split))

    def read(self) -> PairTable:
        builder = TableBuilder(self.threshold_rule, self.max_kps)
        folder, *images = self.annotation_folders()
        names, describe = list_names(folder), cache(partial(read_image, *images))
        for line, category in progress(self.list_lines().items(), f"indexing {self.name} {self.split}", unit="pairs"):
            name = f"{line}.json"
            if name not in names and name.replace(":", "_") in names:  # disks of Windows have no colons
                name = name.replace(":", "_")
            pair = read_record(f"{folder}/{name}", dict.fromkeys(FLAGS, -1))
            if pair.get("category") != category:
                raise pair.wrong("category", f"{category!r} as its layout line says")
            places = [self._add_image(builder, pair, category, side, describe) for side in ("src", "trg")]
            kps, ids = self.find_kps(pair, [builder.seen[place] for place in places])
            boxes = [pair.array(f"{side}_bndbox", (4,), "[x1, y1, x2, y2]") for side in ("src", "trg")]
            flags = [pair.whole(name, -1, 127) for name in FLAGS]
            builder.add_pair(line, category, places, kps, ids, boxes, pair.where, flags)
            self._require_known_ids(category, ids, pair.where)
        return builder.build()

    def find_kps(self, pair: Fields, seen: Sequence[Keypoints | None]) -> tuple[Sequence[np.ndarray], Sequence[str]]:
        """Points (N, 2) of source and target, and their ids; seen: what each of the images shows."""
        ids = pair.get("kps_ids")
        if not isinstance(ids, list) or not all(isinstance(name, (str, int)) for name in ids):
            raise pair.wrong("kps_ids", 'a list of names such as ["0", "7"]')
        kps = [pair.array(f"{side}_kps", (None, 2), "a list of [x, y] points") for side in ("src", "trg")]
        return kps, list(map(str, ids))

    def _require_known_ids(self, category: str, ids: Sequence[str], where: str) -> None:
        if symmetry := self.find_symmetry(category):
            last = len(symmetry.permutation) - 1
            if outside := [name for name in ids if not (name.isdecimal() and int(name) <= last)]:
                what = f"keypoint {outside[0]!r} is outside the table of {category}: ids are 0..{last}"
                raise DatasetError(f"{where}: {what}")

    def _add_image(self, builder: TableBuilder, pair: Fields, category: str, side: str, describe: Callable) -> int:
        name = pair.file_name(f"{side}_imname")
        stem, path = os.path.splitext(name)[0], f"{self.folders[2]}/{category}/{name}"
        seen, azimuth = describe(f"{category}/{stem}.json")
        ref = ImageRef(f"{category}-{stem}", path, category, read_size(pair, f"{side}_imsize"), azimuth=azimuth)
        return builder.add_image(ref, pair.where, seen)

    def _layout_file(self, split: str) -> Path:
        return self.root / "Layout" / "large" / f"{split}.txt"


class SPairU(SPair):
    """SPair-U (Jamais Vu, 2025): SPair-71k's test pairs with points that nobody was trained on.

    Lies in a folder of its own, or in SPair-71k's as ExtraPairAnnotation and ExtraImageAnnotation; the images are
    SPair-71k's. Keypoints are those of the two images' annotations where they are there, as its authors read them.
    """

    name = "spairu"
    FOLDER = "SPair-U"
    SPLITS = ("test",)
    LAYOUT = """\
SPair-U/                                   beside SPair-71k/, which holds the images
  PairAnnotation/test/{line}.json          line: 000001-2008_002719-2008_004100:aeroplane
  ImageAnnotation/{category}/{image}.json  all keypoints of an image (optional)
or SPair-71k/ with ExtraPairAnnotation/test/ and ExtraImageAnnotation/"""
    symmetries: Mapping[str, Symmetry] = {}  # its ids are other points than SPair-71k's

    def __init__(self, root: str | Path, *args, **kwargs) -> None:
        beside = Path(root).parent / SPair.FOLDER
        super().__init__(root if Path(root).is_dir() or not (beside / EXTRA).is_dir() else beside, *args, **kwargs)

    @property
    def folders(self) -> tuple[str, str, str]:
        prefix = "Extra" if (self.root / EXTRA).is_dir() else ""
        pairs, images, pictures = SPair.folders
        own = (self.root / pictures).is_dir()
        return f"{prefix}{pairs}", f"{prefix}{images}", pictures if own else f"../{SPair.FOLDER}/{pictures}"

    def split_files(self) -> list[Path]:
        """None where there is no list, or only SPair-71k's: then the pairs are the files of the folder."""
        path = self._layout_file(self.split)
        return [path] if path.is_file() and not (self.root / EXTRA).is_dir() else []

    def find_categories(self) -> list[str]:
        return sorted(set(self.list_lines().values()))

    def list_lines(self) -> dict[str, str]:
        if files := self.split_files():
            return read_layout(files[0])
        folder = self.annotation_folders()[0]
        if not folder.is_dir():
            raise MissingDataError(f"{folder}: no such folder")
        found = (re.fullmatch(r"(.+-.+-.+)[:_]([^:_]+)\.json", name) for name in sorted(list_names(folder)))
        return {f"{match[1]}:{match[2]}": match[2] for match in found if match}

    def read(self) -> PairTable:
        self._differing: list[str] = []
        table = super().read()
        if self._differing:
            some = f"{len(self._differing)} of {len(table.pair_id)} pair files, such as {self._differing[0]}"
            logger.warning("%s: %s, differ from the images' annotations, which count here", self.name, some)
        return table

    def find_kps(self, pair: Fields, seen: Sequence[Keypoints | None]) -> tuple[Sequence[np.ndarray], Sequence[str]]:
        kps, ids = super().find_kps(pair, seen)
        if None in seen:
            return kps, ids
        src, trg = (dict(zip(side.ids, side.points.tolist(), strict=True)) for side in seen)
        common = [name for name in src if name in trg]
        points = [[side[name] for name in common] for side in (src, trg)]
        said = zip(ids, *(side.tolist() for side in kps), strict=False)
        if sorted(said) != sorted(zip(common, *points, strict=True)):
            self._differing.append(pair.where)
        return [np.reshape(side, (-1, 2)) for side in points], common


def read_layout(path: Path) -> dict[str, str]:
    """{line: category} of a layout file."""
    names = read_names(path, LINE, "000001-2008_002719-2008_004100:aeroplane")
    return {line: match[1] for line, (_, match) in names.items()}


def read_image(*place: str | Path) -> tuple[Keypoints | None, int]:
    """All keypoints, {id: [x, y] or null}, and azimuth id (-1: not said) of an image; place: folder (if any), file."""
    if len(place) == 1:
        return None, -1
    fields = read_record(Path(*place), {"azimuth_id": -1})
    kps = fields.get("kps")
    if not isinstance(kps, dict):
        raise fields.wrong("kps", 'an object {"0": [x, y] or null, ...}')
    seen = {name: point for name, point in kps.items() if point is not None}
    points = Fields(fields.where, {"kps": list(seen.values())}).array("kps", (None, 2), "[x, y] or null for each id")
    return Keypoints(tuple(seen), points), fields.whole("azimuth_id", -1, 7)


def read_size(pair: Fields, key: str) -> tuple[int, int]:
    """(H, W) from the file's [W, H, channels]."""
    expected = "[width, height, channels] in pixels"
    width, height, *_ = [*pair.array(key, (None,), expected), 0, 0]
    if not all(1 <= side <= LONGEST_SIDE and side.is_integer() for side in (width, height)):
        raise pair.wrong(key, expected)
    return int(height), int(width)
