"""AP-10K's animals as a correspondence benchmark (GeoAware-SC): pairs within a species, of two, of two families."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np

from dataset.benchmark import Benchmark
from dataset.error import MissingDataError
from dataset.parse import Fields, is_file_name, read_names, read_record
from dataset.record import ImageRef, Keypoints
from dataset.symmetry import AP10K as SYMMETRY
from dataset.symmetry import Symmetry
from dataset.table import PairTable, TableBuilder
from utils.progress import progress

POINTS = 17
ACROSS = "cross-family"  # the one category of pairs across families; the release says "all"
KEYPOINTS = f"x, y, v for each of the {POINTS} keypoints of AP-10K"
LINE = re.compile(r"(\d{12})-(\d{12}):([^/\\:]+)")
IMAGES, PAIRS, LISTS = "ImageAnnotation", "PairAnnotation", "Layout"


class AP10K(Benchmark):
    """AP-10K: box-relative threshold, 17 keypoints, the same for every animal.

    The setting is part of the split. Categories are species, families with several species, or one for all pairs across
    families. Pairs are listed in Layout/{split}.txt (dataset.ap10k_split) or by the release's files in PairAnnotation/.
    """

    name = "ap10k"
    FOLDER = "ap-10k"
    LAYOUT = """\
ap-10k/
  Layout/{split}.txt                               a line per pair: 000000000012-000000000034:wolf, or in its place
  PairAnnotation/{split}/{source}-{target}:{category}.json  src_json_path, trg_json_path (the release's)
  ImageAnnotation/{family}/{species}/{image}.json  box, size and keypoints
  JPEGImages/{family}/{species}/{image}.jpg
splits: trn, val, test, val_cross_species, test_cross_species, val_cross_family, test_cross_family"""
    SPLITS = (
        *("trn", "val", "test"),
        *("val_cross_species", "test_cross_species", "val_cross_family", "test_cross_family"),
    )
    threshold_rule = "bbox"
    max_kps = POINTS

    def split_files(self) -> list[Path]:
        path = self.root / LISTS / f"{self.split}.txt"
        return [path] if path.is_file() or not (self.root / PAIRS / self.split).is_dir() else []

    def annotation_folders(self) -> list[Path]:
        return [self.root / IMAGES, *([] if self.split_files() else [self.root / PAIRS / self.split])]

    def find_categories(self) -> list[str]:
        if self.split.endswith("_cross_family"):
            return [ACROSS]
        if self.split.endswith("_cross_species"):
            families = Counter(path.parent.name for path in self._species)
            return sorted(family for family, count in families.items() if count > 1)
        return self.find_image_categories()

    def find_image_categories(self) -> list[str]:
        """The species, also where pairs are grouped by families."""
        return sorted(path.name for path in self._species)

    @cached_property
    def _species(self) -> list[Path]:
        if not (folder := self.root / IMAGES).is_dir():
            raise MissingDataError(f"{folder}: no such folder")
        return [path for path in folder.glob("*/*") if path.is_dir()]

    def find_symmetry(self, category: str) -> Symmetry:
        """All animals have the same keypoints."""
        return next(iter(self.symmetries.values()), SYMMETRY)

    def read(self) -> PairTable:
        builder, animals = TableBuilder(self.threshold_rule, self.max_kps), {}
        for where, pair_id, category, paths in progress(self._list_pairs(), f"indexing {self.name} {self.split}"):
            for path in paths:
                if path not in animals:
                    animals[path] = read_animal(self.root / IMAGES, path, where)
            refs, boxes, shown = zip(*(animals[path] for path in paths), strict=True)
            images = [builder.add_image(ref, where, seen) for ref, seen in zip(refs, shown, strict=True)]
            common = [name for name in shown[0].ids if name in shown[1].ids]
            kps = [seen.points[[seen.ids.index(name) for name in common]].reshape(-1, 2) for seen in shown]
            builder.add_pair(pair_id, category, images, kps, common, boxes, where)
        return builder.build()

    def _list_pairs(self) -> Iterator[tuple[str, str, str, list[PurePosixPath]]]:
        """(file or line, pair id, category, annotations of source and target below ImageAnnotation) of every pair."""
        if lists := self.split_files():
            folder = self.root / IMAGES
            places = {path.stem: PurePosixPath(path.relative_to(folder)) for path in folder.glob("*/*/*.json")}
            for line, (where, match) in read_names(lists[0], LINE, "000000000012-000000000034:wolf").items():
                *names, suffix = match.groups()
                if unknown := [name for name in names if name not in places]:
                    raise MissingDataError(f"{where}: no file {IMAGES}/*/*/{unknown[0]}.json")
                yield where, line, ACROSS if suffix == "all" else suffix, [places[name] for name in names]
            return
        for path in sorted((self.root / PAIRS / self.split).glob("*.json")):
            pair = read_record(path)
            paths = [reroot(pair, f"{side}_json_path") for side in ("src", "trg")]
            suffix = self._find_suffix(paths)
            yield str(path), f"{paths[0].stem}-{paths[1].stem}:{suffix}", ACROSS if suffix == "all" else suffix, paths

    def _find_suffix(self, paths: list[PurePosixPath]) -> str:
        """What ends a pair file's name; of its animals, for disks of Windows have no colons in names."""
        if self.split.endswith("_cross_family"):
            return "all"
        return paths[0].parts[0 if self.split.endswith("_cross_species") else 1]


def reroot(pair: Fields, key: str) -> PurePosixPath:
    """family/species/image.json of a path that starts at the root of another repository."""
    path = PurePosixPath(*PurePosixPath(pair.text(key).replace("\\", "/")).parts[-3:])
    if len(path.parts) != 3 or not all(map(is_file_name, path.parts)) or path.suffix != ".json":
        raise pair.wrong(key, f"a path that ends in {IMAGES}/family/species/image.json")
    return path


def read_animal(folder: Path, path: PurePosixPath, where: str) -> tuple[ImageRef, np.ndarray, Keypoints]:
    """Image, box (4,) x1 y1 x2 y2 and visible keypoints of the annotation family/species/image.json in a folder.

    Visible are those with v > 0. The release scales coordinates by v / 2, which would halve those of v = 1.
    """
    if not (folder / path).is_file():
        raise MissingDataError(f"{folder / path}: no such file ({where})")
    fields = read_record(folder / path, {"azimuth_id": -1})
    image, species, azimuth = f"JPEGImages/{path.with_suffix('.jpg')}", path.parts[1], fields.whole("azimuth_id", -1, 7)
    ref = ImageRef(f"{species}-{path.stem}", image, species, fields.size(), azimuth=azimuth)
    x, y, width, height = fields.array("bbox", (4,), "[x, y, width, height]")
    values = fields.array("keypoints", (3 * POINTS,), KEYPOINTS).reshape(-1, 3)
    chosen = np.flatnonzero(values[:, 2] > 0)
    seen = Keypoints(tuple(map(str, chosen)), values[chosen, :2])
    return ref, np.array([x, y, x + width, y + height]), seen
