"""AP-10K's animals as a correspondence benchmark (GeoAware-SC): pairs within a species, of two, of two families."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from dataset.benchmark import Benchmark
from dataset.error import DatasetError, MissingDataError
from dataset.parse import Fields, is_file_name, read_record, read_text
from dataset.record import ImageRef, Keypoints
from dataset.symmetry import AP10K as SYMMETRY
from dataset.symmetry import Symmetry
from dataset.table import PairTable, TableBuilder
from utils.progress import progress

POINTS = 17
ACROSS = "cross-family"  # the one category of pairs across families; the release says "all"
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
        families = list_animals(self.root / IMAGES)
        if self.split.endswith("_cross_family"):
            return [ACROSS]
        if self.split.endswith("_cross_species"):
            return [family for family, species in families.items() if len(species) > 1]
        return sorted(name for species in families.values() for name in species)

    def find_symmetry(self, category: str) -> Symmetry:
        """All animals have the same keypoints."""
        return next(iter(self.symmetries.values()), SYMMETRY)

    def read(self) -> PairTable:
        builder, animals = TableBuilder(self.threshold_rule, self.max_kps), {}
        for where, pair_id, category, paths in progress(self._list_pairs(), f"indexing {self.name} {self.split}"):
            for path in paths:
                if path not in animals:
                    animals[path] = read_animal(self.root / IMAGES, path, where)
            sides = [animals[path] for path in paths]
            images = [builder.add_image(animal.ref, where, animal.seen) for animal in sides]
            add_pair(builder, pair_id, category, images, sides, where)
        return builder.build()

    def _list_pairs(self) -> Iterator[tuple[str, str, str, list[PurePosixPath]]]:
        """(file or line, pair id, category, annotations of source and target below ImageAnnotation) of every pair."""
        if lists := self.split_files():
            families = list_animals(self.root / IMAGES)
            places = {
                path.stem: PurePosixPath(family, name, path.name)
                for family, species in families.items()
                for name in species
                for path in (self.root / IMAGES / family / name).glob("*.json")
            }
            for where, pair_id, category, images in read_list(lists[0]):
                if unknown := [name for name in images if name not in places]:
                    raise MissingDataError(f"{where}: no file {IMAGES}/*/*/{unknown[0]}.json")
                yield where, pair_id, category, [places[name] for name in images]
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


@dataclass(frozen=True, eq=False)
class Animal:
    """An annotated image."""

    ref: ImageRef
    bbox: np.ndarray  # (4,) x1 y1 x2 y2
    seen: Keypoints


def list_animals(folder: Path) -> dict[str, list[str]]:
    """{family: its species}, sorted, of a folder of family/species."""
    try:
        families = sorted(path for path in folder.iterdir() if path.is_dir())
    except FileNotFoundError:
        raise MissingDataError(f"{folder}: no such folder") from None
    return {family.name: sorted(path.name for path in family.iterdir() if path.is_dir()) for family in families}


def read_list(path: Path) -> Iterator[tuple[str, str, str, tuple[str, str]]]:
    """(file and line, pair id, category, names of source and target) of every line of a list of pairs."""
    seen: dict[str, int] = {}
    for number, line in enumerate(map(str.strip, read_text(path).split("\n")), start=1):
        where = f"{path}, line {number}"
        if line and not (match := LINE.fullmatch(line)):
            raise DatasetError(f"{where}: {line!r} is not of the form 000000000012-000000000034:wolf")
        if line and seen.setdefault(line, number) != number:
            raise DatasetError(f"{where}: {line!r} stands in line {seen[line]} already")
        if line:
            yield where, line, ACROSS if match[3] == "all" else match[3], (match[1], match[2])


def reroot(pair: Fields, key: str) -> PurePosixPath:
    """family/species/image.json of a path that starts at the root of another repository."""
    value = pair.get(key)
    parts = PurePosixPath(value.replace("\\", "/")).parts[-3:] if isinstance(value, str) else ()
    if len(parts) != 3 or not all(map(is_file_name, parts)) or not parts[2].endswith(".json"):
        raise pair.wrong(key, f"a path that ends in {IMAGES}/family/species/image.json")
    return PurePosixPath(*parts)


def read_animal(folder: Path, path: PurePosixPath, where: str) -> Animal:
    """Of the annotation family/species/image.json in a folder."""
    if not (folder / path).is_file():
        raise MissingDataError(f"{folder / path}: no such file ({where})")
    fields = read_record(folder / path, {"azimuth_id": -1})
    size = fields.whole("height", 1, 100_000), fields.whole("width", 1, 100_000)
    x, y, width, height = fields.array("bbox", (4,), "[x, y, width, height]")
    image, species = f"JPEGImages/{path.parent}/{path.stem}.jpg", path.parts[1]
    ref = ImageRef(f"{species}-{path.stem}", image, species, size, azimuth=fields.whole("azimuth_id", -1, 7))
    return Animal(ref, np.array([x, y, x + width, y + height]), read_keypoints(fields))


def read_keypoints(fields: Fields) -> Keypoints:
    """The visible ones: v > 0. The release scales coordinates by v / 2, which would halve those of v = 1."""
    values = fields.array("keypoints", (3 * POINTS,), f"x, y, v for each of the {POINTS} keypoints of AP-10K").reshape(
        -1, 3
    )
    chosen = np.flatnonzero(values[:, 2] > 0)
    return Keypoints(tuple(map(str, chosen)), values[chosen, :2])


def add_pair(
    builder: TableBuilder, pair_id: str, category: str, images: list[int], sides: list[Animal], where: str
) -> None:
    """Adds the pair of a source and a target with the keypoints that both show."""
    src, trg = (animal.seen for animal in sides)
    common = [name for name in src.ids if name in trg.ids]
    kps = [seen.points[[seen.ids.index(name) for name in common]].reshape(-1, 2) for seen in (src, trg)]
    builder.add_pair(pair_id, category, images, kps, common, [animal.bbox for animal in sides], where)
